"""The experiments: each returns a tidy table (experiment, method, seed, metric, value, unit, its knobs)."""

import copy
import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from sparsebook.data.photographs import photograph
from sparsebook.evaluation.timing import in_processes
from sparsebook.experiments.fast_sparse_convnets import speed
from sparsebook.experiments.fast_sparse_convnets.imagenet import ImageNet
from sparsebook.experiments.fast_sparse_convnets.scales import Config
from sparsebook.experiments.fast_sparse_convnets.training import (
    Arm,
    Patches,
    Task,
    accuracy,
    answers_of,
    move_weights,
    train,
)
from sparsebook.models.efficientnet import EfficientNetLite0
from sparsebook.networks.fast_sparse_convnets import pointwise, rewritten

SLUG = "fast_sparse_convnets"
TIMED_PROCESSES_HERE = 5
"""How often everything is timed in this process where no others are asked for."""
Stages = dict[str, Callable[[], pd.DataFrame]]


def run(config: Config, stages: Stages, experiment: str) -> pd.DataFrame:
    """All stages of an experiment; at full and paper scale each is kept, so that a run can be resumed."""
    if config.scale in ("full", "paper"):
        from sparsebook.recorded import run_stages

        return run_stages(SLUG, experiment, stages, parameters=config.record())
    return pd.concat([compute() for compute in stages.values()], ignore_index=True)


def tidy(
    experiment: str, method: str, seed: int, metrics: Mapping[str, tuple[float, str]], **where: Any
) -> list[dict[str, Any]]:
    """Rows of a tidy table: one for each metric, given as (value, unit)."""
    head = {"experiment": experiment, "method": method, "seed": seed}
    return [
        head | {"metric": name, "value": float(value), "unit": unit} | where
        for name, (value, unit) in metrics.items()
    ]


# Times ---------------------------------------------------------------------------------------------------


def run_times(config: Config, over: int = 1) -> pd.DataFrame:
    """Every time, once in each of several processes, on one thread; the seed is the process.

    With `over`, what the claims favour runs that often for one time: the control.
    """
    stages: Stages = {
        f"process {number}": partial(_times, config, number, over)
        for number in range(config.processes or TIMED_PROCESSES_HERE)
    }
    return run(config, stages, "times")


def _times(config: Config, number: int, over: int) -> pd.DataFrame:
    given = vars(config) | {"seed": number}
    if config.processes == 0:
        from sparsebook.evaluation.machine import threads

        # What exists already need not be looked through by the collector before every comparison.
        gc.freeze()
        try:
            with threads(1):
                return pd.DataFrame(speed.speed_once(given, over))
        finally:
            gc.unfreeze()
    target = "sparsebook.experiments.fast_sparse_convnets.speed:speed_once"
    (rows,) = in_processes(target, {"given": given, "over": over}, 1, threads=1)
    return pd.DataFrame(rows)


# Accuracy ------------------------------------------------------------------------------------------------


def run_accuracy(config: Config) -> pd.DataFrame:
    """Every network with every seed: accuracy, also with weights moved, and as the pipeline runs it."""
    stages: Stages = {
        f"seed {seed} {arm.name}": partial(_train_and_test, config, arm, seed)
        for seed in config.seeds
        for arm in speed.arms(config)
    }
    return run(config, stages, "accuracy")


def task_of(config: Config, seed: int) -> Task:
    """Patches of photographs, or ImageNet where its folder is given."""
    if config.imagenet is None:
        return Patches(seed, config.most_tested)
    return ImageNet(Path(config.imagenet), config.pixels)


def _train_and_test(config: Config, arm: Arm, seed: int) -> pd.DataFrame:
    task = task_of(config, seed)
    model = train(arm, seed, config, task)
    return pd.DataFrame(tidy("accuracy", arm.name, seed, tested(model, arm, seed, task), **knobs(arm)))


def knobs(arm: Arm) -> dict[str, Any]:
    """What names an arm in a table."""
    return {"width": arm.width, "sparsity": arm.sparsity, "block": arm.block}


def tested(model: nn.Module, arm: Arm, seed: int, task: Task) -> dict[str, tuple[float, str]]:
    """What is measured of a trained network."""
    images, labels = task.test()
    given = answers_of(model, images)
    fast = rewritten(model, "sparse" if arm.sparsity else "dense")[0]
    moved = copy.deepcopy(model)
    move_weights(moved, seed)
    weights = sum(int((layer.weight != 0).sum()) for layer in pointwise(model).values())
    return {
        "accuracy": (accuracy(given, labels), "fraction"),
        "moved": (accuracy(answers_of(moved, images), labels), "fraction"),
        "same": (float((answers_of(fast, images) == given).double().mean()), "fraction"),
        "weights": (weights, "weights"),
    }


def run_live(config: Config) -> pd.DataFrame:
    """Two of the networks trained once more, with a seed of their own."""
    dense, pruned = Arm(config.widths[0]), Arm(config.sparse_widths[0], config.sparsity)
    return pd.concat(
        [_train_and_test(config, arm, config.live) for arm in (dense, pruned)], ignore_index=True
    )


# Checks --------------------------------------------------------------------------------------------------


def run_checks(config: Config) -> pd.DataFrame:
    """What is exact: the rewritten network's logits; except at smoke, what the compiler made of the loops."""
    found = tidy("checks", "EfficientNet-Lite0", 0, {"difference": (logit_difference(config), "fraction")})
    if config.scale != "smoke":
        for job, counted in speed.multiply_adds().items():
            metrics = {name: (count, "instructions") for name, count in counted.items()}
            found += tidy("checks", f"machine code, {job}", 0, metrics)
    return pd.DataFrame(found)


def logit_difference(config: Config) -> float:
    """Largest difference of a logit over the largest one: nothing pruned, all products sparse, a cat."""
    model = EfficientNetLite0.load()
    image = model.preprocess(photograph("chelsea").pixels, config.pixels)
    with torch.inference_mode():
        expected, given = model.network(image), rewritten(model.network, "sparse")[0](image)
    return float((given - expected).abs().max() / expected.abs().max())


def fingerprint() -> list[float]:
    """Some logits of a network after a few steps of training and pruning, in PyTorch and rewritten."""
    from sparsebook.evaluation.machine import threads

    config = Config.at("smoke", train_steps=2, train_batch=16)
    task = Patches(0, 8)
    with threads(1):  # the order of sums depends on the number of threads
        model = train(Arm(0.5, 0.9), 0, config, task)
    images = task.test()[0][:2]
    with threads(1), torch.inference_mode():
        both: Sequence[torch.Tensor] = (model(images), rewritten(model, "sparse")[0](images))
    return [value for logits in both for value in logits[:, :4].flatten().tolist()]
