"""Time of whole methods at equal recall, and of the parts of AnchorAttention, in processes of their own."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from sparsebook.attention.anchor_attention import (
    anchor_attention,
    anchor_pattern,
    anchor_state,
    stripe_select,
)
from sparsebook.evaluation.timing import compare, in_processes, paired_ratios
from sparsebook.experiments.anchor_attention import selections
from sparsebook.experiments.anchor_attention.inputs import Heads, planted_heads
from sparsebook.experiments.anchor_attention.runs import Rows, budget_for, heads_of, run, tidy
from sparsebook.experiments.anchor_attention.scales import Config
from sparsebook.experiments.anchor_attention.selections import Choice, Judge
from sparsebook.kernels.block_attention import SpanIndex, span_attention, stripe_attention

METHODS = ("anchor", "flexprefill", "block_topk")
"""Whole methods: identification and attention on the book's kernels."""

REPEATED = 20
"""How often a control runs the method, or its identification: on short inputs, where all calls cost about the
same, nothing else is surely slower."""

SEARCHED = {"anchor": (-4.0, 40.0), "flexprefill": (0.01, 1.0), "block_topk": (0.0, 1.0)}
"""Where the budget that reaches the recall is sought; the upper end computes everything."""


def run_speed(config: Config) -> pd.DataFrame:
    """Every method at the smallest budget that reaches the recall on another input, timed in processes.

    The inputs are planted heads and the heads of a text, each at several lengths.
    """
    return run(config, {"speed": partial(_speed, config)}, "speed")


def _speed(config: Config) -> pd.DataFrame:
    out: Rows = []
    with tempfile.TemporaryDirectory(prefix="sparsebook-anchor-") as folder:
        cases = [_case(config, Path(folder), "planted", n) for n in config.speed_planted]
        cases += [_case(config, Path(folder), "text", n) for n in reversed(config.speed_text)]
        for case in cases:
            out += _reached(config, case)
        for process, rows in enumerate(_in_processes(config, cases)):
            out += [row | {"process": process} for row in rows]
    return pd.DataFrame(out)


def _in_processes(config: Config, cases: list[dict[str, Any]]) -> list[Rows]:
    arguments: dict[str, Any] = {"cases": cases, "repeats": config.repeats, "device": config.device}
    if config.processes == 0:
        return [speed_once(**arguments) for _ in range(config.in_process)]
    target = "sparsebook.experiments.anchor_attention.speed:speed_once"
    return in_processes(target, arguments, config.processes, threads=config.threads, timeout=1800)


def inputs(config: Config, kind: str, n: int, tuning: bool) -> Heads:
    """What is timed, or what settings are chosen on."""
    if kind == "planted":
        return planted_heads(n, config.seed * 1000 + (901 if tuning else 900))
    if config.source == "planted":  # four query heads for one key head, as in a small language model
        q = planted_heads(n, config.seed * 1000 + (903 if tuning else 902), heads=4, dim=32)
        return Heads(q.q, q.k[:, :1], q.v[:, :1], q.scale)
    return heads_of(config, config.tuning_text + (2 if tuning else 0), n)


def pattern_of(heads: Heads, method: str, budget: float, block: int, step: int) -> SpanIndex:
    """What a method computes with a budget."""
    if method == "anchor":
        return anchor_pattern(heads.q, heads.k, theta=budget, block_size=block, step=step, scale=heads.scale)
    if method == "flexprefill":
        return selections.flexprefill(heads, budget, block)
    return selections.block_topk(heads, budget, block)


def _case(config: Config, folder: Path, kind: str, n: int) -> dict[str, Any]:
    """One input with the budgets that reach the recall on the tuning input, and a file that holds it."""
    block, step = config.speed_block, config.speed_step
    tuning = inputs(config, kind, n, tuning=True)
    judge = Judge(tuning, block, step)
    budgets = {method: _budget(config, judge, method) for method in METHODS}
    if config.sabotaged:
        budgets["anchor"] = float("inf")
    heads = inputs(config, kind, n, tuning=False)
    path = folder / f"{kind}-{n}.pt"
    tiles = best_tiles(Judge(heads, block, step), config.flex_block, config.target)
    torch.save({"q": heads.q, "k": heads.k, "v": heads.v, "scale": heads.scale, "tiles": tiles}, path)
    return {
        "kind": kind, "n": n, "path": str(path), "budgets": budgets, "block": block, "step": step,
        "flex_block": config.flex_block, "compiled": config.scale != "smoke", "seed": config.seed,
        "sabotaged": config.sabotaged,
    }  # fmt: skip


def _budget(config: Config, judge: Judge, method: str) -> float:
    """The smallest budget whose recall on the tuning input reaches the target with a little to spare."""
    wanted = config.target + 0.005

    class Reached:
        """Looks like a pattern to `budget_for`: its density is the recall."""

        def __init__(self, budget: float) -> None:
            self.budget = budget

        def density(self, n: int, n_keys: int, *, causal: bool) -> float:
            index = pattern_of(judge.heads, method, self.budget, config.speed_block, config.speed_step)
            return judge.judge(Choice(method, self.budget, index, False))["mass"][0]

    return budget_for(Reached, judge.n_tokens, wanted, *SEARCHED[method], steps=7)


def best_tiles(judge: Judge, block: int, target: float) -> Tensor:
    """For each block of queries the fewest blocks of keys that hold the target's share of its softmax.

    Chosen by the true softmax, [layers, heads, rows, columns]: no block mask for FlexAttention is better. The
    diagonal is always among them.
    """
    heads, n = judge.heads, judge.n_tokens
    lse, out = judge.dense.lse(), []
    for start in range(0, n, block):
        rows = slice(start, min(start + block, n))
        logits = selections.grouped_logits(heads, rows) - lse[:, :, rows, None]
        logits = logits.masked_fill(torch.arange(n) > torch.arange(n)[rows, None], -torch.inf)
        mass = torch.nn.functional.pad(logits.exp().mean(2), (0, -n % block)).unflatten(-1, (-1, block))
        mass = mass.sum(-1)
        mass[..., start // block] += 2  # first of all
        ordered, order = mass.sort(-1, descending=True)
        needed = (ordered.cumsum(-1) - ordered) < target + 2
        out.append(torch.zeros_like(mass, dtype=torch.bool).scatter(-1, order, needed))
    return torch.stack(out, 2).tril()


def _reached(config: Config, case: dict[str, Any]) -> Rows:
    """Density and recall of what is timed, on the very input that is timed."""
    heads, tiles = _load(case["path"])
    judge = Judge(heads, case["block"], case["step"])
    out: Rows = []
    for method, budget in case["budgets"].items():
        index = pattern_of(heads, method, budget, case["block"], case["step"])
        found = judge.judge(Choice(method, budget, index, False))
        out += tidy(
            "reached", method, config.seed, found, kind=case["kind"], n=case["n"], setting=min(budget, 1e9)
        )
    from sparsebook.attention.patterns import block_table_pattern

    index = block_table_pattern(tiles, case["n"], block_size=case["flex_block"])
    found = judge.judge(Choice("flex", 0.0, index, False))
    return out + tidy("reached", "flex", config.seed, found, kind=case["kind"], n=case["n"], setting=0.0)


def _load(path: str) -> tuple[Heads, Tensor]:
    stored = torch.load(path, weights_only=True)
    return Heads(stored["q"], stored["k"], stored["v"], stored["scale"]), stored["tiles"]


# In a process of its own ---------------------------------------------------------------------------------


def speed_once(cases: list[dict[str, Any]], repeats: int, device: str = "cpu") -> Rows:
    """Time all methods on all inputs, interleaved; medians, and medians of the rounds' ratios."""
    out: Rows = []
    for case in cases:
        functions = _functions(case, device)
        synchronize = torch.cuda.synchronize if device != "cpu" else None
        with torch.no_grad():
            seconds = compare(functions, repeats, warmup=1, synchronize=synchronize)
        for method, spent in seconds.items():
            metrics = {
                "time": (np.median(spent) * 1e3, "ms"),
                "over_ours": (np.median(paired_ratios(seconds, method, "anchor")), "ratio"),
            }
            out += tidy("speed", method, case["seed"], metrics, kind=case["kind"], n=case["n"])
        parts = [np.array(seconds[f"anchor: {part}"]) for part in ("region", "identification", "stripes")]
        share = np.median(parts[1] / sum(parts))
        value = {"identification": (share, "fraction")}
        out += tidy("speed", "anchor", case["seed"], value, kind=case["kind"], n=case["n"])
    return out


def _functions(case: dict[str, Any], device: str) -> dict[str, Callable[[], object]]:
    heads, tiles = _load(case["path"])
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    q, k, v = (x.to(device, kind) for x in (heads.q, heads.k, heads.v))
    heads = Heads(q, k, v, heads.scale)
    rows = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(rows, 1) for x in (k, v))  # the rivals' own layout
    budgets, block, step, scale = case["budgets"], case["block"], case["step"], heads.scale

    def whole(method: str) -> object:
        index = pattern_of(heads, method, budgets[method], block, step)
        return span_attention(q, k, v, index, causal=True, scale=scale)

    def ours() -> object:
        outs = [
            anchor_attention(q, k, v, theta=theta, block_size=block, step=step, scale=scale)
            for _ in range(runs)
        ]
        return outs[-1]

    def identification() -> object:
        # The control of its share: nothing is pooled, over and over.
        pooled, blocks = (1, block * step) if case["sabotaged"] else (block, step)
        found = [
            stripe_select(q, k, state.m, theta=min(theta, 1e9), block_size=pooled, step=blocks, scale=scale)
            for _ in range(runs)
        ]
        return found[-1]

    runs = REPEATED if case["sabotaged"] else 1
    theta = budgets["anchor"]
    state = anchor_state(q, k, v, block_size=block, step=step, scale=scale)
    stripes = stripe_select(q, k, state.m, theta=theta, block_size=block, step=step, scale=scale)
    everything = selections.on_device_of(selections.everything(case["n"]), q)
    functions: dict[str, Callable[[], object]] = {
        "sdpa": lambda: scaled_dot_product_attention(q, keys, values, is_causal=True, scale=scale),
        "flex": _flex(case, q, keys, values, tiles, scale),
        "dense kernel": lambda: span_attention(q, k, v, everything, causal=True, scale=scale),
        "flexprefill": lambda: whole("flexprefill"),
        "block_topk": lambda: whole("block_topk"),
        "anchor": ours,
        "anchor: region": lambda: anchor_state(q, k, v, block_size=block, step=step, scale=scale),
        "anchor: identification": identification,
        "anchor: stripes": lambda: stripe_attention(
            q, k, v, stripes.coords, stripes.counts, group_size=block * step, state=state, scale=scale
        ),
    }
    return functions


def _flex(
    case: dict[str, Any], q: Tensor, keys: Tensor, values: Tensor, tiles: Tensor, scale: float
) -> Callable[[], object]:
    """Compiled FlexAttention over the tiles, or, uncompiled (in tests), SDPA under the same mask."""
    block, n = case["flex_block"], case["n"]
    if not case["compiled"]:
        dense = tiles.repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, :n, :n].tril()
        return lambda: scaled_dot_product_attention(q, keys, values, attn_mask=dense, scale=scale)
    rows = tiles.shape[2]
    diagonal = torch.eye(rows, dtype=torch.bool).expand_as(tiles)
    counts, blocks = _lists(tiles & diagonal, q.device)
    full_counts, full_blocks = _lists(tiles & ~diagonal, q.device)
    mask = BlockMask.from_kv_blocks(
        counts, blocks, full_counts, full_blocks, BLOCK_SIZE=block, mask_mod=_causal
    )
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, keys, values, block_mask=mask, scale=scale)


def _lists(table: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    order = table.int().argsort(dim=-1, descending=True, stable=True).int()
    return table.sum(-1).int().to(device), order.contiguous().to(device)


def _causal(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key
