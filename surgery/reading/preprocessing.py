"""How images are prepared for an architecture, taken from what its library publishes, without downloading anything."""

from __future__ import annotations

import math
from typing import Any

from chansurg.surgery.architecture import Architecture, Preprocessing

# Torchvision's detectors normalise and resize within the network (GeneralizedRCNNTransform), to this short side or square.
_DETECTOR_SIZES = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320, "fasterrcnn_mobilenet_v3_large_320_fpn": 320}
_DETECTOR_SIZE = 800


def preprocessing_of(architecture: Architecture) -> Preprocessing:
    """Input size, resizing and normalisation that the architecture's library states; ImageNet's customary ones where it states none."""
    if architecture.source == "cifar":
        return Preprocessing(input_size=(3, 32, 32))
    if architecture.source == "torchvision":
        return _of_torchvision(architecture)
    if architecture.source == "timm":
        return _of_timm(architecture)
    return Preprocessing()


def _of_torchvision(architecture: Architecture) -> Preprocessing:
    from torchvision import models

    name = architecture.name
    if name in models.list_models(module=models.detection):
        size = _DETECTOR_SIZES.get(name, _DETECTOR_SIZE)
        return Preprocessing((3, size, size), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    weights: Any = models.get_model_weights(name)
    if not hasattr(weights, "DEFAULT"):
        return Preprocessing(resize=256)
    stated = weights.DEFAULT.transforms()
    resize = _first(getattr(stated, "resize_size", None))
    side = _first(getattr(stated, "crop_size", None)) or resize
    if side is None or not hasattr(stated, "mean"):
        return Preprocessing(resize=256)
    if name.startswith("vit_"):  # one side only fits its position embedding: the builder's, whatever the published weights have
        built = int(architecture.kwargs.get("image_size", 224))
        side, resize = built, resize if side == built else built
    return Preprocessing(
        (3, side, side),
        tuple(float(x) for x in stated.mean),
        tuple(float(x) for x in stated.std),
        resize,
        _interpolation(getattr(getattr(stated, "interpolation", None), "value", "bilinear")),
    )


def _of_timm(architecture: Architecture) -> Preprocessing:
    from timm.models import get_pretrained_cfg

    stated = get_pretrained_cfg(architecture.name, allow_unregistered=True)
    if stated is None:
        return Preprocessing(resize=256)
    channels, height, width = stated.input_size
    size = architecture.kwargs.get("img_size")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    channels = int(architecture.kwargs.get("in_chans", channels))
    mean, std = (_per_channel(values, channels) for values in (stated.mean, stated.std))
    resize = math.floor(min(height, width) / stated.crop_pct)
    return Preprocessing((channels, height, width), mean, std, resize, _interpolation(stated.interpolation))


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    numbers = tuple(float(x) for x in values)
    return numbers if len(numbers) == channels else (sum(numbers) / len(numbers),) * channels


def _first(size: Any) -> int | None:
    if isinstance(size, list | tuple):
        return int(size[0]) if size else None
    return None if size is None else int(size)


def _interpolation(name: str) -> str:
    return name if name in ("bilinear", "bicubic", "nearest") else "bicubic"
