"""Files that are no models: one message in four parts, exit code 2, nothing written and nothing run."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cli.conftest import Cli


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def hostile_header(path: Path, header: dict[str, object], size: int | None = None) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + bytes(16))


def truncated(path: Path, resnet20: Path) -> None:
    path.write_bytes(resnet20.read_bytes()[: resnet20.stat().st_size // 2])


def not_numbers(path: Path, resnet20: Path) -> None:
    state = torch.load(resnet20)
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, path)


def script_archive(path: Path, _: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), path)


BAD: dict[str, Callable[[Path, Path], object]] = {
    "missing.pth": lambda path, _: None,
    "empty.pth": lambda path, _: path.write_bytes(b""),
    "empty.safetensors": lambda path, _: path.write_bytes(b""),
    "folder.pth": lambda path, _: path.mkdir(),
    "text.pth": lambda path, _: path.write_text("not a model\n" * 30),
    "text.safetensors": lambda path, _: path.write_text("not a model\n" * 30),
    "truncated.pth": truncated,
    "broken-header.safetensors": lambda path, _: path.write_bytes(struct.pack("<Q", 40) + b"{" * 40),
    "huge-header.safetensors": lambda path, _: hostile_header(path, {}, 2**62),
    "overlapping.safetensors": lambda path, _: hostile_header(path, {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}),
    "beyond-the-end.safetensors": lambda path, _: hostile_header(path, {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
    "forged-record.safetensors": lambda path, _: hostile_header(path, {"__metadata__": {"chansurg": '{"schema": 1}'}}),
    "newer-record.safetensors": lambda path, _: hostile_header(path, {"__metadata__": {"chansurg": '{"schema": 99}'}}),
    "module.pth": lambda path, _: torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)), path),
    "command.pth": lambda path, _: torch.save({"state_dict": Bomb()}, path),
    "command.pkl.pth": lambda path, _: path.write_bytes(pickle.dumps(Bomb())),
    "script.pt": script_archive,
    "nan.pth": not_numbers,
    "numbers.pth": lambda path, _: torch.save([1, 2, 3], path),
    "unknown-network.pth": lambda path, _: torch.save({"some.weight": torch.zeros(3, 3)}, path),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_message_and_nothing_else(cli: Cli, resnet20: Path, tmp_path: Path, name: str) -> None:
    BAD[name](tmp_path / name, resnet20)
    there = sorted(tmp_path.rglob("*"))
    for command in (["inspect", name], ["convert", name, "--recipe", "pix", "--mode", "downscale"], ["verify", name, resnet20]):
        ran = cli(*command)
        assert ran.code == 2, ran.err
        assert ran.out == ""
        parts = [line for line in ran.err.splitlines() if line.startswith(("error: ", "  where: ", "  not done: ", "  to do: "))]
        assert len(parts) == 4, ran.err
        assert "bug in chansurg" not in ran.err
        assert "Traceback" not in ran.err
        told = cli(*command, "--json")
        assert told.code == 2
        assert set(told.document["error"]) == {"what", "where", "not_done", "to_do"}
        assert all(told.document["error"].values())
    assert sorted(tmp_path.rglob("*")) == there


def test_trusting_a_pickle_is_a_choice(cli: Cli, tmp_path: Path) -> None:
    BAD["command.pth"](tmp_path / "command.pth", tmp_path)
    refused = cli("inspect", "command.pth")
    assert "--trust-pickle" in refused.err
    assert "system" in refused.err
    assert not (tmp_path / "executed").exists()
    assert cli("inspect", "command.pth", "--trust-pickle").code == 2
    assert (tmp_path / "executed").exists()
