"""A network to begin with: fresh weights, and as many outputs as the data has classes."""

from __future__ import annotations

import os
from dataclasses import replace

from torch import nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import attach, record_of
from chansurg.surgery.images.classified import evaluation_transform
from chansurg.surgery.images.library import open_images
from chansurg.surgery.reading.builders import fresh
from chansurg.surgery.reading.heads import with_classes


def fresh_for(network: nn.Module, data: str | os.PathLike[str], *, seed: int) -> nn.Module:
    """The same architecture with fresh weights and an output for each class of the data.

    Args:
        network: any network of that architecture; its record says how images are prepared.
        data: as :func:`chansurg.finetune` takes it.
        seed: of the weights.

    Raises:
        InputError: where the data cannot be read, or the architecture cannot be built with that many classes.
    """
    record = record_of(network)
    images = open_images(data, split="train", transform=evaluation_transform(record.preprocessing), whole=False)
    if record.architecture is None:
        return network
    architecture = record.architecture
    try:
        sized = with_classes(architecture, len(images.classes))
        made = fresh(sized, seed=seed)
    except InputError:
        sized, made = architecture, fresh(architecture, seed=seed)
    return attach(made, replace(record, architecture=sized, class_names=tuple(images.classes)))
