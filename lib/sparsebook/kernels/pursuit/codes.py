"""The sparse codes that a pursuit returns."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PursuitCodes:
    """Codes in the order of the picks.

    Attributes
    ----------
    indices : int64 [..., steps]
        Atom of each step, -1 after the last. Matching pursuit may take an atom more than once.
    coefficients : [..., steps]
        What each step adds to its atom's code, 0 after the last.
    residual : [..., dim]
        What the steps leave of x.
    n_atoms : int
    path : [..., steps + 1, dim] or None
        The residual before the first step and after each one, if it was asked for.
    """

    indices: Int[Tensor, "*batch steps"]
    coefficients: Float[Tensor, "*batch steps"]
    residual: Float[Tensor, "*batch dim"]
    n_atoms: int
    path: Float[Tensor, "*batch points dim"] | None = None

    def dense(self) -> Float[Tensor, "*batch atoms"]:
        """Codes as a vector over all atoms, repeated picks added up."""
        codes = self.coefficients.new_zeros((*self.indices.shape[:-1], self.n_atoms))
        return codes.scatter_add(-1, self.indices.clamp(min=0), self.coefficients)

    def n_active(self) -> Int[Tensor, "*batch"]:
        """Number of different atoms that were taken: the realised L0, at most the number of steps."""
        ordered = self.indices.sort(-1).values
        new = torch.ones_like(ordered, dtype=torch.bool)
        new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
        return (new & (ordered >= 0)).sum(-1)

    def first(self, n_steps: int) -> "PursuitCodes":
        """The codes after the first `n_steps` steps, those of a shorter matching pursuit.

        Raises
        ------
        ValueError
            If there are fewer steps, or no path was kept (orthogonal pursuit fits anew at every step, and has
            none).
        """
        if not 1 <= n_steps <= self.indices.shape[-1]:
            raise ValueError(f"n_steps must be in [1, {self.indices.shape[-1]}], got {n_steps}")
        if self.path is None:
            raise ValueError("path is missing: the pursuit was not asked for it (return_path=True)")
        return PursuitCodes(
            self.indices[..., :n_steps],
            self.coefficients[..., :n_steps],
            self.path[..., n_steps, :],
            self.n_atoms,
            self.path[..., : n_steps + 1, :],
        )
