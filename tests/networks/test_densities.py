"""Densities of layers: the budget, an independent solution, the known rules, bad input."""

import inspect
import math
import random

import pytest
import torch

from sparsebook.networks.densities import density_of_scores, layerwise_density

METHODS = ("uniform", "uniform_plus", "er", "erk", "erk_plus")


def some_shapes(seed: int) -> dict[str, tuple[int, ...]]:
    chance = random.Random(seed)
    sides = [1, 2, 3, 10, 16, 64, 200]
    shapes = {}
    for layer in range(chance.randint(1, 9)):
        kernel = chance.choice([(), (1, 1), (3, 3), (5, 5)])
        shapes[f"layer {layer}"] = (chance.choice(sides), chance.choice(sides), *kernel)
    return shapes


def share(shapes, densities) -> float:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return sum(sizes[name] * densities[name] for name in shapes) / sum(sizes.values())


@pytest.mark.parametrize("method", METHODS)
def test_the_budget_is_met_and_no_layer_exceeds_one(method: str) -> None:
    met = 0
    for seed in range(60):
        shapes = some_shapes(seed)
        density = random.Random(seed + 1000).choice([0.01, 0.05, 0.2, 0.5, 0.9, 0.999])
        try:
            found = layerwise_density(shapes, density, method, last_density=0.5)
        except ValueError:
            continue  # what is prescribed does not fit: see below
        met += 1
        assert share(shapes, found) == pytest.approx(density, rel=1e-12)
        assert all(0 < value <= 1 for value in found.values())
        assert list(found) == list(shapes)
    assert met > 20


@pytest.mark.parametrize("method", ["er", "erk"])
def test_bisection_of_the_clipped_equation_finds_the_same(method: str) -> None:
    for seed in range(60):
        shapes = some_shapes(seed)
        raw = {name: s[:2] if method == "er" else s for name, s in shapes.items()}
        raw = {name: sum(s) / math.prod(s) for name, s in raw.items()}
        low, high = 0.0, 1e9
        for _ in range(200):
            scale = (low + high) / 2
            reached = share(shapes, {name: min(1.0, scale * r) for name, r in raw.items()})
            low, high = (scale, high) if reached < 0.3 else (low, scale)
        found = layerwise_density(shapes, 0.3, method)
        for name, r in raw.items():
            assert found[name] == pytest.approx(min(1.0, low * r), abs=1e-9)


def test_erk_is_er_where_all_layers_are_linear_and_knows_no_order() -> None:
    shapes = {"a": (300, 20), "b": (100, 300), "c": (10, 100)}
    assert layerwise_density(shapes, 0.1, "erk") == layerwise_density(shapes, 0.1, "er")
    kernels = {"a": (16, 3, 3, 3), "b": (32, 16, 3, 3)}
    turned = {"b": (3, 16, 32, 3), "a": (3, 3, 3, 16)}
    assert layerwise_density(kernels, 0.2) == pytest.approx(layerwise_density(turned, 0.2))


def test_layers_of_one_shape_saturate_together() -> None:
    found = layerwise_density({"a": (3, 3), "b": (3, 3), "c": (900, 900)}, 0.01)
    assert found["a"] == found["b"] == 1


def test_what_is_prescribed_stays_and_the_others_make_up_for_it() -> None:
    shapes = {"stem": (16, 3, 3, 3), "body": (64, 16, 3, 3), "last": (10, 64)}
    plus = layerwise_density(shapes, 0.1, "uniform_plus")
    assert (plus["stem"], plus["last"]) == (1, 0.2)
    assert share(shapes, plus) == pytest.approx(0.1)
    assert layerwise_density(shapes, 0.3, "uniform_plus")["last"] == 0.3
    kept = layerwise_density(shapes, 0.1, "uniform", keep_dense=["stem"])
    assert kept["stem"] == 1
    assert kept["body"] == kept["last"]
    assert layerwise_density(shapes, 0.3, "erk_plus", last_density=0.9)["last"] == 0.9


def test_density_one_is_dense() -> None:
    assert set(layerwise_density({"a": (7, 3), "b": (5, 7)}, 1, "erk").values()) == {1.0}


def test_scores_give_the_share_of_each_layer() -> None:
    scores = {"a": torch.tensor([[9.0, 8.0], [1.0, 1.0]]), "b": torch.tensor([[7.0, 0.0]])}
    assert density_of_scores(scores, 0.5) == {"a": 0.5, "b": 0.5}
    assert density_of_scores(scores, 0.4) == {"a": 0.5, "b": 0.0}
    assert density_of_scores({"a": torch.ones(2, 2)}, 0.5) == {"a": 0.5}


@pytest.mark.parametrize("density", [0, -0.1, 1.1, math.nan])
def test_densities_out_of_range_are_named(density: float) -> None:
    with pytest.raises(ValueError, match="density="):
        layerwise_density({"a": (3, 3)}, density)
    with pytest.raises(ValueError, match="density="):
        density_of_scores({"a": torch.ones(3, 3)}, density)


def test_other_bad_input_is_named() -> None:
    shapes = {"a": (30, 30), "b": (30, 30)}
    with pytest.raises(ValueError, match="shapes is empty"):
        layerwise_density({}, 0.1)
    with pytest.raises(ValueError, match="method='best'"):
        inspect.unwrap(layerwise_density)(shapes, 0.1, "best")
    with pytest.raises(ValueError, match="keep_dense"):
        layerwise_density(shapes, 0.1, keep_dense=["c"])
    with pytest.raises(ValueError, match="prescribed"):
        layerwise_density(shapes, 0.1, keep_dense=["a"])
    with pytest.raises(ValueError, match="no weights"):
        layerwise_density({"a": (0, 3)}, 0.5)
    with pytest.raises(ValueError, match="NaN"):
        density_of_scores({"a": torch.tensor([[math.nan, 1.0]])}, 0.5)
