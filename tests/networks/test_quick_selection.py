"""QuickSelection against closed forms, dense autograd, SET's rule on masks, and what users do wrong."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from sparsebook.networks.exchange import drop_signed
from sparsebook.networks.quick_selection import (
    Connections,
    QuickSelection,
    SparseDAE,
    SparseNetwork,
    erdos_renyi,
    expected_connections,
    set_evolve,
    signed_thresholds,
    strengths,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def small(**more):
    given = {"n_hidden": 24, "epsilon": 3, "batch_size": 20, "epochs": 4, "random_state": 0}
    return SparseDAE(**(given | more))


def table(samples=60, features=12, seed=0):
    x = rng(seed).standard_normal((samples, features)).astype(np.float32)
    x[:, 1] = 0.9 * x[:, 0] + 0.1 * x[:, 1]
    return x


def dense(layer: Connections) -> torch.Tensor:
    return layer.csr().to_dense()


# Connections ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_in", "expected"), [(784, 22852), (500, 19125), (64, 12439)])
def test_erdos_renyi_counts(n_in, expected):
    """Draws with replacement: 13 (784 + 1000) = 23,192 of them leave 22,852 connections in the mean."""
    assert round(expected_connections(n_in, 1000, 13)) == expected
    found = [erdos_renyi(n_in, 1000, 13, rng(seed)).values.shape[0] for seed in range(5)]
    assert abs(np.mean(found) - expected) < 0.01 * expected


def test_erdos_renyi_layout_and_weights():
    layer = erdos_renyi(784, 1000, 13, rng())
    keys = layer.keys()
    assert (np.diff(keys) > 0).all()
    assert keys.min() >= 0
    assert keys.max() < 784 * 1000
    assert float(layer.values.std()) == pytest.approx(0.1, rel=0.03)
    assert layer.density == pytest.approx(0.0291, abs=2e-4)
    assert dense(layer).count_nonzero() == layer.values.shape[0]
    assert np.bincount(layer.columns.numpy(), minlength=784).tolist() == layer.degree().tolist()


@pytest.mark.parametrize(("n_in", "n_out", "epsilon"), [(0, 5, 1), (5, 0, 1), (3, 3, 0.1), (3, 3, -1)])
def test_layers_that_would_be_empty(n_in, n_out, epsilon):
    with pytest.raises(ValueError, match="expected"):
        erdos_renyi(n_in, n_out, epsilon, rng())


def as_layer(values, n_in=10):
    values = torch.tensor(values, dtype=torch.float32)
    columns = torch.arange(len(values), dtype=torch.int32) % n_in
    rows = -(-len(values) // n_in)
    offsets = torch.clamp(torch.arange(rows + 1) * n_in, max=len(values)).int()
    return Connections(values, columns, offsets, n_in)


def test_thresholds_of_set():
    """-1.0 to -0.1 and 0.15 to 1.05 in steps of 0.1, zeta = 0.2."""
    values = np.concatenate([-np.arange(10, 0, -1) / 10, np.arange(10) / 10 + 0.15]).astype(np.float32)
    assert signed_thresholds(values, 0.2) == pytest.approx((-0.3, 0.35))
    layer = as_layer(values)
    moved = set_evolve(layer, torch.ones(20), 0.2, rng())
    gone = sorted(set(np.round(values, 2).tolist()) - set(np.round(moved.pruned.values.numpy(), 2).tolist()))
    assert gone == pytest.approx([-0.3, -0.2, -0.1, 0.15, 0.25, 0.35])
    assert moved.weights.values.shape == (20,)


def test_a_fifth_of_either_sign_is_removed():
    values = rng().standard_normal(20_000).astype(np.float32)
    low, high = signed_thresholds(values, 0.2)
    gone = (values >= low) & (values <= high)
    assert gone[values > 0].mean() == pytest.approx(0.2, abs=2e-3)
    assert gone[values < 0].mean() == pytest.approx(0.2, abs=2e-3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("zeta", [0.0, 0.2, 0.7])
def test_the_rule_is_that_of_the_masks(seed, zeta):
    values = rng(seed).standard_normal(137).astype(np.float32)
    values[:3] = values[3]  # equals
    low, high = signed_thresholds(values, zeta)
    kept = (values < low) | (values > high)
    mask = drop_signed(torch.from_numpy(values), torch.ones(137, dtype=torch.bool), zeta)
    assert kept.tolist() == mask.tolist()


@pytest.mark.parametrize("n_in", [7, 40, 400])
def test_a_hundred_exchanges(n_in):
    """As many connections as before, each place once, survivors with their momentum, new ones without."""
    draw = rng(1)
    layer = erdos_renyi(n_in, 60, 13 if n_in > 7 else 6, draw)
    count = layer.values.shape[0]
    speed = torch.full((count,), 2.0)
    for _ in range(100):
        before = dict(zip(layer.keys().tolist(), layer.values.tolist(), strict=True))
        layer, speed, pruned = set_evolve(layer, speed, 0.2, draw)
        keys = layer.keys()
        assert layer.values.shape == speed.shape == (count,)
        assert (np.diff(keys) > 0).all()
        survived = np.isin(keys, pruned.keys())
        assert survived.sum() == pruned.values.shape[0] < count
        assert (speed.numpy()[survived] == 2).all()
        assert (speed.numpy()[~survived] == 0).all()
        assert all(
            before[key] == value
            for key, value in zip(keys[survived].tolist(), layer.values[survived].tolist(), strict=True)
        )
        speed = torch.full((count,), 2.0)


def test_new_places_are_drawn_uniformly():
    found = np.zeros(100)
    for seed in range(200):
        layer = erdos_renyi(20, 5, 1.2, rng(seed))
        moved = set_evolve(layer, torch.zeros_like(layer.values), 0.5, rng(seed))
        found[np.setdiff1d(moved.weights.keys(), moved.pruned.keys())] += 1
    assert found.min() > 0.4 * found.mean()
    assert found.max() < 1.8 * found.mean()


def test_a_share_outside_is_refused():
    with pytest.raises(ValueError, match="zeta=1"):
        set_evolve(as_layer([1.0, -1.0]), torch.zeros(2), 1, rng())


# Gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["linear", "tanh"])
def test_gradients_equal_dense_autograd(output):
    """float64, no dropout, the right derivative: on existing connections, all else is never computed."""
    options = small(dropout=0.0, output=output, tanh_rule="right")
    network = SparseNetwork(options, 12, rng(), dtype=np.float64)
    network.input_bias += 0.1
    network.output_bias -= 0.2
    x, target = (torch.from_numpy(rng(seed).standard_normal((12, 9))) for seed in (1, 2))
    found = network.gradients(x, target)
    w1, w2 = (dense(layer).requires_grad_() for layer in (network.input, network.output))
    b1, b2 = (bias.clone().requires_grad_() for bias in (network.input_bias, network.output_bias))
    out = w2 @ torch.sigmoid(w1 @ x + b1[:, None]) + b2[:, None]
    out = torch.tanh(out) if output == "tanh" else out
    (((out - target) ** 2).sum() / 2 / 9).backward()
    for layer, weight, gradient in (
        (network.input, w1, found.input_weights),
        (network.output, w2, found.output_weights),
    ):
        expected = weight.grad.flatten()[torch.from_numpy(layer.keys())]
        assert torch.allclose(gradient, expected, atol=1e-10, rtol=0)
    assert torch.allclose(found.input_bias, b1.grad, atol=1e-10, rtol=0)
    assert torch.allclose(found.output_bias, b2.grad, atol=1e-10, rtol=0)
    assert found.loss == pytest.approx(float(((out - target) ** 2).mean().detach()))


def test_inverted_dropout_equals_autograd_and_the_released_rule_does_not(monkeypatch):
    mask = (rng(3).random((24, 9)) < 0.8).astype(np.uint16)
    bits = np.where(mask == 1, 0, 65535).astype(np.uint16)
    x, target = (torch.from_numpy(rng(seed).standard_normal((12, 9))) for seed in (1, 2))
    found = {}
    for rule, scale in (("inverted", 1 / 0.8), ("released", 1.0)):
        network = SparseNetwork(small(dropout_rule=rule), 12, rng(), dtype=np.float64)
        monkeypatch.setattr(network, "_mask", lambda shape, scale=scale: (bits, 52429, scale))
        found[rule] = network.gradients(x, target).input_bias, network
    w1, w2 = dense(network.input), dense(network.output)
    for rule, scale in (("inverted", 1 / 0.8), ("released", 1.0)):
        z = (w1 @ x).requires_grad_()
        active = torch.sigmoid(z)
        (((w2 @ (active * torch.from_numpy(mask * scale)) - target) ** 2).sum() / 2 / 9).backward()
        same = torch.allclose(found[rule][0], z.grad.sum(dim=1), atol=1e-10, rtol=0)
        assert same == (rule == "inverted")
    # Released: the error goes back as if nothing had been left out.
    active = torch.sigmoid(w1 @ x)
    error = w2 @ (active * torch.from_numpy(mask * 1.0)) - target
    expected = ((w2.T @ error) * active * (1 - active)).mean(dim=1)
    assert torch.allclose(found["released"][0], expected, atol=1e-10, rtol=0)


def test_the_released_derivative_of_tanh():
    network = SparseNetwork(small(dropout=0.0, output="tanh"), 12, rng(), dtype=np.float64)
    x = torch.from_numpy(rng(1).standard_normal((12, 9)))
    hidden = torch.sigmoid(dense(network.input) @ x)
    out = torch.tanh(dense(network.output) @ hidden)
    expected = ((out - x) * (1 - torch.tanh(out) ** 2)).mean(dim=1)
    assert torch.allclose(network.gradients(x, x).output_bias, expected, atol=1e-12)


def test_update_is_the_heavy_ball_with_its_own_decay():
    network = SparseNetwork(small(lr=0.5, momentum=0.25, weight_decay=0.125, dropout=0.0), 12, rng())
    before, x = network.input.values.clone(), torch.from_numpy(table(9).T.copy())
    first = network.gradients(x, x)
    network.update(first)
    once = before - 0.5 * first.input_weights - 0.125 * before
    assert torch.allclose(network.input.values, once, atol=1e-6)
    second = network.gradients(x, x)
    network.update(second)
    speed = 0.25 * (-0.5 * first.input_weights) - 0.5 * second.input_weights
    assert torch.allclose(network.input.values, once + speed - 0.125 * once, atol=1e-6)


def test_dropout_keeps_four_fifths():
    network = SparseNetwork(SparseDAE(n_hidden=1000), 20, rng())
    bits, below, scale = network._mask((1000, 100))
    assert (bits < below).mean() == pytest.approx(0.8, abs=5e-3)
    assert (below, scale) == (52429, 1.0)


# Estimators ----------------------------------------------------------------------------------------------


def test_strength_is_the_row_sum_of_the_dense_weights():
    trained = small().fit(table())
    network = trained.network_
    assert strengths(network, "final") == pytest.approx(
        dense(network.input).abs().sum(dim=0).double().numpy(), rel=1e-6
    )
    assert strengths(network) == pytest.approx(
        dense(network.pruned).abs().sum(dim=0).double().numpy(), rel=1e-6
    )
    order = rng().permutation(12)  # permuted features have permuted strengths
    keys = network.input.keys()
    moved = np.argsort(order)[keys % 12] + keys // 12 * 12
    shuffled = Connections(
        network.input.values[torch.from_numpy(np.argsort(moved))],
        torch.from_numpy(np.sort(moved) % 12).int(), network.input.offsets, 12,
    )  # fmt: skip
    assert shuffled.strength() == pytest.approx(network.input.strength()[order])


def test_the_released_snapshot_is_that_of_the_last_removal():
    """After E - 1 epochs, pruned: what a training of E - 1 epochs ends with, less its weakest."""
    chosen = QuickSelection(3, **small(epochs=4).get_params()).fit(table())
    shorter = small(epochs=3).fit(table()).network_.input
    low, high = signed_thresholds(shorter.values.numpy(), 0.2)
    kept = (shorter.values < low) | (shorter.values > high)
    weights = np.where(kept.numpy(), shorter.values.abs().numpy(), 0)
    expected = np.bincount(shorter.columns.numpy(), weights, 12)
    assert chosen.strength_ == pytest.approx(expected)
    final = QuickSelection(3, snapshot="final", **small(epochs=4).get_params()).fit(table())
    assert final.strength_ == pytest.approx(final.network_.input.strength())
    assert not np.allclose(final.strength_, chosen.strength_)


def test_seeded_runs_repeat():
    first, again = (small().fit(table()).network_.input for _ in range(2))
    assert first.keys().tolist() == again.keys().tolist()
    assert torch.equal(first.values, again.values)
    other = small(random_state=1).fit(table()).network_.input
    assert first.keys().tolist() != other.keys().tolist()


def test_training_lowers_the_loss_and_reconstructs():
    x = table(200)
    trained = small(epochs=60, lr=0.1, output="tanh").clean().fit(np.tanh(x))
    assert trained.losses_[-1] < 0.6 * trained.losses_[0]
    error = ((trained.reconstruct(np.tanh(x)) - np.tanh(x)) ** 2).mean()
    assert error < 0.6 * np.tanh(x).var()
    assert (trained.dropout_rule, trained.tanh_rule) == ("inverted", "right")


def test_the_released_output_is_scaled_with_its_bias_when_predicting():
    network = SparseNetwork(small(), 12, rng())
    network.output_bias += 1.0
    x = torch.from_numpy(table(5).T.copy())
    whole = dense(network.output) @ torch.sigmoid(dense(network.input) @ x) + 1
    assert torch.allclose(network.predict(x), 0.8 * whole, atol=1e-6)
    network.options = small(dropout_rule="inverted")
    assert torch.allclose(network.predict(x), whole, atol=1e-6)


def test_transformer_keeps_the_columns_order():
    x = table()
    chosen = QuickSelection(4, **small().get_params()).fit(x)
    kept = chosen.get_support(indices=True)
    assert (
        sorted(chosen.ranking_[:4].tolist()) == kept.tolist() == np.flatnonzero(chosen.get_support()).tolist()
    )
    assert (np.diff(chosen.strength_[chosen.ranking_]) <= 0).all()
    assert np.array_equal(chosen.transform(x), x[:, kept])
    assert chosen.get_feature_names_out().tolist() == [f"x{i}" for i in kept]
    assert sorted(chosen.ranking_.tolist()) == list(range(12))


def test_scikit_learn_takes_it():
    base = pytest.importorskip("sklearn.base")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, labels = table(), (table()[:, 0] > 0).astype(int)
    chosen = QuickSelection(4, **small().get_params())
    copy = base.clone(chosen)
    assert copy.get_params() == chosen.get_params()
    pipeline = make_pipeline(StandardScaler(), copy, LogisticRegression()).fit(x, labels)
    assert pipeline.score(x, labels) > 0.5
    pipeline.set_params(quickselection__n_features=2)
    assert pipeline.fit(x, labels)[:-1].transform(x).shape == (60, 2)


def test_a_batch_larger_than_the_data_is_one_batch():
    trained = small(batch_size=1000).fit(table(7))
    assert np.isfinite(trained.losses_).all()
    assert (trained.losses_ > 0).all()


def test_constant_columns_and_integers():
    x = np.zeros((30, 12), dtype=np.int64)
    x[:, :4] = rng().integers(-2, 3, (30, 4))
    chosen = QuickSelection(2, **small(epochs=30, lr=0.05).get_params()).fit(x)
    assert np.isfinite(chosen.strength_).all()


@pytest.mark.parametrize(
    ("change", "x", "message"),
    [
        ({"zeta": 1.0}, None, "zeta=1"),
        ({"dropout": -0.1}, None, "dropout=-0.1"),
        ({"epochs": 0}, None, "epochs=0"),
        ({"lr": 0}, None, "lr=0"),
        ({"epsilon": 0}, None, "epsilon=0"),
        ({"output": "relu"}, None, "output='relu'"),
        ({"noise_rule": "never"}, None, "noise_rule='never'"),
        ({"n_features": 13}, None, "n_features=13: expected 1 to 12"),
        ({"snapshot": "best"}, None, "snapshot='best'"),
        ({"epochs": 1}, None, "nothing is ever removed"),
        ({"lr": 1e6}, None, "diverged"),
        ({}, np.full((5, 12), np.nan), "NaN or infinity"),
        ({}, np.full((5, 12), 1e300), "NaN or infinity"),
        ({}, np.zeros(5), "must be a table"),
        ({}, np.zeros((0, 12)), "must be a table"),
        ({}, np.array([["a"] * 12]), "must be a table"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bad_input(change, x, message):
    chosen = QuickSelection(3, **small().get_params()).set_params(**change)
    with pytest.raises(ValueError, match=message):
        chosen.fit(table() if x is None else x)


def test_bad_calls_after_fitting():
    chosen = QuickSelection(3, **small().get_params()).fit(table())
    with pytest.raises(ValueError, match="expected 12 columns"):
        chosen.transform(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="expected 12, as in fit"):
        chosen.reconstruct(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="unknown parameters"):
        chosen.set_params(depth=3)
    with pytest.raises(ValueError, match="nothing was removed yet"):
        strengths(SparseNetwork(small(), 12, rng()))


def test_useful_columns_are_found():
    """Twenty mixtures of five columns among 480 of noise: far above chance, 0.04, for every seed."""
    for seed in range(5):
        x = rng(seed).standard_normal((500, 500)).astype(np.float32)
        x[:, :20] = x[:, :5] @ rng(seed + 9).standard_normal((5, 20)) + 0.1 * x[:, :20]
        x = (x - x.mean(0)) / x.std(0)
        chosen = QuickSelection(20, n_hidden=500, epochs=30, batch_size=25, random_state=seed).fit(x)
        assert (chosen.ranking_[:20] < 20).mean() >= 0.3


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory from /proc")
def test_memory_follows_the_connections():
    """d = 50,000, 1,000 hidden neurons: one dense array would be 200 MB; all that is needed is below 300."""
    script = textwrap.dedent(
        """
        import re, sys
        import numpy as np
        from sparsebook.networks.quick_selection import SparseDAE
        peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
        x = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
        SparseDAE(epochs=2, random_state=0).fit(x)
        before = peak()
        x = np.random.default_rng(0).standard_normal((100, 50_000), dtype=np.float32)
        dae = SparseDAE(epochs=2, random_state=0).fit(x)
        print((peak() - before) / 1e6, dae.network_.input.values.shape[0])
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    megabytes, connections = map(float, done.stdout.split())
    assert megabytes < 300
    assert connections == pytest.approx(expected_connections(50_000, 1000, 13), rel=0.01)
