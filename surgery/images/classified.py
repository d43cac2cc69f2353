"""Labelled images for networks: which images there are, what class each has, and how it becomes the network's input.

A data set is a tree of class folders (``cat/001.jpg``), with or without split folders above them (``val/cat/001.jpg``), on disk or in a
zip. :class:`ClassifiedImages` is an ordinary PyTorch data set; :func:`batches` is the loop over it. Classes and images come in sorted
order, so the same data gives the same batches everywhere.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.errors import InputError, Refusal
from chansurg.surgery.images.tree import IMAGE_SUFFIXES, ImageTree, open_tree

SPLITS = ("train", "val", "valid", "validation", "test")

_NOT_READ = "No image was read."

log = logging.getLogger(__name__)

Transform = Callable[[Image.Image], Tensor]


class MissingSplit(InputError):
    """The data has no folder of a split's name."""


class ClassifiedImages(Dataset[tuple[Tensor, int]]):
    """Images of one split, and the class of each.

    An item is ``(image [C, H, W] float32, label)``; the label is the position of the image's folder in ``classes`` unless ``labels`` maps
    it to one of the network's outputs.

    Args:
        data: folder or zip, as :func:`~chansurg.surgery.images.tree.open_tree` takes it.
        split: folder between the top and the class folders; not looked for where the class folders lie at the top.
        transform: what turns a decoded RGB image into the network's input.
        whole: where the class folders lie at the top, take all images, whatever the split.

    Attributes:
        where: what to call the data in a message.
        classes: the class folders, sorted.
        labels: for each class, the network's output that stands for it.

    Raises:
        InputError: where there is no such data or split, or a class has no image.
    """

    def __init__(self, data: str | os.PathLike[str], *, split: str, transform: Transform, whole: bool = True) -> None:
        self.tree = open_tree(data)
        self.where = str(self.tree.path)
        self.transform = transform
        base = _class_folder(self.tree, split, whole=whole)
        self.classes = self.tree.folders(base)
        self.labels: Sequence[int] = range(len(self.classes))
        folders = [f"{base}/{name}" if base else name for name in self.classes]
        images = [self.tree.images(folder) for folder in folders]
        for folder, inside in zip(folders, images, strict=True):
            if not inside:
                raise InputError(
                    f"The class folder {folder!r} holds no image." if any(images) else "There is no image in it.",
                    where=f"{self.tree.path}: {folder}" if any(images) else str(self.tree.path),
                    not_done=_NOT_READ,
                    to_do="Remove the folder, or put the class's images into it."
                    if any(images)
                    else f"Images are files that end in {', '.join(IMAGE_SUFFIXES)}, in one folder for each class.",
                )
        self.samples = [(name, position) for position, inside in enumerate(images) for name in inside]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.image(index)), self.label(index)

    def image(self, index: int) -> Image.Image:
        """One image, decoded as RGB.

        Raises:
            InputError: where it cannot be read; names it.
        """
        return read_image(self.tree, self.samples[index][0])

    def label(self, index: int) -> int:
        """The network's output that stands for one image's class."""
        return self.labels[self.samples[index][1]]

    def listing(self) -> str:
        """A digest of which images there are, in which order, in which classes."""
        return listing_digest(self.classes, (f"{name} {position}" for name, position in self.samples))


def listing_digest(classes: Iterable[str], images: Iterable[str]) -> str:
    """Sixteen hexadecimal digits for a list of classes and of images."""
    digest = hashlib.sha256()
    for part in (*classes, "", *images):
        digest.update(f"{part}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _class_folder(tree: ImageTree, split: str, *, whole: bool) -> str:
    """The folder whose folders are the classes."""
    base, found = "", tree.folders("")
    if len(found) == 1 and found[0] not in SPLITS and tree.folders(found[0]):
        base, found = found[0], tree.folders(found[0])
    inside = f"{base}/{split}" if base else split
    if split in found and tree.folders(inside):
        return inside
    if not found:
        raise InputError(
            "There are no class folders with images in it.",
            where=str(tree.path),
            not_done=_NOT_READ,
            to_do=f"Lay it out as {split}/CLASS/IMAGE.jpg{', or CLASS/IMAGE.jpg' if whole else ''}.",
        )
    names = [name for name in found if name in SPLITS]
    splits = [name for name in names if tree.folders(f"{base}/{name}" if base else name)]
    if splits or names == found or not whole:
        missing = f"The folder {split!r} holds no class folders." if split in found else f"There is no folder {split!r}."
        there = splits or found
        otherwise = "Name one with --split (in Python: split=), or lay" if whole else "Lay"
        raise (InputError if split in found else MissingSplit)(
            missing,
            where=str(tree.path),
            not_done=_NOT_READ,
            to_do=f"Found: {', '.join(there[:10])}{', …' if len(there) > 10 else ''}. {otherwise} the data out as {split}/CLASS/IMAGE.jpg.",
        )
    log.info("%s has no split folders: all its images are taken", tree.path)
    return base


def match_classes(folders: Sequence[str], class_names: Sequence[str] | None, outputs: int, *, where: str) -> list[int]:
    """For each class folder, in order, the network's output that stands for it.

    By name where the network's class names are known and the folders carry them (they may be fewer); where no folder carries one, the
    sorted folders are the outputs, one by one.

    Raises:
        InputError: where only some folders carry a known name, or the numbers differ.
    """
    names = list(class_names or ())
    odd = [folder for folder in folders if names.count(folder) != 1]
    if names and not odd:
        return [names.index(folder) for folder in folders]
    if any(folder in names for folder in folders):
        raise InputError(
            f"The network has not exactly one class named {', '.join(map(repr, odd[:5]))}{', …' if len(odd) > 5 else ''}.",
            where=where,
            not_done=_NOT_READ,
            to_do=f"Name the folders after the network's {len(names)} classes: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}.",
        )
    if len(folders) != outputs:
        raise InputError(
            f"The data has {len(folders)} classes and the network has {outputs} outputs.",
            where=where,
            not_done=_NOT_READ,
            to_do="Take a network for these classes, or the data it was made for, with one folder for each class.",
        )
    return list(range(outputs))


class Fit:
    """Bring an image to ``(height, width)``: short side to ``resize`` pixels, then the centre. One of that size stays as it is."""

    def __init__(self, height: int, width: int, resize: int | None, interpolation: str) -> None:
        self.height, self.width = height, width
        self.resize = height if resize is None else resize
        self.interpolation = InterpolationMode(interpolation)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Resample and crop."""
        if image.size == (self.width, self.height):
            return image
        resized = functional.resize(image, [self.resize], interpolation=self.interpolation)
        cropped: Image.Image = functional.center_crop(resized, [self.height, self.width])
        return cropped


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """From a decoded image to ``[C, H, W]`` float32, the same for the same image every time.

    Raises:
        InputError: for a network whose input has neither one channel nor three.
    """
    mean, std = channel_statistics(preprocessing)
    to_input = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    transform: Transform = v2.Compose([pixels_transform(preprocessing), *to_input])
    return transform


def channel_statistics(preprocessing: Preprocessing) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each input channel; a grey network's are the mean over three where only those are known."""
    mean, std = list(preprocessing.mean), list(preprocessing.std)
    if preprocessing.input_size[0] == 1:
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    return mean, std


def pixels_transform(preprocessing: Preprocessing) -> Transform:
    """From a decoded image to ``[C, H, W]`` uint8 of the network's size; a network with one input channel sees grey images.

    Raises:
        InputError: for a network whose input has neither one channel nor three.
    """
    channels, height, width = preprocessing.input_size
    if channels not in (1, 3):
        raise InputError(
            f"The network takes {channels} input channels; an image has 3, or 1 where it is grey.",
            where=f"input size {channels},{height},{width}",
            not_done=_NOT_READ,
            to_do="Pass --input-size with 1 or 3 channels, or run the network in a loop of your own.",
        )
    grey = [v2.Grayscale(1)] if channels == 1 else []
    fit = Fit(height, width, preprocessing.resize, preprocessing.interpolation)
    transform: Transform = v2.Compose([fit, *grey, v2.PILToTensor()])
    return transform


@dataclass(frozen=True)
class _Unreadable:
    """What a worker process hands back in place of a batch: exceptions with several parts do not survive the way between processes."""

    parts: dict[str, str]


class _Guarded(Dataset["tuple[Tensor, int] | _Unreadable"]):
    def __init__(self, images: Dataset[tuple[Tensor, int]]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]  # torch's Dataset declares no length

    def __getitem__(self, at: Any) -> tuple[Tensor, int] | _Unreadable:
        try:
            return self.images[at]
        except InputError as error:
            return _Unreadable(error.parts())


def _collate(items: list[tuple[Tensor, int] | _Unreadable]) -> tuple[Tensor, Tensor] | _Unreadable:
    for item in items:
        if isinstance(item, _Unreadable):
            return item
    images, labels = default_collate(items)
    return images, labels


def batches(
    images: Dataset[tuple[Tensor, int]],
    *,
    batch_size: int = 1,
    which: Iterable[list[Any]] | None = None,
    workers: int = 0,
    pin_memory: bool = False,
    context: BaseContext | str | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """``(images [B, C, H, W], labels [B] int64)``, in order unless ``which`` says otherwise; the last batch may be smaller.

    Args:
        images: the data set.
        batch_size: images a batch.
        which: what each batch holds, in the data set's own keys; takes the place of ``batch_size``.
        workers: processes that read and decode; 0 reads in this one.
        pin_memory: for copies to a GPU.
        context: how workers are started (``fork``, ``spawn``); ``None`` is Python's default.

    Raises:
        InputError: where an image cannot be read; names it.
        Refusal: where a worker process died, out of memory for one.
    """
    loader: DataLoader[Any] = DataLoader(
        _Guarded(images),
        batch_size=batch_size if which is None else 1,
        batch_sampler=which,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        multiprocessing_context=context if workers else None,
    )
    try:
        for batch in loader:
            if isinstance(batch, _Unreadable):
                raise InputError(**batch.parts)
            yield batch[0], batch[1]
    except RuntimeError as error:
        raise Refusal(
            f"Reading images stopped: {error}",
            where=f"data loading, {workers} worker processes",
            not_done="The data was not read to its end, so there is no result.",
            to_do="Use fewer worker processes or smaller batches; `--workers 0` reads in the main process.",
        ) from error


def read_image(tree: ImageTree, name: str) -> Image.Image:
    """One image of a tree, decoded as RGB.

    Raises:
        InputError: where it cannot be read; names it.
    """
    try:
        with Image.open(io.BytesIO(tree.read(name))) as image:
            return image.convert("RGB")
    except Exception as error:  # a damaged image makes Pillow and zipfile raise nearly anything
        raise unreadable(f"{tree.path}: {name}", error) from error


def unreadable(where: str, error: Exception) -> InputError:
    """The error for an image that cannot be read."""
    return InputError(
        f"An image cannot be read: {str(error) or type(error).__name__}.",
        where=where,
        not_done="The data was not read to its end, so there is no result.",
        to_do="Replace the image or remove it.",
    )
