"""From widths to edits: what every layer keeps, which additions are replaced, and why each channel that goes is of no use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chansurg.surgery.edits import Address, Edit, LayerSpec, Narrow, Replace
from chansurg.surgery.slicing.couplings import Couplings, Widths
from chansurg.surgery.slicing.facts import Layer
from chansurg.surgery.slicing.formulas import Bools, Ints
from chansurg.surgery.survey.kinds import path_of

Reasons = dict[str, dict[str, list[int]]]
"""For each layer by path: reason -> the channels that it holds for."""


@dataclass
class Cut:
    """What a slicing does, as plain data.

    Args:
        edits: in order.
        signatures: for each module whose forward is rewritten, its arguments that are no tensors.
        going: for each layer the output channels that go, by the reason why they are exactly zero or read by nobody.
        staying: for each gate the masked channels that stay, by the reason.
    """

    edits: list[Edit] = field(default_factory=list)
    signatures: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    going: Reasons = field(default_factory=dict)
    staying: Reasons = field(default_factory=dict)

    @property
    def removed(self) -> dict[str, int]:
        """How many output channels each layer loses."""
        return {path: sum(map(len, reasons.values())) for path, reasons in self.going.items()}


def cut(couplings: Couplings, widths: Widths, masked: Mapping[str, Bools], frozen: Collection[str] = ()) -> Cut:
    """The edits that leave a network with these widths.

    Args:
        couplings: of the network.
        widths: from :meth:`Couplings.widths`.
        masked: which entries of each gate are masked.
        frozen: paths of gates that will be taken out, and need not be narrowed.
    """
    made = Cut()
    explained = _Explanations(couplings, widths)
    for layer in widths.rules.layers:
        inputs, outputs = widths.kept(layer)
        narrow = Narrow(layer.path, _indices(inputs, layer.inputs), _indices(outputs, layer.outputs))
        if narrow == Narrow(layer.path):
            continue
        if layer.path not in frozen:
            made.edits.append(narrow)
        if layer.path not in couplings.gates:
            _by_reason(made.going, layer, widths.removed[layer.outputs], explained.going)
    names: set[str] = set()
    for addition in widths.rules.additions:
        if addition.made:
            branch, stage = widths.staying(addition.labels), widths.staying(addition.whole)
            narrow = Narrow(path_of(addition.node), _indices(branch, addition.labels), _indices(stage, addition.whole))
            if narrow != Narrow(narrow.path):
                made.edits.append(narrow)
    for addition, places in widths.scattered():
        at: Address = addition.node.meta["address"]
        name = _free_name(couplings, at.owner, names)
        # A branch and its stage have the same number of dimensions; channels that lie last are told from the end.
        ndim = len(addition.node.meta["shape"])
        dim = addition.dim if addition.dim == 1 else addition.dim - ndim
        arguments = {"kept": places.tolist(), "channel_dim": dim, "branch": addition.branch}
        made.edits.append(Replace(at, name, LayerSpec("engine.ScatterAdd", arguments)))
        made.signatures[at.owner] = couplings.survey.signature(addition.region, at.owner)
    for layer in widths.rules.layers:
        if layer.path in masked:
            stays = masked[layer.path].repeat(couplings.gates[layer.path].unit) & ~widths.removed[layer.outputs]
            _by_reason(made.staying, layer, stays, explained.staying)
    return made


def _by_reason(reasons: Reasons, layer: Layer, chosen: Bools, reason: Callable[[int], str]) -> None:
    for channel in np.flatnonzero(chosen).tolist():
        reasons.setdefault(layer.path, {}).setdefault(reason(int(layer.outputs[channel])), []).append(channel)


def _indices(kept: Ints | None, labels: Ints | None) -> tuple[int, ...] | None:
    return None if kept is None or labels is None or len(kept) == len(labels) else tuple(kept.tolist())


def _free_name(couplings: Couplings, owner: str, names: set[str]) -> str:
    """A name that the module ``owner`` has no attribute of."""
    module = couplings.survey.original.get_submodule(owner)
    number = 0
    while True:
        name = "scatter_add" if number == 0 else f"scatter_add_{number}"
        if not hasattr(module, name) and f"{owner}.{name}" not in names:
            names.add(f"{owner}.{name}")
            return name
        number += 1


class _Explanations:
    """Why channels go, and why they stay although they are masked."""

    def __init__(self, couplings: Couplings, widths: Widths) -> None:
        self._formulas, self._values = couplings.table.formulas, widths.values
        rules = widths.rules
        self._readings: dict[int, list[tuple[str, int]]] = {}  # class -> who reads it, and the formula of its being zero there
        self._groups: dict[int, list[str]] = {}
        for reader in couplings.facts.readers:
            self._note(reader.path, rules.of_slot[reader.labels], reader.zero)
        for addition in rules.additions:
            self._note(path_of(addition.node), addition.labels, addition.zero)
        for grouped in rules.grouped:
            for group, (labels, zero) in enumerate(zip(grouped.inputs, grouped.zero, strict=True)):
                silent = self._values[zero]
                self._note(grouped.path, labels[silent], zero[silent])
                for number in labels[~silent].tolist():
                    self._groups.setdefault(number, []).append(f"group {group} of {grouped.path}")
        self._blocked = {int(rules.of_slot[slot]): reason for slot, reason in reversed(couplings.table.reasons.items())}

    def _note(self, path: str, labels: Ints, zero: Ints) -> None:
        for number, formula in zip(labels.tolist(), zero.tolist(), strict=True):
            self._readings.setdefault(number, []).append((path, formula))

    def going(self, number: int) -> str:
        """Why a class of channels goes."""
        behind = dict.fromkeys(gate for _, formula in self._readings.get(number, []) for gate in self._formulas.why(formula, self._values))
        parts = [f"exactly zero behind {' and '.join(behind)}"] if behind else []
        if groups := self._groups.get(number):
            parts.append(f"read only by {' and '.join(groups)}, which goes")
        return "; ".join(parts)

    def staying(self, number: int) -> str:
        """Why a class stays although a gate has it masked."""
        if number in self._blocked:
            return self._blocked[number]
        reader = next((path for path, formula in self._readings.get(number, []) if not self._values[formula]), None)
        return "it goes only together with channels that stay" if reader is None else f"it is not zero where {reader} reads it"
