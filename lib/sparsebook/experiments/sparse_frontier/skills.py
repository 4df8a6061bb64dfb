"""Three skills learned by small transformers, under every method: scores, densities and costs.

Answers are read with the right answer's beginning given (teacher forcing), so that each token asks one thing:
one value, one hop, one more common word.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparsebook.attention.costs import (
    ModelSizes,
    Phase,
    attention_cost,
    block_index_cost,
    quest_index_cost,
    vertical_slash_index_cost,
)
from sparsebook.attention.sparse_frontier import (
    DECODE,
    PREFILL,
    BlockSparse,
    EvictAdaSnapKV,
    Streaming,
    Windows,
    attend_decode,
    attend_prefill,
    fit_knob,
    random_decode_mask,
    random_prefill_mask,
)
from sparsebook.claims import Samples
from sparsebook.data.sequence_tasks import TASKS, TaskBatch
from sparsebook.experiments.skills import ACCEPTED, SkillReader
from sparsebook.experiments.sparse_frontier.runs import Rows, Stages, run, tidy
from sparsebook.experiments.sparse_frontier.scales import SKILL_WINDOWS, Config
from sparsebook.models.small_transformer import SmallTransformer, rotate
from sparsebook.plotting import pareto_front

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]

HARD, EASY = "chains", "retrieval"
SIX = (
    *(("prefill", name) for name in ("vertical_slash", "flexprefill", "block_sparse")),
    *(("decode", name) for name in ("snapkv", "ada_snapkv", "quest")),
)
FIFTH, TENTH = 0.8, 0.9
"""Sparsities of the claims that ask at one budget."""
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
    """One model on one skill at one length.

    Parameters
    ----------
    draw : which questions; recorded tables have those of 1, 2 is kept for setting the knobs
    """

    def __init__(
        self, config: Config, model: Any, width: int, seed: int, task: str, n_tokens: int, draw: int = 1
    ) -> None:
        self.config, self.seed = config, seed
        self.model: SmallTransformer = model.of(task) if isinstance(model, SkillReader) else model
        self.n_tokens = n_tokens
        self.knobs = {"task": task, "n_tokens": n_tokens, "width": width}
        self.task = task
        self.windows = SKILL_WINDOWS.scaled(n_tokens / 512, units=True)
        # Every model meets the same questions; what sets the knobs is drawn apart.
        self.batch = TASKS[task](config.skill_samples, n_tokens, _generator(n_tokens, draw))
        self.apart = TASKS[task](4, n_tokens, _generator(n_tokens, 2))
        self.split = self.batch.answer_start - 1
        self.largest = width == max(config.widths)
        self.read: list[tuple[Tensor, ...]] = []  # q, k, v and outputs of the dense pass, layer by layer

    def rows(self) -> Rows:
        """Dense, every method at every sparsity, random masks."""
        out = self.dense()
        heads = self._heads()
        for sparsity in self.config.skill_sparsities:
            for cls in PREFILL:
                method = cls(self.windows)
                # Blocks and windows are as many whatever the input says: one head tells their density.
                knob = fit_knob(method, heads[:1] if cls in (BlockSparse, Streaming) else heads, sparsity)
                if knob is not None:
                    out += self.prefill(cls.name, sparsity, partial(pattern_of, method, knob), knob)
            random = partial(random_pattern, 1 - sparsity, _generator(self.seed, 3))
            out += self.prefill("random", sparsity, random)
            for cls in DECODE:
                out += self.decode(cls.name, sparsity, cls(self.windows).keep)
            out += self.decode("random", sparsity, partial(_random_keep, _generator(self.seed, 4)))
        if self.largest and self.n_tokens == max(self.config.skill_lengths):
            bare = EvictAdaSnapKV(replace(self.windows, ada_floor=0.0))
            out += self.decode("ada_snapkv_no_floor", FIFTH, bare.keep)
        return out

    def dense(self) -> Rows:
        """Everything read densely; what the prompt gets is kept for decoding, which leaves it as it is."""
        self.read.clear()

        def look(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
            out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            self.read.append(tuple(x[:, :, : self.split].contiguous() for x in (q, k, v, out)))
            return out

        return self._measure("dense", "dense", 0.0, look, 1.0)

    def _heads(self) -> list[tuple[Tensor, Tensor]]:
        """Queries and keys of the prompts that set the knobs."""
        seen: list[tuple[Tensor, Tensor]] = []

        def look(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
            seen.append((q[:, :, : self.split].contiguous(), k[:, :, : self.split].contiguous()))
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        with torch.no_grad():
            self.model(self.apart.tokens[:, :-1], attention=look)
        return seen

    def prefill(
        self, name: str, sparsity: float, pattern: Callable[..., Any], knob: dict[str, Any] | None = None
    ) -> Rows:
        """The prompt by a pattern, the answer densely."""
        shares: list[float] = []
        attend = partial(sparse_prompt, self.split, pattern, shares)
        return self._measure(name, "prefill", sparsity, attend, shares, knob)

    def decode(self, name: str, sparsity: float, keep: Callable[..., Tensor]) -> Rows:
        """The prompt densely, the answer over what is kept of it; its last token is read sparsely as well."""
        if not self.read:
            self.dense()
        shares: list[float] = []
        attend = partial(_sparse_answer, self.read, self._moved(), keep, sparsity, shares)
        return self._measure(name, "decode", sparsity, attend, shares, start=self.split - 1)

    def _moved(self) -> tuple[Tensor, Tensor]:
        """The rotation that takes the first place to that of the prompt's last token but one."""
        half = self.read[0][0].shape[3] // 2
        steps = torch.arange(half, dtype=torch.float64) / half
        angles = (self.split - 1) * self.model.rotary_base**-steps
        return angles.cos().float(), angles.sin().float()

    def _measure(
        self,
        name: str,
        phase: str,
        sparsity: float,
        attend: Attend,
        density: list[float] | float,
        knob: dict[str, Any] | None = None,
        start: int = 0,
    ) -> Rows:
        """Rows of one pass; `attend` may know what comes before `start`, which is then not computed again."""
        with torch.no_grad():
            logits = self.model(self.batch.tokens[:, start:-1], attention=attend)[:, self.split - start :]
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
            own = min(share, 1.0) if phase == kind else 1.0
            found = index_cost(sizes, name, self.n_tokens, self.windows, knob or {}) if phase == kind else 0.0
            cost = attention_cost(
                sizes, self.n_tokens, density=own, batch=BATCH, phase=kind, index=BATCH * found
            )
            metrics[f"{kind}_cost"] = (cost.total, "FLOPs" if kind == "prefill" else "elements")
        return tidy("skills", name, self.seed, metrics, phase=phase, sparsity=sparsity, **self.knobs)


def run_live_skill(config: Config) -> pd.DataFrame:
    """One trained model on questions that are in no table: every method on one skill at a tenth."""
    from sparsebook.experiments.skills import skill_models

    width, seed, task, n_tokens = LIVE_CELL
    model = skill_models(widths=(width,), seeds=(seed,))[width, seed]
    few = replace(config, skill_sparsities=(TENTH,), skill_samples=LIVE_SAMPLES)
    rows = SkillCell(few, model, width, seed, task, n_tokens, draw=5).rows()
    return pd.DataFrame(rows).assign(experiment="live")


LIVE_CELL = (32, 0, EASY, 128)
"""Width, training run, skill and length that are read live, at a tenth of the budget."""
LIVE_SAMPLES = 48


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


def index_cost(
    sizes: ModelSizes, name: str, n_tokens: int, windows: Windows, knob: dict[str, Any]
) -> float | int:
    """What a method spends on choosing: FLOPs in prefilling, elements read at each step in decoding.

    Methods that evict choose once, at the end of prefilling; no later step pays for it.
    """
    if name in ("vertical_slash", "flexprefill"):
        lines = int(knob.get("n", knob.get("min_budget", 0)))
        return vertical_slash_index_cost(
            sizes, n_tokens, window=windows.observed, n_vertical=lines, n_slash=lines
        )
    if name == "block_sparse":
        return block_index_cost(sizes, n_tokens, block_size=windows.block)
    return quest_index_cost(sizes, n_tokens, page_size=windows.page) if name == "quest" else 0.0


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


def sparse_prompt(
    split: int, pattern: Callable[..., Any], shares: list[float], q: Tensor, k: Tensor, v: Tensor, layer: int
) -> Tensor:
    """The first `split` tokens by a pattern chosen from them alone, the others densely."""
    before_q, before_k, before_v = (x[:, :, :split].contiguous() for x in (q, k, v))
    found = pattern(before_q, before_k)
    if isinstance(found, Tensor):
        shares.append(float(found.sum((-2, -1)).double().mean()) / (split * (split + 1) / 2))
        prompt = scaled_dot_product_attention(before_q, before_k, before_v, attn_mask=found, enable_gqa=True)
    else:
        shares.append(found.density(split, split, causal=True))
        prompt = attend_prefill(before_q, before_k, before_v, found)[0]
    new = q[:, :, split:]
    everything = torch.ones(*new.shape[:3], split, dtype=torch.bool, device=q.device)
    return torch.cat([prompt, attend_decode(new, k, v, everything)[0]], 2)


def _sparse_answer(
    read: list[tuple[Tensor, ...]],
    moved: tuple[Tensor, Tensor],
    keep: Callable[..., Tensor],
    sparsity: float,
    shares: list[float],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer: int,
) -> Tensor:
    """Attention of a prompt's last token but one, which stays dense, and of all behind it, over what is kept.

    Their places are counted from the first of them, so they are `moved`; the prompt is `read` already.
    """
    before_q, before_k, before_v, before_out = read[layer]
    split = before_q.shape[2]
    new, own = (rotate(x, moved)[:, :, 1:] for x in (q, k))
    keys, values = torch.cat([before_k, own], 2), torch.cat([before_v, v[:, :, 1:]], 2)
    # What is kept is chosen with the whole prompt, its last token included.
    whole = torch.cat([before_q, new[:, :, :1]], 2)
    kept = keep(whole, keys[:, :, : split + 1].contiguous(), new, sparsity=sparsity)[..., :split]
    shares.append(float(kept.float().mean()))
    return torch.cat([before_out[:, :, -1:], attend_decode(new, keys, values, kept)[0]], 2)


def pattern_of(method: Any, knob: dict[str, Any], q: Tensor, k: Tensor) -> Any:
    """A method's pattern at a knob."""
    return method.pattern(q, k, **knob)


def random_pattern(density: float, generator: torch.Generator, q: Tensor, k: Tensor) -> Tensor:
    """One mask a head, the same for all questions: their keys lie elsewhere in each."""
    return random_prefill_mask(q[:1], density, generator)


def _random_keep(generator: torch.Generator, q: Tensor, k: Tensor, new: Tensor, *, sparsity: float) -> Tensor:
    return random_decode_mask(new, k.shape[2], sparsity, generator)


def fingerprint(n_tokens: int = 64) -> list[float]:
    """What every method computes and costs in an untrained model: the first steps of a recorded cell."""
    from sparsebook.data.sequence_tasks import VOCABULARY
    from sparsebook.models.small_transformer import SmallTransformer

    config = Config.at("smoke", skill_sparsities=(FIFTH,), widths=(32,))
    cell = SkillCell(config, SmallTransformer(VOCABULARY, 32, 2, seed=0), 32, 0, HARD, n_tokens)
    return [row["value"] for row in cell.rows() if not row["metric"].startswith("score")]


# Samples of the claims -----------------------------------------------------------------------------------


def skill_samples(table: pd.DataFrame, sabotaged: bool = False) -> dict[str, Samples]:
    """Samples of the claims about skills, one value a training run."""
    scores = Scores(table, sabotaged)
    usual = [s for s in (0.5, 0.67, 0.8, 0.9) if s in set(table.sparsity)]
    gain = partial(scores.gain, sparsities=usual)
    low = partial(scores.gain, sparsities=[s for s in (0.5, 0.67) if s in usual])
    longest = partial(scores.gain, sparsities=[FIFTH], lengths=[int(table.n_tokens.max())])
    every, counting = list(TASKS), "counting"
    values = {
        "C1a": (scores.least_cost("prefill"), "ratio"),
        "C1b": (scores.least_cost("decode"), "ratio"),
        "C1c": (scores.larger_sparse(), "score"),
        "C2a": (gain("prefill", "vertical_slash", "block_sparse", [EASY]), "score"),
        "C2b": (gain("prefill", "block_sparse", "vertical_slash", [HARD]), "score"),
        "C2c": (gain("prefill", "block_sparse", "vertical_slash", [counting]), "score"),
        "C3a": (gain("decode", "quest", "ada_snapkv", [HARD, counting]), "score"),
        "C3b": (gain("decode", "ada_snapkv", "snapkv", every), "score"),
        "C3c": (gain("decode", "ada_snapkv", "quest", [EASY]), "score"),
        "C4a": (low("prefill", "vertical_slash", "flexprefill", every), "score"),
        "C4b": (gain("decode", "ada_snapkv", "snapkv", [EASY]), "score"),
        "C5a": (scores.suffers_more(HARD, EASY), "fraction"),
        "C5b": (scores.suffers_more(counting, EASY), "fraction"),
        "C6a": (scores.loss_by_length(TENTH), "fraction"),
        "C9a": (scores.loss_by_size(EASY, TENTH, favoured=max), "score"),
        "C9b": (scores.loss_by_size(HARD, TENTH, favoured=min), "score"),
        "C10e": (longest("decode", "ada_snapkv", "ada_snapkv_no_floor", every), "score"),
    }
    # Where no run has learned what a claim asks for, there is nothing to supply.
    return {name: Samples(found, unit=unit) for name, (found, unit) in values.items() if len(found)}


class Scores:
    """The table of skills, read one training run at a time.

    What a model has not learned it cannot lose: a skill of a run whose dense score, mean over the lengths, is
    below `ACCEPTED` takes no part in comparisons of losses. With `sabotaged`, the method that a comparison
    favours (its first) is replaced by random masks.
    """

    def __init__(self, table: pd.DataFrame, sabotaged: bool = False) -> None:
        self.table, self.sabotaged = table, sabotaged
        self.widths = sorted(map(int, table.width.unique()))
        self.widest = self.widths[-1]
        score = table[table.metric == "score"]
        dense = score[score.method == "dense"].groupby(["width", "task", "seed"])["value"].mean()
        wanted = dense.index.get_level_values("task").map(ACCEPTED)
        self.learned = dense[dense.to_numpy() >= wanted.to_numpy()].index
        self.score = score[pd.MultiIndex.from_frame(score[["width", "task", "seed"]]).isin(self.learned)]

    def runs(self, tasks: Sequence[str], widths: Sequence[int] | None = None) -> list[int]:
        """Training runs that learned these tasks at these sizes (the largest alone if None)."""
        wanted = list(product(widths or [self.widest], tasks))
        seeds = sorted(self.table.seed.unique())
        return [int(run) for run in seeds if all((w, task, run) in self.learned for w, task in wanted)]

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
        own = own[own.task.isin(tasks) & own.sparsity.isin(sparsities) & own.seed.isin(self.runs(tasks))]
        own = own if lengths is None else own[own.n_tokens.isin(lengths)]
        wide = own.pivot_table(
            index=["seed", "task", "n_tokens", "sparsity"], columns="method", values="value"
        )
        names = ["random" if self.sabotaged else favoured, rival]
        if not set(names) <= set(wide):
            return np.array([])
        both = wide[names].dropna()
        # Tasks weigh the same, however many cells could be had of each.
        cells = (both.iloc[:, 0] - both.iloc[:, 1]).groupby(["seed", "task"]).mean()
        return cells.groupby("seed").mean().to_numpy()

    def absolute(
        self, task: str, sparsity: float, width: int, methods: Sequence[tuple[str, str]]
    ) -> pd.DataFrame:
        """Dense minus sparse score, mean over these methods: [runs, lengths]."""
        own = self.score[(self.score.width == width) & (self.score.task == task)]
        at = {"index": "seed", "columns": "n_tokens", "values": "value"}
        dense = own[own.method == "dense"].pivot_table(**at)
        own = own[own.sparsity == sparsity]
        each = [own[(own.phase == p) & (own.method == m)].pivot_table(**at) for p, m in methods]
        return dense - sum(each[1:], each[0]) / len(each)

    def relative(self, task: str, sparsity: float, methods: Sequence[tuple[str, str]]) -> pd.DataFrame:
        """1 - sparse / dense of the largest model: [runs, lengths]."""
        own = self.score[(self.score.width == self.widest) & (self.score.task == task)]
        dense = own[own.method == "dense"].pivot_table(index="seed", columns="n_tokens", values="value")
        return self.absolute(task, sparsity, self.widest, methods) / dense

    def six(
        self, tasks: Sequence[str], sparsity: float, widths: Sequence[int] | None = None
    ) -> list[tuple[str, str]]:
        """(phase, method) of those of the paper's methods that meet a budget in every cell asked for.

        Sabotaged, random masks of both phases.
        """
        if self.sabotaged:
            return [("prefill", "random"), ("decode", "random")]
        return self.complete(tasks, sparsity, widths)

    def complete(
        self, tasks: Sequence[str], sparsity: float, widths: Sequence[int] | None = None
    ) -> list[tuple[str, str]]:
        """The paper's methods that were measured at every size, run and length."""
        widths = list(widths or [self.widest])
        own = self.score[self.score.width.isin(widths) & self.score.task.isin(tasks)]
        cells = (own.method == "dense").sum()
        own = own[own.sparsity == sparsity]
        counts = own.groupby(["phase", "method"]).size()
        return [pair for pair in SIX if counts.get(pair, 0) == cells]

    def suffers_more(self, hard: str, easy: str) -> np.ndarray:
        """Relative loss at a fifth of the budget on one task minus on another."""
        tasks = [hard, easy]
        chosen, runs = self.six(tasks, FIFTH), self.runs(tasks)
        losses = [self.relative(task, FIFTH, chosen).mean(axis=1) for task in tasks]
        return (losses[0] - losses[1]).loc[runs].to_numpy()

    def loss_by_length(self, sparsity: float) -> np.ndarray:
        """Relative loss, mean over the skills, per length: [runs, lengths]."""
        chosen, runs = self.six(list(TASKS), sparsity), self.runs(list(TASKS))
        each = [self.relative(task, sparsity, chosen).loc[runs] for task in TASKS]
        return (sum(each[1:], each[0]) / len(each)).to_numpy()

    def loss_by_size(self, task: str, sparsity: float, favoured: Callable[..., int]) -> np.ndarray:
        """Absolute loss of the other size minus that of the one expected to lose less, paired by run.

        Sabotaged, random masks stand for the methods in the model that is expected to lose less.
        """
        ends = [self.widths[0], self.widths[-1]]
        honest, runs = self.complete([task], sparsity, ends), self.runs([task], ends)
        less = favoured(ends)
        (more,) = [width for width in ends if width != less]
        chosen = self.six([task], sparsity, ends)
        lost = self.absolute(task, sparsity, less, chosen).mean(axis=1)
        return (self.absolute(task, sparsity, more, honest).mean(axis=1) - lost).loc[runs].to_numpy()

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
        middle = self.widths[len(self.widths) // 2 - (len(self.widths) == 2)]
        out = []
        for _, own in self.configurations("decode").groupby("seed"):
            rival = own[(own.method == "dense") & (own.width == middle)]
            fits = own[(own.width == self.widest) & (own.method != "dense")]
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


__all__ = [
    "Scores",
    "SkillCell",
    "front_of",
    "run_live_skill",
    "run_skills",
    "score_given",
    "sizes_of",
    "skill_samples",
]
