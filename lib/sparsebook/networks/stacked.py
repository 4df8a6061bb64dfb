"""Many small networks trained at once, each with its own weights, masks and batches.

Small networks leave a processor idle between calls. `Stacked` puts networks of one architecture side by side:
linear layers become batched products, convolutions grouped ones, and what one network computes is what it
would have computed alone. (Measured on two cores: 2 times faster than one by one for small perceptrons and
small convolutions, and 1.3 times faster than `torch.func.vmap` over `functional_call`.)

>>> import torch
>>> from torch import nn
>>> torch.manual_seed(0)                                                               # doctest: +ELLIPSIS
<torch...>
>>> both = Stacked([nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2)])
>>> both(torch.randn(2, 5, 4)).shape             # networks, pictures, classes
torch.Size([2, 5, 3])
>>> both.get_parameter("0.weight").shape
torch.Size([2, 8, 4])

A `SparsityMask` over a stack takes masks ``[networks, *shape]``; see `stacked_masks`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, cross_entropy

from sparsebook.networks.masks import SparsityMask

# --- layers -------------------------------------------------------------------------------------------------


class StackedLinear(nn.Module):
    """Linear layers side by side: weights ``[networks, outputs, inputs]``."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = _parameter([layer.weight for layer in layers])
        self.bias = None if layers[0].bias is None else _parameter([layer.bias for layer in layers])

    def forward(self, x: Tensor) -> Float[Tensor, "networks batch outputs"]:
        """``x`` is [networks, batch, inputs], or [batch, networks * inputs] as convolutions leave it."""
        if x.ndim == 2:
            x = x.unflatten(1, (len(self.weight), -1)).transpose(0, 1)
        if self.bias is None:
            return torch.bmm(x, self.weight.mT)
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


class StackedConv2d(nn.Module):
    """Convolutions side by side, as groups of one: weights ``[networks, outputs, inputs, height, width]``."""

    def __init__(self, layers: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.weight = _parameter([layer.weight for layer in layers])
        self.bias = (
            None
            if layers[0].bias is None
            else _parameter([layer.bias for layer in layers if layer.bias is not None])
        )
        first = layers[0]
        if first.padding_mode != "zeros":
            raise ValueError(f"padding_mode={first.padding_mode!r}: expected 'zeros'")
        self.options: dict[str, Any] = {
            "stride": first.stride,
            "padding": first.padding,
            "dilation": first.dilation,
            "groups": first.groups * len(layers),
        }

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Tensor:
        """All networks' channels lie behind one another."""
        weight = self.weight.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return conv2d(x, weight, None if self.bias is None else self.bias.flatten(), **self.options)


class StackedBatchNorm(nn.Module):
    """Batch normalisations side by side, of vectors or of pictures."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layers: Sequence[nn.BatchNorm1d] | Sequence[nn.BatchNorm2d]) -> None:
        super().__init__()
        first = layers[0]
        if not (first.affine and first.track_running_stats) or first.momentum is None:
            name = type(first).__name__
            raise ValueError(f"{name}: expected one with weights, running statistics and a momentum")
        self.weight = _parameter([layer.weight for layer in layers])
        self.bias = _parameter([layer.bias for layer in layers])
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.stack([getattr(layer, name) for layer in layers]).clone())
        self.momentum, self.eps = first.momentum, first.eps

    def forward(self, x: Tensor) -> Tensor:
        """``x`` is [networks, batch, features], or as convolutions leave it, [batch, channels, ...]."""
        if x.ndim == 3:
            folded = self._normalised(x.transpose(0, 1).flatten(1))
            return folded.unflatten(1, self.weight.shape).transpose(0, 1)
        return self._normalised(x)

    def _normalised(self, x: Tensor) -> Tensor:
        """Normalisations act on one channel at a time, whichever network it is of."""
        means, variances = self.running_mean.view(-1), self.running_var.view(-1)
        scale, shift = self.weight.flatten(), self.bias.flatten()
        return batch_norm(x, means, variances, scale, shift, self.training, self.momentum, self.eps)


_STACKED: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Linear: StackedLinear,
    nn.Conv2d: StackedConv2d,
    nn.BatchNorm1d: StackedBatchNorm,
    nn.BatchNorm2d: StackedBatchNorm,
}


def _parameter(tensors: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([tensor.detach() for tensor in tensors]))


# --- networks -----------------------------------------------------------------------------------------------


class Stacked(nn.Module):
    """Networks of one architecture as one module with their parameters along a new first dimension.

    Linear layers, 2-D convolutions and batch normalisations become their stacked twins; everything else
    must be without parameters and act on each channel by itself (ReLU, pooling, flattening, sums). Names of
    parameters stay as they are.

    Parameters
    ----------
    models : modules of one architecture
        They are copied.

    Raises
    ------
    ValueError
        No models, models whose parameters differ in name or shape, or a layer that cannot be stacked.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        if not models:
            raise ValueError("models is empty: expected at least one network")
        shapes = [{name: p.shape for name, p in model.named_parameters()} for model in models]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError("models differ in the names or shapes of their parameters: expected equal ones")
        self._first = (copy.deepcopy(models[0]),)  # in a tuple: no submodule
        self.network = _stacked(list(models))
        self.n_models = len(models)

    def forward(self, x: Float[Tensor, "networks batch *shape"]) -> Float[Tensor, "networks batch *out"]:
        """Every network on its own batch: vectors [networks, batch, features], pictures [..., C, H, W]."""
        if len(x) != self.n_models:
            raise ValueError(f"x has shape {tuple(x.shape)}: expected a batch for each of {self.n_models}")
        if x.ndim == 3:
            return self.network(x)
        folded = x.transpose(0, 1).flatten(1, 2)  # [batch, networks * channels, height, width]
        return self.network(folded.contiguous(memory_format=torch.channels_last))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """As of a single network, without the prefix of the module in between."""
        return self.network.named_parameters(*args, **kwargs)

    def get_parameter(self, target: str) -> nn.Parameter:
        """By the name that it has in a single network."""
        return self.network.get_parameter(target)

    def prunable(self) -> dict[str, Tensor]:
        """Weights of linear layers and convolutions by name, ``[networks, *shape]``."""
        return {
            f"{name}.weight" if name else "weight": module.weight
            for name, module in self.network.named_modules()
            if isinstance(module, StackedLinear | StackedConv2d)
        }

    def model(self, index: int) -> nn.Module:
        """A copy of one network, as a module of its own."""
        found = copy.deepcopy(self._first[0])
        mine = {name: value[index] for name, value in self.network.state_dict().items()}
        found.load_state_dict(found.state_dict() | mine)
        return found


def _stacked(modules: list[nn.Module]) -> nn.Module:
    kind = type(modules[0])
    if kind in _STACKED:
        return _STACKED[kind](modules)
    if own := [name for name, _ in modules[0].named_parameters(recurse=False)]:
        raise ValueError(f"{kind.__name__} has parameters {own} of its own and cannot be stacked")
    made = copy.copy(modules[0])  # what it holds is replaced, so only itself is copied
    made._modules = {}
    for name, _ in modules[0].named_children():
        setattr(made, name, _stacked([module.get_submodule(name) for module in modules]))
    return made


def stacked_masks(masks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Each network's masks, stacked for a `SparsityMask` of the stack.

    Raises
    ------
    ValueError
        No masks, or networks that name different layers.
    """
    if not masks or any(set(own) != set(masks[0]) for own in masks):
        raise ValueError("masks: expected at least one network's, all for the same layers")
    return {name: torch.stack([own[name] for own in masks]) for name in masks[0]}


def stacked_loss(
    logits: Float[Tensor, "networks batch classes"], labels: Int64[Tensor, "networks batch"]
) -> Float[Tensor, " networks"]:
    """Mean cross-entropy of every network; their sum has each one's own gradient."""
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(1)


# --- training -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SGDOptions:
    """Stochastic gradient descent with momentum and two or more falls of its rate.

    Attributes
    ----------
    epochs, batch
    rate : of learning
    momentum, nesterov, weight_decay : as in `torch.optim.SGD`
    falls : shares of the training after which the rate is divided by ten
    """

    epochs: int
    batch: int = 128
    rate: float | int = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    falls: tuple[float, ...] = (0.5, 0.75)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or not self.rate > 0:
            raise ValueError(
                f"epochs={self.epochs}, batch={self.batch}, rate={self.rate}: expected at least 1, 1, above 0"
            )

    def rate_at(self, share: float) -> float:
        """The rate when this share of the training is over."""
        return self.rate * 0.1 ** sum(share >= fall for fall in self.falls)


def train_stacked(
    model: Stacked,
    x: Float[Tensor, "pool *shape"],
    y: Int64[Tensor, " pool"],
    rows: Int64[Tensor, "networks samples"],
    options: SGDOptions,
    seeds: Sequence[int],
    masks: Mapping[str, Tensor] | None = None,
    n_steps: int | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> None:
    """Train every network on its own rows of the pool, in an order that only its seed decides.

    Networks with the same seed and rows see the same batches, so that they can be compared in pairs.

    Parameters
    ----------
    model
    x, y : inputs and classes that all draw from
    rows : which samples each network trains on; the last, incomplete batch of an epoch is left out
    options
    seeds : of the order, one for each network
    masks : of the stack; pruned weights stay exactly zero
    n_steps : stop after so many
    augment : changes a batch ``[networks, batch, *shape]``, the same way for all networks

    Raises
    ------
    ValueError
        Seeds or rows that do not number as many as the networks, or fewer samples than a batch.
    """
    if len(seeds) != model.n_models or len(rows) != model.n_models:
        raise ValueError(f"{len(seeds)} seeds, {len(rows)} lists of rows: expected {model.n_models} of each")
    n, per_epoch = rows.shape[1], rows.shape[1] // options.batch
    if per_epoch < 1:
        raise ValueError(f"rows: {n} samples a network, fewer than a batch of {options.batch}")
    optimizer = torch.optim.SGD(
        model.network.parameters(), options.rate, options.momentum,
        weight_decay=options.weight_decay, nesterov=options.nesterov,
    )  # fmt: skip
    if masks is not None:
        SparsityMask(model.network, masks).attach(optimizer)
    model.train()
    chance = torch.Generator().manual_seed(seeds[0])
    total = options.epochs * per_epoch
    for step in range(total if n_steps is None else min(n_steps, total)):
        place = step % per_epoch
        if place == 0:
            order = rows.gather(1, _orders(seeds, step // per_epoch, n).to(rows.device))
        for group in optimizer.param_groups:
            group["lr"] = options.rate_at(step / total)
        chosen = order[:, place * options.batch : (place + 1) * options.batch]
        inputs = x[chosen] if augment is None else augment(x[chosen], chance)
        optimizer.zero_grad(set_to_none=True)
        stacked_loss(model(inputs), y[chosen]).sum().backward()
        optimizer.step()
    model.eval()


def _orders(seeds: Sequence[int], epoch: int, n: int) -> Int64[Tensor, "networks samples"]:
    known: dict[int, Tensor] = {}
    for seed in seeds:
        if seed not in known:
            known[seed] = torch.randperm(n, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
    return torch.stack([known[seed] for seed in seeds])


@torch.no_grad()
def stacked_logits(
    model: Stacked, x: Float[Tensor, "networks samples *shape"], batch: int = 512
) -> Float[Tensor, "networks samples classes"]:
    """Logits of every network on its own samples, in batches."""
    return torch.cat([model(part) for part in x.split(batch, dim=1)], dim=1)
