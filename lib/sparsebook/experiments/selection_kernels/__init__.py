"""Experiments of the chapter on selection, sparse codes and pursuit.

>>> config = Config.at("smoke")                              # doctest: +SKIP
>>> found = tables(config)                                   # doctest: +SKIP
>>> draw_speed(found["speed"])                               # doctest: +SKIP

`Config` says what a scale measures, `run_*` return tidy tables, `draw_*` turn them into figures.
`python -m sparsebook.experiments.selection_kernels [table ...]` records the tables of scale `full` with the
book; what the comparisons need besides the book's own packages stands in `peers`.
"""

from sparsebook.experiments.selection_kernels.against import run_pursuit, run_training
from sparsebook.experiments.selection_kernels.choices import (
    run_allocations,
    run_candidates,
    run_decode_error,
    run_exactness,
    run_histogram,
    run_pursuit_error,
    run_refusals,
)
from sparsebook.experiments.selection_kernels.figures import (
    draw_allocations,
    draw_histogram,
    draw_memory,
    draw_peers,
    draw_speed,
    draw_sweep,
)
from sparsebook.experiments.selection_kernels.memory import run_memory
from sparsebook.experiments.selection_kernels.results import (
    EXPERIMENTS,
    agreement,
    answers,
    demands,
    limits_table,
    memory_table,
    peers_table,
    record,
    run_live,
    speed_table,
    tables,
)
from sparsebook.experiments.selection_kernels.scales import Config
from sparsebook.experiments.selection_kernels.speed import live_ratios, run_speed, run_sweep

__all__ = [
    "EXPERIMENTS",
    "Config",
    "agreement",
    "answers",
    "demands",
    "draw_allocations",
    "draw_histogram",
    "draw_memory",
    "draw_peers",
    "draw_speed",
    "draw_sweep",
    "limits_table",
    "live_ratios",
    "memory_table",
    "peers_table",
    "record",
    "run_allocations",
    "run_candidates",
    "run_decode_error",
    "run_exactness",
    "run_histogram",
    "run_live",
    "run_memory",
    "run_pursuit",
    "run_pursuit_error",
    "run_refusals",
    "run_speed",
    "run_sweep",
    "run_training",
    "speed_table",
    "tables",
]
