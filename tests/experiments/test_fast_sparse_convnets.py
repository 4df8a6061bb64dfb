"""The chapter's experiments: arithmetic of claims on known tables, scales, figures, the task, ImageNet."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sparsebook.claims import find_claims, load_claims
from sparsebook.experiments import fast_sparse_convnets as experiment
from sparsebook.experiments.fast_sparse_convnets import imagenet, orders, runs, speed, training, verdicts
from sparsebook.experiments.fast_sparse_convnets.scales import Config
from sparsebook.experiments.fast_sparse_convnets.training import Arm


@pytest.fixture(scope="module")
def smoke():
    config = Config.at("smoke")
    return config, experiment.tables(config)


# Claims --------------------------------------------------------------------------------------------------


def product_rows(seconds) -> pd.DataFrame:
    """Times of every method for shapes and sparsities, in two processes, the second twice as slow."""
    head = {"experiment": "products", "metric": "seconds", "unit": "s"}
    return pd.DataFrame([
        head | {"method": method, "seed": seed, "value": value * (1 + seed)} | knobs
        for seed in (0, 1)
        for method, knobs, value in seconds
    ])  # fmt: skip


def knobs(pixels, sparsity, outputs=8, inputs=4):
    return {"pixels": pixels, "outputs": outputs, "inputs": inputs, "sparsity": sparsity}


def test_ratios_are_geometric_means_of_a_process():
    table = product_rows([
        ("ours", knobs(196, 0.9), 1.0), ("dense", knobs(196, 0.9), 2.0),
        ("ours", knobs(784, 0.9), 1.0), ("dense", knobs(784, 0.9), 8.0),
        ("ours", knobs(49, 0.9), 1.0), ("dense", knobs(49, 0.9), 100.0),
        ("ours", knobs(784, 0.5), 1.0), ("dense", knobs(784, 0.5), 50.0),
    ])  # fmt: skip
    found = verdicts.product_ratio(table, "dense", "ours", (0.9,), 196)
    assert found.tolist() == pytest.approx([4.0, 4.0])
    assert verdicts.product_ratio(table, "dense", "ours", (0.9,), 0, 49).tolist() == pytest.approx([100, 100])


def test_break_even_is_where_the_ratio_falls_through_one():
    sparsities = np.array([0.6, 0.7, 0.8])
    assert verdicts.crossing(sparsities, np.array([4.0, 2.0, 0.5])) == pytest.approx(0.75)
    assert verdicts.crossing(sparsities, np.array([0.9, 0.5, 0.2])) == 0.6
    assert verdicts.crossing(sparsities, np.array([9.0, 5.0, 2.0])) == 1.0


def test_accuracy_is_compared_at_equal_cost():
    config = Config.at("full", widths=(1.0, 2.0), sparse_widths=(2.0,), seeds=(0, 1))
    values = {Arm(1.0): (0.5, 0.6), Arm(2.0): (0.7, 0.8), Arm(2.0, 0.9): (0.65, 0.6)}
    table = pd.DataFrame([
        {"method": arm.name, "metric": "accuracy", "seed": seed, "value": value}
        for arm, own in values.items()
        for seed, value in enumerate(own)
    ])  # fmt: skip
    cost = {Arm(1.0): 1.0, Arm(2.0): 100.0, Arm(2.0, 0.9): 10.0}
    gained = verdicts.gained({"accuracy": table}, config, cost.__getitem__)
    assert gained.tolist() == pytest.approx([0.05, -0.1])
    with pytest.raises(ValueError, match="weights of dense, width 1 was not measured"):
        verdicts.accuracies(table, Arm(1.0), "weights")


def test_a_dense_network_counts_in_its_fastest_way():
    table = pd.DataFrame([
        {"experiment": "latency", "method": "dense, width 1", "images": 4, "way": way, "value": value}
        for way, values in (("a", (3.0, 1.0, 2.0)), ("b", (1.5, 1.0, 9.0)))
        for value in values
    ])  # fmt: skip
    assert verdicts.latency(table, Arm(1.0), 4) == 1.5
    assert verdicts.latency(table, Arm(1.0), 4, "a") == 2.0


# What is timed is right ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [64, 100, 196])
def test_every_order_gives_the_same_product(pixels):
    weights = speed.pruned((pixels, 24, 40), 0.8)
    values, columns, offsets = (x.numpy() for x in speed.sparse_lists(weights))
    x = torch.randn(40, pixels, generator=torch.Generator().manual_seed(0))
    exact = (weights @ x).numpy()
    for product in (orders.strips_outside, orders.rows_outside):
        y = np.zeros((24, pixels), np.float32)
        shifts = columns.astype(np.int64) * pixels
        product(y.reshape(-1), x.numpy().reshape(-1), shifts, values, offsets, pixels)
        np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-5)
    y = np.zeros((pixels, 24), np.float32)
    orders.pixel_by_pixel(y, x.T.contiguous().numpy(), columns, values, offsets)
    np.testing.assert_allclose(y.T, exact, rtol=1e-4, atol=1e-5)


def test_multiply_adds_are_told_apart():
    lines = [
        "\tvfmadd231ps\t(%rax), %zmm0, %zmm1", "\tvfmadd213ss\t%xmm0, %xmm1, %xmm2",
        "\tvfnmadd231ps\t%ymm0, %ymm1, %ymm2", "\tvmulps\t%zmm0, %zmm1, %zmm2",
    ]  # fmt: skip
    assert speed.count_multiply_adds(lines, 16) == {"whole": 1, "less": 2}
    assert speed.count_multiply_adds(lines, 8) == {"whole": 1, "less": 2}
    arm = ["\tfmla\tv0.4s, v1.4s, v2.4s", "\tfmla\tv0.2s, v1.2s, v2.2s", "\tfmadd\ts0, s1, s2, s3"]
    assert speed.count_multiply_adds(arm, 4) == {"whole": 1, "less": 2}


def test_all_code_of_the_public_call_is_looked_at():
    """Strips copied together and as they lie, without blocks and with blocks of 2 and 4."""
    full = speed.compiled_jobs(Config.at("full", v1_shapes=((196, 512, 512), (49, 512, 64)), v2_shapes=()))
    kinds = [name.partition(", ") for name in full]
    assert {first for first, _, _ in kinds} == {"strips copied", "strips as they lie"}
    assert {block for _, _, block in kinds} == {"", "blocks of 2", "blocks of 4"}
    assert len({id(job) for job in full.values()}) == len(full)


def test_the_worst_machine_code_counts(smoke):
    _, found = smoke

    def share(*counts):
        rows = [
            {"method": f"machine code, {i}", "metric": metric, "value": value}
            for i, pair in enumerate(counts)
            for metric, value in zip(("whole", "less"), pair, strict=True)
        ]
        checks = pd.concat([found["checks"], pd.DataFrame(rows)], ignore_index=True)
        return verdicts.check_samples(found | {"checks": checks})["H3"].values[0]

    assert share((10, 0), (20, 0)) == 1
    assert share((10, 0), (15, 5)) == 0.75
    assert share((10, 0), (0, 0)) == 0


def test_what_runs_often_runs_often():
    calls = []
    speed.often(lambda: calls.append(1), 3)()
    assert len(calls) == 3


# Figures and text ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_figures_tables_and_answers(smoke):
    import matplotlib.pyplot as plt

    config, found = smoke
    drawn = [
        experiment.draw_rates(found["times"], config),
        experiment.draw_speedups(found["times"], config),
        experiment.draw_rivals(found["times"], config),
        experiment.draw_reasons(found["times"], config),
        experiment.draw_parts(found["times"], config),
        experiment.draw_frontier(found, config),
        experiment.draw_blocks(found, config),
    ]
    assert all(figure.axes for figure in drawn)
    plt.close("all")
    assert all(isinstance(text, str) for text in experiment.answers(found, config).values())
    assert experiment.network_table(found, config).shape == (5, 2)
    assert list(experiment.small_table(found, config).index)[:2] == ["dense, width 0.25", "dense, width 0.5"]
    agreed = experiment.agreement(experiment.run_live(config), found)
    assert set(agreed.to_numpy().ravel()) <= {"inside", "OUTSIDE"}


def test_pruned_networks_tell_the_same_when_rewritten(smoke):
    config, found = smoke
    same = found["accuracy"][found["accuracy"].metric == "same"]
    assert len(same) == len(config.seeds) * len(speed.arms(config))
    assert same.value.min() > 0.95  # of a hundred patches, after four steps of training
    assert found["checks"].value.iloc[0] < 1e-4


# The task ------------------------------------------------------------------------------------------------


def test_tiles_are_for_training_or_for_testing():
    train, test = training.split(0)
    for name, own, other in zip(training.NAMES, train, test, strict=True):
        assert len(own) + len(other) == len(training.tiles(name))
        codes = {tile.numpy().tobytes() for tile in own}
        distinct = {tile.numpy().tobytes() for tile in training.tiles(name)}
        if len(distinct) == len(training.tiles(name)):  # some photographs have black tiles
            assert not codes & {tile.numpy().tobytes() for tile in other}


def test_patches_have_no_brightness_or_contrast():
    patches, labels = training.Patches(0).batch(32, torch.Generator().manual_seed(0))
    assert patches.shape == (32, 1, 32, 32)
    assert patches.mean((1, 2, 3)).abs().max() < 1e-3
    assert patches.std((1, 2, 3)).max() < 1.01
    assert labels.unique().numel() > 5


def test_training_prunes_to_the_end_and_repeats():
    config = Config.at("smoke", train_steps=5)
    arm = Arm(0.5, 0.9, 2)
    one, two = (training.train(arm, 3, config, training.Patches(3, 8)) for _ in range(2))
    for layer, other in zip(training.pointwise(one).values(), training.pointwise(two).values(), strict=True):
        assert torch.equal(layer.weight, other.weight)
        groups = (layer.weight != 0).flatten(1).unflatten(0, (-1, 2))
        assert bool((groups.all(1) == groups.any(1)).all())
        assert float((layer.weight == 0).float().mean()) == pytest.approx(0.9, abs=0.02)


def test_moved_weights_are_as_many():
    model = training.train(Arm(0.5, 0.9), 0, Config.at("smoke"), training.Patches(0, 8))
    before = [layer.weight.clone() for layer in training.pointwise(model).values()]
    training.move_weights(model, 0)
    for was, layer in zip(before, training.pointwise(model).values(), strict=True):
        assert not torch.equal(was, layer.weight)
        assert torch.equal(was.flatten().sort().values, layer.weight.flatten().sort().values)


# Scales --------------------------------------------------------------------------------------------------


def test_scales():
    for scale in ("smoke", "book", "full", "paper"):
        assert experiment.config(scale).scale == scale
    with pytest.raises(ValueError, match="scale must be one of"):
        Config.at("huge")
    with pytest.raises(ValueError, match="needs imagenet"):
        Config.at("paper")
    assert json.dumps(Config.at("full").record())


def test_paper_scale_on_a_folder_in_the_official_layout(tmp_path):
    """Two steps on fabricated images: no branch of scale `paper` is dead."""
    generator = np.random.default_rng(0)
    for part, name, file in (
        ("train", "n01440764", "n01440764_18.JPEG"), ("train", "n01443537", "n01443537_2.JPEG"),
        ("val", "n01440764", "ILSVRC2012_val_00000293.JPEG"),
        ("val", "n01443537", "ILSVRC2012_val_00000236.JPEG"),
    ):  # fmt: skip
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        grey = Image.fromarray(pixels).convert("L") if name == "n01443537" else Image.fromarray(pixels)
        grey.save(tmp_path / part / name / file)
    config = Config.at("paper", imagenet=str(tmp_path), device="cpu", train_steps=2, train_batch=3, pixels=64)
    assert (config.images, config.sparse_widths) == (1, (0.75, 1.0, 1.4))
    task = runs.task_of(config, 0)
    assert task.classes == 2
    arm = Arm(0.25, 0.9)
    found = runs.tested(training.train(arm, 0, config, task), arm, 0, task)
    assert 0 <= found["accuracy"][0] <= 1
    with pytest.raises(ValueError, match="expected ImageNet's folders"):
        imagenet.ImageNet(tmp_path / "val")


def test_fingerprint_repeats():
    assert experiment.fingerprint() == experiment.fingerprint()


# The declared claims -------------------------------------------------------------------------------------


def test_every_testable_claim_gets_samples(smoke):
    config, found = smoke
    declared = load_claims(find_claims("fast_sparse_convnets"))
    samples = experiment.claim_samples(found, config)
    # The machine code is not looked at in a smoke run: it would have to be compiled anew.
    assert {claim.id for claim in declared.claims if claim.needs is None} - {"H3"} == set(samples)
    for name, value in samples.items():
        assert value.unit == declared[name].unit
        assert len(value.values) >= declared[name].replication.n
