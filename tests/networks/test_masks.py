"""Masks: counts, patterns, and that no optimiser revives what is masked."""

import inspect
import math

import pytest
import torch
from torch import Tensor, nn

from sparsebook.networks.exchange import Exchange, drop_signed, drop_smallest, grow_largest, grow_random
from sparsebook.networks.masks import (
    SparsityMask,
    block_mask,
    mask_of_scores,
    masks_of_scores,
    n_of_m_mask,
    prunable,
    random_mask,
    random_masks,
    shuffle_mask,
)
from sparsebook.networks.schedules import ConstantSparsity, CosineShare, Periodic, PolynomialSparsity


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    x, y = torch.randn(16, 1, 8, 8, generator=generator(seed)), torch.arange(16) % 10
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


# --- patterns -----------------------------------------------------------------------------------------------


def test_exact_masks_keep_the_rounded_number_and_the_others_about_it() -> None:
    for density in (0.001, 0.1, 0.37, 1):
        assert int(random_mask((30, 40), density, generator=generator()).sum()) == max(
            1, round(density * 1200)
        )
    kept = random_mask((500, 500), 0.1, generator=generator(), exact=False).double().mean()
    assert abs(kept - 0.1) < 4 * math.sqrt(0.09 / 250_000)


def test_masks_are_drawn_uniformly_and_by_the_seed_alone() -> None:
    often = sum(random_mask((4, 5), 0.25, generator=generator(seed)).double() for seed in range(2000)) / 2000
    assert (often - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 2000)
    shapes, densities = {"a": (9, 9), "b": (9, 9)}, {"a": 0.5, "b": 0.5}
    first, second = random_masks(shapes, densities, 3), random_masks(shapes, densities, 3)
    assert torch.equal(first["a"], second["a"])
    assert not torch.equal(first["a"], first["b"])


def test_shuffling_keeps_the_number_and_forgets_the_scores() -> None:
    scores = torch.arange(10_000.0).view(100, 100)
    mask = mask_of_scores(scores, 0.1)
    assert mask.flatten()[-1000:].all()
    shuffled = shuffle_mask(mask, generator=generator())
    assert shuffled.sum() == mask.sum()
    assert abs(torch.corrcoef(torch.stack([scores.flatten(), shuffled.flatten().float()]))[0, 1]) < 0.05


def test_scores_of_the_network_and_of_each_layer() -> None:
    scores = {"a": torch.tensor([[9.0, 8.0], [7.0, 6.0]]), "b": torch.tensor([[1.0, 2.0]])}
    assert [int(m.sum()) for m in masks_of_scores(scores, 0.5).values()] == [3, 0]
    assert [int(m.sum()) for m in masks_of_scores(scores, 0.5, "layer").values()] == [2, 1]
    assert masks_of_scores(scores, 0.5, "layer")["b"].tolist() == [[False, True]]


def test_blocks_are_kept_whole() -> None:
    scores = torch.tensor([[1.0, 1, 5, 5], [1, 1, 5, 5], [9, 0, 0, 0], [0, 0, 0, 0]])
    kept = block_mask(scores, 0.5, (2, 2))
    assert kept.int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_n_of_m_keeps_n_of_every_m() -> None:
    scores = torch.randn(6, 16, generator=generator())
    for dim in (0, 1):
        n, m = (2, 3) if dim == 0 else (1, 4)
        kept = n_of_m_mask(scores, n, m, dim)
        assert (kept.movedim(dim, -1).unflatten(-1, (-1, m)).sum(-1) == n).all()
        dropped = torch.where(kept, -math.inf, scores).movedim(dim, -1).unflatten(-1, (-1, m)).amax(-1)
        least = torch.where(kept, scores, math.inf).movedim(dim, -1).unflatten(-1, (-1, m)).amin(-1)
        assert (dropped <= least).all()
    assert n_of_m_mask(torch.ones(1, 4), 2, 4).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_mask((3, 3), 0, generator=generator()), "density=0"),
        (lambda: random_mask((3, 3), math.nan, generator=generator()), "density=nan"),
        (lambda: random_mask((0, 3), 0.5, generator=generator()), "no weights"),
        (lambda: random_masks({"a": (3, 3)}, {"b": 0.5}, 0), "densities name"),
        (lambda: mask_of_scores(torch.tensor([[math.nan]]), 0.5), "NaN"),
        (lambda: masks_of_scores({}, 0.5), "scores is empty"),
        (lambda: block_mask(torch.ones(4, 5), 0.5, (2, 2)), "does not divide"),
        (lambda: n_of_m_mask(torch.ones(4, 6), 2, 4), "does not divide"),
        (lambda: n_of_m_mask(torch.ones(4, 6), 3, 2), "0 < n <= m"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- masks in training --------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_stay_exactly_zero_and_are_forgotten(name: str) -> None:
    model = small_network()
    masks = random_masks(
        {n: tuple(w.shape) for n, w in prunable(model).items()}, dict.fromkeys(prunable(model), 0.3), 0
    )
    sparsity = SparsityMask(model, masks)
    optimizer = OPTIMIZERS[name](model.parameters())
    sparsity.attach(optimizer)
    bias = model[0].bias.detach().clone()
    train(model, optimizer, 30)
    for key, weight in prunable(model).items():
        outside = weight.detach()[~masks[key]]
        assert torch.equal(outside, torch.zeros_like(outside))
        assert not outside.signbit().any()
        assert bool((weight.detach()[masks[key]] != 0).all())
        for value in optimizer.state[weight].values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                assert not value[~masks[key]].any()
    assert not torch.equal(model[0].bias, bias)
    assert sparsity.density() == pytest.approx(0.3, abs=0.01)


def test_training_with_masks_equals_training_of_masked_weights() -> None:
    """What `attach` does is the gradient step of W * mask: one by hand beside it."""
    model, other = small_network(), small_network()
    masks = {"4.weight": random_mask((10, 144), 0.2, generator=generator())}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SparsityMask(model, masks).attach(optimizer)
    train(model, optimizer, 5)

    weight = other[4].weight
    with torch.no_grad():
        weight *= masks["4.weight"]
    plain = torch.optim.SGD(other.parameters(), lr=0.1)
    x, y = torch.randn(16, 1, 8, 8, generator=generator(1)), torch.arange(16) % 10
    for _ in range(5):
        plain.zero_grad()
        nn.functional.cross_entropy(other(x), y).backward()
        weight.grad *= masks["4.weight"]
        plain.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_masks_survive_a_state_dict() -> None:
    model = small_network()
    first = SparsityMask(model, {"4.weight": random_mask((10, 144), 0.2, generator=generator(1))})
    second = SparsityMask(model, {"4.weight": random_mask((10, 144), 0.9, generator=generator(2))})
    second.load_state_dict(first.state_dict())
    assert torch.equal(second["4.weight"], first["4.weight"])
    with pytest.raises(ValueError, match="state names"):
        second.load_state_dict({})


def test_bad_masks_are_named_and_change_nothing() -> None:
    model = small_network()
    good = torch.ones(10, 144, dtype=torch.bool)
    sparsity = SparsityMask(model, {"4.weight": good})
    before = model[4].weight.detach().clone()
    for bad, message in (
        ({"5.weight": good}, "masks name"),
        ({"4.weight": good.float()}, "expected torch.bool"),
        ({"4.weight": good.T}, "of shape"),
        ({"4.weight": ~good}, "keeps no weight"),
    ):
        with pytest.raises(ValueError, match=message):
            SparsityMask(model, bad)
        with pytest.raises(ValueError, match=message):
            sparsity.set(bad)
    assert torch.equal(model[4].weight, before)


# --- connections that move ----------------------------------------------------------------------------------


def test_drop_and_grow_of_a_worked_example() -> None:
    weight = torch.tensor([0, 0.9, -0.1, 0, 0.4, -0.7, 0, 0.2, 0, -0.05])
    gradient = torch.tensor([0.3, 0, -2, 0.8, 0.1, 0.2, -0.1, 0.05, 0.6, 0.01])
    kept = drop_smallest(weight, weight != 0, 3)
    assert kept.nonzero()[:, 0].tolist() == [1, 4, 5]
    assert (grow_largest(gradient, kept, 3) & ~kept).nonzero()[:, 0].tolist() == [2, 3, 8]


def test_signed_drop_of_a_worked_example() -> None:
    weight = torch.cat([torch.arange(-10, 0) / 10, torch.arange(10) / 10 + 0.15])
    gone = weight[~drop_signed(weight, torch.ones(20, dtype=torch.bool), 0.2)]
    assert torch.allclose(gone, torch.tensor([-0.3, -0.2, -0.1, 0.15, 0.25, 0.35]))
    many = torch.randn(20_000, generator=generator())
    lost = ~drop_signed(many, torch.ones(20_000, dtype=torch.bool), 0.2)
    for sign in (many > 0, many < 0):
        assert float(lost[sign].double().mean()) == pytest.approx(0.2, abs=2e-4)


def test_random_growth_is_uniform_over_the_empty_places() -> None:
    mask = torch.tensor([True, False, False, False, True])
    often = sum(grow_random(mask, 1, generator=generator(seed)).double() for seed in range(900)) / 900
    assert often[[0, 4]].tolist() == [1, 1]
    assert (often[1:4] - 1 / 3).abs().max() < 5 * math.sqrt(2 / 9 / 900)


@pytest.mark.parametrize("grow", ["gradient", "random"])
@pytest.mark.parametrize("drop", ["magnitude", "signed"])
def test_the_number_of_connections_never_changes(grow, drop) -> None:
    model = small_network()
    shapes = {name: tuple(w.shape) for name, w in prunable(model).items()}
    sparsity = SparsityMask(model, random_masks(shapes, dict.fromkeys(shapes, 0.3), 0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    Exchange(sparsity, CosineShare(0.5, 0.0, 30), Periodic(5, 5, 25), grow, drop).attach(optimizer)
    first = sparsity.state_dict()
    train(model, optimizer, 30)
    for name, weight in prunable(model).items():
        assert sparsity[name].sum() == first[name].sum()
        assert not torch.equal(sparsity[name], first[name])
        assert not weight.detach()[~sparsity[name]].any()


def test_growth_follows_the_gradient_of_weights_that_are_masked() -> None:
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.1, 0, 0]]))
    sparsity = SparsityMask(model, {"weight": torch.tensor([[True, True, False, False]])})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Exchange(sparsity, lambda step: 0.5, Periodic(1)).attach(optimizer)
    model(torch.tensor([[0.0, 0.0, 0.0, 5.0]])).backward()
    optimizer.step()
    assert sparsity["weight"].tolist() == [[True, False, False, True]]
    assert model.weight.tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_exchanges_at_the_edges() -> None:
    one = torch.tensor([[True, False]])
    with pytest.raises(ValueError, match="count=2"):
        drop_smallest(torch.ones(1, 2), one, 2)
    with pytest.raises(ValueError, match="count=2"):
        grow_largest(torch.ones(1, 2), one, 2)
    with pytest.raises(ValueError, match="share="):
        drop_signed(torch.ones(1, 2), one, 1.5)
    model = nn.Linear(3, 3, bias=False)
    full = SparsityMask(model, {"weight": torch.ones(3, 3, dtype=torch.bool)})
    exchange = Exchange(full, lambda step: 0.5, Periodic(1), "random")
    assert exchange.moved("weight", None, 0).all()
    with pytest.raises(ValueError, match="gradient of weight is None"):
        Exchange(full, lambda step: 0.5, Periodic(1)).moved("weight", None, 0)
    with pytest.raises(ValueError, match="grow="):
        inspect.unwrap(Exchange.__init__)(Exchange.__new__(Exchange), full, lambda s: 0.5, Periodic(1), "all")


# --- schedules ----------------------------------------------------------------------------------------------


def test_schedules_equal_their_closed_forms() -> None:
    cubic = PolynomialSparsity(0.0, 0.9, 0, 100)
    assert [round(cubic(t), 4) for t in (-5, 0, 25, 50, 75, 100, 200)] == [
        0,
        0,
        0.5203,
        0.7875,
        0.8859,
        0.9,
        0.9,
    ]
    cosine = CosineShare(0.5, 0.005, 400)
    assert [round(cosine(t), 4) for t in (0, 100, 200, 400, 500)] == [0.5, 0.4275, 0.2525, 0.005, 0.005]
    assert [ConstantSparsity(0.8, 3)(t) for t in (2, 3)] == [0, 0.8]
    assert [t for t in range(12) if Periodic(3, 2, 9).due(t)] == [2, 5, 8]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolynomialSparsity(0.0, 1.0, 0, 9), "final=1.0"),
        (lambda: PolynomialSparsity(0.0, 0.5, 9, 9), "must come before"),
        (lambda: ConstantSparsity(-0.1), "value=-0.1"),
        (lambda: CosineShare(0.1, 0.5, 9), "least <= initial"),
        (lambda: CosineShare(0.5, 0.1, 0), "n_steps=0"),
        (lambda: Periodic(0), "every >= 1"),
    ],
)
def test_bad_schedules_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
