"""The chapter's experiments: arithmetic on known tables, every selection against a mask, all scales."""

import inspect
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sparsebook.attention.anchor_attention import (
    anchor_mask_reference,
    anchor_pattern,
    anchor_regions,
    candidate_keys,
)
from sparsebook.attention.metrics import attention_weights, density, output_recall
from sparsebook.attention.patterns import difference_mask, pattern_mask, topcdf_mask, topk_mask
from sparsebook.claims import find_claims, load_claims
from sparsebook.data.sequence_tasks import VOCABULARY
from sparsebook.experiments import anchor_attention as experiment
from sparsebook.experiments.anchor_attention import inputs, runs, selections, speed, tasks, verdicts
from sparsebook.experiments.anchor_attention.inputs import planted_heads
from sparsebook.experiments.anchor_attention.scales import Config
from sparsebook.experiments.anchor_attention.selections import Choice, Judge
from sparsebook.models.small_transformer import SmallTransformer

SMALL = Config.at("smoke", n_tokens=160)


@pytest.fixture(scope="module")
def heads():
    return planted_heads(160, 3, heads=2)


def mask_of(choice, heads):
    n = heads.q.shape[2]
    mask = pattern_mask(choice.index, n).expand(*heads.q.shape[:2], -1, -1)
    if choice.beside:
        region = anchor_regions(n, block_size=8, step=4).dense_mask(n, n, causal=True)
        assert not (mask & region).any()  # nothing counts twice
        mask = mask | region
    return mask


# Curves --------------------------------------------------------------------------------------------------


def test_the_judge_equals_the_dense_mask(heads):
    """Density and both recalls of every choice of every method, from a mask and dense weights."""
    judge = Judge(heads, 8, 4, tolerance=0.01)
    weights = attention_weights(heads.q, heads.k, scale=heads.scale)
    full = weights @ heads.v
    found = [*selections.stripe_choices(heads, SMALL), *selections.tile_choices(heads, SMALL)]
    found += [*selections.sorting_choices(heads, SMALL), *selections.rival_choices(heads, SMALL)]
    found += selections.ablation_choices(heads, SMALL)
    assert {choice.method for choice in found} >= {
        "anchor",
        "tiles, best key",
        "stripes, top mass",
        "flexprefill",
    }
    for choice in found:
        judged = {name: value for name, (value, _) in judge.judge(choice).items()}
        mask = mask_of(choice, heads)
        kept = weights * mask
        out = kept @ heads.v / kept.sum(-1, keepdim=True)
        assert judged["density"] == pytest.approx(density(mask).mean().item(), abs=1e-6), choice.method
        assert judged["mass"] == pytest.approx(kept.sum(-1).mean().item(), abs=1e-4), choice.method
        assert judged["output"] == pytest.approx(output_recall(full, out).mean().item(), abs=2e-3)


def test_the_stripes_are_the_method_s(heads):
    for choice in selections.stripe_choices(heads, SMALL):
        pattern = anchor_pattern(
            heads.q, heads.k, theta=choice.setting, block_size=8, step=4, scale=heads.scale
        )
        assert torch.equal(mask_of(choice, heads), pattern.dense_mask(160, 160, causal=True))


def test_oracles_equal_their_masks(heads):
    config = replace(SMALL, oracle_shares=(0.05,), oracle_masses=(0.9,), oracle_thetas=(3.0,))
    judge = Judge(heads, 8, 4, tolerance=0.01)
    found = {method: values for method, _, values in selections.oracle_rows(heads, config, judge)}
    weights = attention_weights(heads.q, heads.k, scale=heads.scale)
    masks = {
        "oracle: top k": topk_mask(heads.q, heads.k, 8),
        "oracle: top mass": topcdf_mask(heads.q, heads.k, 0.9, scale=heads.scale),
        "oracle: difference": difference_mask(heads.q, heads.k, 3.0, scale=heads.scale),
    }
    for method, mask in masks.items():
        kept = weights * mask
        out = kept @ heads.v / kept.sum(-1, keepdim=True)
        assert found[method]["density"][0] == pytest.approx(density(mask).mean().item(), abs=1e-3)
        assert found[method]["mass"][0] == pytest.approx(kept.sum(-1).mean().item(), abs=1e-3)
        near = output_recall(weights @ heads.v, out).mean().item()
        assert found[method]["output"][0] == pytest.approx(near, abs=5e-3)


def test_a_shuffled_selection_keeps_its_size(heads):
    (honest,) = selections.stripe_choices(heads, replace(SMALL, thetas=(4.0,)))
    (broken,) = selections.stripe_choices(heads, replace(SMALL, thetas=(4.0,), sabotaged=True))
    assert torch.equal(honest.index.counts, broken.index.counts)
    judge = Judge(heads, 8, 4)
    assert judge.judge(broken)["mass"][0] < judge.judge(honest)["mass"][0] - 0.05
    mask_of(broken, heads)  # its columns are candidates, too


def test_unpooled_margins_are_the_best_of_the_rows(heads):
    m = selections.anchors(heads, "both", 8, 4)
    best = selections.unpooled(heads, m, 32)
    logits = heads.q @ heads.k.mT * heads.scale - m[..., None]
    torch.testing.assert_close(best[0, 1, 2], logits[0, 1, 64:96].amax(0), atol=1e-4, rtol=1e-4)


def test_anchors_of_halves_are_no_larger_than_of_both(heads):
    both, init, window, largest = (
        selections.anchors(heads, kind, 8, 4) for kind in ("both", "init only", "window only", "true maximum")
    )
    torch.testing.assert_close(torch.maximum(init, window), both)
    assert (both <= largest + 1e-4).all()
    assert (both < largest - 0.1).any()


def test_density_at_a_recall_is_read_off_the_useful_part_of_a_curve():
    points = {0: (0.1, 0.5), 1: (0.3, 0.9), 2: (0.35, 0.8), 3: (0.5, 0.99)}
    rows = []
    for setting, (spent, mass) in points.items():
        metrics = {"density": (spent, "fraction"), "mass": (mass, "fraction")}
        rows += runs.tidy("recall", "anchor", 0, metrics, setting=setting)
    table = pd.DataFrame(rows)
    assert verdicts.density_at(table, 0.9) == pytest.approx(0.3)
    assert verdicts.density_at(table, 0.945) == pytest.approx(0.4)
    assert verdicts.density_at(table, 0.2) == pytest.approx(0.1)  # never below what was computed
    assert verdicts.density_at(table, 1.0) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no rows of 'none'"):
        verdicts.densities(table, "none", 0.9)


# Maxima, the released kernel, pooling --------------------------------------------------------------------


def test_maxima_are_counted_where_they_lie():
    heads = planted_heads(160, 3, heads=1)
    table = pd.DataFrame(runs._maxima(SMALL, heads, 0))
    own = table[table.method == "anchor"].set_index("metric").value
    logits = (heads.q @ heads.k.mT * heads.scale)[0, 0]
    region = anchor_regions(160, block_size=8, step=4).dense_mask(160, 160, causal=True)[0, 0]
    causal = torch.ones(160, 160, dtype=torch.bool).tril()
    best = logits.masked_fill(~causal, -torch.inf).argmax(-1)
    inside = region[torch.arange(160), best][32:160].float().mean().item()
    assert own["inside"] == pytest.approx(inside)
    assert own["init"] + own["window"] + own["elsewhere"] == pytest.approx(1.0)
    assert own["init"] == pytest.approx((best[32:160] < 8).float().mean().item())
    shares = table[(table.method == "histogram")].value.sum()
    assert shares == pytest.approx(1.0)


def test_the_released_regions_count_keys_twice_and_leave_some_out():
    counts = runs.times_computed(4, 128, 16, released=True)
    own = [row[: (g + 1) * 2048] for g, row in enumerate(counts)]
    assert [(row == 2).sum().item() for row in own] == [0, 1792, 1920, 1920]
    assert [(row == 0).sum().item() for row in own] == [0, 0, 128, 128]
    ours = runs.times_computed(4, 128, 16, released=False)
    for g, row in enumerate(ours):
        assert (row[: (g + 1) * 2048] == 1).all()
        assert (row[(g + 1) * 2048 :] == 0).all()


def test_pooling_loses_keys_that_few_rows_want():
    table = runs.run_pooling(Config.at("smoke"))
    few, all_rows = table[table.setting < 0.2], table[table.setting == 1.0]
    assert len(few) >= 3
    assert (few.value == 0).all()
    assert (all_rows.value == 1).all()


# Small models --------------------------------------------------------------------------------------------

ASKED = Config.at("smoke", task_tokens=64, task_block=2, task_samples=6, task_runs=(0,))


@pytest.fixture(scope="module")
def untrained():
    return SmallTransformer(VOCABULARY, 32, 2, 16, seed=0)


def test_small_models_read_by_the_patterns_of_the_definition(untrained):
    """All arms against dense attention under their masks; the last, shorter group is sparse, too."""
    seen = untrained.capture(tasks.questions(ASKED, 0, False).tokens[:, :-1])
    q, k = seen.queries[1], seen.keys[1]
    repeated = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    arms = tasks.patterns(ASKED)
    layouts = {
        "anchor": {"block_size": 2, "step": 4, "tail": "sparse"},
        "anchor: rows not pooled": {"block_size": 1, "step": 8, "tail": "sparse"},
        "anchor: last rows dense": {"block_size": 2, "step": 4, "tail": "dense"},
    }
    for method, layout in layouts.items():
        mask = anchor_mask_reference(q, repeated, theta=2.0, scale=0.25, **layout)
        assert torch.equal(arms[method](q, k, 2.0).dense_mask(63, 63, causal=True), mask), method
    region = arms["region"](q, k, -torch.inf).dense_mask(63, 63, causal=True)
    blocks = arms["block_topk + region"](q, k, 10.0).dense_mask(63, 63, causal=True)
    assert (blocks | ~region).all()
    kept, moved = arms["anchor"](q, k, 2.0), arms["anchor: random stripes"](q, k, 2.0)
    assert torch.equal(kept.counts, moved.counts)
    assert not torch.equal(*(index.dense_mask(63, 63, causal=True) for index in (kept, moved)))
    moved.check(*q.shape[:3], 63)  # its columns lie outside the region and in order


def test_reading_everything_is_reading_densely(untrained):
    batch, pattern = tasks.questions(ASKED, 0, False), tasks.patterns(ASKED)["anchor"]
    dense, _ = tasks.answers_under(untrained, batch.tokens, batch.answer_start, None, 0.0)
    assert torch.equal(dense.argmax(-1), untrained.teacher_forced(batch.tokens, batch.answer_start))
    full, spent = tasks.answers_under(untrained, batch.tokens, batch.answer_start, pattern, torch.inf)
    torch.testing.assert_close(full, dense, atol=1e-4, rtol=1e-4)
    assert spent == 1.0
    less, spent = tasks.answers_under(untrained, batch.tokens, batch.answer_start, pattern, -torch.inf)
    regions = anchor_regions(63, block_size=2, step=4, tail="sparse")
    assert spent == pytest.approx(regions.density(63, 63, causal=True))
    assert not torch.allclose(less, dense, atol=1e-3)


@pytest.mark.parametrize("method", [*tasks.SWEPT, *tasks.ONCE])
def test_small_models_get_the_smallest_budget_that_reaches_a_density(untrained, method):
    apart, pattern = tasks.questions(ASKED, 0, True), tasks.patterns(ASKED)[method]
    budget = tasks.budget_on(ASKED, untrained, apart, method, 0.4)
    least = {"block_topk + region": 2.0, "streaming": 2.0}.get(method, 0.1)
    spent = [
        tasks.answers_under(untrained, apart.tokens, apart.answer_start, pattern, one)[1]
        for one in (budget, budget - least)
    ]
    assert spent[1] < 0.4 <= spent[0] < 0.5


def test_questions_for_budgets_are_others():
    asked, apart = (tasks.questions(ASKED, 3, tuning).tokens for tuning in (False, True))
    assert not (asked[:, None] == apart[None]).all(-1).any()
    assert torch.equal(asked, tasks.questions(ASKED, 3, False).tokens)


def test_accuracies_of_small_models_become_differences(untrained, monkeypatch):
    monkeypatch.setattr(tasks, "reader", lambda config, seed: untrained)
    table = tasks.run_tasks(replace(ASKED, task_densities=(0.25, 0.5)))
    assert set(table.method) == {"dense", "region", *tasks.SWEPT, *tasks.ONCE, *tasks.BESIDE}
    assert (table.groupby(["method", "target"]).size() == 2).all()
    broken = tasks.run_tasks(replace(ASKED, sabotaged=True))
    assert set(broken.method) == {"dense", "region", "anchor", "block_topk + region"}
    values = {("dense", 1.0): 0.9, ("anchor", 0.25): 0.7, ("anchor", 0.5): 0.8}
    values |= {("block_topk + region", 0.25): 0.4}
    rows = []
    for seed in (0, 1):
        for (method, target), value in values.items():
            metrics = {"accuracy": (value + seed / 20, "accuracy"), "density": (target, "fraction")}
            rows += runs.tidy("tasks", method, seed, metrics, setting=0.0, target=target)
    known = pd.DataFrame(rows)
    assert verdicts.at_density(known, 0.25).anchor.tolist() == pytest.approx([0.7, 0.75])
    assert verdicts._accuracy(known, ASKED, "anchor", "dense") == pytest.approx([-0.2, -0.2])
    assert verdicts._accuracy(known, ASKED, "anchor", "block_topk + region") == pytest.approx([0.3, 0.3])


# Speed ---------------------------------------------------------------------------------------------------


def test_the_best_tiles_hold_the_mass(heads):
    judge = Judge(heads, 8, 4)
    tiles = speed.best_tiles(judge, 16, 0.9)
    weights = attention_weights(heads.q, heads.k, scale=heads.scale)
    dense = tiles.repeat_interleave(16, 2).repeat_interleave(16, 3)
    mass = (weights * dense).unflatten(2, (-1, 16)).sum(-1).mean(-1)
    assert (mass >= 0.9 - 1e-5).all()
    assert tiles.diagonal(dim1=2, dim2=3).all()
    assert tiles.float().mean() < 0.5


def test_budgets_are_the_smallest_that_reach_the_recall(heads):
    config = replace(SMALL, speed_block=8, speed_step=4)
    judge = Judge(heads, 8, 4)
    for method in speed.METHODS:
        budget = speed._budget(config, judge, method)
        low, high = speed.SEARCHED[method]
        reached = {}
        for value in (budget, budget - 0.02 * (high - low)):
            if value <= low:
                continue
            index = speed.pattern_of(heads, method, value, 8, 4)
            reached[value] = judge.judge(Choice(method, value, index, False))["mass"][0]
        assert reached[budget] >= 0.95
        assert all(mass < 0.96 for value, mass in reached.items() if value < budget)


def test_whole_methods_agree_with_dense_attention(tmp_path):
    config = replace(SMALL, speed_block=8)
    case = speed._case(config, tmp_path, "text", 160)
    functions = speed._functions(
        case | {"budgets": {"anchor": 1e9, "flexprefill": 1.0, "block_topk": 1.0}}, "cpu"
    )
    reference = functions["sdpa"]()
    for name in ("anchor", "flexprefill", "block_topk"):
        torch.testing.assert_close(functions[name](), reference, atol=1e-4, rtol=1e-4)
    assert functions["flex"]().shape == reference.shape


# Scales and claims ---------------------------------------------------------------------------------------


def test_scales():
    for scale in ("smoke", "book", "full"):
        assert experiment.config(scale).scale == scale
    with pytest.raises(ValueError, match="scale must be one of"):
        Config.at("huge")
    with pytest.raises(ValueError, match="needs model"):
        Config.at("paper")


def test_paper_scale_on_a_fabricated_folder(tmp_path):
    """A Llama of two layers with random weights, as `save_pretrained` writes it: two steps of two runs."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    words = {f"w{i}": i for i in range(59)} | {"[UNK]": 59}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    draw = np.random.default_rng(0)
    (tmp_path / "text.txt").write_text(" ".join(f"w{i}" for i in draw.integers(0, 59, 2_000)))
    small = {"n_tokens": 128, "lengths": (64, 128), "block_size": 8, "step": 2, "steps": (2,), "n_texts": 2}
    small |= {"loss_tokens": 128, "loss_block": 8}
    at = Config.at("paper", model=str(tmp_path), text=str(tmp_path / "text.txt"), device="cpu", **small)
    table = runs._text(at, 1)
    assert set(table.experiment) == {"maxima", "recall", "ablation", "growth"}
    assert table.value.map(np.isfinite).all()
    losses = runs._likelihood(at, {"anchor": 1e9}, 0).pivot_table(
        index="method", columns="metric", values="value"
    )
    assert losses.loss["anchor"] == pytest.approx(losses.loss["dense"], abs=1e-4)
    assert losses.density["region"] < losses.density["anchor"] == 1.0
    with pytest.raises(ValueError, match="expected at least"):
        inputs.FolderText(tmp_path, tmp_path / "text.txt").heads(15, 128)


def test_every_testable_claim_gets_samples():
    """The names that `claim_samples` supplies are those that the claims file declares as testable."""
    declared = {
        claim.id for claim in load_claims(find_claims("anchor_attention")).claims if claim.needs is None
    }
    assert declared <= set(re.findall(r'"([CH]\d\w?)"', inspect.getsource(verdicts)))


def test_a_smoke_run_fills_every_table_and_figure():
    import matplotlib.pyplot as plt

    config = Config.at("smoke")
    found = experiment.tables(config)
    samples = experiment.claim_samples(found, config)
    assert samples["H1"].values.tolist() == [0.0]
    assert (samples["C1b"].values > 1).all()  # planted stripes are what the method is made for
    assert (samples["C3a"].values > 1).all()
    assert experiment.answers(found, config)["double_later"] == "1,920"
    assert candidate_keys(64, block_size=8, step=4).sum() == 16
    experiment.draw_recall(found["recall"])
    experiment.draw_speed(found["speed"])
    experiment.draw_tasks(found["tasks"], config.density)
    assert len(experiment.density_table(found, config)) >= 16
    plt.close("all")


def test_fingerprint_repeats():
    assert experiment.fingerprint(128) == experiment.fingerprint(128)
