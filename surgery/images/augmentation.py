"""How training images are varied. What is drawn for an image depends on its seed alone.

A preset has two halves. The first turns a decoded image into pixels of the network's size. The second varies a batch of such pixels at
once; where only this half is random, images are decoded once and kept. Pixels stay uint8 throughout: a preset never computes with
brightness, and a batch is normalised where the network runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.images.classified import Transform, channel_statistics, pixels_transform

SMALL = 64
"""Inputs up to this many pixels a side are taken for CIFAR-like ones."""


class Augmentation:
    """No variation: training sees what evaluation sees. The other presets build on this one.

    Attributes:
        fixed: whether the first half gives the same pixels for the same image every time.
    """

    fixed = True

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._prepare: Transform = pixels_transform(preprocessing)

    def pixels(self, image: Image.Image, seed: int) -> Tensor:
        """The first half: from a decoded RGB image to ``[C, H, W]`` uint8."""
        return self._prepare(image)

    def vary(self, pixels: Tensor, seeds: NDArray[np.uint64]) -> Tensor:
        """The second half: ``[B, C, H, W]`` uint8, each image with its own seed; ``pixels`` is not changed."""
        return pixels


class Cifar(Augmentation):
    """A crop from the image padded by an eighth of its size (4 of 32 pixels) with black, and a mirror image half of the time.

    He et al., "Deep Residual Learning", section 4.2.
    """

    def vary(self, pixels: Tensor, seeds: NDArray[np.uint64]) -> Tensor:
        """See :class:`Augmentation`."""
        _, channels, height, width = pixels.shape
        above, left = height // 8, width // 8
        down, right, mirrored = (torch.from_numpy(_drawn(seeds, at, below)) for at, below in enumerate((2 * above + 1, 2 * left + 1, 2)))
        across = torch.arange(width)
        columns = right[:, None] + torch.where(mirrored[:, None] == 1, across.flip(0), across)
        rows = down[:, None] + torch.arange(height)
        padded = F.pad(pixels, (left, left, above, above))
        places = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).flatten(1).to(pixels.device, non_blocking=True)
        return padded.flatten(2).gather(2, places[:, None].expand(-1, channels, -1)).view_as(pixels)


class ImageNet(Augmentation):
    """A random part of the image at a random aspect ratio, resized, and a mirror image half of the time.

    Szegedy et al., "Going Deeper with Convolutions", section 6; the ranges are torchvision's.
    """

    fixed = False

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__(preprocessing)
        channels, height, width = preprocessing.input_size
        part = v2.RandomResizedCrop((height, width), interpolation=InterpolationMode(preprocessing.interpolation))
        grey = [v2.Grayscale(1)] if channels == 1 else []
        self._random = v2.Compose([part, v2.RandomHorizontalFlip(), *grey, v2.PILToTensor()])

    def pixels(self, image: Image.Image, seed: int) -> Tensor:
        """See :class:`Augmentation`."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            varied: Tensor = self._random(image)
        return varied


PRESETS: dict[str, type[Augmentation]] = {"cifar": Cifar, "imagenet": ImageNet, "none": Augmentation}


def augmentation(name: str | None, preprocessing: Preprocessing) -> Augmentation:
    """The preset of this name; ``None`` takes the one for inputs of such a size."""
    if name is None:
        name = "cifar" if max(preprocessing.input_size[1:]) <= SMALL else "imagenet"
    return PRESETS[name](preprocessing)


class Normalise:
    """From pixels to the network's input: ``[B, C, H, W]`` uint8 to float32, as when evaluating."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        mean, std = channel_statistics(preprocessing)
        self.mean, self.std = (_per_channel(values, device) for values in (mean, std))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Scale to 0 to 1, subtract the mean, divide by the standard deviation."""
        scaled: Tensor = functional.to_dtype(pixels, torch.float32, scale=True)
        return scaled.sub_(self.mean).div_(self.std)


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def _drawn(seeds: NDArray[np.uint64], which: int, below: int) -> NDArray[np.int64]:
    """The ``which``-th whole number below ``below`` that each seed gives, from 16 bits of its own."""
    bits = (seeds >> np.uint64(16 * which)) & np.uint64(0xFFFF)
    return ((bits * np.uint64(below)) >> np.uint64(16)).astype(np.int64)
