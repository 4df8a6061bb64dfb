"""Training and loading of the readers: batches, interruption, files, routing, shipped models."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsebook.data.sequence_tasks import ANSWER_WEIGHT, TASKS, VOCABULARY, score
from sparsebook.experiments import skills
from sparsebook.experiments.skills import (
    ACCEPTED,
    SKILLS,
    Recipe,
    SkillReader,
    Trained,
    Training,
    accepted,
    dense_scores,
    read_models,
    skill_models,
    train,
    trained,
    training_batch,
    write_models,
)
from sparsebook.models.small_transformer import SmallTransformer

SHIPPED = Path(__file__).parents[2] / "book" / skills.SHIPPED


def quiet(_):
    pass


def tiny(skill="tracing", width=32, seed=0, steps=4, **changes):
    return Recipe(skill, width, seed, n_layers=1, steps=steps, **changes)


def made(recipe, scores=None):
    weights = {name: tensor.half() for name, tensor in recipe.model().state_dict().items()}
    return Trained(recipe, weights, scores or {}, 1.0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache and a book that ships nothing."""
    (tmp_path / "_toc.yml").write_text("")
    monkeypatch.setenv("SPARSEBOOK_BOOK", str(tmp_path))
    monkeypatch.setenv("SPARSEBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def short(monkeypatch):
    """Trainings of two steps, judged on few samples, for what does not depend on how well a model reads."""
    monkeypatch.setattr(skills, "_STEPS", {"tracing": 2, "counting": 2})
    monkeypatch.setattr(skills, "_LENGTHS", dict.fromkeys(SKILLS, ((0.0, 64),)))
    monkeypatch.setattr(skills, "_TOKENS", 256)
    monkeypatch.setattr(skills, "dense_scores", lambda model, tasks: {task: {64: 0.5} for task in tasks})


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_tokens", [64, 128, 256, 512])
@pytest.mark.parametrize("skill", SKILLS)
def test_every_task_weighs_the_same_and_answers_nearly_all(skill, n_tokens, generator):
    n_sequences = 2048 // n_tokens
    tokens, weights = training_batch(skill, n_tokens, n_sequences, generator)
    assert tokens.shape == weights.shape == (n_sequences, n_tokens)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    each = weights.sum(1).view(len(SKILLS[skill]), -1).sum(1)
    assert each.tolist() == pytest.approx([1 / len(each)] * len(each), abs=1e-5)
    # Nothing is asked of the first token, which nothing precedes.
    assert weights[:, 0].eq(0).all()


@pytest.mark.parametrize("skill", SKILLS)
def test_batches_of_training_vary_in_their_number_of_questions(skill, generator):
    answers = set()
    for _ in range(20):
        _, weights = training_batch(skill, 128, 4, generator)
        answers.add(int((weights[0] > 0).sum()))
    assert (len(answers) > 3) == (skill == "tracing")


def test_rate_and_lengths_of_a_recipe(generator):
    recipe = Recipe("tracing", 32, 0)
    rates = [recipe.rate(step) for step in range(recipe.steps)]
    assert max(rates) == pytest.approx(recipe.learning_rate, rel=0.02)
    assert rates[0] < rates[50] < rates[99]
    assert rates[-1] == pytest.approx(recipe.learning_rate / 10, rel=0.01)
    assert {recipe.length(0, generator) for _ in range(20)} == {64}
    late = [recipe.length(recipe.steps - 1, generator) for _ in range(200)]
    assert set(late) == {64, 128, 256, 512}
    assert 50 < late.count(512) < 110  # two fifths


def test_recipes_that_differ_have_different_addresses():
    recipes = [
        tiny(),
        tiny(seed=1),
        tiny(width=64),
        tiny(steps=5),
        tiny(learning_rate=1e-3),
        tiny("counting"),
    ]
    assert len({recipe.address() for recipe in recipes}) == len(recipes)
    assert tiny().address() == tiny().address()
    with pytest.raises(ValueError, match="skill='sums'"):
        Recipe("sums", 32, 0)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(skills, "_TOKENS", 1024)
    recipe = tiny(steps=6)
    whole = Training(recipe, tmp_path / "whole.pt").run(quiet)
    first = Training(recipe, tmp_path / "parts.pt")
    first.run(quiet, until=3)
    second = Training(recipe, tmp_path / "parts.pt")
    assert second.step == 3
    resumed = second.run(quiet)
    assert second.seconds > first.seconds
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_training_learns(tmp_path, monkeypatch):
    """After a few steps the answers are likelier than those of the untrained model, and than chance."""
    monkeypatch.setattr(skills, "_TOKENS", 512)
    monkeypatch.setattr(skills, "_LENGTHS", dict.fromkeys(SKILLS, ((0.0, 64),)))

    def loss(model):
        batch = TASKS["chains"](8, 64, torch.Generator().manual_seed(9))
        scores = model(batch.tokens[:, :-1])[batch.weights[:, 1:] == ANSWER_WEIGHT]
        return float(torch.nn.functional.cross_entropy(scores, batch.answer.flatten()).detach())

    recipe = tiny(steps=40, warm_up=5, learning_rate=1e-2)
    model = Training(recipe, tmp_path / "state.pt").run(quiet)
    assert loss(model) < math.log(VOCABULARY) < loss(recipe.model())


def test_trainings_of_other_seeds_see_other_data_and_begin_elsewhere(tmp_path):
    one, other = (Training(tiny(seed=seed), tmp_path / f"{seed}.pt") for seed in (0, 1))
    drawn = [training_batch("tracing", 64, 4, each.generator)[0] for each in (one, other)]
    assert not torch.equal(*drawn)
    assert not torch.equal(one.model.embedding, other.model.embedding)


# --- judgement ----------------------------------------------------------------------------------------------


def test_dense_scores_tell_a_reader_that_knows_from_one_that_does_not():
    class Knowing(SmallTransformer):
        """Answers by looking the batch up."""

        def __init__(self, batches):
            super().__init__(VOCABULARY, 32, 1)
            self.answers = {one.prompt.numpy().tobytes(): one.answer for one in batches}

        def greedy(self, prompt, n_new, attention=None):
            return self.answers[prompt.numpy().tobytes()]

    batches = [TASKS[name](4, n, torch.Generator().manual_seed(-1 - n)) for name in TASKS for n in (64, 128)]
    known = dense_scores(Knowing(batches), TASKS, (64, 128), n_samples=4)
    assert known == {name: {64: 1.0, 128: 1.0} for name in TASKS}
    assert accepted(known)
    untrained = dense_scores(tiny().model(), TASKS, (64,), n_samples=4)
    assert max(row[64] for row in untrained.values()) < 0.3
    assert not accepted(untrained)


def test_acceptance_is_by_task_over_the_lengths():
    assert accepted({"counting": {128: 0.7, 256: 0.95}})
    assert not accepted({"counting": {128: 0.7, 256: 0.85}})
    assert not accepted({"retrieval": {128: 0.94}, "chains": {128: 1.0}})
    assert set(ACCEPTED) == set(TASKS)


# --- files --------------------------------------------------------------------------------------------------


def test_written_models_are_read_back(tmp_path):
    models = [
        made(tiny(skill, width), {SKILLS[skill][0]: {64: 0.25}}) for skill in SKILLS for width in (32, 64)
    ]
    write_models(tmp_path / "some.safetensors", models)
    back = read_models(tmp_path / "some.safetensors")
    assert set(back) == {one.recipe.key for one in models}
    for one in models:
        other = back[one.recipe.key]
        assert (other.recipe, other.scores, other.seconds) == (one.recipe, one.scores, one.seconds)
        assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())
        assert all(tensor.dtype == torch.float16 for tensor in other.weights.values())
        assert {weight.dtype for weight in other.model().parameters()} == {torch.float32}
        assert not any(weight.requires_grad for weight in other.model().parameters())


def test_weights_of_another_model_are_refused():
    small, large = made(tiny()), made(tiny(width=64))
    with pytest.raises(ValueError, match="other shapes than the model"):
        replace(large, weights=small.weights).model()
    deep = made(Recipe("tracing", 32, 0, n_layers=2, steps=1))
    with pytest.raises(ValueError, match="missing"):
        replace(deep, weights=small.weights).model()
    with pytest.raises(ValueError, match="unknown"):
        replace(small, weights=deep.weights).model()


def test_a_file_without_description_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"bare\.safetensors describes no models"):
        read_models(tmp_path / "bare.safetensors")


def test_models_shipped_by_another_recipe_are_refused(tmp_path, cache, short):
    write_models(tmp_path / "old.safetensors", [made(tiny(steps=99))])
    with pytest.raises(ValueError, match="tracing-width32-seed0 was shipped by another recipe"):
        trained([32], [0], report=quiet, shipped=tmp_path / "old.safetensors")


def test_what_is_not_shipped_is_trained_once(tmp_path, cache, short):
    lines = []
    nowhere = tmp_path / "nowhere.safetensors"
    first = trained([32], [0], report=lines.append, shipped=nowhere)
    assert set(first) == {("tracing", 32, 0), ("counting", 32, 0)}
    assert len(lines) == 2
    again = trained([32], [0], report=lines.append, shipped=nowhere)
    assert len(lines) == 2
    for key, one in first.items():
        assert again[key].scores == one.scores
        assert all(torch.equal(tensor, again[key].weights[name]) for name, tensor in one.weights.items())
    assert not list((cache / "training").iterdir())  # checkpoints are gone


def test_shipped_models_are_taken_before_any_training(tmp_path, cache, short):
    models = [made(Recipe(skill, 32, 0)) for skill in SKILLS]
    write_models(tmp_path / "shipped.safetensors", models)
    found = trained([32], [0], report=pytest.fail, shipped=tmp_path / "shipped.safetensors")
    assert all(torch.equal(found[one.recipe.key].weights["norm"], one.weights["norm"]) for one in models)


def test_the_command_line_trains_and_shows(cache, short, capsys):
    skills.main(["--widths", "32", "--seeds", "0", "1", "--skills", "counting"])
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == [f"counting-width32-seed{seed}" for seed in (0, 1)]
    assert "counting 64: 0.50; below the thresholds" in out[1]


def test_the_command_line_ships_what_is_shipped(tmp_path, cache, short, monkeypatch):
    (tmp_path / "book" / "attention").mkdir(parents=True)
    wanted = (("tracing", 32, 0), ("counting", 32, 0), ("tracing", 32, 1))
    monkeypatch.setattr(skills, "SHIPPED_MODELS", wanted)
    skills.main(["--ship"])
    assert set(read_models(tmp_path / "book" / skills.SHIPPED)) == set(wanted)
    found = trained([32], [1], skills=["tracing"], report=pytest.fail)
    assert set(found) == {("tracing", 32, 1)}


def test_train_judges_the_halved_weights(tmp_path, short):
    one = train(tiny(), tmp_path / "state.pt", quiet)
    full = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    assert all(torch.equal(tensor, full[name].half()) for name, tensor in one.weights.items())
    assert one.scores == {"retrieval": {64: 0.5}, "chains": {64: 0.5}}


# --- the pair as one reader ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader():
    return SkillReader({skill: tiny(skill, seed=place).model() for place, skill in enumerate(SKILLS)}).eval()


@pytest.mark.parametrize("task", TASKS)
def test_a_question_goes_to_the_model_that_learned_it(reader, task, generator):
    batch = TASKS[task](3, 64, generator)
    model, other = reader.of(task), reader.of("chains" if task == "counting" else "counting")
    assert model is not other
    assert torch.equal(reader(batch.tokens), model(batch.tokens))
    assert not torch.equal(reader(batch.tokens), other(batch.tokens))
    n = batch.answer.shape[1]
    assert torch.equal(reader.greedy(batch.prompt, n), model.greedy(batch.prompt, n))
    forced = reader.teacher_forced(batch.tokens, batch.answer_start)
    assert torch.equal(forced, model.teacher_forced(batch.tokens, batch.answer_start))
    assert torch.equal(reader.capture(batch.tokens).keys[0], model.capture(batch.tokens).keys[0])
    zeros = lambda q, k, v, layer: torch.zeros_like(q)  # noqa: E731
    assert torch.equal(reader(batch.tokens, zeros), model(batch.tokens, zeros))


def test_mixed_or_unknown_questions_are_refused(reader, generator):
    counting, chains = (TASKS[task](2, 64, generator).tokens for task in ("counting", "chains"))
    retrieval = TASKS["retrieval"](2, 64, generator).tokens
    reader(torch.cat([chains, retrieval]))  # one model has learned both
    with pytest.raises(ValueError, match="questions of one skill"):
        reader(torch.cat([chains, counting]))
    with pytest.raises(ValueError, match=r"tokens begin with \[20\]"):
        reader(torch.full((1, 5), 20))
    with pytest.raises(ValueError, match="task='sums'"):
        reader.of("sums")


# --- what is shipped ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return read_models(SHIPPED)


def test_the_shipped_file_is_small_and_complete(shipped):
    assert SHIPPED.stat().st_size <= 4_000_000
    assert set(shipped) == set(skills.SHIPPED_MODELS)
    assert all(one.recipe == Recipe(*key) for key, one in shipped.items())
    for one in shipped.values():
        assert set(one.scores) == set(SKILLS[one.recipe.skill])
        assert all(set(row) == set(skills.LENGTHS) for row in one.scores.values())
        json.dumps(one.described())


def test_models_that_chapters_draw_conclusions_from_read_well_enough(shipped):
    """Losses under sparse attention mean nothing in a model that cannot read densely."""
    tracing = [one for key, one in shipped.items() if key[:2] == ("tracing", 64)]
    assert len(tracing) == 8
    assert [one.recipe.name for one in tracing if not accepted(one.scores)] == []


@pytest.mark.parametrize(("width", "n_tokens"), [(32, 128), (64, 256)])
def test_shipped_models_answer_fresh_questions(width, n_tokens):
    """Questions of their own; recorded scores are met within what sampling allows."""
    reader = skill_models([width], [0], report=pytest.fail)[width, 0]
    known = trained([width], [0], report=pytest.fail)
    for skill, names in SKILLS.items():
        for task in names:
            batch = TASKS[task](16, n_tokens, torch.Generator().manual_seed(77))
            found = float(score(task, reader.greedy(batch.prompt, batch.answer.shape[1]), batch).mean())
            recorded = known[skill, width, 0].scores[task][n_tokens]
            # Three standard errors of the difference of two shares, of 16 and of 64 questions.
            spread = math.sqrt(max(recorded * (1 - recorded), 0.02) * (1 / 16 + 1 / 64))
            assert abs(found - recorded) < 3 * spread, (task, found, recorded)


@pytest.mark.parametrize("skill", SKILLS)
def test_shipped_models_repeat_their_recorded_scores(shipped, skill):
    one = shipped[skill, 32, 0]
    found = dense_scores(one.model(), SKILLS[skill], (128,))
    for task in SKILLS[skill]:
        # Sums in another order may turn an answer or two where two tokens are as likely.
        assert found[task][128] == pytest.approx(one.scores[task][128], abs=0.02)
