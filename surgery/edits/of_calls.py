"""Edits of calls: the forward that makes them is rewritten, and the modules around it stay what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from chansurg.surgery.edits.places import Address, LayerSpec, child_path, require_plain


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
        return child_path(self.before.owner, self.name)

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
        return child_path(self.after.owner, self.name)

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
        return child_path(self.at.owner, self.name)

    def as_json(self) -> dict[str, Any]:
        """JSON values; :func:`edit_from_json` reads them back."""
        return {"op": self.op, "path": self.path, "at": self.at.as_json(), "name": self.name, "layer": self.layer.as_json()}
