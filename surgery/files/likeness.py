"""Whether two networks are built alike: the same modules with the same settings, whatever their weights.

A network is given a library's name only if the library builds its like, and is written to a file only if loading that file will.
What matters in training alone (dropout rates, a norm's momentum, gradient checkpointing) may differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

_TRAINING_ONLY = frozenset(("training", "momentum", "p", "inplace", "grad_checkpointing"))


def differences(model: nn.Module, twin: nn.Module) -> list[str]:
    """What is built differently in ``model`` than in ``twin``, one sentence each, tensors first; empty where they are alike."""
    return [*_tensors(model, twin), *_modules(model, twin)]


def _tensors(model: nn.Module, twin: nn.Module) -> Iterator[str]:
    found, expected = ({name: tuple(t.shape) for name, t in network.state_dict(keep_vars=True).items()} for network in (model, twin))
    for name in expected:
        if name not in found:
            yield f"{name} is gone"
        elif found[name] != expected[name]:
            yield f"{name} is {list(found[name])} and was built as {list(expected[name])}"
    yield from (f"{name} is new" for name in found if name not in expected)


def _modules(model: nn.Module, twin: nn.Module) -> Iterator[str]:
    found, expected = dict(model.named_modules()), dict(twin.named_modules())
    yield from (f"the module {path} is gone" for path in expected if path not in found)
    for path, module in found.items():
        other = expected.get(path)
        if other is None:
            yield f"the module {path} ({type(module).__name__}) is new"
        elif _kind(module) != _kind(other):
            yield f"{path or 'the network'} is {type(module).__name__} and was built as {type(other).__name__}"
        else:
            ours, theirs = _settings(module), _settings(other)
            for name in ours.keys() & theirs.keys():
                if ours[name] != theirs[name]:
                    yield f"{f'{path}.{name}' if path else name} is {ours[name]!r} and was built as {theirs[name]!r}"


def _kind(module: nn.Module) -> str:
    # Training on several devices swaps one for the other; they compute the same.
    return "BatchNorm" if isinstance(module, nn.SyncBatchNorm | nn.BatchNorm2d) else type(module).__qualname__


def _settings(module: nn.Module) -> dict[str, Any]:
    """Plain values that a module was built with, and whether its forward is its class's own."""
    settings = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _TRAINING_ONLY and "drop" not in name and _is_plain(value)
    }
    settings["forward"] = "replaced on the instance" if "forward" in vars(module) else "its class's own"
    return settings


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str) or (isinstance(value, tuple) and all(map(_is_plain, value)))
