"""What a network is called, and how its images are prepared: plain data, no torch.

An :class:`Architecture` is everything needed to build the network again: the library it comes from, the name of its builder, and
keyword arguments. Its text form is what ``--arch`` takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

KEYWORDS = ("num_classes", "aux_logits", "aux_loss", "transform_input", "in_chans", "img_size", "image_size")
"""Builders' keyword arguments that are written to files and taken from them."""
_LARGEST, _FEW = 2**20, 3


@dataclass(frozen=True)
class Architecture:
    """A network's builder.

    Args:
        source: ``torchvision``, ``timm``, ``cifar``, or ``factory`` (a callable of the user's own).
        name: the builder's name within its source; for a factory ``package.module:callable``.
        kwargs: keyword arguments for the builder (``num_classes`` and the like), JSON values only.
    """

    source: str
    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name if self.source == "factory" else f"{self.source}/{self.name}"

    def as_json(self) -> dict[str, Any]:
        """JSON values; :meth:`from_json` reads them back."""
        return {"source": self.source, "name": self.name, "kwargs": dict(self.kwargs)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Architecture:
        """Inverse of :meth:`as_json`, for data that anybody may have written.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: where the data does not have that form, or names an argument that is not one
                of those which only say how large a network is: builders take others that fetch or read files.
        """
        kwargs = dict(data["kwargs"])
        for name, value in kwargs.items():
            sizes = value if isinstance(value, list) and len(value) <= _FEW else [value]
            if name not in KEYWORDS or not all(isinstance(size, bool | int) and 0 <= size <= _LARGEST for size in sizes):
                raise ValueError(f"{str(name)[:40]}={str(value)[:40]} is not an argument that a file may give to a builder")
        if not isinstance(data["source"], str) or not isinstance(data["name"], str):
            raise TypeError("its source or its name is not a text")
        return cls(data["source"], data["name"], kwargs)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input.

    Args:
        input_size: ``(C, H, W)`` of one input, in pixels.
        mean: per channel, of pixel values in 0 to 1.
        std: per channel, of pixel values in 0 to 1.
        resize: length in pixels that the image's short side is resized to before the centre crop; ``None`` takes H.
            An image that already has the input's size is never resampled.
        interpolation: ``bilinear``, ``bicubic`` or ``nearest``.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: int | None = None
    interpolation: str = "bilinear"

    def as_json(self) -> dict[str, Any]:
        """JSON values; :meth:`from_json` reads them back."""
        return {
            "input_size": list(self.input_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": self.resize,
            "interpolation": self.interpolation,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Inverse of :meth:`as_json`."""
        channels, height, width = (int(n) for n in data["input_size"])
        mean, std = (tuple(float(x) for x in data[name]) for name in ("mean", "std"))
        if not all(1 <= size <= _LARGEST for size in (channels, height, width)) or not all(map(math.isfinite, mean + std)):
            raise ValueError("its input size or normalisation is impossible")
        return cls(
            (channels, height, width),
            mean,
            std,
            None if data.get("resize") is None else int(data["resize"]),
            str(data.get("interpolation", "bilinear")),
        )
