"""The Triton kernels against the reference: on a GPU, or through Triton's interpreter."""

import os

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsebook.kernels.pursuit import (
    Rule,
    matching_pursuit_reference,
    orthogonal_matching_pursuit_reference,
)

pytest.importorskip("triton", reason="Triton is not installed (the extra `triton`)", exc_type=ImportError)

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
here = pytest.mark.skipif(not (GPU or INTERPRETED), reason="run by test_triton.py")
SHAPES = [(1, 5, 12, 37, 7), (2, 4, 20, 20, 6), (1, 3, 33, 64, 1)]  # groups, rows, dim, atoms, steps


def problem(groups: int, rows: int, dim: int, atoms: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(atoms)
    x = torch.randn(groups, rows, dim, generator=generator)
    dictionary = normalize(torch.randn(groups, atoms, dim, generator=generator), dim=-1)
    return x.to(DEVICE), dictionary.to(DEVICE)


def same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert actual[0].tolist() == expected[0].tolist()
    for mine, reference in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, reference.float(), rtol=1e-4, atol=1e-5)


@here
@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("shape", SHAPES)
def test_matching_pursuit(shape: tuple[int, ...], rule: Rule) -> None:
    from sparsebook.kernels.pursuit.cuda import matching_pursuit_cuda

    *sizes, n_steps = shape
    x, dictionary = problem(*sizes)
    for tolerance, stop in ((0.0, False), (1.2, False), (0.0, True)):
        found = matching_pursuit_cuda(x, dictionary, None, n_steps, tolerance, int(rule), stop)
        arguments = (x.double(), dictionary.double(), n_steps, tolerance, int(rule), stop)
        same(found, matching_pursuit_reference(*arguments))


@here
def test_equal_correlations_take_the_lowest_index_and_zero_takes_none() -> None:
    from sparsebook.kernels.pursuit.cuda import matching_pursuit_cuda

    _, dictionary = problem(1, 1, 12, 21)
    twice = torch.cat([dictionary, dictionary], 1)
    x = torch.stack([3 * dictionary[0, 6], torch.zeros_like(dictionary[0, 6])])[None]
    indices, coefficients, residual = matching_pursuit_cuda(x, twice, None, 1, 0.0, 1, False)
    assert indices.flatten().tolist() == [6, -1]
    torch.testing.assert_close(coefficients.flatten().cpu(), torch.tensor([3.0, 0.0]))
    assert residual.abs().max() < 1e-6


@here
@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_matching_pursuit(shape: tuple[int, ...]) -> None:
    from sparsebook.kernels.pursuit.cuda import orthogonal_matching_pursuit_cuda

    *sizes, n_steps = shape
    x, dictionary = problem(*sizes)
    for tolerance in (0.0, 1.2):
        found = orthogonal_matching_pursuit_cuda(x, dictionary, None, n_steps, tolerance)
        same(
            found, orthogonal_matching_pursuit_reference(x.double(), dictionary.double(), n_steps, tolerance)
        )


@here
def test_dependent_atoms_end_an_orthogonal_pursuit() -> None:
    from sparsebook.kernels.pursuit.cuda import orthogonal_matching_pursuit_cuda

    _, dictionary = problem(1, 1, 12, 5)
    twice = torch.cat([dictionary, dictionary], 1)
    x = (2 * dictionary[:, 1] + dictionary[:, 3])[None]
    indices, coefficients, residual = orthogonal_matching_pursuit_cuda(x, twice, None, 8, 0.0)
    assert sorted(indices[0, 0].tolist()) == [-1] * 6 + [1, 3]
    torch.testing.assert_close(coefficients[0, 0].sort().values[-2:].cpu(), torch.tensor([1.0, 2.0]))
    assert residual.norm() < 1e-5
