"""What every pattern asks of its arguments, and the products that they all need."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Query = Float[Tensor, "batch heads queries dim"]
Key = Float[Tensor, "batch kv_heads keys dim"]


def check_queries_keys(q: Query, k: Key, *, aligned: bool = True) -> None:
    """Refuse queries and keys that do not belong together.

    Parameters
    ----------
    aligned : bool
        Whether queries and keys must be the same tokens; otherwise lengths may differ.

    Raises
    ------
    ValueError
        Naming q or k: four axes, none empty; a float type; equal batch, dim, type and device; heads that
        divide; equal lengths if `aligned`; no NaN and no infinity.
    """
    for name, x in (("q", q), ("k", k)):
        check_finite(name, x)
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k must have batch {q.shape[0]} and dim {q.shape[3]} like q, got {tuple(k.shape)}")
    if q.dtype != k.dtype or q.device != k.device:
        raise ValueError(f"k must be {q.dtype} on {q.device} like q, got {k.dtype} on {k.device}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"q must have a multiple of k's {k.shape[1]} heads, got {q.shape[1]}")
    if aligned and q.shape[2] != k.shape[2]:
        raise ValueError(f"q and k must have the same number of tokens, got {q.shape[2]} and {k.shape[2]}")


def check_finite(name: str, x: Tensor) -> None:
    """Finite floats on four axes (batch, heads, tokens, dim), none empty; else a ValueError naming `name`."""
    if x.ndim != 4 or 0 in x.shape or not x.is_floating_point():
        raise ValueError(
            f"{name} must be floats of shape (batch, heads, tokens, dim), none of them 0, "
            f"got {x.dtype} {tuple(x.shape)}"
        )
    # A sum is finite only if every term is; it may overflow on its own, so it only clears, never accuses.
    if not math.isfinite(float(x.detach().sum(dtype=torch.float32))) and not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def check_integer(name: str, value: int, least: int = 1) -> None:
    """An integer of at least `least`; else a ValueError naming `name`."""
    if isinstance(value, bool) or int(value) != value or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value}")


def check_share(name: str, value: float) -> None:
    """A number in [0, 1]; else a ValueError naming `name`."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def logit_scale(scale: float | None, dim: int) -> float:
    """The factor of the logits, 1 / sqrt(dim) if not given; ValueError if it is not finite."""
    scale = dim**-0.5 if scale is None else float(scale)
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    return scale


def products(q: Query, k: Key) -> Float[Tensor, "batch heads queries keys"]:
    """Inner products of queries and keys, at least float32; grouped queries share their keys unrepeated."""
    exact = torch.promote_types(q.dtype, torch.float32)
    batch, heads, n, dim = q.shape
    grouped = q.to(exact).reshape(batch, k.shape[1], heads // k.shape[1] * n, dim)
    return (grouped @ k.to(exact).transpose(-1, -2)).view(batch, heads, n, k.shape[2])


def window_weights(
    q: Query, k: Key, window: int, scale: float | None
) -> Float[Tensor, "batch heads window keys"]:
    """Causal softmax weights of the last `window` queries (all if there are fewer) over every key.

    The queries are the last tokens of the keys. Memory is window x keys per head.
    """
    last = q[:, :, -min(window, q.shape[2]) :]
    logits = products(last * logit_scale(scale, q.shape[3]), k)
    n = last.shape[2]
    future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    logits[..., -n:].masked_fill_(future, -torch.inf)
    return logits.softmax(-1)
