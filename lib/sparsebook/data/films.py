"""12,569 films with the people who made them, and what critics agreed on."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass

from sparsebook.data.catalogue import FromSource
from sparsebook.files import packaged_file

_NO_CONSENSUS = "No consensus yet"
_QUERY = """
    SELECT omdb.imdbID, Title, Year, omdb.Rating, Runtime, Genre, Director, Writer, "Cast", Language, Country,
           imdbRating, imdbVotes, Consensus
    FROM omdb JOIN tomatoes ON omdb.ID = tomatoes.ID ORDER BY omdb.ID
"""


@dataclass(frozen=True)
class Film:
    """One film; a text that the source does not have is empty, a number that it does not have is None.

    Attributes
    ----------
    imdb : identifier of the Internet Movie Database
    certificate : for whom it was rated, for example ``"PG-13"``
    runtime : minutes
    score, votes : mean of the votes (1 to 10) of the Internet Movie Database, and how many
    consensus : one sentence that sums up what critics said, or empty
    """

    imdb: str
    title: str
    year: int | None
    certificate: str
    runtime: float | None
    genres: tuple[str, ...]
    directors: tuple[str, ...]
    writers: tuple[str, ...]
    cast: tuple[str, ...]
    languages: tuple[str, ...]
    countries: tuple[str, ...]
    score: float | None
    votes: int | None
    consensus: str


@dataclass(frozen=True)
class Films(FromSource):
    """All the films, in the order of their identifiers."""

    source_name = "films"

    films: tuple[Film, ...]

    def with_consensus(self) -> tuple[Film, ...]:
        """The films that critics' sentences were written about."""
        return tuple(film for film in self.films if film.consensus)


def films() -> Films:
    """12,569 films from the Open Movie Database and Rotten Tomatoes, 5,526 of them with a consensus sentence.

    Raises
    ------
    MissingInput : bokeh-sampledata is not installed
    """
    path = packaged_file("bokeh_sampledata", "_data/movies.db")
    # Immutable: SQLite neither locks the file nor writes beside it.
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        return Films(tuple(_film(row) for row in database.execute(_QUERY)))


def _film(row: tuple) -> Film:
    imdb, title, year, certificate, runtime, *texts, score, votes, consensus = row
    genres, directors, writers, cast, languages, countries = map(_names, texts)
    return Film(
        imdb=imdb or "",
        title=title or "",
        year=year,
        certificate=certificate or "",
        runtime=runtime,
        genres=genres,
        directors=directors,
        writers=writers,
        cast=cast,
        languages=languages,
        countries=countries,
        score=score,
        votes=votes,
        consensus=_sentence(consensus),
    )


def _names(text: str | None) -> tuple[str, ...]:
    """The parts of a list written with commas; commas inside brackets belong to a part."""
    parts: list[str] = []
    for piece in (text or "").split(", "):
        if parts and parts[-1].count("(") > parts[-1].count(")"):
            parts[-1] += f", {piece}"
        else:
            parts.append(piece)
    return tuple(part.strip() for part in parts if part.strip())


def _sentence(text: str | None) -> str:
    text = (text or "").strip()
    return "" if text.startswith(_NO_CONSENSUS) else text
