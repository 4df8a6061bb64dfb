"""Experiments of the chapter on Mutual Choice and Feature Choice.

>>> config = Config.at("smoke")                              # doctest: +SKIP
>>> found = tables(config)                                   # doctest: +SKIP
>>> draw_error(found, config)                                # doctest: +SKIP

`Config` says what a scale does, `run_*` return tidy tables, `draw_*` turn them into figures, `claim_samples`
reads the claims' samples off them. `python -m sparsebook.experiments.mutual_choice_sae` records the tables of
scale `full` with the book.
"""

from sparsebook.experiments.mutual_choice_sae.figures import (
    draw_adaptive,
    draw_allocation,
    draw_dead,
    draw_error,
    draw_found,
    draw_zipf,
)
from sparsebook.experiments.mutual_choice_sae.recording import record, tables
from sparsebook.experiments.mutual_choice_sae.runs import fingerprint, run_arms, run_exact, run_live
from sparsebook.experiments.mutual_choice_sae.scales import Config, config
from sparsebook.experiments.mutual_choice_sae.verdicts import (
    agreement,
    answers,
    check_claims,
    claim_samples,
    rules_table,
    sabotage_samples,
    summary,
)

__all__ = [
    "Config",
    "agreement",
    "answers",
    "check_claims",
    "claim_samples",
    "config",
    "draw_adaptive",
    "draw_allocation",
    "draw_dead",
    "draw_error",
    "draw_found",
    "draw_zipf",
    "fingerprint",
    "record",
    "rules_table",
    "run_arms",
    "run_exact",
    "run_live",
    "sabotage_samples",
    "summary",
    "tables",
]
