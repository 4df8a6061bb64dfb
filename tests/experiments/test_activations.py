"""Activations of the real models over a few packaged inputs."""

import pytest
import torch

from sparsebook.experiments import activations
from sparsebook.experiments.activations import (
    efficientnet_activations,
    gemma_activations,
    minilm_activations,
    packaged_texts,
)

TEXTS = ("A cat sits on the mat.", "Stocks fell.", "def f(x): return x + 1")


@pytest.fixture(autouse=True)
def groups_of_two(monkeypatch):
    monkeypatch.setattr(activations, "_TEXTS_A_SHARD", 2)
    monkeypatch.setattr(activations, "_GEMMA_BATCH", 1)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEBOOK_CACHE", str(tmp_path))


@pytest.mark.usefixtures("own_cache")
def test_minilm_states_without_special_tokens_in_shards_that_are_shared():
    from sparsebook.models.minilm import MiniLM

    store = minilm_activations(TEXTS, layer=3)
    model = MiniLM.load()
    expected = torch.cat([model.forward(model.tokenize(text), 3)[0, 1:-1] for text in TEXTS])
    assert len(store.sizes) == 2
    torch.testing.assert_close(store.rows(), expected, rtol=1e-3, atol=1e-3)
    assert minilm_activations(TEXTS[:2], layer=3).shards == store.shards[:1]


@pytest.mark.usefixtures("own_cache")
def test_efficientnet_cells():
    from sparsebook.data.photographs import photograph
    from sparsebook.models.efficientnet import EfficientNetLite0

    store = efficientnet_activations(["chelsea", "coins"], 16, size=64)
    model = EfficientNetLite0.load()
    maps = model.feature_maps(model.preprocess(photograph("chelsea").pixels, 64), [16])[16]
    assert (store.sizes, store.width) == ((16, 16), 112)
    torch.testing.assert_close(store.rows(5, 6)[0], maps[0, :, 1, 1], rtol=1e-3, atol=1e-3)


def test_gemma_residuals_without_the_first_token(tmp_path, monkeypatch):
    import os

    from sparsebook import files
    from sparsebook.models import gemma as module

    try:
        converted = files.cached("gemma-3-270m", _refuse, module.VERSION)
    except NotPreparedError:
        if os.environ.get("CI") == "true":
            pytest.fail("Gemma is not in the cache: run `make prepare`")
        pytest.skip("Gemma is not in the cache: run `make prepare`")
    model = module.Gemma.load()
    monkeypatch.setattr(module.Gemma, "load", lambda: model)
    assert converted.exists()
    monkeypatch.setenv("SPARSEBOOK_CACHE", str(tmp_path))
    store = gemma_activations(TEXTS[:2], layer=6)
    expected = [
        model(model.tokenize(text), logits="none", hidden_layers=[6]).hidden[6][0, 1:] for text in TEXTS[:2]
    ]
    assert store.scale == 16
    torch.testing.assert_close(store.rows(), torch.cat(expected), rtol=2e-3, atol=0.05)


class NotPreparedError(Exception):
    pass


def _refuse(_):
    raise NotPreparedError


def test_texts_are_shuffled_once_and_hold_all_three_kinds():
    texts = packaged_texts()
    assert texts == packaged_texts()
    assert len(texts) > 10_000
    assert any("Parameters" in text for text in texts[:200])
    assert packaged_texts(seed=1)[:5] != texts[:5]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: minilm_activations(TEXTS, layer=7), "layer=7"),
        (lambda: gemma_activations(TEXTS, layer=19), "layer=19"),
        (lambda: minilm_activations(()), "texts"),
        (lambda: minilm_activations(("a", " ")), "texts"),
        (lambda: minilm_activations("a text"), "texts"),
        (lambda: efficientnet_activations(["chelsea"], 3), "stride=3"),
        (lambda: efficientnet_activations(["nobody"]), "nobody"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
