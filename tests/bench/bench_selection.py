"""Speed of selection and of sparse codes beside PyTorch's own, interleaved in one run.

    make bench                                             # with all of the others
    python tests/bench/bench_selection.py [TASK ...]       # alone: rows, columns, matrix, decode ...

4096 rows, 16,384 columns, k = 32, atoms of width 640, float32, two threads; the public calls with checks.
The limit of a selection is one read of the matrix (`x.sum()`), that of the decode a copy of all bytes that
its forward and backward pass must read or write once. Ratios are medians over the rounds.
"""

import sys

import pytest

from sparsebook.evaluation.machine import machine_name
from sparsebook.experiments.selection_kernels import Config
from sparsebook.experiments.selection_kernels.speed import TASKS, speed_once

Found = dict[str, dict[str, float]]


def measure(task: str) -> Found:
    """Seconds and ratio to ours of every method, two threads."""
    return speed_once(vars(Config.at("full")), task)


def show(task: str, found: Found) -> None:
    print(f"\n{task}")
    for method, numbers in found.items():
        print(
            f"  {method:16s} {numbers['seconds'] * 1e3:10.2f} ms {numbers['ratio']:8.2f} x ours", flush=True
        )


@pytest.mark.bench
def test_selection_of_the_matrix_is_near_one_read_and_far_ahead_of_sorting() -> None:
    found = measure("matrix")
    show("matrix", found)
    assert found["limit"]["ratio"] > 1 / 3
    assert found["torch.topk"]["ratio"] > 20


@pytest.mark.bench
@pytest.mark.parametrize("task", ["rows", "columns", "uneven columns"])
def test_selection_is_faster_than_topk(task: str) -> None:
    found = measure(task)
    show(task, found)
    assert found["torch.topk"]["ratio"] > 3


@pytest.mark.bench
def test_decode_is_faster_than_what_a_knowing_user_would_write() -> None:
    found = measure("decode")
    show("decode", found)
    assert found["embedding_bag"]["ratio"] > 1.5
    assert found["dense codes"]["ratio"] > 15


if __name__ == "__main__":
    print(machine_name())
    for name in sys.argv[1:] or TASKS:
        show(name, measure(name))
