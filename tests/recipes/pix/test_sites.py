"""Where PiX goes in the families of the paper and beyond: exact sites, the reasons for the others, and odd networks."""

from __future__ import annotations

import copy
import inspect
import re
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from networks import odd, shapes
from torch import nn

from chansurg.recipes.pix import RECIPE
from chansurg.recipes.pix.sites import downscale_sites, squeeze_sites
from chansurg.surgery.editing.applying import perform
from chansurg.surgery.editing.identity import first_difference
from chansurg.surgery.edits import Bypass, Swap
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.plan import Plan
from chansurg.surgery.reading.builders import build, parse_architecture
from chansurg.surgery.survey import Survey, survey
from chansurg.surgery.survey.kinds import path_of


@cache
def surveyed(name: str) -> Survey:
    """A library's network on the meta device, at the size it was made for."""
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    network = build(parse_architecture(name))
    side = 299 if "inception" in name else 256 if "window8_256" in name else 224
    return survey(network, (3, side, side))


def numberless(path: str) -> str:
    return re.sub(r"\d+", "N", path)


SQUEEZE = {
    "torchvision/resnet50": {"layerN.N.convN": 16},
    "torchvision/resnext50_32x4d": {"layerN.N.convN": 15},
    "torchvision/wide_resnet50_2": {"layerN.N.convN": 15},
    "timm/seresnet50": {"layerN.N.convN": 16},
    "timm/legacy_seresnet50": {"layerN.N.convN": 13},
    "timm/res2net50_26w_4s": {"layerN.N.convN": 15},
    "torchvision/densenet121": {"features.denseblockN.denselayerN.convN": 54},
    "torchvision/squeezenet1_0": {"features.N.squeeze": 8},
    "timm/inception_v4": {"features.N.branchN.N.conv": 27, "features.N.branchN_N.conv": 6},
    "torchvision/vit_b_16": {"encoder.layers.encoder_layer_N.mlp.N": 12},
    "timm/vit_tiny_patch16_224": {"blocks.N.mlp.fcN": 12},
    "torchvision/swin_t": {"features.N.N.mlp.N": 12},
    "torchvision/swin_v2_t": {"features.N.N.mlp.N": 12},
    "timm/swinv2_tiny_window8_256": {"layers.N.blocks.N.mlp.fcN": 12},
    "torchvision/convnext_tiny": {"features.N.N.block.N": 18},
    "timm/efficientvit_m5": {"stages.N.blocks.N.ffnN.m.pwN.conv": 16, "stages.N.downsample.resN.N.m.pwN.conv": 4},
    "torchvision/fasterrcnn_resnet50_fpn": {"backbone.body.layerN.N.convN": 16},
    "torchvision/fcn_resnet50": {"backbone.layerN.N.convN": 16},
    "torchvision/deeplabv3_resnet101": {"backbone.layerN.N.convN": 33, "classifier.N.project.N": 1},
    "torchvision/resnet18": {},
    "torchvision/regnet_x_400mf": {},
    "torchvision/mobilenet_v2": {},
    "torchvision/mobilenet_v3_small": {},
    "torchvision/efficientnet_b0": {},
    "torchvision/vgg11": {},
    "timm/mobilenetv1_100": {},
}


@pytest.mark.parametrize("name", SQUEEZE)
def test_squeeze_sites_of_a_family(name: str) -> None:
    sites, _ = squeeze_sites(surveyed(name))
    assert Counter(numberless(path_of(site.layer)) for site in sites) == SQUEEZE[name]
    assert all(site.ratio >= 1 for site in sites)


def test_the_squeezes_of_a_resnet_to_the_letter() -> None:
    sites, skipped = squeeze_sites(surveyed("torchvision/resnet50"))
    assert [path_of(site.layer) for site in sites] == [
        f"layer{stage}.{block}.conv1" for stage, blocks in enumerate((3, 4, 6, 3), 1) for block in range(blocks)
    ]
    assert all(
        [path_of(node) for node in site.removed] == [f"{path[:-5]}bn1", f"{path[:-5]}relu"]
        for site in sites
        for path in [path_of(site.layer)]
    )
    assert [site.ratio for site in sites] == [1, 4, 4, 2, 4, 4, 4, 2, 4, 4, 4, 4, 4, 2, 4, 4]
    assert skipped == []


def test_the_squeezes_of_googlenet_and_inception() -> None:
    sites, _ = squeeze_sites(surveyed("torchvision/googlenet"))
    blocks = [f"inception{name}" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
    assert [path_of(site.layer) for site in sites] == [f"{block}.branch{branch}.0.conv" for block in blocks for branch in (2, 3)]
    assert max(site.ratio for site in sites) == 30
    sites, _ = squeeze_sites(surveyed("torchvision/inception_v3"))
    assert len(sites) == 21
    assert {path_of(site.layer).rpartition(".branch")[2] for site in sites} == {
        "5x5_1.conv", "3x3dbl_1.conv", "7x7_1.conv", "7x7dbl_1.conv", "3x3_1.conv", "7x7x3_1.conv"
    }  # fmt: skip


REASONS = {
    "torchvision/regnet_x_400mf": {"it does not reduce channels", "it adds channels"},
    "torchvision/mobilenet_v2": {"no spatial convolution follows it at once", "it adds channels"},
    "timm/mobilenetv1_100": {"it does not reduce channels", "it adds channels"},
    "torchvision/efficientnet_b0": {"it works on pooled vectors", "no spatial convolution follows it at once", "it adds channels"},
    "torchvision/densenet121": {"it does not reduce channels", "it adds channels", "no spatial convolution follows it at once"},
    "timm/seresnet50": {"it works on pooled vectors"},
    "timm/legacy_seresnet50": {"it works on pooled vectors", "it strides"},
    "torchvision/fasterrcnn_resnet50_fpn": {"its output is a residual stream", "no spatial convolution follows it at once"},
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_no_squeeze_site_says_why(name: str) -> None:
    _, skipped = squeeze_sites(surveyed(name))
    said = {skip.reason for skip in skipped}
    assert all(any(reason.startswith(known) for known in REASONS[name]) for reason in said), said
    assert all(any(reason.startswith(known) for reason in said) for known in REASONS[name]), said


DOWNSCALE = {
    "torchvision/resnet18": {("plain", "layerN.N.convN"): 16},
    "torchvision/resnet50": {("bottleneck", "layerN.N.convN"): 16},
    "torchvision/vgg11": {("plain", "features.N"): 7},
    "timm/mobilenetv1_100": {("depthwise-separable", "blocks.N.N.conv_pw"): 13},
    "torchvision/mobilenet_v2": {("depthwise-separable", "features.N.conv.N"): 17},
    "torchvision/mobilenet_v3_small": {("depthwise-separable", "features.N.block.N.N"): 11},
    "torchvision/mnasnet1_0": {("depthwise-separable", "layers.N.N.layers.N"): 16, ("depthwise-separable", "layers.N"): 1},
    "torchvision/efficientnet_b0": {("depthwise-separable", "features.N.N.block.N.N"): 16},
    "torchvision/regnet_x_400mf": {("bottleneck", "trunk_output.blockN.blockN-N.f.b.N"): 22},
    "torchvision/vit_b_16": {},
}


@pytest.mark.parametrize("name", DOWNSCALE)
def test_downscale_sites_of_a_family(name: str) -> None:
    sites, skipped = downscale_sites(surveyed(name))
    assert Counter((site.kind, numberless(path_of(site.layer))) for site in sites) == DOWNSCALE[name]
    assert [skip.reason for skip in skipped] == ["it is the stem"]


def plan_of(name: str, **options: object) -> Plan:
    return RECIPE.plan(surveyed(name), RECIPE.options(options))


@pytest.mark.parametrize(
    ("name", "zeta", "sites", "reason"),
    [
        ("torchvision/resnext50_32x4d", 4, 15, None),
        ("torchvision/resnext50_32x4d", 3, 0, "32 groups"),
        ("torchvision/resnet50", 3, 0, "zeta 3 would widen it"),
        ("torchvision/googlenet", 30, 18, None),
        ("torchvision/densenet121", 8, 54, None),
        ("timm/res2net50_26w_4s", 4, 0, "its width cannot shrink: its channels go through split"),
        ("torchvision/convnext_tiny", 8, 0, "its output is added to the residual stream"),
    ],
)
def test_a_number_scales_every_site_or_says_why_not(name: str, zeta: int, sites: int, reason: str | None) -> None:
    plan = plan_of(name, zeta=zeta)
    assert len(plan.sites) == sites
    assert reason is None or any(reason in skip.reason for skip in plan.skipped)


GROUPED = [
    ("torchvision/resnext50_32x4d", {"zeta": 4, "subsets": "strided"}),
    ("torchvision/resnext50_32x4d", {"mode": "downscale", "zeta": 2, "subsets": "strided"}),
    ("torchvision/regnet_y_400mf", {"mode": "downscale", "zeta": 4}),
    ("torchvision/googlenet", {"zeta": 30}),
    ("torchvision/densenet121", {"mode": "downscale", "zeta": 3}),
    ("torchvision/mobilenet_v3_small", {"mode": "downscale", "zeta": 3, "subsets": "strided"}),
]


@pytest.mark.parametrize(("name", "options"), GROUPED)
def test_groups_and_widths_that_do_not_divide_still_fit_together(name: str, options: dict[str, object]) -> None:
    """The converted network runs on shapes, and every grouped convolution keeps equally many channels a group."""
    plan = plan_of(name, **options)
    network = copy.deepcopy(surveyed(name).network)
    perform(network, plan.edits, plan.signatures, seed=0)
    assert plan.sites
    assert network(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)
    assert all(
        conv.in_channels % conv.groups == 0 == conv.out_channels % conv.groups for conv in network.modules() if isinstance(conv, nn.Conv2d)
    )


ODD = {
    name: kind
    for name, kind in vars(odd).items()
    if inspect.isclass(kind)
    and issubclass(kind, nn.Module)
    and kind.__module__ == odd.__name__
    and kind not in (odd.Odd, odd.KeywordArguments)
}
CONVERTED = {
    "Bottleneck": "odd.conv1",
    "Checkpointed": "odd.block.conv1",
    "FunctionalDropout": "odd.conv1",
    "InPlace": "odd.conv1",
    "Keywords": "odd.block.conv1",
    "NestedSequentials": "odd.parts.0.0",
    "SizeArithmetic": "odd.block.conv1",
    "StructuredOutput": "odd.conv1",
    "TakesAList": "odd.block.conv1",
}
"""Odd networks whose odd part is converted nevertheless; in the others it is left, and the plain part is converted."""


def substituted(network: nn.Module, converted: nn.Module, plan: Plan) -> nn.Module:
    """The same conversion by another way: the original code, with layers in the place of modules, and identities where some were."""
    other = copy.deepcopy(network)
    for edit in plan.edits:
        if isinstance(edit, Swap | Bypass):
            parent, _, name = edit.path.rpartition(".")
            layer = copy.deepcopy(converted.get_submodule(edit.path)) if isinstance(edit, Swap) else nn.Identity()
            setattr(other.get_submodule(parent), name, layer)
    return other


@pytest.mark.parametrize("name", [name for name in ODD if name != "DecidesByValue"])
def test_an_odd_network_is_converted_right_or_not_at_all(name: str) -> None:
    torch.manual_seed(0)
    network = odd.StructuredOutput() if name == "StructuredOutput" else odd.Odd(ODD[name]())
    plan = RECIPE.plan(survey(network, (3, 16, 16)), RECIPE.options({}))
    expected = ["plain.conv1"] if name not in CONVERTED else [CONVERTED[name], "plain.conv1"]
    assert [site.path for site in plan.sites] == expected
    perform(converted := copy.deepcopy(network), plan.edits, plan.signatures, seed=0)
    assert [path for path, layer in converted.named_modules() if isinstance(layer, RecipeLayer)] == expected
    reference = substituted(network, converted, plan)
    examples = (torch.randn(2, 3, 16, 16),)
    for training in (False, True):
        assert first_difference(reference, converted, examples, training=training) is None


def test_a_network_that_cannot_be_followed_gives_no_site() -> None:
    found = survey(odd.Odd(odd.DecidesByValue()), (3, 16, 16))
    assert RECIPE.plan(found, RECIPE.options({})).sites == ()
    assert "decides by the values" in found.untraced["odd"]


@pytest.mark.parametrize(
    ("squeeze", "behind", "reason"),
    [
        (nn.Conv2d(32, 8, 1, padding=1), nn.ReLU(), "it changes the map from 16x16 to 18x18"),
        (nn.Conv2d(32, 8, 1, stride=2), nn.ReLU(), "it strides (2x2)"),
        (nn.Conv2d(32, 8, 1), nn.GLU(1), "no spatial convolution follows it at once"),
        (nn.Conv2d(32, 8, 1), nn.Softmax(1), "no spatial convolution follows it at once"),
        (nn.Conv2d(32, 8, 1), shapes.Function("glu"), "no spatial convolution follows it at once"),
        (nn.Conv2d(32, 8, 1), shapes.Function("norm"), "no spatial convolution follows it at once"),
        (nn.Conv2d(32, 8, 1), shapes.Function("normalize"), "no spatial convolution follows it at once"),
        (nn.Conv2d(32, 8, 1), nn.ReLU(), None),
    ],
)
def test_what_changes_the_shape_or_mixes_channels_is_not_taken_along(squeeze: nn.Module, behind: nn.Module, reason: str | None) -> None:
    with torch.no_grad():
        channels = behind(torch.zeros(1, 8, 4, 4)).shape[1]
    network = shapes.AroundASqueeze(squeeze, behind, nn.Conv2d(channels, 4, 3))
    sites, skipped = squeeze_sites(survey(network, (3, 16, 16)))
    assert [path_of(site.layer) for site in sites] == ([] if reason else ["squeeze"])
    assert [skip.reason.startswith(reason or "") for skip in skipped] == ([True] if reason else [])


@pytest.mark.parametrize(("layout", "sites"), [("batch first", 2), ("sequence first", 0), ("folded", 0)])
def test_images_are_never_pooled_together(layout: str, sites: int) -> None:
    found, skipped = squeeze_sites(survey(shapes.Tokens(layout), (3, 16, 16)))
    assert len(found) == sites
    assert [(skip.path, skip.reason) for skip in skipped] == [
        (f"{name}.fc2", "its first dimension is not the batch") for name in ("first", "second") if not sites
    ]


def test_a_network_for_one_image_is_not_guessed_at() -> None:
    found, skipped = squeeze_sites(survey(shapes.OnlyOneImage(), (3, 16, 16)))
    assert found == []
    assert [skip.reason for skip in skipped] == ["whether its first dimension is the batch is not known"]


def test_words_within_words_are_left_alone() -> None:
    """TNT folds the pixels of a patch, and all patches of all images, into one dimension for its inner networks."""
    sites, skipped = squeeze_sites(surveyed("timm/tnt_s_legacy_patch16_224"))
    assert Counter(numberless(path_of(site.layer)) for site in sites) == {"blocks.N.mlp.fcN": 12}
    assert Counter((numberless(skip.path), skip.reason) for skip in skipped) == {
        ("blocks.N.mlp_in.fcN", "its first dimension is not the batch"): 12
    }


def at_32(name: str) -> Survey:
    return survey(surveyed(name).original, (3, 32, 32))


@pytest.mark.parametrize("name", ["torchvision/resnet50", "timm/seresnet50", "timm/gcresnet50t"])
@pytest.mark.parametrize("find", [squeeze_sites, downscale_sites])
def test_sites_do_not_depend_on_the_input_size(name: str, find: Any) -> None:
    large, small = (find(found) for found in (surveyed(name), at_32(name)))
    assert [site.describe() for site in large[0]] == [site.describe() for site in small[0]]
    assert [skip.path for skip in large[1]] == [skip.path for skip in small[1]]
    assert large[0]


def test_the_stem_behind_a_rearrangement_of_the_image() -> None:
    sites, skipped = downscale_sites(survey(shapes.SpaceToDepth(), (3, 16, 16)))
    assert [path_of(site.layer) for site in sites] == ["conv1", "conv2"]
    assert [(skip.path, skip.reason) for skip in skipped] == [("stem", "it is the stem")]


def reasons(found: Survey, **options: object) -> dict[str, str]:
    plan = RECIPE.plan(found, RECIPE.options(options))
    assert plan.sites == ()
    return {skip.path: skip.reason for skip in plan.skipped}


def layers(network: nn.Module) -> set[str]:
    return {path for path, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def test_a_network_without_a_squeeze_has_a_reason_for_every_layer() -> None:
    found = surveyed("torchvision/resnet18")
    said = reasons(found)
    assert said.keys() == layers(found.network)
    assert said["layer1.0.conv1"] == "it is a 3x3 convolution, no squeeze"
    assert said["layer2.0.downsample.0"].startswith("no spatial convolution") or said["layer2.0.downsample.0"].startswith("it adds")
    assert said["fc"].startswith("it is a linear layer")


def test_a_second_squeeze_says_that_pix_is_there() -> None:
    first = plan_of("torchvision/resnet50")
    network = copy.deepcopy(surveyed("torchvision/resnet50").network)
    perform(network, first.edits, first.signatures, seed=0)
    said = reasons(survey(network, (3, 224, 224)))
    assert said.keys() == layers(network) | {site.path for site in first.sites}
    assert {said[site.path] for site in first.sites} == {"PiX is here already"}


def test_downscale_of_depthwise_convolutions_alone_points_to_the_pointwise_ones() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU())
    assert reasons(survey(network, (3, 16, 16)), mode="downscale") == {
        "0": "it is the stem",
        "1": "it is depthwise; the pointwise convolution behind it is what shrinks",
    }
