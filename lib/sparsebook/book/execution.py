"""Execute one chapter in a process of its own, which ends with the process that asked for it.

The process that asks writes the task as one line of JSON to the child's standard input and keeps that
open. When it closes it, or dies of whatever cause, the child stops the notebook's kernel and ends.
"""

import _thread
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sparsebook.book.layout import BOOK_VARIABLE

FAILURE_TAG = "sparsebook-failure"
INJECTED_TAG = "injected-parameters"
STOP_SECONDS = 15.0
_START = "from sparsebook.book.execution import _main; _main()"


@dataclass(frozen=True)
class Task:
    """One chapter to execute: all paths are absolute, ``parameters`` are JSON values."""

    slug: str
    part: str
    root: str
    notebook: str
    output: str
    parameters: dict[str, Any]
    timeout: float | None = None


@dataclass(frozen=True)
class Failure:
    """Where and why a chapter stopped; ``cell`` counts the cells of the stored notebook from 1."""

    cell: int | None
    execution_count: int | None
    error: str
    message: str
    source: str = ""

    @property
    def summary(self) -> str:
        """The failure in one line."""
        first = self.message.strip().splitlines()[0] if self.message.strip() else ""
        what = f"{self.error}: {first}" if first else self.error
        if self.cell is None:
            return what
        count = f" (In [{self.execution_count}])" if self.execution_count else ""
        return f"cell {self.cell}{count}: {what}"


@dataclass(frozen=True)
class Outcome:
    """What became of one chapter."""

    slug: str
    part: str
    status: Literal["done", "failed"]
    seconds: float
    failure: Failure | None = None


class ChapterProcess:
    """A chapter being executed by a child process."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._started = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="sparsebook-")
        self._answer = Path(self._folder.name) / "outcome.json"
        self._errors = (Path(self._folder.name) / "errors.txt").open("w+b")
        self._child = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={**os.environ, BOOK_VARIABLE: task.root},
            # Ctrl-C in the terminal reaches the parent alone, which then stops its chapters in order.
            start_new_session=True,
        )
        assert self._child.stdin is not None
        order = {"task": asdict(task), "answer": str(self._answer)}
        try:
            self._child.stdin.write(json.dumps(order).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # It died at once; `outcome` reports why.

    @property
    def seconds(self) -> float:
        """Time since it was started."""
        return time.monotonic() - self._started

    def outcome(self) -> Outcome | None:
        """What became of it, or ``None`` while it is running."""
        if self._child.poll() is None:
            return None
        try:
            answer = json.loads(self._answer.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return replace(self._died(), seconds=self.seconds)
        finally:
            self._close()
        failure = Failure(**answer.pop("failure")) if answer["failure"] else answer.pop("failure")
        return Outcome(**answer, failure=failure)

    def wait(self, poll: float = 0.1) -> Outcome:
        """Wait until it has ended."""
        while (outcome := self.outcome()) is None:
            time.sleep(poll)
        return outcome

    def stop(self) -> None:
        """End it and its kernel now."""
        if self._child.stdin and not self._child.stdin.closed:
            self._child.stdin.close()
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._close()

    def _died(self) -> Outcome:
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        code = self._child.returncode
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        message = f"the process that executed it ended with {how}" + (f": {last[0]}" if last else "")
        return Outcome(self.task.slug, self.task.part, "failed", 0.0, Failure(None, None, "died", message))

    def _close(self) -> None:
        if self._child.stdin and not self._child.stdin.closed:
            self._child.stdin.close()
        self._errors.close()
        self._folder.cleanup()


def execute(task: Task) -> Outcome:
    """Execute a chapter here and now, keeping what ran if it fails."""
    import papermill

    output = Path(task.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.stem}.unfinished.ipynb")
    started = time.monotonic()
    failure = None
    try:
        papermill.execute_notebook(
            task.notebook,
            str(unfinished),
            parameters=task.parameters,
            kernel_name="python3",
            cwd=str(Path(task.notebook).parent),
            progress_bar=False,
            execution_timeout=task.timeout,
        )
    except Exception as error:
        failure = _failure(error, unfinished, task.timeout)
    _finish(unfinished, output, failure, time.monotonic() - started)
    seconds = round(time.monotonic() - started, 2)
    return Outcome(task.slug, task.part, "failed" if failure else "done", seconds, failure)


def execute_bundle(task: Task, files: Mapping[str, bytes], library: str) -> tuple[Outcome, bytes | None]:
    """Execute a chapter on another machine: from the files sent along, the notebook sent back.

    Only the library must be installed there, and be the same, which is checked by ``library``, its hash.
    """
    from sparsebook.book.fingerprints import hash_library

    if hash_library() != library:
        message = "the worker's sparsebook differs from yours: install the same sources there"
        return Outcome(task.slug, task.part, "failed", 0.0, Failure(None, None, "library", message)), None
    with tempfile.TemporaryDirectory(prefix="sparsebook-") as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        notebook = Path(folder) / "book" / task.part / f"{task.slug}.ipynb"
        output = Path(folder) / "executed.ipynb"
        here = replace(task, root=folder, notebook=str(notebook), output=str(output))
        outcome = ChapterProcess(here).wait()
        return outcome, output.read_bytes() if output.exists() else None


def _main() -> None:
    """The child process."""
    order = json.loads(sys.stdin.readline())
    # A shell that starts jobs in the background makes them deaf to this signal; the kernel's end needs it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome = execute(Task(**order["task"]))
    except KeyboardInterrupt:
        sys.exit(130)
    answer = Path(order["answer"])
    answer.with_suffix(".part").write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    answer.with_suffix(".part").replace(answer)


def _end_with_parent() -> None:
    sys.stdin.read()
    if hasattr(signal, "pthread_kill"):  # wakes the main thread from waiting for its kernel
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()
    time.sleep(STOP_SECONDS)
    os._exit(130)


def _failure(error: Exception, unfinished: Path, timeout: float | None) -> Failure:
    from papermill.exceptions import PapermillExecutionError

    if not unfinished.exists():
        return Failure(None, None, type(error).__name__, str(error))
    cell, count, source = _stopped_at(unfinished)
    if isinstance(error, PapermillExecutionError):
        return Failure(cell, count, error.ename, error.evalue, source)
    if type(error).__name__ == "CellTimeoutError":
        return Failure(cell, count, "timeout", f"the cell took longer than {timeout:.0f} s", source)
    if type(error).__name__ == "DeadKernelError":
        return Failure(cell, count, "the kernel died", "out of memory, or a crash in compiled code", source)
    return Failure(cell, count, type(error).__name__, str(error), source)


def _stopped_at(path: Path) -> tuple[int | None, int | None, str]:
    """Number, execution count and first line of the cell at which execution ended."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    own = [cell for cell in cells if not _added(cell)]
    for number, cell in enumerate(own, start=1):
        if _raised(cell):
            return number, cell["execution_count"], _first_line(cell)
    # Nothing was raised: the cell that was being executed when its time or its kernel came to an end is
    # the last one that was begun.
    begun = [pair for pair in enumerate(own, start=1) if _begun(pair[1])]
    if not begun:
        return None, None, ""
    number, cell = begun[-1]
    return number, cell["execution_count"], _first_line(cell)


def _raised(cell: dict[str, Any]) -> bool:
    return any(output["output_type"] == "error" for output in cell.get("outputs", []))


def _begun(cell: dict[str, Any]) -> bool:
    return cell["cell_type"] == "code" and bool(cell["metadata"].get("papermill", {}).get("start_time"))


def _first_line(cell: dict[str, Any]) -> str:
    lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
    return lines[0].strip() if lines else ""


def _added(cell: dict[str, Any]) -> bool:
    added = {"papermill-error-cell-tag", FAILURE_TAG, INJECTED_TAG}
    return bool(added & set(cell["metadata"].get("tags", [])))


def _finish(unfinished: Path, output: Path, failure: Failure | None, seconds: float) -> None:
    """Put the executed notebook in its place, without papermill's traces, with a note if it failed."""
    if not unfinished.exists():
        output.unlink(missing_ok=True)
        return
    notebook = json.loads(unfinished.read_text(encoding="utf-8"))
    marks = {"papermill-error-cell-tag", FAILURE_TAG}
    notebook["cells"] = [
        cell for cell in notebook["cells"] if not marks & set(cell["metadata"].get("tags", []))
    ]
    for cell in notebook["cells"]:
        cell["metadata"].pop("papermill", None)
    notebook["metadata"].pop("papermill", None)
    notebook["metadata"]["sparsebook"] = {"seconds": round(seconds, 1)}
    if failure is not None:
        # After the title, which must stay the first thing on the page.
        notebook["cells"].insert(1, _note(failure))
    unfinished.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(output)


def _note(failure: Failure) -> dict[str, Any]:
    text = (
        "````{error}\nThis chapter stopped before its end, so none of its claims was tested. "
        f"What follows is what ran until then.\n\n```text\n{failure.summary}\n```\n````"
    )
    return {
        "id": "sparsebook-failure",
        "cell_type": "markdown",
        "metadata": {"tags": [FAILURE_TAG]},
        "source": text.splitlines(keepends=True),
    }
