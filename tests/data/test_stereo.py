"""The stereo pair: disparity, calibration and scene agree with one another and with the images."""

import numpy as np
import pytest

from sparsebook.data.stereo import MOTORCYCLE, motorcycle


@pytest.fixture(scope="module")
def pair():
    return motorcycle()


def test_shapes_and_validity(pair):
    assert pair.left.shape == pair.right.shape == (500, 741, 3)
    assert pair.disparity.shape == (500, 741)
    assert pair.disparity.dtype == np.float32
    assert pair.known().mean() == pytest.approx(0.9265, abs=1e-4)
    assert not np.isinf(pair.disparity).any()
    assert np.nanmin(pair.disparity) == pytest.approx(7.191, abs=1e-3)
    assert np.nanmax(pair.disparity) == pytest.approx(59.909, abs=1e-3)
    assert "Middlebury" in pair.licence
    assert "Scharstein" in pair.citation


def differences(pair, sign):
    """Median colour difference between left pixels and the right pixels that disparity points to."""
    y, x = np.nonzero(pair.known())
    there = np.rint(x + sign * pair.disparity[y, x]).astype(int)
    inside = (there >= 0) & (there < pair.left.shape[1])
    left, right = pair.left[y[inside], x[inside]], pair.right[y[inside], there[inside]]
    return np.median(np.abs(left.astype(int) - right).mean(-1))


def test_disparity_points_to_the_same_colour(pair):
    assert differences(pair, -1) < 5
    assert differences(pair, +1) > 20  # the other sign is wrong


def test_calibration_is_a_quarter_of_middleburys_own():
    assert MOTORCYCLE.focal_length == pytest.approx(3979.911 / 4, abs=1e-3)
    assert MOTORCYCLE.principal_point == pytest.approx((1244.772 / 4, 1019.507 / 4), abs=1e-3)
    assert MOTORCYCLE.principal_offset == pytest.approx(124.343 / 4, abs=1e-3)


def test_points_project_onto_their_pixels_in_both_images(pair):
    known = pair.known()
    points = pair.points()[known]
    y, x = np.nonzero(known)
    homogeneous = points @ pair.calibration.left().T
    np.testing.assert_allclose(homogeneous[:, :2] / homogeneous[:, 2:], np.stack([x, y], -1), atol=1e-8)
    motion = pair.calibration.right_from_left()
    moved = points @ motion[:3, :3].T + motion[:3, 3]
    homogeneous = moved @ pair.calibration.right().T
    np.testing.assert_allclose(
        homogeneous[:, :2] / homogeneous[:, 2:], np.stack([x - pair.disparity[known], y], -1), atol=1e-4
    )


def test_depth_is_that_of_a_room(pair):
    depth = pair.depth()
    assert np.isnan(depth[~pair.known()]).all()
    assert 2 < np.nanmin(depth) < np.nanmax(depth) < 5.1
