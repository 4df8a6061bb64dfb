"""The ledger: every declared claim exactly once, reported as JSON, table and text, and read back."""

import html.parser
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

from sparsebook.claims import MIME, Ledger, Report, Samples, expected_false_verdicts, load_claims, read_claims

Entry = Callable[..., dict[str, Any]]
Write = Callable[..., Path]
EIGHT = np.array([-3.0, -2, -1, 0, 0, 1, 2, 3]) / 100


@pytest.fixture
def ledger(entry: Entry, write: Write) -> Ledger:
    """Six claims: reproduced, contradicted, inconclusive, untested, exact, timing."""
    ratio = {"kind": "timing", "unit": "ratio", "replication": {"unit": "process", "n": 5}}
    path = write(
        entry(setting="paper"),
        entry(id="C2", setting="paper", statement="Precision <b>&</b> recall"),
        entry(id="C3", paper=None),
        entry(id="C4", needs="MS MARCO", control=None),
        entry(id="C5", kind="exact", source="abstract", control=None, replication={"unit": "list", "n": 1}),
        entry(id="C6", expect={"rule": "at_most", "value": 1}, **ratio),
    )
    return Ledger(load_claims(path), scale="smoke", machine="a test's machine")


def supply(ledger: Ledger) -> Report:
    for claim_id, mean in (("C1", 1.0), ("C2", 0.5), ("C3", 0.95)):
        ledger.check(claim_id, Samples(EIGHT + mean, unit="recall"))
    ledger.untested("C4", why="needs MS MARCO; set corpus_path")
    ledger.check("C5", Samples([0.95, 1.0], unit="recall"))
    ledger.check("C6", Samples([0.8, 0.9, 0.8, 0.9, 0.8], unit="ratio"))
    return ledger.report()


def test_rows(ledger: Ledger) -> None:
    rows = supply(ledger).rows
    shown = [(row["id"], row["verdict"], row["word"]) for row in rows]
    assert shown == [
        ("C1", "holds", "reproduced"),
        ("C2", "fails", "contradicted"),
        ("C3", "inconclusive", "inconclusive"),
        ("C4", "untested", "untested"),
        ("C5", "holds", "holds here"),
        ("C6", "holds", "holds here"),
    ]
    promised = (
        "slug part id statement paper source setting kind measured interval n unit verdict why scale machine"
    )
    for row in rows:
        assert set(promised.split()) <= set(row)
        assert (row["slug"], row["part"], row["scale"]) == ("fake", "retrieval", "smoke")
        assert row["machine"] == "a test's machine"
    low, high = rows[0]["interval"]
    assert rows[0]["measured"] == pytest.approx(1.0)
    assert low < rows[0]["measured"] < high
    assert rows[2]["detectable"] > 0
    assert "detected 4 times of 5" in rows[2]["why"]
    assert rows[3]["why"] == "needs MS MARCO; set corpus_path"
    json.dumps(rows, allow_nan=False)


def test_only_what_was_read_about_the_papers_setting_is_reproduced(entry: Entry, write: Write) -> None:
    for source, setting in (("second-hand", "paper"), ("read", "scaled"), ("own specification", "analogue")):
        claim = load_claims(write(entry(source=source, setting=setting)))["C1"]
        assert (claim.word("holds"), claim.word("fails")) == ("holds here", "fails here")


def test_text_holds_verdicts_only(ledger: Ledger) -> None:
    """What is compared at a re-execution: no number, no machine, no timing."""
    assert str(supply(ledger)).splitlines() == [
        "fake, scale smoke",
        "C1  random  reproduced",
        "C2  random  contradicted",
        "C3  random  inconclusive",
        "C4  random  untested",
        "C5  exact   holds here",
        "C6  timing  timing (not compared)",
    ]


def test_text_does_not_change_with_the_timing_or_the_digits(ledger: Ledger) -> None:
    first = supply(ledger)
    again = Ledger(ledger.declaration, scale="smoke", machine="another machine")
    again._samples = dict(ledger._samples)
    again._untested = dict(ledger._untested)
    again._samples["C6"] = Samples([1.8, 1.9, 1.8, 1.9, 1.8], unit="ratio")
    again._samples["C1"] = Samples(EIGHT + 1 + 1e-9, unit="recall")
    second = again.report()
    assert str(second) == str(first)
    assert second.rows[5]["verdict"] == "fails"


class Parser(html.parser.HTMLParser):
    """Collects ids, classes and whether the tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.classes: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.classes += [value for key, value in attrs if key == "class" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_table(ledger: Ledger) -> None:
    parser = Parser()
    parser.feed(supply(ledger).to_html())
    assert parser.open == []
    assert parser.ids == [f"claim-C{number}" for number in range(1, 7)]
    for name in ("claims", "verdict verdict-holds", "verdict verdict-fails", "verdict verdict-inconclusive"):
        assert name in parser.classes
    assert "Precision <b>&</b> recall" in parser.text  # shown, not obeyed
    assert "1 recall [" in parser.text
    assert "at most 1" in parser.text
    assert "summaries shuffled" in parser.text


def test_table_of_an_ordered_claim(entry: Entry, write: Write) -> None:
    expect = {"rule": "ordered", "direction": "increasing"}
    ledger = Ledger(load_claims(write(entry(expect=expect))), "book", machine="a test's machine")
    ledger.check(
        "C1", Samples(np.add.outer(EIGHT, [0.0, 1, 1.5]) + np.outer(EIGHT, [1, 0, 2]), unit="recall")
    )
    report = ledger.report()
    parser = Parser()
    parser.feed(report.to_html())
    assert "deciding step 0.5 recall [" in parser.text
    assert "Steps in the expected direction1 [" in parser.text
    assert len(report.rows[0]["steps"]) == 2
    json.dumps(report.rows, allow_nan=False)


def test_through_a_notebook(ledger: Ledger, tmp_path: Path) -> None:
    report = supply(ledger)
    bundle = report._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", MIME}
    cell = nbformat.v4.new_code_cell("ledger.report()")
    cell.outputs = [nbformat.v4.new_output("execute_result", data=bundle, execution_count=1)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Claims"), cell])
    nbformat.write(notebook, tmp_path / "fake.ipynb")
    assert read_claims(tmp_path / "fake.ipynb") == list(report.rows)


def test_ipython_shows_the_bundle_itself(ledger: Ledger) -> None:
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    data, _ = formatter.format(supply(ledger))
    assert data["text/plain"].startswith("fake, scale smoke\nC1  random  reproduced")
    assert data[MIME]["claims"][0]["id"] == "C1"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([], "found 0; execute it first"),
        ([{"outputs": [{"data": {MIME: {"claims": []}}}] * 2}], "found 2"),
    ],
)
def test_notebooks_without_a_report(tmp_path: Path, cells: list, message: str) -> None:
    path = tmp_path / "bare.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    with pytest.raises(ValueError, match=message):
        read_claims(path)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_what_is_no_notebook(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bare.ipynb"
    path.write_text(text)
    with pytest.raises(ValueError, match="not a notebook"):
        read_claims(path)


def test_each_claim_once(ledger: Ledger) -> None:
    samples = Samples(EIGHT, unit="recall")
    with pytest.raises(ValueError, match=r"'C9' is not declared in fake\.claims\.yml \(declared: C1, C2"):
        ledger.check("C9", samples)
    ledger.check("C1", samples)
    ledger.untested("C4")
    with pytest.raises(ValueError, match="C1 was supplied before"):
        ledger.check("C1", samples)
    with pytest.raises(ValueError, match="C4 was supplied before"):
        ledger.check("C4", samples)
    with pytest.raises(ValueError, match="C4 was supplied before"):
        ledger.untested("C4")
    with pytest.raises(ValueError, match="not supplied: C2, C3, C5, C6"):
        ledger.report()


def test_what_could_be_tested_is_not_left_untested(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="check it, or say why not"):
        ledger.untested("C1")


def test_a_run_that_lacks_a_package_says_so(ledger: Ledger) -> None:
    ledger.untested("C1", why="needs a package that is not installed")
    assert "C1" in ledger._untested


def test_all_at_once_with_a_reason_for_the_rest(ledger: Ledger) -> None:
    samples = Samples(EIGHT + 1, unit="recall")
    supplied = {"C1": samples, "C2": samples, "C5": Samples([0.95, 1.0], unit="recall")}
    ledger.check_all(supplied, why="not measured here")
    why = {row["id"]: (row["verdict"], row["why"]) for row in ledger.report().rows}
    assert [name for name, (verdict, _) in why.items() if verdict == "untested"] == ["C3", "C4", "C6"]
    assert [why[name][1] for name in ("C3", "C6")] == ["not measured here"] * 2
    assert "MS MARCO" in why["C4"][1]  # its own reason


def test_all_at_once_leaves_nothing_out(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="'C9' is not declared"):
        ledger.check_all({"C9": Samples(EIGHT, unit="recall")})
    with pytest.raises(ValueError, match="check it, or say why not"):
        ledger.check_all({})


def test_what_needs_more_may_be_checked_where_there_is_more(ledger: Ledger) -> None:
    ledger.check("C4", Samples(EIGHT + 1, unit="recall"))


def test_a_refused_check_leaves_the_claim_open(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="samples are in 'percent'"):
        ledger.check("C1", Samples(EIGHT, unit="percent"))
    ledger.check("C1", Samples(EIGHT, unit="recall"))


def test_opened_by_its_slug(
    entry: Entry, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(entry())
    (tmp_path / "_toc.yml").write_text("")
    monkeypatch.delenv("SPARSEBOOK_BOOK", raising=False)
    monkeypatch.chdir(tmp_path / "book" / "retrieval")
    ledger = Ledger.open("fake", scale="book")
    ledger.check("C1", Samples(EIGHT + 1, unit="recall"))
    (row,) = ledger.report().rows
    assert "cores" in row["machine"]


def test_false_verdicts_to_expect(ledger: Ledger) -> None:
    rows = supply(ledger).rows
    assert expected_false_verdicts([]) == 0
    assert expected_false_verdicts(rows) == pytest.approx(0.025)
    assert expected_false_verdicts(row for row in rows if row["kind"] == "exact") == 0
    assert expected_false_verdicts([*rows, *(row | {"slug": "other"} for row in rows)]) == pytest.approx(0.05)
    two_sided = [row | {"expect": {"rule": "equivalent"}} for row in rows]
    assert expected_false_verdicts(two_sided) == pytest.approx(0.05)


def test_reading_claims_imports_nothing_heavy() -> None:
    code = "import sys; from sparsebook.claims import read_claims, Ledger; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "yaml", "pandas", "numba", "llvmlite", "IPython", "scipy.stats"}
    assert heavy.isdisjoint(done.stdout.split())
