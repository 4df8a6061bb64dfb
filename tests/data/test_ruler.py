"""RULER's text tasks: answers that another reader derives, lengths, determinism, scores, refusals."""

import re
from collections import Counter

import pytest

from sparsebook.data.ruler import (
    NOUNS,
    exact_match,
    intersection_over_union,
    read_answer,
    ruler_cwe,
    ruler_niah,
    ruler_vt,
    token_f1,
)

SMALL = {ruler_niah: 400, ruler_vt: 500, ruler_cwe: 900}


def words(text):
    return len(text.split())


def pieces(text):
    """A count in which long words are several tokens, as a subword tokenizer's."""
    return len(re.findall(r"\w{1,4}|[^\w\s]", text))


def solve_niah(prompt):
    """Keys in the question, values in the lines that name them."""
    identifier = r"(?:[a-z0-9]{8}-){3}[a-z0-9]{8}"
    asked = re.findall(identifier, prompt.rsplit("Question:", 1)[1])
    return [re.search(rf"{key} is ({identifier})", prompt).group(1) for key in asked]


def solve_vt(prompt):
    """Follow every assignment, in the order of the text, and keep who holds the value."""
    held = {}
    for name, source in re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)\.", prompt):
        held[name] = held.get(source, source)
    wanted = re.search(r"hold the value (\d+)", prompt).group(1)
    return [name for name, value in held.items() if value == wanted]


def solve_cwe(prompt):
    listed = Counter(re.findall(r"\d+\. ([a-z]+)", prompt))
    most = max(listed.values())
    return [word for word, n in listed.items() if n == most]


SOLVERS = {ruler_niah: solve_niah, ruler_vt: solve_vt, ruler_cwe: solve_cwe}


@pytest.mark.parametrize("sample_id", range(4))
@pytest.mark.parametrize("task", SOLVERS)
def test_the_answer_follows_from_the_prompt(task, sample_id):
    sample = task(words, SMALL[task], 1, sample_id=sample_id)
    solved = SOLVERS[task](sample.prompt)
    if task is ruler_niah or task is ruler_vt:
        assert tuple(solved) == sample.answer
    assert intersection_over_union(solved, sample.answer) == 1


@pytest.mark.parametrize("count", [words, pieces, len])
@pytest.mark.parametrize("task", SOLVERS)
def test_samples_fill_their_length(task, count):
    for scale in (1, 2.7, 8):
        most = int(SMALL[task] * scale * {words: 1, pieces: 12, len: 14}[count])
        sample = task(count, most, 0)
        assert sample.n_tokens == count(sample.prompt)
        assert 0.95 * most <= sample.n_tokens <= most


@pytest.mark.parametrize("task", SOLVERS)
def test_the_question_stands_before_and_after_and_tells_nothing(task):
    sample = task(words, SMALL[task], 5)
    assert sample.prompt.count(sample.question) == 2
    before, after = sample.prompt.split(sample.context)
    assert all(item not in before + after for item in sample.answer)
    assert all(item in sample.context for item in sample.answer)


@pytest.mark.parametrize("task", SOLVERS)
def test_samples_follow_from_seed_and_number(task):
    most = SMALL[task]
    first = task(words, most, 3, sample_id=2)
    assert task(words, most, 3, sample_id=2) == first
    others = [task(words, most, 3, sample_id=1), task(words, most, 2, sample_id=2)]
    assert all(other.prompt != first.prompt and other.answer != first.answer for other in others)


@pytest.mark.parametrize("task", SOLVERS)
def test_a_longer_sample_asks_the_same(task):
    short, long = (task(words, SMALL[task] * scale, 0) for scale in (1, 3))
    assert short.question == long.question
    assert short.answer == long.answer


def test_needles_are_all_of_one_form():
    sample = ruler_niah(words, 600, 0)
    lines = sample.context.splitlines()
    form = r"The value of ((?:[a-z0-9]{8}-){3}[a-z0-9]{8}) is ((?:[a-z0-9]{8}-){3}[a-z0-9]{8})\."
    pairs = [re.fullmatch(form, line).groups() for line in lines]
    texts = [text for pair in pairs for text in pair]
    assert len(set(texts)) == len(texts)
    assert len(sample.answer) == 4


def test_variables_have_the_sizes_of_the_paper():
    sample = ruler_vt(words, 1200, 0)
    values = [int(v) for v in re.findall(r"= (\d+)\.", sample.context)]
    hops = re.findall(r"VAR ([A-Z]{5}) = VAR ([A-Z]{5})\.", sample.context)
    assert len(set(values)) == 8
    assert all(10_000 <= value <= 99_998 for value in values)
    assert len(hops) == 32
    assert len(sample.answer) == 5
    assert "lamp" in sample.context  # filler


def test_common_words_have_the_sizes_of_the_paper():
    sample = ruler_cwe(words, 2000, 0)
    counts = Counter(re.findall(r"\d+\. ([a-z]+)", sample.context))
    assert Counter(counts.values()) == {30: 10, 3: len(counts) - 10}
    assert len(counts) > 200


def test_words_last_beyond_the_bank():
    sample = ruler_cwe(words, 4000, 0)
    listed = set(re.findall(r"\d+\. ([a-z]+)", sample.context))
    assert len(listed) > len(NOUNS)
    assert set(NOUNS) <= listed


def test_answers_fit_in_anywhere():
    """Where the needles of the question lie is random: early and late in the context over many samples."""
    places = []
    for sample_id in range(40):
        sample = ruler_niah(words, 400, 0, sample_id=sample_id, n_queries=1)
        places.append(sample.context.index(sample.answer[0]) / len(sample.context))
    assert min(places) < 0.2
    assert max(places) > 0.8
    assert 0.3 < sum(places) / 40 < 0.7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ruler_niah(words, 50, 0), r"max_tokens=50: expected at least \d+"),
        (lambda: ruler_vt(words, 200, 0), r"max_tokens=200: expected at least \d+"),
        (lambda: ruler_cwe(words, 300, 0), r"max_tokens=300: expected at least \d+"),
        (lambda: ruler_niah(lambda text: 100 * text.count("value of"), 590, 0), "only 500 tokens"),
        (lambda: ruler_niah(lambda text: 5, 100, 0), "only 5 tokens"),
        (lambda: ruler_niah(words, 400, 0, n_queries=0), "n_queries=0"),
        (lambda: ruler_vt(words, 400, 0, n_chains=0), "n_chains=0"),
        (lambda: ruler_vt(words, 400, 0, n_hops=0), "n_hops=0"),
        (lambda: ruler_cwe(words, 900, 0, n_common=0), "n_common=0"),
        (lambda: ruler_cwe(words, 900, 0, n_repeats=3), "n_repeats=3"),
        (lambda: ruler_cwe(words, 900, 0, n_rare_repeats=0), "n_rare_repeats=0"),
        (lambda: ruler_niah(words, 400, -1), "seed=-1"),
        (lambda: ruler_niah(words, 400, 0, sample_id=-2), "sample_id=-2"),
    ],
)
def test_what_cannot_be_made_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_least_length_named_is_enough():
    with pytest.raises(ValueError, match="at least") as refused:
        ruler_vt(words, 100, 0)
    least = int(re.search(r"at least (\d+)", str(refused.value)).group(1))
    assert ruler_vt(words, least, 0).n_tokens == least


# --- scores -------------------------------------------------------------------------------------------------


def test_answers_are_read_from_the_last_block():
    text = "I think <answer>no</answer>, or rather\n<ANSWER> a-1 , b\n,</ANSWER> and <answer> open"
    assert read_answer(text) == ("a-1", "b")
    assert read_answer("nothing") == ()
    assert read_answer("<answer></answer>") == ()


def test_exact_match_goes_by_position():
    gold = ("alpha", "beta", "gamma", "delta")
    assert exact_match(gold, gold) == 1
    assert exact_match(("ALPHA ", "gamma", "beta", "delta"), gold) == 0.5
    assert exact_match(("alpha",), gold) == 0.25
    assert exact_match((), gold) == 0
    assert exact_match((*gold, "more"), gold) == 1


def test_intersection_over_union_goes_by_set():
    gold = ("a", "b", "c")
    assert intersection_over_union(("c", "b", "A"), gold) == 1
    assert intersection_over_union(("a", "a", "x"), gold) == 1 / 4
    assert intersection_over_union((), gold) == 0


def test_token_f1():
    assert token_f1("The old mill.", "old mill") == 1
    assert token_f1("the mill", "old mill") == pytest.approx(2 / 3)
    assert token_f1("river", "old mill") == 0
    assert token_f1("", "old mill") == 0
    assert token_f1("a mill mill", "mill") == pytest.approx(2 / 3)


def test_scores_refuse_texts_and_empty_answers():
    with pytest.raises(ValueError, match="predicted='abc'"):
        exact_match("abc", ("abc",))
    with pytest.raises(ValueError, match="answer='abc'"):
        intersection_over_union(("abc",), "abc")
    with pytest.raises(ValueError, match="answer is empty"):
        exact_match(("abc",), ())
