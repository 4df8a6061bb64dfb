"""What is timed in one process: products, orders of loops, the cache, EfficientNet-Lite0, small networks."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from sparsebook.evaluation.timing import compare
from sparsebook.experiments.fast_sparse_convnets.orders import pixel_by_pixel, rows_outside, strips_outside
from sparsebook.experiments.fast_sparse_convnets.scales import Config, Shape
from sparsebook.experiments.fast_sparse_convnets.training import Arm
from sparsebook.kernels.lanes import WIDTH
from sparsebook.kernels.sparse_matmul import spmm_csr
from sparsebook.kernels.sparse_matmul.cpu import Matrix
from sparsebook.models.efficientnet import EfficientNetLite0
from sparsebook.networks.fast_sparse_convnets import (
    DenseConv1x1,
    DepthwiseConv2d,
    magnitude_masks,
    mobilenet_v1,
    rewritten,
    small_mobilenet,
)
from sparsebook.networks.layers import SparseConv2d, sparse_lists
from sparsebook.networks.masks import SparsityMask, block_mask, random_mask

Rows = list[dict[str, Any]]
Call = Callable[[], object]
MANY = 196
"""Pixels from which on a layer counts as large."""
FEW = 49
"""Pixels of the last layers."""
DENSE_WAYS = ("dense products", "torch, folded", "channels last, folded")
"""How dense networks are run; the fastest counts."""


def speed_once(given: Mapping[str, Any], over: int = 1) -> Rows:
    """All times of one process, on the threads that are set: a tidy table's rows.

    Parameters
    ----------
    given : fields of a `Config`
    over : how often what the claims favour runs for one time; more than 1 is the control
    """
    config = Config(**{name: _tupled(value) for name, value in given.items()})
    with torch.inference_mode():
        return [
            *time_products(config, over), *time_orders(config, over), *time_cache(config, over),
            *time_network(config, over), *time_latency(config),
        ]  # fmt: skip


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list | tuple) else value


def often(function: Call, n: int) -> Call:
    """A function that runs another n times."""
    if n == 1:
        return function

    def again() -> None:
        for _ in range(n):
            function()

    return again


def rows_of(experiment: str, seconds: Mapping[str, list[float]], config: Config, **knobs: Any) -> Rows:
    """The median of each candidate."""
    found: Rows = []
    for method, times in seconds.items():
        head = {"experiment": experiment, "method": method, "seed": config.seed, "metric": "seconds"}
        found.append(head | {"value": statistics.median(times), "unit": "s"} | knobs)
    return found


# Products ------------------------------------------------------------------------------------------------


def pruned(shape: Shape, sparsity: float, block: int = 1) -> Tensor:
    """Random weights [outputs, inputs] with so many zeros."""
    _, outputs, inputs = shape
    generator = torch.Generator().manual_seed(outputs * 10_007 + inputs)
    weights = torch.randn(outputs, inputs, generator=generator)
    if block == 1:
        return weights * random_mask((outputs, inputs), 1 - sparsity, generator=generator)
    return weights * block_mask(torch.rand(outputs, inputs, generator=generator), 1 - sparsity, (block, 1))


def time_products(config: Config, over: int = 1) -> Rows:
    """Ours, MKL's dense and sparse products, SciPy's; blocks of 2 and 4 at the sparsity of the networks."""
    found: Rows = []
    for shape in dict.fromkeys((*config.v1_shapes, *config.v2_shapes)):
        pixels, outputs, inputs = shape
        x = torch.randn(inputs, pixels, generator=torch.Generator().manual_seed(1))
        functions: dict[str, Call] = {}
        for sparsity in config.sparsities:
            for method, function in _products(shape, sparsity, x, config, over).items():
                functions[f"{sparsity}|{method}"] = function
        for name, times in compare(functions, config.repeats, warmup=config.warmup).items():
            share, method = name.split("|")
            knobs = {"pixels": pixels, "outputs": outputs, "inputs": inputs, "sparsity": float(share)}
            found += rows_of("products", {method: times}, config, **knobs)
    return found


def _products(shape: Shape, sparsity: float, x: Tensor, config: Config, over: int) -> dict[str, Call]:
    weights = pruned(shape, sparsity)
    values, columns, offsets = sparse_lists(weights)
    theirs = torch.sparse_csr_tensor(offsets, columns, values, weights.shape)
    plain, x_plain = _scipy(weights), x.numpy()
    ours = partial(spmm_csr, values, columns, offsets, x)
    torch.testing.assert_close(ours(), weights @ x, rtol=1e-3, atol=1e-3)
    functions: dict[str, Call] = {
        "ours": often(ours, over if shape[0] >= MANY else 1),
        "dense": partial(torch.mm, weights, x),
        "mkl": partial(torch.mm, theirs, x),
        "scipy": partial(plain.__matmul__, x_plain),
    }
    if sparsity == config.sparsity:
        for block in (2, 4):
            lists = sparse_lists(pruned(shape, sparsity, block), block=block)
            functions[f"blocks of {block}"] = often(
                partial(spmm_csr, *lists, x), over if shape[0] == FEW else 1
            )
    return functions


def _scipy(weights: Tensor) -> Any:
    from scipy.sparse import csr_matrix

    return csr_matrix(weights.numpy())


def time_orders(config: Config, over: int = 1) -> Rows:
    """Orders of loops and of images, at the sparsity of the networks, on large images of MobileNet v1."""
    found: Rows = []
    for shape in [shape for shape in config.v1_shapes if shape[0] >= 4 * MANY]:
        pixels, outputs, inputs = shape
        weights = pruned(shape, config.sparsity)
        values, columns, offsets = sparse_lists(weights)
        x = torch.randn(inputs, pixels, generator=torch.Generator().manual_seed(1))
        y, turned = np.empty((outputs, pixels), np.float32), np.empty((pixels, outputs), np.float32)
        flat = y.reshape(-1), x.numpy().reshape(-1)
        lists = columns.numpy().astype(np.int64) * pixels, values.numpy(), offsets.numpy()
        by_pixel = x.T.contiguous().numpy()
        functions: dict[str, Call] = {
            "strips outside": partial(strips_outside, *flat, *lists, pixels),
            "rows outside": partial(rows_outside, *flat, *lists, pixels),
            "pixel by pixel": partial(
                pixel_by_pixel, turned, by_pixel, columns.numpy(), values.numpy(), offsets.numpy()
            ),
            "ours": partial(spmm_csr, values, columns, offsets, x),
        }
        exact = weights @ x
        for name, function in functions.items():
            result = function()
            given = (
                result if name == "ours" else torch.from_numpy(turned.T if name == "pixel by pixel" else y)
            )
            torch.testing.assert_close(given, exact, rtol=1e-3, atol=1e-3)
        for name in ("strips outside", "ours"):
            functions[name] = often(functions[name], over)
        seconds = compare(functions, config.repeats, warmup=config.warmup)
        found += rows_of("orders", seconds, config, pixels=pixels, outputs=outputs, inputs=inputs)
    return found


def first_level_cache() -> int:
    """Bytes of a core's first-level cache for data; 32 KiB where the system does not say."""
    try:
        with open("/sys/devices/system/cpu/cpu0/cache/index0/size", encoding="ascii") as file:
            return int(file.read().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 32 * 1024


def time_cache(config: Config, over: int = 1) -> Rows:
    """One strip of four registers over more and more input channels, as many weights in every row."""
    width = 4 * WIDTH
    functions: dict[str, Call] = {}
    sizes: dict[str, float] = {}
    for share in config.cache_shares:
        inputs = max(config.cache_entries, round(share * first_level_cache() / (4 * width)))
        generator = torch.Generator().manual_seed(inputs)
        scores = torch.rand(config.cache_rows, inputs, generator=generator)
        columns = scores.topk(config.cache_entries).indices.sort(1).values.flatten().int()
        offsets = torch.arange(config.cache_rows + 1, dtype=torch.int32) * config.cache_entries
        x = torch.randn(inputs, width, generator=generator)
        product = partial(spmm_csr, torch.rand(len(columns), generator=generator), columns, offsets, x)
        favoured = share == min(config.cache_shares, key=_to_half)
        functions[f"{share:g}"] = often(product, over if favoured else 1)
        sizes[f"{share:g}"] = share
    seconds = compare(functions, 4 * config.repeats, warmup=config.warmup)
    found: Rows = []
    for name, times in seconds.items():
        found += rows_of("cache", {"ours": times}, config, share=sizes[name])
    return found


def _to_half(share: float) -> float:
    return abs(share - 0.5)


# Networks ------------------------------------------------------------------------------------------------


@cache
def efficientnet(sparsity: float) -> nn.Module:
    """EfficientNet-Lite0, its 1 x 1 convolutions pruned by magnitude, for their speed alone."""
    network = EfficientNetLite0.load().network
    if sparsity:
        SparsityMask(network, magnitude_masks(network, sparsity)).apply()
    return network


@cache
def fast_efficientnet(sparsity: float) -> nn.Module:
    """The same, channel by channel with sparse products; with dense ones if nothing is pruned."""
    return rewritten(efficientnet(sparsity), "sparse" if sparsity else "dense")[0]


@cache
def folded_efficientnet(channels_last: bool) -> nn.Module:
    """PyTorch's own convolutions with folded batch norms."""
    network = rewritten(efficientnet(0.0), "torch")[0]
    return _turned(network) if channels_last else network


def time_network(config: Config, over: int = 1) -> Rows:
    """EfficientNet-Lite0, one image: sparse, dense in the same network, PyTorch's ways; its parts."""
    x = torch.randn(1, 3, config.pixels, config.pixels, generator=torch.Generator().manual_seed(0))
    last = x.to(memory_format=torch.channels_last)
    functions: dict[str, Call] = {
        "dense products": partial(fast_efficientnet(0.0), x),
        "torch": partial(efficientnet(0.0), x),
        "torch, folded": partial(folded_efficientnet(False), x),
        "channels last, folded": partial(folded_efficientnet(True), last),
    }
    for sparsity in config.prunings:
        functions[f"sparse {sparsity:g}"] = often(partial(fast_efficientnet(sparsity), x), over)
    found = rows_of("network", compare(functions, config.repeats, warmup=config.warmup), config)
    for sparsity in (0.0, *config.prunings):
        parts = time_parts(fast_efficientnet(sparsity), x, config.repeats)
        found += rows_of("parts", {name: [value] for name, value in parts.items()}, config, sparsity=sparsity)
    return found


def _turned(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def time_parts(network: nn.Module, x: Tensor, repeats: int) -> dict[str, float]:
    """Median seconds of a forward pass by kind of layer."""
    kinds = {SparseConv2d: "1 x 1", DenseConv1x1: "1 x 1", DepthwiseConv2d: "depthwise"}
    runs: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        clock = _Clock(network, kinds)
        start = time.perf_counter()
        clock.run(x)
        whole = time.perf_counter() - start
        runs.append(clock.spent | {"other": whole - sum(clock.spent.values())})
    return {name: statistics.median(run[name] for run in runs[1:]) for name in runs[0]}


class _Clock(fx.Interpreter):
    """Runs a traced network node by node and adds up the time of some kinds of layers."""

    def __init__(self, network: Any, kinds: Mapping[type, str]) -> None:
        super().__init__(network)
        self.kinds = kinds
        self.spent: dict[str, float] = dict.fromkeys(kinds.values(), 0.0)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        start = time.perf_counter()
        result = super().call_module(target, args, kwargs)
        kind = self.kinds.get(type(self.module.get_submodule(target)))
        if kind is not None:
            self.spent[kind] += time.perf_counter() - start
        return result


def arms(config: Config) -> list[Arm]:
    """All networks that are trained and timed: dense, pruned, with blocks."""
    return [
        *(Arm(width) for width in config.widths),
        *(Arm(width, config.sparsity) for width in config.sparse_widths),
        *(Arm(config.block_width, config.sparsity, block) for block in (2, 4)),
    ]


@cache
def untrained(arm: Arm, small: bool) -> nn.Module:
    """A network with random weights, pruned at once: as fast as a trained one."""
    torch.manual_seed(0)
    model = small_mobilenet(arm.width, 16) if small else mobilenet_v1(arm.width)
    if arm.sparsity:
        SparsityMask(model, magnitude_masks(model, arm.sparsity, arm.block)).apply()
    return model.eval()


def time_latency(config: Config) -> Rows:
    """The networks that are trained: pruned ones with sparse products, dense ones in three ways."""
    found: Rows = []
    small = config.imagenet is None
    for images in dict.fromkeys((config.images, 1)):
        x = torch.randn(images, 1, 32, 32) if small else torch.randn(images, 3, config.pixels, config.pixels)
        functions: dict[str, Call] = {}
        for arm in arms(config):
            for way in ("sparse",) if arm.sparsity else DENSE_WAYS:
                given = x.to(memory_format=torch.channels_last) if way.startswith("channels last") else x
                functions[f"{arm.name}|{way}"] = partial(ready(arm, small, way), given)
        for name, times in compare(functions, config.repeats, warmup=config.warmup).items():
            arm_name, way = name.split("|")
            found += rows_of("latency", {arm_name: times}, config, way=way, images=images)
    return found


@cache
def ready(arm: Arm, small: bool, way: str) -> nn.Module:
    """The network of an arm, rewritten for one of the ways to run it."""
    products = {"sparse": "sparse", "dense products": "dense"}.get(way, "torch")
    network = rewritten(untrained(arm, small), products)[0]  # type: ignore[arg-type]
    return _turned(network) if way.startswith("channels last") else network


# Machine code --------------------------------------------------------------------------------------------

_LISTING = (
    "from sparsebook.experiments.fast_sparse_convnets import scales, speed;"
    "speed.print_machine_code(scales.Config.at('full'))"
)
_NEXT = "=== "
_MULTIPLY_ADD = re.compile(r"\bvfn?m(add|sub)\d+[ps]s\b|\bfn?m(add|sub)\s+s\d|\bfml[as][.\s]")
_WHOLE = {
    16: re.compile(r"ps\b.*%zmm"), 8: re.compile(r"ps\b.*%ymm"), 4: re.compile(r"ps\b.*%xmm|\.4s\b"),
}  # fmt: skip
"""By the numbers in a register: what only instructions on whole ones have."""


def compiled_jobs(config: Config) -> dict[str, Any]:
    """Every piece of compiled code that the public call takes for the products that are timed, by name."""
    found: dict[str, Any] = {}
    wanted = [(sparsity, 1) for sparsity in config.sparsities]
    wanted += [(config.sparsity, block) for block in (2, 4)]
    for shape in dict.fromkeys((*config.v1_shapes, *config.v2_shapes)):
        for sparsity, block in wanted:
            lists = sparse_lists(pruned(shape, sparsity, block), block=block)
            plan = Matrix(*lists, shape[2]).plan(shape[0], 1)
            name = f"strips {'copied' if plan.tile else 'as they lie'}"
            found[name + (f", blocks of {block}" if block > 1 else "")] = plan.job
    return found


def print_machine_code(config: Config) -> None:
    """The assembly of these, each after a line with its name; only of code that no cache had."""
    for name, job in compiled_jobs(config).items():
        print(_NEXT + name)
        print(job._library.get_asm_str())


def multiply_adds() -> dict[str, dict[str, int]]:
    """Fused multiply-adds in the machine code of the sparse product: of whole registers, and of less."""
    with tempfile.TemporaryDirectory() as folder:  # what comes from a cache has no assembly
        environment = os.environ | {"NUMBA_CACHE_DIR": folder}
        done = subprocess.run(
            [sys.executable, "-c", _LISTING], env=environment, capture_output=True, text=True, check=True
        )
    parts = (part.partition("\n") for part in done.stdout.split(_NEXT)[1:])
    return {name: count_multiply_adds(listing.splitlines()) for name, _, listing in parts}


def count_multiply_adds(lines: Iterable[str], width: int = WIDTH) -> dict[str, int]:
    """The same for lines of assembly, of x86 or ARM, where a register holds so many numbers."""
    found = [bool(_WHOLE[width].search(line)) for line in lines if _MULTIPLY_ADD.search(line)]
    return {"whole": sum(found), "less": len(found) - sum(found)}
