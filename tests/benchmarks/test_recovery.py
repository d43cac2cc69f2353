from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import chansurg
from benchmarks.recovery.results import Result, ResultFolder
from benchmarks.recovery.subset import write_subset
from benchmarks.recovery.table import render


def result(row: str, seed: int, top1: float, macs: int = 20_000_000, spread: float = 0.1) -> Result:
    return Result("resnet20", row, seed, top1, 50.0, None, macs, 150_000, 40_000_000, 270_000, 2.0, 3.0, spread, 90.0, {"threads": 1})


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path / "out", {"epochs": 1})
    folder.add(result("pcs", 0, 87.5))
    folder.add(result("dense", 0, 88.0))
    assert ResultFolder(tmp_path / "out", {"epochs": 1}).all() == [result("dense", 0, 88.0), result("pcs", 0, 87.5)]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    ResultFolder(tmp_path, {"epochs": 1})
    with pytest.raises(SystemExit, match="other settings"):
        ResultFolder(tmp_path, {"epochs": 2})


def test_seeds_are_taken_together_and_compared_with_the_dense_network_of_the_same_seed() -> None:
    results = [result("dense", 0, 88.0, 40_000_000), result("dense", 1, 90.0, 40_000_000), result("pcs", 0, 87.0), result("pcs", 1, 90.0)]
    lines = render(results, {"dense": "the network itself", "pcs": "PCS"}).splitlines()[2:]
    before = "| resnet20 | the network itself | 2 |  | 50.00 ± 0.00 "
    assert lines[0].startswith(f"{before}| 89.00 ± 1.41 | +0.00 ± 0.00 | 40.00 M | 100.0% | 150 k | 2.00 | 1.50x | 1.5 |")
    assert lines[1].startswith("| resnet20 | PCS | 2 |  | 50.00 ± 0.00 | 88.50 ± 2.12 | -0.50 ± 0.71 | 20.00 M | 50.0% |")


def test_one_seed_has_no_spread() -> None:
    assert " 87.50 |  | " in render([result("pcs", 0, 87.5)], {"pcs": "PCS"})


def test_timings_on_a_busy_machine_are_marked() -> None:
    assert "| 1.50x (noisy) |" in render([result("pcs", 0, 87.5, spread=0.6)], {"pcs": "PCS"})


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.recovery.plot import draw

    draw([result("dense", 0, 88.0), result("pcs", 0, 87.0)], {"dense": "dense", "pcs": "PCS"}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("top", ["", "pictures/"])
def test_a_subset_has_the_same_number_of_each_class(tmp_path: Path, top: str) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for split, count in (("train", 6), ("val", 3)):
            for index in range(2 * count):
                archive.writestr(f"{top}{split}/{'ab'[index % 2]}/{index}.png", bytes([index]))
    write_subset(tmp_path / "all.zip", tmp_path / "few.zip", 4)
    with zipfile.ZipFile(tmp_path / "few.zip") as archive:
        wanted = ["train/a/0.png", "train/a/10.png", "train/b/1.png", "train/b/11.png"]
        assert archive.namelist() == [*wanted, *(f"val/{name}.png" for name in ("a/0", "a/2", "b/1", "b/3"))]
        assert archive.read("train/a/10.png") == bytes([10])


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_rivals_reach_the_target_and_run(criterion: str) -> None:
    pytest.importorskip("torch_pruning")
    from benchmarks.recovery.pruning import prune

    torch.manual_seed(0)
    network = chansurg.load("cifar/resnet20")
    batches = [(torch.randn(8, 3, 32, 32), torch.arange(8))]
    pruned = prune(network, criterion, 0.43, batches)
    share = chansurg.count(pruned).macs / chansurg.count(network).macs
    assert 0.4 < share <= 0.43
    assert pruned(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert network.layer1[0].conv1.out_channels == 16
    assert [pruned.layer1[0].conv2.out_channels, pruned.conv1.out_channels] == [16, 16]
    assert all(parameter.grad is None for parameter in pruned.parameters())


def test_finished_rows_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning")
    pytest.importorskip("matplotlib")
    from benchmarks.recovery import __main__ as driver

    ran: list[tuple[str, int]] = []

    def run_row(name: str, network: str, subject: object, *_: object) -> Result:
        ran.append((name, subject.seed))  # type: ignore[attr-defined]
        if len(ran) == 3:
            raise KeyboardInterrupt
        return result(name, subject.seed, 88.0)  # type: ignore[attr-defined]

    chansurg.save(chansurg.load("cifar/resnet20"), tmp_path / "resnet20-cifar10jpeg.safetensors")
    monkeypatch.setattr(driver, "run_row", run_row)
    command = ["recovery", "--networks", "resnet20", "--rows", "dense,pcs", "--seeds", "0,1", "--models", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out")])
    with pytest.raises(KeyboardInterrupt):
        driver.main()
    driver.main()
    assert ran == [("dense", 0), ("pcs", 0), ("dense", 1), ("dense", 1), ("pcs", 1)]
    assert len((tmp_path / "out" / "table.md").read_text().splitlines()) == 4
    assert (tmp_path / "out" / "plot.png").exists()


def test_a_row_is_trained_once_for_all_that_take_its_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning")
    from benchmarks.recovery import running
    from benchmarks.recovery.rows import Row, Subject

    trained: list[dict[str, object]] = []

    def finetune(network: nn.Module, data: Path, **settings: object) -> nn.Module:
        trained.append(settings)
        run = Path(f"{settings['output']}.run")
        run.mkdir()
        (run / "metrics.jsonl").write_text('{"seconds": 1.5}\n{"seconds": 2.0}\n')
        with torch.no_grad():
            network.linear.bias += 1  # type: ignore[union-attr, operator]
        return network

    rows = {
        "first": Row("first", lambda subject: subject.fresh(), steered=True),
        "second": Row("second", lambda subject: subject.fresh(), training="first"),
    }
    monkeypatch.setattr(running, "ROWS", rows)
    monkeypatch.setattr(chansurg, "finetune", finetune, raising=False)
    monkeypatch.setattr(chansurg, "evaluate", lambda network, *_, **__: type("E", (), {"top1": float(network.linear.bias.sum().detach())}))
    subject = Subject(chansurg.load("cifar/resnet20"), tmp_path, 3, 0.4, "1/2", 16)
    folder = ResultFolder(tmp_path, {})
    results = [running.run_row(name, "resnet20", subject, folder, {"epochs": 2}, 1) for name in rows]
    assert len(trained) == 1
    assert (trained[0]["epochs"], trained[0]["target_macs"], trained[0]["seed"]) == (2, 0.4, 3)
    assert results[0].top1 == results[1].top1
    assert results[0].macs == results[0].original_macs
    assert results[0].latency_ms > 0
    assert [result.seconds for result in results] == [3.5, 3.5]
