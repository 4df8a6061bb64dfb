"""Three skills of reading a long context, as sequences of a few hundred tokens that small models can learn.

They are the token-level counterparts of RULER's tasks (see `sparsebook.data.ruler` for the text): finding the
values of four keys among many pairs, following a chain of assignments, and counting which words are common.
Every sequence has the same layout::

    question | context | ASK question | answer

and fills `n_tokens` exactly, so that a batch needs no padding. The question stands before the context too, as
in "The Sparse Frontier" (section 3.2): a reader that knows what it looks for can look for it.

The vocabulary of 512 tokens:

==========  ===========================================================================================
0, 1, 2     `RETRIEVE`, `FOLLOW`, `COUNT`: open a question
3           `SET`: opens a statement ``SET a b``, "b belongs to a"
4, 5, 6     `FILLER`: a statement that says nothing
7           `ASK`: the context is over, an answer is wanted
16 ... 263  `NAMES`: keys and variables; the first 96 are the `WORDS` that are counted
264 ... 511 `VALUES`: what keys and first variables are bound to
==========  ===========================================================================================

>>> generator = torch.Generator().manual_seed(0)
>>> batch = key_value_retrieval(2, 64, generator)
>>> batch.tokens.shape, batch.answer.shape
(torch.Size([2, 64]), torch.Size([2, 4]))
>>> score("retrieval", batch.answer, batch)
tensor([1., 1.])
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

VOCABULARY = 512
RETRIEVE, FOLLOW, COUNT, SET = 0, 1, 2, 3
FILLER = (4, 5, 6)
ASK = 7
NAMES = range(16, 264)
WORDS = range(16, 112)
VALUES = range(264, 512)
ANSWER_WEIGHT = 5.0
"""What the loss of an answer's token weighs beside that of any other token."""

_STATEMENT = 3  # tokens of ``SET a b``


@dataclass(frozen=True)
class TaskBatch:
    """Sequences of one skill, all of one length and one layout.

    Attributes
    ----------
    tokens : int64 [batch, tokens]
        Questions, context, questions and, at the end, the answer.
    answer_start : int
        Where the answer begins: a model is given ``tokens[:, :answer_start]``.
    answer : int64 [batch, answers]
        The right answer, ``tokens[:, answer_start:]``.
    weights : float32 [batch, tokens]
        What each token weighs in a training loss: 5 in answers, 1 elsewhere, 0 at the first.
    """

    tokens: Int[Tensor, "batch tokens"]
    answer_start: int
    answer: Int[Tensor, "batch answers"]
    weights: Float[Tensor, "batch tokens"]

    @property
    def prompt(self) -> Int[Tensor, "batch prompt"]:
        """What comes before the answer."""
        return self.tokens[:, : self.answer_start]


# --- the three skills ---------------------------------------------------------------------------------------


def key_value_retrieval(
    batch: int,
    n_tokens: int,
    generator: torch.Generator,
    *,
    n_pairs: int | None = None,
    n_queries: int = 4,
    n_rounds: int = 1,
) -> TaskBatch:
    """Which values belong to these keys? RULER's needles in a haystack of other needles.

    The context is statements ``SET key value``, keys and values all different; the question is ``RETRIEVE``
    and `n_queries` keys; the answer their values in the same order. Answering at token t means reading the
    key `n_queries` - 1 tokens back, then finding it in the context.

    Parameters
    ----------
    batch, n_tokens : int
        Number of sequences, and the length of each, question and answer included.
    generator : torch.Generator
        Source of all randomness; its device is that of the batch.
    n_pairs : int, optional
        Statements in the context; filler takes the rest. As many as fit (at most 248) if None.
    n_queries : int
        Keys asked for in one question.
    n_rounds : int
        Questions asked one after another, each followed by its answer: more to learn from in one training
        sequence. `answer` is the last one's.

    Raises
    ------
    ValueError
        `n_tokens` is too small for what is asked for, or there are not enough names.
    """
    _check_sizes(batch, n_rounds, n_queries=n_queries)
    n_context = n_tokens - (1 + n_queries) - n_rounds * (2 + 2 * n_queries)
    fits = min(n_context // _STATEMENT, len(NAMES))
    n_pairs = fits if n_pairs is None else n_pairs
    _check_room("n_pairs", n_pairs, fits, n_tokens, least=n_queries)
    keys, values = _distinct(batch, n_pairs, NAMES, generator), _distinct(batch, n_pairs, VALUES, generator)
    context = _context(_statements(keys, values), n_context, generator)
    asked = torch.stack([_choose(batch, n_pairs, n_queries, generator) for _ in range(n_rounds)])
    questions = [_question(RETRIEVE, keys.gather(1, one)) for one in asked]
    return _assemble(context, questions, [values.gather(1, one) for one in asked])


def chain_tracking(
    batch: int,
    n_tokens: int,
    generator: torch.Generator,
    *,
    n_chains: int | None = None,
    n_hops: int = 4,
    n_rounds: int = 1,
) -> TaskBatch:
    """Which variables hold this value? RULER's variable tracking.

    A chain is ``SET value x1``, ``SET x1 x2``, ... with `n_hops` + 1 variables; the statements of several
    chains are mixed, each chain's in order, with filler between. The question is ``FOLLOW`` and the value of
    one chain, the answer its variables in chain order, so that every token of the answer is one hop.

    Parameters
    ----------
    batch, n_tokens, generator, n_rounds
        As in :func:`key_value_retrieval`.
    n_chains : int, optional
        Chains in the context. If None, as many as fill two thirds of it, at most 8 (RULER's number).
    n_hops : int
        Assignments from variable to variable in a chain.

    Raises
    ------
    ValueError
        `n_tokens` is too small for the chains, or `n_rounds` asks for more chains than there are.
    """
    _check_sizes(batch, n_rounds, n_hops=n_hops)
    size = n_hops + 1
    n_context = n_tokens - 2 - n_rounds * (3 + size)
    fits = min(max(n_context, 0) // (size * _STATEMENT), len(NAMES) // size)
    n_chains = min(8, max(1, n_context * 2 // (3 * size * _STATEMENT))) if n_chains is None else n_chains
    _check_room("n_chains", n_chains, fits, n_tokens, least=1)
    if n_rounds > n_chains:
        raise ValueError(f"n_rounds={n_rounds}: expected at most n_chains={n_chains}, one question a chain")
    names = _distinct(batch, n_chains * size, NAMES, generator).view(batch, n_chains, size)
    values = _distinct(batch, n_chains, VALUES, generator)
    before = torch.cat([values[:, :, None], names[:, :, :-1]], dim=2)
    statements = _mix_chains(_statements(before, names), generator)
    context = _context(statements, n_context, generator)
    # Chains are exchangeable: asking for the first ones is asking for any.
    questions = [_question(FOLLOW, values[:, [chain]]) for chain in range(n_rounds)]
    return _assemble(context, questions, [names[:, chain] for chain in range(n_rounds)])


def common_words(
    batch: int,
    n_tokens: int,
    generator: torch.Generator,
    *,
    n_common: int = 4,
    n_repeats: int | None = None,
    n_rare_repeats: int | None = None,
) -> TaskBatch:
    """Which words are the common ones? RULER's common word extraction.

    The context is words in random order: `n_common` of them `n_repeats` times, others `n_rare_repeats` times
    (one of them fewer, so that the length comes out). The question is ``COUNT``; the answer the common
    words in an order drawn at random: any order is right.

    Parameters
    ----------
    batch, n_tokens, generator
        As in :func:`key_value_retrieval`.
    n_common : int
        Common words (RULER has 10).
    n_repeats : int, optional
        How often each occurs; they fill 60 % of the context if None (RULER: 30 times).
    n_rare_repeats : int, optional
        How often the other words occur; 3 times if None (as in RULER), more often where the 96 words would
        not last.

    Raises
    ------
    ValueError
        `n_tokens` is too small, the rare words are not rarer, or there are not enough words.
    """
    _check_sizes(batch, 1, n_common=n_common)
    n_context = n_tokens - 3 - n_common
    n_repeats = max(n_context, 0) * 3 // (5 * n_common) if n_repeats is None else n_repeats
    left = n_context - n_common * n_repeats
    if n_rare_repeats is None:
        n_rare_repeats = max(3, -(-left // max(1, len(WORDS) - n_common)))
    _check_sizes(batch, 1, n_rare_repeats=n_rare_repeats)
    if n_repeats <= n_rare_repeats:
        raise ValueError(
            f"n_repeats={n_repeats} with n_tokens={n_tokens}, n_common={n_common}: expected more than "
            f"n_rare_repeats={n_rare_repeats}"
        )
    n_rare = -(-left // n_rare_repeats)
    if left < 0 or n_common + n_rare > len(WORDS):
        raise ValueError(
            f"n_tokens={n_tokens} with n_common={n_common}, n_repeats={n_repeats}: expected room for the "
            f"common words and at most {len(WORDS)} words in all, got {n_common + max(n_rare, 0)}"
        )
    words = _distinct(batch, n_common + n_rare, WORDS, generator)
    common = words[:, :n_common]
    rare = words[:, n_common:].repeat_interleave(n_rare_repeats, dim=1)[:, :left]
    context = _shuffle(torch.cat([common.repeat_interleave(n_repeats, dim=1), rare], dim=1), generator)
    return _assemble(context, [_question(COUNT, common[:, :0])], [common])


TASKS: dict[str, Callable[..., TaskBatch]] = {
    "retrieval": key_value_retrieval,
    "chains": chain_tracking,
    "counting": common_words,
}
"""The skills by the names that tables use; each is called with ``(batch, n_tokens, generator)``."""


def score(task: str, predicted: Int[Tensor, "batch answers"], batch: TaskBatch) -> Float[Tensor, "batch"]:
    """How good answers are, from 0 to 1, by RULER's measures.

    Parameters
    ----------
    task : str
        ``"retrieval"``: the share of positions that are right. ``"chains"`` and ``"counting"``: the
        intersection over union of the sets of tokens, whatever their order.
    predicted : int64 [batch, answers]
        What a model answered.
    batch : TaskBatch
        What it was asked.

    Raises
    ------
    ValueError
        An unknown task, or predictions of another shape than the answers.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r}: expected one of {list(TASKS)}")
    if predicted.shape != batch.answer.shape:
        raise ValueError(
            f"predicted has shape {tuple(predicted.shape)}: expected that of the answers, "
            f"{tuple(batch.answer.shape)}"
        )
    if task == "retrieval":
        return (predicted == batch.answer).float().mean(dim=1)
    right = (_members(predicted) & _members(batch.answer)).sum(dim=1)
    return right / (_members(predicted) | _members(batch.answer)).sum(dim=1)


# --- pieces -------------------------------------------------------------------------------------------------


def _members(tokens: Int[Tensor, "batch answers"]) -> Bool[Tensor, "batch vocabulary"]:
    empty = torch.zeros(len(tokens), VOCABULARY, dtype=torch.bool, device=tokens.device)
    return empty.scatter(1, tokens, True)


def _check_sizes(batch: int, n_rounds: int, **sizes: int) -> None:
    for name, value in {"batch": batch, "n_rounds": n_rounds, **sizes}.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")


def _check_room(name: str, asked: int, fits: int, n_tokens: int, least: int) -> None:
    if fits < least:
        raise ValueError(f"n_tokens={n_tokens} has room for {fits} statements or chains: expected {least}")
    if not least <= asked <= fits:
        raise ValueError(f"{name}={asked} with n_tokens={n_tokens}: expected {least} to {fits}")


def _permutations(batch: int, n: int, generator: torch.Generator) -> Int[Tensor, "batch n"]:
    return torch.rand(batch, n, generator=generator, device=generator.device).argsort(dim=1)


def _choose(batch: int, n: int, k: int, generator: torch.Generator) -> Int[Tensor, "batch k"]:
    return _permutations(batch, n, generator)[:, :k]


def _distinct(batch: int, n: int, tokens: range, generator: torch.Generator) -> Int[Tensor, "batch n"]:
    """`n` different tokens of a range for each sequence, in random order."""
    return _choose(batch, len(tokens), n, generator) + tokens.start


def _shuffle(tokens: Int[Tensor, "batch n"], generator: torch.Generator) -> Int[Tensor, "batch n"]:
    return tokens.gather(1, _permutations(len(tokens), tokens.shape[1], generator))


def _statements(left: Tensor, right: Tensor) -> Tensor:
    return torch.stack([torch.full_like(left, SET), left, right], dim=-1)


def _mix_chains(
    statements: Int[Tensor, "batch chains size 3"], generator: torch.Generator
) -> Int[Tensor, "batch n 3"]:
    """Statements of all chains in random order, but each chain's own in theirs."""
    batch, chains, size, _ = statements.shape
    owner = _permutations(batch, chains * size, generator) // size
    # A stable sort by owner lists each chain's places from the first to the last.
    places = owner.argsort(dim=1, stable=True)
    mixed = torch.empty_like(statements).flatten(1, 2)
    return mixed.scatter(1, places[..., None].expand_as(mixed), statements.flatten(1, 2))


def _context(
    statements: Int[Tensor, "batch n 3"], n_context: int, generator: torch.Generator
) -> Int[Tensor, "batch context"]:
    """Statements in their order among filler statements at random places; a broken one fills up the end."""
    batch, n, _ = statements.shape
    filler = statements.new_tensor(FILLER)
    slots = n_context // _STATEMENT
    places = _choose(batch, slots, n, generator).sort(dim=1).values
    context = filler.repeat(batch, slots, 1)
    context = context.scatter(1, places[..., None].expand_as(statements), statements)
    rest = filler[: n_context % _STATEMENT].expand(batch, -1)
    return torch.cat([context.flatten(1), rest], dim=1)


def _question(kind: int, asked: Int[Tensor, "batch n"]) -> Int[Tensor, "batch m"]:
    return torch.nn.functional.pad(asked, (1, 0), value=kind)


def _assemble(context: Tensor, questions: list[Tensor], answers: list[Tensor]) -> TaskBatch:
    """The first question, the context, then each question and its answer."""
    ask = torch.full_like(questions[0][:, :1], ASK)
    asked = [torch.cat([ask, question], dim=1) for question in questions]
    rounds = [part for pair in zip(asked, answers, strict=True) for part in pair]
    tokens = torch.cat([questions[0], context, *rounds], dim=1)
    weights = torch.ones(tokens.shape, device=tokens.device)
    weights[:, 0] = 0
    end = tokens.shape[1]
    for question, answer in zip(reversed(asked), reversed(answers), strict=True):
        weights[:, end - answer.shape[1] : end] = ANSWER_WEIGHT
        end -= question.shape[1] + answer.shape[1]
    return TaskBatch(tokens, tokens.shape[1] - answers[-1].shape[1], answers[-1], weights)
