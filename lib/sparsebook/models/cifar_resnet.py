"""Residual networks for small pictures: He et al. 2016 (arXiv 1512.03385, section 4.2), depth 6 n + 2."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class CifarResNet(nn.Module):
    """A stem, three segments of basic blocks with 1, 2 and 4 times `width` filters, mean, one linear layer.

    A shortcut that has to change channels or resolution is a 1 x 1 convolution with normalisation, as in the
    networks of Liu et al. 2022 (He et al. have one without weights).

    Parameters
    ----------
    depth : 8, 14, 20, ... (6 n + 2): layers of convolution on the longest path, and the linear one
    width : filters of the stem
    n_classes
    in_channels : of the pictures
    stem_stride : 2 halves the resolution at once

    Raises
    ------
    ValueError : another depth, or sizes below 1
    """

    def __init__(
        self, depth: int, width: int = 16, n_classes: int = 10, in_channels: int = 3, stem_stride: int = 1
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth={depth}: expected 8, 14, 20, ... (6 n + 2)")
        if min(width, n_classes, in_channels, stem_stride) < 1:
            raise ValueError(
                f"width={width}, n_classes={n_classes}, in_channels={in_channels}, "
                f"stem_stride={stem_stride}: expected at least 1"
            )
        self.stem = _convolution(in_channels, width, stem_stride)
        blocks: list[nn.Module] = []
        channels = width
        for segment in range(3):
            wider = width * 2**segment
            for place in range((depth - 2) // 6):
                stride = 2 if segment and not place else 1
                blocks.append(BasicBlock(channels, wider, stride))
                channels = wider
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, n_classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "*out"]:
        """Logits, ``[batch, classes]``."""
        return self.classifier(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class BasicBlock(nn.Module):
    """Two convolutions of 3 x 3 beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, stride)
        self.second = _convolution(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _convolution(inputs, outputs, stride, side=1)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, stride: int = 1, side: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))
