from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import chansurg
from chansurg.cli.changes import changes
from chansurg.recipes.pix import RECIPE
from chansurg.surgery import recipe as registry
from chansurg.surgery.edits import Address, LayerSpec, Narrow, Replace, Scale
from chansurg.surgery.recipe import option
from tests.cli.conftest import Cli

DOWNSCALE = ("--recipe", "pix", "--mode", "downscale", "--zeta", "2")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_document_is_the_one_that_was_promised(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    ran = cli("convert", resnet20, *DOWNSCALE, "--json")
    assert ran.code == 0
    document = ran.document
    first = ["output", "recipe", "options", "edits", "skipped", "before", "after", "uncounted"]
    assert list(document) == [*first, "drift", "calibration", "choice", "timing"]
    assert document["output"] == "resnet20-pix.safetensors"
    assert document["options"] == {"mode": "downscale", "zeta": 2, "operator": "pick-or-mix", "tau": 0.5, "subsets": "contiguous"}
    assert {edit["op"] for edit in document["edits"]} == {"insert", "narrow"}
    assert all(set(skip) == {"path", "reason"} for skip in document["skipped"])
    for counts in (document["before"], document["after"]):
        assert list(counts) == ["params", "macs", "ops", "memory_access"]
        assert all(isinstance(count, int) for count in counts.values())
    assert document["before"] == chansurg.inspect(chansurg.load(resnet20)).counts.as_json()
    assert document["after"] == chansurg.inspect(chansurg.load(tmp_path / document["output"])).counts.as_json()
    assert document["after"]["macs"] < 0.6 * document["before"]["macs"]
    assert files(tmp_path) == ["resnet20-pix.safetensors"]


def test_the_same_command_writes_the_same_bytes(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        assert cli("convert", resnet20, *DOWNSCALE, "-o", name).code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert cli("convert", resnet20, *DOWNSCALE, "-o", "b.safetensors", "--seed", 1, "--force").code == 0
    assert (tmp_path / "a.safetensors").read_bytes() != (tmp_path / "b.safetensors").read_bytes()


def test_a_dry_run_tells_the_same_and_writes_nothing(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    dry, wet = (cli("convert", resnet20, *DOWNSCALE, "--json", *more).document for more in (["--dry-run"], []))
    assert dry["output"] is None
    assert {**dry, "output": wet["output"]} == wet
    os.remove(tmp_path / wet["output"])
    shown = cli("convert", resnet20, *DOWNSCALE, "--dry-run")
    assert "nothing was written" in shown.out
    assert files(tmp_path) == []


def test_what_is_shown(cli: Cli, resnet20: Path) -> None:
    shown = cli("convert", resnet20, *DOWNSCALE).out
    assert "layer1.0 … layer1.2  conv1_pix " in shown
    assert "  3 alike " in shown
    assert "Conv2d 16 -> 32, 3x3, stride 2  =>  Conv2d 8 -> 32, 3x3, stride 2" in shown
    assert "PickOrMix 16 -> 8" in shown
    assert "it is the stem: conv1" in shown
    assert "after / before" in shown
    assert "18 sliced, 36 new, 0 removed" in shown
    assert "wrote resnet20-pix.safetensors" in shown
    every = cli("convert", resnet20, *DOWNSCALE, "-v").out
    assert "layer1.1 " in every
    assert "alike" not in every
    assert cli("convert", resnet20, *DOWNSCALE, "-q").out == "resnet20-pix.safetensors\n"


def test_an_architectures_name_means_fresh_weights_and_it_says_so(cli: Cli, tmp_path: Path) -> None:
    ran = cli("convert", "cifar/resnet20", *DOWNSCALE)
    assert ran.code == 0
    assert "fresh" in ran.err
    assert files(tmp_path) == ["resnet20-pix.safetensors"]


def test_a_converted_file_can_be_converted_again_and_keeps_its_history(cli: Cli, converted: Path, tmp_path: Path) -> None:
    ran = cli("convert", converted, "--recipe", "pix", "--mode", "downscale", "--zeta", "2", "-o", "again.safetensors")
    assert ran.code in (0, 1), ran.err
    if ran.code == 0:
        assert len(chansurg.history(tmp_path / "again.safetensors").journal) == 2
    else:
        assert files(tmp_path) == []


def test_a_factory_of_the_users_own(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nprint('a network that talks')\ndef network():\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4))\n"
    )
    ran = cli("convert", "mine:network", *DOWNSCALE, "--input-size", "5", "--json")
    assert ran.code == 0, ran.out + ran.err
    assert ran.document["output"] == "network-pix.safetensors"
    assert "talks" in ran.err
    again = cli("inspect", "network-pix.safetensors", "--arch", "mine:network", "--json")
    assert again.document["params"] == ran.document["after"]["params"]


def test_the_input_is_never_overwritten(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    before = resnet20.read_bytes()
    for target in (resnet20, os.path.relpath(resnet20, tmp_path)):
        ran = cli("convert", resnet20, *DOWNSCALE, "-o", target, "--force")
        assert ran.code == 2
        assert "The output is the input" in ran.err
    assert resnet20.read_bytes() == before


def test_files_that_no_conversion_wrote_are_not_replaced_unasked(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious.safetensors"
    precious.write_text("years of work")
    ran = cli("convert", resnet20, *DOWNSCALE, "-o", precious)
    assert ran.code == 2
    assert "--force" in ran.err
    assert precious.read_text() == "years of work"
    assert cli("convert", resnet20, *DOWNSCALE, "-o", precious, "--force").code == 0
    written = precious.read_bytes()
    assert cli("convert", resnet20, *DOWNSCALE, "-o", precious).code == 0
    assert precious.read_bytes() == written


def test_a_converted_file_that_was_trained_or_made_otherwise_is_not_replaced_unasked(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert cli("convert", resnet20, *DOWNSCALE, "-o", out).code == 0
    trained = chansurg.load(out)
    with torch.no_grad():
        trained.linear.bias.add_(1e-3)
    chansurg.save(trained, out)
    kept = out.read_bytes()
    ran = cli("convert", resnet20, *DOWNSCALE, "-o", out)
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 4
    assert "trained since" in ran.err
    assert "--force" in ran.err
    assert out.read_bytes() == kept
    assert cli("convert", resnet20, *DOWNSCALE, "-o", out, "--force").code == 0
    other = out.read_bytes()
    ran = cli("convert", resnet20, *DOWNSCALE, "-o", out, "--seed", 1)
    assert ran.code == 2
    assert "something else than what would be written now" in ran.err
    assert out.read_bytes() == other
    assert files(tmp_path) == ["out.safetensors"]


def test_a_report_that_fails_after_the_file_was_written_says_so(
    cli: Cli, resnet20: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LateError(Exception):
        pass

    for error, code in ((LateError("no table today"), 1), (KeyboardInterrupt(), 130)):

        def fails(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("chansurg.cli.convert.changes_table", fails)
        ran = cli("convert", resnet20, *DOWNSCALE)
        assert ran.code == code
        assert "othing was written" not in ran.err
        assert "he file was written" in ran.err
        assert "resnet20-pix.safetensors" in ran.err
        chansurg.load(tmp_path / "resnet20-pix.safetensors")


def test_what_the_counts_leave_out_is_told_under_them(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "stopping.py").write_text(
        "from torch import nn\n"
        "class Network(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())\n"
        "    def forward(self, x):\n"
        "        x = self.body(x)\n"
        "        return x * 2 if x.sum().item() > 0 else x\n"
    )
    ran = cli("convert", "stopping:Network", *DOWNSCALE, "--input-size", "8")
    assert ran.code == 0, ran.err
    assert "counted in part: stopped at " in ran.out
    assert "counted in part: stopped at " in cli("history", "Network-pix.safetensors").out
    document = cli("convert", "stopping:Network", *DOWNSCALE, "--input-size", "8", "--json").document
    assert document["uncounted"][-1].startswith("stopped at ")
    assert document["uncounted"] == cli("inspect", "Network-pix.safetensors", "--arch", "stopping:Network", "--json").document["uncounted"]


@pytest.mark.parametrize("target", ["absent/out.safetensors", ".", "file.txt/out.safetensors"])
def test_outputs_that_cannot_be(cli: Cli, resnet20: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.txt").write_text("a file")
    monkeypatch.setattr("chansurg.surgery.opening.read_checkpoint", lambda *_, **__: pytest.fail("it was asked too late"))
    ran = cli("convert", resnet20, *DOWNSCALE, "-o", target)
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 4
    assert files(tmp_path) == ["file.txt"]


def test_a_folder_that_is_not_writable(cli: Cli, resnet20: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: False if mode & os.W_OK else may(path, mode, **more))
    ran = cli("convert", resnet20, *DOWNSCALE)
    assert ran.code == 2
    assert "cannot be written" in ran.err
    assert files(tmp_path) == []


def test_a_full_disk_leaves_nothing_and_is_no_usage_error(
    cli: Cli, resnet20: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    ran = cli("convert", resnet20, *DOWNSCALE, "--json")
    assert ran.code == 1
    assert "full" in ran.document["error"]["what"]
    assert files(tmp_path) == []


def test_an_interrupt_while_writing_leaves_nothing(cli: Cli, resnet20: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    ran = cli("convert", resnet20, *DOWNSCALE)
    assert (ran.code, ran.out) == (130, "")
    assert len([line for line in ran.err.splitlines() if not line.startswith("note:")]) == 1
    assert files(tmp_path) == []


def test_a_conversion_that_finds_no_site_says_why_reason_by_reason(cli: Cli, tmp_path: Path) -> None:
    ran = cli("convert", "mobilenet_v2", "--recipe", "pix")
    assert ran.code == 1
    assert "found no site" in ran.err
    assert "no spatial convolution follows it at once: features.1.conv.1, features.2.conv.2, features.3.conv.2 and 14 more" in ran.err
    assert "it adds channels (16 to 96) (or 6 others like it); PiX only reduces them: features.2.conv.0.0, " in ran.err
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--recipe", "nix"], "no recipe 'nix'"),
        (["--recipe", "pix", "-o", ""], "'--output' / '-o': It is empty"),
        (["--recipe", "pix", "--zeta", "0"], "--zeta"),
        (["--recipe", "pix", "--zeta", "-3"], "--zeta"),
        (["--recipe", "pix", "--zeta", "two"], "--zeta"),
        (["--recipe", "pix", "--mode", "sideways"], "--mode"),
        (["--recipe", "pix", "--tau", "7"], "--tau"),
        (["--recipe", "pix", "--calibrate", ".", "--refine", "-1"], "-1 is no number of steps"),
        (["--recipe", "pix", "--mode", "downscale", "--input-size", "0"], "input size"),
        (["--recipe", "pix", "--mode", "downscale", "--input-size", "a,b"], "input size"),
        (["--recipe", "pix", "--mode", "downscale", "--arch", "cifar/resnet56"], "cifar/resnet56"),
        (["--recipe", "pix", "--mode", "downscale", "--arch", "resnet5000"], "resnet5000"),
        (["--recipe", "pix", "--mode", "downscale", "--arch", "absent_module:network"], "absent_module"),
    ],
)
def test_options_that_cannot_be(cli: Cli, resnet20: Path, tmp_path: Path, arguments: list[str], told: str) -> None:
    ran = cli("convert", resnet20, *arguments)
    assert ran.code == 2, ran.err
    error = [line for line in ran.err.splitlines() if not line.startswith("note:")]
    assert told in "\n".join(error)
    assert [line.split(":")[0].strip() for line in error if line.startswith(("error", "  where", "  not done", "  to do"))] == [
        "error",
        "where",
        "not done",
        "to do",
    ]
    assert "Traceback" not in ran.err
    assert files(tmp_path) == []


@dataclasses.dataclass(frozen=True)
class OtherOptions:
    zeta: str = option("7", "Something of another recipe.")
    shrink: str = option("1/2", "How far.", metavar="FRACTION")
    flip: bool = option(True, "Whether.")


class Other(type(RECIPE)):  # type: ignore[misc]
    name = "other"
    Options = OtherOptions


@pytest.fixture
def two_recipes(monkeypatch: pytest.MonkeyPatch) -> Any:
    entries = [SimpleNamespace(name=recipe.name, load=lambda recipe=recipe: recipe) for recipe in (RECIPE, Other())]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    registry.installed_recipes.cache_clear()
    yield
    registry.installed_recipes.cache_clear()


@pytest.mark.usefixtures("two_recipes")
def test_an_option_of_another_recipe_is_a_usage_error_that_names_it(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    for given in (["--shrink", "1/2"], ["--no-flip"]):
        ran = cli("convert", resnet20, *DOWNSCALE, *given)
        assert ran.code == 2
        assert "belongs to 'other'" in ran.err
        assert files(tmp_path) == []


@pytest.mark.usefixtures("two_recipes")
def test_the_options_of_every_recipe_are_in_the_help(cli: Cli) -> None:
    shown = cli("convert", "--help").out
    assert "Options of other" in shown
    assert "Options of other, pix" in shown
    assert "FRACTION" in shown
    assert "--no-flip" in shown


def test_what_is_attached_and_scaled_is_shown(cli: Cli, resnet20: Path) -> None:
    ran = cli("convert", resnet20, "--recipe", "pcs", "--shrink", "0.25")
    assert "pcs: 19 sites, 38 edits" in ran.out
    assert "--shrink 1/4 --lambda-base 6e-06" in ran.out
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["3", "alike", "conv1_salience", "-", "=>", "SalienceGate", "16", "->", "16"] in lines
    assert "BatchNorm2d 16  =>  BatchNorm2d 16, times 2" in ran.out
    assert "tensors: 78 kept, 38 scaled, 0 sliced, " in ran.out
    told = cli("history", "resnet20-pcs.safetensors").out
    assert "tensors: 116 kept, 0 sliced, " in told
    assert "; those of 19 layers scaled" in told
    document = cli("convert", resnet20, "--recipe", "pcs", "--json", "-o", "b.safetensors").document
    assert {edit["op"] for edit in document["edits"]} == {"attach", "scale"}
    assert "the same function" in cli("verify", resnet20, "b.safetensors").out


@pytest.mark.parametrize(
    ("edits", "before", "after", "shown"),
    [
        (
            [Scale("fc", "in", 2.0)],
            {"fc": "Linear 4 -> 2"},
            {"fc": "Linear 4 -> 2"},
            ("fc", "Linear 4 -> 2", "Linear 4 -> 2, inputs times 2"),
        ),
        (
            [Narrow("fc", (0, 1)), Scale("fc", "in", (0.25, 1.5), (0, 1))],
            {"fc": "Linear 4 -> 2"},
            {"fc": "Linear 2 -> 2"},
            ("fc", "Linear 4 -> 2", "Linear 2 -> 2, 2 inputs times 0.25 to 1.5"),
        ),
        (
            [Scale("bn", "out", 2.0, (1,))],
            {"bn": "BatchNorm2d 4"},
            {"bn": "BatchNorm2d 4"},
            ("bn", "BatchNorm2d 4", "BatchNorm2d 4, 1 output times 2"),
        ),
        (
            [Replace(Address("", "operator.add"), "add_scatter", LayerSpec("engine.ScatterAdd"))],
            {},
            {"add_scatter": "ScatterAdd 3 -> 8"},
            ("add_scatter", "operator.add", "ScatterAdd 3 -> 8"),
        ),
    ],
)
def test_how_an_edit_is_told(edits: list[Any], before: dict[str, str], after: dict[str, str], shown: tuple[str, str, str]) -> None:
    assert [(change.path, change.before, change.after) for change in changes(edits, before, after)] == [shown]
