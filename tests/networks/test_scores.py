"""Scores of weights, against what can be worked out by hand or by definition."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from sparsebook.networks.masks import masks_of_scores, prunable
from sparsebook.networks.scores import (
    MovementScores,
    connection_sensitivity,
    gradient_norms,
    grasp_scores,
    magnitude_scores,
    random_scores,
    synflow_scores,
)


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 2, bias=False).double()


def deep(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
    ).double()


def half_square(outputs, targets):
    return (outputs - targets).square().sum() / 2


def batch(n=6, shape=(1, 5, 5)):
    chance = torch.Generator().manual_seed(3)
    x = torch.randn(n, *shape, generator=chance, dtype=torch.float64)
    return x, torch.randint(4, (n,), generator=chance)


def test_magnitude_and_random():
    model = linear()
    assert torch.equal(magnitude_scores(model)["weight"], model.weight.detach().abs())
    chance = torch.Generator().manual_seed(0)
    found = random_scores(model, generator=chance)["weight"]
    assert found.shape == (2, 3)
    assert found.dtype == torch.float64
    assert bool(((found >= 0) & (found < 1)).all())


def test_sensitivity_of_a_linear_layer():
    """L = |W x - t|^2 / 2 has the gradient (W x - t) x^T."""
    model, x, t = linear(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    w = model.weight.detach()
    expected = (w * ((x @ w.T - t).T @ x)).abs()
    found = connection_sensitivity(model, half_square, [(x[:2], t[:2]), (x[2:], t[2:])])["weight"]
    torch.testing.assert_close(found, expected)


def test_sensitivity_is_the_change_by_a_multiplied_mask():
    model, (x, y) = deep(), batch()
    found = connection_sensitivity(model, cross_entropy, [(x, y)])
    step, layer = 1e-5, model[4]
    changes = []
    for sign in (1, -1):
        changed = deep()
        with torch.no_grad():
            changed[4].weight[2, 5] *= 1 + sign * step
        changes.append(float(cross_entropy(changed(x), y).detach()))
    assert float(found["4.weight"][2, 5]) == pytest.approx(abs(changes[0] - changes[1]) / 2 / step, rel=1e-5)
    assert torch.equal(layer.weight, deep()[4].weight)


def test_sensitivity_of_a_redrawn_copy_leaves_the_model():
    model, (x, y) = deep(), batch()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    first, again, other = (
        connection_sensitivity(model, cross_entropy, [(x, y)], redraw=torch.Generator().manual_seed(seed))[
            "4.weight"
        ]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_grasp_of_a_linear_layer():
    """There the Hessian is I (x) X^T X, for every row of W alone."""
    model, x, t = linear(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    w, hot = model.weight.detach(), 2.0
    second = x.T @ x / hot**2
    g = (x @ w.T / hot - t).T @ x / hot
    found = grasp_scores(model, half_square, [(x, t)], temperature=hot)["weight"]
    torch.testing.assert_close(found, w * (g @ second))


def test_grasp_of_halves_is_that_of_the_whole():
    model, (x, y) = nn.Sequential(nn.Flatten(), deep()[4].float()).double(), batch(8, (27,))

    def total(outputs, targets):
        return cross_entropy(outputs, targets, reduction="sum")

    whole = grasp_scores(model, total, [(x, y)])["1.weight"]
    halves = grasp_scores(model, total, [(x[:3], y[:3]), (x[3:], y[3:])])["1.weight"]
    torch.testing.assert_close(whole, halves)


def test_synflow_of_two_linear_layers():
    """R = 1^T |B| |A| 1: a weight of A gets |a| times the column sum of |B|."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    a, b = model[0].weight.detach().abs(), model[2].weight.detach().abs()
    found = synflow_scores(model, (4,))
    torch.testing.assert_close(found["0.weight"], a * b.sum(0)[:, None])
    torch.testing.assert_close(found["2.weight"], b * a.sum(1))
    for name, score in found.items():  # what flows in and what flows out is conserved
        assert float(score.sum()) == pytest.approx(float(found["0.weight"].sum())), name


def test_iterated_synflow_prunes_one_after_another():
    model = deep()
    found = synflow_scores(model, (1, 5, 5), density=0.1, rounds=20)
    total = sum(score.numel() for score in found.values())
    kept = sum(int((score >= 0).sum()) for score in found.values())
    assert kept == round(0.1 * total)
    masks = masks_of_scores(found, 0.1)
    assert all(torch.equal(masks[name], score >= 0) for name, score in found.items())
    assert all(mask.any() for mask in masks.values())
    assert len({float(v) for score in found.values() for v in score[score < 0]}) >= 15  # by round
    once = masks_of_scores(synflow_scores(model, (1, 5, 5)), 0.1)
    assert any(not torch.equal(once[name], masks[name]) for name in masks)


def test_movement_is_minus_the_sum_of_weight_times_gradient():
    model, x, t = linear(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    movement, expected = MovementScores(prunable(model)), torch.zeros(2, 3).double()
    with pytest.raises(ValueError, match="weight has no gradient"):
        movement.observe()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        half_square(model(x), t).backward()
        expected -= model.weight.detach() * model.weight.grad
        movement.observe()
        optimizer.step()
    torch.testing.assert_close(movement.scores["weight"], expected)


def test_gradient_norms_of_a_masked_layer():
    model, x, t = linear(), torch.randn(6, 3).double(), torch.randn(6, 2).double()
    mask = torch.tensor([[True, False, True], [False, True, True]])
    w = model.weight.detach() * mask
    batches = [(x[:3], t[:3]), (x[3:], t[3:])]
    expected = sum(float((((a @ w.T - b).T @ a) * mask).square().sum()) / 2 for a, b in batches)
    found = gradient_norms(model, half_square, batches, {"weight": mask})
    assert found == {"weight": pytest.approx(expected)}
    assert not bool((model.weight[~mask] == 0).any())
    model, (x, y) = deep(), batch()
    found = gradient_norms(model, cross_entropy, [(x, y)])
    assert set(found) == {"0.weight", "4.weight"}
    assert int(model[1].num_batches_tracked) == 0


def test_bad_scores_are_refused():
    model, (x, y) = deep(), batch()
    for call in (connection_sensitivity, grasp_scores, gradient_norms):
        with pytest.raises(ValueError, match="batches is empty"):
            call(model, mse_loss, [])
    with pytest.raises(ValueError, match="temperature=0"):
        grasp_scores(model, cross_entropy, [(x, y)], temperature=0)
    with pytest.raises(ValueError, match="density=0"):
        synflow_scores(model, (1, 5, 5), density=0)
    with pytest.raises(ValueError, match="rounds=0"):
        synflow_scores(model, (1, 5, 5), density=0.5, rounds=0)
