"""The chapter's experiments: the claims' arithmetic on known tables, all scales, sabotage, figures."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sparsebook.claims import find_claims, judge, load_claims
from sparsebook.experiments import group_bias_adaptation as experiment
from sparsebook.experiments.group_bias_adaptation import runs, training, verdicts
from sparsebook.experiments.group_bias_adaptation.scales import Config


@pytest.fixture(scope="module")
def smoke():
    config = Config.at("smoke")
    return config, experiment.tables(config)


# Claims --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_testable_claim_gets_samples(smoke):
    config, found = smoke
    declared = load_claims(find_claims("group_bias_adaptation"))
    samples = experiment.claim_samples(found, config)
    assert {claim.id for claim in declared.claims if claim.needs is None} == set(samples)
    for name, value in samples.items():
        assert value.unit == declared[name].unit
        assert len(value.values) >= declared[name].replication.n


def test_sabotage_breaks_what_it_must(smoke):
    config, found = smoke
    declared = load_claims(find_claims("group_bias_adaptation"))
    samples = experiment.claim_samples(found, config, sabotaged=True)
    judged = judge([declared[name] for name in samples], samples)
    assert not [name for name, verdict in judged.items() if verdict.verdict == "holds"]


def rows(method, metric, values, **knobs):
    return [
        {"method": method, "metric": metric, "seed": seed, "value": float(value)} | knobs
        for seed, value in enumerate(values)
    ]


def test_the_map_is_read_as_declared():
    config = Config.at("full")
    low, middle, main, high = config.resonance_dims
    table = []
    for dim, peak in ((low, 0.1), (main, 0.8), (high, 0.9)):
        for ratio in config.resonance_ratios:
            value = peak if ratio == 0.5 else peak * 0.6 if dim == high and ratio <= 2 else peak * 0.1
            for metric, found in (("frr_0.8", value), ("untrained_frr_0.8", 0.0)):
                table += rows("ba", metric, [found] * 3, dim=dim, ratio=ratio, pairs=0.0)
            table += rows("ba", "frr_0.9", [value / 2] * 3, dim=dim, ratio=ratio, pairs=0.0)
    for metric, found in (("frr_0.8", 0.5), ("untrained_frr_0.8", 0.25)):
        table += rows("ba", metric, [found] * 3, dim=middle, ratio=1.0, pairs=0.0)
    for pairs, value in zip(config.mixed_pairs, (0.7, 0.2), strict=True):
        table += rows("ba", "frr_0.8", [value] * 3, dim=main, ratio=1.0, pairs=pairs)
    samples = verdicts.resonance_samples(pd.DataFrame(table), config)
    value = {name: float(np.mean(sample.values)) for name, sample in samples.items()}
    assert value["C1a"] == value["H1"] == -1  # half of the frequency
    assert value["C1b"] == pytest.approx(0)
    assert value["C1d"] == 4 - 1  # a quarter to twice against one target
    assert value["C1e"] == pytest.approx((0.25 - 0.01) - (0.08 - 0.25))
    assert value["C8c"] == pytest.approx(0.5)
    assert value["H14"] == value["H15"] == pytest.approx(0)


def test_targets_that_find_equally_much_count_by_their_mean():
    rates = pd.DataFrame(
        [[0.9, 1.0, 1.0, 0.2], [0.1, 0.5, 0.6, 0.2], [0, 0, 0, 0]], columns=[0.25, 0.5, 1.0, 2.0]
    )
    assert verdicts.best_octave(rates).tolist() == [-0.5, 0.0, -2.0]


def test_without_any_gain_there_is_no_band():
    assert verdicts.band(pd.DataFrame([[0.0, -0.1, 0.0], [0.0, 0.2, 0.1]])).tolist() == [0, 2]


def test_least_widths_are_the_first_that_suffice():
    table = []
    for latents, values in ((16, (0.2, 0.95)), (32, (0.9, 0.97)), (64, (0.92, 0.99))):
        knobs = {"s": 1, "imbalance": 1.0, "latents": latents}
        table += rows("small_scales", "frr_0.8", values, **knobs)
    assert verdicts.least_width(pd.DataFrame(table), 1, 1.0).tolist() == [32, 16]
    assert verdicts.least_width(pd.DataFrame(table), 1, 1.0, share=0.98).tolist() == [128, 64]


def test_errors_are_paired_by_run_and_rates_chosen_by_error():
    table = []
    for rate, error in ((0.1, 0.5), (0.2, 0.3), (0.3, 0.4)):
        for metric, values in (("nmse", [error] * 2), ("l0", [10 * rate, 30 * rate])):
            table += rows("gba", metric, values, rate=rate)
    tuning = pd.DataFrame(table)
    assert runs.best_rate(tuning, "gba") == 0.2
    assert runs.common_l0(tuning) == pytest.approx(4.0)
    assert runs.tuned_rival(pd.DataFrame(table + steered(10.0)), "l1").k == pytest.approx(4.0)
    near = pd.DataFrame(table + steered(4.8) + steered(4.1, "l1_aim", aim=3.3))
    assert runs.tuned_rival(near, "l1") == training.Arm("l1", "l1", 0.2, k=3.3)
    worse = pd.DataFrame(table + steered(4.8) + steered(3.0, "l1_aim", aim=3.3))
    assert runs.tuned_rival(worse, "l1").k == pytest.approx(4.0)
    with pytest.raises(ValueError, match="nmse of topk was not measured"):
        verdicts.per_seed(tuning, "topk", "nmse")


def steered(l0, name="l1", aim=None):
    """A rival's tuning at two rates, or what it came to when it was aimed once more."""
    found = [(0.2, 0.3)] if aim else [(0.1, 0.4), (0.2, 0.3)]
    table = [row for rate, error in found for row in rows(name, "nmse", [error], rate=rate)]
    table += [row for rate, _ in found for row in rows(name, "l0", [l0], rate=rate)]
    return table + (rows(name, "aim", [aim], rate=0.2) if aim else [])


def test_bias_adaptation_is_brought_to_the_common_sparsity_between_its_targets():
    table = rows("gba", "nmse", [0.3], rate=0.1) + rows("gba", "l0", [8.0], rate=0.1)
    for rate, error in ((0.1, 0.4), (0.2, 0.2)):
        for target, l0 in ((0.01, 4.0), (0.04, 16.0)):
            table += rows("ba", "l0", [l0], rate=rate, target=target)
            table += rows("ba", "nmse", [error * (1 if l0 == 4 else 0.25)], rate=rate, target=target)
    found = runs.matched_ba(pd.DataFrame(table))
    assert found.target.tolist() == pytest.approx([0.02, 0.02])  # the middle, in logarithms
    assert found.nmse.tolist() == pytest.approx([0.2, 0.1])
    assert found.nmse.idxmin() == 0.2


def test_rivals_come_to_the_common_sparsity(smoke):
    config, found = smoke
    world, k = found["world"], runs.common_l0(found["tuning"])
    assert verdicts.per_seed(world, "topk", "l0").mean() == pytest.approx(round(k), rel=0.05)
    arms = runs.world_arms(config, found["tuning"])
    assert arms["batch_topk"].k == k
    assert arms["l1"] == runs.tuned_rival(found["tuning"], "l1")
    assert arms["ba"].targets.tolist() == [pytest.approx(4 / 32)]


# Figures and text ----------------------------------------------------------------------------------------


def test_figures_tables_and_answers(smoke):
    import matplotlib.pyplot as plt

    config, found = smoke
    live, trace = runs.run_live(config, found["tuning"])
    drawn = [
        experiment.draw_resonance(found["resonance"], config),
        experiment.draw_world(found["world"], config),
        experiment.draw_trace(trace),
        experiment.draw_frontier(found["real"]),
        experiment.draw_consistency(found["real"]),
        experiment.draw_width(found["width"], config),
        experiment.draw_curves(found["curves"], config),
    ]
    assert all(figure.axes for figure in drawn)
    plt.close("all")
    agreed = experiment.agreement(live, found)
    assert set(agreed.to_numpy().ravel()) <= {"inside", "OUTSIDE"}
    assert all(isinstance(text, str) for text in experiment.answers(found, config).values())
    assert list(experiment.world_table(found).index)[:2] == ["GBA", "GBA, wrong range"]
    assert experiment.real_table(found).shape == (9, 5)
    assert (experiment.tuning_table(found)["rate 0.01"].str.endswith("*")).all()
    assert list(experiment.tuning_table(found, "real_tuning").index)[-1] == "BA (one group)"


# Scales --------------------------------------------------------------------------------------------------


def test_scales():
    for scale in ("smoke", "book", "full"):
        assert experiment.config(scale).scale == scale
    with pytest.raises(ValueError, match="scale must be one of"):
        Config.at("huge")
    with pytest.raises(ValueError, match="needs activations"):
        Config.at("paper")
    assert json.dumps(Config.at("full").record())


def test_paper_scale_on_a_folder_in_the_expected_layout(tmp_path):
    """Two steps on fabricated activations: no branch of scale `paper` is dead."""
    generator = np.random.default_rng(0)
    for shard in range(2):
        table = generator.normal(size=(600, 24)).astype(np.float16)
        np.save(tmp_path / f"layer13-{shard}.npy", table)
    config = Config.at("paper", activations=str(tmp_path), device="cpu")
    assert (config.interval, config.real_latents) == (50, 65_536)
    config = replace(config, real_latents=48, real_steps=2, real_test_tokens=100, batch=64)
    inputs = training.real_inputs(config)
    assert inputs.width == 24
    arm = training.Arm("gba", "gba", 1e-3, 0.5, 0.001)
    sae = training.fit(arm, inputs, 48, 2, (0, 1), config)
    assert len(training.measure(sae, inputs, arm)) == 2
    pair = runs.agreement_of_pair(sae, inputs.test, 0, 1)
    assert 0 <= pair["mcs"][0] <= 1


def test_a_store_larger_than_memory_is_streamed(tmp_path, monkeypatch):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(1).normal(size=(1500, 8)).astype(np.float32))
    config = Config.at("paper", activations=str(tmp_path), device="cpu", real_test_tokens=100, batch=64)
    monkeypatch.setattr(training, "IN_MEMORY", 1000)
    training.real_inputs.cache_clear()
    inputs = training.real_inputs(config)
    batch = inputs.source((0, 1))(3)
    assert batch.shape == (2, 64, 8)
    assert np.allclose(batch.norm(dim=-1), 1, atol=1e-5)
    assert inputs.test.shape == (100, 8)
    (tmp_path / "b.npy").unlink()
    training.real_inputs.cache_clear()
    with pytest.raises(ValueError, match="the last is held out"):
        training.real_inputs(config)


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected \.npy tables"):
        training.folder_store(tmp_path)
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    np.save(tmp_path / "b.npy", np.zeros((3, 5)))
    with pytest.raises(ValueError, match="of one width"):
        training.folder_store(tmp_path)


def test_a_dictionary_agrees_with_itself_and_not_with_random_directions(smoke):
    config, _ = smoke
    inputs = training.imbalanced(config, (0, 0))
    sae = training.fit(training.Arm("gba", "gba"), inputs, 96, 3, (0, 0), config)
    found = runs.agreement_of_pair(sae, inputs.test[0], 0, 1)
    assert found["mcs"][0] == found["mcs_top"][0] == 1
    assert found["mcs_random"][0] < 0.1


def test_fingerprint_repeats():
    assert experiment.fingerprint() == experiment.fingerprint()
