"""The measurements: tidy tables of times, interleaved, with their ratios to dense attention beside them."""

import statistics
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from sparsebook.evaluation.machine import gemm_rate
from sparsebook.evaluation.machine import threads as using_threads
from sparsebook.evaluation.timing import compare, in_processes, paired_median_ratio
from sparsebook.experiments.attention_kernels.inputs import (
    density_of,
    gather_and_attend,
    normal,
    random_blocks,
    random_columns,
)
from sparsebook.experiments.attention_kernels.parts import seconds_per_tile
from sparsebook.experiments.attention_kernels.scales import Config
from sparsebook.kernels.block_attention import (
    SpanIndex,
    block_sparse_attention,
    paged_attention,
    span_attention,
)

if TYPE_CHECKING:
    import pandas as pd

Rows = list[dict[str, Any]]
Call = Callable[[], object]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def tidy(
    experiment: str, method: str, seed: int, metrics: Mapping[str, tuple[float, str]], **where: Any
) -> Rows:
    """Rows of a tidy table: one for each metric, given as (value, unit)."""
    head = {"experiment": experiment, "method": method, "seed": seed}
    return [
        head | {"metric": name, "value": float(value), "unit": unit} | where
        for name, (value, unit) in metrics.items()
    ]


def timed(
    config: Config, experiment: str, functions: Mapping[str, Call], density: float, **where: Any
) -> Rows:
    """Median seconds of each function; its ratio to "dense", and to dense times density ("the ideal").

    Ratios are medians over rounds, in each of which every function runs once.
    """
    seconds = compare(functions, config.repeats, warmup=1, seed=config.seed)
    found: Rows = []
    for method, times in seconds.items():
        over = paired_median_ratio(seconds, method, "dense")
        ideal = over / (1.0 if method == "dense" else density)
        metrics = {
            "seconds": (statistics.median(times), "s"),
            "over_dense": (over, "ratio"),
            "over_ideal": (ideal, "ratio"),
        }
        found += tidy(experiment, method, config.seed, metrics, density=density, **where)
    return found


def run_limit(config: Config) -> "pd.DataFrame":
    """What bounds the kernel: its inner loops alone, MKL's products, dense attention; in FLOP per second."""
    import pandas as pd

    found: Rows = []
    for n in sorted({1, config.threads}):
        with using_threads(n):
            for method, rate in _rates(config, n).items():
                found += tidy("limit", method, config.seed, {"rate": (rate, "FLOP/s")}, threads=n)
            for loop, seconds in seconds_per_tile(config.dim, n).items():
                found += tidy("limit", loop, config.seed, {"tile": (seconds, "s")}, threads=n)
    return pd.DataFrame(found)


def _rates(config: Config, threads: int) -> dict[str, float]:
    q, k, v = normal(config.seed, 1, config.heads, config.tokens, config.dim)
    mask = random_blocks(config.heads, config.tokens, 1.0, block=config.block)
    few, many = torch.ones(256, config.block, config.dim), torch.ones(256, config.dim, config.block)
    out = torch.empty(256, config.block, config.block)
    functions: dict[str, Call] = {
        "small products": lambda: torch.bmm(few, many, out=out),
        "dense": lambda: scaled_dot_product_attention(q, k, v),
        "block_sparse": lambda: block_sparse_attention(q, k, v, mask),
    }
    seconds = compare(functions, config.repeats, warmup=1, seed=config.seed)
    attention = 4 * config.heads * config.tokens**2 * config.dim
    flop = {"small products": 2 * few.numel() * config.block, "dense": attention, "block_sparse": attention}
    tile = seconds_per_tile(config.dim, threads)
    inner = 2 * 2 * 64 * 128 * config.dim * threads / (tile["logits"] + tile["values"])
    best = {name: flop[name] / statistics.median(times) for name, times in seconds.items()}
    return {"inner products": inner, "large product": gemm_rate()} | best


def run_density(config: Config) -> "pd.DataFrame":
    """Time against density: dense, FlexAttention, gather-and-SDPA and ours; causal and not."""
    import pandas as pd

    found: Rows = []
    q, k, v = normal(config.seed, 1, config.heads, config.tokens, config.dim)
    for causal in (False, True):
        for density in config.densities:
            mask = random_blocks(config.heads, config.tokens, density, block=config.block, causal=causal)
            functions = _contenders(q, k, v, mask, causal, config.flex)
            exact = density_of(mask, config.tokens, causal=causal)
            found += timed(config, "density", functions, exact, causal=causal, wanted=density)
    return pd.DataFrame(found)


def _contenders(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, causal: bool, flex: bool
) -> dict[str, Call]:
    functions: dict[str, Call] = {
        "dense": lambda: scaled_dot_product_attention(q, k, v, is_causal=causal),
        "gather": lambda: gather_and_attend(q, k, v, mask, causal=causal),
        "block_sparse": lambda: block_sparse_attention(q, k, v, mask),
    }
    if flex:
        functions["flex"] = lambda: compiled_flex()(q, k, v, block_mask=mask)
    reference = functions["block_sparse"]()
    for name in ("gather", "flex"):
        if name in functions:
            torch.testing.assert_close(functions[name](), reference, rtol=1e-3, atol=1e-4)
    return functions


@cache
def compiled_flex() -> Callable[..., Tensor]:
    """FlexAttention, compiled for the CPU."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def run_shapes(config: Config) -> "pd.DataFrame":
    """Ours over the ideal by head dimension, in two types, and by length; blocks, not causal."""
    import pandas as pd

    found: Rows = []
    features = config.heads * config.dim
    for dim in config.dims:
        for name in TYPES:
            found += _shape(config, max(1, features // dim), config.shape_tokens, dim, name, "dim")
    for tokens in config.lengths:
        found += _shape(config, config.heads, tokens, config.dim, "float32", "length")
    return pd.DataFrame(found)


def _shape(config: Config, heads: int, tokens: int, dim: int, dtype: str, series: str) -> Rows:
    q, k, v = normal(config.seed, 1, heads, tokens, dim, dtype=TYPES[dtype])
    mask = random_blocks(heads, tokens, config.shape_density, block=config.block)
    functions: dict[str, Call] = {
        "dense": lambda: scaled_dot_product_attention(q, k, v),
        "block_sparse": lambda: block_sparse_attention(q, k, v, mask),
    }
    exact = density_of(mask, tokens, causal=False)
    return timed(config, "shapes", functions, exact, series=series, tokens=tokens, dim=dim, dtype=dtype)


def run_threads(config: Config) -> "pd.DataFrame":
    """One thread and all, at density 1 and at that of the shapes; blocks, not causal."""
    import pandas as pd

    found: Rows = []
    q, k, v = normal(config.seed, 1, config.heads, config.tokens, config.dim)
    for n in sorted({1, config.threads}):
        for density in (1.0, config.shape_density):
            mask = random_blocks(config.heads, config.tokens, density, block=config.block)
            functions: dict[str, Call] = {
                "dense": lambda: scaled_dot_product_attention(q, k, v),
                "block_sparse": partial(block_sparse_attention, q, k, v, mask),
            }
            with using_threads(n):
                found += timed(config, "threads", functions, density, threads=n)
    return pd.DataFrame(found)


def run_layouts(config: Config) -> "pd.DataFrame":
    """As many keys in blocks of several sizes and as scattered columns: the price of the gather."""
    import pandas as pd

    q, k, v = normal(config.seed, 1, config.heads, config.shape_tokens, config.dim)
    functions: dict[str, Call] = {"dense": lambda: scaled_dot_product_attention(q, k, v)}
    for name, index in _layouts(config).items():
        functions[name] = partial(span_attention, q, k, v, index, causal=False)
    columns = random_columns(config.heads, config.shape_tokens, config.groups[0], config.shape_density)
    functions["gathered copy"] = lambda: copy_and_attend(q, k, v, columns)
    return pd.DataFrame(timed(config, "layouts", functions, config.shape_density))


def _layouts(config: Config) -> dict[str, SpanIndex]:
    heads, tokens, density = config.heads, config.shape_tokens, config.shape_density
    found = {}
    for block in config.blocks:
        # Queries in blocks of 128 whatever the keys' blocks are: only the keys' layout changes.
        columns = random_columns(heads, tokens // block, config.block // block, density)
        spans = torch.stack([columns.columns * block, columns.columns * block + block], -1)
        found[f"blocks of {block}"] = SpanIndex.from_spans(spans, config.block)
    for group in config.groups:
        found[f"columns for {group} queries"] = random_columns(heads, tokens, group, density)
    return found


def copy_and_attend(q: Tensor, k: Tensor, v: Tensor, index: SpanIndex) -> Tensor:
    """Columns the plain way: copy each group's keys and values side by side, then SDPA over the groups."""
    batch, heads, tokens, dim = q.shape
    groups, group, head = index.columns.shape[2], index.block_size, torch.arange(heads)[:, None, None]
    keys, values = (x[0][head, index.columns[0].long()].flatten(0, 1)[:, None] for x in (k, v))
    out = scaled_dot_product_attention(q.reshape(heads * groups, 1, group, dim), keys, values)
    return out.view(batch, heads, tokens, dim)


def run_decode(config: Config) -> "pd.DataFrame":
    """One new token over chosen pages of a cache, against dense decoding over all of it."""
    import pandas as pd

    found: Rows = []
    for dtype in TYPES:
        for tokens in config.cache_lengths:
            found += _decode(config, tokens, dtype)
    return pd.DataFrame(found)


def _decode(config: Config, tokens: int, dtype: str) -> Rows:
    q = normal(config.seed, 1, config.query_heads, 1, config.dim, dtype=TYPES[dtype])[0]
    _, k, v = normal(config.seed, 1, config.kv_heads, tokens, config.dim, dtype=TYPES[dtype])
    functions: dict[str, Call] = {"dense": lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True)}
    for budget in config.budgets:
        pages = random_columns(
            config.kv_heads, tokens // config.page_size, tokens // config.page_size, budget
        )
        chosen = pages.columns[:, :, 0]
        functions[f"{budget:g}"] = partial(paged_attention, q, k, v, chosen, page_size=config.page_size)
    seconds = compare(functions, 3 * config.repeats, warmup=2, seed=config.seed)
    cache = 2 * k.numel() * k.element_size()
    found: Rows = []
    for name, times in seconds.items():
        share = 1.0 if name == "dense" else float(name)
        metrics = {
            "seconds": (statistics.median(times), "s"),
            "bytes": (cache * share, "B"),
            "over_dense": (paired_median_ratio(seconds, name, "dense"), "ratio"),
        }
        method = "dense" if name == "dense" else "paged"
        found += tidy("decode", method, config.seed, metrics, tokens=tokens, dtype=dtype, density=share)
    return found


def run_processes(config: Config) -> "pd.DataFrame":
    """The live cell in processes of its own: what another run may be expected to find."""
    import pandas as pd

    if config.processes == 0:
        ratios = [live_ratio(config.live_tokens, config.live_density, config.repeats) for _ in range(5)]
    else:
        target = "sparsebook.experiments.attention_kernels.runs:live_ratio"
        arguments = {"tokens": config.live_tokens, "density": config.live_density, "repeats": config.repeats}
        ratios = in_processes(target, arguments, config.processes, threads=config.threads)
    found: Rows = []
    for process, ratio in enumerate(ratios):
        metrics = {"over_ideal": (ratio, "ratio")}
        found += tidy("processes", "block_sparse", config.seed, metrics, process=process)
    return pd.DataFrame(found)


def live_ratio(tokens: int, density: float, repeats: int) -> float:
    """Ours over dense times density: 4 heads of 64, blocks of 128, not causal, the threads now set."""
    q, k, v = normal(0, 1, 4, tokens, 64)
    mask = random_blocks(4, tokens, density)
    functions: dict[str, Call] = {
        "dense": lambda: scaled_dot_product_attention(q, k, v),
        "block_sparse": lambda: block_sparse_attention(q, k, v, mask),
    }
    seconds = compare(functions, 5 * repeats, warmup=3)
    return paired_median_ratio(seconds, "block_sparse", "dense") / density_of(mask, tokens, causal=False)


# Results, not times --------------------------------------------------------------------------------------


def fingerprint() -> list[float]:
    """Some outputs of each layout on small inputs: what a replay of the records compares."""
    q, k, v = normal(0, 1, 4, 256, 64)
    k, v = k[:, :2], v[:, :2]
    blocks = block_sparse_attention(q, k, v, random_blocks(4, 256, 0.5, block=64, causal=True))
    columns = span_attention(q, k, v, random_columns(4, 256, 64, 0.25), causal=False)
    pages = paged_attention(q[:, :, :1], k, v, torch.tensor([[[0, 3, 9]]]), page_size=16)
    outs: tuple[Tensor, ...] = (blocks, columns, pages)  # type: ignore[assignment] # without return_lse
    return [x for out in outs for x in out[0, :, -1, :4].flatten().tolist()]
