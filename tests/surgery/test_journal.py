"""The record as data: everything but its notes and its own file survives JSON, and only its own form is read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from chansurg.surgery.architecture import Architecture, Preprocessing
from chansurg.surgery.edits import Address, Bypass, Narrow
from chansurg.surgery.journal import SCHEMA, Entry, Record

ENTRY = Entry(
    recipe="pix",
    version=1,
    options={"zeta": 4, "mode": "squeeze", "tau": 0.5},
    seed=3,
    edits=(Narrow("conv", (0, 2)), Bypass(Address("layer1.0", "self.relu", 1))),
    signatures={"layer1.0": {"flag": True}, "": {}},
    graphs={"layer1.0": "0123456789abcdef", "": ""},
    libraries={"torch": "2.15.0"},
    kept=12,
    sliced=("conv.weight", "conv2.weight"),
    new=("pix.theta",),
    removed=("bn.weight",),
    sources={"conv2.weight": "conv.weight"},
    before={"params": 10, "macs": 20, "ops": 30, "memory_access": 40},
    after={"params": 5, "macs": 10, "ops": 15, "memory_access": 20},
    uncounted=("aten.add",),
    weights="fedcba9876543210",
    untouched=False,
)
RECORD = Record(
    Architecture("torchvision", "resnet18", {"num_classes": 7}),
    Preprocessing((3, 96, 64), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 100, "bicubic"),
    ("cat", "dog"),
    (ENTRY,),
)


def test_a_record_survives_json() -> None:
    assert Record.from_json(json.loads(json.dumps(RECORD.as_json()))) == RECORD
    bare = Record(None)
    assert Record.from_json(json.loads(json.dumps(bare.as_json()))) == bare


def test_an_entry_of_an_older_schema_counts_no_kept_tensors() -> None:
    data = broken(schema=2)
    del data["journal"][0]["tensors"]["kept"]
    del data["journal"][0]["tensors"]["sources"]
    entry = Record.from_json(data).journal[0]
    assert (entry.kept, entry.sources, entry.sliced) == (None, {}, ENTRY.sliced)


def test_notes_and_the_own_file_stay_out_of_files() -> None:
    told = replace(RECORD, notes=("something",), file="a.pth", sha256="00")
    assert told.as_json() == RECORD.as_json()


def test_an_entry_takes_over_the_file_it_started_from() -> None:
    loaded = replace(RECORD, journal=(), file="a.pth", sha256="abc")
    once = loaded.with_entry(ENTRY, "")
    assert (once.journal[0].parent_file, once.journal[0].parent_sha256) == ("a.pth", "abc")
    assert (once.file, once.sha256) == (None, None)
    twice = once.with_entry(ENTRY, ENTRY.weights)
    assert twice.journal[0] == once.journal[0]
    assert (twice.journal[1].parent_file, twice.journal[1].parent_sha256) == (None, None)


def broken(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(RECORD.as_json()))
    for place, value in changes.items():
        *parents, last = place.split("__")
        inner: Any = data
        for name in parents:
            inner = inner[int(name) if name.isdigit() else name]
        inner[last] = value
    return data


@pytest.mark.parametrize(
    "data",
    [
        broken(schema=SCHEMA + 1),
        broken(schema=True),
        broken(schema=None),
        broken(architecture=7),
        broken(architecture__source=None),
        broken(architecture__kwargs={"pretrained": True}),
        broken(architecture__kwargs={"checkpoint_path": "x"}),
        broken(architecture__kwargs={"num_classes": "x"}),
        broken(architecture__kwargs={"num_classes": 10**12}),
        broken(architecture__kwargs={"num_classes": -1}),
        broken(architecture__kwargs={"img_size": [1] * 1000}),
        broken(preprocessing__input_size=[3, 0, 5]),
        broken(preprocessing__input_size=[3, 5]),
        broken(preprocessing__input_size=[3, 10**9, 10**9]),
        broken(preprocessing__mean=[float("nan")] * 3),
        broken(preprocessing__mean=3),
        broken(class_names="cats"),
        broken(class_names=[1]),
        broken(journal={}),
        broken(journal=[7]),
        broken(journal__0__kind="train"),
        broken(journal__0__recipe=None),
        broken(journal__0__version="new"),
        broken(journal__0__edits=[{"op": "format"}]),
        broken(journal__0__signatures=[1]),
        broken(journal__0__signatures={"": 3}),
        broken(journal__0__graphs={"": 3}),
        broken(journal__0__libraries=["torch"]),
        broken(journal__0__tensors={}),
        broken(journal__0__tensors__new="abc"),
        broken(journal__0__tensors__new=[1]),
        broken(journal__0__tensors__kept=-1),
        broken(journal__0__tensors__kept="12"),
        broken(journal__0__tensors__kept=True),
        broken(journal__0__tensors__sources=["conv2.weight"]),
        broken(journal__0__tensors__sources={"conv2.weight": 7}),
        broken(journal__0__tensors__sources=None),
        broken(journal__0__before={"params": "many"}),
        broken(journal__0__before=None),
        broken(journal__0__uncounted=3),
        broken(journal__0__parent=None),
        broken(journal__0__parent__file=3),
        broken(journal__0__parent__sha256=["a"]),
        [],
        None,
    ],
)
def test_data_of_another_form_is_refused(data: Any) -> None:
    assert json.dumps(data) != json.dumps(RECORD.as_json())
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        Record.from_json(data)
