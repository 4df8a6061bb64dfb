"""Small transformers that have learned three skills of reading a long context; training and loading them.

The models stand in for the large ones that a laptop cannot run: three widths, several trainings of each, the
tasks of `sparsebook.data.sequence_tasks`. Some are shipped with the book, in half precision
(``book/attention/skills.safetensors``); any other is trained on demand, resumably, into the user's cache.

>>> models = skill_models(widths=(64,), seeds=range(2))                            # doctest: +SKIP
>>> models[64, 0].greedy(batch.prompt, 4)                                          # doctest: +SKIP

``python -m sparsebook.experiments.skills`` trains them all and shows how well they read; ``--ship`` trains
and writes those of `SHIPPED_MODELS`.
"""

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from sparsebook.book.layout import find_book
from sparsebook.data.sequence_tasks import COUNT, FOLLOW, RETRIEVE, TASKS, VOCABULARY, score
from sparsebook.files import cache_dir, cached
from sparsebook.models.loading import fill, optional, ready
from sparsebook.models.small_transformer import Attention, CapturedAttention, SmallTransformer

SKILLS: dict[str, tuple[str, ...]] = {"tracing": ("retrieval", "chains"), "counting": ("counting",)}
"""The two models of each size and seed, and the tasks that each has learned."""
WIDTHS = (32, 64, 128)
SEEDS = range(5)
LENGTHS = (128, 256, 512)
"""Lengths, in tokens, at which the models are judged."""
ACCEPTED = {"retrieval": 0.95, "chains": 0.8, "counting": 0.8}
"""Dense scores from which on the losses under sparse attention mean something."""
SHIPPED = Path("attention") / "skills.safetensors"
SHIPPED_MODELS = (
    *product(SKILLS, (32, 64), SEEDS),
    *product(("tracing",), (64,), range(5, 8)),
)
"""Skill, width and seed of what is shipped: what fits into 4 MB, eight runs of one size among it."""

# Bound on the gradient's norm; tokens of one batch; weight of a counting context beside its answers; steps
# between two checkpoints; samples a judgement.
_CLIP, _TOKENS, _CONTEXT, _STEPS_KEPT, _JUDGED = 1.0, 2048, 0.1, 250, 64

# (share of the steps after which sequences of a length begin to be drawn, that length)
_LENGTHS = {
    "tracing": ((0.0, 64), (0.3, 128), (0.45, 256), (0.6, 512)),
    "counting": ((0.0, 64), (0.1, 128), (0.2, 256), (0.5, 512)),
}
_STEPS = {"tracing": 1800, "counting": 2000}


@dataclass(frozen=True)
class Recipe:
    """How one model is trained: AdamW, a warm-up, then a cosine down to a tenth of the rate.

    Attributes
    ----------
    skill
        A key of `SKILLS`.
    width, seed
        Size of the model; seed of its weights and of its training data.
    n_layers, head_dim
        The rest of its architecture.
    steps
        Optimiser steps, of 2,048 tokens each; that of the skill if 0.
    learning_rate, warm_up, weight_decay
        Peak rate, steps until it is reached, decay of AdamW.

    Raises
    ------
    ValueError
        An unknown skill.
    """

    skill: str
    width: int
    seed: int
    n_layers: int = 3
    head_dim: int = 16
    steps: int = 0
    learning_rate: float = 3e-3
    warm_up: int = 100
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.skill not in SKILLS:
            raise ValueError(f"skill={self.skill!r}: expected one of {list(SKILLS)}")
        object.__setattr__(self, "steps", self.steps or _STEPS[self.skill])

    @property
    def key(self) -> tuple[str, int, int]:
        """Skill, width and seed."""
        return self.skill, self.width, self.seed

    @property
    def name(self) -> str:
        """The same as one word."""
        return f"{self.skill}-width{self.width}-seed{self.seed}"

    def model(self) -> SmallTransformer:
        """The untrained model."""
        return SmallTransformer(VOCABULARY, self.width, self.n_layers, self.head_dim, seed=self.seed)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        cosine = 0.55 + 0.45 * math.cos(math.pi * step / self.steps)
        return self.learning_rate * min((step + 1) / self.warm_up, cosine)

    def length(self, step: int, generator: torch.Generator) -> int:
        """Sequence length of a step: one of those that have begun, the newest twice as often."""
        begun = [length for share, length in _LENGTHS[self.skill] if step >= share * self.steps]
        return [*begun, begun[-1]][_draw(0, len(begun), generator)]

    def address(self) -> str:
        """What the cache calls the result: it changes whenever the recipe does."""
        content = (self, _CLIP, _TOKENS, _CONTEXT, _LENGTHS[self.skill])
        return f"{self.name}-{hashlib.sha256(repr(content).encode()).hexdigest()[:12]}"


# --- training -----------------------------------------------------------------------------------------------


def training_batch(
    skill: str, n_tokens: int, n_sequences: int, generator: torch.Generator
) -> tuple[Int[Tensor, "sequences tokens"], Float[Tensor, "sequences tokens"]]:
    """Sequences of a skill's tasks, as many of one as of the other, and what each token weighs in the loss.

    Several questions about one context make a sequence worth more: from one to as many as the length allows
    are drawn, so that contexts with one question, those of the evaluation, are met as well. Answers weigh,
    and in counting also the context, whose words can be foretold by how common they are; the other contexts
    are random and would only add noise.

    Parameters
    ----------
    skill : str
        A key of `SKILLS`.
    n_tokens, n_sequences : int
        Length, at least 64, and number of the sequences, at least 2.
    generator : torch.Generator
        Source of all randomness.

    Returns
    -------
    tokens : int64 [sequences, tokens]
    weights : float32 [sequences, tokens]
        Sum 1, the same for each task.
    """
    names = SKILLS[skill]
    tokens, weights = [], []
    for name in names:
        batch = TASKS[name](
            n_sequences // len(names), n_tokens, generator, **_questions(name, n_tokens, generator)
        )
        answers, context = batch.weights > 1, batch.weights == 1
        weight = answers / answers.sum()
        if name == "counting":
            weight = weight + _CONTEXT * context / context.sum()
        tokens.append(batch.tokens)
        weights.append(weight / weight.sum() / len(names))
    return torch.cat(tokens), torch.cat(weights)


def _questions(task: str, n_tokens: int, generator: torch.Generator) -> dict[str, int]:
    """How many questions a training sequence asks, and how many chains it has for them."""
    if task == "counting":
        return {}
    if task == "retrieval":
        return {"n_rounds": _draw(1, n_tokens // 20, generator)}
    rounds = _draw(1, min(8, n_tokens // 32), generator)
    fits = (n_tokens - 2 - 8 * rounds) // 15
    return {"n_rounds": rounds, "n_chains": _draw(rounds, max(rounds, min(8, fits)), generator)}


def _draw(least: int, most: int, generator: torch.Generator) -> int:
    return int(torch.randint(least, most + 1, (), generator=generator))


class Training:
    """A training that can be interrupted after any step and gone on with.

    Parameters
    ----------
    recipe : Recipe
    checkpoint : path
        Where its state is kept every so many steps; gone on from if it is there.
    """

    def __init__(self, recipe: Recipe, checkpoint: Path) -> None:
        self.recipe, self.checkpoint = recipe, checkpoint
        self.model = recipe.model()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
        )
        # The weights' seed, moved away: data and weights are drawn from different streams.
        self.generator = torch.Generator().manual_seed(recipe.seed + 2**32)
        self.step, self.seconds = 0, 0.0
        if checkpoint.exists():
            self._restore()

    def run(self, report: Callable[[str], None] = print, until: int | None = None) -> SmallTransformer:
        """Train to the end, or until a step; returns the model."""
        last = self.recipe.steps if until is None else until
        started = time.process_time()
        while self.step < last:
            loss = self._one_step()
            if self.step % _STEPS_KEPT == 0 or self.step == last:
                self.seconds += time.process_time() - started
                started = time.process_time()
                self._keep()
                report(f"{self.recipe.name}: step {self.step}, loss {loss:.2f}")
        return self.model

    def _one_step(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        n_tokens = self.recipe.length(self.step, self.generator)
        tokens, weights = training_batch(self.recipe.skill, n_tokens, _TOKENS // n_tokens, self.generator)
        learned = weights[:, 1:] > 0
        scores = self.model(tokens[:, :-1])[learned]
        losses = cross_entropy(scores, tokens[:, 1:][learned], reduction="none")
        loss = (losses * weights[:, 1:][learned]).sum()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def _keep(self) -> None:
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        arriving = self.checkpoint.with_suffix(f".{os.getpid()}")
        torch.save(state, arriving)
        os.replace(arriving, self.checkpoint)

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step, self.seconds = state["step"], state["seconds"]


Scores = dict[str, dict[int, float]]


def dense_scores(
    model: SmallTransformer,
    tasks: Iterable[str],
    lengths: Iterable[int] = LENGTHS,
    n_samples: int = _JUDGED,
) -> Scores:
    """How well a model answers, greedily, with dense attention: task -> length -> mean score.

    The samples are those of no training: their generator's seed is another.
    """
    found: Scores = {}
    for name in tasks:
        found[name] = {}
        for length in lengths:
            batch = TASKS[name](n_samples, length, torch.Generator().manual_seed(-1 - length))
            answers = model.greedy(batch.prompt, batch.answer.shape[1])
            found[name][length] = float(score(name, answers, batch).mean())
    return found


def accepted(scores: Scores) -> bool:
    """Whether dense scores reach `ACCEPTED` on every task that they name, averaged over the lengths."""
    return all(sum(row.values()) / len(row) >= ACCEPTED[name] for name, row in scores.items())


# --- trained models: shipped, cached, made ------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A trained model and what is known of it.

    Attributes
    ----------
    recipe : how it was trained
    weights : name -> tensor, float16
    scores : task -> length -> dense score over 64 samples, of these very weights
    seconds : CPU time of the training
    """

    recipe: Recipe
    weights: dict[str, Tensor]
    scores: Scores
    seconds: float

    def model(self) -> SmallTransformer:
        """The model, float32, for inference.

        Raises
        ------
        ValueError
            The weights are those of a model of another shape.
        """
        network = self.recipe.model()
        expected = network.state_dict()
        wrong = [n for n, w in self.weights.items() if n in expected and w.shape != expected[n].shape]
        if wrong:
            raise ValueError(
                f"weights of {self.recipe.name} have other shapes than the model: {', '.join(wrong)}"
            )
        fill(network, self.weights)
        ready(network, "cpu", torch.float32)
        return network

    def described(self) -> dict[str, Any]:
        """What goes into a file beside the weights."""
        return {"recipe": asdict(self.recipe), "scores": self.scores, "seconds": round(self.seconds, 1)}


class SkillReader(torch.nn.Module):
    """One reader of all three tasks: a `SmallTransformer` for each skill, chosen by the first token.

    Three tasks in one model of these sizes kept one of them from being learned within the budget, whichever
    came first; hence two models of the same size, of which every sequence uses one. Calls have the
    signatures of `SmallTransformer`.

    Parameters
    ----------
    models : skill -> model
    """

    def __init__(self, models: dict[str, SmallTransformer]) -> None:
        super().__init__()
        self.models = torch.nn.ModuleDict(models)

    def of(self, task: str) -> SmallTransformer:
        """The model that has learned a task."""
        for skill, tasks in SKILLS.items():
            if task in tasks:
                return cast(SmallTransformer, self.models[skill])
        raise ValueError(f"task={task!r}: expected one of {list(TASKS)}")

    def forward(self, tokens: Tensor, attention: Attention | None = None) -> Tensor:
        """Next-token scores; see `SmallTransformer.forward`."""
        return self._reader(tokens)(tokens, attention)

    def capture(self, tokens: Tensor, attention: Attention | None = None) -> CapturedAttention:
        """Queries, keys and values; see `SmallTransformer.capture`."""
        return self._reader(tokens).capture(tokens, attention)

    def teacher_forced(self, tokens: Tensor, answer_start: int, attention: Attention | None = None) -> Tensor:
        """Answers given the right ones before; see `SmallTransformer.teacher_forced`."""
        return self._reader(tokens).teacher_forced(tokens, answer_start, attention)

    def greedy(self, prompt: Tensor, n_new: int, attention: Attention | None = None) -> Tensor:
        """Free answers; see `SmallTransformer.greedy`."""
        return self._reader(prompt).greedy(prompt, n_new, attention)

    @property
    def blocks(self) -> torch.nn.ModuleList:
        """Blocks of one of the models: sizes are those of all."""
        return self.of("retrieval").blocks

    @property
    def embedding(self) -> Tensor:
        """Embedding of one of the models: sizes are those of all."""
        return self.of("retrieval").embedding

    def _reader(self, tokens: Tensor) -> SmallTransformer:
        kinds = tokens[:, 0].unique().tolist()
        if not set(kinds) <= {RETRIEVE, FOLLOW} and kinds != [COUNT]:
            raise ValueError(
                f"tokens begin with {kinds}: expected the questions of one skill, "
                f"{RETRIEVE} and {FOLLOW} or {COUNT}"
            )
        return self.of("counting" if kinds == [COUNT] else "retrieval")


def trained(
    widths: Iterable[int] = WIDTHS,
    seeds: Iterable[int] = SEEDS,
    *,
    skills: Iterable[str] = tuple(SKILLS),
    report: Callable[[str], None] | None = None,
    shipped: Path | None = None,
) -> dict[tuple[str, int, int], Trained]:
    """Trained models by (skill, width, seed): from the shipped file, else from the cache, else trained now.

    Parameters
    ----------
    widths, seeds, skills
        Which ones; every width with every seed, for every skill.
    report : callable, optional
        Is told of the progress of trainings, a line at a time; they go to stderr if None.
    shipped : path, optional
        Another file in place of ``book/attention/skills.safetensors``.

    Raises
    ------
    ValueError
        A shipped model was trained by another recipe than the present one.
    """
    tell = report or (lambda line: print(line, file=sys.stderr, flush=True))
    path = shipped or _shipped_path()
    known = read_models(path) if path is not None and path.exists() else {}
    recipes = [Recipe(*key) for key in product(skills, widths, seeds)]
    for recipe in recipes:
        if recipe.key in known and known[recipe.key].recipe != recipe:
            raise ValueError(
                f"{recipe.name} was shipped by another recipe than the present one: write the file anew with "
                "`python -m sparsebook.experiments.skills --ship`"
            )
    return {recipe.key: known.get(recipe.key) or _from_cache(recipe, tell) for recipe in recipes}


def skill_models(
    widths: Iterable[int] = WIDTHS, seeds: Iterable[int] = SEEDS, **options: Any
) -> dict[tuple[int, int], SkillReader]:
    """Models that have learned the three tasks, by (width, seed); options as in :func:`trained`."""
    widths, seeds = list(widths), list(seeds)
    found = trained(widths, seeds, **options)
    return {
        (width, seed): SkillReader({skill: found[skill, width, seed].model() for skill in SKILLS})
        for width, seed in product(widths, seeds)
    }


def _shipped_path() -> Path | None:
    try:
        return find_book() / "book" / SHIPPED
    except FileNotFoundError:
        return None


def _from_cache(recipe: Recipe, report: Callable[[str], None]) -> Trained:
    """The model that the recipe makes, trained at most once on a machine."""

    def build(folder: Path) -> None:
        checkpoint = cache_dir() / "training" / f"skills-{recipe.address()}.pt"
        write_models(folder / "model.safetensors", [train(recipe, checkpoint, report)])
        checkpoint.unlink()

    folder = cached("skills", build, recipe.address())
    return read_models(folder / "model.safetensors")[recipe.key]


def train(recipe: Recipe, checkpoint: Path, report: Callable[[str], None]) -> Trained:
    """Train one model to its end and judge it, as it will be loaded: in half precision."""
    training = Training(recipe, checkpoint)
    weights = {name: tensor.half() for name, tensor in training.run(report).state_dict().items()}
    half = Trained(recipe, weights, {}, training.seconds)
    return replace(half, scores=dense_scores(half.model(), SKILLS[recipe.skill]))


def write_models(path: Path, models: Iterable[Trained]) -> None:
    """Write trained models into one safetensors file, described in its metadata."""
    save = optional("safetensors.torch", "safetensors").save_file
    tensors: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    for one in models:
        tensors |= {f"{one.recipe.name}/{name}": tensor.contiguous() for name, tensor in one.weights.items()}
        described[one.recipe.name] = one.described()
    save(tensors, path, metadata={"models": json.dumps(described)})


def read_models(path: Path) -> dict[tuple[str, int, int], Trained]:
    """Read what :func:`write_models` wrote, by (skill, width, seed).

    Raises
    ------
    ValueError
        The file describes no models.
    """
    open_file = optional("safetensors", "safetensors").safe_open
    with open_file(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if "models" not in metadata:
        raise ValueError(f"{path.name} describes no models in its metadata: expected a file of write_models")
    found = {}
    for name, about in json.loads(metadata["models"]).items():
        own = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
        scores = {task: {int(n): one for n, one in row.items()} for task, row in about["scores"].items()}
        one = Trained(Recipe(**about["recipe"]), own, scores, about["seconds"])
        found[one.recipe.key] = one
    return found


# --- from the command line ----------------------------------------------------------------------------------


def score_line(one: Trained) -> str:
    """A model's dense scores per task and length, and the minutes that it took."""
    parts = [
        f"{task} " + " ".join(f"{n}: {value:.2f}" for n, value in row.items())
        for task, row in one.scores.items()
    ]
    verdict = "accepted" if accepted(one.scores) else "below the thresholds"
    return f"{one.recipe.name} ({one.seconds / 60:.1f} min): {'; '.join(parts)}; {verdict}"


def main(arguments: list[str] | None = None) -> None:
    """Train what is not there yet, a seed of every width before the next, and show the dense scores."""
    parser = argparse.ArgumentParser(prog="python -m sparsebook.experiments.skills")
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--skills", nargs="+", choices=list(SKILLS), default=list(SKILLS))
    parser.add_argument("--ship", action="store_true", help=f"train and write book/{SHIPPED.as_posix()}")
    chosen = parser.parse_args(arguments)
    keys = product(chosen.seeds, chosen.widths, chosen.skills)
    wanted = SHIPPED_MODELS if chosen.ship else [(skill, width, seed) for seed, width, skill in keys]
    models: list[Trained] = []
    for skill, width, seed in wanted:
        models += trained([width], [seed], skills=[skill]).values()
        print(score_line(models[-1]), flush=True)
    if chosen.ship:
        write_models(find_book() / "book" / SHIPPED, models)


if __name__ == "__main__":
    main()
