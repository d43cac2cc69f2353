"""Edits read back from JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chansurg.surgery.edits.json_values import indices, items, number, text
from chansurg.surgery.edits.of_calls import Attach, Bypass, Insert, Replace
from chansurg.surgery.edits.of_modules import Inherit, Narrow, Repeat, Scale, Swap
from chansurg.surgery.edits.places import Address, LayerSpec

Edit = Swap | Insert | Bypass | Attach | Replace | Narrow | Scale | Repeat | Inherit


def edit_from_json(data: Mapping[str, Any]) -> Edit:
    """Read one edit back from JSON values.

    Raises:
        ValueError, TypeError, KeyError: for an operation this version does not know, or data that is not of its form.
    """
    match data["op"]:
        case Swap.op:
            return Swap(text(data["path"]), LayerSpec.from_json(data["layer"]))
        case Insert.op:
            return Insert(Address.from_json(data["before"]), text(data["name"]), LayerSpec.from_json(data["layer"]))
        case Bypass.op:
            return Bypass(Address.from_json(data["at"]))
        case Narrow.op:
            return Narrow(text(data["path"]), indices(data.get("in_channels")), indices(data.get("out_channels")))
        case Attach.op:
            after, reads = Address.from_json(data["after"]), Address.from_json(data["reads"])
            return Attach(after, reads, text(data["name"]), LayerSpec.from_json(data["layer"]))
        case Replace.op:
            return Replace(Address.from_json(data["at"]), text(data["name"]), LayerSpec.from_json(data["layer"]))
        case Scale.op:
            return Scale(text(data["path"]), text(data["side"]), _factors(data["factors"]), indices(data["channels"]))
        case Repeat.op:
            return Repeat(text(data["path"]), text(data["name"]))
        case Inherit.op:
            return Inherit(text(data["tensor"]), text(data["source"]), tuple(indices(kept) for kept in items(data["slices"])))
        case other:
            raise ValueError(f"unknown edit {other!r}")


def _factors(values: Any) -> float | tuple[float, ...]:
    return tuple(number(value) for value in values) if isinstance(values, list) else number(values)
