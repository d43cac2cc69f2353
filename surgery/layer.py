"""The base of every layer that a recipe puts into a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def _alone(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Moment:
    """Where a training run stands, and what a layer needs of the run to keep its own books.

    Args:
        progress: how much of the run is done, from 0 to 1.
        steps: optimizer steps of the whole run; ``None`` where nobody knows.
        epoch: the share of the run that one pass over the data takes, from 0 to 1; ``None`` where nobody knows.
        pressure: the rate at which gates shrink, in place of their own schedules; whoever steers towards a budget sets it. ``None`` leaves
            it to them.
        mean: the mean of a tensor over all processes.
        any: for a tensor of bools, where it is true in any process.
    """

    progress: float
    steps: int | None = None
    epoch: float | None = None
    pressure: float | None = None
    mean: Callable[[Tensor], Tensor] = _alone
    any: Callable[[Tensor], Tensor] = _alone


@dataclass(frozen=True)
class Target:
    """Where a network is going to run, for layers that have a form of their own there.

    Args:
        runtime: ``eager``, ``compile`` (``torch.compile``), ``onnxruntime``, ``aoti`` (compiled ahead of time), or ``export``: any
            program that has nothing but torch's own operators.
        device: the type of the device: ``cpu``, ``cuda``.
        nonnegative: what the layer is given holds no negative number.
        shapes: of what it is given for one image; empty where it is called with several, or they are not known.
    """

    runtime: str
    device: str = "cpu"
    nonnegative: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()


class RecipeLayer(nn.Module):
    """A layer of a recipe: one call when traced, built from plain arguments, initialised reproducibly.

    A subclass takes JSON values only, so that a journal can build it again, and constructs on the meta device. It gives one tensor, or a
    tuple of them, whose channels nobody else can then follow.
    """

    no_weight_decay: frozenset[str] = frozenset()
    """Names of its parameters that weight decay would harm; biases and norms are left out anyway."""

    is_spatial: bool = False
    """Whether it stands in for a spatial convolution, so that what goes with one goes with it."""
    adds: bool = False
    """Whether it adds its second input to its first, or to a part of it, as the addition at the end of a residual block does."""

    keeps_nonnegative: bool = False
    """Whether it puts out no negative number where it is given none; a gate: where its features hold none, whatever its source."""

    def for_runtime(self, target: Target) -> nn.Module:
        """A module that is called with the same tensors and gives the same in eval mode, in the form that is fastest on ``target``.

        The layer itself where there is none better. What is made anew holds the layer's own tensors, or what was computed from them.
        """
        return self

    def norms_inside(self) -> Sequence[tuple[str, str]]:
        """Pairs of a layer and the batch norm that works on what it puts out and on nothing else, by their paths below this layer."""
        return ()

    def last_layers(self) -> Sequence[str]:
        """Paths below this layer of those that, one after another along the channels, make up what it puts out.

        A batch norm behind it can then be folded into them; empty where there are none.
        """
        return ()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise every parameter anew, drawing from ``generator``."""

    def training_loss(self, moment: Moment) -> Tensor | None:
        """What the layer adds to the loss of the batch it has just seen in train mode, a scalar; ``None`` where it adds nothing."""
        return None

    def step_taken(self, moment: Moment) -> None:
        """Called once after each optimizer step of a training run, in every process."""

    def reason_against_narrowing(self, in_channels: Sequence[int] | None, out_channels: Sequence[int] | None) -> str | None:
        """Why the layer cannot keep just these channels, or ``None``; nothing is changed."""
        return f"{type(self).__name__} has no rule for being narrowed"

    def narrow(self, in_channels: Sequence[int] | None, out_channels: Sequence[int] | None) -> None:
        """Keep only these channels, by index, in this order; called where :meth:`reason_against_narrowing` gave ``None``."""
        raise NotImplementedError
