"""Records that are damaged, or written to do harm: refused with the reason, and nothing in them is run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import routed
from networks.records import header_of, mutated, with_record
from networks.running import outputs
from torch import nn

import chansurg
from chansurg.surgery.files.header_record import KEY
from chansurg.surgery.journal import SCHEMA

TINY = "networks.small:tiny"


def test_a_newer_schema_is_refused_by_its_number(file: Path) -> None:
    newer = with_record(file, lambda record: record.update(schema=SCHEMA + 1))
    for read in (lambda: chansurg.load(newer, arch=TINY), lambda: chansurg.history(newer)):
        with pytest.raises(chansurg.InputError, match=f"schema {SCHEMA + 1}") as refused:
            read()
        assert "newer chansurg" in refused.value.to_do


def entry(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = record["journal"][0]
    return found


def edit(record: dict[str, Any], op: str) -> dict[str, Any]:
    found: dict[str, Any] = next(edit for edit in entry(record)["edits"] if edit["op"] == op)
    return found


HOSTILE_NAME = 'x") or [][0] or getattr(self, "x'


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: edit(r, "insert")["layer"].update(kind="nix.Layer"), "no recipe 'nix'"),
        (lambda r: edit(r, "insert")["layer"].update(kind="pix.Nix"), "no layer 'Nix'"),
        (lambda r: edit(r, "insert")["layer"].update(kind="pix.PickOrMix.__init__"), "no layer"),
        (lambda r: edit(r, "insert").update(op="execute"), "unknown edit 'execute'"),
        (lambda r: edit(r, "insert").update(name=HOSTILE_NAME), "not a name for a layer"),
        (lambda r: edit(r, "insert").update(name="forward"), "exists already"),
        (lambda r: edit(r, "insert")["before"].update(operation="self.nix"), "was not found in the forward"),
        (lambda r: edit(r, "insert")["before"].update(owner="nix"), "was not found in the forward"),
        (lambda r: edit(r, "insert")["before"].update(call=7), "was not found in the forward"),
        (lambda r: edit(r, "insert")["layer"]["arguments"].update(in_channels=10**6, out_channels=10**6, zeta=1), "theta"),
        (
            lambda r: edit(r, "insert")["layer"]["arguments"].update(in_channels=10**15, out_channels=10**15, zeta=1),
            "cannot be built|journal",
        ),
        (lambda r: edit(r, "insert")["layer"]["arguments"].update(in_channels=-4), "in_channels is -4"),
        (lambda r: edit(r, "insert")["layer"]["arguments"].update(file="/etc/passwd"), "unexpected keyword"),
        (lambda r: edit(r, "narrow").update(path="nix"), "has no module 'nix'"),
        (lambda r: edit(r, "narrow").update(path=""), "no rule"),
        (lambda r: edit(r, "narrow").update(in_channels=[0, 99]), "channel 99 was named"),
        (lambda r: edit(r, "narrow").update(in_channels=[0] * 100_000), "named twice"),
        (lambda r: edit(r, "narrow").update(in_channels=[0]), "should be"),
        (lambda r: entry(r).update(recipe=None), "damaged"),
        (lambda r: entry(r)["graphs"].update({"blocks.2": "0" * 16}), r"code of blocks\.2 is not what it was .*torch \d"),
        (lambda r: r["architecture"].update(kwargs={"classes": 3}), "not an argument that a file may give"),
        (lambda r: r["architecture"].update(kwargs={"num_classes": 3}), "could not be built"),
        (lambda r: r["tied"].update({"fc.weight": "nix"}), None),
        (lambda r: r.update(tied=[]), "damaged"),
        (lambda r: r.update(channels_last=7), "damaged"),
        (lambda r: r.update(journal=[]), "does not|do not fit"),
        (lambda r: r.update(journal=r["journal"] * 2), "exists already|not what it was"),
        (lambda r: r["preprocessing"].update(input_size=[3, -1, 1]), "damaged"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_with_the_reason(
    file: Path, change: Callable[[dict[str, Any]], None], told: str | None, converted: nn.Module
) -> None:
    changed = with_record(file, change)
    if told is None:
        assert torch.equal(outputs(chansurg.load(changed, arch=TINY)), outputs(converted))
        return
    with pytest.raises(chansurg.InputError, match=told) as refused:
        chansurg.load(changed, arch=TINY)
    assert refused.value.not_done


@pytest.mark.parametrize(
    "kwargs",
    [
        {"pretrained": True},
        {"checkpoint_path": "evil.pth"},
        {"weights": "DEFAULT"},
        {"pretrained_cfg_overlay": {"file": "evil.pth"}},
        {"num_classes": 10**12},
        {"model_name": "resnet50"},
    ],
)
@pytest.mark.parametrize("base", ["torchvision/resnet18", "timm/resnet18"])
def test_a_file_gives_builders_nothing_but_sizes(tmp_path: Path, base: str, kwargs: dict[str, Any]) -> None:
    path = tmp_path / "a.safetensors"
    chansurg.save(chansurg.load("cifar/resnet20"), path)
    source, _, name = base.partition("/")
    changed = with_record(path, lambda record: record["architecture"].update(source=source, name=name, kwargs=kwargs))
    with pytest.raises(chansurg.InputError, match="not an argument that a file may give"):
        chansurg.load(changed)


def test_a_file_cannot_name_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("open('touched', 'w').close()\ndef build(): pass\n")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.safetensors"
    chansurg.save(chansurg.load("cifar/resnet20"), path)
    changed = with_record(path, lambda record: record["architecture"].update(source="factory", name="evil:build"))
    with pytest.raises(chansurg.InputError, match="no file names code"):
        chansurg.load(changed)
    assert not (tmp_path / "touched").exists()


ROUTED: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (lambda r: edit(r, "route").update(into=[]), "damaged"),
    (lambda r: edit(r, "route").update(passing=0), "operand 0 of the addition comes out of the branch"),
    (lambda r: edit(r, "route").update(passing=7), "damaged"),
    (lambda r: edit(r, "route")["closes"].update(operation="self.bn2"), "is no addition"),
    (lambda r: edit(r, "route")["closes"].update(owner="blocks.2"), "damaged"),
    (lambda r: edit(r, "route").update(fusion_name="bn2"), "exists already"),
    (lambda r: edit(r, "route").update(fusion_name=HOSTILE_NAME), "not a name for a layer"),
    (lambda r: edit(r, "route")["layer"].update(kind="engine.Nix"), "no layer 'Nix'"),
    (lambda r: edit(r, "route")["layer"]["arguments"].update(channels=-1), "journal"),
    (lambda r: edit(r, "repeat").update(path="stem"), "no child of a plain nn.Sequential"),
    (lambda r: edit(r, "repeat").update(path="blocks.7"), "has no module"),
    (lambda r: edit(r, "repeat").update(name="2"), "exists already"),
    (lambda r: edit(r, "repeat").update(name="4"), "has no module"),
    (lambda r: edit(r, "inherit").update(source="nix.weight"), "has no such tensor"),
    (lambda r: edit(r, "inherit").update(tensor="nix.weight"), "has no tensor 'nix.weight'"),
    (lambda r: edit(r, "inherit").update(slices=[[10**9] * 32]), "has 32 entries, and others were named"),
    (lambda r: edit(r, "inherit").update(slices=[[0]]), "is wanted"),
    (lambda r: edit(r, "inherit").update(slices=[None] * 9), "slices were given for 9"),
    (lambda r: edit(r, "inherit").update(slices=7), "damaged"),
    (lambda r: entry(r)["tensors"].update(sources=["a"]), "damaged"),
    (lambda r: entry(r)["tensors"].update(sources={"a": None}), "damaged"),
    (lambda r: entry(r)["tensors"].update(kept="many"), "damaged"),
]


@pytest.fixture
def routed_file(tmp_path: Path, test_layers: None) -> Path:
    chansurg.save(routed.routed(), tmp_path / "routed.safetensors")
    return tmp_path / "routed.safetensors"


@pytest.mark.parametrize(("change", "told"), ROUTED)
def test_routes_repeats_and_inheritances_that_do_not_fit_are_refused(
    routed_file: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    with pytest.raises(chansurg.InputError, match=told) as refused:
        chansurg.load(with_record(routed_file, change), arch=routed.NAME)
    assert refused.value.not_done


def test_a_hundred_damaged_routes_give_an_input_error_or_the_same_tensors(routed_file: Path) -> None:
    record = json.loads(header_of(routed_file)["__metadata__"][KEY])
    expected, refused = chansurg.load(routed_file, arch=routed.NAME).state_dict(), 0
    for seed in range(100):
        chance = random.Random(seed)
        damaged = json.loads(json.dumps(record))
        edits = damaged["journal"][0]["edits"]
        for at in range(len(edits)):
            if edits[at]["op"] in ("route", "repeat", "inherit") and chance.random() < 0.5:
                edits[at] = mutated(edits[at], chance)
        try:
            found = chansurg.load(with_record(routed_file, json.dumps(damaged)), arch=routed.NAME).state_dict()
        except chansurg.InputError:
            refused += 1
        else:
            assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert refused > 50


def test_two_hundred_damaged_records_give_an_input_error_or_the_same_network(file: Path, converted: nn.Module) -> None:
    record = json.loads(header_of(file)["__metadata__"][KEY])
    expected, refused = outputs(converted), 0
    for seed in range(200):
        chance = random.Random(seed)
        damaged = record
        for _ in range(chance.randint(1, 3)):
            damaged = mutated(damaged, chance)
        changed = with_record(file, json.dumps(damaged))
        try:
            chansurg.history(changed)
            found = outputs(chansurg.load(changed, arch=TINY))
        except chansurg.InputError:
            refused += 1
        else:
            assert torch.equal(found, expected), f"seed {seed} loads as another network"
    assert refused > 100


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "[" * 100_000, '{"schema": 1}', '{"schema": "x"}', '{"schema": NaN}'])
def test_a_record_that_is_no_record(file: Path, text: str) -> None:
    changed = with_record(file, text)
    for read in (lambda: chansurg.history(changed), lambda: chansurg.load(changed, arch=TINY)):
        with pytest.raises(chansurg.InputError):
            read()
