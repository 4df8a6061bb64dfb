"""Random pruning: ratios, random places, and that training leaves pruned weights alone."""

import pytest
import torch
from torch import nn

from sparsebook.models.cifar_resnet import CifarResNet
from sparsebook.networks.masks import prunable
from sparsebook.networks.random_pruning import (
    RATIOS,
    SCORE_RATIOS,
    own_positions,
    prune_at_random,
    ratio_densities,
    ratio_scores,
    width_of_equal_size,
)
from sparsebook.networks.stacked import SGDOptions, Stacked, stacked_loss, stacked_masks, train_stacked


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5))


def batch(shape=(20,), n=50):
    chance = torch.Generator().manual_seed(1)
    return torch.randn(n, *shape, generator=chance), torch.arange(n) % 5


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("make", [network, lambda: CifarResNet(8, 4, 5, 1, 2)])
def test_every_ratio_spends_the_budget(ratio, make):
    model = make()
    x, y = batch((20,) if isinstance(model, nn.Sequential) else (1, 16, 16))
    before = {name: w.detach().clone() for name, w in prunable(model).items()}
    densities = ratio_densities(model, 0.4, ratio, x, y)
    masks = prune_at_random(model, densities, seed=3)
    sizes = {name: w.numel() for name, w in before.items()}
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept == pytest.approx(0.4 * sum(sizes.values()), abs=len(masks) + 1)
    for name, weight in prunable(model).items():
        assert torch.equal(weight.detach(), before[name] * masks[name])


def test_positions_are_independent_of_the_scores():
    model, (x, y) = network(), batch()
    scores = ratio_scores(model, "snip", x, y, density=0.3)
    densities = ratio_densities(model, 0.3, "snip", x, y)
    expected = {name: round(densities[name] * score.numel()) for name, score in scores.items()}
    drawn = [prune_at_random(network(), densities, seed) for seed in range(60)]
    for name, score in scores.items():
        assert {int(masks[name].sum()) for masks in drawn} == {expected[name]}
        ranks = score.flatten().argsort().argsort().double()
        shares = torch.stack([masks[name].flatten().double() for masks in drawn])
        each = torch.tensor([float(torch.corrcoef(torch.stack([ranks, own]))[0, 1]) for own in shares])
        assert abs(float(each.mean())) < 4 / (60 * score.numel()) ** 0.5  # four standard errors


def test_own_positions_are_the_best_scores():
    model, (x, y) = network(), batch()
    masks = own_positions(model, 0.1, "snip", x, y)
    scores = ratio_scores(model, "snip", x, y, density=0.1, redraw=False)
    least = min(float(scores[name][mask].min()) for name, mask in masks.items() if mask.any())
    most = max(float(scores[name][~mask].max()) for name, mask in masks.items())
    assert least >= most
    for ratio in SCORE_RATIOS:
        kept = sum(int(mask.sum()) for mask in own_positions(model, 0.1, ratio, x, y).values())
        assert kept == round(0.1 * sum(w.numel() for w in prunable(model).values()))


def test_an_emptied_layer_keeps_one_weight():
    model = network()
    with torch.no_grad():
        model[2].weight.mul_(0)
        model[4].weight.mul_(1e3)
    x, y = batch()
    found = ratio_densities(model, 0.05, "grasp", x, y)
    assert min(found.values()) >= 1 / 1600 > 0
    assert all(mask.any() for mask in prune_at_random(model, found, 0).values())


def test_a_rescaled_start_keeps_the_variance_of_what_comes_out():
    """Weights of variance 2 / fan-in: at density 0.1 the squared outputs shrink tenfold a layer, or stay."""
    layer = nn.Linear(4_000, 400, bias=False)
    x = torch.randn(50, 4_000, generator=torch.Generator().manual_seed(0))
    layer.requires_grad_(False)
    powers = {}
    for rescale in (False, True):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=torch.Generator().manual_seed(1))
        before = float(layer(x).square().mean())
        masks = prune_at_random(layer, {"weight": 0.1}, seed=0, rescale=rescale)
        assert torch.equal(layer.weight != 0, masks["weight"])
        powers[rescale] = float(layer(x).square().mean()) / before
    assert powers[False] == pytest.approx(0.1, rel=0.05)
    assert powers[True] == pytest.approx(1, rel=0.05)


def test_a_sparse_network_learns_and_stays_sparse():
    models = [network(seed) for seed in range(2)]
    masks = [prune_at_random(m, ratio_densities(m, 0.5, "er"), seed) for seed, m in enumerate(models)]
    x, _ = batch(n=400)
    y = x[:, :5].argmax(1)
    stack = Stacked(models)
    before = stacked_loss(stack(x.expand(2, -1, -1)), y.expand(2, -1)).detach()
    rows = torch.arange(400).expand(2, -1)
    train_stacked(stack, x, y, rows, SGDOptions(10, 20, 0.05), [0, 1], stacked_masks(masks))
    after = stacked_loss(stack(x.expand(2, -1, -1)), y.expand(2, -1)).detach()
    assert bool((after < 0.3 * before).all())
    for name, weight in stack.prunable().items():
        assert bool((weight[~stacked_masks(masks)[name]] == 0).all())


def test_the_small_dense_network():
    def make(width):
        return nn.Sequential(nn.Linear(10, width, bias=False), nn.Linear(width, 10, bias=False))

    assert width_of_equal_size(make, 139, 50) == 7
    assert width_of_equal_size(make, 1e9, 50) == 50
    with pytest.raises(ValueError, match="widest=0"):
        width_of_equal_size(make, 5, 0)


def test_bad_arguments_are_refused():
    model, (x, y) = network(), batch()
    with pytest.raises(ValueError, match="ratio='other'"):
        ratio_densities(model, 0.1, "other", x, y)
    with pytest.raises(ValueError, match="needs a batch"):
        ratio_densities(model, 0.1, "snip")
    for density in (0, 1.5):
        for ratio in ("er", "snip"):
            with pytest.raises(ValueError, match="density="):
                ratio_densities(model, density, ratio, x, y)
