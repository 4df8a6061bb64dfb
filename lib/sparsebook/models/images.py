"""Images as the networks take them: one place that says what is accepted."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ACCEPTED = (
    "expected a uint8 array [height, width, 3] or [height, width], or floats in [0, 1] "
    "as an array [height, width(, 3)] or a tensor [3, height, width]"
)


def image_tensor(
    image: np.ndarray | Tensor,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    smallest: int = 32,
) -> Float[Tensor, "1 3 height width"]:
    """Turn one photograph into a batch of one, channels first, intensities from 0 to 1.

    Parameters
    ----------
    image : uint8 array ``[height, width, 3]`` (RGB) or ``[height, width]`` (grey, repeated three times), the
        same as floats from 0 to 1, or a float tensor ``[3 or 1, height, width]`` from 0 to 1
    smallest : sides shorter than this, in pixels, are refused

    Raises
    ------
    ValueError : another shape or dtype, values outside [0, 1] or not finite, or a side that is too short
    """
    if isinstance(image, np.ndarray):
        pixels = _from_array(image)
    elif isinstance(image, Tensor):
        pixels = _from_tensor(image)
    else:
        raise ValueError(f"image is a {type(image).__name__}: {ACCEPTED}")
    if min(pixels.shape[1:]) < smallest:
        raise ValueError(f"image has shape {tuple(image.shape)}: expected sides of at least {smallest} px")
    pixels = pixels.expand(3, -1, -1)[None]
    return pixels.to(device=device, dtype=dtype, copy=True).contiguous()


def _from_array(image: np.ndarray) -> Float[Tensor, "channels height width"]:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(f"image has shape {image.shape}: {ACCEPTED}")
    # A copy, for arrays that are read-only or flipped.
    pixels = torch.from_numpy(np.array(image if image.ndim == 3 else image[..., None])).permute(2, 0, 1)
    if image.dtype == np.uint8:
        return pixels.float() / 255
    return _checked_floats(pixels, str(image.dtype))


def _from_tensor(image: Tensor) -> Float[Tensor, "channels height width"]:
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image has shape {tuple(image.shape)}: {ACCEPTED}")
    return _checked_floats(image, str(image.dtype))


def _checked_floats(pixels: Tensor, dtype: str) -> Tensor:
    if not pixels.is_floating_point():
        raise ValueError(f"image has dtype {dtype}: {ACCEPTED}")
    if pixels.numel() and not bool(((pixels >= 0) & (pixels <= 1)).all()):
        low, high = float(pixels.min()), float(pixels.max())
        raise ValueError(f"image has values from {low:.4g} to {high:.4g}: {ACCEPTED}")
    return pixels
