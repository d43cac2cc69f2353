"""Calibration of whole networks: what comes nearer, what stays, and what it takes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import odd
from networks.matrix import lively
from networks.small import small, tied
from torch import Tensor, nn

import chansurg
from chansurg.surgery.calibration import calibrate, calibrating, playing
from chansurg.surgery.calibration.norms import norms_in, settle
from chansurg.surgery.carrying_out import carry_out
from chansurg.surgery.edits import Narrow
from chansurg.surgery.files.provenance import record_of, with_input_size
from chansurg.surgery.images.unlabelled import Unlabelled
from chansurg.surgery.plan import Plan
from chansurg.surgery.reading.cifar import build_cifar

Pictures = Callable[[int, int], Unlabelled]
SIDE = 16
RECIPES: list[tuple[str, dict[str, Any]]] = [
    ("slimconv", {"k": "8/3"}),
    ("slimconv", {"k": "4/3"}),
    ("mod", {}),
    ("pix", {"mode": "downscale", "zeta": 2}),
]


def trained(network: nn.Module) -> nn.Module:
    """As if it had been trained: norms with statistics, scales and shifts of their own."""
    torch.manual_seed(0)
    return lively(network, torch.randn(8, 3, SIDE, SIDE)).eval()


def gap(a: nn.Module, b: nn.Module, images: Unlabelled) -> float:
    x = torch.cat(list(images.batches(64)))
    with torch.no_grad():
        return float((a(x) - b(x)).norm() / a(x).norm())


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(("recipe", "options"), RECIPES, ids=str)
def test_every_recipe_comes_nearer_to_the_original(recipe: str, options: dict[str, Any], pictures: Pictures) -> None:
    network = trained(build_cifar("resnet20"))
    converted = chansurg.convert(network, recipe, input_size=(3, SIDE, SIDE), **options)
    images, unseen = pictures(64, SIDE), pictures(96, SIDE).between(64, 96)
    before = gap(network, converted, unseen)
    told = calibrate(network, converted, images, refine=4)
    assert gap(network, converted, unseen) < 0.8 * before
    assert told.images == 64
    assert told.held_out == 8
    assert told.steps == 4
    assert all(segment.refined <= segment.solved <= segment.before for segment in told.segments)
    assert any(segment.layers for segment in told.segments)
    assert told.segments[-1].path == "linear"
    assert not any(module.training for module in (*network.modules(), *converted.modules()))


def test_what_a_copy_of_the_lost_channels_knows_is_recovered_exactly(pictures: Pictures) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        network[0].weight[4:], network[0].bias[4:] = 2 * network[0].weight[:4], 2 * network[0].bias[:4]
    edits = (Narrow("0", None, (0, 1, 2, 3)), Narrow("2", (0, 1, 2, 3), None))
    record = with_input_size(record_of(network), (3, SIDE, SIDE))
    converted = carry_out(network, Plan("test", 1, {}, (), edits), record)
    images = pictures(64, SIDE)
    assert gap(network, converted, images) > 0.1
    told = calibrate(network, converted, images, refine=0)
    assert gap(network, converted, images) < 1e-2
    assert [segment.layers for segment in told.segments] == [("2",)]


def test_segments_trained_together_come_nearer_still(pictures: Pictures) -> None:
    network = trained(build_cifar("resnet20"))
    converted = chansurg.convert(network, "mod", input_size=(3, SIDE, SIDE))
    images = pictures(64, SIDE)
    told = calibrate(network, converted, images, refine=8)
    (together,) = told.together
    assert together.path == ""
    assert together.images == 56
    assert together.after < together.before
    # The last segment ends where the network does: that is how far it had come by itself.
    assert together.before == pytest.approx(told.segments[-1].refined, rel=1e-4)
    assert together.after == pytest.approx(gap(network, converted, images.divided()[1]), rel=1e-4)


def test_what_training_together_worsens_is_undone(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    network = trained(build_cifar("resnet20"))
    converted = chansurg.convert(network, "mod", input_size=(3, SIDE, SIDE))
    images = pictures(32, SIDE)
    alone = copy.deepcopy(converted)
    with monkeypatch.context() as patch:
        patch.setattr(calibrating, "refine_together", lambda *_: None)
        calibrate(network, alone, images, refine=2)

    def spoil(*told: Any) -> None:
        for parameter in told[-1].parameters:
            parameter.mul_(3.0)

    monkeypatch.setattr(calibrating, "refine_together", spoil)
    (together,) = calibrate(network, converted, images, refine=2).together
    assert together.after == together.before
    expected = state(alone)
    assert all(torch.equal(expected[name], tensor) for name, tensor in converted.state_dict().items())


@pytest.mark.parametrize("refine", [0, 5])
def test_a_network_that_computes_the_same_stays_bit_by_bit(refine: int, pictures: Pictures) -> None:
    network = trained(build_cifar("resnet20"))
    converted = chansurg.convert(network, "pcs", input_size=(3, SIDE, SIDE))
    before = state(converted)
    told = calibrate(network, converted, pictures(16, SIDE), refine=refine)
    assert told.segments
    assert not told.together
    assert all(torch.equal(before[name], tensor) for name, tensor in converted.state_dict().items())


def test_only_what_lies_behind_a_change_is_touched(pictures: Pictures) -> None:
    network = trained(build_cifar("resnet20"))
    before = state(network)
    converted = chansurg.convert(network, "mod", input_size=(3, SIDE, SIDE), stages="3")
    start = state(converted)
    calibrate(network, converted, pictures(32, SIDE), refine=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    changed = {name for name, tensor in converted.state_dict().items() if not torch.equal(start[name], tensor)}
    assert changed
    assert all(name.startswith(("layer3", "linear")) for name in changed)


def test_the_same_seed_gives_the_same_bytes(pictures: Pictures) -> None:
    network = trained(build_cifar("resnet20"))
    converted = chansurg.convert(network, "slimconv", input_size=(3, SIDE, SIDE), k="4/3")
    runs = [copy.deepcopy(converted) for _ in range(2)]
    told = [calibrate(network, run, pictures(32, SIDE), refine=3, seed=1) for run in runs]
    first, again = map(state, runs)
    assert told[0] == told[1]
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_little_memory_means_fewer_images_where_maps_are_large(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    network = trained(build_cifar("resnet20"))
    converted = chansurg.convert(network, "pix", input_size=(3, SIDE, SIDE), mode="downscale", zeta=2)
    images = pictures(64, SIDE)
    before = gap(network, converted, images)
    monkeypatch.setattr(playing, "BYTES", 32 * 4 * 16 * SIDE * SIDE * 4)
    told = calibrate(network, converted, images, refine=0)
    counts = [segment.images for segment in told.segments]
    assert counts[1] < counts[-1] == 56
    assert counts[1:] == sorted(counts[1:])  # the images themselves are smaller than the first maps
    assert gap(network, converted, images) < before


@pytest.mark.parametrize("refine", [2, 4])
def test_norms_in_the_end_have_the_statistics_of_what_they_see(refine: int, pictures: Pictures) -> None:
    network = trained(build_cifar("resnet20"))
    converted = chansurg.convert(network, "slimconv", input_size=(3, SIDE, SIDE), k="4/3")
    images = pictures(64, SIDE)
    calibrate(network, converted, images, refine=refine)
    seen: dict[nn.Module, Tensor] = {}
    for norm in norms_in([converted.layer3]):
        norm.register_forward_pre_hook(lambda norm, inputs: seen.__setitem__(norm, inputs[0]))
    with torch.no_grad():
        converted(torch.cat(list(images.divided()[0].batches(64))))
    for norm, x in seen.items():
        torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(norm.running_var, x.var((0, 2, 3), unbiased=False), atol=1e-3, rtol=1e-2)


def test_settling_changes_no_output() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    for norm in norms_in([network]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.1, 4)
    x = torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        before = network(x)
        settle(norms_in([network]), lambda: network(x))
        torch.testing.assert_close(network(x), before, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(network.train()(x), before, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("make", [small, tied], ids=["small", "tied"])
@pytest.mark.parametrize(("recipe", "options"), [("pix", {"mode": "squeeze"}), ("pcs", {}), ("slimconv", {"k": "4/3"})], ids=str)
def test_bottlenecks_shared_and_tied_layers_are_served(
    make: Callable[[], nn.Module], recipe: str, options: dict[str, Any], pictures: Pictures
) -> None:
    network = trained(make())
    converted = chansurg.convert(network, recipe, input_size=(3, SIDE, SIDE), **options)
    images = pictures(48, SIDE)
    before = gap(network, converted, images)
    told = calibrate(network, converted, images, refine=3)
    assert told.segments
    assert gap(network, converted, images) <= before


def test_what_cannot_be_traced_is_told(pictures: Pictures) -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = odd.DecidesByValue(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x[:, :1].expand(-1, 8, -1, -1) if x.sum() > -1e9 else x).mean((2, 3))

    network = trained(Deciding())
    converted = copy.deepcopy(network)
    with torch.no_grad():
        for norm in norms_in([converted]):
            norm.running_mean.add_(3.0)
    images = pictures(32, SIDE)
    converted.chansurg_record = with_input_size(record_of(network), (3, SIDE, SIDE))
    before = gap(network, converted, images)
    told = calibrate(network, converted, images)
    assert "(the network)" in told.untouched
    assert gap(network, converted, images) < before


class Body(nn.Module):
    """Residual blocks, and what reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build_cifar("resnet20")
        self.norm = nn.BatchNorm1d(10)

    def forward(self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        made: Tensor = self.norm(self.body(x * torch.tensor(scale)))
        return made if mask is None else made * mask


@pytest.mark.parametrize("samples", [1, 2, 16])
def test_arguments_constants_and_norms_of_vectors_are_no_obstacle(samples: int, pictures: Pictures) -> None:
    network = trained(Body())
    converted = chansurg.convert(network, "slimconv", input_size=(3, SIDE, SIDE))
    images = pictures(samples, SIDE)
    held_out = images.divided()[1]
    before = gap(network, converted, held_out)
    told = calibrate(network, converted, images, refine=2)
    assert told.segments[0].before < told.segments[-1].before
    assert gap(network, converted, held_out) < before


class Around(nn.Module):
    """Cannot be traced itself, and calls what can be in ways of its own."""

    def __init__(self, how: str, inside: nn.Module) -> None:
        super().__init__()
        self.how, self.inside = how, inside

    def forward(self, x: Tensor) -> Any:
        if x.shape[2] > 1000:
            x = x / 2
        if self.how == "several":
            return self.inside(x, x.flip(1))
        if self.how == "list":
            return self.inside([x])
        if self.how == "twice":
            return self.inside(x) + self.inside(x[..., ::2])
        return {"out": self.inside(x=x)}


class Summing(Body):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + y)


class Unpacking(Body):
    def forward(self, x: list[Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(x[0])


@pytest.mark.parametrize(
    ("how", "inside", "told"),
    [("several", Summing, True), ("list", Unpacking, True), ("twice", Body, True), ("keyword", Body, False)],
)
def test_parts_are_compared_on_what_they_are_called_with_or_left_alone(
    how: str, inside: type[nn.Module], told: bool, pictures: Pictures
) -> None:
    network = trained(Around(how, inside()))
    converted = copy.deepcopy(network)
    converted.chansurg_record = with_input_size(record_of(network), (3, SIDE, SIDE))
    with torch.no_grad():
        for norm in norms_in([converted]):
            norm.running_mean.add_(0.5)
    found = calibrate(network, converted, pictures(16, SIDE), refine=2)
    assert ("inside" in found.untouched) == told
    assert bool(found.segments) != told
    assert any(segment.refined < segment.before for segment in found.segments) != told


def test_a_weight_that_code_elsewhere_reads_is_not_fitted(pictures: Pictures) -> None:
    class Reading(Body):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x + nn.functional.conv2d(x, self.body.layer3[0].conv1.weight[:3, :3], padding=1))

    network = trained(Reading())
    converted = copy.deepcopy(network)
    converted.chansurg_record = with_input_size(record_of(network), (3, SIDE, SIDE))
    with torch.no_grad():
        for norm in norms_in([converted]):
            norm.running_mean.add_(0.5)
    calibrate(network, converted, pictures(16, SIDE), refine=2)
    weight = "body.layer3.0.conv1.weight"
    assert torch.equal(converted.get_parameter(weight), network.get_parameter(weight))
