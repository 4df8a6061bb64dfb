"""Claims files for the tests: a valid claim whose fields a test changes one by one."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

VALID: dict[str, Any] = {
    "id": "C1",
    "statement": "Recall stays high.",
    "paper": "97 %",
    "source": "read",
    "setting": "analogue",
    "kind": "random",
    "quantity": "recall of one query set",
    "unit": "recall",
    "expect": {"rule": "at_least", "value": 0.95},
    "because": "the lists are long",
    "replication": {"unit": "query set", "n": 8},
    "control": "summaries shuffled",
    "needs": None,
    "revisions": [],
}


@pytest.fixture
def entry() -> Callable[..., dict[str, Any]]:
    """A valid claim as the file holds it, with fields replaced; a field given as `...` is left out."""

    def make(**changes: Any) -> dict[str, Any]:
        changed = copy.deepcopy(VALID) | changes
        return {key: value for key, value in changed.items() if value is not ...}

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write claims as ``<book>/book/retrieval/fake.claims.yml``; JSON is YAML."""

    def make(*claims: Any, slug: Any = "fake") -> Path:
        path = tmp_path / "book" / "retrieval" / "fake.claims.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"slug": slug, "claims": list(claims)}))
        return path

    return make
