"""Every row of the paper's tables that is specified, counted on networks without numbers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import chansurg

SPEC = Path(__file__).parents[3].parent / "shared" / "spec" / "paper-tables.csv"

# row, network, options, parameters in millions, multiply-accumulates and operations in billions (CNN MoD, Tables 1 and 2)
PAPER: list[tuple[str, str, dict[str, Any], float, float | None, float | None]] = [
    ("resnet50-mod", "resnet50", {"c": 64}, 18.106, 2.562, 2.592),
    ("resnet75-mod", "resnet50", {"c": 64, "depths": "3,4,14,3"}, 23.100, 3.436, 3.471),
    ("resnet86-mod", "resnet50", {"c": 64, "depths": "3,4,18,3"}, 25.597, 3.873, None),
    ("resnet101-mod", "resnet101", {"c": 64}, 29.212, 4.529, None),
    ("resnet152-mod", "resnet152", {"c": 64}, 37.460, 6.277, None),
    ("mobilenetv2-mod", "mobilenet_v2", {"c": 16}, 2.944, 0.206, 0.220),
    ("random selection", "resnet50", {"c": 64, "select": "random"}, 17.11, None, None),
]


@pytest.mark.parametrize(("row", "name", "options", "params", "macs", "ops"), PAPER, ids=[row[0] for row in PAPER])
def test_the_papers_tables(row: str, name: str, options: dict[str, Any], params: float, macs: float | None, ops: float | None) -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
    converted = chansurg.convert(network, "mod", inplace=True, input_size=(3, 224, 224), **options)
    after = chansurg.record_of(converted).journal[-1].after
    assert after["params"] == pytest.approx(params * 1e6, rel=1e-3)
    assert macs is None or after["macs"] == pytest.approx(macs * 1e9, rel=5e-3)
    assert ops is None or after["ops"] == pytest.approx(ops * 1e9, rel=5e-3)


def test_the_copied_rows_are_those_of_the_specification() -> None:
    if not SPEC.exists():
        pytest.skip("the specification lies outside the repository and is not here")
    with SPEC.open() as file:
        rows = {row["row"]: row for row in csv.DictReader(file) if row["recipe"] == "mod"}
    ours = {row[0]: row for row in PAPER if row[0] != "random selection"}
    assert rows.keys() == ours.keys()
    for name, row in rows.items():
        _, network, options, *numbers = ours[name]
        assert row["base"] == network
        assert row["options"] == " ".join(f"{key}={str(value).replace(',', '-')}" for key, value in options.items())
        assert [float(row[key]) if row[key] else None for key in ("params_M", "macs_G", "ops_G")] == numbers
        assert row["resolution"] == "224"
