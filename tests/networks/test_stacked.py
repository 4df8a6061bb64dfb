"""Stacked networks compute and learn what each of them would alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sparsebook.models.cifar_resnet import CifarResNet
from sparsebook.networks.masks import SparsityMask, prunable, random_masks
from sparsebook.networks.stacked import (
    SGDOptions,
    Stacked,
    stacked_logits,
    stacked_loss,
    stacked_masks,
    train_stacked,
)


def perceptrons(n=3):
    torch.manual_seed(1)
    return [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(n)]


def normalised(n=3):
    torch.manual_seed(3)
    return [
        nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        for _ in range(n)
    ]


def resnets(n=3):
    torch.manual_seed(2)
    return [CifarResNet(8, 4, 4, 2) for _ in range(n)]


def masks_of(models):
    shapes = {name: tuple(w.shape) for name, w in prunable(models[0]).items()}
    return [random_masks(shapes, dict.fromkeys(shapes, 0.3), seed) for seed in range(len(models))]


def alone(model, x, y, rows, options, seed, masks):
    """The same training, one network, written without any of the stack's code."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(
        model.parameters(), options.rate, options.momentum, weight_decay=options.weight_decay, nesterov=True
    )
    if masks:
        SparsityMask(model, masks).attach(optimizer)
    per_epoch = len(rows) // options.batch
    for step in range(options.epochs * per_epoch):
        epoch, place = divmod(step, per_epoch)
        chance = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        order = rows[torch.randperm(len(rows), generator=chance)]
        chosen = order[place * options.batch : (place + 1) * options.batch]
        share = step / (options.epochs * per_epoch)
        optimizer.param_groups[0]["lr"] = options.rate * (1 if share < 0.5 else 0.1 if share < 0.75 else 0.01)
        optimizer.zero_grad()
        cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("make", "shape"), [(perceptrons, (6,)), (normalised, (6,)), (resnets, (2, 8, 8))])
@pytest.mark.parametrize("masked", [False, True])
def test_training_a_stack_is_training_each(make, shape, masked):
    models, chance = make(), torch.Generator().manual_seed(0)
    x = torch.randn(60, *shape, generator=chance, dtype=torch.float64)
    y = torch.randint(4, (60,), generator=chance)
    models = [model.double() for model in models]
    rows = torch.stack([torch.randperm(60, generator=chance)[:50] for _ in models])
    options = SGDOptions(epochs=10, batch=10, rate=0.05)
    own = masks_of(models)
    stack = Stacked(models)
    train_stacked(stack, x, y, rows, options, [4, 4, 5], stacked_masks(own) if masked else None)
    logits = stacked_logits(stack, x.expand(3, *x.shape), batch=16)
    for index, (model, seed) in enumerate(zip(models, [4, 4, 5], strict=True)):
        single = alone(model, x, y, rows[index], options, seed, own[index] if masked else None)
        torch.testing.assert_close(logits[index], single(x), rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(stack.model(index).eval()(x), single(x), rtol=1e-7, atol=1e-8)
        if masked:
            for name, weight in stack.prunable().items():
                gone = weight[index][~own[index][name]]
                assert bool((gone == 0).all())
                assert not bool(gone.signbit().any())
    assert (logits[0] - logits[2]).abs().max() > 1e-3


def test_a_stack_of_float32_agrees_too():
    models = perceptrons()
    x, y = torch.randn(60, 6), torch.randint(4, (60,))
    rows, options = torch.arange(60).expand(3, -1), SGDOptions(epochs=8, batch=10)
    stack = Stacked(models)
    train_stacked(stack, x, y, rows, options, [1, 2, 3])
    for index, model in enumerate(models):
        single = alone(model, x, y, rows[index], options, index + 1, None)
        torch.testing.assert_close(stack.model(index)(x), single(x), rtol=1e-4, atol=1e-4)


def test_other_layers_of_a_stack():
    torch.manual_seed(0)
    models = [
        nn.Sequential(nn.Conv2d(3, 4, 3, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5, bias=False))
        for _ in range(2)
    ]
    x = torch.randn(2, 7, 3, 8, 8)
    expected = torch.stack([model(one) for model, one in zip(models, x, strict=True)])
    torch.testing.assert_close(Stacked(models)(x), expected, rtol=1e-5, atol=1e-5)


def test_the_loss_keeps_networks_apart():
    logits, labels = torch.randn(2, 5, 3), torch.randint(3, (2, 5))
    expected = torch.stack([cross_entropy(a, b) for a, b in zip(logits, labels, strict=True)])
    torch.testing.assert_close(stacked_loss(logits, labels), expected)


def test_an_augmentation_sees_every_batch():
    seen = []

    def note(batch, chance):
        seen.append(tuple(batch.shape))
        return batch

    rows = torch.arange(20).expand(3, -1)
    x, y = torch.randn(20, 6), torch.zeros(20, dtype=torch.int64)
    train_stacked(Stacked(perceptrons()), x, y, rows, SGDOptions(2, 5), range(3), n_steps=3, augment=note)
    assert seen == [(3, 5, 6)] * 3


def test_what_cannot_be_stacked_is_refused():
    with pytest.raises(ValueError, match="models is empty"):
        Stacked([])
    with pytest.raises(ValueError, match="differ"):
        Stacked([nn.Linear(3, 4), nn.Linear(3, 5)])
    with pytest.raises(ValueError, match="LayerNorm has parameters"):
        Stacked([nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))])
    with pytest.raises(ValueError, match="padding_mode='reflect'"):
        Stacked([nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")])
    with pytest.raises(ValueError, match="running statistics"):
        Stacked([nn.BatchNorm2d(3, affine=False)])
    with pytest.raises(ValueError, match="BatchNorm1d: expected one with weights"):
        Stacked([nn.BatchNorm1d(3, track_running_stats=False)])
    stack = Stacked(perceptrons())
    with pytest.raises(ValueError, match="a batch for each of 3"):
        stack(torch.randn(2, 5, 6))
    x, y = torch.randn(20, 6), torch.zeros(20, dtype=torch.int64)
    with pytest.raises(ValueError, match="2 seeds, 3 lists"):
        train_stacked(stack, x, y, torch.arange(20).expand(3, -1), SGDOptions(1, 5), [1, 2])
    with pytest.raises(ValueError, match="fewer than a batch"):
        train_stacked(stack, x, y, torch.arange(20).expand(3, -1), SGDOptions(1, 50), [1, 2, 3])
    with pytest.raises(ValueError, match="expected at least 1, 1, above 0"):
        SGDOptions(epochs=0)
    with pytest.raises(ValueError, match="the same layers"):
        stacked_masks([{"a": torch.ones(1)}, {"b": torch.ones(1)}])
