"""A claims file is read completely or refused with a message that says where and why."""

import builtins
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsebook.claims import find_claims, load_claims
from sparsebook.claims.declarations import readable

Entry = Callable[..., dict[str, Any]]
Write = Callable[..., Path]


def test_a_valid_file(entry: Entry, write: Write) -> None:
    revision = {"date": "2026-02-03", "was": "at least 0.9", "reason": "the paper's table says 0.95"}
    declaration = load_claims(write(entry(), entry(id="C2a", revisions=[revision])))
    assert (declaration.slug, declaration.part) == ("fake", "retrieval")
    assert [claim.id for claim in declaration.claims] == ["C1", "C2a"]
    assert declaration["C2a"].revisions[0].date == "2026-02-03"
    assert declaration["C1"].expect.words == "at least 0.95"


@pytest.mark.parametrize(
    ("expect", "low", "high", "words"),
    [
        ({"rule": "at_least", "value": 1}, 1, math.inf, "at least 1"),
        ({"rule": "at_most", "value": 2000}, -math.inf, 2000, "at most 2,000"),
        ({"rule": "greater_than", "value": 0}, 0, math.inf, "greater than 0"),
        ({"rule": "within", "low": 0.5, "high": 1.5}, 0.5, 1.5, "from 0.5 to 1.5"),
        ({"rule": "equivalent", "value": 1, "margin": 0.25}, 0.75, 1.25, "equal to 1 within ±0.25"),
        (
            {"rule": "not_worse", "value": 1, "margin": 0.25, "better": "higher"},
            0.75,
            math.inf,
            "not worse than 1 by 0.25 (higher is better)",
        ),
        (
            {"rule": "not_worse", "value": 1, "margin": 0.25, "better": "lower"},
            -math.inf,
            1.25,
            "not worse than 1 by 0.25 (lower is better)",
        ),
        ({"rule": "ordered", "direction": "decreasing"}, -math.inf, math.inf, "every step decreasing"),
        ({"rule": "at_least", "value": "1e-3"}, 0.001, math.inf, "at least 0.001"),
    ],
)
def test_rules(entry: Entry, write: Write, expect: dict, low: float, high: float, words: str) -> None:
    claim = load_claims(write(entry(expect=expect)))["C1"]
    assert (claim.expect.low, claim.expect.high, claim.expect.words) == (low, high, words)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statement": ...}, "claim C1: missing statement"),
        ({"revisions": ...}, "missing revisions"),
        ({"colour": "red"}, "unknown colour"),
        ({"id": "C 1"}, "id must be"),
        ({"statement": " "}, "statement must be text"),
        ({"paper": 97}, "paper must be text, got 97"),
        ({"unit": None}, "unit must be text"),
        ({"source": "hearsay"}, "unknown source 'hearsay'; expected one of read"),
        ({"setting": "moon"}, "unknown setting 'moon'"),
        ({"kind": "noisy"}, "unknown kind 'noisy'"),
        ({"expect": {"rule": "atleast", "value": 1}}, "unknown rule 'atleast'; expected one of at_least"),
        ({"expect": {"value": 1}}, "missing rule"),
        ({"expect": 3}, "missing rule"),
        ({"expect": {"rule": "at_least"}}, "expect: missing value"),
        ({"expect": {"rule": "at_least", "value": 1, "margin": 2}}, "expect: unknown margin"),
        ({"expect": {"rule": "at_least", "value": "many"}}, "finite number, got 'many'"),
        ({"expect": {"rule": "at_least", "value": True}}, "finite number, got True"),
        ({"expect": {"rule": "within", "low": 2, "high": 1}}, "low must be below high"),
        ({"expect": {"rule": "equivalent", "value": 0, "margin": 0}}, "margin must be positive"),
        (
            {"expect": {"rule": "not_worse", "value": 0, "margin": 1, "better": "more"}},
            "unknown better 'more'",
        ),
        ({"expect": {"rule": "ordered", "direction": "up"}}, "unknown direction 'up'"),
        ({"replication": {"unit": "seed"}}, "replication: missing n"),
        ({"replication": {"unit": "seed", "n": 4}}, "n must be a whole number of at least 5, got 4"),
        ({"replication": {"unit": "seed", "n": 8.0}}, "n must be a whole number"),
        ({"replication": {"unit": "seed", "n": 5}}, "below 8; add reason"),
        ({"replication": 8}, "replication: expected a mapping, got 8"),
        ({"control": None}, "control may be null only for an exact claim"),
        ({"revisions": None}, "revisions must be a list"),
        ({"revisions": [{"date": "spring", "was": "a", "reason": "b"}]}, "date must be YYYY-MM-DD"),
        ({"revisions": [{"date": "2026-01-01"}]}, "revisions: missing reason, was"),
        ({"average": "harmonic"}, "unknown average 'harmonic'"),
        ({"kind": "exact", "average": "geometric"}, "an exact claim is not averaged"),
        (
            {"average": "geometric", "expect": {"rule": "at_most", "value": 0}},
            "geometric average is positive",
        ),
    ],
)
def test_what_is_refused(entry: Entry, write: Write, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_claims(write(entry(**changes)))
    assert "fake.claims.yml" in str(caught.value)


def test_few_samples_are_allowed_with_a_reason(entry: Entry, write: Write) -> None:
    few = {"unit": "training run", "n": 5, "reason": "a run takes an hour"}
    assert load_claims(write(entry(replication=few)))["C1"].replication.reason == "a run takes an hour"


@pytest.mark.parametrize(
    ("kind", "unit", "average"),
    [("timing", "ratio", "geometric"), ("timing", "slope", "arithmetic"), ("random", "ratio", "arithmetic")],
)
def test_usual_average(entry: Entry, write: Write, kind: str, unit: str, average: str) -> None:
    assert load_claims(write(entry(kind=kind, unit=unit)))["C1"].average == average


def test_what_is_wrong_with_a_whole_file(entry: Entry, write: Write) -> None:
    with pytest.raises(ValueError, match="more than once: C1"):
        load_claims(write(entry(), entry(id="C2"), entry()))
    with pytest.raises(ValueError, match="slug is 'other', expected 'fake'"):
        load_claims(write(entry(), slug="other"))
    with pytest.raises(ValueError, match="at least one claim"):
        load_claims(write())
    with pytest.raises(ValueError, match="claim number 1: expected a mapping"):
        load_claims(write("C1"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slug: fake\nclaims: [}", "not valid YAML"),
        ("- slug\n", "expected a mapping"),
        ("slug: fake\nslug: fake\nclaims: []\n", "key 'slug' twice"),
    ],
)
def test_broken_yaml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "fake.claims.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_claims(path)


def test_found_in_its_part(entry: Entry, write: Write, tmp_path: Path) -> None:
    path = write(entry())
    assert find_claims("fake", tmp_path) == path
    assert find_claims("fake", tmp_path / "book") == path
    with pytest.raises(ValueError, match=r"no other\.claims\.yml"):
        find_claims("other", tmp_path)
    twin = tmp_path / "book" / "features" / "fake.claims.yml"
    twin.parent.mkdir()
    twin.write_text(path.read_text())
    with pytest.raises(ValueError, match=r"2 fake\.claims\.yml"):
        find_claims("fake", tmp_path)


def test_without_yaml_the_extra_is_named(entry: Entry, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(FileNotFoundError, match=r"sparsebook\[book\]"):
        load_claims(write(entry()))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.95, "0.95"),
        (-0.000123456, "-0.0001235"),
        (1234567.8, "1,234,568"),
        (12.3456, "12.35"),
        (1e-9, "1.000e-09"),
        (3e8, "3.000e+08"),
        (100, "100"),
    ],
)
def test_numbers_as_readers_like_them(value: float, text: str) -> None:
    assert readable(value) == text
