"""Writes the index of networks that recognition looks checkpoints up in: ``python -m chansurg.surgery.reading.indexing [FILE]``.

Every builder of torchvision, timm and the CIFAR ResNets is built on the meta device with two numbers of classes, timm's also without
a head. Run it when a library has new networks; it takes some minutes and downloads nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.errors import InputError
from chansurg.surgery.reading import cifar
from chansurg.surgery.reading.builders import build, timm_is_installed, torchvision_names, variants
from chansurg.surgery.reading.computation import computation
from chansurg.surgery.reading.fingerprints import FILE, member_text, name_sample, of_network, packed, shape_sample
from chansurg.surgery.reading.heads import Head, learn_head, shapes_of

log = logging.getLogger(__name__)

_KINDS = ("classification", "segmentation", "detection", "video")


def indexed_architectures() -> Iterator[Architecture]:
    """Everything that can be recognised, in the order of preference; variants with other tensors are listed apart."""
    for kind in _KINDS:
        for name in torchvision_names(kind):
            yield from variants(Architecture("torchvision", name))
    for name in cifar.NAMES:
        yield Architecture("cifar", name)
    if timm_is_installed():
        import timm

        for name in timm.list_models():
            yield Architecture("timm", name)
            yield Architecture("timm", name, {"num_classes": 0})


def index_of(architectures: Iterable[Architecture]) -> dict[str, Any]:
    """The index as JSON values."""
    heads: list[Head] = []
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for architecture in architectures:
        try:
            if architecture.kwargs.get("num_classes") == 0:
                head, built = Head(), build(architecture)
            else:
                learnt = learn_head(architecture)
                if learnt is None:
                    log.warning("left out: %s", member_text(architecture))
                    continue
                head, built = learnt
        except InputError as error:
            log.warning("left out: %s (%s)", member_text(architecture), error.what)
            continue
        shapes = shapes_of(built)
        if head not in heads:
            heads.append(head)
        row = rows.setdefault(
            (of_network(shapes, head), heads.index(head)),
            {"tensors": len(shapes), "names": name_sample(shapes), "shapes": shape_sample(shapes, head), "groups": {}},
        )
        # Some of timm's have no head to leave out.
        if not any(str(architecture) in group for group in row["groups"].values()):
            row["groups"].setdefault(computation(built), []).append(member_text(architecture))
    entries = [
        [f"{total:x}", head, row["tensors"], packed(row["names"]), packed(row["shapes"]), list(row["groups"].values())]
        for (total, head), row in rows.items()
    ]
    return {"versions": library_versions(), "heads": heads, "entries": entries}


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose networks are indexed, as far as they are installed."""
    import torchvision

    found = {"torchvision": str(torchvision.__version__).partition("+")[0]}
    if timm_is_installed():
        import timm

        found["timm"] = str(timm.__version__)
    return found


def main(arguments: list[str]) -> None:
    """Write the index to the file named, by default to the one that is shipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name(FILE))
    data = index_of(indexed_architectures())
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in data["entries"])
    top = f'{{"versions":{json.dumps(data["versions"])},\n"heads":{json.dumps(data["heads"], separators=(",", ":"))},\n'
    parser.parse_args(arguments).file.write_text(f'{top}"entries":[\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main(sys.argv[1:])
