"""Which network a checkpoint belongs to, told from its tensors' names and shapes.

The shipped index proposes; a proposal counts only after the network was built and every name and shape agreed. What cannot be told
from names and shapes alone is asked, never guessed: networks of one library that share all of them and compute differently.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.errors import InputError
from chansurg.surgery.reading.builders import build, timm_is_installed
from chansurg.surgery.reading.computation import computation
from chansurg.surgery.reading.fingerprints import Entry, Index, index_from_json, shipped_index, with_found_classes
from chansurg.surgery.reading.fitting import Fit, compare, fit
from chansurg.surgery.reading.indexing import index_of, indexed_architectures, library_versions
from chansurg.surgery.reading.names import COUNTER, Shape, View, views

log = logging.getLogger(__name__)

_NOT_DONE = "no network was built, nothing was written"
_NEAREST_TRIED = 6
_TIED_AT_MOST = 64
_LIVE_SECONDS = 20.0
_OWN_NORMALISATION = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class Recognition:
    """What was recognised.

    Args:
        architecture: with the keyword arguments that are needed to build it again.
        names: checkpoint key -> model key.
        ignored: checkpoint keys that are no part of the network.
        notes: what the user should know about how it was recognised, one sentence each.
    """

    architecture: Architecture
    names: Mapping[str, str]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Hit:
    view: View
    entry: Entry
    classes: int | None


_Near = tuple[int, str]
"""How many differences, and which network is near, in words."""


def recognise(shapes: Mapping[str, Shape], *, architecture: Architecture | None = None) -> Recognition:
    """The network that these tensors belong to.

    Args:
        shapes: checkpoint key -> shape. Any prefix, any number of classes, and tensors of something else beside it are allowed.
        architecture: what the user said it is; then it is only checked, and its number of classes corrected.

    Raises:
        InputError: none fits (the nearest is told, with what differs); several fit that compute differently (they are listed);
            it is timm's and timm is not installed; or the architecture that was named does not fit.
    """
    if architecture is not None:
        return _as_told(shapes, architecture)
    index = shipped_index()
    found = _by_index(shapes, index)
    if found is not None:
        return found
    near: list[_Near] = []
    found = _by_resemblance(shapes, index, near) or _by_index(shapes, _index_of_newer_networks())
    if found is not None:
        return found
    raise _none_fits(near)


def _as_told(shapes: Mapping[str, Shape], architecture: Architecture) -> Recognition:
    found = fit(architecture, shapes)
    if found.differences:
        raise InputError(
            f"The tensors are not those of {architecture}: {_some(found.differences)}.",
            where=f"--arch {architecture}",
            not_done="the network was not loaded, nothing was written",
            to_do="leave out --arch to have the architecture recognised, or name the one that wrote the file",
        )
    return _recognition(found, ())


def _by_index(shapes: Mapping[str, Shape], index: Index) -> Recognition | None:
    """The largest part of the checkpoint that is one whole network, provided that little else lies beside it."""
    without_timm: Entry | None = None
    for level in views(shapes):
        hits = [_Hit(view, entry, classes) for view in level for entry, classes in index.matches(view.shapes(shapes)) if entry.tensors]
        hits.sort(key=lambda hit: -len(hit.view.keys))
        for hit in hits:
            # Copies of one network (a teacher, a momentum encoder) lie beside each other; together they must be most of the file.
            twins = [other for other in hits if other.entry is hit.entry]
            keys = {key for twin in twins for key in twin.view.keys.values()}
            if 2 * len(keys) < len(shapes):
                continue
            groups = _available(hit.entry, index)
            if not groups:
                without_timm = hit.entry
                continue
            found = _settle(shapes, hit, groups, copies=len({twin.view.prefix for twin in twins}))
            if found is not None:
                return found
    if without_timm is not None:
        name = without_timm.members[0][0]
        raise InputError(
            f"This looks like {name}, and timm is not installed.",
            where="the names and shapes of the file's tensors",
            not_done=_NOT_DONE,
            to_do="Install it: pip install 'chansurg[timm]'",
        )
    return None


def _available(entry: Entry, index: Index) -> list[list[Architecture]]:
    """The groups of an entry that can be built here; told apart again where the library is not the one that was indexed."""
    has_timm = timm_is_installed()
    groups = [[a for a in group if a.source != "timm" or has_timm] for group in entry.members]
    groups = [group for group in groups if group]
    members = [a for group in groups for a in group]
    # Torchvision comes first whatever timm has, so timm need not be imported to tell its networks apart.
    own = [a for a in members if a.source != "timm"]
    if own or len(members) == 1:
        return [[a for a in group if a in own] for group in groups if any(a in own for a in group)] if own else groups
    versions = library_versions()
    if all(index.versions.get(library) == version for library, version in versions.items()):
        return groups
    return _regrouped(members)


def _regrouped(members: Iterable[Architecture]) -> list[list[Architecture]]:
    live: dict[str, list[Architecture]] = {}
    for architecture in list(members)[:_TIED_AT_MOST]:
        try:
            live.setdefault(computation(build(architecture)), []).append(architecture)
        except InputError:
            continue
    return list(live.values())


def _settle(shapes: Mapping[str, Shape], hit: _Hit, groups: list[list[Architecture]], copies: int) -> Recognition | None:
    """Build and check; ask where several fit and differ."""
    listed = [min(group, key=_plainness) for group in groups]
    group, chosen = groups[0], listed[0]
    architecture = with_found_classes(chosen, hit.classes)
    try:
        found = compare(architecture, build(architecture), hit.view, shapes)
    except InputError:
        return None
    # A body without its own head, and somebody else's head beside it: what is left out would be the classifier.
    loses_head = architecture.kwargs.get("num_classes") == 0 and any(not key.endswith(COUNTER) for key in found.beside)
    if found.differences or loses_head:
        return None
    if len(groups) > 1:
        raise InputError(
            f"{len(groups)} architectures have exactly these names and shapes and compute differently: "
            f"{', '.join(map(str, listed[:12]))}{' …' if len(listed) > 12 else ''}.",
            where="the names and shapes of the file's tensors",
            not_done=_NOT_DONE,
            to_do=f"say which one it is: --arch {listed[0]}",
        )
    notes: list[str] = []
    if len(group) > 1:
        others = ", ".join(str(a) for a in group if a != chosen)
        notes.append(f"{others} would fit as well and compute the same; taken as {chosen}")
    in_timm = [a for members in hit.entry.members for a in members if a.source == "timm"]
    if chosen.source != "timm" and in_timm:
        notes.append(
            f"timm has a network with the same names and shapes; taken as {chosen} (--arch {min(in_timm, key=_plainness)} if it is timm's)"
        )
    if copies > 1:
        notes.append(f"the file holds {copies} networks of this kind; taken from '{hit.view.prefix}'")
    return _recognition(found, notes)


def _plainness(architecture: Architecture) -> tuple[int, str]:
    return len(architecture.name), architecture.name


def _recognition(found: Fit, notes: Iterable[str]) -> Recognition:
    told = list(notes)
    if found.view.prefix:
        told.append(f"the names' prefix '{found.view.prefix}' was taken off")
    if found.view.rewritten == "older names":
        told.append("the names are those of an older release of the library, and were translated")
    if found.beside:
        told.append(f"tensors beside the network were left out: {', '.join(found.beside[:4])}{' …' if len(found.beside) > 4 else ''}")
    architecture = found.architecture
    if architecture.source == "torchvision" and architecture.name in _OWN_NORMALISATION and not architecture.kwargs.get("transform_input"):
        told.append(
            f"taken as {architecture} built without weights; torchvision's published weights for it expect transform_input=True, "
            "which no tensor shows"
        )
    return Recognition(architecture, dict(found.names), found.beside, tuple(told))


@functools.cache
def _index_of_newer_networks() -> Index:
    """Networks that the installed libraries have and the shipped index has not, within a bounded time."""
    index = shipped_index()
    versions = library_versions()
    if versions.items() <= dict(index.versions).items():
        return Index({}, (), {})
    known = index.known()
    deadline = time.monotonic() + _LIVE_SECONDS
    unknown = (a for a in indexed_architectures() if str(a) not in known and time.monotonic() < deadline)
    return index_from_json({**index_of(unknown), "versions": versions})


def _by_resemblance(shapes: Mapping[str, Shape], index: Index, near: list[_Near]) -> Recognition | None:
    """The nearest networks, built and compared name by name: one may fit with an argument that no index can list.

    Those that do not fit are added to ``near``.
    """
    ranked: list[tuple[float, Entry]] = []
    for level in views(shapes):
        for view in level:
            if 2 * len(view.keys) >= len(shapes):
                ranked += index.nearest(view.shapes(shapes))[:_NEAREST_TRIED]
    ranked.sort(key=lambda pair: -pair[0])
    for entry in list({id(entry): entry for _, entry in ranked}.values())[:_NEAREST_TRIED]:
        groups = _available(entry, index)
        if not groups:
            near.append((len(shapes), f"{entry.members[0][0]} is near, and timm is not installed"))
            continue
        candidate = min(groups[0], key=_plainness)
        try:
            found = fit(candidate, shapes)
        except InputError:
            continue
        if not found.differences and 2 * len(found.names) >= len(shapes):
            settled = _settle_adapted(shapes, _Hit(found.view, entry, None), found, groups)
            if settled is not None:
                return settled
        differences = found.differences or tuple(f"{key} would be left out" for key in found.beside)
        near.append((len(differences), f"{found.architecture} is near: {_some(differences)}"))
    return None


def _settle_adapted(shapes: Mapping[str, Shape], hit: _Hit, found: Fit, groups: list[list[Architecture]]) -> Recognition | None:
    """As with an exact hit, but with the arguments that made the nearest network fit."""
    adapted = [[Architecture(a.source, a.name, dict(found.architecture.kwargs)) for a in group] for group in groups]
    settled = _settle(shapes, hit, adapted, copies=1)
    if settled is None:
        return None
    arguments = ", ".join(f"{key}={value}" for key, value in settled.architecture.kwargs.items())
    return Recognition(
        settled.architecture, settled.names, settled.ignored, (*settled.notes, f"fits {settled.architecture} with {arguments}")
    )


def _none_fits(near: list[_Near]) -> InputError:
    told = dict.fromkeys(text for _, text in sorted(near)[:2])
    return InputError(
        f"The tensors are those of no known architecture. {'; '.join(told)}{'.' if told else ''}".rstrip(),
        where="the names and shapes of the file's tensors",
        not_done=_NOT_DONE,
        to_do="name a function of your own that builds it: --arch package.module:factory",
    )


def _some(differences: tuple[str, ...]) -> str:
    more = f" (and {len(differences) - 4} more)" if len(differences) > 4 else ""
    return "; ".join(differences[:4]) + more
