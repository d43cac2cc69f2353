"""The class of a module whose forward was rewritten: a subclass with the same name, which copies and pickles like any other.

A class made at run time cannot be found again by its name, which is how ``torch.save(model)``, process pools and launchers find classes.
So a rewritten module is pickled as its original class and the text of its forward. Model files know nothing of this; they hold no pickle.
"""

from __future__ import annotations

import copyreg
import importlib
import itertools
import linecache
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import nn

_numbers = itertools.count()


class Forward:
    """A generated forward and the class that has it.

    Args:
        base: the class the module had before.
        source: the text of one function ``forward``, generated from a traced graph and never read from a file.
        names: the objects that the text refers to.
    """

    def __init__(self, base: type[nn.Module], source: str, names: Mapping[str, Any]) -> None:
        self.base = base
        self.source = source
        self.names = dict(names)
        filename = f"<chansurg forward {next(_numbers)} of {base.__name__}>"
        namespace = dict(names)
        exec(compile(source, filename, "exec"), namespace)
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        body = {
            "forward": namespace["forward"],
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__reduce_ex__": _reduce,
            "rewritten_from": base,
            "rewritten_forward": self,
        }
        self.rewritten: type[nn.Module] = type(base.__name__, (base,), body)

    def __deepcopy__(self, memo: dict[int, Any]) -> Forward:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        names = {name: _Module(value.__name__) if isinstance(value, ModuleType) else value for name, value in self.names.items()}
        return _forward, (self.base, self.source, names)


class _Module(str):
    """The name of a Python module in place of the module, which pickles cannot hold."""


def _forward(base: type[nn.Module], source: str, names: Mapping[str, Any]) -> Forward:
    found = {name: importlib.import_module(value) if isinstance(value, _Module) else value for name, value in names.items()}
    return Forward(base, source, found)


def _blank(forward: Forward) -> nn.Module:
    return forward.rewritten.__new__(forward.rewritten)


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """As the original class does it, but for the rewritten class itself."""
    forward: Forward = type(self).rewritten_forward  # type: ignore[attr-defined]
    made = forward.base.__reduce_ex__(self, protocol)
    if isinstance(made, tuple) and made[0] is copyreg.__newobj__ and made[1] == (type(self),):  # type: ignore[attr-defined]
        return _blank, (forward,), *made[2:]
    return made
