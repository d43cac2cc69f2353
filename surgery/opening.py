"""From what a user names, a file or an architecture, to a network with its record."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.errors import InputError
from chansurg.surgery.files.header_record import KEY
from chansurg.surgery.files.modelfile import load_converted
from chansurg.surgery.files.provenance import attach, record_of, with_input_size
from chansurg.surgery.files.weights_digest import weights_digest
from chansurg.surgery.journal import Record
from chansurg.surgery.reading.builders import fresh, parse_architecture, published
from chansurg.surgery.reading.checkpoint import Checkpoint, read_checkpoint
from chansurg.surgery.reading.preprocessing import preprocessing_of
from chansurg.surgery.reading.recognition import recognise
from chansurg.surgery.reading.weights import build_with_tensors

SUFFIXES = (".pth", ".pt", ".th", ".ckpt", ".bin", ".safetensors")


def load(
    model: str | os.PathLike[str],
    *,
    arch: str | None = None,
    input_size: tuple[int, ...] | None = None,
    pretrained: bool = False,
    trust_pickle: bool = False,
) -> nn.Module:
    """Load a network.

    Args:
        model: a checkpoint, a file that this project wrote, or an architecture's name (``resnet50``, ``timm/vit_tiny_patch16_224``).
        arch: the architecture, where it cannot be told from the tensors; ``package.module:factory`` for a network of one's own.
        input_size: ``(H,)``, ``(H, W)`` or ``(C, H, W)`` in pixels, where the architecture's default does not serve.
        pretrained: with an architecture's name, its library's own weights instead of fresh ones.
        trust_pickle: unpickle a file that needs more than tensors. That can run any code in it.

    Returns:
        The network in eval mode, an ordinary ``nn.Module``; its record travels with it.

    Raises:
        InputError: where it cannot be read, or not be told what it is.
    """
    path = Path(model)
    named = None if arch is None else parse_architecture(arch)
    if path.exists() or path.suffix.lower() in SUFFIXES:
        checkpoint = read_checkpoint(path, trust_pickle=trust_pickle)
        if pretrained:
            raise InputError(
                "A file brings its own weights.", where=str(path), not_done="Nothing was loaded.", to_do="Leave --pretrained out."
            )
        network = load_converted(checkpoint, named) if KEY in checkpoint.metadata else _load_plain(checkpoint, arch)
    else:
        architecture = _architecture_named(str(model), named)
        network = fresh(architecture, pretrained=pretrained)
        architecture = published(architecture) if pretrained else architecture
        weights = "its library's own weights" if pretrained else "fresh, untrained weights"
        record = Record(architecture, preprocessing_of(architecture), notes=(f"{architecture} with {weights}.",))
        attach(network, record)
    return attach(network, with_input_size(record_of(network), input_size)).eval()


def _architecture_named(model: str, also: Architecture | None) -> Architecture:
    """The architecture that stands where a file could; naming it once more changes nothing.

    Raises:
        InputError: where no architecture has that name, or ``also`` is another one.
    """
    try:
        architecture = parse_architecture(model)
    except InputError as unknown:
        hint = unknown.to_do if also is None else f"For fresh weights pass {also} as the model, and leave --arch out."
        raise InputError(
            f"There is no file {model}, and no architecture of that name. {unknown.what}",
            where=model,
            not_done="Nothing was loaded.",
            to_do=f"Check the path. {hint}",
        ) from None
    if also not in (None, architecture):
        raise InputError(
            f"The model is the architecture {architecture}, and --arch names {also}.",
            where="option --arch",
            not_done="Nothing was loaded.",
            to_do="Leave --arch out: it says what a file holds.",
        )
    return architecture


def _load_plain(checkpoint: Checkpoint, arch: str | None) -> nn.Module:
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    recognition = recognise(shapes, architecture=None if arch is None else parse_architecture(arch))
    tensors = {recognition.names[name]: tensor for name, tensor in checkpoint.tensors.items() if name in recognition.names}
    network = build_with_tensors(recognition.architecture, tensors)
    record = Record(
        recognition.architecture,
        preprocessing_of(recognition.architecture),
        file=checkpoint.path.name,
        sha256=checkpoint.sha256,
        weights=weights_digest(network),
        notes=recognition.notes,
    )
    return attach(network, record)
