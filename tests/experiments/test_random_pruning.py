"""The chapter's experiments: the claims' arithmetic on known tables, all scales, sabotage, figures."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sparsebook.claims import Samples
from sparsebook.experiments import random_pruning as experiment
from sparsebook.experiments.random_pruning import inputs, runs, timing, training, verdicts
from sparsebook.experiments.random_pruning.scales import Config


def rows(method, metric, found, **knobs):
    return [
        {"method": method, "metric": metric, "seed": seed, "value": float(value)} | knobs
        for seed, value in enumerate(found)
    ]


# Claims --------------------------------------------------------------------------------------------------


def test_gaps_are_paired_by_seed():
    table = rows("dense", "accuracy", [90, 80, 70], depth=8, sparsity=0.0)
    table += rows("erk", "accuracy", [85, 79], depth=8, sparsity=0.9)
    table += rows("erk", "accuracy_redrawn", [10, 20], depth=8, sparsity=0.9)
    found = pd.DataFrame(table)
    assert verdicts.gap(found, "erk", 0.9, depth=8).tolist() == [5, 1]
    assert verdicts.gap(found, "erk", 0.9, True, depth=8).tolist() == [80, 60]
    with pytest.raises(ValueError, match=r"accuracy of erk at .* was not measured"):
        verdicts.gap(found, "erk", 0.5, depth=8)


def test_equal_work_lies_on_a_line_over_the_logarithm():
    table = rows("erk", "macs", [200, 400], sparsity=0.9)
    for sparsity, macs, accuracy in ((0.9, 100, 50), (0.8, 400, 60), (0.5, 1600, 80)):
        table += rows("uniform", "macs", [macs] * 2, sparsity=sparsity)
        table += rows("uniform", "accuracy", [accuracy] * 2, sparsity=sparsity)
    assert verdicts.at_equal_work(pd.DataFrame(table)).tolist() == pytest.approx([55, 60])


def test_equal_weights_lie_on_a_line_too():
    """Widths of 2 and 3 have too few weights and too many: the dense network is given what lies between."""
    config = Config.at("smoke", narrow=(3,))
    table = rows("erk", "weights", [200, 400, 200], sparsity=0.9)
    table += rows("small_dense", "weights", [100] * 2) + rows("small_dense", "accuracy", [50, 60])
    table += rows("narrow", "weights", [400] * 2, width=3) + rows("narrow", "accuracy", [70, 70], width=3)
    assert verdicts.at_equal_weights(pd.DataFrame(table), config).tolist() == pytest.approx([60, 70])


def test_rank_correlations():
    table = []
    for place, method in enumerate(runs.DIGIT_RATIOS):
        table += rows(method, "gradient_norm", [place, 5 - place, 1.0], sparsity=0.9)
        table += rows(method, "accuracy", [10 * place, 10 * place, place], sparsity=0.9)
    found = pd.DataFrame(table)
    assert verdicts.rank_correlations(found, (0.9,)).tolist() == pytest.approx([1, -1, 0])
    assert verdicts.rank_correlations(found, (0.9,), constant=True).tolist() == [0, 0, 0]


def tried(family, width, method, sparsity, found):
    knobs = {"family": family, "width": width, "depth": 4, "sparsity": sparsity}
    return [row | {"rate": r} for r, a in found.items() for row in rows(method, "accuracy", [a] * 2, **knobs)]


def test_every_arm_takes_its_own_best_rate():
    config = Config.at("full")
    found = tried("patches", 64, "er", 0.9, {0.1: 50, 0.3: 60, 1.0: 55})
    found += tried("patches", 64, "er", 0.5, {0.1: 70, 0.3: 60, 1.0: 55})
    found += tried("patches", 32, "er", 0.9, {0.1: 50, 0.3: 60, 1.0: 65})
    table = pd.DataFrame(found)

    def best(width, sparsity):
        return runs.best_rate(config, table, training.Family("patches", width), training.Arm("er", sparsity))

    assert [best(64, 0.9), best(64, 0.5), best(32, 0.9)] == [0.3, 0.1, 1.0]
    assert verdicts.at_the_edge(table) == (2, 3)
    alone = Config.at("full", rates=(0.1,))
    assert runs.best_rate(alone, table, training.Family("resnet", 8, 8), training.Arm("erk", 0.9)) == 0.1


def test_of_two_finalists_the_better_one_is_taken():
    """The third, which was lucky in its two runs, met nobody again."""
    found = tried("patches", 64, "er", 0.9, {0.1: 60, 0.3: 59, 1.0: 61})
    assert runs.finalists(pd.DataFrame(found)) == [1.0, 0.1]
    found += tried("patches", 64, "er", 0.9, {0.1: 62, 0.3: 59})
    assert runs.best_of(pd.DataFrame(found)) == 0.1
    even = pd.DataFrame(tried("patches", 64, "er", 0.9, {1.0: 60, 0.1: 60}))
    assert runs.finalists(even) == [0.1, 1.0]


def test_all_that_is_compared_is_tuned(monkeypatch):
    """Every arm of every experiment is tried at every rate, on seeds of its own."""
    config, asked = Config.at("full"), []

    def note(family, arms, seeds, rate, config, judged):
        asked.extend((family, arm, seeds, rate, judged) for arm in arms)
        return None, {"accuracy": (torch.zeros(len(arms) * len(seeds)), "points")}

    monkeypatch.setattr(runs, "fit", note)
    monkeypatch.setattr(runs, "run", lambda config, stages, name: pd.concat(run() for run in stages.values()))
    runs.run_tuning(config)
    used = {(family, arm) for own in runs.trials(config).values() for family, arm, _ in own}
    seen = {(family, arm, rate) for family, arm, _, rate, _ in asked}
    assert seen == {(family, arm, rate) for family, arm in used for rate in config.rates_of(family.name)}
    assert len(asked) == len(seen) + 2 * len(used)
    assert sum(seeds == config.final_seeds for _, _, seeds, _, _ in asked) == 2 * len(used)
    for _, _, seeds, _, judged in asked:
        assert judged == inputs.TUNING
        assert not set(seeds) & {*config.seeds, *config.few, config.live}


def test_networks_share_a_stack_only_if_they_may(monkeypatch):
    stacks = []

    def note(family, arms, seeds, rate, config, judged):
        stacks.append((family.width, tuple(arms), tuple(seeds), rate))
        return None, {"accuracy": (torch.zeros(len(arms) * len(seeds)), "points")}

    monkeypatch.setattr(runs, "fit", note)
    arms = [training.Arm("dense"), training.Arm("er", 0.5), training.Arm("er", 0.9), training.Arm("er", 0.95)]
    arms += [training.Arm("small_dense", 0.5), training.Arm("small_dense", 0.9)]
    own = [runs.Trial(training.Family("patches", 8), arm, (0, 1)) for arm in arms]
    found = runs._trained(
        Config.at("smoke"), "widths", own, lambda _, arm: 1.0 if arm.sparsity > 0.9 else 0.1
    )
    assert [arms for _, arms, _, _ in stacks] == [
        (arms[0],), (arms[1], arms[2]), (arms[3],), (arms[4],), (arms[5],)
    ]  # fmt: skip
    assert len(found) == 2 * len(arms)
    assert set(found[found.sparsity == 0.95].rate) == {1.0}


def test_break_even_is_interpolated():
    config = Config.at("smoke", layer_sparsities=(0.5, 0.8, 0.9))
    table = []
    for sparsity, ratio in ((0.5, 0.5), (0.8, 0.5**0.5), (0.9, 2**0.5)):
        table += rows("sparse", "dense_over", [ratio] * 5, sparsity=sparsity, size=config.layer)
    assert verdicts.break_even(pd.DataFrame(table), config) == "about 85%"


def test_erk_leaves_more_work_than_weights():
    assert verdicts.macs_of_erk(0.1) == pytest.approx(0.177, abs=5e-4)
    assert verdicts.macs_of_erk(1.0) == 1


# Inputs --------------------------------------------------------------------------------------------------


def test_patches_for_training_tuning_and_test_share_no_pixel(monkeypatch):
    """Photographs whose pixels are their own places: no place occurs in two kinds of patches."""
    image = np.arange(400 * 300, dtype=np.float64).reshape(400, 300)
    seen = {}
    for kind in (inputs.TRAINING, (inputs.TUNING,), (inputs.TEST,)):
        draw = np.random.default_rng(0)
        patches = inputs._patches(image, kind, 200, 16, draw)
        assert patches.shape == (200, 16, 16)
        seen[kind] = set(patches.ravel())
    kinds = list(seen)
    assert all(not seen[a] & seen[b] for a in kinds for b in kinds if a < b)


def test_inputs_are_scaled_and_split():
    found = inputs.patch_inputs(120, 60, 8)
    assert found.x.shape == (180, 1, 8, 8)
    assert found.n_classes == 12
    assert found.y[found.train].bincount().tolist() == [10] * 12
    assert float(found.x[found.train].std()) == pytest.approx(1, abs=1e-4)
    assert found.low - 1e-5 <= float(found.x.min())
    assert float(found.x.max()) <= found.high + 1e-5
    with pytest.raises(ValueError, match="n_test=3"):
        inputs.patch_inputs(120, 3)
    digits = inputs.digit_inputs()
    train, test = digits.rows([1, 2, 1])
    assert torch.equal(train[0], train[2])
    assert not torch.equal(train[0], train[1])
    assert all(len(set(a.tolist()) | set(b.tolist())) == 1797 for a, b in zip(train, test, strict=True))


def test_the_same_seed_has_the_same_first_weights_in_every_arm():
    config = Config.at("smoke")
    family = training.Family("patches", 16)
    arms = [training.Arm("er", 0.5), training.Arm("uniform", 0.5)]
    found = training.build(family, arms, (3, 4), config, family.inputs(config))
    for name, weight in found.stack.prunable().items():
        both = found.masks[name][0] & found.masks[name][2]
        assert torch.equal(weight[0][both], weight[2][both])
        assert not torch.equal(found.masks[name][0], found.masks[name][1])
    assert found.seeds == [3, 4, 3, 4]
    assert bool((found.norms > 0).all())


def test_a_window_that_does_not_move_is_the_picture():
    x = torch.arange(2 * 50 * 36.0).view(2, 50, 1, 6, 6)
    moved = inputs.shifted_and_mirrored(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    kept = [
        torch.equal(moved[0, i], x[0, i]) or torch.equal(moved[0, i].flip(-1), x[0, i]) for i in range(50)
    ]
    assert 0 < sum(kept) < 10  # one of 81 windows is in place
    torch.testing.assert_close(moved[1] - moved[0], torch.full_like(moved[0], 50 * 36.0))


# Scales --------------------------------------------------------------------------------------------------


def test_scales():
    for scale in ("smoke", "book", "full"):
        assert experiment.config(scale).scale == scale
    with pytest.raises(ValueError, match="scale must be one of"):
        Config.at("huge")
    with pytest.raises(ValueError, match="needs cifar"):
        Config.at("paper")
    assert json.dumps(Config.at("full").record())


def test_paper_scale_on_a_folder_in_the_official_layout(tmp_path):
    """Two steps on fabricated CIFAR-10: no branch of scale `paper` is dead."""
    chance = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        pictures = chance.integers(0, 256, (12, inputs._RECORD), dtype=np.uint8)
        pictures[:, 0] = np.arange(12) % 10
        pictures.tofile(tmp_path / name)
    config = Config.at("paper", cifar=str(tmp_path), device="cpu")
    assert (config.depths[-1], config.width, config.resnet_epochs) == (110, 16, 160)
    config = replace(config, width=2, resnet_epochs=1, resnet_batch=30, attacked=6, norm_batches=1)
    family = training.Family("resnet", 2, 8)
    for judged in (inputs.TEST, inputs.TUNING):
        _, found = training.fit(family, [training.Arm("erk", 0.5)], (0, 1), 0.1, config, judged)
        assert found["accuracy"][0].shape == (2,)
    (tmp_path / "test_batch.bin").write_bytes(b"12")
    inputs.cifar_inputs.cache_clear()
    with pytest.raises(ValueError, match="no multiple of 3073"):
        family.inputs(config)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(ValueError, match=r"test_batch\.bin is missing"):
        family.inputs(config)


def test_a_diverged_network_says_nothing():
    family, config = training.Family("patches", 16), Config.at("smoke")
    found = training.build(family, [training.Arm("dense")], (0,), config, family.inputs(config))
    with torch.no_grad():
        found.stack.get_parameter("0.weight").fill_(torch.nan)
    logits = training.answers(found.stack, torch.zeros(1, 5, 64))
    assert torch.equal(logits, torch.zeros(1, 5, 12))


def test_steps_of_every_kind_agree():
    """`steps` itself compares the products; sabotage is the same products twenty times."""
    found = timing.steps(32, 8, 0.5)
    assert set(found) == {"dense", "masked", "sparse", "torch_sparse", "sparse_twenty"}
    assert len(found["sparse_twenty"]()) == 20


def test_fingerprint_repeats():
    assert experiment.fingerprint() == experiment.fingerprint()


# The whole, at smoke -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke():
    config = Config.at("smoke", seeds=(0, 1, 2), few=(0, 1, 2), processes=2)
    return config, experiment.tables(config)


@pytest.mark.slow
def test_figures_tables_and_answers(smoke):
    import matplotlib.pyplot as plt

    config, found = smoke
    drawn = [
        experiment.draw_sizes(found, config),
        experiment.draw_digits(found["digits"], config),
        experiment.draw_ratios(found, config),
        experiment.draw_norms(found, config),
        experiment.draw_trust(found, config),
        experiment.draw_timing(found["timing"], config),
    ]
    assert all(figure.axes for figure in drawn)
    plt.close("all")
    live = experiment.run_live(config, found["tuning"])
    assert set(experiment.agreement(live, found, config).to_numpy().ravel()) <= {"inside", "OUTSIDE"}
    assert all(isinstance(text, str) for text in experiment.answers(found, config).values())
    assert len(experiment.ratio_table(found, config)) == 11
    assert experiment.trust_table(found, config).shape == (7, 7)
    assert (experiment.tuning_table(found, config).apply(lambda row: "*" in "".join(row), axis=1)).all()
    assert experiment.start_table(found, config).shape == (6, 3)
    assert experiment.density_table(config).shape[1] == 6


def test_samples_of_claims_are_paired_and_whole(smoke):
    config, found = smoke
    for sabotaged in (False, True):
        samples = experiment.claim_samples(found, config, sabotaged=sabotaged)
        assert len(samples) == 35
        assert all(isinstance(own, Samples) for own in samples.values())
        assert len(samples["C1a"].values) == len(samples["C2a"].values) == 3
        assert samples["C1b"].values.shape == (3, 3)
