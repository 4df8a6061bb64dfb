"""Running chapters on a Dask cluster, one worker of which is killed."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from sparsebook.book import run_chapters

pytest.importorskip("distributed")


def test_every_chapter_is_done_although_a_worker_is_killed(fabricate, tmp_path: Path) -> None:
    from distributed import LocalCluster

    # The first time, the slow chapter says that it is at work and waits to be killed; then it goes on.
    begun = tmp_path / "begun"
    body = (
        f"import pathlib, time\nbegun = pathlib.Path({str(begun)!r})\n"
        "if not begun.exists():\n    begun.write_text('at work')\n    time.sleep(120)"
    )
    book = fabricate(good="print('one')", slow=body, bad="raise ValueError('as ever')")
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        killed: list[int] = []
        killer = threading.Thread(target=_kill_the_busy_worker, args=(cluster, begun, killed))
        killer.start()
        started = time.monotonic()
        run = run_chapters(book=book.root, dask=cluster.scheduler_address)
        killer.join()
    assert killed, "no worker was killed: the test proves nothing"
    assert time.monotonic() - started < 100, "the slow chapter was waited for instead of run again"
    assert {outcome.slug: outcome.status for outcome in run.outcomes} == {
        "good": "done", "slow": "done", "bad": "failed",
    }  # fmt: skip
    assert run.failed[0].failure.cell == 3
    entries = json.loads((run.folder / "run.json").read_text())["chapters"]
    assert entries["slow"]["verdicts"] == {"holds": 1, "fails": 1}
    for slug in ("good", "slow", "bad"):
        assert (run.folder / "book" / "retrieval" / f"{slug}.ipynb").is_file()
    assert run_chapters(["good", "slow"], book=book.root).skipped == ("good", "slow")


def _kill_the_busy_worker(cluster, begun: Path, killed: list[int]) -> None:
    end = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < end:
        time.sleep(0.1)
    for address, tasks in _processing(cluster).items():
        if any("slow" in str(key) for key in tasks):
            nanny = next(worker for worker in cluster.workers.values() if worker.worker_address == address)
            os.kill(nanny.pid, signal.SIGKILL)
            killed.append(nanny.pid)


def _processing(cluster) -> dict:
    from distributed import Client

    with Client(cluster.scheduler_address) as client:
        return dict(client.processing())


def test_an_address_where_nobody_answers_is_one_sentence(fabricate, monkeypatch: pytest.MonkeyPatch) -> None:
    book = fabricate(good="1")
    with pytest.raises(ValueError, match=r"dask is 'nonsense://1.2.3.4:1'"):
        run_chapters(book=book.root, dask="nonsense://1.2.3.4:1")
