"""The most memory that one forward pass needs.

Where torch computes, it is what torch's own allocator hands out: weights, plus the most that tensors of one pass occupy together. On CUDA
the allocator keeps that count; on CPU its events are recorded by the profiler and added up. It repeats exactly, and knows nothing of what
a library allocates past torch. ONNX Runtime allocates past torch altogether: there a child process loads the exported network and runs it,
and the growth of its largest resident memory is taken.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

_CHILD = Path(__file__).with_name("onnx_child.py")


@dataclass(frozen=True)
class Memory:
    """A peak of memory.

    Args:
        bytes: the most that was occupied; ``None`` where it could not be measured.
        source: where the number comes from, or why there is none.
    """

    bytes: int | None
    source: str


def memory_of_torch(call: Callable[[], object], network: nn.Module, device: torch.device) -> Memory:
    """Weights and the most that tensors of one call occupy together.

    Args:
        call: a forward pass, warm.
        network: whose parameters and buffers are counted.
        device: where it runs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return Memory(_weights(network) + torch.cuda.max_memory_allocated(device) - before, "torch's CUDA allocator, and the weights")
    with _stderr_shut(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    recorded = profiler.profiler
    events = [] if recorded is None or recorded.kineto_results is None else recorded.kineto_results.events()
    occupied = most = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        occupied += event.nbytes()
        most = max(most, occupied)
    return Memory(_weights(network) + most, "torch's CPU allocator, and the weights")


def memory_of_child(path: Path, shape: Sequence[int], threads: int, device: str) -> Memory:
    """By how much the largest resident memory of a child process grows when it loads an ONNX file and runs it twice.

    Args:
        path: the file.
        shape: of its one input, ``[B, C, H, W]``.
        threads: of the session.
        device: where it runs; nothing but ``cpu`` can be told.
    """
    if device != "cpu":
        return Memory(None, "ONNX Runtime does not tell what it occupies on a device")
    task = json.dumps({"path": str(path), "shape": list(shape), "threads": threads})
    done = subprocess.run([sys.executable, "-P", str(_CHILD), task], capture_output=True, text=True, check=False)
    if done.returncode:
        return Memory(None, f"the child process failed: {(done.stderr.strip() or 'no message').splitlines()[-1][:200]}")
    grown: int | None = json.loads(done.stdout)
    if grown is None:
        return Memory(None, "this system does not tell the largest resident memory of a process")
    return Memory(grown, "growth of a child process's largest resident memory")


def _weights(network: nn.Module) -> int:
    """Bytes of parameters and buffers; what shares its memory counts once."""
    storages = [tensor.untyped_storage() for tensor in (*network.parameters(), *network.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@contextmanager
def _stderr_shut() -> Iterator[None]:
    """Without the lines that the profiler's library writes past Python to the process's error stream."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
