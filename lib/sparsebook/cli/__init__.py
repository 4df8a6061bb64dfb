"""The command ``sparsebook``: list the book, prepare its inputs, look at the machine, run chapters.

Everything heavy is imported where it is used, so that the help appears at once.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from sparsebook import __version__

if TYPE_CHECKING:
    from sparsebook.book.running import Run

app = typer.Typer(
    name="sparsebook",
    help="Sparse, reproduced: run, check and read the claims of forty papers about sparsity.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
# Tables that go into a file or a pipe are not cut to the 80 columns that are assumed there.
console = Console(width=None if sys.stdout.isatty() else 160)
errors = Console(stderr=True)

# What a person can put right; anything else is a defect of the program and keeps its traceback.
_EXPECTED = (ValueError, OSError, ImportError, RuntimeError)


class _Chosen:
    """What was said before the command's name: the book, if not the one found from here."""

    book: Path | None = None


_chosen = _Chosen()


class _RunCommand(TyperCommand):
    """``-p name value`` takes two values, as papermill's does; typer's lists take one, ``name=value``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, join_pairs(args))


def join_pairs(args: list[str]) -> list[str]:
    """Write every ``-p name value`` as ``-p name=value``.

    >>> join_pairs(["seismic", "-p", "k", "10", "-p", "seed=3"])
    ['seismic', '-p', 'k=10', '-p', 'seed=3']
    """
    joined: list[str] = []
    rest = iter(args)
    for arg in rest:
        joined.append(arg)
        if arg in ("-p", "--parameter"):
            name = next(rest, "")
            value = "" if "=" in name else next(rest, None)
            if value is None:
                raise ValueError(f"-p {name} lacks its value: expected -p NAME VALUE")
            joined.append(name if "=" in name else f"{name}={value}")
    return joined


Slugs = Annotated[list[str] | None, typer.Argument(help="Chapters by name; all that are written if none.")]
RunFolder = Annotated[Path | None, typer.Option("--run", help="Folder of a run instead of the stored book.")]


def _print_version(wanted: bool) -> bool:
    if wanted:
        console.print(f"sparsebook {__version__}", highlight=False)
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    book: Annotated[
        Path | None, typer.Option("--book", help="The book's root; found from here upwards by default.")
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    _chosen.book = book


@app.command("list")
def list_papers() -> None:
    """List the papers by part: written or not, and the verdicts on their claims."""
    from sparsebook.book import chapters, ledger, papers
    from sparsebook.cli.views import verdict_text

    root = _root()
    rows = ledger(root)
    written = {chapter.slug for chapter in chapters(root)}
    table = Table(
        "part", "chapter", "year", "title", "verdicts", box=None, header_style="bold", pad_edge=False
    )
    room = max(16, console.width - 100)
    before = None
    for paper in papers(root):
        own = [row for row in rows if row["slug"] == paper.slug]
        state = verdict_text(own) if paper.slug in written else "[dim]not yet written[/]"
        table.add_row(
            paper.part if paper.part != before else "",
            paper.slug,
            str(paper.year),
            _cut(paper.title, room),
            state,
        )
        before = paper.part
    known = {paper.slug for paper in papers(root)}
    for chapter in chapters(root):
        if chapter.slug not in known:
            own = [row for row in rows if row["slug"] == chapter.slug]
            table.add_row(chapter.part, chapter.slug, "", "", verdict_text(own))
    console.print(table)
    console.print(
        f"{len(written & known)} of {len(known)} papers written, {len(rows)} claims", highlight=False
    )


@app.command()
def data(
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Fetch, convert and check what is missing.")
    ] = False,
) -> None:
    """List the real data and models: where they come from, size, licence, present or not; or prepare them."""
    from sparsebook.data.catalogue import CATALOGUE

    if prepare:
        from sparsebook import data as inputs
        from sparsebook import models

        inputs.prepare(lambda line: console.print(line, highlight=False))
        models.prepare()
        console.print("[green]all inputs are here[/]")
        return
    table = Table("name", "what", "package", "size", "licence", "here", box=None, header_style="bold")
    for source in CATALOGUE:
        here = "[green]yes[/]" if source.available() else "[red]no[/]"
        size = f"{source.bytes / 1e6:,.1f} MB" if source.files else ""
        table.add_row(source.name, source.what, source.distribution, size, source.licence, here)
    console.print(table)
    if not all(source.available() for source in CATALOGUE):
        console.print("what is missing comes with [bold]make prepare[/] or sparsebook data --prepare")


@app.command()
def doctor() -> None:
    """Look at the machine: instruction set, threads, caches, packages, browser, GPU."""
    from sparsebook.cli.examination import examine

    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in examine():
        style = {"good": "", "missing": "yellow", "wrong": "red"}[finding.state]
        text = f"[{style}]{_plain(finding.text)}[/]" if style else _plain(finding.text)
        table.add_row(f"[bold]{finding.subject}[/]", text)
    console.print(table, highlight=False)


@app.command(cls=_RunCommand)
def run(
    slugs: Slugs = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--parameter", metavar="NAME VALUE", help="A parameter of the notebooks; repeatable."
        ),
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="smoke (seconds), book (as stored), full (hours) or paper.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Chapters at once; timings are only fair with 1.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; _build/runs/<scale> by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and why.")] = False,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Send one chapter a task to this Dask scheduler.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run also what is up to date.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds that one cell may take.")] = None,
    html: Annotated[bool, typer.Option("--html", help="Render the run as a book of its own.")] = False,
    store: Annotated[
        bool, typer.Option("--store", help="Make the executed notebooks the stored ones of the book.")
    ] = False,
) -> None:
    """Execute chapters again, with your parameters, data and machine.

    What is up to date is skipped. A chapter that fails keeps what ran, and the others go on.
    """
    from sparsebook.book import plan_chapters, run_chapters
    from sparsebook.cli.views import RunView, duration, plans_table

    root = _root()
    given = dict(_pair(text) for text in parameter or ())
    options: dict[str, Any] = {"book": root, "parameters": given, "scale": scale, "out": out, "force": force}
    plans = plan_chapters(slugs or (), **options)
    if dry_run:
        console.print(plans_table(plans))
        due = [plan.expected_seconds for plan in plans if plan.reason]
        console.print(f"{len(due)} would run, about {duration(sum(due))}", highlight=False)
        return
    with RunView(plans, console) as view:
        done = run_chapters(slugs or (), **options, jobs=jobs, dask=dask, timeout=timeout, watcher=view)
    _conclude(done, root, html=html, store=store)


@app.command()
def ledger(
    as_json: Annotated[bool, typer.Option("--json", help="Print all claims as JSON.")] = False,
    run: RunFolder = None,
) -> None:
    """Print every claim with its verdict: of the stored book, or of a run beside the stored one."""
    from sparsebook.book import ledger as read_ledger
    from sparsebook.cli.views import measured_text, styled_verdict, verdict_text

    rows = read_ledger(_root(), run)
    if as_json:
        import json

        sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        return
    heads = ["chapter", "claim", "statement", "measured", "verdict"] + (["stored"] if run else [])
    table = Table(*heads, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        stored = [styled_verdict(row["stored_verdict"] or "none")] if run else []
        verdict = styled_verdict(row["verdict"], row.get("word"))
        table.add_row(row["slug"], row["id"], _plain(row["statement"]), measured_text(row), verdict, *stored)
    console.print(table)
    console.print(verdict_text(rows), highlight=False)


@app.command()
def check(slugs: Slugs = None) -> None:
    """Check stored notebooks against the contract of a chapter, as the tests do."""
    from sparsebook.book import find_chapters
    from sparsebook.book.contract import problems

    root = _root()
    count = 0
    for chapter in find_chapters(slugs or (), root):
        found = problems(chapter, root)
        count += len(found)
        console.print(f"[bold]{chapter.slug}[/]  {'[green]keeps its contract[/]' if not found else ''}")
        for problem in found:
            console.print(f"  [red]{_plain(problem)}[/]", highlight=False)
    if count:
        raise typer.Exit(1)


@app.command()
def render(
    run: RunFolder = None,
    out: Annotated[Path | None, typer.Option(help="Where the pages go; _build/html by default.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")] = False,
) -> None:
    """Render the stored book, or a run as a book of its own."""
    from sparsebook.book import build_html, build_run_html

    root = _root()
    with console.status("rendering"):
        page = (
            build_html(root, out, strict=strict) if run is None else build_run_html(run, root, strict=strict)
        )
    console.print(f"open {page}", highlight=False, soft_wrap=True)


def _conclude(done: "Run", root: Path, *, html: bool, store: bool) -> None:
    if html and not done.interrupted:
        from sparsebook.book import build_run_html

        with console.status("rendering the run"):
            page = build_run_html(done.folder, root)
        console.print(f"open {page}", highlight=False, soft_wrap=True)
    if store and not done.interrupted:
        _store(done, root)
    if done.interrupted:
        ready = sum(outcome.status == "done" for outcome in done.outcomes) + len(done.skipped)
        _complain(
            f"interrupted: {ready} finished chapters are kept in {done.folder}; the same command resumes"
        )
        raise typer.Exit(130)
    if done.failed:
        names = ", ".join(outcome.slug for outcome in done.failed)
        _complain(f"failed: {names}; what ran of each is kept in {done.folder / 'book'}")
        raise typer.Exit(1)


def _store(done: "Run", root: Path) -> None:
    from sparsebook.book import store_chapter

    finished = [outcome.slug for outcome in done.outcomes if outcome.status == "done"]
    for slug in [*done.skipped, *finished]:
        console.print(f"stored {store_chapter(done.folder, slug, root)}", highlight=False, soft_wrap=True)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1].rstrip()}…"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _pair(text: str) -> tuple[str, Any]:
    from sparsebook.book.parameters import parse_value

    name, _, value = text.partition("=")
    return name, parse_value(value)


def _root() -> Path:
    from sparsebook.book import find_book

    return find_book(_chosen.book)


def _complain(sentence: str) -> None:
    errors.print(f"[red]{_plain(sentence)}[/]", highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point: expected errors become one red sentence."""
    try:
        app()
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (`sparsebook ledger | head`): nothing is left to be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except _EXPECTED as error:
        _complain(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
