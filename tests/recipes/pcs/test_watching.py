"""Which entries a run sees dead, and when it masks them: runs of forty steps whose saliences are set by hand."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from chansurg.recipes.pcs.layer import SalienceGate
from chansurg.surgery.layer import Moment


class Script:
    """A run of 40 steps in which each of four entries has its salience as it is told: above zero, but for the steps of ``zero[i]``."""

    STEPS = 40

    def __init__(self, zero: dict[int, range], **arguments: Any) -> None:
        self.gate = SalienceGate(4, 4, **{"shrink": "3/4", **arguments}).train()
        self.gate.reset_parameters(torch.Generator().manual_seed(0))
        self.zero = zero
        self.masks: list[list[bool]] = []

    def run(self, first: int = 0, last: int = STEPS, *, epoch: float | None = 0.1, before: bool = False) -> list[int]:
        """The step after which each entry was masked; -1 for never. ``before``: progress is taken ahead of each step, not behind it."""
        for step in range(first, last):
            with torch.no_grad():
                self.gate.fc2.bias.copy_(torch.tensor([-4.0 if step in self.zero.get(i, ()) else 1.0 for i in range(4)]))
            self.gate(torch.ones(2, 4, 3, 3), torch.ones(2, 4, 3, 3))
            self.gate.step_taken(Moment((step if before else step + 1) / self.STEPS, epoch=epoch))
            self.masks.append(self.gate.mask.tolist())
        return [next((step for step, mask in enumerate(self.masks) if not mask[i]), -1) for i in range(4)]


@pytest.mark.parametrize(
    ("zero", "masked"),
    [
        (range(25, 40), 29),
        (range(25, 30), 29),  # it comes back too late
        (range(25, 29), -1),  # one batch of the pass had it
        (range(26, 30), -1),
        (range(29, 34), 33),  # dead in the first pass of the closing part alone
        (range(26, 40), 33),
        (range(33, 40), 39),  # the last pass takes in what is left
        (range(33, 39), -1),
        (range(34, 40), -1),
    ],
)
def test_what_is_zero_for_a_whole_pass_is_masked_when_shrinking_ends_or_later(zero: range, masked: int) -> None:
    """Passes of four steps; shrinking ends behind step 29. Watched are 26 to 29, 30 to 33, 34 to 39, each with the step ahead of it."""
    assert Script({1: zero}).run() == [-1, masked, -1, -1]


@pytest.mark.parametrize(("zero", "masked"), [(range(26, 31), 30), (range(27, 31), -1), (range(26, 30), -1), (range(30, 35), 34)])
def test_progress_may_be_taken_ahead_of_a_step(zero: range, masked: int) -> None:
    """The passes are 26 to 29 and 30 to 33, each with the step behind it."""
    assert Script({1: zero}).run(before=True) == [-1, masked, -1, -1]


@pytest.mark.parametrize(
    ("epoch", "closing", "zero", "masked"),
    [
        (None, 0.25, range(27, 30), 29),  # nobody knows how long a pass is: a twentieth of the run
        (None, 0.25, range(28, 30), -1),
        (0.1, 0.0, range(35, 40), 39),  # no closing part: masked at the very end
        (0.5, 0.25, range(9, 30), 29),  # the closing part has no room for a pass
        (0.5, 0.25, range(10, 40), -1),
        (0.9, 0.25, range(30), 29),  # shrinking is shorter than a pass
        (0.1, 0.75, range(5, 10), 9),
    ],
)
def test_what_is_watched_depends_on_the_run(epoch: float | None, closing: float, zero: range, masked: int) -> None:
    assert Script({0: zero}, closing=closing).run(epoch=epoch) == [masked, -1, -1, -1]


@pytest.mark.parametrize(("shrink", "masked"), [("1/2", [-1, 29, -1, 29]), ("0", [-1] * 4), ("99/100", [-1, 29, 29, 29])])
def test_no_more_than_may_shrink_is_masked_and_the_least_important_of_equals_first(shrink: str, masked: list[int]) -> None:
    zero = {i: range(1, 40) for i in range(4)}
    assert Script(zero, importance=[4.0, 1.0, 3.0, 2.0], shrink=shrink).run() == masked


@pytest.mark.parametrize("cut", [20, 25, 26, 27, 29, 30, 31, 33, 34, 39])
def test_a_run_that_is_taken_up_again_masks_the_same(cut: int) -> None:
    zero = {0: range(26, 40), 1: range(25, 31), 2: range(34, 36)}
    whole, first, second = (Script(zero) for _ in range(3))
    expected = whole.run()
    first.run(last=cut)
    buffer = io.BytesIO()
    torch.save(first.gate.state_dict(), buffer)
    second.gate.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    second.masks = first.masks
    assert second.run(cut) == expected == [33, 29, -1, -1]
    assert all(torch.equal(value, second.gate.state_dict()[name]) for name, value in whole.gate.state_dict().items())


def test_another_run_begins_to_watch_anew_and_keeps_what_is_masked() -> None:
    first, again = Script({0: range(25, 30), 1: range(33, 38)}), Script({})
    first.run(last=38)
    again.gate = first.gate
    assert again.run() == [0, -1, -1, -1]
