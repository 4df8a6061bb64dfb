"""The experiments of the chapter on selection, small."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch

from sparsebook.experiments import selection_kernels as experiment
from sparsebook.experiments.selection_kernels import TASKS, Config
from sparsebook.recorded import COLUMNS

TINY = {"rows": 64, "columns": 512, "k": 4, "width": 40, "sweep_rows": 64, "sweep": (2, 8), "seeds": (1, 2)}


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


def test_tables_are_tidy_and_complete(found: dict[str, pd.DataFrame], config: Config) -> None:
    for name, table in found.items():
        assert tuple(table.columns[: len(COLUMNS)]) == COLUMNS
        assert set(table.experiment) == {name}
        assert np.isfinite(table.value).all()
        assert (table.value > 0).all()
    methods = found["speed"].groupby("task").method.agg(set)
    assert list(found["speed"].task.unique()) == list(TASKS)
    for task in TASKS[:-1]:
        assert methods[task] >= {"limit", "ours", "torch.topk"}
    assert methods["decode"] == {"limit", "ours", "embedding_bag", "dense codes"}
    assert set(found["sweep"].k) == set(config.sweep)


def test_every_method_of_a_task_computes_the_same(config: Config) -> None:
    """What is timed against each other is the same selection, and the same product with its gradients."""
    x = experiment.affinities(config.rows, config.columns, 0)
    for task, (fast, slow) in experiment.selection_functions(config, x).items():
        if task == "uneven columns":
            continue  # torch.topk has to take more
        mine, theirs = fast["ours"](), slow["torch.topk"]()
        assert torch.equal(*(found.values.flatten().sort().values for found in (mine, theirs)))
    fast, slow = experiment.decode_functions(config, 0)
    ours = fast["ours"]()
    for theirs in (fast["embedding_bag"](), slow["dense codes"]()):
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_exactness_finds_differences_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not experiment.run_exactness(60, 300).to_numpy().any()
    real = experiment.global_topm
    monkeypatch.setattr(experiment, "global_topm", lambda x, m: real(-x, m))
    assert experiment.run_exactness(60, 300).loc["normal", "all"] > 0


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


def test_bytes_of_a_decode() -> None:
    config = Config.at("full", rows=10, columns=100, width=8)
    assert experiment.decode_bytes(config) == 4 * 8 * (3 * 100 + 2 * 10)


def test_uneven_counts() -> None:
    m = experiment.uneven_counts(1000, 4000, 300)
    assert m.max() <= 300
    assert (m[1:] <= m[:-1]).all()
    assert abs(int(m.sum()) - 4000) < 200


def test_figures_and_answers(found: dict[str, pd.DataFrame], config: Config) -> None:
    import matplotlib.pyplot as plt

    for figure in (
        experiment.draw_allocations(experiment.run_allocations()),
        experiment.draw_histogram(experiment.run_histogram(64, 4096, 4)),
        experiment.draw_speed(found["speed"]),
        experiment.draw_sweep(found["sweep"]),
    ):
        assert figure.axes
        plt.close(figure)
    answers = experiment.answers(found, config)
    assert all(answers.values())
    assert experiment.speed_table(found["speed"]).notna().all(axis=None)


def test_the_live_cell(found: dict[str, pd.DataFrame], config: Config) -> None:
    live = experiment.run_live(config)
    assert live >= 1
    assert experiment.agreement(live, {"candidates": found["candidates"]}).value == live
    assert not experiment.agreement(1e6, {"candidates": found["candidates"]}).inside


def test_the_fingerprint_is_repeatable() -> None:
    assert experiment.fingerprint() == experiment.fingerprint()


def test_recording(found: dict, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`record` keeps tables that `tables` finds again at scale `book`."""
    from sparsebook import recorded

    kept: dict[str, pd.DataFrame] = {}
    monkeypatch.setattr(recorded, "save", lambda slug, name, table, **more: kept.update({name: table}))
    monkeypatch.setattr(experiment, "EXPERIMENTS", {"candidates": experiment.run_candidates})
    config = Config(**(asdict(Config.at("smoke")) | TINY))
    experiment.record(config, ("candidates",))
    assert list(kept) == ["candidates"]
    load = lambda slug, name: recorded.Recorded(kept[name], {})  # noqa: E731
    monkeypatch.setattr(recorded, "load", load)
    assert experiment.tables(Config.at("book"))["candidates"] is kept["candidates"]
