"""The tree of concepts: what is drawn, how often, along which directions."""

import pytest
import torch

from sparsebook.data.concept_tree import (
    ConceptNode,
    ConceptTree,
    hierarchical_dictionary,
    mixing_for_cosine,
    published_tree,
    tree_batches,
)

TREE = published_tree()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_published_tree() -> None:
    assert TREE.n_features == 20
    assert [i for i, parent in enumerate(TREE.parents) if parent < 0] == [0, 4, 8, *range(12, 20)]
    assert TREE.parents[1:4] == (0, 0, 0)
    assert TREE.levels[4:8] == (0, 1, 1, 1)
    assert sorted(map(len, TREE.sibling_groups)) == [3, 3, 3, 11]
    assert TREE.sibling_groups[1] == (1, 2, 3)
    assert TREE.expected_l0 == pytest.approx(1.36)


def test_what_is_drawn() -> None:
    n = 40_000
    active = TREE.sample_active(n, generator())
    parents = [i for i, parent in enumerate(TREE.parents) if parent < 0]
    assert (active[:, parents].sum(1) == 1).all()
    for child, parent in enumerate(TREE.parents):
        if parent >= 0:
            assert not (active[:, child] & ~active[:, parent]).any()
    for group in TREE.sibling_groups:
        assert active[:, list(group)].sum(1).max() == 1
    expected = torch.tensor(TREE.probabilities)
    error = (expected * (1 - expected) / n).sqrt()
    assert ((active.float().mean(0) - expected).abs() < 5 * error).all()
    assert active.sum(1).float().mean().item() == pytest.approx(1.36, abs=5 * 0.48 / n**0.5)
    given = active[active[:, 0]][:, 1:4].float().mean(0)
    assert (given - 0.2).abs().max() < 5 * (0.16 / 8000) ** 0.5


def test_magnitudes_are_independent_and_by_level() -> None:
    z = TREE.sample(40_000, generator(1))
    values = z[z != 0]
    assert values.mean().item() == pytest.approx(1.5, abs=0.01)
    assert values.std().item() == pytest.approx(0.25, abs=0.01)
    both = z[(z[:, 0] != 0) & (z[:, 1] != 0)][:, :2]
    assert abs(torch.corrcoef(both.T)[0, 1]) < 5 / len(both) ** 0.5
    levels = TREE.sample(40_000, generator(2), mean=(1.0, 0.1), deviation=(0.25, 0.025))
    child = levels[:, 1][levels[:, 1] != 0]
    assert child.mean().item() == pytest.approx(0.1, abs=0.01)
    assert child.std().item() == pytest.approx(0.025, abs=0.005)
    constant = TREE.sample(100, generator(3), deviation=0.0)
    assert set(constant.flatten().tolist()) == {0.0, 1.5}


def test_independent_children() -> None:
    tree = ConceptTree(ConceptNode(0.5, (ConceptNode(0.5), ConceptNode(0.25))))
    assert tree.probabilities == (0.5, 0.25, 0.125)
    active = tree.sample_active(40_000, generator())
    assert (active.float().mean(0) - torch.tensor(tree.probabilities)).abs().max() < 0.0125
    assert (active[:, 1] & active[:, 2]).float().mean().item() == pytest.approx(0.0625, abs=0.006)


@pytest.mark.parametrize(
    ("n", "epsilons"),
    [
        (3, (0, 0.0895, 0.163, 0.226, 0.282, 0.3335, 0.3825, 0.431, 0.482)),
        (11, (0, 0.3, 0.44, 0.529, 0.594, 0.6467, 0.692, 0.733, 0.7739)),
    ],
)
def test_mixing_gives_the_published_shares(n: int, epsilons: tuple[float, ...]) -> None:
    for tenth, epsilon in enumerate(epsilons):
        assert mixing_for_cosine(n, tenth / 10) == pytest.approx(epsilon, abs=1e-3)


@pytest.mark.parametrize("cosine", [-0.05, 0.0, 0.3, 0.9])
def test_directions(cosine: float) -> None:
    directions = hierarchical_dictionary(TREE.sibling_groups, cosine, dim=24, generator=generator())
    expected = torch.eye(20)
    for group in TREE.sibling_groups:
        for i in group:
            for j in group:
                expected[i, j] = 1.0 if i == j else cosine
    torch.testing.assert_close(directions @ directions.T, expected, atol=2e-6, rtol=0)
    other = hierarchical_dictionary(TREE.sibling_groups, cosine, dim=24, generator=generator(1))
    assert (directions - other).abs().max() > 0.1


def test_batches_depend_on_the_step_alone() -> None:
    directions = torch.stack(
        [
            hierarchical_dictionary(TREE.sibling_groups, cosine, dim=20, generator=generator(seed))
            for cosine in (0.0, 0.5)
            for seed in (7, 8)
        ]
    )
    source, again = (tree_batches(TREE, directions, 16, seeds=(7, 8, 7, 8), block=4) for _ in range(2))
    forwards = [source(step) for step in range(10)]
    for step in reversed(range(10)):
        assert torch.equal(again(step), forwards[step])
    assert forwards[0].shape == (4, 16, 20)
    codes = forwards[5] @ torch.linalg.inv(directions)
    torch.testing.assert_close(
        codes[0], codes[2], atol=1e-4, rtol=1e-4
    )  # the same seed, the same activations
    assert (codes[0] - codes[1]).abs().max() > 0.5
    assert (codes[0].abs() > 0.01).sum(1).max() <= 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConceptNode(1.2), "probability=1.2: expected 0 to 1"),
        (lambda: ConceptNode(1.0, (ConceptNode(0.2),), exclusive=True), "add up to 1 if exclusive, got 0.2"),
        (lambda: ConceptTree(ConceptNode(1.0, read_out=False)), "at least one concept is read out"),
        (lambda: TREE.sample(0, generator()), "n=0: expected at least 1"),
        (lambda: TREE.sample(5, generator(), mean=(1.0, 1.0, 1.0)), "mean: expected one number or 2"),
        (lambda: mixing_for_cosine(1, 0.5), "n=1: expected at least two"),
        (lambda: mixing_for_cosine(3, 1.0), "cosine=1.0: expected above -0.5 and below 1"),
        (lambda: hierarchical_dictionary([[0, 1], [1, 2]], 0.1, dim=4, generator=generator()), "disjoint"),
        (lambda: hierarchical_dictionary([[0, 5]], 0.1, dim=4, generator=generator()), "n_features=6"),
        (lambda: tree_batches(TREE, torch.zeros(2, 20, 20), 8, seeds=(1,)), r"expected \[1, 20, dim\]"),
        (lambda: tree_batches(TREE, torch.zeros(1, 20, 20), 0, seeds=(1,)), "batch_size=0"),
    ],
)
def test_bad_input_is_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
