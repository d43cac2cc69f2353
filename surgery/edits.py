"""The elementary edits, as plain data.

Everything a recipe does to a network is a list of these. Each names one place and what happens there, with every number it needs, so that
a file can replay it without searching again and without the original weights:

========== ==========================================================================================
`Swap`     the module at a path gives way to a new layer; the code around it stays as it is
`Insert`   a new layer is put in front of one call, on its first input
`Bypass`   one call is removed: what went into it comes out; its module goes when nobody calls it any more
`Attach`   a new layer takes what one call put out, and reads what went into another; every reader of the output gets its result
`Replace`  one call gives way to a new layer on the same tensors; its module goes when nobody calls it any more
`Narrow`   a module keeps only the named input or output channels; its parameters are sliced
`Scale`    a module's filters, or its input slices, are multiplied by constants; its shapes stay
========== ==========================================================================================

`Swap`, `Narrow` and `Scale` name a module by its path. The others name a call by its :class:`Address`, since one module may be called in
several places. No torch is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

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
        return cls(_text(data["owner"]), _text(data["operation"]), _whole(data["call"]))


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
        return cls(_text(data["kind"]), dict(data["arguments"]))


@dataclass(frozen=True)
class Swap:
    """The module at ``path`` gives way to ``layer``, under the same name."""

    path: str
    layer: LayerSpec
    op: ClassVar[str] = "swap"

    def as_json(self) -> dict[str, Any]:
        """JSON values; :func:`edit_from_json` reads them back."""
        return {"op": self.op, "path": self.path, "layer": self.layer.as_json()}


@dataclass(frozen=True)
class Insert:
    """``layer`` is put in front of the call ``before``, as child ``name`` of the calling module."""

    before: Address
    name: str
    layer: LayerSpec
    op: ClassVar[str] = "insert"

    def __post_init__(self) -> None:
        """The name becomes part of generated code, so nothing but a plain name will do."""
        _require_plain(self.name)

    @property
    def path(self) -> str:
        """Path of the new layer."""
        return f"{self.before.owner}.{self.name}" if self.before.owner else self.name

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
class Narrow:
    """The module at ``path`` keeps these channels, by index, in this order; ``None`` keeps them as they are.

    For a grouped convolution ``in_channels`` counts over all groups, as its ``in_channels`` attribute does; every group must keep equally
    many, or go whole, inputs and outputs. For a norm or a depthwise convolution input and output are one, and ``out_channels`` is used.
    """

    path: str
    in_channels: tuple[int, ...] | None = None
    out_channels: tuple[int, ...] | None = None
    op: ClassVar[str] = "narrow"

    def as_json(self) -> dict[str, Any]:
        """JSON values; :func:`edit_from_json` reads them back."""
        return {
            "op": self.op,
            "path": self.path,
            "in_channels": None if self.in_channels is None else list(self.in_channels),
            "out_channels": None if self.out_channels is None else list(self.out_channels),
        }


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
        _require_plain(self.name)
        if self.after.owner != self.reads.owner:
            raise ValueError(f"{self.after.path} and {self.reads.path} are not called by one module")

    @property
    def path(self) -> str:
        """Path of the new layer."""
        return f"{self.after.owner}.{self.name}" if self.after.owner else self.name

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
        _require_plain(self.name)

    @property
    def path(self) -> str:
        """Path of the new layer."""
        return f"{self.at.owner}.{self.name}" if self.at.owner else self.name

    def as_json(self) -> dict[str, Any]:
        """JSON values; :func:`edit_from_json` reads them back."""
        return {"op": self.op, "path": self.path, "at": self.at.as_json(), "name": self.name, "layer": self.layer.as_json()}


@dataclass(frozen=True)
class Scale:
    """The module at ``path`` is multiplied by ``factors``, channel by channel.

    Args:
        path: a convolution, linear layer or norm.
        side: ``out`` multiplies what the module puts out (weight rows and bias; a norm's scale and shift); ``in`` multiplies the weight's
            input slices, so that the module gives for ``x`` what it gave for ``factors * x``.
        factors: one number, or one for each of the channels.
        channels: the channels multiplied, by index; ``None`` is all.
    """

    path: str
    side: str
    factors: float | tuple[float, ...]
    channels: tuple[int, ...] | None = None
    op: ClassVar[str] = "scale"

    def __post_init__(self) -> None:
        """A side that is neither, or numbers that do not pair up, is a mistake in a plan or a damaged file."""
        if self.side not in ("in", "out"):
            raise ValueError(f"{self.side!r} is no side of a layer")
        if isinstance(self.factors, tuple) and self.channels is not None and len(self.factors) != len(self.channels):
            raise ValueError(f"{len(self.factors)} factors for {len(self.channels)} channels")

    def as_json(self) -> dict[str, Any]:
        """JSON values; :func:`edit_from_json` reads them back."""
        return {
            "op": self.op,
            "path": self.path,
            "side": self.side,
            "factors": list(self.factors) if isinstance(self.factors, tuple) else self.factors,
            "channels": None if self.channels is None else list(self.channels),
        }


Edit = Swap | Insert | Bypass | Attach | Replace | Narrow | Scale


def _require_plain(name: str) -> None:
    if not _PLAIN_NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is not a name for a layer")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r:.80} is not a count")
    return value


def _indices(values: Any) -> tuple[int, ...] | None:
    return None if values is None else tuple(_whole(i) for i in values)


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{value!r:.80} is not a number")
    return float(value)


def _factors(values: Any) -> float | tuple[float, ...]:
    return tuple(_number(value) for value in values) if isinstance(values, list) else _number(values)


def edit_from_json(data: Mapping[str, Any]) -> Edit:
    """Read one edit back from JSON values.

    Raises:
        ValueError, TypeError, KeyError: for an operation this version does not know, or data that is not of its form.
    """
    match data["op"]:
        case Swap.op:
            return Swap(_text(data["path"]), LayerSpec.from_json(data["layer"]))
        case Insert.op:
            return Insert(Address.from_json(data["before"]), _text(data["name"]), LayerSpec.from_json(data["layer"]))
        case Bypass.op:
            return Bypass(Address.from_json(data["at"]))
        case Narrow.op:
            return Narrow(_text(data["path"]), _indices(data.get("in_channels")), _indices(data.get("out_channels")))
        case Attach.op:
            after, reads = Address.from_json(data["after"]), Address.from_json(data["reads"])
            return Attach(after, reads, _text(data["name"]), LayerSpec.from_json(data["layer"]))
        case Replace.op:
            return Replace(Address.from_json(data["at"]), _text(data["name"]), LayerSpec.from_json(data["layer"]))
        case Scale.op:
            return Scale(_text(data["path"]), _text(data["side"]), _factors(data["factors"]), _indices(data["channels"]))
        case other:
            raise ValueError(f"unknown edit {other!r}")
