"""What a PyTorch pickle file is, and what it names, found by looking at its bytes: nothing in it is ever run here."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Literal

from chansurg.surgery.reading.header import looks_like_safetensors, unusable

Container = Literal["safetensors", "zip", "legacy"]

_SCRIPT_TO_DO = "save the state dict of the original nn.Module instead: torch.save(model.state_dict(), 'weights.pth')"
# What every state dict's pickle names, in any version of PyTorch.
_HARMLESS_MODULES = ("torch._utils", "torch.storage", "torch.serialization")
_HARMLESS = frozenset(["collections.OrderedDict", "torch.Size", "torch.device", "torch.nn.parameter.Parameter"])


def container_of(file: Path) -> Container:
    """Decided by content, never by the file's name.

    Raises:
        InputError: a TorchScript or exported-program archive, some other zip, a truncated zip, or no model file at all.
    """
    with file.open("rb") as stream:
        start = stream.read(64)
    if start.startswith(b"PK\x03\x04"):
        _check_zip(file)
        return "zip"
    if looks_like_safetensors(file):
        return "safetensors"
    # Protocol 2 and newer begin with 0x80; tar archives of PyTorch before 0.1.10 carry their name at 257.
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return "legacy"
    kind = "a text file" if _is_text(start) else "none of the known kinds of file"
    raise unusable(
        file,
        f"This is no model file but {kind}.",
        "give a file written by torch.save or safetensors (.pth .pt .th .ckpt .bin .safetensors)",
    )


def _is_text(start: bytes) -> bool:
    try:
        return all(char.isprintable() or char.isspace() for char in start.decode("utf-8", errors="strict"))
    except UnicodeDecodeError:
        return False


def _check_zip(file: Path) -> None:
    again = "copy or download the file again"
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except Exception as error:  # a damaged directory makes zipfile raise many things
        raise unusable(file, f"The zip container is cut short or damaged ({error}).", again) from error
    names = [record.filename.partition("/")[2] for record in records]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise unusable(
            file,
            "This is a TorchScript archive: it contains code, and a compiled program that surgery cannot change.",
            _SCRIPT_TO_DO,
        )
    if "archive_format" in names or any(name.startswith("models/") for name in names):
        raise unusable(file, "This is an exported program (.pt2): loading it executes code.", _SCRIPT_TO_DO)
    if "data.pkl" not in names:
        raise unusable(file, "This is a zip archive, but not one written by torch.save.", "give the model file inside it")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise unusable(
            file,
            "The records of this file are compressed, or its directory is damaged; torch.save never compresses.",
            "unpack it and pack it without compression (zip -0), or save it again with torch.save",
        )


def globals_named(file: Path, container: Container) -> tuple[str, ...]:
    """The functions and classes that the file's pickle would import, less those of every state dict; nothing is imported.

    Reading stops where the pickle is damaged.
    """
    try:
        if container == "zip":
            with zipfile.ZipFile(file) as archive:
                record = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
                found = _in_stream(archive.read(record))
        else:
            with file.open("rb") as stream:
                # A legacy file is five pickles in a row and then raw numbers; only the pickles name anything.
                found = _in_stream(stream.read(64_000_000))
    except Exception:  # whatever is wrong with the container has been, or will be, said elsewhere
        return ()
    return tuple(name for name in dict.fromkeys(found) if not _is_harmless(name))


def _in_stream(data: bytes) -> list[str]:
    found: list[str] = []
    position = 0
    for _ in range(5):
        strings: list[str] = []
        length = None
        try:
            for opcode, argument, at in pickletools.genops(data[position:]):
                if opcode.name in ("GLOBAL", "INST"):
                    found.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                    found.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
                length = (at or 0) + 1
        except Exception:  # damaged, or the raw numbers after the last pickle
            break
        if not length:
            break
        position += length
    return found


def _is_harmless(name: str) -> bool:
    module = name.rpartition(".")[0]
    is_storage = module in ("torch", "torch.cuda") and name.endswith(("Storage", "Tensor"))
    return module in _HARMLESS_MODULES or name in _HARMLESS or is_storage
