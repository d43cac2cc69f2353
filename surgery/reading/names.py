"""The ways in which a checkpoint's names may differ from the network's: wrappers, prefixes, and names that libraries have changed since.

A :class:`View` is one reading of a checkpoint: which of its tensors belong to the network, and under which of its names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]
COUNTER = "num_batches_tracked"
"""Batch norm's counter of steps: files from before PyTorch 0.4.1 lack it, so nothing is recognised by it."""

# Put between a module and its parent by DataParallel, torch.compile, FSDP and activation checkpointing, at any depth.
_WRAPPERS = frozenset(["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
# Left in state dicts by profilers; no part of any network.
_LEFTOVERS = frozenset(["total_ops", "total_params"])
_LARGEST_PREFIXES = 32
_DEEPEST_PREFIX = 6

# Names in files that torchvision published, or that its older releases wrote.
_RENAMED: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\bmlp\.linear_1\."), "mlp.0."),
    (re.compile(r"\bmlp\.linear_2\."), "mlp.3."),
    (re.compile(r"\b((?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"\brpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
    (re.compile(r"\bmask_fcn(\d)\.(weight|bias)$"), lambda m: f"{int(m[1]) - 1}.0.{m[2]}"),
    (
        re.compile(r"\b((?:classification|regression)_head\.conv)\.([0246])\.(weight|bias)$"),
        lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}",
    ),
)


@dataclass(frozen=True)
class View:
    """One reading of a checkpoint.

    Args:
        keys: name in the network -> key in the checkpoint.
        prefix: what was taken off the front, with its dot; empty where nothing was.
        rewritten: what else was done to the names, in words; empty where nothing was.
    """

    keys: Mapping[str, str]
    prefix: str = ""
    rewritten: str = ""

    def shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Name in the network -> shape, without batch norm's counters."""
        return {name: shapes[key] for name, key in self.keys.items() if not name.endswith(COUNTER)}


def views(shapes: Mapping[str, Shape]) -> Iterator[list[View]]:
    """Readings of a checkpoint, the plainest first; those that are equally plain come as one list, most tensors first."""
    seen: set[tuple[str, ...]] = set()
    keys = [key for key in shapes if key.rpartition(".")[2] not in _LEFTOVERS]
    levels: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("", lambda key: key),
        ("without wrappers", _unwrapped),
        ("older names", lambda key: _modern(_unwrapped(key))),
    )
    for told, rename in levels:
        names = {rename(key): key for key in keys}
        signature = tuple(names)
        if len(names) == len(keys) and signature not in seen:
            seen.add(signature)
            yield [View(found, prefix, told) for prefix, found in _by_prefix(names)]


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _modern(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _by_prefix(names: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """All names; those under each prefix that has a fair share of them; and those with a prefix taken off where it is there."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")[:-1][:_DEEPEST_PREFIX]
        counts.update(".".join(parts[: depth + 1]) + "." for depth in range(len(parts)))
    yield "", dict(names)
    common = [prefix for prefix, _ in counts.most_common(_LARGEST_PREFIXES) if counts[prefix] * 16 >= len(names)]
    for prefix in common:
        yield prefix, {name[len(prefix) :]: key for name, key in names.items() if name.startswith(prefix)}
    # The body is wrapped and the head lies beside it: encoder.conv1.weight, fc.weight.
    for prefix in common:
        outer = prefix[: prefix.rstrip(".").rfind(".") + 1]
        around = {name: key for name, key in names.items() if name.startswith(outer)}
        if 2 * counts[prefix] > len(around) > counts[prefix]:
            merged = {name[len(prefix if name.startswith(prefix) else outer) :]: key for name, key in around.items()}
            if len(merged) == len(around):
                yield prefix, merged
