"""The salience gate against the paper's equations written out number by number, and what a network's user expects of any layer."""

from __future__ import annotations

import copy
import importlib.util
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chansurg.recipes.pcs.layer import SalienceGate
from chansurg.surgery.gating import Gate
from chansurg.surgery.layer import Moment

_spec = importlib.util.spec_from_file_location("pcs_reference", Path(__file__).with_name("reference.py"))
assert _spec is not None
assert _spec.loader is not None
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

SHAPES = {
    "map": ((3, 8, 5, 4), (3, 12, 10, 8), 1),
    "tokens": ((3, 7, 8), (3, 7, 12), -1),
    "map with channels last": ((3, 5, 4, 8), (3, 5, 4, 12), -1),
    "vector": ((3, 8), (3, 12), 1),
    "sequence": ((3, 8, 6), (3, 12, 6), 1),
}


def gate(in_channels: int = 12, entries: int = 8, *, lively: bool = True, **arguments: Any) -> SalienceGate:
    """A gate whose saliences lie everywhere from 0 to 1, 0 and 1 included."""
    made = SalienceGate(in_channels, entries, **arguments)
    generator = torch.Generator().manual_seed(0)
    made.reset_parameters(generator)
    if lively:
        nn.init.normal_(made.fc2.weight, std=3.0, generator=generator)
        nn.init.normal_(made.fc2.bias, std=3.0, generator=generator)
        made.running_salience.uniform_(generator=generator)
    return made


def inputs(name: str = "map", seed: int = 1) -> tuple[Tensor, Tensor]:
    features, source, _ = SHAPES[name]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(features, generator=generator), torch.randn(source, generator=generator) + 0.5


@pytest.mark.parametrize("name", SHAPES)
def test_it_multiplies_by_the_papers_salience(name: str) -> None:
    dim = SHAPES[name][2]
    made = gate(channel_dim=dim).double()
    with torch.no_grad():
        made.fc2.bias[5] = -50
    features, source = (x.double() for x in inputs(name))
    expected = torch.tensor(reference.salience(made, source), dtype=torch.float64)
    assert (expected == 0).any()
    assert ((expected > 0) & (expected < 1)).any()
    torch.testing.assert_close(made.salience(source), expected, rtol=1e-13, atol=1e-15)
    made.mask[2] = False
    expected[:, 2] = 0
    found = made(features, source)
    by_channel = expected.reshape(3, 8, *(1,) * (features.ndim - 2))
    torch.testing.assert_close(found.movedim(dim, 1), features.movedim(dim, 1) * by_channel, rtol=1e-13, atol=1e-15)
    assert not found.movedim(dim, 1)[:, 2].any()
    assert torch.equal(made.train()(features, source), found), "the mask is applied in both modes"


@pytest.mark.parametrize("in_channels", [1, 3, 4, 7, 12, 64])
def test_the_generator_is_a_quarter_as_wide_as_its_input_and_never_empty(in_channels: int) -> None:
    made = SalienceGate(in_channels, 5)
    assert made.fc1.weight.shape == (max(1, in_channels // 4), in_channels)
    assert made.fc2.weight.shape == (5, max(1, in_channels // 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_at_first_it_halves_exactly(name: str, dtype: torch.dtype) -> None:
    made = gate(lively=False, channel_dim=SHAPES[name][2]).to(dtype)
    features, source = (x.to(dtype) for x in inputs(name))
    found = made(features, source)
    assert found.dtype == dtype
    assert torch.equal(found * 2, features)
    assert made.fc1.weight.any()
    assert not made.fc2.weight.any()
    assert not made.fc2.bias.any()
    assert (made.running_salience == 0.5).all()
    assert made.mask.all()


def test_units_share_one_salience() -> None:
    made = gate(entries=4, unit=2)
    features, source = inputs()
    expected = features * made.salience(source).repeat_interleave(2, 1)[:, :, None, None]
    assert torch.equal(made(features, source), expected)
    made.mask[1] = False
    assert made(features, source)[:, 2:4].abs().max() == 0
    assert made.per_channel(made.mask).tolist() == [True, True, False, False, True, True, True, True]


def test_it_is_drawn_from_the_generator_alone_and_one_hidden_unit_is_alive_behind_a_relu() -> None:
    drawn = [gate(lively=False) for _ in range(2)]
    torch.manual_seed(9)
    drawn[1].reset_parameters(torch.Generator().manual_seed(0))
    assert torch.equal(drawn[0].fc1.weight, drawn[1].fc1.weight)
    drawn[1].reset_parameters(torch.Generator().manual_seed(1))
    assert not torch.equal(drawn[0].fc1.weight, drawn[1].fc1.weight)
    for seed in range(20):
        made = SalienceGate(3, 4)
        made.reset_parameters(torch.Generator().manual_seed(seed))
        assert (made.fc1(torch.rand(5, 3)) > 0).any(1).all()
        assert made.fc1.weight.abs().max() <= 3**-0.5


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


def test_an_allowance_says_how_many_shrink() -> None:
    made = gate().double().train()
    made(*(x.double() for x in inputs()))
    losses = []
    for allowance in (None, 9, 4, 3, 1):
        made.allowance = allowance
        losses.append(made.training_loss(Moment(0.7)).item())  # type: ignore[union-attr]
    assert losses[0] == losses[1] == losses[2]
    assert all(a >= b for a, b in pairwise(losses))
    made.allowance = 0
    assert made.training_loss(Moment(0.7)) is None


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


def test_averages_stay_precise_where_the_network_does_not() -> None:
    made = gate(importance=[0.1 * i for i in range(8)])
    importance, running = made.importance.clone(), made.running_salience.clone()
    for half in (made.half(), made.bfloat16()):
        assert half is made
        assert made.fc1.weight.dtype in (torch.float16, torch.bfloat16)
        assert torch.equal(made.importance, importance)
        assert torch.equal(made.running_salience, running)
    assert made.double().running_salience.dtype == torch.float64
    made = gate().half().train()
    for _ in range(3):
        made(*(x.half() for x in inputs()))
        made.step_taken(Moment(0.5))
    assert made.running_salience.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow_and_autocast_keeps_the_features_dtype(dtype: torch.dtype) -> None:
    made = gate().to(dtype)
    source = torch.full((2, 12, 128, 128), 6.0, dtype=dtype)
    found = made(torch.ones(2, 8, 4, 4, dtype=dtype), source)
    assert found.dtype == dtype
    assert found.isfinite().all()
    made = gate().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made(*inputs())
        loss = made.training_loss(Moment(0.5))
    assert found.dtype == torch.float32
    assert loss is not None
    assert loss.dtype == torch.float32
    (found.sum() + loss).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_layout_and_values_do_not_depend_on_the_memory_format() -> None:
    made = gate()
    features, source = inputs()
    last = [x.contiguous(memory_format=torch.channels_last) for x in (features, source)]
    found = made(*last)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, made(features, source))
    assert made(features, source).is_contiguous()
    assert made(features[:1], source[:1]).shape == (1, 8, 5, 4)


def test_copies_and_pickles_do_not_hold_the_batch_just_seen() -> None:
    made = gate().train()
    made(*inputs())
    assert "_batch" not in made.state_dict()
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.training_loss(Moment(0.5)) is None
        assert torch.equal(other(*inputs()), made(*inputs()))
        assert list(other.state_dict()) == list(made.state_dict())
    assert made.training_loss(Moment(0.5)) is not None
    made.step_taken(Moment(0.5))
    assert made.training_loss(Moment(0.5)) is None, "a step was taken since"


def test_every_parameter_learns() -> None:
    made = gate(lively=False).train()
    optimizer = torch.optim.SGD(made.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        made(*inputs()).square().sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())
    assert {name for name, _ in made.named_parameters() if "weight" in name} == made.no_weight_decay


def test_it_compiles_in_both_modes_and_exports() -> None:
    torch._dynamo.reset()
    for training in (False, True):
        made = gate().train(training)
        other = copy.deepcopy(made)
        compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            torch.testing.assert_close(compiled(*inputs()), made(*inputs()))
        losses = [each.training_loss(Moment(0.5)) for each in (made, other)]
        assert (losses[0] is None) is not training
        if losses[0] is not None and losses[1] is not None:
            torch.testing.assert_close(losses[0], losses[1])
            losses[1].backward()
            assert other.fc2.bias.grad is not None
    made = gate().eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(made, inputs(), dynamic_shapes=({0: batch}, {0: batch})).module()
    features, source = (torch.cat([x, x]) for x in inputs())
    torch.testing.assert_close(exported(features, source), made(features, source))


@pytest.mark.parametrize("unit", [1, 2])
def test_a_narrowed_gate_computes_what_it_did_for_what_is_left(unit: int) -> None:
    made = gate(entries=8 // unit, unit=unit, importance=[float(i) for i in range(8 // unit)]).double()
    features, source = (x.double() for x in inputs())
    source[:, [0, 5]] = 0
    entries = [0, 2, 3]
    channels = [entry * unit + i for entry in entries for i in range(unit)]
    before = made(features, source)[:, channels]
    running = made.running_salience[entries].clone()
    inner = [i for i in range(12) if i not in (0, 5)]
    assert made.reason_against_narrowing(inner, channels) is None
    made.narrow(inner, channels)
    torch.testing.assert_close(made(features[:, channels], source[:, inner]), before, rtol=1e-13, atol=1e-15)
    assert (made.in_channels, made.entries, made.out_channels) == (10, 3, 3 * unit)
    assert torch.equal(made.running_salience, running)
    assert made.importance.tolist() == [0.0, 2.0, 3.0]
    made.reset_parameters()
    assert made.importance.tolist() == [0.0, 2.0, 3.0]


def test_half_a_unit_cannot_go() -> None:
    made = gate(entries=4, unit=2)
    assert "share one salience" in (made.reason_against_narrowing(None, [0, 1, 2]) or "")
    assert "share one salience" in (made.reason_against_narrowing(None, [1, 0]) or "")
    assert "no output channel" in (made.reason_against_narrowing(None, []) or "")
    assert "12 input channels" in (made.reason_against_narrowing([12], None) or "")
    assert made.reason_against_narrowing(None, [2, 3, 6, 7]) is None


def test_it_is_a_gate_that_keeps_the_contract() -> None:
    made = gate(entries=5, shrink="1/2")
    assert isinstance(made, Gate)
    assert (made.entries, made.shrinkable, made.shrinks_until) == (5, 2, 0.75)
    made.mask[3] = False
    frozen = made.frozen_salience()
    assert frozen[3] == 0
    assert torch.equal(frozen[:3], made.running_salience[:3])
    with torch.device("meta"):
        assert SalienceGate(4, 4, importance=[1, 2, 3, 4]).mask.is_meta
    assert str(gate(unit=2, entries=4, channel_dim=-1)).startswith("SalienceGate(\n  12 -> 8, unit=2, channel_dim=-1, shrink=1/2")
