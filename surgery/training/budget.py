"""Steering gates towards a budget: the sliced network shall cost a given share of the original.

Users have budgets, and a shrinking rate is none. So a :class:`Budget` decides which entries each gate may shrink at any time, and how
hard. In the first third of the shrinking part the share that the sliced network would cost, if all that is released were gone, falls
evenly from 1 to the target, and by its end what is released is masked: some still opened for an image here and there, and the rest of
the run makes up for them. A network has the more of a run to recover in, the sooner it is as small as it will be.

What is released first is what costs least in accuracy for what it saves: the average of ``(s dL/ds)^2`` over images, the squared change
of the loss to first order if the entry were closed (the Taylor criterion of Molchanov et al., Importance Estimation for Neural Network
Pruning, CVPR 2019, Equation 8), over the saving. What was released stays so; no more is released than the target asks for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import record_of, unwrapped
from chansurg.surgery.gating import Gate, gates
from chansurg.surgery.layer import Moment
from chansurg.surgery.slicing.couplings import Couplings
from chansurg.surgery.slicing.slicing import original_counts
from chansurg.surgery.survey import survey

QUANTITIES = ("macs", "params", "memory_access")
TOLERANCE = 0.02
"""How far from its target a network may land, relative to the target."""

_FIRST = 0.03  # share of the shrinking part in which nothing is released: sensitivities have to be known first
_RELEASED = 0.27  # share of the shrinking part by which all is released
_MASKED = 0.33  # share of the shrinking part by which all of that is masked
_RATE = 2e-4  # sum over the batch as if it held 256 images, so 0.05 on the mean
_GROWTH, _MOST = 1.08, 100.0
_REVIEWS = 300  # times that the release is thought over in the shrinking part, at most
_LEAST_SAVING = 1e-12
_SHUT = 0.1  # running salience below which an entry is as good as gone


class Budget:
    """Steers one network's gates; asked before each optimizer step.

    Args:
        model: a network with gates, on the device where it is trained; its gates are read and set in place.
        target: share of what the original network costs, from 0 to 1.
        quantity: ``macs``, ``params`` or ``memory_access``.
        residual: as the network will be sliced (:mod:`chansurg.surgery.slicing`).

    Raises:
        InputError: where the network has no gate, or the target lies under what its gates may let go of, or costs no less than now.
    """

    def __init__(self, model: nn.Module, target: float, quantity: str, *, residual: str = "scatter") -> None:
        network = unwrapped(model)
        self.target, self.quantity, self.residual = target, quantity, residual
        self.gates: dict[str, Gate] = gates(network)
        option = f"--target-{quantity.replace('_', '-')}"
        if not self.gates:
            raise InputError(
                "The network has no gate that could let go of channels.",
                where=f"option {option}",
                not_done="Nothing was trained.",
                to_do="Convert it first: `chansurg convert MODEL --recipe pcs`; or leave the target out.",
            )
        self._couplings = Couplings(survey(network, record_of(network).preprocessing.input_size))
        self._original = original_counts(network)[quantity]
        self.floor = self._share({path: gate.ranking()[: gate.shrinkable].tolist() for path, gate in self.gates.items()})
        if target < self.floor:
            raise InputError(
                f"The target {target:g} lies under {self.floor:.3f}, the least that the gates may go down to.",
                where=f"option {option}",
                not_done="Nothing was trained.",
                to_do=f"Choose at least {self.floor:.3f}, or convert with a larger --shrink (3/4, say).",
            )
        if target >= (present := self._share({})):
            raise InputError(
                f"The target {target:g} is met: the network costs {present:.3f} of the original as it is.",
                where=f"option {option}",
                not_done="Nothing was trained.",
                to_do="Choose less, or leave the target out.",
            )
        self._until = min(gate.shrinks_until for gate in self.gates.values())
        self._rate, self._reviewed, self._closed = _RATE, -1, False
        self._released = {path: ~gate.mask for path, gate in self.gates.items()}
        self._hand_out()

    def _hand_out(self) -> None:
        """Tell the gates what is released, and whether it still matters what entries are worth."""
        for path, gate in self.gates.items():
            gate.released, gate.is_sensed = self._released[path], not self._closed

    def before_step(self, moment: Moment) -> float:
        """Set which entries each gate may shrink now, and mask them in the end; gives the rate at which they shrink."""
        part = moment.progress / self._until
        if self._closed or part < _FIRST:
            return self._rate
        review = int(part * _REVIEWS)
        if part >= _MASKED:
            self._close()
        elif review > self._reviewed:
            self._reviewed = review
            if self._open():
                self._rate = min(self._rate * _GROWTH, _RATE * _MOST)
            self._release(1.0 - (1.0 - self.target) * min(1.0, (part - _FIRST) / (_RELEASED - _FIRST)))
        return self._rate

    def _open(self) -> bool:
        """Whether something is released and not as good as gone."""
        return any(bool((gate.running_salience[self._released[path]] >= _SHUT).any()) for path, gate in self.gates.items())

    def _close(self) -> None:
        """Mask all that is to go; nothing shrinks from then on."""
        self._release(self.target)
        for path, gate in self.gates.items():
            gate.mask.logical_and_(~self._released[path])
        self._rate, self._closed = 0.0, True
        self._hand_out()

    def share(self) -> float:
        """What the network would cost if it were sliced by its masks now, as a share of the original."""
        return self._share({})

    def summary(self) -> dict[str, Any]:
        """Target, what was reached, and whether that is within the tolerance; JSON values."""
        reached = self.share()
        return {
            "quantity": self.quantity,
            "target": self.target,
            "reached": reached,
            "within_tolerance": abs(reached - self.target) <= TOLERANCE * self.target,
        }

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs beside the network's own tensors, as JSON values."""
        released = {path: _numbers(entries) for path, entries in self._released.items()}
        return {"rate": self._rate, "reviewed": self._reviewed, "closed": self._closed, "released": released}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self._rate, self._reviewed, self._closed = state["rate"], state["reviewed"], state["closed"]
        for path, numbers in state["released"].items():
            self._released[path].fill_(False)[numbers] = True
        self._hand_out()

    def _share(self, going: Mapping[str, Sequence[int]]) -> float:
        """The cost where each gate has let go of these entries, beside what its mask has; a share of the original."""
        masks = {}
        for path, gate in self.gates.items():
            kept = gate.mask.detach().cpu().clone()
            kept[list(going.get(path, ()))] = False
            masks[path] = kept
        cost = self._couplings.cost(masks, self.residual)
        return float(getattr(cost, self.quantity)) / self._original

    def _release(self, share: float) -> None:
        """Release the entries with the lowest prices too, as many as bring the cost nearest to ``share``."""
        offers = sorted(offer for path, gate in self.gates.items() for offer in self._offers(path, gate))

        def with_first(count: int) -> dict[str, list[int]]:
            going = {path: _numbers(entries) for path, entries in self._released.items()}
            for _, path, entry in offers[:count]:
                going[path].append(entry)
            return going

        def left(count: int) -> float:
            return self._share(with_first(count))

        count = bisect_left(range(len(offers)), -share, key=lambda count: -left(count))
        if count and (count == len(offers) or left(count - 1) - share < share - left(count)):
            count -= 1
        for path, entries in with_first(count).items():
            self._released[path][entries] = True

    def _offers(self, path: str, gate: Gate) -> list[tuple[float, str, int]]:
        """What the gate may still let go of: price, path, entry. The price is what the entry costs in accuracy for what it saves."""
        left = torch.nonzero(~self._released[path]).flatten()
        room = gate.shrinkable - int(self._released[path].sum())
        if room <= 0:
            return []
        cheapest = left[torch.argsort(gate.sensitivity[left], stable=True)][:room]
        saving = max((self._share({}) - self._share({path: cheapest.tolist()})) / len(cheapest), _LEAST_SAVING)
        prices = gate.sensitivity[cheapest].double() / saving
        return [(price, path, entry) for price, entry in zip(prices.tolist(), cheapest.tolist(), strict=True)]


def _numbers(entries: Tensor) -> list[int]:
    """Which entries of a bool ``[entries]`` are true."""
    numbers: list[int] = torch.nonzero(entries).flatten().tolist()
    return numbers
