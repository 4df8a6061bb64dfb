"""Experiments of the chapter on random pruning.

>>> config = Config.at("smoke")                                     # doctest: +SKIP
>>> tuning = run_tuning(config)                                     # doctest: +SKIP
>>> draw_digits(run_trials(config, tuning, "digits"), config)       # doctest: +SKIP

`Config` says what a scale does, `run_*` return tidy tables, `draw_*` turn them into figures,
`claim_samples` reads the claims' samples off them. `python -m sparsebook.experiments.random_pruning` records
the tables of scale `full` with the book.
"""

from sparsebook.experiments.random_pruning.figures import (
    draw_digits,
    draw_norms,
    draw_ratios,
    draw_sizes,
    draw_timing,
    draw_trust,
)
from sparsebook.experiments.random_pruning.runs import (
    fingerprint,
    run_live,
    run_trials,
    run_tuning,
    trials,
)
from sparsebook.experiments.random_pruning.scales import Config, config
from sparsebook.experiments.random_pruning.timing import run_timing
from sparsebook.experiments.random_pruning.verdicts import (
    agreement,
    answers,
    check_claims,
    claim_samples,
    density_table,
    ratio_table,
    record,
    sabotage_samples,
    start_table,
    tables,
    trust_table,
    tuning_table,
)

__all__ = [
    "Config",
    "agreement",
    "answers",
    "check_claims",
    "claim_samples",
    "config",
    "density_table",
    "draw_digits",
    "draw_norms",
    "draw_ratios",
    "draw_sizes",
    "draw_timing",
    "draw_trust",
    "fingerprint",
    "ratio_table",
    "record",
    "run_live",
    "run_timing",
    "run_trials",
    "run_tuning",
    "sabotage_samples",
    "start_table",
    "tables",
    "trials",
    "trust_table",
    "tuning_table",
]
