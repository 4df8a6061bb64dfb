"""The judged claims of a chapter as rows of JSON, as a table and as a text that can be compared."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from sparsebook.claims.declarations import Claim, Declaration, readable
from sparsebook.claims.verdicts import Judgement

MIME = "application/vnd.sparsebook.claims+json"


@dataclass(frozen=True)
class Report:
    """The rows of a chapter's report; displays itself in a notebook, prints its verdicts elsewhere."""

    slug: str
    scale: str
    rows: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        """Verdicts only: this text is compared when the notebook is executed again."""
        width = max(len(row["id"]) for row in self.rows)
        lines = [f"{row['id']:<{width}}  {row['kind']:<6}  {_plain_verdict(row)}" for row in self.rows]
        return "\n".join([f"{self.slug}, scale {self.scale}", *lines])

    __repr__ = __str__

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": str(self), "text/html": self.to_html(), MIME: {"claims": list(self.rows)}}

    def to_html(self) -> str:
        """An accessible table, one row per claim with the anchor ``claim-<id>``."""
        heads = ("Claim", "The paper", "Expected", "Measured here", "n", "Verdict")
        header = "".join(f'<th scope="col">{head}</th>' for head in heads)
        body = "\n".join(_html_row(row) for row in self.rows)
        machine = escape(self.rows[0]["machine"])
        return (
            f'<div class="claims-wrap" role="region" aria-label="Claims and verdicts" tabindex="0">\n'
            f'<table class="claims">\n'
            f"<caption>Claims of this chapter, judged at scale {escape(self.scale)} on {machine}</caption>\n"
            f"<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
        )


def row_of(
    declaration: Declaration, claim: Claim, judgement: Judgement, scale: str, machine: str
) -> dict[str, Any]:
    """One claim as JSON: declared, measured, judged."""
    interval = judgement.interval
    expect = claim.expect
    return {
        "slug": declaration.slug,
        "part": declaration.part,
        "id": claim.id,
        "statement": claim.statement,
        "paper": claim.paper,
        "source": claim.source,
        "setting": claim.setting,
        "kind": claim.kind,
        "quantity": claim.quantity,
        "expect": {"rule": expect.rule, "words": expect.words},
        "because": claim.because,
        "replication": asdict(claim.replication),
        "control": claim.control,
        "needs": claim.needs,
        "revisions": [asdict(revision) for revision in claim.revisions],
        "average": claim.average,
        "measured": judgement.measured,
        "interval": None if interval is None else [interval.low, interval.high],
        "level": None if interval is None else interval.level,
        "steps": [list(step) for step in judgement.steps],
        "n": judgement.n,
        "unit": claim.unit,
        "verdict": judgement.verdict,
        "word": claim.word(judgement.verdict),
        "why": judgement.why,
        "detectable": judgement.detectable,
        "scale": scale,
        "machine": machine,
    }


def _plain_verdict(row: Mapping[str, Any]) -> str:
    """Timing depends on the machine: its verdict is shown elsewhere and never compared."""
    return "timing (not compared)" if row["kind"] == "timing" else row["word"]


def _html_row(row: Mapping[str, Any]) -> str:
    unit = _shown_unit(row["unit"])
    expected = escape(f"{row['expect']['words']}{unit if row['expect']['rule'] != 'ordered' else ''}")
    paper = escape(row["paper"] or "no number")
    verdict = f'<span class="verdict verdict-{row["verdict"]}">{escape(row["word"])}</span>'
    cells = [
        f'<th scope="row"><a class="claim-id" href="#claim-{row["id"]}">{row["id"]}</a> '
        f"{escape(row['statement'])}{_html_details(row)}</th>",
        f'<td data-label="The paper">{paper}</td>',
        f'<td data-label="Expected">{expected}</td>',
        f'<td data-label="Measured here">{_html_measured(row)}</td>',
        f'<td data-label="n">{row["n"] or "–"}</td>',
        f'<td data-label="Verdict">{verdict} <span class="why">{escape(row["why"])}</span></td>',
    ]
    return f'<tr id="claim-{row["id"]}">{"".join(cells)}</tr>'


def _html_measured(row: Mapping[str, Any]) -> str:
    if row["measured"] is None:
        return "–"
    prefix = "deciding step " if row["expect"]["rule"] == "ordered" else ""
    text = f"{prefix}{readable(row['measured'])}{_shown_unit(row['unit'])}"
    if row["interval"] is not None:
        low, high = (readable(end) for end in row["interval"])
        text += f" [{low}, {high}] at {100 * row['level']:.4g} %"
    return escape(text)


def _html_details(row: Mapping[str, Any]) -> str:
    replication = row["replication"]
    items = {
        "One sample": row["quantity"],
        "Expected because": row["because"],
        "Repeated over": f"{replication['unit']}, at least {replication['n']}"
        + (f" ({replication['reason']})" if replication["reason"] else ""),
        "Steps in the expected direction": _steps(row),
        "Must be broken by": row["control"],
        "Source, setting, kind": f"{row['source']}, {row['setting']}, {row['kind']}",
        "Needs": row["needs"],
        "Revised": "; ".join(f"{r['date']}: was {r['was']}, {r['reason']}" for r in row["revisions"]),
    }
    body = "".join(f"<dt>{term}</dt><dd>{escape(text)}</dd>" for term, text in items.items() if text)
    return f"<details><summary>how it is judged</summary><dl>{body}</dl></details>"


def _steps(row: Mapping[str, Any]) -> str:
    steps = ([readable(value) for value in step] for step in row["steps"])
    return ", ".join(f"{mean} [{low}, {high}]" for mean, low, high in steps)


def _shown_unit(unit: str) -> str:
    """A ratio is a bare number."""
    return "" if unit == "ratio" else f" {unit}"
