"""From tables to the samples that the claims ask for; and the same samples from a sabotaged twin."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from sparsebook.claims import Ledger, Samples
from sparsebook.experiments.seismic import runs
from sparsebook.experiments.seismic.runs import TARGET
from sparsebook.experiments.seismic.scales import Config
from sparsebook.experiments.seismic.searchers import SEARCHERS, BlockMax, SciPyProduct, SpladeIndex
from sparsebook.plotting import pareto_front

UNREACHED = 1e-3
"""The ratio that counts where our search does not reach the recall asked of it."""

NEVER = 1e9
"""The microseconds that count where our search does not reach the recall asked of it."""

EXPERIMENTS: dict[str, Callable[[Config], pd.DataFrame]] = {
    "concentration": runs.run_concentration,
    "front": runs.run_front,
    "growth": runs.run_growth,
    "share": runs.run_share,
    "ablation": runs.run_ablation,
    "build": runs.run_build,
}
"""What the claims need."""

ILLUSTRATIONS: dict[str, Callable[[Config], pd.DataFrame]] = {
    "sweeps": runs.run_sweeps,
    "spread": runs.run_spread,
    "errors": runs.run_errors,
    "limits": runs.run_limits,
}
"""What only figures and prose need."""

RECORDED = (*EXPERIMENTS, *ILLUSTRATIONS)
REPEATED = ("share", "ablation", "concentration", "spread")
"""Repeated over the collections; the others are of one seed."""


def tables(config: Config) -> dict[str, pd.DataFrame]:
    """Every table of the chapter: recorded ones at scale `book`, measured ones otherwise.

    With vectors of the reader's own nothing recorded applies, so all is measured.
    """
    if config.scale == "book" and config.vectors is None:
        from sparsebook.recorded import load

        return {name: load("seismic", name).table for name in RECORDED}
    return {name: experiment(config) for name, experiment in (EXPERIMENTS | ILLUSTRATIONS).items()}


def record(config: Config, only: tuple[str, ...] = RECORDED) -> None:
    """Run everything at scale `full` and keep the tables with the book (resumable, stage by stage)."""
    from sparsebook.recorded import save

    for name in only:
        save(
            "seismic",
            name,
            (EXPERIMENTS | ILLUSTRATIONS)[name](config),
            parameters=config.record(),
            seeds=config.collections
            if name in ("share", "ablation", "concentration", "spread")
            else [config.seed],
            fingerprint_function="sparsebook.experiments.seismic.runs:fingerprint",
        )


def claim_samples(found: dict[str, pd.DataFrame], config: Config) -> dict[str, Samples]:
    """Samples of every claim that this run could test: rivals that are not installed leave theirs out."""
    top, second, third = (*config.targets, config.targets[-1])[:3]
    ratio = lambda values: Samples(values, unit="ratio")  # noqa: E731
    growth = growth_ratios(found["growth"], "term_at_a_time")
    best = growth_ratios(found["growth"], "best exact")
    ablation = found["ablation"]
    samples = {
        "C2b": ratio(growth.to_numpy()),
        "C2c": ratio(growth.to_numpy()[:, -1]),
        "C2d": Samples(_levels(found["share"], "share").to_numpy(), unit="fraction"),
        "C2e": ratio(growth_ratios(found["growth"], "impact").to_numpy()[:, -1]),
        "C4a": _fractions(found["concentration"], "generator", "queries_top_10"),
        "C4b": _fractions(found["concentration"], "generator", "documents_top_50"),
        "C4c": _fractions(found["concentration"], "bm25", "heaviest_30_percent"),
        "C5a": ratio(advantage(ablation, "fixed_blocks", "seismic")),
        "C5b": ratio(advantage(ablation, "fixed_summaries", "seismic")),
        "C6a": Samples(quantisation_loss(ablation), unit="recall points"),
        "C6b": ratio(_bytes_ratio(ablation)),
        "C8a": Samples(_value(ablation, "near_exact", "recall"), unit="recall"),
        "H4": Samples(growth_slopes(found["growth"], "seismic"), unit="slope"),
        "H5": Samples(growth_slopes(found["growth"], "term_at_a_time"), unit="slope"),
        "H6": Samples(tenfold(best), unit="log10 documents"),
    }
    if _was_run(found["front"], "hnsw"):
        samples["C3b"] = ratio(over_ours(found["front"], "hnsw", top))
        samples["C3c"] = ratio(over_ours(found["front"], "hnsw", second))
        samples["C7c"] = ratio(_build_ratio(found["build"], "hnsw"))
    if _was_run(found["front"], "pyseismic"):
        for name, target in (("H1a", top), ("H1b", second), ("H1c", third)):
            samples[name] = ratio(over_ours(found["front"], "pyseismic", target))
        samples["H2"] = ratio(_build_ratio(found["build"], "pyseismic"))
    if len(exact_rivals(found["front"])):
        samples["H3"] = ratio(exact_rivals(found["front"]))
    return samples | (_paper_samples(found) if config.scale == "paper" else {})


def _was_run(front: pd.DataFrame, method: str) -> bool:
    """Whether a rival was there at all: one that is missing is no slower for it."""
    return bool((front.method == method).any())


def _paper_samples(found: dict[str, pd.DataFrame]) -> dict[str, Samples]:
    """What only the paper's own collection can answer: its times, its rivals' factor, its bytes."""
    speed = found["front"][found["front"].experiment == "speed"]
    ours = speed[(speed.method == "seismic") & (speed.metric == "time") & (speed.target == 0.97)]["value"]
    spent = ours.to_numpy() if len(ours) else np.full(speed.process.nunique(), NEVER)
    rivals = np.minimum(*(over_ours(found["front"], name, 0.95) for name in ("impact", "maxscore")))
    size = _value(found["build"], "seismic", "bytes_total")[:1] / 2**30
    return {
        "C1": Samples(spent, unit="us"),
        "C2a": Samples(rivals, unit="ratio"),
        "C7b": Samples(size, unit="GiB"),
    }


NEEDED = {
    **dict.fromkeys(("C3b", "C3c", "C7c"), "needs nmslib (pip install nmslib-metabrainz)"),
    **dict.fromkeys(("H1a", "H1b", "H1c", "H2"), "needs pyseismic-lsr (pip install pyseismic-lsr)"),
    "H3": "needs another exact search: pyseismic-lsr, bmp or splade-index",
}
"""What a claim lacks where a rival's package is not installed."""


def check_claims(ledger: Ledger, found: dict[str, pd.DataFrame], config: Config) -> None:
    """Supply every claim's samples; say of the others why they were not tested."""
    samples = claim_samples(found, config)
    for claim in ledger.declaration.claims:
        if claim.id in samples:
            ledger.check(claim.id, samples[claim.id])
        else:
            ledger.untested(claim.id, None if claim.needs else NEEDED[claim.id])


def sabotage_samples(config: Config) -> dict[str, Samples]:
    """The same samples from a twin that is broken where each claim's control says."""
    methods = tuple(cls.name for cls in SEARCHERS if cls not in (SpladeIndex, BlockMax, SciPyProduct))
    broken = replace(config, sabotaged=True, collections=tuple(range(1, 9)), in_process=5, methods=methods)
    few = replace(broken, n_documents=300)  # enough for an index that is built a hundred times
    found = {name: experiment(few if name == "build" else broken) for name, experiment in EXPERIMENTS.items()}
    samples = claim_samples(found, broken)
    sizes = (500, 2_000, 8_000)  # large enough for a slope of 1 to show
    twins = pd.DataFrame(
        list(runs.slopes(replace(config, sizes=sizes))), columns=["n", "exhaustive", "constant"]
    )
    repeats = [twins.iloc[i::5] for i in range(5)]
    for claim, twin in (("H4", "exhaustive"), ("H5", "constant")):
        values = [slope(part.n.to_numpy(), part[twin].to_numpy()) for part in repeats]
        samples[claim] = Samples(values, unit="slope")
    samples["H3"] = Samples(runs.reference_ratios(config), unit="ratio")
    return {name: value for name, value in samples.items() if name != "C6b"}


# Speed ---------------------------------------------------------------------------------------------------


def over_ours(front: pd.DataFrame, method: str, target: float) -> np.ndarray:
    """Time of a rival over ours at a recall, one value per process; `UNREACHED` where ours is not there.

    A rival that does not reach the recall itself is infinitely slow; its ratio is capped at 1,000.
    """
    speed = front[front.experiment == "speed"]
    processes = sorted(speed.process.unique())
    wanted = speed[(speed.method == method) & (speed.metric == "over_ours") & (speed.target == target)]
    if len(wanted):
        return wanted.sort_values("process")["value"].to_numpy()
    ours = speed[(speed.method == "seismic") & (speed.target == target)]
    return np.full(len(processes), 1 / UNREACHED if len(ours) else UNREACHED)


def matched_ratio(front: pd.DataFrame, target: float, rival: str = "pyseismic") -> float:
    """Time of a rival over ours on the grid, ours held to what the rival reached on the reported queries.

    Settings are chosen on the tuning queries, so that the recall reached elsewhere differs a little from
    method to method. This asks whether that decided anything: in hindsight, the fastest setting of each,
    with ours held to the recall that the rival's chosen setting reached (and to the target). NaN where ours
    has none.
    """
    speed = front[(front.experiment == "speed") & (front.metric == "recall") & (front.target == target)]
    reached = speed[speed.method == rival]["value"]
    grid = front[(front.experiment == "front") & front.method.isin(["seismic", rival])]
    wide = grid.pivot_table(index=["method", "recipe", "setting"], columns="metric", values="value")
    ours, theirs = wide.loc["seismic"], wide.loc[rival]
    needed = max(target, reached.max())
    return float(theirs[theirs.recall >= target].time.min() / ours[ours.recall >= needed].time.min())


def exact_rivals(front: pd.DataFrame) -> np.ndarray:
    """Time of the fastest installable exact search over our term-at-a-time, one value per process."""
    speed = front[(front.experiment == "speed") & (front.metric == "over_exact")]
    rivals = speed[~speed.method.isin(["term_at_a_time", "maxscore"])]
    return rivals.groupby("process")["value"].min().to_numpy()


def growth_ratios(growth: pd.DataFrame, method: str) -> pd.DataFrame:
    """Time over ours, [processes, sizes]; "best exact" is the faster of the two exact searches."""
    speed = growth[(growth.experiment == "growth_speed") & (growth.metric == "time")]
    wide = speed.pivot_table(index="process", columns=["method", "n"], values="value")
    exact = ("term_at_a_time", "maxscore")
    best = np.minimum(wide[exact[0]], wide[exact[1]])
    rival = best if method == "best exact" else wide.get(method)
    sizes = wide["term_at_a_time"].columns
    if "seismic" not in wide:
        return pd.DataFrame(UNREACHED, wide.index, sizes)
    ours = wide["seismic"].reindex(columns=sizes)
    if rival is None:
        return pd.DataFrame(1 / UNREACHED, wide.index, sizes).where(ours.notna(), UNREACHED)
    return (rival / ours).fillna(UNREACHED)


def growth_slopes(growth: pd.DataFrame, method: str) -> np.ndarray:
    """Slope of log time against log N, one value per process."""
    speed = growth[(growth.experiment == "growth_speed") & (growth.metric == "time")]
    own = speed[speed.method == method]
    if not len(own):
        return np.ones(speed.process.nunique())
    wide = own.pivot_table(index="process", columns="n", values="value")
    return np.array([slope(wide.columns.to_numpy(), row) for row in wide.to_numpy()])


def slope(n: np.ndarray, seconds: np.ndarray) -> float:
    """Least-squares slope in log-log coordinates."""
    return float(np.polyfit(np.log(np.asarray(n, float)), np.log(np.asarray(seconds, float)), 1)[0])


def tenfold(ratios: pd.DataFrame, factor: float = 10.0, cap: float = 9.0) -> np.ndarray:
    """log10 of the N at which a line through log ratio against log N reaches `factor`, at most `cap`."""
    n, out = np.log10(ratios.columns.to_numpy(dtype=float)), []
    for row in np.log10(ratios.to_numpy()):
        rise, level = np.polyfit(n, row, 1)
        out.append(min(cap, (np.log10(factor) - level) / rise) if rise > 0 else cap)
    return np.array(out)


# Ablations -----------------------------------------------------------------------------------------------


def curve(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Pareto front of documents evaluated against recall, both ascending."""
    wide = table[table.setting.notna()].pivot_table(index="setting", columns="metric", values="value")
    front = wide.iloc[pareto_front(wide.documents.tolist(), wide.recall.tolist())]
    return front.recall.to_numpy(), front.documents.to_numpy()


def advantage(ablation: pd.DataFrame, method: str, over: str) -> np.ndarray:
    """Documents evaluated by `method` over those by `over`, geometric mean over recall 0.90 to 0.99.

    Only recalls that both fronts span count; `UNREACHED` where `over` reaches none of them.
    """
    out = []
    for _, own in ablation.groupby("seed"):
        (r1, d1), (r2, d2) = (curve(own[own.method == name]) for name in (method, over))
        low, high = max(r1[0], r2[0], 0.90), min(r1[-1], r2[-1], 0.99)
        grid = np.linspace(low, high, 10)
        if r2[-1] < 0.90 or high < low:
            out.append(UNREACHED)
            continue
        logs = np.interp(grid, r1, np.log(d1)) - np.interp(grid, r2, np.log(d2))
        out.append(float(np.exp(logs.mean())))
    return np.array(out)


def chunks_over_clusters(spread: pd.DataFrame) -> pd.DataFrame:
    """Documents evaluated with chunks over those with clusters: one row a spread, one column a collection."""
    ratios = {level: advantage(own, "fixed_blocks", "seismic") for level, own in spread.groupby("spread")}
    return pd.DataFrame.from_dict(ratios, orient="index").sort_index()


def quantisation_loss(ablation: pd.DataFrame) -> np.ndarray:
    """Recall with 8-bit minus with float32 summaries, in points, mean over settings, one per collection."""
    recall = ablation[(ablation.metric == "recall") & ablation.method.isin(["seismic", "float32_summaries"])]
    wide = recall.pivot_table(index=["seed", "setting"], columns="method", values="value")
    return (100 * (wide.seismic - wide.float32_summaries)).groupby("seed").mean().to_numpy()


def _bytes_ratio(ablation: pd.DataFrame) -> np.ndarray:
    sizes = ablation[ablation.metric == "value_bytes"].pivot_table(
        index="seed", columns="method", values="value"
    )
    return (sizes.float32_summaries / sizes.seismic).to_numpy()[:1]


def _build_ratio(build: pd.DataFrame, method: str) -> np.ndarray:
    return _value(build, method, "over_ours")


def _value(table: pd.DataFrame, method: str, metric: str) -> np.ndarray:
    return table[(table.method == method) & (table.metric == metric)]["value"].to_numpy()


def _fractions(table: pd.DataFrame, method: str, metric: str) -> Samples:
    return Samples(_value(table, method, metric), unit="fraction")


def _levels(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    return table[table.metric == metric].pivot_table(index="seed", columns="n", values="value")


def answers(found: dict[str, pd.DataFrame], config: Config) -> dict[str, str]:
    """The numbers of the chapter's prose, written out; so that no number is typed into its text."""
    samples = {name: value.values for name, value in claim_samples(found, config).items()}
    sizes = sorted(found["growth"].n.unique())
    best = growth_ratios(found["growth"], "best exact").median()
    front = found["front"]
    speed = front[(front.experiment == "speed") & (front.metric == "time")]
    micro = speed.groupby(["method", "target"])["value"].median()
    steps = found["errors"]
    steps = steps[steps.query_cut == 5].pivot_table(index="step", columns="metric", values="value")
    tenth = np.median(samples["H6"])
    reached = found["growth"]
    reached = reached[(reached.experiment == "growth_speed") & (reached.method == "seismic")]
    reached = reached[reached.metric == "recall"]["value"]
    text = {
        "largest_n": f"{sizes[-1]:,}",
        "smallest_n": f"{sizes[0]:,}",
        "ratio_largest": _times(np.median(samples["C2c"])),
        "best_ratio_largest": _times(best.iloc[-1]),
        "best_ratio_smallest": _times(best.iloc[0]),
        "crossover_n": _crossing(best),
        "tenfold_n": _size(10**tenth),
        "tenfold_n_range": " to ".join(_size(10**v) for v in (samples["H6"].min(), samples["H6"].max())),
        "recall_wanted": f"{TARGET:.2f}",
        "recall_lowest": f"{reached.min():.3f}" if len(reached) else "not reached",
        "recall_highest": f"{reached.max():.3f}" if len(reached) else "not reached",
        "slope_ours": f"{np.median(samples['H4']):.2f}",
        "slope_exact": f"{np.median(samples['H5']):.2f}",
        "share_smallest": f"{samples['C2d'][:, 0].mean():.1%}",
        "share_largest": f"{samples['C2d'][:, -1].mean():.1%}",
        "share_largest_n": f"{max(found['share'].n):,}",
        "impact_ratio": _times(np.median(samples["C2e"])),
        "graph_ratio": _times_of(samples, "C3b"),
        "graph_build_ratio": _times_of(samples, "C7c"),
        "peer_build_ratio": _times_of(samples, "H2"),
        "exact_rival_ratio": _times_of(samples, "H3"),
        "query_mass": f"{samples['C4a'].mean():.0%}",
        "document_mass": f"{samples['C4b'].mean():.0%}",
        "bm25_mass": f"{samples['C4c'].mean():.0%}",
        "chunk_ratio": f"{_geometric(samples['C5a']):.2f}",
        "fixed_ratio": f"{_geometric(samples['C5b']):.2f}",
        "quantisation": f"{samples['C6a'].mean():+.3f}",
        "bytes_ratio": f"{samples['C6b'][0]:.2f}",
        "chunk_ratio_even": f"{_geometric(chunks_over_clusters(found['spread']).iloc[0].to_numpy()):.2f}",
        "chunk_ratio_uneven": f"{_geometric(chunks_over_clusters(found['spread']).iloc[-1].to_numpy()):.2f}",
        "near_exact": f"{samples['C8a'].mean():.4f}",
        "exact_us": _micro(micro, "term_at_a_time", 1.0),
        "collections": str(found["share"].seed.nunique()),
        "n_documents": f"{config.n_documents:,}",
        "n_tuning": str(config.n_tuning),
        "processes": str(speed.process.nunique()),
    }
    for claim, target in zip(("H1a", "H1b", "H1c"), (*config.targets, config.targets[-1]), strict=False):
        text[f"peer_ratio_{claim[-1]}"] = (
            f"{_geometric(samples[claim]):.2f}" if claim in samples else NOT_INSTALLED
        )
        text[f"matched_ratio_{claim[-1]}"] = (
            f"{matched_ratio(front, target):.1f}" if claim in samples else NOT_INSTALLED
        )
        text[f"ours_us_{claim[-1]}"] = _micro(micro, "seismic", target)
        text[f"peer_us_{claim[-1]}"] = _micro(micro, "pyseismic", target)
    for step, name in (("lists cut", "lists_cut"), ("few lists opened", "few_lists"),
                       ("blocks skipped, h=0.9", "skipped")):  # fmt: skip
        text[f"recall_{name}"] = f"{steps.loc[step, 'recall']:.4f}"
        text[f"documents_{name}"] = f"{steps.loc[step, 'documents']:,.0f}"
    return text | _limit_answers(found["limits"])


def _limit_answers(limits: pd.DataFrame, wanted: float = 0.9) -> dict[str, str]:
    """For each kind of vectors: the least share of the collection evaluated at a recall of 0.9, and times."""
    text = {"limits_recall": f"{wanted:.2f}"}
    for method, own in limits.groupby("method"):
        wide = own[own.setting.notna()].pivot_table(index="setting", columns="metric", values="value")
        good = wide[wide.recall >= wanted]
        best = good.evaluated.min() if len(good) else None
        text[f"{method}_evaluated"] = f"{best:.1%}" if best is not None else "no setting of the grid"
        text[f"{method}_recall"] = f"{wide.recall.max():.2f}"
        single = own.set_index("metric")["value"]
        text[f"{method}_documents"] = f"{single['documents']:,.0f}"
        text[f"{method}_blocks"] = f"{single['blocks_per_list']:.0f}"
        text[f"{method}_one_block"] = f"{single['lists_of_one_block']:.0%}"
        text[f"{method}_exact_us"] = f"{single['time_exact']:.0f}"
        text[f"{method}_ours_us"] = f"{single['time_ours']:.0f}"
        text[f"{method}_postings"] = f"{single['postings_per_query']:,.0f}"
    return text


NOT_INSTALLED = "(not installed)"


def _times_of(samples: dict[str, np.ndarray], claim: str) -> str:
    return _times(np.median(samples[claim])) if claim in samples else NOT_INSTALLED


def _times(ratio: float) -> str:
    if ratio <= UNREACHED:
        return "not at that recall"
    return f"{ratio:.1f} times" if ratio < 1 / UNREACHED else "more than a thousand times"


def _micro(micro: pd.Series, method: str, target: float) -> str:
    return f"{micro[method, target]:.0f} µs" if (method, target) in micro else "not reached"


def _geometric(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


def _size(n: float) -> str:
    """A number of documents, to two digits."""
    return f"{float(f'{n:.2g}'):,.0f}" if n < 1e9 else "a billion or more"


def _crossing(ratios: pd.Series) -> str:
    """Where the ratio passes 1, between measured sizes (a straight line in log-log coordinates)."""
    n, logs = np.log(ratios.index.to_numpy(float)), np.log(ratios.to_numpy())
    if logs[0] >= 0:
        return f"fewer than {ratios.index[0]:,}"
    if logs.max() < 0:
        return f"more than {ratios.index[-1]:,}"
    first = int(np.argmax(logs >= 0))
    at = n[first - 1] - logs[first - 1] * (n[first] - n[first - 1]) / (logs[first] - logs[first - 1])
    return f"about {_size(np.exp(at))}"


def agreement(live: pd.Series, found: dict[str, pd.DataFrame], config: Config) -> pd.DataFrame:
    """Whether the live cell lies where the collections of the ablation predict one more."""
    from sparsebook.recorded import inside_prediction

    setting = json.dumps({"query_cut": 5, "heap_factor": 0.9})
    table = found["ablation"]
    cell = table[(table.method == "seismic") & (table.setting == setting)]
    out = {}
    for metric in ("recall", "documents"):
        recorded = cell[cell.metric == metric]["value"]
        inside = inside_prediction(float(live[metric]), recorded.to_numpy())
        out[metric] = "inside the prediction" if inside else "OUTSIDE the prediction"
    return pd.DataFrame({"one live cell against the recorded collections": out})


def peer_table(found: dict[str, pd.DataFrame], config: Config) -> pd.DataFrame:
    """Ours beside the authors' package: time at each recall (batch, single calls), build, bytes."""
    front = found["front"]
    speed = front[front.experiment == "speed"]
    build = found["build"]
    out = {}
    for method in ("seismic", "pyseismic"):
        row = {}
        for target in config.targets:
            at = speed[(speed.method == method) & (speed.target == target)]
            for metric, name in (("time", "batch"), ("time_call", "per call")):
                values = at[at.metric == metric]["value"]
                if len(values):
                    row[f"µs at {target}, {name}"] = f"{values.median():.0f}"
        row["build, s, two threads"] = f"{np.median(_value(build, method, 'build')):.1f}"
        for metric in sorted(build[build.metric.str.startswith("bytes")].metric.unique()):
            values = _value(build, method, metric)
            row[f"MB, {metric.removeprefix('bytes_')}"] = f"{values[0] / 1e6:.0f}" if len(values) else ""
        out[method] = row
    return pd.DataFrame(out).fillna("")


def growth_summary(growth: pd.DataFrame) -> pd.DataFrame:
    """Times per query at each size, medians over the processes, and what was chosen."""
    speed = growth[(growth.experiment == "growth_speed") & (growth.metric == "time")]
    wide = speed.pivot_table(index="n", columns="method", values="value", aggfunc="median")
    ratios = growth_ratios(growth, "best exact").median()
    recall = growth[(growth.experiment == "growth_speed") & (growth.metric == "recall")]
    recall = recall[recall.method == "seismic"].groupby("n")["value"].first()
    return wide.assign(speed_up=ratios).round(1).assign(recall_of_ours=recall.round(3))


def main_table(front: pd.DataFrame, targets: tuple[float, ...]) -> pd.DataFrame:
    """The paper's main table: time per query at each recall, and how many times ours it is."""
    speed = front[front.experiment == "speed"]
    exact = set(speed[speed.target == 1.0].method) - {"seismic"}
    out: dict[str, dict[str, str]] = {}
    for method in dict.fromkeys(speed.method):
        own = speed[speed.method == method]
        row = {}
        for target in targets:
            at = own[own.target == (1.0 if method in exact else target)]
            times, over = (
                at[at.metric == "time"]["value"],
                own[(own.metric == "over_ours") & (own.target == target)],
            )
            if len(times):
                factor = f" ({over['value'].median():.1f}x)" if len(over) else ""
                row[f"{target:.0%}"] = f"{times.median():.0f}{factor}"
        out[method] = row
    return pd.DataFrame.from_dict(out, orient="index").fillna("not reached")


def settings_table(front: pd.DataFrame) -> pd.DataFrame:
    """What was tried and what was chosen: the tuning budget of every method and its settings."""
    grid, speed = front[front.experiment == "front"], front[front.experiment == "speed"]
    tried = grid[grid.metric == "recall"].groupby("method").size()
    chosen = speed[(speed.metric == "time") & (speed.process == speed.process.min())]
    reached = speed[(speed.metric == "recall") & (speed.process == speed.process.min())]
    table = chosen[["method", "target", "recipe", "setting"]].copy()
    table.insert(
        2,
        "recall reached",
        reached.set_index(["method", "target"])["value"]
        .loc[list(zip(table.method, table.target, strict=True))]
        .round(3)
        .to_numpy(),
    )
    table.insert(1, "settings tried", table.method.map(tried))
    for column in ("recipe", "setting"):
        table[column] = [_in_symbols(text) for text in table[column]]
    # The others are given a recipe that they do not read.
    table.loc[~table.method.isin(["seismic", "pyseismic"]), "recipe"] = ""
    return table.set_index("method")


SYMBOLS = {
    "n_postings": "λ",
    "centroid_fraction": "c",
    "summary_energy": "α",
    "max_fraction": "f",
    "query_cut": "cut",
    "heap_factor": "h",
    "sort_first": "sorted",
}


def _in_symbols(text: str) -> str:
    """A recipe or setting in the paper's symbols."""
    return " ".join(f"{SYMBOLS.get(name, name)}={value}" for name, value in json.loads(text).items())


__all__ = ["EXPERIMENTS", "RECORDED", "TARGET", "claim_samples", "record", "sabotage_samples", "tables"]
