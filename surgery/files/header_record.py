"""What a model file's header says, read without torch: the record, and how the tensors are laid out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike

from chansurg.surgery.errors import InputError
from chansurg.surgery.journal import SCHEMA, Record

KEY = "chansurg"


@dataclass(frozen=True)
class Layout:
    """How the file's tensors stand in the network.

    Args:
        tied: names that share another name's tensor: name -> the name it is stored under.
        channels_last: names whose tensors were in that memory format.
        weights: digest of the tensors that were written.
    """

    tied: Mapping[str, str] = field(default_factory=dict)
    channels_last: tuple[str, ...] = ()
    weights: str = ""


def record_in_header(metadata: Mapping[str, str], path: str | PathLike[str]) -> tuple[Record, Layout]:
    """The record and the layout that a safetensors header carries under the key ``chansurg``.

    Raises:
        InputError: where there is none, it is damaged, or a newer version wrote it.
    """
    if KEY not in metadata:
        raise InputError(
            "This file carries no chansurg record.",
            where=str(path),
            not_done="No history was read.",
            to_do="`chansurg inspect` reads plain checkpoints; a record begins with `chansurg convert`.",
        )
    try:
        data = json.loads(metadata[KEY])
        schema = data["schema"]
        if isinstance(schema, int) and not isinstance(schema, bool) and schema > SCHEMA:
            raise InputError(
                f"The file has schema {schema}; this version of chansurg reads up to {SCHEMA}.",
                where=str(path),
                not_done="It was not loaded.",
                to_do="Install a newer chansurg.",
            )
        record = Record.from_json(data)
        layout = Layout(
            {str(name): str(stored) for name, stored in data["tied"].items()},
            tuple(str(name) for name in data["channels_last"]),
            str(data["weights"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(
            f"The chansurg record in the header is damaged ({type(error).__name__}: {str(error)[:100]}).",
            where=str(path),
            not_done="It was not loaded.",
            to_do="Take an undamaged copy, or convert the original again.",
        ) from error
    return record, layout
