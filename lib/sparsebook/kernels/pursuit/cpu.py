"""Both pursuits on a CPU: correlations by matrix products, everything after them in one compiled loop.

Gram form: C = X D^T and G = D D^T once; a step subtracts coefficient x row of G from a row of C and finds
the largest in the same pass, so it costs one read of a row of G from memory (the row of C stays in the first
cache levels). Orthogonal pursuit does not write: it adds the rows of all atoms taken, which the second cache
level still holds. Direct form, for few samples or large dictionaries: R D^T at every step, no G.

In both, a coefficient is the atom's product with the residual itself, which is kept: the correlations only
choose, so their rounding never reaches the result. Correlations exist for a few hundred samples at a time.
Rows are handed out by an atomic counter to `torch.get_num_threads()` threads without the interpreter's lock.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, no_type_check

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sparsebook.kernels.lanes import take_number
from sparsebook.kernels.pursuit.reference import Result, Rule, correlation_noise
from sparsebook.kernels.pursuit.vectors import (
    WIDTH,
    add_scaled,
    dot,
    find_absolute,
    subtract_and_find,
    subtract_and_find_absolute,
)

_CORRELATIONS = 1 << 21
"""Correlations held at a time (8 MB)."""
_ROWS = 16
"""Rows that a thread takes at a time."""
_COLUMNS = 64
"""Columns of a dictionary's gradient that one thread accumulates over all rows."""
_NOISE = correlation_noise(torch.float32)
_POSITIVE, _ABSOLUTE = int(Rule.POSITIVE), int(Rule.ABSOLUTE)

# Arrays are flat with offsets: a view would count references, atomically, for all threads.
_compiled = njit(cache=True, nogil=True, fastmath={"contract"})


# Matching pursuit ----------------------------------------------------------------------------------------


@_compiled
@no_type_check
def _step(
    dictionary, atom, residual, row, dim, pick, indices, coefficients, codes, t, rule, tolerance,
    stop_on_repeat,
):  # fmt: skip
    """Take `pick`, whose row starts at `atom`, as step t of the residual that starts at `row`.

    Its codes start at `codes`. Returns the coefficient, and whether the sample goes on.
    """
    coefficient = dot(dictionary, atom, residual, row, dim)
    if rule == _POSITIVE and coefficient < 0:
        coefficient = np.float32(0.0)
    if coefficient == 0:
        return coefficient, False
    add_scaled(residual, row, -coefficient, dictionary, atom, dim)
    indices[codes + t], coefficients[codes + t] = pick, coefficient
    if tolerance > 0 and math.sqrt(dot(residual, row, residual, row, dim)) < tolerance:
        return coefficient, False
    return coefficient, not (stop_on_repeat and _taken(indices, codes, t, pick))


@_compiled
@no_type_check
def _taken(indices, at, n, pick):
    for i in range(n):  # noqa: SIM110 (compiled)
        if indices[at + i] == pick:
            return True
    return False


@_compiled
@no_type_check
def _pad(correlations, at, n_atoms, length, rule):
    """What lies behind the last atom never wins."""
    for i in range(at + n_atoms, at + length):
        correlations[i] = 0.0 if rule == _ABSOLUTE else -np.inf


@_compiled
@no_type_check
def _find(correlations, at, gram, starts, weights, n_terms, length, rule):
    if rule == _ABSOLUTE:
        return subtract_and_find_absolute(correlations, at, gram, starts, weights, n_terms, length)
    return subtract_and_find(correlations, at, gram, starts, weights, n_terms, length)


@_compiled
@no_type_check
def _pursue(
    correlations, gram, dictionary, residual, indices, coefficients, sizes, first, rule, tolerance,
    stop_on_repeat, counter,
):  # fmt: skip
    """All steps of the rows of a chunk [groups, rows] that starts at (group, row) `first`.

    Arrays are flat; sizes: groups and rows of the chunk, rows, atoms, padded atoms, dim and steps of all.
    """
    n_groups, n_rows, all_rows, n_atoms, length, dim, n_steps = sizes
    starts, weights = np.zeros(1, np.int64), np.zeros(1, np.float32)
    while True:
        start = take_number(counter) * _ROWS
        if start >= n_groups * n_rows:
            break
        for item in range(start, min(start + _ROWS, n_groups * n_rows)):
            group, at = first[0] + item // n_rows, item * length
            row = group * all_rows + first[1] + item % n_rows
            _pad(correlations, at, n_atoms, length, rule)
            for t in range(n_steps):
                pick = _find(correlations, at, gram, starts, weights, min(t, 1), length, rule)
                atom = group * n_atoms + pick
                coefficient, goes_on = _step(
                    dictionary, atom * dim, residual, row * dim, dim, pick, indices, coefficients,
                    row * n_steps, t, rule, tolerance, stop_on_repeat,
                )  # fmt: skip
                if not goes_on:
                    break
                starts[0], weights[0] = atom * length, -coefficient


@_compiled
@no_type_check
def _pursue_once(
    correlations, dictionary, residual, indices, coefficients, sizes, first, t, active, rule, tolerance,
    stop_on_repeat, counter,
):  # fmt: skip
    """Step t of the rows of a chunk whose correlations with the residual are given."""
    n_groups, n_rows, all_rows, n_atoms, length, dim, n_steps = sizes
    starts, weights = np.zeros(1, np.int64), np.zeros(1, np.float32)
    while True:
        start = take_number(counter) * _ROWS
        if start >= n_groups * n_rows:
            break
        for item in range(start, min(start + _ROWS, n_groups * n_rows)):
            if not active[item]:
                continue
            group, at = first[0] + item // n_rows, item * length
            row = group * all_rows + first[1] + item % n_rows
            _pad(correlations, at, n_atoms, length, rule)
            pick = _find(correlations, at, correlations, starts, weights, 0, length, rule)
            _, active[item] = _step(
                dictionary, (group * n_atoms + pick) * dim, residual, row * dim, dim, pick, indices,
                coefficients, row * n_steps, t, rule, tolerance, stop_on_repeat,
            )  # fmt: skip


def matching_pursuit_cpu(
    x: Tensor, dictionary: Tensor, gram: Tensor | None, n_steps: int, tolerance: float, rule: int,
    stop_on_repeat: bool, use_gram: bool,
) -> Result:  # fmt: skip
    """Arguments as the operator `sparsebook::matching_pursuit`; any float but float64."""
    inputs = _Inputs(x, dictionary, gram if use_gram else None)
    indices, coefficients = _empty_codes(x, n_steps)
    arrays = [_flat(tensor) for tensor in (inputs.atoms, inputs.residual, indices, coefficients)]
    options = (rule, np.float32(tolerance), stop_on_repeat)
    grams = _flat(inputs.gram()) if use_gram else None
    for first, correlations in inputs.chunks():
        sizes, n_rows = inputs.sizes(correlations, n_steps), correlations.shape[0] * correlations.shape[1]
        if use_gram:
            _in_threads(_pursue, n_rows, _flat(correlations), grams, *arrays, sizes, first, *options)
            continue
        active = np.ones(n_rows, np.bool_)
        for t in range(n_steps):
            if t:
                inputs.correlate(first, correlations)
            _in_threads(
                _pursue_once, n_rows, _flat(correlations), *arrays, sizes, first, t, active, *options
            )  # fmt: skip
            if not active.any():
                break
    return indices, coefficients.to(x.dtype), inputs.residual.to(x.dtype)


# Orthogonal matching pursuit -----------------------------------------------------------------------------


@_compiled
@no_type_check
def _extend(lower, projections, n, squared, correlation):
    """Add an atom to the Cholesky factor `lower` [steps, steps] of the Gram matrix, its row n, whose first n
    entries hold products with the atoms taken; False if it depends on them.

    `projections` are the coordinates of x along the orthogonalised atoms.
    """
    apart = squared
    for i in range(n):
        total = lower[n, i]
        for j in range(i):
            total -= lower[i, j] * lower[n, j]
        lower[n, i] = total / lower[i, i]
        apart -= lower[n, i] * lower[n, i]
    if not apart > _NOISE * squared:
        return False
    lower[n, n] = math.sqrt(apart)
    total = correlation
    for j in range(n):
        total -= lower[n, j] * projections[j]
    projections[n] = total / lower[n, n]
    return True


@_compiled
@no_type_check
def _solve(lower, projections, n, solution):
    """Coefficients on the first n atoms: lower^T solution = projections."""
    for i in range(n - 1, -1, -1):
        total = projections[i]
        for j in range(i + 1, n):
            total -= lower[j, i] * solution[j]
        solution[i] = total / lower[i, i]


@_compiled
@no_type_check
def _leave(dictionary, group_start, x, residual, row, dim, indices, coefficients, codes, solution, n):
    """Store the coefficients of the fit on the first n atoms, and its residual; the norm of that."""
    for i in range(dim):
        residual[row + i] = x[row + i]
    for i in range(n):
        coefficients[codes + i] = solution[i]
        add_scaled(
            residual, row, -coefficients[codes + i], dictionary, group_start + indices[codes + i] * dim, dim
        )
    return math.sqrt(dot(residual, row, residual, row, dim))


@_compiled
@no_type_check
def _pursue_orthogonally(
    correlations, gram, dictionary, x, residual, indices, coefficients, sizes, first, tolerance, counter
):  # fmt: skip
    """All steps of the rows of a chunk, as `_pursue`; the correlations are left as they are."""
    n_groups, n_rows, all_rows, n_atoms, length, dim, n_steps = sizes
    starts, weights = np.zeros(n_steps, np.int64), np.zeros(n_steps, np.float32)
    lower = np.zeros((n_steps, n_steps), np.float64)
    projections, solution = np.zeros(n_steps, np.float64), np.zeros(n_steps, np.float64)
    while True:
        start = take_number(counter) * _ROWS
        if start >= n_groups * n_rows:
            break
        for item in range(start, min(start + _ROWS, n_groups * n_rows)):
            group, at = first[0] + item // n_rows, item * length
            row = group * all_rows + first[1] + item % n_rows
            codes, n, floor = row * n_steps, 0, 0.0
            _pad(correlations, at, n_atoms, length, _ABSOLUTE)
            while n < n_steps:
                pick = find_absolute(correlations, at, gram, starts, weights, n, length)
                correlation = np.float64(correlations[at + pick])
                left = correlation
                for i in range(n):
                    lower[n, i] = gram[starts[i] + pick]
                    left += weights[i] * lower[n, i]
                if n == 0:
                    floor = _NOISE * abs(left)
                if not abs(left) > floor or _taken(indices, codes, n, pick):
                    break
                line = (group * n_atoms + pick) * length
                if not _extend(lower, projections, n, np.float64(gram[line + pick]), correlation):
                    break
                indices[codes + n], starts[n] = pick, line
                n += 1
                _solve(lower, projections, n, solution)
                for i in range(n):
                    weights[i] = -solution[i]
                if tolerance > 0 and tolerance > _leave(
                    dictionary, group * n_atoms * dim, x, residual, row * dim, dim, indices, coefficients,
                    codes, solution, n,
                ):  # fmt: skip
                    break
            _leave(
                dictionary, group * n_atoms * dim, x, residual, row * dim, dim, indices, coefficients, codes,
                solution, n,
            )  # fmt: skip


@_compiled
@no_type_check
def _pursue_orthogonally_once(
    correlations, dictionary, x, residual, indices, coefficients, sizes, first, n, active, lowers,
    projections, floors, tolerance, counter,
):  # fmt: skip
    """Step n of the rows of a chunk whose correlations with the residual are given; the factors are kept."""
    n_groups, n_rows, all_rows, n_atoms, length, dim, n_steps = sizes
    starts, weights = np.zeros(1, np.int64), np.zeros(1, np.float32)
    solution = np.zeros(n + 1, np.float64)
    while True:
        start = take_number(counter) * _ROWS
        if start >= n_groups * n_rows:
            break
        for item in range(start, min(start + _ROWS, n_groups * n_rows)):
            if not active[item]:
                continue
            group, at, lower = first[0] + item // n_rows, item * length, lowers[item]
            row = group * all_rows + first[1] + item % n_rows
            codes, atoms = row * n_steps, group * n_atoms * dim
            _pad(correlations, at, n_atoms, length, _ABSOLUTE)
            pick = find_absolute(correlations, at, correlations, starts, weights, 0, length)
            left, atom = abs(correlations[at + pick]), atoms + pick * dim
            active[item] = False
            if n == 0:
                floors[item] = _NOISE * left
            if not left > floors[item] or _taken(indices, codes, n, pick):
                continue
            for i in range(n):
                lower[n, i] = dot(dictionary, atoms + indices[codes + i] * dim, dictionary, atom, dim)
            squared = np.float64(dot(dictionary, atom, dictionary, atom, dim))
            correlation = np.float64(dot(dictionary, atom, x, row * dim, dim))
            if not _extend(lower, projections[item], n, squared, correlation):
                continue
            indices[codes + n] = pick
            _solve(lower, projections[item], n + 1, solution)
            norm = _leave(
                dictionary, atoms, x, residual, row * dim, dim, indices, coefficients, codes, solution, n + 1
            )
            active[item] = not norm < tolerance


def orthogonal_matching_pursuit_cpu(
    x: Tensor, dictionary: Tensor, gram: Tensor | None, n_steps: int, tolerance: float, use_gram: bool
) -> Result:
    """Arguments as the operator `sparsebook::orthogonal_matching_pursuit`; any float but float64."""
    inputs = _Inputs(x, dictionary, gram if use_gram else None)
    indices, coefficients = _empty_codes(x, n_steps)
    written = (inputs.atoms, inputs.x, inputs.residual, indices, coefficients)
    arrays, limit = [_flat(tensor) for tensor in written], np.float32(tolerance)
    grams = _flat(inputs.gram()) if use_gram else None
    for first, correlations in inputs.chunks():
        sizes, n_rows = inputs.sizes(correlations, n_steps), correlations.shape[0] * correlations.shape[1]
        flat = _flat(correlations)
        if use_gram:
            _in_threads(_pursue_orthogonally, n_rows, flat, grams, *arrays, sizes, first, limit)
            continue
        state = (
            np.ones(n_rows, np.bool_), np.zeros((n_rows, n_steps, n_steps)), np.zeros((n_rows, n_steps)),
            np.zeros(n_rows, np.float32),
        )  # fmt: skip
        for n in range(n_steps):
            if n:
                inputs.correlate(first, correlations)
            arguments = (flat, *arrays, sizes, first, n, *state, limit)
            _in_threads(_pursue_orthogonally_once, n_rows, *arguments)
            if not state[0].any():
                break
    return indices, coefficients.to(x.dtype), inputs.residual.to(x.dtype)


# Gradient of matching pursuit ----------------------------------------------------------------------------


@_compiled
@no_type_check
def _walk_back(grad_coefficients, grad, dictionary, indices, steps, sizes, counter):
    """`grad`, given as the residual's gradient, becomes that of x; `steps` that of each correlation."""
    n_groups, n_rows, n_atoms, dim, n_steps = sizes
    while True:
        start = take_number(counter) * _ROWS
        if start >= n_groups * n_rows:
            break
        for row in range(start, min(start + _ROWS, n_groups * n_rows)):
            for t in range(n_steps - 1, -1, -1):
                code = row * n_steps + t
                if indices[code] >= 0:
                    atom = (row // n_rows * n_atoms + indices[code]) * dim
                    g = grad_coefficients[code] - dot(grad, row * dim, dictionary, atom, dim)
                    steps[code] = g
                    add_scaled(grad, row * dim, g, dictionary, atom, dim)


@_compiled
@no_type_check
def _rewind(dictionary, target, at, n, residual, grad, g, c):
    """One step back over some columns: the residual before, the atom's gradient, the gradient before."""
    for i in range(n):
        atom = dictionary[at + i]
        before = residual[i] + c * atom
        target[at + i] += g * before - c * grad[i]
        grad[i] += g * atom
        residual[i] = before


@_compiled
@no_type_check
def _gather_gradient(
    grad_residual, dictionary, indices, coefficients, residual, steps, grad_dictionary, sizes, counter
):  # fmt: skip
    """The dictionary's gradient by slices of columns: threads share nothing, sums keep their order."""
    n_groups, n_rows, n_atoms, dim, n_steps = sizes
    slices = (dim + _COLUMNS - 1) // _COLUMNS
    left, grad = np.empty(_COLUMNS, np.float32), np.empty(_COLUMNS, np.float32)
    while True:
        item = take_number(counter)
        if item >= n_groups * slices:
            break
        group, low = item // slices, item % slices * _COLUMNS
        width = min(dim - low, _COLUMNS)
        for row in range(group * n_rows, (group + 1) * n_rows):
            for i in range(width):
                left[i], grad[i] = residual[row * dim + low + i], grad_residual[row * dim + low + i]
            for t in range(n_steps - 1, -1, -1):
                code = row * n_steps + t
                if indices[code] >= 0:
                    at = (group * n_atoms + indices[code]) * dim + low
                    _rewind(
                        dictionary, grad_dictionary, at, width, left, grad, steps[code], coefficients[code]
                    )


def matching_pursuit_gradient_cpu(
    grad_coefficients: Tensor, grad_residual: Tensor, dictionary: Tensor, indices: Tensor,
    coefficients: Tensor, residual: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `gradient.matching_pursuit_gradient`, in float32."""
    n_groups, n_rows, n_steps = indices.shape
    n_atoms, dim = dictionary.shape[1:]
    sizes = (n_groups, n_rows, n_atoms, dim, n_steps)
    rho, atoms, left = (_float(tensor) for tensor in (grad_residual, dictionary, residual))
    gamma, c = _float(grad_coefficients), _float(coefficients)
    grad, grad_dictionary = rho.clone(), torch.zeros_like(atoms)
    arrays = [_flat(tensor) for tensor in (gamma, grad, atoms, indices.contiguous(), torch.zeros_like(c))]
    _in_threads(_walk_back, n_groups * n_rows, *arrays, sizes)
    arguments = (_flat(rho), *arrays[2:4], _flat(c), _flat(left), arrays[4], _flat(grad_dictionary))
    _in_threads(_gather_gradient, n_groups * -(-dim // _COLUMNS) * _ROWS, *arguments, sizes)
    return grad.to(dictionary.dtype), grad_dictionary.to(dictionary.dtype)


# Preparation ---------------------------------------------------------------------------------------------


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous().resolve_neg()


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().view(-1).numpy()


def _allocate(shape: tuple[int, ...]) -> Tensor:
    """NumPy asks for huge pages, which a random access to rows of a Gram matrix is glad of."""
    return torch.from_numpy(np.empty(shape, np.float32))


def _empty_codes(x: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:2], n_steps)
    return torch.full(shape, -1, dtype=torch.int64), torch.zeros(shape, dtype=torch.float32)


class _Inputs:
    """Samples and atoms as float32, the atoms padded with zero rows to whole vectors for the products."""

    def __init__(self, x: Tensor, dictionary: Tensor, gram: Tensor | None) -> None:
        self.x, self.atoms, self.given = _float(x), _float(dictionary), gram
        self.residual = self.x.clone()
        self.missing = -dictionary.shape[1] % WIDTH
        self.padded = torch.nn.functional.pad(self.atoms, (0, 0, 0, self.missing))

    def sizes(self, correlations: Tensor, n_steps: int) -> tuple[int, ...]:
        """Groups and rows of a chunk; rows, atoms, padded atoms, dim and steps of all."""
        _, all_rows, dim = self.x.shape
        return (*correlations.shape[:2], all_rows, self.atoms.shape[1], correlations.shape[2], dim, n_steps)

    def gram(self) -> Tensor:
        """[groups, atoms, atoms padded]."""
        if self.given is None:
            out = _allocate((*self.atoms.shape[:2], self.padded.shape[1]))
            return torch.bmm(self.atoms, self.padded.mT, out=out)
        return torch.nn.functional.pad(_float(self.given), (0, self.missing))

    def chunks(self) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """(group, row) where a chunk starts, and its correlations; the buffer is used again and again."""
        groups, rows, _ = self.x.shape
        length = self.padded.shape[1]
        n_rows = min(rows, max(_ROWS, _CORRELATIONS // length))
        n_groups = max(1, min(groups, _CORRELATIONS // (rows * length)))
        buffer = _allocate((n_groups * n_rows * length,))
        for group in range(0, groups, n_groups):
            for row in range(0, rows, n_rows):
                shape = (min(n_groups, groups - group), min(n_rows, rows - row), length)
                correlations = buffer[: math.prod(shape)].view(shape)
                self.correlate((group, row), correlations)
                yield (group, row), correlations

    def correlate(self, first: tuple[int, int], correlations: Tensor) -> None:
        """The residuals' products with the atoms, written over `correlations`."""
        (group, row), (n_groups, n_rows, _) = first, correlations.shape
        here = slice(group, group + n_groups)
        torch.bmm(self.residual[here, row : row + n_rows], self.padded[here].mT, out=correlations)


@lru_cache(1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="pursuit")


def _in_threads(work: Callable[..., None], n_items: int, *arguments: Any) -> None:
    """`work(*arguments, counter)` in as many threads as torch may use and the items fill.

    Numba is not asked: its answer starts its own OpenMP threads, and torch's count of them is then ignored.
    """
    counter = np.zeros(1, np.int64)
    threads = torch.get_num_threads()
    helpers = min(threads, -(-n_items // _ROWS)) - 1
    others = [_pool(threads).submit(work, *arguments, counter) for _ in range(helpers)]
    work(*arguments, counter)
    for other in others:
        if not other.cancel():  # one that has not begun has nothing left to do
            other.result()
