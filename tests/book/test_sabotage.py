"""No claim survives the sabotage of its method: what sabotage cannot break proves nothing.

The contract of a chapter. Beside its honest runs, ``sparsebook.experiments.<slug>`` has

``config(scale="smoke") -> Config``
    the configuration of a run that takes seconds;

``sabotage_samples(config) -> dict[str, Samples]``
    what the same measurements give when the method is broken as each claim's ``control`` says (summaries
    shuffled, masks random, the residual not updated). One entry for every claim that declares a control
    and can be tested here (``needs: null``), with as many samples as the claim needs for a verdict: too
    few of them are inconclusive whatever they say, so they would pass here without proving anything.

Each claim is judged alone, with the whole error budget for itself: that is when it holds most easily.
A chapter is found by its ``book/<part>/<slug>.claims.yml``.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sparsebook.claims import Claim, Declaration, Samples, judge, load_claims

BOOK = Path(__file__).parents[2] / "book"
CLAIMS = sorted(BOOK.glob("*/*.claims.yml"))


def breakable(declaration: Declaration) -> list[Claim]:
    """The claims that a sabotage has to break."""
    return [claim for claim in declaration.claims if claim.control is not None and claim.needs is None]


def survivors(declaration: Declaration, samples: Mapping[str, Samples]) -> list[str]:
    """What is wrong with a sabotage, one line a claim; empty when it breaks everything that it must."""
    wrong = [
        f"{claim.id}: no samples of its control ({claim.control})"
        for claim in breakable(declaration)
        if claim.id not in samples
    ]
    for claim_id in samples:
        claim = declaration[claim_id]
        judgement = judge([claim], samples)[claim_id]
        if judgement.n < claim.least_samples:
            wrong.append(f"{claim_id}: {judgement.n} samples prove nothing, {claim.least_samples} are needed")
        elif judgement.verdict == "holds":
            wrong.append(
                f"{claim_id}: still holds ({judgement.measured} {claim.unit}) under: {claim.control}"
            )
    return wrong


def sabotage(module: ModuleType) -> dict[str, Samples]:
    """Run the sabotaged twin of a chapter's method at smoke; see the contract above."""
    return module.sabotage_samples(module.config(scale="smoke"))


@pytest.mark.slow
@pytest.mark.parametrize("path", CLAIMS, ids=lambda path: path.name.removesuffix(".claims.yml"))
def test_sabotage_breaks_every_claim(path: Path) -> None:
    declaration = load_claims(path)
    if not breakable(declaration):
        pytest.skip("no claim that can be tested here declares a control")
    module = importlib.import_module(f"sparsebook.experiments.{declaration.slug}")
    assert survivors(declaration, sabotage(module)) == []


# --- the test itself, on a made-up chapter ---------------------------------------------------------------

FAKE_CLAIMS = """
slug: fake_sabotage
claims:
  - &claim
    id: C1
    statement: "Sorted prefixes hold more of the sum than random ones."
    paper: null
    source: own specification
    setting: analogue
    kind: random
    quantity: "share of the sum, less what a random choice holds"
    unit: share
    expect: {rule: greater_than, value: 0.05}
    because: "the largest come first"
    replication: {unit: seed, n: 8}
    control: "the order is random"
    needs: null
    revisions: []
  - <<: *claim
    id: C2
    kind: exact
    expect: {rule: at_least, value: 0}
    control: null
  - <<: *claim
    id: C3
    needs: "a larger machine"
"""

FAKE_EXPERIMENT = """
import numpy as np
from sparsebook.claims import Samples

def config(scale="book"):
    return {"smoke": 50, "book": 5000}[scale]

def gain(config, seed, order):
    draw = np.random.default_rng(seed)
    values = draw.exponential(1, config)
    chosen = values[np.argsort(-values)] if order == "sorted" else draw.permutation(values)
    return chosen[: config // 5].sum() / values.sum() - 0.2

def samples(config, order):
    return {"C1": Samples([gain(config, seed, order) for seed in range(8)], unit="share")}

def sabotage_samples(config):
    return samples(config, "random")
"""


@pytest.fixture
def chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Declaration, Any]:
    """A made-up chapter: its claims and its experiments."""
    path = tmp_path / "book" / "retrieval" / "fake_sabotage.claims.yml"
    path.parent.mkdir(parents=True)
    path.write_text(FAKE_CLAIMS)
    (tmp_path / "fake_sabotage.py").write_text(FAKE_EXPERIMENT)
    monkeypatch.syspath_prepend(tmp_path)
    return load_claims(path), importlib.import_module("fake_sabotage")


def test_a_sabotage_that_breaks_the_claim(chapter: tuple[Declaration, Any]) -> None:
    declaration, module = chapter
    assert survivors(declaration, sabotage(module)) == []


def test_the_honest_method_survives_and_is_reported(chapter: tuple[Declaration, Any]) -> None:
    declaration, module = chapter
    (line,) = survivors(declaration, module.samples(50, "sorted"))
    assert line.startswith("C1: still holds (0.")
    assert line.endswith("under: the order is random")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda samples: {}, "C1: no samples of its control (the order is random)"),
        (
            lambda samples: {"C1": Samples(samples["C1"].values[:7], unit="share")},
            "C1: 7 samples prove nothing, 8 are needed",
        ),
        (
            lambda samples: {"C1": Samples(samples["C1"].values, unit="share", groups=np.arange(8) // 2)},
            "C1: 4 samples prove nothing, 8 are needed",
        ),
        (
            lambda samples: {**samples, "C2": Samples(np.ones(8), unit="share")},
            "C2: still holds (1.0 share) under: None",
        ),
    ],
)
def test_what_a_sabotage_may_not_leave_out(
    chapter: tuple[Declaration, Any], change: Callable[[dict], dict], message: str
) -> None:
    declaration, module = chapter
    assert survivors(declaration, change(sabotage(module))) == [message]


def test_a_sabotage_of_undeclared_claims(chapter: tuple[Declaration, Any]) -> None:
    declaration, module = chapter
    with pytest.raises(ValueError, match="'C9' is not declared"):
        survivors(declaration, {**sabotage(module), "C9": Samples(np.ones(8), unit="share")})


def test_each_claim_is_judged_with_the_whole_budget(chapter: tuple[Declaration, Any]) -> None:
    """A barely held claim: alone it holds, and the others must not hide that."""
    declaration, _ = chapter
    barely = Samples(0.05 + np.array([-1, 0, 1, 1, 1, 1, 2, 2]) / 100, unit="share")
    many = {"C1": barely, "C3": barely}
    assert [line.partition(" (")[0] for line in survivors(declaration, many)] == [
        "C1: still holds",
        "C3: still holds",
    ]
