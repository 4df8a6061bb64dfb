"""MP-SAE: both published loops, their gradients, the benchmark's measures, a short training of the toy."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsebook.data.activations import stream
from sparsebook.data.concept_tree import hierarchical_dictionary, published_tree, tree_batches
from sparsebook.features.codes import DenseCodes, TopCodes
from sparsebook.features.matching_pursuit_sae import (
    HitL0,
    LowerK,
    MatchingPursuitSAE,
    ReviveDeadAtoms,
    SortLatents,
    ToyBatchTopKSAE,
    absorption_score,
    flat_mse,
    hierarchical_mse,
    match_latents,
    matched_atoms,
    toy_options,
)
from sparsebook.features.sae import MatryoshkaSAE, ReLUSAE
from sparsebook.features.trainer import Trainer, train

TREE = published_tree()


def tokens(n: int = 60, width: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def directions(cosine: float, seeds: range) -> Tensor:
    drawn = [
        hierarchical_dictionary(
            TREE.sibling_groups, cosine, dim=20, generator=torch.Generator().manual_seed(100 + seed)
        )
        for seed in seeds
    ]
    return torch.stack(drawn)


# The model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.05},
        {"threshold": 0.5, "n_steps": 6},
        {"n_steps": 6},
        {"n_steps": 6, "nonnegative": True, "unit_rows": True, "pre_bias": True},
    ],
)
def test_reconstruction_is_the_decoded_codes(options: dict[str, Any]) -> None:
    sae = MatchingPursuitSAE(12, 30, seeds=(3, 4), **options)
    with torch.no_grad():
        sae.decoder.mul_(torch.linspace(0.9, 1.1, 30)[:, None])
        sae.pre_bias.normal_(generator=torch.Generator().manual_seed(0)).mul_(options.get("pre_bias", 0))
    output = sae(tokens())
    assert output.pre_activations is None
    assert output.reconstruction.shape == (2, 60, 12)
    torch.testing.assert_close(sae.decode(output.codes), output.reconstruction, rtol=1e-4, atol=1e-4)
    alone = sae.model(1)
    torch.testing.assert_close(alone(tokens()).reconstruction, output.reconstruction[1])
    assert alone.pre_bias.requires_grad == options.get("pre_bias", False)
    torch.testing.assert_close(sae.encode(tokens(), "threshold").dense(), output.codes.dense())


def test_codes_of_repeated_picks_are_added() -> None:
    """Three atoms in the plane and twelve steps: every atom is taken again and again."""
    sae = MatchingPursuitSAE(2, 3, n_steps=12)
    pursued = sae.pursue(tokens(40, 2))
    codes = sae.encode(tokens(40, 2))
    assert isinstance(codes, TopCodes)
    assert (pursued.n_active() < (pursued.indices >= 0).sum(-1)).any()
    torch.testing.assert_close(codes.dense(), pursued.dense())
    assert torch.equal(codes.active_per_token(), pursued.n_active())
    assert isinstance(MatchingPursuitSAE(2, 3, threshold=0.01).encode(tokens(40, 2)), DenseCodes)


def test_more_steps_at_inference_than_in_training() -> None:
    sae = MatchingPursuitSAE(12, 40, n_steps=4, nonnegative=True)
    errors = [
        (tokens() - sae.decode(sae.encode(tokens(), n_steps=k))).square().sum(-1) for k in (1, 2, 4, 8, 16)
    ]
    assert all((later <= earlier + 1e-5).all() for earlier, later in pairwise(errors))
    assert errors[-1].mean() < 0.2 * errors[0].mean()
    path = sae.pursue(tokens(), 16, return_path=True)
    torch.testing.assert_close(path.first(4).dense(), sae.encode(tokens()).dense())


def test_the_two_ways_to_the_reconstruction_have_one_gradient() -> None:
    """Through the residual, as here, and through codes times dictionary, as the published toy does."""
    sae = MatchingPursuitSAE(12, 12, threshold=0.05)
    grads = []
    for reconstruct in (lambda: sae(tokens()).reconstruction, lambda: sae.decode(sae.encode(tokens()))):
        sae.zero_grad()
        (tokens() - reconstruct()).square().sum(-1).mean().backward()
        assert sae.decoder.grad is not None
        grads.append(sae.decoder.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)


def test_unit_rows_have_no_gradient_along_themselves() -> None:
    sae = MatchingPursuitSAE(12, 30, n_steps=3, unit_rows=True)
    with torch.no_grad():
        sae.decoder.mul_(3)
    sae(tokens()).reconstruction.sum().backward()
    assert sae.decoder.grad is not None
    along = (sae.decoder.grad * sae.decoder).sum(-1)
    assert along.abs().max() < 1e-4 * sae.decoder.grad.norm()
    assert sae.dictionary.norm(dim=-1).max().item() == pytest.approx(1)


def test_dropped_atoms_are_not_taken_and_come_back() -> None:
    sae = MatchingPursuitSAE(12, 30, n_steps=3, atom_dropout=0.5, seeds=(0, 1))
    used = [sae.encode(tokens(500)).active_per_latent() > 0 for _ in range(2)]
    assert (used[0].sum(-1) < 25).all()
    assert not torch.equal(used[0], used[1])
    again = MatchingPursuitSAE(12, 30, n_steps=3, atom_dropout=0.5, seeds=(0, 1))
    assert torch.equal(again.encode(tokens(500)).active_per_latent() > 0, used[0])
    sae.eval()
    assert (sae.encode(tokens(500)).active_per_latent() > 0).all()
    sae.train()
    assert (sae.encode(tokens(500)).active_per_latent() > 0).sum() < 50


def test_starts() -> None:
    normal, uniform = (MatchingPursuitSAE(400, 50, n_steps=2, initial=i) for i in ("normal", "uniform"))
    for sae in (normal, uniform):
        torch.testing.assert_close(sae.decoder.norm(dim=-1), torch.ones(50))
    kurtosis = [(20 * sae.decoder).pow(4).mean().item() for sae in (normal, uniform)]
    assert kurtosis == pytest.approx([3.0, 1.8], abs=0.15)
    pair = MatchingPursuitSAE(8, 9, n_steps=2, seeds=(5, 6))
    torch.testing.assert_close(pair.decoder[1], MatchingPursuitSAE(8, 9, n_steps=2, seed=6).decoder)


def test_revival_moves_atoms_that_were_not_used() -> None:
    sae = MatchingPursuitSAE(12, 40, n_steps=1)
    trainer = Trainer(sae, toy_options(2), [ReviveDeadAtoms()])
    few = tokens(3)
    taken = sae.encode(few).active_per_latent() > 0
    before = sae.decoder.detach().clone()
    trainer.step(few)
    assert (~taken).sum() > 10
    assert ((sae.decoder - before).norm(dim=-1)[~taken] > 0).all()
    output = sae(few)
    left = few - output.reconstruction
    assert (left.mean(0) @ sae.decoder[~taken].T).mean() > (left.mean(0) @ before[~taken].T).mean()
    plain = MatchingPursuitSAE(12, 40, n_steps=1)
    Trainer(plain, toy_options(2)).step(few)
    assert (plain.decoder[~taken] == before[~taken]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "n_steps and threshold are both None"),
        ({"n_steps": 0}, "n_steps=0: expected at least 1"),
        ({"threshold": 0.0}, "threshold=0.0: expected above 0"),
        ({"n_steps": 1, "atom_dropout": 1.0}, "atom_dropout=1.0"),
        ({"n_steps": 1, "seeds": ()}, "seeds is empty"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatchingPursuitSAE(4, 8, **options)


def test_bad_tokens_are_named() -> None:
    sae = MatchingPursuitSAE(4, 8, n_steps=2)
    for x, message in (
        (torch.zeros(0, 4), "x is empty"),
        (torch.full((2, 4), torch.nan), "NaN or infinite"),
        (torch.zeros(2, 5), "x has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            sae(x)
    with pytest.raises(ValueError, match="n_steps must be at least 1"):
        sae.encode(torch.ones(2, 4), n_steps=0)


# The measures --------------------------------------------------------------------------------------------


def test_latents_are_matched_by_activation() -> None:
    truth = directions(0.3, range(2))
    order = torch.stack([torch.randperm(25, generator=torch.Generator().manual_seed(s)) for s in range(2)])
    atoms = torch.cat([truth, -truth[:, :5]], 1).gather(1, order[..., None].expand(-1, -1, 20)) * 3
    concepts = TREE.sample_active(1000, torch.Generator().manual_seed(0)).float()
    position = order.argsort(-1)[:, :20]
    places = position[:, None].expand(-1, 1000, -1)
    codes = torch.zeros(2, 1000, 25).scatter(2, places, concepts.expand(2, -1, -1) * 5)
    match = match_latents(codes, concepts)
    assert torch.equal(match, position)
    torch.testing.assert_close(matched_atoms(atoms, match), truth)
    with pytest.raises(ValueError, match="expected at least 20"):
        match_latents(codes[..., :19], concepts)
    with pytest.raises(ValueError, match="NaN"):
        match_latents(codes * torch.nan, concepts)


def test_measures_on_known_dictionaries() -> None:
    truth = directions(0.3, range(3))
    groups, levels, parents = TREE.sibling_groups, TREE.levels, TREE.parents
    for value in (flat_mse(truth, truth, groups), hierarchical_mse(truth, levels)):
        assert value.shape == (3,)
        assert value.max() < 1e-10
    assert absorption_score(truth, truth, parents).abs().max() < 1e-5
    assert flat_mse(directions(0.5, range(3)), truth, groups)[0].item() == pytest.approx(0.04, abs=1e-4)
    # Every child leans on its parent by 45 degrees.
    absorbed = truth.clone()
    children = [i for i, parent in enumerate(parents) if parent >= 0]
    absorbed[:, children] = normalize(truth[:, children] + truth[:, [parents[c] for c in children]], dim=-1)
    assert absorption_score(absorbed, truth, parents)[0].item() == pytest.approx(0.5**0.5, abs=1e-5)
    # 9 pairs of child and parent at cosine 1/sqrt(2), 90 of a child and another parent at 0.3/sqrt(2).
    expected = (9 * 0.5 + 90 * 0.09 / 2) / 99
    assert hierarchical_mse(absorbed, levels)[0].item() == pytest.approx(expected, abs=1e-5)
    for measure, arguments in (
        (flat_mse, (truth, truth, [[1], [2]])),
        (hierarchical_mse, (truth, [0] * 20)),
        (absorption_score, (truth, truth, [-1] * 20)),
    ):
        with pytest.raises(ValueError, match="expected"):
            measure(*arguments)  # type: ignore[operator]


# The baselines of the benchmark --------------------------------------------------------------------------


def test_the_weight_of_the_penalty_follows_the_active_latents() -> None:
    rule = HitL0(3.0, start=0.1, warmup=4, rate=0.01)
    sae = ReLUSAE(12, 20, 0.0, seeds=(0, 1))
    trainer = Trainer(sae, toy_options(20), [rule])
    seen = []
    for step in range(8):
        done = trainer.step(tokens(seed=step))
        seen.append((sae.sparsity.clone(), done.output.codes.active_per_token().double().mean(-1)))
    torch.testing.assert_close(seen[1][0], torch.full((2,), 0.1 * 2 / 4))
    for (before, _), (after, active) in pairwise(seen[3:]):
        torch.testing.assert_close(after, before * torch.where(active < 3, 0.99, 1.01))
    resumed = HitL0(3.0, warmup=4, rate=0.01)
    resumed.restore(rule.state())
    assert torch.equal(resumed.weight, rule.weight)
    with pytest.raises(ValueError, match="expected above 0"):
        HitL0(0)
    with pytest.raises(ValueError, match="HitL0 expected"):
        Trainer(MatchingPursuitSAE(12, 20, n_steps=2), toy_options(2), [rule]).step(tokens())


@pytest.mark.parametrize("whole", [True, False])
def test_sorting_moves_latents_and_all_that_belongs_to_them(whole: bool) -> None:
    """Sorting changes the order alone: with moments and means along, training goes on as without."""
    plain, sorted_ = (ReLUSAE(12, 20, 0.05, seeds=(0, 1)) for _ in range(2))
    rule = SortLatents(whole)
    trainers = Trainer(plain, toy_options(20)), Trainer(sorted_, toy_options(20), [rule])
    for step in range(12):
        for trainer in trainers:
            trainer.step(tokens(seed=step))
    x = tokens(seed=99)
    same = torch.allclose(plain(x).reconstruction, sorted_(x).reconstruction, rtol=1e-3, atol=1e-4)
    assert same == whole
    if whole:
        assert all(later <= earlier for row in rule.mean.tolist() for earlier, later in pairwise(row))
    again = SortLatents(whole)
    again.restore(rule.state())
    assert torch.equal(again.mean, rule.mean)
    assert isinstance(MatryoshkaSAE(12, 20, 0.1), ReLUSAE)


def test_the_toy_s_batch_topk_lowers_its_budget_once() -> None:
    sae = ToyBatchTopKSAE(12, 20, 3)
    trainer = Trainer(sae, toy_options(10), [LowerK(1.5, after=2)])
    active = [float(trainer.step(tokens(seed=i)).output.codes.active_per_token().sum()) for i in range(3)]
    assert active == [180, 180, 90]
    error = trainer.step(tokens()).output.reconstruction - tokens()
    terms = sae.loss_terms(tokens(), sae(tokens()))
    assert set(terms) == {"reconstruction"}
    assert error.shape == (60, 12)
    with pytest.raises(ValueError, match="LowerK expected"):
        Trainer(ReLUSAE(12, 20, 0.1), toy_options(2), [LowerK(1, after=1)]).step(tokens())


# The toy -------------------------------------------------------------------------------------------------


def lowest_cosines(sae: Any, truth: Tensor) -> Tensor:
    concepts = TREE.sample_active(1000, stream(5)).float()
    with torch.no_grad():
        match = match_latents(sae.encode(concepts @ truth).dense(), concepts)
        return (matched_atoms(sae.decoder, match) * truth).sum(-1).amin(-1)


def test_one_shot_selection_fails_on_the_true_dictionary() -> None:
    """With siblings at cosine 0.3, pursuit finds who is active; the two largest of D x do not."""
    truth = directions(0.3, range(1))[0]
    concepts = TREE.sample(2000, torch.Generator().manual_seed(0))
    x, active = concepts @ truth, concepts != 0
    sae = MatchingPursuitSAE(20, 20, threshold=0.05)
    with torch.no_grad():
        sae.decoder.copy_(truth)
        codes = sae.encode(x).dense()
    at_once = torch.zeros_like(codes).scatter(-1, (x @ truth.T).topk(2).indices, 1.0)
    found, shot = ((z != 0) == active for z in (codes, at_once))
    assert found.all(1).float().mean() > 0.99
    torch.testing.assert_close(codes[found.all(1)], concepts[found.all(1)], rtol=1e-3, atol=1e-3)
    assert shot.all(1).float().mean() < 0.5


def trained_toy() -> dict[str, list[float]]:
    """Orthogonal siblings, three seeds, 1,500 steps of the published schedule."""
    seeds = range(3)
    truth = directions(0.0, seeds)
    batches = tree_batches(TREE, truth, 200, seeds=list(seeds))
    sae = MatchingPursuitSAE(20, 20, threshold=0.05, seeds=list(seeds))
    train(sae, batches, toy_options(1500))
    active = sae.encode(batches(10**6)).active_per_token().double().mean(-1)
    return {"lowest cosines": lowest_cosines(sae, truth).tolist(), "l0": active.tolist()}


@pytest.mark.slow
def test_training_recovers_all_concepts_in_most_seeds() -> None:
    """In a process without run-time type checks, which would take most of the steps' time."""
    environment = os.environ | {"JAXTYPING_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert sorted(found["lowest cosines"])[1] > 0.99
    assert sorted(found["l0"])[1] == pytest.approx(1.36, abs=0.1)


if __name__ == "__main__":
    print(json.dumps(trained_toy()))
