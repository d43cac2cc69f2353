from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from chansurg.surgery.errors import InputError
from chansurg.surgery.training.schedules import learning_rate, set_learning_rate


def optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates_of(scheduler: lr_scheduler.LRScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_cosine_is_pytorchs(floor: float) -> None:
    wanted = rates_of(lr_scheduler.CosineAnnealingLR(optimizer(0.4), T_max=50, eta_min=floor), 50)
    assert [learning_rate(step, steps=50, peak=0.4, floor=floor) for step in range(50)] == pytest.approx(wanted)


def test_step_is_pytorchs() -> None:
    wanted = rates_of(lr_scheduler.MultiStepLR(optimizer(0.4), milestones=[10, 30], gamma=0.2), 50)
    rates = [learning_rate(step, steps=50, peak=0.4, schedule="step", milestones=[10, 30], gamma=0.2) for step in range(50)]
    assert rates == pytest.approx(wanted)
    assert learning_rate(49, steps=50, peak=0.4, schedule="step", milestones=[10, 30], gamma=0.2, floor=0.1) == 0.1


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_warm_up_is_a_straight_line_to_the_peak(schedule: str) -> None:
    rates = [learning_rate(step, steps=20, peak=1.0, schedule=schedule, warmup_steps=4) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(rates) == rates[4]
    assert sorted(rates[4:], reverse=True) == rates[4:]


def test_after_the_warm_up_the_whole_cosine_is_left() -> None:
    rates = [learning_rate(step, steps=14, peak=1.0, warmup_steps=4) for step in range(4, 14)]
    assert rates == pytest.approx([learning_rate(step, steps=10, peak=1.0) for step in range(10)])


def test_every_group_gets_it() -> None:
    groups = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "new": new} for new in (False, True)], lr=1.0)
    set_learning_rate(groups, 0.25)
    assert [group["lr"] for group in groups.param_groups] == [0.25, 0.25]
    set_learning_rate(groups, 0.5, only_new=True)
    assert [group["lr"] for group in groups.param_groups] == [0.0, 0.5]


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="no schedule 'linear'"):
        learning_rate(0, steps=10, peak=1.0, schedule="linear")
    with pytest.raises(InputError, match="warm-up of 10 steps"):
        learning_rate(0, steps=10, peak=1.0, warmup_steps=10)
