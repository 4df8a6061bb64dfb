"""Experiments of the chapter on The Sparse Frontier.

>>> config = Config.at("smoke")                              # doctest: +SKIP
>>> found = tables(config)                                   # doctest: +SKIP
>>> draw_recall(found["recall"])                             # doctest: +SKIP

`Config` says what a scale does, `run_*` return tidy tables, `draw_*` turn them into figures, `claim_samples`
reads the claims' samples off them. `python -m sparsebook.experiments.sparse_frontier` records the tables of
scale `full` with the book.
"""

from sparsebook.experiments.sparse_frontier.figures import (
    draw_ablation,
    draw_budgets,
    draw_decode_costs,
    draw_isocost,
    draw_lengths,
    draw_likelihood,
    draw_patterns,
    draw_prefill_costs,
    draw_recall,
    draw_skills,
)
from sparsebook.experiments.sparse_frontier.runs import (
    fingerprint,
    run_ablation,
    run_costs,
    run_fresh,
    run_knobs,
    run_likelihood,
    run_live,
    run_recall,
)
from sparsebook.experiments.sparse_frontier.scales import QWEN, Config, config
from sparsebook.experiments.sparse_frontier.skills import run_live_skill, run_skills, skill_samples
from sparsebook.experiments.sparse_frontier.stories import run_stories
from sparsebook.experiments.sparse_frontier.verdicts import (
    agreement,
    answers,
    check_claims,
    claim_samples,
    cost_table,
    deciding,
    knobs_table,
    loss_table,
    losses,
    reads_table,
    record,
    sabotage_samples,
    skill_agreement,
    skill_table,
    story_table,
    tables,
)

__all__ = [
    "QWEN",
    "Config",
    "agreement",
    "answers",
    "check_claims",
    "claim_samples",
    "config",
    "cost_table",
    "deciding",
    "draw_ablation",
    "draw_budgets",
    "draw_decode_costs",
    "draw_isocost",
    "draw_lengths",
    "draw_likelihood",
    "draw_patterns",
    "draw_prefill_costs",
    "draw_recall",
    "draw_skills",
    "fingerprint",
    "knobs_table",
    "loss_table",
    "losses",
    "reads_table",
    "record",
    "run_ablation",
    "run_costs",
    "run_fresh",
    "run_knobs",
    "run_likelihood",
    "run_live",
    "run_live_skill",
    "run_recall",
    "run_skills",
    "run_stories",
    "sabotage_samples",
    "skill_agreement",
    "skill_samples",
    "skill_table",
    "story_table",
    "tables",
]
