"""Depthwise convolution: against PyTorch's own, its gradients, PyTorch's checks, layouts, bad input."""

import inspect
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sparsebook.kernels.depthwise import average_pool2d, cpu, depthwise_conv2d, depthwise_reference
from sparsebook.kernels.depthwise.registers import WIDTH

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float64: 1e-12}


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    tolerance = TOLERANCE[actual.dtype] * scale
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), batch=st.integers(0, 3), channels=st.integers(1, 9),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kernel=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    stride=st.integers(1, 4), sides=st.tuples(*[st.integers(0, 3)] * 4), biased=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)), turned=st.booleans(),
)  # fmt: skip
def test_results_and_gradients_equal_pytorchs(
    seed, batch, channels, size, kernel, stride, sides, biased, dtype, turned
) -> None:
    kernel = min(kernel[0], size[0] + sides[2] + sides[3]), min(kernel[1], size[1] + sides[0] + sides[1])
    x = normal(seed, batch, channels, *size, dtype=dtype)
    x = (x.transpose(0, 1).contiguous().transpose(0, 1) if turned else x).requires_grad_()
    weight = normal(seed + 1, channels, *kernel, dtype=dtype).requires_grad_()
    bias = normal(seed + 2, channels, dtype=dtype).requires_grad_() if biased else None

    y = depthwise_conv2d(x, weight, bias, stride=stride, padding=sides, low=-1.0, high=2.0)
    grad = normal(seed + 3, *y.shape, dtype=dtype)
    y.backward(grad)
    found = [tensor.grad for tensor in (x, weight, *([bias] if biased else []))]

    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, *([bias] if biased else []))]
    around = functional.pad(exact[0], sides)
    expected = functional.conv2d(
        around, exact[1][:, None], exact[2] if biased else None, stride, groups=channels
    )
    close(y, expected.clamp(-1.0, 2.0), 10)
    # What rounding puts on a bound passes no gradient, in the exact result it might.
    (expected * (grad.double() * ((y > -1) & (y < 2)))).sum().backward()
    for ours, tensor in zip(found, exact, strict=True):
        close(ours, tensor.grad, 200)


SHAPES = [
    (3, 7, 7, 3, 1), (40, 14, 14, 5, 1), (5, 112, 112, 3, 1), (4, 112, 112, 3, 2),
    (3, 200, 300, 5, 2), (2, 90, 90, 3, 3),
]  # fmt: skip


@pytest.mark.parametrize(("channels", "height", "width", "size", "stride"), SHAPES)
def test_maps_of_the_sizes_of_mobilenets(channels, height, width, size, stride, monkeypatch) -> None:
    """Without gradients: the compiled code at once; two threads and one agree to the bit."""
    monkeypatch.setattr(cpu, "_LEAST_WORK", 1)
    x, weight, bias = (
        normal(0, 2, channels, height, width),
        normal(1, channels, 1, size, size),
        normal(2, channels),
    )
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(
            depthwise_conv2d(
                x, weight, bias, stride=stride, padding=size // 2, low=0, high=6
            )  # whole numbers too
        )
    torch.set_num_threads(before)
    assert torch.equal(*found)
    sides = [size // 2] * 4
    close(found[0], depthwise_reference(x, weight[:, 0], bias, stride, sides, 0.0, 6.0), 10)


def test_the_result_lies_as_the_input() -> None:
    weight = normal(1, 3, 3, 3)
    turned = normal(0, 3, 2, 8, 9).transpose(0, 1)
    y = depthwise_conv2d(turned, weight, padding=1)
    assert y.stride() == turned.stride()
    assert torch.equal(y, depthwise_conv2d(turned.contiguous(), weight, padding=1))
    assert depthwise_conv2d(turned.contiguous(), weight, padding=1).is_contiguous()
    last = turned.to(memory_format=torch.channels_last)
    assert torch.equal(y, depthwise_conv2d(last, weight, padding=1))


def test_padding_in_all_its_forms() -> None:
    x, weight = normal(0, 1, 2, 6, 7), normal(1, 2, 3, 5)
    for padding, sides in ((1, (1, 1, 1, 1)), ((1, 2), (2, 2, 1, 1)), ((0, 1, 2, 0), (0, 1, 2, 0))):
        y = depthwise_conv2d(x, weight, padding=padding)
        close(y, functional.conv2d(functional.pad(x, sides), weight[:, None], groups=2), 10)


def test_average_pool() -> None:
    x = normal(0, 2, 3, 9, 11)
    close(average_pool2d(x, 2), functional.avg_pool2d(x, 2), 10)
    close(average_pool2d(x, 3, stride=2, padding=1), functional.avg_pool2d(x, 3, 2, 1), 10)


def test_nan_and_infinity_stay_where_they_are_seen() -> None:
    x = torch.ones(1, 2, 6, 20)
    x[0, 0, 2, 3], x[0, 1, 5, 19] = math.nan, math.inf
    y = depthwise_conv2d(x, torch.ones(2, 3, 3), padding=1, low=-100.0, high=100.0)
    assert y[0, 0].isnan().nonzero().tolist() == [[r, c] for r in (1, 2, 3) for c in (2, 3, 4)]
    assert (y[0, 1] == 100).nonzero().tolist() == [[r, c] for r in (4, 5) for c in (18, 19)]


def test_exact_gradients() -> None:
    x, weight = normal(0, 2, 2, 5, 4, dtype=torch.float64), normal(1, 2, 3, 2, dtype=torch.float64)
    bias = normal(2, 2, dtype=torch.float64)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()

    def function(*given: Tensor) -> Tensor:
        return depthwise_conv2d(*given, stride=2, padding=(0, 1, 2, 0), low=-1.0, high=1.0)

    assert torch.autograd.gradcheck(function, (x, weight, bias))


def test_the_operator_passes_pytorchs_own_checks() -> None:
    given = normal(0, 2, 3, 8, 9), normal(1, 3, 3, 3), normal(2, 3)
    for tensor in given:
        tensor.requires_grad_()
    torch.library.opcheck(torch.ops.sparsebook.depthwise, (*given, 2, [1, 1, 0, 1], -1.0, 1.0))


def test_the_inner_loop_multiplies_vectors(tmp_path) -> None:
    """Every count of registers has its multiply-adds, of whole registers."""
    if WIDTH == 4:
        pytest.skip("the names of registers are those of x86")
    code = "from sparsebook.kernels.depthwise import cpu; print(cpu._job()._library.get_asm_str())"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}  # what comes from a cache has no assembly
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    register = "zmm" if WIDTH == 16 else "ymm"
    found = re.findall(rf"vfmadd\d+ps\s.*%{register}\d+$", done.stdout, re.MULTILINE)
    assert len(found) >= 36, done.stderr


GOOD = {"x": torch.ones(1, 3, 5, 5), "weight": torch.ones(3, 3, 3)}
BAD = {
    r"\(batch, channels, height, width\)": {"x": torch.ones(3, 5, 5)},
    "got torch.int64 of shape": {"x": torch.ones(1, 3, 5, 5, dtype=torch.int64)},
    r"weight must have shape \(3, rows": {"weight": torch.ones(2, 3, 3)},
    r"got \(3, 3, 3, 3\)": {"weight": torch.ones(3, 3, 3, 3)},
    r"got \(3, 0, 3\)": {"weight": torch.ones(3, 0, 3)},
    "weight must be torch.float32": {"weight": torch.ones(3, 3, 3, dtype=torch.float64)},
    r"bias must be float of shape \(3,\)": {"bias": torch.ones(2)},
    "low must not be above high": {"low": 1.0, "high": 0.0},
    "one, two or four numbers": {"padding": (1, 1, 1)},
    "at least 0, got -1": {"padding": -1},
    "stride must be at least 1": {"stride": 0},
    "larger than the padded image, 5 x 5": {"weight": torch.ones(3, 6, 3)},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        # Without the run-time types of the tests, which would answer first.
        inspect.unwrap(depthwise_conv2d)(**(GOOD | BAD[message]))


def test_a_pool_of_no_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="size must be at least 1"):
        average_pool2d(torch.ones(1, 1, 4, 4), 0)
