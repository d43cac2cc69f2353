"""How many of torchvision's classifiers are recognised from their tensors alone, with and without timm, and a sample of timm's.

``python benchmarks/recognition.py [--timm-sample N]``. Every classifier is taken with 1000 and with 7 classes, bare, nested in a
training checkpoint and with a prefix. Names and shapes are all that recognition sees, so most are taken as such; a small network of
each kind goes through a real file. An answer counts as right if name and number of classes are right and every name is mapped.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.errors import InputError
from chansurg.surgery.reading.builders import build, timm_is_installed, torchvision_names
from chansurg.surgery.reading.checkpoint import read_checkpoint
from chansurg.surgery.reading.names import Shape
from chansurg.surgery.reading.recognition import recognise

CLASSES = (1000, 7)
PREFIXES = {"bare": "", "nested": "", "prefixed": "module.backbone."}
# A file of a larger network would test the disk.
LARGEST_FILE = 20_000_000


@contextmanager
def without_timm() -> Iterator[None]:
    """Importing timm fails, as where it is not installed."""
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "timm"}
    for name in kept:
        del sys.modules[name]
    sys.modules["timm"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["timm"]
        sys.modules.update(kept)


def outcome(shapes: Mapping[str, Shape], expected: Architecture, prefix: str) -> str:
    """``right``, ``ambiguous``, ``missed`` or ``WRONG``, the first with a word more."""
    try:
        found = recognise({prefix + name: shape for name, shape in shapes.items()})
    except InputError as error:
        return "ambiguous" if "compute differently" in error.what else "missed"
    mapped = dict(found.names) == {prefix + name: name for name in shapes}
    # A network without a head has no number of classes, whatever its builder was told.
    classes = found.architecture.kwargs.get("num_classes") in (None, expected.kwargs.get("num_classes"))
    if mapped and classes and str(found.architecture) == str(expected):
        return "right"
    if any(str(expected) in note for note in found.notes) and mapped and classes:
        return "right (a tie, told in a note)"
    return f"WRONG: {found.architecture}"


def through_a_file(architecture: Architecture, kind: str, folder: Path) -> dict[str, Shape]:
    """The shapes that a file of this kind gives back, its prefix taken off again."""
    prefix = PREFIXES[kind]
    state = {prefix + key: torch.zeros(value.shape, dtype=value.dtype) for key, value in build(architecture).state_dict().items()}
    content = {"model": state, "optimizer": {"state": {}}, "epoch": 3} if kind == "nested" else state
    file = folder / "some.pth"
    torch.save(content, file)
    return {key.removeprefix(prefix): tuple(tensor.shape) for key, tensor in read_checkpoint(file).tensors.items()}


def torchvision_rate() -> Counter[str]:
    """Outcomes over all classifiers, numbers of classes and kinds of nesting; what was not right is printed."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in torchvision_names("classification"):
            for classes in CLASSES:
                architecture = Architecture("torchvision", name, {"num_classes": classes})
                state = build(architecture).state_dict()
                small = sum(value.numel() for value in state.values()) * 4 < LARGEST_FILE
                for kind, prefix in PREFIXES.items():
                    shapes = {key: tuple(value.shape) for key, value in state.items()}
                    if small:
                        shapes = through_a_file(architecture, kind, Path(folder))
                    result = outcome(shapes, architecture, prefix)
                    found[result.partition(":")[0]] += 1
                    if not result.startswith("right"):
                        print(f"  {name}, {classes} classes, {kind}: {result}")
    return found


def timm_rate(sample: int) -> Counter[str]:
    """Outcomes over one model of each of timm's families and a random sample, seven classes, prefixed."""
    import timm

    families: dict[str, str] = {}
    for name in timm.list_models():
        families.setdefault(timm.models.model_entrypoint(name).__module__, name)
    names = [*families.values(), *random.Random(0).sample(timm.list_models(), sample)]
    found: Counter[str] = Counter()
    for name in dict.fromkeys(names):
        architecture = Architecture("timm", name, {"num_classes": 7})
        try:
            state = build(architecture).state_dict()
        except InputError as error:
            print(f"  {name}: {error.what[:100]}")
            continue
        result = outcome({key: tuple(value.shape) for key, value in state.items()}, architecture, "module.")
        found[result.partition(":")[0]] += 1
        if not result.startswith("right"):
            print(f"  {name}: {result}")
    return found


def report(title: str, found: Counter[str], started: float) -> None:
    total = sum(found.values())
    right = sum(count for result, count in found.items() if result.startswith("right"))
    seconds = time.perf_counter() - started
    print(f"{title}: {right} of {total} recognised ({100 * right / max(total, 1):.1f} %), {dict(found)}, {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timm-sample", type=int, default=100, help="timm models beyond one of each family")
    arguments = parser.parse_args()
    with without_timm():
        started = time.perf_counter()
        report("torchvision's classifiers, without timm", torchvision_rate(), started)
    if timm_is_installed():
        started = time.perf_counter()
        report("torchvision's classifiers, with timm", torchvision_rate(), started)
        started = time.perf_counter()
        report("timm's families and a sample", timm_rate(arguments.timm_sample), started)


if __name__ == "__main__":
    main()
