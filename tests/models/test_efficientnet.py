import numpy as np
import pytest
import torch

from sparsebook.data.photographs import photograph
from sparsebook.models.efficientnet import CHANNELS, WEIGHTS, EfficientNetLite0
from sparsebook.models.loading import fill, read_checkpoint

EGYPTIAN_CAT = 285


@pytest.fixture(scope="module")
def model():
    return EfficientNetLite0.load()


@pytest.fixture(scope="module")
def chelsea():
    return photograph("chelsea").pixels


def test_the_cat_is_a_cat(model, chelsea):
    probabilities = model.logits(model.preprocess(chelsea)).softmax(-1)
    assert probabilities.shape == (1, 1000)
    assert probabilities.argmax() == EGYPTIAN_CAT
    assert probabilities[0, EGYPTIAN_CAT] > 0.7


def test_the_usual_crop_sees_a_cat_too(model, chelsea):
    probabilities = model.logits(model.preprocess(chelsea, crop=True)).softmax(-1)
    assert probabilities[0, [281, 282, 285]].sum() > 0.9  # tabby, tiger, Egyptian


def test_preprocessing(model):
    image = np.full((40, 64, 3), 255, np.uint8)
    assert torch.equal(model.preprocess(image), torch.ones(1, 3, 224, 224))
    assert model.preprocess(image, size=None).shape == (1, 3, 32, 64)
    torch.testing.assert_close(
        model.preprocess(np.zeros((40, 40), np.uint8)), torch.full((1, 3, 224, 224), -127 / 128)
    )
    grey = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    torch.testing.assert_close(
        model.preprocess(grey, 64), model.preprocess(np.repeat(grey[..., None], 3, 2), 64)
    )


def test_feature_maps(model, chelsea):
    images = model.preprocess(chelsea, size=128)
    maps = model.feature_maps(images, [2, 4, 8, 16, 32])
    assert {stride: tuple(x.shape) for stride, x in maps.items()} == {
        stride: (1, channels, 128 // stride, 128 // stride) for stride, channels in CHANNELS.items()
    }
    net = model.network
    pooled = net._swish(net._bn1(net._conv_head(maps[32]))).mean((2, 3))
    torch.testing.assert_close(net._fc(pooled), model.logits(images), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.feature_maps(images, [8])[8], maps[8])


@pytest.mark.parametrize("size", [96, 160])
def test_sizes_that_are_multiples_of_32_are_padded_as_if_built_for_them(model, chelsea, size):
    from efficientnet_lite_pytorch import EfficientNet

    built = EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    fill(built, model.network.state_dict())
    images = model.preprocess(chelsea, size)
    torch.testing.assert_close(model.logits(images), built(images), rtol=1e-4, atol=1e-4)


def test_dtype_and_batches(model, chelsea):
    double = EfficientNetLite0.load(dtype=torch.float64)
    images = torch.cat([model.preprocess(chelsea, 32), model.preprocess(chelsea[:, ::-1], 32)])
    logits = double.logits(images)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(model.logits(images), logits.float(), rtol=1e-3, atol=1e-3)


def test_bad_arguments(model):
    for shape in ((1, 3, 100, 96), (1, 3, 0, 64)):
        with pytest.raises(ValueError, match="images has shape"):
            model.logits(torch.zeros(shape))
    for strides in ([], [3]):
        with pytest.raises(ValueError, match="strides="):
            model.feature_maps(torch.zeros(1, 3, 64, 64), strides)
    for size in (0, 100):
        with pytest.raises(ValueError, match=f"size={size}"):
            model.preprocess(np.zeros((64, 64), np.uint8), size)
    with pytest.raises(ValueError, match="image has shape"):
        model.preprocess(np.zeros((3, 64, 64), np.uint8))


def test_the_checkpoint_fits_exactly(model):
    from sparsebook.files import packaged_file

    state = read_checkpoint(packaged_file(*WEIGHTS))
    name, weight = state.popitem()
    with pytest.raises(ValueError, match=f"missing .*{name}"):
        fill(model.network, state)
    with pytest.raises(ValueError, match=r"unknown .*another"):
        fill(model.network, state | {name: weight, "another": weight})
