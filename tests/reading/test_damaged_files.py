"""Random damage to good files of every kind: an error in four parts or a valid load, nothing else.

``python tests/reading/test_damaged_files.py 1000`` runs more of the same.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.reading.checkpoint import read_checkpoint
from chansurg.surgery.reading.header import read_header


def good_files(folder: Path) -> list[Path]:
    torch.manual_seed(0)
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5)).state_dict()
    nested = {"state_dict": state, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}, "epoch": 3}
    files = [folder / name for name in ("zip.pth", "nested.ckpt", "legacy.th", "bare.safetensors", "half.bin")]
    torch.save(state, files[0])
    torch.save(nested, files[1])
    torch.save(nested, files[2], _use_new_zipfile_serialization=False)
    save_file(state, files[3], metadata={"format": "pt"})
    torch.save({key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}, files[4])
    return files


def damaged(good: list[bytes], chance: random.Random) -> bytes:
    """Flipped bits, a cut, a splice of two files, a filled, doubled or dropped stretch."""
    data = bytearray(chance.choice(good))
    kind = chance.choice(["flip", "flip", "front", "cut", "splice", "fill", "repeat", "drop"])
    at = chance.randrange(len(data))
    length = chance.randrange(1, 1 + min(256, len(data) - at))
    if kind in ("flip", "front"):
        # The front holds headers and the pickles' first opcodes, where damage does most.
        end = len(data) if kind == "flip" else min(len(data), 700)
        for _ in range(chance.choice([1, 2, 8, 64])):
            data[chance.randrange(end)] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "splice":
        other = chance.choice(good)
        data = data[:at] + other[chance.randrange(len(other)) :]
    elif kind == "fill":
        data[at : at + length] = bytes([chance.choice([0, 0xFF, 0x80, 0x28])]) * length
    elif kind == "repeat":
        data[at:at] = data[at : at + length]
    else:
        del data[at : at + length]
    return bytes(data)


def outcomes(folder: Path, count: int, seed: int) -> Counter[str]:
    """How many damaged files were refused and how many still held a state dict; anything else is raised."""
    good = [file.read_bytes() for file in good_files(folder)]
    chance = random.Random(seed)
    found: Counter[str] = Counter()
    for number in range(count):
        file = folder / f"damaged-{number}"
        file.write_bytes(damaged(good, chance))
        try:
            tensors = read_checkpoint(file).tensors
            assert tensors
            assert all(isinstance(tensor, torch.Tensor) and bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
            found["loaded"] += 1
        except InputError as error:
            assert all(error.parts().values())  # noqa: PT017
            found["refused"] += 1
        try:
            read_header(file)
        except InputError:
            found["no header"] += 1
        file.unlink(missing_ok=True)
    for file in good_files(folder):
        assert len(read_checkpoint(file).tensors) == 9
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_damage_is_refused_or_harmless(tmp_path: Path, seed: int) -> None:
    found = outcomes(tmp_path, 100, seed)
    assert found["refused"] + found["loaded"] == 100
    assert found["refused"] > 60


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        print(dict(outcomes(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 1000, seed=0)))
