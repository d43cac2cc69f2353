"""Edits and plans as data: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chansurg.surgery.edits import (
    Address,
    Attach,
    Bypass,
    Edit,
    Inherit,
    Insert,
    LayerSpec,
    Narrow,
    Repeat,
    Replace,
    Route,
    Scale,
    Swap,
    edit_from_json,
    new_layers,
)

LAYER = LayerSpec("pix.PickOrMix", {"in_channels": 8, "out_channels": 2, "tau": 0.5, "zeta": None})
FUSION = LayerSpec("mod.Fusion", {"fuse": "first"})
EDITS: list[Edit] = [
    Swap("layer1.0.conv1", LAYER),
    Insert(Address("layer1.0", "self.conv2"), "conv2_pix", LAYER),
    Insert(Address("", "self.stem", 2), "0_pix", LAYER),
    Bypass(Address("layer1.0", "torch.relu", 1)),
    Narrow("layer1.0.conv2", (0, 3, 5), None),
    Narrow("layer1.0.bn2", None, (7, 1)),
    Attach(Address("layer1.0", "self.relu"), Address("layer1.0", "self.conv1"), "conv1_salience", LAYER),
    Replace(Address("layer1.0", "operator.iadd"), "scatter", LAYER),
    Scale("layer1.0.bn1", "out", 2.0),
    Scale("fc", "in", (0.25, 1.5), (3, 1)),
    Repeat("layer1.2", "3"),
    Inherit("layer1.0.conv2.top.weight", "layer1.0.conv2.weight", ((1, 0), None, (2,), None)),
    Inherit("layer1.0.conv2.bias", "layer1.0.conv2.bias"),
    Inherit("layer1.0.conv2.bottom.weight", "layer1.0.conv2.weight", ((1, 0), None, None, None), (2, 3)),
    Route((Address("layer1.1", "self.conv1"),), Address("layer1.1", "operator.iadd"), 1, "selector", LAYER, "fusion", FUSION),
    Route((Address("", "self.0"), Address("", "self.1")), Address("", "self.2"), None, "selector", LAYER, "fusion", FUSION),
]


def route(**changes: Any) -> dict[str, Any]:
    """The JSON values of a route, with changes."""
    return {**EDITS[-2].as_json(), **changes}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: f"{edit.op}-{edit.path or 0}")
def test_an_edit_survives_json(edit: Edit) -> None:
    assert edit_from_json(json.loads(json.dumps(edit.as_json()))) == edit


@pytest.mark.parametrize(
    ("address", "path"),
    [
        (Address("layer1.0", "self.conv1"), "layer1.0.conv1"),
        (Address("", "self.conv1"), "conv1"),
        (Address("", "self.relu", 1), "relu#1"),
        (Address("layer1.0", "torch.relu"), "layer1.0:torch.relu"),
        (Address("layer1.0", ".view", 2), "layer1.0:.view#2"),
        (Address("", "torch.flatten"), ":torch.flatten"),
        (Address("", "torch.nn.functional.relu", 1), ":torch.nn.functional.relu#1"),
    ],
)
def test_an_address_reads_as_a_path(address: Address, path: str) -> None:
    assert address.path == path


@pytest.mark.parametrize("name", ["", "a.b", "a b", 'x") or print("hi") or getattr(self, "x', "été", "conv\n", "a-b"])
def test_a_new_layer_has_a_plain_name_because_code_is_generated_with_it(name: str) -> None:
    with pytest.raises(ValueError, match="not a name for a layer"):
        Insert(Address("", "self.conv1"), name, LAYER)
    data = {**EDITS[1].as_json(), "name": name}
    with pytest.raises(ValueError, match="not a name for a layer"):
        edit_from_json(data)


@pytest.mark.parametrize(
    "change",
    [
        {"op": "exec"},
        {"op": None},
        {"path": 3},
        {"in_channels": [0, 1.5]},
        {"in_channels": [True]},
        {"in_channels": [-1]},
        {"in_channels": ["0"]},
        {"in_channels": 7},
        {"out_channels": [10**400, None]},
    ],
)
def test_data_of_another_form_is_refused(change: dict[str, Any]) -> None:
    data = {**Narrow("conv", (0, 1), (0,)).as_json(), **change}
    with pytest.raises((ValueError, TypeError)):
        edit_from_json(data)


ELSEWHERE = Address("layer1.2", "self.conv1").as_json()


@pytest.mark.parametrize(
    "data",
    [
        route(passing=2),
        route(passing=True),
        route(passing="0"),
        route(into=[]),
        route(into=None),
        route(into=ELSEWHERE),
        route(into=[ELSEWHERE]),
        route(closes=ELSEWHERE),
        route(fusion_name="selector"),
        route(fusion_name="a.b"),
        route(name="a b"),
        route(fusion="mod.Fusion"),
        {"op": "repeat", "path": "layer1.2", "name": "a.b"},
        {"op": "repeat", "path": 2, "name": "3"},
        {"op": "inherit", "tensor": "a", "source": "b", "slices": [0, 1], "rows": None},
        {"op": "inherit", "tensor": "a", "source": "b", "slices": None, "rows": None},
        {"op": "inherit", "tensor": "a", "source": "b", "slices": [[-1]], "rows": None},
        {"op": "inherit", "tensor": "a", "source": "b", "slices": [], "rows": 3},
        {"op": "inherit", "tensor": "a", "source": None, "slices": [], "rows": None},
    ],
)
def test_routes_repeats_and_inheritances_of_another_form_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        edit_from_json(data)


def test_an_edit_says_which_layers_it_brings_and_where() -> None:
    assert new_layers(EDITS[-2]) == (("layer1.1.selector", LAYER), ("layer1.1.fusion", FUSION))
    assert [path for path, _ in new_layers(EDITS[-1])] == ["selector", "fusion"]
    assert new_layers(EDITS[1]) == (("layer1.0.conv2_pix", LAYER),)
    assert not any(new_layers(edit) for edit in EDITS if isinstance(edit, (Bypass, Narrow, Scale, Repeat, Inherit)))
    assert [edit.copy for edit in EDITS if isinstance(edit, Repeat)] == ["layer1.3"]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: f"{edit.op}-{edit.path or 0}")
def test_every_missing_part_is_noticed(edit: Edit) -> None:
    for name in edit.as_json().keys() - {"path", "in_channels", "out_channels"}:
        data = {key: value for key, value in edit.as_json().items() if key != name}
        with pytest.raises(KeyError):
            edit_from_json(data)
