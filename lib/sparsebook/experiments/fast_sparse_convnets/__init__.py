"""Experiments of the chapter on Fast Sparse ConvNets.

>>> config = Config.at("smoke")                              # doctest: +SKIP
>>> found = tables(config)                                   # doctest: +SKIP
>>> draw_speedups(found["times"], config)                    # doctest: +SKIP

`Config` says what a scale does, `run_*` return tidy tables, `draw_*` turn them into figures, `claim_samples`
reads the claims' samples off them. `python -m sparsebook.experiments.fast_sparse_convnets` records the tables
of scale `full` with the book.
"""

from sparsebook.experiments.fast_sparse_convnets.figures import (
    draw_blocks,
    draw_frontier,
    draw_parts,
    draw_rates,
    draw_reasons,
    draw_rivals,
    draw_speedups,
)
from sparsebook.experiments.fast_sparse_convnets.runs import (
    fingerprint,
    run_accuracy,
    run_checks,
    run_live,
    run_times,
)
from sparsebook.experiments.fast_sparse_convnets.scales import Config, config
from sparsebook.experiments.fast_sparse_convnets.verdicts import (
    agreement,
    answers,
    check_claims,
    claim_samples,
    network_table,
    record,
    sabotage_samples,
    small_table,
    tables,
)

__all__ = [
    "Config",
    "agreement",
    "answers",
    "check_claims",
    "claim_samples",
    "config",
    "draw_blocks",
    "draw_frontier",
    "draw_parts",
    "draw_rates",
    "draw_reasons",
    "draw_rivals",
    "draw_speedups",
    "fingerprint",
    "network_table",
    "record",
    "run_accuracy",
    "run_checks",
    "run_live",
    "run_times",
    "sabotage_samples",
    "small_table",
    "tables",
]
