"""Gates: layers that multiply channels by a salience, and may let go of some for good.

The engine slices any network that has gates, steers any towards a budget, and folds any gate's frozen salience away, through what this
base class promises. It knows no recipe by name.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.layer import RecipeLayer


class Gate(RecipeLayer):
    """Multiplies each channel of what a layer puts out by a salience computed from what went into that layer.

    ``forward(features, source)`` takes ``features`` ``[B, C, …]`` or ``[B, …, C]`` and ``source``, the input of the gated layer, and gives
    a tensor shaped as ``features``. ``C`` channels are ``entries`` removable units of ``unit`` neighbouring channels each. Where ``mask``
    is false, the result is exactly zero, in train and in eval mode.

    Attributes:
        mask: buffer, bool ``[entries]``; false for what the network has let go of.
        running_salience: buffer, float ``[entries]``; the average over training that ranks the entries.
        importance: buffer, float ``[entries]``; larger is kept longer. It ranks entries of equal running salience.
        sensitivity: buffer, float ``[entries]``; the average over training images of ``(s dL/ds)^2``, the squared change of the loss, to
            first order, if the entry's salience ``s`` were zero. It tells what letting go of an entry costs, between gates too.
        is_sensed: whether the sensitivity is kept while training; whoever steers towards a budget turns it on.
        unit: channels an entry.
        channel_dim: 1 where channels follow the batch, -1 where they come last.
        released: the entries that may be shrunk now, bool ``[entries]``; ``None`` leaves it to the ranking, up to :attr:`shrinkable`.
            Whoever steers towards a budget sets it.
    """

    mask: Tensor
    running_salience: Tensor
    importance: Tensor
    sensitivity: Tensor
    unit: int
    channel_dim: int
    released: Tensor | None = None
    is_sensed: bool = False

    @property
    def entries(self) -> int:
        """Removable units."""
        return int(self.mask.shape[0])

    @property
    @abstractmethod
    def shrinkable(self) -> int:
        """How many entries the recipe's options allow to go, at most; at least one stays."""

    @property
    @abstractmethod
    def shrinks_until(self) -> float:
        """The progress of a run, from 0 to 1, at which shrinking ends and what is dead is masked."""

    def ranking(self) -> Tensor:
        """Entries from the one that goes first to the one that stays longest: ``[entries]`` int64.

        What is released comes first; then lowest running salience, among equals lowest importance, then lowest index.
        """
        by_importance = torch.argsort(self.importance, stable=True)
        order = by_importance[torch.argsort(self.running_salience[by_importance], stable=True)]
        return order if self.released is None else order[torch.argsort((~self.released[order]).to(torch.uint8), stable=True)]

    def per_channel(self, values: Tensor) -> Tensor:
        """``[entries]`` values as ``[C]``: each unit's channels share one."""
        return values.repeat_interleave(self.unit)

    def frozen_salience(self) -> Tensor:
        """The constants ``[C]`` that take the salience's place when it is frozen: its running value, zero where the mask is false."""
        return self.per_channel(self.running_salience * self.mask)


def gates(model: nn.Module) -> dict[str, Gate]:
    """The network's gates by path, in the order of its modules."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Gate)}


def masks(model: nn.Module) -> dict[str, Tensor]:
    """What the network keeps and has let go of: ``{path of a gate: bool [C]}``, true is kept, on the CPU.

    Raises:
        InputError: where the network has no gate.
    """
    found = gates(model)
    if not found:
        raise InputError(
            "The network has no gate, so nothing in it can be let go of.",
            where=type(model).__name__,
            not_done="Nothing was done.",
            to_do="Convert it first, and train it: `chansurg convert MODEL --recipe pcs`, or chansurg.convert(model, 'pcs').",
        )
    return {path: gate.per_channel(gate.mask).cpu().clone() for path, gate in found.items()}
