"""Torchvision's own data sets, by name, where they are on disk already: ``cifar10:FOLDER``. Nothing is ever downloaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets

from chansurg.surgery.errors import InputError
from chansurg.surgery.images.classified import ClassifiedImages, Transform, listing_digest

_TRAIN_FLAG = ({"train": True}, {"train": False})
_TEST_SPLIT = ({"split": "train"}, {"split": "test"})
_VAL_SPLIT = ({"split": "train"}, {"split": "val"})

# Name -> torchvision's class, and its arguments for training and for validation images. Its CIFAR classes compare the files with their
# published checksums before they unpickle them.
_LIBRARY: dict[str, tuple[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "cifar10": ("CIFAR10", _TRAIN_FLAG),
    "cifar100": ("CIFAR100", _TRAIN_FLAG),
    "mnist": ("MNIST", _TRAIN_FLAG),
    "fashionmnist": ("FashionMNIST", _TRAIN_FLAG),
    "flowers102": ("Flowers102", _VAL_SPLIT),
    "food101": ("Food101", _TEST_SPLIT),
    "gtsrb": ("GTSRB", _TEST_SPLIT),
    "imagenette": ("Imagenette", _VAL_SPLIT),
    "oxfordiiitpet": ("OxfordIIITPet", ({"split": "trainval"}, {"split": "test"})),
    "stl10": ("STL10", _TEST_SPLIT),
    "svhn": ("SVHN", _TEST_SPLIT),
}
_TARGETS = ("targets", "labels", "_labels")
"""What torchvision's classes call the images' classes; where none of these is there, the images are gone through."""


class LibraryImages(Dataset[tuple[Tensor, int]]):
    """One split of a data set of torchvision's, with the same face as :class:`~chansurg.surgery.images.classified.ClassifiedImages`.

    Args:
        name: the data set's, in lower case.
        folder: where torchvision once put it.
        split: ``train``, or anything else for the images that are for validation.
        transform: what turns a decoded RGB image into the network's input.

    Raises:
        InputError: where it is not there, or not whole.
    """

    def __init__(self, name: str, folder: str, *, split: str, transform: Transform) -> None:
        self.where = f"{name}:{folder}"
        self.transform = transform
        kind, (training, validation) = _LIBRARY[name]
        arguments = training if split == "train" else validation
        try:
            self._images = getattr(datasets, kind)(folder, download=False, **arguments)
        except Exception as error:  # what a damaged or missing data set raises differs from one to the next
            raise InputError(
                f"Torchvision's {kind} cannot be read there: {(str(error) or type(error).__name__).splitlines()[0]}",
                where=self.where,
                not_done="No image was read.",
                to_do=f"Put it there first: torchvision.datasets.{kind}({folder!r}, download=True, …).",
            ) from error
        stated = next((values for key in _TARGETS if (values := getattr(self._images, key, None)) is not None), None)
        self._positions = [int(self._images[index][1] if stated is None else stated[index]) for index in range(len(self._images))]
        names = getattr(self._images, "classes", None)
        self.classes = [_name(known) for known in names] if names else [str(number) for number in range(max(self._positions) + 1)]
        self.labels: Sequence[int] = range(len(self.classes))

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.image(index)), self.label(index)

    def image(self, index: int) -> Image.Image:
        """One image as RGB."""
        return cast(Image.Image, self._images[index][0]).convert("RGB")

    def label(self, index: int) -> int:
        """The network's output that stands for one image's class."""
        return self.labels[self._positions[index]]

    def listing(self) -> str:
        """A digest of how many images there are, in which classes."""
        return listing_digest(self.classes, map(str, self._positions))


LabelledImages = ClassifiedImages | LibraryImages


def open_images(data: str | os.PathLike[str], *, split: str, transform: Transform, whole: bool = True) -> LabelledImages:
    """The images of one split of a folder, a zip, or a data set of torchvision's.

    Args:
        data: a path, or ``NAME:FOLDER``.
        split: which images.
        transform: what turns a decoded RGB image into the network's input.
        whole: see :class:`~chansurg.surgery.images.classified.ClassifiedImages`.

    Raises:
        InputError: where there is no such data.
    """
    named = library_data(data)
    if named is not None:
        return LibraryImages(*named, split=split, transform=transform)
    return ClassifiedImages(data, split=split, transform=transform, whole=whole)


def library_data(data: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Name and folder where ``data`` is ``NAME:FOLDER`` of a data set of torchvision's; ``None`` for a path."""
    name, colon, folder = os.fspath(data).partition(":")
    return (name, folder) if colon and name in _LIBRARY and not os.path.exists(data) else None


def _name(known: object) -> str:
    return known if isinstance(known, str) else str(known[0] if isinstance(known, tuple) else known)
