"""The token-level skills: answers that another reader derives, layouts, scores, refusals."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from sparsebook.data.sequence_tasks import (
    ANSWER_WEIGHT,
    ASK,
    COUNT,
    FILLER,
    FOLLOW,
    NAMES,
    RETRIEVE,
    SET,
    TASKS,
    VALUES,
    VOCABULARY,
    WORDS,
    chain_tracking,
    common_words,
    key_value_retrieval,
    score,
)

LENGTHS = (64, 65, 66, 128, 257, 512)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bindings(prompt):
    """What is bound to what in ``SET a b``, read off one sequence of tokens; a name is bound once."""
    found = {}
    for place, token in enumerate(prompt[:-2]):
        if token == SET:
            assert prompt[place + 1] not in found
            found[prompt[place + 1]] = prompt[place + 2]
    return found


def last_question(prompt):
    return prompt[len(prompt) - prompt[::-1].index(ASK) :]


def solve(prompt):
    """The answer of one prompt, by a reader that shares only the tokens' meanings with the generator."""
    kind, *asked = last_question(prompt)
    if kind == COUNT:
        context = prompt[1 : prompt.index(ASK)]
        frequent = max(Counter(context).values())
        return {word for word, n in Counter(context).items() if n == frequent}
    bound = bindings(prompt)
    if kind == RETRIEVE:
        return [bound[key] for key in asked]
    found, here = [], asked[0]
    while here in bound:
        here = bound[here]
        found.append(here)
    return found


@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("task", TASKS)
def test_the_answer_follows_from_the_prompt(task, n_tokens):
    batch = TASKS[task](8, n_tokens, seeded(n_tokens))
    for prompt, answer in zip(batch.prompt.tolist(), batch.answer.tolist(), strict=True):
        solved = solve(prompt)
        assert solved == (set(answer) if task == "counting" else answer)


@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("task", TASKS)
def test_layout(task, n_tokens):
    batch = TASKS[task](5, n_tokens, seeded())
    assert batch.tokens.shape == (5, n_tokens)
    assert batch.tokens.dtype == torch.int64
    assert int(batch.tokens.min()) >= 0
    assert int(batch.tokens.max()) < VOCABULARY
    assert torch.equal(batch.tokens[:, batch.answer_start :], batch.answer)
    # The question at the end is the one at the start.
    question = last_question(batch.prompt[0].tolist())
    assert batch.tokens[0, : len(question)].tolist() == question
    # Weights: nothing to foretell at first, answers five times the rest.
    assert batch.weights[:, 0].eq(0).all()
    assert batch.weights[:, 1 : batch.answer_start].eq(1).all()
    assert batch.weights[:, batch.answer_start :].eq(ANSWER_WEIGHT).all()


def test_the_vocabulary_has_no_overlaps():
    special = {RETRIEVE, FOLLOW, COUNT, SET, *FILLER, ASK}
    assert len(special) == 8
    assert not special & set(NAMES)
    assert not set(NAMES) & set(VALUES)
    assert set(WORDS) <= set(NAMES)
    assert max(VALUES) == VOCABULARY - 1


@pytest.mark.parametrize("task", TASKS)
def test_the_same_generator_gives_the_same_batch_and_another_one_another(task):
    first, again, other = (TASKS[task](4, 128, seeded(seed)).tokens for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_number_of_pairs_leaves_the_rest_to_filler():
    batch = key_value_retrieval(3, 128, seeded(), n_pairs=10)
    assert batch.tokens.eq(SET).sum(1).tolist() == [10, 10, 10]
    assert batch.tokens.eq(FILLER[0]).any(1).all()
    # Without one as many as fit: fewer than a statement's tokens are left over.
    full = key_value_retrieval(3, 128, seeded())
    assert full.tokens.eq(SET).sum(1).tolist() == [(128 - 5 - 10) // 3] * 3


def test_statements_stand_anywhere():
    """Over many draws every slot of the context holds a statement about as often as any other."""
    batch = key_value_retrieval(600, 128, seeded(), n_pairs=12)
    held = batch.tokens[:, 5 : 5 + 3 * 37 : 3].eq(SET).float().mean(0)
    expected = 12 / 37
    assert float((held - expected).abs().max()) < 5 * (expected * (1 - expected) / 600) ** 0.5


def test_chains_are_mixed_but_each_in_order():
    batch = chain_tracking(20, 256, seeded(), n_chains=8)
    split = 0
    for prompt, answer in zip(batch.prompt.tolist(), batch.answer.tolist(), strict=True):
        sources = [prompt[i + 1] for i, token in enumerate(prompt[:-2]) if token == SET]
        places = [sources.index(name) for name in [last_question(prompt)[1], *answer[:-1]]]
        assert places == sorted(places)
        split += places != list(range(places[0], places[0] + 5))
    assert split >= 18  # other chains' statements stand between: by chance almost always


def test_common_words_come_as_often_as_asked():
    batch = common_words(4, 300, seeded(), n_common=6, n_repeats=20, n_rare_repeats=4)
    for prompt, answer in zip(batch.prompt.tolist(), batch.answer.tolist(), strict=True):
        counts = Counter(prompt[1 : prompt.index(ASK)])
        assert all(counts[word] == 20 for word in answer)
        rare = [n for word, n in counts.items() if word not in answer]
        assert max(rare) == 4
        assert sum(n < 4 for n in rare) <= 1


def test_rare_words_come_more_often_where_they_would_not_last():
    for n_tokens, expected in ((512, 3), (1024, 5)):
        prompt = common_words(1, n_tokens, seeded()).prompt[0].tolist()
        counts = Counter(Counter(prompt[1 : prompt.index(ASK)]).values())
        assert counts.most_common(1)[0][0] == expected


@pytest.mark.parametrize("task", [key_value_retrieval, chain_tracking])
def test_several_rounds_are_several_questions_each_with_its_answer(task):
    batch = task(3, 200, seeded(), n_rounds=3)
    for row, weights in zip(batch.tokens.tolist(), batch.weights, strict=True):
        ends = [place for place, token in enumerate(row) if token == ASK] + [len(row)]
        assert len(ends) == 4
        seen = set()
        for begin, end in pairwise(ends):
            answered = int(weights[begin:end].gt(1).sum())
            prompt, answer = row[: end - answered], row[end - answered : end]
            assert solve(prompt) == answer
            assert weights[end - answered : end].eq(ANSWER_WEIGHT).all()
            seen.add(tuple(answer))
        assert len(seen) == 3


def test_perfect_wrong_and_half_right_answers():
    batch = key_value_retrieval(2, 64, seeded())
    assert score("retrieval", batch.answer, batch).tolist() == [1, 1]
    assert score("retrieval", batch.answer.flip(1), batch).tolist() == [0, 0]
    half = torch.cat([batch.answer[:, :2], torch.zeros(2, 2, dtype=torch.int64)], dim=1)
    assert score("retrieval", half, batch).tolist() == [0.5, 0.5]


def test_sets_are_scored_by_intersection_over_union():
    batch = common_words(1, 128, seeded())
    a, b, c, d = batch.answer[0].tolist()
    for said, expected in (
        ([d, c, b, a], 1),
        ([a, b, c, 0], 3 / 5),
        ([a, a, a, a], 1 / 4),
        ([0, 1, 2, 3], 0),
    ):
        assert score("counting", torch.tensor([said]), batch).tolist() == [pytest.approx(expected)]


def test_guessing_scores_next_to_nothing():
    for task in TASKS:
        batch = TASKS[task](64, 128, seeded())
        guess = TASKS[task](64, 128, seeded(1)).answer
        assert float(score(task, guess, batch).mean()) < 0.06, task


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: key_value_retrieval(0, 64, g), "batch=0"),
        (lambda g: key_value_retrieval(2, 20, g), "n_tokens=20"),
        (lambda g: key_value_retrieval(2, 64, g, n_pairs=40), "n_pairs=40"),
        (lambda g: key_value_retrieval(2, 64, g, n_pairs=3), "n_pairs=3"),
        (lambda g: key_value_retrieval(2, 64, g, n_queries=0), "n_queries=0"),
        (lambda g: chain_tracking(2, 20, g), "n_tokens=20"),
        (lambda g: chain_tracking(2, 128, g, n_chains=9), "n_chains=9"),
        (lambda g: chain_tracking(2, 128, g, n_chains=1, n_rounds=2), "n_rounds=2"),
        (lambda g: chain_tracking(2, 128, g, n_hops=0), "n_hops=0"),
        (lambda g: common_words(2, 20, g), "n_repeats="),
        (lambda g: common_words(2, 128, g, n_repeats=3), "n_repeats=3"),
        (lambda g: common_words(2, 128, g, n_repeats=60), "n_repeats=60"),
        (lambda g: common_words(2, 2000, g, n_repeats=20), "n_repeats=20"),
        (lambda g: common_words(2, 2000, g, n_rare_repeats=3), "at most 96 words"),
        (lambda g: common_words(2, 128, g, n_rare_repeats=0), "n_rare_repeats=0"),
        (lambda g: common_words(2, 128, g, n_common=0), "n_common=0"),
    ],
)
def test_impossible_sizes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(seeded())


def test_scoring_refuses_another_task_or_shape():
    batch = key_value_retrieval(2, 64, seeded())
    with pytest.raises(ValueError, match="task='sums'"):
        score("sums", batch.answer, batch)
    with pytest.raises(ValueError, match=r"predicted has shape \(2, 3\)"):
        score("retrieval", batch.answer[:, :3], batch)
