"""A file is there whole or not at all, and what was there before is lost only to a whole one."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from chansurg.surgery.errors import InputError, Refusal
from chansurg.surgery.files.writing import check_target, write_whole


def fails_after_half(error: BaseException) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    return write


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Refusal),
        (OSError(errno.EDQUOT, "Quota exceeded"), Refusal),
        (OSError(errno.EIO, "Input/output error"), Refusal),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), Refusal),
        (RuntimeError("something else"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_the_folder_as_it_was(tmp_path: Path, error: BaseException, expected: type[BaseException], existing: bool) -> None:
    target = tmp_path / "model.safetensors"
    if existing:
        target.write_bytes(b"old")
    with pytest.raises(expected) as raised:
        write_whole(target, fails_after_half(error))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([b"old"] if existing else [])
    if isinstance(raised.value, Refusal):
        full = "28" in str(error) or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT)
        assert ("disk is full" in raised.value.what) == full
        assert raised.value.where == str(target)


def test_a_whole_file_takes_the_place_of_the_old_one_with_ordinary_permissions(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"old")
    write_whole(target, lambda path: path.write_bytes(b"new"))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert target.read_bytes() == b"new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask


def test_without_overwrite_only_the_very_same_bytes_are_written_again(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    for _ in range(2):
        write_whole(target, lambda path: path.write_bytes(b"one"), overwrite=False)
    with pytest.raises(InputError, match="something else") as refused:
        write_whole(target, lambda path: path.write_bytes(b"two"), overwrite=False)
    assert "overwrite=True" in refused.value.to_do
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"one"]


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 255)
    write_whole(target, lambda path: path.write_bytes(b"new"))
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/model.safetensors", "does not exist"),
        ("file/model.safetensors", "is not a folder"),
        ("folder", "is a folder"),
        ("pipe", "not an ordinary file"),
        ("x" * 300, "no name for a file"),
        ("a\0b", "no name for a file"),
    ],
)
def test_an_impossible_target_is_told_before_any_work(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=reason):
        check_target(tmp_path / name)
    with pytest.raises(InputError, match=reason):
        write_whole(tmp_path / name, lambda path: pytest.fail("it was written"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EROFS, "Read-only file system")])
def test_a_folder_that_turns_out_unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(InputError, match="cannot be written to"):
        write_whole(tmp_path / "model.safetensors", lambda path: pytest.fail("it was written"))


def test_a_disk_that_ends_in_the_middle_of_a_real_file(tmp_path: Path) -> None:
    """The operating system itself stops the write here: no file may grow beyond a megabyte."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    (tmp_path / "model.safetensors").write_bytes(b"old")
    script = """
        import chansurg
        network = chansurg.load("resnet18")
        try:
            chansurg.save(network, "model.safetensors")
        except chansurg.Refusal as refusal:
            print(refusal.what)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert "could not be written" in ran.stdout, ran.stderr
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]
