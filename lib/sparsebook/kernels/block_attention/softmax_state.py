"""The state of a softmax that has seen some of its keys: what lets partial passes be joined."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class OnlineSoftmaxState:
    """Maximum, sum and weighted values of the keys seen so far, row by row.

    Attributes
    ----------
    m : [batch, heads, tokens]
        Largest scaled logit, in natural-log units; -inf where no key was seen.
    l : [batch, heads, tokens]
        Sum of exp(logit - m); 0 where no key was seen.
    acc : [batch, heads, tokens, dim]
        Sum of exp(logit - m) * value, in the precision of `m`.
    """

    m: Float[Tensor, "batch heads tokens"]
    l: Float[Tensor, "batch heads tokens"]  # noqa: E741
    acc: Float[Tensor, "batch heads tokens dim"]

    @classmethod
    def empty(
        cls, batch: int, heads: int, tokens: int, dim: int, device: torch.device | str | None = None
    ) -> "OnlineSoftmaxState":
        """The state before any key: the neutral element of `merge`."""
        zeros = torch.zeros(batch, heads, tokens, dim, device=device)
        return cls(torch.full_like(zeros[..., 0], -torch.inf), torch.zeros_like(zeros[..., 0]), zeros)

    def merge(self, other: "OnlineSoftmaxState") -> "OnlineSoftmaxState":
        """The state over the keys of both. No key may be in both; either may be empty, in any row.

        Raises
        ------
        ValueError
            If the two differ in shape.
        """
        if self.acc.shape != other.acc.shape:
            raise ValueError(
                f"other must have the shape {tuple(self.acc.shape)}, got {tuple(other.acc.shape)}"
            )
        m = torch.maximum(self.m, other.m)
        base = torch.where(m == -torch.inf, 0.0, m)
        first, second = torch.exp(self.m - base), torch.exp(other.m - base)
        acc = self.acc * first[..., None] + other.acc * second[..., None]
        return OnlineSoftmaxState(m, self.l * first + other.l * second, acc)

    def output(self, dtype: torch.dtype | None = None) -> Float[Tensor, "batch heads tokens dim"]:
        """Attention over the keys seen: acc / l, zeros where no key was seen."""
        out = self.acc / torch.where(self.l == 0, 1.0, self.l)[..., None]
        return out if dtype is None else out.to(dtype)

    def lse(self) -> Float[Tensor, "batch heads tokens"]:
        """Natural logarithm of the sum of exp(logit), -inf where no key was seen."""
        return torch.where(self.l == 0, -torch.inf, self.m + torch.log(self.l))
