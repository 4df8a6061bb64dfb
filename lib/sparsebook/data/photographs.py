"""Photographs that scikit-learn and scikit-image carry, and small crops with and without a face."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from sparsebook.data.catalogue import CATALOGUE, FromSource, source
from sparsebook.files import missing_package, packaged_file

PHOTOGRAPHS = tuple(entry.name for entry in CATALOGUE if entry.loader.endswith(":photograph"))


@dataclass(frozen=True, eq=False)
class Photograph(FromSource):
    """One photograph.

    Attributes
    ----------
    pixels : grey (one channel) or red, green, blue (three channels), 0 to 255
    source_name : the name in the catalogue
    """

    pixels: UInt8[np.ndarray, "height width channels"]
    source_name: str


@dataclass(frozen=True, eq=False)
class FaceCrops(FromSource):
    """Small grey crops, half of them faces.

    Attributes
    ----------
    pixels : grey, 0 to 1
    is_face : the first hundred are faces, the other hundred background
    """

    source_name = "lfw_subset"

    pixels: Float32[np.ndarray, "crops 25 25"]
    is_face: Bool[np.ndarray, " crops"]


def photograph(name: str) -> Photograph:
    """One of the :data:`PHOTOGRAPHS`, for example ``"astronaut"`` or ``"china"``.

    Raises
    ------
    ValueError : no photograph has this name
    MissingInput : the package that carries it is not installed
    """
    if name not in PHOTOGRAPHS:
        raise ValueError(f"name={name!r}: expected one of {list(PHOTOGRAPHS)}")
    entry = source(name)
    return Photograph(read_image(packaged_file(entry.package, entry.files[0])), name)


def read_image(path: Path) -> UInt8[np.ndarray, "height width channels"]:
    """An image file as bytes: one channel if it is grey, otherwise red, green and blue.

    Raises
    ------
    MissingInput : Pillow is not installed
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_package("pillow") from error
    with Image.open(path) as image:
        grey = image.mode in ("1", "L", "LA")
        pixels = np.array(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


def lfw_subset() -> FaceCrops:
    """200 crops of 25 x 25 pixels from Labeled Faces in the Wild: 100 faces, 100 pieces of background.

    Raises
    ------
    MissingInput : scikit-image is not installed
    """
    stored = np.load(packaged_file("skimage", "data/lfw_subset.npy"), allow_pickle=False)
    return FaceCrops(pixels=stored.astype(np.float32), is_face=np.arange(len(stored)) < 100)
