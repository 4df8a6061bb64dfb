"""Records are kept whole, replayed, and refused when they no longer belong to the code."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sparsebook.recorded as recorded
from sparsebook.recorded import (
    Recorded,
    StaleRecord,
    forget_stages,
    inside_prediction,
    load,
    read_record,
    run_stages,
    save,
    stage,
)

MODULE = """
FACTOR = 1.0

def fingerprint(n=3):
    return [FACTOR * value for value in (0.0, 1.0, 2.0)[:n]]

def broken():
    return [float("nan")]
"""


@dataclasses.dataclass(frozen=True)
class Config:
    n: int = 20_000
    cuts: tuple[int, ...] = (3, 5)
    corpus: Path | None = None


def table(**changes: Any) -> pd.DataFrame:
    columns = {
        "experiment": "growth",
        "method": ["ours", "exact"],
        "seed": [0, 0],
        "metric": "recall",
        "value": [0.1 + 0.2, 1.0],
        "unit": "fraction",
        "n": 5000,
    }
    return pd.DataFrame(columns | changes)


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A book's folder, an importable module with a fingerprint, and a cache of its own."""
    (tmp_path / "book").mkdir()
    (tmp_path / "recorded_code.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "recorded_code", raising=False)
    monkeypatch.setenv("SPARSEBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path


def record(book: Path, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "parameters": Config(),
        "seeds": range(3),
        "fingerprint_function": "recorded_code:fingerprint",
        "book": book,
    }
    return save("seismic", "growth", changes.pop("table", table()), **(arguments | changes))


# --- records ---------------------------------------------------------------------------------------------


def test_saved_and_loaded(book: Path) -> None:
    path = record(book, fingerprint_arguments={"n": 2}, rtol=1e-3)
    assert path == book / "book" / "recorded" / "seismic" / "growth.csv"
    loaded = load("seismic", "growth", book=book)
    pd.testing.assert_frame_equal(loaded.table, table(), check_exact=True)
    assert loaded.info["parameters"] == {"n": 20_000, "cuts": [3, 5], "corpus": None}
    assert loaded.info["seeds"] == [0, 1, 2]
    assert {"cpu", "instruction_set", "versions"} <= set(loaded.info["machine"])
    assert loaded.info["fingerprint"] == {
        "function": "recorded_code:fingerprint",
        "arguments": {"n": 2},
        "values": [0.0, 1.0],
        "rtol": 1e-3,
    }
    loaded.replay()
    assert sorted(file.name for file in path.parent.iterdir()) == ["growth.csv", "growth.json"]


def test_found_from_the_working_folder(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(book)
    (book / "_toc.yml").touch()
    monkeypatch.delenv("SPARSEBOOK_BOOK", raising=False)
    monkeypatch.chdir(book / "book")
    assert len(load("seismic", "growth").table) == 2


def test_values_of_some_rows(book: Path) -> None:
    record(book)
    loaded = load("seismic", "growth", book=book)
    np.testing.assert_array_equal(loaded.values(method="exact", n=5000), [1.0])
    with pytest.raises(ValueError, match="'colour' is no column; there are experiment, method"):
        loaded.values(colour="red")
    with pytest.raises(ValueError, match="no recorded row with"):
        loaded.values(method="other")


def test_a_changed_method_makes_the_record_stale(book: Path) -> None:
    record(book)
    loaded = load("seismic", "growth", book=book)
    sys.modules["recorded_code"].FACTOR = 1 + 1e-7
    loaded.replay()  # another machine's rounding
    sys.modules["recorded_code"].FACTOR = 1.001
    with pytest.raises(
        StaleRecord, match=r"seismic/growth: value 1 .* is 1\.00.*, recorded was 1\.0.*2 of 3 differ"
    ):
        loaded.replay()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"function": "recorded_code:gone"}, "cannot be replayed: AttributeError"),
        ({"function": "no_such_module:f"}, "cannot be replayed: ModuleNotFoundError"),
        ({"arguments": {"m": 1}}, "cannot be replayed: TypeError"),
        ({"function": "recorded_code:broken"}, "must return finite numbers"),
        ({"arguments": {"n": 2}}, "the fingerprint has 2 values, recorded were 3"),
    ],
)
def test_what_cannot_be_replayed_is_stale(book: Path, change: dict, message: str) -> None:
    record(book)
    loaded = load("seismic", "growth", book=book)
    changed = loaded.info | {"fingerprint": loaded.info["fingerprint"] | change}
    with pytest.raises(StaleRecord, match=message):
        Recorded(loaded.table, changed).replay()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": table().drop(columns=["unit", "seed"])}, "missing the columns seed, unit"),
        ({"table": table().iloc[:0]}, "no rows"),
        ({"table": table(value=[1.0, np.nan])}, "must hold finite numbers"),
        ({"table": table(value=["1", "2"])}, "must hold finite numbers"),
        ({"table": table(method=["ours", None])}, "empty cells in method"),
        ({"parameters": {"f": print}}, "parameters: cannot be kept as JSON"),
        ({"parameters": {"x": float("nan")}}, "parameters: cannot be kept as JSON"),
        (
            {"parameters": Config(corpus=Path("/data/corpus"))},
            "absolute path '/data/corpus' names one machine",
        ),
        ({"parameters": {"a": [{"b": "/data"}]}}, "absolute path '/data' names one machine"),
        ({"fingerprint_function": "recorded_code"}, "expected 'module:function'"),
        ({"fingerprint_function": "recorded_code:broken"}, "must return finite numbers"),
    ],
)
def test_what_is_not_recorded(book: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(book, **changes)
    assert not (book / "book" / "recorded").exists()


@pytest.mark.parametrize("name", ["../growth", "Growth", "", "a b"])
def test_names_are_addresses(book: Path, name: str) -> None:
    with pytest.raises(ValueError, match="experiment: expected lower-case letters"):
        load("seismic", name, book=book)


def test_damaged_records(book: Path) -> None:
    path = record(book)
    with pytest.raises(FileNotFoundError, match="no record seismic/other"):
        load("seismic", "other", book=book)
    text = path.read_text()
    path.write_text(text.replace("\n", "\r\n"), newline="")
    assert len(read_record(path.with_suffix(".json")).table) == 2  # a checkout's line endings do no harm
    path.write_text(text.replace("ours", "mine"))
    with pytest.raises(ValueError, match="not the one recorded"):
        read_record(path.with_suffix(".json"))
    path.write_text(text)
    information = json.loads(path.with_suffix(".json").read_text())
    for changed, message in (
        (information | {"schema": 99}, "schema 99"),
        (information | {"slug": "other"}, "holds the record of other/growth"),
        ({key: value for key, value in information.items() if key != "seeds"}, "missing seeds"),
    ):
        path.with_suffix(".json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            read_record(path.with_suffix(".json"))


def test_interrupted_writing_leaves_the_old_record(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = record(book)
    before = path.read_text()

    def interrupted(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recorded.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record(book, table=table(value=[5.0, 6.0]))
    monkeypatch.undo()
    assert path.read_text() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["growth.csv", "growth.json"]


# --- predictions -----------------------------------------------------------------------------------------


def test_live_values_inside_the_prediction() -> None:
    draw = np.random.default_rng(0).normal(10, 1, (4000, 9))
    inside = [bool(inside_prediction(row[0], row[1:], level=0.95)) for row in draw]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)
    outside = inside_prediction(20, draw[0, 1:])
    assert not outside
    assert outside.interval.high < 20
    assert outside.interval.level == 0.99


def test_geometric_predictions() -> None:
    times = np.exp(np.random.default_rng(1).normal(0, 0.5, 8))
    prediction = inside_prediction(1, times, geometric=True)
    assert prediction
    assert prediction.interval.low > 0
    with pytest.raises(ValueError, match="takes positive values"):
        inside_prediction(-1, times, geometric=True)
    with pytest.raises(ValueError, match="live_value"):
        inside_prediction(float("nan"), times)


# --- stages ----------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def stages(stop_at: str | None = None) -> dict[str, Any]:
        def compute(key: str) -> pd.DataFrame:
            calls.append(key)
            if key == stop_at:
                raise KeyboardInterrupt
            return table(value=[float(len(calls)), 0.1])

        return {key: lambda key=key: compute(key) for key in ("n=5000", "n=10000", "n=20000")}

    with pytest.raises(KeyboardInterrupt):
        run_stages("seismic", "growth", stages("n=20000"), parameters=Config())
    capsys.readouterr()
    joined = run_stages("seismic", "growth", stages(), parameters=Config())
    assert calls == ["n=5000", "n=10000", "n=20000", "n=20000"]
    assert joined["value"].tolist() == [1, 0.1, 2, 0.1, 4, 0.1]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "seismic/growth [1/3] n=5000: kept from before"
    assert lines[2].startswith("seismic/growth [3/3] n=20000: ")
    assert lines[2].endswith("about 0 s left")


def test_stages_of_other_parameters_or_code_are_not_used(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def value(result: float, **more: Any) -> float:
        return stage("seismic", "growth", "n=5000", lambda: table(value=result), **more)["value"][0]

    assert value(1, parameters=Config()) == 1
    assert value(2, parameters=Config()) == 1
    assert value(3, parameters=Config(n=7)) == 3
    monkeypatch.setattr(recorded, "_source_digest", lambda slug: "other code")
    assert value(4, parameters=Config()) == 4
    forget_stages("seismic", "growth")
    assert value(5, parameters=Config()) == 5


def test_a_stage_returns_the_same_kept_or_computed(book: Path) -> None:
    computed = stage("seismic", "growth", "a/b", lambda: table(value=[1, 2]).iloc[::-1])
    pd.testing.assert_frame_equal(
        stage("seismic", "growth", "a/b", lambda: table()), computed, check_exact=True
    )


def test_the_digest_follows_what_an_experiment_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "kernels/a.py",
        "retrieval/seismic.py",
        "experiments/seismic.py",
        "attention/other.py",
        "cli.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    monkeypatch.setattr(recorded, "__file__", str(tmp_path / "recorded.py"))
    digest = recorded._source_digest.__wrapped__
    before = digest("seismic")
    for name, changes in (
        ("kernels/a.py", True),
        ("retrieval/seismic.py", True),
        ("experiments/seismic.py", True),
        ("attention/other.py", False),
        ("cli.py", False),
    ):
        (tmp_path / name).write_text("x = 2")
        assert (digest("seismic") != before) is changes, name
        (tmp_path / name).write_text("x = 1")
    with pytest.raises(ValueError, match="at least one"):
        run_stages("seismic", "growth", {})
