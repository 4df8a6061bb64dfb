"""The autoencoders that are compared on activations and in made-up worlds, and how they are trained."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsebook.data.activations import BatchSource
from sparsebook.features.codes import Codes, DenseCodes
from sparsebook.features.matching_pursuit_sae import MatchingPursuitSAE
from sparsebook.features.metrics import normalized_mse
from sparsebook.features.sae import BatchTopKSAE, ReLUSAE, SparseAutoencoder, TopKSAE
from sparsebook.features.trainer import AdaptiveL1Controller, AuxK, Trainer, TrainingOptions, TrainingRule
from sparsebook.kernels.pursuit import PursuitCodes

ARMS = ("mp", "relu", "topk", "batch_topk")


class OneShot(MatchingPursuitSAE):
    """The control: the residual is not updated, all steps take the largest products with the input itself."""

    def _pursued(self, x: Tensor, n_steps: int | None = None, return_path: bool = False) -> PursuitCodes:
        n = min(n_steps or self.n_steps or 1, self.n_latents)
        products, indices = (x @ self.dictionary.mT).topk(n, dim=-1)
        codes = torch.zeros(*products.shape[:-1], self.n_latents, dtype=x.dtype, device=x.device)
        codes = codes.scatter(-1, indices, products)
        return PursuitCodes(indices, products, x - codes @ self.dictionary, self.n_latents)


def autoencoder(method: str, width: int, n_latents: int, k: int, seeds: Sequence[int]) -> SparseAutoencoder:
    """One model for each seed, with `k` latents a token."""
    if method == "mp":
        return MatchingPursuitSAE(
            width, n_latents, n_steps=k, nonnegative=False, initial="uniform", seeds=seeds
        )
    if method == "topk":
        return TopKSAE(width, n_latents, k, seeds=seeds)
    if method == "batch_topk":
        return BatchTopKSAE(width, n_latents, k, seeds=seeds)
    return ReLUSAE(width, n_latents, 0.03, seeds=seeds)


def trained(
    method: str,
    width: int,
    n_latents: int,
    k: int,
    seeds: Sequence[int],
    batches: BatchSource,
    *,
    steps: int,
    rate: float,
    device: str = "cpu",
    sabotage: str = "",
) -> SparseAutoencoder:
    """An autoencoder after so many steps with unit atoms; the usual help for dead latents where it exists."""
    sae = autoencoder(method, width, n_latents, k, seeds).to(device)
    rules: list[TrainingRule] = []
    if method in ("topk", "batch_topk"):
        rules = [AuxK(k_aux=min(64, n_latents))]
    elif method == "relu":
        rules = [AdaptiveL1Controller(k, gain=0.05)]
    options = TrainingOptions(
        n_steps=steps, learning_rate=rate, warmup=steps // 20, decay=0.3, clip_norm=1.0, log_every=10**9
    )
    trainer = Trainer(sae, options, rules)
    for step in range(0 if sabotage == "untrained" and method == "mp" else steps):
        trainer.step(batches(step))
    if sabotage == "no residual" and method == "mp":
        broken = OneShot(width, n_latents, n_steps=k, nonnegative=False, seeds=seeds).to(device)
        broken.load_state_dict(sae.state_dict())
        return broken
    return sae


@torch.no_grad()
def codes_at(sae: SparseAutoencoder, x: Tensor, k: int | None = None) -> Codes:
    """Codes with another number of latents at inference; ReLU keeps its `k` largest codes."""
    if k is None:
        return sae.encode(x)
    if isinstance(sae, MatchingPursuitSAE):
        return sae.encode(x, n_steps=k)
    if isinstance(sae, TopKSAE | BatchTopKSAE):
        trained_with: Any = sae.k
        try:
            sae.k = min(k, sae.n_latents)
            return sae.encode(x)
        finally:
            sae.k = trained_with
    codes = sae.encode(x).dense()
    largest = codes.topk(min(k, sae.n_latents), dim=-1)
    return DenseCodes(torch.zeros_like(codes).scatter(-1, largest.indices, largest.values))


@torch.no_grad()
def error_at(sae: SparseAutoencoder, x: Tensor, k: int | None = None) -> Tensor:
    """Normalised squared error on some tokens, one number a model."""
    return normalized_mse(x, sae.decode(codes_at(sae, x, k)))
