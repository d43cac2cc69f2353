from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import chansurg
from benchmarks.speed import __main__ as driver
from benchmarks.speed.rows import sliced_to_half
from benchmarks.speed.table import render
from chansurg.surgery.delivery.benchmark import Benchmark, Row, Setting, Side
from chansurg.surgery.delivery.timing import Ratio, Spread

MACHINE = {"cpu": {"processor": "P", "device": "cpu", "libraries": {"torch": "2"}}}


def benchmark(speedup: float, noise: str | None = None, reason: str | None = None) -> Benchmark:
    setting = Setting("eager", "cpu", "float32", (3, 32, 32), 1)
    sides = [Side(Spread(ms / 1e3, ms / 1e3, ms / 1e3), "contiguous", {}, None) for ms in (10.0, 10.0 * speedup)]
    row = Row(setting, 2.0, *sides, Ratio(speedup, 0.9 * speedup, 1.1 * speedup, noise), 10)
    return Benchmark([Row(setting, 2.0, reason=reason) if reason else row], [], MACHINE, 2, True)


def document(row: str, found: Benchmark | None) -> dict[str, Any]:
    named = {"network": "resnet50", "row": row, "runtime": "eager"}
    return {**named, "results": [], "refused": "No site."} if found is None else {**named, **found.as_json()}


def test_the_table_sets_speed_ups_beside_what_macs_allow() -> None:
    text = render(
        [
            document("pix", benchmark(1.9)),
            document("mod", benchmark(1.5)),
            document("slimconv-4/3", benchmark(1.5, noise="too wide")),
            document("slimconv-8/3", benchmark(1.5, reason="there is no compiler")),
            document("pcs", None),
        ]
    )
    for line in (
        "P, cpu, 2 threads, torch 2",
        "| resnet50 | PiX squeeze | 2.00 | 1.90 (95%) |",
        "| resnet50 | MoD, c = 64 | 2.00 | *1.50 (75%)* |",
        "| resnet50 | SlimConv 4/3 | 2.00 | too noisy |",
        "| resnet50 | SlimConv 8/3 | 2.00 | failed |",
        "| resnet50 | PCS, sliced to half the MACs |  | no site |",
        "| resnet50 | PiX squeeze | eager | 1 | 10.00 | contiguous | 19.00 | contiguous | 1.90 | 1.71 to 2.09 |",
        "| resnet50 | SlimConv 8/3 | eager | 1 | | | | | there is no compiler | |",
    ):
        assert line in text.splitlines()


def test_what_was_told_is_not_measured_again_and_noise_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def bench(after: nn.Module, before: nn.Module, *, runtimes: list[str], **_: object) -> Benchmark:
        measured.append(runtimes[0])
        noisy = runtimes == ["compile"] and measured.count("compile") == 1
        return benchmark(1.5, noise="too wide" if noisy else None)

    monkeypatch.setattr(chansurg, "bench", bench, raising=False)
    monkeypatch.setattr(driver, "original", lambda name, size: chansurg.load("cifar/resnet20"))
    command = ["speed", "--networks", "resnet18", "--rows", "slimconv-8/3", "--runtimes", "eager,compile", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    for expected in (["eager", "compile"], ["compile"], []):
        before = len(measured)
        driver.main()
        assert measured[before:] == expected
    assert "1.50 (75%)* |" in (tmp_path / "out" / "table.md").read_text()


def test_a_recipe_without_a_site_is_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "original", lambda name, size: chansurg.load("cifar/resnet20"))
    command = ["speed", "--networks", "resnet18", "--rows", "pix", "--runtimes", "eager", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    driver.main()
    assert "| resnet18 | PiX squeeze |  | no site |" in (tmp_path / "out" / "table.md").read_text()


def test_slicing_to_half_leaves_about_half() -> None:
    network = chansurg.load("cifar/resnet20")
    share = chansurg.count(sliced_to_half(network, multiple_of=1)).macs / chansurg.count(network).macs
    assert 0.47 < share < 0.53
