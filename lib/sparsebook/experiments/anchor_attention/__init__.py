"""Experiments of the AnchorAttention chapter.

>>> config = Config.at("smoke")                              # doctest: +SKIP
>>> found = tables(config)                                   # doctest: +SKIP
>>> draw_recall(found["recall"])                             # doctest: +SKIP

`Config` says what a scale does, `run_*` return tidy tables, `draw_*` turn them into figures,
`claim_samples` reads the claims' samples off them. `python -m sparsebook.experiments.anchor_attention`
records the tables of scale `full` with the book.
"""

from sparsebook.experiments.anchor_attention.figures import (
    draw_ablation,
    draw_granularity,
    draw_growth,
    draw_likelihood,
    draw_maxima,
    draw_pattern,
    draw_pooling,
    draw_recall,
    draw_released,
    draw_speed,
    draw_tasks,
)
from sparsebook.experiments.anchor_attention.recording import record, tables
from sparsebook.experiments.anchor_attention.runs import (
    fingerprint,
    run_likelihood,
    run_live,
    run_pooling,
    run_released,
    run_texts,
)
from sparsebook.experiments.anchor_attention.scales import Config, config
from sparsebook.experiments.anchor_attention.speed import run_speed
from sparsebook.experiments.anchor_attention.tasks import run_tasks
from sparsebook.experiments.anchor_attention.verdicts import (
    ablation_table,
    agreement,
    answers,
    check_claims,
    claim_samples,
    density_table,
    sabotage_samples,
    speed_table,
)

__all__ = [
    "Config",
    "ablation_table",
    "agreement",
    "answers",
    "check_claims",
    "claim_samples",
    "config",
    "density_table",
    "draw_ablation",
    "draw_granularity",
    "draw_growth",
    "draw_likelihood",
    "draw_maxima",
    "draw_pattern",
    "draw_pooling",
    "draw_recall",
    "draw_released",
    "draw_speed",
    "draw_tasks",
    "fingerprint",
    "record",
    "run_likelihood",
    "run_live",
    "run_pooling",
    "run_released",
    "run_speed",
    "run_tasks",
    "run_texts",
    "sabotage_samples",
    "speed_table",
    "tables",
]
