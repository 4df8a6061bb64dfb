"""Alternative text travels from a notebook's output to the page's image."""

import base64
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docutils import nodes

from sparsebook import sphinx_ext

PICTURE = b"\x89PNG not really"


def page(tmp_path: Path, metadata: dict[str, Any], suffix: str = ".ipynb") -> tuple[Any, nodes.document]:
    """A Sphinx application that has just read a notebook with one figure, and the page's tree."""
    output = {
        "output_type": "display_data",
        "data": {"image/png": base64.b64encode(PICTURE).decode() + "\n"},
        "metadata": metadata,
    }
    path = tmp_path / f"chapter{suffix}"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "outputs": [output]}]}))
    environment = SimpleNamespace(docname="chapter", doc2path=lambda name: str(path))
    tree = nodes.document(SimpleNamespace(), SimpleNamespace())
    tree += nodes.image(uri=f"_build/jupyter_execute/{hashlib.sha256(PICTURE).hexdigest()}.png")
    return SimpleNamespace(env=environment), tree


def test_alternative_text_and_anchor_reach_the_image(tmp_path: Path) -> None:
    app, tree = page(tmp_path, {"image/png": {"alt": "Recall against time.", "name": "pareto"}})
    sphinx_ext.describe_figures(app, tree)
    (image,) = tree.findall(nodes.image)
    assert image["alt"] == "Recall against time."
    assert image["ids"] == ["figure-pareto"]


def test_a_figure_without_words_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(sphinx_ext.logger, "warning", lambda text, **_: said.append(text))
    sphinx_ext.describe_figures(*page(tmp_path, {}))
    assert len(said) == 1
    assert "no alternative text" in said[0]


def test_pages_that_are_no_notebooks_are_left_alone(tmp_path: Path) -> None:
    app, tree = page(tmp_path, {"image/png": {"alt": "words"}}, suffix=".md")
    sphinx_ext.describe_figures(app, tree)
    (image,) = tree.findall(nodes.image)
    assert "alt" not in image
