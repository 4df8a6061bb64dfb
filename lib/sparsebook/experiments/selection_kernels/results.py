"""The chapter's tables: measured or recorded, summed up, and turned into the numbers of its prose."""

import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import pandas as pd
import torch

from sparsebook.experiments.selection_kernels import peers
from sparsebook.experiments.selection_kernels.against import (
    pursuit_work,
    run_pursuit,
    run_training,
    training_work,
)
from sparsebook.experiments.selection_kernels.choices import affinities, count_candidates, run_candidates
from sparsebook.experiments.selection_kernels.figures import LABELS, PEERS, digits
from sparsebook.experiments.selection_kernels.memory import least_bytes, run_memory
from sparsebook.experiments.selection_kernels.scales import Config
from sparsebook.experiments.selection_kernels.speed import TASKS, decode_bytes, run_speed, run_sweep
from sparsebook.kernels import sparse_codes
from sparsebook.kernels.pursuit import matching_pursuit, orthogonal_matching_pursuit
from sparsebook.kernels.selection import column_topm, global_topm, row_topk

if TYPE_CHECKING:
    from sparsebook.recorded import Prediction

SLUG = "selection"
NOT_MEASURED = "(not measured)"
EXPERIMENTS: dict[str, Callable[[Config], pd.DataFrame]] = {
    "candidates": run_candidates,
    "memory": run_memory,
    "speed": run_speed,
    "sweep": run_sweep,
    "pursuit": run_pursuit,
    "training": run_training,
}
Tables = Mapping[str, pd.DataFrame]

# Keeping -------------------------------------------------------------------------------------------------


def tables(config: Config) -> dict[str, pd.DataFrame]:
    """Every table of the chapter: recorded ones at scale `book`, measured ones otherwise."""
    if config.scale == "book":
        from sparsebook.recorded import load

        return {name: load(SLUG, name).table for name in EXPERIMENTS}
    return {name: experiment(config) for name, experiment in EXPERIMENTS.items()}


def record(config: Config, only: tuple[str, ...] = tuple(EXPERIMENTS)) -> list[str]:
    """Measure and keep each table with the book; the names of those that could not be, with the reason.

    A table whose peers are missing, or whose experiment fails, stays as it was kept before, and the others
    are recorded all the same. A table that was interrupted goes on where it stopped; one that is complete is
    measured anew.
    """
    failed = []
    for name in only:
        lacking = peers.missing(name)
        if lacking:
            failed.append(f"{name}: not installed: {', '.join(lacking)}")
            continue
        try:
            _record(config, name)
        except Exception as error:
            traceback.print_exc()
            failed.append(f"{name}: {error}")
    for line in failed:
        print(f"not recorded, kept as it was: {line}", file=sys.stderr, flush=True)
    return failed


def _record(config: Config, name: str) -> None:
    from sparsebook.recorded import forget_stages, save

    print(f"{SLUG}/{name} ...", file=sys.stderr, flush=True)
    seeds = config.seeds if name == "candidates" else [config.seed]
    save(
        SLUG, name, EXPERIMENTS[name](config), seeds=seeds,
        parameters=asdict(config) | {"peers": peers.versions(name)},
        fingerprint_function="sparsebook.experiments.selection_kernels.results:fingerprint",
        rtol=1e-4,
    )  # fmt: skip
    forget_stages("selection_kernels", name)


def fingerprint() -> list[float]:
    """Small selections, a product with its gradients, and both pursuits."""
    x = affinities(200, 1000, 0)
    found = [
        row_topk(x, 9).values[:, -1].sum(),
        column_topm(x, 3).values.sum(),
        global_topm(x, 777).threshold,
    ]
    dictionary = affinities(1000, 70, 1).requires_grad_()
    values, indices = row_topk(x.requires_grad_(), 9)
    out = sparse_codes.decode(values, indices, dictionary)
    grads = torch.autograd.grad(out.square().sum(), (x, dictionary))
    unit = torch.nn.functional.normalize(dictionary.detach(), dim=1)
    for pursue in (matching_pursuit, orthogonal_matching_pursuit):
        found.append(pursue(out.detach()[:20], unit, n_steps=5).residual.norm())
    parts = (*found, out.abs().sum(), *(grad.abs().sum() for grad in grads))
    return [float(part.detach()) for part in parts]


def run_live(config: Config) -> float:
    """One cell of the table of candidates, on a matrix of its own."""
    return count_candidates(config, 100 + config.seed)["listed over selected"]


def agreement(live: float, found: Tables) -> "Prediction":
    """Whether the live value lies where the recorded ones predict a further one."""
    from sparsebook.recorded import inside_prediction

    return inside_prediction(live, found["candidates"].value.to_numpy())


# Summing up ----------------------------------------------------------------------------------------------


def ratio(table: pd.DataFrame, task: str, method: str, metric: str = "over ours") -> float:
    """Median over the processes of how many times ours a method takes, or of another metric; else NaN."""
    own = table[(table.task == task) & (table.method == method) & (table.metric == metric)]
    return float(own.value.median()) if len(own) else float("nan")


def speed_table(table: pd.DataFrame) -> pd.DataFrame:
    """Median milliseconds over the processes, and the median of their paired ratios to ours."""
    wide = _wide(table)
    wide = wide.reindex([(t, m) for t in TASKS for m in (*LABELS, "unsorted") if (t, m) in wide.index])
    return _rounded(wide).rename(index=LABELS | {"unsorted": "ours, by column"})


def peers_table(found: Tables) -> pd.DataFrame:
    """The same for both pursuits and the training step; and how far the picks agree with a peer's."""
    wide = _wide(pd.concat([found["pursuit"], found["training"]]))
    names = {
        task: methods | {"all vectors": "ours, all vectors", "limit": "limit"}
        for task, methods in PEERS.items()
    }
    order = [(t, m) for t, methods in names.items() for m in methods if (t, m) in wide.index]
    wide = wide.reindex(order)
    table = _rounded(wide)
    table["equal picks"] = [
        _percent(share) for share in wide.get("equal picks", pd.Series(pd.NA, wide.index))
    ]
    table.index = pd.MultiIndex.from_tuples([(t, names[t][m]) for t, m in order], names=["task", "method"])
    return table


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    return table.pivot_table(index=["task", "method"], columns="metric", values="value", aggfunc="median")


def _rounded(wide: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds and ratios with three digits."""
    return pd.DataFrame(
        {"milliseconds": wide["seconds"] * 1e3, "times ours": wide["over ours"]}, index=wide.index
    ).map(digits)


def _percent(share: float) -> str:
    return "" if pd.isna(share) else f"{share:.2%}"


def limits_table(found: Tables, config: Config) -> pd.DataFrame:
    """What each operation must move and compute, how long that takes at this machine's rates, and ours."""
    flop_rate, byte_rate = (ratio(found["pursuit"], "matching", "machine", f"{kind} rate")
                            for kind in ("product", "copy"))  # fmt: skip
    matrix, product = config.rows * config.columns, 2 * config.rows * config.k * config.width
    work = {
        "rows": (matrix, 4 * matrix), "columns": (matrix, 4 * matrix), "matrix": (matrix, 4 * matrix),
        "decode": (3 * product, decode_bytes(config)), "matching": pursuit_work(config),
        "step": training_work(config),
    }  # fmt: skip
    names = {"decode": "decode, both ways", "matching": "matching pursuit", "step": "training step"}
    times = pd.concat([found["speed"], found["pursuit"], found["training"]])
    lines = {}
    for task, (operations, moved) in work.items():
        parts, ours = (moved / byte_rate, operations / flop_rate), ratio(times, task, "ours", "seconds")
        lines[names.get(task, task)] = {
            "megabytes": f"{moved / 1e6:,.0f}", "10⁹ operations": digits(operations / 1e9),
            "ms for the bytes": digits(parts[0] * 1e3), "ms for the operations": digits(parts[1] * 1e3),
            "measured, ms": digits(ours * 1e3), "measured over both": f"{ours / sum(parts):.1f}",
        }  # fmt: skip
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("operation")


def memory_table(table: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Megabytes at the peak by method and latents, beside what must be there and one dense matrix."""
    wide = table.pivot_table(index="columns", columns="method", values="value") / 1e6
    wide = wide[["ours", "embedding_bag", "dense codes"]].rename(columns=LABELS)
    wide["result and gradients"] = [least_bytes(config, int(n)) / 1e6 for n in wide.index]
    wide["tokens × latents"] = [4 * config.rows * n / 1e6 for n in wide.index]
    return wide.round(1).rename_axis("latents").rename_axis(columns="megabytes")


def memory_share(table: pd.DataFrame, config: Config, method: str = "ours") -> float:
    """What a decode holds beyond result and gradients, over tokens by latents, at the most latents."""
    columns = int(table["columns"].max())
    peak = float(table[(table["columns"] == columns) & (table.method == method)].value.median())
    return (peak - least_bytes(config, columns)) / (4 * config.rows * columns)


def demands(found: Tables, config: Config) -> pd.DataFrame:
    """The bars that were set before these tables were recorded, and what was measured."""
    speed, pursuit, training = found["speed"], found["pursuit"], found["training"]
    lines = [
        ("decode: F.embedding_bag's time over ours", ratio(speed, "decode", "embedding_bag"),
         "at least", 1.5),
        ("decode: dense codes' time over ours", ratio(speed, "decode", "dense codes"), "at least", 15.0),
        ("decode: memory beside the results, over tokens × latents", memory_share(found["memory"], config),
         "at most", 0.1),
        ("matrix: our time over one read", 1 / ratio(speed, "matrix", "limit"), "at most", 3.0),
        ("matrix: torch.topk's time over ours", ratio(speed, "matrix", "torch.topk"), "at least", 20.0),
        ("matching pursuit: overcomplete's time over ours", ratio(pursuit, "matching", "overcomplete"),
         "at least", 5.0),
        ("orthogonal pursuit: scikit-learn's time over ours", ratio(pursuit, "orthogonal", "scikit-learn"),
         "at least", 5.0),
        ("training step: SAELens' time over ours", fastest_sae_lens(training), "at least", 1.0),
    ]  # fmt: skip
    table = pd.DataFrame(lines, columns=["what", "measured", "bound", "wanted"])
    good = (table.measured <= table.wanted).where(table.bound == "at most", table.measured >= table.wanted)
    table["met"] = good.map({True: "yes", False: "no"}).where(table.measured.notna(), NOT_MEASURED)
    table["measured"] = [_number(value, "{:.3g}") for value in table.measured]
    return table.set_index("what")


def fastest_sae_lens(training: pd.DataFrame) -> float:
    """The time of SAELens' faster form over ours; NaN where it was not measured."""
    own = training[training.method.str.startswith("SAELens") & (training.metric == "over ours")]
    return float(own.groupby("method").value.median().min()) if len(own) else float("nan")


# The prose -----------------------------------------------------------------------------------------------


def answers(found: Tables, config: Config) -> dict[str, str]:
    """The numbers of the chapter's prose, written out."""
    return (
        _speed_answers(found["speed"], config)
        | _sweep_answers(found["sweep"])
        | _peer_answers(found, config)
        | _memory_answers(found["memory"], config)
        | {
            "listed": f"{found['candidates'].value.mean():.2f}",
            "matrices": f"{len(found['candidates'])}",
            "shape": f"{config.rows:,} × {config.columns:,}",
            "k": f"{config.k}",
            "width": f"{config.width}",
            "processes": f"{max(1, config.processes)}",
            "met": _met(demands(found, config)),
        }
    )


def _speed_answers(speed: pd.DataFrame, config: Config) -> dict[str, str]:
    text = {f"{task}_topk": _times(ratio(speed, name, "torch.topk"))
            for task, name in (("matrix", "matrix"), ("rows", "rows"), ("columns", "columns"),
                               ("uneven", "uneven columns"))}  # fmt: skip
    text |= {f"{task}_over_read": _times(1 / ratio(speed, task, "limit"))
             for task in ("rows", "columns", "matrix")}  # fmt: skip
    gathered = 4 * config.rows * config.k * config.width
    return text | {
        "decode_bag": _times(ratio(speed, "decode", "embedding_bag")),
        "decode_dense": _times(ratio(speed, "decode", "dense codes")),
        "decode_over_limit": _times(1 / ratio(speed, "decode", "limit")),
        "decode_megabytes": _megabytes(decode_bytes(config)),
        "gathered_megabytes": _megabytes(gathered),
        "matrix_megabytes": _megabytes(4 * config.rows * config.columns),
        "dense_megabytes": _megabytes(4 * config.rows * config.columns),
    }


def _sweep_answers(sweep: pd.DataFrame) -> dict[str, str]:
    median = sweep.groupby(["method", "k"]).value.median()
    text = {"sweep_least": f"{sweep.k.min()}", "sweep_most": f"{sweep.k.max()}"}
    for name in ("rows", "matrix"):
        own = median[f"{name}, ours"]
        text[f"sweep_{name}"] = _times(float(own.loc[sweep.k.max()] / own.loc[sweep.k.min()]))
    return text


def _peer_answers(found: Tables, config: Config) -> dict[str, str]:
    pursuit, training = found["pursuit"], found["training"]
    operations, read = pursuit_work(config)
    step, _ = training_work(config)
    read_rate = 4 * config.rows * config.columns / ratio(found["speed"], "matrix", "limit", "seconds")
    copy_rate = ratio(pursuit, "matching", "machine", "copy rate")
    every = ratio(pursuit, "orthogonal", "all vectors", "seconds") / config.pursuit_rows
    few = ratio(pursuit, "orthogonal", "scikit-learn", "vectors")
    alone = ratio(pursuit, "orthogonal", "scikit-learn", "seconds") / few
    gap = ratio(pursuit, "matching", "overcomplete", "gap of the rest")
    equal = ratio(pursuit, "matching", "overcomplete", "equal picks")
    rest = "" if gap != gap else f" (in the rest two correlations come within {gap:.0e} of their size)"
    return {
        "pursuit_peer": _times(ratio(pursuit, "matching", "overcomplete")),
        "pursuit_equal": f"{_share(equal)} of the vectors{rest}",
        "pursuit_error": _number(ratio(pursuit, "matching", "overcomplete", "largest difference"), "{:.0e}"),
        "pursuit_over_limit": _times(1 / ratio(pursuit, "matching", "limit")),
        "pursuit_flop": f"{operations / 1e9:.0f}",
        "pursuit_bytes": _megabytes(read),
        "pursuit_shape": f"{config.pursuit_rows:,} vectors of {config.pursuit_dim}",
        "pursuit_atoms": f"{config.pursuit_atoms:,}",
        "pursuit_steps": f"{config.pursuit_steps}",
        "copy_over_read": _times(copy_rate / read_rate),
        "orthogonal_peer": _times(ratio(pursuit, "orthogonal", "scikit-learn")),
        "orthogonal_equal": _share(ratio(pursuit, "orthogonal", "scikit-learn", "equal picks")),
        "orthogonal_few": _number(few, "{:.0f}"),
        "orthogonal_all": _number(every * 1e3, "{:.2g} ms"),
        "orthogonal_alone": _number(alone * 1e3, "{:.2g} ms"),
        "step_peer": _times(fastest_sae_lens(training)),
        "step_dense": _times(ratio(training, "step", "dense codes")),
        "step_over_limit": _times(1 / ratio(training, "step", "limit")),
        "step_flop": f"{step / 1e9:.0f}",
        "step_shape": f"{config.step_rows:,} tokens of width {config.step_width}",
        "step_latents": f"{config.step_latents:,} latents and {config.step_k} codes a token",
    }  # fmt: skip


def _memory_answers(memory: pd.DataFrame, config: Config) -> dict[str, str]:
    columns = int(memory["columns"].max())
    return {
        "memory_columns": f"{columns:,}",
        "memory_ours": f"{memory_share(memory, config):.1%}",
        "memory_dense": _times(memory_share(memory, config, "dense codes")),
        "memory_matrix": _megabytes(4 * config.rows * columns),
    }


def _met(table: pd.DataFrame) -> str:
    """How many bars are met, and which are not."""
    known = table[table.met != NOT_MEASURED]
    missed = list(known.index[known.met == "no"])
    text = f"{len(known) - len(missed)} of {len(known)}"
    if len(known) < len(table):
        text += f" ({len(table) - len(known)} more could not be measured)"
    return text + (f"; missed: {'; '.join(missed)}" if missed else "")


def _number(value: float, form: str) -> str:
    return form.format(value) if value == value else NOT_MEASURED


def _times(value: float) -> str:
    return _number(value, "{:.1f} times" if value < 99.5 else "{:.0f} times")


def _share(value: float) -> str:
    return _number(value, "{:.0%}" if value in (0, 1) else "{:.2%}")


def _megabytes(n: int) -> str:
    return f"{n / 1e6:,.0f} MB"
