"""MP-SAE: a sparse autoencoder whose encoder is matching pursuit on its own dictionary.

"From Flat to Hierarchical: Extracting Sparse Representations with Matching Pursuit" (Costa, Fel, Lubana,
Tolooshams and Ba, NeurIPS 2025, arXiv 2506.03093), Algorithm 1, in the two forms in which it was published,
and the measures of its synthetic benchmark.

>>> import torch
>>> toy = MatchingPursuitSAE(20, 20, threshold=0.05)              # mpsae/MP-SAE: until nothing new is found
>>> vision = MatchingPursuitSAE(20, 60, n_steps=4, atom_dropout=0.1)   # overcomplete's MpSAE: always 4 steps
>>> vision(torch.randn(100, 20)).reconstruction.shape
torch.Size([100, 20])
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from sparsebook.data.activations import stream
from sparsebook.features.codes import Codes, DenseCodes, TopCodes
from sparsebook.features.metrics import atom_norms
from sparsebook.features.sae import BatchTopKSAE, Mode, SAEOutput, SparseAutoencoder
from sparsebook.features.trainer import Step, TrainingOptions, TrainingRule, with_linear_encoder
from sparsebook.kernels.pursuit import PursuitCodes, matching_pursuit


class MatchingPursuitSAE(SparseAutoencoder):
    """Codes of a token: take the atom that correlates most with what is left of it, subtract, repeat.

    Parameters
    ----------
    width, n_latents : further ones as in :class:`SparseAutoencoder`
    n_steps : steps of every token (`overcomplete`), or at most so many with a `threshold` (`sae-lens`)
    threshold : a token ends after the step that brings the norm of its residual below, or that takes no new
        atom (`mpsae/MP-SAE`: 0.05). In the units of the input
    nonnegative : a largest correlation that is negative counts as 0 (toy) or is used as it is (overcomplete);
        by default whether there is a `threshold`
    pre_bias : learn a bias; the paper's text has one, neither of the published programs has
    atom_dropout : in training, the chance of each atom of being left out of a forward pass
    unit_rows : use rows of length 1 with the gradient through their normalisation. By default rows are used
        as they are: of length 1 at the start, later as long as training (and its options) lets them become
    initial : directions uniform on the sphere (toy), or of uniform entries (overcomplete's Xavier)

    Raises
    ------
    ValueError : neither `n_steps` nor `threshold`, or numbers out of range

    Notes
    -----
    The reconstruction is what pursuit subtracted, which is what :meth:`decode` gives for the same codes. In
    the released vision model "inside the ball" divides all rows by the longest one's norm; it is left out.
    """

    def __init__(
        self,
        width: int,
        n_latents: int,
        *,
        n_steps: int | None = None,
        threshold: float | None = None,
        nonnegative: bool | None = None,
        pre_bias: bool = False,
        atom_dropout: float | int = 0.0,
        unit_rows: bool = False,
        initial: Literal["normal", "uniform"] = "normal",
        **options: Any,
    ) -> None:
        super().__init__(width, n_latents, **options)
        if n_steps is None and threshold is None:
            raise ValueError("n_steps and threshold are both None: expected one of them, or both")
        if n_steps is not None and n_steps < 1:
            raise ValueError(f"n_steps={n_steps}: expected at least 1")
        if threshold is not None and not threshold > 0:
            raise ValueError(f"threshold={threshold}: expected above 0")
        if not 0 <= atom_dropout < 1:
            raise ValueError(f"atom_dropout={atom_dropout}: expected at least 0 and below 1")
        if initial not in ("normal", "uniform"):
            raise ValueError(f"initial={initial!r}: expected 'normal' or 'uniform'")
        self.n_steps, self.threshold, self.unit_rows = n_steps, threshold, unit_rows
        self.nonnegative = threshold is not None if nonnegative is None else nonnegative
        self.atom_dropout = atom_dropout
        self.pre_bias.requires_grad_(pre_bias)
        # Dropout is a function of how many passes there were: a resumed training drops the same atoms.
        self.register_buffer("passes", torch.zeros(self.lead, dtype=torch.int64))
        if initial == "normal":
            self._draw_normal_()

    passes: Tensor

    @torch.no_grad()
    def _draw_normal_(self) -> None:
        seeds = (self.seed,) if self.seeds is None else self.seeds
        shape = (self.n_latents, self.width)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.decoder.copy_(torch.stack(drawn).view(self.decoder.shape))
        self.normalise_decoder_()

    @property
    def dictionary(self) -> Float[Tensor, "*seeds latents width"]:
        """The atoms as pursuit uses them."""
        return normalize(self.decoder, dim=-1) if self.unit_rows else self.decoder

    def pursue(
        self,
        x: Float[Tensor, "*batch tokens width"],
        n_steps: int | None = None,
        *,
        return_path: bool = False,
    ) -> PursuitCodes:
        """Matching pursuit of a batch, step by step.

        Parameters
        ----------
        x : as in :meth:`encode`
        n_steps : instead of the model's; every token then takes so many steps, whatever its threshold
        return_path : as in :func:`sparsebook.kernels.pursuit.matching_pursuit`

        Raises
        ------
        ValueError : as :meth:`encode`, or `n_steps` below 1
        """
        return self._pursued(self._checked(x, "batch"), n_steps, return_path)

    def _pursued(self, x: Tensor, n_steps: int | None = None, return_path: bool = False) -> PursuitCodes:
        centred = (x - self.pre_bias[..., None, :]).expand(*self.lead, *x.shape[-2:])
        atoms, dropped = self.dictionary, self.training and self.atom_dropout > 0
        if dropped:
            atoms = atoms * self._kept_atoms()[..., None]
        fixed = n_steps is not None
        return matching_pursuit(
            centred, atoms, n_steps=n_steps if fixed else self.n_steps,
            tolerance=None if fixed else self.threshold, nonnegative=self.nonnegative,
            stop_on_repeat=not fixed and self.threshold is not None, return_path=return_path,
            check_values=not dropped,
        )  # fmt: skip

    def _kept_atoms(self) -> Float[Tensor, "*seeds latents"]:
        """1 for the atoms of this forward pass, 0 for those that are left out."""
        seeds = (self.seed,) if self.seeds is None else self.seeds
        streams = [stream(seed, int(n)) for seed, n in zip(seeds, self.passes.view(-1), strict=True)]
        self.passes += 1
        kept = torch.stack([torch.rand(self.n_latents, generator=g) >= self.atom_dropout for g in streams])
        return kept.view(*self.lead, self.n_latents).to(self.decoder)

    def encode(
        self, x: Float[Tensor, "*batch tokens width"], mode: Mode = "batch", n_steps: int | None = None
    ) -> Codes:
        """Codes of a batch of tokens; both modes are the same here.

        Parameters
        ----------
        x, mode : as in :meth:`SparseAutoencoder.encode`
        n_steps : as in :meth:`pursue`

        Raises
        ------
        ValueError : as :meth:`SparseAutoencoder.encode`
        """
        return self._as_codes(self._pursued(self._checked(x, mode), n_steps))

    def codes_of(self, x: Float[Tensor, "*batch tokens width"], mode: Mode, keep: bool) -> tuple[Codes, None]:
        return self._as_codes(self._pursued(x)), None

    def decode(
        self, codes: Codes | Float[Tensor, "*seeds tokens latents"]
    ) -> Float[Tensor, "*seeds tokens width"]:
        """Codes times atoms, plus the bias."""
        codes = DenseCodes(codes) if isinstance(codes, Tensor) else codes
        return codes.decode(self.dictionary) + self.pre_bias[..., None, :]

    def forward(
        self, x: Float[Tensor, "*batch tokens width"], mode: Mode = "batch", keep: bool = True
    ) -> SAEOutput:
        """Encode, and reconstruct by what was subtracted; there are no pre-activations.

        Parameters and errors as in :meth:`SparseAutoencoder.forward`.
        """
        pursued = self._pursued(self._checked(x, mode))
        return SAEOutput(x - pursued.residual, self._as_codes(pursued), None)

    def _as_codes(self, pursued: PursuitCodes) -> Codes:
        """Dense where tokens take as many steps as they like, else as many codes as steps."""
        if self.n_steps is None and pursued.indices.shape[-1] * 4 > self.n_latents:
            return DenseCodes(pursued.dense())
        indices = pursued.indices
        # A step's code is added to the first one that took the same atom.
        same = (indices[..., :, None] == indices[..., None, :]) & (indices[..., None, :] >= 0)
        first = same.byte().argmax(-1)
        values = torch.zeros_like(pursued.coefficients).scatter_add(-1, first, pursued.coefficients)
        return TopCodes(values, indices.clamp(min=0), self.n_latents)

    def model(self, index: int) -> "MatchingPursuitSAE":
        alone = super().model(index)
        alone.pre_bias.requires_grad_(self.pre_bias.requires_grad)
        return alone


class ReviveDeadAtoms(TrainingRule):
    """Draws atoms that a batch hardly used towards what it left over (`overcomplete`'s documentation).

    If more than `most` atoms have no code above `least` in the batch, `coefficient` times the mean product of
    the residuals with those atoms is taken off the loss.

    Parameters
    ----------
    most, least, coefficient : as published
    """

    def __init__(self, most: int = 10, least: float | int = 0.01, coefficient: float = 0.01) -> None:
        if most < 0 or not least >= 0 or not coefficient > 0:
            raise ValueError(
                f"most={most}, least={least}, coefficient={coefficient}: expected at least 0, at least 0 and "
                "above 0"
            )
        self.most, self.least, self.coefficient = most, least, coefficient

    def loss_terms(self, step: Step) -> dict[str, Float[Tensor, "*seeds"]]:
        sae = step.trainer.sae
        largest = step.output.codes.dense().detach().amax(-2)
        silent = largest < self.least
        silent = silent & (silent.sum(-1, keepdim=True) > self.most)
        left = step.x - step.output.reconstruction
        products = (left.mean(-2, keepdim=True) @ sae.decoder.mT).squeeze(-2)
        mean = torch.where(silent, products, 0.0).sum(-1) / silent.sum(-1).clamp(min=1)
        return {"revival": -self.coefficient * mean}


def toy_options(n_steps: int = 15_000, **changes: Any) -> TrainingOptions:
    """Training as in the published benchmark (appendix B.1): free norms, clipped gradients, quick Adam."""
    published: dict[str, Any] = {
        "learning_rate": 3e-2, "betas": (0.5, 0.9375), "warmup": 100, "decay": 0.2, "floor": 0.1,
        "clip_norm": 1.0, "unit_norm": False, "remove_parallel": False, "log_every": max(1, n_steps // 25),
    }  # fmt: skip
    return TrainingOptions(n_steps=n_steps, **(published | changes))


# Baselines of the benchmark ------------------------------------------------------------------------------


class HitL0(TrainingRule):
    """Moves the weight of a penalty until batches have the wanted number of active latents.

    The weight rises linearly over `warmup` steps to `start` and is from then on multiplied by ``1 + rate``
    after a batch with too many active latents, by ``1 - rate`` after one with too few; each seed's own.

    Parameters
    ----------
    target : active latents a token
    start, warmup, rate : as published (a warmup of a fifth of the steps)

    Raises
    ------
    ValueError : numbers out of range; in training, an autoencoder without the weight ``sparsity``
    """

    def __init__(
        self, target: float | int, *, start: float | int = 0.1, warmup: int = 3000, rate: float = 3e-4
    ) -> None:
        if not target > 0 or not start > 0 or warmup < 0 or not 0 < rate < 1:
            raise ValueError(
                f"target={target}, start={start}, warmup={warmup}, rate={rate}: expected above 0, above 0, "
                "at least 0, and between 0 and 1"
            )
        self.target, self.start, self.warmup, self.rate = target, start, warmup, rate
        self.weight = torch.empty(0)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        sparsity = getattr(step.trainer.sae, "sparsity", None)
        if not isinstance(sparsity, Tensor):
            kind = type(step.trainer.sae).__name__
            raise ValueError(f"sae is a {kind}: HitL0 expected one with a weight, 'sparsity'")
        if not self.weight.numel():
            self.weight = torch.full_like(sparsity, self.start)
        done = step.number + 1
        if done > self.warmup:
            few = step.output.codes.active_per_token().double().mean(-1) < self.target
            self.weight *= torch.where(few, 1 - self.rate, 1 + self.rate).to(self.weight)
        sparsity.copy_(self.weight * min(1.0, done / max(1, self.warmup)))

    def state(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.weight = state["weight"].clone()


class SortLatents(TrainingRule):
    """Sorts the latents after every step by a running mean of what they contribute, the largest first.

    Parameters
    ----------
    whole : the running mean and Adam's moments are sorted along with the weights. The published program
        means to, but sorts the weights alone: a latent that has moved meets another one's history
    decay : of the running mean
    """

    def __init__(self, whole: bool = True, decay: float = 0.95) -> None:
        self.whole, self.decay = whole, decay
        self.mean = torch.empty(0)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        sae = with_linear_encoder(step.trainer.sae, "SortLatents")
        contributed = step.output.codes.dense().square().mean(-2) * sae.decoder.square().sum(-1)
        if not self.mean.numel():
            self.mean = torch.zeros_like(contributed)
        self.mean.mul_(self.decay).add_(contributed, alpha=1 - self.decay)
        order = self.mean.sort(dim=-1, descending=True, stable=True).indices
        if self.whole:
            self.mean = self.mean.gather(-1, order)
        for parameter in (sae.decoder, sae.encoder, sae.encoder_bias):
            moments = step.trainer.optimiser.state[parameter] if self.whole else {}
            for table in (parameter, *(moments[name] for name in ("exp_avg", "exp_avg_sq") if moments)):
                places = order if table.ndim == order.ndim else order[..., None].expand_as(table)
                table.copy_(table.gather(order.ndim - 1, places))

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.mean = state["mean"].clone()


class ToyBatchTopKSAE(BatchTopKSAE):
    """BatchTopK with the benchmark's loss, the plain squared error."""

    def loss_terms(
        self,
        x: Float[Tensor, "*batch tokens width"],
        output: SAEOutput,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, "*seeds"]]:
        return SparseAutoencoder.loss_terms(self, x, output, generator)


class LowerK(TrainingRule):
    """Changes a budget of latents once: the benchmark's BatchTopK has 3 for 1,000 steps, then 1.36.

    Parameters
    ----------
    k : the budget from then on
    after : steps before
    """

    def __init__(self, k: float | int = 1.36, after: int = 1000) -> None:
        self.k, self.after = k, after

    def after_step(self, step: Step) -> None:
        sae = step.trainer.sae
        if step.number + 1 == self.after:
            if not isinstance(sae, BatchTopKSAE):
                raise ValueError(f"sae is a {type(sae).__name__}: LowerK expected a BatchTopKSAE")
            sae.k = self.k


# Measures of the benchmark -------------------------------------------------------------------------------


@torch.no_grad()
def match_latents(
    codes: Float[Tensor, "*seeds samples latents"], concepts: Float[Tensor, "*batch samples features"]
) -> Int64[Tensor, "*seeds features"]:
    """The latent of each concept: the assignment (Hungarian method) with the largest sum of products.

    Parameters
    ----------
    codes : of samples in which concepts are active or not, without magnitudes
    concepts : activations of the same samples, shared by all seeds or one table each

    Raises
    ------
    ValueError : fewer latents than concepts, or NaN

    Notes
    -----
    Columns are divided by their maximum first, as in the published notebook.
    """
    from scipy.optimize import linear_sum_assignment

    if codes.shape[-1] < concepts.shape[-1]:
        raise ValueError(f"codes has {codes.shape[-1]} latents: expected at least {concepts.shape[-1]}")
    if bool(codes.isnan().any()) or bool(concepts.isnan().any()):
        raise ValueError("codes or concepts have NaN: expected numbers")
    scaled = [z / z.amax(-2, keepdim=True).clamp(min=1e-10) for z in (codes.double(), concepts.double())]
    gain = scaled[1].mT @ scaled[0]
    tables = gain.reshape(-1, *gain.shape[-2:]).cpu().numpy()
    found = [torch.from_numpy(linear_sum_assignment(table, maximize=True)[1]) for table in tables]
    return torch.stack(found).view(gain.shape[:-1]).to(codes.device)


def matched_atoms(
    dictionary: Float[Tensor, "*seeds latents width"], match: Int64[Tensor, "*seeds features"]
) -> Float[Tensor, "*seeds features width"]:
    """Unit atoms in the order of the concepts.

    Raises
    ------
    ValueError : a zero atom
    """
    unit = dictionary / atom_norms(dictionary)
    return unit.gather(-2, match[..., None].expand(*match.shape, unit.shape[-1]))


def flat_mse(
    atoms: Float[Tensor, "*seeds features width"],
    truth: Float[Tensor, "*batch features width"],
    groups: Sequence[Sequence[int]],
) -> Float[Tensor, "*seeds"]:
    """Mean squared difference of the cosines of siblings, learned against true (section 4.1).

    Parameters
    ----------
    atoms : matched to the concepts
    truth : directions of the concepts, shared by all seeds or a table each
    groups : siblings; every pair within a group counts once

    Raises
    ------
    ValueError : no group with two members
    """
    pairs = [(i, j) for group in groups for i in group for j in group if i < j]
    if not pairs:
        raise ValueError(f"groups={groups}: expected a group of at least two concepts")
    first, second = torch.tensor(pairs).T
    return (_cosines(atoms) - _cosines(truth))[..., first, second].square().mean(-1)


def hierarchical_mse(
    atoms: Float[Tensor, "*seeds features width"], levels: Sequence[int]
) -> Float[Tensor, "*seeds"]:
    """Mean squared cosine of atoms of concepts on different levels, which are orthogonal in truth.

    Parameters
    ----------
    atoms : matched to the concepts
    levels : of the concepts

    Raises
    ------
    ValueError : all concepts on one level
    """
    level = torch.tensor(list(levels))
    apart = (level[:, None] != level).triu()
    if not bool(apart.any()):
        raise ValueError(f"levels={list(levels)}: expected concepts on at least two levels")
    return _cosines(atoms)[..., apart].square().mean(-1)


def absorption_score(
    atoms: Float[Tensor, "*seeds features width"],
    truth: Float[Tensor, "*batch features width"],
    parents: Sequence[int],
) -> Float[Tensor, "*seeds"]:
    """Mean cosine of each child's learned atom with its true parent's direction (Table 1).

    Parameters
    ----------
    atoms : matched to the concepts
    truth : directions of the concepts, shared by all seeds or a table each
    parents : of each concept, -1 for none

    Raises
    ------
    ValueError : no concept with a parent
    """
    children = [child for child, parent in enumerate(parents) if parent >= 0]
    if not children:
        raise ValueError(f"parents={list(parents)}: expected at least one child")
    above = truth[..., [parents[child] for child in children], :]
    return (atoms[..., children, :] * above).sum(-1).mean(-1)


def _cosines(atoms: Tensor) -> Tensor:
    unit = atoms / atom_norms(atoms)
    return unit @ unit.mT
