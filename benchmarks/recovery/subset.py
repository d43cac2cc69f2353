"""A few images of a data set, for a quick run."""

from __future__ import annotations

import zipfile
from pathlib import Path

from chansurg.surgery.images.tree import open_tree


def write_subset(data: Path, target: Path, images: int) -> None:
    """Write a zip with this many images of ``train``, and as many of ``val``, spread evenly over the classes; kept if it is there."""
    if target.exists():
        return
    tree, part = open_tree(data), target.with_suffix(".part")
    # The tops of the archives that people make differ: val/CLASS/IMAGE, or NAME/val/CLASS/IMAGE.
    top = "" if "train" in tree.folders("") else f"{tree.folders('')[0]}/"
    with zipfile.ZipFile(part, "w") as archive:
        for split in ("train", "val"):
            classes = tree.folders(f"{top}{split}")
            for name in classes:
                for image in tree.images(f"{top}{split}/{name}")[: images // len(classes)]:
                    archive.writestr(image.removeprefix(top), tree.read(image))
    part.replace(target)
