"""What a chapter claims: the declared expectation, read from ``<slug>.claims.yml`` and validated."""

import datetime
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparsebook.files import missing_package

Direction = Literal["increasing", "decreasing"]

SOURCES = ("read", "second-hand", "abstract", "own specification")
SETTINGS = ("paper", "scaled", "analogue")
KINDS = ("exact", "random", "timing")
VERDICTS = ("holds", "fails", "inconclusive", "untested")

LEAST_SAMPLES = 5
"""No random or timing claim is decided with fewer."""
USUAL_SAMPLES = 8
"""A random claim declared with fewer has to say why (`replication.reason`)."""

_RULES = {
    "at_least": {"value"},
    "at_most": {"value"},
    "greater_than": {"value"},
    "within": {"low", "high"},
    "ordered": {"direction"},
    "equivalent": {"value", "margin"},
    "not_worse": {"value", "margin", "better"},
}
_REQUIRED = {
    "id", "statement", "paper", "source", "setting", "kind", "quantity", "unit", "expect", "because",
    "replication", "control", "needs", "revisions",
}  # fmt: skip
_OPTIONAL = ("average",)


@dataclass(frozen=True)
class Expectation:
    """Where the quantity is expected: the region ``[low, high]``, or every step in one direction."""

    rule: str
    low: float = -math.inf
    high: float = math.inf
    strict: bool = False
    direction: Direction | None = None
    words: str = ""
    """The rule with its numbers, as a reader would say it; the unit goes behind."""

    @property
    def centre(self) -> float:
        """The middle of a region with two borders, else the border."""
        return (self.low + self.high) / 2 if self.two_sided else self.borders[0]

    @property
    def borders(self) -> tuple[float, ...]:
        """The finite ends of the region."""
        return tuple(end for end in (self.low, self.high) if math.isfinite(end))

    @property
    def two_sided(self) -> bool:
        """Whether the region has both ends."""
        return len(self.borders) == 2


@dataclass(frozen=True)
class Replication:
    """What is repeated, at least how often, and why so rarely where it is fewer than usual."""

    unit: str
    n: int
    reason: str | None = None


@dataclass(frozen=True)
class Revision:
    """A change of an expectation after it was declared."""

    date: str
    was: str
    reason: str


@dataclass(frozen=True)
class Claim:
    """One declared claim; see the module's docstring for the fields."""

    id: str
    statement: str
    paper: str | None
    source: str
    setting: str
    kind: str
    quantity: str
    unit: str
    expect: Expectation
    because: str
    replication: Replication
    control: str | None
    needs: str | None
    revisions: tuple[Revision, ...] = ()
    average: str = "arithmetic"

    @property
    def geometric(self) -> bool:
        """Whether samples are averaged, and their interval computed, on logarithms."""
        return self.average == "geometric"

    @property
    def least_samples(self) -> int:
        """With fewer samples (after grouping) there is no verdict."""
        return self.replication.n if self.kind == "exact" else max(self.replication.n, LEAST_SAMPLES)

    def word(self, verdict: str) -> str:
        """The word shown for a verdict: only the paper's own setting can be reproduced or contradicted."""
        own_setting = self.setting == "paper" and self.source == "read"
        words = ("reproduced", "contradicted") if own_setting else ("holds here", "fails here")
        return {"holds": words[0], "fails": words[1]}.get(verdict, verdict)


@dataclass(frozen=True)
class Declaration:
    """A chapter's claims file."""

    slug: str
    part: str
    claims: tuple[Claim, ...]

    def __getitem__(self, claim_id: str) -> Claim:
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        known = ", ".join(claim.id for claim in self.claims)
        raise ValueError(f"claim {claim_id!r} is not declared in {self.slug}.claims.yml (declared: {known})")


def find_claims(slug: str, book: str | Path | None = None) -> Path:
    """The claims file of a chapter, in ``book/<part>/`` under the book's root."""
    if book is None:
        from sparsebook.book import find_book

        book = find_book()
    found = [path for base in (Path(book) / "book", Path(book)) for path in base.glob(f"*/{slug}.claims.yml")]
    if len(found) != 1:
        what = "no" if not found else f"{len(found)}"
        raise ValueError(f"slug: {what} {slug}.claims.yml in the parts of the book at {book}, expected one")
    return found[0]


def load_claims(path: str | Path) -> Declaration:
    """Read and validate a claims file.

    Raises
    ------
    ValueError
        For anything that is not as the module's docstring says; the message names the file, the claim and
        the field.
    """
    path = Path(path)
    document = _read_yaml(path)
    if not isinstance(document, dict) or set(document) != {"slug", "claims"}:
        raise ValueError(f"{path.name}: expected a mapping with the keys slug and claims")
    expected = path.name.removesuffix(".claims.yml")
    if document["slug"] != expected:
        raise ValueError(
            f"{path.name}: slug is {document['slug']!r}, expected {expected!r} as in the file's name"
        )
    entries = document["claims"]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path.name}: claims must be a list with at least one claim")
    claims = tuple(_parse_claim(entry, path.name, number) for number, entry in enumerate(entries, start=1))
    twice = sorted({claim.id for claim in claims if sum(other.id == claim.id for other in claims) > 1})
    if twice:
        raise ValueError(f"{path.name}: declared more than once: {', '.join(twice)}")
    return Declaration(document["slug"], path.resolve().parent.name, claims)


def _read_yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise missing_package("pyyaml") from error

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was compiled

    class Loader(base):
        """A loader that refuses a key given twice; YAML would silently keep the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]  # not `<<`
            keys = [self.construct_object(key, deep=True) for key in own]
            for key in keys:
                if keys.count(key) > 1:
                    raise ValueError(f"{path.name}: key {key!r} twice, line {node.start_mark.line + 1}")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)  # derives from SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: not valid YAML: {error}") from error


@dataclass(frozen=True)
class _Fields:
    """A mapping of the file, read field by field; errors say where."""

    entry: Any
    where: str

    def check_keys(self, required: Iterable[str], optional: Iterable[str] = ()) -> None:
        if not isinstance(self.entry, Mapping):
            raise ValueError(f"{self.where}: expected a mapping, got {self.entry!r}")
        missing = sorted(set(required) - set(self.entry))
        unknown = sorted(map(str, set(self.entry) - set(required) - set(optional)))
        if missing or unknown:
            parts = [
                f"{name} {', '.join(keys)}"
                for name, keys in (("missing", missing), ("unknown", unknown))
                if keys
            ]
            raise ValueError(f"{self.where}: {'; '.join(parts)}")

    def text(self, key: str) -> str:
        value = self.entry[key]
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{self.where}: {key} must be text, got {value!r}")
        return value.strip()

    def text_or_null(self, key: str) -> str | None:
        return None if self.entry.get(key) is None else self.text(key)

    def one_of(self, key: str, allowed: Sequence[str]) -> str:
        value = self.entry[key]
        if value not in allowed:
            raise ValueError(f"{self.where}: unknown {key} {value!r}; expected one of {', '.join(allowed)}")
        return value

    def number(self, key: str) -> float:
        value = self.entry[key]
        try:
            # YAML 1.1 reads 1e-3, without a point, as text.
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{self.where}: {key} must be a finite number, got {value!r}")
        return number

    def whole(self, key: str, least: int) -> int:
        value = self.entry[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{self.where}: {key} must be a whole number of at least {least}, got {value!r}")
        return value

    def inner(self, key: str) -> "_Fields":
        return _Fields(self.entry[key], f"{self.where}, {key}")


def _parse_claim(entry: Any, file: str, number: int) -> Claim:
    name = entry.get("id", f"number {number}") if isinstance(entry, Mapping) else f"number {number}"
    fields = _Fields(entry, f"{file}, claim {name}")
    fields.check_keys(_REQUIRED, _OPTIONAL)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", str(entry["id"])):
        raise ValueError(f"{fields.where}: id must be letters, digits, - and _, got {entry['id']!r}")
    kind, unit = fields.one_of("kind", KINDS), fields.text("unit")
    usual = "geometric" if kind == "timing" and unit == "ratio" else "arithmetic"
    claim = Claim(
        id=entry["id"],
        statement=fields.text("statement"),
        paper=fields.text_or_null("paper"),
        source=fields.one_of("source", SOURCES),
        setting=fields.one_of("setting", SETTINGS),
        kind=kind,
        quantity=fields.text("quantity"),
        unit=unit,
        expect=_parse_expectation(fields.inner("expect")),
        because=fields.text("because"),
        replication=_parse_replication(fields.inner("replication"), kind),
        control=fields.text_or_null("control"),
        needs=fields.text_or_null("needs"),
        revisions=_parse_revisions(entry["revisions"], fields.where),
        average=fields.one_of("average", ("arithmetic", "geometric")) if "average" in entry else usual,
    )
    _check_claim(claim, fields.where)
    return claim


def _check_claim(claim: Claim, where: str) -> None:
    if claim.control is None and claim.kind != "exact" and claim.needs is None:
        raise ValueError(f"{where}: control may be null only for an exact claim (say why in because)")
    if claim.geometric and claim.kind == "exact":
        raise ValueError(f"{where}: an exact claim is not averaged, average must be left out")
    if claim.geometric and any(border <= 0 for border in claim.expect.borders[-1:]):
        raise ValueError(f"{where}: a geometric average is positive, so is its expected region")


def _parse_expectation(fields: _Fields) -> Expectation:
    if not isinstance(fields.entry, Mapping) or "rule" not in fields.entry:
        raise ValueError(f"{fields.where}: missing rule")
    rule = fields.one_of("rule", tuple(_RULES))
    fields.check_keys({"rule"} | _RULES[rule])
    if rule == "ordered":
        direction: Any = fields.one_of("direction", ("increasing", "decreasing"))
        return Expectation(rule, direction=direction, words=f"every step {direction}")
    if rule == "within":
        low, high = fields.number("low"), fields.number("high")
        if not low < high:
            raise ValueError(f"{fields.where}: low must be below high, got {low} and {high}")
        return Expectation(rule, low, high, words=f"from {readable(low)} to {readable(high)}")
    return _parse_border(fields, rule, fields.number("value"))


def _parse_border(fields: _Fields, rule: str, value: float) -> Expectation:
    number = readable(value)
    if rule == "at_least":
        return Expectation(rule, low=value, words=f"at least {number}")
    if rule == "at_most":
        return Expectation(rule, high=value, words=f"at most {number}")
    if rule == "greater_than":
        return Expectation(rule, low=value, strict=True, words=f"greater than {number}")
    margin = fields.number("margin")
    if margin <= 0:
        raise ValueError(f"{fields.where}: margin must be positive, got {margin}")
    if rule == "equivalent":
        words = f"equal to {number} within ±{readable(margin)}"
        return Expectation(rule, value - margin, value + margin, words=words)
    better = fields.one_of("better", ("higher", "lower"))
    words = f"not worse than {number} by {readable(margin)} ({better} is better)"
    if better == "higher":
        return Expectation(rule, low=value - margin, words=words)
    return Expectation(rule, high=value + margin, words=words)


def _parse_replication(fields: _Fields, kind: str) -> Replication:
    fields.check_keys(("unit", "n"), ("reason",))
    n = fields.whole("n", 1 if kind == "exact" else LEAST_SAMPLES)
    reason = fields.text_or_null("reason")
    if kind == "random" and n < USUAL_SAMPLES and reason is None:
        raise ValueError(f"{fields.where}: n = {n} is below {USUAL_SAMPLES}; add reason: why it is so few")
    return Replication(fields.text("unit"), n, reason)


def _parse_revisions(entries: Any, where: str) -> tuple[Revision, ...]:
    if not isinstance(entries, list):
        raise ValueError(f"{where}: revisions must be a list, got {entries!r}")
    return tuple(_parse_revision(_Fields(entry, f"{where}, revisions")) for entry in entries)


def _parse_revision(fields: _Fields) -> Revision:
    fields.check_keys(("date", "was", "reason"))
    try:
        date = datetime.date.fromisoformat(str(fields.entry["date"])).isoformat()
    except ValueError as error:
        raise ValueError(f"{fields.where}: date must be YYYY-MM-DD, got {fields.entry['date']!r}") from error
    return Revision(date, fields.text("was"), fields.text("reason"))


def readable(value: float | int) -> str:
    """Four significant digits, thousands set apart, no exponent for everyday sizes."""
    if value == 0 or 1e-4 <= abs(value) < 1e7:
        places = 0 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{places}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.3e}"
