"""The examination of the machine: what is missing is said with its remedy."""

from pathlib import Path

import pytest

from sparsebook.cli import examination


def finding(subject: str) -> examination.Finding:
    return next(found for found in examination.examine() if found.subject == subject)


def test_the_packages_of_every_extra_are_known() -> None:
    assert {"papermill", "jupyter-book"} <= examination.required("book").keys()
    assert examination.required("cluster").keys() == {"dask", "distributed"}
    assert examination.required("nothing") == {}


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "required", lambda name: {"papermill": None, "yaml": "6"})
    found = finding("extra book")
    assert found.state == "missing"
    assert found.text == "lacks papermill: pip install 'sparsebook[book]'"


def test_an_empty_cache_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBOOK_CACHE", str(tmp_path / "none"))
    found = finding("cache")
    assert found.state == "missing"
    assert "make prepare" in found.text


def test_a_missing_browser_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert finding("browser").state == "missing"


def test_a_machine_without_vector_instructions_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsebook.evaluation import machine

    told = machine.describe_machine() | {"instruction_set": "none", "memory_gib": None}
    monkeypatch.setattr(machine, "describe_machine", lambda: told)
    assert "slowly" in finding("instruction set").text
    assert "memory unknown" in finding("processor").text
