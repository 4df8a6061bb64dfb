"""What the command line shows: verdicts, times, plans and the progress of a run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sparsebook.book.execution import Outcome
from sparsebook.book.parameters import as_text
from sparsebook.book.running import Plan, Watcher
from sparsebook.book.verdicts import count_verdicts

VERDICT_STYLE = {"holds": "green", "fails": "red", "inconclusive": "yellow", "untested": "dim"}


class RunView(Watcher):
    """Shows a run: a bar with the time left, and a line for every chapter that has ended."""

    def __init__(self, plans: Sequence[Plan], console: Console) -> None:
        self.console = console
        self.due = [plan for plan in plans if plan.reason]
        self._width = max((len(plan.chapter.slug) for plan in plans), default=0)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, transient=True)
        self._bar = self._progress.add_task("", total=len(self.due))
        self._running: list[str] = []
        self._left = ""
        for plan in plans:
            if not plan.reason:
                console.print(f"{plan.chapter.slug:<{self._width}}  [dim]up to date[/]", highlight=False)

    def __enter__(self) -> "RunView":
        if self.due and self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    def started(self, plan: Plan) -> None:
        """A chapter was begun."""
        self._running.append(plan.chapter.slug)
        self._describe()

    def finished(self, plan: Plan, outcome: Outcome, verdicts: Mapping[str, int]) -> None:
        """A chapter has ended: its line."""
        self._running.remove(plan.chapter.slug)
        self._progress.advance(self._bar)
        what = counts_text(verdicts) or "no claims"
        if outcome.failure is not None:
            what = f"[red]failed at {escape(outcome.failure.summary)}[/]"
        # Where there is no bar (a log file), the time left stands in the line.
        left = f"   [dim]{self._left}[/]" if self._left and not self.console.is_terminal else ""
        line = f"{plan.chapter.slug:<{self._width}}  {what}   {duration(outcome.seconds)}{left}"
        self.console.print(line, highlight=False, soft_wrap=True)

    def waiting(self, seconds_left: float) -> None:
        """A new estimate of the time left."""
        self._left = f"about {duration(seconds_left)} left" if seconds_left else ""
        self._describe()

    def _describe(self) -> None:
        description = f"{self._left}  [dim]{', '.join(self._running)}[/]"
        self._progress.update(self._bar, description=description)


def duration(seconds: float) -> str:
    """A time span for people: ``41 s``, ``3 min``, ``2.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def verdict_text(rows: Iterable[dict[str, Any]]) -> str:
    """How often each verdict occurs, coloured."""
    return counts_text(count_verdicts(rows))


def counts_text(counts: Mapping[str, int]) -> str:
    """Counts of verdicts in one line, coloured."""
    return " · ".join(f"[{VERDICT_STYLE[verdict]}]{n} {verdict}[/]" for verdict, n in counts.items())


def styled_verdict(verdict: str, word: str | None = None) -> str:
    """A verdict in its colour, in the word shown for it."""
    return f"[{VERDICT_STYLE.get(verdict, 'dim')}]{escape(word or verdict)}[/]"


def measured_text(row: Mapping[str, Any]) -> str:
    """The measured value of a claim with interval and unit; empty if there is none."""
    if row["measured"] is None:
        return ""
    span = "" if row["interval"] is None else " [{:.4g}, {:.4g}]".format(*row["interval"])
    return escape(f"{row['measured']:.4g}{span} {row['unit']}")


def plans_table(plans: Iterable[Plan]) -> Table:
    """What would run and why."""
    table = Table("chapter", "would run because", "parameters", "about", box=None, header_style="bold")
    for plan in plans:
        why = plan.reason or "[dim]up to date: skipped[/]"
        expected = duration(plan.expected_seconds) if plan.reason else ""
        table.add_row(plan.chapter.slug, why, escape(as_text(plan.parameters)), expected)
    return table
