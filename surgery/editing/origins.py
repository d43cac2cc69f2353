"""Where every tensor of an edited network comes from: kept, sliced, copied from another, or new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chansurg.surgery.edits import Edit, Inherit, Repeat, new_layers

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of a state dict's tensors, by name."""


@dataclass
class Origins:
    """What became of the tensors, by their names in the state dict.

    Args:
        kept: how many hold all that they, or their sources, held before the edits; a factor may have been multiplied in.
        sliced: those that hold a selection of it.
        new: those that hold nothing that was there before.
        removed: names that are gone.
        sources: for those of new layers and of copies that start as what was there before: the name that this went by.
    """

    kept: int = 0
    sliced: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)


def origins_of(edits: Sequence[Edit], before: Shapes, after: Shapes) -> Origins:
    """What the edits made of a network's tensors.

    Args:
        edits: as they were performed.
        before: shapes ahead of them all.
        after: shapes behind them all.
    """
    inherited = {edit.tensor: edit for edit in edits if isinstance(edit, Inherit)}  # those of one tensor have one source
    repeats = [edit for edit in edits if isinstance(edit, Repeat)]
    built = tuple(f"{path}." for edit in edits for path, _ in new_layers(edit))
    found = Origins(removed=[name for name in before if name not in after])
    for name, shape in after.items():
        edit = inherited.get(name)
        source = _copied_from(name, repeats) if edit is None else edit.source
        if source not in before or (edit is None and name.startswith(built)):
            found.new.append(name)
            continue
        if edit is not None or source != name:
            found.sources[name] = source
        if before[source] != shape or (edit is not None and edit.selects):
            found.sliced.append(name)
        else:
            found.kept += 1
    return found


def _copied_from(name: str, repeats: Sequence[Repeat]) -> str:
    """The name that a tensor, or the one that it is a copy of, went by before anything was repeated."""
    for repeat in reversed(repeats):
        if name.startswith(f"{repeat.copy}."):
            name = repeat.path + name.removeprefix(repeat.copy)
    return name
