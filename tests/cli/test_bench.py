from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import chansurg
from chansurg.surgery.delivery.benchmark import Benchmark, LayerRow, Row, Setting, Side
from chansurg.surgery.delivery.memory import Memory
from chansurg.surgery.delivery.timing import Ratio, Spread
from tests.cli.conftest import Cli

QUICK = ("--seconds", 0, "--layout", "contiguous", "--as-it-is")
MACHINE = {"cpu": {"processor": "P", "cores": 2, "vectors": "AVX2", "device": "cpu", "system": "S", "libraries": {"torch": "2"}}}


def side(milliseconds: float) -> Side:
    seconds = milliseconds / 1e3
    return Side(Spread(seconds, 0.9 * seconds, 1.1 * seconds), "contiguous", {}, Memory(3_000_000, "somewhere"))


def setting(runtime: str, batch_size: int = 1) -> Setting:
    return Setting(runtime, "cpu", "float32", (3, 32, 32), batch_size)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command passed on; it gets a benchmark in which everything that can happen has happened."""
    passed: dict[str, Any] = {}
    rows = [
        Row(setting("eager"), 2.0, side(4), side(6), Ratio(1.5, 1.49, 1.51), 12),
        Row(setting("eager", 8), 2.0, side(4), side(6), Ratio(1.5, 1.0, 2.0, "the ratio may lie anywhere from 1.00 to 2.00"), 12),
        Row(setting("aoti"), 2.0, reason="the model: there is no compiler"),
    ]
    slow = LayerRow("layer1.0", "BasicBlock", [[1, 16, 32, 32]], Row(setting("eager"), 2.0, side(4), side(2), Ratio(0.5, 0.49, 0.51), 12))

    def bench(model: object, against: object, **options: object) -> Benchmark:
        passed.update(options, against=against)
        return Benchmark(rows, [slow] if options["per_layer"] else [], MACHINE, 2, True, others=0.4)

    monkeypatch.setattr(chansurg, "bench", bench, raising=False)
    return passed


def test_a_model_alone(cli: Cli, resnet20: Path) -> None:
    ran = cli("bench", resnet20, "--json", *QUICK)
    assert ran.code == 0, ran.err
    assert (ran.document["model"], ran.document["against"]) == (str(resnet20), None)
    (row,) = ran.document["results"]
    assert (row["runtime"], row["batch_size"], row["speedup"], row["against_median_ms"]) == ("eager", 1, None, None)
    assert row["median_ms"] > 0
    assert row["peak_memory"] > 0


def test_two_models_and_the_parts_that_differ(cli: Cli, resnet20: Path, converted: Path) -> None:
    ran = cli("bench", converted, "--against", resnet20, "--json", "--no-memory", "--per-layer", "--input-size", 8, *QUICK)
    assert ran.code == 0, ran.err
    (row,) = ran.document["results"]
    assert row["against_median_ms"] > 0
    assert (row["speedup"] is None) == (row["noise"] is not None)
    if row["speedup"] is not None:
        assert row["speedup"] == pytest.approx(row["against_median_ms"] / row["median_ms"])
    assert row["macs_allow"] > 1.8
    assert [layer["path"] for layer in ran.document["layers"]] == [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]


def test_the_table_tells_the_noise_the_failures_and_the_slower_parts(cli: Cli, resnet20: Path, told: dict[str, Any]) -> None:
    ran = cli("bench", resnet20, "--against", resnet20, "--per-layer")
    assert ran.code == 0, ran.err
    rows = [line.split() for line in ran.out.splitlines()]
    assert ["eager", "1", "4", "contiguous", "250", "3.0", "6", "contiguous", "1.50x", "2.00x", "67%"] in rows
    assert " 3.6-4.4 " in cli("bench", resnet20, "--against", resnet20, "-v").out
    assert "eager, batch 8, 3x32x32: too noisy to tell a speed-up: the ratio may lie anywhere from 1.00 to 2.00\n" in ran.out
    assert "aoti, batch 1, 3x32x32: the model: there is no compiler\n" in ran.out
    assert "Other processes kept 40% of the processors busy meanwhile" in ran.out
    assert "1 part of 1 slower than in the other network" in ran.out
    assert cli("bench", resnet20, "-q").out == "eager batch 1 4 ms (1.50x)  eager batch 8 4 ms  aoti batch 1 failed\n"


def test_options_are_passed_on(cli: Cli, resnet20: Path, told: dict[str, Any]) -> None:
    options = ("--runtime", "eager,onnxruntime", "--batch-size", "1, 8", "--input-size", "32;3,48,64", "--threads", 1, "--seconds", 2)
    assert cli("bench", resnet20, *options, "--device", "cpu,cuda", "--dtype", "float32,bfloat16", "--no-memory").code == 0
    assert told.pop("progress") is not None
    assert told == {
        "against": None,
        "runtimes": ["eager", "onnxruntime"],
        "batch_sizes": [1, 8],
        "input_sizes": [(32,), (3, 48, 64)],
        "devices": ["cpu", "cuda"],
        "dtypes": ["float32", "bfloat16"],
        "layouts": ["contiguous", "channels_last"],
        "threads": 1,
        "optimized": True,
        "memory": False,
        "per_layer": False,
        "training": False,
        "seconds": 2.0,
    }


def test_where_nothing_ran_the_exit_code_is_1(cli: Cli, resnet20: Path) -> None:
    ran = cli("bench", resnet20, "--runtime", "cuda-graph", *QUICK)
    assert ran.code == 1
    assert "CUDA graphs need a CUDA device" in ran.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--runtime", "tensorrt"], "no runtime 'tensorrt'"),
        (["--batch-size", "one"], "no batch sizes"),
        (["--batch-size", "0"], "at least one image"),
        (["--per-layer"], "nothing to compare the layers with"),
        (["--input-size", "32;x"], "no input size"),
        (["--against", "absent.pth"], "absent.pth"),
    ],
)
def test_bad_usage(cli: Cli, resnet20: Path, arguments: list[str], told: str) -> None:
    ran = cli("bench", resnet20, *arguments)
    assert ran.code == 2
    assert told in ran.err
    assert "Traceback" not in ran.err
