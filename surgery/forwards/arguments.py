"""What a module is called with beside tensors, as plain data.

A forward is rewritten for the arguments of its calls in the network: flags and numbers are constants of the generated code, and lists of
tensors have the length they have there. So that a file can hold them, they are written as JSON values, and lists and tuples stay apart:

- ``None``, truth values, numbers and texts stand for themselves;
- ``{"list": […]}`` and ``{"tuple": […]}`` for sequences, ``{"dict": [[key, value], …]}`` and ``{"OrderedDict": [[key, value], …]}`` for
mappings, whose order a file must not change (files of schema 2 and older have ``{"dict": {key: value, …}}``, and are read too);
- ``{"tensor": true}`` for a tensor inside of one, or whatever else a trace follows: the size of a tensor, say.

An argument that is a tensor itself is not written down.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

TENSOR = {"tensor": True}
_MAPPINGS = ("dict", "OrderedDict")


class NotPlain(Exception):
    """A value that is neither a tensor nor plain data."""


def describe(value: Any, tensor_type: type | tuple[type, ...]) -> Any:
    """``value`` as JSON, with every ``tensor_type`` in it as a tensor.

    Raises:
        NotPlain: for anything that has no such form.
    """
    if isinstance(value, tensor_type):
        return TENSOR
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return {type(value).__name__: [describe(item, tensor_type) for item in value]}
    if type(value) in (dict, OrderedDict) and all(type(key) is str for key in value):
        return {type(value).__name__: [[key, describe(item, tensor_type)] for key, item in value.items()]}
    raise NotPlain(type(value).__name__)


def matches(value: Any, described: Any) -> bool:
    """Whether ``value`` is one of those that were described so: the same containers and constants, and anything in a tensor's place."""
    if described == TENSOR:
        return True
    if not isinstance(described, dict):
        return type(value) is type(described) and bool(value == described)
    ((kind, content),) = described.items()
    if type(value).__name__ != kind or len(value) != len(content):
        return False
    if kind in _MAPPINGS:
        pairs = _pairs(content)
        return list(value) == [key for key, _ in pairs] and all(matches(value[key], form) for key, form in pairs)
    return all(matches(item, form) for item, form in zip(value, content, strict=True))


def build(described: Any, source: Any) -> Any:
    """The value that was described; a tensor in it is taken from its place in ``source``: ``source[0]["key"]``."""
    if not isinstance(described, dict):
        return described
    ((kind, content),) = described.items()
    match kind:
        case "tensor":
            return source
        case "list" | "tuple":
            items = [_part(item, source, index) for index, item in enumerate(content)]
            return items if kind == "list" else tuple(items)
        case _:
            items = [(key, _part(item, source, key)) for key, item in _pairs(content)]
            return dict(items) if kind == "dict" else OrderedDict(items)


def _pairs(content: Any) -> list[tuple[str, Any]]:
    return list(content.items()) if isinstance(content, dict) else [(key, item) for key, item in content]


def _part(described: Any, source: Any, key: int | str) -> Any:
    return build(described, source[key]) if holds_tensor(described) else build(described, None)


def holds_tensor(described: Any) -> bool:
    """Whether there is a tensor in what was described."""
    if isinstance(described, dict):
        return described == TENSOR or any(holds_tensor(item) for item in described.values())
    return isinstance(described, list) and any(holds_tensor(item) for item in described)


def is_empty(described: Any) -> bool:
    """Whether a container without anything in it was described."""
    return isinstance(described, dict) and all(content in ([], {}) for content in described.values())


def leaves(value: Any) -> Iterator[Any]:
    """Everything in nested containers, in order."""
    if isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    else:
        yield value


def copied(value: Any) -> Any:
    """The same tensors and numbers in containers of their own: a forward may go on to fill those it was given."""
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    return type(value)((key, copied(item)) for key, item in value.items()) if type(value) in (dict, OrderedDict) else value
