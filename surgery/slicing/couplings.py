"""Which channels can be removed under which masks, worked out once for a network and then told within milliseconds.

A class of channels can go where nothing keeps it, and every layer that reads it reads exact zeros there under the masks, or reads them
in a group of channels that goes as a whole. Starting from everything that the zeros allow, what breaks a rule is taken back until no rule
is broken; what is left can be removed together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from chansurg.surgery.errors import InputError
from chansurg.surgery.gating import Gate, gates
from chansurg.surgery.slicing.costs import Cost, Costs
from chansurg.surgery.slicing.facts import Addition, Grouped, Layer
from chansurg.surgery.slicing.formulas import Bools, Ints
from chansurg.surgery.slicing.labelling import label
from chansurg.surgery.slicing.slots import united
from chansurg.surgery.survey import Survey

RESIDUALS = ("scatter", "coupled")
Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Rules:
    """What holds in one way of treating residual additions; slots are replaced by their classes."""

    classes: int
    stays: Bools  # [classes]
    readers: tuple[Ints, Ints]  # class and formula of every reading
    grouped: tuple[Grouped, ...]
    additions: tuple[Addition, ...]
    layers: tuple[Layer, ...]
    of_slot: Ints


@dataclass(frozen=True)
class Widths:
    """What a network keeps under some masks.

    Args:
        rules: how residual additions are treated.
        removed: ``[classes]``, which classes go.
        values: of every formula under the masks.
    """

    rules: _Rules
    removed: Bools
    values: Bools

    def kept(self, layer: Layer) -> tuple[Ints | None, Ints]:
        """Indices of the input and output channels that a layer keeps; no inputs for a norm or depthwise convolution."""
        return None if layer.inputs is None else self.staying(layer.inputs), self.staying(layer.outputs)

    def staying(self, labels: Ints) -> Ints:
        """Indices of those that stay."""
        return np.flatnonzero(~self.removed[labels])

    def of_layers(self) -> dict[str, tuple[Ints | None, Ints]]:
        """:meth:`kept` for every layer by path."""
        return {layer.path: self.kept(layer) for layer in self.rules.layers}

    def scattered(self) -> list[tuple[Addition, Ints]]:
        """The additions that have to be replaced, each with the branch's places among the stage's kept channels."""
        found = []
        for addition in self.rules.additions:
            stage, branch = ~self.removed[addition.stage], ~self.removed[addition.labels]
            if not addition.made and not np.array_equal(stage, branch):
                found.append((addition, np.flatnonzero(branch[stage])))
        return found


class Couplings:
    """What goes together in a network, and what may go.

    Args:
        survey: of the network; its original gives the gates' own masks and rankings.
    """

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.table, self.facts = label(survey)
        self.gates: dict[str, Gate] = gates(survey.original)
        self._rules: dict[str, _Rules] = {}

    def widths(self, masks: Masks | None = None, residual: str = "scatter", *, multiple_of: int = 1) -> Widths:
        """What the network keeps.

        Args:
            masks: for each gate by path, bool ``[C]`` or ``[entries]``, true is kept; a gate that is not named keeps everything. ``None``
                is the gates' own masks.
            residual: ``scatter`` lets a branch lose channels that its stage keeps; ``coupled`` keeps the two alike.
            multiple_of: every layer that loses channels keeps a multiple of this many, the most important of those that could go.

        Raises:
            InputError: for a mask that fits no gate, or another value of ``residual`` or ``multiple_of``.
        """
        rules = self.rules(residual)
        values = self.table.formulas.evaluate(self.masked(masks))
        removed = ~rules.stays
        at, formulas = rules.readers
        removed[at[~values[formulas]]] = False
        if multiple_of < 1:
            raise InputError(
                f"Widths cannot be multiples of {multiple_of}.",
                where="multiple_of",
                not_done="Nothing was sliced.",
                to_do="Pass a whole number of at least 1.",
            )
        while True:
            before = int(removed.sum())
            _take_back(rules, removed, values)
            self._leave_some(rules, removed, multiple_of)
            if int(removed.sum()) == before:
                return Widths(rules, removed, values)

    def cost(self, masks: Masks | None = None, residual: str = "scatter", *, multiple_of: int = 1) -> Cost:
        """What the sliced network would cost, without slicing it; arguments as for :meth:`widths`."""
        return self._costs.of(self.widths(masks, residual, multiple_of=multiple_of).of_layers())

    @cached_property
    def _costs(self) -> Costs:
        return Costs(self.survey, self.facts.layers)

    def masked(self, masks: Masks | None) -> dict[str, Bools]:
        """For each gate which entries are masked.

        Raises:
            InputError: for masks that do not fit.
        """
        if masks is None:
            return {path: ~gate.mask.cpu().numpy() for path, gate in self.gates.items()}
        if unknown := [path for path in masks if path not in self.gates]:
            raise _no_mask(unknown[0], "The network has no gate there.", f"Its gates are {', '.join(list(self.gates)[:8]) or 'none'}.")
        return {path: ~_by_entry(path, self.gates[path], mask) for path, mask in masks.items()}

    def rules(self, residual: str) -> _Rules:
        """The rules of one way of treating residual additions.

        Raises:
            InputError: for another value.
        """
        if residual not in RESIDUALS:
            raise InputError(
                f"{residual!r} is no way of treating residual additions.",
                where="residual",
                not_done="Nothing was sliced.",
                to_do=f"Choose one of: {', '.join(RESIDUALS)}.",
            )
        if residual not in self._rules:
            self._rules[residual] = self._made(residual)
        return self._rules[residual]

    def _made(self, residual: str) -> _Rules:
        parents = self.table.copy_of_parents()
        facts = self.facts
        additions = [addition for addition in facts.additions if addition.made or residual == "scatter"]
        for addition in facts.additions:
            if addition not in additions:
                parents = united(parents, addition.stage, addition.labels)
        roots, of_slot = np.unique(parents, return_inverse=True)
        stays = np.ones(len(roots), dtype=np.bool_)
        readings = [(of_slot[reader.labels], reader.zero) for reader in facts.readers]
        readings += [(of_slot[addition.labels], addition.zero) for addition in additions]
        for labels in (*(labels for labels, _ in readings), *(of_slot[grouped.inputs].reshape(-1) for grouped in facts.grouped)):
            stays[labels] = False  # what nobody reads is left alone
        stays[of_slot[list(self.table.reasons)]] = True
        return _Rules(
            classes=len(roots),
            stays=stays,
            readers=_joined(readings),
            grouped=tuple(Grouped(g.path, of_slot[g.inputs], g.zero, of_slot[g.outputs], g.shrinks) for g in facts.grouped),
            additions=tuple(
                Addition(a.region, a.node, a.dim, a.branch, of_slot[a.stage], of_slot[a.labels], a.zero, of_slot[a.whole], a.made)
                for a in additions
            ),
            layers=tuple(
                Layer(x.path, None if x.inputs is None else of_slot[x.inputs], of_slot[x.outputs], x.positions) for x in facts.layers
            ),
            of_slot=of_slot,
        )

    @cached_property
    def _importance(self) -> dict[str, Ints]:
        """For each gate, every entry's place in its ranking: larger stays longer."""
        return {path: np.argsort(gate.ranking().cpu().numpy()) for path, gate in self.gates.items()}

    def importance(self, rules: _Rules) -> Ints:
        """``[classes]``: larger stays longer where some of what could go has to stay."""
        result = np.zeros(rules.classes, dtype=np.int64)
        for layer in rules.layers:
            if layer.path in self.gates:
                places = self._importance[layer.path].repeat(self.gates[layer.path].unit)
                np.maximum.at(result, layer.outputs, 1 + places)
        return result

    def _leave_some(self, rules: _Rules, removed: Bools, multiple_of: int) -> None:
        """Every layer keeps a channel, and a multiple of as many as wanted."""
        importance: Ints | None = None
        for layer in rules.layers:
            labels = layer.outputs
            going = removed[labels]
            if layer.inputs is None or not going.any():
                continue  # a norm or depthwise convolution is as wide as what it is given
            kept = int((~going).sum())
            wanted = min(len(labels), max(1, -(-kept // multiple_of)) * multiple_of)
            if kept >= wanted:
                continue
            if importance is None:
                importance = self.importance(rules)
            candidates = np.unique(labels[going])
            order = candidates[np.lexsort((candidates, -importance[candidates]))]
            for number in order.tolist():
                if kept >= wanted:
                    break
                removed[number] = False
                kept = int((~removed[labels]).sum())


def _joined(readings: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    if not readings:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return np.concatenate([labels for labels, _ in readings]), np.concatenate([zero for _, zero in readings])


def _take_back(rules: _Rules, removed: Bools, values: Bools) -> None:
    """Take removals back until no group and no addition is broken; in place."""
    while True:
        before = int(removed.sum())
        for grouped in rules.grouped:
            _whole_groups(grouped, removed, values)
        for addition in rules.additions:
            # The stage cannot let go of a place that the branch still fills.
            removed[addition.stage[~removed[addition.labels]]] = False
        if int(removed.sum()) == before:
            return


def _whole_groups(grouped: Grouped, removed: Bools, values: Bools) -> None:
    stays = ~(removed[grouped.inputs].all(1) & removed[grouped.outputs].all(1))
    if not stays.any():
        return
    inputs, outputs = grouped.inputs[stays], grouped.outputs[stays]
    removed[inputs[~values[grouped.zero[stays]]]] = False
    for side in (inputs, outputs):
        going = removed[side]
        if not going.any():
            continue
        fewest = int(going.sum(1).min()) if grouped.shrinks else 0
        # Of each group the first so many go, and the others are taken back.
        surplus = going & (np.cumsum(going, 1) > fewest)
        removed[side[surplus]] = False


def _by_entry(path: str, gate: Gate, mask: Tensor) -> Bools:
    values = np.asarray(mask.detach().cpu().numpy(), dtype=np.bool_)
    if values.shape == (gate.entries,):
        return values
    if values.shape != (gate.entries * gate.unit,):
        raise _no_mask(
            path, f"Its mask has {list(values.shape)} entries.", f"Pass bool [{gate.entries * gate.unit}], true for what is kept."
        )
    units = values.reshape(gate.entries, gate.unit)
    if (units != units[:, :1]).any():
        raise _no_mask(path, f"Its mask cuts through units of {gate.unit} channels.", "Channels of one unit are kept or removed together.")
    return units[:, 0].copy()


def _no_mask(path: str, what: str, to_do: str) -> InputError:
    return InputError(f"The mask for {path} does not fit: {what}", where=path, not_done="Nothing was sliced.", to_do=to_do)
