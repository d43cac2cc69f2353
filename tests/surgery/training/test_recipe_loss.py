from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import chansurg
from chansurg.surgery.errors import InputError
from chansurg.surgery.gating import gates, masks
from tests.networks import small
from tests.networks.learning_gates import Gated


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 5


def test_a_loop_of_ones_own_closes_gates() -> None:
    torch.manual_seed(0)
    gated, steps = Gated().train(), 60
    images, labels = batch()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.5)
    for step in range(steps):
        loss = F.cross_entropy(gated(images), labels) + 20 * chansurg.recipe_loss(gated, (step + 1) / steps, steps=steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gated.gate1.steps == gated.gate2.steps == steps
    assert gated.gate1.running_salience.mean() < 0.1
    assert not all(mask.all() for mask in masks(gated).values())


def test_it_is_the_sum_over_the_layers_and_reaches_their_weights() -> None:
    gated = Gated().train()
    gated(batch()[0])
    seen = [gated.gate1.seen, gated.gate2.seen]
    loss = chansurg.recipe_loss(gated, 0.5, pressure=3.0, closes_step=False)
    assert loss.item() == pytest.approx(1.5 * sum(salience.mean().item() for salience in seen))
    loss.backward()
    assert all(gate.generator.weight.grad.abs().sum() > 0 for gate in (gated.gate1, gated.gate2))


def test_only_the_batch_that_closes_a_step_moves_the_layers_on() -> None:
    gated = Gated().train()
    for closes_step in (False, False, True):
        gated(batch()[0])
        chansurg.recipe_loss(gated, 0.5, closes_step=closes_step)
    assert gated.gate1.steps == 1


def test_other_processes_are_heard() -> None:
    gated = Gated().train()
    gated(batch()[0])
    chansurg.recipe_loss(gated, 0.5, mean=torch.zeros_like, any=lambda alive: ~alive)
    assert gated.gate1.running_salience.eq(0).all()
    assert gated.gate1.mask.all()


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, partial(torch.compile, backend="eager")])
def test_wrapped_networks_are_looked_into(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(Gated().train())
    wrapped(batch()[0])
    assert chansurg.recipe_loss(wrapped, 1.0).item() > 0


def test_networks_without_such_layers_cost_nothing() -> None:
    plain = nn.Linear(3, 2)
    loss = chansurg.recipe_loss(plain, 0.0)
    assert loss.shape == ()
    assert loss.item() == 0.0
    (plain(torch.randn(2, 3)).sum() + loss).backward()
    assert chansurg.recipe_loss(nn.Linear(3, 2, device="meta"), 0.0).device.type == "meta"


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_is_a_share(progress: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        chansurg.recipe_loss(Gated(), progress)


def test_a_loop_of_ones_own_shrinks_a_pcs_network() -> None:
    torch.manual_seed(0)
    original = small.small().eval()
    gated = chansurg.convert(original, "pcs", input_size=(3, 16, 16), lambda_base=1.0).train()
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 5
    steps, before = 40, {path: gate.running_salience.clone() for path, gate in gates(gated).items()}
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    for step in range(steps):
        logits = gated(images)
        loss = F.cross_entropy(logits, labels) + chansurg.recipe_loss(gated, (step + 1) / steps, epoch=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kept = masks(gated)
    assert all(not torch.equal(gate.running_salience, before[path]) for path, gate in gates(gated).items())
    assert {path for path, mask in kept.items() if not mask.all()} == set(before)
    assert all(mask.sum() >= len(mask) // 2 for mask in kept.values())
