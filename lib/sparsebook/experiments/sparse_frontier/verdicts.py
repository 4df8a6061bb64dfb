"""From tables to the samples that the claims ask for; and the same samples from a sabotaged twin."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from sparsebook.claims import Ledger, Samples
from sparsebook.data.sequence_tasks import TASKS
from sparsebook.experiments.sparse_frontier import runs
from sparsebook.experiments.sparse_frontier.scales import Config
from sparsebook.experiments.sparse_frontier.skills import (
    FIFTH,
    REACHED,
    SIX,
    TENTH,
    Scores,
    run_skills,
    skill_samples,
)
from sparsebook.experiments.sparse_frontier.stories import run_stories, story_samples

FINGERPRINT = "sparsebook.experiments.sparse_frontier.runs:fingerprint"
FINGERPRINTS = {"skills": "sparsebook.experiments.sparse_frontier.skills:fingerprint"}
TEXT_EXPERIMENTS: dict[str, Callable[[Config, pd.DataFrame], pd.DataFrame]] = {
    "likelihood": runs.run_likelihood,
    "recall": runs.run_recall,
    "ablation": lambda config, knobs: runs.run_ablation(config),
}
FRESH, SKILLS, STORIES = "fresh", "skills", "stories"
"""What is measured on texts with the knobs of the table ``knobs``."""

RECORDED = ("knobs", *TEXT_EXPERIMENTS, FRESH, STORIES, SKILLS)
PREFILL_METHODS = ("vertical_slash", "flexprefill", "block_sparse")
DECODE_METHODS = ("snapkv", "ada_snapkv", "quest")
HIGH = runs.HIGH
ADAPTIVE = (0.8,)
"""Where FlexPrefill's counts adapt on text."""


def tables(config: Config) -> dict[str, pd.DataFrame]:
    """Every table of the chapter: recorded ones at scale `book`, measured ones otherwise.

    With a model of the reader's own nothing recorded about text applies. The skills need fifteen trained
    models and stories a language model: at `smoke` these tables are the recorded ones.
    """
    from sparsebook.recorded import load

    found = {"costs": runs.run_costs(config), "index_costs": runs.run_index_costs(config)}
    if config.scale == "book" and config.model is None:
        return found | {name: load("sparse_frontier", name).table for name in RECORDED}
    found["knobs"] = runs.run_knobs(config)
    for name, experiment in TEXT_EXPERIMENTS.items():
        found[name] = experiment(config, found["knobs"])
    if config.fresh:
        found[FRESH] = runs.run_fresh(config, found["knobs"])
    own = config.scale in ("full", "paper") or config.model is not None
    found[STORIES] = run_stories(config) if own else load("sparse_frontier", STORIES).table
    found[SKILLS] = run_skills(config) if config.scale == "full" else load("sparse_frontier", SKILLS).table
    return found


def record(config: Config, only: Sequence[str] = RECORDED) -> None:
    """Run what is asked for at scale `full` and keep the tables with the book (resumable, stage by stage).

    All experiments on text go through one text before the next is read, which is read once.
    """
    from sparsebook.recorded import save

    knobs = runs.run_knobs(config) if set(only) - {SKILLS, STORIES} else None
    for text in config.texts:
        for name in set(only) & set(TEXT_EXPERIMENTS):
            TEXT_EXPERIMENTS[name](replace(config, texts=(text,)), knobs)
    for name in only:
        if name == SKILLS:
            table, seeds = run_skills(config), config.runs
        elif name == "knobs":
            table, seeds = knobs, config.calibration
        elif name == STORIES:
            table, seeds = run_stories(config), config.stories
        elif name == FRESH:
            table, seeds = runs.run_fresh(config, knobs), config.fresh
        else:
            table, seeds = TEXT_EXPERIMENTS[name](config, knobs), config.texts
        save(
            "sparse_frontier", name, table, parameters=config.record(), seeds=seeds,
            fingerprint_function=FINGERPRINTS.get(name, FINGERPRINT), rtol=1e-3,
        )  # fmt: skip


def deciding(found: dict[str, pd.DataFrame], name: str) -> pd.DataFrame:
    """A table of texts, that of the fresh ones where there are any: the first gave no verdict."""
    if FRESH not in found:
        return found[name]
    fresh = found[FRESH]
    return fresh[fresh.experiment == name]


def losses(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Loss added by every method at the longest inputs, on the texts that decide."""
    first, fresh = found["likelihood"], deciding(found, "likelihood")
    parts = []
    for phase, table in (("prefill", first), ("decode", fresh)):
        own = table[table.n_tokens == table.n_tokens.max()]
        dense = own[own.method == "dense"].set_index("seed")["value"]
        own = own[own.phase == phase]
        parts.append(own.assign(value=own.value - own.seed.map(dense), metric="loss added"))
    return pd.concat(parts, ignore_index=True)


# Samples -------------------------------------------------------------------------------------------------


def claim_samples(found: dict[str, pd.DataFrame], *, sabotaged: bool = False) -> dict[str, Samples]:
    """Samples of every claim that this run could test.

    With `sabotaged`, the method that a claim favours is replaced by random masks of its density.
    """
    samples = cost_samples(found["costs"])
    samples |= likelihood_samples(found["likelihood"], sabotaged)
    samples |= decode_samples(deciding(found, "likelihood"), sabotaged)
    samples |= recall_samples(deciding(found, "recall"), sabotaged)
    samples |= ablation_samples(found["ablation"], sabotaged)
    samples |= pool_samples(deciding(found, "ablation"), sabotaged)
    # C2c asks for what these models do not do: their counting bears any mask in prefilling.
    skills = skill_samples(found[SKILLS], sabotaged)
    samples |= {name: value for name, value in skills.items() if name != "C2c"}
    return samples | story_samples(found[STORIES], sabotaged)


def cost_samples(costs: pd.DataFrame) -> dict[str, Samples]:
    """Distances of the formulas from the printed numbers; the means are over the four models."""
    prefill = costs[costs.phase == "prefill"]
    mean = prefill.pivot_table(index="n_tokens", columns="metric", values="value")
    share = [abs(100 * mean.share[n] - printed) for n, printed in runs.SHARES.items()]
    gain = [abs(mean.gain[n] / printed - 1) for n, printed in runs.GAINS.items()]
    shrunk = [abs(1 / (1 - 0.8 * mean.share[n]) / printed - 1) for n, printed in runs.GAINS.items()]
    cache = {
        weights: max(
            abs(100 * decode_mean(costs, "share", batch, n, weights) - printed)
            for batch, ends in runs.CACHE_SHARES.items()
            for n, printed in zip(CACHE_ENDS, ends, strict=True)
        )
        for weights in ("printed", "grouped")
    }
    ends = zip(CACHE_ENDS, runs.CACHE_GAINS, strict=True)
    fewer = [abs(decode_mean(costs, "gain", 64, n, "grouped") / printed - 1) for n, printed in ends]
    points = "percentage points"
    return {
        "C7a": Samples([max(share)], unit=points),
        "C7b": Samples([max(gain)], unit="fraction"),
        "C7c": Samples([max(shrunk)], unit="fraction"),
        "C8a": Samples([cache["printed"]], unit=points),
        "C8b": Samples([cache["grouped"]], unit=points),
        "C8c": Samples([max(fewer)], unit="fraction"),
    }


CACHE_ENDS = (16_384, 131_072)
"""The ends of the printed ranges of Figure 13."""


def decode_mean(costs: pd.DataFrame, metric: str, batch: int, n_tokens: int, weights: str) -> float:
    """Mean over the four models of a share or gain of a decoding step."""
    own = costs[(costs.phase == "decode") & (costs.metric == metric) & (costs.n_tokens == n_tokens)]
    return float(own[(own.batch == batch) & (own.projections == weights)]["value"].mean())


def per_text(
    table: pd.DataFrame,
    metric: str,
    method: str,
    phase: str,
    n_tokens: int,
    sparsities: Sequence[float],
) -> pd.Series:
    """One value a text: the mean over the sparsities.

    Raises
    ------
    ValueError
        If a text lacks a sparsity.
    """
    own = table[(table.metric == metric) & (table.method == method) & (table.n_tokens == n_tokens)]
    own = own[(own.phase == phase) & own.sparsity.isin(sparsities)]
    wide = own.pivot_table(index="seed", columns="sparsity", values="value")
    if wide.shape[1] < len(sparsities) or wide.isna().any(axis=None):
        raise ValueError(f"{method} ({phase}) was not measured at {n_tokens} tokens and {tuple(sparsities)}")
    return wide.mean(axis=1)


def likelihood_samples(table: pd.DataFrame, sabotaged: bool = False) -> dict[str, Samples]:
    """Losses of rivals minus those of the favoured, paired by text; positive speaks for the claim."""
    longest, adaptive = int(table.n_tokens.max()), full_length(table, ADAPTIVE)
    less = partial(_less, table, sabotaged, "prefill")
    return {
        "C4c": less("vertical_slash", "flexprefill", ADAPTIVE, adaptive),
        "C6c": Samples(loss_by_length(table, sabotaged), unit="nats"),
        "H2": less("vertical_slash", "block_sparse", HIGH, longest),
        "H3": less("vertical_slash", "streaming", HIGH, longest),
    }


def decode_samples(table: pd.DataFrame, sabotaged: bool = False) -> dict[str, Samples]:
    """The same in decoding."""
    longest, less = int(table.n_tokens.max()), partial(_less, table, sabotaged, "decode")
    return {
        "C3d": less("quest", "ada_snapkv", HIGH, longest),
        "C3e": less("ada_snapkv", "snapkv", HIGH, longest),
        "H4": less("quest", "streaming", HIGH, longest),
        "H5": less("snapkv", "tova", HIGH, longest),
    }


def _less(
    table: pd.DataFrame,
    sabotaged: bool,
    phase: str,
    favoured: str,
    rival: str,
    sparsities: Sequence[float],
    n_tokens: int,
) -> Samples:
    own = per_text(table, "loss", "random" if sabotaged else favoured, phase, n_tokens, sparsities)
    return Samples(per_text(table, "loss", rival, phase, n_tokens, sparsities) - own, unit="nats")


def full_length(table: pd.DataFrame, sparsities: Sequence[float]) -> int:
    """The longest inputs at which the adaptive method was measured at all these sparsities."""
    own = table[(table.method == "flexprefill") & table.sparsity.isin(sparsities)]
    counts = own.groupby("n_tokens").sparsity.nunique()
    return int(counts[counts == len(sparsities)].index.max())


def six(sabotaged: bool = False) -> list[tuple[str, str]]:
    """(phase, method) of the six methods, or random masks of both phases."""
    return [("prefill", "random"), ("decode", "random")] if sabotaged else list(SIX)


def loss_by_length(table: pd.DataFrame, sabotaged: bool = False) -> np.ndarray:
    """Loss added at a fifth of the budget, mean over the six methods: [texts, lengths]."""
    dense = table[table.method == "dense"].pivot_table(index="seed", columns="n_tokens", values="value")
    by_length = {n: mean_of_six(table, "loss", n, sabotaged) - dense[n] for n in map(int, dense.columns)}
    return pd.DataFrame(by_length).to_numpy()


def mean_of_six(table: pd.DataFrame, metric: str, n_tokens: int, sabotaged: bool = False) -> pd.Series:
    """Mean over the six methods at a fifth of the budget."""
    each = [per_text(table, metric, m, p, n_tokens, [FIFTH]) for p, m in six(sabotaged)]
    return pd.concat(each, axis=1).mean(axis=1)


def recall_samples(table: pd.DataFrame, sabotaged: bool = False) -> dict[str, Samples]:
    """Attention mass on text, paired by text."""
    lengths = sorted(map(int, table.n_tokens.unique()))
    missing = pd.DataFrame({n: 1 - mean_of_six(table, "recall", n, sabotaged) for n in lengths})
    favoured = "random" if sabotaged else "vertical_slash"
    lines, blocks = (
        per_text(table, "recall", m, "prefill", lengths[-1], HIGH) for m in (favoured, "block_sparse")
    )
    return {
        "C6b": Samples(missing.to_numpy(), unit="fraction"),
        "H1": Samples(lines - blocks, unit="fraction"),
    }


def ablation_samples(table: pd.DataFrame, sabotaged: bool = False) -> dict[str, Samples]:
    """Mass held by the paper's setting minus by another, paired by text."""
    gain = partial(_setting_gain, table, sabotaged)
    return {
        "C10a": gain("block", 16, [64]),
        "C10b": gain("page", 16, [64]),
        "C10c": gain("window", 1, [0.5, 2]),
        "C10f": gain("floor", 1, [0.25]),
    }


def pool_samples(table: pd.DataFrame, sabotaged: bool = False) -> dict[str, Samples]:
    """The same for SnapKV's pool."""
    return {"C10d": _setting_gain(table, sabotaged, "pool", 21, [7])}


def _setting_gain(
    table: pd.DataFrame, sabotaged: bool, knob: str, chosen: float | int, others: Sequence[float | int]
) -> Samples:
    wide = table[table.metric == "recall"].pivot_table(
        index="seed", columns=["method", "level"], values="value"
    )
    own = wide[f"random_{knob}", 0.0] if sabotaged else wide[knob, chosen]
    return Samples(own - wide[[(knob, level) for level in others]].max(axis=1), unit="fraction")


def check_claims(ledger: Ledger, found: dict[str, pd.DataFrame], config: Config) -> None:
    """Supply every claim's samples; the others are untested for the reason that they declare."""
    ledger.check_all(claim_samples(found))


def sabotage_samples(config: Config) -> dict[str, Samples]:
    """The samples when the method that a claim favours attends as many keys as before, drawn at random.

    Those of skills and stories are the recorded ones of random masks, which went through the same models.
    """
    config = replace(config, texts=tuple(range(3, 11)))  # as many as a verdict needs
    samples = claim_samples(tables(config), sabotaged=True)
    return {
        name: value for name, value in samples.items() if name not in cost_samples(runs.run_costs(config))
    }


# For the notebook ----------------------------------------------------------------------------------------


def agreement(live: pd.DataFrame, found: dict[str, pd.DataFrame], config: Config) -> pd.DataFrame:
    """Whether the live text lies where the recorded texts predict one more, method by method.

    One text is compared in as many cells as there are methods, so the error rate of a hundredth is shared.
    """
    from sparsebook.recorded import inside_prediction

    out: dict[str, dict[str, str]] = {}
    cells = live[(live.metric == "recall") & (live.method != "random")]
    for row in cells.itertuples():
        recorded = per_text(
            found["recall"], "recall", row.method, row.phase, int(row.n_tokens), [row.sparsity]
        )
        level = 1 - 0.01 / len(cells)
        inside = inside_prediction(float(row.value), recorded.to_numpy(), level)
        name = f"{LABELS[row.method]}, {row.phase}"
        out[name] = {"attention mass": "inside the prediction" if inside else "OUTSIDE the prediction"}
    return pd.DataFrame(out).T


LABELS = {
    "vertical_slash": "Vertical-Slash",
    "flexprefill": "FlexPrefill",
    "block_sparse": "Block-Sparse",
    "streaming": "StreamingLLM",
    "snapkv": "SnapKV",
    "ada_snapkv": "Ada-SnapKV",
    "quest": "Quest",
    "tova": "TOVA",
    "random": "random keys",
    "dense": "dense",
}


def knobs_table(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The paper's Table 3 for these lengths: what each budget means for each prefilling method."""
    own = found["knobs"].copy()
    own["text"] = [_symbols(knob) for knob in own.knob]
    own["method"] = own.method.map(LABELS)
    wide = own.pivot(index=["method", "n_tokens"], columns="sparsity", values="text").fillna("not to be had")
    return wide.rename_axis(columns="sparsity")


_SYMBOLS = {"n": "n", "top_k": "k", "n_local": "local", "alpha": "α", "min_budget": "m"}


def _symbols(knob: str) -> str:
    import json

    return " ".join(f"{_SYMBOLS[name]}={round(value, 2)}" for name, value in json.loads(knob).items())


def cost_table(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Print beside formula: attention's share, gains by Equation 3, gains if projections shrink too."""
    mean = found["costs"][found["costs"].phase == "prefill"]
    mean = mean.pivot_table(index="n_tokens", columns="metric", values="value")
    rows = {
        f"{n:,} tokens": {
            "share, printed": f"{runs.SHARES[n]} %",
            "share, Eq. 3": f"{100 * mean.share[n]:.1f} %",
            "gain, printed": f"{runs.GAINS[n]:.1f}",
            "gain, Eq. 3": f"{mean.gain[n]:.2f}",
            "gain, projections shrink too": f"{1 / (1 - 0.8 * mean.share[n]):.2f}",
        }
        for n in runs.SHARES
    }
    return pd.DataFrame(rows).T


def reads_table(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Print beside formula: the share of keys and values in a decoding step's reads, and the gains."""
    rows = {}
    for batch, ends in runs.CACHE_SHARES.items():
        for n, printed in zip(CACHE_ENDS, ends, strict=True):
            as_printed, grouped = (
                f"{100 * decode_mean(found['costs'], 'share', batch, n, weights):.1f} %"
                for weights in ("printed", "grouped")
            )
            gain = f"{decode_mean(found['costs'], 'gain', batch, n, 'grouped'):.2f}"
            rows[f"batch {batch}, {n:,} tokens"] = {
                "share, printed": f"{printed} %",
                "share, Eq. 8 as printed": as_printed,
                "share, grouped queries": grouped,
                "gain at a fifth": gain,
            }
    return pd.DataFrame(rows).T


def loss_table(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Loss added by each method, mean over the texts, in nats."""
    wide = losses(found).pivot_table(index=["phase", "method"], columns="sparsity", values="value")
    return _named(wide.map(lambda value: "not measured" if np.isnan(value) else signed(value)))


def answers(found: dict[str, pd.DataFrame], config: Config) -> dict[str, str]:
    """The numbers of the chapter's prose, written out; so that no number is typed into its text."""
    samples = {name: value.values for name, value in claim_samples(found).items()}
    prefill = found["costs"][found["costs"].phase == "prefill"]
    mean = prefill.pivot_table(index="n_tokens", columns="metric", values="value")
    text = {
        "gains_formula": " / ".join(f"{mean.gain[n]:.2f}" for n in runs.GAINS),
        "gains_shrunk": " / ".join(f"{1 / (1 - 0.8 * mean.share[n]):.2f}" for n in runs.GAINS),
        "shares": " / ".join(f"{100 * mean.share[n]:.1f} %" for n in runs.SHARES),
        "reads_gain": " to ".join(
            f"{decode_mean(found['costs'], 'gain', 64, n, 'grouped'):.1f}" for n in CACHE_ENDS
        ),
        "share_off_printed": f"{samples['C8a'][0]:.1f}",
        "share_off_grouped": f"{samples['C8b'][0]:.1f}",
        "n_texts": str(found["recall"].seed.nunique()),
        **_text_counts(found),
        "longest_recall": f"{found['recall'].n_tokens.max():,}",
        "shortest_recall": f"{found['recall'].n_tokens.min():,}",
        "judged": str(config.judged),
    }
    index = found["index_costs"].pivot_table(index="n_tokens", columns="metric", values="value")
    text["index_lines"] = " to ".join(
        f"{100 * v:.1f} %" for v in (index.vertical_slash.max(), index.vertical_slash.min())
    )
    text["index_pages"] = f"{100 * index.quest.mean():.1f} %"
    text |= _text_answers(found, samples) | skill_answers(found[SKILLS], samples)
    return text | _story_answers(found[STORIES], samples)


def _text_counts(found: dict[str, pd.DataFrame]) -> dict[str, str]:
    """How many articles each measure was asked of, and how long they were."""
    first, fresh = found["likelihood"], deciding(found, "likelihood")
    return {
        "n_prefill_texts": str(first.seed.nunique()),
        "n_decode_texts": str(fresh.seed.nunique()),
        "longest_loss": f"{first.n_tokens.max():,}",
    }


def _text_answers(found: dict[str, pd.DataFrame], samples: dict[str, np.ndarray]) -> dict[str, str]:
    text = {
        name: signed(samples[name].mean()) for name in ("C3d", "C3e", "C4c", "H1", "H2", "H3", "H4", "H5")
    }
    text |= {name: signed(samples[name].mean()) for name in ("C10a", "C10b", "C10c", "C10d", "C10f")}
    for name in ("C6b", "C6c"):
        text[name] = " → ".join(f"{v:.3f}" for v in samples[name].mean(axis=0))
    recall, n = found["recall"], int(found["recall"].n_tokens.max())
    for phase, methods in (
        ("prefill", (*PREFILL_METHODS, "streaming")),
        ("decode", (*DECODE_METHODS, "tova", "streaming")),
    ):
        for method in methods:
            held = per_text(recall, "recall", method, phase, n, [TENTH]).mean()
            text[f"held_{phase}_{method}"] = f"{100 * held:.0f} %"
    likelihood = found["likelihood"]
    longest = likelihood[likelihood.n_tokens == likelihood.n_tokens.max()]
    text["dense_loss"] = f"{longest[longest.method == 'dense']['value'].mean():.2f}"
    added = losses(found)
    mean = added[added.sparsity == TENTH].groupby(["phase", "method"])["value"].mean()
    for phase, method in (*six(), ("prefill", "streaming"), ("decode", "tova"), ("decode", "streaming")):
        text[f"loss_{phase}_{method}"] = signed(mean[phase, method])
    return text


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign; zero has none."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def _story_answers(table: pd.DataFrame, samples: dict[str, np.ndarray]) -> dict[str, str]:
    text = {name: signed(samples[name].mean(), 2) for name in ("C2d", "C2e", "C3f", "C5c")}
    return text | {"n_stories": str(table.seed.nunique())}


def story_table(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Loss of the right answers read densely, and what each method adds, nats a token, mean over stories."""
    own = found[STORIES][found[STORIES].metric == "loss"]
    own = own.assign(phase=own.phase.fillna("dense"))
    wide = own.pivot_table(index=["phase", "method"], columns="task", values="value")
    dense = wide.loc[("dense", "dense")]
    wide = wide - dense
    shown = _named(wide[["retrieval", "multihop", "filtering"]]).map(partial(signed, digits=2))
    shown.loc["dense"] = [f"{dense[task]:.2f}" for task in shown]
    return shown.rename(columns={"multihop": "multi-hop"})


def _named(wide: pd.DataFrame) -> pd.DataFrame:
    """Rows by (phase, method), in the order of the text and with names to be read."""
    order = [("dense", "dense"), *SIX[:3], ("prefill", "streaming"), ("prefill", "random")]
    order += [*SIX[3:], ("decode", "tova"), ("decode", "streaming"), ("decode", "random")]
    wide = wide.reindex([pair for pair in order if pair in wide.index])
    wide.index = pd.Index(["dense" if p == "dense" else f"{LABELS[m]}, {p}" for p, m in wide.index])
    return wide


def skill_answers(table: pd.DataFrame, samples: dict[str, np.ndarray]) -> dict[str, str]:
    """Numbers of the section on skills."""
    scores = Scores(table)
    names = [name for name in SKILL_CLAIMS if name in samples]
    text = {name: signed(samples[name].mean()) for name in names}
    text |= {name: f"{samples[name].mean():.2f}" for name in ("C1a", "C1b")}
    text["C6a"] = " → ".join(f"{value:.2f}" for value in samples["C6a"].mean(axis=0))
    dense = scores.table[(scores.table.metric == "score") & (scores.table.method == "dense")]
    mean = dense.groupby(["task", "width"])["value"].mean()
    for task in TASKS:
        text[f"dense_{task}"] = ", ".join(f"{mean[task, width]:.2f}" for width in scores.widths)
        lost = scores.relative(task, FIFTH, scores.complete([task], FIFTH)).to_numpy().mean()
        text[f"lost_{task}"] = f"{100 * lost:.0f} %"
        for phase, method in SIX:
            own = scores.score[(scores.score.width == scores.widest) & (scores.score.task == task)]
            own = own[(own.phase == phase) & (own.method == method) & (own.sparsity == FIFTH)]
            text[f"{task}_{method}"] = f"{own.groupby('seed')['value'].mean().mean():.2f}"
    text["reached"] = f"{100 * REACHED:.0f} %"
    text["skill_widths"] = ", ".join(map(str, scores.widths))
    text["skill_runs"] = str(table.seed.nunique())
    text["skill_lengths"] = ", ".join(map(str, sorted(table.n_tokens.unique())))
    for width in scores.widths:
        text[f"learned_{width}"] = str(len(scores.runs(list(TASKS), [width])))
    return text


SKILL_CLAIMS = (
    "C1c", "C2a", "C2b", "C2c", "C3a", "C3b", "C3c", "C4a", "C4b", "C5a", "C5b", "C9a", "C9b", "C10e",
)  # fmt: skip


def skill_table(found: dict[str, pd.DataFrame], sparsity: float = FIFTH) -> pd.DataFrame:
    """Score of every method on every skill, largest model, mean over the training runs and lengths."""
    scores = Scores(found[SKILLS])
    own = scores.score[(scores.score.width == scores.widest) & (scores.score.method != "ada_snapkv_no_floor")]
    own = own[own.sparsity.isin([0.0, sparsity])]
    runs_first = own.groupby(["phase", "method", "task", "seed"])["value"].mean()
    wide = runs_first.groupby(["phase", "method", "task"]).mean().unstack()[list(TASKS)]
    return _named(wide).round(2)


def skill_agreement(live: pd.DataFrame, found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Whether a model's score on fresh questions lies where the recorded runs predict one more."""
    from sparsebook.recorded import inside_prediction

    recorded = found[SKILLS][found[SKILLS].metric == "score"]
    cells = live[(live.metric == "score") & (live.phase != "dense")]
    out: dict[str, dict[str, str]] = {}
    keys = ["phase", "method", "task", "n_tokens", "width", "sparsity"]
    for row in cells.itertuples():
        same = np.logical_and.reduce([recorded[key] == getattr(row, key) for key in keys])
        values = recorded[same]["value"].to_numpy()
        inside = inside_prediction(float(row.value), values, 1 - 0.01 / len(cells))
        name = f"{LABELS[row.method]}, {row.phase}"
        out[name] = {"score": "inside the prediction" if inside else "OUTSIDE the prediction"}
    return pd.DataFrame(out).T
