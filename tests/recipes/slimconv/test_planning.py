"""What SlimConv makes of a network: which edits, which weights, and what is refused for which options."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from networks.small import Basic, Small
from torch import Tensor, nn

import chansurg
from chansurg.recipes.slimconv.layer import SlimConv
from chansurg.surgery.edits import Inherit, Narrow, Swap


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def small() -> nn.Module:
    return seeded(lambda: Small(5, 8))


def plan(network: nn.Module, **options: Any) -> chansurg.Plan:
    return chansurg.plan(network, "slimconv", input_size=(3, 32, 32), **options)


def converted(network: nn.Module, **options: Any) -> nn.Module:
    return chansurg.convert(network, "slimconv", input_size=(3, 32, 32), **options)


def test_a_bottleneck_changes_its_spatial_convolution_and_narrows_what_is_behind() -> None:
    planned = plan(small())
    assert [site.path for site in planned.sites] == ["blocks.0.conv2", "blocks.1.conv2", "blocks.2.conv1"]
    assert [skip.path for skip in planned.skipped] == ["stem", "blocks.2.conv2"]
    assert planned.sites[0].detail == {"in_channels": 8, "out_channels": 8, "kernel": "3x3", "width": 6}
    edits = [edit for edit in planned.edits if edit.path.startswith("blocks.0")]
    assert [(edit.op, edit.path) for edit in edits] == [
        ("swap", "blocks.0.conv2"),
        ("narrow", "blocks.0.bn2"),
        ("narrow", "blocks.0.conv3"),
        ("inherit", "blocks.0.conv2.top.weight"),
        ("inherit", "blocks.0.conv2.bottom.conv.weight"),
    ]
    norm, expand = edits[1:3]
    assert isinstance(norm, Narrow)
    assert isinstance(expand, Narrow)
    assert norm.out_channels == expand.in_channels
    assert len(set(norm.out_channels or ())) == 6


def test_every_weight_with_a_counterpart_is_a_slice_of_it() -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), Basic(16), nn.Flatten(2)))
    new = converted(network)
    old, conv = network[1], new[1].conv1
    assert isinstance(conv, SlimConv)
    swap = next(edit for edit in chansurg.record_of(new).journal[-1].edits if isinstance(edit, Swap))
    kept = next(edit.out_channels for edit in chansurg.record_of(new).journal[-1].edits if isinstance(edit, Narrow))
    assert kept is not None
    top, bottom = kept[:8], kept[8:]
    inputs = [j if old.conv1.weight[:, j].norm() > old.conv1.weight[:, j + 8].norm() else j + 8 for j in range(8)]
    assert torch.equal(conv.top.weight, old.conv1.weight[list(top)][:, inputs])
    assert torch.equal(conv.top.bias, old.conv1.bias[list(top)])
    strength = old.conv1.weight[:, inputs].flatten(1).norm(dim=1)
    assert strength[list(top)].min() > strength[[i for i in range(16) if i not in top]].max()
    selected = swap.layer.arguments["selections"][0]
    assert torch.equal(conv.bottom.conv.weight, old.conv1.weight[list(bottom)][:, [inputs[j] for j in selected]])
    assert torch.equal(conv.bottom.conv.bias, old.conv1.bias[list(bottom)])
    assert torch.equal(conv.bottom.reduce.weight[:, :, 0, 0], torch.eye(8)[selected])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(new[1].bn1, name), getattr(old.bn1, name)[list(kept)])
    assert torch.equal(new[1].conv2.weight, old.conv2.weight[:, list(kept)])
    assert torch.equal(new[1].conv2.bias, old.conv2.bias)


def test_the_journal_says_of_every_tensor_whether_it_is_kept_sliced_or_new() -> None:
    network = small()
    new = converted(network)
    entry = chansurg.record_of(new).journal[-1]
    names, before = set(new.state_dict()), set(network.state_dict())
    slim = {name for name in names if name.startswith(("blocks.0.conv2.", "blocks.1.conv2.", "blocks.2.conv1."))}
    assert {name.split(".", 3)[3] for name in slim & set(entry.sources)} == {
        "top.weight", "bottom.conv.weight", "top.bias", "bottom.conv.bias"
    }  # fmt: skip
    assert set(entry.new) == slim - set(entry.sources)
    assert set(entry.sources) <= set(entry.sliced)
    assert entry.sources["blocks.2.conv1.bottom.conv.bias"] == "blocks.2.conv1.bias"
    assert names - set(entry.new) - set(entry.sliced) <= before
    assert set(entry.removed) == before - names == {
        "blocks.0.conv2.weight", "blocks.1.conv2.weight", "blocks.2.conv1.weight", "blocks.2.conv1.bias"
    }  # fmt: skip


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_a_grouped_convolution_inherits_row_by_row(groups: int) -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=groups), nn.ReLU(), nn.Conv2d(16, 4, 1)))
    new = converted(network)
    inherited = [edit for edit in chansurg.record_of(new).journal[-1].edits if isinstance(edit, Inherit) and edit.tensor == "1.top.weight"]
    assert len(inherited) == (2 if groups == 4 else 1)
    weight = network[1].weight
    in_group = weight.shape[1]
    for row, filter_ in enumerate(new[1].top.weight):
        # Each slice is one of a filter's own, and reads a channel that folds to where the slice is.
        group = row // (8 // new[1].top.groups)
        found = [
            o
            for o in range(16)
            if all(
                any(
                    torch.equal(piece, weight[o, p])
                    for p in range(in_group)
                    if (o // (16 // groups) * in_group + p) % 8 == group * len(filter_) + i
                )
                for i, piece in enumerate(filter_)
            )
        ]
        assert len(found) == 1


def test_a_chain_of_convolutions_shrinks_link_by_link() -> None:
    network = seeded(
        lambda: nn.Sequential(
            *[nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()],
            *[nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()],
            *[nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
            *[nn.Conv2d(32, 8, 1)],
        )
    )
    planned = plan(network)
    assert [(site.path, site.detail["in_channels"], site.detail["width"]) for site in planned.sites] == [("2", 16, 12), ("5", 12, 24)]
    new = chansurg.apply(network, planned, input_size=(3, 32, 32))
    first, second = (new[i] for i in (2, 5))
    assert (first.out_channels, second.in_channels, second.out_channels, new[8].in_channels) == (12, 12, 24, 24)
    kept = next(edit.out_channels for edit in planned.edits if edit.path == "3")
    taken = next(edit for edit in planned.edits if isinstance(edit, Inherit) and edit.tensor == "5.top.weight").slices
    assert taken[1] is not None
    assert [kept.index(channel) % 6 for channel in taken[1]] == list(range(6))


def test_one_depthwise_convolution_behind_another() -> None:
    def depthwise() -> nn.Module:
        return nn.Conv2d(16, 16, 3, padding=1, groups=16)

    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 16, 3), depthwise(), nn.ReLU(), depthwise(), nn.Conv2d(16, 4, 1)))
    new = converted(network)
    assert (new[1].in_channels, new[1].out_channels, new[3].in_channels, new[3].out_channels) == (16, 12, 12, 9)
    assert new[3].top.groups == new[3].top.in_channels == 6
    assert new[4].in_channels == 9
    assert new(torch.randn(2, 3, 8, 8)).shape == (2, 4, 6, 6)


class Excited(nn.Module):
    """A depthwise convolution, squeeze-and-excitation, and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.fc1, self.fc2 = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(self.stem(x)))
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return self.project(x * gate)


def test_squeeze_and_excitation_stays_and_shrinks_along() -> None:
    network = seeded(Excited)
    new = converted(network)
    assert (new.fc1.in_channels, new.fc1.out_channels, new.fc2.out_channels, new.project.in_channels) == (12, 4, 12, 12)
    kept = list(next(edit.out_channels for edit in chansurg.record_of(new).journal[-1].edits if edit.path == "fc2"))
    assert torch.equal(new.fc1.weight, network.fc1.weight[:, kept])
    assert torch.equal(new.fc2.bias, network.fc2.bias[kept])


@pytest.mark.parametrize(
    ("options", "sites", "reason"),
    [
        ({"k": "2"}, [], "k = 2 makes one channel of 3, and 3 does not divide its 8 input channels"),
        ({"k": "8/3"}, ["blocks.0.conv2", "blocks.1.conv2", "blocks.2.conv1"], None),
        ({"k": "16/3"}, ["blocks.2.conv1"], "k = 16/3 would leave nothing of its 8 input channels for the bottom path"),
        ({"k": "20"}, [], "k = 20 makes one channel of 30, and 30 does not divide its 32 input channels"),
    ],
)
def test_options_that_do_not_fit_leave_a_site_alone(options: dict[str, Any], sites: list[str], reason: str | None) -> None:
    if not sites:
        with pytest.raises(chansurg.Refusal, match=reason):
            plan(small(), **options)
        return
    planned = plan(small(), **options)
    assert [site.path for site in planned.sites] == sites
    assert [skip.path for skip in planned.skipped if skip.reason == reason] == (
        [] if reason is None else ["blocks.0.conv2", "blocks.1.conv2"]
    )
    converted(small(), **options)


def test_a_depthwise_convolution_that_does_not_fit_shrinks_with_the_one_ahead_of_it() -> None:
    network = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 4, 1))
    )
    planned = plan(network, k="8/3")
    assert [site.path for site in planned.sites] == ["1"]
    assert [(skip.path, skip.reason) for skip in planned.skipped] == [
        ("2", "k = 8/3 makes one channel of 4, and 4 does not divide its 6 input channels"),
        ("0", "it is the stem"),
    ]
    kept = next(edit.out_channels for edit in planned.edits if edit.path == "2")
    new = chansurg.apply(network, planned, input_size=(3, 32, 32))
    assert (new[1].out_channels, new[2].groups, new[4].in_channels) == (6, 6, 6)
    assert torch.equal(new[2].weight, network[2].weight[list(kept)])


def test_a_meta_network_and_a_real_one_get_the_same_sites() -> None:
    with torch.device("meta"):
        empty = Small(5, 8)
    real, meta = (plan(network) for network in (small(), empty))
    assert real.sites == meta.sites
    assert [edit.path for edit in real.edits] == [edit.path for edit in meta.edits]


@pytest.mark.parametrize("options", [{"floor": 5}, {"weights": "shuffled"}, {"paths": 3}])
def test_every_option_reaches_the_layers(options: dict[str, Any]) -> None:
    new = converted(small(), **options)
    layers = [module for module in new.modules() if isinstance(module, SlimConv)]
    assert len(layers) == 3
    for layer in layers:
        assert layer.squeeze.out_channels == options.get("floor", 1)
        assert layer.weights == options.get("weights", "both")
        assert (layer.third is not None) is ("paths" in options)


@pytest.mark.parametrize(("first", "second"), [("slimconv", "pix"), ("pix", "slimconv"), ("mod", "slimconv"), ("slimconv", "pcs")])
def test_it_stacks_with_other_recipes(first: str, second: str, tmp_path: Path) -> None:
    network = chansurg.load("networks.small:small", input_size=(32,))
    both = chansurg.convert(chansurg.convert(network, first), second)
    chansurg.save(both, tmp_path / "both.safetensors")
    loaded = chansurg.load(tmp_path / "both.safetensors", arch="networks.small:small")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), both.eval()(x))
    assert [entry.recipe for entry in chansurg.record_of(loaded).journal] == [first, second]


class Selecting(nn.Module):
    """A convolution of which only some output channels are handed on."""

    def __init__(self, conv: nn.Module, kept: list[int]) -> None:
        super().__init__()
        self.conv = conv
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, self.kept]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_y_400mf"])
def test_everything_behind_a_slim_convolution_reads_the_channels_in_their_new_order(name: str) -> None:
    """With the convolutions back in place, and only the kept channels handed on, it is the original with the others unread."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None)
    network.train()(torch.randn(4, 3, 64, 64))
    network.eval()
    planned = chansurg.plan(network, "slimconv", input_size=(3, 64, 64))
    new = chansurg.apply(network, planned, input_size=(3, 64, 64))
    kept: dict[str, dict[tuple[bool, int], int]] = {}
    for edit in planned.edits:
        if isinstance(edit, Inherit) and edit.tensor.endswith(".weight"):
            is_bottom = ".bottom." in edit.tensor
            path = edit.tensor.partition(".bottom." if is_bottom else ".top.")[0]
            filters = edit.slices[0] or ()
            rows = range(len(filters)) if edit.rows is None else edit.rows
            kept.setdefault(path, {}).update(zip(((is_bottom, row) for row in rows), filters, strict=True))
    for site in planned.sites:
        parent, _, child = site.path.rpartition(".")
        in_order = [filter_ for _, filter_ in sorted(kept[site.path].items())]
        setattr(new.get_submodule(parent), child, Selecting(network.get_submodule(site.path), in_order))
    unread = copy.deepcopy(network)
    for edit in planned.edits:
        if isinstance(edit, Narrow) and edit.in_channels is not None:
            weight = unread.get_submodule(edit.path).weight
            with torch.no_grad():
                weight[:, [i for i in range(weight.shape[1]) if i not in edit.in_channels]] = 0
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(new(x), unread(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(new(x), network(x), rtol=1e-3)
