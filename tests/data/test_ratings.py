"""MovieLens 100K is the well-known one."""

import numpy as np
import pytest

from sparsebook import files
from sparsebook.data.catalogue import source
from sparsebook.data.ratings import movielens_100k

fetched = pytest.mark.skipif(
    not source("ml-100k").available(), reason="the wheel has not been fetched: run `make prepare`"
)


@fetched
def test_counts_and_ranges():
    ratings = movielens_100k()
    assert (
        ratings.user.shape == ratings.item.shape == ratings.rating.shape == ratings.time.shape == (100_000,)
    )
    assert np.unique(ratings.user).tolist() == list(range(943))
    assert np.unique(ratings.item).tolist() == list(range(1682))
    assert np.bincount(ratings.rating.astype(int)).tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    assert np.bincount(ratings.user).min() == 20
    assert ratings.rating.dtype == np.float32
    assert "GroupLens" in ratings.licence


@fetched
def test_known_rows():
    ratings = movielens_100k()
    first = (ratings.user[0], ratings.item[0], ratings.rating[0], ratings.time[0])
    assert first == (195, 241, 3.0, 881250949)
    assert ratings.item_titles[0] == "Toy Story"
    assert ratings.item_genres[0] == ("Animation", "Children's", "Comedy")
    assert ratings.item_years[0] == 1995
    assert (ratings.user_ages[0], ratings.user_genders[0], ratings.user_occupations[0]) == (
        24,
        "M",
        "technician",
    )
    assert ratings.user_zip_codes[0] == "85711"


@fetched
def test_films_and_people_are_all_described():
    ratings = movielens_100k()
    assert len(ratings.item_titles) == len(ratings.item_genres) == len(ratings.item_years) == 1682
    assert len(ratings.user_ages) == len(ratings.user_genders) == len(ratings.user_occupations) == 943
    years = ratings.item_years[ratings.item_years > 0]
    assert (years.min(), years.max(), len(years)) == (1922, 1998, 1680)


def test_without_the_wheel_one_sentence_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEBOOK_CACHE", str(tmp_path))
    with pytest.raises(files.MissingInput, match=r"recbole 1\.2\.1 .*`make prepare`"):
        movielens_100k()
