"""What both pursuits mean, in plain PyTorch: the correlations with the residual computed anew at every step.

Exact in float64; also what runs on a GPU where no Gram matrix is worth its memory. Shapes carry a leading
axis of groups, each with a dictionary of its own.
"""

from enum import IntEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

Result = tuple[Tensor, Tensor, Tensor]


class Rule(IntEnum):
    """Which atom a step takes, and with which coefficient."""

    POSITIVE = 0
    """Largest correlation, its negative part cut off."""
    SIGNED = 1
    """Largest correlation, as it is."""
    ABSOLUTE = 2
    """Largest magnitude, as it is: the classical rule."""


def correlation_noise(dtype: torch.dtype) -> float:
    """Share below which a correlation or a squared distance is rounding error, for orthogonal pursuit."""
    return 8 * torch.finfo(dtype).eps


def matching_pursuit_reference(
    x: Float[Tensor, "groups rows dim"],
    dictionary: Float[Tensor, "groups atoms dim"],
    n_steps: int,
    tolerance: float,
    rule: int,
    stop_on_repeat: bool,
) -> tuple[
    Int[Tensor, "groups rows steps"], Float[Tensor, "groups rows steps"], Float[Tensor, "groups rows dim"]
]:
    """Picks (-1 after the last), coefficients (0 after the last) and residual.

    A row stops after the step that brings its residual's norm below `tolerance` or, with `stop_on_repeat`,
    that takes an atom once more; and before a step whose coefficient is 0, since nothing would change.
    """
    residual = x.clone()
    indices = torch.full((*x.shape[:2], n_steps), -1, dtype=torch.int64, device=x.device)
    coefficients = x.new_zeros((*x.shape[:2], n_steps))
    active = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    for t in range(n_steps):
        correlations = residual @ dictionary.mT
        score = correlations.abs() if rule == Rule.ABSOLUTE else correlations
        pick = score.argmax(-1, keepdim=True)  # the first of equals
        atom = dictionary.gather(1, pick.expand(-1, -1, x.shape[2]))
        coefficient = (residual * atom).sum(-1)
        if rule == Rule.POSITIVE:
            coefficient = coefficient.relu()
        active &= coefficient != 0
        coefficient = torch.where(active, coefficient, 0.0)
        residual -= coefficient[..., None] * atom
        repeated = (indices[..., :t] == pick).any(-1)
        indices[..., t] = torch.where(active, pick[..., 0], -1)
        coefficients[..., t] = coefficient
        active &= ~(residual.norm(dim=-1) < tolerance)
        if stop_on_repeat:
            active &= ~repeated
        if not active.any():
            break
    return indices, coefficients, residual


def orthogonal_matching_pursuit_reference(
    x: Float[Tensor, "groups rows dim"],
    dictionary: Float[Tensor, "groups atoms dim"],
    n_steps: int,
    tolerance: float,
) -> tuple[
    Int[Tensor, "groups rows steps"], Float[Tensor, "groups rows steps"], Float[Tensor, "groups rows dim"]
]:
    """Picks (-1 after the last), coefficients of the last fit and residual.

    A row stops after the step that brings its residual's norm below `tolerance`, and before one whose atom
    depends on those taken or whose correlation is rounding error.
    """
    groups, rows, _ = x.shape
    noise = correlation_noise(x.dtype)
    residual = x.clone()
    indices = torch.full((groups, rows, n_steps), -1, dtype=torch.int64, device=x.device)
    coefficients = x.new_zeros((groups, rows, n_steps))
    active = torch.ones((groups, rows), dtype=torch.bool, device=x.device)
    first = None
    for t in range(n_steps):
        score = (residual @ dictionary.mT).abs()
        largest, pick = score.max(-1).values, score.argmax(-1)
        first = largest if first is None else first
        repeated = (indices[..., :t] == pick[..., None]).any(-1)
        atom = rows_of(dictionary, pick[..., None])[..., 0, :]
        apart = atom.square().sum(-1)
        if t:
            _, left = _fit(atom, rows_of(dictionary, indices[..., :t]), indices[..., :t])
            apart, whole = left.square().sum(-1), apart
            active &= apart > noise * whole
        active &= (largest > noise * first) & ~repeated
        indices[..., t] = torch.where(active, pick, -1)
        taken = indices[..., : t + 1]
        coefficients[..., : t + 1], residual = _fit(x, rows_of(dictionary, taken), taken)
        active &= ~(residual.norm(dim=-1) < tolerance)
        if not active.any():
            break
    return indices, coefficients, residual


def rows_of(dictionary: Tensor, indices: Tensor) -> Tensor:
    """[groups, rows, steps, dim]; zeros where the index is -1."""
    group = torch.arange(dictionary.shape[0], device=dictionary.device)[:, None, None]
    return torch.where(indices[..., None] >= 0, dictionary[group, indices.clamp(min=0)], 0.0)


def _fit(x: Tensor, atoms: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares of each x on its atoms: coefficients (0 where the index is -1) and residual."""
    coefficients = torch.cholesky_solve((atoms @ x[..., None]), factor(atoms, indices))[..., 0]
    return coefficients, x - (coefficients[..., None, :] @ atoms)[..., 0, :]


def factor(atoms: Tensor, indices: Tensor) -> Tensor:
    """Cholesky factor of the atoms' Gram matrix, with a 1 on the diagonal where there is no atom."""
    gram = atoms @ atoms.mT
    return torch.linalg.cholesky(gram + torch.diag_embed((indices < 0).to(gram.dtype)))
