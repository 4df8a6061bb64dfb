"""A tree of concepts: parents exclude each other, a child needs its parent, each has a direction of its own.

The synthetic benchmark of "From Flat to Hierarchical" (Costa et al., NeurIPS 2025, section 4.1 and appendix
B.1, with the tree of the repository mpsae/MP-SAE), drawn for all samples at once.

>>> import torch
>>> tree = published_tree()
>>> generator = torch.Generator().manual_seed(0)
>>> directions = hierarchical_dictionary(tree.sibling_groups, 0.3, dim=20, generator=generator)
>>> x = tree.sample(200, generator) @ directions
>>> x.shape, round(tree.expected_l0, 2)
(torch.Size([200, 20]), 1.36)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsebook.data.activations import BatchSource, stream


@dataclass(frozen=True)
class ConceptNode:
    """A concept and what is below it.

    Attributes
    ----------
    probability : of being active when the parent is; among exclusive siblings the chance of being the one
    children : concepts that can be active only with this one
    exclusive : exactly one of the children is active with this one; their probabilities add up to 1
    read_out : whether the concept has a direction; a branch without means "none of the siblings"

    Raises
    ------
    ValueError : a probability outside [0, 1], or exclusive ones that do not add up to 1
    """

    probability: float
    children: tuple["ConceptNode", ...] = ()
    exclusive: bool = False
    read_out: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability}: expected 0 to 1")
        total = sum(child.probability for child in self.children)
        if self.exclusive and not abs(total - 1) < 1e-6:
            raise ValueError(f"children: expected probabilities that add up to 1 if exclusive, got {total:g}")


@dataclass(frozen=True)
class ConceptTree:
    """Concepts with directions are numbered in preorder, from 0.

    Parameters
    ----------
    root : its own probability applies, too

    Attributes
    ----------
    n_features : concepts with a direction
    parents : nearest concept with a direction above each, -1 for none
    levels : concepts with a direction above each; 0 for parents
    sibling_groups : concepts with the same parent, groups of at least two
    probabilities : of each concept being active
    expected_l0 : concepts active in a sample, on average

    Raises
    ------
    ValueError : a tree without any direction
    """

    root: ConceptNode
    parents: tuple[int, ...] = field(init=False)
    probabilities: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        rows = list(_walk(self.root, -1, 1.0, 0))
        if not rows:
            raise ValueError("root: expected a tree in which at least one concept is read out")
        object.__setattr__(self, "parents", tuple(parent for parent, _ in rows))
        object.__setattr__(self, "probabilities", tuple(probability for _, probability in rows))

    @property
    def n_features(self) -> int:
        return len(self.parents)

    @property
    def levels(self) -> tuple[int, ...]:
        levels: list[int] = []
        for parent in self.parents:
            levels.append(0 if parent < 0 else levels[parent] + 1)
        return tuple(levels)

    @property
    def sibling_groups(self) -> tuple[tuple[int, ...], ...]:
        members: dict[int, list[int]] = {}
        for feature, parent in enumerate(self.parents):
            members.setdefault(parent, []).append(feature)
        return tuple(tuple(group) for group in members.values() if len(group) > 1)

    @property
    def expected_l0(self) -> float:
        return sum(self.probabilities)

    def sample_active(self, n: int, generator: torch.Generator) -> Bool[Tensor, "samples features"]:
        """Which concepts are active in each of `n` samples.

        Raises
        ------
        ValueError : `n` below 1
        """
        if n < 1:
            raise ValueError(f"n={n}: expected at least 1")
        columns: list[Tensor] = []
        active = torch.rand(n, generator=generator) < self.root.probability
        _draw(self.root, active, columns, generator)
        return torch.stack(columns, 1)

    def sample(
        self,
        n: int,
        generator: torch.Generator,
        *,
        mean: float | int | Sequence[float] = 1.5,
        deviation: float | int | Sequence[float] = 0.25,
    ) -> Float[Tensor, "samples features"]:
        """Activations: of every active concept a normal magnitude of its own, else 0.

        Parameters
        ----------
        mean, deviation : of the magnitudes; one number, or one for each level
        """
        active = self.sample_active(n, generator)
        places = active.flatten().nonzero().squeeze(1)
        feature = places % self.n_features
        centre, spread = (self._by_level(name, v) for name, v in (("mean", mean), ("deviation", deviation)))
        sizes = centre[feature] + spread[feature] * torch.randn(len(places), generator=generator)
        return torch.zeros(active.shape).flatten().index_copy(0, places, sizes).view(active.shape)

    def _by_level(self, name: str, value: float | int | Sequence[float]) -> Tensor:
        levels = self.levels
        numbers = [value] * (max(levels) + 1) if isinstance(value, float | int) else list(value)
        if len(numbers) != max(levels) + 1:
            raise ValueError(f"{name}: expected one number or {max(levels) + 1}, one a level, got {value}")
        return torch.tensor([float(numbers[level]) for level in levels])


def _walk(node: ConceptNode, parent: int, reach: float, first: int) -> Iterator[tuple[int, float]]:
    """(parent, probability) of every concept with a direction, in preorder, numbered from `first`."""
    reach *= node.probability
    if node.read_out:
        yield parent, reach
        parent, first = first, first + 1
    for child in node.children:
        below = list(_walk(child, parent, reach, first))
        yield from below
        first += len(below)


def _draw(node: ConceptNode, active: Tensor, columns: list[Tensor], generator: torch.Generator) -> None:
    """Append the columns of `node`, whose activity is given, and of all below it."""
    if node.read_out:
        columns.append(active)
    if not node.children:
        return
    probabilities = torch.tensor([child.probability for child in node.children])
    if node.exclusive:
        edges = probabilities.cumsum(0)[:-1]
        chosen = torch.bucketize(torch.rand(len(active), generator=generator), edges, right=True)
    for index, child in enumerate(node.children):
        if node.exclusive:
            here = active & (chosen == index)
        else:
            here = active & (torch.rand(len(active), generator=generator) < child.probability)
        _draw(child, here, columns, generator)


def published_tree() -> ConceptTree:
    """The paper's tree: 3 parents with 3 exclusive children each, 8 without; 20 concepts, 1.36 a sample."""
    child, nothing, leaf = ConceptNode(0.2), ConceptNode(0.4, read_out=False), ConceptNode(0.05)
    family = ConceptNode(0.2, (child, child, child, nothing), exclusive=True)
    return ConceptTree(ConceptNode(1.0, (family,) * 3 + (leaf,) * 8, exclusive=True, read_out=False))


# Directions ----------------------------------------------------------------------------------------------


def mixing_for_cosine(n: int, cosine: float | int) -> float:
    """The share epsilon that `n` orthonormal directions give to each other so that all pairs have `cosine`.

    Each becomes ``(1 - epsilon) q_i + epsilon / (n - 1) * (sum of the others)``, normalised. With
    ``t = epsilon / (n - 1) / (1 - epsilon)`` a pair's cosine is ``(2 t + (n - 2) t^2) / (1 + (n - 1) t^2)``;
    this is the smaller root.

    Raises
    ------
    ValueError : fewer than two directions, or a cosine that so many cannot have
    """
    if n < 2:
        raise ValueError(f"n={n}: expected at least two directions")
    if not -1 / (n - 1) < cosine < 1:
        raise ValueError(f"cosine={cosine}: expected above {-1 / (n - 1):g} and below 1 for {n} directions")
    t = cosine / (1 + ((1 - cosine) * (1 + (n - 1) * cosine)) ** 0.5)
    return (n - 1) * t / (1 + (n - 1) * t)


def hierarchical_dictionary(
    groups: Sequence[Sequence[int]],
    cosine: float | int,
    *,
    dim: int,
    n_features: int | None = None,
    generator: torch.Generator,
) -> Float[Tensor, "features dim"]:
    """Unit directions with one cosine between any two of a group and none otherwise.

    Parameters
    ----------
    groups : disjoint groups of features, as `ConceptTree.sibling_groups`
    cosine : of every pair within a group
    n_features : one more than the largest of the groups if not given
    generator : draws the orthonormal directions that are mixed

    Raises
    ------
    ValueError : groups that overlap or are out of range, fewer dimensions than features, or a cosine that a
        group of this size cannot have
    """
    members = [feature for group in groups for feature in group]
    n_features = max(members, default=-1) + 1 if n_features is None else n_features
    if len(set(members)) < len(members) or not all(0 <= feature < n_features for feature in members):
        raise ValueError(f"groups: expected disjoint groups of features below {n_features}, got {groups}")
    if not 1 <= n_features <= dim:
        raise ValueError(f"n_features={n_features}: expected 1 to dim={dim}, directions are orthogonal")
    draw = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(draw)
    q = (q * r.diagonal().sign()).T[:n_features]  # the sign makes it uniform over rotations
    mixed = q.clone()
    for group in groups:
        if len(group) > 1:
            epsilon = mixing_for_cosine(len(group), cosine)
            rows, share = q[list(group)], epsilon / (len(group) - 1)
            mixed[list(group)] = (1 - epsilon - share) * rows + share * rows.sum(0)
    return torch.nn.functional.normalize(mixed, dim=1).float()


# Batches -------------------------------------------------------------------------------------------------


def tree_batches(
    tree: ConceptTree,
    directions: Float[Tensor, "models features dim"],
    batch_size: int,
    *,
    seeds: Sequence[int],
    mean: float | int | Sequence[float] = 1.5,
    deviation: float | int | Sequence[float] = 0.25,
    block: int = 50,
) -> BatchSource:
    """Batches ``[models, batch, dim]`` of several models, a function of the number of the step alone.

    Parameters
    ----------
    directions : of each model's concepts
    batch_size : samples of a batch
    seeds : one for each model; the same seed gives the same activations, along each model's directions
    mean, deviation : as in `ConceptTree.sample`
    block : batches that are drawn at a time and kept

    Raises
    ------
    ValueError : sizes below 1, or directions of another number of models or concepts
    """
    for name, value in (("batch_size", batch_size), ("block", block)):
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
    if len(seeds) != len(directions) or directions.shape[1] != tree.n_features:
        raise ValueError(
            f"directions has shape {tuple(directions.shape)}: expected [{len(seeds)}, {tree.n_features}, "
            "dim] for these seeds and this tree"
        )
    different = sorted(set(seeds))
    which = torch.tensor([different.index(seed) for seed in seeds])
    kept: dict[int, Tensor] = {}

    def batch(step: int) -> Tensor:
        number = step // block
        if number not in kept:
            drawn = [
                tree.sample(block * batch_size, stream(seed, number), mean=mean, deviation=deviation)
                for seed in different
            ]
            kept.clear()
            kept[number] = torch.stack(drawn).view(len(different), block, batch_size, -1)
        return kept[number][which, step % block] @ directions

    return batch
