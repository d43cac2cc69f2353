"""What a benchmark found: rows of two sides timed in turn, as plain data.

How much of a promise is kept. MACs that fell to a share ``m`` promise that time falls to ``m`` too. Of the promised saving ``1 - m`` a
speed-up ``s`` keeps ``(1 - 1 / s) / (1 - m)``: nothing where it is no quicker, a negative share where it is slower, and all of it where
the time fell as the MACs did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chansurg.surgery.delivery.memory import Memory
from chansurg.surgery.delivery.timing import Ratio, Spread


@dataclass(frozen=True)
class Side:
    """One network in one runtime.

    Args:
        time: seconds of a forward pass.
        layout: the layout of weights and inputs that it was quickest in; ``None`` where the runtime chooses its own.
        layouts: median seconds in each layout tried, from the few rounds that chose.
        memory: the most a forward pass needs; ``None`` where it was not asked for.
    """

    time: Spread
    layout: str | None
    layouts: Mapping[str, float]
    memory: Memory | None


@dataclass(frozen=True)
class Setting:
    """What a row is measured in.

    Args:
        runtime: a name in ``RUNTIMES``.
        device: ``cpu``, ``cuda``, ``cuda:1``, …
        dtype: ``float32`` or ``bfloat16``.
        input_size: ``(C, H, W)`` in pixels.
        batch_size: images.
    """

    runtime: str
    device: str
    dtype: str
    input_size: tuple[int, int, int]
    batch_size: int

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "input_size": list(self.input_size)}


@dataclass(frozen=True)
class Row:
    """One setting, and what it gave.

    Args:
        setting: what it was measured in.
        macs_allow: multiply-accumulates of the other network over those of this one; ``None`` without another.
        model: this network's side; ``None`` where it did not run.
        against: the other network's, timed in turn with it.
        ratio: how many times as long the other took.
        rounds: how many rounds both were timed in.
        reason: why there are no times, where there are none.
    """

    setting: Setting
    macs_allow: float | None = None
    model: Side | None = None
    against: Side | None = None
    ratio: Ratio | None = None
    rounds: int = 0
    reason: str | None = None

    @property
    def speedup(self) -> float | None:
        """How many times as quick this network is; ``None`` where there is no other, or the machine was too noisy to tell."""
        return None if self.ratio is None else self.ratio.told

    @property
    def promise_kept(self) -> float | None:
        """The share of the saving that the MACs promise; ``None`` where there is no speed-up to tell, or nothing was promised."""
        return promise_kept(self.speedup, self.macs_allow)

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **self.setting.as_json(),
            **_as_json(self.model, self.setting.batch_size),
            **{f"against_{name}": value for name, value in _as_json(self.against, self.setting.batch_size).items()},
            "speedup": self.speedup,
            "speedup_interval": None if self.ratio is None else [self.ratio.low, self.ratio.high],
            "macs_allow": self.macs_allow,
            "promise_kept": self.promise_kept,
            "rounds": self.rounds,
            "noise": None if self.ratio is None else self.ratio.noise,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class LayerRow:
    """A module that differs between two networks, timed by itself on what reaches it.

    Args:
        path: in both networks.
        kind: class names: the other network's, and this one's where that is another.
        inputs: shapes of the tensors that it is called on.
        row: what was found.
    """

    path: str
    kind: str
    inputs: Sequence[Sequence[int]]
    row: Row

    @property
    def slower(self) -> bool | None:
        """Whether this network's form takes longer, which takes less to tell than by how much; ``None`` where it cannot be told."""
        if self.row.ratio is None or self.row.ratio.low < 1 <= self.row.ratio.high:
            return None
        return self.row.ratio.high < 1

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        own = {"path": self.path, "kind": self.kind, "inputs": [list(shape) for shape in self.inputs], "slower": self.slower}
        return {**own, **self.row.as_json()}


@dataclass(frozen=True)
class Benchmark:
    """All that a benchmark found.

    Args:
        rows: one for each setting.
        layers: one for each module that differs and each setting of a runtime and batch size, where that was asked for.
        machine: what it ran on.
        threads: that torch and ONNX Runtime computed with.
        optimized: whether both sides went through :func:`chansurg.optimize`.
        training: whether training steps were timed, and not forward passes.
        others: share of all processors, 0 to 1, that other processes kept busy meanwhile; ``None`` where the system does not tell.
        notes: what a reader should know beside the numbers.
    """

    rows: Sequence[Row]
    layers: Sequence[LayerRow]
    machine: Mapping[str, Any]
    threads: int
    optimized: bool
    training: bool = False
    others: float | None = None
    notes: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """The document that ``bench --json`` prints, but for the names of the models."""
        return {
            "results": [row.as_json() for row in self.rows],
            "layers": [layer.as_json() for layer in self.layers],
            "machine": dict(self.machine),
            "threads": self.threads,
            "optimized": self.optimized,
            "training": self.training,
            "others_share": self.others,
            "notes": list(self.notes),
        }


def promise_kept(speedup: float | None, macs_allow: float | None) -> float | None:
    """The share of the promised saving of time that a speed-up keeps; ``None`` where MACs did not fall."""
    if speedup is None or macs_allow is None or macs_allow <= 1:
        return None
    return (1 - 1 / speedup) / (1 - 1 / macs_allow)


def _as_json(side: Side | None, batch_size: int) -> dict[str, Any]:
    """JSON values, all ``None`` for a side that did not run; times in milliseconds, throughput in images a second, memory in bytes."""
    time, memory = (None, None) if side is None else (side.time, side.memory)
    return {
        "median_ms": None if time is None else 1e3 * time.median,
        "quartiles_ms": None if time is None else [1e3 * time.lower, 1e3 * time.upper],
        "throughput": None if time is None else batch_size / time.median,
        "layout": None if side is None else side.layout,
        "layouts_ms": None if side is None else {name: 1e3 * seconds for name, seconds in side.layouts.items()},
        "peak_memory": None if memory is None else memory.bytes,
        "peak_memory_source": None if memory is None else memory.source,
    }
