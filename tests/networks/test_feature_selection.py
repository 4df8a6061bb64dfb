"""Choosing columns without labels, and judging a choice."""

import numpy as np
import pytest

from sparsebook.networks.feature_selection import heat_graph


def test_samples_that_coincide_are_joined_with_weight_one() -> None:
    twins = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
    graph = heat_graph(twins, 1, t=1.0).toarray()
    assert graph[0, 1] == graph[1, 0] == graph[3, 4] == 1
    assert graph[2].max() == pytest.approx(np.exp(-1))
