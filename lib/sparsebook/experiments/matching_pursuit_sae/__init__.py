"""Experiments of the chapter on autoencoders that encode by matching pursuit.

>>> config = Config.at("smoke")                              # doctest: +SKIP
>>> found = tables(config)                                   # doctest: +SKIP
>>> draw_curves(found["toy"])                                # doctest: +SKIP

`Config` says what a scale does, `run_*` return tidy tables, `draw_*` turn them into figures,
`claim_samples` reads the claims' samples off them. `python -m sparsebook.experiments.matching_pursuit_sae`
records the tables of scale `full` with the book.
"""

from sparsebook.experiments.matching_pursuit_sae.figures import (
    draw_absorption,
    draw_coherence,
    draw_curves,
    draw_explained,
    draw_fixed,
    draw_matrices,
    draw_modalities,
    draw_norms,
    draw_superposed,
    draw_sweep,
)
from sparsebook.experiments.matching_pursuit_sae.prose import (
    absorption_table,
    agreement,
    answers,
    toy_table,
    tuning_table,
)
from sparsebook.experiments.matching_pursuit_sae.real import run_real, run_tuning
from sparsebook.experiments.matching_pursuit_sae.recording import fingerprint, record, tables
from sparsebook.experiments.matching_pursuit_sae.scales import Cell, Config, config
from sparsebook.experiments.matching_pursuit_sae.toy import (
    run_absorption,
    run_fixed,
    run_live,
    run_norms,
    run_toy,
)
from sparsebook.experiments.matching_pursuit_sae.verdicts import (
    check_claims,
    claim_samples,
    sabotage_samples,
)
from sparsebook.experiments.matching_pursuit_sae.worlds import (
    run_modalities,
    run_properties,
    run_superposed,
)

__all__ = [
    "Cell",
    "Config",
    "absorption_table",
    "agreement",
    "answers",
    "check_claims",
    "claim_samples",
    "config",
    "draw_absorption",
    "draw_coherence",
    "draw_curves",
    "draw_explained",
    "draw_fixed",
    "draw_matrices",
    "draw_modalities",
    "draw_norms",
    "draw_superposed",
    "draw_sweep",
    "fingerprint",
    "record",
    "run_absorption",
    "run_fixed",
    "run_live",
    "run_modalities",
    "run_norms",
    "run_properties",
    "run_real",
    "run_superposed",
    "run_toy",
    "run_tuning",
    "sabotage_samples",
    "tables",
    "toy_table",
    "tuning_table",
]
