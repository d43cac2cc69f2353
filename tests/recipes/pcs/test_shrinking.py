"""How a salience gate is trained: shrinking loss, running salience and truncation against the paper's equations, number by number."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks.salience_gates import gate, inputs

from chansurg.recipes.pcs.layer import SalienceGate
from chansurg.surgery.layer import Moment
from tests.recipes.pcs import reference


@pytest.mark.parametrize("selection", ["running", "input"])
def test_the_shrinking_loss_is_that_of_equation_3(selection: str) -> None:
    made = gate(selection=selection, lambda_base=0.5, shrink="3/8", importance=[3, 1, 2, 1, 5, 4, 1, 2]).double().train()
    made.running_salience.copy_(torch.tensor([0.5, 0.2, 0.5, 0.2, 0.1, 0.9, 0.2, 0.5]))  # equals, so that importance decides
    _, source = inputs()
    source = source.double()
    made(inputs()[0].double(), source)
    saliences = reference.salience(made, source)
    keys = [made.running_salience.tolist()] * 3 if selection == "running" else saliences
    base = reference.shrinking_loss(saliences, keys, made.importance.tolist(), 3)
    for progress in (0.1, 0.5, 0.7):
        loss = made.training_loss(Moment(progress))
        assert loss is not None
        assert loss.item() == pytest.approx(base * reference.rate(0.5, progress, 0.75), rel=1e-12)
    few = made.training_loss(Moment(0.5, steps=4_000))
    assert few is not None
    assert few.item() == pytest.approx(base * reference.rate(0.5, 0.5, 0.75) * 300_000 / (4_000 * 0.75), rel=1e-12)
    many = made.training_loss(Moment(0.5, steps=10**7))
    assert many is not None
    assert many.item() == pytest.approx(base * reference.rate(0.5, 0.5, 0.75), rel=1e-12)


def test_its_gradient_reaches_the_selected_entries_and_no_other() -> None:
    made = gate(lambda_base=1.0).train()
    with torch.no_grad():
        made.fc2.weight.mul_(0.01)
        made.fc2.bias.zero_()
    made(*inputs())
    loss = made.training_loss(Moment(0.75 - 1e-6))
    assert loss is not None
    loss.backward()
    chosen = set(made.ranking()[:4].tolist())
    assert {i for i, g in enumerate(made.fc2.bias.grad.tolist()) if g} == chosen
    assert made.fc2.bias.grad[list(chosen)].allclose(torch.tensor(256 / 6))  # one sixth is the slope of a hard sigmoid


@pytest.mark.parametrize(
    ("change", "progress"),
    [({}, 0.75), ({}, 1.0), ({"shrink": "0"}, 0.5), ({"method": "truncation"}, 0.5), ({"closing": 0.6}, 0.45), ({}, 0.0)],
)
def test_where_nothing_is_to_shrink_there_is_no_loss(change: dict[str, Any], progress: float) -> None:
    made = gate(**change).train()
    assert made.training_loss(Moment(0.5)) is None, "nothing was seen yet"
    made(*inputs())
    assert made.training_loss(Moment(progress)) is None
    made = gate().eval()
    made(*inputs())
    assert made.training_loss(Moment(0.5)) is None, "an eval pass is no training"


def test_only_what_is_released_shrinks() -> None:
    made = gate().double().train()
    made(*(x.double() for x in inputs()))
    everything = made.training_loss(Moment(0.7))
    order = made.ranking()
    made.released = torch.zeros_like(made.mask)
    assert made.training_loss(Moment(0.7)) is None
    alone = []
    for entry in range(made.entries):
        made.released.fill_(False)[entry] = True
        alone.append(made.training_loss(Moment(0.7)).item())  # type: ignore[union-attr]
    assert len(set(alone)) > 2
    made.released.fill_(False)[order[[-1, 2]]] = True
    assert made.training_loss(Moment(0.7)).item() == pytest.approx(alone[order[-1]] + alone[order[2]])  # type: ignore[union-attr]
    assert made.ranking()[:2].tolist() == [order[2], order[-1]]
    assert made.ranking().sort().values.tolist() == list(range(made.entries))
    made.released.fill_(True)
    assert made.training_loss(Moment(0.7)).item() == everything.item(), "no more than may go"  # type: ignore[union-attr]


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_the_running_salience_moves_once_a_step_by_all_of_its_images(alpha: float) -> None:
    made = gate(alpha=alpha).double().train()
    running = made.running_salience.tolist()
    seen: list[list[float]] = []
    for step in range(3):
        seen.clear()
        for part in range(2):  # gradients accumulated over two batches
            features, source = (x.double() for x in inputs(seed=10 * step + part))
            made(features, source)
            seen += reference.salience(made, source)
        made.step_taken(Moment(0.1))
        running = reference.moved(running, seen, alpha)
        assert made.running_salience.tolist() == pytest.approx(running, rel=1e-13, abs=1e-15)
    made.step_taken(Moment(0.1))
    assert made.running_salience.tolist() == pytest.approx(running, rel=1e-13, abs=1e-15), "no image was seen, so nothing moves"
    made.eval()(features, source)
    made.step_taken(Moment(0.1))
    assert made.running_salience.tolist() == pytest.approx(running, rel=1e-13, abs=1e-15)


@pytest.mark.parametrize(
    ("arguments", "progress", "lowered"),
    [
        ({}, 0.5, [0, 3]),
        ({"shrink": "1/2"}, 0.5, [0]),  # 1 and 0 are selected
        ({}, 0.8, [0, 3]),  # nothing shrinks any more, but what is all but shut may still get there
        ({"method": "truncation"}, 0.5, []),
        ({"selection": "input"}, 0.5, []),
        ({"shrink": "0"}, 0.5, []),
    ],
    ids=str,
)
def test_what_is_selected_and_all_but_shut_gets_a_margin_where_it_opens(
    arguments: dict[str, Any], progress: float, lowered: list[int]
) -> None:
    """Entries 0, 1 and 3 are all but shut by their average; 0 and 3 are open for this batch. Three of the four may go."""
    made = SalienceGate(4, 4, **{"shrink": "3/4", **arguments}).train()
    made.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.fc2.bias.copy_(torch.tensor([-2.99, -4.0, -1.0, -2.99]))
        made.running_salience.copy_(torch.tensor([1e-3, 0.0, 0.3, 1e-2]))
    before = made.fc2.bias.tolist()
    made(torch.ones(2, 4, 3, 3), torch.ones(2, 4, 3, 3))
    made.step_taken(Moment(progress))
    changed = [i for i, (old, new) in enumerate(zip(before, made.fc2.bias.tolist(), strict=True)) if new != old]
    assert changed == lowered
    made(torch.ones(2, 4, 3, 3), torch.ones(2, 4, 3, 3))
    assert made._batch is not None
    assert not made._batch[:, lowered].any(), "the images that opened it are shut out"


def test_several_processes_keep_one_book() -> None:
    """Two processes with unequal batches follow one with all images."""
    one = gate().double().train()
    with torch.no_grad():
        one.fc2.bias[:2] = -50
    two = [copy.deepcopy(one) for _ in range(2)]
    for step in range(30):
        features, source = (x.double() for x in inputs(seed=step))
        one(features, source)
        two[0](features[:2], source[:2])
        two[1](features[2:], source[2:])
        moment = Moment((step + 1) / 30, epoch=0.1)
        one.step_taken(moment)
        parts = [made._seen for made in two]
        mean = sum(part for part in parts if part is not None) / 2
        for made in two:
            made.step_taken(Moment((step + 1) / 30, epoch=0.1, mean=lambda value, mean=mean: mean))
    assert not one.mask[:2].any()
    for made in two:
        assert torch.allclose(made.running_salience, one.running_salience, rtol=1e-13)
        assert torch.equal(made.mask, one.mask)


def test_truncation_cuts_what_is_lowest_at_once_in_training_and_never_before() -> None:
    made = gate(method="truncation").double()
    features, source = (x.double() for x in inputs())
    untouched = gate().double()
    assert torch.equal(made(features, source), untouched(features, source)), "before training it cuts nothing"
    made.train()(features, source)
    made.step_taken(Moment(0.01))
    cut = made.ranking()[:4]
    for mode in (True, False):
        found = made.train(mode)(features, source)
        assert not found[:, cut].any()
        others = [i for i in range(8) if i not in cut.tolist()]
        assert torch.equal(found[:, others], (features * made.salience(source)[:, :, None, None])[:, others])
    assert made.mask.all()
    for step in range(10, 40):
        made.train()(features, source)
        made.step_taken(Moment((step + 1) / 40, epoch=0.1))
    assert (~made.mask).sum() == 4, "what stayed cut for the whole pass is dead"


def test_truncation_by_input_cuts_each_images_own_lowest() -> None:
    made = gate(method="truncation", selection="input").double()
    features, source = (x.double() for x in inputs())
    made.train()(features, source)
    made.step_taken(Moment(0.01))
    saliences = torch.tensor(reference.salience(made, source), dtype=torch.float64)
    kept = made(torch.ones_like(features), source)[:, :, 0, 0]
    for image, expected in zip(kept, saliences, strict=True):
        order = sorted(range(8), key=lambda i: (float(expected[i]), i))
        assert not image[order[:4]].any()
        torch.testing.assert_close(image[order[4:]], expected[order[4:]], rtol=1e-13, atol=1e-15)
