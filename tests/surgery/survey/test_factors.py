"""Where factors go, proved by putting them there: a network scaled at a node, and made up for by the edits, is the same function."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from networks import small
from networks.flowing import LayerScale, Pair, Path, SqueezeAndExcitation, WithStem
from torch import Tensor, fx, nn
from torch.nn import functional

import chansurg
from chansurg.surgery.editing.applying import perform
from chansurg.surgery.gating import gates
from chansurg.surgery.survey import Region, Survey, survey
from chansurg.surgery.survey.factors import NoPlace, places_for_factors
from chansurg.surgery.survey.flow import flow
from chansurg.surgery.survey.kinds import path_of
from chansurg.surgery.survey.meeting import meeting

SIZE = (3, 8, 8)


def surveyed(network: nn.Module, path: str, size: tuple[int, ...] = SIZE) -> tuple[Survey, Region, fx.Node]:
    found = survey(network, size)
    region = found.regions[0]
    return found, region, next(node for node in region.nodes if path_of(node) == path)


class Halving(nn.Module):
    """Runs a module and multiplies what it puts out: ``[B, C, …]``, or channels last."""

    def __init__(self, inner: nn.Module, factors: Tensor) -> None:
        super().__init__()
        self.inner, self.factors = inner, factors

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y * self.factors.reshape(-1, *(1,) * (y.ndim - 2)) if y.ndim != 3 else y * self.factors


def made_up(network: nn.Module, path: str, channels: int) -> tuple[nn.Module, list[tuple[str, str]]]:
    """The network with the edits that make up for random factors behind ``path``, and those factors; double precision."""
    torch.manual_seed(0)
    network = network.double().eval()
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    found, region, node = surveyed(network, path)
    shares = places_for_factors(found, region, node, 1)
    factors = torch.rand(channels, dtype=torch.float64) + 0.5
    new = copy.deepcopy(network)
    perform(new, [share.scale(factors.tolist()) for share in shares], {}, seed=None)
    parent, _, name = path.rpartition(".")
    holder = new.get_submodule(parent)
    if isinstance(holder, nn.Sequential):
        holder[int(name)] = Halving(holder[int(name)], 1 / factors)
    else:
        setattr(holder, name, Halving(getattr(holder, name), 1 / factors))
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(new(x), network(x), rtol=1e-12, atol=1e-12)
    return new, [(share.path, share.side) for share in shares]


AHEAD = {
    "norm and ReLU": (nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), "behind.1", "behind.0"),
    "ReLU alone": (nn.Sequential(nn.Identity(), nn.ReLU()), "behind.1", "gated"),
    "norm alone": (nn.Sequential(nn.BatchNorm2d(8)), "behind.0", "behind.0"),
    "leaky": (nn.Sequential(nn.BatchNorm2d(8), nn.LeakyReLU(), nn.Dropout()), "behind.1", "behind.0"),
    "group norm": (nn.Sequential(nn.GroupNorm(2, 8), nn.ReLU()), "behind.1", "behind.0"),
}


@pytest.mark.parametrize("name", AHEAD)
def test_ahead_through_what_is_homogeneous(name: str) -> None:
    behind, path, takes = AHEAD[name]
    _, shares = made_up(Path(nn.Identity(), behind=behind), path, 8)
    assert shares == [(takes, "out")]


BEHIND: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "at once": (lambda: Path(nn.Identity()), ["reader"]),
    "pooling": (lambda: Path(nn.AvgPool2d(3, 2, 1)), ["reader"]),
    "padding": (lambda: Path(lambda x: functional.pad(x, (1, 0, 2, 1))), ["reader"]),
    "flattening": (lambda: Path(nn.Flatten(), nn.Linear(512, 4)), ["reader"]),
    "flattening in another order": (lambda: Path(lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1), nn.Linear(512, 4)), ["reader"]),
    "tokens": (lambda: Path(lambda x: x.flatten(2).transpose(1, 2), nn.Linear(8, 4)), ["reader"]),
    "concatenation": (lambda: Path(lambda x: torch.cat([x[:, :3], x, functional.relu(x)], 1), nn.Conv2d(19, 4, 3)), ["reader"]),
    "shuffling": (lambda: Path(lambda x: x.view(x.shape[0], 2, 4, 8, 8).transpose(1, 2).reshape(x.shape)), ["reader"]),
    "splitting": (lambda: Path(lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1)), ["reader"]),
    "squeeze and excitation": (lambda: Path(SqueezeAndExcitation()), ["path.fc1", "reader"]),
    "layer scale": (lambda: Path(LayerScale()), ["reader"]),
    "a grouped reader": (lambda: Path(nn.Identity(), nn.Conv2d(8, 4, 3, groups=2)), ["reader"]),
    "a depthwise reader": (lambda: Path(nn.Identity(), nn.Conv2d(8, 16, 3, groups=8)), ["reader"]),
    "dividing": (lambda: Path(lambda x: x / 3), ["reader"]),
    "averaging": (lambda: Path(lambda x: x.mean((2, 3)), nn.Linear(8, 4)), ["reader"]),
}


@pytest.mark.parametrize("name", BEHIND)
def test_behind_into_whoever_reads(name: str) -> None:
    build, takers = BEHIND[name]
    network = build()
    network.behind = nn.Sequential(nn.BatchNorm2d(8), nn.GELU())  # type: ignore[assignment]
    _, shares = made_up(network, "behind.1", 8)
    assert shares == [(path, "in") for path in takers]


NOWHERE: dict[str, tuple[Callable[[Tensor], Tensor] | nn.Module, nn.Module | None, str]] = {
    "an addition": (lambda x: x + x.flip(3), None, "it is added to another tensor at path:operator.add"),
    "a constant": (lambda x: x + 1.0, None, "it is added to a constant"),
    "a square": (lambda x: x * x, None, "mul at path:operator.mul makes something else"),
    "ReLU6": (nn.ReLU6(), None, "ReLU6 at path makes something else"),
    "a norm": (nn.BatchNorm2d(8), None, "the norm path makes something else"),
    "the output": (nn.Identity(), nn.Identity(), "it leaves the network"),
    "an operation not known": (torch.fft.fft, None, "makes something else of it"),
    "a reciprocal": (lambda x: 2 / (x.abs() + 1), None, "makes something else of it"),
    "channels in space": (nn.PixelShuffle(2), nn.Conv2d(2, 4, 1), "PixelShuffle at path"),
    "a transposed convolution": (nn.ConvTranspose2d(8, 8, 2), None, "ConvTranspose2d at path"),
}


@pytest.mark.parametrize("name", NOWHERE)
def test_where_nobody_can_take_factors_the_reason_is_given(name: str) -> None:
    path, reader, why = NOWHERE[name]
    network = Path(path, reader, behind=nn.Sequential(nn.BatchNorm2d(8), nn.GELU())).eval()
    if name == "an operation not known":
        network.reader = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(NoPlace, match=why):
        places_for_factors(*surveyed(network, "behind.1"), 1)


def test_what_others_read_too_is_not_scaled_ahead() -> None:
    """The norm's output goes past the ReLU as well, so only the ReLU's reader can take the factor."""

    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
            self.reader, self.other = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x))
            return self.reader(self.relu(x)) + self.other(x)

    _, shares = made_up(Forked(), "relu", 8)
    assert shares == [("reader", "in")]


def test_shared_and_computed_weights_take_no_factor() -> None:
    tied = Path(nn.Identity(), nn.Conv2d(8, 6, 3), behind=nn.GELU())
    tied.stem = nn.Conv2d(3, 6, 3, padding=1)
    other = nn.Conv2d(8, 6, 3)
    other.weight = tied.reader.weight
    tied.path = nn.Sequential(nn.Identity())
    tied.other = other
    with pytest.raises(NoPlace, match="reader reads it: it shares a weight with other"):
        places_for_factors(*surveyed(tied.eval(), "behind"), 1)


def test_a_gate_passes_its_features_and_reads_its_source_unless_it_is_frozen() -> None:
    """Two gated layers with a GELU ahead of the second: its gate computes from what the factor changes."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 1), nn.GELU(), nn.Conv2d(8, 8, 1), nn.GELU(), nn.Conv2d(8, 4, 1))
    network = chansurg.convert(nn.Sequential(*layers).eval(), "pcs", input_size=SIZE)
    first, second = gates(network)
    found, region, node = surveyed(network, first)
    with pytest.raises(NoPlace, match=f"the gate {second} computes its salience from it"):
        places_for_factors(found, region, node, 1)
    shares = places_for_factors(found, region, node, 1, frozen={second})
    assert [(share.path, share.side) for share in shares] == [("2", "in")]
    found, region, node = surveyed(network, "3")
    assert [share.path for share in places_for_factors(found, region, node, 1)] == ["4"], "through the gate to the layer behind it"


def test_the_flow_tells_each_inputs_channel() -> None:
    network = Path(
        lambda x: torch.cat([functional.pad(x[:, 6:], (0, 0, 0, 0, 2, 0)), functional.max_pool2d(x, 3, 1, 1)], 1), nn.Conv2d(12, 4, 1)
    )
    _, region, node = surveyed(network.eval(), "behind.1")
    (reader,) = flow(region, node, 1, homogeneous=True).readers[:1]
    assert reader.origins == (None, None, 6, 7, *range(8))
    network = Path(lambda x: functional.adaptive_avg_pool2d(x, 2).flatten(1), nn.Linear(32, 4))
    _, region, node = surveyed(network.eval(), "behind.1")
    (reader,) = flow(region, node, 1, homogeneous=True).readers
    assert reader.origins == tuple(channel for channel in range(8) for _ in range(4))


def test_the_flow_of_zeros_passes_more_than_that_of_factors() -> None:
    for homogeneous, kind in ((True, "other"), (False, "layer")):
        _, region, node = surveyed(Path(nn.SiLU()).eval(), "behind.1")
        assert [reader.kind for reader in flow(region, node, 1, homogeneous=homogeneous).readers] == [kind]


def test_the_smallest_module_that_sees_both_calls() -> None:
    network = WithStem(nn.Sequential(nn.Sequential(nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 6, 1))))
    found = survey(network.eval(), SIZE)
    region = found.regions[0]
    at = {path_of(node): node for node in region.nodes}
    within = meeting(region, at["inner.0.0"], at["inner.0.1"])
    assert within is not None
    assert (within.reads.path, within.after.path) == ("inner.0.0", "inner.0.1")
    across = meeting(region, at["inner.0.0"], at["inner.1"])
    assert across is not None
    assert (across.reads.path, across.after.path) == ("inner.0", "inner.1")
    assert across.after.owner == "inner"
    assert found.unrewritable(region, across.reads) is None
    outer = meeting(region, at["stem"], at["inner.2.0"])
    assert outer is not None
    assert (outer.reads.path, outer.after.path) == ("stem", "inner")
    assert meeting(region, at["inner.2.0"], at["head"]) is None, "no call is given what the inner layer is given and sees the head"


def test_every_gated_pair_of_a_real_network_meets_where_both_are_called() -> None:
    network = small.small().eval()
    found = survey(network, (3, 32, 32))
    for region in found.regions:
        for node in region.nodes:
            if path_of(node) == "blocks.0.conv2":
                met = meeting(region, node, node)
                assert met is not None
                assert met.reads == met.after == node.meta["address"]
    pair = WithStem(Pair(12, 12)).eval()
    found = survey(pair, SIZE)
    at = {path_of(node): node for node in found.regions[0].nodes}
    met = meeting(found.regions[0], at["inner.expand"], at["inner.norm2"])
    assert met is not None
    assert (met.reads.operation, met.after.operation) == ("self.expand", "self.norm2")
