"""From images on disk to batches where the network runs: decoded, varied, normalised.

Small images are decoded once and kept as uint8; whole batches of them are varied and normalised at once. Large ones are decoded anew in
every epoch, by worker processes, into which the same variation of the same image goes with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.images.augmentation import Augmentation, Normalise
from chansurg.surgery.images.classified import batches
from chansurg.surgery.images.library import LabelledImages
from chansurg.surgery.training.evaluation import default_workers
from chansurg.surgery.training.ordering import Key
from chansurg.surgery.training.seeding import seeds_of

KEPT_BYTES = 2**30
"""Decoded images of one split that are kept in memory, at most."""

_AUGMENTATION = 0xA0

Batch = tuple[Tensor, Tensor]


class ImageFeed:
    """Batches of one split.

    Args:
        images: the split.
        augmentation: how its images are varied.
        preprocessing: the network's.
        device: where batches go.
        seed: of the augmentation.
        workers: processes that decode what is not kept; ``None`` is one a processor, at most 8.
        kept_bytes: decoded images are kept where all of them take no more than this.
    """

    def __init__(
        self,
        images: LabelledImages,
        augmentation: Augmentation,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        seed: int = 0,
        workers: int | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.images = images
        self.device = device
        self.seed = seed
        self._augmentation = augmentation
        self._normalise = Normalise(preprocessing, device)
        size = preprocessing.input_size
        keeps = augmentation.fixed and len(images) * int(np.prod(size)) <= kept_bytes
        self._kept = _Kept(images, augmentation, size) if keeps else None
        self._workers = 0 if keeps else default_workers(workers, len(images))

    def batches(self, which: Iterable[list[Key]]) -> Iterator[Batch]:
        """``(images [B, C, H, W] float32, labels [B] int64)`` on the device, for lists of epochs and indices.

        Raises:
            InputError: where an image cannot be read; names it.
            Refusal: where a worker process died.
        """
        if self._kept is not None:
            for keys in which:
                indices = np.fromiter((index for _, index in keys), np.int64, len(keys))
                pixels, labels = self._kept.take(indices)
                yield self._moved(pixels, labels, self._seeds(keys))
        else:
            varied = _Varied(self.images, self._augmentation, self.seed)
            pinned = self.device.type == "cuda"
            for pixels, labels in batches(varied, which=which, workers=self._workers, pin_memory=pinned):
                yield self._moved(pixels, labels, None)

    def _moved(self, pixels: Tensor, labels: Tensor, seeds: np.ndarray | None) -> Batch:
        pixels, labels = (tensor.to(self.device, non_blocking=True) for tensor in (pixels, labels))
        if seeds is not None:
            pixels = self._augmentation.vary(pixels, seeds)
        return self._normalise(pixels), labels

    def _seeds(self, keys: Sequence[Key]) -> np.ndarray:
        return _image_seeds(self.seed, keys)


def in_order(images: int, batch_size: int) -> list[list[Key]]:
    """All images, one after the other, in batches; the last may be smaller."""
    return [[(0, index) for index in range(at, min(at + batch_size, images))] for at in range(0, images, batch_size)]


def _image_seeds(seed: int, keys: Sequence[Key]) -> np.ndarray:
    """``[B]`` uint64; a batch lies in one epoch."""
    indices = np.fromiter((index for _, index in keys), np.int64, len(keys))
    return seeds_of(indices, _AUGMENTATION, seed, keys[0][0])


class _Kept:
    """Decoded images, each read when it is first asked for."""

    def __init__(self, images: LabelledImages, augmentation: Augmentation, size: Sequence[int]) -> None:
        self.images, self.augmentation = images, augmentation
        self.pixels = torch.empty(len(images), *size, dtype=torch.uint8)
        self.labels = torch.tensor([images.label(index) for index in range(len(images))])
        self.read = np.zeros(len(images), dtype=bool)

    def take(self, indices: np.ndarray) -> Batch:
        """``[B, C, H, W]`` uint8 and ``[B]`` int64."""
        for index in indices[~self.read[indices]].tolist():
            self.pixels[index] = self.augmentation.pixels(self.images.image(index), 0)
            self.read[index] = True
        chosen = torch.from_numpy(indices)
        return self.pixels[chosen], self.labels[chosen]


class _Varied(Dataset[tuple[Tensor, int]]):
    """Single images, decoded and varied, by epoch and index: what a worker process does."""

    def __init__(self, images: LabelledImages, augmentation: Augmentation, seed: int) -> None:
        self.images, self.augmentation, self.seed = images, augmentation, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        seeds = _image_seeds(self.seed, [key])
        pixels = self.augmentation.pixels(self.images.image(key[1]), int(seeds[0] >> np.uint64(1)))
        return self.augmentation.vary(pixels[None], seeds)[0], self.images.label(key[1])
