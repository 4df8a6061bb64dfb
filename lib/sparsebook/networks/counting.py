"""What a network costs: weights, multiplications and bytes, with and without masks.

>>> from torch import nn
>>> count_macs(nn.Linear(100, 10), (100,))
1000
>>> stored_bytes(1000, rows=10, columns=100, kept=100)
{'dense': 4000, 'bitmask': 525, 'csr': 844}
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsebook.networks.masks import prunable


def count_parameters(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> int:
    """Parameters of the model; of masked ones those that are kept.

    Raises
    ------
    ValueError
        Masks that name what is no parameter.
    """
    masks = dict(masks or {})
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    _check_names(masks, sizes)
    return sum(int(masks[name].sum()) if name in masks else size for name, size in sizes.items())


def layer_macs(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Multiply-accumulates of each linear and convolutional layer, by the name of its weight.

    Parameters
    ----------
    model
        It runs once, in evaluation mode and without gradients. A layer used twice counts twice; biases,
        normalisations and activations count nothing, as is usual.
    shape : of one input, without the batch
    """
    names = {id(weight): name for name, weight in prunable(model).items()}
    found = dict.fromkeys(names.values(), 0)

    def count(module: Any, _: Any, output: Tensor) -> None:
        places = output.numel() // output.shape[-1 if isinstance(module, nn.Linear) else 1]
        found[names[id(module.weight)]] += places * module.weight.numel()

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if id(getattr(module, "weight", None)) in names
    ]
    training = model.training
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()(torch.zeros((1, *shape), dtype=parameter.dtype, device=parameter.device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found


def count_macs(model: nn.Module, shape: tuple[int, ...], masks: Mapping[str, Tensor] | None = None) -> int:
    """Multiply-accumulates of one input; a masked layer needs them for its kept weights only.

    Raises
    ------
    ValueError
        Masks that name no linear or convolutional layer.
    """
    found, masks = layer_macs(model, shape), dict(masks or {})
    _check_names(masks, found)
    weights = prunable(model)
    return sum(
        macs * int(masks[name].sum()) // weights[name].numel() if name in masks else macs
        for name, macs in found.items()
    )


def stored_bytes(
    size: int, *, rows: int, columns: int, kept: int, value_bytes: int = 4, index_bytes: int = 4
) -> dict[str, int]:
    """Bytes of a matrix with `kept` non-zeros in three formats.

    ``dense`` keeps everything, ``bitmask`` the values and one bit for every place, ``csr`` the values with
    their columns and an offset for every row (and one more).

    Raises
    ------
    ValueError
        Sizes that do not fit together.
    """
    if size != rows * columns or not 0 <= kept <= size:
        raise ValueError(f"size={size}, rows={rows}, columns={columns}, kept={kept} do not fit together")
    return {
        "dense": size * value_bytes,
        "bitmask": kept * value_bytes + -(-size // 8),
        "csr": kept * (value_bytes + index_bytes) + (rows + 1) * index_bytes,
    }


def _check_names(masks: Mapping[str, Tensor], known: Mapping[str, Any]) -> None:
    if unknown := set(masks) - set(known):
        raise ValueError(f"masks name {sorted(unknown)}: expected some of {sorted(known)}")
