"""Allocations are optimal, Zipf budgets add up, aux_zipf reduces to aux_k, thresholds keep the budget."""

import itertools

import pytest
import torch
from torch.nn.functional import normalize

from sparsebook.data.activations import sampled
from sparsebook.features.metrics import l0
from sparsebook.features.mutual_choice_sae import (
    AuxZipf,
    FeatureChoiceSAE,
    MutualChoiceSAE,
    ZipfBudgets,
    allocate,
    aux_zipf_loss,
    deficits,
    expected_shares,
    fit_zipf,
    whole_budgets,
    zipf_allocation,
    zipf_shares,
)
from sparsebook.features.sae import BatchTopKSAE, ReLUSAE, TopKSAE
from sparsebook.features.trainer import Trainer, TrainingOptions, auxiliary_loss, train

WIDTH, LATENTS, TOKENS, K = 12, 40, 30, 4


def table(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mask(codes):
    return codes.dense() != 0


# --- allocation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rule", ["token", "feature", "mutual"])
def test_greedy_is_the_optimum_of_all_masks(rule, seed):
    """All 4096 masks of a table with ties, zeros and negative numbers."""
    draw = torch.Generator().manual_seed(seed)
    affinity = torch.randint(-1, 4, (3, 4), generator=draw).double()
    limits = torch.tensor([0, 1, 3, 2])
    budget = {"token": 6, "feature": 6, "mutual": 5}[rule]
    masks = torch.tensor(list(itertools.product((0, 1), repeat=12))).view(-1, 3, 4)
    fits = {
        "token": (masks.sum(2) <= 2).all(1),
        "feature": (masks.sum(1) <= limits).all(1),
        "mutual": masks.sum((1, 2)) <= 5,
    }[rule]
    best = float((affinity.clamp(min=0) * masks[fits]).sum((1, 2)).max())
    found = allocate(affinity, budget, rule, limits if rule == "feature" else None)
    assert float(found.values.sum()) == pytest.approx(best)


def test_counts_of_each_rule():
    affinity = table(TOKENS, LATENTS).abs() + 0.1
    limits = zipf_allocation(LATENTS, 120, TOKENS, 1.0, 2.0)
    assert (mask(allocate(affinity, 120, "token")).sum(1) == 4).all()
    assert (mask(allocate(affinity, 120, "feature", limits)).sum(0) == limits).all()
    equal = mask(allocate(affinity, 130, "feature")).sum(0)
    assert equal.sum() == 130
    assert equal.max() - equal.min() == 1
    assert len(allocate(affinity, 120, "mutual").values) == 120
    for rule in ("token", "feature", "mutual"):
        assert len(allocate(affinity, 0, rule).values) == 0
        assert mask(allocate(affinity, TOKENS * LATENTS, rule)).all()


def test_zeros_are_no_matches():
    affinity = table(TOKENS, LATENTS).abs()
    affinity[:, 3] = -1
    affinity[:5] = 0
    found = mask(allocate(affinity, 120, "feature"))
    assert found[:, 3].sum() == 0
    assert found[:5].sum() == 0
    assert found[:, 4].sum() == 3


@pytest.mark.parametrize("rule", ["token", "feature", "mutual"])
def test_permuting_tokens_permutes_codes(rule):
    affinity, order = table(TOKENS, LATENTS), torch.randperm(TOKENS)
    plain, moved = (allocate(a, 120, rule).dense() for a in (affinity, affinity[order]))
    torch.testing.assert_close(plain[order], moved)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((-1, "mutual"), "budget=-1"),
        ((TOKENS * LATENTS + 1, "mutual"), "budget=1201"),
        ((121, "token"), "multiple of the number of tokens"),
        ((3, "feature", torch.zeros(LATENTS, dtype=torch.int64)), "budget=3 in all"),
        ((31, "feature", torch.tensor([31] + [0] * (LATENTS - 1))), "between 0 and the number of rows"),
        ((3, "mutual", torch.zeros(LATENTS, dtype=torch.int64)), "expected None"),
    ],
)
def test_bad_allocations(arguments, match):
    with pytest.raises(ValueError, match=match):
        allocate(table(TOKENS, LATENTS), *arguments)


def test_nan_affinities_are_refused():
    affinity = table(TOKENS, LATENTS)
    affinity[2, 2] = torch.nan
    for rule in ("token", "feature", "mutual"):
        with pytest.raises(ValueError, match="NaN"):
            allocate(affinity, 120, rule)


# --- Zipf's law ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("exponent", "offset"), [(1.0, 3.0), (0.6, 0.0), (1.7, 25.0), (0.0, 0.0)])
def test_a_planted_law_is_recovered(exponent, offset):
    planted = 0.4 * (torch.arange(1, 513, dtype=torch.float64) + offset) ** -exponent
    found = fit_zipf(planted[torch.randperm(512)])
    assert found.exponent == pytest.approx(exponent, abs=1e-3)
    if exponent:
        assert found.offset == pytest.approx(offset, abs=1e-3)
        torch.testing.assert_close(found.density(512), planted, rtol=1e-6, atol=0)
    assert found.r2 == pytest.approx(1)
    assert found.n_ranks == 410


def test_the_fit_leaves_the_dead_and_the_tail_out():
    planted = (torch.arange(1, 101, dtype=torch.float64) + 2) ** -1.2
    planted[60:] = 0
    assert fit_zipf(planted).n_ranks == 60
    assert fit_zipf(planted, (1, 50)).exponent == pytest.approx(1.2, abs=1e-6)
    for bad, match in ((-planted, "negative"), (torch.zeros(9), "0 positive values")):
        with pytest.raises(ValueError, match=match):
            fit_zipf(bad)
    with pytest.raises(ValueError, match="fit_range"):
        fit_zipf(planted, (0, 3))


@pytest.mark.parametrize(
    ("budget", "batch"), [(4096, 512), (512, 512), (300, 512), (2048, 4), (0, 512), (20, 64)]
)
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_whole_budgets_add_up(budget, batch, exponent):
    n = 512
    found = zipf_allocation(n, budget, batch, exponent, 1.0)
    assert found.sum() == budget
    assert (found.diff() <= 0).all()
    assert found.max() <= batch
    assert found.min() >= (1 if budget >= 2 * n else 0)


def test_what_the_upper_clip_cuts_goes_to_the_next_ranks():
    shares = zipf_shares(6, 20, 8, 3.0, 0.0)
    assert float(shares[0]) == pytest.approx(8)
    assert float(shares.sum()) == pytest.approx(20)
    free = (shares > 1.001) & (shares < 7.999)
    law = torch.arange(1, 7, dtype=torch.float64) ** -3
    ratio = (shares / law)[free]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    for arguments in (
        (6, 49, 8, 1, 0),
        (6, -1, 8, 1, 0),
        (6, 5, 8, 1, 0, 1),
        (6, 5, 8, -1, 0),
        (6, 5, 8, 1, -1),
    ):
        with pytest.raises(ValueError, match="expected"):
            zipf_shares(*arguments)


def test_steep_laws_neither_overflow_nor_vanish():
    """An exponential decay is fitted by an exponent in the hundreds."""
    density = 0.3 * (-torch.arange(256, dtype=torch.float64) / 8).exp()
    found = fit_zipf(density)
    assert found.exponent > 100
    assert found.density(256).isfinite().all()
    shares = zipf_shares(256, 1280, 256, found.exponent, found.offset)
    assert float(shares.sum()) == pytest.approx(1280)
    assert shares.min() == 1
    expected = expected_shares(density, 5, 256)
    assert expected.isfinite().all()
    assert float(expected.sum()) == pytest.approx(5)


def test_largest_remainders():
    assert whole_budgets(torch.tensor([2.6, 1.7, 0.7, 1.0]), 6).tolist() == [2, 2, 1, 1]
    with pytest.raises(ValueError, match="total=20"):
        whole_budgets(torch.tensor([2.6, 1.7]), 20)


def test_expected_shares_follow_the_ranks():
    density = torch.tensor([0.1, 0.4, 0.0, 0.2, 0.1, 0.05, 0.02, 0.03], dtype=torch.float64)
    expected = expected_shares(density, 2, 100)
    order = density.argsort(descending=True, stable=True)
    assert (expected[order].diff() <= 0).all()
    assert float(expected.sum()) == pytest.approx(2)
    assert expected[0] > expected[4]  # ties keep their order
    found = deficits(density, expected)
    assert found[2] == 1
    assert (found >= 0).all()


# --- the autoencoders ---------------------------------------------------------------------------------------


def test_mutual_choice_is_batchtopk():
    x = table(TOKENS, WIDTH)
    a, b = (cls(WIDTH, LATENTS, K, dtype=torch.float64) for cls in (MutualChoiceSAE, BatchTopKSAE))
    torch.testing.assert_close(a.encode(x).dense(), b.encode(x).dense(), rtol=0, atol=0)
    ours = allocate(a.affinities(x).detach(), K * TOKENS, "mutual")
    torch.testing.assert_close(a.encode(x).dense(), ours.dense())


@pytest.mark.parametrize("seeds", [None, (3, 5)])
def test_each_latent_takes_its_budget_of_batches_of_any_size(seeds):
    shares = zipf_shares(LATENTS, K * TOKENS, TOKENS, 1.0, 1.0) / TOKENS
    sae = FeatureChoiceSAE(WIDTH, LATENTS, K, shares, seeds=seeds, dtype=torch.float64)
    with torch.no_grad():
        sae.encoder_bias.add_(50)  # every affinity is positive
    for n in (TOKENS, 17):
        counts = sae.encode(table(n, WIDTH)).active_per_latent()
        assert (counts == sae.budgets_of(n)).all()
        assert (counts.sum(-1) == K * n).all()
    alone = sae.model(1) if seeds else sae
    assert alone.budgets_of(17).shape == (LATENTS,)
    with pytest.raises(ValueError, match="single token"):
        sae.encode(table(1, WIDTH))


def test_gradients_are_those_of_dense_codes():
    sae = FeatureChoiceSAE(WIDTH, LATENTS, K, dtype=torch.float64)
    x = table(TOKENS, WIDTH)
    sae(x).reconstruction.square().sum().backward()
    got = [p.grad.clone() for p in sae.parameters()]
    sae.zero_grad()
    kept = mask(sae.encode(x))
    dense = (sae.affinities(x) * kept) @ sae.decoder + sae.pre_bias
    dense.square().sum().backward()
    torch.testing.assert_close(got, [p.grad for p in sae.parameters()])


def test_thresholds_of_each_latent():
    shares = torch.full((LATENTS,), K / (LATENTS - 1), dtype=torch.float64)
    shares[7] = 0
    sae = FeatureChoiceSAE(WIDTH, LATENTS, K, shares, dtype=torch.float64)
    x = table(200, WIDTH)
    with pytest.raises(ValueError, match="no thresholds are stored"):
        sae.encode(x, "threshold")
    sae.calibrate_thresholds([x])
    assert sae.threshold[7] == torch.inf
    offered = sae.affinities(x).detach().relu()
    expected = offered.sort(0, descending=True).values
    budgets = sae.budgets_of(200)
    for j in (0, 20, 39):
        assert sae.threshold[j] == expected[budgets[j] - 1, j]
    torch.testing.assert_close(sae.encode(x, "threshold").dense(), sae.encode(x).dense())
    # The moving average follows batches; a latent with too few positive affinities needs no more than these.
    with torch.no_grad():
        sae.encoder_bias[3] = -100
    before = sae.threshold.clone()
    sae.update_thresholds(sae(x), momentum=0.5)
    assert sae.threshold[3] == before[3] / 2
    torch.testing.assert_close(sae.threshold[20], before[20])
    assert sae.threshold[7] == torch.inf


@pytest.mark.parametrize(
    ("budgets", "match"),
    [
        (torch.full((LATENTS,), 0.2), "add up to"),
        (torch.full((LATENTS,), -0.1), "from 0 to 1"),
    ],
)
def test_bad_budgets(budgets, match):
    with pytest.raises(ValueError, match=match):
        FeatureChoiceSAE(WIDTH, LATENTS, K, budgets)
    with pytest.raises(ValueError, match="k=41"):
        FeatureChoiceSAE(WIDTH, LATENTS, 41)
    with pytest.raises(ValueError, match="shape"):
        FeatureChoiceSAE(WIDTH, LATENTS, K).set_shares(torch.ones(3))


# --- training -----------------------------------------------------------------------------------------------

FEATURES = 20


def world(n, generator):
    """Two of 20 directions in 12 dimensions, the first ones more often."""
    directions = normalize(torch.randn(FEATURES, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
    chance = torch.rand(n, FEATURES, generator=generator) ** torch.linspace(0.3, 3, FEATURES)
    return directions[chance.topk(2, dim=1).indices].sum(1)


def test_aux_zipf_of_the_dead_is_aux_k():
    sae, x = TopKSAE(WIDTH, LATENTS, K, dtype=torch.float64), table(TOKENS, WIDTH)
    output = sae(x)
    dead = torch.arange(LATENTS) % 3 == 0
    ours = aux_zipf_loss(sae, x, output, dead.double(), 5)
    torch.testing.assert_close(ours, auxiliary_loss(sae, x, output, dead.double(), 5))
    # Deficits of half and less are no candidates; without any the loss is 0.
    assert aux_zipf_loss(sae, x, output, torch.full((LATENTS,), 0.5).double(), 5) == 0
    assert ours > 0


def test_gradients_of_aux_zipf_reach_candidates_only():
    sae, x = TopKSAE(WIDTH, LATENTS, K, dtype=torch.float64), table(TOKENS, WIDTH)
    deficit = torch.where(torch.arange(LATENTS) < 10, 0.8, 0.1).double()
    aux_zipf_loss(sae, x, sae(x), deficit, 4).backward()
    for name in ("encoder", "decoder", "encoder_bias"):
        gradient = getattr(sae, name).grad
        assert gradient[:10].abs().sum() > 0
        assert gradient[10:].abs().sum() == 0
    assert sae.pre_bias.grad is None


def test_budgets_are_set_after_a_phase_of_mutual_choice():
    sae = FeatureChoiceSAE(WIDTH, LATENTS, K, "zipf", seeds=(0, 1))
    trainer = Trainer(
        sae, TrainingOptions(30, learning_rate=3e-3, dead_after=200), [ZipfBudgets(10, 10), AuxZipf(6)]
    )
    source = sampled(world, 60, (0, 1))
    shares = []
    for step in range(30):
        trainer.step(source(step))
        assert sae.has_budgets == (step + 1 >= 10)
        shares.append(sae.shares.clone())
    torch.testing.assert_close(shares[10], shares[18])
    assert not torch.equal(shares[18], shares[19])
    torch.testing.assert_close(sae.shares.sum(-1), torch.full((2,), float(K), dtype=torch.float64))
    torch.testing.assert_close(sae.decoder.norm(dim=-1), torch.ones(2, LATENTS))
    with pytest.raises(ValueError, match="expected a FeatureChoiceSAE"):
        train(MutualChoiceSAE(WIDTH, LATENTS, K), sampled(world, 60, 0), TrainingOptions(1), [ZipfBudgets(1)])


@pytest.mark.parametrize("variant", ["mutual", "feature"])
def test_stored_thresholds_keep_k_on_other_tokens(variant):
    k, n = 3, 256
    if variant == "mutual":
        sae, rules = MutualChoiceSAE(WIDTH, LATENTS, k), [AuxZipf(6, every=20)]
    else:
        sae, rules = FeatureChoiceSAE(WIDTH, LATENTS, k, "zipf"), [ZipfBudgets(40, 20), AuxZipf(6)]
    train(sae, sampled(world, n, 0), TrainingOptions(150, learning_rate=3e-3, decay=0.3), rules)
    draw = torch.Generator().manual_seed(9)
    sae.calibrate_thresholds([world(4_000, draw)])
    codes = sae.encode(world(4_000, draw), "threshold")
    assert float(l0(codes)) == pytest.approx(k, rel=0.05)
    if variant == "feature":
        assert (codes.active_per_latent() > 0).all()


def test_aux_zipf_resumes_and_needs_a_budget(tmp_path):
    path, source = tmp_path / "c.safetensors", sampled(world, 60, 0)
    options = TrainingOptions(20, learning_rate=3e-3, dead_after=200)
    make = lambda: (TopKSAE(WIDTH, LATENTS, K), [AuxZipf(6, every=8)])  # noqa: E731
    whole, rules = make()
    train(whole, source, options, rules)
    sae, rules = make()
    first = Trainer(sae, options, rules)
    for step in range(12):
        first.step(source(step))
    first.save(path)
    again, rules = make()
    train(again, source, options, rules, checkpoint=path)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    with pytest.raises(ValueError, match="k=None"):
        train(ReLUSAE(WIDTH, LATENTS, 0.1), source, options, [AuxZipf(6, every=1)])
    with pytest.raises(ValueError, match="gamma=2"):
        AuxZipf(gamma=2.0)
    with pytest.raises(ValueError, match="start=0"):
        ZipfBudgets(0)
