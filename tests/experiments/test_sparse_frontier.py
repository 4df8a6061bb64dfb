"""The chapter's experiments: readers, claims' arithmetic on known tables, skills, all scales."""

import inspect
import json
from dataclasses import replace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

from sparsebook.attention.sparse_frontier import attend_decode, attend_prefill, dense_pattern
from sparsebook.claims import find_claims, load_claims
from sparsebook.data.sequence_tasks import TASKS, VOCABULARY, TaskBatch
from sparsebook.experiments import sparse_frontier as experiment
from sparsebook.experiments.sparse_frontier import readers, runs, skills, stories, verdicts
from sparsebook.experiments.sparse_frontier.scales import Config


@pytest.fixture(scope="module")
def smoke():
    config = Config.at("smoke", texts=tuple(range(3, 11)))
    return config, experiment.tables(config)


def dense_functions(judged):
    full = lambda q, k, v, _: attend_prefill(q, k, v, dense_pattern(q.shape[2]))[0]  # noqa: E731

    def answer(q, k, v, _):
        keep = torch.ones(*q.shape[:3], k.shape[2] - q.shape[2], dtype=torch.bool)
        assert q.shape[2] == judged
        return attend_decode(q, k, v, keep)[0]

    return full, answer


# Readers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random Qwen2 as Hugging Face publishes one: config.json, model.safetensors, tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    config = transformers.Qwen2Config(**sizes, **heads, initializer_range=0.5, use_sliding_window=False)
    transformers.Qwen2ForCausalLM(config).save_pretrained(path)
    words = {"<unk>": 0} | {chr(32 + i): i for i in range(1, 95)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(path)
    return path


def test_paper_scale_on_a_folder_in_the_published_layout(folder):
    """Two steps of every experiment with text: no branch of scale `paper` is dead."""
    config = Config.at("paper", model=str(folder), device="cpu")
    assert config.windows_for(16_384).observed == 256
    small = {"lengths": (192,), "likelihood_lengths": (192,), "texts": (3, 4), "judged": 8}
    config = replace(config, **small, sparsities=(0.5,), likelihood_sparsities=(0.5,), ablation_length=192)
    knobs = runs._knobs(config, 192)
    fitted = runs.knobs_of(knobs, 192)
    recall = runs._recall(config, fitted, 3, 192)
    assert recall[recall.metric == "recall"]["value"].between(0.1, 1).all()
    losses = runs._likelihood(config, fitted, 4, 192)
    assert {"dense", "vertical_slash", "quest"} <= set(losses.method)
    assert np.isfinite(losses["value"]).all()


def test_a_reader_that_leaves_nothing_out_reads_as_before(folder):
    reader = readers.NetworkReader.folder(folder, judged=8)
    assert reader.layers == (0, 1, 2)
    reading = reader.read(3, 100)
    prefill, decode = dense_functions(8)
    assert reader.prefill_loss(reading, prefill) == pytest.approx(reading.loss, abs=1e-4)
    assert reader.decode_loss(reading, decode) == pytest.approx(reading.loss, abs=1e-4)
    blind = lambda q, k, v, _: torch.zeros_like(q)  # noqa: E731
    assert abs(reader.prefill_loss(reading, blind) - reading.loss) > 1e-3
    assert all(block.self_attn.replacement is None for block in reader.blocks)
    assert reader.read(3, 100) is reading


def test_layers_below_and_local_layers_are_left_as_they_were(folder):
    """Only the last layer exchanged, the others local: the replay still gives the dense pass."""
    reader = readers.NetworkReader.folder(folder, judged=8)
    reader = readers.NetworkReader(
        reader.network, reader.encode, (1,), scale=reader.scale, judged=8, window=500, least_words=3_600
    )
    reading = reader.read(4, 120)
    prefill, decode = dense_functions(8)
    assert reader.prefill_loss(reading, prefill) == pytest.approx(reading.loss, abs=1e-4)
    assert reader.decode_loss(reading, decode) == pytest.approx(reading.loss, abs=1e-4)


def test_stories_are_asked_with_the_answer_behind_them(folder):
    """Every method on one story of words; the answer's own tokens are the judged ones."""
    reader = readers.NetworkReader.folder(folder, judged=8)
    code = {}
    encode = lambda text: [code.setdefault(word, len(code)) % 128 for word in text.split()]  # noqa: E731
    words = readers.NetworkReader(reader.network, encode, reader.layers, scale=reader.scale, judged=8)
    ids, judged = stories.story_tokens(words, "multihop", 1, 400)
    sample = stories.STORIES["multihop"](lambda text: len(text.split()), 400, 1)
    assert ids[0, -judged:].tolist() == encode(sample.answer[0])
    config = Config.at("paper", model=str(folder), device="cpu", story_length=400)
    with mock.patch.object(Config, "reader", return_value=words):
        knobs = stories._knobs(config)
        table = stories._story(config, knobs, 1)
    loss = table[table.metric == "loss"]
    assert set(loss.task) == set(stories.STORIES)
    assert loss.groupby("task").size().nunique() == 1
    assert np.isfinite(loss["value"]).all()
    share = table[(table.metric == "density") & (table.method == "vertical_slash")]["value"]
    assert share.between(0.1, 0.3).all()


def test_differences_of_stories_are_positive_for_the_favoured():
    rows = []
    losses = {"vertical_slash": 1, "flexprefill": 2, "block_sparse": 3, "random": 9}
    losses |= {"quest": 1, "ada_snapkv": 2, "snapkv": 3}
    for story in range(3):
        for task, times in (("retrieval", 1), ("filtering", 2), ("multihop", 3)):
            rows += runs.tidy("stories", "dense", story, {"loss": (5, "")}, task=task)
            for phase, names in (("prefill", list(losses)[:4]), ("decode", list(losses)[3:])):
                for name in names:
                    loss = {"loss": (5 + times * losses[name], "")}
                    rows += runs.tidy("stories", name, story, loss, task=task, phase=phase)
    table = pd.DataFrame(rows)
    samples = {name: sample.values for name, sample in stories.story_samples(table).items()}
    assert samples["C2d"] == pytest.approx([2.0] * 3)
    assert samples["C2e"] == pytest.approx([-4.0] * 3)
    assert samples["C3f"] == pytest.approx([2.0] * 3)
    assert samples["C5c"] == pytest.approx([2.0] * 3)
    broken = stories.story_samples(table, sabotaged=True)
    assert broken["C2d"].values == pytest.approx([-6.0] * 3)
    assert broken["C3f"].values == pytest.approx([-14.0] * 3)


def test_windowed_attention_is_attention_under_a_band():
    q, k, v = (torch.randn(1, h, 70, 8, dtype=torch.float64) for h in (4, 2, 2))
    place = torch.arange(70)
    band = (place[:, None] >= place) & (place[:, None] - place < 9)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=band, scale=0.3, enable_gqa=True
    )
    out = readers.windowed_attention(q, k, v, window=9, scale=0.3, chunk=16)
    torch.testing.assert_close(out, expected)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model must be a folder with config\.json"):
        readers.NetworkReader.folder(tmp_path)


def test_the_planted_reader_needs_what_was_planted():
    reader = readers.PlantedReader(judged=16)
    reading = reader.read(1, 128)
    prefill, decode = dense_functions(16)
    assert reader.prefill_loss(reading, prefill) == pytest.approx(reading.loss, abs=1e-5)
    assert reader.decode_loss(reading, decode) == pytest.approx(reading.loss, abs=1e-5)
    assert reading.loss < 0.5
    blind = lambda q, k, v, _: torch.zeros(*q.shape[:3], v.shape[3])  # noqa: E731
    assert reader.prefill_loss(reading, blind) > 5


# Tables and claims ---------------------------------------------------------------------------------------


def test_smoke_measures_every_table(smoke):
    config, found = smoke
    recall = found["recall"]
    assert set(recall.seed) == set(config.texts)
    share = recall[(recall.metric == "density") & (recall.phase == "decode")]
    assert np.allclose(share["value"], 1 - share.sparsity, atol=0.05)
    held = recall[recall.metric == "recall"]
    assert held["value"].between(0, 1.0001).all()
    random, lines = (
        held[(held.phase == "prefill") & (held.method == m)]["value"].mean()
        for m in ("random", "vertical_slash")
    )
    assert lines > random + 0.1
    losses = found["likelihood"].pivot_table(index="method", columns="phase", values="value", dropna=False)
    assert losses.prefill.vertical_slash < losses.prefill.random


def test_every_testable_claim_gets_samples(smoke):
    found = smoke[1]
    declared = load_claims(find_claims("sparse_frontier"))
    samples = verdicts.claim_samples(found)
    assert {claim.id for claim in declared.claims if claim.needs is None} == set(samples)
    for name, value in samples.items():
        assert value.unit == declared[name].unit
        assert len(value.values) >= (1 if declared[name].kind == "exact" else declared[name].least_samples)


def test_sabotage_breaks_what_it_must(smoke):
    from sparsebook.claims import judge

    found = smoke[1]
    declared = load_claims(find_claims("sparse_frontier"))
    for name, value in verdicts.claim_samples(found, sabotaged=True).items():
        if declared[name].control is not None:
            assert judge([declared[name]], {name: value})[name].verdict != "holds", name


def test_the_printed_gains_contradict_equation_3(smoke):
    samples = verdicts.cost_samples(smoke[1]["costs"])
    value = {name: float(sample.values[0]) for name, sample in samples.items()}
    assert value["C7a"] == pytest.approx(0.5, abs=0.05)  # points
    assert value["C7b"] == pytest.approx(1 - 1.31 / 1.5, abs=0.005)
    assert value["C7c"] == pytest.approx(0.018, abs=0.003)
    assert value["C8a"] == pytest.approx(2.1, abs=0.1)
    assert value["C8b"] == pytest.approx(0.4, abs=0.05)
    assert value["C8c"] == pytest.approx(0.05, abs=0.01)


def likelihood(losses, lengths=(100, 200)):
    """A table with the same loss for every text but for its own offset."""
    rows = []
    for text in range(3):
        for n in lengths:
            rows += runs.tidy("likelihood", "dense", text, {"loss": (text, "nats")}, n_tokens=n, sparsity=0.0)
            for (phase, method), added in losses.items():
                for sparsity in (0.5, 0.67, 0.8, 0.9):
                    more = {"phase": phase, "sparsity": sparsity, "n_tokens": n}
                    value = {"loss": (text + added * 100 / n, "nats")}
                    rows += runs.tidy("likelihood", method, text, value, **more)
    return pd.DataFrame(rows)


def test_differences_are_paired_by_text_and_positive_for_the_favoured():
    names = {
        "prefill": ("vertical_slash", "flexprefill", "block_sparse", "streaming", "random"),
        "decode": ("quest", "ada_snapkv", "snapkv", "tova", "streaming", "random"),
    }
    losses = {(phase, m): float(i + 1) for phase, methods in names.items() for i, m in enumerate(methods)}
    table = likelihood(losses)
    samples = verdicts.likelihood_samples(table) | verdicts.decode_samples(table)
    assert samples["C3d"].values == pytest.approx([0.5] * 3)  # at the longest, 200 tokens
    assert samples["C4c"].values == pytest.approx([0.5] * 3)
    assert samples["H4"].values == pytest.approx([2.0] * 3)
    assert samples["C6c"].values == pytest.approx(np.array([[2.0, 1.0]] * 3))
    broken = verdicts.decode_samples(table, sabotaged=True)
    assert broken["C3d"].values == pytest.approx([(2 - 6) / 2] * 3)


def test_a_missing_cell_is_an_error_and_not_a_smaller_mean():
    table = likelihood({("decode", "quest"): 1.0})
    with pytest.raises(ValueError, match="snapkv"):
        verdicts.per_text(table, "loss", "snapkv", "decode", 100, [0.8])
    with pytest.raises(ValueError, match="was not measured"):
        verdicts.per_text(table, "loss", "quest", "decode", 100, [0.8, 0.95])


# Skills --------------------------------------------------------------------------------------------------


def test_answers_are_scored_token_by_token():
    answer = torch.tensor([[5, 6, 7]])
    batch = TaskBatch(torch.zeros(1, 6, dtype=torch.int64), 3, answer, torch.ones(1, 6))
    predict = lambda *tokens: torch.nn.functional.one_hot(torch.tensor([tokens]), 10).float()  # noqa: E731
    assert skills.score_given("chains", predict(5, 7, 7), batch).tolist() == [pytest.approx(2 / 3)]
    # Any word that is still to be named is right; one that was named before is not.
    assert skills.score_given("counting", predict(7, 6, 7), batch).tolist() == [1.0]
    assert skills.score_given("counting", predict(7, 7, 6), batch).tolist() == [pytest.approx(2 / 3)]


def test_a_model_on_a_skill():
    """All methods on an untrained model; without sparsity the answers are the dense ones."""
    from sparsebook.models.small_transformer import SmallTransformer

    torch.manual_seed(0)
    model = SmallTransformer(VOCABULARY, 32, 2)
    config = Config.at(
        "smoke", skill_lengths=(96,), skill_sparsities=(0.0, 0.8), skill_samples=4, widths=(32,)
    )
    table = skills.run_skills(config, {(32, 0): model})
    assert set(table.task) == set(TASKS)
    wide = table[table.metric == "score"].pivot_table(
        index=["task", "method", "phase"], columns="sparsity", values="value"
    )
    scores = wide.reset_index()
    dense = scores[scores.phase == "dense"].set_index("task")[0.0]
    free = scores[(scores.phase == "decode")].dropna(subset=[0.0])
    assert (free.set_index("task")[0.0] == free.task.map(dense).to_numpy()).all()
    share = table[(table.metric == "density") & (table.phase == "decode") & (table.sparsity == 0.8)]
    assert share[share.method != "ada_snapkv_no_floor"]["value"].between(0.1, 0.3).all()
    reads = (
        table[(table.metric == "decode_cost") & (table.method == "snapkv")]
        .groupby("sparsity")["value"]
        .mean()
    )
    assert reads[0.8] < reads[0.0]


def skill_table(learned=((32, 0.96), (64, 0.98), (128, 1.0))):
    """Scores that fall with sparsity by a known amount per method and width; dense ones as given."""
    rows = []
    loss = {"vertical_slash": 0.1, "flexprefill": 0.2, "block_sparse": 0.3, "random": 0.8}
    loss |= {"quest": 0.1, "ada_snapkv": 0.2, "snapkv": 0.3}
    for run in range(5):
        for width, best in learned:
            for task in TASKS:
                for n in (128, 256):
                    knobs = {"task": task, "n_tokens": n, "width": width}
                    dense = {
                        "score": best,
                        "score_first": best,
                        "score_second": best,
                        "prefill_cost": width * 10,
                    }
                    dense = {
                        name: (value, "") for name, value in (dense | {"decode_cost": width * 10}).items()
                    }
                    rows += runs.tidy("skills", "dense", run, dense, phase="dense", sparsity=0.0, **knobs)
                    for phase, methods in (("prefill", list(loss)[:4]), ("decode", [*list(loss)[3:]])):
                        for method in methods:
                            for s in (0.5, 0.67, 0.8, 0.9):
                                value = best * (1 - loss[method] * s * 128 / n)
                                cost = width * 10 * (1 - s)
                                names = ("score", "score_first", "score_second")
                                metrics = dict.fromkeys(names, (value, "score"))
                                metrics |= {"prefill_cost": (cost, ""), "decode_cost": (cost, "")}
                                rows += runs.tidy(
                                    "skills", method, run, metrics, phase=phase, sparsity=s, **knobs
                                )
    return pd.DataFrame(rows)


def test_samples_of_the_skills_on_a_table_with_known_answers():
    table = skill_table()
    samples = {name: sample.values for name, sample in skills.skill_samples(table).items()}
    assert samples["C1a"] == pytest.approx([0.4] * 5)  # width 128 at 0.9 over width 32 dense
    middle = 1.0 * (1 - 0.1 * 0.5 / 2) - 0.98  # width 128 at 0.5 reads what width 64 reads densely
    assert samples["C1c"] == pytest.approx([middle] * 5)
    assert samples["C2a"] == pytest.approx([0.2 * np.mean([0.5, 0.67, 0.8, 0.9]) * 0.75] * 5)
    assert (samples["C2b"] < 0).all()
    assert samples["C6a"][:, 0] == pytest.approx(2 * samples["C6a"][:, 1])
    assert (samples["C9b"] > 0).all()
    assert (samples["C9a"] < 0).all()
    broken = skills.skill_samples(table, sabotaged=True)
    for name in ("C1a", "C1c", "C2a", "C3a", "C3b", "C4a", "C9b"):
        assert (broken[name].values < samples[name]).all() or name == "C1a"
    assert (broken["C1a"].values > samples["C1a"]).all()


def test_what_was_not_learned_cannot_be_lost():
    """Runs below the threshold leave the comparisons of losses, and those alone."""
    table = skill_table()
    unlearned = (table.width == 128) & (table.task == "counting") & (table.seed == 3)
    table.loc[unlearned & table.metric.str.startswith("score"), "value"] *= 0.5
    scores = skills.Scores(table)
    assert scores.runs(["counting"]) == [0, 1, 2, 4]
    assert scores.runs(["counting"], [32, 64]) == [0, 1, 2, 3, 4]
    assert scores.runs(["retrieval", "chains"]) == [0, 1, 2, 3, 4]
    samples = {name: len(sample.values) for name, sample in skills.skill_samples(table).items()}
    assert (samples["C2a"], samples["C2c"], samples["C3a"], samples["C6a"]) == (5, 4, 4, 4)
    assert (samples["C1a"], samples["C1c"]) == (5, 5)
    assert len(skills.skill_samples(skill_table(((32, 0.3), (64, 0.3), (128, 0.3))))["C1a"].values) == 5


def test_methods_that_cannot_meet_a_budget_everywhere_are_left_out_of_means():
    table = skill_table()
    missing = (table.method == "block_sparse") & (table.n_tokens == 128) & (table.sparsity == 0.9)
    scores = skills.Scores(table[~missing])
    assert ("prefill", "block_sparse") not in scores.complete(["chains"], 0.9)
    assert len(scores.complete(["chains"], 0.8)) == 6
    shorter, longer = scores.loss_by_length(0.9).mean(axis=0)
    assert shorter == pytest.approx(2 * longer)


def test_what_choosing_costs_is_counted():
    from sparsebook.models.small_transformer import SmallTransformer

    sizes = skills.sizes_of(SmallTransformer(VOCABULARY, 32, 2))
    windows = experiment.Config.at("full").windows
    price = lambda name, **knob: skills.index_cost(sizes, name, 512, windows, knob)  # noqa: E731
    assert price("vertical_slash", n=8) == price("flexprefill", min_budget=8, alpha=0.3) > 0
    assert price("quest") == 2 * 1 * 2 * 16 * 512 / 16  # layers, key heads, two bounds of 16, pages of 16
    assert price("block_sparse") > 0
    assert price("snapkv") == price("random") == price("dense") == 0


def test_every_declared_claim_about_skills_is_supplied():
    declared = load_claims(find_claims("sparse_frontier")).claims
    about = {claim.id for claim in declared if claim.replication.unit == "training run"}
    source = inspect.getsource(skills)
    assert all(f'"{name}"' in source for name in about)


def test_figures_are_drawn(smoke):
    import matplotlib.pyplot as plt

    config, found = smoke
    table = skill_table()
    drawn = [
        experiment.draw_prefill_costs(found["costs"]),
        experiment.draw_decode_costs(found["costs"]),
        experiment.draw_patterns(config, found["knobs"]),
        experiment.draw_recall(found["recall"]),
        experiment.draw_likelihood(experiment.losses(found)),
        experiment.draw_lengths(found["recall"], found["likelihood"]),
        experiment.draw_ablation(found["ablation"]),
        experiment.draw_isocost(table),
        experiment.draw_skills(table),
        experiment.draw_budgets(table),
    ]
    assert all(len(figure.axes) >= 2 for figure in drawn)
    plt.close("all")


def test_the_live_text_is_compared_with_those_recorded(smoke):
    config, found = smoke
    live = runs.run_live(config, found["knobs"])
    table = experiment.agreement(live, found, config)
    assert len(table) >= 8
    assert set(table["attention mass"]) <= {"inside the prediction", "OUTSIDE the prediction"}
    assert all(isinstance(text, str) for text in experiment.answers(found, config).values())
    assert experiment.story_table(found).index[0] == experiment.skill_table(found).index[0] == "dense"


# Scales --------------------------------------------------------------------------------------------------


def test_scales():
    for scale in ("smoke", "book", "full"):
        assert experiment.config(scale).scale == scale
    with pytest.raises(ValueError, match="scale must be one of"):
        Config.at("huge")
    with pytest.raises(ValueError, match="needs model"):
        Config.at("paper")
    assert json.dumps(Config.at("full").record())


def test_fingerprint_repeats():
    assert experiment.fingerprint() == experiment.fingerprint()
