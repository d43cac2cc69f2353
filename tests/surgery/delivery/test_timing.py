from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest

from chansurg.surgery.delivery.timing import FEWEST, Spread, in_turn, others_share, processor_times, ratio, seconds_in_turn, wall_clock


def rounds(median: float, count: int = 40, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    return median * np.exp(noise * np.random.default_rng(seed).standard_normal(count))


def test_measurements_take_turns_every_other_round_backwards_and_warm_ups_are_dropped() -> None:
    order: list[str] = []

    def measure(name: str) -> int:
        order.append(name)
        return len(order)

    found = in_turn([partial(measure, name) for name in "abc"], rounds=3, warm_up=1)
    assert "".join(order) == "abccbaabccba"
    assert found == [[6, 7, 12], [5, 8, 11], [4, 9, 10]]


def test_seconds_are_those_of_one_call_however_often_it_is_made_in_its_turn() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.002)

    (seconds,) = seconds_in_turn([call], rounds=3)
    assert calls > 3 + 2 + 2
    assert len(seconds) == 3
    assert all(0.002 <= one < 0.02 for one in seconds)


def test_a_ratio_that_is_known_ends_the_rounds_and_one_that_is_not_goes_on_to_the_limit() -> None:
    def stopwatch(source: np.random.Generator, noise: float) -> float:
        time.sleep(0.001)
        return float(np.exp(noise * source.standard_normal()))

    source = np.random.default_rng(0)
    quiet = seconds_in_turn([lambda: None] * 2, limit=30, stopwatch=lambda call, times: stopwatch(source, 0.001))
    noisy = seconds_in_turn([lambda: None] * 2, limit=0.3, stopwatch=lambda call, times: stopwatch(source, 1.0))
    assert len(quiet[0]) == len(quiet[1]) == FEWEST
    assert len(noisy[0]) == len(noisy[1]) > FEWEST


def test_a_quiet_machine_tells_the_ratio_of_the_medians_within_its_interval() -> None:
    a, b = rounds(0.2, seed=1), rounds(0.1, seed=2)
    found = ratio(a, b)
    assert found.told == found.value == pytest.approx(np.median(a) / np.median(b))
    assert found.low < 2 < found.high
    assert found.high / found.low < 1.05
    assert ratio(a, b) == found


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(200):
        found = ratio(rounds(1.3, noise=0.03, seed=seed), rounds(1.0, noise=0.03, seed=1000 + seed))
        inside += found.low <= 1.3 <= found.high
    assert inside >= 180


def test_a_slowness_that_both_share_does_not_hide_their_ratio() -> None:
    shared = np.repeat(np.where(np.random.default_rng(0).random(10) < 0.4, 2.0, 1.0), 8)
    assert ratio(1.5 * shared * rounds(1.0, 80, seed=1), shared * rounds(1.0, 80, seed=2)).told == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        (rounds(1.0, 9), rounds(1.0, 9), "there are 9 rounds"),
        (rounds(1.0, 40, noise=0.4, seed=1), rounds(1.0, 40, noise=0.4, seed=2), "may lie anywhere from"),
        (np.r_[rounds(1.0, 280), rounds(1.3, 120)], rounds(1.0, 400, seed=2), "in the first half of the rounds"),
        (rounds(1.0, 400, noise=0.2, seed=5), rounds(1.0, 400, noise=0.2, seed=6), "quartiles"),
    ],
    ids=["few", "wide", "drifting", "scattered"],
)
def test_what_is_too_noisy_is_not_told_and_says_why(a: np.ndarray, b: np.ndarray, told: str) -> None:
    found = ratio(a, b)
    assert found.told is None
    assert found.noise is not None
    assert told in found.noise


def test_a_spread_of_one_round_is_that_round() -> None:
    assert Spread.of([0.5]) == Spread(0.5, 0.5, 0.5)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread(2.0, 1.5, 2.5).relative == 0.5


def test_what_others_used_is_told_apart_from_our_own_work() -> None:
    assert others_share((10.0, 100.0, 5.0), (26.0, 120.0, 15.0)) == pytest.approx(6 / 20)
    assert others_share((10.0, 100.0, 5.0), (19.0, 120.0, 15.0)) == 0
    assert others_share(None, (1.0, 2.0, 1.0)) is None
    before = processor_times()
    wall_clock(lambda: sum(range(100_000)), 3)
    share = others_share(before, processor_times())
    assert share is None or 0 <= share <= 1
