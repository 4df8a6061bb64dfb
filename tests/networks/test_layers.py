"""Layers with sparse weights: against dense ones, their gradients, their state, bad input."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional

from sparsebook.networks.layers import SparseConv2d, SparseLinear, sparse_lists
from sparsebook.networks.masks import random_mask


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask_of(shape: tuple[int, ...], density: float = 0.3, block: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return random_mask((shape[0] // block, *shape[1:]), density, generator=generator).repeat_interleave(
        block, 0
    )


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# The known answer of a small matrix with an empty row.
WEIGHT = torch.tensor([[0.0, 2, 0], [1, 0, 3], [0, 0, 0], [0, 4, 5]])


def test_lists_of_a_small_matrix() -> None:
    values, columns, offsets = sparse_lists(WEIGHT)
    assert values.tolist() == [2, 1, 3, 4, 5]
    assert columns.tolist() == [1, 0, 2, 1, 2]
    assert offsets.tolist() == [0, 1, 3, 3, 5]
    values, columns, offsets = sparse_lists(WEIGHT, block=2)
    assert values.tolist() == [[0, 1], [2, 0], [0, 3], [0, 4], [0, 5]]
    assert columns.tolist() == [0, 1, 2, 1, 2]
    assert offsets.tolist() == [0, 3, 5]


@pytest.mark.parametrize("block", [1, 2, 4])
def test_a_linear_layer_and_its_gradients(block: int) -> None:
    dense, x = nn.Linear(11, 12), drawn(0, 2, 5, 11).requires_grad_()
    mask = mask_of((12, 11), block=block)
    layer = SparseLinear.from_dense(dense, mask, block)
    assert torch.equal(layer.matrix(), dense.weight.detach() * mask)
    assert layer.density == pytest.approx(float(mask.float().mean()))
    y = layer(x)
    y.square().sum().backward()
    copy = x.detach().clone().requires_grad_()
    weight = (dense.weight.detach() * mask).requires_grad_()
    expected = functional.linear(copy, weight, dense.bias)
    close(y, expected)
    expected.square().sum().backward()
    close(x.grad, copy.grad)
    close(layer.bias.grad, dense.bias.grad)
    layer.values.data = layer.values.grad
    close(layer.matrix(), weight.grad * mask)


CONVOLUTIONS = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2, "bias": False},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
]


@pytest.mark.parametrize("given", CONVOLUTIONS)
def test_a_convolution_and_its_gradients(given: dict) -> None:
    dense, x = nn.Conv2d(5, 8, **given), drawn(0, 3, 5, 9, 7).requires_grad_()
    mask = mask_of(tuple(dense.weight.shape))
    layer = SparseConv2d.from_dense(dense, mask, low=-0.5, high=1.0)
    y = layer(x)
    y.square().sum().backward()
    copy = x.detach().clone().requires_grad_()
    dense.weight.data *= mask
    expected = functional.hardtanh(dense(copy), -0.5, 1.0)
    close(y, expected)
    expected.square().sum().backward()
    close(x.grad, copy.grad)
    layer.values.data = layer.values.grad
    close(layer.matrix(), (dense.weight.grad * mask).flatten(1))


def test_a_batch_is_copied_once() -> None:
    dense = nn.Conv2d(4, 6, 1)
    layer, images = SparseConv2d.from_dense(dense), drawn(0, 3, 4, 5, 5)
    y = layer(images)
    assert y.transpose(0, 1).is_contiguous()
    assert torch.equal(layer(images.transpose(0, 1).contiguous().transpose(0, 1)), y)
    assert layer(images[:0]).shape == (0, 6, 5, 5)


def test_training_moves_values_and_leaves_zeros() -> None:
    dense = nn.Linear(20, 10)
    layer = SparseLinear.from_dense(dense, mask_of((10, 20)))
    zeros = layer.matrix() == 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9)
    x, target = drawn(0, 64, 20), drawn(1, 64, 10)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = functional.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert torch.equal(layer.matrix() == 0, zeros)


def test_a_state_loads_into_a_layer_with_other_places(tmp_path) -> None:
    one = SparseLinear.from_dense(nn.Linear(20, 12), mask_of((12, 20), 0.1))
    other = nn.Sequential(SparseLinear.from_dense(nn.Linear(20, 12), mask_of((12, 20), 0.5, 2), 2))
    torch.save(nn.Sequential(one).state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(other[0].matrix(), one.matrix())
    assert other[0].block == 1
    wrong = SparseLinear.from_dense(nn.Linear(20, 8), mask_of((8, 20)))
    with pytest.raises(RuntimeError, match="size mismatch"):
        wrong.load_state_dict(one.state_dict())


def test_layers_move_and_change_type() -> None:
    layer = SparseConv2d.from_dense(nn.Conv2d(4, 6, 1)).double()
    assert layer(drawn(0, 1, 4, 3, 3).double()).dtype == torch.float64
    assert "entries=24, block=1" in repr(layer)


def test_what_does_not_fit_is_named() -> None:
    lists = inspect.unwrap(sparse_lists)
    with pytest.raises(ValueError, match=r"mask must be torch.bool of shape \(4, 3\)"):
        lists(WEIGHT, WEIGHT)
    with pytest.raises(ValueError, match="block must be 1, 2 or 4 and divide the 4 rows, got 3"):
        lists(WEIGHT, block=3)
    with pytest.raises(ValueError, match="nothing to keep"):
        lists(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"shape \(rows, columns\)"):
        lists(torch.zeros(2))
    with pytest.raises(ValueError, match="one group"):
        SparseConv2d.from_dense(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="number of zeros"):
        SparseConv2d.from_dense(nn.Conv2d(4, 4, 3, padding="same"))
    with pytest.raises(ValueError, match="20 features last"):
        SparseLinear.from_dense(nn.Linear(20, 4))(torch.ones(2, 19))
    with pytest.raises(ValueError, match=r"\(batch, 4, height, width\)"):
        SparseConv2d.from_dense(nn.Conv2d(4, 4, 1))(torch.ones(1, 3, 2, 2))
