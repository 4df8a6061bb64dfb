"""Scores without labels against closed forms, scikit-feature where it is installed, and judged choices."""

import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sparsebook.networks.feature_selection import (
    clustering_accuracy,
    evaluate_selection,
    heat_graph,
    laplacian_score,
    mcfs,
    top_features,
)


def clusters(seed=0, samples=90, columns=12):
    """Three clusters that the first two columns show."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % 3
    x = rng.standard_normal((samples, columns))
    x[:, :2] += 5 * np.array([[0, 0], [1, 0], [0, 1]])[labels]
    return x, labels


def test_laplacian_score_is_its_formula():
    x, _ = clusters()
    graph = heat_graph(x, 4).toarray()
    degree = np.diag(graph.sum(axis=1))
    ones = np.ones(len(x))
    expected = []
    for f in x.T:
        centred = f - (f @ degree @ ones) / (ones @ degree @ ones)
        expected.append(centred @ (degree - graph) @ centred / (centred @ degree @ centred))
    assert laplacian_score(x, n_neighbors=4) == pytest.approx(np.array(expected), rel=1e-9)


def test_the_graph_is_symmetric_and_counts_coinciding_samples():
    x, _ = clusters()
    x[1] = x[0]
    graph = heat_graph(x, 3)
    assert abs(graph - graph.T).max() == 0
    assert graph[0, 1] == 1
    assert graph.diagonal().sum() == 0
    assert (np.diff(graph.tocsr().indptr) >= 3).all()
    assert heat_graph(np.ones((6, 2)), 2).data.tolist() == [1.0] * heat_graph(np.ones((6, 2)), 2).nnz


def test_samples_that_coincide_are_joined_with_weight_one() -> None:
    twins = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
    graph = heat_graph(twins, 1, t=1.0).toarray()
    assert graph[0, 1] == graph[1, 0] == graph[3, 4] == 1
    assert graph[2].max() == pytest.approx(np.exp(-1))


def test_both_scores_find_the_columns_that_show_the_clusters():
    x, _ = clusters()
    x = np.hstack([x, np.ones((len(x), 1))])
    score = laplacian_score(x)
    assert score[-1] == np.inf  # constant
    assert set(top_features(-score, 2)) == {0, 1}
    assert set(top_features(mcfs(x, 2, 2), 2)) == {0, 1}


def test_against_scikit_feature():
    """Same graph, same scores; `skfeature-chappers` of the package index."""
    pytest.importorskip("skfeature")
    from skfeature.function.similarity_based import lap_score
    from skfeature.function.sparse_learning_based import MCFS

    x, _ = clusters()
    graph = heat_graph(x, 5)
    theirs = lap_score.lap_score(x, mode="index", W=graph.tocsc())  # it returns no scores, but their order
    assert np.argsort(laplacian_score(x, graph)).tolist() == list(theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coefficients = MCFS.mcfs(x, n_selected_features=4, mode="raw", W=graph.tocsc(), n_clusters=3)
    ours = mcfs(x, 4, 3, graph)
    assert np.abs(coefficients).max(axis=1) == pytest.approx(ours, abs=1e-6)


def test_clusters_are_named_one_to_one():
    assert clustering_accuracy([0, 0, 1, 1, 2], ["b", "b", "c", "c", "a"]) == 1
    assert clustering_accuracy([0, 0, 0, 1], [0, 1, 2, 2]) == 0.5
    assert clustering_accuracy([0, 1, 2, 3], [7, 7, 7, 7]) == 0.25


def test_good_columns_judge_better_than_noise():
    x, labels = clusters()
    train, test = slice(0, 60), slice(60, 90)
    split = x[train], x[test], labels[train], labels[test]
    good, bad = evaluate_selection(*split, [0, 1]), evaluate_selection(*split, [5, 6])
    assert good.classification > 0.9 > 0.7 > bad.classification
    assert good.clustering > 0.8 > 0.6 > bad.clustering
    assert evaluate_selection(*split, [0, 1]) == good


def test_bad_input():
    x, labels = clusters()
    for call, message in (
        (lambda: heat_graph(x, 0), "n_neighbors=0"),
        (lambda: heat_graph(x, 90), "expected 1 to 89"),
        (lambda: heat_graph(x, t=-1.0), "t=-1.0"),
        (lambda: laplacian_score(np.full((5, 2), np.nan)), "finite"),
        (lambda: laplacian_score(np.zeros((0, 5))), "table"),
        (lambda: mcfs(x, 0, 2), "number of features 0"),
        (lambda: mcfs(x, 2, 89), "n_clusters=89"),
        (lambda: top_features(np.array([1.0, np.nan]), 1), "NaN"),
        (lambda: top_features(np.ones(3), 4), "expected 1 to 3"),
        (lambda: clustering_accuracy([1, 2], [1]), "equally long"),
        (lambda: evaluate_selection(x, x, labels, labels, [1, 1]), "none twice"),
        (lambda: evaluate_selection(x, x, labels, labels, []), "at least one column"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
