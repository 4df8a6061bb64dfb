"""Parameters: read from the notebook, parsed from the command line, checked by name."""

from pathlib import Path

import pytest

from sparsebook.book import find_chapters
from sparsebook.book.parameters import (
    as_given,
    as_text,
    assigned,
    declared_parameters,
    parameters_for,
    parse_value,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("-3", -3), ("1e-3", 1e-3), ("0.5", 0.5), ("True", True), ("true", True), ("None", None),
        ("null", None), ("[1, 2]", [1, 2]), ('{"a": 1}', {"a": 1}), ("'12'", "12"), ("cuda:0", "cuda:0"),
        ("data/vectors.npz", "data/vectors.npz"), ("", ""), ("(1, 2)", [1, 2]), ("1+2j", "1+2j"),
        ("b'x'", "b'x'"), ("no", "no"),
    ],
)  # fmt: skip
def test_values_are_read_as_a_person_means_them(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_declared_parameters_with_their_defaults(fabricate) -> None:
    path = find_chapters(["good"], fabricate(good="1").root)[0].path
    found = declared_parameters(path)
    assert found == {"scale": "book", "seed": 0, "device": "auto", "threads": None, "mark_path": None, "k": 3}
    assert assigned("a: int = 2\nb = c = [1]\nd = f(3)\nx.y = 1") == {"a": 2, "b": [1], "c": [1], "d": "f(3)"}


def test_what_equals_the_default_is_left_out(fabricate) -> None:
    chapter = find_chapters(["good"], fabricate(good="1").root)[0]
    assert parameters_for(chapter, {"k": 3}, "book") == {}
    assert parameters_for(chapter, {"k": 4, "seed": 0}, "smoke") == {"scale": "smoke", "k": 4}
    assert parameters_for(chapter, {"k": True}, None) == {"k": True}
    assert as_text({"k": 4, "scale": "smoke"}) == "scale='smoke', k=4"


@pytest.mark.parametrize(
    ("given", "scale", "sentence"),
    [
        ({"kk": 1}, None, "good has no parameter 'kk'; it has scale, seed, device, threads, mark_path, k"),
        ({}, "huge", "scale is 'huge'; expected one of smoke, book, full, paper"),
        ({"scale": "full"}, "smoke", "scale is given twice"),
        ({"mark_path": "/no/such"}, None, "mark_path is '/no/such', but there is no such file"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(fabricate, given, scale, sentence: str) -> None:
    chapter = find_chapters(["good"], fabricate(good="1").root)[0]
    with pytest.raises(ValueError, match=sentence):
        parameters_for(chapter, given, scale)


def test_paths_are_those_of_the_caller(fabricate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chapter = find_chapters(["good"], fabricate(good="1").root)[0]
    (tmp_path / "vectors").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parameters_for(chapter, {"mark_path": "vectors"}, None) == {"mark_path": str(tmp_path / "vectors")}
    # A parameter that is text by default stays text, also where a folder happens to have that name.
    assert parameters_for(chapter, {"device": "vectors"}, None) == {"device": "vectors"}


def test_values_that_a_notebook_cannot_be_given_are_refused(tmp_path: Path) -> None:
    assert as_given({"a": tmp_path, "b": (1, 2)}) == {"a": str(tmp_path), "b": [1, 2]}
    with pytest.raises(ValueError, match="parameter a is <object object"):
        as_given({"a": object()})
