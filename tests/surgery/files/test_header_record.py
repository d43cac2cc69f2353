"""What a header says is read without torch, and only if it is what this project writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.header_record import KEY, Layout, record_in_header
from chansurg.surgery.journal import SCHEMA, Record

GOLDEN = Path(__file__).parents[2] / "golden" / "pix-schema1.safetensors"


def metadata(**changes: Any) -> dict[str, str]:
    return {KEY: json.dumps({**Record(None).as_json(), "tied": {"b": "a"}, "channels_last": ["a"], "weights": "0123", **changes})}


def test_record_and_layout() -> None:
    assert record_in_header(metadata(), "x") == (Record(None), Layout({"b": "a"}, ("a",), "0123"))


def test_a_file_without_a_record() -> None:
    with pytest.raises(InputError, match="carries no chansurg record"):
        record_in_header({"format": "pt"}, "x")


def test_a_newer_schema_is_refused_by_its_number_whatever_else_it_holds() -> None:
    with pytest.raises(InputError, match=f"schema {SCHEMA + 7}; this version of chansurg reads up to {SCHEMA}"):
        record_in_header({KEY: json.dumps({"schema": SCHEMA + 7, "something": "new"})}, "x")


@pytest.mark.parametrize(
    "changes", [{"tied": None}, {"tied": ["a"]}, {"channels_last": None}, {"schema": 0}, {"schema": "1"}, {"schema": True}]
)
def test_damage_is_told_with_the_file(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="damaged") as refused:
        record_in_header(metadata(**changes), "some/file.safetensors")
    assert refused.value.where == "some/file.safetensors"


def test_history_is_read_without_torch() -> None:
    script = f"import sys, chansurg; print(len(chansurg.history({str(GOLDEN)!r}).journal), 'torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))}
    )
    assert ran.stdout.split() == ["2", "False"]
