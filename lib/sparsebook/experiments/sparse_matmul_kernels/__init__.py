"""Experiments of the chapter on sparse matrix products.

>>> config = Config.at("smoke")                              # doctest: +SKIP
>>> draw_speedup(run_speed(config))                          # doctest: +SKIP

`Config` says what a scale measures, `run_*` return tidy tables, `draw_*` turn them into figures.
`python -m sparsebook.experiments.sparse_matmul_kernels [table ...]` records the tables of scale `full` with
the book.
"""

from sparsebook.experiments.sparse_matmul_kernels.figures import (
    draw_forms,
    draw_layers,
    draw_roofline,
    draw_speedup,
    draw_strips,
)
from sparsebook.experiments.sparse_matmul_kernels.results import (
    EXPERIMENTS,
    agreement,
    answers,
    demands,
    limits_table,
    patterns_table,
    record,
    speed_table,
    step_table,
    tables,
)
from sparsebook.experiments.sparse_matmul_kernels.runs import (
    fingerprint,
    live_ratio,
    run_forms,
    run_limits,
    run_patterns,
    run_processes,
    run_speed,
    run_strips,
)
from sparsebook.experiments.sparse_matmul_kernels.scales import Config
from sparsebook.experiments.sparse_matmul_kernels.step import run_step

__all__ = [
    "EXPERIMENTS",
    "Config",
    "agreement",
    "answers",
    "demands",
    "draw_forms",
    "draw_layers",
    "draw_roofline",
    "draw_speedup",
    "draw_strips",
    "fingerprint",
    "limits_table",
    "live_ratio",
    "patterns_table",
    "record",
    "run_forms",
    "run_limits",
    "run_patterns",
    "run_processes",
    "run_speed",
    "run_step",
    "run_strips",
    "speed_table",
    "step_table",
    "tables",
]
