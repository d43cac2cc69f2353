from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from networks.small import Small, small
from torch import nn

import chansurg
from chansurg.surgery.delivery import benching, formats, runtimes
from chansurg.surgery.delivery.benchmark import promise_kept
from chansurg.surgery.delivery.memory import memory_of_torch
from chansurg.surgery.delivery.runtimes import RUNTIMES, Ready, Runtime, Unavailable
from chansurg.surgery.errors import InputError

SIZE = [(3, 32, 32)]


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime in which time goes by the width of the stem, and is half as long in ``channels_last``."""

    def prepare(network: nn.Module, inputs: tuple[torch.Tensor, ...], folder: Path) -> Ready:
        is_last = inputs[0].is_contiguous(memory_format=torch.channels_last)
        width = next(p.shape[0] for p in network.parameters())
        return Ready(lambda: (width, is_last), lambda call, times: _duration(*call()), lambda: pytest.fail("not asked for"))  # type: ignore[misc]

    def _duration(width: int, is_last: bool) -> float:
        return width / 1e3 / (2 if is_last else 1)

    monkeypatch.setattr(runtimes, "RUNTIMES", {"eager": Runtime(prepare)})


@pytest.mark.usefixtures("clockwork")
def test_each_side_runs_in_its_quicker_layout_and_beside_the_ratio_stands_what_macs_allow() -> None:
    (row,) = chansurg.bench(Small(5, 4), Small(5, 8), batch_sizes=[4], input_sizes=SIZE, memory=False).rows
    assert row.model is not None
    assert row.against is not None
    assert row.speedup == pytest.approx(2)
    assert (row.model.layout, row.against.layout) == ("channels_last", "channels_last")
    assert row.model.layouts == pytest.approx({"contiguous": 8e-3, "channels_last": 4e-3})
    allowed = chansurg.count(Small(5, 8), SIZE[0]).macs / chansurg.count(Small(5, 4), SIZE[0]).macs
    assert row.macs_allow == pytest.approx(allowed)
    told = row.as_json()
    assert told["median_ms"] == pytest.approx(4)
    assert told["against_median_ms"] == pytest.approx(8)
    assert told["throughput"] == pytest.approx(1000)
    assert told["promise_kept"] == pytest.approx(0.5 / (1 - 1 / allowed))
    assert (told["peak_memory"], told["reason"], told["noise"]) == (None, None, None)


@pytest.mark.usefixtures("clockwork")
def test_one_layout_is_what_was_asked_for() -> None:
    (row,) = chansurg.bench(Small(5, 4), Small(5, 8), layouts=["contiguous"], input_sizes=SIZE, memory=False).rows
    assert row.model is not None
    assert (row.model.layout, row.model.time.median) == ("contiguous", pytest.approx(8e-3))


def test_a_row_for_each_setting_and_the_machine_it_ran_on() -> None:
    done: list[tuple[int, int]] = []
    found = chansurg.bench(
        small(),
        batch_sizes=[1, 2],
        input_sizes=[(16,), (3, 24, 32)],
        dtypes=["float32", "bfloat16"],
        layouts=["contiguous"],
        threads=1,
        seconds=0,
        progress=lambda *now: done.append(now),
    )
    settings = [(row.setting.dtype, row.setting.input_size, row.setting.batch_size) for row in found.rows]
    assert settings == [(d, s, b) for d in ("float32", "bfloat16") for s in ((3, 16, 16), (3, 24, 32)) for b in (1, 2)]
    assert all(row.model is not None and row.model.time.median > 0 and row.rounds >= 10 for row in found.rows)
    assert all(row.speedup is None and row.against is None and row.macs_allow is None for row in found.rows)
    assert done == [(number, 8) for number in range(1, 9)]
    assert found.machine["cpu"]["libraries"]["torch"]
    assert found.threads == 1
    memory = {row.setting.dtype: row.model.memory.bytes for row in found.rows[::4] if row.model and row.model.memory}  # type: ignore[misc]
    assert 0 < memory["bfloat16"] < memory["float32"]
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.usefixtures("clockwork")
def test_the_networks_and_the_number_of_threads_stay_what_they_were() -> None:
    network, threads = small().train(), torch.get_num_threads()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert chansurg.bench(network, small(), input_sizes=SIZE, threads=threads + 1, optimized=False, memory=False).threads == threads + 1
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("clockwork")
def test_both_sides_are_optimised_or_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, str, str | None]] = []

    def optimize(network: nn.Module, example: torch.Tensor, *, runtime: str, layout: str | None) -> nn.Module:
        seen.append((network.training, runtime, layout))
        assert example.shape == (1, 3, 32, 32)
        return network

    monkeypatch.setattr(benching, "optimize", optimize)
    options: dict[str, Any] = {"input_sizes": SIZE, "seconds": 0, "memory": False, "batch_sizes": [1, 3]}
    chansurg.bench(small(), small(), optimized=False, **options)
    assert seen == []
    chansurg.bench(small(), small(), **options)
    assert seen == [(False, "eager", layout) for _ in range(2) for layout in ("contiguous", "channels_last")]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Unavailable("it is not installed"), "the model: it is not installed"),
        (RuntimeError("no kernel\nfor this"), "the model: aoti fails on it: RuntimeError: no kernel"),
    ],
)
def test_a_runtime_that_fails_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    def fail(*_: object) -> Ready:
        raise error

    monkeypatch.setitem(RUNTIMES, "aoti", Runtime(fail))  # type: ignore[arg-type]
    given: dict[str, Any] = {"layouts": ["contiguous"], "optimized": False, "input_sizes": SIZE, "seconds": 0, "memory": False}
    found = chansurg.bench(small(), small(), runtimes=["aoti", "eager"], **given)
    failed, timed = found.rows
    assert failed.reason == told
    assert failed.speedup is None
    assert failed.as_json()["median_ms"] is None
    assert timed.reason is None
    assert timed.model is not None


def test_a_training_step_runs_backward_and_leaves_the_networks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "optimize", lambda *_, **__: pytest.fail("what is optimised cannot be trained"))
    network, passes = small().eval(), []
    network.fc.register_full_backward_hook(lambda *_: passes.append(network.training))  # type: ignore[operator, union-attr]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    given: dict[str, Any] = {"layouts": ["contiguous"], "input_sizes": SIZE, "batch_sizes": [2], "seconds": 0}
    found = chansurg.bench(network, training=True, runtimes=["eager", "onnxruntime"], **given)
    timed, refused = found.rows
    assert timed.model is not None
    assert len(passes) > timed.rounds
    assert refused.reason == "a training step is not timed there"
    assert (found.training, found.optimized) == (True, False)
    assert not network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    passes.clear()
    chansurg.bench(network, optimized=False, **given)
    assert passes == []


def test_cuda_graphs_without_cuda_say_so() -> None:
    (row,) = chansurg.bench(small(), runtimes=["cuda-graph"], input_sizes=SIZE, seconds=0).rows
    assert row.reason == "CUDA graphs need a CUDA device"


def test_onnx_runtime_runs_the_network_in_its_own_layout_and_memory_comes_from_a_child_process() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (row,) = chansurg.bench(small(), runtimes=["onnxruntime"], input_sizes=SIZE, seconds=0).rows
    assert row.reason is None
    assert row.model is not None
    assert row.model.memory is not None
    assert row.model.layout is None
    assert "child process" in row.model.memory.source
    assert row.model.memory.bytes is None or row.model.memory.bytes > 0


def test_without_onnx_runtime_there_is_a_row_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxruntime" else importlib.util.find_spec(name))
    (row,) = chansurg.bench(small(), runtimes=["onnxruntime"], input_sizes=SIZE).rows
    assert row.reason is not None
    assert "pip install 'chansurg[onnx]'" in row.reason


def test_per_layer_times_the_parts_that_differ() -> None:
    original = small().eval()
    converted = chansurg.convert(original, "pix", input_size=SIZE[0])
    found = chansurg.bench(converted, original, input_sizes=SIZE, layouts=["contiguous"], per_layer=True, seconds=0, memory=False)
    assert [(layer.path, list(layer.inputs)) for layer in found.layers] == [
        ("blocks.0", [(1, 16, 16, 16)]),
        ("blocks.1", [(1, 32, 16, 16)]),
    ]
    for layer in found.layers:
        assert layer.row.macs_allow is not None
        assert layer.row.macs_allow > 1
        told = layer.as_json()
        assert {"path", "kind", "slower", "median_ms", "against_median_ms", "speedup"} <= set(told)
        assert told["median_ms"] > 0


def test_peak_memory_counts_weights_and_what_lives_at_once() -> None:
    network = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.Linear(64, 2, bias=False)).eval()
    x = torch.randn(1024, 64)

    def call() -> object:
        with torch.inference_mode():
            return network(x)

    found = memory_of_torch(call, network, torch.device("cpu"))
    assert found.bytes == 4 * (64 * 2 + 2 * 1024 * 64)


def test_what_is_kept_of_a_promise() -> None:
    assert promise_kept(2.0, 2.0) == pytest.approx(1)
    assert promise_kept(1.0, 1.3) == pytest.approx(0)
    assert promise_kept(4 / 3, 2.0) == pytest.approx(0.5)
    assert promise_kept(0.5, 2.0) == pytest.approx(-2)
    assert promise_kept(None, 2.0) is None
    assert promise_kept(1.2, 1.0) is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"runtimes": ["tensorrt"]}, "no runtime 'tensorrt'"),
        ({"runtimes": []}, "No runtime"),
        ({"layouts": ["NHWC"]}, "no layout 'NHWC'"),
        ({"dtypes": ["int8"]}, "no dtype 'int8'"),
        ({"batch_sizes": [0]}, "at least one image"),
        ({"devices": ["nowhere"]}, "cannot be used"),
        ({"threads": 0}, "0 threads"),
        ({"seconds": float("nan")}, "no time"),
        ({"per_layer": True}, "another network"),
        ({"per_layer": True, "training": True, "against": nn.Identity()}, "eval mode alone"),
        ({"input_sizes": [(0,)]}, "not an input size"),
        ({"input_sizes": [(4, 32, 32)]}, "does not run on an input of shape"),
    ],
)
def test_what_cannot_be_timed_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        chansurg.bench(small(), **options)
