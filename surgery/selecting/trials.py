"""Conversions on trial: what some sites of a recipe, converted together, save and how far the network's outputs drift."""

from __future__ import annotations

from collections.abc import Callable, Set

from torch import nn

from chansurg.surgery.drifting import Inputs, Reference
from chansurg.surgery.files.provenance import record_of

Paths = frozenset[str]


class Trials:
    """Tries sets of sites on one network, each set once.

    Args:
        original: the network; it runs on the inputs once.
        convert: gives a converted copy in which these sites alone are changed, and is not calibrated.
        fit: calibrates such a copy in place; ``None`` where there is no data.
        inputs: what the networks are compared on.
        now: multiply-accumulates of the network as it is.
        at_first: those of the network before anything was ever done to it.
    """

    def __init__(
        self,
        original: nn.Module,
        convert: Callable[[Paths], nn.Module],
        fit: Callable[[nn.Module], object] | None,
        inputs: Inputs,
        *,
        now: int,
        at_first: int,
    ) -> None:
        self.inputs, self.now, self.at_first = inputs, now, at_first
        self.is_calibrated = fit is not None
        self._convert, self._fit = convert, fit
        self._reference = Reference(original, (), inputs)
        self._macs: dict[Paths, int] = {}
        self._drift: dict[Paths, float | None] = {}

    def macs(self, paths: Paths) -> int:
        """Multiply-accumulates that are left when these sites are converted."""
        if paths not in self._macs:
            self._try(paths, drift=False)
        return self._macs[paths]

    @property
    def known(self) -> Set[Paths]:
        """The sets whose drift was measured."""
        return self._drift.keys()

    def share(self, paths: Paths) -> float:
        """The same, as a share of those of the original."""
        return self.macs(paths) / self.at_first

    def drift(self, paths: Paths) -> float | None:
        """Relative error of the outputs when these sites are converted; ``None`` where it is not finite or cannot be told."""
        if paths not in self._drift:
            self._try(paths, drift=True)
        return self._drift[paths]

    def _try(self, paths: Paths, *, drift: bool) -> None:
        network = self._convert(paths)
        self._macs[paths] = record_of(network).journal[-1].after["macs"]
        if not drift:
            return
        if self._fit is not None:
            self._fit(network)
        self._drift[paths] = self._reference.drift(network).outputs
