"""Gradients of both pursuits with the picks held constant, in plain PyTorch: any device, any float type.

Matching pursuit is run backwards: a step's residual before is the residual after plus what was subtracted,
so nothing but the picks and the last residual is stored. With a = D_j the atom of a step, c = a . r its
coefficient, r' = r - c a, and gradients gamma of c and lambda of r'::

    g = gamma - lambda . a        dr = lambda + g a        da = g r - c lambda
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsebook.kernels.pursuit.reference import factor, rows_of


def matching_pursuit_gradient(
    grad_coefficients: Float[Tensor, "groups rows steps"],
    grad_residual: Float[Tensor, "groups rows dim"],
    dictionary: Float[Tensor, "groups atoms dim"],
    indices: Int[Tensor, "groups rows steps"],
    coefficients: Float[Tensor, "groups rows steps"],
    residual: Float[Tensor, "groups rows dim"],
) -> tuple[Float[Tensor, "groups rows dim"], Float[Tensor, "groups atoms dim"]]:
    """Gradients to x and to the dictionary."""
    grad, residual = grad_residual.clone(), residual.clone()
    grad_dictionary = torch.zeros_like(dictionary)
    group = torch.arange(dictionary.shape[0], device=dictionary.device)[:, None].expand(indices.shape[:2])
    longest = int((indices >= 0).any(0).any(0).sum())
    for t in range(longest - 1, -1, -1):
        pick = indices[..., t]
        atom = rows_of(dictionary, pick[..., None])[..., 0, :]
        c = coefficients[..., t, None]
        g = grad_coefficients[..., t, None] - (grad * atom).sum(-1, keepdim=True)
        g = torch.where(pick[..., None] >= 0, g, 0.0)
        residual += c * atom
        grad_dictionary.index_put_((group, pick.clamp(min=0)), g * residual - c * grad, accumulate=True)
        grad += g * atom
    return grad, grad_dictionary


def orthogonal_matching_pursuit_gradient(
    grad_coefficients: Float[Tensor, "groups rows steps"],
    grad_residual: Float[Tensor, "groups rows dim"],
    dictionary: Float[Tensor, "groups atoms dim"],
    indices: Int[Tensor, "groups rows steps"],
    coefficients: Float[Tensor, "groups rows steps"],
    residual: Float[Tensor, "groups rows dim"],
) -> tuple[Float[Tensor, "groups rows dim"], Float[Tensor, "groups atoms dim"]]:
    """Gradients to x and to the dictionary.

    With A the atoms taken, z = (A A^T)^-1 A x and r = x - A^T z, and gradients gamma of z and rho of r::

        w = (A A^T)^-1 (gamma - A rho)        dx = rho + A^T w        dA = w r^T - z dx^T
    """
    atoms = rows_of(dictionary, indices)
    right = grad_coefficients[..., None] - atoms @ grad_residual[..., None]
    weights = torch.cholesky_solve(right, factor(atoms, indices))
    weights = torch.where(indices[..., None] >= 0, weights, 0.0)
    grad = grad_residual + (atoms.mT @ weights)[..., 0]
    grad_atoms = weights * residual[..., None, :] - coefficients[..., None] * grad[..., None, :]
    grad_dictionary = torch.zeros_like(dictionary)
    group = torch.arange(dictionary.shape[0], device=dictionary.device)[:, None, None].expand(indices.shape)
    return grad, grad_dictionary.index_put_((group, indices.clamp(min=0)), grad_atoms, accumulate=True)
