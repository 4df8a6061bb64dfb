"""Bias Adaptation: the rule by hand, its clamps, streaming; the tied autoencoder's gate and gradients."""

import pytest
import torch
from torch.nn.functional import normalize

from sparsebook.data.activations import shuffled, stream
from sparsebook.data.superposition import SparseMixture
from sparsebook.features.group_bias_adaptation import (
    BiasAdaptation,
    GroupBiasRule,
    TiedJumpReLUSAE,
    geometric_targets,
    group_of,
    small_scale_ascent,
)
from sparsebook.features.metrics import densities, feature_recovery_rate
from sparsebook.features.sae import ReLUSAE
from sparsebook.features.trainer import Trainer, TrainingOptions


def one_group(n, target=0.25, **options):
    return BiasAdaptation(torch.zeros(n, dtype=torch.int64), torch.tensor([target]), **options)


# The rule ------------------------------------------------------------------------------------------------


def test_one_update_by_hand():
    y = torch.tensor([[0.4, -0.2, 0.1], [0.3, -0.1, -0.5], [-0.1, -0.3, 0.2], [0.2, -0.4, -0.2]])
    rule = one_group(3, eps=0.1)
    rule.observe(y)
    assert rule.shares.tolist() == [0.75, 0.0, 0.5]
    found = rule.update(torch.tensor([-0.2, -0.3, -0.995]))
    assert found.tolist() == pytest.approx([-0.204, -0.297, -0.997])


def test_clamps_are_reached():
    y = torch.tensor([[0.2, -1.0, 0.3], [0.2, -1.0, 0.3]])
    rule = one_group(3, eps=0.1)
    rule.observe(y)
    found = rule.update(torch.tensor([-0.999, -0.001, -0.5]))
    assert found.tolist() == pytest.approx([-1.0, 0.0, -0.503])
    printed = one_group(3, eps=0.1, clamps="printed")
    printed.observe(y)
    # As printed the first step down is already the whole range, and so is the first one up.
    assert printed.update(torch.tensor([-0.2, -0.3, -0.5])).tolist() == pytest.approx([-1.0, 0.0, -1.0])


def test_a_thousand_updates_stay_in_range_and_the_dead_band_is_left_alone():
    generator = torch.Generator().manual_seed(0)
    rule = BiasAdaptation(group_of(20, 4), geometric_targets(0.3, 0.05, 4), gamma_down=0.3, gamma_up=0.3)
    bias = -torch.rand(20, generator=generator)
    for _ in range(1000):
        y = torch.randn(30, 20, generator=generator) + bias
        rule.observe(y)
        shares = rule.shares
        kept = (shares <= rule.target) & (shares >= rule.eps)
        new = rule.update(bias)
        assert (new[kept] == bias[kept]).all()
        assert bool(((new >= -1) & (new <= 0)).all())
        bias = new


def test_a_group_without_any_peak_gives_no_nan():
    rule = one_group(3)
    rule.observe(-torch.ones(5, 3))
    assert rule.update(torch.full((3,), -0.5)).tolist() == [-0.5, -0.5, -0.5]


def test_group_means_are_of_the_own_group_and_seed():
    rule = BiasAdaptation(torch.tensor([0, 0, 1]), torch.tensor([0.9, 0.9]), gamma_up=1.0, eps=0.1)
    y = torch.tensor([[[0.2, -1.0, -1.0]], [[0.1, -1.0, 0.4]]])
    rule.observe(y)
    found = rule.update(torch.full((2, 3), -0.5))
    # Neuron 0 fires too often and goes down; neuron 1 is silent and goes up by its group's mean peak.
    assert found[:, 1].tolist() == pytest.approx([-0.3, -0.4])
    assert found[0, 2] == -0.5


def test_streaming_equals_the_whole_buffer():
    y = torch.randn(97, 12, generator=torch.Generator().manual_seed(1)) - 0.5
    bias = torch.full((12,), -0.2)
    whole = one_group(12, 0.2)
    whole.observe(y)
    expected = whole.update(bias)
    for cuts in ([1, 96], [40, 40, 17], [97]):
        parts = one_group(12, 0.2)
        for part in y.split(cuts):
            parts.observe(part)
        assert torch.equal(parts.update(bias), expected)
        assert parts.n_tokens == 0


def test_frozen_weights_come_to_their_targets():
    x = normalize(torch.randn(4000, 16, generator=torch.Generator().manual_seed(2)), dim=1)
    sae = TiedJumpReLUSAE(16, 50)
    targets = geometric_targets(0.2, 0.02, 5)
    rule = BiasAdaptation(group_of(50, 5), targets, gamma_down=0.05, gamma_up=0.05)
    for _ in range(300):
        rule.observe(sae.projections(x) + sae.bias)
        sae.bias.copy_(rule.update(sae.bias))
    shares = densities(sae.encode(x))
    assert bool((shares <= rule.target + 1e-3).all())
    assert bool((shares > 0.3 * rule.target).all())


def test_targets_and_groups():
    assert geometric_targets(0.1, 0.001, 3).tolist() == pytest.approx([0.1, 0.01, 0.001])
    assert geometric_targets(0.1, 0.001, 1).tolist() == [pytest.approx(0.1)]
    assert group_of(12, 3).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert group_of(11, 3).bincount().tolist() == [4, 4, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geometric_targets(0.1, 0.2, 3), "low <= high"),
        (lambda: geometric_targets(0.1, 0.01, 0), "n_groups=0"),
        (lambda: group_of(3, 4), "n_groups=4"),
        (lambda: one_group(3, 0.0), "targets"),
        (lambda: one_group(3, gamma_up=0.0), "gamma_up"),
        (lambda: one_group(3, low=0.0, high=-1.0), "low < high"),
        (lambda: one_group(3, clamps="none"), "clamps"),
        (lambda: BiasAdaptation(torch.tensor([1]), torch.tensor([0.1])), "groups"),
        (lambda: one_group(3).observe(torch.zeros(2, 4)), r"expected \[\.\.\., tokens, 3\]"),
        (lambda: one_group(1).observe(torch.tensor([[torch.nan]])), "NaN"),
        (lambda: one_group(3).update(torch.zeros(3)), "nothing was observed"),
        (lambda: TiedJumpReLUSAE(4, 8, gate="both"), "gate='both'"),
        (lambda: GroupBiasRule([0.1], interval=0), "interval=0"),
        (lambda: small_scale_ascent(torch.randn(10, 3), 4, 0.0, 1, stream(0)), "target=0.0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The autoencoder -----------------------------------------------------------------------------------------


def test_without_bias_both_gates_are_a_plain_tied_relu_autoencoder():
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(3))
    expected = None
    for gate in ("threshold", "shift"):
        sae = TiedJumpReLUSAE(6, 10, gate=gate, scale=0.7)
        plain = 0.7 * (x @ sae.decoder.T).relu() @ sae.decoder
        torch.testing.assert_close(sae(x).reconstruction, plain)
        expected = sae.decoder if expected is None else expected
        assert torch.equal(sae.decoder, expected)


def test_gates_differ_by_the_bias_where_a_neuron_fires():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(4))
    codes = {}
    for gate in ("threshold", "shift"):
        sae = TiedJumpReLUSAE(6, 10, gate=gate, scale=1.0)
        sae.bias.fill_(-0.3)
        codes[gate] = sae.encode(x).dense().detach()
    fired = codes["shift"] > 0
    assert fired.any()
    assert torch.equal(fired, codes["threshold"] > 0)
    differences = (codes["threshold"] - codes["shift"])[fired]
    torch.testing.assert_close(differences, torch.full_like(differences, 0.3))


@pytest.mark.parametrize("gate", ["threshold", "shift"])
def test_gradients_away_from_the_kink(gate):
    sae = TiedJumpReLUSAE(4, 6, gate=gate, dtype=torch.float64)
    sae.bias.fill_(-0.2)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert float((sae.projections(x) + sae.bias).detach().abs().min()) > 1e-3

    def loss(w, a, b):
        values = {"decoder": w, "scale": a, "pre_bias": b}
        out = torch.func.functional_call(sae, values, (x,))
        return (out.reconstruction - x).square().sum()

    assert torch.autograd.gradcheck(loss, (sae.decoder, sae.scale, sae.pre_bias))


def test_the_bias_has_no_gradient_and_is_no_parameter():
    sae = TiedJumpReLUSAE(4, 6)
    sae(torch.randn(5, 4)).reconstruction.square().sum().backward()
    assert sae.bias.grad is None
    assert not sae.bias.requires_grad
    assert {name for name, _ in sae.named_parameters()} == {"decoder", "pre_bias", "scale"}
    x = torch.randn(7, 4)
    assert set(sae.loss_terms(x, sae(x))) == {"reconstruction"}  # no penalty on sparsity


def test_the_start_gives_every_group_its_share():
    x = normalize(torch.randn(2000, 16, generator=torch.Generator().manual_seed(6)), dim=1)
    sae = TiedJumpReLUSAE(16, 40, seeds=[0, 1])
    targets = geometric_targets(0.2, 0.01, 4)
    sae.start_bias_(x, targets)
    shares = densities(sae.encode(x))
    assert shares.shape == (2, 40)
    torch.testing.assert_close(shares, targets[group_of(40, 4)].expand(2, 40), atol=2e-3, rtol=0)


# Training ------------------------------------------------------------------------------------------------


def make(seeds, interval=3):
    x = normalize(SparseMixture(24, 12, 2).sample(600, stream(1)).x, dim=1)
    targets = geometric_targets(0.2, 0.02, 4)
    sae = TiedJumpReLUSAE(12, 48, seeds=seeds)
    sae.start_bias_(x, targets)
    trainer = Trainer(sae, TrainingOptions(20, 1e-2), [GroupBiasRule(targets, interval=interval)])
    return trainer, shuffled(x, 50, seeds)


def test_seeds_train_as_if_alone():
    both, source = make([0, 1])
    both.run(source)
    alone, source = make([1])
    alone.run(source)
    torch.testing.assert_close(both.sae.decoder[1], alone.sae.decoder[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.sae.bias[1], alone.sae.bias[0], atol=1e-5, rtol=1e-4)


def test_a_training_that_stops_goes_on(tmp_path):
    whole, source = make([0])
    whole.run(source)
    first, source = make([0])
    for step in range(10):  # in the middle of an interval: the counts must be kept
        first.step(source(step))
    first.save(tmp_path / "half.safetensors")
    second, source = make([0])
    second.run(source, checkpoint=tmp_path / "half.safetensors")
    torch.testing.assert_close(second.sae.decoder, whole.sae.decoder)
    assert torch.equal(second.sae.bias, whole.sae.bias)


def test_the_rule_refuses_a_bias_that_is_learned():
    sae = ReLUSAE(6, 12, 0.1)
    trainer = Trainer(sae, TrainingOptions(2), [GroupBiasRule([0.1])])
    with pytest.raises(ValueError, match="ReLUSAE: GroupBiasRule expected"):
        trainer.step(torch.randn(8, 6))


# The limit of small scales -------------------------------------------------------------------------------


def test_neurons_alone_find_the_features_of_an_easy_world():
    world = SparseMixture(12, 24, 1)
    x = world.sample(600, stream(3)).x
    w = small_scale_ascent(x, 256, 1 / 12, 6, stream(4))
    assert feature_recovery_rate(w, world.features, 0.95) == 1
    start = small_scale_ascent(x, 256, 1 / 12, 0, stream(4))
    assert feature_recovery_rate(start, world.features, 0.95) == 0


def test_the_ascent_follows_the_gradient_of_its_objective():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    start = small_scale_ascent(x, 3, 0.25, 0, stream(5)).requires_grad_()
    v = start @ x.T
    bias = -v.topk(11, dim=1).values[:, -1:].detach()
    (v * (v + bias).relu()).sum().backward()
    found = small_scale_ascent(x, 3, 0.25, 1, stream(5))
    torch.testing.assert_close(found, normalize(start.grad, dim=1))


def test_the_first_neurons_do_not_depend_on_how_many_follow():
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(8))
    few, many = (small_scale_ascent(x, n, 0.1, 2, stream(6), block=16) for n in (20, 40))
    torch.testing.assert_close(few, many[:20])
