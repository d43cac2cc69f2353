"""Which blocks of which networks, how narrow they become, and the reason for every block that stays."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import odd
from networks.running import outputs
from torch import Tensor, nn

import chansurg
from chansurg.recipes.mod import RECIPE
from chansurg.recipes.mod.options import ModOptions
from chansurg.surgery.edits import Narrow, Route
from chansurg.surgery.reading.builders import build, parse_architecture
from chansurg.surgery.survey import survey

SIZE = (3, 32, 32)

# The sites of a network, and what one of its blocks becomes: {path in the block: (input channels, output channels)}
FAMILIES: dict[str, tuple[list[str], str, dict[str, tuple[int, int]]]] = {
    "torchvision/resnext50_32x4d": (
        ["layer1.1", "layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5", "layer4.1"],
        "layer4.1",
        {"conv1": (32, 16), "bn1": (0, 16), "conv2": (16, 16), "bn2": (0, 16), "conv3": (16, 32), "bn3": (0, 32)},
    ),
    "torchvision/mobilenet_v3_small": (
        ["features.3", "features.5", "features.8", "features.10"],
        "features.10",
        {
            "block.0.0": (6, 36),
            "block.0.1": (0, 36),
            "block.1.0": (0, 36),
            "block.1.1": (0, 36),
            "block.2.fc1": (36, 9),
            "block.2.fc2": (9, 36),
            "block.3.0": (36, 6),
            "block.3.1": (0, 6),
        },
    ),
    "torchvision/regnet_y_400mf": (
        [f"trunk_output.block{i}.block{i}-{j}" for i, blocks in ((2, (1,)), (3, (1, 3, 5)), (4, (1, 3, 5))) for j in blocks],
        "trunk_output.block4.block4-1",
        {
            "f.a.0": (13, 13),
            "f.a.1": (0, 13),
            "f.b.0": (13, 13),
            "f.b.1": (0, 13),
            "f.c.0": (13, 13),
            "f.c.1": (0, 13),
            "f.se.fc1": (13, 3),
            "f.se.fc2": (3, 13),
        },
    ),
    "torchvision/convnext_tiny": (
        ["features.1.1", "features.3.1", "features.5.1", "features.5.3", "features.5.5", "features.5.7", "features.7.1"],
        "features.5.3",
        {"block.0": (0, 4), "block.2": (0, 4), "block.3": (4, 16), "block.5": (16, 4), "layer_scale": (0, 4)},
    ),
    "torchvision/vgg11_bn": (["features.11", "features.18", "features.25"], "features.25", {"": (8, 8)}),
    "torchvision/alexnet": (["features.10"], "features.10", {"": (4, 4)}),
    "timm/convnextv2_atto": (
        ["stages.0.blocks.1", "stages.1.blocks.1", "stages.2.blocks.1", "stages.2.blocks.3", "stages.2.blocks.5", "stages.3.blocks.1"],
        "stages.2.blocks.1",
        {
            "conv_dw": (0, 4),
            "norm": (0, 4),
            "mlp.fc1": (4, 16),
            "mlp.fc2": (16, 4),
            "mlp.grn.weight": (0, 16),
            "mlp.grn.bias": (0, 16),
        },
    ),
    "timm/hrnet_w18_small": (
        [f"stage{i}.0.branches.{j}.1" for i in (2, 3, 4) for j in range(i)],
        "stage2.0.branches.1.1",
        {"conv1": (1, 1), "bn1": (0, 1), "conv2": (1, 1), "bn2": (0, 1)},
    ),
}


def sizes(edit: Narrow) -> tuple[int, int]:
    return len(edit.in_channels or ()), len(edit.out_channels or ())


@pytest.mark.parametrize("name", FAMILIES)
def test_of_a_family(name: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    sites, block, narrowed = FAMILIES[name]
    found = survey(build(parse_architecture(name)), (3, 64, 64))
    c = 64 if "hrnet" in name else "first"
    planned = RECIPE.plan(found, ModOptions(c=c))
    assert [site.path for site in planned.sites] == sites
    edits = {edit.path: sizes(edit) for edit in planned.edits if isinstance(edit, Narrow)}
    expected = {f"{block}.{path}".rstrip("."): widths for path, widths in narrowed.items()}
    assert {path: edits[path] for path in expected} == expected
    assert {path for path in edits if path.startswith(f"{block}.")} <= expected.keys()
    everything, _ = RECIPE.sites(found)
    assert {site.path for site in everything} > set(sites) or len(everything) == len(sites)


@pytest.mark.parametrize("name", ["torchvision/resnext50_32x4d", "torchvision/regnet_y_400mf"])
def test_groups_keep_their_size_where_they_can(name: str) -> None:
    found = survey(build(parse_architecture(name)), (3, 64, 64))
    for c in (4, 16, 64):
        for edit in RECIPE.plan(found, ModOptions(c=c)).edits:
            module = found.original.get_submodule(edit.path) if isinstance(edit, Narrow) else None
            if not isinstance(edit, Narrow) or not isinstance(module, nn.Conv2d) or module.groups in (1, module.in_channels):
                continue
            size = module.in_channels // module.groups
            kept = len({i // size for i in edit.in_channels or ()})
            width = len(edit.in_channels or ())
            assert width // kept == (size if width % size == 0 else max(d for d in range(1, size + 1) if width % d == 0))


class Grouped(nn.Module):
    """A residual branch of grouped convolutions."""

    def __init__(self, channels: int, inner: int, outer: int, groups: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.grouped = nn.Conv2d(inner, outer, 3, padding=1, groups=groups)
        self.norm = nn.BatchNorm2d(outer)
        self.expand = nn.Conv2d(outer, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(torch.relu(self.norm(self.grouped(torch.relu(self.reduce(x))))))


@pytest.mark.parametrize("seed", range(25))
def test_random_grouped_branches_run_at_every_width(seed: int) -> None:
    rng = random.Random(seed)
    groups, channels = rng.randint(2, 6), rng.randint(4, 40)
    inner, outer = groups * rng.randint(1, 5), groups * rng.randint(1, 5)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, channels, 3), *(Grouped(channels, inner, outer, groups) for _ in range(2))).eval()
    new = chansurg.convert(network, "mod", input_size=SIZE, c=rng.randint(1, channels))
    k = new[2].reduce_selector.out_channels
    conv = new[2].grouped
    assert new[2].reduce.in_channels == new[2].expand.out_channels == k
    assert conv.in_channels <= max(1, inner * k // channels)
    assert conv.out_channels <= max(1, outer * k // channels)
    assert outputs(new, torch.rand(2, *SIZE)).shape == (2, channels, 30, 30)


ODD = [
    kind
    for kind in vars(odd).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == odd.__name__ and kind not in (odd.Odd,)
]
# Networks of which only parts can be traced, or whose blocks work at two resolutions.
ALONE = {"DecidesByValue", "DecidesByType", "Checkpointed", "SizeArithmetic"}


@pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)
def test_odd_networks_are_converted_where_they_can_be_and_run(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = kind() if kind is odd.StructuredOutput else odd.Odd(kind())
    network.eval()
    if kind.__name__ in ALONE:
        found = survey(network, SIZE)
        alone = {skip.path for skip in RECIPE.plan(found, ModOptions()).skipped if skip.reason == "it is the only block of its stage"}
        assert "plain" in alone | found.untraced.keys()
        with pytest.raises(chansurg.Refusal, match=r"it (is the only block of its stage|could not be traced)"):
            chansurg.plan(network, "mod", input_size=SIZE)
        return
    planned = chansurg.plan(network, "mod", input_size=SIZE, c=8, blocks="all")
    assert "plain" in [site.path for site in planned.sites]
    new = chansurg.apply(network, planned, input_size=SIZE)
    x = torch.rand(2, *SIZE)
    recorded = new(x)
    with torch.no_grad():
        written = new(x)
    if kind is odd.StructuredOutput:
        (recorded, _), (written, _) = ((r["pair"].features, r["list"]) for r in (recorded, written))
    assert torch.equal(recorded, written)
    new.train()(x)


class Branch(nn.Module):
    """``x`` plus what a branch makes of it."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x) + self.shortcut(x)
        return out


class Halves(nn.Module):
    """Convolves one half of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.split(8, 1)
        return torch.cat([self.conv(first), second], 1)


class Scaled(nn.Module):
    """A convolution and a parameter for each place of a map."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


def conv(**options: Any) -> nn.Module:
    return nn.Conv2d(16, 16, 3, padding=1, **options)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (lambda: Branch(nn.Conv2d(16, 16, 1)), "it has no spatial convolution"),
        (lambda: Branch(conv(), nn.BatchNorm2d(16)), "its input does not pass it by unchanged: 2.shortcut is in the way"),
        (lambda: Branch(nn.Sequential(conv(), nn.GroupNorm(4, 16))), "2.branch.1 normalises over groups of channels"),
        (lambda: Branch(Halves()), "its channels go through split at"),
        (lambda: Branch(nn.Sequential(conv(), nn.PReLU(16), conv())), "its channels go through PReLU at 2.branch.1"),
        (lambda: Branch(Scaled(16, 32, 32)), "what it is combined with at 2.branch:operator.mul does not lie along its channels"),
        (lambda: Branch(nn.utils.parametrizations.weight_norm(conv())), "2.branch cannot become narrower"),
    ],
)
def test_what_stays_says_why(block: Callable[[], nn.Module], reason: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), Branch(conv()), block())
    with pytest.raises(chansurg.Refusal) as refused:
        chansurg.plan(network, "mod", input_size=SIZE)
    assert reason in refused.value.what


@pytest.mark.parametrize("shape", [(16, 1, 1), (1, 16, 1, 1), (1,), ()])
def test_parameters_of_no_layer_are_sliced_with_their_channels(shape: tuple[int, ...]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *(Branch(Scaled(*shape)) for _ in range(2))).eval()
    new = chansurg.convert(network, "mod", input_size=SIZE, c=4)
    assert tuple(new[2].branch.scale.shape) == tuple(4 if size == 16 else size for size in shape)
    assert outputs(new, torch.rand(2, *SIZE)).isfinite().all()


def test_a_parameter_that_two_modules_share_is_left_alone() -> None:
    blocks = [Branch(Scaled(16, 1, 1)) for _ in range(2)]
    blocks[1].branch.scale = blocks[0].branch.scale
    with pytest.raises(chansurg.Refusal, match="share it"):
        chansurg.plan(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *blocks), "mod", input_size=SIZE)


class ChannelsLast(nn.Module):
    """A block on ``[B, H, W, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.expand, self.reduce = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.reduce(torch.relu(self.expand(y)))


class OnChannelsLast(nn.Module):
    """Blocks on ``[B, H, W, C]`` behind a stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(ChannelsLast(), ChannelsLast())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        return self.blocks(x).mean((1, 2))


def test_channels_may_come_last() -> None:
    torch.manual_seed(0)
    network = OnChannelsLast().eval()
    new = chansurg.convert(network, "mod", input_size=SIZE, c=4, depths="4")
    routes = [edit for edit in chansurg.record_of(new).journal[-1].edits if isinstance(edit, Route)]
    assert [route.layer.arguments["channel_dim"] for route in routes] == [-1, -1]
    assert (new.blocks[1].expand.in_features, new.blocks[1].expand.out_features, new.blocks[1].norm.normalized_shape) == (4, 8, (4,))
    x = torch.rand(2, *SIZE)
    torch.testing.assert_close(outputs(new, x), new(x))  # what is added in place lies otherwise in memory, and is averaged so
