"""What readers make of channels, against layers that are fitted anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from chansurg.surgery.demand import Demand, demand_behind, demand_of, reading_of
from chansurg.surgery.statistics import measure
from chansurg.surgery.survey import Survey, survey
from chansurg.surgery.survey.kinds import path_of


class Squeezed(nn.Module):
    """A pointwise layer with norm and ReLU, and a reader behind it: ``[B, 6, H, W] -> [B, 5, H, W]``."""

    def __init__(self, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.mixing = nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.reader = nn.Conv2d(6, 4, kernel, bias=False, groups=groups)
        self.scale = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.reader(torch.relu(self.norm(self.mixing(x)))))  # type: ignore[no-any-return]


def surveyed(network: nn.Module, images: Tensor) -> Survey:
    found = survey(network, tuple(images.shape[1:]))
    found.statistics = measure(network, [images], positions=10_000)
    return found


def network(kernel: int, groups: int = 1) -> nn.Module:
    torch.manual_seed(3)
    made = Squeezed(kernel, groups).eval()
    with torch.no_grad():
        made.scale.running_var.uniform_(0.2, 2)
        made.scale.weight.uniform_(-1, 2)
        made.norm.bias.uniform_(-0.5, 0.5)
    return made


def images(size: int) -> Tensor:
    mix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    return torch.einsum("dc,bchw->bdhw", mix, torch.randn(40, 6, size, size, generator=torch.Generator().manual_seed(1)))


def call(found: Survey, path: str) -> object:
    return next(node for node in found.regions[0].nodes if path_of(node) == path)


def share_given(inputs: Tensor, response: Tensor) -> float:
    """How much of a response ``[N, O]`` a linear layer on inputs ``[N, K]`` can give, with a bias."""
    inputs, response = inputs - inputs.mean(0), response - response.mean(0)
    fitted = inputs @ torch.linalg.lstsq(inputs, response).solution
    return float(fitted.square().sum() / response.square().sum())


def test_what_functions_of_the_channels_give_is_what_a_fitted_reader_gives() -> None:
    made, x = network(1), images(5)
    found = demand_of(surveyed(made, x), [call(surveyed(made, x), "reader")])
    assert found is not None
    with torch.no_grad():
        channels = torch.relu(made.norm(made.mixing(x)))
        response = made.scale(made.reader(channels)).movedim(1, -1).flatten(0, 2).double()
        channels = channels.movedim(1, -1).flatten(0, 2).double()
    for functions in (torch.eye(6)[:, [0, 3]], torch.randn(6, 3), torch.eye(6)):
        functions = functions.double()
        assert float(found.given(functions)) == pytest.approx(share_given(channels @ functions, response), abs=2e-3)
    assert torch.allclose(found.worth[2], found.given(torch.eye(6, dtype=torch.float64)[:, [2]]))
    assert torch.equal(found.of([1, 4]).covariance, found.covariance[[1, 4]][:, [1, 4]])


def test_each_reader_counts_for_its_whole_response() -> None:
    made, x = network(1), images(5)
    found = surveyed(made, x)
    once = demand_of(found, [call(found, "reader")])
    twice = demand_of(found, [call(found, "reader"), call(found, "reader")])
    assert once is not None
    assert twice is not None
    assert float(once.given(torch.eye(6, dtype=torch.float64))) == pytest.approx(1.0)
    assert torch.allclose(twice.wanted, 2 * once.wanted)


def test_groups_read_their_own_channels_and_filters_may_be_left_out() -> None:
    made, x = network(3, groups=2), images(5)
    found = surveyed(made, x)
    reading = reading_of(found, call(found, "reader"))
    assert reading is not None
    assert reading[:3, 3:].abs().max() == 0
    assert reading[:3, :3].abs().min() > 0
    first = reading_of(found, call(found, "reader"), counts=torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert torch.equal(first[:3, :3], reading[:3, :3])
    assert first[3:, 3:].abs().max() == 0


def test_without_data_or_numbers_nothing_is_known() -> None:
    made, x = network(1), images(5)
    found = survey(made, (6, 5, 5))
    reader, mixing = call(found, "reader"), call(found, "mixing")
    assert demand_of(found, [reader]) is None
    assert reading_of(found, reader) is None
    assert demand_behind(found, mixing, True, [reader]) is None
    assert demand_of(surveyed(made, x), []) is None


@pytest.mark.parametrize("readers", [True, False])
def test_what_is_read_behind_a_layer_that_goes(readers: bool) -> None:
    """From the moments of the inputs alone, close to what regression on the true activations finds."""
    made, x = network(1), images(16)
    found = surveyed(made, x)
    behind = demand_behind(found, call(found, "mixing"), True, [call(found, "reader")] if readers else [])
    assert behind is not None
    demand, cross = behind
    assert isinstance(demand, Demand)
    with torch.no_grad():
        squeezed = torch.relu(made.norm(made.mixing(x)))
        response = (made.scale(made.reader(squeezed)) if readers else squeezed).movedim(1, -1).flatten(0, 2).double()
        squeezed = squeezed.movedim(1, -1).flatten(0, 2).double()
    rows = x.movedim(1, -1).flatten(0, 2).double()
    true = (rows - rows.mean(0)).T @ (squeezed - squeezed.mean(0))
    cosine = torch.nn.functional.cosine_similarity(cross, true, dim=0)
    assert cosine.min() > 0.99
    if readers:
        shares = [share_given(rows @ f, response) for f in torch.eye(6).double().split(3, dim=1)]
        assert [float(demand.given(f)) for f in torch.eye(6).double().split(3, dim=1)] == pytest.approx(shares, rel=0.1, abs=0.02)
