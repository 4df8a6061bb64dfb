"""The command line: every command on a small book, and errors in one sentence."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparsebook import __version__, cli
from sparsebook.book.execution import Failure, Outcome
from sparsebook.book.running import plan_chapters
from sparsebook.cli import app, join_pairs
from sparsebook.cli.views import RunView, duration

CHECKOUT = Path(__file__).parents[2]
MIME = "application/vnd.sparsebook.claims+json"
ROW = {
    "slug": "alpha", "part": "retrieval", "id": "C1", "statement": "It is [fast].", "kind": "exact",
    "measured": 0.97, "interval": [0.96, 0.98], "unit": "ratio", "verdict": "holds", "word": "reproduced",
    "why": "", "scale": "book", "machine": "m",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A book with one executed chapter and one paper that is not written."""
    folder = tmp_path / "a book"
    (folder / "book" / "retrieval").mkdir(parents=True)
    (folder / "_toc.yml").write_text("root: book/intro")
    papers = [
        {
            "slug": slug,
            "part": "retrieval",
            "title": f"On {slug}",
            "authors": ["A"],
            "year": 2024,
            "venue": "V",
        }
        for slug in ("alpha", "gssf")
    ]
    (folder / "book" / "papers.yml").write_text(json.dumps({"papers": papers}))
    outputs = [{"output_type": "display_data", "data": {MIME: {"claims": [ROW]}}, "metadata": {}}]
    cells = [
        {
            "cell_type": "code",
            "source": "scale = 'book'\nk = 3",
            "metadata": {"tags": ["parameters"]},
            "outputs": [],
        },
        {"cell_type": "code", "source": "1", "metadata": {"tags": ["claims"]}, "outputs": outputs},
    ]
    content = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
    (folder / "book" / "retrieval" / "alpha.ipynb").write_text(json.dumps(content))
    return folder


@pytest.fixture
def command(root: Path) -> Callable[..., str]:
    """Run a command on the small book and return what it prints."""

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["--book", str(root), *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def complaint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What the program says when it ends with an error."""
    monkeypatch.setattr(sys, "argv", ["sparsebook", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_version(command) -> None:
    assert command("--version") == f"sparsebook {__version__}\n"


def test_list_shows_written_and_unwritten_papers(command) -> None:
    shown = command("list").splitlines()
    assert "On alpha" in shown[1]
    assert shown[1].rstrip().endswith("1 holds")
    assert shown[2].rstrip().endswith("not yet written")
    assert shown[-1] == "1 of 2 papers written, 1 claims"


def test_ledger_as_json_and_as_a_table(command) -> None:
    assert json.loads(command("ledger", "--json")) == [ROW]
    shown = command("ledger")
    assert "It is [fast]." in shown
    assert "0.97 [0.96, 0.98] ratio" in shown
    assert "reproduced" in shown


def test_ledger_of_a_run_beside_the_stored_one(command, root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "book" / "retrieval").mkdir(parents=True)
    text = (root / "book" / "retrieval" / "alpha.ipynb").read_text()
    (run / "book" / "retrieval" / "alpha.ipynb").write_text(
        text.replace('"verdict": "holds"', '"verdict": "fails"')
    )
    entry = {"part": "retrieval", "status": "done", "failure": None}
    (run / "run.json").write_text(json.dumps({"chapters": {"alpha": entry}}))
    rows = json.loads(command("ledger", "--json", "--run", str(run)))
    assert [(row["verdict"], row["stored_verdict"]) for row in rows] == [("fails", "holds")]


def test_a_dry_run_says_what_would_run_and_why_and_runs_nothing(command, root: Path) -> None:
    shown = command("run", "alpha", "-p", "k", "10", "--scale", "smoke", "--dry-run")
    assert "has not run here yet" in shown
    assert "scale='smoke', k=10" in shown
    assert "1 would run, about 10 s" in shown
    assert not (root / "_build").exists()


def test_check_prints_what_breaks_the_contract(root: Path) -> None:
    result = CliRunner().invoke(app, ["--book", str(root), "check", "alpha"])
    assert result.exit_code == 1
    assert "the first cell must be markdown" in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "alphas"), "there is no chapter 'alphas'; did you mean 'alpha'?"),
        (("run", "gssf"), "the chapter 'gssf' is not yet written"),
        (("run", "alpha", "-p", "kk", "1"), "alpha has no parameter 'kk'; it has scale, k"),
        (("run", "alpha", "-p", "k"), "-p k lacks its value"),
        (("run", "alpha", "--jobs", "0"), "jobs is 0; expected at least 1"),
        (("run", "alpha", "--scale", "tiny"), "scale is 'tiny'; expected one of smoke, book, full, paper"),
        (("ledger", "--run", "nowhere"), "there is no run in"),
        (("render", "--run", "nowhere"), "there is no run in"),
    ],
)
def test_errors_are_one_sentence(root: Path, capsys, monkeypatch, arguments: tuple, sentence: str) -> None:
    said = complaint(capsys, monkeypatch, "--book", str(root), *arguments)
    assert sentence in said
    assert len(said.strip().splitlines()) == 1


def test_outside_of_a_book_it_says_what_to_do(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("SPARSEBOOK_BOOK", raising=False)
    monkeypatch.chdir(tmp_path)
    assert "go into the checkout, give --book FOLDER" in complaint(capsys, monkeypatch, "list")


def test_defects_keep_their_traceback(root: Path, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr("sparsebook.book.find_book", broken)
    monkeypatch.setattr(sys, "argv", ["sparsebook", "list"])
    with pytest.raises(KeyError, match="a defect"):
        cli.main()


def test_pairs_and_equal_signs_mean_the_same() -> None:
    assert join_pairs(["-p", "k", "-3", "x", "-p", "k=4", "--parameter", "f", "a=b"]) == [
        "-p", "k=-3", "x", "-p", "k=4", "--parameter", "f=a=b",
    ]  # fmt: skip


def test_the_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from sparsebook.cli import app\n"
        "assert CliRunner().invoke(app, ['run', '--help']).exit_code == 0\n"
        "heavy = {'torch', 'numpy', 'scipy', 'pandas', 'papermill', 'nbformat', 'yaml', 'distributed'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_module_is_the_command_and_a_closed_pipe_is_no_error(root: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "sparsebook", "--book", str(root), "ledger", "--json"],
        stdout=writer, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert "Traceback" not in done.stderr


def test_data_lists_every_source_with_its_licence(command) -> None:
    from sparsebook.data.catalogue import CATALOGUE

    shown = command("data")
    assert all(source.name in shown for source in CATALOGUE)
    assert "ml-100k" in shown


def test_data_prepare_prepares_data_and_models(command, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsebook import data, models

    done: list[str] = []
    monkeypatch.setattr(data, "prepare", lambda report: report("the wheels"))
    monkeypatch.setattr(models, "prepare", lambda: done.append("models"))
    assert "the wheels" in command("data", "--prepare")
    assert done == ["models"]


def test_doctor_finds_the_machine(command) -> None:
    shown = command("doctor")
    for subject in (
        "processor",
        "instruction set",
        "threads",
        "cache",
        "extra book",
        "notebook kernel",
        "GPU",
    ):
        assert subject in shown
    assert "torch" in shown


def test_a_line_for_every_chapter(root: Path) -> None:
    from io import StringIO

    from rich.console import Console

    plan = plan_chapters(["alpha"], book=root)[0]
    text = StringIO()
    failed = Outcome("alpha", "retrieval", "failed", 3.2, Failure(7, 3, "ValueError", "k is [0]"))
    with RunView([plan], Console(file=text, width=100)) as view:
        view.waiting(130.0)
        view.started(plan)
        view.finished(
            plan, Outcome("alpha", "retrieval", "done", 41.0), {"holds": 6, "fails": 1, "untested": 2}
        )
        view.started(plan)
        view.finished(plan, failed, {})
    assert text.getvalue().splitlines() == [
        "alpha  6 holds · 1 fails · 2 untested   41 s   about 2 min left",
        "alpha  failed at cell 7 (In [3]): ValueError: k is [0]   3 s   about 2 min left",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (41, "41 s"), (240, "4 min"), (9000, "2.5 h")])
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert duration(float(seconds)) == text
