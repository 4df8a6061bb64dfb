"""The chapter's tables: measured or recorded, summed up, and turned into the numbers of its prose."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from sparsebook.experiments.attention_kernels import checks, runs
from sparsebook.experiments.attention_kernels.scales import Config

CHAPTER = "attention"
EXPERIMENTS: dict[str, Callable[[Config], pd.DataFrame]] = {
    "limit": runs.run_limit,
    "density": runs.run_density,
    "shapes": runs.run_shapes,
    "threads": runs.run_threads,
    "layouts": runs.run_layouts,
    "decode": runs.run_decode,
    "processes": runs.run_processes,
}
NOT_MEASURED = "(not measured)"


def tables(config: Config) -> dict[str, pd.DataFrame]:
    """Every table of times: recorded ones at scale `book`, measured ones otherwise."""
    if config.scale == "book":
        from sparsebook.recorded import load

        return {name: load(CHAPTER, name).table for name in EXPERIMENTS}
    return {name: experiment(config) for name, experiment in EXPERIMENTS.items()}


def record(config: Config, only: tuple[str, ...] = tuple(EXPERIMENTS)) -> None:
    """Measure and keep the tables with the book; a stage that was measured with this code is not repeated."""
    from sparsebook.recorded import run_stages, save

    for name in only:
        stages: dict[str, Any] = {name: lambda name=name: EXPERIMENTS[name](config)}
        table = run_stages("attention_kernels", name, stages, parameters=config.record())
        save(
            CHAPTER, name, table, parameters=config.record(), seeds=[config.seed],
            fingerprint_function="sparsebook.experiments.attention_kernels.runs:fingerprint", rtol=1e-4,
        )  # fmt: skip


def exact_table() -> pd.DataFrame:
    """Each layout's share of pairs, and whether it agrees with the reference within each type's tolerance."""
    found = checks.run_exact()
    found["causal"] = found.causal.map({True: "yes", False: "no"})
    names = {name: f"{name} (within {tolerance:g})" for name, tolerance in _tolerances(found).items()}
    table = found.pivot_table(
        index=["layout", "causal", "attended"], columns="type", values="agrees", aggfunc="all", sort=False
    )
    return table.rename(columns=names).rename_axis(columns=None).reset_index()


def _tolerances(found: pd.DataFrame) -> dict[str, float]:
    return found.groupby("type", sort=False)["tolerance"].first().to_dict()


def parts_table(limit: pd.DataFrame) -> pd.DataFrame:
    """Microseconds of one thread for the three loops over a tile, and their shares."""
    tile = limit[limit.metric == "tile"].pivot_table(index="threads", columns="method", values="value")
    tile = tile[["logits", "softmax", "values"]]
    shares = tile.div(tile.sum(axis=1), axis=0)
    micro = (tile * 1e6).round(2).add_suffix(" (µs)")
    return pd.concat([micro, shares.map("{:.0%}".format).add_suffix(" (share)")], axis=1)


def speed_table(density: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds of every method, causal and not, by density."""
    part = density[density.metric == "seconds"].assign(value=lambda x: x.value * 1e3)
    part["causal"] = part.causal.map({True: "yes", False: "no"})
    table = part.pivot_table(index=["causal", "density"], columns="method", values="value")
    order = [name for name in ("dense", "flex", "gather", "block_sparse") if name in table]
    table = table[order].rename(columns={"block_sparse": "this kernel"})
    return table.sort_index(ascending=[True, False]).round(1).rename_axis(columns="milliseconds")


def threads_table(found: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds by threads and density."""
    part = found[found.metric == "seconds"].assign(value=lambda x: x.value * 1e3)
    table = part.pivot_table(index=["density", "threads"], columns="method", values="value")
    table = table[["dense", "block_sparse"]].rename(columns={"block_sparse": "this kernel"})
    return table.sort_index(ascending=[False, True]).round(1).rename_axis(columns="milliseconds")


def demands(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The bar set before the kernel was written, and what was measured: blocks of 128, not causal."""
    lines = []
    for wanted in (0.25, 0.1):
        lines.append((f"time over {wanted:g} x dense", over(found, "over_ideal", wanted), "at most", 1.5))
    for wanted in (0.25, 0.1):
        lines.append((f"FlexAttention's time over ours at {wanted:g}", flex(found, wanted), "at least", 2.3))
    lines.append(("time over dense with all blocks", over(found, "over_dense", 1.0), "at most", 1.3))
    table = pd.DataFrame(lines, columns=["what", "measured", "bound", "wanted"])
    good = (table.measured <= table.wanted).where(table.bound == "at most", table.measured >= table.wanted)
    table["met"] = good.map({True: "yes", False: "no"}).where(table.measured.notna(), NOT_MEASURED)
    return table.round(2)


def over(found: dict[str, pd.DataFrame], metric: str, wanted: float, causal: bool = False) -> float:
    """A ratio of ours in the table of densities; NaN where that density was not measured."""
    table = found["density"]
    part = table[(table.method == "block_sparse") & (table.metric == metric) & (table.causal == causal)]
    part = part[part.wanted == wanted]["value"]
    return float(part.iloc[0]) if len(part) else float("nan")


def flex(found: dict[str, pd.DataFrame], wanted: float, causal: bool = False) -> float:
    """FlexAttention's time over ours; NaN where it was not measured."""
    table = found["density"]
    part = table[(table.metric == "seconds") & (table.wanted == wanted) & (table.causal == causal)]
    times = part.set_index("method")["value"]
    return float(times["flex"] / times["block_sparse"]) if "flex" in times else float("nan")


def agreement(live: float, found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Whether a live ratio lies where the recorded processes predict another one."""
    from sparsebook.recorded import inside_prediction

    recorded = found["processes"].query("metric == 'over_ideal'")["value"]
    inside = inside_prediction(live, recorded.to_numpy(), geometric=True)
    return pd.DataFrame(
        {"measured now": [live], "from": [inside.interval.low], "to": [inside.interval.high],
         "inside the prediction": ["yes" if inside else "NO"]}
    ).round(3)  # fmt: skip


def answers(found: dict[str, pd.DataFrame], config: Config) -> dict[str, str]:
    """The numbers of the chapter's prose, written out."""
    rates = (
        found["limit"]
        .query("metric == 'rate'")
        .pivot_table(index="method", columns="threads", values="value")
    )
    all_threads = rates[max(rates.columns)] / 1e9
    tile = found["limit"].query("metric == 'tile' and threads == 1").set_index("method")["value"]
    layouts = found["layouts"].query("metric == 'over_ideal'").set_index("method")["value"]
    text = {
        "ideal_quarter": _ratio(over(found, "over_ideal", 0.25)),
        "ideal_tenth": _ratio(over(found, "over_ideal", 0.1)),
        "ideal_quarter_causal": _ratio(over(found, "over_ideal", 0.25, causal=True)),
        "dense_all": _ratio(over(found, "over_dense", 1.0)),
        "dense_over_ours_all": _ratio(1 / over(found, "over_dense", 1.0)),
        "flex_quarter": _ratio(flex(found, 0.25)),
        "flex_tenth": _ratio(flex(found, 0.1)),
        "rate_inner": f"{all_threads['inner products']:.0f}",
        "rate_large": f"{all_threads['large product']:.0f}",
        "rate_small": f"{all_threads['small products']:.0f}",
        "rate_dense": f"{all_threads['dense']:.0f}",
        "rate_ours": f"{all_threads['block_sparse']:.0f}",
        "softmax_share": f"{tile['softmax'] / tile.sum():.0%}",
        "columns_over_blocks": _ratio(_columns(layouts) / layouts[f"blocks of {config.block}"]),
        "copy_over_columns": _ratio(layouts["gathered copy"] / _columns(layouts)),
        "break_even": _break_even(found["density"]),
        "break_even_flex": _break_even(found["density"], "flex"),
        "break_even_gather": _break_even(found["density"], "gather"),
    }
    settings = (
        "tokens",
        "heads",
        "dim",
        "shape_tokens",
        "live_tokens",
        "query_heads",
        "kv_heads",
        "page_size",
    )
    text |= {name: f"{getattr(config, name):,}" for name in settings}
    return text | _decode_answers(found["decode"]) | _shape_answers(found["shapes"])


def _columns(layouts: pd.Series) -> float:
    return float(layouts[[name for name in layouts.index if name.startswith("columns")]].iloc[0])


def _break_even(table: pd.DataFrame, method: str = "block_sparse") -> str:
    """The largest measured density at which a method takes no longer than dense attention, not causal."""
    part = table[(table.method == method) & (table.metric == "over_dense") & ~table.causal.astype(bool)]
    if part.empty:
        return NOT_MEASURED
    below = part[part.value <= 1]["density"]
    return f"{below.max():.2g}" if len(below) else "none measured"


def _decode_answers(decode: pd.DataFrame) -> dict[str, str]:
    longest = decode[(decode.tokens == decode.tokens.max()) & (decode.metric == "over_dense")]
    paged = longest[longest.method == "paged"]
    text = {"cache_longest": f"{decode.tokens.max():,}", "page_share": f"{paged.density.min():.2%}"}
    text["page_factor"] = f"{1 / paged.density.min():.0f}"
    for dtype in ("float32", "bfloat16"):
        part = paged[paged.dtype == dtype].set_index("density")["value"]
        text[f"decode_{dtype}"] = _ratio(1 / part[part.index.min()])
        text[f"decode_all_{dtype}"] = _ratio(1 / part[1.0])
        text[f"decode_pages_{dtype}"] = f"{part[1.0] / part[part.index.min()]:.1f}"
    return text


def _shape_answers(shapes: pd.DataFrame) -> dict[str, str]:
    ours = shapes[(shapes.method == "block_sparse") & (shapes.metric == "over_ideal")]
    text = {}
    for name, part in (("dim", ours[ours.series == "dim"]), ("length", ours[ours.series == "length"])):
        text[f"{name}_best"], text[f"{name}_worst"] = _ratio(part.value.min()), _ratio(part.value.max())
    return text


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value == value else NOT_MEASURED
