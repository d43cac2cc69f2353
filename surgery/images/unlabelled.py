"""Images without labels, for looking at what a network does with them: a few of many, chosen evenly, always the same ones.

Where there are images for training they alone are taken: what is measured on images for validation later must not have been seen here.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.errors import InputError
from chansurg.surgery.images.augmentation import Normalise
from chansurg.surgery.images.classified import SPLITS, pixels_transform, read_image, unreadable
from chansurg.surgery.images.library import LibraryImages, library_data
from chansurg.surgery.images.tree import IMAGE_SUFFIXES, ImageTree, open_tree

KEPT_BYTES = 2**28
"""Decoded images that fit into so many bytes are kept from one pass to the next."""
HELD_OUT = 8
"""One image of so many is kept from what is fitted."""

log = logging.getLogger(__name__)

_Source = tuple[str, Callable[[], Image.Image]]


class Unlabelled:
    """Images in a fixed order that does not follow their names, so that the first ones stand for all.

    Args:
        where: what to call the data in a message.
        images: what each image is called, and what decodes it as RGB.
        preprocessing: how an image becomes the network's input.
        found: how many images the data has.

    Raises:
        InputError: for a network whose input has neither one channel nor three.
    """

    def __init__(self, where: str, images: Sequence[_Source], preprocessing: Preprocessing, found: int) -> None:
        self.where = where
        self.found = found
        self.preprocessing = preprocessing
        self._images = list(images)
        self._prepare = pixels_transform(preprocessing)
        channels, height, width = preprocessing.input_size
        self._keeps = len(self._images) * channels * height * width <= KEPT_BYTES
        self._pixels: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._images)

    @property
    def names(self) -> list[str]:
        """What the images are called, in order."""
        return [name for name, _ in self._images]

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """``[B, C, H, W]`` float32 as when evaluating, in order; the last batch may be smaller.

        Raises:
            InputError: where an image cannot be read; names it.
        """
        normalise = Normalise(self.preprocessing, torch.device(device))
        for start in range(0, len(self), size):
            pixels = [self._decoded(name, decode) for name, decode in self._images[start : start + size]]
            yield normalise(torch.stack(pixels).to(device))

    def first(self, count: int) -> Unlabelled:
        """The first images, or all where there are fewer."""
        return self._part(self._images[:count])

    def between(self, start: int, stop: int) -> Unlabelled:
        """The images from one number to another."""
        return self._part(self._images[start:stop])

    def divided(self) -> tuple[Unlabelled, Unlabelled]:
        """The images to fit on, and those held out to judge the fit by: every eighth, and one at least; a single image serves as both."""
        held = [index for index in range(len(self)) if index % HELD_OUT == HELD_OUT - 1] or [len(self) - 1]
        apart = set(held)
        others = [index for index in range(len(self)) if index not in apart] or held
        fitted, judging = ([self._images[index] for index in part] for part in (others, held))
        return self._part(fitted), self._part(judging)

    def _part(self, images: Sequence[_Source]) -> Unlabelled:
        part = Unlabelled(self.where, images, self.preprocessing, self.found)
        part._keeps, part._pixels = self._keeps, self._pixels
        return part

    def _decoded(self, name: str, decode: Callable[[], Image.Image]) -> Tensor:
        pixels = self._pixels.get(name)
        if pixels is None:
            pixels = self._prepare(decode())
            if self._keeps:
                self._pixels[name] = pixels
        return pixels


def open_unlabelled(data: str | os.PathLike[str], preprocessing: Preprocessing, samples: int = 1024, seed: int = 0) -> Unlabelled:
    """Some of the images of a folder, a zip, or a data set of torchvision's, at any depth; with ``train`` among its folders only those.

    The names in order are cut into as many runs as images are wanted, and each run gives one: where classes have folders, each class gets
    its share.

    Args:
        data: a path, or ``NAME:FOLDER`` as :func:`~chansurg.surgery.images.library.open_images` takes it.
        preprocessing: how an image becomes the network's input.
        samples: how many images are wanted; all are taken where there are fewer.
        seed: of the choice and of the order.

    Raises:
        InputError: where there is no such data, no image in it that may be used, or fewer than one is wanted.
    """
    if samples < 1:
        raise InputError(
            f"{samples} images were asked for.",
            where="option --samples",
            not_done="No image was read.",
            to_do="Ask for one image at least; the default is 1024.",
        )
    where, images = _sources(data)
    if len(images) < samples:
        log.warning("%s has %d images for training, fewer than the %d asked for: all of them are used", where, len(images), samples)
    return Unlabelled(where, [images[index] for index in _chosen(len(images), samples, seed)], preprocessing, len(images))


def _chosen(count: int, samples: int, seed: int) -> list[int]:
    """One index of each of ``samples`` equal runs below ``count``, in an order of their own."""
    generator = torch.Generator().manual_seed(seed)
    wanted = min(samples, count)
    edges = [number * count // wanted for number in range(wanted + 1)] if wanted else [0]
    index = [int(torch.randint(low, high, (), generator=generator)) for low, high in itertools.pairwise(edges)]
    return [index[place] for place in torch.randperm(wanted, generator=generator).tolist()]


def _sources(data: str | os.PathLike[str]) -> tuple[str, list[_Source]]:
    named = library_data(data)
    if named is not None:
        library = LibraryImages(*named, split="train", transform=lambda image: image)  # type: ignore[arg-type,return-value]
        return library.where, [(str(index), partial(_of_library, library, index)) for index in range(len(library))]
    tree = open_tree(data)
    if (split := tree.path.name.lower()) in SPLITS and split != "train":
        log.warning("%s is named like the images that results are judged by: what it is fitted to says little about others", tree.path)
    names = _names(tree)
    return str(tree.path), [(name, partial(read_image, tree, name)) for name in names]


def _of_library(library: LibraryImages, index: int) -> Image.Image:
    try:
        return library.image(index)
    except Exception as error:  # a damaged image makes Pillow raise nearly anything
        raise unreadable(f"{library.where}: image {index}", error) from error


def _names(tree: ImageTree) -> list[str]:
    """The images of folders named ``train``, at any depth, where there are such; else all that lie in no folder for another split."""
    by_split: dict[str, list[str]] = {}
    for name in tree.images(""):
        split = next((folder.lower() for folder in name.split("/")[:-1] if folder.lower() in SPLITS), "")
        by_split.setdefault(split, []).append(name)
    names = by_split.get("train") or by_split.get("")
    if names:
        return names
    evaluating = sorted(by_split)
    raise InputError(
        f"Its only images are those of {', '.join(evaluating)}, which results are judged by." if evaluating else "There is no image in it.",
        where=str(tree.path),
        not_done="No image was read.",
        to_do="Pass images for training: a folder or zip with train/ in it, or with nothing but images, in folders or not."
        if evaluating
        else f"Images are files that end in {', '.join(IMAGE_SUFFIXES)}.",
    )
