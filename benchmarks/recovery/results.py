"""What one row of the benchmark gave: one JSON file each, so that what is finished is never run again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """One network, one row, one seed.

    Args:
        network: what was converted or pruned.
        row: how.
        seed: of the training run.
        top1: accuracy on ``val``, in per cent.
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


class ResultFolder:
    """A folder of results, all of one set of settings.

    Args:
        path: the folder; made if it is not there.
        settings: what every result depends on, as JSON values.

    Raises:
        SystemExit: where the folder holds results of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        kept = path / "settings.json"
        if kept.exists() and json.loads(kept.read_text()) != settings:
            raise SystemExit(f"{path} holds results of other settings ({kept}). Pass another folder with --out, or delete it.")
        _write(kept, settings)

    def file(self, network: str, row: str, seed: int, suffix: str = ".json") -> Path:
        """Where a result is, or what belongs to it."""
        return self.path / f"{network}-{row}-{seed}{suffix}"

    def add(self, result: Result) -> None:
        """Write a result."""
        _write(self.file(result.network, result.row, result.seed), asdict(result))

    def all(self) -> list[Result]:
        """Every result in the folder."""
        files = (file for file in sorted(self.path.glob("*.json")) if file.name != "settings.json")
        return [Result(**json.loads(file.read_text())) for file in files]


def _write(path: Path, data: dict[str, Any]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.part")  # several processes may fill one folder
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    temporary.replace(path)
