"""What every pattern asks of its arguments, and the products that they all need."""

import math
from collections.abc import Callable
from numbers import Integral

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
    if not all(math.isfinite(float(extreme)) for extreme in torch.aminmax(x.detach())):  # NaN reaches both
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def check_integer(name: str, value: int, least: int = 1) -> None:
    """An integer of at least `least`; else a ValueError naming `name`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
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


# Floats of window weights held at a time: on a CPU what the allocator hands out again without new pages.
_HELD = {"cpu": 2**20}
_HELD_ELSEWHERE = 2**27

Weights = Float[Tensor, "part group window keys"]
Statistic = Callable[[Weights], Float[Tensor, "part group keys"]]


def window_statistics(
    q: Query, k: Key, window: int, scale: float | None, *statistics: Statistic
) -> tuple[Float[Tensor, "batch heads keys"], ...]:
    """Statistics of the causal softmax weights that the last `window` queries give every key.

    The queries, all if there are fewer, are the last tokens of the keys. Each statistic reduces weights
    [part, group, window, keys], a part being some KV heads, over the window; the weights of all heads are
    never held together: memory is a few times window x keys.
    """
    batch, heads, _, dim = q.shape
    n, (_, kv_heads, length, _) = min(window, q.shape[2]), k.shape
    exact = torch.promote_types(q.dtype, torch.float32)
    last = q[:, :, -n:].reshape(batch * kv_heads, -1, n, dim).to(exact) * logit_scale(scale, dim)
    keys = k.reshape(batch * kv_heads, 1, length, dim)
    future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    step = max(1, _HELD.get(q.device.type, _HELD_ELSEWHERE) // (last.shape[1] * n * length))
    parts = []
    for i in range(0, batch * kv_heads, step):
        logits = products(last[i : i + step], keys[i : i + step].to(exact))
        logits[..., -n:].masked_fill_(future, -torch.inf)
        weights = logits.softmax(-1)
        parts.append([statistic(weights) for statistic in statistics])
    return tuple(torch.cat(part).view(batch, heads, length) for part in zip(*parts, strict=True))
