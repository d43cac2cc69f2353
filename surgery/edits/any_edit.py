"""All edits: how they are read back from JSON values, and which layers they put into a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chansurg.surgery.edits.json_values import indices, items, number, text, whole
from chansurg.surgery.edits.of_calls import Attach, Bypass, Insert, Replace, Route
from chansurg.surgery.edits.of_modules import Inherit, Narrow, Repeat, Scale, Swap
from chansurg.surgery.edits.places import Address, LayerSpec

Edit = Swap | Insert | Bypass | Attach | Replace | Narrow | Scale | Route | Repeat | Inherit


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
            slices = tuple(indices(kept) for kept in items(data["slices"]))
            return Inherit(text(data["tensor"]), text(data["source"]), slices, indices(data["rows"]))
        case Route.op:
            passing = None if data["passing"] is None else whole(data["passing"])
            return Route(
                tuple(Address.from_json(address) for address in items(data["into"])),
                Address.from_json(data["closes"]),
                passing,
                text(data["name"]),
                LayerSpec.from_json(data["layer"]),
                text(data["fusion_name"]),
                LayerSpec.from_json(data["fusion"]),
            )
        case other:
            raise ValueError(f"unknown edit {other!r}")


def new_layers(edit: Edit) -> tuple[tuple[str, LayerSpec], ...]:
    """Path and specification of every layer that an edit puts into the network."""
    match edit:
        case Swap() | Insert() | Attach() | Replace():
            return ((edit.path, edit.layer),)
        case Route():
            return (edit.path, edit.layer), (edit.fusion_path, edit.fusion)
        case _:
            return ()


def _factors(values: Any) -> float | tuple[float, ...]:
    return tuple(number(value) for value in values) if isinstance(values, list) else number(values)
