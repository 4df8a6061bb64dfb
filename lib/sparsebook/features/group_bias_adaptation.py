"""Group Bias Adaptation: each neuron's firing frequency is controlled through its bias, without a penalty.

"Taming Polysemanticity in LLMs: Provable Feature Recovery via Sparse Autoencoders" (Chen et al. 2025,
arXiv 2506.14002). A tied autoencoder with one scale ``a_m`` per neuron,

    f(x) = sum_m a_m w_m phi(v_m, b_m) + b_pre,     v_m = w_m (x - b_pre),

learns ``W``, ``a`` and ``b_pre`` by gradient and ``b`` by feedback. Every `interval` steps, with ``p_m`` the
share of tokens for which ``y_m = v_m + b_m`` was positive, ``r_m = max(0, max y_m)`` and ``s_k`` the mean of
the positive ``r_m`` in the neuron's group `k`:

====================  =====================================================================
``p_m > p_k``         ``b_m <- max(b_m - gamma_down r_m, -1)``
``p_m < eps``         ``b_m <- min(b_m + gamma_up s_k, 0)``
otherwise             unchanged
====================  =====================================================================

One group with one target is Bias Adaptation; with targets on a geometric ladder it is Group Bias Adaptation.

The paper's text could not be read: the rule is taken from notes on it, and the gate, the start of the biases
and the start of ``a`` are this library's own specification.

>>> import torch
>>> from sparsebook.data.activations import shuffled
>>> from sparsebook.features.trainer import TrainingOptions, train
>>> x = torch.nn.functional.normalize(torch.randn(2000, 16), dim=-1)
>>> sae, targets = TiedJumpReLUSAE(16, 80), geometric_targets(0.1, 0.01, 10)
>>> sae.start_bias_(x, targets)
>>> rule = GroupBiasRule(targets, interval=5)
>>> log = train(sae, shuffled(x, 200), TrainingOptions(n_steps=50, learning_rate=1e-2), [rule])
>>> bool((sae.bias >= -1).all() and (sae.bias <= 0).all())
True
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sparsebook.features.codes import Codes, DenseCodes
from sparsebook.features.sae import Mode, SparseAutoencoder
from sparsebook.features.trainer import Step, TrainingRule

# --- the controller -----------------------------------------------------------------------------------------


def geometric_targets(high: float, low: float, n_groups: int) -> Float[Tensor, " groups"]:
    """Targets from `high` to `low`, each the same fraction of the one before; a single one is `high`.

    Raises
    ------
    ValueError : targets outside ``0 < low <= high <= 1``, or no group
    """
    if not 0 < low <= high <= 1:
        raise ValueError(f"high={high}, low={low}: expected 0 < low <= high <= 1")
    if n_groups < 1:
        raise ValueError(f"n_groups={n_groups}: expected at least 1")
    step = torch.arange(n_groups, dtype=torch.float64) / max(1, n_groups - 1)
    return high * (low / high) ** step


def group_of(n_latents: int, n_groups: int) -> Int64[Tensor, " latents"]:
    """Each neuron's group: neighbours in groups of equal size, the first ones one larger if need be.

    Neurons that are drawn alike make this as good as a random assignment.

    Raises
    ------
    ValueError : no group, or more groups than neurons
    """
    if not 1 <= n_groups <= n_latents:
        raise ValueError(f"n_groups={n_groups}: expected 1 to the number of neurons, {n_latents}")
    return torch.arange(n_latents) * n_groups // n_latents


class BiasAdaptation:
    """Counts how often neurons fire and moves their biases towards target frequencies.

    Only counts and maxima are kept, never pre-activations. Usable with anything that has pre-activations and
    biases, such as the router of a mixture of experts.

    Parameters
    ----------
    groups : of each neuron, from 0
    targets : firing frequency that each group should not exceed
    gamma_down, gamma_up : rates of either direction
    eps : frequency below which a neuron counts as silent. The default means no hit at all in any buffer below
        a million tokens
    low, high : range of the biases, which fits inputs of unit length
    clamps : ``"ordered"``; or ``"printed"``, with min and max interchanged as the paper is said to print them

    Raises
    ------
    ValueError : targets outside (0, 1], rates or eps not above 0, an empty range, a group without target
    """

    def __init__(
        self,
        groups: Int64[Tensor, " neurons"],
        targets: Float[Tensor, " groups"],
        *,
        gamma_down: float = 0.01,
        gamma_up: float = 0.01,
        eps: float = 1e-6,
        low: float | int = -1.0,
        high: float | int = 0.0,
        clamps: str = "ordered",
    ) -> None:
        if not bool(((targets > 0) & (targets <= 1)).all()):
            raise ValueError(f"targets={targets.tolist()}: expected numbers above 0 and at most 1")
        if not (gamma_down > 0 and gamma_up > 0 and eps > 0):
            raise ValueError(f"gamma_down={gamma_down}, gamma_up={gamma_up}, eps={eps}: expected above 0")
        if not low < high:
            raise ValueError(f"low={low}, high={high}: expected low < high")
        if not len(groups) or int(groups.min()) < 0 or int(groups.max()) >= len(targets):
            raise ValueError(f"groups: expected numbers from 0 to {len(targets) - 1}, one for each neuron")
        if clamps not in ("ordered", "printed"):
            raise ValueError(f"clamps={clamps!r}: expected 'ordered' or 'printed'")
        self.groups, self.targets = groups, targets.double()
        self.gamma_down, self.gamma_up, self.eps = gamma_down, gamma_up, eps
        self.low, self.high, self.clamps = low, high, clamps
        self.clear()

    @property
    def target(self) -> Float[Tensor, " neurons"]:
        """Each neuron's own target."""
        return self.targets[self.groups]

    def clear(self) -> None:
        """Forget what was observed: after biases changed, it is of other neurons."""
        self.n_tokens = 0
        self.hits: Tensor | None = None
        self.peaks: Tensor | None = None

    @torch.no_grad()
    def observe(self, pre_activations: Float[Tensor, "*seeds tokens neurons"]) -> None:
        """Take in pre-activations ``y``, biases included.

        Raises
        ------
        ValueError : no token, another number of neurons, or NaN
        """
        if pre_activations.shape[-1] != len(self.groups) or not pre_activations.shape[-2]:
            raise ValueError(
                f"pre_activations has shape {tuple(pre_activations.shape)}: "
                f"expected [..., tokens, {len(self.groups)}] with at least one token"
            )
        # Counted in floats, which are exact up to 16 million tokens and several times faster than integers.
        hits = (pre_activations > 0).to(pre_activations.dtype).sum(-2).long()
        peaks = pre_activations.amax(-2)
        if bool(peaks.isnan().any()):
            raise ValueError("pre_activations has NaN values: expected finite numbers")
        self.hits = hits if self.hits is None else self.hits + hits
        self.peaks = peaks if self.peaks is None else torch.maximum(self.peaks, peaks)
        self.n_tokens += pre_activations.shape[-2]

    @property
    def shares(self) -> Float[Tensor, "*seeds neurons"]:
        """Share of the observed tokens for which each neuron fired, ``p_m``."""
        if self.hits is None:
            raise ValueError("nothing was observed: expected observe() before")
        return self.hits.double() / self.n_tokens

    @torch.no_grad()
    def update(self, bias: Float[Tensor, "*seeds neurons"]) -> Float[Tensor, "*seeds neurons"]:
        """The biases after one update; what was observed is forgotten.

        Raises
        ------
        ValueError : nothing was observed
        """
        shares, target = self.shares.to(bias.device), self.target.to(bias.device)
        assert self.peaks is not None
        peaks = self.peaks.clamp(min=0).to(bias)
        lowered, raised = bias - self.gamma_down * peaks, bias + self.gamma_up * self._group_means(peaks)
        if self.clamps == "ordered":
            lowered, raised = lowered.clamp(min=self.low), raised.clamp(max=self.high)
        else:
            lowered, raised = lowered.clamp(max=self.low), raised.clamp(min=self.high)
        self.clear()
        return torch.where(shares > target, lowered, torch.where(shares < self.eps, raised, bias))

    def _group_means(self, peaks: Float[Tensor, "*seeds neurons"]) -> Float[Tensor, "*seeds neurons"]:
        """Mean of the positive peaks of each neuron's group; 0 where a group has none."""
        groups = self.groups.to(peaks.device).expand(peaks.shape)
        empty = peaks.new_zeros(*peaks.shape[:-1], len(self.targets))
        sums = empty.scatter_add(-1, groups, peaks)
        counts = empty.scatter_add(-1, groups, (peaks > 0).to(peaks))
        return (sums / counts.clamp(min=1)).gather(-1, groups)

    def state(self) -> dict[str, Tensor]:
        """What was observed since the last update, for a checkpoint."""
        found = {"n_tokens": torch.tensor(self.n_tokens)}
        if self.hits is None or self.peaks is None:
            return found
        return found | {"hits": self.hits, "peaks": self.peaks}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.n_tokens = int(state["n_tokens"])
        self.hits, self.peaks = state.get("hits"), state.get("peaks")


# --- the autoencoder ----------------------------------------------------------------------------------------


class TiedJumpReLUSAE(SparseAutoencoder):
    """One unit row per neuron reads and writes; a scale of its own; a bias that no gradient reaches.

    Parameters
    ----------
    gate : ``"threshold"``: the code is ``a v [v + b > 0]``, the bias only decides whether the neuron fires;
        ``"shift"``: ``a relu(v + b)``, the bias shrinks the code too
    scale : of ``a`` at first. With 1, a wide tied dictionary starts far too large
    options : as in :class:`SparseAutoencoder`

    Attributes
    ----------
    scale : ``a``, ``[*seeds, latents]``
    bias : ``b``, a buffer, ``[*seeds, latents]``, 0 at first

    Raises
    ------
    ValueError : another gate
    """

    bias: Tensor

    def __init__(
        self,
        width: int,
        n_latents: int,
        *,
        gate: str = "threshold",
        scale: float | int = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(width, n_latents, **options)
        if gate not in ("threshold", "shift"):
            raise ValueError(f"gate={gate!r}: expected 'threshold' or 'shift'")
        self.gate = gate
        self.scale = nn.Parameter(self.decoder.new_full((*self.lead, n_latents), scale))
        self.register_buffer("bias", self.decoder.new_zeros(*self.lead, n_latents))

    def projections(self, x: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*seeds tokens latents"]:
        """``v = (x - b_pre) W^T``."""
        return (x - self.pre_bias[..., None, :]) @ self.decoder.mT

    def codes_of(
        self, x: Float[Tensor, "*batch tokens width"], mode: Mode, keep: bool
    ) -> tuple[Codes, Float[Tensor, "*seeds tokens latents"]]:
        v = self.projections(x)
        y = v.detach() + self.bias[..., None, :]
        read = v if self.gate == "threshold" else v + self.bias[..., None, :]
        return DenseCodes(torch.where(y > 0, read, 0) * self.scale[..., None, :]), y

    @torch.no_grad()
    def start_bias_(
        self,
        x: Float[Tensor, "*batch tokens width"],
        targets: Float[Tensor, " groups"],
        low: float | int = -1.0,
        high: float | int = 0.0,
    ) -> None:
        """Set the biases so that each neuron fires for its group's target share of these tokens.

        From 0 the feedback would take thousands of steps: an update lowers a bias by one per cent of what is
        left above it.
        """
        target = targets[group_of(self.n_latents, len(targets))]
        v = self.projections(self._checked(x, "threshold")).sort(-2).values
        place = ((1 - target) * v.shape[-2]).floor().long().clamp(max=v.shape[-2] - 1)
        place = place.to(v.device).expand(*v.shape[:-2], 1, self.n_latents)
        self.bias.copy_(-v.gather(-2, place).squeeze(-2).clamp(-high, -low))


class GroupBiasRule(TrainingRule):
    """:class:`BiasAdaptation` as a rule of training, for a :class:`TiedJumpReLUSAE`.

    Parameters
    ----------
    targets : one for each group; a single one is plain Bias Adaptation
    interval : steps between two updates; the paper's is 50, for some 200,000 steps
    options : of :class:`BiasAdaptation`

    Raises
    ------
    ValueError : `interval` below 1; when training, an autoencoder without such a bias
    """

    keep = True

    def __init__(
        self,
        targets: Float[Tensor, " groups"] | Sequence[float],
        *,
        interval: int = 50,
        **options: Any,
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval={interval}: expected at least 1")
        self.targets = torch.as_tensor(targets, dtype=torch.float64)
        self.interval, self.options = interval, options
        self.adaptation: BiasAdaptation | None = None

    def controller(self, n_latents: int) -> BiasAdaptation:
        """The controller, made for the autoencoder's number of neurons."""
        if self.adaptation is None:
            groups = group_of(n_latents, len(self.targets))
            self.adaptation = BiasAdaptation(groups, self.targets, **self.options)
        return self.adaptation

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        sae = step.trainer.sae
        if not isinstance(sae, TiedJumpReLUSAE):
            raise ValueError(
                f"sae is a {type(sae).__name__}: GroupBiasRule expected a TiedJumpReLUSAE, "
                "whose bias no gradient changes"
            )
        controller = self.controller(sae.n_latents)
        assert step.output.pre_activations is not None
        controller.observe(step.output.pre_activations)
        if (step.number + 1) % self.interval == 0:
            sae.bias.copy_(controller.update(sae.bias))

    def state(self) -> dict[str, Tensor]:
        return {} if self.adaptation is None else self.adaptation.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        if "hits" in state:  # otherwise nothing was observed since the last update
            self.controller(state["hits"].shape[-1]).restore(state)


# --- the limit of small scales ------------------------------------------------------------------------------


@torch.no_grad()
def small_scale_ascent(
    x: Float[Tensor, "tokens width"],
    n_neurons: int,
    target: float,
    n_steps: int,
    generator: torch.Generator,
    block: int = 2048,
) -> Float[Tensor, "neurons width"]:
    """Directions of neurons that learn alone: Bias Adaptation as its output scale goes to 0.

    To first order in ``a`` the loss is ``- a E[(w x) phi(w x + b)]``, so each neuron climbs that expectation
    on the sphere, a step being the gradient ``E[phi(y) x + (w x) phi'(y) x]``, normalised. The bias is set
    before each step such that the neuron fires for the share `target` of the tokens. A derivation of our own.

    Parameters
    ----------
    x : tokens, all used in every step
    n_neurons : drawn uniformly on the sphere
    generator : draws them, a block at a time: the first neurons do not depend on how many follow
    block : neurons at a time

    Raises
    ------
    ValueError : a target that leaves no token, or all of them
    """
    n_firing = round(target * len(x))
    if not 1 <= n_firing < len(x):
        raise ValueError(f"target={target}: expected 1 to {len(x) - 1} of {len(x)} tokens to fire")
    found = []
    for start in range(0, n_neurons, block):
        size = min(block, n_neurons - start)
        w = nn.functional.normalize(torch.randn(block, x.shape[1], generator=generator)[:size].to(x), dim=1)
        for _ in range(n_steps):
            v = w @ x.T
            values, places = v.topk(n_firing + 1, dim=1)
            bias = -values[:, -1:]
            kept, places = values[:, :-1], places[:, :-1]
            weight = (kept + bias).relu() + kept
            gradient = torch.zeros_like(v).scatter_(1, places, weight) @ x
            w = nn.functional.normalize(gradient, dim=1)
        found.append(w)
    return torch.cat(found)
