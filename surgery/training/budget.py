"""Steering gates towards a budget: the sliced network shall cost a given share of the original.

Users have budgets, and a shrinking rate is none. So a :class:`Budget` decides how many entries each gate may shrink at any time, and how
hard. The share that the sliced network would cost if all that is released were gone falls evenly from 1 to the target. What is released
first is what costs least in accuracy for what it saves: the average of ``(s dL/ds)^2`` over images, the squared change of the loss to
first order if the entry were closed (the Taylor criterion of Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019,
Equation 8), over the saving. Entries that are shut already come before all others, since they cost nothing any more. No more than the
target asks for is ever released, so the network does not end below it; and from the moment all is released the rate grows until all of
that is shut, so it does not end above it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

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

_FIRST = 0.04  # share of the shrinking part in which nothing is released: sensitivities have to be known first
_RELEASED = 0.6  # share of the shrinking part by which all is released
_RATE = 2e-4  # sum over the batch as if it held 256 images, so 0.05 on the mean
_GROWTH, _MOST = 1.08, 100.0
_REVIEWS = 150  # times that the release is thought over in the shrinking part
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
        self.floor = self._share({path: gate.shrinkable for path, gate in self.gates.items()})
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
        self._rate, self._reviewed, self._complete = _RATE, -1, False
        for gate in self.gates.values():
            gate.is_sensed, gate.allowance = True, 0

    def before_step(self, moment: Moment) -> float:
        """Set how many entries each gate may shrink now; gives the rate at which they shrink."""
        part = moment.progress / self._until
        review = int(part * _REVIEWS)
        if part >= 1.0 or review <= self._reviewed:
            return self._rate
        self._reviewed = review
        released = (part - _FIRST) / (_RELEASED - _FIRST)
        if released <= 0.0:
            return self._rate
        if not self._complete:
            self._release(1.0 - (1.0 - self.target) * min(1.0, released))
            self._complete = released >= 1.0
        else:
            self._rate = min(self._rate * _GROWTH, _RATE * _MOST)
        return self._rate

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
        allowances = {path: gate.allowance for path, gate in self.gates.items()}
        return {"rate": self._rate, "reviewed": self._reviewed, "complete": self._complete, "allowances": allowances}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self._rate, self._reviewed, self._complete = state["rate"], state["reviewed"], state["complete"]
        for path, allowance in state["allowances"].items():
            self.gates[path].allowance = allowance

    def _share(self, allowances: Mapping[str, int]) -> float:
        """The cost where each gate has let go of the first entries of its ranking, beside what its mask has; a share of the original."""
        masks = {}
        for path, gate in self.gates.items():
            kept = gate.mask.detach().cpu().clone()
            kept[gate.ranking().cpu()[: allowances.get(path, 0)]] = False
            masks[path] = kept
        cost = self._couplings.cost(masks, self.residual)
        return float(getattr(cost, self.quantity)) / self._original

    def _release(self, share: float) -> None:
        """Let gates shrink the entries with the lowest prices, as many as bring the cost nearest to ``share``."""
        offers = sorted(offer for path, gate in self.gates.items() for offer in self._offers(path, gate))

        def left(count: int) -> float:
            return self._share(Counter(path for *_, path in offers[:count]))

        count = bisect_left(range(len(offers)), -share, key=lambda count: -left(count))
        if count and left(count - 1) - share < share - left(count):
            count -= 1
        taken = Counter(path for *_, path in offers[:count])
        for path, gate in self.gates.items():
            gate.allowance = taken[path]

    def _offers(self, path: str, gate: Gate) -> list[tuple[float, float, str]]:
        """For each entry that the gate may let go of, in the order of its ranking: price, place in the ranking from 0 to 1, path.

        The price is what the entry costs in accuracy for what it saves; it never falls along the ranking, so that a gate's cheapest
        offers are always the first entries of its ranking.
        """
        count = gate.shrinkable
        if not count:
            return []
        order = gate.ranking()[:count]
        saving = max((self._share({}) - self._share({path: count})) / count, _LEAST_SAVING)
        shut = gate.running_salience[order] < _SHUT
        prices = gate.sensitivity[order].double().masked_fill(shut, 0.0).div(saving).cummax(0).values
        return [(price, place / gate.entries, path) for place, price in enumerate(prices.tolist())]
