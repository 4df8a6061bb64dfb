"""The experiments: each returns a tidy table (experiment, method, seed, metric, value, unit, its knobs)."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sparsebook.data.sparse_vectors import SparseCollection, rows, to_scipy, uniform_vectors
from sparsebook.data.text import wikipedia_passages
from sparsebook.evaluation.machine import threads
from sparsebook.evaluation.metrics import overlap_at_k
from sparsebook.evaluation.timing import compare, in_processes, paired_median_ratio
from sparsebook.experiments.seismic.scales import Config, Recipe
from sparsebook.experiments.seismic.searchers import (
    SEARCHERS,
    BlockMax,
    Graph,
    Impact,
    MaxScore,
    PySeismic,
    Searcher,
    Seismic,
    Setting,
    SpladeIndex,
    TermAtATime,
    installed,
    searcher,
)
from sparsebook.kernels.inverted_index import InvertedIndex, exact_topk, exact_topk_reference
from sparsebook.retrieval.bm25 import bm25_vectors
from sparsebook.retrieval.seismic import SeismicIndex

Rows = list[dict[str, Any]]
Stages = dict[str, Callable[[], pd.DataFrame]]

MICRO = 1e6
TARGET = 0.95
"""Recall at which growth, share and rivals are compared."""


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
    if config.scale in ("full", "paper") and not config.sabotaged:
        from sparsebook.recorded import run_stages

        return run_stages("seismic", experiment, stages, parameters=asdict(replace(config, _loaded={})))
    return pd.concat([compute() for compute in stages.values()], ignore_index=True)


# Concentration of importance -----------------------------------------------------------------------------


def mass_share(matrix: Tensor, count: int | None = None, share: float | None = None) -> np.ndarray:
    """Share of each row's L1 mass in its `count` heaviest entries, or in its heaviest `share` of them."""
    csr = to_scipy(matrix)
    lengths = np.diff(csr.indptr)
    row = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-csr.data, row))
    rank = np.arange(csr.nnz) - csr.indptr[row]
    limit = np.full(len(lengths), count) if share is None else np.ceil(share * lengths).astype(int)
    kept = np.bincount(row, csr.data[order] * (rank < limit[row]), len(lengths))
    total = np.bincount(row, csr.data, len(lengths))
    return kept[total > 0] / total[total > 0]


def run_concentration(config: Config) -> pd.DataFrame:
    """How much of a vector's mass its heaviest entries hold: the generator, BM25 on real text, uniform."""
    flat = _flat if config.sabotaged else (lambda matrix: matrix)
    out: Rows = []
    n = min(config.n_documents, 2_000)
    for seed in config.collections:
        c = config.collection(n, seed)
        heavy = {
            "queries_top_10": (mass_share(flat(c.queries), 10).mean(), "fraction"),
            "documents_top_50": (mass_share(flat(c.documents), 50).mean(), "fraction"),
        }
        out += tidy("concentration", "generator", seed, heavy)
    text, articles = _bm25_sample(config)
    shares = mass_share(flat(text), share=0.3)
    for article in np.unique(articles):
        value = {"heaviest_30_percent": (shares[articles == article].mean(), "fraction")}
        out += tidy("concentration", "bm25", int(article), value)
    uniform = uniform_vectors(500, 500, config.seed, config.model.vocabulary).documents
    c = config.collection(n, config.seed)
    kinds = {"generator": c.documents, "generator queries": c.queries, "bm25": text, "uniform": uniform}
    for method, matrix in kinds.items():
        for share in np.linspace(0.05, 1, 20):
            value = {"mass": (mass_share(flat(matrix), share=share).mean(), "fraction")}
            out += tidy("concentration", method, config.seed, value, share=round(float(share), 2))
    return pd.DataFrame(out)


def _flat(matrix: Tensor) -> Tensor:
    parts = (matrix.crow_indices(), matrix.col_indices(), torch.ones_like(matrix.values()))
    return torch.sparse_csr_tensor(*parts, size=tuple(matrix.shape), check_invariants=False)


def _bm25_sample(config: Config) -> tuple[Tensor, np.ndarray]:
    """BM25 vectors of passages spread over all articles, and the article of each."""
    passages = wikipedia_passages(words=64)
    n = min(config.n_documents, len(passages.texts))
    chosen = np.linspace(0, len(passages.texts) - 1, n).astype(int)
    vectors = bm25_vectors([passages.texts[i] for i in chosen], [])
    lengths = np.diff(vectors.documents.crow_indices().numpy())
    return vectors.documents, passages.article[chosen][lengths > 0]


# The front: recall against time --------------------------------------------------------------------------


def run_front(config: Config) -> pd.DataFrame:
    """Every search over its grid; then, for each recall asked for, the fastest setting of each, timed anew.

    Settings are chosen on the tuning queries; recall and time are those of the other queries. Rows with
    experiment ``front`` are the grid (one pass in this process), those with ``speed`` the chosen settings in
    processes of their own, interleaved.
    """
    methods = [cls for cls in SEARCHERS if _is_wanted(config, cls)]
    stages: Stages = {f"grid {cls.name}": partial(_grid, config, cls) for cls in methods}
    grid = run(config, stages, "front")
    speed = run(config, {"speed": partial(_speed, config, grid)}, "front")
    return pd.concat([grid, speed], ignore_index=True)


def _is_wanted(config: Config, cls: type[Searcher]) -> bool:
    return installed(cls) and (config.methods is None or cls.name in config.methods)


def recipes_of(config: Config, cls: type[Searcher]) -> tuple[Recipe, ...]:
    """Build parameters tried: the same list for ours and for the authors' package, one for the others."""
    return config.recipes if cls in (Seismic, PySeismic) else (config.recipes[0],)


def _grid(config: Config, cls: type[Searcher]) -> pd.DataFrame:
    c = config.collection()
    tuning, reporting = c.split_queries(config.n_tuning)
    index = InvertedIndex.build(c.documents)
    postings = int(query_postings(index, tuning).mean())
    out: Rows = []
    with threads(1):
        truth = [exact_topk(index, queries, config.k)[0] for queries in (tuning, reporting)]
        for recipe in recipes_of(config, cls):
            engine = _built(config, cls, c.documents, recipe)
            for setting in engine.settings(config.settings, postings):
                out += _grid_point(config, engine, recipe, setting, (tuning, reporting), truth)
    return pd.DataFrame(out)


def _grid_point(
    config: Config,
    engine: Searcher,
    recipe: Recipe,
    setting: Setting,
    queries: tuple[Tensor, Tensor],
    truth: list[Tensor],
) -> Rows:
    metrics: dict[str, tuple[Any, str]] = {}
    for part, q, exact in zip(("_tuning", ""), queries, truth, strict=True):
        prepared, n = engine.prepare(q), q.shape[0]
        start = time.perf_counter()
        answer = engine.run(prepared, config.k, **setting)
        spent = time.perf_counter() - start
        if spent < 1:  # once more, warm
            start = time.perf_counter()
            engine.run(prepared, config.k, **setting)
            spent = min(spent, time.perf_counter() - start)
        recall = overlap_at_k(engine.ids(answer, n, config.k), exact).mean().item()
        metrics |= {f"recall{part}": (recall, "recall"), f"time{part}": (spent / n * MICRO, "us")}
    if isinstance(engine, Seismic):
        touched = engine.touched(queries[1], config.k, **setting)
        metrics["documents"] = (touched["documents"].mean(), "documents")
    return tidy("front", engine.name, config.seed, metrics, recipe=_text(recipe), setting=_text(setting))


def _built(config: Config, cls: type[Searcher], documents: Tensor, recipe: Recipe) -> Searcher:
    if config.sabotaged and cls is Seismic:
        broken = Seismic.build(documents, recipe, config.threads, summary="fixed", summary_length=1)
        return broken.sabotage()
    return cls.build(documents, recipe, config.threads)


def query_postings(index: InvertedIndex, queries: Tensor) -> np.ndarray:
    """Postings of all lists of each query: what an exact search reads."""
    lengths = (index.segments[:, -1] - index.segments[:, 0]).numpy()
    csr = to_scipy(queries)
    return np.add.reduceat(np.append(lengths[csr.indices], 0), csr.indptr[:-1]) * (np.diff(csr.indptr) > 0)


def _text(knobs: Any) -> str:
    return json.dumps(knobs if isinstance(knobs, dict) else asdict(knobs))


def choose(grid: pd.DataFrame, method: str, target: float) -> dict[str, Any] | None:
    """The fastest recipe and setting whose recall on the tuning queries reaches the target."""
    own = grid[(grid.method == method) & (grid.experiment.isin(["front", "growth"]))]
    wide = own.pivot_table(index=["recipe", "setting"], columns="metric", values="value")
    good = wide[wide.recall_tuning >= target] if len(wide) else wide
    if not len(good):
        return None
    recipe, setting = good.time_tuning.idxmin()
    found = good.loc[(recipe, setting)]
    return {
        "method": method,
        "target": target,
        "recipe": recipe,
        "setting": setting,
        "recall": float(found.recall),
    }


def _speed(config: Config, grid: pd.DataFrame) -> pd.DataFrame:
    plan: Rows = []
    for method in dict.fromkeys(grid.method):
        targets = (1.0,) if searcher(method).exact else config.targets
        chosen = [_choose_or_exact(grid, method, target) for target in targets]
        plan += [entry for entry in chosen if entry is not None]
    c = config.collection()
    with tempfile.TemporaryDirectory(prefix="sparsebook-seismic-") as folder:
        _build_chosen(config, c.documents, plan, Path(folder))
        jobs = [{"n": config.n_documents, "plan": plan}]
        return pd.DataFrame(_timed(config, "speed", jobs))


def _choose_or_exact(grid: pd.DataFrame, method: str, target: float) -> dict[str, Any] | None:
    if not searcher(method).exact:
        return choose(grid, method, target)
    row = grid[(grid.method == method) & (grid.metric == "recall")].iloc[0]
    return {
        "method": method,
        "target": 1.0,
        "recipe": row.recipe,
        "setting": "{}",
        "recall": float(row.value),
    }


def _build_chosen(config: Config, documents: Tensor, plan: Rows, folder: Path) -> None:
    """Build and save what a plan needs, each index once; entries get the name of their file."""
    files: dict[tuple[str, str], Path] = {}
    for entry in plan:
        key = (entry["method"], entry["recipe"])
        if key not in files:
            files[key] = folder / f"{entry['method']}-{len(list(folder.iterdir()))}-{len(files)}"
            recipe = Recipe(**json.loads(entry["recipe"]))
            cls = searcher(entry["method"])
            if cls.save is not Searcher.save:
                _built(config, cls, documents, recipe).save(files[key])
        entry["file"] = str(files[key])


def _timed(config: Config, experiment: str, jobs: Rows) -> Rows:
    """Time plans, each process going through all jobs (sizes); one set of rows for every process."""
    arguments: dict[str, Any] = {
        "config": replace(config, _loaded={}),
        "experiment": experiment,
        "jobs": jobs,
    }
    if config.processes == 0:
        results = [time_plans(**arguments) for _ in range(config.in_process)]
    else:
        target = "sparsebook.experiments.seismic.runs:time_plans"
        results = in_processes(target, arguments, config.processes, threads=1, timeout=3000)
    return [row | {"process": i} for i, result in enumerate(results) for row in result]


def time_plans(config: Config, experiment: str, jobs: Rows) -> Rows:
    """What one process measures: medians, and medians of paired ratios over ours at the same recall."""
    out: Rows = []
    whole = config.collection(max(job["n"] for job in jobs))
    with threads(1):
        for job in jobs:
            c = whole.first(min(job["n"], whole.size))
            out += _time_plan(config, experiment, c, job["plan"])
    return out


def _time_plan(config: Config, experiment: str, c: SparseCollection, plan: Rows) -> Rows:
    queries = c.split_queries(config.n_tuning)[1]
    queries = rows(queries, 0, min(config.n_timed, queries.shape[0]))
    few = rows(queries, 0, min(100, queries.shape[0]))
    functions, engines = {}, {}
    for entry in plan:
        key, name = (entry["method"], entry["file"]), f"{entry['method']}@{entry['target']}"
        if key not in engines:
            cls = searcher(entry["method"])
            engines[key] = cls.load(Path(entry["file"]), c.documents, Recipe(**json.loads(entry["recipe"])))
        functions[name] = _call(engines[key], engines[key].prepare(queries), config.k, entry["setting"])
        if experiment == "speed":
            ones = engines[key].one_by_one(few)
            functions[f"{name}|call"] = _calls(engines[key], ones, config.k, entry["setting"])
    seconds = compare(functions, config.repeats, warmup=2)
    out: Rows = []
    for entry in plan:
        name = f"{entry['method']}@{entry['target']}"
        metrics: dict[str, Any] = {"time": (np.median(seconds[name]) / queries.shape[0] * MICRO, "us")}
        if f"{name}|call" in seconds:
            metrics["time_call"] = (np.median(seconds[f"{name}|call"]) / few.shape[0] * MICRO, "us")
        metrics["recall"] = (entry["recall"], "recall")
        knobs = {
            "n": c.size,
            "target": entry["target"],
            "recipe": entry["recipe"],
            "setting": entry["setting"],
        }
        out += tidy(experiment, entry["method"], config.seed, metrics, **knobs)
        for target in (entry["target"],) if entry["target"] < 1 else config.targets:
            ours = f"seismic@{target}"
            if ours in seconds:
                ratio = {"over_ours": (paired_median_ratio(seconds, name, ours), "ratio")}
                out += tidy(experiment, entry["method"], config.seed, ratio, **(knobs | {"target": target}))
        exact = "term_at_a_time@1.0"
        if entry["target"] == 1 and exact in seconds:
            ratio = {"over_exact": (paired_median_ratio(seconds, name, exact), "ratio")}
            out += tidy(experiment, entry["method"], config.seed, ratio, **knobs)
    return out


def _call(engine: Searcher, prepared: Any, k: int, setting: str) -> Callable[[], Any]:
    knobs = json.loads(setting)
    return lambda: engine.run(prepared, k, **knobs)


def _calls(engine: Searcher, ones: list[Any], k: int, setting: str) -> Callable[[], Any]:
    knobs = json.loads(setting)

    def every() -> None:
        for one in ones:
            engine.run(one, k, **knobs)

    return every


# Growth with the collection ------------------------------------------------------------------------------


def run_growth(config: Config) -> pd.DataFrame:
    """Time per query against the number of documents, at recall of at least `TARGET`; exact searches beside.

    Rows with experiment ``growth`` are the tuning, those with ``growth_speed`` the timing in processes.
    """
    stages: Stages = {f"tune n={n}": partial(_tune_size, config, n) for n in config.sizes}
    tuned = run(config, stages, "growth")
    speed = run(config, {"time": partial(_time_sizes, config, tuned)}, "growth")
    return pd.concat([tuned, speed], ignore_index=True)


def growth_recipes(config: Config, n: int) -> tuple[Recipe, ...]:
    """Recipes tried at a size: the lists' length grows with the square root of the collection."""
    factor = n / config.n_documents if config.vectors is None else 1.0
    return tuple(dict.fromkeys(recipe.scaled(factor) for recipe in config.recipes[:4]))


def _tune_size(config: Config, n: int) -> pd.DataFrame:
    c = config.collection(n)
    tuning, reporting = c.split_queries(config.n_tuning)
    index = InvertedIndex.build(c.documents)
    postings = int(query_postings(index, tuning).mean())
    out: Rows = []
    with threads(1):
        truth = [exact_topk(index, queries, config.k)[0] for queries in (tuning, reporting)]
        for cls, recipe in [(Impact, config.recipes[0]), *((Seismic, r) for r in growth_recipes(config, n))]:
            engine = _built(config, cls, c.documents, recipe)
            for setting in engine.settings(config.settings, postings):
                out += _grid_point(config, engine, recipe, setting, (tuning, reporting), truth)
    table = pd.DataFrame(out)
    table["experiment"], table["n"], table["postings"] = "growth", c.size, postings
    return table


def _time_sizes(config: Config, tuned: pd.DataFrame) -> pd.DataFrame:
    with tempfile.TemporaryDirectory(prefix="sparsebook-seismic-") as folder:
        jobs = []
        for n in dict.fromkeys(tuned.n):
            grid = tuned[tuned.n == n]
            plan = [c for m in ("seismic", "impact") if (c := choose(grid, m, TARGET))]
            for cls in (TermAtATime, MaxScore):
                plan.append(
                    {"method": cls.name, "target": 1.0, "recipe": _text(config.recipes[0]), "setting": "{}",
                     "recall": 1.0}
                )  # fmt: skip
            _build_chosen(config, config.collection(n).documents, plan, Path(folder))
            jobs.append({"n": int(n), "plan": plan})
        return pd.DataFrame(_timed(replace(config, targets=(TARGET,)), "growth_speed", jobs))


def run_share(config: Config) -> pd.DataFrame:
    """Share of the query's postings that is touched, over collections and sizes, at recall of `TARGET`."""
    stages: Stages = {f"collection {seed}": partial(_share, config, seed) for seed in config.collections}
    return run(config, stages, "share")


def _share(config: Config, seed: int) -> pd.DataFrame:
    out: Rows = []
    largest = config.collection(max(config.share_sizes), seed)
    for n in config.share_sizes:
        c = largest.first(min(n, largest.size))
        tuning, reporting = c.split_queries(config.n_tuning)
        index = InvertedIndex.build(c.documents)
        recipe = growth_recipes(config, n)[0]
        if config.sabotaged:  # nothing pruned, nothing skipped
            engine: Seismic = Seismic.build(c.documents, replace(recipe, n_postings=n, max_fraction=1e6))
            grid = [{"query_cut": 10**6, "heap_factor": 0.0}]
        else:
            engine, grid = Seismic.build(c.documents, recipe, config.threads), config.settings
        truth = exact_topk(index, tuning, config.k)[0]
        best = _least_touched(config, engine, grid, tuning, truth)
        touched = engine.touched(reporting, config.k, **best)
        found = engine.run(reporting, config.k, **best)[0]
        # Without skipping no summary need be read: the control is charged for its documents alone.
        work = touched["documents"] + (0 if config.sabotaged else touched["summary_entries"])
        metrics = {
            "share": (work.sum() / query_postings(index, reporting).sum(), "fraction"),
            "documents": (touched["documents"].mean(), "documents"),
            "recall": (
                overlap_at_k(found, exact_topk(index, reporting, config.k)[0]).mean().item(),
                "recall",
            ),
        }
        out += tidy("share", "seismic", seed, metrics, n=c.size, recipe=_text(recipe), setting=_text(best))
    return pd.DataFrame(out)


def _least_touched(
    config: Config, engine: Seismic, grid: list[Setting], queries: Tensor, truth: Tensor
) -> Setting:
    """The setting that touches least at the recall asked for; the most accurate one if none reaches it."""
    tried = []
    for setting in grid:
        recall = overlap_at_k(engine.run(queries, config.k, **setting)[0], truth).mean().item()
        touched = engine.touched(queries, config.k, **setting)
        work = touched["documents"].mean() + touched["summary_entries"].mean()
        tried.append((recall < TARGET, work if recall >= TARGET else -recall, setting))
    return min(tried, key=lambda t: t[:2])[2]


# Ablations -----------------------------------------------------------------------------------------------


def run_ablation(config: Config) -> pd.DataFrame:
    """Blocks and summaries of either kind at equal summary bytes, 8 bits against 32, near-exact settings.

    Rows: recall and documents evaluated over the grid of search settings, and bytes, for every collection.
    """
    matched = cache(partial(match_bytes, config))  # only if a collection is still to be measured
    stages: Stages = {
        f"collection {seed}": partial(_ablate, config, seed, matched) for seed in config.collections
    }
    return run(config, stages, "ablation")


def match_bytes(config: Config) -> dict[str, Any]:
    """Knobs that give every arm the summary bytes of Seismic's, found on a collection not reported.

    Interpolated between a few builds.
    """
    c = config.collection(seed=99)
    stats = _arm(c, config, {}).index.stats()
    wanted, mean = stats["summary_entries"], stats["summary_entries"] / max(stats["blocks"], 1)
    found = {"energy": _chunk_energy(c, config, wanted)}
    for blocking in ("kmeans", "fixed"):
        # Short summaries are not filled up to a fixed length, so it lies above the mean of the others.
        guesses = [max(1, round(mean * factor)) for factor in (0.8, 1.0, 1.3)]
        sizes = [_entries(c, config, _fixed_length(blocking, guess)) for guess in guesses]
        found[f"{blocking}_length"] = max(1, round(float(np.interp(wanted, sizes, guesses))))
    return found


def _fixed_length(blocking: str, length: int) -> dict[str, Any]:
    return {"blocking": blocking, "summary": "fixed", "summary_length": length}


def _entries(c: SparseCollection, config: Config, more: dict[str, Any]) -> int:
    return _arm(c, config, more).index.stats()["summary_entries"]


def _arm(c: SparseCollection, config: Config, more: dict[str, Any]) -> Seismic:
    recipe = config.recipes[0]
    if "summary_energy" in more:
        recipe = replace(recipe, summary_energy=more["summary_energy"])
    more = {name: value for name, value in more.items() if name != "summary_energy"}
    return Seismic.build(c.documents, recipe, config.threads, **more)


def _ablate(config: Config, seed: int, matched: Callable[[], dict[str, Any]]) -> pd.DataFrame:
    knobs = matched()
    c = config.collection(seed=seed)
    queries = c.split_queries(config.n_tuning)[1]
    truth = exact_topk(InvertedIndex.build(c.documents), queries, config.k)[0]
    arms: dict[str, dict[str, Any]] = {
        "seismic": {},
        "fixed_blocks": {"blocking": "fixed", "summary_energy": knobs["energy"]},
        "fixed_summaries": _fixed_length("kmeans", knobs["kmeans_length"]),
        "fixed_both": _fixed_length("fixed", knobs["fixed_length"]),
        "float32_summaries": {"quantize": False},
    }
    out: Rows = []
    for name, more in arms.items():
        engine = _arm(c, config, more)
        stats = engine.index.stats()
        if config.sabotaged and name == "seismic":
            engine = engine.sabotage()
        per_value = 4 if name == "float32_summaries" else 1
        scales = 0 if name == "float32_summaries" else 8 * stats["blocks"]
        metrics = {
            "summary_entries": (stats["summary_entries"], "entries"),
            "summary_bytes": (stats["bytes"]["summaries"], "bytes"),
            "value_bytes": (stats["summary_entries"] * per_value + scales, "bytes"),
        }
        out += tidy("ablation", name, seed, metrics, knobs=_text(more))
        for setting in config.settings:
            found = engine.run(queries, config.k, **setting)[0]
            documents = engine.touched(queries, config.k, **setting)["documents"].mean()
            recall = overlap_at_k(found, truth).mean().item()
            metrics = {"recall": (recall, "recall"), "documents": (documents, "documents")}
            out += tidy("ablation", name, seed, metrics, setting=_text(setting))
    near = _built(config, Seismic, c.documents, config.near_exact)
    setting = {"query_cut": 10, "heap_factor": 0.8}
    recall = overlap_at_k(near.run(queries, config.k, **setting)[0], truth).mean().item()
    out += tidy("ablation", "near_exact", seed, {"recall": (recall, "recall")}, setting=_text(setting))
    return pd.DataFrame(out)


def run_spread(config: Config) -> pd.DataFrame:
    """Clusters against chunks at equal summary bytes while the weights within a list become more uneven.

    `spread` is the standard deviation of a weight's logarithm in the generator: near zero the weights of a
    list say nothing about a document, far above it they say nearly everything.
    """
    stages: Stages = {
        f"spread {spread}, collection {seed}": partial(_spread, config, spread, seed)
        for spread in config.spreads
        for seed in config.collections[: config.spread_collections]
    }
    return run(config, stages, "spread")


def _spread(config: Config, spread: float, seed: int) -> pd.DataFrame:
    n = min(config.n_documents, 10_000)
    recipes = growth_recipes(config, n)
    config = replace(config, n_documents=n, recipes=recipes, model=replace(config.model, spread=spread))
    c = config.collection(seed=seed)
    queries = c.split_queries(config.n_tuning)[1]
    truth = exact_topk(InvertedIndex.build(c.documents), queries, config.k)[0]
    clusters = _arm(c, config, {})
    wanted = clusters.index.stats()["summary_entries"]
    chunks = _arm(c, config, {"blocking": "fixed", "summary_energy": _chunk_energy(c, config, wanted)})
    out: Rows = []
    for name, engine in (("seismic", clusters), ("fixed_blocks", chunks)):
        size = {"summary_entries": (engine.index.stats()["summary_entries"], "entries")}
        out += tidy("spread", name, seed, size, spread=spread)
        for setting in config.settings:
            found = engine.run(queries, config.k, **setting)[0]
            documents = engine.touched(queries, config.k, **setting)["documents"].mean()
            recall = overlap_at_k(found, truth).mean().item()
            metrics = {"recall": (recall, "recall"), "documents": (documents, "documents")}
            out += tidy("spread", name, seed, metrics, spread=spread, setting=_text(setting))
    return pd.DataFrame(out)


def _chunk_energy(c: SparseCollection, config: Config, wanted: int) -> float:
    """Share of the mass that gives chunks as many summary entries as the clusters have."""
    energies = np.array([0.2, 0.3, 0.4, 0.5])
    sizes = [_entries(c, config, {"blocking": "fixed", "summary_energy": float(e)}) for e in energies]
    return float(np.interp(wanted, sizes, energies))


def run_sweeps(config: Config) -> pd.DataFrame:
    """lambda, c and alpha one at a time: bytes, recall and documents evaluated; and how those spread."""
    base = config.recipes[0]
    sweeps: dict[str, list[Any]] = {
        "n_postings": [max(5, round(base.n_postings * f)) for f in (0.15, 0.3, 0.6, 1, 2)],
        "centroid_fraction": [0.02, 0.05, 0.1, 0.2],
        "summary_energy": [0.2, 0.3, 0.4, 0.6, 0.8],
    }
    stages: Stages = {
        f"{knob}={value}": partial(_sweep, config, knob, value)
        for knob, values in sweeps.items()
        for value in (values[1::2] if config.scale == "smoke" else values)
    }
    return run(config, stages, "sweeps")


def _sweep(config: Config, knob: str, value: Any) -> pd.DataFrame:
    c = config.collection()
    queries = c.split_queries(config.n_tuning)[1]
    truth = exact_topk(InvertedIndex.build(c.documents), queries, config.k)[0]
    changed: dict[str, Any] = {knob: value}
    recipe = replace(config.recipes[0], **changed)
    engine = Seismic.build(c.documents, recipe, config.threads)
    out: Rows = []
    for cut, h in ((3, 1.0), (5, 0.9), (10, 0.8)):
        setting: Setting = {"query_cut": cut, "heap_factor": h}
        recall = overlap_at_k(engine.run(queries, config.k, **setting)[0], truth).mean().item()
        touched = engine.touched(queries, config.k, **setting)
        metrics = {
            "recall": (recall, "recall"),
            "documents": (touched["documents"].mean(), "documents"),
            "summary_entries": (touched["summary_entries"].mean(), "entries"),
            "bytes": (engine.index.stats()["bytes"]["total"], "bytes"),
        }
        out += tidy("sweeps", "seismic", config.seed, metrics, knob=knob, level=value, setting=_text(setting))
    return pd.DataFrame(out)


# Where the error comes from, and where the method ends ---------------------------------------------------


def run_errors(config: Config) -> pd.DataFrame:
    """The three approximations one after another: lists cut, few lists opened, blocks skipped.

    Also the sizes of the blocks and, for one setting, the documents that each query evaluates.
    """
    c = config.collection()
    queries = c.split_queries(config.n_tuning)[1]
    truth = exact_topk(InvertedIndex.build(c.documents), queries, config.k)[0]
    engine = Seismic.build(c.documents, config.recipes[0], config.threads)
    everything = int(np.diff(queries.crow_indices().numpy()).max())
    out: Rows = []
    for cut in (3, 5, 10):
        steps = {
            "lists cut": (everything, 0.0),
            "few lists opened": (cut, 0.0),
            "blocks skipped, h=0.8": (cut, 0.8),
            "blocks skipped, h=0.9": (cut, 0.9),
            "blocks skipped, h=1.0": (cut, 1.0),
        }
        for step, (opened, h) in steps.items():
            setting: Setting = {"query_cut": opened, "heap_factor": h}
            recall = overlap_at_k(engine.run(queries, config.k, **setting)[0], truth).mean().item()
            documents = engine.touched(queries, config.k, **setting)["documents"]
            metrics = {"recall": (recall, "recall"), "documents": (documents.mean(), "documents")}
            out += tidy("errors", "seismic", config.seed, metrics, step=step, query_cut=cut)
            if (cut, h) == (5, 0.9):
                out += _histogram("errors", "documents_of_queries", documents, config.seed)
    out += _histogram("errors", "block_sizes", engine.index.stats()["block_sizes"], config.seed)
    return pd.DataFrame(out)


def _histogram(experiment: str, metric: str, values: np.ndarray, seed: int) -> Rows:
    edges = np.unique(np.round(np.geomspace(1, max(values.max(), 2) + 1, 25)).astype(int))
    counts, _ = np.histogram(values, edges)
    return [
        row
        for low, count in zip(edges[:-1], counts, strict=True)
        for row in tidy(experiment, "seismic", seed, {metric: (count, "count")}, level=int(low))
    ]


def run_limits(config: Config) -> pd.DataFrame:
    """Three kinds of vectors at about one size: the generator, uniform noise, BM25 on real text.

    For each, recall against the share of the collection that is evaluated, the share of blocks skipped, and
    the length of the lists.
    """
    n = min(config.n_documents, 15_000)
    kinds = {
        "generator": config.collection(n),
        "uniform": _uniform(config, n),
        "bm25": text_collection(config, n),
    }
    return pd.concat([_limits(config, name, c) for name, c in kinds.items()], ignore_index=True)


def _uniform(config: Config, n: int) -> SparseCollection:
    entries = min(119, config.model.vocabulary // 4), min(26, config.model.vocabulary // 8)
    return uniform_vectors(
        n, config.n_tuning + config.n_queries, config.seed, config.model.vocabulary, *entries
    )


def text_collection(config: Config, n: int | None = None) -> SparseCollection:
    """BM25-weighted Wikipedia passages; real sentences taken out of the text before it was cut as queries."""
    passages = wikipedia_passages(words=64, held_out=config.n_tuning + config.n_queries, seed=config.seed)
    chosen = np.linspace(0, len(passages.texts) - 1, min(n or 10**9, len(passages.texts))).astype(int)
    vectors = bm25_vectors([passages.texts[i] for i in chosen], passages.queries)
    return SparseCollection(vectors.documents, vectors.queries, vectors.tokens)


def _limits(config: Config, name: str, c: SparseCollection) -> pd.DataFrame:
    queries = c.split_queries(config.n_tuning)[1]
    index = InvertedIndex.build(c.documents)
    exact = TermAtATime(index)
    truth = exact.run(queries, config.k)[0]
    engine = Seismic.build(c.documents, config.recipes[0], config.threads)
    stats = engine.index.stats()
    blocks = stats["block_counts"][stats["block_counts"] > 0]
    lists = {
        "documents": (c.size, "documents"),
        "postings_per_query": (query_postings(index, queries).mean(), "postings"),
        "blocks_per_list": (
            np.average(blocks, weights=stats["list_lengths"][stats["list_lengths"] > 0]),
            "blocks",
        ),
        "lists_of_one_block": ((blocks == 1).mean(), "fraction"),
    }
    out = tidy("limits", name, config.seed, lists)
    for setting in config.settings:
        recall = overlap_at_k(engine.run(queries, config.k, **setting)[0], truth).mean().item()
        touched = engine.touched(queries, config.k, **setting)
        seen = touched["blocks_visited"].sum() + touched["blocks_skipped"].sum()
        metrics = {
            "recall": (recall, "recall"),
            "evaluated": (touched["documents"].mean() / c.size, "fraction"),
            "skipped": (touched["blocks_skipped"].sum() / max(seen, 1), "fraction"),
        }
        out += tidy("limits", name, config.seed, metrics, setting=_text(setting))
    with threads(1):
        functions = {"exact": lambda: exact.run(queries, config.k)}
        functions["ours"] = lambda: engine.run(queries, config.k, query_cut=8, heap_factor=0.8)
        seconds = compare(functions, config.repeats, warmup=1)
    micro: dict[str, Any] = {
        f"time_{name}": (np.median(s) / queries.shape[0] * MICRO, "us") for name, s in seconds.items()
    }
    return pd.DataFrame(out + tidy("limits", name, config.seed, micro))


# Building ------------------------------------------------------------------------------------------------


def run_build(config: Config) -> pd.DataFrame:
    """Build time on two threads in processes of their own, and bytes, ours beside others'."""
    return run(config, {"build": partial(_build, config)}, "build")


def _build(config: Config) -> pd.DataFrame:
    arguments = {"config": replace(config, _loaded={})}
    if config.processes == 0:
        results = [time_builds(**arguments) for _ in range(config.in_process)]
    else:
        target = "sparsebook.experiments.seismic.runs:time_builds"
        results = in_processes(target, arguments, config.processes, threads=config.threads, timeout=3000)
    return pd.DataFrame([row | {"process": i} for i, result in enumerate(results) for row in result])


def time_builds(config: Config) -> Rows:
    """Build every index once in this process (after a small one, so that compilation is not counted)."""
    c, recipe = config.collection(), config.recipes[0]
    Seismic.build(c.first(min(200, c.size)).documents, recipe, config.threads)
    spent = {"seismic": _spent(lambda: _rebuilt(config, c, recipe))}
    sizes = {}
    if _is_wanted(config, PySeismic):
        dataset = PySeismic.dataset(c.documents)
        peer: list[Any] = []
        spent["pyseismic"] = _spent(
            lambda: peer.append(PySeismic.from_dataset(dataset, recipe, config.threads))
        )
        sizes["pyseismic"] = {f"bytes_{part}": (size, "bytes") for part, size in peer[0].bytes().items()}
    if _is_wanted(config, Graph):
        spent["hnsw"] = _spent(lambda: Graph.build(c.documents, recipe, config.threads))
    if _is_wanted(config, BlockMax):
        spent["bmp"] = _spent(lambda: BlockMax.build(c.documents))
    spent["term_at_a_time"] = _spent(lambda: InvertedIndex.build(c.documents))
    parts = Seismic.build(c.documents, recipe, config.threads).index.stats()["bytes"]
    sizes["seismic"] = {f"bytes_{part}": (size, "bytes") for part, size in parts.items()}
    exact = InvertedIndex.build(c.documents).stats()
    total = sum(value for name, value in exact.items() if name.startswith("bytes"))
    sizes["term_at_a_time"] = {"bytes_total": (total, "bytes")}
    out: Rows = []
    for method, seconds in spent.items():
        metrics = {"build": (seconds, "s"), "over_ours": (seconds / spent["seismic"], "ratio")}
        out += tidy("build", method, config.seed, metrics | sizes.get(method, {}), recipe=_text(recipe))
    return out


def _rebuilt(config: Config, c: SparseCollection, recipe: Recipe) -> None:
    for _ in range(20 if config.sabotaged else 1):
        Seismic.build(c.documents, recipe, config.threads)


def _spent(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# One live cell -------------------------------------------------------------------------------------------


def run_live(config: Config) -> pd.DataFrame:
    """One cell of the recorded tables, measured here and now: the first recipe at cut 5, h 0.9."""
    c = config.collection()
    queries = c.split_queries(config.n_tuning)[1]
    exact = TermAtATime.build(c.documents)
    ours = Seismic.build(c.documents, config.recipes[0], config.threads)
    setting: Setting = {"query_cut": 5, "heap_factor": 0.9}
    found, truth = ours.run(queries, config.k, **setting)[0], exact.run(queries, config.k)[0]
    functions = {
        "seismic": _call(ours, queries, config.k, _text(setting)),
        "term_at_a_time": _call(exact, queries, config.k, "{}"),
    }
    with threads(1):
        seconds = compare(functions, config.repeats, warmup=2)
    touched = ours.touched(queries, config.k, **setting)
    metrics = {
        "recall": (overlap_at_k(found, truth).mean().item(), "recall"),
        "documents": (touched["documents"].mean(), "documents"),
        "summary_entries": (touched["summary_entries"].mean(), "entries"),
        "postings": (query_postings(exact.index, queries).mean(), "postings"),
        "over_ours": (paired_median_ratio(seconds, "term_at_a_time", "seismic"), "ratio"),
    }
    return pd.DataFrame(tidy("live", "seismic", config.seed, metrics, n=c.size, setting=_text(setting)))


# Checks of recorded tables -------------------------------------------------------------------------------


def fingerprint(n_documents: int = 3_000, seed: int = 0) -> list[float]:
    """Recall and documents evaluated for five queries: the first steps of every experiment, no times."""
    config = Config.at("full", seed=seed, n_documents=n_documents, n_tuning=5, n_queries=5)
    c = config.collection()
    queries = c.split_queries(5)[1]
    ids, scores = exact_topk(InvertedIndex.build(c.documents), queries, 10)
    reference = exact_topk_reference(c.documents, queries, 10)[1]
    engine = Seismic.build(c.documents, Recipe(100))
    found = engine.run(queries, 10, query_cut=5, heap_factor=0.9)[0]
    documents = engine.touched(queries, 10, 5, 0.9)["documents"]
    agree = float((scores - reference).abs().max() < 1e-4)
    return [*overlap_at_k(found, ids).tolist(), *map(float, documents), *scores[:, 0].tolist(), agree]


def slopes(config: Config) -> Iterator[tuple[int, float, float]]:
    """Five times, seconds of two twins over the sizes: nothing pruned or skipped; one size at every N."""
    whole = config.collection(max(config.sizes))
    small = TermAtATime.build(whole.first(config.sizes[0]).documents)
    queries = whole.split_queries(config.n_tuning)[1]
    for n in config.sizes:
        index = SeismicIndex.build(whole.first(n).documents, n_postings=n, max_fraction=1e6)
        functions = {
            "exhaustive": _call(
                Seismic(index), queries, config.k, '{"query_cut": 1000000, "heap_factor": 0.0}'
            ),
            "constant": _call(small, queries, config.k, "{}"),
        }
        with threads(1):
            seconds = compare(functions, repeats=5, warmup=1)
        for repeat in range(5):
            yield n, seconds["exhaustive"][repeat], seconds["constant"][repeat]


def reference_ratios(config: Config) -> list[float]:
    """Control of the exact baseline: the best installable search over twenty plain PyTorch ones.

    Twenty, because on a collection of a second all searches cost about the same. Without splade-index, which
    compiles for half a minute: the fewer rivals, the slower the best of them, and the harder to break.
    """
    c = config.collection()
    queries = c.split_queries(config.n_tuning)[1]
    functions: dict[str, Callable[[], Any]] = {}
    for cls in SEARCHERS:
        if cls.exact and cls not in (TermAtATime, MaxScore, SpladeIndex) and installed(cls):
            rival = cls.build(c.documents)
            functions[rival.name] = _call(rival, rival.prepare(queries), config.k, "{}")
    functions["reference"] = lambda: [exact_topk_reference(c.documents, queries, config.k) for _ in range(20)]
    with threads(1):
        seconds = compare(functions, repeats=5, warmup=1)
    rounds = [min(seconds[name][i] for name in functions if name != "reference") for i in range(5)]
    return [best / slow for best, slow in zip(rounds, seconds["reference"], strict=True)]
