"""What one row of the benchmark gave: one JSON file each, so that what is finished is never run again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.result_folder import ResultFolder as KeptResults


@dataclass(frozen=True)
class Result:
    """One network, one row, one seed.

    Args:
        network: what was converted or pruned.
        row: how.
        seed: of the training run.
        top1: accuracy on ``val``, in per cent.
        untrained: that before any training; of a recipe, calibrated.
        uncalibrated: that without calibration; ``None`` where there is none.
        macs: multiply-accumulates for one image.
        params: parameters.
        original_macs: of the network before anything was done to it.
        original_params: likewise.
        latency_ms: median time for one batch.
        original_latency_ms: the original network's, timed in turn with it.
        latency_spread: distance of the quartiles over the median, the larger of both.
        seconds: how long its training took, validation left out.
        notes: what else is worth knowing: a slicing's errors, say.
    """

    network: str
    row: str
    seed: int
    top1: float
    untrained: float
    uncalibrated: float | None
    macs: int
    params: int
    original_macs: int
    original_params: int
    latency_ms: float
    original_latency_ms: float
    latency_spread: float
    seconds: float
    notes: dict[str, Any]

    @property
    def speedup(self) -> float:
        """How many times faster than the original."""
        return self.original_latency_ms / self.latency_ms


class ResultFolder(KeptResults):
    """The folder of this benchmark's results."""

    def file(self, network: str, row: str, seed: int, suffix: str = ".json") -> Path:
        """Where a result is, or what belongs to it."""
        return self.named(network, row, seed, suffix=suffix)

    def add(self, result: Result) -> None:
        """Write a result."""
        self.write(self.file(result.network, result.row, result.seed), asdict(result))

    def all(self) -> list[Result]:
        """Every result in the folder."""
        return [Result(**document) for document in self.documents()]
