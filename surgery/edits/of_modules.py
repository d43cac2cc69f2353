"""Edits of modules and their tensors: the code that calls them stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from chansurg.surgery.edits.places import LayerSpec, join_path, require_plain


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
class Narrow:
    """The module at ``path`` keeps these channels, by index, in this order; ``None`` keeps them as they are.

    For a grouped convolution ``in_channels`` counts over all groups, as its ``in_channels`` attribute does; every group must keep equally
    many, or go whole, inputs and outputs. For a norm or a depthwise convolution input and output are one, and ``out_channels`` is used.
    So it is for a parameter that belongs to no layer; ``path`` is then its name in the state dict.
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


@dataclass(frozen=True)
class Repeat:
    """The module at ``path`` is followed by a copy of itself, under ``name``.

    It is a child of an ``nn.Sequential``, and the copy is the next child. Repeats come before all other edits, in their order, so that
    those can name what is inside the copy.
    """

    path: str
    name: str
    op: ClassVar[str] = "repeat"

    def __post_init__(self) -> None:
        """The name may become part of generated code."""
        require_plain(self.name)

    @property
    def copy(self) -> str:
        """Path of the copy."""
        return join_path(self.path.rpartition(".")[0], self.name)

    def as_json(self) -> dict[str, Any]:
        """JSON values; :func:`edit_from_json` reads them back."""
        return {"op": self.op, "path": self.path, "name": self.name}


@dataclass(frozen=True)
class Inherit:
    """A tensor of the edited network starts with values that the network had before all edits.

    This comes last. Where the network is built again for tensors that come from a file, nothing is copied.

    Args:
        tensor: its name in the state dict after all edits.
        source: the name in the state dict before all edits of the tensor that it starts from.
        slices: for each of the source's dimensions the indices taken, in order and repeated if need be, or ``None`` for all;
            ``()`` takes the tensor as a whole.
        rows: which entries of the tensor's first dimension start so, in the order in which they are taken; ``None`` is all. Several
            edits then make up the tensor from one source: the groups of a convolution may take different slices.
    """

    tensor: str
    source: str
    slices: tuple[tuple[int, ...] | None, ...] = ()
    rows: tuple[int, ...] | None = None
    op: ClassVar[str] = "inherit"

    @property
    def path(self) -> str:
        """The tensor's name."""
        return self.tensor

    @property
    def selects(self) -> bool:
        """Whether it takes less than the whole source, or that in another order."""
        return self.rows is not None or any(indices is not None for indices in self.slices)

    def as_json(self) -> dict[str, Any]:
        """JSON values; :func:`edit_from_json` reads them back."""
        return {
            "op": self.op,
            "path": self.path,
            "tensor": self.tensor,
            "source": self.source,
            "slices": [None if indices is None else list(indices) for indices in self.slices],
            "rows": None if self.rows is None else list(self.rows),
        }
