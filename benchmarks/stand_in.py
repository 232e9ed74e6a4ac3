"""What diffusers' training scripts use of torchvision, for a machine that has none: it is copied below that name.

Pictures are Pillow's. Every function does what torchvision's does with a picture in RGB.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from PIL import Image


class InterpolationMode(Enum):
    """How pixels between pixels are found."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class Compose:
    """One after the other."""

    def __init__(self, parts: Sequence[Callable[[Any], Any]]) -> None:
        self.parts = parts

    def __call__(self, picture: Any) -> Any:
        for part in self.parts:
            picture = part(picture)
        return picture


class Resize:
    """The shorter edge to a size."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.size, self.how = size, Image.Resampling[interpolation.name]

    def __call__(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        short = min(width, height)
        return picture.resize((int(self.size * width / short), int(self.size * height / short)), self.how)


class CenterCrop:
    """A square from the middle."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return crop(picture, top, left, self.size, self.size)


class RandomCrop:
    """A square from anywhere."""

    def __init__(self, size: int) -> None:
        self.size = size

    @staticmethod
    def get_params(picture: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """(top, left, height, width)."""
        width, height = picture.size
        return random.randint(0, height - size[0]), random.randint(0, width - size[1]), *size


class RandomHorizontalFlip:
    """Mirrored as often as it says."""

    def __init__(self, p: float = 0.5) -> None:
        self.often = p

    def __call__(self, picture: Image.Image) -> Image.Image:
        mirrored = random.random() < self.often
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture


class ToTensor:
    """(3, H, W) in [0, 1]."""

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div_(255)


class Normalize:
    """Less the mean, over the spread."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(list(one)).reshape(-1, 1, 1) for one in (mean, std))

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self.mean) / self.std


def crop(picture: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    """A rectangle."""
    return picture.crop((left, top, left + width, top + height))
