"""Matching pursuit and orthogonal matching pursuit of many vectors at a time.

    codes = matching_pursuit(x, dictionary, n_steps=16)            # x [..., dim], dictionary [atoms, dim]
    codes.indices, codes.coefficients, codes.residual              # [..., 16], [..., 16], [..., dim]
    codes.dense()                                                  # [..., atoms]

    matching_pursuit(x, dictionary, tolerance=0.05, stop_on_repeat=True)    # until nothing new is found
    matching_pursuit(x, dictionaries, n_steps=4)     # x [models, ..., dim], dictionaries [models, atoms, dim]
    orthogonal_matching_pursuit(x, dictionary, n_steps=16)         # every step fits all atoms anew

Gradients reach x and the dictionary through coefficients and residual, with the picks held constant; the
backward pass stores the picks alone, runs the steps backwards, and never holds codes over all atoms. float32,
bfloat16 and float16 run compiled on a CPU and as Triton on a GPU, with float32 arithmetic; float64 takes the
reference. Of equal correlations the lowest index is taken.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sparsebook.kernels.pursuit import operators  # noqa: F401 (registers the operators)
from sparsebook.kernels.pursuit.codes import PursuitCodes
from sparsebook.kernels.pursuit.reference import (
    Rule,
    matching_pursuit_reference,
    orthogonal_matching_pursuit_reference,
)

__all__ = [
    "PursuitCodes",
    "Rule",
    "matching_pursuit",
    "matching_pursuit_reference",
    "orthogonal_matching_pursuit",
    "orthogonal_matching_pursuit_reference",
]

_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LARGEST_GRAM = 1 << 29
"""Elements of Gram matrices that may be made (2 GB)."""


def matching_pursuit(
    x: Float[Tensor, "..."],
    dictionary: Float[Tensor, "..."],
    *,
    n_steps: int | None = None,
    tolerance: float | None = None,
    nonnegative: bool = True,
    absolute: bool = False,
    stop_on_repeat: bool = False,
    return_path: bool = False,
    gram: Float[Tensor, "..."] | None = None,
    use_gram: bool | None = None,
    check_values: bool = True,
) -> PursuitCodes:
    """Take the atom that correlates most with the residual, subtract it, repeat (Mallat and Zhang, 1993).

    Parameters
    ----------
    x : [..., dim], or [models, ..., dim] for a batch of dictionaries
    dictionary : [atoms, dim] or [models, atoms, dim]
        Rows should have norm 1: a coefficient is the plain product with the residual, so that only then the
        residual is orthogonal to the atom just taken and shrinks at every step. Other norms are taken as
        they are; rows longer than sqrt(2) diverge.
    n_steps : int, optional
        At most so many steps; may exceed the number of atoms. May be left out with `stop_on_repeat`, which
        ends by itself after at most atoms + 1 steps: then the codes are as long as the longest row's.
    tolerance : float, optional
        A row stops after the step that brings the norm of its residual below. The first step is always done.
    nonnegative : bool
        Take the largest (signed) correlation, and nothing if it is negative. If False, a negative maximum is
        used as it is (with unit rows this happens in the first step only).
    absolute : bool
        Take the correlation of largest magnitude with its sign, the classical rule; needs nonnegative=False.
    stop_on_repeat : bool
        A row stops after the step that takes an atom once more.
    return_path : bool
        Also keep the residual after every step: [..., steps + 1, dim].
    gram : [atoms, atoms] or [models, atoms, atoms], optional
        The products of the rows of `dictionary`, if the caller has them. They only choose atoms; coefficients
        are products with the residual itself.
    use_gram : bool, optional
        Update correlations with the Gram matrix, or compute them anew at every step; the faster way for these
        sizes if not given.
    check_values : bool
        False leaves out the search for NaN, infinite values and zero atoms; a zero atom is then never taken.

    Returns
    -------
    PursuitCodes

    Raises
    ------
    ValueError
        If shapes, types or devices do not fit, x or the dictionary is empty, holds NaN or infinite values, an
        atom is zero, or the options contradict each other.

    Notes
    -----
    The operator is ``sparsebook::matching_pursuit``. A row also stops before a step whose coefficient is 0,
    which would change nothing.
    """
    groups, atoms = _grouped(x, dictionary)
    if check_values:
        _check_values(groups, atoms)
    if absolute and nonnegative:
        raise ValueError("absolute needs nonnegative=False: its coefficients have a sign")
    if n_steps is None and not stop_on_repeat:
        raise ValueError("n_steps must be given unless stop_on_repeat is True")
    limit = _positive("n_steps", atoms.shape[1] + 1 if n_steps is None else n_steps)
    threshold = _threshold(tolerance)
    given = _check_gram(gram, dictionary, atoms)
    use_gram = _choose_form(groups, atoms, given, limit, 0.0) if use_gram is None else use_gram
    rule = Rule.POSITIVE if nonnegative else Rule.ABSOLUTE if absolute else Rule.SIGNED
    coefficients, residual, indices = torch.ops.sparsebook.matching_pursuit(
        groups, atoms, given, limit, threshold, int(rule), stop_on_repeat, use_gram
    )
    if n_steps is None:
        used = max(1, int((indices >= 0).flatten(0, 1).any(0).sum()))
        indices, coefficients = indices[..., :used], coefficients[..., :used]
    path = _path(groups, atoms, indices, coefficients) if return_path else None
    return _codes(x, atoms, indices, coefficients, residual, path)


def orthogonal_matching_pursuit(
    x: Float[Tensor, "..."],
    dictionary: Float[Tensor, "..."],
    *,
    n_steps: int,
    tolerance: float | None = None,
    gram: Float[Tensor, "..."] | None = None,
    use_gram: bool | None = None,
) -> PursuitCodes:
    """Take the atom of largest absolute correlation, fit all atoms taken by least squares, repeat.

    Parameters
    ----------
    x, dictionary, gram, use_gram : as in `matching_pursuit`
        Here coefficients depend on `gram` if it is used.
    n_steps : int
        At most so many different atoms; no more than atoms or dim.
    tolerance : float, optional
        A row stops after the step that brings the norm of its residual below.

    Returns
    -------
    PursuitCodes
        Coefficients of the last fit; no atom twice; no path.

    Raises
    ------
    ValueError
        As `matching_pursuit`, or if `n_steps` exceeds the number of atoms or dimensions.

    Notes
    -----
    The operator is ``sparsebook::orthogonal_matching_pursuit``, with a Cholesky factor that grows by a row a
    step (Rubinstein et al., 2008). A row also stops before an atom that depends on those taken, or whose
    correlation is rounding error.
    """
    groups, atoms = _grouped(x, dictionary)
    _check_values(groups, atoms)
    _positive("n_steps", n_steps)
    if n_steps > min(atoms.shape[1:]):
        raise ValueError(
            f"n_steps must be at most {min(atoms.shape[1:])}, the smaller of atoms and dim, got {n_steps}"
        )
    threshold = _threshold(tolerance)
    given = _check_gram(gram, dictionary, atoms)
    use_gram = _choose_form(groups, atoms, given, n_steps, n_steps / 2) if use_gram is None else use_gram
    coefficients, residual, indices = torch.ops.sparsebook.orthogonal_matching_pursuit(
        groups, atoms, given, n_steps, threshold, use_gram
    )
    return _codes(x, atoms, indices, coefficients, residual, None)


# Checks and choices --------------------------------------------------------------------------------------


def _grouped(x: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
    """x as [groups, rows, dim] and the dictionary as [groups, atoms, dim], of shapes and types that fit."""
    if dictionary.ndim not in (2, 3) or 0 in dictionary.shape:
        raise ValueError(
            "dictionary must have shape (atoms, dim) or (models, atoms, dim), none of them 0, "
            f"got {tuple(dictionary.shape)}"
        )
    models = dictionary.shape[:-2]
    if x.ndim <= len(models) or x.shape[: len(models)] != models or x.shape[-1] != dictionary.shape[-1]:
        expected = ", ".join([*map(str, models), "...", str(dictionary.shape[-1])])
        raise ValueError(f"x must have shape ({expected}) for this dictionary, got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x must hold at least one vector, got shape {tuple(x.shape)}")
    for name, tensor in (("x", x), ("dictionary", dictionary)):
        if tensor.dtype not in _TYPES or tensor.dtype != x.dtype or tensor.device != x.device:
            raise ValueError(
                f"{name} must be float32, bfloat16, float16 or float64 like x ({x.dtype} on {x.device}), "
                f"got {tensor.dtype} on {tensor.device}"
            )
    groups = x.reshape(models[0] if models else 1, -1, x.shape[-1])
    return groups, dictionary.reshape(groups.shape[0], *dictionary.shape[-2:])


@torch.no_grad()
def _check_values(x: Tensor, dictionary: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    exact = torch.promote_types(x.dtype, torch.float32)
    norms = torch.linalg.vector_norm(dictionary, dim=-1, dtype=exact)
    # A finite sum has finite terms: one pass over x; only what looks wrong is looked at closely.
    sums = torch.stack([x.sum(dtype=exact), norms.sum(), norms.min()]).tolist()
    for name, tensor, total in (("x", x, sums[0]), ("dictionary", dictionary, sums[1])):
        if not math.isfinite(total) and not tensor.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or infinite values")
    if sums[2] == 0:
        zero = (dictionary == 0).all(-1).flatten().nonzero().flatten()
        if len(zero):
            raise ValueError(f"dictionary must have no zero atom, got one in row {int(zero[0])}")


def _positive(name: str, number: int) -> int:
    if isinstance(number, bool) or number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def _threshold(tolerance: float | None) -> float:
    """0 stops nothing: no norm is smaller."""
    if tolerance is None:
        return 0.0
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance must be positive and finite, got {tolerance}")
    return float(tolerance)


def _check_gram(gram: Tensor | None, dictionary: Tensor, atoms: Tensor) -> Tensor | None:
    """Shape, type, and a diagonal that fits: a Gram matrix of other atoms is found by it."""
    if gram is None:
        return None
    shape = (*dictionary.shape[:-1], dictionary.shape[-2])
    if gram.shape != shape or gram.dtype != dictionary.dtype or gram.device != dictionary.device:
        raise ValueError(
            f"gram must be {dictionary.dtype} of shape {shape} on {dictionary.device} like the dictionary, "
            f"got {gram.dtype} of shape {tuple(gram.shape)} on {gram.device}"
        )
    gram = gram.detach().reshape(*atoms.shape[:2], atoms.shape[1])
    if not torch.compiler.is_compiling():
        squares = atoms.detach().float().square().sum(-1)
        if not torch.allclose(gram.diagonal(dim1=-2, dim2=-1).float(), squares, rtol=0.05, atol=0.0):
            raise ValueError("gram must hold the products of the dictionary's rows, its diagonal differs")
    return gram


def _choose_form(x: Tensor, dictionary: Tensor, gram: Tensor | None, n_steps: int, kept: float) -> bool:
    """Whether the Gram form costs less: its product and one row of it a step, or products at all steps.

    Costs are multiply-adds of a matrix product, for one atom. A number read from memory counts as 18, one
    that the caches hold (small Gram matrices; `kept` rows, on average, of the atoms orthogonal pursuit took)
    as 3, and passing over freshly made correlations as 60.
    """
    rows, dim, atoms = x.shape[1], x.shape[2], dictionary.shape[1]
    if gram is None and dictionary.shape[0] * atoms * atoms > _LARGEST_GRAM:
        return False
    made = 0 if gram is not None else atoms * dim
    read = (18 if atoms * atoms > 1 << 18 else 3) + 3 * kept
    return made + rows * (dim + n_steps * read) < rows * n_steps * (dim + 60)


def _path(x: Tensor, dictionary: Tensor, indices: Tensor, coefficients: Tensor) -> Tensor:
    """Residuals [groups, rows, steps + 1, dim] before the first and after every step."""
    group = torch.arange(len(x), device=x.device)[:, None, None]
    taken = coefficients[..., None] * dictionary[group, indices.clamp(min=0)]
    return torch.cat([x[:, :, None], x[:, :, None] - taken.cumsum(2)], 2)


def _codes(
    x: Tensor, atoms: Tensor, indices: Tensor, coefficients: Tensor, residual: Tensor, path: Tensor | None
) -> PursuitCodes:
    batch = x.shape[:-1]
    return PursuitCodes(
        indices.reshape(*batch, indices.shape[-1]),
        coefficients.reshape(*batch, coefficients.shape[-1]),
        residual.reshape(x.shape),
        atoms.shape[1],
        None if path is None else path.reshape(*batch, *path.shape[2:]),
    )
