"""Calibration, inputs from elsewhere and attacks: definitions, and scikit-learn where it has them."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sparsebook.networks import trust


def some(n=200, classes=4, models=3, seed=0):
    chance = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (models, n), generator=chance)
    logits = 2 * torch.randn(models, n, classes, generator=chance, dtype=torch.float64)
    return logits + 2 * torch.nn.functional.one_hot(labels, classes), labels


def test_accuracy_and_likelihood():
    logits, labels = some()
    for model in range(3):
        loss = cross_entropy(logits[model], labels[model])
        assert float(trust.negative_log_likelihood(logits, labels)[model]) == pytest.approx(float(loss))
        right = (logits[model].argmax(1) == labels[model]).double().mean()
        assert float(trust.accuracy(logits, labels)[model]) == pytest.approx(float(right))


def test_calibration_error_by_its_definition():
    logits, labels = some()
    for model, found in enumerate(trust.calibration_error(logits, labels, 10)):
        confidence, answer = logits[model].softmax(1).max(1)
        error = 0.0
        for b in range(10):
            inside = (confidence > b / 10) & (confidence <= (b + 1) / 10)
            if inside.any():
                right = (answer == labels[model])[inside].double().mean()
                error += float(inside.double().mean() * (right - confidence[inside].mean()).abs())
        assert float(found) == pytest.approx(error, abs=1e-12)


def test_calibration_error_in_closed_form():
    """Certain and half right: 0.5. As sure as right: 0."""
    logits = torch.tensor([[100.0, 0.0]] * 4)
    assert float(trust.calibration_error(logits, torch.tensor([0, 0, 1, 1]))) == pytest.approx(0.5)
    logits = torch.tensor([[math.log(3), 0.0]] * 4, dtype=torch.float64)
    assert float(trust.calibration_error(logits, torch.tensor([0, 0, 0, 1]))) == pytest.approx(0, abs=1e-12)


def test_temperature_is_found():
    chance = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(2, 10_000, 5, generator=chance, dtype=torch.float64)
    labels = torch.multinomial(z.softmax(-1).flatten(0, 1), 1, generator=chance).view(2, -1)
    scaled = z * torch.tensor([3.0, 0.5])[:, None, None]
    torch.testing.assert_close(
        trust.fit_temperature(scaled, labels), torch.tensor([3.0, 0.5]).double(), rtol=0.06, atol=0
    )
    logits, labels = some()
    best = trust.fit_temperature(logits, labels)
    least = trust.negative_log_likelihood(logits / best[:, None, None], labels)
    for factor in (0.97, 1.03):
        other = trust.negative_log_likelihood(logits / (factor * best)[:, None, None], labels)
        assert bool((other > least).all())


def test_temperature_stays_finite():
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    assert float(trust.fit_temperature(logits, torch.tensor([0, 1]))) == pytest.approx(1e-3)  # separable
    assert float(trust.fit_temperature(logits, torch.tensor([1, 0]))) == pytest.approx(1e3)  # always wrong


def test_auroc_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    chance = np.random.default_rng(0)
    inside, outside = chance.integers(0, 9, (2, 60)) / 8, chance.integers(0, 7, (2, 45)) / 8  # ties
    found = trust.auroc(torch.tensor(inside), torch.tensor(outside))
    for model in range(2):
        truth = np.r_[np.ones(60), np.zeros(45)]
        expected = metrics.roc_auc_score(truth, np.r_[inside[model], outside[model]])
        assert float(found[model]) == pytest.approx(expected, abs=1e-12)
    assert float(trust.auroc(torch.ones(3), torch.ones(4))) == 0.5
    assert float(trust.largest_probability(torch.zeros(1, 4))) == 0.25


def test_fgsm_of_a_linear_classifier():
    """For logits (w x, 0) and class 0 the loss falls with w x, so each input moves against w's sign."""
    w = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    x, labels = torch.tensor([[[0.2, 0.4, 0.9]]]), torch.tensor([[0]])
    moved = trust.fgsm(lambda z: z @ w.T, x, labels, 0.1)
    torch.testing.assert_close(moved, x + 0.1 * torch.tensor([-1.0, 1.0, -1.0]))
    moved = trust.fgsm(lambda z: z @ w.T, x, labels, 0.5, low=0.0, high=1.0)
    torch.testing.assert_close(moved, torch.tensor([[[0.0, 0.9, 0.4]]]))


def test_pgd_is_stronger_and_stays_inside():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    x, labels = torch.randn(300, 8), torch.randint(4, (300,))
    once = trust.fgsm(network, x, labels, 0.5)
    often = trust.pgd(network, x, labels, 0.5, low=-1.0, high=1.0)
    free = trust.pgd(network, x, labels, 0.5)
    assert float((often - x.clamp(-1, 1)).abs().max()) <= 0.5 + 1e-6
    assert float(often.abs().max()) <= 1
    assert float((free - x).abs().max()) <= 0.5 + 1e-6
    losses = [float(cross_entropy(network(z), labels).detach()) for z in (x, once, free)]
    assert losses == sorted(losses)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_bad_arguments_are_refused():
    logits, labels = some()
    with pytest.raises(ValueError, match="n_bins=0"):
        trust.calibration_error(logits, labels, 0)
    with pytest.raises(ValueError, match="expected at least one each"):
        trust.auroc(torch.ones(0), torch.ones(3))
    with pytest.raises(ValueError, match="NaN"):
        trust.auroc(torch.tensor([math.nan]), torch.ones(3))
    with pytest.raises(ValueError, match="step=-1"):
        trust.fgsm(lambda z: z, logits, labels, -1)
    with pytest.raises(ValueError, match="n_steps=0"):
        trust.pgd(lambda z: z, logits, labels, 1, n_steps=0)
