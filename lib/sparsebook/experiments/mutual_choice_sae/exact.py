"""What is exact: optimality by brute force, and two formulas as their programs have them, densely."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsebook.data.activations import shuffled, stream
from sparsebook.features.mutual_choice_sae import MutualChoiceSAE, allocate, aux_zipf_loss
from sparsebook.features.sae import TopKSAE
from sparsebook.features.trainer import TrainingOptions, train

# The optimum ----------------------------------------------------------------------------------------------


def every_mask(n_tokens: int, n_latents: int) -> Bool[np.ndarray, "masks tokens latents"]:
    """All masks of a small table."""
    bits = np.array(list(itertools.product((False, True), repeat=n_tokens * n_latents)))
    return bits.reshape(-1, n_tokens, n_latents)


def optimality(n: int = 100) -> list[float]:
    """Best sum over all masks that a rule allows, less that of our selection: `n` matrices, three rules."""
    found, masks = [], {shape: every_mask(*shape) for shape in ((2, 3), (3, 3), (3, 4))}
    for number in range(n):
        draw = np.random.default_rng(number)
        shape = list(masks)[number % len(masks)]
        # Ties and zeros are the cases in which a selection could go wrong.
        table = draw.integers(-1, 4, shape).astype(float) if number % 2 else draw.normal(size=shape)
        for rule, budget, per_feature in _problems(shape, draw):
            allowed = _allowed(masks[shape], rule, budget, per_feature)
            best = (allowed * np.maximum(table, 0)).sum((1, 2)).max()
            limits = None if per_feature is None else torch.from_numpy(per_feature)
            ours = allocate(torch.from_numpy(table), budget, rule, limits)
            found.append(float(best - ours.values.sum()))
    return found


def _problems(shape: tuple[int, int], draw: np.random.Generator) -> list[Any]:
    tokens, latents = shape
    per_feature = draw.integers(0, tokens + 1, latents)
    return [
        ("token", tokens * int(draw.integers(0, latents + 1)), None),
        ("feature", int(per_feature.sum()), per_feature),
        ("mutual", int(draw.integers(0, tokens * latents + 1)), None),
    ]


def _allowed(masks: np.ndarray, rule: str, budget: int, per_feature: np.ndarray | None) -> np.ndarray:
    fits = masks.sum((1, 2)) <= budget
    if rule == "token":
        fits &= (masks.sum(2) <= budget // masks.shape[1]).all(1)
    if per_feature is not None:
        fits &= (masks.sum(1) <= per_feature).all(1)
    return masks[fits]


# BatchTopK ------------------------------------------------------------------------------------------------


def dense_batchtopk(
    x: Float[Tensor, "tokens width"], parameters: Sequence[Tensor], k: int
) -> Float[Tensor, "tokens width"]:
    """As the BatchTopK program has it: relu, the largest of the flattened table, scatter, dense decoding."""
    encoder, decoder, encoder_bias, pre_bias = parameters
    offered = ((x - pre_bias) @ encoder.T + encoder_bias).relu()
    top = offered.flatten().topk(k * len(x))
    codes = torch.zeros_like(offered.flatten()).scatter(0, top.indices, top.values)
    return codes.view_as(offered) @ decoder + pre_bias


def against_batchtopk(n: int = 8, n_steps: int = 25, k: int = 3, cls: Any = MutualChoiceSAE) -> list[float]:
    """Largest difference of any parameter after a training of either, over the largest parameter."""
    options = TrainingOptions(n_steps, learning_rate=3e-3)
    found = []
    for seed in range(n):
        rows = torch.randn(600, 10, generator=stream(seed, 3), dtype=torch.float64)
        source = shuffled(rows, 60, seed)
        ours = cls(10, 30, k, seed=seed, dtype=torch.float64)
        start = cls(10, 30, k, seed=seed, dtype=torch.float64)
        names = ("encoder", "decoder", "encoder_bias", "pre_bias")
        dense = [getattr(start, name).detach().clone().requires_grad_() for name in names]
        optimiser = torch.optim.Adam(dense, options.learning_rate, options.betas, options.epsilon)
        for step in range(n_steps):
            _dense_step(source(step), dense, optimiser, k)
        train(ours, source, options)
        mine = [getattr(ours, name).detach() for name in names]
        gap = max(float((a - b.detach()).abs().max()) for a, b in zip(mine, dense, strict=True))
        found.append(gap / max(float(a.abs().max()) for a in mine))
    return found


def _dense_step(
    x: Float[Tensor, "tokens width"], dense: list[Tensor], optimiser: torch.optim.Optimizer, k: int
) -> None:
    """Normalised error, gradient along the rows removed, Adam, rows of length 1."""
    optimiser.zero_grad()
    error = (dense_batchtopk(x, dense, k) - x).square().sum() / (x - x.mean(0)).square().sum()
    error.backward()
    with torch.no_grad():
        decoder = dense[1]
        assert decoder.grad is not None
        decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
        optimiser.step()
        decoder /= decoder.norm(dim=1, keepdim=True)


# aux_k ----------------------------------------------------------------------------------------------------


def dense_aux_k(
    sae: TopKSAE, x: Float[Tensor, "tokens width"], dead: Bool[Tensor, " latents"], k_aux: int
) -> float:
    """As openai's program has it: pre-activations of live latents 0, top k_aux, relu, decode, NMSE."""
    with torch.no_grad():
        output = sae(x)
        residual = x - output.reconstruction
        assert output.pre_activations is not None
        top = (output.pre_activations * dead).topk(k_aux, dim=-1)
        codes = torch.zeros_like(output.pre_activations).scatter(-1, top.indices, top.values.relu())
        error = (codes @ sae.decoder - residual).square().mean()
        return float(error / (residual - residual.mean(0)).square().mean())


def against_aux_k(n: int = 8, k_aux: int = 4) -> list[float]:
    """Relative difference of `aux_zipf` with the dead as deficits from the dense `aux_k`."""
    found = []
    for seed in range(n):
        draw = stream(seed, 4)
        sae = TopKSAE(10, 30, 3, seed=seed, dtype=torch.float64)
        x = torch.randn(50, 10, generator=draw, dtype=torch.float64)
        dead = torch.rand(30, generator=draw) < 0.4
        ours = float(aux_zipf_loss(sae, x, sae(x), dead.double(), k_aux).detach())
        dense = dense_aux_k(sae, x, dead, k_aux)
        found.append(abs(ours - dense) / dense)
    return found
