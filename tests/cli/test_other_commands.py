from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks.records import mutated, with_record
from PIL import Image
from safetensors.torch import load_file, save_file

import chansurg
from chansurg.cli.reporting import Report
from tests.cli.conftest import Cli, Ran


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, drawn = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(30):
        target = folder / "val" / f"{index % 10}"
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(target / f"{index}.png")
    return folder


def test_inspect(cli: Cli, resnet20: Path) -> None:
    document = cli("inspect", resnet20, "--json").document
    assert document["architecture"] == "cifar/resnet20"
    promised = {"architecture", "params", "macs", "ops", "memory_access", "sites", "skipped"}
    assert promised <= set(document)
    assert document["input_size"] == [3, 32, 32]
    assert len(document["sites"]["pix"]) == 18
    shown = cli("inspect", resnet20).out
    assert all(text in shown for text in ("cifar/resnet20", "269,722", "layer2.0 … layer2.2", "16 channels", "it is the stem: conv1"))
    assert cli("inspect", resnet20, "-q").out.startswith("cifar/resnet20  269.7 k params")


def test_inspect_lists_the_stages_of_a_network_without_residual_blocks(cli: Cli) -> None:
    shown = cli("inspect", "alexnet", "--input-size", "64").out
    assert "features.8 … features.10" in shown
    assert "mod: 1 site\n" in shown


def test_what_inspect_calls_the_architecture_arch_takes(cli: Cli, resnet20: Path) -> None:
    name = cli("inspect", resnet20, "--json").document["architecture"]
    assert cli("inspect", resnet20, "--arch", name, "--json").document["architecture"] == name


def test_the_input_size_is_counted_at(cli: Cli, resnet20: Path) -> None:
    small, large = (cli("inspect", resnet20, "--input-size", size, "--json").document for size in ("32", "3,64,64"))
    assert large["input_size"] == [3, 64, 64]
    assert large["macs"] > 3.9 * small["macs"]


def test_evaluate(cli: Cli, resnet20: Path, converted: Path, pictures: Path) -> None:
    for model in (resnet20, converted):
        ran = cli("evaluate", model, "--data", pictures, "--json", "--workers", 0, "--device", "cpu")
        assert ran.code == 0, ran.err
        expected = chansurg.evaluate(chansurg.load(model), pictures)
        assert ran.document == expected.as_json()
        assert list(ran.document) == ["top1", "top5", "loss", "images"]


def test_evaluate_shows_progress_in_plain_lines_where_there_is_no_terminal(cli: Cli, resnet20: Path, pictures: Path) -> None:
    ran = cli("evaluate", resnet20, "--data", pictures, "--batch-size", 6, "--workers", 1)
    assert "evaluating: 6 of 30 images" in ran.err
    assert "\r" not in ran.err
    assert "images a second" in ran.out
    assert cli("evaluate", resnet20, "--data", pictures, "-q", "--workers", 0).err == ""


def test_evaluate_on_data_that_is_not_there(cli: Cli, resnet20: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4 cut short")
    for arguments, told in (
        (["--data", "absent"], "no such file"),
        (["--data", "cut.zip"], "zip file cannot be read"),
        (["--data", pictures, "--split", "test"], "Found: val"),
        (["--data", pictures, "--device", "nowhere"], "cannot be used"),
    ):
        ran = cli("evaluate", resnet20, *arguments)
        assert ran.code == 2, ran.err
        assert told in ran.err
        assert "Traceback" not in ran.err


def test_verify_says_equal_and_exits_with_0(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    save_file(torch.load(resnet20), tmp_path / "copy.safetensors")
    ran = cli("verify", resnet20, "copy.safetensors")
    assert ran.code == 0
    assert ran.out.startswith("the same function")
    assert cli("verify", resnet20, "copy.safetensors", "--json").document["equal"] is True


def test_verify_shows_where_two_networks_part_and_exits_with_1(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    state = torch.load(resnet20)
    state["layer2.1.conv1.weight"] *= 1.5
    save_file(state, tmp_path / "changed.safetensors")
    ran = cli("verify", resnet20, "changed.safetensors")
    assert ran.code == 1
    assert "They part at layer2.1.conv1." in ran.out
    rows = dict(line.split() for line in ran.out.splitlines() if line.startswith(("layer1.2 ", "layer2.1 ")))
    assert float(rows["layer1.2"]) == 0 < float(rows["layer2.1"])
    assert "layer2.1.conv1 " not in ran.out
    assert "layer2.1.conv1 " in cli("verify", resnet20, "changed.safetensors", "-v").out
    document = cli("verify", resnet20, "changed.safetensors", "--json")
    assert document.code == 1
    assert document.document["first_difference"] == "layer2.1.conv1"


def test_verify_of_models_that_cannot_be_compared_says_so(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    state = torch.load(resnet20)
    state.update({name: state[name][:3] for name in ("linear.weight", "linear.bias")})
    torch.save(state, tmp_path / "three.pth")
    shown = cli("verify", resnet20, "three.pth")
    assert shown.code == 1, shown.err
    assert "They cannot be compared: their outputs have shapes [[1, 10]] and [[1, 3]]." in shown.out
    assert "on 1 random input\n" in shown.out
    assert cli("verify", resnet20, "three.pth", "-q").out == "different  their outputs have shapes [[1, 10]] and [[1, 3]]\n"
    ran = cli("verify", resnet20, "three.pth", "--json")
    assert (ran.code, ran.document["max_abs_error"], ran.document["equal"]) == (1, None, False)


def test_differences_that_are_not_finite_are_shown(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in torch.load(resnet20).items()}
    for sign in (1, -1):
        state["linear.bias"][0] = sign * 1.7e308
        torch.save(state, tmp_path / f"huge{sign}.pth")
    ran = cli("verify", "huge1.pth", "huge-1.pth")
    assert ran.code == 1, ran.err
    assert "They part at linear." in ran.out
    assert [line.split()[-2:] for line in ran.out.splitlines() if line.startswith("largest")] == [["not", "finite"]] * 2
    assert cli("verify", "huge1.pth", "huge-1.pth", "-q").out == "different  max abs error not finite\n"
    ran = cli("diff", "huge1.pth", "huge-1.pth")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[-1].split() == ["linear.bias", "not", "finite"]


def test_a_note_that_two_models_share_is_told_once(cli: Cli) -> None:
    ran = cli("verify", "cifar/resnet20", "cifar/resnet20")
    assert ran.err == "note: cifar/resnet20 with fresh, untrained weights.\n"
    assert len(cli("verify", "cifar/resnet20", "cifar/resnet32").err.splitlines()) == 2


def test_one_is_one_site(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "single.py").write_text(
        "from torch import nn\ndef network():\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16, 4))\n"
    )
    assert "pix: 1 site\n" in cli("inspect", "single:network", "--input-size", "5").out
    ran = cli("convert", "single:network", "--recipe", "pix", "--mode", "downscale", "--input-size", "5")
    assert ": 1 site, 2 edits\n" in ran.out


def test_diff(cli: Cli, resnet20: Path, converted: Path) -> None:
    document = cli("diff", resnet20, converted, "--json").document
    assert document["same_architecture"]
    assert not document["same_journal"]
    assert len(document["edits_only_in_b"]) == 36
    assert len(document["reshaped"]) == 18
    shown = cli("diff", resnet20, converted).out
    assert "layer1.0.conv1.weight  [16, 16, 3, 3] => [16, 8, 3, 3]" in shown
    assert "more; -v shows all" in shown
    assert "more; -v" not in cli("diff", resnet20, converted, "-v").out
    assert cli("diff", resnet20, resnet20, "-q").out.endswith("0 changed  0 reshaped  0 in one only\n")


def test_history(cli: Cli, converted: Path) -> None:
    ran = cli("history", converted)
    assert ran.code == 0
    for text in ("cifar/resnet20", "--mode downscale", "--zeta 2", "from resnet20.pth (sha256", "18 sliced, 36 new", "after / before"):
        assert text in ran.out
    document = cli("history", converted, "--json").document
    assert document["architecture"] == "cifar/resnet20"
    assert document["arguments"] == {"num_classes": 10}
    assert document["journal"][0]["recipe"] == "pix"
    assert "insert  layer1.0.conv1_pix" in cli("history", converted, "-v").out
    tensors = document["journal"][0]["tensors"]
    assert f"tensors: {tensors['kept']} kept, 18 sliced, 36 new, 0 removed" in ran.out
    assert tensors["kept"] == len(load_file(converted)) - 18 - 36


def test_history_says_what_is_known_of_where_a_conversion_began(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    network = chansurg.load(resnet20)
    for zeta in (2, 4):
        network = chansurg.convert(network, "pix", mode="downscale", zeta=zeta)
    with torch.no_grad():
        network.linear.bias.add_(1.0)
    network = chansurg.convert(network, "pix", mode="downscale", zeta=2)
    chansurg.save(network, tmp_path / "three.safetensors")
    began = [line.partition(", seed")[0].strip() for line in cli("history", "three.safetensors").out.splitlines() if ", seed" in line]
    assert began[0].startswith("from resnet20.pth (sha256 ")
    assert began[1:] == ["from the result of 1, in memory", "from the result of 2, in memory, trained in between"]
    chansurg.save(chansurg.convert(chansurg.load("cifar/resnet20"), "pix", mode="downscale"), tmp_path / "one.safetensors")
    assert "from a network in memory, no file, seed" in cli("history", "one.safetensors").out


def test_history_tells_what_training_and_slicing_came_to(cli: Cli) -> None:
    golden = Path(__file__).parents[1] / "golden" / "pcs-schema2.safetensors"
    out = cli("history", golden).out
    assert "all others kept" in out, "its schema did not count them"
    settings = "--augment none --batch-size 4 --distill-blocks 0.0 --epochs 4 --teacher "
    assert f"2. finetune {settings}" in out, "settings at their defaults are left out"
    assert "4 epochs, 12 steps, 12 images; top-1 33.33 % on val" in out
    assert "checked on 21 images; largest difference from the masked model" in out


def test_history_of_damaged_results_is_no_bug(cli: Cli, tmp_path: Path) -> None:
    golden = tmp_path / "golden.safetensors"
    golden.write_bytes((Path(__file__).parents[1] / "golden" / "pcs-schema2.safetensors").read_bytes())
    unknown = 0
    for seed in range(60):
        chance = random.Random(seed)

        def damage(record: dict[str, Any], chance: random.Random = chance) -> None:
            for entry in record["journal"]:
                entry["results"] = mutated(entry["results"], chance)

        ran = cli("history", with_record(golden, damage))
        assert ran.code in (0, 2)
        assert "bug" not in ran.err
        unknown += "not told in a form that is known here" in ran.out
    assert unknown > 5


def test_history_of_a_file_that_has_none(cli: Cli, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "plain.safetensors")
    ran = cli("history", "plain.safetensors")
    assert ran.code == 2
    assert "no chansurg record" in ran.err
    assert cli("history", "absent.safetensors").code == 2


def test_undo_finds_the_very_file(cli: Cli, resnet20: Path, converted: Path, tmp_path: Path) -> None:
    found = cli("undo", converted, "--json").document["output"]
    assert Path(found).read_bytes() == resnet20.read_bytes()
    assert list(tmp_path.iterdir()) == []
    assert cli("undo", converted, "-o", "original.pth").code == 0
    assert (tmp_path / "original.pth").read_bytes() == resnet20.read_bytes()
    assert cli("undo", converted, "--base", converted).code == 2
    assert cli("undo", converted, "-o", "original.pth").code == 2
    assert cli("undo", converted, "-o", converted, "--force").code == 2


def told(ran: Ran) -> str:
    return ran.out + ran.err


@pytest.mark.parametrize("line", [["recipes", "pix"], ["inspect", "cifar/resnet56"], ["convert", "mobilenet_v2", "--recipe", "pix"]])
def test_a_terminal_of_80_columns_breaks_no_word(cli: Cli, monkeypatch: pytest.MonkeyPatch, line: list[str]) -> None:
    words = set(told(cli(*line)).split())
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, stream), "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    shown = told(cli(*line))
    assert max(map(len, shown.splitlines())) <= 80
    assert set(shown.split()) == words


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    Report(as_json=True).result({"a": float("nan"), "b": [float("inf"), 1.5]}, line="", show=lambda: None)
    assert capsys.readouterr().out == '{"a": null, "b": [null, 1.5]}\n'


def test_history_says_what_copied_and_inherited_tensors_started_as(cli: Cli) -> None:
    golden = Path(__file__).parents[1] / "golden" / "stacked-schema3.safetensors"
    first = cli("history", golden, "--json").document["journal"][0]["tensors"]
    shown, told = (cli("history", golden, *more).out for more in ((), ("-v",)))
    counts = f"{first['kept']} kept, {len(first['sliced'])} sliced, {len(first['new'])} new, {len(first['removed'])} removed"
    assert f"tensors: {counts}; {len(first['sources'])} taken from other layers" in shown
    assert "kept    blocks.4.conv1.weight (from blocks.2.conv1.weight)" in told
    assert "sliced  blocks.0.conv2.top.weight (from blocks.0.conv2.weight)" in told
    assert "route   blocks.1.conv1_selector" in told
    assert "(from" not in shown
