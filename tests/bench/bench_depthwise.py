"""Speed of depthwise convolution beside PyTorch's own, interleaved in one run.

    make bench                                  # with all of the others
    python tests/bench/bench_depthwise.py       # alone

The layers of MobileNet v2 and of EfficientNet-Lite0 at 224 pixels, one image, bias and ReLU6 included, one
thread and two. PyTorch's convolution (oneDNN) comes in both layouts, channel by channel as ours and channels
last.
"""

import math
import statistics

import pytest
import torch
from torch.nn.functional import conv2d

from sparsebook.evaluation.machine import machine_name, threads
from sparsebook.evaluation.timing import compare
from sparsebook.kernels.depthwise import depthwise_conv2d

# Channels, side, kernel, stride.
LAYERS = (
    (32, 112, 3, 1), (96, 112, 3, 2), (144, 56, 3, 1), (144, 56, 5, 2), (192, 28, 3, 2), (240, 28, 5, 1),
    (480, 14, 3, 1), (480, 14, 5, 1), (672, 14, 5, 2), (1152, 7, 5, 1), (1152, 7, 3, 1),
)  # fmt: skip


def measure(n: int, layer: tuple[int, int, int, int]) -> dict[str, float]:
    """Median seconds of ours and of both layouts of PyTorch's, on n threads."""
    channels, side, size, stride = layer
    x = torch.randn(1, channels, side, side)
    weight, bias = torch.randn(channels, 1, size, size), torch.randn(channels)
    last = x.to(memory_format=torch.channels_last)
    functions = {
        "ours": lambda: depthwise_conv2d(
            x, weight, bias, stride=stride, padding=size // 2, low=0.0, high=6.0
        ),
        "torch": lambda: conv2d(x, weight, bias, stride, size // 2, groups=channels).clamp_(0, 6),
        "channels last": lambda: conv2d(last, weight, bias, stride, size // 2, groups=channels).clamp_(0, 6),
    }
    with torch.inference_mode(), threads(n):
        return {name: statistics.median(times) for name, times in compare(functions, 20).items()}


def means(n: int) -> dict[str, float]:
    """Geometric means over the layers of PyTorch's times over ours; each layer is printed."""
    ratios: dict[str, list[float]] = {"torch": [], "channels last": []}
    for layer in LAYERS:
        found = measure(n, layer)
        for name, own in ratios.items():
            own.append(found[name] / found["ours"])
        numbers = "  ".join(f"{name} {1e6 * seconds:7.1f} us" for name, seconds in found.items())
        print(f"  {layer!s:20s} {numbers}", flush=True)
    return {
        name: math.exp(statistics.fmean(math.log(ratio) for ratio in own)) for name, own in ratios.items()
    }


@pytest.mark.bench
@pytest.mark.parametrize("n", [1, 2])
def test_depthwise_keeps_up_with_pytorchs_own(n: int) -> None:
    print(f"\n{n} threads")
    found = means(n)
    print(f"  mean: {found}")
    assert found["torch"] > 1
    assert found["channels last"] > 0.6


if __name__ == "__main__":
    print(machine_name())
    for count in (1, 2):
        print(f"{count} threads")
        print(f"  mean: {means(count)}")
