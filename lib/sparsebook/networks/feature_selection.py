"""Choosing columns of a table without labels, and judging a choice.

===================  ====================================================================================
method               a column is good when
===================  ====================================================================================
`laplacian_score`    it varies little between neighbours: He, Cai and Niyogi 2005 (NeurIPS 18)
`mcfs`               it helps a sparse regression onto the graph's eigenvectors: Cai, Zhang and He 2010 (KDD)
===================  ====================================================================================

Both look at a graph of nearest neighbours (`heat_graph`). `evaluate_selection` judges columns by a
classifier and by clusters. Neighbours, least angles, trees and k-means are scikit-learn's, eigenvectors
SciPy's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from sparsebook.files import missing_package

Rows = Shaped[np.ndarray, "samples features"]


def heat_graph(x: Rows, n_neighbors: int = 5, t: float | int | None = None) -> Any:
    """Symmetric graph of nearest neighbours with weights exp(-squared distance / t).

    Parameters
    ----------
    x : float [samples, features]
    n_neighbors : int
        Neighbours of each sample, itself not among them; two samples are joined if either counts the other.
    t : float, optional
        Width of the heat kernel; the mean squared distance over the edges if None.

    Returns
    -------
    scipy.sparse.csr_array [samples, samples]

    Raises
    ------
    ValueError
        Fewer than two samples, or no or too many neighbours, or a width that is not positive.
    """
    kneighbors_graph = _sklearn("neighbors", "kneighbors_graph")
    x = _table(x)
    if not 1 <= n_neighbors < len(x):
        raise ValueError(f"n_neighbors={n_neighbors}: expected 1 to {len(x) - 1}, the samples less one")
    if t is not None and not t > 0:
        raise ValueError(f"t={t}: expected a positive width")
    graph = kneighbors_graph(x, n_neighbors, mode="distance").tocsr()
    graph.data += 1  # samples that coincide have distance 0, and zeros would be no edges
    graph = graph.maximum(graph.T).tocsr()
    squares = (graph.data - 1) ** 2
    width = float(squares.mean()) if t is None else t
    graph.data = np.exp(-squares / width) if width > 0 else np.ones_like(squares)
    return graph


def laplacian_score(
    x: Rows, graph: Any = None, *, n_neighbors: int = 5, t: float | int | None = None
) -> Float[np.ndarray, " features"]:
    """Laplacian score of every column; small is good, constant columns get infinity.

    Parameters
    ----------
    x : float [samples, features]
    graph : scipy sparse [samples, samples], optional
        Symmetric weights; `heat_graph` of x if None.
    n_neighbors, t
        Of that graph.

    Notes
    -----
    With degrees D = diag(S 1), L = D - S and f~ = f - (f' D 1 / 1' D 1) 1, the score is f~' L f~ / f~' D f~
    (He et al. 2005, equation 8).
    """
    x = _table(x)
    graph = heat_graph(x, n_neighbors, t) if graph is None else graph
    degree = np.asarray(graph.sum(axis=1), dtype=np.float64).ravel()
    centred = x - (degree @ x) / degree.sum()
    spread = (centred**2 * degree[:, None]).sum(axis=0)
    smooth = spread - (centred * (graph @ centred)).sum(axis=0)
    constant = spread <= 1e-12 * max(1.0, float(spread.max(initial=0.0)))
    return np.where(constant, np.inf, smooth / np.where(constant, 1.0, spread))


def mcfs(
    x: Rows, n_selected: int, n_clusters: int, graph: Any = None, *, n_neighbors: int = 5,
    t: float | int | None = None, seed: int = 0,
) -> Float[np.ndarray, " features"]:  # fmt: skip
    """Multi-cluster feature selection: the largest coefficient of every column; large is good.

    The `n_clusters` smallest non-trivial eigenvectors of L y = lambda D y are each regressed on the columns
    by least angles, stopped at `n_selected` coefficients.

    Parameters
    ----------
    x, graph, n_neighbors, t
        As in `laplacian_score`.
    n_selected, n_clusters : int
    seed : of the eigensolver's start

    Raises
    ------
    ValueError
        More clusters than samples less two, or more selected than columns, or fewer than one.
    """
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import eigsh

    lars = _sklearn("linear_model", "Lars")
    x = _table(x)
    if not 1 <= n_clusters <= len(x) - 2:
        raise ValueError(f"n_clusters={n_clusters}: expected 1 to {len(x) - 2}, the samples less two")
    _check_count(n_selected, x.shape[1])
    graph = heat_graph(x, n_neighbors, t) if graph is None else graph
    degree = np.maximum(np.asarray(graph.sum(axis=1), dtype=np.float64).ravel(), 1e-12)
    scale = diags_array(1 / np.sqrt(degree))
    start = np.random.default_rng(seed).standard_normal(len(x))
    values, vectors = eigsh((scale @ graph @ scale).tocsr(), k=n_clusters + 1, which="LA", v0=start)
    order = np.argsort(-values)[1:]  # without the trivial one
    targets = scale @ vectors[:, order]
    score = np.zeros(x.shape[1])
    for target in targets.T:
        score = np.maximum(score, np.abs(lars(n_nonzero_coefs=n_selected).fit(x, target).coef_))
    return score


def top_features(scores: Shaped[np.ndarray, " features"], n: int) -> Int[np.ndarray, " n"]:
    """Numbers of the `n` columns of largest score, the largest first, the first of equals first.

    Raises
    ------
    ValueError
        NaN among the scores, or more columns than there are, or fewer than one.
    """
    scores = np.asarray(scores)
    _check_count(n, len(scores))
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN: expected numbers")
    return np.argsort(-scores, kind="stable")[:n]


def clustering_accuracy(labels: Sequence[Any] | np.ndarray, clusters: Sequence[Any] | np.ndarray) -> float:
    """Share of samples whose cluster stands for their label, under the best one-to-one naming.

    Raises
    ------
    ValueError
        Of different lengths, or empty.
    """
    from scipy.optimize import linear_sum_assignment

    labels, clusters = np.asarray(labels), np.asarray(clusters)
    if labels.shape != clusters.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"labels and clusters must be equally long lists, got shapes {labels.shape} and {clusters.shape}"
        )
    _, label = np.unique(labels, return_inverse=True)
    _, cluster = np.unique(clusters, return_inverse=True)
    counts = np.zeros((label.max() + 1, cluster.max() + 1), dtype=np.int64)
    np.add.at(counts, (label, cluster), 1)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(label))


@dataclass(frozen=True)
class Judged:
    """How good a choice of columns is; both between 0 and 1."""

    classification: float
    clustering: float


def evaluate_selection(
    train: Shaped[np.ndarray, "train features"], test: Shaped[np.ndarray, "test features"],
    train_labels: Shaped[np.ndarray, " train"], test_labels: Shaped[np.ndarray, " test"],
    columns: Sequence[int] | np.ndarray, *, seed: int = 0, n_trees: int = 50, n_clusterings: int = 10,
) -> Judged:  # fmt: skip
    """Accuracy of extremely randomised trees and of k-means that see only these columns.

    As the released code of QuickSelection does it (arXiv 2012.00560, section 5): the trees are judged on the
    test samples; k-means, with as many clusters as there are classes, on the training samples, as the mean
    of `n_clusterings` runs.

    Parameters
    ----------
    train, test : float [samples, features]
    train_labels, test_labels : one a sample
    columns : the chosen ones
    seed : of trees and clusters
    """
    trees, k_means = _sklearn("ensemble", "ExtraTreesClassifier"), _sklearn("cluster", "KMeans")
    columns = np.asarray(columns, dtype=np.int64)
    if not len(columns) or len(np.unique(columns)) != len(columns):
        raise ValueError(f"columns must name at least one column, and none twice, got {columns.tolist()}")
    own, held_out = _table(train)[:, columns], _table(test)[:, columns]
    classes = len(np.unique(train_labels))
    # What scikit-learn would check in every call was checked above; on small tables that is half its time.
    with _sklearn("", "config_context")(assume_finite=True, skip_parameter_validation=True):
        forest = trees(n_trees, random_state=seed, n_jobs=1).fit(own, train_labels)
        right = float(forest.score(held_out, test_labels))
        found = [
            k_means(classes, n_init=1, random_state=seed + run).fit_predict(own)
            for run in range(n_clusterings)
        ]
    return Judged(right, float(np.mean([clustering_accuracy(train_labels, clusters) for clusters in found])))


def _table(x: Any) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"x must be a table of finite numbers, got shape {x.shape}")
    return x


def _check_count(n: int, most: int) -> None:
    if not 1 <= n <= most:
        raise ValueError(f"number of features {n}: expected 1 to {most}")


def _sklearn(module: str, name: str) -> Any:
    import importlib

    try:
        return getattr(importlib.import_module(f"sklearn.{module}".rstrip(".")), name)
    except ImportError as error:
        raise missing_package("scikit-learn") from error
