"""The chapter's experiments: honest rivals, what is counted, tables, figures, all scales."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from sparsebook.experiments import sparse_matmul_kernels as experiment
from sparsebook.experiments.scales import SCALES
from sparsebook.experiments.sparse_matmul_kernels import problems, rates, results, runs, step
from sparsebook.experiments.sparse_matmul_kernels.figures import mean_ratios
from sparsebook.experiments.sparse_matmul_kernels.scales import MOBILENET_V1, MOBILENET_V2, Config


@pytest.fixture(scope="module")
def config():
    return Config.at("smoke", threads=1, picked_shapes=((196, 64, 192),))


@pytest.fixture(scope="module")
def found(config):
    return experiment.tables(config)


@pytest.mark.parametrize("block", [1, 2])
def test_every_rival_gives_the_same_product(block: int) -> None:
    problem = problems.Problem((196, 16, 24), 0.7, 1, block)
    exact = problem.dense.double() @ problem.x.double()
    products = problems.calls(problem) if block == 1 else {"bare": problems.bare(problem)}
    if block == 1:
        products["SciPy"] = problems.scipy_call(problem)
    for name, product in products.items():
        y = torch.as_tensor(product())
        y = y[0].flatten(1) if name == "conv2d" else y
        torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)


def test_operations_and_bytes_are_counted() -> None:
    problem = problems.Problem((10, 4, 6), 0.5)
    entries = int((problem.dense != 0).sum())
    assert problem.flop == 2 * 10 * entries
    assert problem.dense_flop == 2 * 10 * 4 * 6
    assert problem.least_bytes == 4 * 10 * (4 + 6) + (4 + 8) * entries + 8 * 5
    blocked = problems.Problem((10, 4, 6), 0.5, block=2)
    assert blocked.numbers == 2 * blocked.weights.col_indices().numel()


def test_the_layers_are_those_of_both_networks() -> None:
    """Of MobileNet v1 nine different ones: each has 25.7 million multiply-adds or twice that."""
    assert len(MOBILENET_V1) == 9
    assert len(MOBILENET_V2) == 19
    assert {math.prod(shape) for shape in MOBILENET_V1} == {25_690_112, 51_380_224}
    assert {shape[0] for shape in MOBILENET_V2} == {12544, 3136, 784, 196, 49}


def test_a_wrong_product_is_noticed() -> None:
    problem = problems.Problem((20, 8, 8), 0.5)
    with pytest.raises(AssertionError):
        runs._agree(problem, {"ours": lambda: problem.dense @ problem.x + 0.1})


def test_masked_and_sparse_steps_give_the_same_gradients() -> None:
    problem = problems.Problem((20, 16, 12), 0.6)
    ours, masked = (function() for function in step.steps(problem).values())
    torch.testing.assert_close(ours[0], masked[0][problem.dense.nonzero(as_tuple=True)])
    torch.testing.assert_close(ours[1], masked[1])


def test_rates_are_positive_and_reads_begin_with_a_line() -> None:
    assert rates.multiply_rate(1, 0.001) > 1e8
    assert rates.read_rate(2**12, 1, 0.001) > 1e7
    assert rates._filled(100).ctypes.data % 64 == 0


@pytest.mark.slow
def test_tables_are_tidy(found) -> None:
    from sparsebook.recorded import COLUMNS

    assert list(found) == list(experiment.EXPERIMENTS)
    for table in found.values():
        assert set(COLUMNS) <= set(table)
        assert np.isfinite(table.value).all()
        assert (table.value > 0).all()


def test_means_are_geometric_and_small_layers_stand_apart() -> None:
    rows = [
        {
            "method": "dense",
            "metric": "over_ours",
            "threads": 1,
            "sparsity": 0.9,
            "pixels": pixels,
            "value": v,
        }
        for pixels, v in ((196, 2.0), (784, 8.0), (49, 100.0))
    ]
    table = pd.DataFrame(rows)
    assert mean_ratios(table, "dense")[1, 0.9] == pytest.approx(4.0)
    assert mean_ratios(table, "dense", small=True)[1, 0.9] == pytest.approx(100.0)


def test_break_even_is_where_the_line_passes_one() -> None:
    line = pd.Series([0.5, 2.0], index=[0.6, 0.8])
    assert results.break_even(line) == pytest.approx(0.7)
    assert math.isnan(results.break_even(line + 1))
    assert results._break_even(line) == "70%"
    assert results._break_even(line + 1) == "below 60%"
    assert results._break_even(line / 4) == "above 80%"


def test_the_bar_is_held_against_what_was_measured(found, config) -> None:
    table = experiment.demands(found)
    assert set(table.met) <= {"yes", "no", results.NOT_MEASURED}
    assert (table.met == results.NOT_MEASURED).sum() == 2  # 80 and 95 % are not in a smoke run
    slow = dict(found)
    slow["speed"] = found["speed"].copy()
    slow["speed"].loc[slow["speed"].metric == "over_ours", "value"] = 0.01
    slow["step"] = found["step"].assign(value=0.01)
    assert set(experiment.demands(slow).met) == {"no", results.NOT_MEASURED}
    text = experiment.answers(found, config)
    assert all(isinstance(value, str) and value for value in text.values())


def test_tables_of_the_page(found) -> None:
    for table in (
        experiment.limits_table(found["limits"]),
        experiment.speed_table(found["speed"]),
        experiment.step_table(found["step"]),
        experiment.patterns_table(found["patterns"]),
    ):
        assert not table.empty


@pytest.mark.parametrize("name", ["roofline", "speedup", "layers", "strips", "forms"])
def test_figures_are_drawn(found, config, name) -> None:
    import matplotlib.pyplot as plt

    draw = getattr(experiment, f"draw_{name}")
    arguments = {
        "roofline": (found["limits"], found["speed"], 0.9), "speedup": (found["speed"],),
        "layers": (found["speed"],), "strips": (found["strips"],), "forms": (found["forms"], config.threads),
    }  # fmt: skip
    figure = draw(*arguments[name])
    assert all(axes.has_data() for axes in figure.axes)
    plt.close(figure)


def test_a_live_ratio_is_held_against_the_processes() -> None:
    ratios = pd.DataFrame({"metric": "over_dense", "value": [0.13, 0.14, 0.15, 0.14]})
    for value, verdict in ((0.141, "yes"), (0.5, "NO"), (0.05, "NO")):
        found = experiment.agreement(value, {"processes": ratios})
        assert found["inside the prediction"].item() == verdict


def test_every_scale_constructs() -> None:
    for scale in set(SCALES) - {"paper"}:
        assert Config.at(scale).scale == scale
    assert Config.at("full", processes=2).processes == 2
    for scale in ("paper", "huge"):
        with pytest.raises(ValueError, match="scale must be"):
            Config.at(scale)


def test_records_are_kept_and_read_back(config, tmp_path, monkeypatch) -> None:
    from sparsebook import recorded

    monkeypatch.setattr(recorded, "_folder", lambda book: tmp_path)
    experiment.record(config, ("processes",))
    kept = recorded.load(results.CHAPTER, "processes")
    kept.replay()
    assert set(kept.table.method) == {"ours"}
