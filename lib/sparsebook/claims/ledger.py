"""The ledger of a chapter: takes samples, judges them, and reads stored reports back."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsebook.claims.declarations import Claim, Declaration, find_claims, load_claims
from sparsebook.claims.reports import MIME, Report, row_of
from sparsebook.claims.verdicts import Judgement, Samples, check_fits, judge
from sparsebook.evaluation.statistics import ALPHA


class Ledger:
    """Takes the samples of a chapter's claims and judges them.

    Parameters
    ----------
    declaration : Declaration
        The declared claims (`load_claims`); usually opened by slug with `Ledger.open`.
    scale : str
        The scale of the run, stored with every row.
    machine : str, optional
        The machine's name in the rows; found out by itself if not given.
    """

    def __init__(self, declaration: Declaration, scale: str, machine: str | None = None) -> None:
        self.declaration = declaration
        self.scale = scale
        self._machine = machine
        self._samples: dict[str, Samples] = {}
        self._untested: dict[str, str] = {}

    @classmethod
    def open(cls, slug: str, scale: str = "book", book: str | Path | None = None) -> "Ledger":
        """Open a chapter's claims; ``book`` is the book's root, found from the working folder if None."""
        return cls(load_claims(find_claims(slug, book)), scale)

    def check(self, claim_id: str, samples: Samples) -> None:
        """Supply what was measured for a claim.

        Raises
        ------
        ValueError
            For an undeclared claim, one that was supplied before, another unit than declared, the wrong
            number of dimensions for the rule, or values that are not positive in a geometric average.
        """
        claim = self._open_claim(claim_id)
        check_fits(claim, samples)
        self._samples[claim_id] = samples

    def check_all(self, samples: Mapping[str, Samples], why: str | None = None) -> None:
        """Supply all that was measured; every other claim is untested, for what it needs or else for `why`.

        Raises
        ------
        ValueError
            As `check` and `untested`.
        """
        for claim_id, own in samples.items():
            self.check(claim_id, own)
        for claim in self.declaration.claims:
            if claim.id not in samples:
                self.untested(claim.id, None if claim.needs else why)

    def untested(self, claim_id: str, why: str | None = None) -> None:
        """Say that a claim was not tested here, and why.

        A claim that declares what it `needs` has its reason there. One that is testable with the book's own
        packages takes a reason of this run, such as a rival that is not installed; the stored book may hold
        no such row.

        Raises
        ------
        ValueError
            When neither the declaration nor ``why`` gives a reason.
        """
        claim = self._open_claim(claim_id)
        if claim.needs is None and not why:
            raise ValueError(
                f"claim {claim_id}: declared as testable here (needs: null); check it, or say why not"
            )
        self._untested[claim_id] = why or f"needs {claim.needs}"

    def report(self) -> Report:
        """Judge all claims; the last line of the cell tagged `claims`.

        Raises
        ------
        ValueError
            When a declared claim was neither checked nor called untested.
        """
        missing = [claim.id for claim in self.declaration.claims if not self._supplied(claim.id)]
        if missing:
            raise ValueError(
                f"claims declared but not supplied: {', '.join(missing)} (use check or untested)"
            )
        judged = judge([self.declaration[claim_id] for claim_id in self._samples], self._samples)
        rows = [self._row(claim, judged) for claim in self.declaration.claims]
        return Report(self.declaration.slug, self.scale, tuple(rows))

    def _supplied(self, claim_id: str) -> bool:
        return claim_id in self._samples or claim_id in self._untested

    def _open_claim(self, claim_id: str) -> Claim:
        claim = self.declaration[claim_id]
        if self._supplied(claim_id):
            raise ValueError(f"claim {claim_id} was supplied before; each claim is checked once")
        return claim

    def _row(self, claim: Claim, judged: Mapping[str, Judgement]) -> dict[str, Any]:
        if self._machine is None:
            from sparsebook.evaluation.machine import machine_name

            self._machine = machine_name()
        judgement = judged.get(claim.id) or Judgement("untested", self._untested[claim.id])
        return row_of(self.declaration, claim, judgement, self.scale, self._machine)


def read_claims(notebook_path: str | Path) -> list[dict[str, Any]]:
    """The rows that `Ledger.report` stored in an executed notebook.

    Raises
    ------
    ValueError
        When the file is no notebook or does not hold exactly one report.
    """
    path = Path(notebook_path)
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a notebook ({error!r})") from error
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    reports = [data[MIME] for data in outputs if MIME in data]
    if len(reports) != 1:
        raise ValueError(
            f"{path}: expected one stored report of claims, found {len(reports)}; execute it first"
        )
    return list(reports[0]["claims"])


def expected_false_verdicts(rows: Iterable[Mapping[str, Any]]) -> float:
    """How many of these verdicts to expect to be wrong by chance alone.

    The number supposes the worst: every true mean lies on the border of its region. A claim with one border
    is then decided wrongly with probability ``ALPHA / 2`` at its level, one with two borders with at most
    ``ALPHA``; Holm's procedure makes a whole chapter err as often as one claim. What is returned bounds
    the expected number of chapters with a wrong verdict, and is the number of wrong verdicts where claims
    are independent (claims that share their seeds err together, about 1.4 times as many at the worst).
    Exact claims leave nothing to chance.
    """
    rates: dict[str, list[float]] = {}
    for row in rows:
        if row["kind"] != "exact" and row["verdict"] != "untested":
            both = row["expect"]["rule"] in ("within", "equivalent")
            rates.setdefault(row["slug"], []).append(ALPHA if both else ALPHA / 2)
    return float(sum(sum(chapter) / len(chapter) for chapter in rates.values()))
