"""How far a classifier can be trusted: calibration, inputs from elsewhere, attacks.

All functions take any leading dimensions before samples and classes, so that stacked networks are judged at
once. (torchmetrics has the calibration error too; it is not needed for so little.)
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

Logits = Float[Tensor, "*models samples classes"]
Labels = Int64[Tensor, "*models samples"]
PerModel = Float[Tensor, "*models"]
Network = Callable[[Tensor], Tensor]


def accuracy(logits: Logits, labels: Labels) -> PerModel:
    """Share of the samples whose largest logit is that of their class."""
    return (logits.argmax(-1) == labels).double().mean(-1)


def negative_log_likelihood(logits: Logits, labels: Labels) -> PerModel:
    """Mean of -log probability of the true class, in nats."""
    chosen = logits.double().log_softmax(-1).gather(-1, labels[..., None])
    return -chosen.squeeze(-1).mean(-1)


def calibration_error(logits: Logits, labels: Labels, n_bins: int = 15) -> PerModel:
    """Expected calibration error: mean distance of confidence and accuracy over bins of equal width.

    A confidence at a border belongs to the lower bin, as in Guo et al. 2017 (arXiv 1706.04599).

    Raises
    ------
    ValueError
        Fewer than one bin.
    """
    if n_bins < 1:
        raise ValueError(f"n_bins={n_bins}: expected at least 1")
    confidence, answer = logits.double().softmax(-1).max(-1)
    right = (answer == labels).double()
    place = (confidence * n_bins).ceil().long().sub(1).clamp(0, n_bins - 1)
    empty = torch.zeros((*confidence.shape[:-1], n_bins), dtype=torch.float64, device=logits.device)
    excess = empty.scatter_add(-1, place, confidence - right)
    return excess.abs().sum(-1) / labels.shape[-1]


def fit_temperature(logits: Logits, labels: Labels) -> PerModel:
    """The temperature by which logits must be divided for the smallest negative log-likelihood.

    The likelihood is convex in 1 / temperature, so its slope is bisected, within 0.001 and 1000.
    """
    z = logits.detach().double()
    truth = z.gather(-1, labels[..., None]).squeeze(-1)
    low = torch.full(z.shape[:-2], -3.0, dtype=torch.float64, device=z.device)
    high = -low
    for _ in range(30):  # six decades, down to a hundred-millionth of one
        middle = (low + high) / 2
        p = (10 ** middle[..., None, None] * z).softmax(-1)
        rises = ((p * z).sum(-1) - truth).mean(-1) > 0
        low, high = torch.where(rises, low, middle), torch.where(rises, middle, high)
    return 10 ** -((low + high) / 2)


def auroc(inside: Float[Tensor, "*models n"], outside: Float[Tensor, "*models m"]) -> PerModel:
    """Chance that a sample from inside scores above one from elsewhere; a tie counts half.

    Raises
    ------
    ValueError
        No samples on one side, or NaN.
    """
    if not inside.shape[-1] or not outside.shape[-1]:
        raise ValueError(f"{inside.shape[-1]} and {outside.shape[-1]} samples: expected at least one each")
    if bool(inside.isnan().any() | outside.isnan().any()):
        raise ValueError("scores hold NaN: expected numbers")
    ordered = outside.contiguous().sort(dim=-1).values
    below = torch.searchsorted(ordered, inside.contiguous(), right=False)
    upto = torch.searchsorted(ordered, inside.contiguous(), right=True)
    return (below + upto).double().mean(-1) / (2 * outside.shape[-1])


def largest_probability(logits: Logits) -> Float[Tensor, "*models samples"]:
    """The confidence that serves as the score of belonging (Hendrycks and Gimpel 2017, arXiv 1610.02136)."""
    return logits.double().softmax(-1).amax(-1)


def fgsm(
    network: Network, x: Tensor, labels: Labels, step: float | int, *, low: float = -torch.inf,
    high: float = torch.inf,
) -> Tensor:  # fmt: skip
    """Inputs moved by `step` along the sign of the loss's gradient: Goodfellow et al. 2015 (arXiv 1412.6572).

    Parameters
    ----------
    network : inputs to logits; it is judged as it is, so put it into evaluation mode
    x : inputs
    labels : true classes
    step : in the units of `x`
    low, high : bounds of a valid input

    Raises
    ------
    ValueError
        A step below 0.
    """
    if step < 0:
        raise ValueError(f"step={step}: expected at least 0")
    return (x + step * _ascent(network, x, labels)).clamp(low, high)


def pgd(
    network: Network, x: Tensor, labels: Labels, radius: float | int, *, n_steps: int = 10,
    step: float | None = None, low: float = -torch.inf, high: float = torch.inf,
) -> Tensor:  # fmt: skip
    """Repeated `fgsm` with steps of a quarter of the radius (or `step`), never further than the radius.

    Madry et al. 2018 (arXiv 1706.06083), started at the input itself. Parameters and errors as in `fgsm`.
    """
    if radius < 0 or n_steps < 1:
        raise ValueError(f"radius={radius}, n_steps={n_steps}: expected at least 0 and 1")
    moved = x
    for _ in range(n_steps):
        moved = fgsm(network, moved, labels, radius / 4 if step is None else step)
        moved = moved.clamp(x - radius, x + radius).clamp(low, high)
    return moved


def _ascent(network: Network, x: Tensor, labels: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    logits = network(x)
    loss = cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")
    return torch.autograd.grad(loss, x)[0].sign()
