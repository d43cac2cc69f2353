"""The best state that some modules have been in, kept while something is tried on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Best:
    """The state of some modules with the least error so far.

    Args:
        modules: whose parameters and buffers.
        error: that of their present state.
        measure: the error of the state that they are in when it is called.

    Attributes:
        error: the least so far.
    """

    def __init__(self, modules: Sequence[nn.Module], error: float, measure: Callable[[], float]) -> None:
        self._tensors = list({id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}.values())
        self._measure = measure
        self.error = error
        self._state = self._copied()

    def look(self) -> None:
        """Note the present state if it is better."""
        with torch.no_grad():
            now = self._measure()
        if now < self.error:
            self.error, self._state = now, self._copied()

    def keep(self, allowed: float = 0.0) -> bool:
        """Whether the present state is better, or worse by no more than ``allowed``, and is kept; else the best one is put back."""
        now = self._measure()
        if now < self.error + allowed:
            self.error, self._state = now, self._copied()
            return True
        with torch.no_grad():
            for tensor, value in zip(self._tensors, self._state, strict=True):
                tensor.copy_(value)
        return False

    def _copied(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self._tensors]
