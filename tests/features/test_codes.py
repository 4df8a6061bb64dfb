"""The three forms of codes mean the same as dense codes, with a leading axis and without."""

import pytest
import torch

from sparsebook.features.codes import DenseCodes, RaggedCodes, TopCodes

TOKENS, LATENTS, WIDTH = 7, 11, 5


def forms(dense, k):
    """The same codes in all three forms; at most `k` of a token are not zero."""
    found = dense.abs().topk(k, -1)
    places = dense.flatten().nonzero().squeeze(1)
    ragged = RaggedCodes(
        dense.flatten()[places], places // dense.shape[-1], places % dense.shape[-1], tuple(dense.shape)
    )
    return DenseCodes(dense), TopCodes(dense.gather(-1, found.indices), found.indices, LATENTS), ragged


@pytest.fixture(params=[(), (3,)], ids=["one", "seeds"])
def lead(request):
    return request.param


@pytest.fixture(params=[torch.float64, torch.float32])
def dtype(request):
    return request.param


@pytest.fixture
def dense(lead, dtype):
    torch.manual_seed(0)
    values = torch.randn(*lead, TOKENS, LATENTS, dtype=dtype)
    kept = torch.zeros_like(values).scatter(-1, torch.rand_like(values).topk(4, -1).indices, 1)
    kept[..., 2, :] = 0  # a token without any
    return values * kept


def test_all_forms_are_the_dense_one(dense, lead, dtype):
    dictionary = torch.randn(*lead, LATENTS, WIDTH, dtype=dtype)
    rows = torch.randn(*lead, TOKENS, WIDTH, dtype=dtype)
    for codes in forms(dense, 5):
        torch.testing.assert_close(codes.dense(), dense, rtol=0, atol=0)
        torch.testing.assert_close(codes.decode(dictionary), dense @ dictionary)
        torch.testing.assert_close(codes.spread(rows), dense.mT @ rows)
        torch.testing.assert_close(codes.sum_per_latent(), dense.sum(-2))
        assert codes.active_per_token().tolist() == (dense != 0).sum(-1).tolist()
        assert codes.active_per_latent().tolist() == (dense != 0).sum(-2).tolist()
        assert codes.active_per_latent(0.5).tolist() == (dense.abs() > 0.5).sum(-2).tolist()


def test_gradients_are_those_of_dense_codes(dense, lead, dtype):
    dictionary = torch.randn(*lead, LATENTS, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(*lead, TOKENS, WIDTH, dtype=dtype)
    found = []
    for codes in forms(dense, 5):
        values = codes.values.clone().requires_grad_()
        tied = codes.with_values(values)
        loss = (tied.decode(dictionary) * weight).sum() + tied.sum_per_latent().square().sum()
        of_values, of_dictionary = torch.autograd.grad(loss, (values, dictionary))
        found.append((codes.with_values(of_values).dense(), of_dictionary))
    for of_values, of_dictionary in found[1:]:
        torch.testing.assert_close(of_values[dense != 0], found[0][0][dense != 0])
        torch.testing.assert_close(of_dictionary, found[0][1])


def test_no_code_at_all():
    for codes in forms(torch.zeros(TOKENS, LATENTS), 2):
        assert codes.decode(torch.randn(LATENTS, WIDTH)).abs().max() == 0
        assert codes.spread(torch.randn(TOKENS, WIDTH)).abs().max() == 0
        assert codes.active_per_token().tolist() == [0] * TOKENS


def test_sparse_forms_never_make_the_dense_table():
    """Codes of a million latents for a thousand tokens: dense, they would be four gigabytes."""
    n_latents, tokens = 2**20, 1000
    dictionary = torch.ones(1, 2).expand(n_latents, 2).contiguous()
    indices = torch.randint(n_latents, (tokens, 3))
    codes = TopCodes(torch.ones(tokens, 3), indices, n_latents)
    assert codes.decode(dictionary).unique().tolist() == [3]
    rows = torch.arange(tokens).repeat_interleave(3)
    ragged = RaggedCodes(torch.ones(3 * tokens), rows, indices.flatten(), (tokens, n_latents))
    assert ragged.decode(dictionary).unique().tolist() == [3]
