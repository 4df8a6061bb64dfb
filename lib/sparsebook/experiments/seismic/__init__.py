"""Experiments of the Seismic chapter.

>>> config = Config.at("smoke")                              # doctest: +SKIP
>>> table = run_front(config)                                # doctest: +SKIP
>>> draw_front(table)                                        # doctest: +SKIP

`Config` says what a scale does, `run_*` return tidy tables, `draw_*` turn them into figures,
`claim_samples` reads the claims' samples off them. `python -m sparsebook.experiments.seismic` records the
tables of scale `full` with the book.
"""

from sparsebook.experiments.seismic.figures import (
    draw_ablation,
    draw_concentration,
    draw_errors,
    draw_front_of_methods,
    draw_growth,
    draw_limits,
    draw_spread,
    draw_sweeps,
)
from sparsebook.experiments.seismic.runs import (
    fingerprint,
    run_ablation,
    run_build,
    run_concentration,
    run_errors,
    run_front,
    run_growth,
    run_limits,
    run_live,
    run_share,
    run_spread,
    run_sweeps,
)
from sparsebook.experiments.seismic.scales import Config, Recipe, config
from sparsebook.experiments.seismic.verdicts import (
    agreement,
    answers,
    check_claims,
    claim_samples,
    growth_summary,
    main_table,
    peer_table,
    record,
    sabotage_samples,
    settings_table,
    tables,
)

__all__ = [
    "Config",
    "Recipe",
    "agreement",
    "answers",
    "check_claims",
    "claim_samples",
    "config",
    "draw_ablation",
    "draw_concentration",
    "draw_errors",
    "draw_front_of_methods",
    "draw_growth",
    "draw_limits",
    "draw_spread",
    "draw_sweeps",
    "fingerprint",
    "growth_summary",
    "main_table",
    "peer_table",
    "record",
    "run_ablation",
    "run_build",
    "run_concentration",
    "run_errors",
    "run_front",
    "run_growth",
    "run_limits",
    "run_live",
    "run_share",
    "run_spread",
    "run_sweeps",
    "sabotage_samples",
    "settings_table",
    "tables",
]
