"""Experiments of the chapter on Group Bias Adaptation.

>>> config = Config.at("smoke")                              # doctest: +SKIP
>>> tuning = run_tuning(config)                              # doctest: +SKIP
>>> draw_world(run_world(config, tuning), config)            # doctest: +SKIP

`Config` says what a scale does, `run_*` return tidy tables, `draw_*` turn them into figures,
`claim_samples` reads the claims' samples off them. `python -m sparsebook.experiments.group_bias_adaptation`
records the tables of scale `full` with the book.
"""

from sparsebook.experiments.group_bias_adaptation.figures import (
    draw_consistency,
    draw_curves,
    draw_frontier,
    draw_resonance,
    draw_trace,
    draw_width,
    draw_world,
)
from sparsebook.experiments.group_bias_adaptation.runs import (
    fingerprint,
    run_clamps,
    run_curves,
    run_live,
    run_real,
    run_real_tuning,
    run_resonance,
    run_tuning,
    run_width,
    run_world,
)
from sparsebook.experiments.group_bias_adaptation.scales import Config, config
from sparsebook.experiments.group_bias_adaptation.verdicts import (
    agreement,
    answers,
    check_claims,
    claim_samples,
    real_table,
    record,
    sabotage_samples,
    tables,
    tuning_table,
    world_table,
)

__all__ = [
    "Config",
    "agreement",
    "answers",
    "check_claims",
    "claim_samples",
    "config",
    "draw_consistency",
    "draw_curves",
    "draw_frontier",
    "draw_resonance",
    "draw_trace",
    "draw_width",
    "draw_world",
    "fingerprint",
    "real_table",
    "record",
    "run_clamps",
    "run_curves",
    "run_live",
    "run_real",
    "run_real_tuning",
    "run_resonance",
    "run_tuning",
    "run_width",
    "run_world",
    "sabotage_samples",
    "tables",
    "tuning_table",
    "world_table",
]
