"""Both pursuits on a GPU, in Triton: one program runs all steps of one sample.

It holds the sample's correlations and residual in registers. A step is a maximum over the registers, one row
of the dictionary for the coefficient, and one row of the Gram matrix to subtract: nothing is written but the
codes. Orthogonal pursuit keeps the inverse of the small Gram matrix of the atoms taken and adds their rows
anew at every step.
"""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsebook.kernels.pursuit.reference import Result, correlation_noise

MOST_ATOMS = 16_384
"""Correlations that one program can hold; larger dictionaries take a product at every step."""
MOST_ORTHOGONAL_STEPS = 64


@triton.jit
def _pick(correlations, atom, n_atoms, ABSOLUTE: tl.constexpr):
    """Largest score and its position, the first of equals."""
    if ABSOLUTE:  # noqa: SIM108
        score = tl.abs(correlations)
    else:
        score = correlations
    score = tl.where(atom < n_atoms, score, float("-inf"))
    return tl.max(score, 0, return_indices=True, return_indices_tie_break_left=True)


@triton.jit
def _pursuit_kernel(
    Correlations, Gram, X, Dictionary, Indices, Coefficients, Residual,
    n_rows, n_atoms, dim, n_steps, tolerance,
    ATOMS: tl.constexpr, DIM: tl.constexpr, POSITIVE: tl.constexpr, ABSOLUTE: tl.constexpr,
    STOP: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    row = group * n_rows + tl.program_id(0)
    atom, column = tl.arange(0, ATOMS), tl.arange(0, DIM)
    real, inside = atom < n_atoms, column < dim
    correlations = tl.load(Correlations + row * n_atoms + atom, mask=real, other=0.0)
    residual = tl.load(X + row * dim + column, mask=inside, other=0.0)
    seen = tl.zeros([ATOMS], tl.int32)
    t = 0
    while t < n_steps:
        _, pick = _pick(correlations, atom, n_atoms, ABSOLUTE)
        place = group * n_atoms + pick
        vector = tl.load(Dictionary + place * dim + column, mask=inside, other=0.0)
        coefficient = tl.sum(vector * residual, 0)
        if POSITIVE:
            coefficient = tl.where(coefficient < 0, 0.0, coefficient)
        if coefficient == 0:
            t = n_steps
        else:
            residual -= coefficient * vector
            tl.store(Indices + row * n_steps + t, pick.to(tl.int64))
            tl.store(Coefficients + row * n_steps + t, coefficient)
            correlations -= coefficient * tl.load(Gram + place * n_atoms + atom, mask=real, other=0.0)
            t += 1
            if tl.sqrt(tl.sum(residual * residual, 0)) < tolerance:
                t = n_steps
            if STOP:
                here = atom == pick
                if tl.max(tl.where(here, seen, 0), 0) > 0:
                    t = n_steps
                seen = tl.where(here, 1, seen)
    tl.store(Residual + row * dim + column, residual, mask=inside)


def matching_pursuit_cuda(
    x: Tensor, dictionary: Tensor, gram: Tensor | None, n_steps: int, tolerance: float, rule: int,
    stop_on_repeat: bool,
) -> Result:  # fmt: skip
    """Arguments and result as the operator `sparsebook::matching_pursuit`; at most `MOST_ATOMS` atoms."""
    launch = _prepare(x, dictionary, gram, n_steps)
    with _on(x):
        _pursuit_kernel[launch["grid"]](
            *launch["tensors"], *launch["sizes"], n_steps, tolerance, **launch["options"],
            POSITIVE=rule == 0, ABSOLUTE=rule == 2, STOP=stop_on_repeat,
        )  # fmt: skip
    return _result(launch, x.dtype)


@triton.jit
def _orthogonal_kernel(
    Correlations, Gram, X, Dictionary, Indices, Coefficients, Residual,
    n_rows, n_atoms, dim, n_steps, tolerance, noise,
    ATOMS: tl.constexpr, DIM: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    row = group * n_rows + tl.program_id(0)
    atom, column, step = tl.arange(0, ATOMS), tl.arange(0, DIM), tl.arange(0, STEPS)
    real, inside = atom < n_atoms, column < dim
    start = tl.load(Correlations + row * n_atoms + atom, mask=real, other=0.0)
    x = tl.load(X + row * dim + column, mask=inside, other=0.0)
    correlations, residual = start, x
    picks = tl.full([STEPS], -1, tl.int32)
    coefficients, first = tl.zeros([STEPS], tl.float32), tl.zeros([STEPS], tl.float32)
    inverse = tl.zeros([STEPS, STEPS], tl.float32)
    floor = 0.0
    n = 0
    while n < n_steps:
        largest, pick = _pick(correlations, atom, n_atoms, True)
        if n == 0:
            floor = largest * noise
        line = Gram + (group * n_atoms + pick) * n_atoms
        taken = step < n
        # The new atom's products with those taken, its own square, and what of it is new.
        cross = tl.load(line + picks, mask=taken, other=0.0)
        whole = tl.load(line + pick)
        along = tl.sum(inverse * cross[None, :], 1)
        apart = whole - tl.sum(along * cross, 0)
        repeated = tl.max(tl.where(taken & (picks == pick), 1, 0), 0)
        if (largest > floor) & (repeated == 0) & (apart > noise * whole):
            new = step == n
            edge = tl.where(new, -1.0, along)  # the inverse of a matrix that grew by a row and a column
            inverse += edge[:, None] * edge[None, :] / apart
            picks = tl.where(new, pick, picks)
            first = tl.where(new, tl.sum(tl.where(atom == pick, start, 0.0), 0), first)
            coefficients = tl.sum(inverse * first[None, :], 1)
            n += 1
            correlations, residual = start, x
            for i in range(n):
                chosen = tl.sum(tl.where(step == i, picks, 0), 0)
                weight = tl.sum(tl.where(step == i, coefficients, 0.0), 0)
                place = group * n_atoms + chosen
                correlations -= weight * tl.load(Gram + place * n_atoms + atom, mask=real, other=0.0)
                residual -= weight * tl.load(Dictionary + place * dim + column, mask=inside, other=0.0)
            if tl.sqrt(tl.sum(residual * residual, 0)) < tolerance:
                n = n_steps
        else:
            n = n_steps
    stored = (step < n_steps) & (picks >= 0)
    tl.store(Indices + row * n_steps + step, picks.to(tl.int64), mask=stored)
    tl.store(Coefficients + row * n_steps + step, coefficients, mask=stored)
    tl.store(Residual + row * dim + column, residual, mask=inside)


def orthogonal_matching_pursuit_cuda(
    x: Tensor, dictionary: Tensor, gram: Tensor | None, n_steps: int, tolerance: float
) -> Result:
    """Arguments and result as the operator `sparsebook::orthogonal_matching_pursuit`; at most `MOST_ATOMS`
    atoms and `MOST_ORTHOGONAL_STEPS` steps."""
    launch = _prepare(x, dictionary, gram, n_steps)
    with _on(x):
        _orthogonal_kernel[launch["grid"]](
            *launch["tensors"], *launch["sizes"], n_steps, tolerance, correlation_noise(torch.float32),
            **launch["options"], STEPS=max(2, triton.next_power_of_2(n_steps)),
        )  # fmt: skip
    return _result(launch, x.dtype)


# Launching -----------------------------------------------------------------------------------------------


def _prepare(x: Tensor, dictionary: Tensor, gram: Tensor | None, n_steps: int) -> dict[str, Any]:
    x, dictionary = x.float().contiguous(), dictionary.float().contiguous()
    gram = dictionary @ dictionary.mT if gram is None else gram.float().contiguous()
    groups, rows, dim = x.shape
    n_atoms = dictionary.shape[1]
    indices = torch.full((groups, rows, n_steps), -1, dtype=torch.int64, device=x.device)
    coefficients = x.new_zeros((groups, rows, n_steps))
    atoms = triton.next_power_of_2(n_atoms)
    return {
        "grid": (rows, groups),
        "tensors": (x @ dictionary.mT, gram, x, dictionary, indices, coefficients, torch.empty_like(x)),
        "sizes": (rows, n_atoms, dim),
        "options": {
            "ATOMS": atoms,
            "DIM": triton.next_power_of_2(dim),
            "num_warps": max(1, min(16, atoms // 1024)),
        },
    }


def _result(launch: dict[str, Any], dtype: torch.dtype) -> Result:
    *_, indices, coefficients, residual = launch["tensors"]
    return indices, coefficients.to(dtype), residual.to(dtype)


def _on(tensor: Tensor) -> Any:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
