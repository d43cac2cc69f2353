"""Which channels of the original a tensor of the converted network still has, read from the edits that were made."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from chansurg.surgery.edits import Edit, Inherit, Narrow, Swap
from chansurg.surgery.survey import Region, Survey
from chansurg.surgery.survey.kinds import shape_of

Indices = tuple[int, ...]


class Kept:
    """What is left of the original's channels.

    Args:
        original: the survey of the network before the edits.
        edits: those of its conversion.
    """

    def __init__(self, original: Survey, edits: Iterable[Edit]) -> None:
        self._survey = original
        self._narrowed: dict[str, Narrow] = {}
        self._inherited: dict[str, Indices] = {}
        swapped = []
        for edit in edits:
            if isinstance(edit, Narrow):
                self._narrowed[edit.path] = edit
            elif isinstance(edit, Swap):
                swapped.append(edit.path)
            elif isinstance(edit, Inherit):
                owner = next((path for path in swapped if edit.tensor.startswith(f"{path}.") and edit.source.startswith(f"{path}.")), None)
                if owner is not None and edit.rows is None and edit.source.endswith(".weight") and edit.slices and edit.slices[0]:
                    self._inherited[owner] = (*self._inherited.get(owner, ()), *edit.slices[0])

    def at(self, region: Region, node: fx.Node, now: fx.Node) -> tuple[Indices | None, int] | None:
        """The channels of ``node``'s output that ``now``, its partner in the converted network, has, and the axis they lie along.

        ``None`` where they cannot be told; the channels are ``None`` where all are there.
        """
        old, new = shape_of(node), shape_of(now)
        if old is None or new is None or len(old) != len(new):
            return None
        differing = [axis for axis in range(1, len(old)) if old[axis] != new[axis]]
        if not differing:
            return None, 1
        if len(differing) > 1:
            return None
        width = new[differing[0]]
        members = self._survey.spaces(region).after(node).members
        made = [self._narrowed[m.path].out_channels for m in members if m.side != "in" and m.path in self._narrowed]
        handed_down = [self._inherited[m.path] for m in members if m.side != "in" and m.path in self._inherited]
        read = [self._narrowed[m.path].in_channels for m in members if m.side == "in" and m.path in self._narrowed]
        found = next((channels for channels in (*made, *handed_down, *read) if channels is not None and len(channels) == width), None)
        return None if found is None else (found, differing[0])
