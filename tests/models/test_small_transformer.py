"""The small transformer: causality, exchanged attention, grouped heads, rotation, answers, refusals."""

from itertools import pairwise

import pytest
import torch

from sparsebook.models.small_transformer import SmallTransformer, dense_attention, rotate


@pytest.fixture(scope="module")
def model():
    return SmallTransformer(50, 64, 2, seed=1).double().eval().requires_grad_(False)


@pytest.fixture
def tokens(generator):
    return torch.randint(50, (3, 17), generator=generator)


def naive_attention(queries, keys, values, layer):
    """Softmax attention row by row, keys and values repeated for each query head of their group."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    before = keys.shape[2] - queries.shape[2]
    rows = []
    for i in range(queries.shape[2]):
        seen = before + i + 1
        scores = (queries[:, :, i, None] * keys[:, :, :seen]).sum(-1) / queries.shape[-1] ** 0.5
        rows.append((scores.softmax(-1)[..., None] * values[:, :, :seen]).sum(-2))
    return torch.stack(rows, dim=2)


def test_later_tokens_change_nothing_before_them(model, tokens):
    other = tokens.clone()
    other[:, 9:] = (other[:, 9:] + 7) % 50
    before, after = model(tokens), model(other)
    assert torch.allclose(before[:, :9], after[:, :9], atol=1e-12)
    assert (before[:, 9] - after[:, 9]).abs().amax() > 1e-3


def test_every_earlier_token_matters(model):
    tokens = torch.arange(8)[None]
    for place in range(8):
        other = tokens.clone()
        other[0, place] = 30
        assert (model(other)[0, -1] - model(tokens)[0, -1]).abs().max() > 1e-3


def test_exchanging_attention_for_itself_changes_nothing(model, tokens):
    assert torch.equal(model(tokens, attention=dense_attention), model(tokens))
    assert torch.allclose(model(tokens, attention=naive_attention), model(tokens), atol=1e-12)


def test_an_exchanged_attention_is_used_in_every_layer(model, tokens):
    seen = []

    def nothing(queries, keys, values, layer):
        seen.append((layer, tuple(queries.shape), tuple(keys.shape), tuple(values.shape)))
        return torch.zeros_like(queries)

    changed = model(tokens, attention=nothing)
    shapes = (3, 4, 17, 16), (3, 2, 17, 16), (3, 2, 17, 16)
    assert seen == [(0, *shapes), (1, *shapes)]
    assert (changed - model(tokens)).abs().max() > 1e-3
    # Without attention a token knows of nothing but itself.
    assert torch.allclose(changed[0, 3], model(tokens[:1, 3:4], attention=nothing)[0, 0], atol=1e-12)


def test_grouped_heads_equal_repeated_keys_and_values(tokens):
    """A model with two query heads a key head is one whose key heads are there twice."""
    grouped = SmallTransformer(50, 64, 2, seed=2).double()
    full = SmallTransformer(50, 64, 2, group=1).double()
    state = grouped.state_dict()
    for name in [n for n in state if n.endswith("qkv.weight")]:
        queries, keys, values = state[name].unflatten(0, (-1, 16)).split([4, 2, 2])
        repeated = [x.repeat_interleave(2, dim=0) for x in (keys, values)]
        state[name] = torch.cat([queries, *repeated]).flatten(0, 1)
    for name in [n for n in state if n.endswith("smear")]:
        state[name] = state[name].repeat_interleave(2, dim=0)
    full.load_state_dict(state)
    assert torch.allclose(full(tokens), grouped(tokens), atol=1e-12)


def test_dot_products_of_rotated_vectors_depend_on_the_distance_alone(model, generator):
    q, k = torch.randn(2, 1, 16, generator=generator, dtype=torch.float64)

    def product(i, j):
        return float((rotate(q, model._rotation(i, 1)) * rotate(k, model._rotation(j, 1))).sum())

    assert product(40, 33) == pytest.approx(product(7, 0), abs=1e-9)
    assert product(400, 393) == pytest.approx(product(7, 0), abs=1e-9)
    assert product(7, 0) != pytest.approx(product(8, 0), abs=1e-3)
    rotated = rotate(q, model._rotation(123, 1))
    assert float(rotated.norm()) == pytest.approx(float(q.norm()), abs=1e-9)


def test_moving_a_text_changes_nothing_when_attention_looks_no_further_back(model):
    """Positions enter through rotation only: the same window at another place gives the same scores."""

    def window(queries, keys, values, layer):
        mask = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool).tril().triu(-2)
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(queries, keys, values, attn_mask=mask, enable_gqa=True)

    text = torch.tensor([[5, 9, 1, 7, 3, 3, 8, 2, 6, 4, 11, 12]])
    moved = torch.cat([torch.tensor([[20, 21, 22]]), text], dim=1)
    # Two layers of a window of three, and smearing by one: five tokens forget what stood before.
    assert torch.allclose(model(moved, window)[:, 3 + 6 :], model(text, window)[:, 6:], atol=1e-9)


def test_smeared_keys_mix_with_the_one_before(generator):
    plain, smeared = (SmallTransformer(50, 32, 1, smear=smear, seed=3).double() for smear in (False, True))
    assert not [name for name in plain.state_dict() if "smear" in name]
    tokens = torch.randint(50, (1, 6), generator=generator)
    same = plain.state_dict() | {"blocks.0.smear": torch.full((1, 1, 1), -50.0)}
    smeared.load_state_dict(same)
    assert torch.allclose(smeared(tokens), plain(tokens), atol=1e-12)
    # Smeared wholly, key i is what key i - 1 was, but turned as at i.
    smeared.blocks[0].smear.data.fill_(50.0)
    unturned = [
        rotate(model.capture(tokens).keys[0], (cosine, -sine))
        for model in (plain, smeared)
        for cosine, sine in [model._rotation(0, 6)]
    ]
    assert torch.allclose(unturned[1][:, :, 1:], unturned[0][:, :, :-1], atol=1e-9)


def test_captured_tensors_are_those_that_attention_saw(model, tokens):
    captured = model.capture(tokens)
    seen = {}

    def look(queries, keys, values, layer):
        seen[layer] = (queries, keys, values)
        return dense_attention(queries, keys, values, layer)

    model(tokens, attention=look)
    for layer in range(2):
        for one, other in zip(
            (captured.queries[layer], captured.keys[layer], captured.values[layer]), seen[layer], strict=True
        ):
            assert torch.equal(one, other)


def test_gradients_reach_every_weight(tokens):
    model = SmallTransformer(50, 32, 2)
    scores = model(tokens[:, :-1])
    torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    without = [
        name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert without == []


def test_a_few_steps_learn_a_text_by_heart():
    text = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(5))
    model = SmallTransformer(50, 32, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        scores = model(text[:, :-1])
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    # And says it from the second token on (the first ones do not tell the texts apart for sure).
    assert (model.greedy(text[:, :6], 6) == text[:, 6:]).float().mean() > 0.9


def test_greedy_answers_are_those_of_full_passes(model, tokens):
    made = model.greedy(tokens, 5)
    whole = tokens
    for _ in range(5):
        whole = torch.cat([whole, model(whole)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made, whole[:, 17:])


def test_greedy_shows_prefill_and_decoding_to_an_exchanged_attention(model, tokens):
    calls = []

    def look(queries, keys, values, layer):
        calls.append((layer, queries.shape[2], keys.shape[2]))
        return naive_attention(queries, keys, values, layer)

    made = model.greedy(tokens, 3, attention=look)
    assert calls == [(layer, *n) for n in ((17, 17), (1, 18), (1, 19)) for layer in (0, 1)]
    assert torch.equal(made, model.greedy(tokens, 3))


def test_decoding_sees_the_keys_of_a_full_pass(model, tokens):
    """Smearing across the border between prompt and answer: the cache holds what a full pass computes."""
    last = {}

    def look(queries, keys, values, layer):
        last[layer] = (keys, values)
        return dense_attention(queries, keys, values, layer)

    made = model.greedy(tokens, 4, attention=look)
    captured = model.capture(torch.cat([tokens, made[:, :-1]], dim=1))
    for layer, (keys, values) in last.items():
        assert torch.allclose(keys, captured.keys[layer], atol=1e-10)
        assert torch.allclose(values, captured.values[layer], atol=1e-10)


def test_answers_given_the_right_ones_before(model, tokens):
    predicted = model.teacher_forced(tokens, 12)
    assert torch.equal(predicted, model(tokens).argmax(-1)[:, 11:-1])


def test_dense_attention_of_the_last_queries(generator):
    q, k, v = (torch.randn(2, h, 9, 4, generator=generator, dtype=torch.float64) for h in (4, 2, 2))
    whole = dense_attention(q, k, v)
    for n in (1, 3, 9):
        assert torch.allclose(dense_attention(q[:, :, -n:], k, v), whole[:, :, -n:], atol=1e-12)
    with pytest.raises(ValueError, match="no more queries than keys"):
        dense_attention(q, k[:, :, :5], v[:, :, :5])


def test_weights_follow_from_the_seed():
    states = [SmallTransformer(50, 32, 1, seed=seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["embedding"], states[2]["embedding"])


def test_heads_begin_as_look_ups():
    model = SmallTransformer(50, 64, 1, seed=4)
    queries, keys, values = model.blocks[0].qkv.weight.unflatten(0, (-1, 16)).split([4, 2, 2])
    assert torch.equal(queries, keys.repeat_interleave(2, dim=0))
    assert torch.allclose(keys.flatten(0, 1) @ keys.flatten(0, 1).T, torch.eye(32), atol=1e-5)
    out = model.blocks[0].out.weight.unflatten(1, (4, 16))
    assert all(torch.equal(out[:, head], values[head // 2].T) for head in range(4))


def test_sizes():
    widths = [sum(w.numel() for w in SmallTransformer(512, d, 3).parameters()) for d in (32, 64, 128)]
    assert all(2 < after / before < 4 for before, after in pairwise(widths))
    model = SmallTransformer(512, 128, 3, head_dim=32, group=4)
    assert (model.heads, model.key_value_heads, len(model.blocks)) == (4, 1, 3)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"head_dim": 15}, "head_dim=15"),
        ({"head_dim": 24}, "head_dim=24"),
        ({"group": 3}, "group=3"),
        ({"group": 0}, "group=0"),
        ({"n_layers": 0}, "n_layers=0"),
        ({"width": 0}, "width=0"),
        ({"vocabulary": 0}, "vocabulary=0"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        SmallTransformer(**({"vocabulary": 50, "width": 64, "n_layers": 1} | sizes))


def test_bad_tokens_are_refused(model):
    with pytest.raises(ValueError, match="ids 0 to 50"):
        model(torch.tensor([[0, 50]]))
    with pytest.raises(ValueError, match="ids -1 to 3"):
        model(torch.tensor([[3, -1]]))
    with pytest.raises(ValueError, match="not empty"):
        model(torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="n_new=0"):
        model.greedy(torch.tensor([[1]]), 0)
    with pytest.raises(ValueError, match="answer_start=4"):
        model.teacher_forced(torch.tensor([[1, 2, 3, 4]]), 4)


def test_outputs_of_another_shape_are_refused(model, tokens):
    with pytest.raises(ValueError, match="in layer 0: expected that of the queries"):
        model(tokens, attention=lambda q, k, v, layer: q[:, :1])
