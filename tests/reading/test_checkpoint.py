"""Every container and nesting that people have, and every kind of file that is none."""

from __future__ import annotations

import argparse
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.reading.checkpoint import read_checkpoint
from chansurg.surgery.reading.header import file_sha256, read_header


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def refused(file: Path, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        read_checkpoint(file, **options)
    assert all(caught.value.parts().values())
    assert str(file) in caught.value.where
    return caught.value


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".ckpt", ".bin", ".safetensors", ""])
@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_containers_are_told_by_content(tmp_path: Path, state: dict[str, Tensor], container: str, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    if container == "safetensors":
        save_file(state, file, metadata={"format": "pt"})
    else:
        torch.save(state, file, _use_new_zipfile_serialization=container == "zip")
    read = read_checkpoint(file)
    assert same(read.tensors, state)
    assert read.metadata == ({"format": "pt"} if container == "safetensors" else {})
    assert read.sha256 == file_sha256(file)
    assert read.entry == ""


@pytest.mark.parametrize("entry", ["state_dict", "model", "model_state_dict", "model_ema", "net", "network", "weights", "params", "ema"])
def test_nested_weights_are_found(tmp_path: Path, state: dict[str, Tensor], entry: str) -> None:
    file = tmp_path / "nested.pth"
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []}
    torch.save({"optimizer": optimizer, "epoch": 3, entry: state, "args": argparse.Namespace(lr=0.1)}, file)
    read = read_checkpoint(file)
    assert same(read.tensors, state)
    assert read.entry == entry
    assert {"optimizer", "epoch", "args"} <= set(read.beside)


def test_main_weights_come_before_their_average(tmp_path: Path, state: dict[str, Tensor]) -> None:
    file = tmp_path / "both.pth"
    average = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    torch.save({"model_ema": average, "model": {"state_dict": state, "step": 1}, "best_acc": np.float64(0.5)}, file)
    read = read_checkpoint(file)
    assert same(read.tensors, state)
    assert read.entry == "model.state_dict"
    assert set(read.beside) == {"model_ema", "best_acc", "step"}


def test_an_unknown_entry_and_several_parts_are_found(tmp_path: Path, state: dict[str, Tensor]) -> None:
    file = tmp_path / "parts.pth"
    torch.save({"my_network": state, "optimizer": {"state": {"x": torch.ones(2)}}}, file)
    assert read_checkpoint(file).entry == "my_network"
    torch.save({"backbone": state, "head": {"weight": torch.ones(2)}, "epoch": 1}, file)
    assert read_checkpoint(file).tensors.keys() == {*(f"backbone.{key}" for key in state), "head.weight"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("container", ["zip", "safetensors"])
def test_dtypes_are_kept(tmp_path: Path, dtype: torch.dtype, container: str) -> None:
    file = tmp_path / "half"
    tensors = {"weight": torch.tensor([[300.0, -2.0], [0.5, 4.0]]).to(dtype)}
    torch.save(tensors, file) if container == "zip" else save_file(tensors, file)
    read = read_checkpoint(file).tensors["weight"]
    assert read.dtype == dtype
    assert torch.equal(read.float(), tensors["weight"].float())


def test_half_precision_whose_sum_overflows_is_no_infinity(tmp_path: Path) -> None:
    torch.save({"weight": torch.full((64, 64), 60000.0, dtype=torch.float16)}, tmp_path / "big")
    assert read_checkpoint(tmp_path / "big").tensors["weight"].max() == 60000.0
    torch.save({"weight": torch.full((2, 64), 3e38)}, tmp_path / "bigger")
    assert read_checkpoint(tmp_path / "bigger").tensors["weight"].max() > 2e38


@pytest.mark.parametrize("container", ["zip", "legacy", "save_model"])
def test_tied_tensors_stay_tied(tmp_path: Path, container: str) -> None:
    file = tmp_path / "tied"
    if container == "save_model":
        save_model(Tied(), str(file))
    else:
        torch.save(Tied().state_dict(), file, _use_new_zipfile_serialization=container == "zip")
    tensors = read_checkpoint(file).tensors
    assert tensors["first.weight"].data_ptr() == tensors["second.weight"].data_ptr()


def test_memory_format_is_kept(tmp_path: Path) -> None:
    torch.save({"weight": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)}, tmp_path / "last")
    assert read_checkpoint(tmp_path / "last").tensors["weight"].is_contiguous(memory_format=torch.channels_last)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "missing.pth").what
    assert "directory" in refused(tmp_path).what
    (tmp_path / "empty.pth").touch()
    assert "empty" in refused(tmp_path / "empty.pth").what


@pytest.mark.parametrize("content", [b"hello, this is text\n" * 9, b"\x00\x01\x02\x03" * 50, b"\xef\xbb\xbftext", b"x", b"{}", b"\x80"])
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "foreign.pth").write_bytes(content)
    refused(tmp_path / "foreign.pth")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path: Path, state: dict[str, Tensor], container: str, share: float) -> None:
    file = tmp_path / "whole"
    if container == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=container == "zip")
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    refused(file)


def with_header(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(begin: int, end: int, shape: str = "[1]", dtype: str = "F32") -> bytes:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'.encode()


@pytest.mark.parametrize(
    "content",
    [
        with_header(b"{" + b" " * 20, length=2**63),
        with_header(b"{" + b" " * 20, length=99_999_999),
        with_header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        with_header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        with_header(b'{"a":' + entry(0, 4) + b',"a":' + entry(0, 4) + b"}", b"\0" * 4),
        with_header(b'{"a":' + entry(0, 4) + b',"b":' + entry(0, 4) + b"}", b"\0" * 4),
        with_header(b'{"a":' + entry(0, 4) + b',"b":' + entry(8, 12) + b"}", b"\0" * 12),
        with_header(b'{"a":' + entry(0, 4) + b"}", b"\0" * 8),
        with_header(b'{"a":' + entry(4, 0) + b"}", b"\0" * 4),
        with_header(b'{"a":' + entry(0, 4, shape="[4611686018427387904,4]") + b"}", b"\0" * 4),
        with_header(b'{"a":' + entry(0, 4, shape="[-1,-1]") + b"}", b"\0" * 4),
        with_header(b'{"a":' + entry(0, 4, shape="[1.0]") + b"}", b"\0" * 4),
        with_header(b'{"a":' + entry(0, 4, dtype="X9") + b"}", b"\0" * 4),
        with_header(b'{"a":' + b"9" * 5000 + b"}"),
        with_header(b'{"a":[1,2]}'),
        with_header(b'{"__metadata__":[1]}'),
        with_header(b'{"__metadata__":{"a":1}}'),
        with_header(b'{"a":"\xff"}'),
        with_header(b"{"),
    ],
)
def test_hostile_headers(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "hostile.safetensors"
    file.write_bytes(content)
    assert "header" in refused(file).what
    with pytest.raises(InputError):
        read_header(file)


class Command:
    """A pickle of this runs a command when it is loaded."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.proof}'",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain", "protocol 4", "nested"])
def test_a_pickle_that_would_run_a_command(tmp_path: Path, kind: str) -> None:
    proof, file = tmp_path / "it-ran", tmp_path / "evil.pth"
    content: Any = {"state_dict": {"w": torch.ones(2)}, "x": Command(proof)} if kind == "nested" else Command(proof)
    if kind in ("plain", "protocol 4"):
        file.write_bytes(pickle.dumps(content, protocol=4 if kind == "protocol 4" else 2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind != "legacy")
    error = refused(file)
    assert not proof.exists()
    assert f"{os.system.__module__}.system" in error.what
    assert "executed" in error.not_done
    assert "--trust-pickle" in error.to_do


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_needs_trust(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "module.pth"
    module = nn.Sequential(nn.Linear(2, 3))
    torch.save({"model": module, "epoch": 1}, file, _use_new_zipfile_serialization=zipped)
    error = refused(file)
    assert "torch.nn.modules.container.Sequential" in error.what
    assert "--trust-pickle" in error.to_do
    read = read_checkpoint(file, trust_pickle=True)
    assert same(read.tensors, dict(module.state_dict()))
    assert read.beside == ("epoch",)


def test_trust_does_not_help_a_missing_class(tmp_path: Path) -> None:
    file = tmp_path / "gone.pth"
    file.write_bytes(b"\x80\x02cnowhere_to_be_found\nThing\n.")
    assert "nowhere_to_be_found.Thing" in refused(file).what
    refused(file, trust_pickle=True)


def test_torchscript_and_other_zips(tmp_path: Path) -> None:
    file = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), str(file))
    assert "TorchScript" in refused(file).what
    assert "TorchScript" in refused(file, trust_pickle=True).what
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("train/cat/1.jpg", b"")
    assert "zip" in refused(tmp_path / "pictures.zip").what


def test_an_exported_program(tmp_path: Path) -> None:
    file = tmp_path / "program.pt2"
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), file)
    assert "exported program" in refused(file).what


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_none(tmp_path: Path, state: dict[str, Tensor], value: float, dtype: torch.dtype) -> None:
    state = {key: tensor.to(dtype) for key, tensor in state.items()}
    state["0.weight"][1, 2, 0, 1] = value
    torch.save(state, tmp_path / "nan.pth")
    assert "0.weight" in refused(tmp_path / "nan.pth").what


@pytest.mark.parametrize("content", [{}, {"epoch": 1}, [1, 2], {"state_dict": {}}, 3, "text", None])
def test_no_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "none.pth")
    assert "no tensors" in refused(tmp_path / "none.pth").what


def test_nesting_without_an_end(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "loop.pth")
    assert "no tensors" in refused(tmp_path / "loop.pth").what
    # Small as a file, and 2^40 entries for who follows every path.
    doubled: dict[str, Any] = {}
    for _ in range(40):
        doubled = {"a": doubled, "b": doubled}
    torch.save(doubled, tmp_path / "doubled.pth")
    assert "no tensors" in refused(tmp_path / "doubled.pth").what


def test_tensors_that_claim_more_than_the_file_holds(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(2**20, 2**20)}, tmp_path / "huge.pth")
    assert "'w'" in refused(tmp_path / "huge.pth").what


def test_tensors_that_hold_no_dense_numbers(tmp_path: Path) -> None:
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    assert "'w'" in refused(tmp_path / "sparse.pth").what
    torch.save({"w": torch.empty(3, device="meta")}, tmp_path / "meta.pth")
    assert "'w'" in refused(tmp_path / "meta.pth").what


def test_headers_are_read_without_torch(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "some.safetensors", metadata={"chansurg": "{}"})
    assert read_header(tmp_path / "some.safetensors") == {"chansurg": "{}"}
    code = (
        "import sys; from chansurg.surgery.reading.header import read_header; "
        f"read_header({str(tmp_path / 'some.safetensors')!r}); sys.exit('torch' in sys.modules)"
    )
    import subprocess
    import sys

    import chansurg.surgery

    source = str(Path(chansurg.surgery.__path__[0]).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": source})
