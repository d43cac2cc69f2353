"""The salience gate against the paper's equations written out number by number, and what a network's user expects of any layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from networks.salience_gates import SHAPES, gate, inputs

from chansurg.recipes.pcs.layer import SalienceGate
from chansurg.surgery.gating import Gate
from chansurg.surgery.layer import Moment
from tests.recipes.pcs import reference


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
