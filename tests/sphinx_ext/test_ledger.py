"""The ledger as HTML: every paper, every verdict in words, every claim linked."""

import dataclasses
import re
from typing import Any

import pytest

from sparsebook.book import find_book
from sparsebook.sphinx_ext import ledger


def claim(**changes: Any) -> dict[str, Any]:
    row = {
        "slug": "seismic",
        "part": "retrieval",
        "id": "C1",
        "statement": "Blocks <skip> & save.",
        "paper": "187 us",
        "source": "read",
        "setting": "paper",
        "kind": "random",
        "expect": {"rule": "at_least", "words": "at least 1"},
        "measured": 12345.678,
        "interval": [0.5, 2.0],
        "level": 0.95,
        "n": 8,
        "unit": "ratio",
        "verdict": "holds",
        "word": "reproduced",
        "why": "",
    }
    return row | changes


@pytest.fixture
def state() -> ledger.State:
    papers = (
        {
            "slug": "seismic",
            "part": "retrieval",
            "title": "Efficient <Indexes>",
            "year": 2024,
            "venue": "SIGIR 2024",
        },
        {"slug": "spark", "part": "perception", "title": "Masked", "year": 2023, "venue": "ICLR"},
    )
    claims = [
        claim(),
        claim(id="C2", verdict="fails", word="fails here"),
        claim(id="C3", verdict="inconclusive", word="inconclusive", why="with n = 8, 0.2 would be seen"),
        claim(id="C4", verdict="untested", word="untested", measured=None, interval=None, n=None, paper=None),
    ]
    return ledger.State(
        papers=papers,
        parts={"retrieval": "Sparse retrieval", "perception": "Sparse perception"},
        written={"seismic": "retrieval/seismic.html"},
        claims=claims,
    )


def test_glance_has_a_row_a_paper_and_a_labelled_cell_a_claim(state: ledger.State) -> None:
    page = ledger.glance(state)
    assert re.findall(r'<tr class="paper[^"]*" role="row" data-slug="(\w+)"', page) == ["seismic", "spark"]
    cells = re.findall(r'<a class="chip verdict-(\w+)".*? href="([^"]+)">(.*?)</a>', page)
    shown = [(verdict, link, re.sub("<[^>]+>", "", text)) for verdict, link, text in cells]
    assert shown == [
        ("holds", "retrieval/seismic.html#claim-C1", "✓ C1 reproduced"),
        ("fails", "retrieval/seismic.html#claim-C2", "✗ C2 fails here"),
        ("inconclusive", "retrieval/seismic.html#claim-C3", "? C3 inconclusive"),
        ("untested", "retrieval/seismic.html#claim-C4", "– C4 untested"),
    ]
    assert "1 of 2 papers written" in page


def test_an_unwritten_paper_is_said_to_be_so_and_leads_nowhere(state: ledger.State) -> None:
    row = ledger.glance(state).split('data-slug="spark"')[1]
    assert "not yet written" in row
    assert "href" not in row


@pytest.mark.parametrize("draw", [ledger.glance, ledger.full])
def test_text_is_escaped(state: ledger.State, draw: Any) -> None:
    page = draw(state)
    assert "<Indexes>" not in page
    assert "Efficient &lt;Indexes&gt;" in page
    assert "<skip>" not in page


def test_full_gives_every_claim_an_anchor_and_its_numbers(state: ledger.State) -> None:
    page = ledger.full(state)
    for row in state.claims:
        assert page.count(f'id="seismic-{row["id"]}"') == 1
    assert "12,346 ratio" in page
    assert "0.5 to 2 at 95 %" in page
    assert "with n = 8, 0.2 would be seen" in page
    assert "Stored" not in page


def test_full_tells_how_many_verdicts_chance_may_have_made_wrong(state: ledger.State) -> None:
    # One chapter, claims with one border each: half of the error budget of 5 %.
    assert "at most <b>0.025</b> of 4" in ledger.full(state)


def test_a_run_is_set_beside_the_stored_verdicts(state: ledger.State) -> None:
    stored = ("holds", "holds", None, "untested")
    claims = [row | {"stored_verdict": former} for row, former in zip(state.claims, stored, strict=True)]
    page = ledger.full(dataclasses.replace(state, claims=claims, compared=True))
    differs = re.findall(r'id="seismic-(C\d)" data-verdict="\w+" data-differs="(\w+)"', page)
    assert differs == [("C1", "false"), ("C2", "true"), ("C3", "true"), ("C4", "false")]
    assert "only where this run differs" in page
    assert "Stored" in page


def test_read_knows_every_paper_of_the_book() -> None:
    state = ledger.read(find_book(__file__))
    assert len(state.papers) == 40
    assert {paper["part"] for paper in state.papers} == set(state.parts)
    assert {row["slug"] for row in state.claims} <= set(state.written)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (12345.6, "12,346"), (0.95, "0.95"), (-0.029274, "-0.02927"), (3.2e-7, "3.200e-07")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert ledger._number(value) == text
