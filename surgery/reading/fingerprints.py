"""The shipped index: what each library's networks look like from their tensors' names and shapes alone.

A network's fingerprint is the sum of a hash of every tensor's name and shape, less those that depend on the number of classes. A sum
can be taken in any order and parts of it taken away, so a checkpoint is looked up once for every known kind of head. Two small
samples of the hashes (the lowest ones: Broder, "On the resemblance and containment of documents", 1997) find the nearest network
where none fits.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from importlib import resources
from typing import Any

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.reading.heads import Head, classes_in, with_classes
from chansurg.surgery.reading.names import Shape

FILE = "fingerprints.json"
_SAMPLE = 12
_SAMPLE_BYTES = 3
_MODULUS = 2**64


@dataclass(frozen=True)
class Entry:
    """Networks that cannot be told apart by names and shapes.

    Args:
        members: groups of architectures; those within a group compute the same.
        head: the tensors that depend on the number of classes.
        tensors: how many tensors there are, counters not counted.
        names: sample of the names' hashes.
        shapes: sample of the hashes of names and shapes.
    """

    members: tuple[tuple[Architecture, ...], ...]
    head: Head
    tensors: int
    names: frozenset[int]
    shapes: frozenset[int]


def of_tensor(name: str, shape: Shape) -> int:
    """A tensor's part in the sum."""
    return int.from_bytes(blake2b(f"{name} {'x'.join(map(str, shape))}".encode(), digest_size=8).digest())


def of_network(shapes: Mapping[str, Shape], head: Iterable[str] = ()) -> int:
    """The sum over all tensors but the head's."""
    without = set(head)
    return sum(of_tensor(name, shape) for name, shape in shapes.items() if name not in without) % _MODULUS


def sample_of(hashes: Iterable[int]) -> frozenset[int]:
    """The lowest few, cut to their upper bytes."""
    return frozenset(sorted(value >> (64 - 8 * _SAMPLE_BYTES) for value in hashes)[:_SAMPLE])


def name_sample(shapes: Mapping[str, Shape]) -> frozenset[int]:
    """Sample of the names alone, widths aside."""
    return sample_of(of_tensor(name, ()) for name in shapes)


def shape_sample(shapes: Mapping[str, Shape], head: Iterable[str] = ()) -> frozenset[int]:
    """Sample of names with shapes."""
    without = set(head)
    return sample_of(of_tensor(name, shape) for name, shape in shapes.items() if name not in without)


def resemblance(a: frozenset[int], b: frozenset[int]) -> float:
    """Estimated share of tensors that two networks have in common, 0 to 1."""
    lowest = sorted(a | b)[:_SAMPLE]
    return sum(value in a and value in b for value in lowest) / len(lowest) if lowest else 0.0


def packed(sample: frozenset[int]) -> str:
    """A sample as text."""
    return base64.b85encode(b"".join(value.to_bytes(_SAMPLE_BYTES) for value in sorted(sample))).decode()


def _unpacked(text: str) -> frozenset[int]:
    data = base64.b85decode(text)
    return frozenset(int.from_bytes(data[at : at + _SAMPLE_BYTES]) for at in range(0, len(data), _SAMPLE_BYTES))


def member_text(architecture: Architecture) -> str:
    """``source/name`` and, where there are any, the keyword arguments as JSON."""
    kwargs = dict(architecture.kwargs)
    return f"{architecture} {json.dumps(kwargs, sort_keys=True)}" if kwargs else str(architecture)


def _member(text: str) -> Architecture:
    full, _, kwargs = text.partition(" ")
    source, _, name = full.partition("/")
    return Architecture(source, name, json.loads(kwargs) if kwargs else {})


@dataclass(frozen=True)
class Index:
    """All entries, by fingerprint and kind of head."""

    versions: Mapping[str, str]
    heads: tuple[Head, ...]
    by_sum: Mapping[tuple[int, int], Entry]

    def known(self) -> frozenset[str]:
        """Every architecture in the index, as ``source/name``."""
        return frozenset(str(a) for entry in self.by_sum.values() for group in entry.members for a in group)

    def matches(self, shapes: Mapping[str, Shape]) -> Iterator[tuple[Entry, int | None]]:
        """Entries whose names and shapes are exactly these, with the number of classes (``None``: without any)."""
        hashes = {name: of_tensor(name, shape) for name, shape in shapes.items()}
        total = sum(hashes.values())
        for position, head in enumerate(self.heads):
            if not all(name in hashes for name in head):
                continue
            entry = self.by_sum.get(((total - sum(hashes[name] for name in head)) % _MODULUS, position))
            if entry is None:
                continue
            classes = classes_in(head, shapes) if head else None
            if classes is not None or not head:
                yield entry, classes

    def nearest(self, shapes: Mapping[str, Shape]) -> list[tuple[float, Entry]]:
        """Entries by how much they resemble these names and shapes, best first; those with nothing in common are left out."""
        names, sized = name_sample(shapes), shape_sample(shapes)
        ranked: list[tuple[float, Entry]] = []
        for entry in self.by_sum.values():
            alike = resemblance(names, entry.names)
            if alike > 0:
                count = min(len(shapes), entry.tensors) / max(len(shapes), entry.tensors, 1)
                ranked.append((alike + 2 * resemblance(sized, entry.shapes) + count, entry))
        return sorted(ranked, key=lambda pair: -pair[0])


def with_found_classes(architecture: Architecture, classes: int | None) -> Architecture:
    """The architecture with the number of classes that was found, if any was."""
    return architecture if classes is None else with_classes(architecture, classes)


@functools.cache
def shipped_index() -> Index:
    """The index that comes with the package."""
    text = resources.files("chansurg.surgery.reading").joinpath(FILE).read_text(encoding="utf-8")
    return index_from_json(json.loads(text))


def index_from_json(data: Mapping[str, Any]) -> Index:
    """Inverse of what :mod:`chansurg.surgery.reading.indexing` writes."""
    heads: tuple[Head, ...] = tuple({name: [tuple(rule) for rule in rules] for name, rules in head.items()} for head in data["heads"])
    by_sum: dict[tuple[int, int], Entry] = {}
    for total, position, tensors, names, sized, groups in data["entries"]:
        members = tuple(tuple(_member(text) for text in group) for group in groups)
        by_sum[(int(total, 16), position)] = Entry(members, heads[position], tensors, _unpacked(names), _unpacked(sized))
    return Index(data["versions"], heads, by_sum)
