"""Places in a network as people read lists of them: alike ones together, and no more than fit. No torch is imported here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_OF_ITS_OWN = re.compile(r"\w+(?:\.\w+)+(?::[\w.]+(?:#\d+)?)?|\(\d[\w ]*\)")
"""What a reason says of one place alone: the path of a module, a call that its code makes, or numbers in brackets."""


def by_reason(skipped: Iterable[tuple[str, str]], *, exact: bool = False) -> dict[str, list[str]]:
    """Paths under the reason they share, in the order in which the reasons came.

    Args:
        skipped: path and reason of each.
        exact: keep apart what differs in nothing but a place or numbers that the reason names; else such reasons go together, under the
            first.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, reason in skipped:
        groups.setdefault(reason if exact else _OF_ITS_OWN.sub("\0", reason), []).append((path, reason))
    return {_shared([reason for _, reason in found]): [path for path, _ in found] for found in groups.values()}


def _shared(reasons: Sequence[str]) -> str:
    others = len(set(reasons)) - 1
    own = _OF_ITS_OWN.search(reasons[0])
    if not others or own is None:
        return reasons[0]
    return f"{reasons[0][: own.end()]} (or {others} {'other' if others == 1 else 'others'} like it){reasons[0][own.end() :]}"


def path_list(paths: Sequence[str], *, limit: int | None = 4) -> str:
    """Paths in a line; beyond ``limit`` only how many more."""
    shown = [path or "(the network)" for path in paths[:limit]]
    more = len(paths) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def alike(paths: Sequence[str]) -> str:
    """Several paths in a few words: ``layer1.0 … layer1.2`` where their numbers follow one another, ``layer2.1, layer2.3``."""
    names = [path.rpartition(".") for path in paths]
    runs = all(name.isdecimal() for _, _, name in names) and len({parent for parent, _, _ in names}) == 1
    if len(paths) > 2 and runs and [int(name) - int(names[0][2]) for _, _, name in names] == list(range(len(names))):
        return f"{paths[0]} … {paths[-1]}"
    return path_list(paths, limit=2 if len(paths) == 2 else 1)
