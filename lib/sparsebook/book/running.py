"""Run chapters: what has to run and why, one process or cluster task each, results kept as they come.

A run lies in a folder of its own and is a book itself::

    _build/runs/<name>/run.json                      parameters, machine, times, verdicts, failures
    _build/runs/<name>/book/<part>/<slug>.ipynb      the executed notebooks
    _build/runs/<name>/html/                         rendered from them, if asked for
    _build/runs/<name>/earlier/                      notebooks of a run with other parameters in this folder
"""

import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparsebook.book.execution import INJECTED_TAG, ChapterProcess, Failure, Outcome, Task, execute_bundle
from sparsebook.book.fingerprints import fingerprint, hash_library, versions
from sparsebook.book.layout import Chapter, find_book, find_chapters
from sparsebook.book.parameters import as_given, as_text, declared_parameters, parameters_for
from sparsebook.book.verdicts import RUN_FILE, count_verdicts, read_verdicts

# Seconds that a chapter takes at most by its contract, and what one cell may take before it is stopped.
EXPECTED_SECONDS = {"smoke": 10.0, "book": 45.0, "full": 3600.0, "paper": 36000.0}
CELL_TIMEOUT = {"smoke": 120.0, "book": 600.0, "full": None, "paper": None}


@dataclass(frozen=True)
class Plan:
    """What is to be done with one chapter: to run it for a ``reason``, or nothing if that is empty."""

    chapter: Chapter
    parameters: dict[str, Any]
    reason: str
    expected_seconds: float
    hashes: dict[str, str] = field(repr=False)
    scale: str = "book"


class Watcher:
    """Hears how a run goes on; the command line shows it."""

    def started(self, plan: Plan) -> None:
        """A chapter was begun (or handed to the cluster)."""

    def finished(self, plan: Plan, outcome: Outcome, verdicts: Mapping[str, int]) -> None:
        """A chapter has ended."""

    def waiting(self, seconds_left: float) -> None:
        """Called several times a second; ``seconds_left`` is an estimate for the whole run."""


@dataclass(frozen=True)
class Run:
    """A run that has ended: what became of every chapter that had to run, and what was up to date."""

    folder: Path
    outcomes: tuple[Outcome, ...]
    skipped: tuple[str, ...]
    interrupted: bool = False

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The chapters that did not reach their end."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")


def run_name(scale: str, parameters: Mapping[str, Any]) -> str:
    """The name of a run if its caller gives none: equal parameters share a folder, so they resume."""
    pieces = [scale, *(f"{name}={value}" for name, value in sorted(parameters.items()))]
    return re.sub(r"[^\w.=+-]+", "-", "-".join(pieces)).strip("-")[:80]


def plan_chapters(
    slugs: Iterable[str] = (),
    *,
    book: Path | str | None = None,
    parameters: Mapping[str, Any] | None = None,
    scale: str | None = None,
    out: Path | str | None = None,
    force: bool = False,
) -> list[Plan]:
    """Decide which chapters have to run, and why.

    Parameters
    ----------
    slugs
        Chapters by name; all that are written if there is none.
    book, parameters, scale, out, force
        As for :func:`run_chapters`.

    Raises
    ------
    ValueError
        If a chapter is unknown or does not have a parameter of that name.
    """
    root = find_book() if book is None else Path(book).resolve()
    given = as_given(parameters)
    hash_library.cache_clear()  # sources may have changed while this process was running
    done = _read_run(_folder(root, scale, given, out))["chapters"]
    plans = []
    for chapter in find_chapters(slugs, root):
        passed = parameters_for(chapter, given, scale)
        hashes = fingerprint(chapter, root, passed)
        before = done.get(chapter.slug)
        executed = _folder(root, scale, given, out) / "book" / chapter.part / f"{chapter.slug}.ipynb"
        reason = _reason(hashes, before, executed.exists(), force)
        at = str(passed.get("scale") or declared_parameters(chapter.path).get("scale") or "book")
        plans.append(Plan(chapter, passed, reason, _expected(chapter, at, before), hashes, at))
    return plans


def run_chapters(
    slugs: Iterable[str] = (),
    *,
    book: Path | str | None = None,
    parameters: Mapping[str, Any] | None = None,
    scale: str | None = None,
    out: Path | str | None = None,
    jobs: int = 1,
    dask: str | None = None,
    force: bool = False,
    timeout: float | None = None,
    watcher: Watcher | None = None,
) -> Run:
    """Execute chapters with papermill; those that are up to date in ``out`` are not executed again.

    Parameters
    ----------
    slugs
        Chapters by name; all that are written if there is none.
    book
        The book's root; found from the working directory by default.
    parameters
        Values for the notebooks' parameters, the same for every chapter, checked by name.
    scale
        ``smoke``, ``book``, ``full`` or ``paper``; the notebook's own (``book``) by default.
    out
        The run's folder; ``_build/runs/<scale and parameters>`` of the book by default.
    jobs
        How many chapters run at once. With more than one, each gets its share of the cores through its
        parameter ``threads`` unless that is given.
    dask
        Address of a Dask scheduler: one chapter is one task there, ``jobs`` is not used.
    force
        Run also what is up to date.
    timeout
        Seconds that one cell may take; by default 120 at ``smoke``, 600 at ``book``, else no limit.
    watcher
        Hears how the run goes on.

    Raises
    ------
    ValueError
        If a slug, a parameter or a number is wrong; nothing has run then.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; expected at least 1")
    if timeout is not None and timeout <= 0:
        raise ValueError(f"timeout is {timeout}; expected a positive number of seconds")
    root = find_book() if book is None else Path(book).resolve()
    given = as_given(parameters)
    folder = _folder(root, scale, given, out)
    with _alone_in(folder):
        plans = plan_chapters(slugs, book=root, parameters=given, scale=scale, out=folder, force=force)
        due = [plan for plan in plans if plan.reason]
        tasks = [_task(plan, root, folder, timeout, jobs if dask is None else 1) for plan in due]
        skipped = tuple(plan.chapter.slug for plan in plans if not plan.reason)
        recorder = _Recorder(folder, scale, given, due, skipped, watcher or Watcher())
        interrupted = False
        try:
            if dask is not None:
                _run_on_cluster(tasks, dask, recorder)
            else:
                _run_here(tasks, jobs, recorder)
        except KeyboardInterrupt:
            interrupted = True
        return Run(folder, tuple(recorder.outcomes), skipped, interrupted)


def store_chapter(run: Path | str, slug: str, book: Path | str | None = None) -> Path:
    """Make the executed notebook of a run the stored one of the book.

    Raises
    ------
    ValueError
        If it was executed with other than its own parameters, has failed, or is older than its source.
    """
    root = find_book() if book is None else Path(book).resolve()
    chapter = find_chapters([slug], root)[0]
    entry = _read_run(Path(run))["chapters"].get(slug)
    if entry is None or entry["status"] != "done":
        raise ValueError(f"{slug} was not executed to its end in {run}")
    if entry["parameters"]:
        raise ValueError(
            f"{slug} was executed with {as_text(entry['parameters'])}; only a run with the notebook's own "
            "parameters can be stored"
        )
    if entry["hashes"] != fingerprint(chapter, root, {}):
        raise ValueError(f"{slug} has changed since it was executed: run it again")
    executed = Path(run) / "book" / chapter.part / f"{slug}.ipynb"
    if INJECTED_TAG in executed.read_text(encoding="utf-8"):
        raise ValueError(f"{slug} was given a share of the cores: run it alone (--jobs 1) to store it")
    temporary = chapter.path.with_name(f".{slug}.new")
    shutil.copyfile(executed, temporary)
    temporary.replace(chapter.path)
    return chapter.path


class _Recorder:
    """Keeps what is done so far: ``run.json`` is complete after every chapter."""

    def __init__(
        self,
        folder: Path,
        scale: str | None,
        given: dict[str, Any],
        due: Sequence[Plan],
        current: Sequence[str],
        watcher: Watcher,
    ) -> None:
        self.folder, self.watcher = folder, watcher
        self.plans = {plan.chapter.slug: plan for plan in due}
        self.outcomes: list[Outcome] = []
        self._content = _read_run(folder) | {
            "scale": scale or given.get("scale") or "book",
            "parameters": given,
            "machine": _machine(),
            "started": _now(),
        }
        self._asked = {"scale": scale or given.get("scale") or "book", "parameters": given}
        self._set_others_aside(current)
        self._write()

    def started(self, slug: str) -> None:
        self.watcher.started(self.plans[slug])

    def finished(self, outcome: Outcome) -> None:
        plan = self.plans[outcome.slug]
        rows = self._claims(plan, outcome)
        verdicts = count_verdicts(rows)
        self._content["chapters"][outcome.slug] = {
            "part": outcome.part,
            "asked": self._asked,
            "status": outcome.status,
            "scale": plan.scale,
            "parameters": plan.parameters,
            "seconds": outcome.seconds,
            "finished": _now(),
            "verdicts": verdicts,
            "failure": _failure_entry(outcome.failure),
            "machine": rows[0].get("machine") if rows else None,
            "hashes": plan.hashes,
        }
        self.outcomes.append(outcome)
        self._write()
        self.waiting({}, 1)
        self.watcher.finished(plan, outcome, verdicts)

    def _set_others_aside(self, current: Sequence[str]) -> None:
        """One run has one scale and one set of parameters: what an earlier one left here is moved away."""
        for slug, entry in list(self._content["chapters"].items()):
            if slug in current:
                entry["asked"] = self._asked
            elif entry["asked"] != self._asked:
                del self._content["chapters"][slug]
                name = run_name(entry["asked"]["scale"], entry["asked"]["parameters"])
                path = Path("book", entry["part"], f"{slug}.ipynb")
                if (self.folder / path).exists():
                    (self.folder / "earlier" / name / path).parent.mkdir(parents=True, exist_ok=True)
                    (self.folder / path).replace(self.folder / "earlier" / name / path)

    def waiting(self, running: Mapping[str, float], at_once: int) -> None:
        """Estimate the time left from what is expected, corrected by how long the others really took."""
        took = {outcome.slug: outcome.seconds for outcome in self.outcomes}
        expected = sum(self.plans[slug].expected_seconds for slug in took)
        pace = sum(took.values()) / expected if expected else 1.0
        left = [
            max(pace * plan.expected_seconds - running.get(slug, 0.0), 1.0)
            for slug, plan in self.plans.items()
            if slug not in took
        ]
        self.watcher.waiting(max(sum(left) / at_once, *left) if left else 0.0)

    def _claims(self, plan: Plan, outcome: Outcome) -> list[dict[str, Any]]:
        if outcome.status == "failed":
            return []
        chapter = plan.chapter
        executed = self.folder / "book" / chapter.part / f"{chapter.slug}.ipynb"
        try:
            return read_verdicts(replace(chapter, path=executed))
        except ValueError:
            return []  # A chapter without claims cell: the contract's test says so, not the run.

    def _write(self) -> None:
        path = self.folder / RUN_FILE
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(self._content, indent=1, default=str) + "\n", encoding="utf-8")
        temporary.replace(path)


def _run_here(tasks: Sequence[Task], jobs: int, recorder: _Recorder) -> None:
    waiting = list(tasks)
    running: dict[str, ChapterProcess] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                recorder.started(task.slug)
                running[task.slug] = ChapterProcess(task)
            for slug, process in list(running.items()):
                outcome = process.outcome()
                if outcome is not None:
                    del running[slug]
                    recorder.finished(outcome)
            recorder.waiting({slug: process.seconds for slug, process in running.items()}, jobs)
            time.sleep(0.1)
    finally:
        for process in running.values():
            process.stop()


def _run_on_cluster(tasks: Sequence[Task], address: str, recorder: _Recorder) -> None:
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("--dask needs the extra cluster: pip install 'sparsebook[cluster]'") from error
    try:
        client = Client(address, timeout="20s")
    except (OSError, ValueError) as error:
        raise ValueError(f"dask is {address!r}, but no scheduler answers there ({error})") from error
    with client:
        # A scheduler may serve several runs: the same chapter in another run is another task.
        token = uuid.uuid4().hex[:8]
        futures = {}
        for task in tasks:
            key = f"{task.slug}-{token}"
            bundle = _bundle(Path(task.root), task.part, task.slug)
            futures[client.submit(execute_bundle, task, bundle, hash_library(), key=key, pure=False)] = task
            recorder.started(task.slug)
        try:
            _follow(futures, client, recorder)
        except BaseException:
            client.cancel(list(futures))
            raise


def _follow(futures: dict[Any, Task], client: Any, recorder: _Recorder) -> None:
    begun = time.monotonic()
    while futures:
        for future in [future for future in futures if future.done()]:
            recorder.finished(_collect(future, futures.pop(future)))
        workers = max(1, len(client.scheduler_info().get("workers", ())))
        elapsed = time.monotonic() - begun
        recorder.waiting({task.slug: elapsed for task in futures.values()}, workers)
        time.sleep(0.2)


def _collect(future: Any, task: Task) -> Outcome:
    """The outcome of a cluster task; a chapter that took its workers down is a failed one."""
    try:
        outcome, notebook = future.result()
    except Exception as error:
        message = " ".join(str(error).split())
        return Outcome(
            task.slug, task.part, "failed", 0.0, Failure(None, None, type(error).__name__, message)
        )
    output = Path(task.output)
    if notebook is None:
        output.unlink(missing_ok=True)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(f".{output.stem}.unfinished.ipynb")
        temporary.write_bytes(notebook)
        temporary.replace(output)
    return outcome


def _bundle(root: Path, part: str, slug: str) -> dict[str, bytes]:
    """The files of the book that a chapter reads, by their path from the root."""
    beside = (root / "book" / part).glob(f"{slug}.*")
    recorded = (root / "book" / "recorded" / slug).rglob("*")
    general = [root / "_toc.yml", root / "book" / "papers.yml"]
    files = [path for path in (*general, *beside, *recorded) if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def _task(plan: Plan, root: Path, folder: Path, timeout: float | None, jobs: int) -> Task:
    chapter = plan.chapter
    parameters = dict(plan.parameters)
    if jobs > 1 and "threads" not in parameters and "threads" in declared_parameters(chapter.path):
        parameters["threads"] = max(1, (os.cpu_count() or 1) // jobs)
    return Task(
        slug=chapter.slug,
        part=chapter.part,
        root=str(root),
        notebook=str(chapter.path),
        output=str(folder / "book" / chapter.part / f"{chapter.slug}.ipynb"),
        parameters=parameters,
        timeout=timeout if timeout is not None else CELL_TIMEOUT.get(plan.scale),
    )


def _reason(hashes: Mapping[str, str], before: dict[str, Any] | None, executed: bool, force: bool) -> str:
    if before is None:
        return "has not run here yet"
    if before["status"] != "done":
        return "failed last time"
    if not executed:
        return "its executed notebook is gone"
    changed = [kind for kind, value in hashes.items() if before["hashes"].get(kind) != value]
    if changed:
        return f"changed: {', '.join(changed)}"
    return "forced" if force else ""


def _expected(chapter: Chapter, scale: str, before: dict[str, Any] | None) -> float:
    if before is not None and before["status"] == "done" and before["scale"] == scale:
        return float(before["seconds"])
    stored = json.loads(chapter.path.read_text(encoding="utf-8"))["metadata"].get("sparsebook", {})
    if scale == "book" and stored.get("seconds"):
        return float(stored["seconds"])
    return EXPECTED_SECONDS.get(scale, EXPECTED_SECONDS["book"])


def _folder(root: Path, scale: str | None, given: Mapping[str, Any], out: Path | str | None) -> Path:
    if out is not None:
        return Path(out).expanduser().resolve()
    at = str(given.get("scale") or scale or "book")
    others = {name: value for name, value in given.items() if name != "scale"}
    return root / "_build" / "runs" / run_name(at, others)


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / RUN_FILE
    if not path.is_file():
        return {"chapters": {}}
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    if folder.exists() and not (folder / RUN_FILE).exists() and any(folder.iterdir()):
        raise ValueError(f"out is {folder}, which holds other files; expected a new folder or that of a run")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.parent / f".{folder.name}.lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another run is writing into {folder}: wait for it or give another --out") from None


def _failure_entry(failure: Failure | None) -> dict[str, Any] | None:
    return None if failure is None else asdict(failure) | {"summary": failure.summary}


def _machine() -> dict[str, Any]:
    return {"system": platform.platform(), "processors": os.cpu_count(), **versions()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
