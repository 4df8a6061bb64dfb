"""Threads are set everywhere alike and restored; the machine's limits are measured within a second."""

import json
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch

from sparsebook.evaluation import machine
from sparsebook.evaluation.machine import (
    available_threads,
    copy_bandwidth,
    describe_machine,
    gemm_rate,
    machine_name,
    set_threads,
    threads,
)


def in_use() -> tuple[int, int]:
    return torch.get_num_threads(), numba.get_num_threads()


@pytest.mark.parametrize("n", sorted({1, available_threads()}))
def test_threads_are_set_and_restored(n: int) -> None:
    before = in_use()
    with threads(n) as used:
        assert used == n
        assert in_use() == (n, n)
        threadpoolctl = pytest.importorskip("threadpoolctl")
        pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
        assert {pool["num_threads"] for pool in pools} <= {n}
    assert in_use() == before


def test_threads_are_restored_after_an_error() -> None:
    before = in_use()
    with pytest.raises(RuntimeError, match="in the block"), threads(1):
        raise RuntimeError("in the block")
    assert in_use() == before


def test_none_means_all() -> None:
    with threads(None) as used:
        assert used == available_threads()


@pytest.mark.parametrize("n", [0, -1, available_threads() + 1])
def test_more_threads_than_cpus_are_refused(n: int) -> None:
    before = in_use()
    with pytest.raises(
        ValueError, match=f"threads: expected 1 to {available_threads()} on this machine, got {n}"
    ):
        set_threads(n)
    assert in_use() == before


def test_description() -> None:
    described = describe_machine()
    assert described["instruction_set"] in {"AVX-512", "AVX2", "SVE", "NEON", "none"}
    assert described["cores"] >= 1
    assert described["versions"]["numpy"] == np.__version__
    assert described["versions"]["torch"] == torch.__version__
    assert json.loads(json.dumps(described)) == described
    assert described["cpu"] in machine_name()


def test_description_does_not_import_torch() -> None:
    code = "import sys; import sparsebook.evaluation.machine as m; m.machine_name(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numba"} & set(done.stdout.split())


def test_without_a_proc_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.Path, "exists", lambda path: False)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    assert machine._cpu_name.__wrapped__() == machine.platform.machine()


@pytest.mark.parametrize(("measure", "low", "high"), [(copy_bandwidth, 1e8, 1e13), (gemm_rate, 1e9, 1e16)])
def test_limits_are_plausible_and_measured_once(measure, low: float, high: float) -> None:
    first = measure()
    assert low < first < high
    assert measure() == first  # measured again, it would differ in its last digits
