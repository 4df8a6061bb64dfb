"""Experiments of the chapter on selection: what the three rules choose, how exact they are and how fast.

>>> config = Config.at("smoke")                              # doctest: +SKIP
>>> found = tables(config)                                   # doctest: +SKIP
>>> draw_speed(found["speed"])                               # doctest: +SKIP

``python -m sparsebook.experiments.selection_kernels [experiment ...]`` records the tables of scale `full`.
"""

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from sparsebook.evaluation.timing import compare, in_processes, paired_median_ratio
from sparsebook.kernels import sparse_codes
from sparsebook.kernels.selection import (
    Selected,
    column_topm,
    column_topm_reference,
    global_topm,
    global_topm_reference,
    row_topk,
    row_topk_reference,
)
from sparsebook.kernels.selection.cpu import sampled_limit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sparsebook.recorded import Prediction

SCALES = ("smoke", "book", "full", "paper")
SLUG = "selection"
TASKS = ("rows", "columns", "uneven columns", "matrix", "decode")
LABELS = {
    "ours": "ours",
    "torch.topk": "torch.topk",
    "embedding_bag": "F.embedding_bag, weighted",
    "dense codes": "dense codes, autograd",
    "limit": "limit",
}
Rows = list[dict[str, Any]]
Functions = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Config:
    """One run; make it with `Config.at`.

    Attributes
    ----------
    rows, columns : a batch of affinities
    k : selected per row on average; the matrix gives rows * k, the columns together as many
    width : of an atom
    processes : for each timing; 0 measures once, in this process
    repeats, slow_repeats : interleaved rounds in a process, and those beside methods that take seconds
    sweep_rows, sweep : rows and values of k of the sweep
    seeds : matrices whose candidates are counted
    """

    scale: str
    seed: int = 0
    threads: int = 2
    rows: int = 4096
    columns: int = 16_384
    k: int = 32
    width: int = 640
    processes: int = 5
    repeats: int = 11
    slow_repeats: int = 3
    sweep_rows: int = 1024
    sweep: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)

    @classmethod
    def at(cls, scale: str, seed: int = 0, threads: int | None = None, **knobs: Any) -> "Config":
        """The run of a scale; `knobs` override single fields.

        Raises
        ------
        ValueError
            For an unknown scale.
        """
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
        small: dict[str, Any] = {
            "rows": 256, "columns": 2048, "k": 8, "width": 96, "processes": 0, "repeats": 2,
            "slow_repeats": 1, "sweep_rows": 128, "sweep": (4, 16), "seeds": (1, 2, 3),
        }  # fmt: skip
        preset = small if scale == "smoke" else {}
        return cls(scale=scale, seed=seed, threads=threads or 2, **(preset | knobs))


def affinities(rows: int, columns: int, seed: int) -> Tensor:
    """A batch of affinities: standard normal, float32."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def uneven_counts(columns: int, total: int, rows: int) -> Tensor:
    """How many each column may take if column r's share goes with 1 / (r + 3); about `total` in all."""
    share = 1 / (torch.arange(columns) + 3.0)
    return (share / share.sum() * total).round().long().clamp(max=rows)


# What the rules choose -----------------------------------------------------------------------------------


def run_allocations(rows: int = 12, columns: int = 24, k: int = 3, seed: int = 5) -> dict[str, Tensor]:
    """A small batch of affinities and what each rule takes of it, all with the same budget."""
    x = affinities(rows, columns, seed)
    # Some rows are richer than others, and some columns stronger: otherwise the rules would hardly differ.
    x = x + torch.linspace(1.0, -0.6, rows)[:, None] + torch.linspace(0.9, -0.7, columns)
    per_column = rows * k / columns
    m = torch.full((columns,), int(per_column))
    m[: rows * k - int(m.sum())] += 1
    mask = torch.zeros_like(x).scatter(1, row_topk(x, k).indices, 1.0)
    return {
        "affinities": x,
        "rows": mask,
        "columns": _mask(column_topm(x, m)),
        "matrix": _mask(global_topm(x, rows * k)),
    }


def _mask(found: Selected) -> Tensor:
    return torch.zeros(found.shape).index_put((found.rows, found.columns), torch.ones(len(found)))


def draw_allocations(found: Mapping[str, Tensor]) -> "Figure":
    """The affinities, and beside them what the three rules take."""
    import matplotlib.pyplot as plt

    titles = {"affinities": "affinities", "rows": "k of each row", "columns": "m of each column",
              "matrix": "M of all"}  # fmt: skip
    figure, axes = plt.subplots(2, 2, figsize=(6.8, 4.2), layout="constrained")
    for axis, (name, x) in zip(axes.flat, found.items(), strict=True):
        axis.imshow(x.numpy(), cmap="cividis" if name == "affinities" else "Blues", aspect="auto")
        taken = "" if name == "affinities" else f", {int(x.sum())} taken"
        axis.set_title(f"{titles[name]}{taken}")
        axis.set(xticks=[], yticks=[], xlabel="features", ylabel="tokens")
        axis.grid(False)
    return figure


# Exactness -----------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "after a ReLU": torch.relu,
    "many ties": lambda x: (2 * x).round(),
    "all equal": torch.zeros_like,
    "with infinities": lambda x: torch.where(x > 2, torch.inf, torch.where(x < -2, -torch.inf, x)),
    "ascending": lambda x: x.flatten().sort().values.view(x.shape),
    "bfloat16": lambda x: x.bfloat16(),
}


def run_exactness(rows: int = 300, columns: int = 700, seed: int = 0) -> pd.DataFrame:
    """Elements in which a selection differs from a stable sort, for kinds of matrices that are hard."""
    out = []
    m = torch.randint(0, 20, (columns,), generator=torch.Generator().manual_seed(seed))
    for kind, change in KINDS.items():
        x = change(affinities(rows, columns, seed))
        by_row = row_topk(x, 20).indices != row_topk_reference(x, 20)[1]
        all_rows = column_topm(x, m), column_topm_reference(x, m)
        matrix = global_topm(x, 5000), global_topm_reference(x, 5000)
        counts = [int(by_row.sum()), *(_differences(*pair) for pair in (all_rows, matrix))]
        out.append({"matrix": kind} | dict(zip(("rows", "columns", "all"), counts, strict=True)))
    return pd.DataFrame(out).set_index("matrix")


def _differences(found: Selected, expected: tuple[Tensor, ...]) -> int:
    values, rows, columns, offsets = expected
    return int((_mask(found) != _mask(Selected(values, rows, columns, offsets, found.shape))).sum())


def run_decode_error(batch: int = 256, atoms: int = 1000, k: int = 16, width: int = 200) -> pd.DataFrame:
    """Largest error of the product and its gradients over the largest value, against float64."""
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(*s, generator=generator) for s in ((batch, k), (atoms, width))]
    indices = torch.randint(0, atoms, (batch, k), generator=generator)
    weights = torch.randn(batch, width, generator=generator)
    found = []
    for dtype in (torch.float32, torch.float64):
        values, dictionary = (leaf.to(dtype, copy=True).requires_grad_() for leaf in leaves)
        out = sparse_codes.decode(values, indices, dictionary)
        grads = torch.autograd.grad(out, (values, dictionary), weights.to(dtype))
        found.append([t.detach().double() for t in (out, *grads)])
    errors = [
        float((mine - exact).abs().max() / exact.abs().max()) for mine, exact in zip(*found, strict=True)
    ]
    names = ("product", "gradient of the values", "gradient of the dictionary")
    return pd.DataFrame({"largest relative error": errors}, index=pd.Index(names, name="of"))


# How selection works: the limit --------------------------------------------------------------------------


def run_histogram(rows: int = 1024, columns: int = 4096, k: int = 8, seed: int = 0) -> dict[str, Any]:
    """A histogram of a matrix, the limit that its sample gives, the smallest selected value, and counts."""
    x = affinities(rows, columns, seed)
    m = rows * k
    limit = sampled_limit(x.view(-1).numpy(), m)
    counts, edges = np.histogram(x.numpy(), bins=120)
    return {
        "counts": counts, "edges": edges, "limit": limit, "threshold": float(global_topm(x, m).threshold),
        "selected": m, "candidates": int((x >= limit).sum()), "elements": x.numel(),
    }  # fmt: skip


def draw_histogram(found: Mapping[str, Any]) -> "Figure":
    """Values of the matrix on a logarithmic count, and the two values that matter."""
    import matplotlib.pyplot as plt

    from sparsebook.plotting import BLUE, GREY, ORANGE, VERMILLION

    figure, axes = plt.subplots(figsize=(6.8, 3.6), layout="constrained")
    edges, counts = found["edges"], found["counts"]
    middle = (edges[1:] + edges[:-1]) / 2
    parts = (
        (middle < found["limit"], GREY, "compared, 64 at a time, and dropped"),
        ((middle >= found["limit"]) & (middle < found["threshold"]), ORANGE, "listed, cut in the end"),
        (middle >= found["threshold"], BLUE, "selected"),
    )
    for which, color, label in parts:
        axes.bar(middle[which], counts[which], width=edges[1] - edges[0], color=color, label=label)
    for name, color in (("limit", ORANGE), ("threshold", BLUE)):
        axes.axvline(found[name], color=VERMILLION if name == "threshold" else color, lw=1.2)
    axes.set(yscale="log", xlabel="value", ylabel="elements of the matrix", ylim=(0.8, None))
    axes.legend(loc="upper left")
    return figure


def count_candidates(config: Config, seed: int) -> dict[str, float]:
    """Share of a matrix that is touched singly, over the share that is selected."""
    x = affinities(config.sweep_rows, config.columns, seed)
    m = config.sweep_rows * config.k
    reached = int((x >= sampled_limit(x.view(-1).numpy(), m)).sum())
    return {"listed over selected": reached / m}


def run_candidates(config: Config) -> pd.DataFrame:
    """How many elements reach the limit that the sample gives, over those wanted, for several matrices."""
    out: Rows = []
    for seed in config.seeds:
        for metric, value in count_candidates(config, seed).items():
            out.append(_row("candidates", "ours", seed, metric, value, "ratio", task="matrix"))
    return pd.DataFrame(out)


# Speed ---------------------------------------------------------------------------------------------------


def selection_functions(config: Config, x: Tensor) -> dict[str, tuple[Functions, Functions]]:
    """For each task the fast methods and the slow ones; "limit" is one read of the matrix."""
    k, m = config.k, config.rows * config.k
    even = torch.full((config.columns,), m // config.columns or 1)
    uneven = uneven_counts(config.columns, m, config.rows)
    read: Functions = {"limit": x.sum}
    across: Functions = {"torch.topk": lambda: x.topk(int(even[0]), 0)}
    return {
        "rows": (
            read | {"ours": lambda: row_topk(x, k), "unsorted": lambda: row_topk(x, k, sorted=False)},
            {"torch.topk": lambda: x.topk(k)},
        ),
        "columns": (read | {"ours": lambda: column_topm(x, even)}, across),
        # torch.topk knows one count for all columns: it has to take the largest.
        "uneven columns": (
            read | {"ours": lambda: column_topm(x, uneven)},
            {"torch.topk": lambda: x.topk(int(uneven.max()), 0)},
        ),
        "matrix": (
            read | {"ours": lambda: global_topm(x, m)},
            {"torch.topk": lambda: x.flatten().topk(m)},
        ),
    }


def decode_functions(config: Config, seed: int) -> tuple[Functions, Functions]:
    """Forward and backward of codes times dictionary; "limit" copies all that must be read or written."""
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.randn(config.columns, config.width, generator=generator).requires_grad_()
    values = torch.rand(config.rows, config.k, generator=generator).requires_grad_()
    indices = torch.randint(0, config.columns, (config.rows, config.k), generator=generator)
    grad = torch.randn(config.rows, config.width, generator=generator)
    leaves = (values, dictionary)
    bag = functional.embedding_bag
    source = torch.empty(decode_bytes(config) // 8)
    target = torch.zeros_like(source)

    def step(product: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(product(), leaves, grad)

    def thick() -> Tensor:
        codes = torch.zeros(config.rows, config.columns).scatter(1, indices, values)
        return codes @ dictionary

    fast: Functions = {
        "limit": lambda: target.copy_(source),
        "ours": step(lambda: sparse_codes.decode(values, indices, dictionary)),
        "embedding_bag": step(lambda: bag(indices, dictionary, per_sample_weights=values, mode="sum")),
    }
    return fast, {"dense codes": step(thick)}


def decode_bytes(config: Config) -> int:
    """Bytes that forward and backward must move at the least, everything once and in float32.

    Read: the dictionary twice, the incoming gradient. Written: the result, the dictionary's gradient.
    """
    atoms, rows = config.columns * config.width, config.rows * config.width
    return 4 * (2 * atoms + rows + rows + atoms)


def speed_once(knobs: Mapping[str, Any], task: str) -> dict[str, dict[str, float]]:
    """One task, timed in this process: for each method seconds and the paired ratio to ours."""
    from sparsebook.evaluation.machine import set_threads

    config = Config(**knobs)
    set_threads(config.threads)
    if task == "decode":
        fast, slow = decode_functions(config, config.seed)
    else:
        x = affinities(config.rows, config.columns, config.seed)
        fast, slow = selection_functions(config, x)[task]
    seconds = compare(fast, config.repeats, warmup=2)
    beside = compare({"ours": fast["ours"]} | slow, config.slow_repeats, warmup=1)
    found = {name: _reduced(seconds, name) for name in fast}
    return found | {name: _reduced(beside, name) for name in slow}


def _reduced(seconds: Mapping[str, list[float]], name: str) -> dict[str, float]:
    return {"seconds": statistics.median(seconds[name]), "ratio": paired_median_ratio(seconds, name, "ours")}


def run_speed(config: Config) -> pd.DataFrame:
    """Seconds of every method and its ratio to ours, task by task, each in processes of its own."""
    return _staged(config, "speed", {task: partial(_speed, config, task) for task in TASKS})


def _speed(config: Config, task: str) -> pd.DataFrame:
    knobs = asdict(config)
    if config.processes:
        arguments = {"knobs": knobs, "task": task}
        target = "sparsebook.experiments.selection_kernels:speed_once"  # this may be __main__
        found = in_processes(target, arguments, config.processes, threads=config.threads)
    else:
        found = [speed_once(knobs, task)]
    out = [_timed("speed", task, process, methods) for process, methods in enumerate(found)]
    return pd.concat(out, ignore_index=True)


def _timed(
    experiment: str, task: str, process: int, found: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    out: Rows = []
    for method, numbers in found.items():
        out.append(_row(experiment, method, process, "seconds", numbers["seconds"], "s", task=task))
        out.append(_row(experiment, method, process, "over ours", numbers["ratio"], "ratio", task=task))
    return pd.DataFrame(out)


def run_sweep(config: Config) -> pd.DataFrame:
    """Seconds of row and matrix selection against k, in this process."""
    x = affinities(config.sweep_rows, config.columns, config.seed)
    out: Rows = []
    for k in config.sweep:
        m = k * config.sweep_rows
        functions: Functions = {
            "limit": x.sum,
            "rows, ours": partial(row_topk, x, k),
            "rows, torch.topk": partial(x.topk, k),
            "matrix, ours": partial(global_topm, x, m),
            "matrix, torch.topk": partial(x.flatten().topk, m),
        }
        for method, times in compare(functions, config.slow_repeats, warmup=1).items():
            for i, value in enumerate(times):
                out.append(_row("sweep", method, i, "seconds", value, "s", k=k))
    return pd.DataFrame(out)


def _row(experiment: str, method: str, seed: int, metric: str, value: float, unit: str, **knobs: Any) -> Any:
    head = {"experiment": experiment, "method": method, "seed": seed, "metric": metric}
    return head | {"value": float(value), "unit": unit} | knobs


def _staged(config: Config, name: str, stages: Mapping[str, Callable[[], pd.DataFrame]]) -> pd.DataFrame:
    if config.scale in ("full", "paper"):
        from sparsebook.recorded import run_stages

        return run_stages("selection_kernels", name, dict(stages), parameters=asdict(config))
    return pd.concat([compute() for compute in stages.values()], ignore_index=True)


# Figures and tables of speed -----------------------------------------------------------------------------


def draw_speed(table: pd.DataFrame) -> "Figure":
    """Milliseconds of each method for each task, every process a point, and the limit as a line."""
    import matplotlib.pyplot as plt

    from sparsebook.plotting import BLACK, BLUE, GREY, ORANGE, VERMILLION

    colors = {"ours": BLUE, "torch.topk": VERMILLION, "embedding_bag": ORANGE, "dense codes": GREY}
    offsets = {"ours": -0.2, "torch.topk": 0.1, "embedding_bag": 0.1, "dense codes": 0.35}
    figure, axes = plt.subplots(figsize=(6.8, 3.9), layout="constrained")
    seconds = table[table.metric == "seconds"]
    for at, task in enumerate(TASKS):
        own = seconds[seconds.task == task]
        limit = own[own.method == "limit"].value.median() * 1e3
        axes.plot(
            [at - 0.42, at + 0.48], [limit, limit], color=BLACK, lw=1.6, label="limit" if at == 0 else None
        )
        for method, color in colors.items():
            times = own[own.method == method].value * 1e3
            if len(times):
                place = at + offsets[method]
                axes.bar(place, times.median(), width=0.24, color=color, alpha=0.85)
                axes.plot([place] * len(times), times, ".", color="#333333", ms=3)
                axes.annotate(f"{times.median():.3g}", (place, times.max()), xytext=(0, 3),
                              textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    handles: list[Any] = [plt.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
    handles.append(plt.Line2D([], [], color=BLACK, lw=1.6))
    axes.legend(handles, [*(LABELS[name] for name in colors), "limit: the bytes"], ncols=2, loc="upper left")
    low = seconds.value.min() * 1e3
    axes.set(yscale="log", ylabel="milliseconds", xticks=range(len(TASKS)), ylim=(low / 2, None))
    axes.set_xticklabels(["rows", "columns", "uneven\ncolumns", "matrix", "decode,\nboth ways"])
    axes.margins(y=0.35)
    axes.grid(False, axis="x")
    return figure


def draw_sweep(table: pd.DataFrame) -> "Figure":
    """Milliseconds against k."""
    import matplotlib.pyplot as plt

    from sparsebook.plotting import BLACK, BLUE, VERMILLION

    figure, axes = plt.subplots(figsize=(6.8, 3.6), layout="constrained")
    styles = {
        "rows, ours": (BLUE, "o-"), "rows, torch.topk": (VERMILLION, "o-"),
        "matrix, ours": (BLUE, "s--"), "matrix, torch.topk": (VERMILLION, "s--"), "limit": (BLACK, "-"),
    }  # fmt: skip
    median = table.groupby(["method", "k"]).value.median() * 1e3
    for method, (color, style) in styles.items():
        own = median[method]
        axes.plot(own.index, own.values, style, color=color, label=method.replace("limit", "one read"))
    axes.set(xscale="log", yscale="log", xlabel="k", ylabel="milliseconds")
    axes.set_xticks(list(median["limit"].index), [str(k) for k in median["limit"].index])
    axes.minorticks_off()
    axes.legend(ncols=2, loc="center left", bbox_to_anchor=(0.0, 0.62))
    return figure


def speed_table(table: pd.DataFrame) -> pd.DataFrame:
    """Median milliseconds over the processes, and the median of their paired ratios to ours."""
    wide = table.pivot_table(index=["task", "method"], columns="metric", values="value", aggfunc="median")
    wide = wide.reindex([(t, m) for t in TASKS for m in (*LABELS, "unsorted") if (t, m) in wide.index])
    wide["milliseconds"] = (wide["seconds"] * 1e3).round(2)
    wide["times ours"] = wide["over ours"].round(2)
    return wide[["milliseconds", "times ours"]].rename(index=LABELS | {"unsorted": "ours, by column"})


def ratio(table: pd.DataFrame, task: str, method: str) -> float:
    """Median over the processes of how many times ours a method takes."""
    own = table[(table.task == task) & (table.method == method) & (table.metric == "over ours")]
    return float(own.value.median())


# The chapter ---------------------------------------------------------------------------------------------

EXPERIMENTS: dict[str, Callable[[Config], pd.DataFrame]] = {
    "speed": run_speed,
    "sweep": run_sweep,
    "candidates": run_candidates,
}


def tables(config: Config) -> dict[str, pd.DataFrame]:
    """Every table of the chapter: recorded ones at scale `book`, measured ones otherwise."""
    if config.scale == "book":
        from sparsebook.recorded import load

        return {name: load(SLUG, name).table for name in EXPERIMENTS}
    return {name: experiment(config) for name, experiment in EXPERIMENTS.items()}


def record(config: Config, only: tuple[str, ...] = tuple(EXPERIMENTS)) -> None:
    """Run everything at scale `full` and keep the tables with the book."""
    from sparsebook.recorded import save

    for name in only:
        seeds = config.seeds if name == "candidates" else [config.seed]
        table = EXPERIMENTS[name](config)
        save(
            SLUG, name, table, parameters=config, seeds=seeds,
            fingerprint_function="sparsebook.experiments.selection_kernels:fingerprint",
        )  # fmt: skip


def fingerprint() -> list[float]:
    """Thresholds of small selections, a product and its gradients."""
    x = affinities(200, 1000, 0)
    found = [
        row_topk(x, 9).values[:, -1].sum(),
        column_topm(x, 3).values.sum(),
        global_topm(x, 777).threshold,
    ]
    values, indices = row_topk(x.requires_grad_(), 9)
    dictionary = affinities(1000, 70, 1).requires_grad_()
    out = sparse_codes.decode(values, indices, dictionary)
    grads = torch.autograd.grad(out.square().sum(), (x, dictionary))
    parts = (*found, out.abs().sum(), *(grad.abs().sum() for grad in grads))
    return [float(part.detach()) for part in parts]


def run_live(config: Config) -> float:
    """One cell of the table of candidates, on a matrix of its own."""
    return count_candidates(config, 100 + config.seed)["listed over selected"]


def agreement(live: float, found: Mapping[str, pd.DataFrame]) -> "Prediction":
    """Whether the live value lies where the recorded ones predict a further one."""
    from sparsebook.recorded import inside_prediction

    return inside_prediction(live, found["candidates"].value.to_numpy())


def live_ratios(config: Config) -> pd.DataFrame:
    """Times of a quarter of the batch, measured now in this process."""
    small = asdict(config) | {"rows": max(256, config.rows // 4), "repeats": 5, "slow_repeats": 1}
    tasks = ("rows", "matrix", "decode")
    return speed_table(pd.concat([_timed("live", task, 0, speed_once(small, task)) for task in tasks]))


def answers(found: Mapping[str, pd.DataFrame], config: Config) -> dict[str, str]:
    """The numbers of the chapter's prose."""
    speed = found["speed"]
    times = lambda task, method: f"{ratio(speed, task, method):.1f} times"  # noqa: E731
    megabytes = 4 * config.rows * config.columns / 1e6
    gathered = 4 * config.rows * config.k * config.width / 1e6
    listed = found["candidates"].value
    return {
        "matrix_megabytes": f"{megabytes:,.0f} MB",
        "matrix_over_read": f"{1 / ratio(speed, 'matrix', 'limit'):.1f} times",
        "rows_over_read": f"{1 / ratio(speed, 'rows', 'limit'):.1f} times",
        "columns_over_read": f"{1 / ratio(speed, 'columns', 'limit'):.1f} times",
        "matrix_topk": times("matrix", "torch.topk"),
        "rows_topk": times("rows", "torch.topk"),
        "columns_topk": times("columns", "torch.topk"),
        "uneven_topk": times("uneven columns", "torch.topk"),
        "decode_bag": times("decode", "embedding_bag"),
        "decode_dense": times("decode", "dense codes"),
        "decode_over_limit": f"{1 / ratio(speed, 'decode', 'limit'):.1f} times",
        "decode_megabytes": f"{decode_bytes(config) / 1e6:,.0f} MB",
        "gathered_megabytes": f"{gathered:,.0f} MB",
        "dense_megabytes": f"{megabytes:,.0f} MB",
        "listed": f"{listed.mean():.2f}",
        "shape": f"{config.rows:,} × {config.columns:,}",
        "k": f"{config.k}",
        "width": f"{config.width}",
        "processes": f"{max(1, config.processes)}",
    }


def _wanted(names: list[str]) -> Iterator[str]:
    for name in names or EXPERIMENTS:
        if name not in EXPERIMENTS:
            sys.exit(f"unknown experiment {name}; there are {', '.join(EXPERIMENTS)}")
        yield name


if __name__ == "__main__":
    record(Config.at("full"), tuple(_wanted(sys.argv[1:])))
