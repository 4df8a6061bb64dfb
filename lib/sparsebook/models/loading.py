"""Opening third-party weights safely: optional packages, plain tensors, keys that all match."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsebook.files import missing_package


def optional(module: str, distribution: str) -> Any:
    """Import a module of an optional package.

    Parameters
    ----------
    module : dotted name, for example ``"kornia.feature"``
    distribution : the package's name for pip

    Raises
    ------
    MissingInput : the package is not installed; the message names the extra that brings it
    """
    if find_spec(module.partition(".")[0]) is None:
        raise missing_package(distribution)
    return import_module(module)


@contextmanager
def hub_offline() -> Iterator[None]:
    """Within this block Hugging Face's libraries refuse to open a connection; afterwards all is as before.

    The library looks at ``HF_HUB_OFFLINE`` once, when it is imported, hence the constant beside the variable.
    """
    constants = optional("huggingface_hub.constants", "huggingface-hub")
    variable, constant = os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE
    os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE = "1", True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = constant
        if variable is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = variable


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A PyTorch checkpoint as tensors on the CPU; one that holds any other object is refused by torch."""
    return torch.load(path, map_location="cpu", weights_only=True)


def fill(network: nn.Module, state: Mapping[str, torch.Tensor], computed: tuple[str, ...] = ()) -> None:
    """Give a network its weights, refusing anything left over on either side.

    Parameters
    ----------
    network : changed in place
    state : name -> tensor
    computed : buffers that the constructor computes and that the checkpoint therefore need not carry

    Raises
    ------
    ValueError : a weight is missing or is not known to the network
    """
    left = network.load_state_dict(dict(state), strict=False)
    missing = [name for name in left.missing_keys if name not in computed]
    if missing or left.unexpected_keys:
        raise ValueError(
            f"state does not fit {type(network).__name__}: missing {missing}, unknown "
            f"{left.unexpected_keys}; "
            "expected exactly the network's weights (is another version of the architecture installed?)"
        )


def ready(network: nn.Module, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
    """A network on its device, in its dtype, set for inference, its weights frozen.

    With frozen weights no graph is kept unless the caller's own tensors ask for gradients.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype}: expected a floating point type such as torch.float32")
    return network.to(device=device, dtype=dtype).eval().requires_grad_(False)
