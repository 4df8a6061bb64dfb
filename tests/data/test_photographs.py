"""Photographs decode to the sizes that their packages document."""

import numpy as np
import pytest

from sparsebook.data.photographs import PHOTOGRAPHS, lfw_subset, photograph

SHAPES = {
    "china": (427, 640, 3),
    "flower": (427, 640, 3),
    "astronaut": (512, 512, 3),
    "brick": (512, 512, 1),
    "camera": (512, 512, 1),
    "cell": (660, 550, 1),
    "chelsea": (300, 451, 3),
    "clock_motion": (300, 400, 1),
    "coffee": (400, 600, 3),
    "coins": (303, 384, 1),
    "grass": (512, 512, 1),
    "gravel": (512, 512, 1),
    "horse": (328, 400, 3),
    "hubble_deep_field": (872, 1000, 3),
    "ihc": (512, 512, 3),
    "moon": (512, 512, 1),
    "page": (191, 384, 1),
    "retina": (1411, 1411, 3),
    "rocket": (427, 640, 3),
    "text": (172, 448, 1),
}


def test_the_list_is_complete():
    assert set(PHOTOGRAPHS) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_a_photograph(name):
    picture = photograph(name)
    assert picture.pixels.shape == SHAPES[name]
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.std() > 5
    assert picture.pixels.flags.writeable
    assert picture.source.name == name
    assert picture.licence


def test_colours_come_as_red_green_blue():
    astronaut = photograph("astronaut").pixels
    suit = astronaut[400:440, 380:420].reshape(-1, 3).mean(0)  # her suit is orange
    assert suit[0] > suit[1] > suit[2]


def test_an_unknown_photograph_is_named():
    with pytest.raises(ValueError, match=r"name='lena': expected one of \['china'"):
        photograph("lena")


def test_face_crops_are_those_of_scikit_image():
    crops = lfw_subset()
    assert crops.pixels.shape == (200, 25, 25)
    assert crops.pixels.dtype == np.float32
    assert (crops.pixels.min(), crops.pixels.max()) == (0, 1)
    assert crops.is_face.sum() == 100
    # Faces look like the mean of other faces; pieces of background do not.
    mean = crops.pixels[:50].mean(0).ravel()
    likeness = [np.corrcoef(crop.ravel(), mean)[0, 1] for crop in crops.pixels]
    assert np.mean(likeness[50:100]) > 0.5 > 0.2 > np.mean(likeness[100:])
