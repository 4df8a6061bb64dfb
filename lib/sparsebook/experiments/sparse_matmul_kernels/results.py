"""The chapter's tables: measured or recorded, summed up, and turned into the numbers of its prose."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from sparsebook.experiments.sparse_matmul_kernels import runs
from sparsebook.experiments.sparse_matmul_kernels.figures import DENSE, LABELS, mean_ratios
from sparsebook.experiments.sparse_matmul_kernels.scales import Config
from sparsebook.experiments.sparse_matmul_kernels.step import run_step

CHAPTER = "spmm"
EXPERIMENTS: dict[str, Callable[[Config], pd.DataFrame]] = {
    "limits": runs.run_limits,
    "speed": runs.run_speed,
    "forms": runs.run_forms,
    "strips": runs.run_strips,
    "step": run_step,
    "patterns": runs.run_patterns,
    "processes": runs.run_processes,
}
NOT_MEASURED = "(not measured)"
WANTED = {0.8: 1.7, 0.9: 3.5, 0.95: 6.0}
"""Speed-up over the dense product that was asked for, by sparsity."""
BREAK_EVEN, STEP, WORST = 0.72, 10.0, 1.1
Tables = Mapping[str, pd.DataFrame]


def tables(config: Config) -> dict[str, pd.DataFrame]:
    """Every table of times: recorded ones at scale `book`, measured ones otherwise."""
    if config.scale == "book":
        from sparsebook.recorded import load

        return {name: load(CHAPTER, name).table for name in EXPERIMENTS}
    return {name: experiment(config) for name, experiment in EXPERIMENTS.items()}


def record(config: Config, only: tuple[str, ...] = tuple(EXPERIMENTS)) -> None:
    """Measure and keep the tables with the book."""
    from sparsebook.recorded import save

    for name in only:
        save(
            CHAPTER, name, EXPERIMENTS[name](config), parameters=config.record(), seeds=[config.seed],
            fingerprint_function="sparsebook.experiments.sparse_matmul_kernels.runs:fingerprint", rtol=1e-4,
        )  # fmt: skip


def break_even(line: pd.Series) -> float:
    """Sparsity at which a line of ratios passes 1; NaN if it does so below the first or above the last."""
    above = line[line >= 1]
    if above.empty or above.index[0] == line.index[0]:
        return math.nan
    high = above.index[0]
    low = line.index[line.index.get_loc(high) - 1]
    share = -math.log(line[low]) / (math.log(line[high]) - math.log(line[low]))
    return float(low + share * (high - low))


def _break_even(line: pd.Series) -> str:
    at = break_even(line)
    if not math.isnan(at):
        return f"{at:.0%}"
    return f"below {line.index[0]:.0%}" if line.iloc[0] >= 1 else f"above {line.index[-1]:.0%}"


def worst(speed: pd.DataFrame, method: str) -> pd.Series:
    """Our time over a method's, at its largest, with the layer where that is."""
    part = speed[(speed.method == method) & (speed.metric == "over_ours")]
    return part.loc[part.value.idxmin()]


def demands(found: Tables) -> pd.DataFrame:
    """The bar set before the kernel was written, and what was measured."""
    speed, lines = found["speed"], []
    for n, of_threads in mean_ratios(speed, "dense").groupby("threads"):
        ratios = of_threads.droplevel("threads")
        at = break_even(ratios)
        first = ratios.index[0] if ratios.iloc[0] >= 1 else math.inf
        at = first if math.isnan(at) else at
        lines.append((n, "break-even with dense, zeros (or fewer)", at, "at most", BREAK_EVEN))
        for sparsity, wanted in WANTED.items():
            lines.append(
                (n, f"dense over ours at {sparsity:.0%}", ratios.get(sparsity, math.nan), "at least", wanted)
            )
        for method in ("torch.sparse", "SciPy"):
            own = speed[speed.threads == n]
            least = mean_ratios(own, method).min()
            lines.append((n, f"{method} over ours, least mean", least, "at least", 1.0))
            lines.append(
                (n, f"ours over {method}, worst layer", 1 / worst(own, method).value, "at most", WORST)
            )
        lines.append((n, "masked dense over ours, training step", step_ratio(found, n), "at least", STEP))
    table = pd.DataFrame(lines, columns=["threads", "what", "measured", "bound", "wanted"])
    good = (table.measured <= table.wanted).where(table.bound == "at most", table.measured >= table.wanted)
    table["met"] = good.map({True: "yes", False: "no"}).where(table.measured.notna(), NOT_MEASURED)
    return table.round(2)


def step_ratio(found: Tables, threads: int) -> float:
    """Time of the masked dense step over ours."""
    step = found["step"]
    part = step[(step.metric == "over_ours") & (step.method == "masked dense") & (step.threads == threads)]
    return float(part.value.iloc[0]) if len(part) else math.nan


def speed_table(speed: pd.DataFrame) -> pd.DataFrame:
    """Geometric means of every method's time over ours, by threads and sparsity; the 7 x 7 layers apart."""
    columns = {}
    for small in (False, True):
        for method in ("dense", "conv2d", "torch.sparse", "SciPy", "bare"):
            line = mean_ratios(speed, method, small=small)
            name = "bare kernel" if method == "bare" else LABELS[method].replace(" (one thread)", "")
            columns["7 × 7 layers" if small else f"from {DENSE} pixels", name] = line
    table = pd.DataFrame(columns).round(2)
    table.index = pd.MultiIndex.from_tuples(
        [(n, f"{s:.0%}") for n, s in table.index], names=["threads", "zeros"]
    )
    return table


def limits_table(limits: pd.DataFrame) -> pd.DataFrame:
    """Rates of the machine; reads also as the operations that they can feed, two for four bytes."""
    part = limits.assign(value=limits.value / 1e9)
    wide = part.pivot_table(index=["metric", "method"], columns="threads", values="value", sort=False)
    rates, reads = wide.loc["rate"], wide.loc["bandwidth"]
    names = {"registers": "multiply-adds in registers", "MKL": "dense product, MKL",
             "oneDNN": "dense convolution, oneDNN"}  # fmt: skip
    rows = [(names[name], *[""] * len(row), *row.round(0).astype(int)) for name, row in rates.iterrows()]
    for name, row in reads.iterrows():
        label = "copy of 128 MiB, read and written" if name == "copy" else f"reads from {name} a thread"
        feeds = (row / 2).round(0).astype(int) if name != "copy" else [""] * len(row)
        rows.append((label, *row.round(0).astype(int), *feeds))
    heads = [
        f"{kind}, {n} thread{'s' if n > 1 else ''}" for kind in ("GB/s", "GFLOP/s") for n in wide.columns
    ]
    return pd.DataFrame(rows, columns=["limit", *heads]).set_index("limit")


def step_table(step: pd.DataFrame) -> pd.DataFrame:
    """Microseconds and bytes of the training step."""
    seconds = step[step.metric == "seconds"].pivot_table(index="method", columns="threads", values="value")
    table = (seconds * 1e6).round(0).astype(int)
    table.columns = [f"µs, {n} thread{'s' if n > 1 else ''}" for n in table.columns]
    for metric, name in (("weights", "kB of weights and index or mask"), ("peak", "kB the process grows by")):
        sizes = step[step.metric == metric].groupby("method")["value"].median() / 1e3
        table[name] = sizes.round(0).astype(int)
    return table.loc[["ours", "masked dense"]].rename_axis(None)


def patterns_table(patterns: pd.DataFrame) -> pd.DataFrame:
    """Geometric means over the layers: times over ours, and bytes over the dense weights'."""
    ratios = patterns[patterns.metric == "over_ours"]
    logs = ratios.assign(value=np.log(ratios.value)).groupby(["pattern", "threads", "method"], sort=False)
    wide = logs["value"].mean().map(np.exp).unstack("method")
    sizes = (
        patterns[patterns.metric == "bytes"].groupby(["pattern", "method"])["value"].sum().unstack("method")
    )
    table = pd.DataFrame({
        "dense over N:M": wide["dense"], "single entries over N:M": wide["single entries"],
    }).round(2)  # fmt: skip
    for method, name in (("ours", "bytes, N:M"), ("single entries", "bytes, single entries")):
        share = sizes[method] / sizes["dense"]
        table[name] = [f"{share[pattern]:.0%}" for pattern, _ in table.index]
    return table


def agreement(live: float, found: Tables) -> pd.DataFrame:
    """Whether a live ratio lies where the recorded processes predict another one."""
    from sparsebook.recorded import inside_prediction

    recorded = found["processes"].query("metric == 'over_dense'")["value"]
    inside = inside_prediction(live, recorded.to_numpy(), geometric=True)
    return pd.DataFrame(
        {"measured now": [live], "from": [inside.interval.low], "to": [inside.interval.high],
         "inside the prediction": ["yes" if inside else "NO"]}
    ).round(3)  # fmt: skip


def answers(found: Tables, config: Config) -> dict[str, str]:
    """The numbers of the chapter's prose, written out."""
    speed, most = found["speed"], config.threads
    text: dict[str, str] = {"threads": str(most)}
    for n in sorted({1, most}):
        for method in ("dense", "conv2d", "torch.sparse", "SciPy"):
            line = mean_ratios(speed, method)[n]
            key = method.replace("torch.", "mkl_").lower()
            text[f"even_{key}_{n}"] = _break_even(line)
            for sparsity in (0.8, 0.9, 0.95):
                value = line.get(sparsity, math.nan)
                text[f"{key}_{sparsity * 100:.0f}_{n}"] = _ratio(value)
        small = mean_ratios(speed, "dense", small=True)[n]
        text[f"small_90_{n}"] = _ratio(small.get(0.9, math.nan))
    return text | _worst_answers(speed) | _limit_answers(found, most) | _other_answers(found, config)


def _worst_answers(speed: pd.DataFrame) -> dict[str, str]:
    text: dict[str, str] = {}
    for method, key in (("torch.sparse", "mkl_sparse"), ("SciPy", "scipy"), ("dense", "dense")):
        row = worst(speed, method)
        text[f"worst_{key}"] = _ratio(1 / row.value)
        text[f"worst_{key}_where"] = (
            f"{row.pixels} pixels, {row['rows']} × {row['columns']}, {row.sparsity:.0%} zeros, "
            f"{row.threads} thread{'s' if row.threads > 1 else ''}"
        )
    return text


def _limit_answers(found: Tables, most: int) -> dict[str, str]:
    rate = found["limits"].set_index(["threads", "method"])["value"] / 1e9
    text: dict[str, str] = {}
    for n in sorted({1, most}):
        text |= {
            f"peak_{n}": f"{rate[n, 'registers']:.0f}", f"mkl_{n}": f"{rate[n, 'MKL']:.0f}",
            f"onednn_{n}": f"{rate[n, 'oneDNN']:.0f}", f"first_{n}": f"{rate[n, '16 KiB'] / 2:.0f}",
            f"second_{n}": f"{rate[n, '256 KiB'] / 2:.0f}", f"copy_{n}": f"{rate[n, 'copy']:.0f}",
        }  # fmt: skip
        own = found["speed"]
        own = own[
            (own.method == "ours") & (own.metric == "seconds") & (own.threads == n) & (own.sparsity == 0.9)
        ]
        useful = own.flop / own.value / 1e9
        text[f"useful_best_{n}"], text[f"useful_least_{n}"] = f"{useful.max():.0f}", f"{useful.min():.0f}"
    return text


def _other_answers(found: Tables, config: Config) -> dict[str, str]:
    text = {f"step_{n}": f"{step_ratio(found, n):.0f}" for n in sorted({1, config.threads})}
    step = found["step"]
    peak = step[step.metric == "peak"].groupby("method")["value"].median()
    text["step_memory"] = f"{peak['masked dense'] / peak['ours']:.0f}"
    ours = found["speed"].query("method == 'ours' and metric == 'seconds'")
    bare = found["speed"].query("method == 'bare' and metric == 'seconds'")
    keys = ["threads", "pixels", "rows", "columns", "sparsity"]
    both = ours.merge(bare, on=keys, suffixes=("", "_bare"))
    text["questions"] = f"{(both.value - both.value_bare).median() * 1e6:.1f}"
    text["shortest"] = f"{ours.value.min() * 1e6:.0f}"
    forms = found["forms"]
    part = forms[(forms.metric == "over_float32, 1 x 1") & (forms.threads == config.threads)]
    means = part.assign(value=np.log(part.value)).groupby("method")["value"].mean().map(np.exp)
    for block in (2, 4):
        text[f"block_{block}"] = _ratio(means[f"float32, {block} x 1"])
    text["bfloat16"] = _ratio(means["bfloat16, 1 x 1"])
    text["layers"] = str(ours[ours.pixels >= DENSE][["pixels", "rows", "columns"]].drop_duplicates().shape[0])
    text["step_size"], text["step_batch"] = f"{config.step_size:,}", f"{config.step_batch:,}"
    text["step_zeros"], text["picked_zeros"] = f"{config.step_sparsity:.0%}", f"{config.picked_sparsity:.0%}"
    text["live_layer"] = "{:,} pixels, {} × {}".format(*config.live_shape)
    text["live_zeros"] = f"{config.live_sparsity:.0%}"
    return text | _strip_answers(found["strips"])


def _strip_answers(strips: pd.DataFrame) -> dict[str, str]:
    """How much faster the best tile is than the best strip in place, layer by layer."""
    times = strips[strips.metric == "seconds"].groupby(["pixels", "rows", "columns", "method"])["value"].min()
    wide = times.unstack("method")
    gain = wide["in place"] / wide["tile"]
    return {"tile_least": _ratio(gain.min()), "tile_most": _ratio(gain.max())}


def _ratio(value: Any) -> str:
    return f"{value:.2f}" if value == value else NOT_MEASURED
