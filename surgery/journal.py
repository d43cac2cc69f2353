"""What a network is and what was done to it: the record that travels with the model and with its file.

A :class:`Record` names the base architecture, how images are prepared, the classes, and the journal: one :class:`Entry` for each thing
done, in order. It is plain data that turns into JSON and back, with no clock times, so that the same input and options give the same bytes.
No torch is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from chansurg.surgery.architecture import Architecture, Preprocessing
from chansurg.surgery.edits import Edit, edit_from_json
from chansurg.surgery.edits.json_values import items, text, texts, whole

SCHEMA = 3
_OLDER = (1, 2)
KINDS = ("convert", "finetune", "slice")


@dataclass(frozen=True)
class Entry:
    """One thing that was done: a conversion, a training run, or a slicing.

    Args:
        recipe: name of what was done: a recipe's, ``finetune`` or ``slice``.
        version: its version.
        options: every option's value, as JSON values.
        seed: seed of whatever had to be initialised anew.
        edits: what was done, in order, at recorded addresses.
        signatures: non-tensor arguments of each rewritten forward (see :class:`~chansurg.surgery.plan.Plan`).
        graphs: for each module whose code the edits rely on, a hash of its graph before the edits.
        libraries: versions of the libraries that defined those modules.
        kept: how many tensors hold what they, or their sources, held before, and were not fitted to images since; ``None`` where that was
            not counted.
        sliced: tensors that hold a selection of it.
        new: tensors that hold nothing of what was there before, freshly initialised.
        removed: names of tensors that are gone.
        sources: for tensors of new layers and of copies that start as what the network held before: the name that this went by.
        before: counts before (``params``, ``macs``, ``ops``, ``memory_access``).
        after: counts after.
        uncounted: what the counts leave out: operators without a formula, and where a pass broke off.
        weights: digest of the tensors right after the conversion; training that came later shows by it.
        untouched: whether the tensors were still as the file, or the conversion before, had left them.
        parent_file: name of the file it came from, if it came from one.
        parent_sha256: that file's hash.
        kind: ``convert``, ``finetune`` or ``slice``.
        results: what was found, as JSON values: what a training run reached, the verdict of a slicing.
    """

    recipe: str
    version: int
    options: Mapping[str, Any]
    seed: int
    edits: tuple[Edit, ...]
    signatures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    graphs: Mapping[str, str] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    kept: int | None = None
    sliced: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, int] = field(default_factory=dict)
    after: Mapping[str, int] = field(default_factory=dict)
    uncounted: tuple[str, ...] = ()
    weights: str = ""
    untouched: bool = True
    parent_file: str | None = None
    parent_sha256: str | None = None
    kind: str = "convert"
    results: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fitted(self) -> tuple[str, ...]:
        """Tensors that held what was there before until the conversion was calibrated, and were fitted to images then."""
        calibration = self.results.get("calibration")
        names = calibration.get("tensors") if isinstance(calibration, Mapping) else None
        others = {*self.sliced, *self.new}
        return tuple(name for name in names if isinstance(name, str) and name not in others) if isinstance(names, list) else ()

    def as_json(self) -> dict[str, Any]:
        """JSON values; :meth:`from_json` reads them back."""
        return {
            "kind": self.kind,
            "recipe": self.recipe,
            "version": self.version,
            "options": dict(self.options),
            "seed": self.seed,
            "edits": [edit.as_json() for edit in self.edits],
            "signatures": {path: dict(values) for path, values in self.signatures.items()},
            "graphs": dict(self.graphs),
            "libraries": dict(self.libraries),
            "tensors": {
                "kept": self.kept,
                "sliced": list(self.sliced),
                "new": list(self.new),
                "removed": list(self.removed),
                "sources": dict(self.sources),
            },
            "before": dict(self.before),
            "after": dict(self.after),
            "uncounted": list(self.uncounted),
            "weights": self.weights,
            "untouched": self.untouched,
            "parent": {"file": self.parent_file, "sha256": self.parent_sha256},
            "results": dict(self.results),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        """Inverse of :meth:`as_json`.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: where the data does not have that form.
        """
        if data["kind"] not in KINDS:
            raise ValueError(f"unknown journal entry {data['kind']!r}")
        tensors, parent = data["tensors"], data["parent"]
        return cls(
            recipe=text(data["recipe"]),
            version=int(data["version"]),
            options=dict(data["options"]),
            seed=int(data["seed"]),
            edits=tuple(edit_from_json(edit) for edit in items(data["edits"])),
            signatures={str(path): dict(values) for path, values in data["signatures"].items()},
            graphs={path: text(digest) for path, digest in data["graphs"].items()},
            libraries={name: text(version) for name, version in data["libraries"].items()},
            kept=None if tensors.get("kept") is None else whole(tensors["kept"]),
            sliced=texts(tensors["sliced"]),
            new=texts(tensors["new"]),
            removed=texts(tensors["removed"]),
            sources={name: text(source) for name, source in tensors.get("sources", {}).items()},
            before={str(k): int(v) for k, v in data["before"].items()},
            after={str(k): int(v) for k, v in data["after"].items()},
            uncounted=texts(data["uncounted"]),
            weights=text(data["weights"]),
            untouched=bool(data["untouched"]),
            parent_file=None if parent["file"] is None else text(parent["file"]),
            parent_sha256=None if parent["sha256"] is None else text(parent["sha256"]),
            kind=text(data["kind"]),
            results=dict(data.get("results", {})),
        )


@dataclass(frozen=True)
class Record:
    """A network's papers.

    Args:
        architecture: what the network was built as; ``None`` for a module of the caller's own that no library builds.
        preprocessing: how images are prepared for it.
        class_names: the classes in the order of the outputs, where known.
        journal: what was done to it, oldest first.
        file: name of the file it was read from, if any.
        sha256: that file's hash.
        weights: digest of the tensors as they were in that file. Not written to files.
        notes: what a reader should know about how it was recognised. Not written to files.
    """

    architecture: Architecture | None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    class_names: tuple[str, ...] | None = None
    journal: tuple[Entry, ...] = ()
    file: str | None = None
    sha256: str | None = None
    weights: str = ""
    notes: tuple[str, ...] = ()

    def with_entry(self, entry: Entry, weights: str) -> Record:
        """The record after one more thing was done.

        Args:
            entry: what was done.
            weights: digest of the tensors it was done to. The file the network came from is the entry's parent if they are still its own.
        """
        left = self.weights if self.file or not self.journal else self.journal[-1].weights
        untouched = not left or left == weights
        parent = (self.file, self.sha256) if untouched else (None, None)
        parented = replace(entry, parent_file=parent[0], parent_sha256=parent[1], untouched=untouched)
        return replace(self, journal=(*self.journal, parented), file=None, sha256=None, weights="")

    def as_json(self) -> dict[str, Any]:
        """What a model file carries under the key ``chansurg``."""
        return {
            "schema": SCHEMA,
            "architecture": None if self.architecture is None else self.architecture.as_json(),
            "preprocessing": self.preprocessing.as_json(),
            "class_names": None if self.class_names is None else list(self.class_names),
            "journal": [entry.as_json() for entry in self.journal],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Inverse of :meth:`as_json`, for every schema ever written.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: where the data does not have that form.
        """
        if data["schema"] not in (SCHEMA, *_OLDER) or isinstance(data["schema"], bool):
            raise ValueError(f"schema {data['schema']!r}")
        names = data["class_names"]
        return cls(
            architecture=None if data["architecture"] is None else Architecture.from_json(data["architecture"]),
            preprocessing=Preprocessing.from_json(data["preprocessing"]),
            class_names=None if names is None else texts(names),
            journal=tuple(Entry.from_json(entry) for entry in items(data["journal"])),
        )
