"""The films, their people and their sentences."""

import pytest

from sparsebook.data.films import _names, films


@pytest.fixture(scope="module")
def collection():
    return films()


def test_counts(collection):
    assert len(collection.films) == 12_569
    assert len(collection.with_consensus()) == 5_526
    assert len({film.imdb for film in collection.films}) == 12_569
    assert "CC BY-NC" in collection.licence


def test_a_known_film(collection):
    (film,) = (film for film in collection.films if film.imdb == "tt0076759")
    assert (film.title, film.year) == ("Star Wars", 1977) or film.title.startswith("Star Wars")
    assert film.directors == ("George Lucas",)
    assert "Harrison Ford" in film.cast
    assert film.certificate == "PG"
    assert film.runtime == 121
    assert film.consensus.endswith(".")


def test_sentences_are_sentences(collection):
    sentences = [film.consensus for film in collection.with_consensus()]
    assert not any(sentence.startswith("No consensus") for sentence in sentences)
    assert len(set(sentences)) == len(sentences)
    assert sum(len(sentence.split()) >= 8 for sentence in sentences) > 0.95 * len(sentences)


def test_commas_inside_brackets_do_not_divide():
    assert _names("A (x, y), B, ") == ("A (x, y)", "B")
    assert _names(None) == ()
