"""What the walk through a network finds, for deciding later: layers, readers, groups, additions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chansurg.surgery.slicing.formulas import Ints

if TYPE_CHECKING:
    from torch import fx

    from chansurg.surgery.survey import Region


@dataclass(frozen=True)
class Layer:
    """A convolution, linear layer, norm or gate whose channels are slots.

    Args:
        path: the module's.
        inputs: the slot of each input channel; ``None`` for a norm or a depthwise convolution, where input and output are one.
        outputs: the slot of each output channel.
        positions: output elements of one channel, for one image.
    """

    path: str
    inputs: Ints | None
    outputs: Ints
    positions: int


@dataclass(frozen=True)
class Reader:
    """A layer that sums over these slots: each may go only where it is exactly zero there."""

    path: str
    labels: Ints
    zero: Ints


@dataclass(frozen=True)
class Grouped:
    """A grouped convolution, whose groups go whole, or shrink alike.

    Args:
        path: the module's.
        inputs: slots ``[groups, input channels of a group]``.
        zero: of the same shape: when the input is exactly zero.
        outputs: slots ``[groups, output channels of a group]``.
        shrinks: whether the groups that stay may lose equally many channels.
    """

    path: str
    inputs: Ints
    zero: Ints
    outputs: Ints
    shrinks: bool


@dataclass(frozen=True)
class Addition:
    """A residual addition that can be cut: where the branch lets go of a channel, the stage may keep it.

    Args:
        region: where it is.
        node: the addition, or a layer that stands for one already.
        dim: where the channels lie.
        branch: which operand is the branch, 0 or 1.
        stage: slots of the stage at the branch's places.
        labels: slots of the branch.
        zero: when the branch is exactly zero.
        whole: slots of the whole stage; ``stage`` itself where the branch has all its channels.
        made: whether it is such a layer already.
    """

    region: Region
    node: fx.Node
    dim: int
    branch: int
    stage: Ints
    labels: Ints
    zero: Ints
    whole: Ints
    made: bool = False


@dataclass
class Facts:
    """Everything found in a network's regions."""

    layers: list[Layer] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    grouped: list[Grouped] = field(default_factory=list)
    additions: list[Addition] = field(default_factory=list)
