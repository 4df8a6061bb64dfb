"""The variants do what their papers' formulas say, for one model and for a stack of seeds alike."""

import inspect

import pytest
import torch
from torch.nn.functional import normalize

from sparsebook.features.codes import DenseCodes, RaggedCodes, TopCodes
from sparsebook.features.metrics import l0, normalized_mse
from sparsebook.features.sae import (
    BatchTopKSAE,
    JumpReLUSAE,
    LinearEncoderSAE,
    MatryoshkaSAE,
    ReLUSAE,
    SparseAutoencoder,
    TopKSAE,
)

WIDTH, LATENTS, TOKENS, K = 12, 40, 30, 3
VARIANTS = {
    "topk": lambda **o: TopKSAE(WIDTH, LATENTS, K, **o),
    "batch": lambda **o: BatchTopKSAE(WIDTH, LATENTS, K, **o),
    "relu": lambda **o: ReLUSAE(WIDTH, LATENTS, 0.1, **o),
    "jump": lambda **o: JumpReLUSAE(WIDTH, LATENTS, 0.1, initial_threshold=0.2, bandwidth=0.3, **o),
    "matryoshka": lambda **o: MatryoshkaSAE(WIDTH, LATENTS, 0.1, (5, 20, LATENTS), **o),
}


@pytest.fixture(params=VARIANTS)
def make(request):
    return VARIANTS[request.param]


@pytest.fixture
def x():
    return torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def perturbed(sae, seed=0):
    """Away from the tied start: biases that are not zero, an encoder that is not the decoder."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in (sae.encoder, sae.encoder_bias, sae.pre_bias):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return sae


def affinities(sae, x):
    """As OpenAI writes it: ``(x - pre_bias) W + latent_bias``."""
    return (x - sae.pre_bias) @ sae.encoder.T + sae.encoder_bias


# --- formulas -----------------------------------------------------------------------------------------------


def test_topk_is_openais_formula(x):
    sae = perturbed(VARIANTS["topk"](dtype=torch.float64))
    offered = affinities(sae, x)
    top = offered.topk(K, dim=-1)
    z = torch.zeros_like(offered).scatter(-1, top.indices, top.values.relu())
    output = sae(x)
    assert isinstance(output.codes, TopCodes)
    torch.testing.assert_close(output.codes.dense(), z)
    torch.testing.assert_close(output.reconstruction, z @ sae.decoder + sae.pre_bias)
    torch.testing.assert_close(output.pre_activations, offered)
    torch.testing.assert_close(sae.decode(z), output.reconstruction)


@pytest.mark.parametrize("k", [3, 1.36, LATENTS])
def test_batchtopk_is_the_rule_of_its_training(x, k):
    sae = perturbed(BatchTopKSAE(WIDTH, LATENTS, k, dtype=torch.float64))
    offered = affinities(sae, x).relu().flatten()
    top = offered.topk(round(k * TOKENS))
    z = torch.zeros_like(offered).scatter(0, top.indices, top.values).view(TOKENS, LATENTS)
    codes = sae.encode(x)
    assert isinstance(codes, RaggedCodes)
    torch.testing.assert_close(codes.dense(), z)
    # Without positive affinities there is nothing to select: zeros are no matches.
    assert len(codes.values) == int((top.values > 0).sum())
    assert len(sae.encode(x[:10]).values) <= round(k * 10)


def test_relu_penalty_counts_decoder_norms(x):
    sae = perturbed(VARIANTS["relu"](dtype=torch.float64))
    with torch.no_grad():
        sae.decoder.mul_(torch.linspace(0.5, 2, LATENTS)[:, None])
    z = affinities(sae, x).relu()
    output = sae(x)
    terms = sae.loss_terms(x, output)
    torch.testing.assert_close(output.codes.dense(), z)
    error = (z @ sae.decoder + sae.pre_bias - x).square().sum(1).mean()
    torch.testing.assert_close(terms["reconstruction"], error)
    torch.testing.assert_close(terms["sparsity"], 0.1 * (z * sae.decoder.norm(dim=1)).sum(1).mean())
    with torch.no_grad():  # a longer row and a shorter code change nothing
        sae.decoder.mul_(4)
        sae.encoder.div_(4)
        sae.encoder_bias.div_(4)
    again = sae.loss_terms(x, sae(x))
    torch.testing.assert_close(again, terms)


def test_jumprelu_and_its_straight_through_gradients(x):
    sae = perturbed(VARIANTS["jump"](dtype=torch.float64))
    offered, limit, width = affinities(sae, x).detach(), 0.2, 0.3
    output = sae(x)
    torch.testing.assert_close(output.codes.dense(), torch.where(offered > limit, offered, 0))
    terms = sae.loss_terms(x, output)
    torch.testing.assert_close(terms["sparsity"], 0.1 * (offered > limit).double().sum(1).mean())
    near = ((offered - limit).abs() < width / 2).double()
    # d/d log(theta) = theta d/d theta; equations 11 and 12 of the paper.
    of_step = torch.autograd.grad(terms["sparsity"], sae.log_threshold, retain_graph=True)[0]
    torch.testing.assert_close(of_step, limit * 0.1 * -near.sum(0) / width / TOKENS)
    of_error = torch.autograd.grad(terms["reconstruction"], sae.log_threshold)[0]
    residual = 2 * (output.reconstruction - x) / TOKENS
    expected = -(limit / width) * (near * (residual @ sae.decoder.T)).sum(0) * limit
    torch.testing.assert_close(of_error, expected)


def test_matryoshka_is_the_mean_over_prefixes(x):
    sae = perturbed(VARIANTS["matryoshka"](dtype=torch.float64))
    output = sae(x)
    terms = sae.loss_terms(x, output)
    z = output.codes.dense()
    errors = [
        (z[:, :m] @ sae.decoder[:m] + sae.pre_bias - x).square().sum(1).mean() for m in (5, 20, LATENTS)
    ]
    penalties = [0.1 * (z * sae.decoder.norm(dim=1))[:, :m].sum(1).mean() for m in (5, 20, LATENTS)]
    torch.testing.assert_close(terms["reconstruction"], torch.stack(errors).mean())
    torch.testing.assert_close(terms["sparsity"], torch.stack(penalties).mean())
    whole = MatryoshkaSAE(WIDTH, LATENTS, 0.1, [LATENTS], dtype=torch.float64)
    plain = VARIANTS["relu"](dtype=torch.float64)
    torch.testing.assert_close(whole.loss_terms(x, whole(x)), plain.loss_terms(x, plain(x)))


def test_matryoshka_draws_prefixes_by_their_law():
    sae = MatryoshkaSAE(4, 9, 0.1, prefixes=2)
    generator = torch.Generator().manual_seed(0)
    drawn = [sae.sizes(generator) for _ in range(4000)]
    assert all(sizes == sorted(set(sizes)) and sizes[-1] == 9 for sizes in drawn)
    shares = torch.bincount(torch.tensor([sizes[0] for sizes in drawn]), minlength=9)[1:] / 4000
    m = torch.arange(1, 9).double()
    torch.testing.assert_close(shares.double(), (m.sqrt() - (m - 1).sqrt()) / 8**0.5, rtol=0, atol=0.03)


# --- gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["topk", "batch"])
@pytest.mark.parametrize("seeds", [None, (1, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("keep", [True, False])
def test_sparse_gradients_are_the_dense_ones(x, variant, seeds, dtype, keep, monkeypatch):
    monkeypatch.setattr("sparsebook.features.sae._TABLE", 8 * LATENTS)  # groups of 8 tokens
    sae = perturbed(VARIANTS[variant](seeds=seeds, dtype=dtype))
    x = x.to(dtype).requires_grad_()
    output = sae(x, keep=keep)
    weight = torch.randn(output.reconstruction.shape, dtype=dtype)
    leaves = (x, *sae.parameters())
    found = torch.autograd.grad((output.reconstruction * weight).sum(), leaves)
    kept = output.codes.dense() != 0
    z = sae.affinities(x) * kept
    dense = (z @ sae.decoder + sae.pre_bias[..., None, :]) * weight
    for got, expected in zip(found, torch.autograd.grad(dense.sum(), leaves), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("variant", ["topk", "relu", "matryoshka"])
def test_numerical_gradients(variant):
    small = {
        "topk": lambda **o: TopKSAE(4, 7, 2, **o),
        "relu": lambda **o: ReLUSAE(4, 7, 0.1, **o),
        "matryoshka": lambda **o: MatryoshkaSAE(4, 7, 0.1, (2, 7), **o),
    }
    sae = perturbed(small[variant](dtype=torch.float64))
    x = torch.randn(3, 4, dtype=torch.float64)
    names = [name for name, _ in sae.named_parameters()]

    def loss(*parameters):
        output = torch.func.functional_call(sae, dict(zip(names, parameters, strict=True)), x)
        return output.reconstruction.square().sum()

    assert torch.autograd.gradcheck(loss, tuple(sae.parameters()), eps=1e-7, atol=1e-4)


def test_the_part_of_a_gradient_along_a_row_is_removed(make, x):
    sae = make(seeds=(1, 2), dtype=torch.float64)
    sum(term.sum() for term in sae.loss_terms(x, sae(x)).values()).backward()
    before = sae.decoder.grad.clone()
    sae.remove_parallel_gradient_()
    assert float((sae.decoder.grad * sae.decoder.detach()).sum(-1).abs().max()) < 1e-12
    taken = before - sae.decoder.grad
    torch.testing.assert_close(taken, (before * sae.decoder).sum(-1, keepdim=True) * sae.decoder)


# --- starts, seeds, thresholds ------------------------------------------------------------------------------


def test_the_start(make):
    sae = make()
    torch.testing.assert_close(sae.decoder.norm(dim=-1), torch.ones(LATENTS))
    torch.testing.assert_close(normalize(sae.encoder, dim=-1), sae.decoder.detach())
    scales = sae.encoder.norm(dim=-1)
    torch.testing.assert_close(scales, scales[:1].expand_as(scales))
    inputs = normalize(torch.randn(500, WIDTH), dim=-1)
    length = sae(inputs).reconstruction.norm(dim=-1).mean()
    if not isinstance(sae, JumpReLUSAE):  # whose threshold does not scale
        assert length.item() == pytest.approx(1, abs=0.05)


def test_a_stack_of_seeds_is_each_seeds_own_model(make, x):
    stack = make(seeds=(3, 8), dtype=torch.float64)
    own = x + torch.tensor([0.0, 1.0])[:, None, None]
    output, apart = stack(x), stack(own)
    terms = stack.loss_terms(x, output)
    stack.calibrate_thresholds([x])
    for index, seed in enumerate((3, 8)):
        alone = make(seed=seed, dtype=torch.float64)
        for name, parameter in stack.model(index).named_parameters():
            torch.testing.assert_close(parameter, dict(alone.named_parameters())[name])
        single = alone(x)
        torch.testing.assert_close(output.reconstruction[index], single.reconstruction)
        torch.testing.assert_close(output.codes.dense()[index], single.codes.dense())
        torch.testing.assert_close(apart.reconstruction[index], alone(own[index]).reconstruction)
        for name, term in alone.loss_terms(x, single).items():
            torch.testing.assert_close(terms[name][index], term)
        alone.calibrate_thresholds([x])
        by_threshold = [sae.encode(x, mode="threshold").dense() for sae in (stack, alone)]
        torch.testing.assert_close(by_threshold[0][index], by_threshold[1])


@pytest.mark.parametrize("variant", ["topk", "batch"])
def test_thresholds_keep_as_many_of_new_tokens(variant):
    torch.manual_seed(0)
    sae = VARIANTS[variant]()
    batches = [torch.randn(500, WIDTH) for _ in range(8)]
    with pytest.raises(ValueError, match="calibrate_thresholds"):
        sae.encode(batches[0], mode="threshold")
    sae.calibrate_thresholds(batches)
    codes = sae.encode(torch.randn(4000, WIDTH), mode="threshold")
    assert float(l0(codes)) == pytest.approx(K, rel=0.05)


def test_thresholds_that_follow_training(x):
    sae = VARIANTS["batch"](dtype=torch.float64)
    smallest = []
    for step in range(3):
        output = sae(x + step)
        sae.update_thresholds(output, momentum=0.9)
        smallest.append(output.codes.values.min())
    expected = 0.9 * (0.9 * smallest[0] + 0.1 * smallest[1]) + 0.1 * smallest[2]
    torch.testing.assert_close(sae.threshold, expected)


def test_a_token_has_the_same_codes_in_any_company(make, x):
    sae = make(dtype=torch.float64)
    sae.calibrate_thresholds([x])
    whole = sae.encode(x, mode="threshold").dense()
    torch.testing.assert_close(sae.encode(x[4:5], mode="threshold").dense(), whole[4:5])
    order = torch.randperm(TOKENS)
    torch.testing.assert_close(sae.encode(x[order]).dense(), sae.encode(x).dense()[order])


def test_centring_starts_the_bias_at_the_mean(make, x):
    sae = make(seeds=(1, 2), dtype=torch.float64)
    sae.centre_(x + 5)
    torch.testing.assert_close(sae.pre_bias, (x + 5).mean(0).expand(2, -1))


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: TopKSAE(4, 8, 9), "k=9: .*8"),
        (lambda: TopKSAE(4, 8, 0), "k=0"),
        (lambda: BatchTopKSAE(4, 8, 8.5), "k=8.5"),
        (lambda: BatchTopKSAE(4, 8, 0.0), "k=0"),
        (lambda: ReLUSAE(4, 8, -1), "sparsity=-1"),
        (lambda: JumpReLUSAE(4, 8, 1, bandwidth=0.0), "bandwidth=0"),
        (lambda: MatryoshkaSAE(4, 8, 1, (3, 2, 8)), "prefixes"),
        (lambda: MatryoshkaSAE(4, 8, 1, (3, 7)), "prefixes"),
        (lambda: MatryoshkaSAE(4, 8, 1, 9), "prefixes=9"),
        (lambda: TopKSAE(0, 8, 1), "width=0"),
        (lambda: TopKSAE(4, 8, 1, seeds=()), "seeds"),
        (lambda: TopKSAE(4, 8, 1).model(0), "index=0"),
        (lambda: TopKSAE(4, 8, 1, seeds=(1,)).model(1), "index=1"),
    ],
)
def test_models_that_cannot_be(build, match):
    with pytest.raises(ValueError, match=match):
        build()


@pytest.mark.parametrize("seeds", [None, (1, 2)])
def test_inputs_that_cannot_be(make, seeds):
    sae = make(seeds=seeds)
    x = torch.randn(TOKENS, WIDTH)
    for bad in (torch.nan, torch.inf):
        spoiled = x.clone()
        spoiled[3, 4] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            sae(spoiled)
    with pytest.raises(ValueError, match="empty"):
        sae.encode(x[:0])
    with pytest.raises(ValueError, match="float64"):
        sae.encode(x.double())
    for shape in ((TOKENS, WIDTH + 1), (3, TOKENS, WIDTH)):
        with pytest.raises(ValueError, match="shape"):
            sae.encode(torch.randn(shape))


def test_a_rule_that_couples_tokens_refuses_a_single_one(make):
    sae, x = make(), torch.randn(1, WIDTH)
    if sae.couples_tokens:
        with pytest.raises(ValueError, match="single token"):
            sae.encode(x)
        sae.calibrate_thresholds([torch.randn(50, WIDTH)])
        assert len(sae.encode(x, mode="threshold").active_per_token()) == 1
    else:
        assert len(sae.encode(x).active_per_token()) == 1


def test_a_zero_atom_is_refused(make):
    sae = make(seeds=(1, 2))
    with torch.no_grad():
        sae.decoder[1, 7] = 0
    before = sae.decoder.clone()
    with pytest.raises(ValueError, match=r"decoder.*\[1, 7\]"):
        sae.normalise_decoder_()
    torch.testing.assert_close(sae.decoder, before, rtol=0, atol=0)


def test_nothing_to_calibrate_with():
    with pytest.raises(ValueError, match="batches"):
        VARIANTS["topk"]().calibrate_thresholds([])


# --- a new variant is a page --------------------------------------------------------------------------------


class ShareSAE(LinearEncoderSAE):
    "Keeps what is at least `share` of a token's largest affinity."

    def __init__(self, width, n_latents, share, **options):
        super().__init__(width, n_latents, **options)
        self.share = share
        self.initialise()

    def activate(self, affinities, mode="batch"):
        positive = affinities.relu()
        return DenseCodes(positive * (positive >= self.share * positive.amax(-1, keepdim=True)))


def test_a_variant_of_a_dozen_lines_has_everything(x):
    assert len(inspect.getsource(ShareSAE).splitlines()) <= 15
    assert issubclass(ShareSAE, SparseAutoencoder)
    sae = ShareSAE(WIDTH, LATENTS, 0.8, seeds=(0, 1, 2), dtype=torch.float64)
    output = sae(x)
    largest = output.pre_activations.amax(-1, keepdim=True)
    kept = output.codes.dense() != 0
    assert (kept == ((output.pre_activations >= 0.8 * largest) & (output.pre_activations > 0))).all()
    assert normalized_mse(x, output.reconstruction).shape == (3,)
    sae.loss_terms(x, output)["reconstruction"].sum().backward()
    assert sae.model(1)(x).reconstruction.shape == (TOKENS, WIDTH)
