"""A budget steers gates to a share of the original's cost: what it promises at each moment, and where it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import small
from torch import nn

import chansurg
from chansurg.surgery.files.provenance import attach
from chansurg.surgery.gating import gates
from chansurg.surgery.journal import Entry, Record
from chansurg.surgery.layer import Moment
from chansurg.surgery.training.budget import QUANTITIES, Budget

UNTIL = 0.75  # where shrinking ends by default


def gated(shrink: str = "1/2") -> nn.Module:
    torch.manual_seed(0)
    network = chansurg.convert(small.small(), "pcs", shrink=shrink, input_size=(3, 32, 32))
    for gate in gates(network).values():
        gate.sensitivity.uniform_(generator=torch.Generator().manual_seed(gate.entries))
    return network


def released(network: nn.Module) -> dict[str, int]:
    return {path: int(gate.released.sum()) for path, gate in gates(network).items() if gate.released is not None}


def masked(network: nn.Module) -> int:
    return sum(int((~gate.mask).sum()) for gate in gates(network).values())


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_what_is_released_costs_the_target_once_it_is_gone(quantity: str) -> None:
    network = gated()
    whole = getattr(chansurg.count(small.small(), (3, 32, 32)), quantity)
    target = (Budget(network, 0.99, quantity).floor + 1) / 2
    budget = Budget(network, target, quantity)
    budget.before_step(Moment(0.7))
    assert masked(network) == sum(released(network).values()) > 0
    sliced = chansurg.slice(network, input_size=(3, 32, 32))
    assert getattr(chansurg.count(sliced, (3, 32, 32)), quantity) / whole == pytest.approx(budget.share(), abs=1e-12)
    close = abs(budget.share() - target) <= 0.02 * target
    assert budget.summary() == {"quantity": quantity, "target": target, "reached": budget.share(), "within_tolerance": close}
    assert budget.share() == pytest.approx(target, abs=0.02), "one entry of this small network is up to four per cent"


def test_more_and_more_is_released_until_all_of_it_is_masked() -> None:
    network = gated()
    budget = Budget(network, 0.7, "macs")
    totals, rates, dropped = [], [], []
    for progress in torch.linspace(0, UNTIL - 1e-6, 150).tolist():
        rates.append(budget.before_step(Moment(progress)))
        totals.append(sum(released(network).values()))
        dropped.append(masked(network))
    assert totals == sorted(totals)
    assert totals[0] == 0 < totals[15] < totals[45] <= totals[-1] == dropped[-1]
    closed = rates.index(0.0)
    assert 30 < closed < 60, "in the first third"
    assert rates[:closed] == sorted(rates[:closed])
    assert rates[0] < rates[closed - 1], "what is released stays open here, so the rate grows"
    assert dropped[:closed] == [0] * closed
    assert set(rates[closed:]) == {0.0}
    assert budget.before_step(Moment(0.9)) == 0.0
    assert sum(released(network).values()) == totals[-1]


def test_the_rate_stays_where_all_that_is_released_shuts() -> None:
    network = gated()
    budget = Budget(network, 0.7, "macs")
    rates = []
    for progress in torch.linspace(0, 0.2, 50).tolist():
        rates.append(budget.before_step(Moment(progress)))
        for gate in gates(network).values():
            gate.running_salience[gate.released] = 0.0
    assert len(set(rates)) == 1


def test_whatever_a_run_is_like_it_ends_at_its_target() -> None:
    network = gated()
    budget = Budget(network, 0.7, "macs")
    budget.before_step(Moment(0.5))
    assert budget.share() == pytest.approx(0.7, abs=0.02)


def test_cheap_entries_go_first() -> None:
    network = gated()
    paths = list(gates(network))
    budget = Budget(network, 0.9, "macs")
    dear, cheap = paths[0], paths[-1]
    for path, gate in gates(network).items():
        gate.sensitivity.fill_(1e-9 if path == cheap else 1.0)
    gates(network)[dear].sensitivity[3] = 0.0
    budget.before_step(Moment(0.2))
    assert torch.nonzero(gates(network)[dear].released).flatten().tolist() == [3]
    assert released(network)[cheap] > 1
    assert not any(count for path, count in released(network).items() if path not in (dear, cheap))


def test_a_target_under_the_floor_is_refused_with_the_floor() -> None:
    network = gated("1/4")
    with pytest.raises(chansurg.InputError, match=r"under 0\.\d+, the least") as refused:
        Budget(network, 0.1, "macs")
    assert f"{Budget(network, 0.99, 'macs').floor:.3f}" in refused.value.to_do
    assert "--target-macs" in refused.value.where
    Budget(gated("3/4"), 0.6, "macs")


def test_a_target_that_is_met_already_is_refused_with_what_the_network_costs() -> None:
    network = chansurg.convert(chansurg.convert(small.small(), "mod", input_size=(3, 32, 32)), "pcs", input_size=(3, 32, 32))
    with pytest.raises(chansurg.InputError, match=r"is met: the network costs 0\.\d+ of the original") as refused:
        Budget(network, 0.999, "macs")
    assert "--target-macs" in refused.value.where


def test_a_network_without_gates_is_refused() -> None:
    with pytest.raises(chansurg.InputError, match="no gate") as refused:
        Budget(small.small(), 0.5, "params")
    assert "--target-params" in refused.value.where


def test_a_restored_budget_goes_on_alike() -> None:
    one, other = gated(), gated()
    budget = Budget(one, 0.7, "macs")
    for progress in (0.05, 0.1, 0.15):
        budget.before_step(Moment(progress))
    assert sum(released(one).values()) > 0 == masked(one)
    resumed = Budget(other, 0.7, "macs")
    resumed.restore(budget.state())
    assert released(one) == released(other)
    for progress in (0.17, 0.2, 0.6):
        assert budget.before_step(Moment(progress)) == resumed.before_step(Moment(progress))
        assert released(one) == released(other)
        assert budget.state() == resumed.state()
    assert masked(one) == masked(other) > 0


def test_the_original_is_the_network_before_its_first_conversion_though_it_was_trained_first() -> None:
    network = small.small()
    trained = attach(copy.deepcopy(network), Record(None).with_entry(Entry("finetune", 1, {}, 0, (), kind="finetune"), ""))
    shares = [Budget(chansurg.convert(one, "pcs", input_size=(3, 32, 32)), 0.9, "macs").share() for one in (network, trained)]
    assert shares[0] == shares[1] > 1, "gates cost something"
