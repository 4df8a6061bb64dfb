import inspect

import pytest
import torch

from sparsebook.models.gemma import Gemma

OBJECT = "When Mary and John went to the store, John gave a drink to"
# More tokens than the local layers can see at once.
LONG = inspect.getdoc(torch.nn.functional.scaled_dot_product_attention) or ""


@pytest.fixture(scope="module")
def long_tokens(gemma):
    tokens = gemma.tokenize((LONG + "\n") * 3, max_tokens=520)
    assert tokens.ids.shape[1] == 520 > gemma.window
    return tokens


@pytest.fixture(scope="module")
def long_run(gemma, long_tokens):
    with gemma.capture("queries", "keys", "values", "mlp") as captured:
        output = gemma(long_tokens, hidden_layers=[0, 1, 17, 18])
    return output, captured


def test_indirect_object_is_identified(gemma):
    tokens = gemma.tokenize(OBJECT)
    logits = gemma(tokens).logits
    assert logits.shape == (1, gemma.vocabulary)
    assert logits.dtype == torch.float32
    assert gemma.decode(logits.argmax(-1)) == " Mary"
    assert logits[0, gemma.token_id(" Mary")] > logits[0, gemma.token_id(" John")] + 1
    swapped = gemma.tokenize("When Mary and John went to the store, Mary gave a drink to")
    assert gemma.decode(gemma(swapped).logits.argmax(-1)) == " John"


def test_bfloat16_says_the_same(gemma, prepared_gemma):
    half = Gemma.load(dtype=torch.bfloat16)
    tokens = gemma.tokenize(OBJECT)
    scores, halved = gemma(tokens).logits, half(tokens).logits
    assert halved.dtype == torch.bfloat16
    assert half.decode(halved.argmax(-1)) == " Mary"
    assert (scores - halved).abs().median() < 0.3


def test_tokenizer(gemma):
    tokens = gemma.tokenize(["a", OBJECT], max_tokens=10)
    assert tokens.ids[:, 0].tolist() == [2, 2]
    assert tokens.lengths.tolist() == [2, 10]
    assert tokens.truncated.tolist() == [False, True]
    assert tokens.mask.sum(1).tolist() == [2, 10]
    assert gemma.decode(gemma.tokenize(OBJECT).ids[0]) == OBJECT
    assert gemma.tokenize(OBJECT, bos=False).ids[0].tolist() == gemma.tokenize(OBJECT).ids[0, 1:].tolist()


def test_padding_changes_nothing(gemma):
    short, long = "The capital of France is", OBJECT
    together = gemma(gemma.tokenize([short, long]))
    for row, text in enumerate((short, long)):
        torch.testing.assert_close(
            together.logits[row], gemma(gemma.tokenize(text)).logits[0], rtol=0, atol=2e-3
        )


def test_hidden_states_are_the_residual_stream(gemma, long_tokens, long_run):
    output, _ = long_run
    model = gemma.network.model
    torch.testing.assert_close(output.hidden[0], model.embed_tokens.weight[long_tokens.ids] * 640**0.5)
    torch.testing.assert_close(output.final, model.norm(output.hidden[18]))
    assert not torch.equal(output.hidden[17], output.hidden[18])
    torch.testing.assert_close(
        output.logits, output.final[:, -1] @ model.embed_tokens.weight.T, rtol=1e-3, atol=1e-2
    )


def test_captured_shapes_cover_all_layers(gemma, long_run):
    _, captured = long_run
    shapes = {name: {tuple(x.shape) for x in layers.values()} for name, layers in captured.items()}
    assert all(len(layers) == 18 for layers in captured.values())
    assert shapes == {
        "queries": {(1, 4, 520, 256)},
        "keys": {(1, 1, 520, 256)},
        "values": {(1, 1, 520, 256)},
        "mlp": {(1, 520, 2048)},
    }


def test_captured_queries_and_keys_are_normed_then_rotated(gemma, long_run):
    output, captured = long_run
    layer = gemma.network.model.layers[1]
    entering = layer.input_layernorm(output.hidden[1])
    queries = layer.self_attn.q_norm(layer.self_attn.q_proj(entering).view(1, 520, 4, 256)).transpose(1, 2)
    keys = layer.self_attn.k_norm(layer.self_attn.k_proj(entering).view(1, 520, 1, 256)).transpose(1, 2)
    values = layer.self_attn.v_proj(entering).view(1, 520, 1, 256).transpose(1, 2)
    torch.testing.assert_close(captured["values"][1], values)
    for name, plain in (("queries", queries), ("keys", keys)):
        seen = captured[name][1]
        torch.testing.assert_close(seen[:, :, 0], plain[:, :, 0])  # position 0 is not rotated
        # A rotation of dimension i with dimension i + 128 by position * base^(-2i/256), base 10,000 locally.
        angle = torch.arange(520)[:, None] * 10_000.0 ** (-torch.arange(128) / 128)
        first, second = plain[..., :128], plain[..., 128:]
        rotated = torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1
        )
        torch.testing.assert_close(seen, rotated, rtol=1e-3, atol=2e-3)
        assert not torch.allclose(seen, plain, atol=0.1)


def test_captured_neurons_enter_the_down_projection(gemma, long_run):
    output, captured = long_run
    layer = gemma.network.model.layers[17]
    written = layer.post_feedforward_layernorm(layer.mlp.down_proj(captured["mlp"][17]))
    before_mlp = output.hidden[18] - written
    entering = layer.pre_feedforward_layernorm(before_mlp)
    neurons = torch.nn.functional.gelu(layer.mlp.gate_proj(entering), approximate="tanh") * layer.mlp.up_proj(
        entering
    )
    # `before_mlp` is a difference of large numbers at the first token, hence the loose tolerance.
    torch.testing.assert_close(neurons[:, 1:], captured["mlp"][17][:, 1:], rtol=1e-2, atol=1e-2)


def _dense_attention(gemma, window):
    """Attention written out: softmax of scaled scores, causal, within a window of tokens."""

    def attend(queries, keys, values, layer):
        tokens = queries.shape[2]
        back = torch.arange(tokens)[:, None] - torch.arange(tokens)
        reach = tokens if layer in gemma.global_layers else window
        scores = queries @ keys.transpose(-1, -2) / 16
        return scores.masked_fill((back < 0) | (back >= reach), -torch.inf).softmax(-1) @ values

    return attend


def test_captured_tensors_are_all_that_attention_reads(gemma, long_tokens, long_run):
    output, captured = long_run
    assert gemma.attention_scale == 1 / 16
    assert gemma.global_layers == (5, 11, 17)
    with (
        gemma.replace_attention(_dense_attention(gemma, gemma.window), layers=range(18)),
        gemma.capture("keys", layers=[17]) as again,
    ):
        logits = gemma(long_tokens).logits
    torch.testing.assert_close(logits, output.logits, rtol=0, atol=2e-2)
    torch.testing.assert_close(again["keys"][17], captured["keys"][17], rtol=1e-3, atol=1e-2)


def test_a_narrower_window_is_noticed(gemma):
    tokens = gemma.tokenize(LONG, max_tokens=100)
    expected = gemma(tokens).logits
    for window, same in ((gemma.window, True), (50, False)):
        with gemma.replace_attention(_dense_attention(gemma, window), layers=range(18)):
            assert torch.allclose(gemma(tokens).logits, expected, rtol=0, atol=0.02) == same


def test_blocks_leave_nothing_behind(gemma):
    def fail(queries, keys, values, layer):
        raise RuntimeError("on purpose")

    tokens = gemma.tokenize(OBJECT)
    before = gemma(tokens).logits
    with gemma.replace_attention(lambda queries, keys, values, layer: torch.zeros_like(queries)):
        assert not torch.allclose(gemma(tokens).logits, before, atol=0.1)
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        gemma.capture("queries", "mlp") as captured,
        gemma.replace_attention(fail, layers=[4]),
    ):
        gemma(tokens)
    kept = captured["queries"][3]
    assert torch.equal(gemma(tokens).logits, before)
    assert captured["queries"][3] is kept
    assert not any(layer.self_attn.observers for layer in gemma.network.model.layers)


def test_gradients_reach_what_the_caller_inserts(gemma):
    gain = torch.ones((), requires_grad=True)

    def attend(queries, keys, values, layer):
        return gain * _dense_attention(gemma, gemma.window)(queries, keys, values, layer)

    tokens = gemma.tokenize(OBJECT)
    assert not gemma(tokens).logits.requires_grad
    with gemma.replace_attention(attend, layers=[5]):
        gemma(tokens).logits[0, gemma.token_id(" Mary")].backward()
    assert gain.grad is not None
    assert gain.grad != 0


def test_log_likelihoods(gemma):
    tokens = gemma.tokenize([OBJECT, "Yes, it is."])
    found = gemma.log_likelihoods(tokens, chunk=4)
    logits = gemma(tokens, logits="all").logits
    expected = logits.log_softmax(-1)[:, :-1].gather(-1, tokens.ids[:, 1:, None])[..., 0]
    real = tokens.mask[:, 1:]
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=2e-3)
    assert found[~real].isnan().all()
    assert not found[real].isnan().any()


def test_continuation_is_greedy(gemma):
    assert gemma.continue_text(OBJECT, 3).startswith(" Mary")


@pytest.mark.parametrize("layers", [[18], [0, -1]])
def test_bad_layers(gemma, layers):
    with pytest.raises(ValueError, match="layers has"), gemma.capture("mlp", layers=layers):
        pass
    with pytest.raises(ValueError, match="layers has"), gemma.replace_attention(torch.add, layers=layers):
        pass


def test_bad_arguments(gemma):
    tokens = gemma.tokenize(OBJECT)
    with pytest.raises(ValueError, match="hidden_layers has 19"):
        gemma(tokens, hidden_layers=[19])
    with pytest.raises(ValueError, match="logits='some'"):
        gemma(tokens, logits="some")
    for wrong in ([], ["query"]):
        with pytest.raises(ValueError, match="quantities="), gemma.capture(*wrong):
            pass
    for empty in ("", "  ", [], ["a", ""]):
        with pytest.raises(ValueError, match="texts"):
            gemma.tokenize(empty)
    with pytest.raises(ValueError, match=r"texts\[0\] has .* expected at most 32768"):
        gemma.tokenize("a b " * 20_000)
    with pytest.raises(ValueError, match="max_tokens=0"):
        gemma.tokenize("a", max_tokens=0)
    with pytest.raises(ValueError, match=r"takes \d tokens"):
        gemma.token_id("two words")
    with pytest.raises(ValueError, match="new_tokens=0"):
        gemma.continue_text("a", 0)
    with (
        pytest.raises(ValueError, match="function returned shape"),
        gemma.replace_attention(lambda q, k, v, layer: q[:, :1]),
    ):
        gemma(tokens)
