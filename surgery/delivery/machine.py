"""What a timing was taken on, as far as the system tells. A time without its machine says nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from chansurg.surgery.kernels.compiled import library
from chansurg.surgery.kernels.moving import TAKE_CHANNELS
from chansurg.surgery.kernels.operators import HAS_TRITON

_LIBRARIES = ("torch", "onnxruntime")


def describe_machine(device: str) -> dict[str, Any]:
    """Name, processor, device and libraries, as JSON values.

    Args:
        device: a device of torch's that is there.
    """
    place = torch.device(device)
    return {
        "processor": _processor(),
        "cores": _cores(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
        "system": f"{platform.system()} {platform.machine()}",
        "kernels": _kernels(place),
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name)) is not None},
    }


def _kernels(place: torch.device) -> str:
    """Whether the operators have kernels there, or why not."""
    if place.type == "cuda":
        return "Triton" if HAS_TRITON else "Triton is not installed"
    found = library(TAKE_CHANNELS.source)
    return found if isinstance(found, str) else "compiled"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
