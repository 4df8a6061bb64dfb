"""Counts against PyTorch's own counter and against published numbers."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsebook.models.cifar_resnet import CifarResNet
from sparsebook.networks.counting import count_macs, count_parameters, layer_macs, stored_bytes
from sparsebook.networks.densities import layerwise_density
from sparsebook.networks.masks import prunable, random_masks


def by_pytorch(model, shape):
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3)), (10,)),
        (nn.Linear(10, 20), (7, 10)),
        (nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, groups=2), nn.Conv2d(8, 8, 1)), (4, 9, 9)),
        (CifarResNet(14, 4, 10), (3, 32, 32)),
        (CifarResNet(8, 8, 12, 1, stem_stride=2), (1, 16, 16)),
    ],
)
def test_macs_are_pytorchs(model, shape):
    assert count_macs(model, shape) == by_pytorch(model, shape)


def test_published_sizes_of_cifar_resnets():
    """He et al. 2016, table 6: 0.27, 0.46 and 0.85 million parameters (shortcuts there have none)."""
    for depth, millions in ((20, 0.27), (32, 0.46), (56, 0.85)):
        assert count_parameters(CifarResNet(depth)) / 1e6 == pytest.approx(millions, abs=0.015)
    assert count_macs(CifarResNet(20), (3, 32, 32)) / 1e6 == pytest.approx(40.8, abs=0.8)


def test_equal_density_is_not_equal_work():
    """Shares of ResNet-20's multiplications that ERK leaves, worked out from its shapes beforehand."""
    model = CifarResNet(20)
    shapes = {name: tuple(w.shape) for name, w in prunable(model).items()}
    for density, share in ((0.05, 0.087), (0.1, 0.177), (0.2, 0.358), (0.5, 0.737)):
        masks = random_masks(shapes, layerwise_density(shapes, density, "erk"), seed=0)
        found = count_macs(model, (3, 32, 32), masks) / count_macs(model, (3, 32, 32))
        assert found == pytest.approx(share, abs=0.002)


def test_masks_count_what_they_keep():
    model = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Linear(20, 3))
    masks = {"0.weight": torch.zeros(20, 10, dtype=torch.bool)}
    masks["0.weight"][:, 0] = True
    assert count_parameters(model) == 200 + 20 + 40 + 63
    assert count_parameters(model, masks) == 20 + 20 + 40 + 63
    assert count_macs(model, (10,), masks) == 20 + 60
    assert layer_macs(model, (10,)) == {"0.weight": 200, "2.weight": 60}
    assert model.training


def test_bytes():
    assert stored_bytes(12, rows=3, columns=4, kept=5) == {"dense": 48, "bitmask": 22, "csr": 56}
    assert stored_bytes(12, rows=3, columns=4, kept=0, value_bytes=2, index_bytes=2)["csr"] == 8


def test_bad_counts_are_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="masks name"):
        count_parameters(model, {"other": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="masks name"):
        count_macs(model, (2,), {"bias": torch.ones(2)})
    with pytest.raises(ValueError, match="do not fit"):
        stored_bytes(12, rows=3, columns=5, kept=5)
    with pytest.raises(ValueError, match="depth=10"):
        CifarResNet(10)
    with pytest.raises(ValueError, match="width=0"):
        CifarResNet(8, 0)
