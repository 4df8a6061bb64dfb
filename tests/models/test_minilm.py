import pytest
import torch

from sparsebook.models.minilm import PACKAGE, MiniLM

TEXTS = ["A cat sits on the mat.", "Stocks fell.", "A kitten is sitting on a rug in the warm afternoon sun."]


def test_similar_sentences_are_near(minilm):
    vectors = minilm.embed(TEXTS)
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    similarity = vectors @ vectors.T
    assert similarity[0, 2] > 0.4 > 0.2 > similarity[0, 1]


def test_agrees_with_its_authors_library(minilm):
    reference = pytest.importorskip("sentence_transformers")
    from sparsebook.files import package_folder

    model = reference.SentenceTransformer(str(package_folder(PACKAGE) / "model"), device="cpu")
    texts = [*TEXTS, "word " * 400]
    expected = torch.from_numpy(model.encode(texts))
    torch.testing.assert_close(minilm.embed(texts), expected, rtol=0, atol=1e-5)


def test_batches_do_not_matter(minilm):
    one_by_one = torch.cat([minilm.embed(text) for text in TEXTS])
    torch.testing.assert_close(minilm.embed(TEXTS, batch_size=2), one_by_one, rtol=0, atol=1e-5)
    torch.testing.assert_close(minilm.embed(TEXTS, progress=True), one_by_one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 3, None])
def test_token_states(minilm, layer):
    found = minilm.token_states(TEXTS, layer, batch_size=2)
    assert found.states.shape == (len(found.ids), 384)
    for index, text in enumerate(TEXTS):
        tokens = minilm.tokenize(text)
        assert found.ids[found.offsets[index] : found.offsets[index + 1]].tolist() == tokens.ids[0].tolist()
        torch.testing.assert_close(found.text(index), minilm.forward(tokens, layer)[0], rtol=0, atol=1e-4)


def test_layer_0_is_the_embedding(minilm):
    tokens = minilm.tokenize(TEXTS[0])
    parts = minilm.network.embeddings
    length = tokens.ids.shape[1]
    total = minilm.word_embeddings[tokens.ids] + parts.position_embeddings.weight[:length]
    expected = parts.LayerNorm(total + parts.token_type_embeddings.weight[0])
    torch.testing.assert_close(minilm.forward(tokens, 0), expected)
    assert minilm.word_embeddings.shape == (30_522, 384)


def test_layers_differ_and_the_last_is_the_default(minilm):
    tokens = minilm.tokenize(TEXTS)
    assert torch.equal(minilm.forward(tokens), minilm.forward(tokens, 6))
    assert not torch.allclose(minilm.forward(tokens, 5), minilm.forward(tokens, 6), atol=0.1)


def test_truncation_is_explicit(minilm):
    long = "word " * 600
    assert minilm.tokenize(long).ids.shape == (1, 256)
    assert minilm.tokenize(long, max_tokens=512).ids.shape == (1, 512)
    tokens = minilm.tokenize([long, "short"], max_tokens=8)
    assert tokens.truncated.tolist() == [True, False]
    assert tokens.ids[0, [0, -1]].tolist() == [101, 102]
    with pytest.raises(ValueError, match=r"texts\[1\] has 602 tokens: expected at most 256"):
        minilm.embed(["short", long], truncate=False)


def test_dtype_is_respected(minilm):
    double = MiniLM.load(dtype=torch.float64)
    vectors = double.embed(TEXTS)
    assert vectors.dtype == torch.float64
    torch.testing.assert_close(vectors.float(), minilm.embed(TEXTS), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"dtype=torch\.int64"):
        MiniLM.load(dtype=torch.int64)


def test_gradients_flow_once_weights_are_thawed():
    model = MiniLM.load()
    assert not model.embed("frozen").requires_grad
    model.network.requires_grad_(True)
    model.forward(model.tokenize("thawed")).sum().backward()
    assert model.word_embeddings.grad.abs().sum() > 0


def test_bad_arguments(minilm):
    for empty in ("", [], ["fine", " "]):
        with pytest.raises(ValueError, match="texts"):
            minilm.embed(empty)
    for size in (2, 513):
        with pytest.raises(ValueError, match=f"max_tokens={size}"):
            minilm.embed("a", max_tokens=size)
    for layer in (-1, 7):
        with pytest.raises(ValueError, match=f"layer={layer}"):
            minilm.token_states("a", layer)
    with pytest.raises(ValueError, match="batch_size=0"):
        minilm.embed("a", batch_size=0)
    with pytest.raises(ValueError, match="index=1"):
        minilm.token_states("a").text(1)
