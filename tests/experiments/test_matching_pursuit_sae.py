"""The chapter's experiments: samples from known tables, the baselines' start, controls, all scales."""

import inspect
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sparsebook.claims import find_claims, load_claims
from sparsebook.data.activations import stream
from sparsebook.experiments import matching_pursuit_sae as experiment
from sparsebook.experiments.matching_pursuit_sae import arms, prose, real, toy, verdicts, worlds
from sparsebook.experiments.matching_pursuit_sae.scales import Config
from sparsebook.experiments.matching_pursuit_sae.stages import rows
from sparsebook.features.codes import DenseCodes
from sparsebook.features.matching_pursuit_sae import MatchingPursuitSAE

SMOKE = Config.at("smoke")


@pytest.fixture(scope="module")
def found():
    return experiment.tables(SMOKE)


# The toy -------------------------------------------------------------------------------------------------


def test_the_true_dictionary_is_judged_exact():
    """Pursuit with the true directions: no error, no absorption, the tree's own number of concepts."""
    own = toy.toy_at(replace(SMOKE, judged=1000), (0.0, 0.3), 2)
    sae = MatchingPursuitSAE(20, 20, threshold=0.05, seeds=own.seeds)
    with torch.no_grad():
        order = torch.randperm(20, generator=stream(1))
        sae.decoder.copy_(1.2 * own.truth[:, order])  # any order, any one length
    found = own.judge("mp", sae)
    assert found["exact"].tolist() == [1, 1, 1, 1]
    assert found["longest"][0] == pytest.approx(1.2)
    for metric in ("flat_mse", "hierarchical_mse", "code_error", "merged", "silent"):
        assert found[metric].abs().max() < 5e-3, metric
    assert found["absorption"].abs().max() < 1e-5
    assert found["l0"].mean() == pytest.approx(1.36, abs=0.06)
    parents = own.judge("mp", sae, "parents")
    assert parents["absorption"].min() > 0.999
    assert own.judge("mp", sae, "random")["exact"].sum() == 0


def test_absorbed_children_are_seen():
    """A child's atom made of child and parent: the cosine with the parent is the score."""
    own = toy.toy_at(SMOKE, (0.0,), 1)
    atoms = own.truth.clone()
    atoms[:, toy.CHILDREN] += own.truth[:, toy.PARENTS]
    found = own._geometry(torch.nn.functional.normalize(atoms, dim=-1))
    assert found["absorption"][0] == pytest.approx(0.5**0.5, abs=1e-5)
    assert found["merged"][0] == 1
    assert found["exact"][0] == 0


def test_inputs_of_the_relu_autoencoders_have_one_mean_length():
    own = toy.toy_at(SMOKE, (0.0, 0.9), 2)
    lengths = (own.batches(50) * own.factor("relu")).norm(dim=-1).mean(1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 20**0.5), rtol=0.1, atol=0)
    assert own.factor("mp") == own.factor("batch_topk") == 1


@pytest.mark.parametrize("method", toy.METHODS)
def test_runs_side_by_side_come_out_as_if_alone(method):
    both = toy.toy_at(SMOKE, (0.3,), 2)
    alone = toy.toy_at(SMOKE, (0.3,), 1, first=1)
    together, single = (own.train(method, 6).decoder.detach() for own in (both, alone))
    torch.testing.assert_close(together[1], single[0], rtol=1e-4, atol=1e-5)


def test_cells_and_fixed_magnitudes_have_their_magnitudes():
    cell = experiment.Cell(0.1, 1 / 400)
    assert cell.name == "0.1, 1/400"
    truth = toy.directions(0.0, 0)[None]
    x = toy._cell_batches(SMOKE, cell, [0], truth)(0)[0] @ truth[0].T
    children = x[:, toy.CHILDREN]
    sizes = children[children.abs() > 1e-3]
    assert sizes.mean() == pytest.approx(0.1, abs=2e-3)
    assert sizes.std() < 0.01
    assert x[:, toy.PARENTS].max() > 1


# Activations and worlds ----------------------------------------------------------------------------------


def test_rows_are_centred_and_split(tmp_path):
    table = np.random.default_rng(0).normal(3, 2, (900, 6)).astype(np.float32)
    np.save(tmp_path / "own.npy", table)
    config = replace(SMOKE, store=str(tmp_path))
    assert real.stores(config) == ("own",)
    train, held_out = real.activations(config, "own")
    assert (len(train), len(held_out)) == (600, 300)
    assert train.mean(0).abs().max() < 1e-5
    assert train.square().sum(1).mean() == pytest.approx(1, rel=1e-5)
    scale = (table[601] - table[600]) / (held_out[1] - held_out[0]).numpy()
    assert np.ptp(scale) < 1e-3
    with pytest.raises(ValueError, match="twice those kept"):
        real.activations(replace(config, held_out=600), "own")
    with pytest.raises(ValueError, match="folder with files"):
        real.stores(replace(config, store=str(tmp_path / "none")))


def test_codes_with_other_numbers_of_latents():
    x = torch.randn(2, 40, 12, generator=stream(3))
    for method in arms.ARMS:
        sae = arms.autoencoder(method, 12, 20, 3, (0, 1))
        few = arms.codes_at(sae, x, 2).active_per_token().double()
        assert few.mean() <= 2, method
        assert getattr(sae, "k", 3) == 3
        errors = [arms.error_at(sae, x, k).mean() for k in (1, 3, 8)]
        if method == "mp":
            assert errors[0] > errors[1] > errors[2]


def test_the_control_takes_the_largest_products_at_once():
    sae = arms.OneShot(12, 20, n_steps=3, nonnegative=False, seeds=(0,))
    x = torch.randn(1, 40, 12, generator=stream(4))
    codes = sae.encode(x).dense()
    products = x @ sae.decoder.mT
    assert torch.equal((codes != 0), products >= products.topk(3).values[..., -1:])
    torch.testing.assert_close(sae(x).reconstruction, codes @ sae.decoder, rtol=1e-4, atol=1e-5)


def test_coherence_of_a_tokens_own_atoms():
    sae = MatchingPursuitSAE(2, 3, n_steps=2, seeds=(0,))
    with torch.no_grad():
        sae.decoder.copy_(torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]]))
    codes = DenseCodes(torch.tensor([[[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [2.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]))
    found = real._own_coherence(sae, codes)
    # 0.6; 0; one atom alone is left out; of three the second has 0.6 and 0.8: their mean is 0.7.
    assert found.item() == pytest.approx((0.6 + 0.0 + 0.7) / 3)


def test_the_joint_embedding_has_one_gap():
    world = worlds.JointEmbedding(0, gap=2.0)
    x = world.sample(4000, stream(0))
    gap = x[:2000].mean(0) - x[2000:].mean(0)
    torch.testing.assert_close(gap, world.offsets[0] - world.offsets[1], rtol=0, atol=0.1)
    assert world.offsets.norm(dim=1).tolist() == pytest.approx([2.0, 2.0])


# From tables to samples ----------------------------------------------------------------------------------


def test_rivals_are_read_at_the_latents_that_pursuit_uses():
    out = []
    for k, r2 in ((4, 0.4), (16, 0.8)):
        out += rows("real", "topk", [0, 1], {"l0": torch.tensor([k, k]), "r2": torch.tensor([r2, r2])},
                    store="s", k=k)  # fmt: skip
    table = pd.DataFrame(out)
    at = verdicts.at_latents(table, "topk", "r2", np.array([8.0, 2.0]), "s")
    assert at.tolist() == pytest.approx(
        [0.6, 0.4]
    )  # half way in the logarithm; never beyond the trained ones
    with pytest.raises(ValueError, match="no rows of 'mp'"):
        verdicts.values(table, "mp", "r2")


@pytest.mark.slow
def test_shares_are_counted_over_all_runs_and_differences_over_paired_ones(found):
    samples = experiment.claim_samples(found, SMOKE)
    seeds, more = SMOKE.seeds, SMOKE.seeds + SMOKE.further_seeds
    assert [len(samples[claim].values) for claim in ("C2a", "C2b", "C2c", "C1c")] == [more] * 4
    assert [len(samples[claim].values) for claim in ("C1d", "C1f", "C2d")] == [seeds] * 3
    first = verdicts.moderate(found["toy"], "relu", "hierarchical_mse", SMOKE.moderate)
    assert samples["C1c"].values[:seeds] == pytest.approx(
        first - verdicts.moderate(found["toy"], "matryoshka", "hierarchical_mse", SMOKE.moderate)
    )


def test_where_exact_runs_end():
    table = pd.DataFrame(
        [r for cosine, exact in ((0.0, [1, 1, 1]), (0.3, [1, 1, 0]), (0.6, [0, 1, 0]))
         for r in rows("toy", "mp", range(3), {"exact": torch.tensor(exact)}, cosine=cosine)]
    )  # fmt: skip
    text = prose._exact_up_to(table)
    assert text == {"mp_exact_to": "0.3", "mp_lost_at": "0.6", "mp_exact_lost": "1 of 3"}


def test_what_the_neighbours_of_a_rate_lose():
    table = pd.DataFrame({"rate": [0.1, 0.01, 0.001], "value": [0.2, 0.5, 0.4]})
    assert prose._neighbours(table) == "-0.100, -0.300"
    assert prose._neighbours(table[:2]) == "edge, -0.300"


def test_moderate_cosines_are_averaged():
    out = []
    for cosine, value in ((0.0, 1.0), (0.3, 3.0), (0.9, 99.0)):
        out += rows("toy", "mp", [0], {"flat_mse": torch.tensor([value])}, cosine=cosine)
    assert verdicts.moderate(pd.DataFrame(out), "mp", "flat_mse", 0.3).tolist() == [2.0]


def test_a_smoke_run_fills_every_table_and_figure(found):
    import matplotlib.pyplot as plt

    text = experiment.answers(found, SMOKE)
    assert text["stuck"] == "0.171"
    assert set(experiment.toy_table(found, SMOKE).columns) >= {"exact runs", "flat MSE", "hierarchical MSE"}
    assert len(experiment.absorption_table(found, SMOKE)) == 12
    assert (experiment.tuning_table(found, SMOKE)["rates tried"] == 1).all()
    for name in (
        "curves",
        "matrices",
        "absorption",
        "norms",
        "fixed",
        "explained",
        "modalities",
        "superposed",
    ):
        key = {"curves": "toy", "explained": "real"}.get(name, name)
        getattr(experiment, f"draw_{name}")(found[key])
    experiment.draw_coherence(found["real"], SMOKE)
    experiment.draw_sweep(found["sweep"], SMOKE)
    plt.close("all")
    shares = found["modalities"]
    shares = shares[shares.metric == "histogram"].groupby("method")["value"].sum()
    assert shares.tolist() == pytest.approx([1.0] * 4)


def test_exact_claims_hold_at_smoke(found):
    samples = experiment.claim_samples(found, SMOKE)
    assert samples["H1"].values.max() < 1e-5
    assert samples["H2"].values.max() < 1e-6
    assert (samples["H3"].values > 0.3).all()


def test_every_testable_claim_gets_samples(found):
    claims = load_claims(find_claims("matching_pursuit_sae")).claims
    declared = {claim.id for claim in claims if claim.needs is None}
    assert declared == set(experiment.claim_samples(found, SMOKE))
    controlled = {claim.id for claim in claims if claim.needs is None and claim.control}
    named = set(re.findall(r'"([CH]\d\w?)"', inspect.getsource(verdicts)))
    assert controlled <= named


def test_live_values_are_compared_with_the_recorded_ones(found):
    live = found["short"].groupby(["cosine", "metric"], as_index=False).first()
    assert (experiment.agreement(live, found, SMOKE) == "inside the prediction").all(axis=None)
    wrong = live.assign(value=live.value + 1e3)
    assert (experiment.agreement(wrong, found, SMOKE) != "inside the prediction").all(axis=None)
    assert prose.LIVE == ("l0", "flat_mse", "hierarchical_mse")


# Scales --------------------------------------------------------------------------------------------------


def test_scales():
    for scale in ("smoke", "book", "full"):
        assert experiment.config(scale).scale == scale
    with pytest.raises(ValueError, match="scale must be one of"):
        Config.at("huge")
    with pytest.raises(ValueError, match="needs store"):
        Config.at("paper")
    with pytest.raises(ValueError, match="sabotage="):
        Config.at("smoke", sabotage="something")


def test_paper_scale_on_a_fabricated_folder(tmp_path):
    """Two steps of every run on two models' activations, TinyStories' among them, and paired embeddings."""
    draw = np.random.default_rng(0)
    for name in ("vit", "tinystories", "images", "texts"):
        folder = tmp_path / ("embeddings" if name in ("images", "texts") else "store")
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{name}.npy", draw.normal(size=(120, 6)).astype(np.float32))
    small = {"held_out": 40, "real_batch": 20, "world_batch": 20, "joint_steps": 2, "joint_batch": 20}
    small |= {
        "real_steps": 2,
        "world_steps": 2,
        "real_seeds": 2,
        "world_seeds": 2,
        "judged": 40,
        "latents": 24,
    }
    small |= {"joint_seeds": 2, "ks": (2, 4), "k_shown": 4, "k_inference": (2, 4, 8), "rates": (1e-3,)}
    folders = {name: str(tmp_path / name) for name in ("store", "embeddings")}
    config = Config.at("paper", device="cpu", **folders, **small)
    assert config.expansion == 25
    tuning = pd.DataFrame(
        [r for s in ("vit", "tinystories") for m in arms.ARMS for r in real._tuning(config, s, m)]
    )
    out = [r for s in ("tinystories", "vit") for m in arms.ARMS for k in config.ks
           for r in real._real(config, s, m, k, verdicts_rate(tuning, s, m))]  # fmt: skip
    table = pd.DataFrame(out)
    samples = verdicts._own_store_samples(table[table.experiment == "real"], config)
    assert set(samples) == {"C5", "C6c"}
    modal = pd.DataFrame([r for m in arms.ARMS for r in worlds._modalities(config, m)])
    assert len(verdicts._modality_sample(modal).values) == 2


def verdicts_rate(tuning, store, method):
    return real.best_rate(tuning, store, method)


def test_fingerprint_repeats():
    assert experiment.fingerprint(2) == experiment.fingerprint(2)
