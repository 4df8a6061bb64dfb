"""Every recorded table of the book is whole and still belongs to the code."""

from pathlib import Path

import pytest

from sparsebook.recorded import COLUMNS, read_record

RECORDED = Path(__file__).parents[2] / "book" / "recorded"
RECORDS = sorted(RECORDED.glob("*/*.json"))


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
