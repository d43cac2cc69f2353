"""A run that is killed and started again ends as one that was left alone: the same weights, bit for bit, and the same metrics."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import chansurg
from chansurg.cli.application import run
from chansurg.surgery.errors import InputError
from chansurg.surgery.training import checkpoints, run_folder
from chansurg.surgery.training.loop import Training

MakeTree = Callable[..., Path]
ROOT = Path(__file__).parents[3]
SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 4,
    "accumulate": 2,
    "lr": 0.05,
    "warmup_epochs": 0.5,
    "ema": 0.9,
    "mixup": 0.3,
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
    "val_every": 2,
    "checkpoint_minutes": 0.0,
}


class Killed(BaseException):
    """What no code of ours catches, as nothing of ours runs after a SIGKILL."""


def plain() -> nn.Module:
    torch.manual_seed(0)
    return chansurg.load("networks.small:tiny", input_size=(16, 16))


def rewritten(recipe: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return chansurg.convert(chansurg.load("cifar/resnet20", input_size=(8, 8)), recipe, **options)


def train(model: nn.Module, tree: Path, output: Path, **changed: Any) -> nn.Module:
    return chansurg.finetune(model, tree, output=output, **{**SETTINGS, **changed})


def metrics(output: Path) -> list[dict[str, Any]]:
    lines = (output.with_name(f"{output.name}.run") / "metrics.jsonl").read_text().splitlines()
    timed = ("seconds", "images_per_second")
    return [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]


def fails_at(number: int, real: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
    """``real``, killed in its call of that number: before it does anything, or after."""
    calls = 0

    def called(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            raise Killed
        result = real(*arguments, **keywords)
        if calls == number:
            raise Killed
        return result

    return called


@contextmanager
def killed_in(home: Any, name: str, number: int, *, after: bool = False) -> Iterator[None]:
    """The call of that number kills what runs inside."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(home, name, fails_at(number, getattr(home, name), after=after))
        with pytest.raises(Killed):
            yield


@pytest.fixture(scope="module")
def undisturbed(make_tree: MakeTree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(plain(), make_tree(), folder / "alone.safetensors")
    return folder


@pytest.fixture
def alone(undisturbed: Path, tmp_path: Path) -> Path:
    """The model file of that run, and its folder, to do with as one likes."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    return tmp_path / "alone.safetensors"


class Counted:
    """Steps taken since it was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, real = 0, Training._take_step

        def step(*arguments: Any) -> None:
            real(*arguments)
            self.steps += 1

        monkeypatch.setattr(Training, "_take_step", step)


MOMENTS: list[tuple[str, Any, str, int, bool]] = [
    ("before the first step", Training, "_take_step", 1, False),
    ("in the middle of an epoch", Training, "_take_step", 5, False),
    ("after a step, before it counts", Training, "_take_step", 8, True),
    ("while validating", Training, "validate", 2, False),
    ("before the best network is kept", run_folder.RunFolder, "write_best", 1, False),
    ("before an epoch's metrics", run_folder.RunFolder, "add_metrics", 3, False),
    ("between metrics and checkpoint", run_folder.RunFolder, "add_metrics", 2, True),
    ("while tensors are written", checkpoints, "save_file", 4, False),
    ("when tensors are written, facts are not", checkpoints, "save_file", 3, True),
    ("while files are flushed", checkpoints, "_flush", 11, False),
    ("before the output is written", run_folder.RunFolder, "finish", 1, False),
]


@pytest.mark.parametrize(("where", "name", "number", "after"), [m[1:] for m in MOMENTS], ids=[m[0] for m in MOMENTS])
def test_a_killed_run_ends_as_one_left_alone(
    where: Any, name: str, number: int, after: bool, alone: Path, tree: Path, tmp_path: Path
) -> None:
    output = tmp_path / "killed.safetensors"
    with killed_in(where, name, number, after=after):
        train(plain(), tree, output)
    assert not output.exists()
    train(plain(), tree, output)
    assert output.read_bytes() == alone.read_bytes()
    assert metrics(output) == metrics(alone)


@pytest.mark.parametrize("renames", range(1, 9))
def test_a_run_killed_between_any_two_renames(renames: int, alone: Path, tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed.safetensors"
    with killed_in(Path, "replace", renames + 2, after=renames % 2 == 0):
        train(plain(), tree, output)
    assert not output.exists()
    train(plain(), tree, output)
    assert output.read_bytes() == alone.read_bytes()
    assert metrics(output) == metrics(alone)


def test_killed_again_and_again(alone: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "killed.safetensors"
    counted = Counted(monkeypatch)
    for number in (2, 3, 2, 4):
        with killed_in(Training, "_take_step", number):
            train(plain(), tree, output)
    train(plain(), tree, output)
    assert counted.steps == 12  # no step twice: there was a checkpoint before each
    assert output.read_bytes() == alone.read_bytes()


REWRITTEN: list[tuple[str, dict[str, Any]]] = [
    ("pcs", {"shrink": "1/2"}),
    ("pix", {"mode": "downscale"}),
    ("mod", {}),
    ("mod", {"select": "random"}),
    ("slimconv", {"paths": 3}),
]


@pytest.mark.parametrize(("recipe", "options"), REWRITTEN, ids=str)
def test_every_recipes_networks_go_on_exactly(recipe: str, options: dict[str, Any], make_tree: MakeTree, tmp_path: Path) -> None:
    tree = make_tree(classes=tuple("abcdefghij"), train=20, val=10, size=8)
    changed = {"epochs": 2, "channels_last": True, "mixup": 0.0, "lr": 0.005, "ema": None}
    train(rewritten(recipe, **options), tree, tmp_path / "alone.safetensors", **changed)
    output = tmp_path / "killed.safetensors"
    with killed_in(Training, "_take_step", 3):
        train(rewritten(recipe, **options), tree, output, **changed)
    train(rewritten(recipe, **options), tree, output, **changed)
    assert output.read_bytes() == (tmp_path / "alone.safetensors").read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "adan"])
def test_optimizers_go_on_exactly(optimizer: str, tree: Path, tmp_path: Path) -> None:
    if optimizer != "adamw":
        pytest.importorskip("timm")
    changed = {"epochs": 2, "optimizer": optimizer, "lr": 0.005}
    train(plain(), tree, tmp_path / "alone.safetensors", **changed)
    output = tmp_path / "killed.safetensors"
    with killed_in(Training, "_take_step", 4):
        train(plain(), tree, output, **changed)
    train(plain(), tree, output, **changed)
    assert output.read_bytes() == (tmp_path / "alone.safetensors").read_bytes()


def test_a_real_kill_signal(tmp_path: Path, make_tree: MakeTree) -> None:
    tree = make_tree(classes=tuple("abcdefghij"), train=300, val=10, size=16)
    line = ["-m", "chansurg", "finetune", "cifar/resnet20", "--data", str(tree), "--epochs", "1", "--batch-size", "10", "-q"]
    line += ["--checkpoint-minutes", "0", "--input-size", "16"]

    def start(output: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT / "src")}
        return subprocess.Popen([sys.executable, *line, "-o", output], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)

    killed = start("killed.safetensors")
    state = tmp_path / "killed.safetensors.run" / "last" / "state.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (state.exists() and '"step": 4' in state.read_text()):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait(10)
    assert not (tmp_path / "killed.safetensors").exists()
    assert start("killed.safetensors").wait(120) == 0
    assert run([*line[2:], "-o", str(tmp_path / "alone.safetensors")]) == 0
    assert (tmp_path / "killed.safetensors").read_bytes() == (tmp_path / "alone.safetensors").read_bytes()


def test_a_finished_run_is_not_repeated(alone: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = alone.read_bytes()

    def never(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Training, "_take_step", never)
    again = train(plain(), tree, alone)
    assert chansurg.record_of(again).journal[-1].kind == "finetune"
    alone.unlink()
    train(plain(), tree, alone)
    assert alone.read_bytes() == before


def test_a_changed_run_is_refused_with_what_differs(alone: Path, tree: Path) -> None:
    kept = sorted(alone.with_name(f"{alone.name}.run").rglob("*"))
    with pytest.raises(InputError, match=r"--lr was 0\.05, now 0\.1") as caught:
        train(plain(), tree, alone, lr=0.1)
    assert "--restart" in caught.value.to_do
    shutil.copytree(tree, other := alone.with_name("other"))
    (other / "train" / "ant" / "000.png").rename(other / "train" / "ant" / "zzz.png")
    with pytest.raises(InputError, match="training images"):
        train(plain(), other, alone)
    assert sorted(alone.with_name(f"{alone.name}.run").rglob("*")) == kept


def test_workers_and_checkpoints_may_change(alone: Path, tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed.safetensors"
    with killed_in(Training, "_take_step", 3):
        train(plain(), tree, output)
    train(plain(), tree, output, workers=1, checkpoint_minutes=10.0)
    assert [line["train_loss"] for line in metrics(output)] == [line["train_loss"] for line in metrics(alone)]


def test_restart_begins_anew(alone: Path, tree: Path) -> None:
    train(plain(), tree, alone, restart=True, lr=0.1, epochs=1)
    assert [line["epoch"] for line in metrics(alone)] == [1]
    assert chansurg.record_of(chansurg.load(alone, arch="networks.small:tiny")).journal[-1].options["lr"] == 0.1


def test_an_output_of_the_run_before_is_replaced_although_the_new_one_was_killed_at_its_end(
    alone: Path, tree: Path, tmp_path: Path
) -> None:
    stale = alone.read_bytes()
    with killed_in(run_folder.RunFolder, "finish", 1):
        train(plain(), tree, alone, restart=True, lr=0.1)
    assert alone.read_bytes() == stale
    train(plain(), tree, alone, lr=0.1)
    train(plain(), tree, tmp_path / "other.safetensors", lr=0.1)
    assert alone.read_bytes() == (tmp_path / "other.safetensors").read_bytes() != stale


@pytest.mark.parametrize("restart", [False, True])
def test_a_second_run_in_the_same_folder_is_refused_and_the_first_goes_on(alone: Path, tree: Path, tmp_path: Path, restart: bool) -> None:
    output = tmp_path / "busy.safetensors"
    refused = []

    def interfere(_: object) -> None:
        with pytest.raises(InputError, match="Another run is going on") as told:
            train(plain(), tree, output, restart=restart)
        refused.append(told.value)

    train(plain(), tree, output, progress=interfere)
    assert refused
    assert "Nothing was trained" in str(refused[0])
    assert output.read_bytes() == alone.read_bytes()
    train(plain(), tree, output, restart=restart)


def test_where_there_are_no_locks_a_run_goes_on_and_says_so(
    alone: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lockless(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.FileLock, "acquire", lockless)
    output = tmp_path / "lockless.safetensors"
    train(plain(), tree, output)
    assert "No locks available" in caplog.text
    assert output.read_bytes() == alone.read_bytes()


def test_a_folder_of_somebody_elses_is_left_alone(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out.safetensors.run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    for restart in (False, True):
        with pytest.raises(InputError, match="no run has written it"):
            train(plain(), tree, tmp_path / "out.safetensors", restart=restart)
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_a_damaged_checkpoint_is_told(alone: Path, tree: Path) -> None:
    state = alone.with_name(f"{alone.name}.run") / "last" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(InputError, match="checkpoint cannot be read"):
        train(plain(), tree, alone)


def test_an_output_of_somebody_elses_is_not_replaced_unasked(tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"precious")
    with pytest.raises(InputError, match="no run of its own"):
        train(plain(), tree, output, overwrite=False)
    assert output.read_bytes() == b"precious"
