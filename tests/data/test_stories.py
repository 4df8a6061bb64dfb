"""Stories: answers that another reader derives from the text, the cue and its absence, lengths, refusals."""

import re

import pytest

from sparsebook.data.ruler import exact_match, intersection_over_union
from sparsebook.data.stories import (
    ADJECTIVES,
    BUYING,
    CHARACTERS,
    EVENTS,
    ITEMS,
    LOCATIONS,
    MATERIALS,
    SELLING,
    TYPES,
    _Story,
    story_filtering,
    story_multihop,
    story_retrieval,
)

SMALL = {story_retrieval: 1200, story_filtering: 700, story_multihop: 500}
ITEM = rf"[Tt]he ((?:{'|'.join(ADJECTIVES)}) (?:{'|'.join(MATERIALS)}) (?:{'|'.join(TYPES)}))"
BOUGHT = ("bought", "purchased", "acquired", "paid for", "had paid for")
SOLD = ("sold", "parted with", "new owner", "traded away")


def words(text):
    return len(text.split())


def chapters_of(context):
    """Number -> text."""
    parts = re.split(r"Chapter (\d+)\n", context)[1:]
    return {int(n): text for n, text in zip(parts[::2], parts[1::2], strict=True)}


def deals(text):
    """What a chapter's text says was bought and what was sold, told apart by the sentence's verb."""
    bought, sold = [], []
    for sentence in re.findall(r"[^.”]+\.", text):
        for item in re.findall(ITEM, sentence):
            assert any(verb in sentence for verb in BOUGHT) != any(verb in sentence for verb in SOLD)
            (bought if any(verb in sentence for verb in BOUGHT) else sold).append(item)
    return bought, sold


def parts_of(prompt):
    question = prompt.split("Question: ")[1].split("\n")[0]
    context = prompt.split("Context:\n")[1].split("\n\nQuestion:")[0]
    return question, chapters_of(context)


def fact(question, chapters):
    number = int(re.search(r"chapter (\d+)", question).group(1))
    text = chapters[number]
    if "buy" in question:
        return deals(text)[0][0]
    pattern = {"Where": "arrived at", "Whom": "she met", "What": "talk of the day was"}[question.split()[0]]
    return re.search(rf"{pattern} ([^.]+)\.", text).group(1)


def solve_retrieval(prompt):
    question, chapters = parts_of(prompt)
    return [fact(one, chapters) for one in re.split(r"\(\d+\) ", question)[1:]]


def solve_filtering(prompt):
    _, chapters = parts_of(prompt)
    return [str(n) for n, text in chapters.items() if not deals(text)[0]]


def solve_multihop(prompt):
    question, chapters = parts_of(prompt)
    target = re.search(ITEM, question).group(1)
    (number,) = [n for n, text in chapters.items() if target in deals(text)[0]]
    return deals(chapters[number - 1])[0]


SOLVERS = {
    story_retrieval: solve_retrieval,
    story_filtering: solve_filtering,
    story_multihop: solve_multihop,
}


@pytest.mark.parametrize("sample_id", range(4))
@pytest.mark.parametrize("task", SOLVERS)
def test_the_answer_follows_from_the_prompt(task, sample_id):
    sample = task(words, SMALL[task], 1, sample_id=sample_id)
    solved = SOLVERS[task](sample.prompt)
    assert tuple(solved) == sample.answer
    assert exact_match(solved, sample.answer) == intersection_over_union(solved, sample.answer) == 1


@pytest.mark.parametrize("task", SOLVERS)
def test_samples_fill_their_length(task):
    for count, scale in ((words, 1), (words, 3), (len, 7)):
        most = SMALL[task] * scale
        sample = task(count, most, 0)
        assert sample.n_tokens == count(sample.prompt)
        assert 0.95 * most <= sample.n_tokens <= most


@pytest.mark.parametrize("task", SOLVERS)
def test_the_question_stands_before_and_after_and_tells_nothing(task):
    sample = task(words, SMALL[task], 5)
    assert sample.prompt.count(sample.question) == 2
    if task is not story_filtering:  # its answers are numbers of chapters
        assert all(item not in sample.question for item in sample.answer)
        assert all(item in sample.context for item in sample.answer)


@pytest.mark.parametrize("task", SOLVERS)
def test_samples_follow_from_seed_and_number(task):
    most = SMALL[task]
    first = task(words, most, 3, sample_id=2)
    assert task(words, most, 3, sample_id=2) == first
    others = [task(words, most, 3, sample_id=1), task(words, most, 2, sample_id=2)]
    assert all(other.context != first.context for other in others)


def test_banks_have_the_sizes_of_the_paper_and_no_doubles():
    banks = {
        LOCATIONS: 64,
        CHARACTERS: 49,
        EVENTS: 20,
        ADJECTIVES: 18,
        MATERIALS: 15,
        TYPES: 21,
        ITEMS: 18 * 15 * 21,
        BUYING: 9,
        SELLING: 5,
    }
    assert all(len(bank) == len(set(bank)) == size for bank, size in banks.items())
    # Answers are separated by commas, so none may have one.
    assert not [item for bank in list(banks)[:7] for item in bank if "," in item]
    first_names = [name.split()[0] for name in CHARACTERS]
    assert len(set(first_names)) == 49


@pytest.mark.parametrize("task", SOLVERS)
def test_chapters_are_what_they_should_be(task):
    """One purchase each (but for the hidden ones), items unique, sales only of what came before."""
    sample = task(words, 4000, 2, **({"cue": False} if task is story_filtering else {}))
    owned, n_sales, without = set(), 0, []
    chapters = chapters_of(sample.context)
    assert list(chapters) == list(range(1, len(chapters) + 1))
    for number, text in chapters.items():
        bought, sold = deals(text)
        assert len(sold) <= 1
        assert len(text.split("”")) == 4  # three sentences of dialogue
        assert set(sold) <= owned
        owned -= set(sold)
        assert not owned & set(bought)
        if bought:
            (item,) = bought
            owned.add(item)
        else:
            without.append(str(number))
        n_sales += len(sold)
    assert tuple(without) == (sample.answer if task is story_filtering else ())
    share, n = n_sales / len(chapters), len(chapters)
    assert abs(share - 0.5) < 4 * 0.5 / n**0.5


def test_the_paper_s_filtering_sells_what_was_never_bought_and_the_mended_one_does_not():
    """Over some samples: the cue names hidden chapters; without it no sale lacks its purchase."""
    cues = {True: 0, False: 0}
    for cue in cues:
        for sample_id in range(4):
            sample = story_filtering(words, 1500, 0, sample_id=sample_id, cue=cue)
            told = [deals(text) for text in chapters_of(sample.context).values()]
            bought = {item for here, _ in told for item in here}
            cues[cue] += sum(item not in bought for _, sold in told for item in sold)
            assert len(sample.answer) == 3
    assert cues[True] > 0
    assert cues[False] == 0


def test_questions_of_retrieval_are_different_facts():
    sample = story_retrieval(words, 1500, 0)
    questions = re.split(r"\(\d+\) ", sample.question)[1:]
    assert len(questions) == len(set(questions)) == len(sample.answer) == 16
    assert len({question.split()[0] for question in questions}) == 4


def test_the_target_of_two_hops_is_in_any_chapter_but_the_first():
    first, last = False, False
    for sample_id in range(16):
        sample = story_multihop(words, 450, 0, sample_id=sample_id)
        chapters = chapters_of(sample.context)
        (place,) = [n for n, text in chapters.items() if sample.answer[0] in deals(text)[0]]
        assert place < len(chapters)
        first, last = first or place == 1, last or place == len(chapters) - 1
    assert first
    assert last


def test_a_story_ends_where_its_items_do():
    story = _Story(0, 0, "any")
    assert len(story.chapters(50)) == 50
    with pytest.raises(ValueError, match="expected at most 5670"):
        story.chapters(5671)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: story_retrieval(words, 300, 0), r"max_tokens=300: expected at least \d+"),
        (lambda: story_filtering(words, 150, 0), r"max_tokens=150: expected at least \d+"),
        (lambda: story_multihop(words, 100, 0), r"max_tokens=100: expected at least \d+"),
        (lambda: story_retrieval(words, 900, 0, n_questions=0), "n_questions=0"),
        (lambda: story_filtering(words, 900, 0, n_without=0), "n_without=0"),
        (lambda: story_multihop(words, 900, -1), "seed=-1"),
        (lambda: story_multihop(words, 900, 0, sample_id=-1), "sample_id=-1"),
        (lambda: story_multihop(lambda text: 5, 20, 0), "only 5 tokens"),
    ],
)
def test_what_cannot_be_made_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
