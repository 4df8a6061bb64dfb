"""The chapter's experiments: the claims' arithmetic on known tables, all scales, sabotage, figures."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sparsebook.claims import find_claims, judge, load_claims
from sparsebook.experiments import quick_selection as experiment
from sparsebook.experiments.quick_selection import costs, inputs, rivals, runs, verdicts
from sparsebook.experiments.quick_selection.scales import Config
from sparsebook.networks.quick_selection import SparseDAE


@pytest.fixture(scope="module")
def book():
    """The recorded tables; everything is measured, small, where the chapter's sabotage is tested."""
    config = Config.at("book")
    return config, experiment.tables(config)


# Claims --------------------------------------------------------------------------------------------------


def test_every_testable_claim_gets_samples(book):
    config, found = book
    declared = load_claims(find_claims("quick_selection"))
    samples = experiment.claim_samples(found, config)
    assert {claim.id for claim in declared.claims if claim.needs is None} == set(samples)
    for name, value in samples.items():
        assert value.unit == declared[name].unit
        assert len(value.values) >= declared[name].replication.n
    judged = judge([declared[name] for name in samples], samples)
    assert {judged["C1d"].verdict, judged["C2a"].verdict} <= {"holds", "fails"}


def rows(method, metric, values, **knobs):
    return [
        {"method": method, "metric": metric, "seed": seed, "value": float(value)} | knobs
        for seed, value in enumerate(values)
    ]


def trade_table():
    table = []
    for name in ("easy", "hard"):
        for method, values in (
            ("qs_100", (0.9, 0.9)), ("qs_10", (0.8, 0.8)), ("dense_100", (0.95, 0.95)),
            ("laplacian", (0.7, 0.9)), ("mcfs", (0.5, 0.5)), ("all", (1, 1)),
        ):  # fmt: skip
            for metric in ("classification", "clustering"):
                table += rows(method, metric, values, set=name, kept=999 if method == "all" else 50)
    table += rows("qs_100", "classification", [0.1], set="easy", kept=10)  # of another number of columns
    return pd.DataFrame(table)


def speed_table(qs=1.0):
    cpu = {"qs_100": qs, "qs_10": qs / 10, "dense_100": 5, "masked_100": 8, "laplacian": 0.5, "mcfs": 0.6}
    return pd.DataFrame(
        [
            line
            for name in ("easy", "hard")
            for m, v in cpu.items()
            for line in rows(m, "cpu", [v] * 3, set=name)
        ]
    )


def test_undominated_is_read_as_declared():
    accuracy = verdicts.accuracies(trade_table())
    assert accuracy.loc[("easy", 0), "qs_100"] == 0.9  # the sweep is left out
    assert accuracy.loc[("easy", 0), "masked_100"] == 0.9
    assert accuracy.loc[("easy", 0), "all"] == 1
    cpu = verdicts.seconds(speed_table())
    won = verdicts.undominated(accuracy, cpu, "qs_100")
    # Seed 1: the Laplacian score is as accurate and cheaper. The dense network is better and dearer.
    assert won.xs(0, level="seed").all()
    assert not won.xs(1, level="seed").any()
    slow = verdicts.undominated(accuracy, verdicts.seconds(speed_table(6.0)), "qs_100")
    assert not slow.any()
    assert verdicts.trade_samples(trade_table().pipe(with_lines), speed_table())["C1a"].values.tolist() == [
        2,
        0,
    ]


def with_lines(table):
    more = [
        line
        for name in ("easy", "hard")
        for m in ("random", "variance")
        for line in rows(m, "classification", [0.3, 0.4], set=name, kept=50)
    ]
    return pd.concat([table, pd.DataFrame(more)])


def test_differences_of_accuracy_are_taken_by_set():
    samples = verdicts.trade_samples(with_lines(trade_table()), speed_table())
    assert samples["H12"].values == pytest.approx([0.55, 0.55])
    assert samples["H14"].values == pytest.approx([-0.1, -0.1])


def test_the_rivals_choose_by_held_out_accuracy():
    table = []
    for setting, value in ((3, 0.5), (5, 0.8), (10, 0.8)):
        table += rows("laplacian", "classification", [value], set="easy", setting=setting)
        table += rows("laplacian", "clustering", [1 - value], set="easy", setting=setting)
    assert runs.best_setting(pd.DataFrame(table), "easy", "laplacian") == 5


def test_tuning_sees_no_test_sample():
    split = inputs.digits_in_noise(0, 4, 200)
    inner = runs.tuning_split(split, 1)
    whole = {row.tobytes() for row in split.train}
    assert all(row.tobytes() in whole for row in np.concatenate([inner.train, inner.test]))
    assert len(inner.train) + len(inner.test) == len(split.train)


# Inputs --------------------------------------------------------------------------------------------------


def test_known_answers():
    config = Config.at("smoke")
    split = inputs.madelon(0, config)
    assert (split.train.shape, split.test.shape) == ((120, 50), (40, 50))
    assert np.abs(split.train.mean(axis=0)).max() < 1e-5
    correlation = np.abs(np.corrcoef(split.train.T))
    np.fill_diagonal(correlation, 0)
    assert correlation[:20].max(axis=1).min() > correlation[20:, 20:].max(axis=1).mean()
    alone = inputs.independent(0, config)
    assert (np.abs(np.corrcoef(alone.train.T)) - np.eye(50)).max() < 0.5
    canvas = inputs.digit_canvas(0, config)
    assert len(canvas.useful) == 256
    assert np.delete(canvas.train, canvas.useful, axis=1).any() == False  # noqa: E712
    x, members = inputs.correlated_blocks(0, replace(config, block_table=(4000, 80)))
    inside = np.corrcoef(x[:, members[5]].T)
    assert inside[0, 1] == pytest.approx(0.8, abs=0.05)
    assert abs(inside[0, 5]) < 0.1
    assert [len(columns) for columns in members.values()] == [10] * 4


@pytest.mark.parametrize("name", ["textures", "photographs", "faces", "crops"])
def test_pictures(name):
    split = inputs.load_split(name, 0, Config.at("smoke"))
    assert split.train.shape[1] == {"textures": 784, "photographs": 768, "faces": 625, "crops": 6912}[name]
    assert split.classes == {"textures": 3, "photographs": 8, "faces": 2, "crops": 8}[name]
    assert np.isfinite(split.train).all()


def test_an_unknown_set():
    with pytest.raises(ValueError, match="set 'iris'"):
        inputs.load_split("iris", 0, Config.at("smoke"))


# Rivals and costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["linear", "tanh"])
def test_masks_train_the_very_same_network(output):
    """Dense weights under masks and lists of connections: the same draws, the same numbers."""
    x = np.random.default_rng(0).standard_normal((60, 30)).astype(np.float32)
    options = SparseDAE(
        n_hidden=50, epsilon=3, epochs=5, batch_size=20, output=output, random_state=0, lr=0.05
    )
    ours = rivals.quick_ranks(options, x, (5,), "final")[5]
    assert np.abs(rivals.DenseDAE(options, masked=True).fit(x).strength() - ours).max() < 1e-5


def test_the_dense_rival_learns():
    """It comes to reconstruct columns that are copies of one another."""
    x = np.random.default_rng(0).standard_normal((200, 1)).astype(np.float32).repeat(10, axis=1)
    options = SparseDAE(n_hidden=40, epochs=60, batch_size=20, random_state=0, lr=0.03, dropout=0.0)
    errors = []

    def watch(epoch, network):
        weights, biases, inputs = network.weights, network.biases, torch.from_numpy(x)
        hidden = torch.sigmoid(inputs @ weights[0] + biases[0])
        errors.append(float(((hidden @ weights[1] + biases[1] - inputs) ** 2).mean()))

    rivals.DenseDAE(options).fit(x, watch)
    assert len(errors) == 60
    assert errors[-1] < 0.2 * min(errors[0], x.var())


def test_energy_and_bytes_are_counted():
    sparse, dense, masked = (costs.counted_energy(kind, 500, 1000, 100, 10, 13) for kind in costs.KINDS)
    connections = costs.expected_connections(500, 1000, 13)
    expected = 10 * (500 * connections * 4.6e-12 + (20 * connections + 900_000) * 640e-12)
    assert sparse == pytest.approx(expected)
    assert sparse < 0.2 * dense < dense < masked
    assert costs.weight_bytes("dense", 500, 1000, 13) == 8e6
    assert costs.weight_bytes("sparse", 500, 1000, 13) == pytest.approx(32 * connections + 6008)


def test_a_training_that_does_not_fit_is_told(monkeypatch):
    def refuse(*_):
        raise MemoryError

    config = Config.at("smoke")
    real = costs._train_twice
    monkeypatch.setattr(costs, "_train_twice", lambda c, kind, d: real(c, kind, d) if d == 64 else refuse())
    found = costs.memory_once(vars(config), "sparse", 100)
    assert found["fits"][0] == found["grown"][0] == 0


def test_the_products_are_a_part_of_the_step():
    share = experiment.step_share(Config.at("smoke"), 200)
    assert share["products"] > 0
    assert share["step"] > 0


# Figures and text ----------------------------------------------------------------------------------------


def test_figures_tables_and_answers(book):
    import matplotlib.pyplot as plt

    config, found = book
    small = Config.at("smoke", epochs=(1, 3, 10), quick=3)
    live, profile = runs.run_live(small)
    drawn = [
        experiment.draw_maps(profile, small),
        experiment.draw_madelon(found["madelon"], config),
        experiment.draw_profile(found["profile"], config),
        experiment.draw_reasons(found["blocks"], found["noise"], config),
        experiment.draw_trade(found["trade"], found["speed"]),
        experiment.draw_sweep(found["trade"], config),
        experiment.draw_scale(found["memory"], config),
        experiment.draw_energy(found["counted"]),
    ]
    assert all(figure.axes for figure in drawn)
    plt.close("all")
    assert set(experiment.agreement(live, found, small).to_numpy().ravel()) <= {"inside", "OUTSIDE"}
    assert all(isinstance(text, str) for text in experiment.answers(found, config).values())
    assert experiment.accuracy_table(found).shape == (8, 9)
    assert len(experiment.verdict_table(found)) == len(experiment.tuning_table(found)) == 8
    with pytest.raises(ValueError, match="was not measured"):
        verdicts.per_seed(found["madelon"], "released", "beauty")


# Scales --------------------------------------------------------------------------------------------------


def test_scales():
    for scale in ("smoke", "book", "full"):
        assert experiment.config(scale).scale == scale
    with pytest.raises(ValueError, match="scale must be one of"):
        Config.at("huge")
    with pytest.raises(ValueError, match="needs tables"):
        Config.at("paper")
    assert json.dumps(Config.at("full").record())


def test_paper_scale_on_a_folder_in_the_official_layout(tmp_path):
    """Two epochs on fabricated sets in each of the three layouts: no branch of scale `paper` is dead."""
    from scipy.io import savemat
    from scipy.sparse import csc_matrix

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 15)), np.arange(40) % 2 + 1
    savemat(tmp_path / "madelon.mat", {"X": x, "Y": y[:, None]})
    savemat(tmp_path / "PCMAC.mat", {"X": csc_matrix(np.abs(x)), "Y": y[:, None]})
    for part in ("train", "test"):
        folder = tmp_path / "UCI HAR Dataset" / part
        folder.mkdir(parents=True)
        np.savetxt(folder / f"X_{part}.txt", x[:20])
        np.savetxt(folder / f"y_{part}.txt", y[:20], fmt="%d")
    pixels = rng.integers(0, 255, (40, 28, 28), dtype=np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0" * 16 + pixels.tobytes()))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(b"\0" * 8 + y.astype(np.uint8).tobytes())
    )
    config = Config.at("paper", tables=str(tmp_path))
    assert (config.n_hidden, config.batch, config.length) == (1000, 100, 100)
    assert runs.set_names(config) == ("PCMAC", "madelon", "HAR", "MNIST")
    small = {
        "n_hidden": 20,
        "batch": 10,
        "epochs": (1, 2),
        "quick": 2,
        "trees": 1,
        "clusterings": 1,
        "rates": (0.01,),
    }
    config = replace(config, neighbours=(3,), tuning_epochs=2, **small)
    for name in runs.set_names(config):
        split = inputs.load_split(name, 0, config)
        assert split.classes == 2
        tuning = pd.concat([runs._tune(config, name, method) for method in runs.TUNED])
        table = runs._trade(config, tuning, name, 0, sabotaged=False)
        assert set(table.method) == set(runs.METHODS)
        assert (
            table[table.method == "qs_10"].kept
            == (20 if name == "madelon" else min(50, split.train.shape[1]))
        ).all() or name == "madelon"
    pcmac = inputs.load_split("PCMAC", 0, config).train
    assert (pcmac.min(), pcmac.max()) == (0, 1)


def test_a_folder_without_sets_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected \.mat files"):
        inputs.folder_sets(tmp_path)


def test_fingerprint_repeats():
    assert experiment.fingerprint() == experiment.fingerprint()
