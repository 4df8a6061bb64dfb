"""Running chapters here: real kernels, one process a chapter."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsebook.book import ledger, plan_chapters, run_chapters, store_chapter
from sparsebook.book.execution import ChapterProcess, Task
from sparsebook.book.layout import chapters
from sparsebook.book.running import Watcher, run_name

RAISES = "print('this ran')\nif k == 3:\n    raise KeyError('no such vector')"


@pytest.fixture(autouse=True)
def _library_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may be editing the library while the tests run; that is tested with the fingerprints."""
    monkeypatch.setattr("sparsebook.book.fingerprints.library_hash", lambda chapter, root: "as it is")


class Heard(Watcher):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: dict[str, dict[str, int]] = {}
        self.left: list[float] = []

    def started(self, plan) -> None:
        self.begun.append(plan.chapter.slug)

    def finished(self, plan, outcome, verdicts) -> None:
        self.ended[outcome.slug] = dict(verdicts)

    def waiting(self, seconds_left: float) -> None:
        self.left.append(seconds_left)


def entries(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())["chapters"]


def reasons(book, **options) -> dict[str, str]:
    return {plan.chapter.slug: plan.reason for plan in plan_chapters(book=book.root, **options)}


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet waited for does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:  # no /proc here, or gone a moment after the signal
        return not Path("/proc").is_dir()
    except ProcessLookupError:  # gone before the signal, or while its entry was read
        return False


def gone_within(seconds: float, pid: int) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.1)
    return not alive(pid)


def test_a_run_from_start_to_resumption(fabricate) -> None:
    """One story, because every kernel costs a second: run, fail, skip, change, resume, store."""
    book = fabricate(good="print(scale, threads)", bad=RAISES, slow="import os\nos.kill(os.getpid(), 9)")
    heard = Heard()
    run = run_chapters(book=book.root, jobs=3, watcher=heard)

    # The failed ones do not stop the others, and name cell and error.
    assert run.folder == book.root / "_build" / "runs" / "book"
    failures = {outcome.slug: outcome.failure for outcome in run.failed}
    assert sorted(failures) == ["bad", "slow"]
    assert failures["bad"].summary == "cell 3 (In [3]): KeyError: 'no such vector'"
    assert failures["bad"].source == "print('this ran')"
    assert failures["slow"].cell == 3
    assert failures["slow"].error == "the kernel died"
    assert sorted(heard.begun) == ["bad", "good", "slow"]
    assert heard.ended == {"good": {"holds": 1, "fails": 1}, "bad": {}, "slow": {}}
    assert heard.left
    assert min(heard.left) == heard.left[-1] == 0

    # The partial notebook is kept, with a note under the title and without papermill's own marks.
    partial = json.loads((run.folder / "book" / "retrieval" / "bad.ipynb").read_text())
    sources = ["".join(cell["source"]) for cell in partial["cells"]]
    assert sources[0].startswith("# About bad")
    assert "KeyError: 'no such vector'" in sources[1]
    assert not any("papermill" in source for source in sources)
    assert "this ran" in json.dumps(partial["cells"])
    assert list((run.folder / "book" / "retrieval").glob(".*")) == []

    # With three at once, each was given its share of the cores.
    good = (run.folder / "book" / "retrieval" / "good.ipynb").read_text()
    assert f"book {max(1, (os.cpu_count() or 1) // 3)}" in good
    stored = entries(run.folder)
    assert stored["good"]["status"] == "done"
    assert stored["good"]["verdicts"] == {"holds": 1, "fails": 1}
    assert stored["bad"]["failure"]["cell"] == 3

    # The ledger of the run: what was reached, what was not, and the stored verdict beside it.
    rows = {(row["slug"], row["id"]): row for row in ledger(book.root, run.folder)}
    assert rows["good", "C1"]["verdict"] == "holds"
    assert rows["bad", "C2"]["verdict"] == "untested"
    assert "the chapter stopped: cell 3" in rows["bad", "C2"]["why"]
    assert rows["good", "C1"]["stored_verdict"] == "untested"

    # What is done is not done again; what failed is; a change of the notebook is named.
    assert reasons(book) == {"good": "", "bad": "failed last time", "slow": "failed last time"}
    assert reasons(book, force=True)["good"] == "forced"
    assert reasons(book, scale="smoke")["good"] == "has not run here yet"
    with pytest.raises(ValueError, match="share of the cores"):
        store_chapter(run.folder, "good", book.root)
    source = book.root / "book" / "retrieval" / "good.ipynb"
    source.write_text(source.read_text().replace("print(scale, threads)", "print(scale, seed)"))
    assert reasons(book)["good"] == "changed: notebook"
    with pytest.raises(ValueError, match="has changed since"):
        store_chapter(run.folder, "good", book.root)
    again = run_chapters(["good"], book=book.root)
    assert [outcome.status for outcome in again.outcomes] == ["done"]
    assert sorted(entries(run.folder)) == ["bad", "good", "slow"]
    assert run_chapters(["good"], book=book.root).skipped == ("good",)

    # Storing it makes it the book's own, and leaves it up to date.
    assert store_chapter(run.folder, "good", book.root) == source
    assert reasons(book)["good"] == ""
    assert ledger(book.root)[0]["verdict"] == "holds"
    with pytest.raises(ValueError, match="was not executed to its end"):
        store_chapter(run.folder, "bad", book.root)


def test_parameters_reach_the_notebook_and_name_the_run(fabricate, tmp_path: Path) -> None:
    book = fabricate(bad=RAISES)
    run = run_chapters(["bad"], book=book.root, parameters={"k": 4}, scale="smoke")
    assert run.failed == ()
    assert run.folder.name == "smoke-k=4"
    assert entries(run.folder)["bad"]["parameters"] == {"scale": "smoke", "k": 4}
    with pytest.raises(ValueError, match="executed with scale='smoke', k=4"):
        store_chapter(run.folder, "bad", book.root)


def test_one_folder_never_mixes_runs_with_other_parameters(fabricate, tmp_path: Path) -> None:
    book = fabricate(good="1")
    out = tmp_path / "out"
    asked = {"scale": "smoke", "parameters": {"k": 7}}
    entry = {"part": "retrieval", "asked": asked, "status": "done", "failure": None}
    (out / "book" / "retrieval").mkdir(parents=True)
    (out / "book" / "retrieval" / "slow.ipynb").write_text("hours of work")
    (out / "run.json").write_text(json.dumps({"chapters": {"slow": entry}}))
    run_chapters(["good"], book=book.root, out=out)
    assert list(entries(out)) == ["good"]
    kept = out / "earlier" / "smoke-k=7" / "book" / "retrieval" / "slow.ipynb"
    assert kept.read_text() == "hours of work"
    # What is up to date stays, however its parameters were written.
    assert run_chapters(["good"], book=book.root, out=out, parameters={"k": 3}).skipped == ("good",)
    assert entries(out)["good"]["asked"]["parameters"] == {"k": 3}


def test_a_cell_that_takes_too_long_is_stopped_and_named(fabricate) -> None:
    book = fabricate(slow="import time\ntime.sleep(60)")
    started = time.monotonic()
    run = run_chapters(book=book.root, timeout=4.0)
    assert time.monotonic() - started < 30
    assert run.failed[0].failure.summary.endswith("timeout: the cell took longer than 4 s")
    assert run.failed[0].failure.cell == 3


def test_ctrl_c_keeps_what_is_done_ends_the_kernels_and_says_how_to_resume(fabricate, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    book = fabricate(
        good="1", slow=f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    # Where the tests themselves run in the background, this signal is ignored from birth; a person's terminal
    # does not do that.
    listening = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('sparsebook', run_name='__main__')"
    )
    command = [sys.executable, "-c", listening, "--book", str(book.root), "run", "good", "slow"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "good" in out
    assert "1 holds · 1 fails" in out
    assert "interrupted: 1 finished chapters are kept" in err
    assert "the same command resumes" in err
    assert "Traceback" not in err
    assert gone_within(20, int(pid.read_text()))
    assert list(entries(book.root / "_build" / "runs" / "book")) == ["good"]
    assert reasons(book)["slow"] == "has not run here yet"


def test_a_chapter_ends_with_the_process_that_asked_for_it(fabricate, tmp_path: Path) -> None:
    """Also when that was killed: nothing keeps computing for nobody."""
    pid = tmp_path / "pid"
    book = fabricate(slow=f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    path = chapters(book.root)[0].path
    task = Task("slow", "retrieval", str(book.root), str(path), str(tmp_path / "out.ipynb"), {})
    script = (
        "import sys, json; from sparsebook.book.execution import *; "
        "ChapterProcess(Task(**json.loads(sys.argv[1]))).wait()"
    )
    child = subprocess.Popen([sys.executable, "-c", script, json.dumps(task.__dict__)])
    end = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    child.kill()
    child.wait()
    assert gone_within(20, int(pid.read_text()))


def test_a_process_that_dies_at_once_is_a_failure_with_its_reason(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sparsebook.book.execution._START", "raise SystemExit('no room on the disk')")
    task = Task("good", "retrieval", str(tmp_path), "missing.ipynb", str(tmp_path / "out.ipynb"), {})
    outcome = ChapterProcess(task).wait()
    assert outcome.status == "failed"
    assert outcome.failure.summary.startswith("died: the process that executed it ended with exit status 1")
    assert "no room on the disk" in outcome.failure.message


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"jobs": 0}, "jobs is 0"),
        ({"timeout": 0.0}, "timeout is 0"),
        ({"parameters": {"q": 1}}, "no parameter 'q'"),
    ],
)
def test_wrong_options_are_refused(fabricate, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run_chapters(book=fabricate(good="1").root, **options)


def test_a_folder_with_other_files_and_a_second_run_are_refused(fabricate, tmp_path: Path) -> None:
    from filelock import FileLock

    book = fabricate(good="1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds other files"):
        run_chapters(book=book.root, out=tmp_path / "mine")
    with FileLock(tmp_path / ".busy.lock"), pytest.raises(ValueError, match="another run is writing"):
        run_chapters(book=book.root, out=tmp_path / "busy")


def test_equal_parameters_share_a_folder() -> None:
    assert run_name("book", {}) == "book"
    assert (
        run_name("smoke", {"b": 1, "a": "x/y z"})
        == run_name("smoke", {"a": "x/y z", "b": 1})
        == "smoke-a=x-y-z-b=1"
    )
