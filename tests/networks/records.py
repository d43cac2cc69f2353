"""The record in a model file's header: read, exchanged, damaged."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chansurg.surgery.files.header_record import KEY


def header_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return header


def with_record(path: Path, change: Callable[[dict[str, Any]], object] | str) -> Path:
    """A copy of the file with another record in its header."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    if isinstance(change, str):
        header["__metadata__"][KEY] = change
    else:
        record = json.loads(header["__metadata__"][KEY])
        change(record)
        header["__metadata__"][KEY] = json.dumps(record)
    text = json.dumps(header).encode()
    other = path.with_name(f"changed-{path.name}")
    other.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return other


def mutated(value: Any, chance: random.Random) -> Any:
    """The JSON value with one place in it replaced, removed or doubled."""
    junk = [None, True, -1, 10**30, 0.5, "", "nix", [], {}, [[]], {"": {}}, "\u0000", float("nan"), "self.conv1", [1] * 50]
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        if chance.random() < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: mutated(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        if chance.random() < 0.1:
            return value[:at] + value[at + 1 :]
        return [*value[:at], mutated(value[at], chance), *value[at + 1 :]]
    return chance.choice(junk)
