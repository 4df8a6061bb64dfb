"""Fast Sparse ConvNets (Elsen, Dukhan, Gale and Simonyan 2019, arXiv 1911.09723).

MobileNets spend nearly all their time in 1 x 1 convolutions: products of a matrix of weights with a matrix of
channels x pixels. Pruned to 70 to 95 % zeros these run as sparse products, if images lie channel by channel
from one end of the network to the other. `rewritten` makes such a network of a trained one:

    pruner = MagnitudePruner(model, PolynomialSparsity(0.0, 0.9, 0, 1000))
    pruner.attach(optimizer)                      # then train as ever
    pruner.finish()
    fast, report = rewritten(model.eval())        # batch norm folded, clamps fused, 1 x 1 products sparse
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from sparsebook.kernels.depthwise import depthwise_conv2d
from sparsebook.networks.layers import SparseConv2d
from sparsebook.networks.masks import SparsityMask, block_mask, mask_of_scores
from sparsebook.networks.schedules import Periodic, Schedule

MIN_SPARSITY = 2 / 3
"""Products are sparse if more than this share of all 1 x 1 weights is zero (XNNPACK's rule)."""

_INF = math.inf

# Networks --------------------------------------------------------------------------------------------------

SMALL_BLOCKS = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1))
"""Channels and strides of seven separable blocks for images of 32 x 32 pixels."""
_V1_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip
_V2_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v1(width: float | int = 1.0, classes: int = 1000, channels: int = 3) -> nn.Sequential:
    """MobileNet v1 (Howard et al. 2017, arXiv 1704.04861, Table 1) with ReLU6, for images of 224 pixels.

    Parameters
    ----------
    width : float
        Factor of every layer's channels, rounded to multiples of 8.
    classes, channels : int
        Outputs, and channels of the images.
    """
    return _separable(_V1_BLOCKS, 32, 2, width, classes, channels)


def small_mobilenet(width: float | int = 1.0, classes: int = 10, channels: int = 1) -> nn.Sequential:
    """The same with seven blocks (`SMALL_BLOCKS`), for images of 32 x 32 pixels; parameters as above."""
    return _separable(SMALL_BLOCKS, 16, 2, width, classes, channels)


def mobilenet_v2(width: float | int = 1.0, classes: int = 1000, channels: int = 3) -> nn.Sequential:
    """MobileNet v2 (Sandler et al. 2018, arXiv 1801.04381, Table 2); parameters as in `mobilenet_v1`."""
    inputs = _rounded(32 * width)
    layers: list[nn.Module] = [_convolution(channels, inputs, 3, 2)]
    for expansion, outputs, repeats, stride in _V2_BLOCKS:
        for turn in range(repeats):
            outgoing = _rounded(outputs * width)
            layers.append(InvertedResidual(inputs, outgoing, expansion, stride if turn == 0 else 1))
            inputs = outgoing
    last = _rounded(1280 * max(1.0, width))
    layers += [_convolution(inputs, last, 1), *_classifier(last, classes)]
    return nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """Expand by a 1 x 1 convolution, convolve each channel, project; the input is added where it fits."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [] if expansion == 1 else [_convolution(inputs, inner, 1)]
        self.layers = nn.Sequential(
            *expand,
            _convolution(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Any) -> Any:
        """The block's result. (Tracing hands in a stand-in for the tensor.)"""
        return x + self.layers(x) if self.adds else self.layers(x)


def _separable(
    blocks: tuple[tuple[int, int], ...],
    first: int,
    step: int,
    width: float | int,
    classes: int,
    channels: int,
) -> nn.Sequential:
    inputs = _rounded(first * width)
    layers: list[nn.Module] = [_convolution(channels, inputs, 3, step)]
    for outputs, stride in blocks:
        outgoing = _rounded(outputs * width)
        layers += [_convolution(inputs, inputs, 3, stride, groups=inputs), _convolution(inputs, outgoing, 1)]
        inputs = outgoing
    return nn.Sequential(*layers, *_classifier(inputs, classes))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


def _classifier(inputs: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]


def _rounded(channels: float | int) -> int:
    """To the nearest multiple of 8, at least 8, never below nine tenths (as MobileNets are published)."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


# Pruning ---------------------------------------------------------------------------------------------------


def pointwise(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The 1 x 1 convolutions of one group by name: what is pruned. First layer and classifier stay dense."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    }


def magnitude_masks(
    model: nn.Module, sparsity: float | int, blocks: Mapping[str, int] | int = 1
) -> dict[str, Tensor]:
    """Masks of all 1 x 1 convolutions that keep the largest weights of each layer.

    Parameters
    ----------
    model : torch.nn.Module
    sparsity : float in [0, 1)
        Of every layer: ``max(1, round(n (1 - sparsity)))`` of n weights, or blocks, are kept.
    blocks : int, or int by layer
        Rows that share their columns: 1, 2 or 4; blocks are ranked by their mean magnitude.

    Returns
    -------
    name of the weight -> bool [outputs, inputs, 1, 1]

    Raises
    ------
    ValueError
        No 1 x 1 convolution, a sparsity outside [0, 1), or blocks that do not divide the outputs.
    """
    found = pointwise(model)
    if not found:
        raise ValueError("model has no 1 x 1 convolution of one group: there is nothing to prune")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be at least 0 and below 1, got {sparsity}")
    masks = {}
    for name, layer in found.items():
        block = blocks if isinstance(blocks, int) else blocks.get(name, 1)
        size = layer.weight.detach().flatten(1).abs()
        kept = (
            mask_of_scores(size, 1 - sparsity) if block == 1 else block_mask(size, 1 - sparsity, (block, 1))
        )
        masks[f"{name}.weight"] = kept.view(layer.weight.shape)
    return masks


class MagnitudePruner:
    """Gradual magnitude pruning of the 1 x 1 convolutions (Zhu and Gupta 2017, arXiv 1710.01878).

    Parameters
    ----------
    model : torch.nn.Module
    schedule : sparsity by step
        Such as `schedules.PolynomialSparsity`.
    when : Periodic
        The steps after which masks are made anew, by the magnitudes of that moment. A weight that is masked
        is zero until then, and so hardly ever returns.
    blocks : as in `magnitude_masks`
    """

    def __init__(
        self, model: nn.Module, schedule: Schedule, when: Periodic, blocks: Mapping[str, int] | int = 1
    ) -> None:
        self.model, self.schedule, self.when, self.blocks = model, schedule, when, blocks
        self.sparsity = SparsityMask(model, magnitude_masks(model, 0.0, blocks))
        self.step = 0

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Prune after the optimiser's steps that are due, and keep zero what is pruned."""
        self.sparsity.attach(optimizer)

        def after(*_: Any) -> None:
            if self.when.due(self.step):
                self.prune()
            self.step += 1

        optimizer.register_step_post_hook(after)

    def prune(self) -> None:
        """Make the masks of the current step."""
        self.sparsity.set(magnitude_masks(self.model, self.schedule(self.step), self.blocks))

    def finish(self) -> None:
        """Masks of the schedule's end, and exact zeros."""
        self.prune()


# Blocks ----------------------------------------------------------------------------------------------------


def choose_block(weight: Float[Tensor, "rows columns"]) -> int:
    """Rows that should share their columns: 4 or 2 where such blocks are at least 90 % full, else 1.

    XNNPACK's rule. With fewer rows than a block, or rows that it does not divide, or no weights, smaller.
    """
    there = weight != 0
    for block in (4, 2):
        if there.shape[0] >= block and there.shape[0] % block == 0 and bool(there.any()):
            stored = block * int(there.unflatten(0, (-1, block)).any(1).sum())
            if 10 * int(there.sum()) >= 9 * stored:
                return block
    return 1


# The rewritten network -------------------------------------------------------------------------------------


class DenseConv1x1(nn.Module):
    """A 1 x 1 convolution as one product of PyTorch's own over images that lie channel by channel.

    The rival of `SparseConv2d` in the same network: all else about it is the same.

    Parameters
    ----------
    weight : float [outputs, inputs]
    bias : float [outputs]
    low, high : float
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, low: float | int = -_INF, high: float | int = _INF
    ) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias[:, None])
        self.low, self.high = low, high

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs height width"]:
        """clamp(weight @ x + bias)."""
        y = torch.addmm(self.bias, self.weight, x.transpose(0, 1).reshape(x.shape[1], -1))
        if (self.low, self.high) != (-_INF, _INF):
            y = y.clamp_(self.low, self.high) if not y.requires_grad else y.clamp(self.low, self.high)
        return y.view(-1, x.shape[0], *x.shape[2:]).transpose(0, 1)


class DepthwiseConv2d(nn.Module):
    """A depthwise convolution over images that lie channel by channel, clamp included.

    Parameters
    ----------
    weight : float [channels, 1, rows, columns]
    bias : float [channels]
    stride : int
    sides : zeros at the left, right, top and bottom
    low, high : float
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        stride: int,
        sides: tuple[int, int, int, int],
        low: float | int = -_INF,
        high: float | int = _INF,
    ) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.stride, self.sides, self.low, self.high = stride, sides, low, high

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels new_height new_width"]:
        """clamp(x * weight + bias)."""
        return depthwise_conv2d(
            x, self.weight, self.bias, stride=self.stride, padding=self.sides, low=self.low, high=self.high
        )


class Convolution(nn.Module):
    """PyTorch's own convolution with its padding and clamp: what the rules leave as it is."""

    def __init__(
        self,
        layer: nn.Conv2d,
        sides: tuple[int, int, int, int],
        low: float | int = -_INF,
        high: float | int = _INF,
    ) -> None:
        super().__init__()
        self.layer, self.sides, self.low, self.high = layer, sides, low, high

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs new_height new_width"]:
        """clamp(convolution(x))."""
        y = self.layer(nn.functional.pad(x, self.sides) if any(self.sides) else x)
        return y if (self.low, self.high) == (-_INF, _INF) else y.clamp(self.low, self.high)


@dataclass(frozen=True)
class Layer:
    """What became of a convolution.

    Attributes
    ----------
    name : in the network
    kind : "sparse", "dense" (products), "depthwise" or "kept" (PyTorch's own)
    why : the rule
    sparsity : share of its weights that are zero
    block : rows that share their columns
    weights : their number, zeros included
    """

    name: str
    kind: Literal["sparse", "dense", "depthwise", "kept"]
    why: str
    sparsity: float
    block: int
    weights: int


Products = Literal["auto", "sparse", "dense", "torch"]


def rewritten(
    model: nn.Module,
    products: Products = "auto",
    *,
    min_sparsity: float = MIN_SPARSITY,
    block: int | Literal["auto"] = "auto",
) -> tuple[fx.GraphModule, list[Layer]]:
    """The network for inference: channel by channel, batch norm folded, clamps fused, products sparse.

    The network is traced (`torch.fx`); the model itself does not change. Batch norms and ReLU, ReLU6 or
    `Hardtanh` that follow a convolution become part of it. 1 x 1 convolutions of one group and stride become
    products, depthwise ones of 3 x 3 and 5 x 5 pixels run compiled; everything else stays PyTorch's.

    Parameters
    ----------
    model : torch.nn.Module in inference mode
    products : "auto", "sparse", "dense" or "torch"
        "auto" makes products sparse if more than `min_sparsity` of all their weights are zero, counted over
        the whole network. "torch" folds batch norms and leaves every convolution to PyTorch: the rival.
    min_sparsity : float
    block : 1, 2, 4 or "auto"
        Of sparse products; "auto" is `choose_block`.

    Returns
    -------
    network : torch.fx.GraphModule
    report : one `Layer` for every convolution

    Raises
    ------
    ValueError
        A model in training mode, or an unknown choice.

    Notes
    -----
    Where the paper's graph rewriting refuses TensorFlow's "same" padding, zeros on either side are allowed.
    """
    if model.training:
        raise ValueError("model is in training mode: expected model.eval(), batch norms are folded")
    if products not in ("auto", "sparse", "dense", "torch"):
        raise ValueError(f"products must be 'auto', 'sparse', 'dense' or 'torch', got {products!r}")
    tracer = _Tracer()
    graph = tracer.trace(model)
    network = fx.GraphModule(model, graph)
    found = [_Found.of(network, node) for node in graph.nodes if _convolution_of(network, node) is not None]
    shares = [one for one in found if one.kind() == "product"]
    zeros = sum(int((one.weight == 0).sum()) for one in shares)
    total = sum(one.weight.numel() for one in shares)
    if products == "auto":
        # Strictly more, and in whole numbers: exactly two thirds stay dense.
        products = "sparse" if zeros > min_sparsity * total + 1e-9 * total else "dense"
    report = [one.replace(network, products, block, zeros / max(1, total)) for one in found]
    graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()
    return network.eval(), report


class _Tracer(fx.Tracer):
    """Convolutions of derived classes are leaves, too: their padding is looked at by hand."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def _convolution_of(network: fx.GraphModule, node: fx.Node) -> nn.Conv2d | None:
    if node.op != "call_module":
        return None
    module = network.get_submodule(str(node.target))
    return module if isinstance(module, nn.Conv2d) else None


def _only_user(network: fx.GraphModule, node: fx.Node, kinds: tuple[type, ...]) -> tuple[fx.Node, Any] | None:
    """The one node that takes the result, and its module, if it is of these kinds."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if user.op != "call_module" or user.args != (node,):
        return None
    module = network.get_submodule(str(user.target))
    return (user, module) if isinstance(module, kinds) else None


def _bounds(activation: nn.Module) -> tuple[float, float]:
    if isinstance(activation, nn.Hardtanh):  # ReLU6 is one
        return float(activation.min_val), float(activation.max_val)
    return 0.0, _INF


class _Found:
    """A convolution of the graph with what follows it: folded weights, bounds, the last of its nodes."""

    def __init__(self, node: fx.Node, layer: nn.Conv2d) -> None:
        self.node, self.last, self.layer, self.name = node, node, layer, str(node.target)
        self.weight = layer.weight.detach()
        outputs = self.weight.shape[0]
        self.bias = self.weight.new_zeros(outputs) if layer.bias is None else layer.bias.detach()
        self.low, self.high = -_INF, _INF
        padding = layer.padding
        if isinstance(padding, str):
            self.sides: tuple[int, ...] | None = None
        else:
            self.sides = (padding[1], padding[1], padding[0], padding[0])
        around = getattr(layer, "static_padding", None)  # EfficientNet-Lite's: TensorFlow's "same"
        if isinstance(around, nn.ZeroPad2d) and self.sides is not None:
            self.sides = tuple(a + b for a, b in zip(self.sides, around.padding, strict=True))

    @classmethod
    def of(cls, network: fx.GraphModule, node: fx.Node) -> "_Found":
        found = cls(node, network.get_submodule(str(node.target)))  # type: ignore[arg-type]
        if following := _only_user(network, found.last, (nn.BatchNorm2d,)):
            found.last, norm = following
            found._fold(norm)
        if following := _only_user(network, found.last, (nn.Hardtanh, nn.ReLU)):
            found.last, activation = following
            found.low, found.high = _bounds(activation)
        return found

    def _fold(self, norm: nn.BatchNorm2d) -> None:
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(f"the batch norm after {self.name} keeps no statistics: it cannot be folded")
        scale = (norm.running_var + norm.eps).rsqrt()
        shift = -norm.running_mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight.detach(), shift * norm.weight.detach() + norm.bias.detach()
        self.weight = self.weight * scale[:, None, None, None]
        self.bias = self.bias * scale + shift

    def refusal(self) -> str:
        """Why neither a product nor a compiled depthwise convolution; empty if one of them."""
        layer, size = self.layer, tuple(self.layer.kernel_size)
        if self.sides is None or layer.padding_mode != "zeros":
            return "padding by name, or not by zeros"
        if layer.dilation != (1, 1) and list(layer.dilation) != [1, 1]:
            return "dilation"
        if layer.groups == 1 and size == (1, 1):
            if list(layer.stride) != [1, 1]:
                return "1 x 1, but with a stride"
            return "1 x 1, but padded" if any(self.sides) else ""
        if layer.groups == 1:
            return f"{size[0]} x {size[1]} over all channels"
        if layer.groups != layer.in_channels or layer.in_channels != layer.out_channels:
            return "groups of several channels"
        if size not in ((3, 3), (5, 5)):
            return f"depthwise, but {size[0]} x {size[1]}"
        return (
            "" if list(layer.stride) in ([1, 1], [2, 2]) else f"depthwise, but stride {tuple(layer.stride)}"
        )

    def kind(self) -> Literal["product", "depthwise", "kept"]:
        if self.refusal():
            return "kept"
        return "product" if self.layer.groups == 1 else "depthwise"

    def replace(
        self,
        network: fx.GraphModule,
        products: Literal["sparse", "dense", "torch"],
        block: int | Literal["auto"],
        share: float,
    ) -> Layer:
        module, kind, why, rows = self._module(products, block, share)
        name = "fast_" + self.name.replace(".", "_")
        network.add_submodule(name, module)
        with network.graph.inserting_after(self.last):
            new = network.graph.call_module(name, self.node.args, self.node.kwargs)
        self.last.replace_all_uses_with(new)
        new.args = self.node.args
        sparsity = float((self.weight == 0).double().mean())
        return Layer(self.name, kind, why, sparsity, rows, self.weight.numel())

    def _module(self, products: str, block: Any, share: float) -> tuple[nn.Module, Any, str, int]:
        kind, bounds = self.kind(), {"low": self.low, "high": self.high}
        kind = "kept" if products == "torch" else kind
        if kind == "depthwise":
            stride, sides = self.layer.stride[0], self.sides
            return DepthwiseConv2d(self.weight, self.bias, stride, sides, **bounds), kind, "depthwise", 1  # type: ignore[arg-type]
        folded = _with(self.layer, self.weight, self.bias)
        if kind == "kept":
            kept = Convolution(folded, self.sides or (0, 0, 0, 0), **bounds)  # type: ignore[arg-type]
            return kept, kind, self.refusal() or "asked for", 1
        matrix = self.weight.flatten(1)
        if products == "dense" or not bool(matrix.any()):
            why = f"{share:.1%} of all 1 x 1 weights are zero" if products == "dense" else "no weight at all"
            return DenseConv1x1(matrix, self.bias, **bounds), "dense", why, 1
        rows = choose_block(matrix) if block == "auto" else block
        why = f"1 x 1; {share:.1%} of all such weights are zero"
        return SparseConv2d.from_dense(folded, block=rows, low=self.low, high=self.high), "sparse", why, rows


def _with(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A plain convolution with these weights."""
    plain = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,  # type: ignore[arg-type]
        layer.dilation, layer.groups, padding_mode=layer.padding_mode, device=weight.device,  # type: ignore[arg-type]
        dtype=weight.dtype,
    )  # fmt: skip
    if isinstance(getattr(layer, "static_padding", None), nn.ZeroPad2d) or not isinstance(layer.padding, str):
        plain.padding = (0, 0)  # done by the module around it
    plain.weight, plain.bias = nn.Parameter(weight), nn.Parameter(bias)
    return plain
