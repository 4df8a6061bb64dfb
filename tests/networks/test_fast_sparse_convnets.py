"""Fast Sparse ConvNets: pruning, the choice of blocks, and networks rewritten for sparse products."""

import pytest
import torch
from torch import nn

from sparsebook.networks.fast_sparse_convnets import (
    DenseConv1x1,
    DepthwiseConv2d,
    MagnitudePruner,
    choose_block,
    magnitude_masks,
    mobilenet_v1,
    mobilenet_v2,
    pointwise,
    rewritten,
    small_mobilenet,
)
from sparsebook.networks.layers import SparseConv2d
from sparsebook.networks.masks import SparsityMask
from sparsebook.networks.schedules import Periodic, PolynomialSparsity


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with batch norms that have seen something, in inference mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.02, 0.1),
                (module.weight.data, 0.8, 1.5),
                (module.bias.data, -0.2, 0.4),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model.eval()


def images(channels: int = 3, side: int = 32, n: int = 2) -> torch.Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(1))


# Blocks --------------------------------------------------------------------------------------------------


def test_the_choice_of_blocks_on_a_small_matrix() -> None:
    assert choose_block(torch.tensor([[0.0, 2, 0], [1, 0, 3], [0, 0, 0], [0, 4, 5]])) == 1


@pytest.mark.parametrize(
    ("block", "holes", "expected"), [(4, 0.05, 4), (4, 0.15, 1), (2, 0.0, 2), (1, 0.0, 1), (4, 0.0, 4)]
)
def test_blocks_that_are_nine_tenths_full_are_used(block: int, holes: float, expected: int) -> None:
    generator = torch.Generator().manual_seed(0)
    kept = (torch.rand(128 // block, 200, generator=generator) < 0.1).repeat_interleave(block, 0)
    kept &= torch.rand(128, 200, generator=generator) >= holes
    assert choose_block(kept.float()) == expected


def test_blocks_need_rows_and_weights() -> None:
    assert choose_block(torch.zeros(8, 8)) == 1
    assert choose_block(torch.ones(1, 8)) == 1
    assert choose_block(torch.ones(6, 8)) == 2
    assert choose_block(torch.ones(3, 8)) == 1


# Pruning -------------------------------------------------------------------------------------------------


def test_masks_keep_the_largest_of_every_layer() -> None:
    model = small_mobilenet(0.5)
    masks = magnitude_masks(model, 0.9)
    assert set(masks) == {f"{name}.weight" for name in pointwise(model)}
    for name, layer in pointwise(model).items():
        mask, size = masks[f"{name}.weight"], layer.weight.detach().abs()
        assert int(mask.sum()) == max(1, round(0.1 * mask.numel()))
        assert size[mask].min() >= size[~mask].max()


def test_masks_of_blocks_share_their_columns() -> None:
    model = small_mobilenet(0.5)
    last = list(pointwise(model))[-1]
    masks = magnitude_masks(model, 0.8, {last: 4})
    for name, layer in pointwise(model).items():
        mask = masks[f"{name}.weight"].flatten(1)
        groups = mask.unflatten(0, (-1, 4))
        assert bool((groups.all(1) == groups.any(1)).all()) == (name == last)
        block = 4 if name == last else 1
        assert int(mask.sum()) == block * round(0.2 * layer.weight.numel() / block)


def test_the_pruner_follows_its_schedule_and_zeros_stay() -> None:
    torch.manual_seed(0)
    model = small_mobilenet(0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = MagnitudePruner(model, PolynomialSparsity(0.0, 0.9, 2, 8), Periodic(2, 2, 9))
    pruner.attach(optimizer)
    found = []
    for _ in range(10):
        optimizer.zero_grad()
        model(images(1, n=4)).square().sum().backward()
        optimizer.step()
        found.append(1 - pruner.sparsity.density())
    pruner.finish()
    expected = [pruner.schedule(step) for step in (0, 0, 2, 2, 4, 4, 6, 6, 8, 8)]
    assert found == pytest.approx(expected, abs=2e-3)
    for layer in pointwise(model).values():
        assert int((layer.weight != 0).sum()) == round(0.1 * layer.weight.numel())


def test_what_cannot_be_pruned_is_named() -> None:
    with pytest.raises(ValueError, match="nothing to prune"):
        magnitude_masks(nn.Conv2d(3, 4, 3), 0.5)
    with pytest.raises(ValueError, match="below 1, got 1"):
        magnitude_masks(small_mobilenet(0.25), 1.0)
    with pytest.raises(ValueError, match="does not divide"):
        magnitude_masks(nn.Sequential(nn.Conv2d(3, 6, 1)), 0.5, 4)


# Networks ------------------------------------------------------------------------------------------------


def test_published_sizes() -> None:
    """Weights of MobileNets as they are published: 4.2 and 3.5 million."""
    count = {build: sum(p.numel() for p in build().parameters()) for build in (mobilenet_v1, mobilenet_v2)}
    assert count[mobilenet_v1] == 4_231_976
    assert count[mobilenet_v2] == 3_504_872


@pytest.mark.parametrize("products", ["sparse", "dense", "torch"])
@pytest.mark.parametrize("build", [mobilenet_v1, mobilenet_v2])
def test_rewritten_networks_compute_the_same(build, products) -> None:
    torch.manual_seed(0)
    model = lively(build(0.25, classes=7)).double()  # rounding would grow from layer to layer
    SparsityMask(model, magnitude_masks(model, 0.8)).apply()
    fast, report = rewritten(model, products)
    with torch.inference_mode():
        expected, given = model(images().double()), fast(images().double())
    assert expected.std() > 1e-3
    torch.testing.assert_close(given, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert {layer.kind for layer in report} == {
        "sparse": {"sparse", "depthwise", "kept"}, "dense": {"dense", "depthwise", "kept"}, "torch": {"kept"},
    }[products]  # fmt: skip
    assert not any(isinstance(module, nn.BatchNorm2d | nn.ReLU6) for module in fast.modules())


def test_kinds_of_layers_and_gradients() -> None:
    model = lively(small_mobilenet(0.5))
    fast, report = rewritten(model, "sparse")
    assert [layer.kind for layer in report] == ["kept", *["depthwise", "sparse"] * 7]
    kinds = [type(module) for module in fast.children()]
    assert kinds.count(SparseConv2d) == kinds.count(DepthwiseConv2d) == 7
    given, expected = images(1).requires_grad_(), images(1).requires_grad_()
    fast(given).square().sum().backward()
    model(expected).square().sum().backward()
    torch.testing.assert_close(
        given.grad, expected.grad, rtol=1e-3, atol=1e-4 * float(expected.grad.abs().max())
    )


def test_the_model_itself_does_not_change() -> None:
    model = lively(small_mobilenet(0.25))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rewritten(model, "sparse")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(model[0][1], nn.BatchNorm2d)


# Rules ---------------------------------------------------------------------------------------------------


def with_zeros(share: float) -> nn.Sequential:
    """Two 1 x 1 convolutions of 12 weights each; the share of zeros counts over both."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    with torch.no_grad():
        weights = torch.ones(24)
        weights[: round(24 * share)] = 0
        model[0].weight.copy_(weights[:12].view(4, 3, 1, 1))
        model[2].weight.copy_(weights[12:].flip(0).view(3, 4, 1, 1))
    return model


@pytest.mark.parametrize(("share", "kind"), [(16 / 24, "dense"), (17 / 24, "sparse"), (0.0, "dense")])
def test_products_are_sparse_above_two_thirds_of_the_whole(share: float, kind: str) -> None:
    model = with_zeros(share)
    fast, report = rewritten(model)
    # Where all weights of a layer are zero there is nothing to multiply.
    assert report[1].kind == kind
    torch.testing.assert_close(fast(images()), model(images()))


REFUSED = {
    "1 x 1, but with a stride": nn.Conv2d(4, 4, 1, stride=2),
    "1 x 1, but padded": nn.Conv2d(4, 4, 1, padding=1),
    "dilation": nn.Conv2d(4, 4, 3, dilation=2, groups=4),
    "5 x 5 over all channels": nn.Conv2d(4, 4, 5),
    "groups of several channels": nn.Conv2d(4, 4, 1, groups=2),
    "depthwise, but 7 x 7": nn.Conv2d(4, 4, 7, groups=4),
    "depthwise, but stride (3, 3)": nn.Conv2d(4, 4, 3, stride=3, groups=4),
    "padding by name, or not by zeros": nn.Conv2d(4, 4, 3, padding="same", groups=4),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_the_rules_refuse_stays_as_it_is(why: str) -> None:
    model = nn.Sequential(REFUSED[why]).eval()
    fast, (layer,) = rewritten(model, "sparse")
    assert (layer.kind, layer.why) == ("kept", why)
    torch.testing.assert_close(fast(images(4)), model(images(4)), rtol=1e-4, atol=1e-5)


def test_a_result_that_is_used_twice_is_not_fused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.activation = nn.Conv2d(3, 4, 1), nn.ReLU6()

        def forward(self, x):
            y = self.convolution(x)
            return y - self.activation(y)

    model = Twice().eval()
    fast, _ = rewritten(model, "sparse")
    torch.testing.assert_close(fast(images()), model(images()))


def test_a_batch_lies_side_by_side() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 5, 1)
    layer = DenseConv1x1(model.weight.detach().flatten(1), model.bias.detach(), 0.0, 1.0)
    y = layer(images())
    torch.testing.assert_close(y, model(images()).clamp(0, 1))
    assert y.transpose(0, 1).is_contiguous()


def test_what_cannot_be_rewritten_is_named() -> None:
    with pytest.raises(ValueError, match="training mode"):
        rewritten(small_mobilenet(0.25))
    with pytest.raises(ValueError, match="keeps no statistics"):
        rewritten(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval())
