"""Stories with questions, read by a language model: how likely the right answer is under every method.

A small model answers few of them rightly; what an attention method does to the likelihood of the right answer
can be asked all the same.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sparsebook.attention.sparse_frontier import DECODE, PREFILL, Windows, fit_knob
from sparsebook.claims import Samples
from sparsebook.data.ruler import Sample
from sparsebook.data.stories import story_filtering, story_multihop, story_retrieval
from sparsebook.experiments.sparse_frontier.readers import NetworkReader
from sparsebook.experiments.sparse_frontier.runs import (
    Rows,
    Stages,
    attend_any,
    attend_kept,
    run,
    tidy,
)
from sparsebook.experiments.sparse_frontier.scales import Config
from sparsebook.experiments.sparse_frontier.skills import (
    FIFTH,
    SIX,
    pattern_of,
    random_pattern,
    sparse_prompt,
)

STORIES: dict[str, Callable[..., Sample]] = {
    "retrieval": partial(story_retrieval, n_questions=4),
    "filtering": story_filtering,
    "multihop": story_multihop,
}
OBSERVED = 96
"""Voting queries: enough for the questions behind the context, as the paper's 512 are."""
APART = 0
"""The story that sets the knobs."""


def run_stories(config: Config) -> pd.DataFrame:
    """Loss of the right answer to every task of every story, in nats a token; a stage a story."""
    knobs = run(config, {"knobs": partial(_knobs, config)}, "story_knobs")
    stages: Stages = {f"story {number}": partial(_story, config, knobs, number) for number in config.stories}
    return run(config, stages, "stories")


def story_tokens(reader: NetworkReader, task: str, number: int, n_tokens: int) -> tuple[Tensor, int]:
    """Token ids [1, tokens] of prompt and right answer, and how many belong to the answer."""
    sample = STORIES[task](lambda text: len(reader.encode(text)), n_tokens, number)
    special = len(reader.encode(""))
    prompt = reader.encode(f"{sample.prompt}\n<answer>")
    answer = reader.encode(", ".join(sample.answer))[special:]
    return torch.tensor([prompt + answer], device=reader.network.lm_head.weight.device), len(answer)


def _windows(config: Config, n_tokens: int) -> Windows:
    return replace(config.windows_for(n_tokens), observed=OBSERVED)


def _reader(config: Config) -> NetworkReader:
    reader = config.reader()
    if not isinstance(reader, NetworkReader):
        raise ValueError(f"scale={config.scale!r}: stories are read by a language model, give one as `model`")
    return reader


def _knobs(config: Config) -> pd.DataFrame:
    reader, n = _reader(config), config.story_length
    ids, judged = story_tokens(reader, "retrieval", APART, n)
    split = ids.shape[1] - 1 - judged
    heads = reader.read_ids(ids, judged).heads.values()
    apart = [(q[:, :, :split].contiguous(), k[:, :, :split].contiguous()) for q, k, _ in heads]
    out: Rows = []
    for cls in PREFILL:
        knob = fit_knob(cls(_windows(config, n)), apart, FIFTH)
        if knob is not None:
            more = {"knob": json.dumps(knob)}
            out += tidy("story_knobs", cls.name, APART, {"budget": (1 - FIFTH, "fraction")}, **more)
    return pd.DataFrame(out)


def _story(config: Config, knobs: pd.DataFrame, number: int) -> pd.DataFrame:
    reader, out = _reader(config), []
    windows = _windows(config, config.story_length)
    fitted = {name: json.loads(knob) for name, knob in zip(knobs.method, knobs.knob, strict=True)}
    generator = torch.Generator().manual_seed(1_000 * number + 17)
    for task in STORIES:
        ids, judged = story_tokens(reader, task, number, config.story_length)
        reading = reader.read_ids(ids, judged)
        split = reading.n_tokens - judged
        more: dict[str, Any] = {"task": task, "n_tokens": reading.n_tokens}
        out += tidy("stories", "dense", number, {"loss": (reading.loss, "nats")}, sparsity=0.0, **more)
        patterns = {
            cls.name: partial(pattern_of, cls(windows), fitted[cls.name])
            for cls in PREFILL
            if cls.name in fitted
        }
        patterns["random"] = partial(random_pattern, 1 - FIFTH, generator)
        more["sparsity"] = FIFTH
        for name, pattern in patterns.items():
            shares: list[float] = []
            loss = reader.prefill_loss(reading, partial(sparse_prompt, split, pattern, shares))
            metrics = {"loss": (loss, "nats"), "density": (np.mean(shares), "fraction")}
            out += tidy("stories", name, number, metrics, phase="prefill", **more)
        kept = {cls.name: partial(attend_kept, cls(windows), FIFTH, reading) for cls in DECODE}
        for name, attend in (kept | {"random": partial(attend_any, generator, FIFTH)}).items():
            metrics = {"loss": (reader.decode_loss(reading, attend), "nats")}
            out += tidy("stories", name, number, metrics, phase="decode", **more)
    return pd.DataFrame(out)


def story_samples(table: pd.DataFrame, sabotaged: bool = False) -> dict[str, Samples]:
    """Losses of rivals minus those of the favoured, paired by story; positive speaks for the claim."""
    own = table[table.metric == "loss"]
    dense = own[own.method == "dense"].pivot_table(index="seed", columns="task", values="value")

    def loss(method: str, phase: str) -> pd.DataFrame:
        part = own[(own.phase == phase) & (own.method == method)]
        return part.pivot_table(index="seed", columns="task", values="value")

    def less(favoured: str, rival: str, phase: str, tasks: list[str]) -> Samples:
        chosen = "random" if sabotaged else favoured
        return Samples((loss(rival, phase) - loss(chosen, phase))[tasks].mean(axis=1), unit="nats")

    pairs = [("prefill", "random"), ("decode", "random")] if sabotaged else SIX
    each = [loss(method, phase) - dense for phase, method in pairs]
    added = sum(each[1:], each[0]) / len(each)
    return {
        "C2d": less("vertical_slash", "block_sparse", "prefill", ["retrieval"]),
        "C2e": less("block_sparse", "vertical_slash", "prefill", ["filtering"]),
        "C3f": less("quest", "ada_snapkv", "decode", list(STORIES)),
        "C5c": Samples(added.filtering - added.retrieval, unit="nats"),
    }
