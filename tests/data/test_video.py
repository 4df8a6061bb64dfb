"""The clips decode to the documented sizes, as consecutive moving pictures."""

import numpy as np
import pytest

from sparsebook.data.video import CLIPS, clip

SHAPES = {
    "bikes": (250, 272, 640, 3),
    "carphone_pristine": (120, 144, 176, 3),
    "bigbuckbunny": (132, 720, 1280, 3),
}


def test_the_list_is_complete():
    assert set(CLIPS) == set(SHAPES)


@pytest.mark.parametrize("name", ["bikes", "carphone_pristine"])
def test_a_whole_clip(name):
    film = clip(name)
    assert film.frames.shape == SHAPES[name]
    assert film.frames.dtype == np.uint8
    assert 24 < film.rate < 31
    assert film.licence
    # Neighbours in time are alike, though not equal.
    steps = np.abs(np.diff(film.frames[:20, ::4, ::4].astype(int), axis=0)).mean((1, 2, 3))
    spread = np.abs(film.frames[0, ::4, ::4].astype(int) - film.frames[-1, ::4, ::4]).mean()
    assert 0 < np.median(steps) < spread


def test_the_number_of_frames_of_the_large_clip():
    assert clip("bigbuckbunny", start=130).frames.shape == (2, *SHAPES["bigbuckbunny"][1:])


def test_a_part_is_the_same_as_in_the_whole():
    whole, part = clip("carphone_pristine"), clip("carphone_pristine", start=30, count=5)
    np.testing.assert_array_equal(part.frames, whole.frames[30:35])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cars"}, r"name='cars': expected one of"),
        ({"name": "bikes", "start": -1}, r"start=-1: expected 0"),
        ({"name": "bikes", "count": 0}, r"count=0: expected at least 1"),
        ({"name": "carphone_pristine", "start": 120}, r"start=120.*no such frames"),
        ({"name": "carphone_pristine", "start": 119, "count": 2}, r"start=119, count=2.*no such frames"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        clip(**arguments)


def test_colours_come_as_red_green_blue():
    face = clip("carphone_pristine", count=1).frames[0, 50:90, 70:110].reshape(-1, 3).mean(0)
    assert face[0] > face[1] + 10 > face[2] + 20  # skin
