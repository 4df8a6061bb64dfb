"""Scores of single weights: which are worth keeping. Larger is more worth keeping, everywhere.

=============  ==========================================================================================
score          of a weight w with gradient g = dL/dw
=============  ==========================================================================================
magnitude      abs(w)
random         a uniform number
sensitivity    abs(w g), "SNIP": Lee et al. 2019 (arXiv 1810.02340)
grasp          w (H g), less than 0 where removing the weight helps the flow: Wang et al. 2020 (arXiv
               2002.07376); they remove the largest of -w (H g)
synflow        w dR/dw of R = sum of the outputs for an input of ones and weights abs(w): Tanaka et al. 2020
               (arXiv 2006.05467)
movement       minus the sum of w g over the steps: Sanh et al. 2020 (arXiv 2005.07683)
=============  ==========================================================================================

The functions look at the weights of linear and convolutional layers (`masks.prunable`) and leave the model
as it was. `densities.density_of_scores` and `masks.masks_of_scores` make densities and masks of it.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsebook.networks.masks import masks_of_scores, prunable

Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]
Scores = dict[str, Tensor]


def magnitude_scores(model: nn.Module) -> Scores:
    """The absolute values of the weights."""
    return {name: weight.detach().abs() for name, weight in prunable(model).items()}


def random_scores(model: nn.Module, *, generator: torch.Generator) -> Scores:
    """Uniform numbers."""
    return {
        name: torch.rand(weight.shape, generator=generator).to(weight)
        for name, weight in prunable(model).items()
    }


def connection_sensitivity(
    model: nn.Module, loss: Loss, batches: Batches, *, redraw: torch.Generator | None = None
) -> Scores:
    """What the loss would notice of a weight's removal, to first order: abs(w g), summed over the batches.

    Parameters
    ----------
    model
    loss : of (outputs, targets), one number
    batches : pairs of inputs and targets; the published method takes one
    redraw : torch.Generator, optional
        Score a copy whose weights are drawn anew (Xavier, normal), as Liu et al. 2022 do for their ratio.

    Raises
    ------
    ValueError
        No batches.
    """
    if redraw is not None:
        model = copy.deepcopy(model)
        for weight in prunable(model).values():
            nn.init.xavier_normal_(weight, generator=redraw)
    weights = prunable(model)
    with _as_it_was(model):
        gradients = _gradients(model, loss, batches, weights)
    return {name: (weights[name].detach() * g).abs() for name, g in gradients.items()}


def grasp_scores(
    model: nn.Module, loss: Loss, batches: Batches, *, temperature: float | int = 200.0
) -> Scores:
    """How much a weight adds to the gradient's flow: w (H g), with outputs divided by the temperature.

    Parameters
    ----------
    model, loss, batches
        As in `connection_sensitivity`. The gradient g is summed over the batches and then held constant.
    temperature : float
        Of the outputs; evens out what a network at initialisation says.

    Raises
    ------
    ValueError
        No batches, or a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected above 0")
    weights, batches = prunable(model), list(batches)

    def cooled(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs / temperature, targets)

    with _as_it_was(model):
        flow = _gradients(model, cooled, batches, weights)
        found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for x, y in batches:
            value = cooled(model(x), y)
            own = torch.autograd.grad(value, list(weights.values()), create_graph=True)
            parts = [(g * flow[name]).sum() for name, g in zip(weights, own, strict=True)]
            second = torch.autograd.grad(torch.stack(parts).sum(), list(weights.values()))
            for name, h in zip(weights, second, strict=True):
                found[name] += h
    return {name: weights[name].detach() * h for name, h in found.items()}


def synflow_scores(
    model: nn.Module, shape: tuple[int, ...], *, density: float | int | None = None, rounds: int = 100
) -> Scores:
    """Synaptic flow, without data.

    Parameters
    ----------
    model : judged in evaluation mode
    shape : of one input, without the batch
    density : float in (0, 1], optional
        Prune down to it in `rounds` steps of equal ratio, each with the flow that the ones before have left;
        pruned weights then score less than 0, earlier ones lower. None scores once.
    rounds : int

    Raises
    ------
    ValueError
        A density outside (0, 1] or fewer than one round.
    """
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"density={density}: expected more than 0 and at most 1")
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: expected at least 1")
    # float64: the flow is a product over the layers and leaves float32 behind in deep networks.
    twin = copy.deepcopy(model).double().eval()
    ones = torch.ones((1, *shape), dtype=torch.float64, device=next(model.parameters()).device)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.abs_()
    weights = prunable(twin)
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    found: Scores = {}
    for step in range(1, rounds + 1 if density is not None else 2):
        flows = torch.autograd.grad(twin(ones).sum(), list(weights.values()))
        for (name, weight), flow in zip(weights.items(), flows, strict=True):
            score = weight.detach() * flow
            found[name] = torch.where(kept[name], score, found.get(name, score))
        if density is not None:
            kept = masks_of_scores(found, density ** (step / rounds))
            for name, weight in weights.items():
                found[name] = torch.where(
                    kept[name] | (found[name] < 0), found[name], float(step - rounds - 1)
                )
                weight.detach().masked_fill_(~kept[name], 0)
    return {name: score.to(prunable(model)[name]) for name, score in found.items()}


class MovementScores:
    """Sums of -w g while a model trains: weights that move away from 0 score high.

    Call `observe` after every backward pass, before the optimiser's step.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = dict(weights)
        self.scores: Scores = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    @torch.no_grad()
    def observe(self) -> None:
        """Take in the present gradients.

        Raises
        ------
        ValueError
            If a weight has none.
        """
        for name, weight in self._weights.items():
            if weight.grad is None:
                raise ValueError(f"{name} has no gradient: call observe after backward")
            self.scores[name] -= weight * weight.grad


def gradient_norms(
    model: nn.Module, loss: Loss, batches: Batches, masks: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """Squared norm of every layer's gradient at the weights that are kept, mean over the batches.

    Pruned weights are taken as 0 (the model is left as it was). Liu et al. 2022 relate its sum at
    initialisation, the effective gradient flow, to what a pruned network will reach.

    Raises
    ------
    ValueError
        No batches.
    """
    weights, batches = prunable(model), list(batches)
    found = dict.fromkeys(weights, 0.0)
    with _as_it_was(model), torch.no_grad():
        if masks is not None:
            for name, mask in masks.items():
                weights[name].masked_fill_(~mask, 0)
        for batch in batches:
            with torch.enable_grad():
                gradients = _gradients(model, loss, [batch], weights)
            for name, g in gradients.items():
                own = g if masks is None or name not in masks else g * masks[name]
                found[name] += float(own.double().square().sum()) / len(batches)
    if not batches:
        raise ValueError("batches is empty: expected at least one")
    return found


def _gradients(
    model: nn.Module, loss: Loss, batches: Batches, weights: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, "*shape"]]:
    found: dict[str, Tensor] = {}
    for x, y in batches:
        gradients = torch.autograd.grad(loss(model(x), y), list(weights.values()))
        for name, g in zip(weights, gradients, strict=True):
            found[name] = found[name] + g if name in found else g
    if not found:
        raise ValueError("batches is empty: expected at least one")
    return found


@contextmanager
def _as_it_was(model: nn.Module) -> Any:
    """Parameters and buffers (running statistics) come back, whatever happens inside."""
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(kept)
