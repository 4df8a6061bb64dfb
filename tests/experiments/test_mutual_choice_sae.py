"""The chapter's experiments: sources, arms, measures on known answers, claims' samples, all scales."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sparsebook.claims import find_claims, load_claims
from sparsebook.experiments import mutual_choice_sae as experiment
from sparsebook.experiments.mutual_choice_sae import arms, exact, inputs, measures, recording, runs, verdicts
from sparsebook.experiments.mutual_choice_sae.scales import ARMS, Config, Size
from sparsebook.features.mutual_choice_sae import FeatureChoiceSAE
from sparsebook.features.sae import TopKSAE
from sparsebook.features.trainer import TrainingLog


@pytest.fixture(scope="module")
def smoke():
    config = Config.at("smoke")
    return config, experiment.tables(config)


@pytest.fixture(scope="module")
def trained():
    """An identity dictionary, which reads tokens of known codes."""
    truth = torch.eye(6)
    codes = torch.tensor([[2.0, 0, 0, 0, 0, 0], [3, 1, 0, 0, 0, 0], [0, 2, 2, 1, 0, 0]]).repeat(4, 1)
    sae = TopKSAE(6, 6, 3, seeds=[0])
    with torch.no_grad():
        sae.encoder.copy_(truth[None])
        sae.decoder.copy_(truth[None])
    tokens = inputs.Tokens(codes, codes, (codes > 0).sum(1), truth)
    return arms.Trained(sae, TrainingLog(), [tokens])


# Measures ------------------------------------------------------------------------------------------------


def test_a_reading_of_known_codes(trained):
    x = measures.held_out(trained)
    reading = measures.read(trained, x, "batch", batch=6)
    assert reading.nmse.tolist() == pytest.approx([0])
    assert reading.density[0].tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3, 0, 0])
    assert reading.l0.tolist() == pytest.approx([2])
    assert reading.used[0].tolist() == [1, 2, 3] * 4
    assert measures.rank_correlation(reading.used[0], trained.tokens[0].active) == pytest.approx(1)
    broken = measures.read(trained, x, "batch", batch=6, handed_on=True)
    assert float(broken.nmse) > 0.5
    assert torch.equal(broken.density, reading.density)
    assert measures.dictionary(trained, 0)["recovered"] == 1
    assert measures.dictionary(trained, 0, random=True)["recovered"] < 0.5


def test_importance_is_the_change_of_the_error(trained):
    """With orthogonal atoms and no residual a removal adds the code's square."""
    assert measures.importance(trained, measures.held_out(trained))[0]["removal"] == pytest.approx(1)
    generator = torch.Generator().manual_seed(0)
    sae = TopKSAE(8, 20, 3, seeds=[1], dtype=torch.float64)
    x = torch.randn(1, 40, 8, generator=generator, dtype=torch.float64)
    other = arms.Trained(sae, TrainingLog(), [inputs.Tokens(x[0], x[0])])
    codes, error = sae.encode(x).dense()[0].detach(), lambda z: (x[0] - sae.decode(z)[0]).square().sum(1)
    sizes, added = [], []
    for token, latent in codes.nonzero().tolist():
        without = codes.clone()
        without[token, latent] = 0
        sizes.append(codes[token, latent])
        added.append((error(without[None]) - error(codes[None]))[token].detach())
    expected = measures.rank_correlation(torch.stack(sizes), torch.stack(added))
    assert measures.importance(other, x)[0]["removal"] == pytest.approx(expected)


def test_use_of_latents():
    expected = torch.tensor([0.5, 0.25, 0.125, 0.125])
    found = measures.use_of_latents(torch.tensor([0.0, 0.6, 0.05, 0.2]), expected)
    assert found["dead"] == 0.25
    assert found["underused"] == 0.25  # 0.05 of 0.125
    assert found["lacking"] == 0.5


def test_laws_are_told_apart():
    rank = torch.arange(1, 513, dtype=torch.float64)
    power = measures.law_of_densities(0.3 * rank**-1, 10_000)
    assert power["zipf_r2"] == pytest.approx(1)
    assert power["tail_gap"] == pytest.approx(0, abs=1e-6)
    assert power["power_over_exponential"] > 0.1
    exponential = 0.1 * (-rank / 60).exp()
    assert measures.law_of_densities(exponential, 10**9)["power_over_exponential"] < -0.1
    cut = torch.where(rank > 450, 0, 0.3 * rank**-1)
    assert measures.law_of_densities(cut, 10_000)["tail_gap"] > 1
    assert measures.law_of("uniform").shares(8, 2, 16).tolist() == pytest.approx([0.25] * 8)


def test_thresholds_do_not_depend_on_the_batch():
    config = Config.at("smoke")
    tokens = inputs.tokens_of(config, "zipf", [0])
    found = arms.train_arm(config, "zipf", "zipf+aux_zipf", config.synthetic.k, tokens, [0])
    x = measures.held_out(found)
    assert measures.unsteady(found, x, "threshold", config, 64).tolist() == [0]
    assert measures.unsteady(found, x, "batch", config, 64).item() > 0.05


# Arms ----------------------------------------------------------------------------------------------------


def test_arms():
    config = Config.at("smoke")
    for name in ARMS:
        sae, rules = arms.build(name, 12, config.synthetic, [0], config)
        assert len(rules) == ("+" in name) + name.startswith("zipf") + 2 * (name == "relu")
        assert isinstance(sae, FeatureChoiceSAE) == name.startswith(("zipf", "uniform"))
    with pytest.raises(ValueError, match="arm must be one of"):
        arms.build("gated", 12, config.synthetic, [0], config)


def test_a_sabotaged_training_leaves_half_without_budget():
    config = Config.at("smoke", sabotaged=True)
    tokens = inputs.tokens_of(config, "zipf", [0])
    found = arms.train_arm(config, "zipf", "zipf+aux_zipf", 3, tokens, [0])
    assert found.sae.threshold.isinf().sum() == config.synthetic.n_latents // 2
    found = arms.train_arm(config, "uniform", "zipf+aux_zipf", 3, tokens, [0])
    assert found.sae.threshold.isinf().sum() == 0


# What is exact -------------------------------------------------------------------------------------------


def test_exact_statements_hold():
    assert max(map(abs, exact.optimality(9))) < 1e-12
    assert max(exact.against_batchtopk(2, 10)) < 1e-12
    assert max(exact.against_aux_k(2)) < 1e-12


def test_another_rule_is_not_batchtopk():
    assert min(exact.against_batchtopk(2, 10, cls=FeatureChoiceSAE)) > 1e-3


def test_brute_force_knows_the_constraints():
    masks = exact.every_mask(2, 3)
    assert len(masks) == 64
    assert len(exact._allowed(masks, "token", 2, None)) == 16
    assert len(exact._allowed(masks, "mutual", 1, None)) == 7
    assert len(exact._allowed(masks, "feature", 2, np.array([2, 0, 0]))) == 4


# Tables and claims ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_testable_claim_gets_samples(smoke):
    config, found = smoke
    declared = load_claims(find_claims("mutual_choice_sae"))
    samples = verdicts.claim_samples(found, config)
    assert {claim.id for claim in declared.claims if claim.needs is None} == set(samples)
    for name, value in samples.items():
        assert value.unit == declared[name].unit
        assert np.isfinite(value.values).all()


def test_cells(smoke):
    config, found = smoke
    measured = found["arms"][["source", "k", "method"]].drop_duplicates()
    assert {tuple(row) for row in measured.to_numpy()} == set(config.cells)
    assert set(found["arms"].seed) == {0, 1, 2}
    own = found["arms"][found["arms"].rule == "own"]
    wide = own.pivot_table(index="method", columns="metric", values="value")
    assert wide.l0["topk"] == pytest.approx(3, abs=0.4)
    assert wide.recovered.between(0, 1).all()
    with pytest.raises(ValueError, match="was not measured"):
        verdicts.per_seed(found["arms"], "zipf", "gated", "nmse", config)


def test_samples_are_paired_by_seed(smoke):
    config, found = smoke
    table = found["arms"].copy()
    nmse = (table.metric == "nmse") & (table.source == "zipf") & (table.rule == "own")
    table.loc[nmse, "value"] = table.seed[nmse] + 1.0
    table.loc[nmse & (table.method == "topk+aux_k"), "value"] *= 2
    samples = verdicts.claim_samples(found | {"arms": table.sample(frac=1, random_state=0)}, config)
    assert samples["C2a"].values == pytest.approx([2, 2, 2])


def test_figures_and_tables(smoke):
    import matplotlib.pyplot as plt

    config, found = smoke
    drawn = [
        experiment.draw_allocation(),
        experiment.draw_error(found, config),
        experiment.draw_found(found, config),
        experiment.draw_dead(found, config),
        experiment.draw_zipf(found, config),
        experiment.draw_adaptive(found, config),
    ]
    assert all(figure.axes for figure in drawn)
    plt.close("all")
    assert len(experiment.summary(found, config, "zipf")) == len(ARMS)
    assert len(experiment.rules_table(found, config)) == 8
    assert all(isinstance(text, str) for text in experiment.answers(found, config).values())


def test_the_live_world_is_compared_with_those_recorded(smoke):
    config, found = smoke
    live = experiment.run_live(config)
    assert set(live.seed) == {config.live_seed}
    table = experiment.agreement(live, found, config)
    assert set(table.to_numpy().ravel()) <= {"inside the prediction", "OUTSIDE the prediction"}
    assert table.shape == (1, 4)


# Scales --------------------------------------------------------------------------------------------------


def test_scales():
    for scale in ("smoke", "book", "full"):
        assert experiment.config(scale).scale == scale
    with pytest.raises(ValueError, match="scale must be one of"):
        Config.at("huge")
    with pytest.raises(ValueError, match="needs activations"):
        Config.at("paper")
    assert json.dumps(Config.at("full").record())


def test_paper_scale_on_a_folder_of_tables(tmp_path):
    """Two steps and every measure on tables as a reader would bring them."""
    draw = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        np.save(tmp_path / f"{name}.npy", draw.normal(2, 3, (700, 16)).astype(np.float16))
    config = Config.at("paper", activations=str(tmp_path), device="cpu")
    assert config.real.n_latents == 32_768
    config = replace(config, real=Size(64, 4, 128, 2, 3e-4, 8, 2, refit=1), probes=8, batches=3)
    (tokens, _) = inputs.tokens_of(config, "real", [0, 1])
    assert len(tokens.train) == 1_400
    rows = tokens.first(2_000)
    assert float((rows - rows.mean(0)).square().sum(1).mean()) == pytest.approx(4, rel=0.05)
    table = pd.concat([runs._cell(config, "real", 4, arm) for arm in ("topk+aux_k", "zipf+aux_zipf")])
    assert np.isfinite(table["value"]).all()
    (tmp_path / "c.npy").unlink()
    (tmp_path / "b.npy").unlink()
    with pytest.raises(ValueError, match="at least two tables"):
        inputs.folder_tokens(str(tmp_path), 4)


def test_one_source_is_recorded_anew_beside_what_stays(monkeypatch):
    """Only cells of that source are trained, and only what was recorded with the same settings stays."""
    asked = []

    def cells(config):
        asked.extend(config.cells)
        return {name: pd.DataFrame({"source": ["real"], "value": [1.0]}) for name in runs.EXPERIMENTS}

    monkeypatch.setattr(recording, "run_arms", cells)
    found = recording._with_new(Config.at("full"), "real")
    assert {source for source, *_ in asked} == {"real"}
    assert len(asked) == len(Config.at("full").real_arms)
    for name in runs.EXPERIMENTS:
        assert (found[name].source == "real").sum() == 1
        assert (found[name].source == "zipf").any()
    with pytest.raises(ValueError, match="recorded with other settings: width"):
        recording._with_new(Config.at("full", width=31), "real")
    with pytest.raises(ValueError, match="expected one of zipf, uniform, real"):
        recording._with_new(Config.at("full"), "gpt2")


def test_fingerprint_repeats():
    assert experiment.fingerprint() == experiment.fingerprint()
