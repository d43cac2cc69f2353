"""Plan, apply, convert: what is asked for, what is refused, and what is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from networks import small
from torch import nn

import chansurg
from chansurg.surgery.editing.applying import perform
from chansurg.surgery.editing.building import build_layer
from chansurg.surgery.edits import Address, Bypass, Insert, LayerSpec, Narrow, Swap
from chansurg.surgery.files.likeness import differences
from chansurg.surgery.files.weights_digest import weights_digest

SIZE = (3, 32, 32)
PIX = LayerSpec("pix.PickOrMix", {"in_channels": 8, "out_channels": 8})


def network() -> nn.Module:
    torch.manual_seed(0)
    return small.small().eval()


@pytest.mark.parametrize(
    ("recipe", "options", "told"),
    [
        ("pixx", {}, "Did you mean 'pix'"),
        ("pix", {"k": 3}, "no option of the recipe 'pix'"),
        ("pix", {"zeta": 0}, "0 is not a value of --zeta"),
        ("pix", {"zeta": "many"}, "'many' is not a value of --zeta"),
        ("pix", {"zeta": True}, "True is not a value of --zeta"),
        ("pix", {"mode": "upscale"}, "'upscale' is not a value of --mode"),
        ("pix", {"mode": "downscale", "zeta": "own"}, "--zeta"),
        ("pix", {"tau": 2}, "--tau"),
        ("pix", {"tau": "nan"}, "--tau"),
        ("pix", {"operator": "max"}, "--operator"),
        ("pix", {"subsets": []}, "--subsets"),
    ],
)
def test_bad_requests_are_input_errors(recipe: str, options: dict[str, Any], told: str) -> None:
    model = network()
    with pytest.raises(chansurg.InputError) as refused:
        chansurg.convert(model, recipe, input_size=SIZE, **options)
    assert told in refused.value.what + refused.value.where
    assert not differences(model, network())


def test_an_input_that_the_network_does_not_take() -> None:
    with pytest.raises(chansurg.InputError):
        chansurg.plan(network(), "pix", input_size=(5, 32, 32))
    with pytest.raises(chansurg.InputError, match="no convolution"):
        chansurg.plan(nn.ReLU(), "pix", input_size=SIZE)


def test_planning_changes_nothing_and_says_what_applying_does() -> None:
    model = network()
    planned = chansurg.plan(model, "pix", input_size=SIZE)
    assert not differences(model, network())
    converted = chansurg.apply(model, planned, input_size=SIZE)
    assert chansurg.record_of(converted).journal[-1].edits == planned.edits
    assert chansurg.record_of(converted).journal[-1].options == planned.options


def test_a_plan_for_another_network_is_refused_and_the_network_left_alone() -> None:
    planned = chansurg.plan(torchvision.models.resnet18(), "pix", mode="downscale", input_size=(3, 64, 64))
    model = network()
    with pytest.raises(chansurg.Refusal, match="no module 'layer1") as refused:
        chansurg.apply(model, planned, input_size=SIZE)
    assert "the network that it was made for" in refused.value.to_do
    assert not differences(model, network())


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (Swap("nix", PIX), "no module 'nix'"),
        (Swap("", PIX), "as a whole"),
        (Narrow("blocks.0.conv1", (99,)), "channel 99"),
        (Narrow("blocks.0", (0,)), "no rule"),
        (Bypass(Address("blocks.0", "self.relu", 5)), "was not found"),
        (Insert(Address("blocks.0", "self.conv2"), "conv1", PIX), "exists already"),
        (Insert(Address("blocks.0", "self.conv2"), "training", PIX), "exists already"),
        (Insert(Address("blocks.7", "self.conv2"), "new", PIX), "was not found"),
    ],
)
def test_edits_that_do_not_fit_are_refused(edit: Any, told: str) -> None:
    with pytest.raises(chansurg.Refusal, match=told):
        perform(network(), [edit], {"blocks.0": {}}, seed=0)


def test_the_journal_is_exact_on_an_example_worked_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 2)
    ).eval()
    converted = chansurg.convert(model, "pix", mode="downscale", zeta=2, input_size=(3, 8, 8))
    entry = chansurg.record_of(converted).journal[-1]
    pix = 8 * 4 + 4
    assert entry.before["params"] == (3 * 9 * 8 + 8) + (8 * 9 * 4 + 4) + (256 * 2 + 2)
    assert entry.after["params"] == entry.before["params"] - 4 * 9 * 4 + pix
    assert entry.before["macs"] == 64 * (3 * 9 * 8 + 8 * 9 * 4) + 512
    assert entry.after["macs"] == entry.before["macs"] - 64 * 4 * 9 * 4 + 8 * 4
    assert [name.rpartition(".")[2] for name in entry.new] == ["theta", "beta"]
    assert len(entry.sliced) == 1
    assert entry.removed == ()
    assert entry.seed == 0
    assert entry.libraries == {"torch": torch.__version__.partition("+")[0]}


def test_libraries_are_those_of_the_network_whatever_else_is_imported() -> None:
    pytest.importorskip("timm")
    found = chansurg.convert(torchvision.models.resnet18(), "pix", mode="downscale", input_size=(3, 64, 64))
    assert set(chansurg.record_of(found).journal[-1].libraries) == {"torch", "torchvision"}


def test_a_second_conversion_in_place_goes_on_top_of_the_first() -> None:
    model = network()
    for number, options in enumerate(({}, {"mode": "downscale", "zeta": 2}, {"mode": "downscale", "zeta": 2}), 1):
        assert chansurg.convert(model, "pix", inplace=True, input_size=SIZE, **options) is model
        assert len(chansurg.record_of(model).journal) == number
    assert {"conv2_pix", "conv2_pix2"} <= {name for name, _ in model.blocks[0].named_children()}
    model(torch.randn(2, 3, 32, 32)).sum().backward()


def test_squeeze_and_then_downscale_on_a_resnet50_replays_both(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet50(num_classes=4).eval()
    first = chansurg.convert(model, "pix", input_size=(3, 64, 64))
    second = chansurg.convert(first, "pix", mode="downscale", zeta=2, input_size=(3, 64, 64))
    assert len(chansurg.record_of(first).journal) == 1
    chansurg.save(second, tmp_path / "a.safetensors")
    loaded = chansurg.load(tmp_path / "a.safetensors")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), second(x))
    assert [e.options["mode"] for e in chansurg.record_of(loaded).journal] == ["squeeze", "downscale"]


@pytest.mark.parametrize("training", [True, False])
def test_modes_stay_as_they_were(training: bool) -> None:
    model = network().train(training)
    model.blocks[1].train(not training)
    converted = chansurg.convert(model, "pix", mode="downscale", input_size=SIZE)
    kept = dict(model.named_modules())
    assert all(module.training == kept[path].training for path, module in converted.named_modules() if path in kept)
    assert converted.blocks[1].conv2_pix.training is not training
    assert converted.blocks[0].conv2_pix.training is training


def test_a_new_layer_depends_on_its_seed_and_place_alone() -> None:
    home = (torch.device("cpu"), torch.float32)
    torch.manual_seed(1)
    one = build_layer(PIX, "a", 0, home)
    torch.manual_seed(2)
    assert torch.equal(build_layer(PIX, "a", 0, home).theta, one.theta)
    assert not torch.equal(build_layer(PIX, "b", 0, home).theta, one.theta)
    assert not torch.equal(build_layer(PIX, "a", 1, home).theta, one.theta)
    assert build_layer(PIX, "a", 0, (torch.device("meta"), torch.float16)).theta.dtype == torch.float16


def test_parameters_of_the_original_are_not_shared_with_the_copy() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    converted = chansurg.convert(model, "pix", input_size=SIZE)
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


class ReadsTheSqueeze(nn.Module):
    """Its forward asks a layer that PiX replaces for something that only the original has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.squeeze = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return x + self.squeeze(x) * self.squeeze[0].kernel_size[0]  # type: ignore[index]


def test_a_conversion_whose_result_would_not_run_is_refused() -> None:
    network = ReadsTheSqueeze().eval()
    with pytest.raises(chansurg.Refusal, match=r"would not do what the original does: .*kernel_size"):
        chansurg.convert(network, "pix", input_size=(3, 8, 8))
    assert isinstance(network.squeeze[0], nn.Conv2d)


def test_what_the_counts_leave_out_is_in_the_journal() -> None:
    converted = chansurg.convert(network(), "pix", input_size=SIZE)
    assert chansurg.record_of(converted).journal[-1].uncounted == chansurg.count(converted, SIZE).uncounted
    assert "aten.amax" in chansurg.record_of(converted).journal[-1].uncounted


def test_a_digest_follows_values_and_not_memory_formats() -> None:
    model = network()
    before = weights_digest(model)
    assert weights_digest(copy.deepcopy(model).to(memory_format=torch.channels_last)) == before
    assert weights_digest(copy.deepcopy(model).half()) != before
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(torch.randn(2, *SIZE)).sum().backward()
    optimizer.step()
    assert weights_digest(model) != before
    assert weights_digest(model.to("meta")) == ""
