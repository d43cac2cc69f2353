"""Edits of calls: the forward that makes them is rewritten, and the modules around it stay what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from chansurg.surgery.edits.places import Address, LayerSpec, join_path, require_plain


@dataclass(frozen=True)
class Insert:
    """``layer`` is put in front of the call ``before``, as child ``name`` of the calling module."""

    before: Address
    name: str
    layer: LayerSpec
    op: ClassVar[str] = "insert"

    def __post_init__(self) -> None:
        """The name becomes part of generated code, so nothing but a plain name will do."""
        require_plain(self.name)

    @property
    def path(self) -> str:
        """Path of the new layer."""
        return join_path(self.before.owner, self.name)

    def as_json(self) -> dict[str, Any]:
        """JSON values; :func:`edit_from_json` reads them back."""
        return {
            "op": self.op,
            "path": self.path,
            "before": self.before.as_json(),
            "name": self.name,
            "layer": self.layer.as_json(),
        }


@dataclass(frozen=True)
class Bypass:
    """The call ``at`` is removed; its first input takes the place of its output."""

    at: Address
    op: ClassVar[str] = "bypass"

    @property
    def path(self) -> str:
        """Path of what is no longer called here."""
        return self.at.path

    def as_json(self) -> dict[str, Any]:
        """JSON values; :func:`edit_from_json` reads them back."""
        return {"op": self.op, "path": self.path, "at": self.at.as_json()}


@dataclass(frozen=True)
class Attach:
    """``layer`` is called on the output of ``after`` and the first input of ``reads``, and its result takes that output's place.

    Both calls are made by one module, which gets ``layer`` as child ``name``. In evaluation order ``reads`` comes first, or is ``after``.
    """

    after: Address
    reads: Address
    name: str
    layer: LayerSpec
    op: ClassVar[str] = "attach"

    def __post_init__(self) -> None:
        """The name becomes part of generated code; and one forward can read only what it has itself."""
        require_plain(self.name)
        if self.after.owner != self.reads.owner:
            raise ValueError(f"{self.after.path} and {self.reads.path} are not called by one module")

    @property
    def path(self) -> str:
        """Path of the new layer."""
        return join_path(self.after.owner, self.name)

    def as_json(self) -> dict[str, Any]:
        """JSON values; :func:`edit_from_json` reads them back."""
        return {
            "op": self.op,
            "path": self.path,
            "after": self.after.as_json(),
            "reads": self.reads.as_json(),
            "name": self.name,
            "layer": self.layer.as_json(),
        }


@dataclass(frozen=True)
class Replace:
    """The call ``at`` gives way to ``layer``, as child ``name`` of the calling module, on the same tensors in the same order."""

    at: Address
    name: str
    layer: LayerSpec
    op: ClassVar[str] = "replace"

    def __post_init__(self) -> None:
        """The name becomes part of generated code."""
        require_plain(self.name)

    @property
    def path(self) -> str:
        """Path of the new layer."""
        return join_path(self.at.owner, self.name)

    def as_json(self) -> dict[str, Any]:
        """JSON values; :func:`edit_from_json` reads them back."""
        return {"op": self.op, "path": self.path, "at": self.at.as_json(), "name": self.name, "layer": self.layer.as_json()}


@dataclass(frozen=True)
class Route:
    """A branch computes on a selection of what went into it, and what it gives is fused with what passes it by.

    ``layer`` is called on the one tensor ``x`` that is the first input of every call of ``into``, and gives two tensors: the selection,
    which takes the place of ``x`` in those calls, and a note of it. ``fusion`` gets the note where the branch ends.

    Args:
        into: the branch's first calls; all are made by one module, which gets the two layers.
        closes: the call that ends the branch.
        passing: ``closes`` is an addition, and this is the operand, 0 or 1, that passes the branch by: the addition gives way to
            ``fusion(passing operand, other operand, note)``. With ``None`` the call stays, and every reader of its output gets
            ``fusion(x, output, note)``.
        name: name of ``layer`` among the module's children.
        layer: what selects.
        fusion_name: name of ``fusion`` among them.
        fusion: what joins the branch and what passes it by.
    """

    into: tuple[Address, ...]
    closes: Address
    passing: int | None
    name: str
    layer: LayerSpec
    fusion_name: str
    fusion: LayerSpec
    op: ClassVar[str] = "route"

    def __post_init__(self) -> None:
        """Names become part of generated code, one forward can route only what it has itself, and an addition has two operands."""
        require_plain(self.name)
        require_plain(self.fusion_name)
        if self.name == self.fusion_name:
            raise ValueError(f"both layers would go by the name {self.name!r}")
        if not self.into:
            raise ValueError("no call is named that a branch begins with")
        for address in self.into:
            if address.owner != self.closes.owner:
                raise ValueError(f"{address.path} and {self.closes.path} are not called by one module")
        if self.passing not in (None, 0, 1):
            raise ValueError(f"an addition has the operands 0 and 1, not {self.passing}")

    @property
    def path(self) -> str:
        """Path of the new layer that selects."""
        return join_path(self.closes.owner, self.name)

    @property
    def fusion_path(self) -> str:
        """Path of the new layer that fuses."""
        return join_path(self.closes.owner, self.fusion_name)

    def as_json(self) -> dict[str, Any]:
        """JSON values; :func:`edit_from_json` reads them back."""
        return {
            "op": self.op,
            "path": self.path,
            "into": [address.as_json() for address in self.into],
            "closes": self.closes.as_json(),
            "passing": self.passing,
            "name": self.name,
            "layer": self.layer.as_json(),
            "fusion_name": self.fusion_name,
            "fusion": self.fusion.as_json(),
        }
