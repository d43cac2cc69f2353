"""Two processes with half of each batch do what one does with all of it: losses, running salience, masks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import chansurg
from chansurg.surgery.gating import gates
from chansurg.surgery.training.finetuning import finetune

MakeTree = Callable[..., Path]
ROOT = Path(__file__).parents[3]
STEPS = 6

# Batch norms in eval mode and no augmentation: with either, the halves of a batch would differ from the whole.
SETTINGS: dict[str, Any] = {"epochs": STEPS, "batch_size": 20, "eval_bn": True, "augment": "none", "lr": 0.01, "weight_decay": 0.01}

SCRIPT = """
import os, sys
import chansurg
from safetensors.torch import save_file
from test_two_processes import both_runs

for name, network in both_runs(sys.argv[1], sys.argv[2]).items():
    save_file(network.state_dict(), f"{sys.argv[2]}/{name}-{os.environ['RANK']}.safetensors")
"""


def both_runs(data: str, folder: str) -> dict[str, torch.nn.Module]:
    """A plain network and one with gates, trained one after the other."""
    torch.set_num_threads(1)
    network = chansurg.load(f"{folder}/start.safetensors", input_size=(8, 8))
    gated = chansurg.convert(network, "pcs", shrink="1/2", lambda_base=0)
    for gate in gates(gated).values():
        gate.get_parameter("fc2.bias").data[::3] = -4.0  # shut from the beginning, so that the run has something to mask
    more = {**SETTINGS, "epochs": 2 * STEPS, "clip_norm": 1.0}
    return {
        "plain": finetune(network, data, output=f"{folder}/plain.safetensors", **SETTINGS),
        "gated": finetune(gated, data, output=f"{folder}/gated.safetensors", **more),
    }


def losses(folder: Path, name: str) -> list[float]:
    lines = (folder / f"{name}.safetensors.run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train_loss"] for line in lines]


@pytest.fixture
def runs(make_tree: MakeTree, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, torch.nn.Module]]:
    """The folder of the one process, that of the two, and the one's networks."""
    data = make_tree(classes=tuple("abcdefghij"), train=20, val=10, size=8)
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    torch.manual_seed(0)
    start = chansurg.load("cifar/resnet20", input_size=(8, 8)).train()
    for _ in range(20):
        start(torch.randn(64, 3, 8, 8))  # statistics for the batch norms
    for folder in (alone, together):
        chansurg.save(start, folder / "start.safetensors")
    (together / "script.py").write_text(SCRIPT)
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT, ROOT / "tests", Path(__file__).parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "script.py"]
    subprocess.run(
        [*command, str(data), str(together)],
        cwd=together,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=90,
    )
    threads = torch.get_num_threads()
    try:
        return alone, together, both_runs(str(data), str(alone))
    finally:
        torch.set_num_threads(threads)


def test_two_processes_follow_one(runs: tuple[Path, Path, dict[str, torch.nn.Module]]) -> None:
    """One test for all, as the runs are what takes long."""
    alone, together, networks = runs
    check_losses(losses(together, "plain"), losses(alone, "plain"))
    check_that_one_process_wrote(together)
    check_gates(together, networks["gated"])


def check_losses(ours: list[float], theirs: list[float]) -> None:
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours[-1] < ours[0] - 0.1


def check_that_one_process_wrote(together: Path) -> None:
    settings = json.loads((together / "plain.safetensors.run" / "settings.json").read_text())
    assert settings["same"]["processes"] == 2
    assert chansurg.record_of(chansurg.load(together / "plain.safetensors")).journal[-1].results["steps"] == STEPS


def check_gates(together: Path, alone: torch.nn.Module) -> None:
    first, second = (load_file(together / f"gated-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    found = gates(alone)
    assert found
    for path, gate in found.items():
        assert torch.allclose(first[f"{path}.running_salience"], gate.running_salience, atol=1e-4)
        assert torch.equal(first[f"{path}.mask"], gate.mask)
    assert not all(gate.mask.all() for gate in found.values())
