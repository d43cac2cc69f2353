from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import chansurg
from chansurg.surgery.reading.builders import fresh, parse_architecture
from chansurg.surgery.reading.heads import with_classes
from chansurg.surgery.training.loop import Training
from tests.cli.conftest import Cli

ROOT = Path(__file__).parents[2]
SHORT = ("--epochs", 2, "--batch-size", 10, "--input-size", 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven classes of pictures of 8 pixels."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, number in (("train", 28), ("val", 14)):
        for index in range(number):
            target = folder / split / f"class{index % 7}"
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(target / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def seven_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a ResNet-20 with as many outputs as the data has classes."""
    path = tmp_path_factory.mktemp("models") / "seven.pth"
    torch.save(fresh(with_classes(parse_architecture("cifar/resnet20"), 7), seed=2).state_dict(), path)
    return path


def test_from_scratch_takes_the_classes_of_the_data(cli: Cli, data: Path) -> None:
    ran = cli("finetune", "cifar/resnet20", "--data", data, *SHORT, "--json")
    assert ran.code == 0, ran.err
    document = ran.document
    assert document["output"] == "resnet20-finetuned.safetensors"
    assert (document["epochs"], document["steps"], document["trained_steps"]) == (2, 4, 4)
    assert {"top1", "top5", "loss", "train_loss", "run"} <= document.keys()
    assert ran.err.count("epoch 1/2") == ran.err.count("epoch 2/2") == 1
    model = chansurg.load("resnet20-finetuned.safetensors")
    assert chansurg.record_of(model).class_names == tuple(f"class{index}" for index in range(7))
    assert model.linear.out_features == 7
    told = cli("evaluate", "resnet20-finetuned.safetensors", "--data", data, "--json").document
    assert (told["top1"], told["loss"]) == (document["top1"], document["loss"])


def test_the_same_command_again_says_it_is_finished(cli: Cli, data: Path) -> None:
    line = ("finetune", "cifar/resnet20", "--data", data, *SHORT, "-o", "o.safetensors")
    assert "wrote o.safetensors" in cli(*line).out
    before = Path("o.safetensors").read_bytes()
    again = cli(*line)
    assert again.code == 0
    assert "finished already" in again.out
    assert "kept o.safetensors" in again.out
    Path("o.safetensors").unlink()
    assert "wrote o.safetensors" in cli(*line).out
    assert Path("o.safetensors").read_bytes() == before
    changed = cli(*line, "--lr", 0.2)
    assert changed.code == 2
    assert "--lr was not given, now 0.2" in changed.err
    assert cli(*line, "--lr", 0.2, "--restart", "-q").out == "o.safetensors\n"
    assert Path("o.safetensors").read_bytes() != before


def test_history_shows_the_run(cli: Cli, data: Path) -> None:
    cli("finetune", "cifar/resnet20", "--data", data, *SHORT, "-o", "o.safetensors", "-q")
    entry = cli("history", "o.safetensors", "--json").document["journal"][-1]
    assert entry["kind"] == "finetune"
    assert entry["results"]["epochs"] == 2


def test_outputs_are_guarded_before_anything_is_read(cli: Cli, data: Path, resnet20: Path) -> None:
    Path("taken.safetensors").write_bytes(b"precious")
    ran = cli("finetune", "cifar/resnet20", "--data", data, *SHORT, "-o", "taken.safetensors")
    assert (ran.code, Path("taken.safetensors").read_bytes()) == (2, b"precious")
    assert "--force" in ran.err
    assert not Path("taken.safetensors.run").exists()
    assert "output is the input" in cli("finetune", resnet20, "--data", data, "-o", resnet20, "--force").err
    assert cli("finetune", resnet20, "--data", data, "-o", "no/such/folder.safetensors").code == 2


def test_errors_as_json(cli: Cli, data: Path, resnet20: Path) -> None:
    for arguments, told in (
        (("--epochs", "0"), "--epochs"),
        (("--schedule", "linear"), "--schedule"),
        ((), "7 classes and the network has 10 outputs"),
    ):
        ran = cli("finetune", resnet20, "--data", data, *arguments, "--json")
        assert ran.code == 2
        assert told in " ".join(ran.document["error"].values())


def test_class_folders_alone_are_refused_with_the_layout_that_training_takes(cli: Cli, data: Path, resnet20: Path) -> None:
    for wrong, told in ((data / "val", "Found: class0, class1"), (data / "val" / "class0", "no class folders")):
        ran = cli("finetune", resnet20, "--data", wrong)
        assert ran.code == 2
        assert told in ran.err
        assert "train/CLASS/IMAGE.jpg." in ran.err
        assert "--split" not in ran.err
    assert "--split" in cli("evaluate", resnet20, "--data", data, "--split", "test").err


def test_outputs_without_names_are_told_for_what_they_are_taken(cli: Cli, data: Path, seven_classes: Path) -> None:
    told = "does not know its classes: its outputs from 0 to 6 are taken for class0, class1, class2, …, class6, in this order."
    line = ("finetune", seven_classes, "--data", data, *SHORT, "--max-steps", 1, "-o", "a.safetensors")
    assert cli(*line).err.count(told) == 1
    assert told not in cli("finetune", "a.safetensors", "--data", data, *SHORT, "--max-steps", 1).err


def test_a_teacher_whose_architecture_is_named(cli: Cli, data: Path, seven_classes: Path) -> None:
    line = ("finetune", "cifar/resnet20", "--data", data, *SHORT, "--max-steps", 1, "--teacher", seven_classes, "-o", "o.safetensors")
    wrong = cli(*line, "--teacher-arch", "resnet18")
    assert wrong.code == 2
    assert "where:    the teacher, " in wrong.err
    assert "Leave out --teacher-arch" in wrong.err
    assert not Path("o.safetensors.run").exists()
    assert cli(*line, "--teacher-arch", "cifar/resnet20").code == 0
    assert chansurg.history("o.safetensors").journal[-1].options["teacher"]
    alone = cli("finetune", "cifar/resnet20", "--data", data, *SHORT, "--teacher-arch", "cifar/resnet20")
    assert alone.code == 2
    assert "--teacher" in alone.err


@pytest.mark.parametrize("target", [1.0, 0.6])
def test_how_near_a_run_came_to_its_target_is_told(cli: Cli, data: Path, seven_classes: Path, target: float) -> None:
    """However short it is."""
    assert cli("convert", seven_classes, "--recipe", "pcs", "--input-size", 8, "-o", "pcs.safetensors").code == 0
    line = ("finetune", "pcs.safetensors", "--data", data, *SHORT, "--max-steps", 2, "--target-macs", target, "-o", "o.safetensors")
    ran = cli(*line)
    assert ran.code == 0, ran.err
    assert f"{target:.3f}" in ran.out
    again = cli(*line, "--json")
    assert (again.document["budget"]["target"], again.document["budget"]["within_tolerance"]) == (target, True)
    assert not any("The target was missed" in one.err for one in (ran, again))


def test_an_interrupt_ends_with_the_way_to_go_on(cli: Cli, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Training._take_step

    def interrupted(self: Training, batches: list[object]) -> None:
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        real(self, batches)  # type: ignore[arg-type]

    line = ("finetune", "cifar/resnet20", "--data", data, *SHORT, "-o", "o.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr(Training, "_take_step", interrupted)
        ran = cli(*line)
    assert ran.code == 130
    told = f"Interrupted; step 3 of 4; the state is saved in {Path('o.safetensors.run/last')}, and the same command goes on from there."
    assert told in ran.err
    assert not Path("o.safetensors").exists()
    assert "went on at step 3" in cli(*line).out


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_real_interrupt(tmp_path: Path, data: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "chansurg",
        "finetune",
        "cifar/resnet20",
        "--data",
        str(data),
        "--input-size",
        "8",
        "-o",
        "o.safetensors",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([*command, "--epochs", "100000"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    state = tmp_path / "o.safetensors.run" / "last" / "state.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not state.exists():
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Traceback" not in said
    assert "the same command goes on" in said
    assert json.loads(state.read_text())["step"] > 0


def test_what_a_network_was_converted_from_teaches_it_where_it_lies_beside_it(cli: Cli, data: Path, seven_classes: Path) -> None:
    original = Path("seven.pth")
    original.write_bytes(seven_classes.read_bytes())
    assert cli("convert", original, "--recipe", "slimconv", "-o", "slim.safetensors").code == 0
    line = ("finetune", "slim.safetensors", "--data", data, "--epochs", 1, "--max-steps", 1)

    def taught(*options: object) -> tuple[object, str]:
        ran = cli(*line, "-o", f"o{len(options)}.safetensors", *options)
        assert ran.code == 0, ran.err
        return chansurg.history(f"o{len(options)}.safetensors").journal[-1].options["teacher"], ran.err

    by_itself, said = taught()
    assert "teacher: seven.pth" in said
    named, said = taught("--teacher", original)
    assert by_itself == named is not None
    assert "teacher: " not in said
    assert taught("--no-teacher")[0] is None
    original.unlink()
    nobody, said = taught("--restart", "--force", "--verbose")
    assert nobody is None
    assert "no teacher: seven.pth" in said
    assert cli(*line, "--no-teacher", "--teacher", seven_classes).code == 2
