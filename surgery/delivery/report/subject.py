"""All that the report tells of one network, gathered before a word of it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from chansurg.surgery.counting import Counts, count
from chansurg.surgery.delivery.calls import calls_on_shapes
from chansurg.surgery.errors import ChansurgError
from chansurg.surgery.files.provenance import record_of
from chansurg.surgery.gating import gates, masks
from chansurg.surgery.journal import Entry, Record
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.reading.builders import build
from chansurg.surgery.reading.header import file_sha256


@dataclass(frozen=True)
class Width:
    """A layer's channels, now and in the network that all began with.

    Args:
        path: where it is, or was.
        now: channels in and out; ``None`` where the layer is gone.
        before: the same of the original; ``None`` where there was none, or the original cannot be built.
        is_new: whether a recipe's layer stands there.
    """

    path: str
    now: tuple[int, int] | None
    before: tuple[int, int] | None
    is_new: bool = False


@dataclass(frozen=True)
class Run:
    """A training run of the journal, with what its folder has kept of it.

    Args:
        number: of its entry in the journal, from 1.
        lines: one for each epoch, as ``metrics.jsonl`` has them.
    """

    number: int
    lines: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Subject:
    """One network.

    Args:
        name: what the page calls it.
        record: its papers.
        counts: of the network as it is.
        original: counts of the network before anything was done to it, as the journal has them.
        widths: of every layer, in the order of execution.
        runs: training runs whose folders are beside the file.
        sha256: of its file, if it came from one.
        gates: channels that masks keep, and how many have one.
    """

    name: str
    record: Record
    counts: Counts
    original: Mapping[str, int]
    widths: Sequence[Width]
    runs: Sequence[Run] = ()
    sha256: str | None = None
    gates: tuple[int, int] = (0, 0)

    @property
    def accuracy(self) -> float | None:
        """Top-1 in per cent that its last training run has reached on ``val``, if the journal knows of one."""
        for entry in reversed(self.record.journal):
            found = entry.results.get("val_top1")
            if isinstance(found, int | float):
                return float(found)
        return None

    def called(self, name: str) -> Subject:
        """The same under another name."""
        return replace(self, name=name)

    def share(self, quantity: str) -> float | None:
        """``params``, ``macs``, ``ops`` or ``memory_access`` over the original's."""
        whole = self.original.get(quantity)
        return self.counts.as_json()[quantity] / whole if whole else None


def gather(network: nn.Module, name: str, file: Path | None = None) -> Subject:
    """Everything that is known of a network.

    Args:
        network: with its record; it is not changed, and nothing is computed.
        name: what to call it.
        file: where it was read from. Training curves are looked for beside it.
    """
    record = record_of(network)
    counts = count(network)
    first = next((entry.before for entry in record.journal if entry.before), counts.as_json())
    kept = masks(network) if gates(network) else {}
    return Subject(
        name=name,
        record=record,
        counts=counts,
        original=first,
        widths=_widths(network, record),
        runs=[] if file is None else list(_runs(record, file)),
        sha256=None if file is None else file_sha256(file),
        gates=(sum(int(mask.sum()) for mask in kept.values()), sum(mask.numel() for mask in kept.values())),
    )


def drift_of(entry: Entry) -> Mapping[str, Any] | None:
    """What a conversion moved, where its entry tells: blocks of ``{"path", "relative_error"}``, in the order of execution."""
    found = entry.results.get("drift")
    blocks = found.get("blocks") if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        return None
    return found if all({"path", "relative_error"} <= set(block) for block in blocks) else None


def _widths(network: nn.Module, record: Record) -> list[Width]:
    now = _channels(network, record)
    before: dict[str, tuple[int, int]] = {}
    if record.architecture is not None:
        try:
            before = {path: width for path, (width, _) in _channels(build(record.architecture), record).items()}
        except ChansurgError:  # a factory of the user's own that is not there; the page then shows what is
            before = {}
    # What is gone stands where it stood: behind the layer that it followed.
    order = list(now)
    followed = ""
    for path in before:
        if path not in now:
            order.insert(order.index(followed) + 1 if followed in order else 0, path)
        followed = path
    return [Width(path, now[path][0] if path in now else None, before.get(path), path in now and now[path][1]) for path in order]


def _channels(network: nn.Module, record: Record) -> dict[str, tuple[tuple[int, int], bool]]:
    """Channels in and out of every layer that has such, and whether it is a recipe's, in the order of execution."""
    found: dict[str, tuple[tuple[int, int], bool]] = {}
    inside: list[str] = []
    for path, module in network.named_modules():
        if any(path.startswith(f"{owner}.") for owner in inside):
            continue
        if isinstance(module, RecipeLayer):
            inside.append(path)
        for first, second in (("in_channels", "out_channels"), ("in_features", "out_features")):
            sizes = getattr(module, first, None), getattr(module, second, None)
            if path and isinstance(sizes[0], int) and isinstance(sizes[1], int):
                found[path] = (sizes[0], sizes[1]), isinstance(module, RecipeLayer)
                break
    try:
        began = list(calls_on_shapes(network, (1, *record.preprocessing.input_size)))
    except ChansurgError:
        return found
    position = {path: number for number, path in enumerate(began)}
    places: dict[str, int] = {}
    last = -1
    for path in found:
        # Attention reads its last layer's weights without calling it; such a layer stays behind the one ahead of it.
        last = places[path] = position.get(path, last)
    return dict(sorted(found.items(), key=lambda item: places[item[0]]))


def _runs(record: Record, file: Path) -> list[Run]:
    """Runs of the journal: each ended with a file, which is this one, or the one that the next entry began with."""
    found = []
    for index, entry in enumerate(record.journal):
        following = record.journal[index + 1].parent_file if index + 1 < len(record.journal) else file.name
        if entry.kind != "finetune" or following is None:
            continue
        lines = _lines(file.parent / f"{Path(following).name}.run" / "metrics.jsonl")
        # A folder of that name may be of another run than the journal's.
        if lines and lines[-1].get("step") == entry.results.get("steps"):
            found.append(Run(index + 1, lines))
    return found


def _lines(path: Path) -> list[Mapping[str, Any]]:
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [line for line in found if isinstance(line, dict)]
