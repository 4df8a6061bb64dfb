"""Other people's packages that the chapter measures itself against; each may be missing.

They are no dependency of the book. Install them, or unpack their wheels into a folder on PYTHONPATH::

    pip install overcomplete==0.3.0 sae-lens==6.54.12 scikit-learn

What these packages import at their top, and what a pursuit or a training step never touches (torchvision,
data sets, language models), need not be there: then their modules are loaded without the package's own
``__init__``, and the two classes of ``transformer_lens`` that SAELens derives from are replaced by ones that
do nothing, which can only make SAELens faster.
"""

import importlib
import importlib.util
import logging
import sys
import types
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

NEEDED = {"pursuit": ("overcomplete", "scikit-learn"), "training": ("sae-lens",)}
"""The distributions without which an experiment is not worth a record."""
_MODULES = {"scikit-learn": "sklearn", "sae-lens": "sae_lens"}


def missing(experiment: str) -> list[str]:
    """The peers of an experiment that cannot be found."""
    needed = NEEDED.get(experiment, ())
    return [name for name in needed if importlib.util.find_spec(_MODULES.get(name, name)) is None]


def versions(experiment: str) -> dict[str, str]:
    """The installed version of each of an experiment's peers."""
    return {name: _version(name) for name in NEEDED.get(experiment, ()) if name not in missing(experiment)}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def overcomplete_encoder(dictionary: Tensor, n_steps: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """`MpSAE.encode` with this dictionary: x -> (residual, dense codes).

    Raises
    ------
    ImportError
        Where `overcomplete` is not installed.
    """
    sae = _module("overcomplete.sae.mp_sae", _bare_overcomplete).MpSAE(
        dictionary.shape[1], len(dictionary), k=n_steps
    )
    with torch.no_grad():
        sae.dictionary._weights.copy_(dictionary)
    sae.eval()

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return sae.encode(x)

    return encode


def sae_lens_step(x: Tensor, n_latents: int, k: int, sparse: bool) -> Callable[[], object]:
    """One training step of SAELens' TopK autoencoder: the calls of ``SAETrainer._train_step``.

    `sparse` takes its sparse activations. Their product cannot be differentiated on a CPU while SAELens
    weighs codes by the lengths of the decoder's rows (its default), so this form goes without: less work.

    Raises
    ------
    ImportError
        Where `sae_lens` is not installed.
    """
    topk = _module("sae_lens.saes.topk_sae", _bare_sae_lens)
    step_input = sys.modules["sae_lens.saes.sae"].TrainStepInput
    knobs = {"d_in": x.shape[1], "d_sae": n_latents, "k": k, "use_sparse_activations": sparse,
             "rescale_acts_by_decoder_norm": not sparse}  # fmt: skip
    sae = topk.TopKTrainingSAE(topk.TopKTrainingSAEConfig(**knobs))
    optimiser = torch.optim.Adam(sae.parameters(), lr=3e-4, betas=(0.9, 0.99))
    silent, scores = torch.zeros(n_latents), torch.zeros(n_latents)

    def step() -> None:
        output = sae.training_forward_pass(
            step_input(
                sae_in=x,
                dead_neuron_mask=silent > 1000,
                coefficients={},
                n_training_steps=0,
                is_logging_step=False,
            )
        )
        with torch.no_grad():
            fired = output.feature_acts.bool().float()
            did_fire = fired.sum(-2).bool()
            silent.add_(1)[did_fire.to_dense() if did_fire.is_sparse else did_fire] = 0
            scores.add_(fired.sum(0))
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step


# Packages without what they import -----------------------------------------------------------------------


def _module(name: str, make_bare: Callable[[], None]) -> Any:
    """A module of a peer; if the peer's own imports fail, without its packages' ``__init__``."""
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError:
        if importlib.util.find_spec(package) is None:
            raise
    for loaded in [module for module in sys.modules if f"{module}.".startswith(f"{package}.")]:
        del sys.modules[loaded]
    make_bare()
    return importlib.import_module(name)


def _bare(name: str, **contents: Any) -> None:
    """A package whose ``__init__`` is not run, with a few names instead."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(f"no package {name}")
    package = types.ModuleType(name)
    package.__path__, package.__spec__ = list(spec.submodule_search_locations or ()), spec
    vars(package).update(contents)
    sys.modules[name] = package


def _bare_overcomplete() -> None:
    _bare("overcomplete")


def _bare_sae_lens() -> None:
    _bare("sae_lens", __version__=_version("sae-lens"), logger=logging.getLogger("sae_lens"))
    _bare("sae_lens.saes")
    if importlib.util.find_spec("transformer_lens") is None:
        _stand_in("transformer_lens", __path__=[])
        _stand_in("transformer_lens.hook_points", HookPoint=_HookPoint, HookedRootModule=_HookedRootModule)
        _stand_in("transformer_lens.HookedTransformer", HookedRootModule=_HookedRootModule)
    topk = importlib.import_module("sae_lens.saes.topk_sae")
    registry = importlib.import_module("sae_lens.registry")  # what the package's __init__ would fill
    registry.register_sae_class("topk", topk.TopKSAE, topk.TopKSAEConfig)
    registry.register_sae_training_class("topk", topk.TopKTrainingSAE, topk.TopKTrainingSAEConfig)


def _stand_in(name: str, **contents: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module


class _HookPoint(nn.Module):
    """An identity, as a hook point without hooks is."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class _HookedRootModule(nn.Module):
    """A module that keeps no list of its hook points."""

    def setup(self) -> None:
        pass
