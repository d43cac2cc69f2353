"""When is an element exactly zero? Boolean formulas over the entries of gates, interned and evaluated all at once.

A formula is a number. 0 is never, 1 is always; the others are a gate's entry being masked, or two formulas joined by *and* or *or*. Equal
formulas have equal numbers, so arrays of numbers stand for arrays of formulas, and one pass over the levels of their nesting evaluates
every formula there is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FALSE, TRUE = 0, 1
_BIT, _AND, _OR = 0, 1, 2


class Formulas:
    """All formulas of one network."""

    def __init__(self) -> None:
        self._ids: dict[tuple[int, int, int], int] = {}
        self._parts: list[tuple[int, int, int]] = [(_BIT, -1, -1), (_BIT, -1, -1)]
        self._level = [0, 0]
        self._gates: list[str] = []
        self._plan: tuple[int, list[tuple[int, Ints, Ints, Ints]], list[tuple[str, Ints, Ints]]] | None = None

    def bits(self, gate: str, entries: int) -> Ints:
        """A formula for each entry of a gate: it is masked."""
        if gate not in self._gates:
            self._gates.append(gate)
        number = self._gates.index(gate)
        return np.array([self._intern(_BIT, number, entry) for entry in range(entries)], dtype=np.int64)

    def both(self, a: Ints, b: Ints) -> Ints:
        """``a and b``, element by element; arrays of one shape."""
        return self._join(_AND, a, b)

    def either(self, a: Ints, b: Ints) -> Ints:
        """``a or b``, element by element; arrays of one shape."""
        return self._join(_OR, a, b)

    def all_of(self, values: Ints) -> int:
        """Every one of them."""
        found = np.unique(values).tolist()
        result = TRUE
        for value in found:
            result = self._joined(_AND, result, value)
        return result

    def _join(self, kind: int, a: Ints, b: Ints) -> Ints:
        pairs, where = np.unique(np.stack([a.reshape(-1), b.reshape(-1)]), axis=1, return_inverse=True)
        joined = np.array([self._joined(kind, x, y) for x, y in pairs.T.tolist()], dtype=np.int64)
        result: Ints = joined[where.reshape(-1)].reshape(a.shape)
        return result

    def _joined(self, kind: int, a: int, b: int) -> int:
        neutral, absorbing = (TRUE, FALSE) if kind == _AND else (FALSE, TRUE)
        if absorbing in (a, b):
            return absorbing
        if a in (neutral, b):
            return b
        return a if b == neutral else self._intern(kind, min(a, b), max(a, b))

    def _intern(self, kind: int, a: int, b: int) -> int:
        key = (kind, a, b)
        if key not in self._ids:
            self._ids[key] = len(self._parts)
            self._parts.append(key)
            self._level.append(0 if kind == _BIT else 1 + max(self._level[a], self._level[b]))
        return self._ids[key]

    def evaluate(self, masked: Mapping[str, Bools]) -> Bools:
        """The value of every formula.

        Args:
            masked: for each gate, which of its entries are masked; a gate that is not named has none.
        """
        _, joins, bits = self._prepared()
        values = np.zeros(len(self._parts), dtype=np.bool_)
        values[TRUE] = True
        for gate, numbers, entries in bits:
            if gate in masked:
                values[numbers] = masked[gate][entries]
        for kind, numbers, a, b in joins:
            values[numbers] = values[a] & values[b] if kind == _AND else values[a] | values[b]
        return values

    def _prepared(self) -> tuple[int, list[tuple[int, Ints, Ints, Ints]], list[tuple[str, Ints, Ints]]]:
        """Formulas in batches that can be evaluated together, in order."""
        if self._plan is None or self._plan[0] != len(self._parts):
            parts, level = np.array(self._parts, dtype=np.int64), np.array(self._level, dtype=np.int64)
            numbers = np.arange(len(parts))
            is_bit = (parts[:, 0] == _BIT) & (parts[:, 1] >= 0)
            bits = [(gate, at := numbers[is_bit & (parts[:, 1] == index)], parts[at, 2]) for index, gate in enumerate(self._gates)]
            joins = []
            for depth in range(1, int(level.max(initial=0)) + 1):
                for kind in (_AND, _OR):
                    at = numbers[(level == depth) & (parts[:, 0] == kind)]
                    if at.size:
                        joins.append((kind, at, parts[at, 1], parts[at, 2]))
            self._plan = (len(parts), joins, bits)
        return self._plan

    def why(self, formula: int, values: Bools) -> list[str]:
        """The gates whose masks together make a formula true; of an *or* the first side that is true."""
        found: dict[str, None] = {}
        queue = [formula]
        while queue:
            kind, a, b = self._parts[queue.pop()]
            if kind == _AND:
                queue += [b, a]
            elif kind == _OR:
                queue.append(a if values[a] else b)
            elif a >= 0:
                found[self._gates[a]] = None
        return list(found)
