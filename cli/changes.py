"""What a plan changes, layer by layer: before => after, with runs of blocks that change alike told once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from chansurg.cli.layer_text import layer_text, scale_text
from chansurg.cli.reporting import grid
from chansurg.surgery.edits import Attach, Bypass, Edit, Inherit, Insert, Repeat, Replace, Route, Scale, new_layers
from chansurg.surgery.listing import alike

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Change:
    """One layer, before and after, in a few words; before is empty for a new one."""

    path: str
    before: str
    after: str


def layers_at(network: nn.Module, edits: Sequence[Edit]) -> dict[str, str]:
    """The layers and parameters that the edits name, in a few words, as they are in ``network`` now."""
    named = [edit.at.path if isinstance(edit, Replace) else edit.path for edit in edits]
    named += [path for edit in edits for path, _ in new_layers(edit)] + [edit.copy for edit in edits if isinstance(edit, Repeat)]
    wanted = dict.fromkeys(path.partition("#")[0] for path in named)
    told = {path: f"parameter {'x'.join(map(str, tensor.shape))}" for path, tensor in network.named_parameters() if path in wanted}
    return told | {path: layer_text(module) for path, module in network.named_modules() if path in wanted}


def changes(edits: Sequence[Edit], before: dict[str, str], after: dict[str, str]) -> list[Change]:
    """One change for each place, in the order of the edits; what was inserted stands ahead of what it was put in front of."""
    found: dict[str, Change] = {}
    inserted: dict[str, list[Change]] = {}
    scaled: dict[str, list[str]] = {}
    for edit in edits:
        path = edit.path.partition("#")[0]
        match edit:
            case Insert():
                inserted.setdefault(edit.before.path, []).append(Change(path, "", after.get(path, "")))
                found.setdefault(edit.before.path, Change(edit.before.path, "", ""))
            case Attach():
                found[path] = Change(path, "", after.get(path, ""))
            case Route():
                for added, _ in new_layers(edit):
                    found[added] = Change(added, "", after.get(added, ""))
            case Repeat():
                found[edit.copy] = Change(edit.copy, "", f"{after.get(edit.copy, '')}, a copy of {edit.path}".removeprefix(", "))
            case Inherit():
                pass  # a layer's numbers, not what it is
            case Replace():
                replaced = edit.at.path.partition("#")[0]
                found[path] = Change(path, before.get(replaced, replaced.rpartition(":")[2]), after.get(path, ""))
            case Bypass():
                new = "call removed" if path in after or ":" in path else "removed"
                found[edit.path] = Change(edit.path, before.get(path, path.rpartition(":")[2]), new)
            case _:
                if isinstance(edit, Scale):
                    scaled.setdefault(path, []).append(scale_text(edit))
                text = ", ".join([after.get(path, ""), *scaled.get(path, [])])
                found[edit.path] = Change(edit.path, before.get(path, ""), text)
    in_order = [change for place, at in found.items() for change in (*inserted.get(place, ()), at)]
    return [change for change in in_order if change.before != change.after]


def scaled_tensors(edits: Sequence[Edit], names: Iterable[str]) -> set[str]:
    """Those of the named tensors that the edits multiply."""
    tensors = {f"{edit.path}.weight" for edit in edits if isinstance(edit, Scale)}
    tensors |= {f"{edit.path}.bias" for edit in edits if isinstance(edit, Scale) and edit.side == "out"}
    return tensors & set(names)


def changes_table(found: Iterable[Change], *, every: bool) -> Table:
    """The changes by block; without ``every``, neighbouring blocks that change alike share their rows."""
    groups: dict[str, list[Change]] = {}
    for change in found:
        groups.setdefault(_owner(change.path), []).append(change)
    runs: list[tuple[list[str], list[Change]]] = []
    for owner, inside in groups.items():
        if not every and runs and _alike(runs[-1][1], inside):
            runs[-1][0].append(owner)
        else:
            runs.append(([owner], inside))
    table = grid("where", "layer", "before", "", "after")
    for owners, inside in runs:
        where = [Text(owners[0] or "(top)", style="bold")]
        if len(owners) > 1:
            where = [Text(alike(owners), style="bold"), Text(f"  {len(owners)} alike", style="dim")]
        if len(inside) < len(where):
            where = [Text("\n").join(where)]
        for position, change in enumerate(inside):
            table.add_row(
                where[position] if position < len(where) else Text(),
                Text(_name(change.path)),
                Text(change.before or "-", style="" if change.before else "dim"),
                Text("=>", style="dim"),
                Text(change.after, style="dim" if change.after.endswith("removed") else "green"),
            )
    return table


def _owner(path: str) -> str:
    return path.rpartition(":")[0] if ":" in path else path.rpartition(".")[0]


def _name(path: str) -> str:
    name = path.rpartition(".")[2]
    return f"{name}()" if ":" in path else name


def _alike(first: list[Change], second: list[Change]) -> bool:
    def told(inside: list[Change]) -> list[tuple[str, str, str]]:
        return [(_name(change.path), change.before, change.after) for change in inside]

    return told(first) == told(second)
