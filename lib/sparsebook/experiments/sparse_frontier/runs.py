"""The experiments: each returns a tidy table (experiment, method, seed, metric, value, unit, its knobs)."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sparsebook.attention.costs import attention_cost, quest_index_cost, vertical_slash_index_cost
from sparsebook.attention.metrics import output_error
from sparsebook.attention.sparse_frontier import (
    DECODE,
    PREFILL,
    BlockSparse,
    EvictSnapKV,
    FlexPrefill,
    Quest,
    Streaming,
    Windows,
    attend_decode,
    attend_prefill,
    dense_pattern,
    fit_knob,
    random_decode_mask,
    random_prefill_mask,
)
from sparsebook.experiments.sparse_frontier.readers import Reader, Reading
from sparsebook.experiments.sparse_frontier.scales import QWEN, Config
from sparsebook.kernels.block_attention import SpanIndex

Rows = list[dict[str, Any]]
Stages = dict[str, Callable[[], pd.DataFrame]]
Knobs = dict[tuple[str, float], dict[str, Any]]

HIGH = (0.8, 0.9)
"""Sparsities of the claims about orderings on text."""
COST_LENGTHS = (4_096, 8_192, 16_384, 32_768, 65_536, 131_072)
SHARES = {16_384: 40, 65_536: 68, 128_000: 80}
"""Printed: attention's share of the prefill FLOPs in per cent (Figure 12); 128k taken as 128,000."""
GAINS = {16_384: 1.5, 65_536: 2.2, 128_000: 2.8}
"""Printed: how many times cheaper prefilling gets at a fifth of the density (Figure 12)."""
CACHE_SHARES = {1: (7, 35), 8: (35, 80), 64: (80, 97)}
"""Printed: share of keys and values in a decoding step's reads at 16k and 128k, per batch (Figure 13)."""
CACHE_GAINS = (2.8, 4.7)
"""Printed: how many times fewer reads at a fifth of the density, batch 64, 16k and 128k."""


def tidy(
    experiment: str, method: str, seed: int, metrics: Mapping[str, tuple[Any, str]], **knobs: Any
) -> Rows:
    """Rows of one measurement."""
    head = {"experiment": experiment, "method": method, "seed": seed}
    return [
        head | {"metric": metric, "value": float(value), "unit": unit} | knobs
        for metric, (value, unit) in metrics.items()
    ]


def run(config: Config, stages: Stages, experiment: str) -> pd.DataFrame:
    """All stages of an experiment; at full and paper scale each is kept, so that a run can be resumed."""
    if config.scale in ("full", "paper"):
        from sparsebook.recorded import run_stages

        # What a text gives does not depend on which others are read.
        own = asdict(replace(config, texts=(), runs=()))
        return run_stages("sparse_frontier", experiment, stages, parameters=own)
    return pd.concat([compute() for compute in stages.values()], ignore_index=True)


# The cost model ------------------------------------------------------------------------------------------


def run_costs(config: Config) -> pd.DataFrame:
    """Shares and gains of the four Qwen2.5 models by Equations 3 and 8, exact: Figures 12 and 13."""
    out: Rows = []
    for length in sorted({*COST_LENGTHS, *SHARES}):
        for name, model in QWEN.items():
            dense, sparse = (attention_cost(model, length, density=d) for d in (1.0, 0.2))
            share = dense.attention_share
            metrics = {
                "share": (share, "fraction"),
                "gain": (dense.total / sparse.total, "ratio"),
                "gain_if_projections_shrink": (1 / (1 - 0.8 * share), "ratio"),
            }
            out += tidy("costs", name, config.seed, metrics, phase="prefill", n_tokens=length)
            for batch in CACHE_SHARES:
                for weights in ("grouped", "printed"):
                    out += _decode_costs(config, name, length, batch, weights)
    return pd.DataFrame(out)


def _decode_costs(config: Config, name: str, length: int, batch: int, weights: Any) -> Rows:
    dense, sparse = (
        attention_cost(QWEN[name], length, density=d, batch=batch, phase="decode", projections=weights)
        for d in (1.0, 0.2)
    )
    metrics = {"share": (dense.cache_share, "fraction"), "gain": (dense.total / sparse.total, "ratio")}
    knobs = {"phase": "decode", "n_tokens": length, "batch": batch, "projections": weights}
    return tidy("costs", name, config.seed, metrics, **knobs)


def run_index_costs(config: Config) -> pd.DataFrame:
    """What finding the pattern costs beside what it saves: Vertical-Slash and Quest on Qwen2.5 7B."""
    model, w, out = QWEN["7B"], Windows(), []
    for length in COST_LENGTHS[2:]:
        dense = attention_cost(model, length)
        lines = round(0.1 * length / 4)
        index = vertical_slash_index_cost(model, length, window=w.observed, n_vertical=lines, n_slash=lines)
        reads = attention_cost(model, length, batch=64, phase="decode")
        pages = quest_index_cost(model, length, page_size=w.page, batch=64)
        metrics = {
            "vertical_slash": (index / dense.attention, "fraction"),
            "quest": (pages / reads.attention, "fraction"),
        }
        out += tidy("index_costs", "7B", config.seed, metrics, n_tokens=length)
    return pd.DataFrame(out)


# Knobs ---------------------------------------------------------------------------------------------------


def run_knobs(config: Config) -> pd.DataFrame:
    """The paper's Table 3 for these lengths: knobs of the prefilling methods, set on texts kept apart."""
    lengths = sorted({*config.lengths, *config.likelihood_lengths})
    stages: Stages = {f"{n} tokens": partial(_knobs, config, n) for n in lengths}
    return run(config, stages, "knobs")


def _knobs(config: Config, n_tokens: int) -> pd.DataFrame:
    reader, windows = config.reader(), config.windows_for(n_tokens)
    readings = [reader.read(text, n_tokens) for text in config.calibration]
    heads = [(q, k) for reading in readings for q, k, _ in reading.heads.values()]
    out: Rows = []
    for cls in PREFILL:
        method = cls(windows)
        # Blocks and windows are as many whatever the input says: one head tells their density.
        sample = heads[:1] if cls in (BlockSparse, Streaming) else heads
        for sparsity in config.sparsities:
            knob = fit_knob(method, sample, sparsity)
            if knob is not None:
                shares = [
                    method.pattern(q, k, **knob).density(n_tokens, n_tokens, causal=True) for q, k in sample
                ]
                metrics = {"density": (np.mean(shares), "fraction")}
                more = {"n_tokens": n_tokens, "sparsity": sparsity, "knob": json.dumps(knob)}
                out += tidy("knobs", method.name, config.seed, metrics, **more)
    return pd.DataFrame(out)


def knobs_of(table: pd.DataFrame, n_tokens: int) -> Knobs:
    """(method, sparsity) -> knob at a length; what cannot be had is not there."""
    own = table[table.n_tokens == n_tokens]
    rows = zip(own.method, own.sparsity, own.knob, strict=True)
    return {(method, sparsity): json.loads(knob) for method, sparsity, knob in rows}


# Attention mass and output error on text -----------------------------------------------------------------


def run_recall(config: Config, knobs: pd.DataFrame) -> pd.DataFrame:
    """Attention mass that a pattern holds, relative error of the output, density computed: one row a text."""
    stages: Stages = {
        f"{n} tokens, text {text}": partial(_recall, config, knobs_of(knobs, n), text, n)
        for n in config.lengths
        for text in config.texts
    }
    return run(config, stages, "recall")


def _recall(config: Config, knobs: Knobs, text: int, n_tokens: int) -> pd.DataFrame:
    reader = config.reader()
    reading = reader.read(text, n_tokens)
    return pd.DataFrame(recall_rows(config, reading, knobs, text, reader.judged))


def recall_rows(config: Config, reading: Reading, knobs: Knobs, text: int, judged: int) -> Rows:
    """Every method at every sparsity on the heads of one reading, mean over layers, heads and queries."""
    n, windows = reading.n_tokens, config.windows_for(reading.n_tokens)
    found: dict[tuple[str, str, float], list[tuple[float, float, float]]] = {}
    for layer, (q, k, v) in reading.heads.items():
        generator = torch.Generator().manual_seed(1_000 * text + layer)
        dense, total = attend_prefill(q, k, v, dense_pattern(n))
        for name, sparsity, pattern in _prefill_patterns(config, windows, knobs, q, k, generator):
            out, mass = attend_prefill(q, k, v, pattern)
            quality = _held(mass, total), float(output_error(dense, out).mean())
            found.setdefault((name, "prefill", sparsity), []).append((*quality, _share(pattern, n)))
        split, new = n - judged, q[:, :, n - judged :]
        for name, sparsity, keep in _decode_masks(
            config, windows, q[:, :, :split], k[:, :, :split], new, generator
        ):
            out, mass = attend_decode(new, k, v, keep)
            quality = _held(mass, total[..., split:]), float(output_error(dense[:, :, split:], out).mean())
            share = float(keep.float().mean())
            found.setdefault((name, "decode", sparsity), []).append((*quality, share))
    rows: Rows = []
    for (name, phase, sparsity), values in found.items():
        recall, error, share = np.mean(values, axis=0)
        metrics = {
            "recall": (recall, "fraction"),
            "error": (error, "fraction"),
            "density": (share, "fraction"),
        }
        rows += tidy("recall", name, text, metrics, phase=phase, sparsity=sparsity, n_tokens=n)
    return rows


def _prefill_patterns(
    config: Config, windows: Windows, knobs: Knobs, q: Tensor, k: Tensor, generator: torch.Generator
) -> Any:
    for sparsity in config.sparsities:
        for cls in PREFILL:
            method = cls(windows)
            if (method.name, sparsity) in knobs:
                yield method.name, sparsity, method.pattern(q, k, **knobs[method.name, sparsity])
        if q.shape[2] in config.random_lengths and sparsity in config.random_sparsities:
            yield "random", sparsity, random_prefill_mask(q, 1 - sparsity, generator)


def _decode_masks(
    config: Config, windows: Windows, q: Tensor, k: Tensor, new: Tensor, generator: torch.Generator
) -> Any:
    for sparsity in config.sparsities:
        for cls in DECODE:
            yield cls.name, sparsity, cls(windows).keep(q, k, new, sparsity=sparsity)
        yield "random", sparsity, random_decode_mask(new, k.shape[2], sparsity, generator)


def _held(mass: Tensor, total: Tensor) -> float:
    """Share of the attention mass from logarithms of sums of exponentials."""
    return float(torch.exp(mass - total).clamp(max=1).mean())


def _share(pattern: SpanIndex | Tensor, n: int) -> float:
    if isinstance(pattern, SpanIndex):
        return pattern.density(n, n, causal=True)
    return float(pattern.sum((-2, -1)).double().mean()) / (n * (n + 1) / 2)


# Likelihood on text --------------------------------------------------------------------------------------


def run_likelihood(config: Config, knobs: pd.DataFrame) -> pd.DataFrame:
    """Loss of the last tokens of a text, under every method and dense."""
    stages: Stages = {
        f"{n} tokens, text {text}": partial(_likelihood, config, knobs_of(knobs, n), text, n)
        for n in config.likelihood_lengths
        for text in config.likelihood_sample
    }
    return run(config, stages, "likelihood")


def _likelihood(config: Config, knobs: Knobs, text: int, n_tokens: int) -> pd.DataFrame:
    reader = config.reader()
    reading = reader.read(text, n_tokens)
    windows = config.windows_for(n_tokens)
    out = tidy("likelihood", "dense", text, {"loss": (reading.loss, "nats")}, n_tokens=n_tokens, sparsity=0.0)
    same = _same_as_vertical_slash(knobs)
    for name, sparsity, attend in _prefill_functions(config, windows, knobs, text, n_tokens):
        metrics = {"loss": (reader.prefill_loss(reading, attend), "nats")}
        methods = [name, "flexprefill"] if name == "vertical_slash" and sparsity in same else [name]
        for method in methods:
            more = {"phase": "prefill", "sparsity": sparsity, "n_tokens": n_tokens}
            out += tidy("likelihood", method, text, metrics, **more)
    for name, sparsity, attend in decode_functions(config, windows, reading, text):
        loss = reader.decode_loss(reading, attend)
        more = {"phase": "decode", "sparsity": sparsity, "n_tokens": n_tokens}
        out += tidy("likelihood", name, text, {"loss": (loss, "nats")}, **more)
    return pd.DataFrame(out)


def _prefill_functions(config: Config, windows: Windows, knobs: Knobs, text: int, n_tokens: int) -> Any:
    same = _same_as_vertical_slash(knobs)
    for (name, sparsity), knob in knobs.items():
        if sparsity not in config.likelihood_sparsities:
            continue
        known = name == "flexprefill" and sparsity in same
        if _is_measured(config, n_tokens, name, sparsity) and not known:
            method = next(cls(windows) for cls in PREFILL if cls.name == name)
            yield name, sparsity, partial(_attend_pattern, method, knob)
    if n_tokens in config.random_lengths:
        for sparsity in config.random_sparsities:
            if _is_measured(config, n_tokens, "random", sparsity):
                generator = torch.Generator().manual_seed(1_000 * text + 7)
                yield "random", sparsity, partial(_attend_random, 1 - sparsity, generator)


def _same_as_vertical_slash(knobs: Knobs) -> set[float]:
    """Sparsities where FlexPrefill has no adaptive part and Vertical-Slash's lines: the same computation."""
    return {
        sparsity
        for (name, sparsity), knob in knobs.items()
        if name == "flexprefill"
        and knob["alpha"] == 0
        and knobs.get(("vertical_slash", sparsity)) == {"n": knob["min_budget"]}
    }


CLAIMED: dict[str, dict[float, tuple[str, ...]]] = {
    "longest": {
        0.8: ("vertical_slash", "flexprefill", "block_sparse", "streaming"),
        0.9: ("vertical_slash", "flexprefill", "block_sparse", "streaming"),
    },
    "shorter": {0.8: ("vertical_slash", "flexprefill", "block_sparse")},
}
"""Prefilling methods whose likelihood the claims ask for: each costs a pass of the model."""


def _is_measured(config: Config, n_tokens: int, name: str, sparsity: float) -> bool:
    """Whether a cell of the likelihood is worth its pass at this scale."""
    if not config.few_cells:
        return True
    longest = n_tokens == max(config.likelihood_lengths)
    if name == "decode":
        return longest or sparsity in CLAIMED["shorter"]
    return name in CLAIMED["longest" if longest else "shorter"].get(sparsity, ())


def _attend_pattern(method: Any, knob: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
    return attend_prefill(q, k, v, method.pattern(q, k, **knob))[0]


def _attend_random(
    density: float, generator: torch.Generator, q: Tensor, k: Tensor, v: Tensor, layer: int
) -> Tensor:
    return attend_prefill(q, k, v, random_prefill_mask(q, density, generator))[0]


def decode_functions(config: Config, windows: Windows, reading: Reading, text: int) -> Any:
    """(method, sparsity, attend) for every decoding method; what is kept is chosen by the prompt."""
    for sparsity in config.likelihood_sparsities:
        if not _is_measured(config, reading.n_tokens, "decode", sparsity):
            continue
        for cls in DECODE:
            yield cls.name, sparsity, partial(attend_kept, cls(windows), sparsity, reading)
        if not config.few_cells:
            generator = torch.Generator().manual_seed(1_000 * text + 13)
            yield "random", sparsity, partial(attend_any, generator, sparsity)


def attend_kept(
    method: Any, sparsity: float, reading: Reading, q: Tensor, k: Tensor, v: Tensor, layer: int
) -> Tensor:
    prompt = k.shape[2] - q.shape[2]
    before = reading.heads[layer][0][:, :, :prompt]
    return attend_decode(q, k, v, method.keep(before, k[:, :, :prompt], q, sparsity=sparsity))[0]


def attend_any(
    generator: torch.Generator, sparsity: float, q: Tensor, k: Tensor, v: Tensor, layer: int
) -> Tensor:
    keep = random_decode_mask(q, k.shape[2] - q.shape[2], sparsity, generator)
    return attend_decode(q, k, v, keep)[0]


# Ablations on text ---------------------------------------------------------------------------------------


def run_ablation(config: Config) -> pd.DataFrame:
    """Attention mass held while one fixed parameter moves: block, page, window, pool, floor."""
    knobs = run(config, {"knobs": partial(_ablation_knobs, config)}, "ablation_knobs")
    texts = config.texts[: config.ablation_texts]
    stages: Stages = {f"text {text}": partial(_ablate, config, knobs, text) for text in texts}
    return run(config, stages, "ablation")


def _ablation_knobs(config: Config) -> pd.DataFrame:
    reading = config.reader().read(config.calibration[0], config.ablation_length)
    apart = [(q, k) for q, k, _ in reading.heads.values()]
    out: Rows = []
    for name, level, method in _prefill_arms(config.windows_for(config.ablation_length)):
        sparsity = ABLATION_SPARSITY[name]
        knob = fit_knob(method, apart, sparsity)
        if knob is not None:
            more = {"level": float(level), "knob": json.dumps(knob)}
            out += tidy("ablation_knobs", name, config.seed, {"budget": (1 - sparsity, "fraction")}, **more)
    return pd.DataFrame(out)


ABLATION_SPARSITY = {"block": 0.5, "page": 0.8, "window": 0.9, "pool": 0.9, "floor": 0.5}
"""Budgets that every level of a parameter can meet at 1,024 tokens, where three blocks of 64 are a third."""


def _ablate(config: Config, knobs: pd.DataFrame, text: int) -> pd.DataFrame:
    n, reader = config.ablation_length, config.reader()
    reading = reader.read(text, n)
    fitted = {
        (name, level): json.loads(knob) for name, level, knob in knobs[["method", "level", "knob"]].to_numpy()
    }
    w, out = config.windows_for(n), []
    for knob, level, method in _decode_arms(w):
        measure = partial(_decode_recall, method, ABLATION_SPARSITY[knob], reader)
        out += _mean_recall(reading, text, knob, level, measure)
    for knob, level, method in _prefill_arms(w):
        if (knob, level) in fitted:
            measure = partial(_prefill_recall, method, fitted[knob, level])
            out += _mean_recall(reading, text, knob, level, measure)
    generator = torch.Generator().manual_seed(text)
    for knob, sparsity in ABLATION_SPARSITY.items():
        decode = knob in ("page", "window", "pool")
        if decode or n in config.random_lengths:
            measure = partial(_random_recall, sparsity, decode, reader, generator)
            out += _mean_recall(reading, text, f"random_{knob}", 0, measure)
    return pd.DataFrame(out)


def _decode_arms(w: Windows) -> Any:
    """(parameter, its level as a multiple or size, method)."""
    for factor in (0.25, 0.5, 1, 2, 4):
        yield "window", factor, EvictSnapKV(replace(w, observed=max(1, round(w.observed * factor))))
    for pool in (1, 7, 21, 63):
        yield "pool", pool, EvictSnapKV(replace(w, pool=pool))
    for times in (1, 2, 4):
        yield "page", 16 * times, Quest(replace(w, page=w.page * times))


def _prefill_arms(w: Windows) -> Any:
    for times in (1, 2, 4):
        yield "block", 16 * times, BlockSparse(replace(w, block=w.block * times))
    for factor in (0.25, 0.5, 1, 2):
        floor = max(1, round(w.floor * factor))
        yield "floor", factor, FlexPrefill(replace(w, floor=floor))


def _mean_recall(
    reading: Reading, text: int, knob: str, level: float | int, measure: Callable[..., Any]
) -> Rows:
    recall, share = np.mean([measure(*heads) for heads in reading.heads.values()], axis=0)
    metrics = {"recall": (recall, "fraction"), "density": (share, "fraction")}
    return tidy("ablation", knob, text, metrics, level=float(level))


def _decode_recall(
    method: Any, sparsity: float, reader: Reader, q: Tensor, k: Tensor, v: Tensor
) -> tuple[float, float]:
    split = q.shape[2] - reader.judged
    new = q[:, :, split:]
    keep = method.keep(q[:, :, :split], k[:, :, :split], new, sparsity=sparsity)
    return _decode_held(new, k, v, keep), float(keep.float().mean())


def _decode_held(new: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> float:
    everything = attend_decode(new, k, v, torch.ones_like(keep))[1]
    return _held(attend_decode(new, k, v, keep)[1], everything)


def _prefill_recall(
    method: Any, knob: dict[str, Any], q: Tensor, k: Tensor, v: Tensor
) -> tuple[float, float]:
    n, pattern = q.shape[2], method.pattern(q, k, **knob)
    total = attend_prefill(q, k, v[..., :1].contiguous(), dense_pattern(n))[1]
    return _held(attend_prefill(q, k, v[..., :1].contiguous(), pattern)[1], total), _share(pattern, n)


def _random_recall(
    sparsity: float,
    decode: bool,
    reader: Reader,
    generator: torch.Generator,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> tuple[float, float]:
    n = q.shape[2]
    if decode:
        new = q[:, :, n - reader.judged :]
        keep = random_decode_mask(new, n - reader.judged, sparsity, generator)
        return _decode_held(new, k, v, keep), 1 - sparsity
    mask = random_prefill_mask(q, 1 - sparsity, generator)
    total = attend_prefill(q, k, v, dense_pattern(n))[1]
    return _held(attend_prefill(q, k, v, mask)[1], total), 1 - sparsity


# Fresh articles ------------------------------------------------------------------------------------------


def run_fresh(config: Config, knobs: pd.DataFrame) -> pd.DataFrame:
    """Articles that were not asked before, for what the first ones left undecided; `experiment` says what.

    Attention mass at the sparsities of the claims, SnapKV's pool, and the likelihood of decoding. Not that of
    prefilling: every cell of it costs a pass of the model.
    """
    stages: Stages = {f"text {text}": partial(_fresh, config, knobs, text) for text in config.fresh}
    return run(config, stages, "fresh")


def _fresh(config: Config, knobs: pd.DataFrame, text: int) -> pd.DataFrame:
    reader, longest = config.reader(), max(config.likelihood_lengths)
    parts = [_pools(config, text), _likelihood(config, {}, text, longest)]
    for n in config.likelihood_lengths:
        few = replace(config, sparsities=HIGH if n == longest else HIGH[:1], random_lengths=())
        rows = recall_rows(few, reader.read(text, n), knobs_of(knobs, n), text, reader.judged)
        parts.append(pd.DataFrame(rows))
    return pd.concat(parts, ignore_index=True)


def _pools(config: Config, text: int) -> pd.DataFrame:
    """The rows of the ablation that compare pools."""
    reading, out = config.reader().read(text, config.ablation_length), []
    for knob, level, method in _decode_arms(config.windows_for(config.ablation_length)):
        if knob == "pool":
            measure = partial(_decode_recall, method, ABLATION_SPARSITY[knob], config.reader())
            out += _mean_recall(reading, text, knob, level, measure)
    return pd.DataFrame(out)


# One live cell -------------------------------------------------------------------------------------------


def run_live(config: Config, knobs: pd.DataFrame) -> pd.DataFrame:
    """One text that is in no table, at the shortest length: attention mass held by every method."""
    n, reader = config.lengths[0], config.reader()
    few = replace(config, sparsities=(LIVE_SPARSITY,), random_lengths=())
    reading = reader.read(config.live, n)
    rows = recall_rows(few, reading, knobs_of(knobs, n), config.live, reader.judged)
    return pd.DataFrame(rows).assign(experiment="live")


LIVE_SPARSITY = 0.8


def fingerprint(n_tokens: int = 128, text: int = 5) -> list[float]:
    """Mass held and loss of every method on one planted text: the first steps of every experiment."""
    config = Config.at("smoke", sparsities=(0.8,), lengths=(n_tokens,), likelihood_lengths=(n_tokens,))
    knobs = _knobs(config, n_tokens)
    reading = config.reader().read(text, n_tokens)
    rows = recall_rows(config, reading, knobs_of(knobs, n_tokens), text, config.judged)
    losses = _likelihood(config, knobs_of(knobs, n_tokens), text, n_tokens)
    return [*(row["value"] for row in rows), *losses["value"]]
