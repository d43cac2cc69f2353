"""Where an edit applies and what it puts there: addresses of calls, layers to be built, and the names they get."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chansurg.surgery.edits.json_values import text, whole

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+", re.ASCII)


@dataclass(frozen=True, order=True)
class Address:
    """One call in the forward of one module.

    Args:
        owner: path of the module whose ``forward`` makes the call; ``""`` is the network itself.
        operation: what is called: ``self.conv1`` for a child, ``torch.relu`` for a function, ``.view`` for a method of a tensor.
        call: which of the owner's calls of this operation, from 0.
    """

    owner: str
    operation: str
    call: int = 0

    @property
    def path(self) -> str:
        """The called module's path; for a function or method ``owner:operation``, with nothing ahead of the colon for the network."""
        name = f"{self.owner}:{self.operation}"
        if self.operation.startswith("self."):
            name = f"{self.owner}.{self.operation.removeprefix('self.')}".removeprefix(".")
        return name if self.call == 0 else f"{name}#{self.call}"

    def as_json(self) -> dict[str, Any]:
        """JSON values; :meth:`from_json` reads them back."""
        return {"owner": self.owner, "operation": self.operation, "call": self.call}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Address:
        """Inverse of :meth:`as_json`."""
        return cls(text(data["owner"]), text(data["operation"]), whole(data["call"]))


@dataclass(frozen=True)
class LayerSpec:
    """A layer of a recipe, to be built: ``kind`` is ``recipe.ClassName``, ``arguments`` its keyword arguments (JSON values)."""

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """JSON values; :meth:`from_json` reads them back."""
        return {"kind": self.kind, "arguments": dict(self.arguments)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerSpec:
        """Inverse of :meth:`as_json`."""
        return cls(text(data["kind"]), dict(data["arguments"]))


def join_path(parent: str, child: str) -> str:
    """A module's path from its parent's and its own name; the network itself is ``""``."""
    return f"{parent}.{child}" if parent and child else parent or child


def require_plain(name: str) -> None:
    """See that a name for a new child is one, since code is generated with it.

    Raises:
        ValueError: for anything but ASCII letters, digits and underscores.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is not a name for a layer")
