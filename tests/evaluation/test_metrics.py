"""Agreement with exact search, against sets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsebook.evaluation.metrics import overlap_at_k


def by_sets(found: list[int], exact: list[int]) -> float:
    wanted = set(exact) - {-1}
    return len(wanted & set(found)) / len(wanted) if wanted else 1.0


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_against_sets(data: st.DataObject) -> None:
    queries, k = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 12))
    ids = st.lists(st.integers(0, 20), max_size=k)
    unique = st.lists(st.integers(0, 20), max_size=k, unique=True)
    found = [(row + [-1] * k)[:k] for row in (data.draw(ids) for _ in range(queries))]
    exact = [(row + [-1] * k)[:k] for row in (data.draw(unique) for _ in range(queries))]
    shape = (queries, k)
    got = overlap_at_k(torch.tensor(found).long().reshape(shape), torch.tensor(exact).long().reshape(shape))
    assert got.tolist() == pytest.approx([by_sets(f, e) for f, e in zip(found, exact, strict=True)])


def test_order_padding_and_repetition() -> None:
    exact = torch.tensor([[3, 1, 2], [5, 6, -1], [-1, -1, -1]])
    found = torch.tensor([[2, 3, 9], [5, 5, -1], [1, 2, 3]], dtype=torch.int32)
    got = overlap_at_k(found, exact)
    torch.testing.assert_close(got, torch.tensor([2 / 3, 1 / 2, 1.0]))
    assert got.dtype == torch.float32


@pytest.mark.parametrize(
    ("found", "exact", "message"),
    [
        (torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.int64), "k >= 1"),
        (torch.tensor([[-2]]), torch.tensor([[1]]), "found_ids: expected ids >= 0 or the padding -1, got -2"),
        (torch.tensor([[1, 2]]), torch.tensor([[1, 1]]), "exact_ids: a query names the same document twice"),
    ],
)
def test_what_is_refused(found: Tensor, exact: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlap_at_k(found, exact)
