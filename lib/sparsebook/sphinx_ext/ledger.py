"""The ledger as HTML: at a glance for the first page, in full for its own.

Colour never stands alone: every verdict is also a sign and a word.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebook.book import chapters, count_verdicts, ledger, papers
from sparsebook.book.layout import read_yaml
from sparsebook.book.rendering import STORED_BOOK_VARIABLE
from sparsebook.claims import expected_false_verdicts

SIGNS = {"holds": "✓", "fails": "✗", "inconclusive": "?", "untested": "–"}
MEANINGS = {
    "holds": "the interval lies wholly where the paper's claim puts it",
    "fails": "the interval lies wholly elsewhere",
    "inconclusive": "the interval lies across the border",
    "untested": "needs data or hardware that this run did not have",
}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """What the book has to show: its papers, the chapters written and every claim's verdict."""

    papers: tuple[dict[str, Any], ...]
    """Entries of ``papers.yml``: slug, part, title, authors, year, venue, arxiv, repository, summary."""
    parts: dict[str, str]
    """Titles of the parts, in the order of the table of contents."""
    written: dict[str, str]
    """Addresses of the written chapters relative to the page (``retrieval/seismic.html``), by slug."""
    claims: list[dict[str, Any]]
    compared: bool = False
    """Whether the claims are a run's, with the stored book's verdict beside each (``stored_verdict``)."""


def read(root: Path | str) -> State:
    """Read the state of the book in ``root`` (the folder with ``_toc.yml``), a run's book included."""
    root = Path(root)
    stored = os.environ.get(STORED_BOOK_VARIABLE)
    claims = ledger(stored, run=root) if stored else ledger(root)
    content = read_yaml(root / "book" / "papers.yml")
    papers(root)  # checks the entries
    return State(
        papers=tuple(content["papers"]),
        parts=dict(content["parts"]),
        written={c.slug: f"{c.part}/{c.slug}.html" for c in chapters(root)},
        claims=claims,
        compared=bool(stored),
    )


def glance(state: State) -> str:
    """One row a paper, one labelled cell a claim, linked to the claim in its chapter."""
    by_slug = _by_slug(state.claims)
    papers_of = {
        part: sorted(
            (paper for paper in state.papers if paper["part"] == part),
            key=lambda paper: not _is_written(paper, state),
        )
        for part in state.parts
    }
    # What can be read stands first, parts and papers alike; the rest keeps the order of the contents.
    parts = sorted(
        state.parts, key=lambda part: not any(_is_written(paper, state) for paper in papers_of[part])
    )
    groups = [
        _group(state.parts[part], [_glance_row(paper, state, by_slug) for paper in papers_of[part]])
        for part in parts
    ]
    # The roles are written out because the style sheet makes grids of the rows, which hides the table from
    # those who listen to it.
    return (
        f'<div class="ledger-glance" id="ledger-at-a-glance">{_summary(state)}{_legend()}'
        '<table class="glance" role="table"><caption class="sb-hidden">Papers and their claims</caption>'
        f"{''.join(groups)}</table></div>"
    )


def full(state: State) -> str:
    """Every claim with its numbers, part by part, with a filter that needs no network."""
    by_slug = _by_slug(state.claims)
    parts = {"kernels": "Shared kernels", **state.parts}
    sections = [_section(part, title, state, by_slug) for part, title in parts.items()]
    return (
        f'<div class="ledger-full">{_summary(state)}{_chance(state)}{_filter(state)}'
        f"{''.join(sections)}"
        '<p class="ledger-empty" hidden>No claim has the verdicts and words that you chose.</p></div>'
    )


def _is_written(paper: Mapping[str, Any], state: State) -> bool:
    return paper["slug"] in state.written


def _by_slug(claims: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in claims:
        found.setdefault(row["slug"], []).append(row)
    return found


def _word(row: Row) -> str:
    return str(row.get("word") or row["verdict"])


def _text(value: Any) -> str:
    return html.escape(str(value))


def _chip(row: Row, address: str | None) -> str:
    """A claim's cell: its id and verdict in words and colour, with the whole statement for who asks."""
    label = f"{SIGNS[row['verdict']]} {_text(row['id'])}"
    word = _text(_word(row))
    inside = f'<span class="sb-id">{label}</span> <span class="sb-word">{word}</span>'
    marks = f'class="chip verdict-{row["verdict"]}" title="{_text(row["statement"])}"'
    if address is None:
        return f"<span {marks}>{inside}</span>"
    return f'<a {marks} href="{address}#claim-{_text(row["id"])}">{inside}</a>'


def _badge(verdict: str, word: str) -> str:
    return f'<span class="chip verdict-{verdict}">{SIGNS[verdict]} {_text(word)}</span>'


def _group(title: str, rows: list[str]) -> str:
    head = f'<tr class="part" role="row"><th role="columnheader" colspan="2">{_text(title)}</th></tr>'
    return f'<tbody role="rowgroup">{head}{"".join(rows)}</tbody>'


def _glance_row(paper: Mapping[str, Any], state: State, by_slug: Mapping[str, list[Row]]) -> str:
    slug = paper["slug"]
    address = state.written.get(slug)
    if address is None:
        cells = '<span class="chip unwritten">not yet written</span>'
    else:
        chips = [_chip(row, address) for row in by_slug.get(slug, [])]
        cells = " ".join(chips) or '<span class="chip unwritten">no claims stored</span>'
    return (
        f'<tr class="paper{"" if address else " is-unwritten"}" role="row" data-slug="{slug}">'
        f'<th role="rowheader">{_paper_title(paper, address)}</th><td role="cell">{cells}</td></tr>'
    )


def _paper_title(paper: Mapping[str, Any], address: str | None) -> str:
    title = _text(paper["title"])
    shown = f'<a href="{address}">{title}</a>' if address else title
    return f'{shown} <span class="source">{_text(_venue(paper))}</span>'


def _venue(paper: Mapping[str, Any]) -> str:
    venue = str(paper.get("venue") or "")
    return venue if str(paper["year"]) in venue else f"{venue}, {paper['year']}".lstrip(", ")


def _summary(state: State) -> str:
    total = len(state.papers)
    written = sum(paper["slug"] in state.written for paper in state.papers)
    counts = count_verdicts(state.claims)
    chips = " ".join(
        f'<span class="chip verdict-{verdict}"><span class="sb-id">{SIGNS[verdict]} {number}</span> '
        f'<span class="sb-word">{_text(verdict)}</span></span>'
        for verdict, number in counts.items()
    )
    claims = f"{len(state.claims)} claims: {chips}" if state.claims else "no claim judged yet"
    return f'<p class="ledger-summary">{written} of {total} papers written, {claims}</p>'


def _legend() -> str:
    items = " · ".join(f"<b>{SIGNS[verdict]} {verdict}</b>: {text}" for verdict, text in MEANINGS.items())
    return (
        f'<details class="ledger-legend"><summary>What the verdicts mean</summary><p>{items}.</p>'
        "<p>At the paper's own setting, with a source that was read, <i>holds</i> is shown as "
        "<i>reproduced</i> and <i>fails</i> as <i>contradicted</i>; on other data or at another scale as "
        "<i>holds here</i> and <i>fails here</i>. A verdict is computed from samples and an expectation "
        "declared beforehand; nobody types it.</p></details>"
    )


def _chance(state: State) -> str:
    number = expected_false_verdicts(state.claims)
    return (
        f'<p class="ledger-chance">Expected false verdicts by chance: at most <b>{number:.2g}</b> of '
        f"{len(state.claims)}. This supposes the worst, that every true value lies on the border of what is "
        "expected; the random and timed claims of a chapter share one error budget of 5 % (Holm's method), "
        "and exact claims leave nothing to chance.</p>"
    )


def _filter(state: State) -> str:
    boxes = "".join(
        f'<label class="chip verdict-{v}"><input type="checkbox" name="verdict" value="{v}" checked> '
        f"{SIGNS[v]} {v}</label>"
        for v in SIGNS
    )
    differs = ""
    if state.compared:
        differs = '<label><input type="checkbox" name="differs"> only where this run differs</label>'
    return (
        '<form class="ledger-filter" role="search" aria-label="Filter the claims" onsubmit="return false">'
        '<input type="search" name="words" placeholder="Filter by words" aria-label="Filter by words"> '
        f'{boxes} {differs}<output aria-live="polite"></output></form>'
    )


def _section(part: str, title: str, state: State, by_slug: Mapping[str, list[Row]]) -> str:
    tables = [
        _paper_block(paper, state, by_slug.get(paper["slug"], []))
        for paper in state.papers
        if paper["part"] == part
    ]
    if part == "kernels":  # chapters without a paper: those that claim something
        written = [slug for slug, address in state.written.items() if address.startswith("kernels/")]
        slugs = [slug for slug in written if by_slug.get(slug)]
        tables = [
            _paper_block({"slug": s, "title": s, "year": "", "venue": ""}, state, by_slug.get(s, []))
            for s in slugs
        ]
    if not tables:
        return ""
    head = f"<h2>{_text(title)}{_permalink(f'part-{part}')}</h2>"
    return f'<section id="part-{part}">{head}{"".join(tables)}</section>'


def _permalink(anchor: str) -> str:
    return f'<a class="headerlink" href="#{anchor}" title="Link to this heading">#</a>'


def _paper_block(paper: Mapping[str, Any], state: State, rows: list[Row]) -> str:
    slug, address = paper["slug"], state.written.get(paper["slug"])
    head = f'<h3 id="{slug}">{_paper_title(paper, address)}{_permalink(slug)}</h3>'
    if address is None:
        note = '<p class="unwritten-note"><span class="chip unwritten">not yet written</span></p>'
        return f'<div class="ledger-paper is-unwritten" data-slug="{slug}">{head}{note}</div>'
    columns = ["Claim", "Verdict", *(["Stored"] if state.compared else []), "The paper", "Measured here", "n"]
    cells = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(_claim_row(row, address, state.compared) for row in rows)
    return (
        f'<div class="ledger-paper" data-slug="{slug}">{head}'
        f'<div class="claims-wrap"><table class="claims"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></div>"
    )


def _claim_row(row: Row, address: str, compared: bool) -> str:
    anchor = _text(f"{row['slug']}-{row['id']}")
    differs = compared and row.get("stored_verdict") != row["verdict"]
    why = f' <span class="why">{_text(row["why"])}</span>' if row.get("why") else ""
    cells = {"Verdict": _badge(row["verdict"], _word(row)) + why}
    if compared:
        former = row.get("stored_verdict")
        note = ' <span class="why">differs</span>' if differs else ""
        cells["Stored"] = (_badge(former, former) if former else "none") + note
    cells |= {
        "The paper": _text(row["paper"]) if row.get("paper") else "–",
        "Measured here": _measured(row) + _interval(row),
        "n": _text(row.get("n") or "–"),
    }
    link = f'<a class="claim-id" href="{address}#claim-{_text(row["id"])}">{_text(row["id"])}</a>'
    return (
        f'<tr id="{anchor}" data-verdict="{row["verdict"]}" data-differs="{str(differs).lower()}">'
        f'<th scope="row">{link} {_text(row["statement"])}</th>'
        + "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in cells.items())
        + "</tr>"
    )


def _number(value: float) -> str:
    """Four significant digits, thousands set apart, no exponent for everyday sizes."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3e}"
    places = 0 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _measured(row: Row) -> str:
    if row.get("measured") is None:
        return "–"
    return f"{_number(row['measured'])} {_text(row.get('unit') or '')}".rstrip()


def _interval(row: Row) -> str:
    if not row.get("interval"):
        return ""
    low, high = (_number(end) for end in row["interval"])
    level = f" at {100 * row['level']:.4g} %" if row.get("level") else ""
    return f' <span class="why">{low} to {high}{level}</span>'
