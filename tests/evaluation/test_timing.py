"""Interleaved rounds, pairs, and processes of their own whose errors come back whole."""

import gc
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sparsebook.evaluation.timing import (
    ProcessFailed,
    compare,
    in_processes,
    paired_median_ratio,
    paired_ratios,
)

TARGETS = """
import os, sys, time

def where(offset=0):
    print("a child may print")
    return os.getpid() + offset

def variables():
    return os.environ["OMP_NUM_THREADS"], os.environ["NUMBA_NUM_THREADS"]

def threads_of_torch_and_numba():
    import numba, torch
    return torch.get_num_threads(), numba.get_num_threads()

def fail():
    raise KeyError("the very reason")

def die():
    print("last words", file=sys.stderr, flush=True)
    os._exit(7)

def sleep():
    time.sleep(60)

def unpicklable():
    return lambda: None

def main_module():
    return sys.modules["__main__"].__dict__.get("MARK"), "pytest" in sys.modules
"""


@pytest.fixture
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of targets that only this process's path leads to."""
    (tmp_path / "timing_targets.py").write_text(TARGETS)
    monkeypatch.syspath_prepend(tmp_path)
    return "timing_targets"


# --- inside a process ------------------------------------------------------------------------------------


def test_rounds_are_interleaved_in_changing_order() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = compare(functions, repeats=20, warmup=2)
    rounds = [tuple(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert len(rounds) == 22
    assert all(set(turn) == set("abc") for turn in rounds)
    assert len(set(rounds)) > 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 20, "b": 20, "c": 20}
    assert list(seconds) == ["a", "b", "c"]


def test_warm_up_is_not_timed() -> None:
    state = {"first": True}

    def slow_at_first() -> None:
        if state.pop("first", False):
            time.sleep(0.05)

    assert max(compare({"f": slow_at_first}, repeats=5, warmup=1)["f"]) < 0.04


def test_time_per_call() -> None:
    calls: list[int] = []
    (seconds,) = compare({"f": lambda: (calls.append(1), time.sleep(0.002))}, repeats=1, warmup=0, number=5)[
        "f"
    ]
    assert len(calls) == 5
    assert 0.002 <= seconds < 0.008


def test_the_collector_is_off_while_timing_and_on_again() -> None:
    seen: list[bool] = []
    compare({"f": lambda: seen.append(gc.isenabled())}, repeats=2, warmup=0)
    assert (seen, gc.isenabled()) == ([False, False], True)
    with pytest.raises(ZeroDivisionError):
        compare({"f": lambda: 1 / 0}, repeats=1)
    assert gc.isenabled()


def test_work_that_is_only_started_is_waited_for() -> None:
    pending: list[float] = []
    work = lambda: pending.append(0.01)  # noqa: E731
    wait = lambda: time.sleep(pending.pop()) if pending else None  # noqa: E731
    assert min(compare({"f": work}, repeats=2, warmup=0, synchronize=wait)["f"]) >= 0.01


def test_pairs() -> None:
    seconds = {"ours": [1.0, 2.0, 9.0], "peer": [2.0, 2.0, 3.0]}
    np.testing.assert_array_equal(paired_ratios(seconds, "ours", "peer"), [0.5, 1, 3])
    assert paired_median_ratio(seconds, "ours", "peer") == 1


def test_pairs_cancel_what_slows_both() -> None:
    """The machine halves its speed in the middle: the medians' ratio is off, the ratios' median is not."""
    speed = np.repeat([1.0, 2.0], [11, 10])
    ours, peer = 0.8 * speed, speed.copy()
    assert paired_median_ratio(
        {"ours": ours.tolist(), "peer": peer.tolist()}, "ours", "peer"
    ) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare({}), "functions: expected at least one"),
        (lambda: compare({"f": int}, repeats=0), "repeats: expected at least 1, got 0"),
        (lambda: compare({"f": int}, warmup=-1), "warmup: expected at least 0, got -1"),
        (lambda: paired_ratios({"a": [1.0]}, "a", "b"), "no timings of 'b'; there are a"),
        (
            lambda: paired_ratios({"a": [1.0], "b": [1.0, 2.0]}, "a", "b"),
            "must be paired: 1 of 'a', 2 of 'b'",
        ),
        (lambda: in_processes("module.function"), "expected 'module:function'"),
        (lambda: in_processes("__main__:f"), "importable module"),
        (lambda: in_processes("a:b", processes=0), "processes: expected at least 1"),
        (lambda: in_processes("a:b", threads=0), "threads: expected at least 1"),
    ],
)
def test_what_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- processes -------------------------------------------------------------------------------------------


def test_every_call_has_its_own_process(targets: str) -> None:
    found = in_processes(f"{targets}:where", {"offset": 0}, processes=3)
    assert len({*found, os.getpid()}) == 4


def test_threads_are_limited_before_anything_starts(targets: str) -> None:
    assert in_processes(f"{targets}:variables", processes=1, threads=1) == [("1", "1")]
    assert in_processes(f"{targets}:threads_of_torch_and_numba", processes=1, threads=1) == [(1, 1)]


def test_the_callers_main_module_is_not_imported(targets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "MARK", "caller", raising=False)
    assert in_processes(f"{targets}:main_module", processes=1) == [(None, False)]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fail", r"(?s)raised in a process of its own.*in fail.*KeyError: 'the very reason'"),
        ("die", "ended with status 7: last words"),
        ("unpicklable", "(?s)raised in a process of its own.*pickle"),
        ("absent", "(?s)AttributeError.*absent"),
    ],
)
def test_errors_come_back_whole(targets: str, function: str, message: str) -> None:
    with pytest.raises(ProcessFailed, match=message):
        in_processes(f"{targets}:{function}", processes=2)


def test_a_process_that_hangs_is_stopped(targets: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ProcessFailed, match=r"took longer than 0\.5 s"):
        in_processes(f"{targets}:sleep", processes=1, timeout=0.5)
    assert time.perf_counter() - start < 20
