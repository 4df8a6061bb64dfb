"""Speed of sparse attention beside dense SDPA and compiled FlexAttention, interleaved in one run.

    make bench                                                        # the CPU table, with all of the others
    python tests/bench/bench_block_attention.py                       # the same, alone
    python tests/bench/bench_block_attention.py --device cuda         # an H100: tables, and JSON in $OUT

Density is blocks (or pairs) computed over all of them; under a causal mask over those below the diagonal. The
ideal is dense SDPA's time multiplied by the density. No projections are counted. "ours" is the public call
with its checks, "kernel" the operator alone.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from sparsebook.evaluation.timing import compare, paired_median_ratio
from sparsebook.experiments.attention_kernels import Config, inputs, run_decode, run_layouts
from sparsebook.kernels.block_attention import SpanIndex, block_sparse_attention, span_attention
from sparsebook.kernels.block_attention.layout import read_block_mask

Row = dict[str, Any]
BLOCK = 128


def normal(device: str, dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = inputs.normal(0, *shape, dtype=dtype)
    return q.to(device), k.to(device), v.to(device)


def random_blocks(heads: int, tokens: int, density: float, device: str, causal: bool = False) -> BlockMask:
    return inputs.random_blocks(heads, tokens, density, block=BLOCK, causal=causal).to(device)


def operator_alone(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, causal: bool) -> Callable[[], object]:
    lists = read_block_mask(mask, (q.shape[0], q.shape[1], q.shape[2], k.shape[2]), causal)
    arguments = (q, k, v, lists.counts, lists.blocks, lists.full_counts, lists.full_blocks, BLOCK, BLOCK)
    scale = q.shape[3] ** -0.5
    return lambda: torch.ops.sparsebook.block_attention(*arguments, lists.causal, scale)


def summary(seconds: dict[str, list[float]], density: float, **more: Any) -> Row:
    """Medians in ms, and medians of the rounds' ratios."""
    row: Row = {**more, "density": density}
    row |= {name: statistics.median(times) * 1e3 for name, times in seconds.items()}
    row["ours / ideal"] = paired_median_ratio(seconds, "ours", "sdpa") / density
    row["kernel / ideal"] = paired_median_ratio(seconds, "kernel", "sdpa") / density
    for peer in ("flex", "gather"):
        if peer in seconds:
            row[f"{peer} / ours"] = paired_median_ratio(seconds, peer, "ours")
    return row


def show(title: str, rows: list[Row]) -> None:
    print(f"\n{title}")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print("  ".join(f"{name:>14}" for name in columns))
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        print("  ".join(f"{x:14.3f}" if isinstance(x, float) else f"{x!s:>14}" for x in cells), flush=True)


# A CPU ---------------------------------------------------------------------------------------------------


def cpu_rows(tokens: int = 8192, heads: int = 4, dim: int = 64, repeats: int = 5) -> Iterator[Row]:
    """Non-causal random blocks of 128, two threads."""
    q, k, v = normal("cpu", torch.float32, 1, heads, tokens, dim)
    compiled = torch.compile(flex_attention)
    for density in (1.0, 0.25, 0.1):
        mask = random_blocks(heads, tokens, density, "cpu")
        functions: dict[str, Callable[[], object]] = {
            "sdpa": lambda: scaled_dot_product_attention(q, k, v),
            "flex": lambda mask=mask: compiled(q, k, v, block_mask=mask),
            "gather": lambda mask=mask: inputs.gather_and_attend(q, k, v, mask),
            "ours": lambda mask=mask: block_sparse_attention(q, k, v, mask),
            "kernel": operator_alone(q, k, v, mask, False),
        }
        reference = functions["gather"]()
        torch.testing.assert_close(functions["ours"](), reference, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(functions["flex"](), reference, rtol=1e-4, atol=1e-5)
        seconds = compare(functions, repeats=repeats, warmup=1)
        row = summary(seconds, inputs.density_of(mask, tokens, causal=False))
        flop = 4 * heads * tokens**2 * dim * row["density"]
        row["ours GFLOP/s"] = flop / statistics.median(seconds["ours"]) / 1e9
        yield row


def run_cpu(threads: int = 2) -> list[Row]:
    from sparsebook.evaluation.machine import describe_machine, gemm_rate, set_threads

    set_threads(threads)
    print(describe_machine())
    print(f"dense product: {gemm_rate() / 1e9:.0f} GFLOP/s on {threads} threads")
    rows = list(cpu_rows())
    show("4 heads of 64, 8,192 tokens, float32, not causal, blocks of 128; times in ms", rows)
    config = Config.at("full", threads=threads)
    for title, table in (("layouts at equal density", run_layouts), ("decoding", run_decode)):
        ratios = table(config).query("metric in ('over_dense', 'over_ideal') and method != 'dense'")
        show(f"{title}: times over dense attention's", ratios.drop(columns="experiment").to_dict("records"))
    return rows


@pytest.mark.bench
@pytest.mark.filterwarnings("ignore")
def test_block_attention_on_the_cpu() -> None:
    rows = run_cpu()
    assert len(rows) == 3


# A GPU ---------------------------------------------------------------------------------------------------


def flash(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(q, k, v, is_causal=causal)


def cuda_rows(tokens: int, dim: int, repeats: int, with_flex: bool) -> Iterator[Row]:
    """bf16, 16 heads, blocks of 128, causal and not, densities 1, 0.25 and 0.1."""
    heads = 16
    q, k, v = normal("cuda", torch.bfloat16, 1, heads, tokens, dim)
    compiled = torch.compile(flex_attention, dynamic=False)
    for causal in (False, True):
        for density in (1.0, 0.25, 0.1):
            mask = random_blocks(heads, tokens, density, "cuda", causal)
            functions: dict[str, Callable[[], object]] = {
                "sdpa": lambda causal=causal: flash(q, k, v, causal),
                "ours": lambda mask=mask: block_sparse_attention(q, k, v, mask),
                "kernel": operator_alone(q, k, v, mask, causal),
            }
            if with_flex:
                functions["flex"] = lambda mask=mask: compiled(q, k, v, block_mask=mask)
                _same(functions["ours"](), functions["flex"](), "flex")
            if density == 1.0:
                _same(functions["ours"](), functions["sdpa"](), "sdpa")
            seconds = compare(functions, repeats=repeats, warmup=3, synchronize=torch.cuda.synchronize)
            exact = inputs.density_of(mask, tokens, causal=causal)
            row = summary(seconds, exact, tokens=tokens, dim=dim, causal=causal)
            flop = 4 * heads * tokens**2 * dim * (0.5 if causal else 1)
            for name, share in (("sdpa", 1.0), ("kernel", exact)):
                row[f"{name} TFLOP/s"] = flop * share / statistics.median(seconds[name]) / 1e12
            yield row


def _same(ours: Any, theirs: Any, name: str) -> None:
    difference = (ours.float() - theirs.float()).abs().max().item()
    if not difference < 2e-2:
        raise AssertionError(f"differs from {name} by {difference}")


TILINGS = (
    (128, 128, 8, 2), (128, 128, 8, 3), (128, 128, 4, 2), (128, 64, 8, 3), (128, 64, 8, 4),
    (128, 64, 4, 3), (128, 64, 4, 4), (64, 128, 4, 3), (64, 64, 4, 3),
)  # fmt: skip


def tiling_rows(tokens: int, dim: int, repeats: int) -> Iterator[Row]:
    """The kernel at density 1 under other tilings: what `choose_tiling` should say."""
    from sparsebook.kernels.block_attention.cuda import Tiling, block_attention_cuda, choose_tiling

    q, k, v = normal("cuda", torch.bfloat16, 1, 16, tokens, dim)
    mask = random_blocks(16, tokens, 1.0, "cuda")
    lists = (mask.kv_num_blocks, mask.kv_indices, mask.kv_num_blocks * 0, mask.kv_indices[..., :0])
    functions: dict[str, Callable[[], object]] = {}
    for tiling in (choose_tiling(dim, 2, BLOCK, BLOCK), *(Tiling(*numbers) for numbers in TILINGS)):
        call = lambda t=tiling: block_attention_cuda(q, k, v, lists, BLOCK, BLOCK, False, dim**-0.5, t)  # noqa: E731
        try:
            call()
        except Exception as error:  # a tiling that does not fit this GPU is a result, too
            yield {"dim": dim, "tiling": str(tuple(tiling)), "TFLOP/s": type(error).__name__}
            continue
        functions[str(tuple(tiling))] = call
    flop = 4 * 16 * tokens**2 * dim
    seconds = compare(functions, repeats=repeats, warmup=2, synchronize=torch.cuda.synchronize)
    for name, times in seconds.items():
        yield {"dim": dim, "tiling": name, "TFLOP/s": flop / statistics.median(times) / 1e12}


def stripe_index(tokens: int, heads: int, kept: int) -> SpanIndex:
    """An anchor region (first block, the block before a group of 16 and the group) and random stripes."""
    n = tokens // BLOCK
    block = torch.arange(n)
    start = (block // 16 * 16 * BLOCK - BLOCK).clamp(min=BLOCK)
    stop = torch.maximum((block + 1) * BLOCK, start)
    first = torch.stack([torch.zeros(n).long(), torch.full((n,), BLOCK)], -1)
    spans = torch.stack([first, torch.stack([start, stop], -1)], 1)[None, None]
    groups = -(-n // 16)
    generator = torch.Generator().manual_seed(2)
    columns = torch.full((1, heads, groups, kept), 0)
    counts = torch.zeros(1, heads, groups, dtype=torch.int64)
    for g in range(1, groups):
        room = g * 16 * BLOCK - 2 * BLOCK
        count = min(kept, room)
        for h in range(heads):
            choice = torch.randperm(room, generator=generator)[:count].sort().values
            columns[0, h, g, :count] = choice + BLOCK
        counts[0, :, g] = count
    parts = [x.int().cuda() for x in (spans, columns, counts)]
    return SpanIndex(*parts, block_size=BLOCK, group=16)


def stripe_row(tokens: int, repeats: int) -> Row:
    """Causal, 8 heads of 128: region and 1,024 stripes a group, against dense flash attention."""
    q, k, v = normal("cuda", torch.bfloat16, 1, 8, tokens, 128)
    index = stripe_index(tokens, 8, 1024)
    arguments = (index.spans, index.columns, index.counts, BLOCK, 16, True, 0, 128**-0.5)
    functions: dict[str, Callable[[], object]] = {
        "sdpa": lambda: flash(q, k, v, True),
        "ours": lambda: span_attention(q, k, v, index),
        "kernel": lambda: torch.ops.sparsebook.span_attention(q, k, v, *arguments),
    }
    seconds = compare(functions, repeats=repeats, warmup=2, synchronize=torch.cuda.synchronize)
    row = summary(seconds, index.density(tokens, tokens, causal=True), tokens=tokens)
    row["sdpa / ours"] = paired_median_ratio(seconds, "sdpa", "ours")
    return row


def run_cuda(repeats: int, with_flex: bool) -> dict[str, list[Row]]:
    print(torch.cuda.get_device_name(), torch.__version__, platform.python_version())
    tables: dict[str, list[Row]] = {}
    tables["tilings"] = [row for dim in (64, 128) for row in tiling_rows(8192, dim, repeats)]
    show(
        "density 1 under several tilings, 16 heads, 8,192 tokens, bf16 (the first is chosen)",
        tables["tilings"],
    )
    blocks = [row for dim in (64, 128) for row in cuda_rows(8192, dim, repeats, with_flex)]
    blocks += list(cuda_rows(32_768, 128, max(5, repeats // 4), False))
    tables["blocks"] = blocks
    show("16 heads, bf16, blocks of 128 against flash-SDPA; times in ms", blocks)
    lengths = (16_384, 65_536, 131_072)
    tables["stripes"] = [stripe_row(tokens, max(5, repeats // 4)) for tokens in lengths]
    show("stripes: 8 heads of 128, bf16, causal, step 16; times in ms", tables["stripes"])
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--no-flex", action="store_true", help="leave out FlexAttention (slow to compile)")
    options = parser.parse_args()
    if options.device == "cpu":
        tables = {"blocks": run_cpu()}
    else:
        tables = run_cuda(options.repeats, not options.no_flex)
    if "OUT" in os.environ:
        path = Path(os.environ["OUT"]) / f"block_attention_{options.device}.json"
        path.write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
