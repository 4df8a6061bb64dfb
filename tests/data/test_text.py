"""Wikipedia passages whose queries were taken out before; the Lee corpus; judged pairs of words."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from sparsebook.data.text import _pieces, _sentences, lee_corpus, wikipedia_passages, word_similarity


@pytest.fixture(scope="module")
def passages():
    return wikipedia_passages(held_out=2000)


def test_the_whole_collection_is_there():
    whole = wikipedia_passages()
    assert len(whole.texts) == 12_437
    assert whole.queries == ()
    assert len(whole.titles) == 110 + 250
    assert "Anarchism" in whole.titles
    assert (whole.stemmed.sum(), (~whole.stemmed).sum()) == (5183, 7254)
    assert "CC BY-SA" in whole.licence


def test_passages_have_about_the_asked_number_of_words(passages):
    lengths = np.array([len(text.split()) for text in passages.texts])
    of_article = np.bincount(passages.article, minlength=len(passages.titles))[passages.article]
    assert lengths[of_article > 1].min() >= 32  # a shorter article is one passage
    assert lengths.max() < 96
    assert np.median(lengths) == 64
    assert len(passages.article) == len(passages.stemmed) == len(passages.texts)
    assert (np.diff(passages.article) >= 0).all()


def test_prose_is_clean_and_stems_are_marked(passages):
    prose = " ".join(t for t, stemmed in zip(passages.texts, passages.stemmed, strict=True) if not stemmed)
    for rest in ("[[", "]]", "{{", "}}", "'''", "<ref", "&nbsp;", "==", "File:", "#REDIRECT"):
        assert prose.count(rest) <= 3, rest
    assert prose.count(". ") > 10_000
    stems = passages.texts[int(np.flatnonzero(passages.stemmed)[0])]
    assert stems.startswith("anarch greek rule stem")


def runs(text, length=6):
    words = text.split()
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def test_no_query_stands_in_any_passage_word_for_word(passages):
    standing = set().union(*map(runs, passages.texts))
    assert len(passages.queries) == len(set(passages.queries)) == 2000
    for query in passages.queries:
        assert not runs(query) & standing
    everything = "\n".join(passages.texts)
    assert not any(query in everything for query in passages.queries[:100])


def test_no_query_stands_in_a_stemmed_passage(passages):
    from gensim.parsing.porter import PorterStemmer

    stem = PorterStemmer().stem
    stemmed = [t for t, is_stemmed in zip(passages.texts, passages.stemmed, strict=True) if is_stemmed]
    known = {word for text in stemmed for word in text.split()}
    standing = set().union(*(runs(text, 4) for text in stemmed))
    for query in passages.queries[:500]:
        stems = [stem(word.strip('.,;:()"!?')) for word in query.lower().split()]
        assert not runs(" ".join(word for word in stems if word in known), 4) & standing


def test_queries_are_sentences_that_were_there(passages):
    whole = wikipedia_passages(words=10**6)  # an article a passage
    for query, article in zip(passages.queries[:200], passages.query_article, strict=False):
        assert query in whole.texts[article]
        assert 10 <= len(query.split()) <= 40
        assert query[0].isupper()


def test_removing_queries_removes_nothing_else():
    whole, rest = wikipedia_passages(stemmed=False), wikipedia_passages(held_out=500, stemmed=False)
    words = [sum(len(text.split()) for text in each.texts) for each in (whole, rest)]
    assert words[0] - words[1] == sum(len(query.split()) for query in rest.queries)
    assert not rest.stemmed.any()


def test_fewer_queries_are_the_first_of_more_and_seeds_differ(passages):
    assert wikipedia_passages(held_out=50).queries == passages.queries[:50]
    assert wikipedia_passages(held_out=50, seed=1).queries != passages.queries[:50]


DIGEST = """
import hashlib
from sparsebook.data.text import wikipedia_passages
found = wikipedia_passages(held_out=300, seed=3)
print(hashlib.sha256(repr((found.texts, found.queries, found.query_article.tolist())).encode()).hexdigest())
"""


def test_two_processes_get_the_same():
    found = wikipedia_passages(held_out=300, seed=3)
    content = repr((found.texts, found.queries, found.query_article.tolist()))
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"words": -64}, r"words=-64: expected at least 8"),
        ({"held_out": -1}, r"held_out=-1: expected between 0 and 3\d\d\d"),
        ({"held_out": 10**6}, r"held_out=1000000: expected between 0 and 3\d\d\d"),
        ({"seed": -1}, r"seed=-1: expected a whole number"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        wikipedia_passages(**arguments)


@pytest.mark.parametrize(
    ("count", "lengths"), [(0, []), (3, [3]), (10, [10]), (14, [14]), (15, [10, 5]), (24, [10, 14])]
)
def test_pieces(count, lengths):
    words = [str(number) for number in range(count)]
    pieces = _pieces(words, 10)
    assert [len(piece.split()) for piece in pieces] == lengths
    assert " ".join(pieces).split() == words


def test_sentences_end_where_sentences_end():
    text = 'Mr. A. Smith met Dr. Jones, i.e. him. "It is 3.5 km." He left (at 5 p.m.). Why? No one knew!'
    assert _sentences([text]) == [
        "Mr. A. Smith met Dr. Jones, i.e. him.",
        '"It is 3.5 km."',
        "He left (at 5 p.m.).",
        "Why?",
        "No one knew!",
    ]


def test_the_lee_corpus():
    lee = lee_corpus()
    assert (len(lee.texts), len(lee.background)) == (50, 300)
    assert lee.texts[0].startswith("The national executive of the strife-torn Democrats")
    assert lee.similarity.shape == (50, 50)
    np.testing.assert_array_equal(lee.similarity, lee.similarity.T)
    np.testing.assert_array_equal(np.diag(lee.similarity), 1)
    assert lee.similarity[0, 1:4].tolist() == [0.3, 0.24, 0.2]
    assert 0 <= lee.similarity.min() <= lee.similarity.max() <= 1
    assert "Lee, Pincombe" in lee.citation


def test_judged_pairs_of_words():
    similar, related = word_similarity("simlex999"), word_similarity("wordsim353")
    assert (len(similar.pairs), len(related.pairs)) == (999, 353)
    assert (similar.pairs[0], similar.judgement[0]) == (("old", "new"), 1.58)
    assert (related.pairs[0], related.judgement[0]) == (("love", "sex"), 6.77)
    assert similar.source.name == "simlex999"
    with pytest.raises(ValueError, match="name='men': expected one of"):
        word_similarity("men")
