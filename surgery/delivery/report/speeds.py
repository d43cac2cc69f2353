"""What `bench --json` has written, read back and joined to the networks that the page is about."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chansurg.surgery.errors import InputError

_NUMBERS = ("median_ms", "against_median_ms", "speedup", "macs_allow", "promise_kept", "throughput", "peak_memory")


@dataclass(frozen=True)
class Speed:
    """One benchmark.

    Args:
        model: the name that it was run with.
        against: the one that was timed in turn with it, if there was one.
        rows: one for each setting.
        layers: one for each part that was timed by itself.
        document: all of it.
    """

    model: str
    against: str | None
    rows: Sequence[Mapping[str, Any]]
    layers: Sequence[Mapping[str, Any]]
    document: Mapping[str, Any]

    def is_of(self, name: str) -> bool:
        """Whether it timed the network that goes by ``name``: the same file name, wherever the file was."""
        return Path(self.model).name == Path(name).name


def read_speed(source: str | os.PathLike[str] | Mapping[str, Any]) -> Speed:
    """A benchmark from its JSON document, or from a file that holds one.

    Raises:
        InputError: where it is no document of ``bench --json``.
    """
    where = "the benchmark" if isinstance(source, Mapping) else str(source)
    try:
        document = source if isinstance(source, Mapping) else json.loads(Path(source).read_text(encoding="utf-8"))
        rows, layers = list(document["results"]), list(document.get("layers", []))
        for row in (*rows, *layers):
            if not isinstance(row["runtime"], str) or not isinstance(row["batch_size"], int):
                raise TypeError("a row without its runtime or its batch size")
            if not all(row.get(name) is None or isinstance(row[name], int | float) for name in _NUMBERS):
                raise TypeError("a text where a number belongs")
        against = document.get("against")
        return Speed(str(document["model"]), None if against is None else str(against), rows, layers, document)
    except OSError as error:
        raise InputError(
            f"The benchmark cannot be read: {error.strerror}.", where=where, not_done="No report was written.", to_do="Check the path."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"This is no benchmark ({type(error).__name__}: {str(error)[:100]}).",
            where=where,
            not_done="No report was written.",
            to_do="Pass what `chansurg bench … --json` printed.",
        ) from error
