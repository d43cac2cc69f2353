"""Reading the record back out of an exported file. Nothing in the file is executed, and no torch is imported."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.header_record import KEY, record_in_header
from chansurg.surgery.journal import Record

_EXTRA = f"/extra/{KEY}.json"
_COMPILED = "_metadata.json"


def exported_record(path: str | os.PathLike[str]) -> Record:
    """The record of the network that an export was made of: architecture, preprocessing, class names, journal.

    Args:
        path: a file that :func:`chansurg.export` wrote.

    Raises:
        InputError: where it cannot be read, or carries no record.
    """
    source = Path(path)
    try:
        text = _in_archive(source) if zipfile.is_zipfile(source) else _in_onnx(source)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"The file cannot be read: {(str(error) or type(error).__name__).splitlines()[0][:200]}",
            where=str(source),
            not_done="No record was read.",
            to_do="Pass a file that `chansurg export` wrote.",
        ) from error
    return record_in_header({} if text is None else {KEY: text}, source)[0]


def _in_archive(path: Path) -> str | None:
    """The text in an archive of ``torch.export``, or in a compiled one."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(_EXTRA):
                return archive.read(name).decode()
            if name.endswith(_COMPILED):
                found = json.loads(archive.read(name))
                if isinstance(found, dict) and isinstance(found.get(KEY), str):
                    return str(found[KEY])
    return None


def _in_onnx(path: Path) -> str | None:
    try:
        import onnx
    except ImportError:
        raise InputError(
            "Reading an ONNX file needs the package onnx.",
            where=str(path),
            not_done="No record was read.",
            to_do="Install it: pip install 'chansurg[onnx]'.",
        ) from None
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf has classes of its own for it
        raise ValueError("it is no ONNX file") from error
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
