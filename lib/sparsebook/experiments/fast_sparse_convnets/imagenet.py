"""ImageNet in its official layout, for scale "paper": folders of classes, images cropped to 224 pixels."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sparsebook.data.photographs import read_image
from sparsebook.networks.fast_sparse_convnets import mobilenet_v1

_ENDINGS = {".jpeg", ".jpg", ".png"}
_MEAN, _DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class ImageNet:
    """The task of the paper; see `training.Task`.

    Attributes
    ----------
    folder : holds train/<class>/*.JPEG and val/<class>/*.JPEG
    side : of the crops, in pixels
    """

    folder: Path
    side: int = 224
    classes: int = field(init=False)

    def __post_init__(self) -> None:
        if not self._names:
            raise ValueError(f"{self.folder} holds no train/<class>/: expected ImageNet's folders")
        if not all(self._files(part)[0] for part in ("train", "val")):
            raise ValueError(f"{self.folder} holds no images in train/<class>/ or val/<class>/")
        object.__setattr__(self, "classes", len(self._names))

    @cached_property
    def _names(self) -> list[str]:
        train = self.folder / "train"
        return sorted(path.name for path in train.iterdir() if path.is_dir()) if train.is_dir() else []

    def _files(self, part: str) -> tuple[list[Path], list[int]]:
        found = [
            (path, label)
            for label, name in enumerate(self._names)
            for path in sorted((self.folder / part / name).glob("*"))
            if path.suffix.lower() in _ENDINGS
        ]
        return [path for path, _ in found], [label for _, label in found]

    @cached_property
    def _train(self) -> tuple[list[Path], list[int]]:
        return self._files("train")

    def network(self, width: float) -> nn.Module:
        """MobileNet v1."""
        return mobilenet_v1(width, self.classes)

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random images, a random square of each, mirrored or not."""
        files, labels = self._train
        chosen = torch.randint(len(files), (n,), generator=generator).tolist()
        images = [self._random_square(read(files[i]), generator) for i in chosen]
        return torch.cat(images), torch.tensor([labels[i] for i in chosen])

    def test(self) -> tuple[Tensor, Tensor]:
        """The validation images, the central seven eighths of each."""
        files, labels = self._files("val")
        return torch.cat([self._central_square(read(path)) for path in files]), torch.tensor(labels)

    def _random_square(self, image: Tensor, generator: torch.Generator) -> Tensor:
        share, top, left, mirrored = torch.rand(4, generator=generator).tolist()
        height, width = image.shape[2:]
        side = max(1, round(min(height, width) * (0.35 + 0.65 * share)))
        top, left = int(top * (height - side + 1)), int(left * (width - side + 1))
        square = self._scaled(image[:, :, top : top + side, left : left + side])
        return square.flip(-1) if mirrored < 0.5 else square

    def _central_square(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        side = round(min(height, width) * 7 / 8)
        top, left = (height - side) // 2, (width - side) // 2
        return self._scaled(image[:, :, top : top + side, left : left + side])

    def _scaled(self, image: Tensor) -> Tensor:
        sides = (self.side, self.side)
        return interpolate(image, sides, mode="bilinear", antialias=True, align_corners=False)


def read(path: Path) -> Float[Tensor, "1 3 height width"]:
    """An image file, of mean 0 and deviation 1 as ImageNet is usually scaled."""
    pixels = torch.from_numpy(read_image(path)).float() / 255
    pixels = pixels.expand(-1, -1, 3) if pixels.shape[-1] == 1 else pixels
    return ((pixels - _MEAN) / _DEVIATION).permute(2, 0, 1)[None]
