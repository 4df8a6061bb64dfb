"""Experiments of the chapter on QuickSelection.

>>> config = Config.at("smoke")                              # doctest: +SKIP
>>> draw_madelon(run_madelon(config), config)                # doctest: +SKIP

`Config` says what a scale does, `run_*` return tidy tables, `draw_*` turn them into figures,
`claim_samples` reads the claims' samples off them. `python -m sparsebook.experiments.quick_selection`
records the tables of scale `full` with the book.
"""

from sparsebook.experiments.quick_selection.costs import (
    counted_energy,
    run_counted,
    run_memory,
    run_pair,
    run_speed,
    step_share,
)
from sparsebook.experiments.quick_selection.figures import (
    draw_energy,
    draw_madelon,
    draw_maps,
    draw_profile,
    draw_reasons,
    draw_scale,
    draw_sweep,
    draw_trade,
)
from sparsebook.experiments.quick_selection.prose import (
    accuracy_table,
    agreement,
    answers,
    tuning_table,
    verdict_table,
)
from sparsebook.experiments.quick_selection.recording import record, tables
from sparsebook.experiments.quick_selection.runs import (
    fingerprint,
    run_blocks,
    run_digits,
    run_independent,
    run_live,
    run_madelon,
    run_noise,
    run_profile,
    run_trade,
    run_tuning,
)
from sparsebook.experiments.quick_selection.scales import Config, config
from sparsebook.experiments.quick_selection.verdicts import check_claims, claim_samples, sabotage_samples

__all__ = [
    "Config",
    "accuracy_table",
    "agreement",
    "answers",
    "check_claims",
    "claim_samples",
    "config",
    "counted_energy",
    "draw_energy",
    "draw_madelon",
    "draw_maps",
    "draw_profile",
    "draw_reasons",
    "draw_scale",
    "draw_sweep",
    "draw_trade",
    "fingerprint",
    "record",
    "run_blocks",
    "run_counted",
    "run_digits",
    "run_independent",
    "run_live",
    "run_madelon",
    "run_memory",
    "run_noise",
    "run_pair",
    "run_profile",
    "run_speed",
    "run_trade",
    "run_tuning",
    "sabotage_samples",
    "step_share",
    "tables",
    "tuning_table",
    "verdict_table",
]
