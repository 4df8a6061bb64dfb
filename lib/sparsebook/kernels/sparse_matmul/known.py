"""What is known of a sparse tensor since its last product, so that a small one need not be asked again.

A product of few microseconds is as short as the questions that come before it: layout, types, shapes, where
the lists lie, how the work is divided. None of it changes while a tensor stays the same, so it is kept beside
it, as long as the tensor lives. What the lists *say* may change at any time and is looked at in every call.
"""

import weakref

import torch
from torch import Tensor

from sparsebook.kernels.sparse_matmul.cpu import FAST, Matrix

PLAIN = (Tensor, torch.nn.Parameter)
"""Types of tensor that hold numbers; others may stand for some that do not exist yet."""


class Known:
    """A sparse tensor on a CPU, in a type that the compiled products take."""

    def __init__(self, weights: Tensor, lists: tuple[Tensor, Tensor, Tensor]) -> None:
        key = id(weights)
        self.weights = weakref.ref(weights, lambda _: _known.pop(key, None))
        self.matrix = Matrix(*lists, weights.shape[1])
        # The memory and not the tensors: these would keep the weights alive, whose views they are.
        self.memory = [x.untyped_storage() for x in lists]
        self.address = lists[0].data_ptr()

    def takes(self, x: Tensor, bias: Tensor | None) -> bool:
        """Whether nothing but to multiply is left to do: all fits, and no gradient is wanted."""
        gradient = torch.is_grad_enabled()
        if bias is not None and not (
            type(bias) in PLAIN
            and bias.dtype is torch.float32
            and bias.shape == (self.matrix.rows,)
            and bias.is_cpu
            and bias.is_contiguous()
            and not (gradient and bias.requires_grad)
        ):
            return False
        return (
            type(x) in PLAIN
            and x.dtype is self.matrix.dtype
            and x.ndim == 2
            and x.shape[0] == self.matrix.sources
            and x.is_cpu
            and x.is_contiguous()
            and not (gradient and x.requires_grad)
        )


_known: dict[int, Known] = {}


def recall(weights: Tensor) -> Known | None:
    """What is known of the tensor as it is now."""
    found = _known.get(id(weights))
    if found is None or torch.compiler.is_compiling() or (torch.is_grad_enabled() and weights.requires_grad):
        return None
    # Its memory may have been exchanged; what was here before is kept, so that no other lies at its address.
    if found.weights() is not weights or weights.values().data_ptr() != found.address:
        return None
    return found


def remember(weights: Tensor, lists: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep what is known of a tensor whose lists were found to fit together."""
    plain = type(weights) in PLAIN and not torch.compiler.is_compiling()
    if plain and lists[0].dtype in FAST and all(x.is_cpu and x.is_contiguous() for x in lists):
        _known[id(weights)] = Known(weights, lists)
