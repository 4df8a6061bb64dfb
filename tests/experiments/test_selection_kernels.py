"""The experiments of the chapter on selection, small."""

import sys
import types
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch

from sparsebook import recorded
from sparsebook.experiments import selection_kernels as experiment
from sparsebook.experiments.selection_kernels import against, choices, memory, peers, results, speed
from sparsebook.experiments.selection_kernels.scales import Config
from sparsebook.experiments.selection_kernels.speed import TASKS

TINY = {
    "rows": 64, "columns": 512, "k": 4, "width": 40, "sweep_rows": 64, "sweep": (2, 8), "seeds": (1, 2),
    "memory_columns": (256, 512), "pursuit_rows": 40, "pursuit_dim": 24, "pursuit_atoms": 64,
    "pursuit_steps": 4, "few": 6, "step_rows": 40, "step_width": 24, "step_latents": 96, "step_k": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def config() -> Config:
    return Config.at("smoke", threads=1, **TINY)


@pytest.fixture(scope="module")
def found(config: Config) -> dict[str, pd.DataFrame]:
    return experiment.tables(config)


@pytest.mark.parametrize("scale", ["smoke", "book", "full", "paper"])
def test_every_scale_constructs(scale: str) -> None:
    config = Config.at(scale, seed=3)
    assert (config.scale, config.seed) == (scale, 3)
    assert config.rows * config.k >= config.columns // 2


def test_an_unknown_scale() -> None:
    with pytest.raises(ValueError, match="scale must be one of smoke, book, full, paper, got 'huge'"):
        Config.at("huge")


@pytest.mark.slow
def test_tables_are_tidy_and_complete(found: dict[str, pd.DataFrame], config: Config) -> None:
    for name, table in found.items():
        assert tuple(table.columns[: len(recorded.COLUMNS)]) == recorded.COLUMNS
        assert set(table.experiment) == {name}
        assert np.isfinite(table.value).all()
        assert (table.value >= 0).all()
    methods = found["speed"].groupby("task").method.agg(set)
    assert list(found["speed"].task.unique()) == list(TASKS)
    for task in TASKS[:-1]:
        assert methods[task] >= {"limit", "ours", "torch.topk"}
    assert methods["decode"] == {"limit", "ours", "embedding_bag", "dense codes"}
    assert set(found["sweep"].k) == set(config.sweep)
    assert set(found["memory"].method) == set(memory.METHODS)
    assert set(found["pursuit"].task) == {"matching", "orthogonal"}
    assert set(found["training"].method) >= {"ours", "ours, BatchTopK", "dense codes", "limit"}


# What is compared ----------------------------------------------------------------------------------------


def test_every_method_of_a_task_computes_the_same(config: Config) -> None:
    """What is timed against each other is the same selection, and the same product with its gradients."""
    x = choices.affinities(config.rows, config.columns, 0)
    for task, (fast, slow) in speed.selection_functions(config, x).items():
        if task == "uneven columns":
            continue  # torch.topk has to take more
        mine, theirs = fast["ours"](), (fast | slow)["torch.topk"]()
        assert torch.equal(*(found.values.flatten().sort().values for found in (mine, theirs)))
    fast, slow = speed.decode_functions(config, 0)
    ours = fast["ours"]()
    for theirs in (fast["embedding_bag"](), slow["dense codes"]()):
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_bytes_and_operations() -> None:
    config = Config.at("full", rows=10, columns=100, width=8)
    assert speed.decode_bytes(config) == 4 * 8 * (3 * 100 + 2 * 10)
    assert memory.least_bytes(config, 100) == 4 * (10 * 8 + 10 * 32 + 100 * 8)
    config = Config.at("full", pursuit_rows=3, pursuit_dim=5, pursuit_atoms=7, pursuit_steps=2)
    assert against.pursuit_work(config) == (2 * (3 * 5 * 7 + 7 * 5 * 7), 4 * 3 * 2 * 7)
    assert against.pursuit_limit(config, 10.0, 4.0) == (2 * 350) / 10 + 42
    config = Config.at("full", step_rows=3, step_width=5, step_latents=7)
    assert against.training_work(config) == (2 * 3 * 5 * 7, 28 * 70)


def test_a_dense_decode_holds_tokens_by_latents_and_ours_does_not() -> None:
    """Read off the process: a matrix of 64 MB that one method makes, and ours is a small part of."""
    config = Config.at("smoke", rows=1024, columns=16_384, k=2, width=4, memory_columns=(16_384,), threads=1)
    table = memory.run_memory(config)
    assert results.memory_share(table, config, "dense codes") > 1
    assert results.memory_share(table, config) < 0.3


def test_uneven_counts() -> None:
    m = choices.uneven_counts(1000, 4000, 300)
    assert m.max() <= 300
    assert (m[1:] <= m[:-1]).all()
    assert abs(int(m.sum()) - 4000) < 200


def test_codes_agree_where_their_picks_do() -> None:
    mine = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    theirs = torch.tensor([[0.0, 1.0, 2.5], [0.0, 1.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    assert against.agreement_of_codes(mine, theirs) == {"equal picks": 0.75, "largest difference": 0.5}
    assert against.agreement_of_codes(mine[:1], mine[1:2])["equal picks"] == 0


def test_how_close_two_choices_come() -> None:
    dictionary = torch.eye(3)
    x = torch.tensor([[4.0, 3.0, 1.0], [4.0, 2.0, 1.99]])
    torch.testing.assert_close(against.closest_choice(x, dictionary, 1), torch.tensor([0.25, 0.5]).double())
    closest = against.closest_choice(x, dictionary, 2)
    torch.testing.assert_close(closest, torch.tensor([0.25, 0.005]).double(), rtol=1e-5, atol=0)


def test_the_dense_autoencoder_is_the_sparse_one() -> None:
    """Two trainings of one step, from one start: the same dictionary comes out."""
    from sparsebook.features.sae import TopKSAE

    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    models = [TopKSAE(12, 40, 3), against.DenseTopKSAE(12, 40, 3)]
    for model in models:
        against.our_step(model, x)()
    torch.testing.assert_close(models[0].decoder, models[1].decoder, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(models[0].encoder, models[1].encoder, rtol=1e-4, atol=1e-5)


# Peers ---------------------------------------------------------------------------------------------------


def test_peers_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = peers.importlib.util.find_spec
    monkeypatch.setattr(
        peers.importlib.util, "find_spec", lambda name: None if name == "sae_lens" else real(name)
    )
    assert peers.missing("training") == ["sae-lens"]
    assert peers.versions("training") == {}
    assert peers.missing("speed") == []
    monkeypatch.setattr(peers.importlib.util, "find_spec", real)
    assert set(peers.versions("pursuit")) >= {"scikit-learn"} - set(peers.missing("pursuit"))


def test_a_package_is_loaded_without_what_it_imports(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose __init__ fails: its module is found all the same, with the names that it is given."""
    package = tmp_path / "brokenpeer" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "brokenpeer" / "__init__.py").write_text("import a_package_that_is_nowhere\n")
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("from brokenpeer import needed\nANSWER = needed + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = peers._module("brokenpeer.inner.part", lambda: peers._bare("brokenpeer", needed=41))
    assert module.ANSWER == 42
    for name in [name for name in sys.modules if name.startswith("brokenpeer")]:
        del sys.modules[name]
    with pytest.raises(ImportError):
        peers._module("peer_that_is_nowhere.part", lambda: None)


@pytest.mark.peer
def test_overcomplete_takes_the_same_atoms() -> None:
    pytest.importorskip("einops")
    if "overcomplete" in peers.missing("pursuit"):
        pytest.skip("overcomplete is not installed")
    x, dictionary = choices.unit_problem(200, 24, 60, seed=0)
    _, slow, equal = against.matching_functions(Config.at("smoke", **TINY), x, dictionary)
    assert set(slow) == {"overcomplete"}
    assert equal["overcomplete"]["equal picks"] == 1
    assert equal["overcomplete"]["largest difference"] < 1e-5


def test_scikit_learn_takes_the_same_atoms(config: Config) -> None:
    pytest.importorskip("sklearn")
    x, dictionary = choices.unit_problem(40, 24, 60, seed=0)
    _, slow, equal = against.orthogonal_functions(config, x, dictionary)
    assert set(slow) == {"all vectors", "scikit-learn"}
    assert equal["scikit-learn"]["equal picks"] == 1
    assert equal["scikit-learn"]["largest difference"] < 1e-5


# What is shown -------------------------------------------------------------------------------------------


def test_exactness_finds_differences_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not experiment.run_exactness(60, 300).to_numpy().any()
    real = choices.global_topm
    monkeypatch.setattr(choices, "global_topm", lambda x, m: real(-x, m))
    assert experiment.run_exactness(60, 300).loc["normal", "all"] > 0


def test_pursuits_agree_with_their_references(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"rows": 60, "dim": 20, "atoms": 50, "steps": 4}
    assert experiment.run_pursuit_error(**small).eq(["100.0%", True]).all(axis=None)
    real = choices.matching_pursuit
    monkeypatch.setattr(choices, "matching_pursuit", lambda x, *rest, **more: real(x.flip(0), *rest, **more))
    assert experiment.run_pursuit_error(**small).iloc[0, 0] != "100.0%"


def test_every_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = experiment.run_refusals()
    assert not table["ValueError"].eq("(accepted)").any()
    assert "number of columns, 6, got 7" in table.loc["k larger than the columns", "ValueError"]
    monkeypatch.setattr(choices, "row_topk", lambda x, k: torch.topk(x, min(k, 2)))
    assert experiment.run_refusals().loc["k larger than the columns", "ValueError"] == "(accepted)"


def test_allocations_have_the_same_budget() -> None:
    found = experiment.run_allocations()
    totals = {name: int(mask.sum()) for name, mask in found.items() if name != "affinities"}
    assert set(totals.values()) == {36}
    assert set(found["rows"].sum(1).tolist()) == {3.0}
    assert set(found["columns"].sum(0).tolist()) == {1.0, 2.0}


def test_histogram_and_errors() -> None:
    found = experiment.run_histogram()
    assert found["counts"].sum() == found["elements"]
    assert found["limit"] <= found["threshold"]
    assert found["selected"] <= found["candidates"] < 2 * found["selected"]
    assert (experiment.run_decode_error().to_numpy() < 1e-5).all()


def test_figures_and_tables(found: dict[str, pd.DataFrame], config: Config) -> None:
    import matplotlib.pyplot as plt

    for figure in (
        experiment.draw_allocations(experiment.run_allocations()),
        experiment.draw_histogram(experiment.run_histogram(64, 4096, 4)),
        experiment.draw_speed(found["speed"]),
        experiment.draw_sweep(found["sweep"]),
        experiment.draw_peers(found["pursuit"], found["training"]),
        experiment.draw_memory(found["memory"], config),
    ):
        assert figure.axes
        plt.close(figure)
    assert all(experiment.answers(found, config).values())
    assert experiment.speed_table(found["speed"]).notna().all(axis=None)
    assert ("step", "ours") in experiment.peers_table(found).index
    assert experiment.limits_table(found, config).shape == (6, 6)
    assert list(experiment.memory_table(found["memory"], config).index) == list(config.memory_columns)


def test_bars_that_are_missed_are_told(found: dict[str, pd.DataFrame], config: Config) -> None:
    slow = {name: table.copy() for name, table in found.items()}
    ratios = slow["speed"].metric == "over ours"
    slow["speed"].loc[ratios, "value"] = 2.0
    slow["speed"].loc[ratios & (slow["speed"].method == "limit"), "value"] = 0.5
    table = experiment.demands(slow, config)
    assert table.met["matrix: our time over one read"] == "yes"
    assert table.met["decode: F.embedding_bag's time over ours"] == "yes"
    assert table.met["decode: dense codes' time over ours"] == "no"
    assert "missed: decode: dense codes" in experiment.answers(slow, config)["met"]


def test_what_was_not_measured_is_said(found: dict[str, pd.DataFrame], config: Config) -> None:
    less = dict(found)
    less["training"] = found["training"][~found["training"].method.str.startswith("SAELens")]
    assert experiment.demands(less, config).met["training step: SAELens' time over ours"] == "(not measured)"
    answers = experiment.answers(less, config)
    assert answers["step_peer"] == "(not measured)"
    assert "more could not be measured" in answers["met"]


def test_the_live_cell(found: dict[str, pd.DataFrame], config: Config) -> None:
    live = experiment.run_live(config)
    assert live >= 1
    assert experiment.agreement(live, {"candidates": found["candidates"]}).value == live
    assert not experiment.agreement(1e6, {"candidates": found["candidates"]}).inside


# Records -------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_repeatable() -> None:
    assert results.fingerprint() == results.fingerprint()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, types.SimpleNamespace]:
    """What `record` keeps, and nothing is written."""
    kept: dict[str, types.SimpleNamespace] = {}

    def save(slug: str, name: str, table: pd.DataFrame, **more: object) -> None:
        kept[name] = types.SimpleNamespace(table=table, **more)

    monkeypatch.setattr(recorded, "save", save)
    return kept


def test_recording(kept: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """`record` keeps tables that `tables` finds again at scale `book`."""
    monkeypatch.setattr(results, "EXPERIMENTS", {"candidates": choices.run_candidates})
    config = Config(**(asdict(Config.at("smoke")) | TINY))
    assert experiment.record(config, ("candidates",)) == []
    assert list(kept) == ["candidates"]
    load = lambda slug, name: recorded.Recorded(kept[name].table, {})  # noqa: E731
    monkeypatch.setattr(recorded, "load", load)
    assert experiment.tables(Config.at("book"))["candidates"] is kept["candidates"].table


def test_a_table_that_cannot_be_recorded_leaves_the_others(
    kept: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(config: Config) -> pd.DataFrame:
        raise RuntimeError("out of luck")

    experiments = {"memory": fails, "training": against.run_training, "candidates": choices.run_candidates}
    monkeypatch.setattr(results, "EXPERIMENTS", experiments)
    monkeypatch.setattr(peers, "missing", lambda name: ["sae-lens"] if name == "training" else [])
    failed = experiment.record(Config.at("smoke", **TINY), tuple(experiments))
    assert failed == ["memory: out of luck", "training: not installed: sae-lens"]
    assert list(kept) == ["candidates"]
    assert kept["candidates"].parameters["peers"] == {}
