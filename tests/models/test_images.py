import numpy as np
import pytest
import torch

from sparsebook.models.images import image_tensor


def test_what_is_accepted():
    image = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
    pixels = image_tensor(image)
    assert pixels.shape == (1, 3, 40, 50)
    assert pixels[0, 2, 7, 9] == image[7, 9, 2] / np.float32(255)
    assert torch.equal(image_tensor(image[::-1])[0, :, 0], pixels[0, :, -1])
    grey = image_tensor(image[..., 0])
    assert torch.equal(grey[0, 0], grey[0, 2])
    assert torch.equal(image_tensor(image[..., :1]), grey)
    assert torch.equal(image_tensor(pixels[0]), pixels)
    assert image_tensor(image, dtype=torch.float64).dtype == torch.float64


def test_the_image_is_not_shared():
    image = torch.full((3, 32, 32), 0.5)
    image_tensor(image).zero_()
    assert (image == 0.5).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 40, 40), np.uint8), "image has shape"),
        (np.zeros(40, np.uint8), "image has shape"),
        (np.zeros((1, 40, 40, 3), np.uint8), "image has shape"),
        (np.zeros((40, 40), np.int64), "image has dtype int64"),
        (np.full((40, 40), 255.0), "image has values from 255 to 255"),
        (np.full((40, 40), np.nan), "image has values"),
        (np.zeros((40, 31), np.uint8), "sides of at least 32"),
        (np.zeros((0, 40), np.uint8), "sides of at least 32"),
        (torch.zeros(40, 40, 3), "image has shape"),
        (torch.zeros(3, 40, 40, dtype=torch.uint8), "image has dtype torch.uint8"),
    ],
)
def test_what_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        image_tensor(image)
