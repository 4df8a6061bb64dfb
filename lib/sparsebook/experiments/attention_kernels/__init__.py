"""Experiments of the chapter on attention kernels.

>>> config = Config.at("smoke")                              # doctest: +SKIP
>>> draw_density(run_density(config))                        # doctest: +SKIP

`Config` says what a scale measures, `run_*` return tidy tables, `draw_*` turn them into figures.
`python -m sparsebook.experiments.attention_kernels` records the tables of scale `full` with the book.
"""

from sparsebook.experiments.attention_kernels.figures import (
    draw_decode,
    draw_density,
    draw_layouts,
    draw_limit,
    draw_masks,
    draw_shapes,
)
from sparsebook.experiments.attention_kernels.results import (
    EXPERIMENTS,
    agreement,
    answers,
    demands,
    exact_table,
    parts_table,
    record,
    speed_table,
    tables,
    threads_table,
)
from sparsebook.experiments.attention_kernels.runs import (
    fingerprint,
    live_ratio,
    run_decode,
    run_density,
    run_layouts,
    run_limit,
    run_processes,
    run_shapes,
    run_threads,
)
from sparsebook.experiments.attention_kernels.scales import Config

__all__ = [
    "EXPERIMENTS",
    "Config",
    "agreement",
    "answers",
    "demands",
    "draw_decode",
    "draw_density",
    "draw_layouts",
    "draw_limit",
    "draw_masks",
    "draw_shapes",
    "exact_table",
    "fingerprint",
    "live_ratio",
    "parts_table",
    "record",
    "run_decode",
    "run_density",
    "run_layouts",
    "run_limit",
    "run_processes",
    "run_shapes",
    "run_threads",
    "speed_table",
    "tables",
    "threads_table",
]
