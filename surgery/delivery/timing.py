"""Timing things in turn, and when a ratio of two times may be told.

Two networks timed one after the other are timed on two machines: the clock, the caches and the other work on it have moved on in between.
So everything that is to be compared takes turns, round by round, every other round backwards, and the ratio is made of rounds in which
both ran. How sure it is comes from the bootstrap: rounds are drawn anew, both times of a round together, and neighbouring rounds together,
since a disturbance lasts (the moving-block bootstrap: Künsch, The Jackknife and the Bootstrap for General Stationary Observations, Annals
of Statistics 17, 1989).

The rule. A ratio of medians is told unless

1. there are fewer than ``FEWEST`` rounds; or
2. the interval that holds 95 % of the resampled ratios is wider than from ``1 / STEADY`` to ``STEADY`` times its middle; or
3. the ratio of the first half of the rounds is more than ``STEADY ** 2`` times that of the second, or less than one over it: the machine
   has changed while it measured, and it is chance which part of the run weighs more; or
4. the ratios of single rounds have quartiles that lie more than ``SCATTER`` of their median apart: many rounds make a narrow interval of
   any noise, also of one that slows only one of the two.

What no rule sees is a disturbance as steady as the machine itself, another process that keeps one core busy from the first round to the
last, say; :func:`others_share` tells of it where the operating system does.

torch is imported where a CUDA device is timed and nowhere else: whoever times whole processes should not be the largest of them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Stopwatch = Callable[[Callable[[], object], int], float]
"""Seconds that one call takes, from a call and how often it is made."""

FEWEST = 10
STEADY = 1.05
SCATTER = 0.25

_RESAMPLES, _SEED = 2000, 0
_SHORTEST = 0.01
_MOST_ROUNDS = 400


@dataclass(frozen=True)
class Spread:
    """What many rounds of one measurement gave.

    Args:
        median: seconds.
        lower: the first quartile, seconds.
        upper: the third, seconds.
    """

    median: float
    lower: float
    upper: float

    @property
    def relative(self) -> float:
        """Distance of the quartiles over the median."""
        return (self.upper - self.lower) / self.median

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """The spread of at least one number."""
        lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
        return cls(median, lower, upper)


@dataclass(frozen=True)
class Ratio:
    """How many times as long one thing took as another.

    Args:
        value: the ratio of the medians.
        low: where the interval begins that holds 95 % of the resampled ratios.
        high: where it ends.
        noise: why the ratio is not to be told, or ``None``.
    """

    value: float
    low: float
    high: float
    noise: str | None = None

    @property
    def told(self) -> float | None:
        """The ratio, or ``None`` where the machine was too noisy to tell."""
        return self.value if self.noise is None else None


def wall_clock(call: Callable[[], object], times: int) -> float:
    """Seconds on the wall of one call that has finished when it returns."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def cuda_events(call: Callable[[], object], times: int, device: Any = None) -> float:
    """Seconds of one call on a CUDA device's current stream, between two events on it; launches that it has to wait for count."""
    import torch

    cuda: Any = torch.cuda  # its events are not typed
    begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    with cuda.device(device):
        cuda.synchronize()
        begin.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / times


def stopwatch_for(device: str) -> Stopwatch:
    """The stopwatch for calls of torch on a device."""
    return partial(cuda_events, device=device) if device.partition(":")[0] == "cuda" else wall_clock


def in_turn(measures: Sequence[Callable[[], T]], *, rounds: int, warm_up: int = 1) -> list[list[T]]:
    """What each measurement gives in each round; they take turns, and every other round goes backwards.

    Args:
        measures: each carries out one measurement and returns it.
        rounds: how many are kept.
        warm_up: how many come before and are dropped.
    """
    found: list[list[T]] = [[] for _ in measures]
    for turn in range(rounds + warm_up):
        _round(measures, found, turn)
    return [taken[warm_up:] for taken in found]


def seconds_in_turn(
    calls: Sequence[Callable[[], object]],
    *,
    rounds: int | None = None,
    limit: float = 10.0,
    stopwatch: Stopwatch = wall_clock,
    warm_up: int = 2,
) -> list[list[float]]:
    """The seconds of each call in each round, for calls that take turns.

    A call that is over in less than ten milliseconds is made several times in its turn, and the mean is what the round gives.

    Args:
        calls: what is timed.
        rounds: how many; ``None`` goes on until each ratio to the last call is known twice as well as :func:`ratio` asks, at least
            ``FEWEST`` rounds, and no longer than ``limit`` beyond those.
        limit: seconds.
        stopwatch: what takes the time.
        warm_up: how many rounds come before and are dropped, after each call was made once to find out how long it takes.
    """
    measures = []
    for call in calls:
        call()
        times = max(1, round(_SHORTEST / max(stopwatch(call, 1), 1e-7)))
        measures.append(lambda call=call, times=times: stopwatch(call, times))
    if rounds is not None:
        return in_turn(measures, rounds=rounds, warm_up=warm_up)
    began = time.perf_counter()
    found = in_turn(measures, rounds=FEWEST, warm_up=warm_up)
    while time.perf_counter() - began < limit and len(found[0]) < _MOST_ROUNDS and not _known(found):
        for _ in range(max(1, len(found[0]) // 4)):
            _round(measures, found, len(found[0]))
    return found


def ratio(of: Sequence[float], to: Sequence[float]) -> Ratio:
    """How many times as long ``of`` took as ``to``, from the rounds in which both ran: a speed-up, where ``to`` is the quicker one.

    Args:
        of: seconds, a round each.
        to: seconds of the other in the same rounds.
    """
    a, b = np.asarray(of, dtype=float), np.asarray(to, dtype=float)
    value = float(np.median(a) / np.median(b))
    if len(a) < FEWEST:
        return Ratio(value, 0.0, float("inf"), f"there are {len(a)} rounds, and it takes {FEWEST}")
    low, high = _interval(a, b)
    return Ratio(value, low, high, _noise(a, b, low, high))


def others_share(before: tuple[float, float, float] | None, after: tuple[float, float, float] | None) -> float | None:
    """The share, 0 to 1, of all processors that other processes kept busy between two readings of :func:`processor_times`."""
    if before is None or after is None or after[1] <= before[1]:
        return None
    busy, total, own = (b - a for a, b in zip(before, after, strict=True))
    return min(1.0, max(0.0, (busy - own) / total))


def processor_times() -> tuple[float, float, float] | None:
    """Seconds that all processors were busy, that there were, and that this process used; ``None`` where the system does not tell."""
    try:
        with open("/proc/stat") as file:
            ticks = [float(number) for number in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    idle, a_second = ticks[3] + ticks[4], os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - idle) / a_second, sum(ticks) / a_second, time.process_time()


def _round(measures: Sequence[Callable[[], T]], found: Sequence[list[T]], turn: int) -> None:
    for measure, taken in list(zip(measures, found, strict=True))[:: -1 if turn % 2 else 1]:
        taken.append(measure())


def _known(found: Sequence[Sequence[float]]) -> bool:
    ratios = [ratio(found[-1], seconds) for seconds in found[:-1]]
    return all(one.noise is None and one.high / one.low <= STEADY for one in ratios)


def _interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The interval of the middle 95 % of the ratios of medians over resampled rounds."""
    rounds = len(a)
    block = max(1, round(rounds ** (1 / 3)))
    starts = np.random.default_rng(_SEED).integers(0, rounds - block + 1, (_RESAMPLES, -(-rounds // block)))
    chosen = (starts[:, :, None] + np.arange(block)).reshape(_RESAMPLES, -1)[:, :rounds]
    ratios = np.median(a[chosen], axis=1) / np.median(b[chosen], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def _noise(a: np.ndarray, b: np.ndarray, low: float, high: float) -> str | None:
    if high / low > STEADY**2:
        return f"the ratio may lie anywhere from {low:.2f} to {high:.2f}"
    half = len(a) // 2
    first, second = (float(np.median(a[part]) / np.median(b[part])) for part in (slice(half), slice(half, None)))
    if max(first, second) / min(first, second) > STEADY**2:
        return f"the ratio was {first:.2f} in the first half of the rounds and {second:.2f} in the second"
    apart = Spread.of((a / b).tolist()).relative
    if apart > SCATTER:
        return f"the ratios of single rounds have quartiles that lie {apart:.0%} of their median apart"
    return None
