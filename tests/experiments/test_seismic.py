"""The chapter's experiments: arithmetic on known tables, every search behind one interface, all scales."""

import inspect
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sparsebook.claims import find_claims, load_claims
from sparsebook.data.sparse_vectors import topic_vectors, write_vectors
from sparsebook.evaluation.metrics import overlap_at_k
from sparsebook.experiments import seismic as experiment
from sparsebook.experiments.seismic import runs, verdicts
from sparsebook.experiments.seismic.scales import Config, Recipe
from sparsebook.experiments.seismic.searchers import SEARCHERS, SpladeIndex, installed
from sparsebook.kernels.inverted_index import InvertedIndex, exact_topk


@pytest.fixture(scope="module")
def collection():
    return Config.at("smoke").collection(600, seed=5)


@pytest.mark.parametrize("cls", SEARCHERS, ids=lambda cls: cls.name)
def test_every_search_finds_the_same(cls, collection, tmp_path):
    """Exact searches agree, approximate ones come close with their largest budget, reloaded too."""
    if not installed(cls):
        pytest.skip(f"the package behind {cls.name} is not installed")
    if cls is SpladeIndex:
        pytest.skip("compiles for a quarter of a minute in every process; the benchmarks run it")
    truth = exact_topk(InvertedIndex.build(collection.documents), collection.queries, 10)[0]
    engine = cls.build(collection.documents, Recipe(300, 0.1, 0.4))
    engine.save(tmp_path / "index")
    again = cls.load(tmp_path / "index", collection.documents, Recipe()) if cls.name != "bmp" else engine
    settings = engine.settings([{"query_cut": 30, "heap_factor": 0.5}], 3000)
    best = []
    for setting in settings:
        answer = again.run(again.prepare(collection.queries), 10, **setting)
        ids = again.ids(answer, collection.queries.shape[0], 10)
        assert ids.shape == truth.shape
        best.append(overlap_at_k(ids, truth).mean().item())
    assert max(best) > (0.999 if cls.exact else 0.9)


def test_single_queries_answer_like_the_batch(collection):
    engine = SEARCHERS[0].build(collection.documents, Recipe(100))
    batch = engine.run(collection.queries, 10, query_cut=4, heap_factor=0.9)[0]
    ones = [
        engine.run(one, 10, query_cut=4, heap_factor=0.9)[0][0]
        for one in engine.one_by_one(collection.queries)
    ]
    assert torch.equal(batch, torch.stack(ones))


def test_mass_share():
    matrix = torch.tensor([[4.0, 3.0, 2.0, 1.0], [0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).to_sparse_csr()
    assert runs.mass_share(matrix, 1).tolist() == [0.4, 1.0]
    assert runs.mass_share(matrix, share=0.5).tolist() == [0.7, 1.0]


def test_query_postings():
    documents = torch.tensor([[1.0, 0, 2], [1.0, 1, 0], [0, 0, 0]]).to_sparse_csr()
    queries = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 0, 1]]).to_sparse_csr()
    assert runs.query_postings(InvertedIndex.build(documents), queries).tolist() == [3, 0, 1]


def _growth(ours, exact, processes=5):
    rows = []
    for process in range(processes):
        for n in (1_000, 10_000, 100_000):
            for method, micro in (
                ("seismic", ours(n)),
                ("term_at_a_time", exact(n)),
                ("maxscore", 2 * exact(n)),
            ):
                rows += runs.tidy("growth_speed", method, 0, {"time": (micro, "us")}, n=n, process=process)
    return pd.DataFrame(rows)


def test_slopes_crossings_and_the_tenfold_size():
    growth = _growth(ours=lambda n: n**0.25, exact=lambda n: n / 1000)
    assert verdicts.growth_slopes(growth, "seismic") == pytest.approx([0.25] * 5)
    assert verdicts.growth_slopes(growth, "term_at_a_time") == pytest.approx([1.0] * 5)
    best = verdicts.growth_ratios(growth, "best exact")
    assert best.to_numpy()[0] == pytest.approx([1e3**-0.25, 10 ** (1 - 1.0), 100 / 1e5**0.25])
    # n / 1000 = 10 n ** 0.25 at n = 10 ** (16 / 3)
    assert verdicts.tenfold(best) == pytest.approx([16 / 3] * 5)
    flat = verdicts.growth_ratios(_growth(lambda n: n, lambda n: n / 2), "best exact")
    assert verdicts.tenfold(flat).tolist() == [9.0] * 5


def test_a_recall_that_is_not_reached_cannot_win():
    growth = _growth(ours=lambda n: 1.0, exact=lambda n: n)
    missing = growth[(growth.method != "seismic") | (growth.n != 100_000)]
    assert verdicts.growth_ratios(missing, "term_at_a_time")[100_000].tolist() == [verdicts.UNREACHED] * 5
    none = growth[growth.method != "seismic"]
    assert (verdicts.growth_ratios(none, "term_at_a_time") == verdicts.UNREACHED).all(axis=None)


def _ablation(cost):
    rows = []
    for seed in (1, 2):
        for method, factor in cost.items():
            for i, recall in enumerate(np.linspace(0.85, 1.0, 7)):
                metrics = {
                    "recall": (recall, "recall"),
                    "documents": (factor * 100 * 2 ** (10 * recall), "documents"),
                }
                rows += runs.tidy("ablation", method, seed, metrics, setting=json.dumps({"i": i}))
    return pd.DataFrame(rows)


def test_advantage_is_the_ratio_of_the_fronts():
    table = _ablation({"seismic": 1.0, "fixed_blocks": 1.3})
    assert verdicts.advantage(table, "fixed_blocks", "seismic") == pytest.approx([1.3, 1.3])
    low = table.copy()
    low.loc[(low.method == "seismic") & (low.metric == "recall"), "value"] *= 0.8
    assert verdicts.advantage(low, "fixed_blocks", "seismic").tolist() == [verdicts.UNREACHED] * 2


def test_choice_is_the_fastest_that_reaches_the_recall():
    rows = []
    for setting, recall, micro in (("a", 0.90, 1.0), ("b", 0.96, 5.0), ("c", 0.97, 3.0), ("d", 0.99, 9.0)):
        metrics = {"recall_tuning": (recall, ""), "time_tuning": (micro, "us"), "recall": (recall - 0.01, "")}
        rows += runs.tidy("front", "seismic", 0, metrics, recipe="{}", setting=setting)
    grid = pd.DataFrame(rows)
    assert runs.choose(grid, "seismic", 0.95)["setting"] == "c"
    assert runs.choose(grid, "seismic", 0.95)["recall"] == pytest.approx(0.96)
    assert runs.choose(grid, "seismic", 0.995) is None


def test_scales():
    for scale in ("smoke", "book", "full"):
        assert experiment.config(scale).scale == scale
    with pytest.raises(ValueError, match="scale must be one of"):
        Config.at("huge")
    with pytest.raises(ValueError, match="needs vectors"):
        Config.at("paper")


def test_paper_scale_on_a_folder_in_the_published_layout(tmp_path):
    """Two experiments on a fabricated folder: no branch of scale `paper` is dead."""
    small = Config.at("smoke")
    drawn = topic_vectors(300, 40, model=small.model)
    for name, matrix in (("documents", drawn.documents), ("queries", drawn.queries)):
        with (tmp_path / f"{name}.jsonl").open("w") as stream:
            for i, row in enumerate(matrix.to_dense()):
                vector = {f"t{j}": round(float(row[j]), 4) for j in row.nonzero().flatten()}
                stream.write(json.dumps({"id": i, "content": "", "vector": vector}) + "\n")
    config = Config.at("paper", vectors=str(tmp_path), n_tuning=20, n_queries=20)
    config = replace(config, processes=0, in_process=2, repeats=2, methods=("seismic", "term_at_a_time"))
    live = runs.run_live(config).set_index("metric")["value"]
    assert live.recall > 0.9
    grid = runs._grid(config, SEARCHERS[0])
    assert grid[grid.metric == "recall"].value.max() > 0.95
    assert (grid.recipe.str.contains("4000")).any()


def test_own_vectors_take_the_place_of_the_generator(tmp_path):
    drawn = topic_vectors(120, 30, model=Config.at("smoke").model)
    write_vectors(tmp_path, drawn)
    config = Config.at("smoke", vectors=str(tmp_path), n_tuning=10, n_queries=10)
    assert config.collection().size == 120
    assert config.collection(50).size == 50
    assert config.collection().queries.shape[0] == 20
    assert not torch.equal(
        config.collection(seed=1).queries.to_dense(), config.collection(seed=2).queries.to_dense()
    )


def test_every_testable_claim_gets_samples():
    """The names that `claim_samples` supplies are those that the claims file declares as testable."""
    declared = {claim.id for claim in load_claims(find_claims("seismic")).claims if claim.needs is None}
    assert declared <= set(re.findall(r'"([CH]\d\w?)"', inspect.getsource(verdicts)))


def test_fingerprint_repeats():
    assert experiment.fingerprint(500) == experiment.fingerprint(500)


def test_a_rival_that_is_not_installed_leaves_its_claims_untested():
    """Missing is not the same as slow: no ratio is made up for a search that never ran."""
    from sparsebook.claims import Ledger

    config = Config.at("book")
    gone = ("hnsw", "pyseismic", "pyseismic_scan", "bmp", "splade_index")
    found = {name: table[~table.method.isin(gone)] for name, table in experiment.tables(config).items()}
    ledger = Ledger.open("seismic", scale="smoke")
    verdicts.check_claims(ledger, found, config)
    rows = {row["id"]: row for row in ledger.report().rows}
    for claim, package in (("C3b", "nmslib"), ("C7c", "nmslib"), ("H1a", "pyseismic"), ("H3", "exact")):
        assert rows[claim]["verdict"] == "untested"
        assert package in rows[claim]["why"]
    assert rows["C2d"]["verdict"] != "untested"
    assert verdicts.answers(found, config)["peer_ratio_a"] == "(not installed)"


def test_the_matched_ratio_holds_ours_to_the_recall_that_the_rival_reached():
    rows = []
    for method, points in (("seismic", ((10, 0.95), (30, 0.97))), ("pyseismic", ((60, 0.96), (20, 0.90)))):
        for i, (micro, recall) in enumerate(points):
            metrics = {"time": (micro, "us"), "recall": (recall, "recall")}
            rows += runs.tidy("front", method, 0, metrics, recipe="r", setting=str(i))
    rows += runs.tidy("speed", "pyseismic", 0, {"recall": (0.96, "recall")}, target=0.95)
    assert verdicts.matched_ratio(pd.DataFrame(rows), 0.95) == 60 / 30
