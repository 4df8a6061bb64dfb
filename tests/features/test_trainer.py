"""Training: seeds apart, interruptions, rules, and that it finds what is there."""

import dataclasses

import pytest
import torch
from torch.nn.functional import normalize

from sparsebook.data.activations import sampled, shuffled
from sparsebook.features.codes import DenseCodes
from sparsebook.features.metrics import feature_recovery_rate, normalized_mse
from sparsebook.features.sae import BatchTopKSAE, JumpReLUSAE, MatryoshkaSAE, ReLUSAE, TopKSAE
from sparsebook.features.trainer import (
    AdaptiveL1Controller,
    AuxK,
    FeatureDensityTracker,
    ResampleDead,
    Trainer,
    TrainingOptions,
    TrainingRule,
    auxiliary_loss,
    train,
)

WIDTH, LATENTS, FEATURES = 16, 48, 20
VARIANTS = {
    "topk": lambda **o: TopKSAE(WIDTH, LATENTS, 3, **o),
    "batch": lambda **o: BatchTopKSAE(WIDTH, LATENTS, 3, **o),
    "matryoshka": lambda **o: MatryoshkaSAE(WIDTH, LATENTS, 0.1, **o),
    "jump": lambda **o: JumpReLUSAE(WIDTH, LATENTS, 0.1, **o),
}
OPTIONS = TrainingOptions(
    30, learning_rate=3e-3, warmup=5, decay=0.2, clip_norm=0.5, log_every=10, dead_after=400
)


def directions():
    generator = torch.Generator().manual_seed(1)
    return normalize(torch.randn(FEATURES, WIDTH, generator=generator, dtype=torch.float64), dim=1)


def world(n, generator):
    """Two of 20 directions in 16 dimensions, with strengths from 0.5 to 1.5."""
    chosen = torch.rand(n, FEATURES, generator=generator).argsort(1)[:, :2]
    strength = 0.5 + torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return (directions()[chosen] * strength[..., None]).sum(1)


def rules():
    return [AuxK(k_aux=8), ResampleDead(every=12)]


@pytest.fixture(params=VARIANTS)
def make(request):
    return VARIANTS[request.param]


def same(a, b):
    """Bitwise, thresholds that were never stored included."""
    return all(torch.equal(x.nan_to_num(nan=-1), y.nan_to_num(nan=-1)) for x, y in zip(a, b, strict=True))


# --- seeds and interruptions --------------------------------------------------------------------------------


def test_a_stack_of_seeds_trains_as_each_would_alone(make):
    stack = make(seeds=(3, 5), dtype=torch.float64)
    log = train(stack, sampled(world, 60, seed=(3, 5)), OPTIONS, rules())
    for index, seed in enumerate((3, 5)):
        alone = make(seed=seed, dtype=torch.float64)
        own = train(alone, sampled(world, 60, seed=seed), OPTIONS, rules())
        for name, tensor in stack.model(index).state_dict().items():
            torch.testing.assert_close(
                tensor, alone.state_dict()[name], rtol=1e-9, atol=1e-12, equal_nan=True
            )
        rows = [row for row in log.rows if row.seed == seed]
        assert [(row.step, row.metric) for row in rows] == [(row.step, row.metric) for row in own.rows]
        assert [row.value for row in rows] == pytest.approx([row.value for row in own.rows], nan_ok=True)


def test_interrupted_and_resumed_is_uninterrupted(make, tmp_path):
    path, source = tmp_path / "deep" / "checkpoint.safetensors", sampled(world, 60, seed=5)
    whole = make(seed=5, dtype=torch.float64)
    log = train(whole, source, OPTIONS, rules())

    def interrupted(step):
        if step == 17:
            raise KeyboardInterrupt
        return source(step)

    started = make(seed=5, dtype=torch.float64)
    with pytest.raises(KeyboardInterrupt):
        train(started, interrupted, OPTIONS, rules(), checkpoint=path, checkpoint_every=8)
    resumed = make(seed=5, dtype=torch.float64)
    trainer = Trainer(resumed, OPTIONS, rules())
    trainer.load(path)
    assert trainer.step_number == 16
    again = trainer.run(source, checkpoint=path, progress=True)
    assert same(whole.state_dict().values(), resumed.state_dict().values())
    assert again == log
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    # A finished training has nothing left to do.
    assert train(make(seed=5, dtype=torch.float64), interrupted, OPTIONS, rules(), checkpoint=path) == log


def test_the_same_seed_gives_the_same_training():
    found = []
    for _ in range(2):
        sae = VARIANTS["batch"](seed=2)
        train(sae, sampled(lambda n, g: world(n, g).float(), 40, 2), OPTIONS, rules())
        found.append(list(sae.state_dict().values()))
    assert same(*found)


@pytest.mark.parametrize(
    ("sae", "options", "with_rules", "match"),
    [
        (lambda: TopKSAE(WIDTH, LATENTS + 1, 3), OPTIONS, True, "shape"),
        (lambda: BatchTopKSAE(WIDTH, LATENTS, 3), OPTIONS, True, "autoencoder"),
        (lambda: TopKSAE(WIDTH, LATENTS, 3, seeds=(0,)), OPTIONS, True, "shape"),
        (lambda: TopKSAE(WIDTH, LATENTS, 3, seed=1), OPTIONS, True, "seeds"),
        (lambda: TopKSAE(WIDTH, LATENTS, 3), dataclasses.replace(OPTIONS, warmup=6), True, "options"),
        (lambda: TopKSAE(WIDTH, LATENTS, 3), OPTIONS, False, "rules"),
    ],
)
def test_another_trainings_checkpoint_is_refused_and_kept(tmp_path, sae, options, with_rules, match):
    path, source = tmp_path / "c.safetensors", shuffled(torch.randn(100, WIDTH), 20)
    first = Trainer(TopKSAE(WIDTH, LATENTS, 3), OPTIONS, rules())
    first.step(source(0))
    first.save(path)
    content, other = path.read_bytes(), sae()
    before = [tensor.clone() for tensor in other.state_dict().values()]
    with pytest.raises(ValueError, match=match):
        train(other, source, options, rules() if with_rules else (), checkpoint=path)
    assert path.read_bytes() == content
    assert same(before, other.state_dict().values())


def test_a_damaged_checkpoint_is_refused_and_kept(tmp_path):
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="damaged"):
        train(VARIANTS["topk"](), shuffled(torch.randn(99, WIDTH), 9), OPTIONS, checkpoint=path)
    assert path.read_bytes() == b"no checkpoint"


def test_a_batch_that_is_refused_changes_nothing():
    trainer = Trainer(VARIANTS["batch"](), OPTIONS, rules())
    trainer.step(torch.randn(20, WIDTH))
    before = [tensor.clone() for tensor in trainer.sae.state_dict().values()]
    for bad in (torch.full((20, WIDTH), torch.nan), torch.zeros(0, WIDTH), torch.zeros(1, WIDTH)):
        with pytest.raises(ValueError, match=r"^x (has|is)"):
            trainer.step(bad)
    assert same(before, trainer.sae.state_dict().values())
    assert trainer.step_number == 1


# --- one step -----------------------------------------------------------------------------------------------


def test_rows_stay_unit_and_what_adam_gets_has_no_part_along_them():
    sae = VARIANTS["topk"](seeds=(0, 1))
    trainer = Trainer(sae, TrainingOptions(100, learning_rate=1e-2))
    seen = []

    def look(*_):
        seen.append((sae.decoder.grad * sae.decoder).sum(-1).abs().max().detach())

    trainer.optimiser.register_step_pre_hook(look)
    trainer.run(shuffled(torch.randn(500, WIDTH), 50, seed=(0, 1)))
    assert len(seen) == 100
    assert float(torch.stack(seen).max()) < 1e-6
    torch.testing.assert_close(sae.decoder.norm(dim=-1), torch.ones(2, LATENTS))


def test_free_norms_if_so_wished():
    sae = VARIANTS["topk"]()
    options = TrainingOptions(20, learning_rate=1e-2, unit_norm=False, remove_parallel=False)
    train(sae, shuffled(torch.randn(500, WIDTH), 50), options)
    assert float((sae.decoder.detach().norm(dim=-1) - 1).abs().max()) > 1e-2


def test_a_frozen_decoder_stays_and_the_encoder_learns(tmp_path):
    sae = VARIANTS["topk"](seeds=(0, 1))
    sae.decoder.requires_grad_(False)
    before = [tensor.detach().clone() for tensor in (sae.decoder, sae.encoder)]
    train(sae, shuffled(torch.randn(100, WIDTH), 20), OPTIONS, checkpoint=tmp_path / "c")
    torch.testing.assert_close(sae.decoder, before[0])
    assert (sae.encoder - before[1]).abs().max().item() > 1e-3


def test_clipping_is_each_seeds_own():
    sae = VARIANTS["topk"](seeds=(0, 1), dtype=torch.float64)
    trainer = Trainer(sae, TrainingOptions(1))
    for index, parameter in enumerate(sae.parameters()):
        parameter.grad = torch.ones_like(parameter)
        parameter.grad[1] *= 1e-6 * (index + 1)
    before = [parameter.grad.clone() for parameter in sae.parameters()]
    trainer._clip(0.5)
    norms = [sum(p.grad[s].square().sum() for p in sae.parameters()) ** 0.5 for s in (0, 1)]
    assert float(norms[0]) == pytest.approx(0.5, rel=1e-5)
    assert all(torch.equal(p.grad[1], b[1]) for p, b in zip(sae.parameters(), before, strict=True))


def test_the_learning_rate_rises_stays_and_falls():
    options = TrainingOptions(1000, learning_rate=2.0, warmup=100, decay=0.2, floor=0.1)
    rates = {step: options.rate(step) for step in (0, 49, 99, 500, 799, 899, 999)}
    expected = {0: 0.02, 49: 1.0, 99: 2.0, 500: 2.0, 799: 2.0, 899: 1.1, 999: 0.2}
    assert rates == pytest.approx(expected)
    assert TrainingOptions(10, learning_rate=2.0).rate(9) == 2.0


def test_adam_is_adam():
    """Three steps against plain torch on the same loss."""
    sae = ReLUSAE(WIDTH, LATENTS, 0.1, dtype=torch.float64)
    twin = ReLUSAE(WIDTH, LATENTS, 0.1, dtype=torch.float64)
    options = TrainingOptions(3, learning_rate=1e-2, unit_norm=False, remove_parallel=False)
    source = sampled(world, 40)
    train(sae, source, options)
    optimiser = torch.optim.Adam(twin.parameters(), 1e-2, (0.9, 0.99))
    for step in range(3):
        optimiser.zero_grad()
        sum(twin.loss_terms(source(step), twin(source(step))).values()).backward()
        optimiser.step()
    for mine, plain in zip(sae.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, plain)


# --- rules --------------------------------------------------------------------------------------------------


def openai_aux(sae, x, reconstruction, dead, k_aux):
    """As `train.py` there, with dense codes: live latents set to 0, top k, ReLU, decode, normalised error."""
    offered = ((x - sae.pre_bias) @ sae.encoder.T + sae.encoder_bias) * dead
    top = offered.topk(min(k_aux, offered.shape[1]))
    guess = torch.zeros_like(offered).scatter(1, top.indices, top.values.relu()) @ sae.decoder
    target = (x - reconstruction).detach()
    return ((guess - target) ** 2).mean() / ((target.mean(0) - target) ** 2).mean()


@pytest.mark.parametrize("k_aux", [2, 5, 100])
@pytest.mark.parametrize("n_dead", [1, 5, LATENTS])
def test_aux_k_is_openais(k_aux, n_dead):
    sae = VARIANTS["topk"](dtype=torch.float64)
    x = sampled(world, 30)(0)
    dead = (torch.arange(LATENTS) < n_dead).double()
    output = sae(x)
    found = auxiliary_loss(sae, x, output, dead, k_aux)
    expected = openai_aux(sae, x, output.reconstruction, dead, k_aux)
    torch.testing.assert_close(found, expected)
    leaves = (sae.encoder, sae.encoder_bias, sae.decoder)
    for got, want in zip(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_aux_gradients_reach_candidates_only():
    sae = VARIANTS["topk"](seeds=(0, 1), dtype=torch.float64)
    x, dead = sampled(world, 30)(0), torch.zeros(2, LATENTS, dtype=torch.float64)
    dead[0, 4:9] = 1
    loss = auxiliary_loss(sae, x, sae(x), dead, 3)
    assert loss[1].item() == 0  # no candidates: zero, not NaN
    loss.sum().backward()
    assert sae.pre_bias.grad is None
    for parameter in (sae.encoder, sae.decoder):
        reached = parameter.grad.abs().sum(-1) > 0
        assert reached.nonzero().tolist() == [[0, j] for j in range(4, 9)]


def test_aux_weights_scale_selection_and_codes():
    sae = VARIANTS["topk"](dtype=torch.float64)
    x = sampled(world, 30)(0)
    output = sae(x)
    weights = torch.rand(LATENTS, dtype=torch.float64)
    weights[::2] = 0
    offered = sae.affinities(x) * weights
    top = offered.topk(4)
    guess = torch.zeros_like(offered).scatter(1, top.indices, top.values.relu()) @ sae.decoder
    expected = normalized_mse((x - output.reconstruction).detach(), guess)
    torch.testing.assert_close(auxiliary_loss(sae, x, output, weights, 4), expected)
    for bad in (-weights, weights * torch.nan):
        with pytest.raises(ValueError, match="weights"):
            auxiliary_loss(sae, x, output, bad, 4)
    with pytest.raises(ValueError, match="k_aux=0"):
        auxiliary_loss(sae, x, output, weights, 0)


def test_resampling_restarts_the_dead_and_no_other():
    sae = VARIANTS["topk"](seeds=(0, 1), dtype=torch.float64)
    trainer = Trainer(sae, TrainingOptions(10, learning_rate=1e-3, dead_after=10), [])
    x = sampled(world, 50)(0)
    step = trainer.step(x)
    trainer.tracker.silent.zero_()
    trainer.tracker.silent[0, 3] = trainer.tracker.silent[1, 7] = trainer.tracker.silent[1, 8] = 99
    before = sae.encoder.detach().clone()
    ResampleDead(every=1, scale=0.2).after_step(step)
    changed = ((sae.encoder - before).abs().sum(-1) > 0).nonzero().tolist()
    assert changed == [[0, 3], [1, 7], [1, 8]]
    directions_of_tokens = normalize(x - sae.pre_bias[1], dim=-1)
    assert (directions_of_tokens @ sae.decoder[1, 7]).max().item() == pytest.approx(1)
    alive = [j for j in range(LATENTS) if j not in (7, 8)]
    assert float(sae.encoder[1, 8].norm()) == pytest.approx(0.2 * float(before[1, alive].norm(dim=1).mean()))
    assert float(trainer.optimiser.state[sae.decoder]["exp_avg"][1, 7].abs().max()) == 0
    assert float(trainer.optimiser.state[sae.decoder]["exp_avg"][1, 6].abs().max()) > 0
    assert int(trainer.tracker.silent.max()) == 0


def test_a_rule_sees_the_step_and_keeps_its_state(tmp_path):
    class Counting(TrainingRule):
        keep = True

        def __init__(self):
            self.seen = torch.zeros(())

        def loss_terms(self, step):
            assert step.output.pre_activations is not None
            return {"nothing": torch.zeros(step.trainer.sae.lead)}

        def after_step(self, step):
            self.seen += step.number

        def state(self):
            return {"seen": self.seen}

        def restore(self, state):
            self.seen = state["seen"]

    path, rule = tmp_path / "c", Counting()
    log = train(
        VARIANTS["topk"](seeds=(4,)), shuffled(torch.randn(90, WIDTH), 9), OPTIONS, [rule], checkpoint=path
    )
    assert float(rule.seen) == sum(range(30))
    assert {row.metric for row in log.rows} >= {"nothing", "loss", "l0", "dead", "normalized_mse"}
    resumed = Counting()
    Trainer(VARIANTS["topk"](seeds=(4,)), OPTIONS, [resumed]).load(path)
    assert float(resumed.seen) == sum(range(30))


def test_the_log_is_a_tidy_table():
    log = train(VARIANTS["topk"](seeds=(4, 9)), shuffled(torch.randn(90, WIDTH), 9), OPTIONS)
    table = log.table()
    assert list(table.columns) == ["step", "seed", "metric", "value"]
    assert sorted(table["step"].unique()) == [10, 20, 30]
    assert sorted(table["seed"].unique()) == [4, 9]
    assert (table[table["metric"] == "l0"]["value"] == 3).all()


def test_firing_densities_by_hand():
    tracker = FeatureDensityTracker((3,), decay=0.5, fires_above=0.1)
    assert tracker.density.tolist() == [0, 0, 0]
    tracker.observe(DenseCodes(torch.tensor([[1.0, 0, 0.05], [1, 0, 0]])))
    assert tracker.density.tolist() == [1, 0, 0]
    tracker.observe(DenseCodes(torch.tensor([[0.0, 3, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]])))
    # Weights 1/4 and 1/2, over their sum.
    assert tracker.density.tolist() == pytest.approx([1 / 3, 1 / 3, 0])
    assert tracker.silent.tolist() == [4, 0, 6]
    assert tracker.dead_mask(4).tolist() == [True, False, True]
    other = FeatureDensityTracker((3,), decay=0.5)
    other.restore(tracker.state())
    assert other.density.tolist() == tracker.density.tolist()


# --- it learns ----------------------------------------------------------------------------------------------


def test_training_finds_the_true_features():
    sae = TopKSAE(WIDTH, LATENTS, 2)
    features = directions().float()
    untrained = feature_recovery_rate(sae.decoder, features, 0.95)
    options = TrainingOptions(150, learning_rate=1e-2, decay=0.3, dead_after=5000)
    source = sampled(lambda n, generator: world(n, generator).float(), 200)
    log = train(sae, source, options, [AuxK()])
    assert float(untrained) < 0.1
    assert float(feature_recovery_rate(sae.decoder, features, 0.95)) > 0.9
    errors = [row.value for row in log.rows if row.metric == "normalized_mse"]
    assert errors[-1] < 0.1 < errors[0]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_steps": 0}, "n_steps=0"),
        ({"n_steps": 1, "learning_rate": 0.0}, "learning_rate=0"),
        ({"n_steps": 1, "clip_norm": 0.0}, "clip_norm=0"),
        ({"n_steps": 1, "decay": 1.5}, "decay=1.5"),
        ({"n_steps": 1, "log_every": 0}, "log_every=0"),
    ],
)
def test_options_that_cannot_be(arguments, match):
    with pytest.raises(ValueError, match=match):
        TrainingOptions(**arguments)


def test_the_penalty_is_steered_to_the_asked_l0():
    sae = ReLUSAE(WIDTH, LATENTS, 0.05, seeds=(0, 1))
    options = dataclasses.replace(OPTIONS, n_steps=400, warmup=0, clip_norm=None)
    rule = AdaptiveL1Controller(target=3)
    log = train(sae, sampled(lambda n, g: world(n, g).float(), 60, (0, 1)), options, [rule])
    last = [row.value for row in log.rows if row.metric == "l0" and row.step == 400]
    assert last == pytest.approx([3, 3], rel=0.15)
    assert sae.sparsity[0] != sae.sparsity[1]
    with pytest.raises(ValueError, match="sparsity above 0"):
        train(VARIANTS["topk"](), sampled(lambda n, g: world(n, g).float(), 60, 0), OPTIONS, [rule])
    with pytest.raises(ValueError, match="target=0"):
        AdaptiveL1Controller(target=0)
