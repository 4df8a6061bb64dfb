"""Every recorded table of the book is whole and still belongs to the code."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsebook import recorded
from sparsebook.recorded import COLUMNS, read_record

RECORDED = Path(__file__).parents[2] / "book" / "recorded"
RECORDS = sorted(RECORDED.glob("*/*.json"))


@pytest.fixture(scope="module", autouse=True)
def each_fingerprint_once() -> Iterator[None]:
    """Records of a chapter mostly share a fingerprint: it is computed once and compared with each."""
    compute, known = recorded._fingerprint_values, {}

    def remember(function: str, arguments: dict) -> list[float]:
        key = function, json.dumps(arguments, sort_keys=True)
        if key not in known:
            known[key] = compute(function, arguments)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "_fingerprint_values", remember)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_record_is_whole_and_not_stale(path: Path) -> None:
    record = read_record(path)
    assert list(record.table.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert record.info["fingerprint"]["function"].startswith("sparsebook.")
    record.replay()


def test_tables_and_descriptions_come_in_pairs() -> None:
    tables = {path.with_suffix("") for path in RECORDED.glob("*/*.csv")}
    assert tables == {path.with_suffix("") for path in RECORDS}
    others = [path for path in RECORDED.rglob("*") if path.is_file() and path.suffix not in (".csv", ".json")]
    assert others == []
