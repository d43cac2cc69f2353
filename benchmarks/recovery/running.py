"""Runs one row: fine-tune, finish, and measure what came out. A run that was interrupted goes on where it stopped."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import chansurg
from benchmarks.recovery.results import Result, ResultFolder
from benchmarks.recovery.rows import ROWS, Row, Subject
from chansurg.surgery.delivery.timing import Spread, seconds_in_turn

ROUNDS = 100


def run_row(name: str, network: str, subject: Subject, folder: ResultFolder, settings: dict[str, Any], latency_batch: int) -> Result:
    """The result of one row; its training is taken from the folder where it is there.

    Args:
        name: of the row.
        network: what to call the original.
        subject: the original, the data, the seed.
        folder: where results go.
        settings: of ``chansurg.finetune``, the same for every row.
        latency_batch: images a batch when timed.
    """
    row = ROWS[name]
    output = folder.file(network, row.training or name, subject.seed, ".safetensors")
    prepared = row.prepare(subject).eval()
    untrained = _accuracy(prepared, subject)
    small = (row.finish(_trained(row, prepared, output, subject, settings)) if settings["epochs"] else prepared).eval()
    counts, before = chansurg.count(small), chansurg.count(subject.original)
    latency, original_latency, spread = _latencies(small, subject.original, latency_batch)
    notes: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "latency_batch": latency_batch}
    metrics = output.with_name(f"{output.name}.run") / "metrics.jsonl"
    journal = chansurg.record_of(small).journal
    if journal and journal[-1].kind == "slice":
        notes["slice"] = {name: value for name, value in journal[-1].results.items() if not isinstance(value, dict)}
    return Result(
        network=network,
        row=name,
        seed=subject.seed,
        top1=_accuracy(small, subject) if settings["epochs"] else untrained,
        untrained=untrained,
        uncalibrated=None if row.uncalibrated is None else _accuracy(row.uncalibrated(subject).eval(), subject),
        macs=counts.macs,
        params=counts.params,
        original_macs=before.macs,
        original_params=before.params,
        latency_ms=latency,
        original_latency_ms=original_latency,
        latency_spread=spread,
        seconds=sum(json.loads(line)["seconds"] for line in metrics.read_text().splitlines()) if metrics.exists() else 0.0,
        notes=notes,
    )


def _accuracy(network: nn.Module, subject: Subject) -> float:
    return chansurg.evaluate(network, subject.data, split="val").top1


def _trained(row: Row, network: nn.Module, output: Path, subject: Subject, settings: dict[str, Any]) -> nn.Module:
    """The row's network after fine-tuning."""
    weights = output.with_suffix(".weights.safetensors")
    if weights.exists():
        network.load_state_dict(load_file(weights))
        return network
    steering = {"target_macs": subject.share} if row.steered else {}
    trained: nn.Module = chansurg.finetune(
        network,
        subject.data,
        output=output,
        teacher=copy.deepcopy(subject.original),
        seed=subject.seed,
        **{**settings, "epochs": settings["epochs"] * row.longer, **steering, **row.settings},
    )
    part = weights.with_suffix(".part")
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in trained.state_dict().items()}, part)
    part.replace(weights)
    return trained.cpu()


def _latencies(network: nn.Module, original: nn.Module, batch_size: int) -> tuple[float, float, float]:
    """Median milliseconds of both on the CPU, timed in turn; and how far apart quartiles lie, over the median, at worst."""
    images = torch.rand(batch_size, *chansurg.record_of(original).preprocessing.input_size)
    with torch.inference_mode():
        calls = [partial(module.eval(), images) for module in (network, copy.deepcopy(original))]
        mine, its = map(Spread.of, seconds_in_turn(calls, rounds=ROUNDS))
    return 1e3 * mine.median, 1e3 * its.median, max(mine.relative, its.relative)
