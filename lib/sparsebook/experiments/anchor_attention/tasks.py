"""What small models that have learned to retrieve still find when they read sparsely.

Training runs are the unit of replication. A question names four keys, the answer are their values; each value
is asked for with the right ones before it given, so that one pass reads everything. All rows are read
sparsely, those that ask included: the methods leave the last rows and all decoding dense, and a look-up that
happens there would not notice how the rest was read (one arm shows it).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sparsebook.attention.anchor_attention import (
    anchor_pattern,
    anchor_regions,
    candidate_keys,
    stripes_of,
)
from sparsebook.attention.patterns import block_topk_pattern, streaming_pattern
from sparsebook.data.sequence_tasks import TaskBatch, key_value_retrieval, score
from sparsebook.experiments.anchor_attention.runs import Rows, Stages, run, tidy
from sparsebook.experiments.anchor_attention.scales import Config
from sparsebook.experiments.anchor_attention.selections import shuffled
from sparsebook.experiments.skills import trained
from sparsebook.kernels.block_attention import SpanIndex, span_attention

Pattern = Callable[[Tensor, Tensor, float], SpanIndex]
"""Queries, keys and a budget -> what is computed; more of it the larger the budget."""

SWEPT = {
    "anchor": (-8.0, 40.0),
    "block_topk + region": (3.0, None),
    "streaming": (1.0, None),
}
"""Methods that are brought to every density, and where their budget is sought; None: the whole length."""

ONCE = {"anchor: rows not pooled": (-8.0, 40.0)}
"""The same at one density."""

BESIDE = {
    "anchor: random stripes": "anchor",
    "anchor: last rows dense": "anchor",
}
"""Arms that have the budget of another method, at one density."""

_TUNED_ON, _READ_AT_ONCE, _STEPS = 4, 32, 9


def run_tasks(config: Config) -> pd.DataFrame:
    """Accuracy and density under every method, one stage a training run."""
    stages: Stages = {f"run {seed}": partial(_tasks_of, config, seed) for seed in config.task_runs}
    return run(config, stages, "tasks")


def _tasks_of(config: Config, seed: int) -> pd.DataFrame:
    model = reader(config, seed)
    batch, apart = (questions(config, seed, tuning) for tuning in (False, True))
    out: Rows = []
    for method, budget, target in _arms(config, model, apart):
        pattern = None if method == "dense" else patterns(config)[method]
        accuracy, density = read(model, batch, pattern, budget)
        metrics = {"accuracy": (accuracy, "accuracy"), "density": (density, "fraction")}
        out += tidy("tasks", method, seed, metrics, setting=max(budget, -1e9), target=target)
    return pd.DataFrame(out)


def _arms(config: Config, model: Any, apart: TaskBatch) -> Iterator[tuple[str, float, float]]:
    """Method, budget, and the density that the budget was chosen for."""
    yield "dense", 0.0, 1.0
    yield "region", -torch.inf, 0.0
    wanted = ("anchor", "block_topk + region") if config.sabotaged else tuple(SWEPT)
    for target in (config.density,) if config.sabotaged else config.task_densities:
        here = (*wanted, *ONCE) if target == config.density and not config.sabotaged else wanted
        budgets = {method: budget_on(config, model, apart, method, target) for method in here}
        for method, budget in budgets.items():
            yield method, budget, target
        if target == config.density and not config.sabotaged:
            for method, other in BESIDE.items():
                yield method, budgets[other], target


def reader(config: Config, seed: int) -> Any:
    """The small transformer of a training run: shipped, cached, or trained now."""
    width = config.task_width
    return trained([width], [seed], skills=["tracing"])["tracing", width, seed].model()


def questions(config: Config, seed: int, tuning: bool) -> TaskBatch:
    """Questions of a training run; those that budgets are chosen on are others."""
    draw = torch.Generator().manual_seed(100_000 * (1 + config.seed) + 2 * seed + tuning)
    return key_value_retrieval(_TUNED_ON if tuning else config.task_samples, config.task_tokens, draw)


def patterns(config: Config) -> dict[str, Pattern]:
    """Each arm's pattern. The last answer is never read, so that the last group is a shorter one."""
    n, b, s = config.task_tokens - 1, config.task_block, config.step
    layout: dict[str, Any] = {"block_size": b, "step": s, "tail": "sparse"}
    regions = anchor_regions(n, block_size=b, step=s, tail="sparse")

    def anchor(q: Tensor, k: Tensor, theta: float, **changed: Any) -> SpanIndex:
        return anchor_pattern(q, k, theta=theta, **(layout | changed))

    def moved(q: Tensor, k: Tensor, theta: float) -> SpanIndex:
        return _moved(anchor(q, k, theta), n, b, s, config.seed)

    def blocks(q: Tensor, k: Tensor, length: float) -> SpanIndex:
        top_k = max(3, round(length / b))
        return block_topk_pattern(q, k, block_size=b, top_k=top_k, forced=regions)

    def window(q: Tensor, k: Tensor, length: float) -> SpanIndex:
        return streaming_pattern(n, n_sink=b, n_local=max(1, round(length)), block_size=b)

    return {
        "anchor": moved if config.sabotaged else anchor,
        "region": anchor,
        "block_topk + region": blocks,
        "streaming": window,
        "anchor: rows not pooled": partial(anchor, block_size=1, step=b * s),
        "anchor: random stripes": moved,
        "anchor: last rows dense": partial(anchor, tail="dense"),
    }


def _moved(index: SpanIndex, n: int, block_size: int, step: int, seed: int) -> SpanIndex:
    """The stripes of each group moved to random columns, their number kept."""
    candidates = candidate_keys(n, block_size=block_size, step=step, tail="sparse")
    stripes = stripes_of(shuffled(torch.arange(n) < index.counts[..., None], candidates, seed))
    return SpanIndex(index.spans, stripes.coords, stripes.counts, index.block_size, index.group)


def read(model: Any, batch: TaskBatch, pattern: Pattern | None, budget: float) -> tuple[float, float]:
    """Share of right answers, and mean density over layers, heads and questions; without a pattern, dense."""
    right, densities = [], []
    for start in range(0, len(batch.tokens), _READ_AT_ONCE):
        tokens = batch.tokens[start : start + _READ_AT_ONCE]
        logits, density = answers_under(model, tokens, batch.answer_start, pattern, budget)
        right.append(logits.argmax(-1))
        densities += [density] * len(tokens)
    return float(score("retrieval", torch.cat(right), batch).mean()), float(np.mean(densities))


def answers_under(
    model: Any, tokens: Tensor, answer_start: int, pattern: Pattern | None, budget: float
) -> tuple[Tensor, float]:
    """Scores [questions, answers, vocabulary] of each answer's token, the right ones before it given."""
    densities: list[float] = []
    attention = None if pattern is None else partial(_attend, pattern, budget, densities)
    with torch.no_grad():
        logits = model(tokens[:, :-1], attention)
    return logits[:, answer_start - 1 :], float(np.mean(densities)) if densities else 1.0


def _attend(
    pattern: Pattern, budget: float, densities: list[float], q: Tensor, k: Tensor, v: Tensor, layer: int
) -> Tensor:
    index = pattern(q, k, budget)
    densities.append(index.density(q.shape[2], k.shape[2], causal=True))
    return span_attention(q, k, v, index, causal=True)


def budget_on(config: Config, model: Any, apart: TaskBatch, method: str, density: float) -> float:
    """The smallest budget whose density on the tuning questions reaches `density`, by bisection."""
    low, most = (SWEPT | ONCE)[method]
    high = float(config.task_tokens) if most is None else most
    pattern = patterns(config)[method]
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if answers_under(model, apart.tokens, apart.answer_start, pattern, middle)[1] >= density:
            high = middle
        else:
            low = middle
    return high


def fingerprint_tasks(n_tokens: int = 128, n_questions: int = 4) -> list[float]:
    """Density and loss of the answers of the first training run under three arms."""
    config = Config.at("full", task_tokens=n_tokens, task_block=2)
    model, arms = reader(config, 0), patterns(config)
    batch = key_value_retrieval(n_questions, n_tokens, torch.Generator().manual_seed(5))
    out: list[float] = []
    for method, budget in (("anchor", 8.0), ("anchor", torch.inf), ("block_topk + region", 32.0)):
        logits, density = answers_under(model, batch.tokens, batch.answer_start, arms[method], budget)
        out += [density, float(cross_entropy(logits.flatten(0, 1), batch.answer.flatten()))]
    return out
