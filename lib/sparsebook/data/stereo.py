"""A real, calibrated stereo pair with dense ground truth: Middlebury 2014 "Motorcycle"."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from sparsebook.data.catalogue import FromSource
from sparsebook.data.photographs import read_image
from sparsebook.files import packaged_file


@dataclass(frozen=True)
class Calibration:
    """A rectified pair of pinhole cameras, as Middlebury describes it.

    Attributes
    ----------
    focal_length : of both cameras, pixels
    principal_point : x and y in the left image, pixels
    principal_offset : how much further right the principal point lies in the right image, pixels
    baseline : distance between the cameras, metres
    """

    focal_length: float
    principal_point: tuple[float, float]
    principal_offset: float
    baseline: float

    def left(self) -> Float[np.ndarray, "3 3"]:
        """Camera matrix of the left image, pixels."""
        x, y = self.principal_point
        return np.array([[self.focal_length, 0, x], [0, self.focal_length, y], [0, 0, 1.0]])

    def right(self) -> Float[np.ndarray, "3 3"]:
        """Camera matrix of the right image, pixels."""
        matrix = self.left()
        matrix[0, 2] += self.principal_offset
        return matrix

    def right_from_left(self) -> Float[np.ndarray, "4 4"]:
        """Rigid motion that takes a point from the left camera's frame to the right camera's, metres."""
        motion = np.eye(4)
        motion[0, 3] = -self.baseline
        return motion


@dataclass(frozen=True, eq=False)
class StereoPair(FromSource):
    """Two rectified images and where each left pixel lies in the right one.

    Attributes
    ----------
    left, right : red, green, blue, 0 to 255
    disparity : pixels; the left pixel (x, y) shows what the right pixel (x - disparity, y) shows, occlusion
        apart; NaN where it was not measured
    calibration : both cameras, for images of this size
    """

    source_name = "stereo_motorcycle"

    left: UInt8[np.ndarray, "height width 3"]
    right: UInt8[np.ndarray, "height width 3"]
    disparity: Float32[np.ndarray, "height width"]
    calibration: Calibration

    def known(self) -> Bool[np.ndarray, "height width"]:
        """Where the disparity was measured."""
        return np.isfinite(self.disparity)

    def depth(self) -> Float[np.ndarray, "height width"]:
        """Distance along the optical axis of the left camera, metres; NaN where unknown.

        :math:`Z = b f / (d + d_0)` with baseline b, focal length f, disparity d and offset :math:`d_0`.
        """
        cameras = self.calibration
        shifted = self.disparity.astype(np.float64) + cameras.principal_offset
        return cameras.baseline * cameras.focal_length / shifted

    def points(self) -> Float[np.ndarray, "height width 3"]:
        """The scene as points in the left camera's frame (x right, y down, z forward), metres."""
        depth = self.depth()
        y, x = np.mgrid[: depth.shape[0], : depth.shape[1]]
        centre_x, centre_y = self.calibration.principal_point
        rays = np.stack([x - centre_x, y - centre_y, np.full(depth.shape, self.calibration.focal_length)], -1)
        return rays / self.calibration.focal_length * depth[..., None]


# As documented by scikit-image for the images reduced by four; Middlebury's own file says 3979.911 pixels,
# (1244.772, 1019.507), 124.343 pixels and 193.001 mm for the full size.
MOTORCYCLE = Calibration(994.978, (311.193, 254.877), 31.086, 0.193001)


def motorcycle() -> StereoPair:
    """The Middlebury 2014 pair "Motorcycle", 500 x 741 pixels.

    Raises
    ------
    MissingInput : scikit-image is not installed
    """
    with np.load(packaged_file("skimage", "data/motorcycle_disp.npz"), allow_pickle=False) as stored:
        disparity = stored["arr_0"].astype(np.float32)
    disparity[~np.isfinite(disparity)] = np.nan
    left, right = (
        read_image(packaged_file("skimage", f"data/motorcycle_{side}.png")) for side in ("left", "right")
    )
    return StereoPair(left, right, disparity, MOTORCYCLE)
