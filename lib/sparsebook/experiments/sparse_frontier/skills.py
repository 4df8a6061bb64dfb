"""Three skills learned by small transformers, under every method: scores, densities and costs.

Answers are read with the right answer's beginning given (teacher forcing), so that each token asks one thing:
one value, one hop, one more common word.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sparsebook.attention.costs import ModelSizes, Phase, attention_cost
from sparsebook.attention.sparse_frontier import (
    DECODE,
    PREFILL,
    EvictAdaSnapKV,
    attend_decode,
    attend_prefill,
    dense_pattern,
    fit_knob,
    random_decode_mask,
    random_prefill_mask,
)
from sparsebook.claims import Samples
from sparsebook.data.sequence_tasks import TASKS, TaskBatch
from sparsebook.experiments.sparse_frontier.runs import Rows, Stages, run, tidy
from sparsebook.experiments.sparse_frontier.scales import SKILL_WINDOWS, Config
from sparsebook.plotting import pareto_front

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]

HARD, EASY = "chains", "retrieval"
SIX = (
    *(("prefill", name) for name in ("vertical_slash", "flexprefill", "block_sparse")),
    *(("decode", name) for name in ("snapkv", "ada_snapkv", "quest")),
)
REACHED = 0.95
"""Share of the best dense score that a configuration has to keep (C1a, C1b)."""
PHASES: tuple[Phase, ...] = ("prefill", "decode")
BATCH = 64
"""Inputs decoded together, for the cost of reads."""


def run_skills(config: Config, models: dict[tuple[int, int], Any] | None = None) -> pd.DataFrame:
    """Every skill, size, training run, length, method and sparsity; one stage a model.

    Parameters
    ----------
    models : (width, training run) -> model; those of `sparsebook.experiments.skills` if None
    """
    if models is None:
        from sparsebook.experiments.skills import skill_models

        models = skill_models(widths=config.widths, seeds=config.runs)
    stages: Stages = {
        f"width {width}, run {seed}": partial(_skills_of, config, model, width, seed)
        for (width, seed), model in models.items()
    }
    return run(config, stages, "skills")


def _skills_of(config: Config, model: Any, width: int, seed: int) -> pd.DataFrame:
    out: Rows = []
    for task in TASKS:
        for n_tokens in config.skill_lengths:
            cell = SkillCell(config, model, width, seed, task, n_tokens)
            out += cell.rows()
    return pd.DataFrame(out)


class SkillCell:
    """One model on one skill at one length."""

    def __init__(self, config: Config, model: Any, width: int, seed: int, task: str, n_tokens: int) -> None:
        self.config, self.model, self.seed = config, model, seed
        self.n_tokens = n_tokens
        self.knobs = {"task": task, "n_tokens": n_tokens, "width": width}
        self.task = task
        self.windows = SKILL_WINDOWS.scaled(n_tokens / 512, units=True)
        # Every model meets the same questions; what sets the knobs is drawn apart.
        self.batch = TASKS[task](config.skill_samples, n_tokens, _generator(n_tokens, 1))
        self.apart = TASKS[task](4, n_tokens, _generator(n_tokens, 2))
        self.split = self.batch.answer_start - 1
        self.largest = width == max(config.widths)

    def rows(self) -> Rows:
        """Dense, every method at every sparsity, random masks."""
        out = self._measure("dense", "dense", 0.0, None, 1.0)
        heads = self._heads()
        for sparsity in self.config.skill_sparsities:
            for cls in PREFILL:
                knob = fit_knob(cls(self.windows), heads, sparsity)
                if knob is not None:
                    method = cls(self.windows)
                    out += self._prefill(cls.name, sparsity, partial(_pattern, method, knob))
            random = partial(_random, 1 - sparsity, _generator(self.seed, 3))
            out += self._prefill("random", sparsity, random)
            for cls in DECODE:
                out += self._decode(cls.name, sparsity, cls(self.windows).keep)
            out += self._decode("random", sparsity, partial(_random_keep, _generator(self.seed, 4)))
        if self.largest and self.n_tokens == max(self.config.skill_lengths):
            bare = EvictAdaSnapKV(replace(self.windows, ada_floor=0.0))
            out += self._decode("ada_snapkv_no_floor", 0.8, bare.keep)
        return out

    def _heads(self) -> list[tuple[Tensor, Tensor]]:
        """Queries and keys of the prompts that set the knobs."""
        seen: list[tuple[Tensor, Tensor]] = []

        def look(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
            seen.append((q[:, :, : self.split].contiguous(), k[:, :, : self.split].contiguous()))
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        with torch.no_grad():
            self.model(self.apart.tokens[:, :-1], attention=look)
        return seen

    def _prefill(self, name: str, sparsity: float, pattern: Callable[..., Any]) -> Rows:
        shares: list[float] = []
        return self._measure(
            name, "prefill", sparsity, partial(_sparse_prompt, self.split, pattern, shares), shares
        )

    def _decode(self, name: str, sparsity: float, keep: Callable[..., Tensor]) -> Rows:
        shares: list[float] = []
        attend = partial(_sparse_answer, self.split, keep, sparsity, shares)
        return self._measure(name, "decode", sparsity, attend, shares)

    def _measure(
        self, name: str, phase: str, sparsity: float, attend: Attend | None, density: list[float] | float
    ) -> Rows:
        with torch.no_grad():
            logits = self.model(self.batch.tokens[:, :-1], attention=attend)[:, self.split :]
        right = score_given(self.task, logits, self.batch)
        share = float(np.mean(density))
        half = len(right) // 2
        metrics = {
            "score": (right.mean(), "score"),
            "score_first": (right[:half].mean(), "score"),
            "score_second": (right[half:].mean(), "score"),
            "density": (share, "fraction"),
        }
        sizes = sizes_of(self.model)
        for kind in PHASES:
            own = share if phase == kind else 1.0
            cost = attention_cost(sizes, self.n_tokens, density=min(own, 1.0), batch=BATCH, phase=kind)
            metrics[f"{kind}_cost"] = (cost.total, "FLOPs" if kind == "prefill" else "elements")
        return tidy("skills", name, self.seed, metrics, phase=phase, sparsity=sparsity, **self.knobs)


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(
        sum(1_000_003**i * n for i, n in enumerate(numbers, start=1)) % 2**63
    )


def sizes_of(model: Any) -> ModelSizes:
    """Sizes of a `SmallTransformer` as the cost model counts them; its MLP has two matrices, not three."""
    block = model.blocks[0]
    vocabulary, width = model.embedding.shape
    return ModelSizes(
        layers=len(model.blocks),
        hidden=width,
        heads=block.heads,
        kv_heads=block.kv_heads,
        mlp=max(1, round(block.up.weight.shape[0] * 2 / 3)),
        vocabulary=vocabulary,
        head_width=block.head_dim,
    )


def score_given(task: str, logits: Tensor, batch: TaskBatch) -> Tensor:
    """Share of right tokens of each answer, every token read with the right ones before it.

    Where the order is free (counting) a token is right if it is a common word not named before.
    """
    predicted = logits.argmax(-1)
    if task != "counting":
        return (predicted == batch.answer).float().mean(1)
    n = batch.answer.shape[1]
    open_still = torch.ones(n, n, dtype=torch.bool).triu()  # the words from this one on
    hits = (predicted[:, :, None] == batch.answer[:, None, :]) & open_still
    return hits.any(-1).float().mean(1)


def _sparse_prompt(
    split: int, pattern: Callable[..., Any], shares: list[float], q: Tensor, k: Tensor, v: Tensor, layer: int
) -> Tensor:
    """The prompt by a pattern, the answer densely."""
    before_q, before_k, before_v = (x[:, :, :split].contiguous() for x in (q, k, v))
    found = pattern(before_q, before_k)
    pairs = split * (split + 1) / 2
    mask = isinstance(found, Tensor)
    shares.append(
        float(found.sum((-2, -1)).double().mean()) / pairs
        if mask
        else found.density(split, split, causal=True)
    )
    prompt = attend_prefill(before_q, before_k, before_v, found)[0]
    new = q[:, :, split:]
    everything = torch.ones(*new.shape[:3], split, dtype=torch.bool)
    return torch.cat([prompt, attend_decode(new, k, v, everything)[0]], 2)


def _sparse_answer(
    split: int,
    keep: Callable[..., Tensor],
    sparsity: float,
    shares: list[float],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer: int,
) -> Tensor:
    """The prompt densely, the answer over what is kept of it; its last token is read sparsely as well."""
    before_q, before_k, before_v = (x[:, :, :split].contiguous() for x in (q, k, v))
    prompt = attend_prefill(before_q, before_k, before_v, dense_pattern(split))[0]
    new = q[:, :, split:]
    # What is kept is chosen with the whole prompt, its last token included.
    kept = keep(q[:, :, : split + 1], k[:, :, : split + 1], new, sparsity=sparsity)[..., :split]
    shares.append(float(kept.float().mean()))
    return torch.cat([prompt, attend_decode(new, k, v, kept)[0]], 2)


def _pattern(method: Any, knob: dict[str, Any], q: Tensor, k: Tensor) -> Any:
    return method.pattern(q, k, **knob)


def _random(density: float, generator: torch.Generator, q: Tensor, k: Tensor) -> Tensor:
    return random_prefill_mask(q, density, generator)


def _random_keep(generator: torch.Generator, q: Tensor, k: Tensor, new: Tensor, *, sparsity: float) -> Tensor:
    return random_decode_mask(new, k.shape[2], sparsity, generator)


# Samples of the claims -----------------------------------------------------------------------------------


def skill_samples(table: pd.DataFrame, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """Samples of the claims about skills, one value a training run."""
    scores = Scores(table, sabotaged)
    usual = [s for s in (0.5, 0.67, 0.8, 0.9) if s in set(table.sparsity)]
    low = [s for s in (0.5, 0.67) if s in usual]
    longest = int(table.n_tokens.max())
    gain = partial(scores.gain, sparsities=usual)
    samples = {
        "C1a": Samples(scores.least_cost("prefill"), unit="ratio"),
        "C1b": Samples(scores.least_cost("decode"), unit="ratio"),
        "C1c": Samples(scores.larger_sparse(), unit="score"),
        "C2a": Samples(gain("prefill", "vertical_slash", "block_sparse", [EASY]), unit="score"),
        "C2b": Samples(gain("prefill", "block_sparse", "vertical_slash", [HARD]), unit="score"),
        "C2c": Samples(gain("prefill", "block_sparse", "vertical_slash", ["counting"]), unit="score"),
        "C3a": Samples(gain("decode", "quest", "ada_snapkv", [HARD, "counting"]), unit="score"),
        "C3b": Samples(gain("decode", "ada_snapkv", "snapkv", list(TASKS)), unit="score"),
        "C3c": Samples(gain("decode", "ada_snapkv", "quest", [EASY]), unit="score"),
        "C4a": Samples(
            scores.gain("prefill", "vertical_slash", "flexprefill", list(TASKS), sparsities=low), unit="score"
        ),
        "C4b": Samples(gain("decode", "ada_snapkv", "snapkv", [EASY]), unit="score"),
        "C5a": Samples(scores.relative_loss(HARD, 0.8) - scores.relative_loss(EASY, 0.8), unit="fraction"),
        "C5b": Samples(
            scores.relative_loss("counting", 0.8) - scores.relative_loss(EASY, 0.8), unit="fraction"
        ),
        "C6a": Samples(scores.loss_by_length(0.9), unit="fraction"),
        "C9a": Samples(
            scores.absolute_loss(EASY, 0.9, min) - scores.absolute_loss(EASY, 0.9, max), unit="score"
        ),
        "C9b": Samples(
            scores.absolute_loss(HARD, 0.9, max) - scores.absolute_loss(HARD, 0.9, min), unit="score"
        ),
    }
    if (table.method == "ada_snapkv_no_floor").any():
        values = scores.gain(
            "decode", "ada_snapkv", "ada_snapkv_no_floor", list(TASKS), sparsities=[0.8], lengths=[longest]
        )
        samples["C10e"] = Samples(values, unit="score")
    return samples


class Scores:
    """The table of skills, read one training run at a time.

    With `sabotaged`, the method that a comparison favours (its first) is replaced by random masks.
    """

    def __init__(self, table: pd.DataFrame, sabotaged: bool = False) -> None:
        self.table, self.sabotaged = table, sabotaged
        self.score = table[table.metric == "score"]
        self.widest = int(table.width.max())
        self.runs = sorted(table[table.width == self.widest].seed.unique())

    def mean(self, phase: str, method: str, width: Any = None, **where: Sequence[Any]) -> pd.Series:
        """Mean score a training run over everything that `where` leaves."""
        own = self.score[(self.score.phase == phase) & (self.score.method == method)]
        own = own[own.width == (self.widest if width is None else width)]
        for column, values in where.items():
            own = own[own[column].isin(list(values))]
        return own.groupby("seed")["value"].mean()

    def gain(
        self,
        phase: str,
        favoured: str,
        rival: str,
        tasks: Sequence[str],
        *,
        sparsities: Sequence[float],
        lengths: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Score of the favoured method minus its rival's; only where both could be had."""
        own = self.score[(self.score.phase == phase) & (self.score.width == self.widest)]
        own = own[own.task.isin(tasks) & own.sparsity.isin(sparsities)]
        own = own if lengths is None else own[own.n_tokens.isin(lengths)]
        cells = ["seed", "task", "n_tokens", "sparsity"]
        wide = own.pivot_table(index=cells, columns="method", values="value")
        both = wide[["random" if self.sabotaged else favoured, rival]].dropna()
        return (both.iloc[:, 0] - both.iloc[:, 1]).groupby("seed").mean().to_numpy()

    def six(self) -> tuple[tuple[str, str], ...]:
        """(phase, method) of the paper's methods, or of random masks."""
        return (("prefill", "random"), ("decode", "random")) if self.sabotaged else SIX

    def relative_loss(self, task: str, sparsity: float, **where: Sequence[Any]) -> np.ndarray:
        """1 - sparse / dense, mean over the six methods, largest model, one value a run."""
        dense = self.mean("dense", "dense", task=[task], **where)
        sparse = [self.mean(p, m, task=[task], sparsity=[sparsity], **where) for p, m in self.six()]
        found = [part.reindex(self.runs) for part in sparse if len(part)]
        return (1 - np.mean(found, axis=0) / dense.reindex(self.runs)).to_numpy()

    def loss_by_length(self, sparsity: float) -> np.ndarray:
        """Relative loss, mean over the skills, per length: [runs, lengths]."""
        lengths = sorted(self.table.n_tokens.unique())
        columns = [
            np.mean([self.relative_loss(task, sparsity, n_tokens=[n]) for task in TASKS], axis=0)
            for n in lengths
        ]
        return np.stack(columns, 1)

    def absolute_loss(self, task: str, sparsity: float, which: Callable[..., int]) -> np.ndarray:
        """Dense minus sparse score of the smallest or largest model, mean over the six methods.

        Sabotaged, random masks stand for the methods on the side that the claim expects to lose less.
        """
        width = int(which(self.table.width.unique()))
        favoured = max if task == EASY else min
        chosen = self.six() if which is favoured else SIX
        dense = self.mean("dense", "dense", width, task=[task]).reindex(self.runs)
        sparse = [self.mean(p, m, width, task=[task], sparsity=[sparsity]) for p, m in chosen]
        found = [part.reindex(self.runs) for part in sparse if len(part)]
        return (dense - np.mean(found, axis=0)).to_numpy()

    def configurations(self, phase: str) -> pd.DataFrame:
        """Score and cost of (run, width, method, sparsity) at the longest inputs, mean over the skills."""
        own = self.table[self.table.n_tokens == self.table.n_tokens.max()]
        own = own[own.phase.isin(["dense", phase]) & (own.method != "ada_snapkv_no_floor")]
        cells = ["seed", "width", "method", "sparsity"]
        wide = own.pivot_table(index=cells, columns="metric", values="value").reset_index()
        wide["cost"] = wide[f"{phase}_cost"]
        paper = [name for p, name in SIX if p == phase]
        chosen = ["random"] if self.sabotaged else paper
        return wide[wide.method.isin(["dense", *chosen])]

    def least_cost(self, phase: str) -> np.ndarray:
        """Cost of the cheapest configuration that keeps the quality over that of the cheapest dense one."""
        out = []
        for _, own in self.configurations(phase).groupby("seed"):
            dense = own[own.method == "dense"]
            wanted = REACHED * dense.loc[dense.width.idxmax(), "score"]
            cheapest = dense[dense.score >= wanted].cost.min()
            out.append(own[own.score >= wanted].cost.min() / cheapest)
        return np.array(out)

    def larger_sparse(self) -> np.ndarray:
        """Largest model, sparse, minus the dense one of middle size that reads as much."""
        widths = sorted(self.table.width.unique())
        middle = widths[len(widths) // 2 - (len(widths) == 2)]
        out = []
        for _, own in self.configurations("decode").groupby("seed"):
            rival = own[(own.method == "dense") & (own.width == middle)]
            fits = own[(own.width == widths[-1]) & (own.method != "dense")]
            fits = fits[fits.cost <= rival.cost.max()]
            if not len(rival):
                continue
            if not len(fits):
                out.append(-1.0)
                continue
            least = fits[fits.sparsity == fits.sparsity.min()]
            best = least.loc[least.score_first.idxmax()]
            out.append(float(best.score_second - rival.score_second.iloc[0]))
        return np.array(out)


def front_of(points: pd.DataFrame) -> pd.DataFrame:
    """The configurations that no cheaper one reaches in score."""
    return points.iloc[pareto_front(points.cost.tolist(), points.score.tolist())]


__all__ = ["Scores", "SkillCell", "front_of", "run_skills", "score_given", "sizes_of", "skill_samples"]
