"""What PiX makes of real architectures: the paper's tables, which places it takes, and which slices it keeps."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from networks.small import Basic, Bottleneck, Small
from torch import nn

import chansurg
from chansurg.recipes.pix.layer import PickOrMix
from chansurg.recipes.pix.options import PixOptions
from chansurg.surgery.demand import demand_of
from chansurg.surgery.edits import Bypass, Insert, Narrow, Swap
from chansurg.surgery.recipe import find_recipe
from chansurg.surgery.statistics import measure
from chansurg.surgery.survey import Survey, survey
from chansurg.surgery.survey.kinds import path_of

SPEC = Path(__file__).parents[3].parent / "shared" / "spec" / "paper-tables.csv"

# row, network, mode, zeta, resolution, parameters in millions, multiply-accumulates and operations in billions (PiX, Tables 1 and 3)
PAPER: list[tuple[str, str, str, int, int, float, float, float | None]] = [
    ("resnet50-pix", "resnet50", "squeeze", 4, 224, 25.553, 3.156, 3.195),
    ("resnet101-pix", "resnet101", "squeeze", 4, 224, 44.541, 5.999, None),
    ("resnet152-pix", "resnet152", "squeeze", 4, 224, 60.181, 8.841, None),
    ("resnet50-pix8", "resnet50", "squeeze", 8, 224, 12.380, 1.355, 1.390),
    ("resnet18-pix1", "resnet18", "downscale", 1, 224, 12.827, 1.815, None),
    ("resnet18-pix2", "resnet18", "downscale", 2, 224, 6.766, 0.977, None),
    ("resnet18-pix3", "resnet18", "downscale", 3, 224, 4.763, 0.705, None),
    ("resnet18-pix4", "resnet18", "downscale", 4, 224, 3.735, 0.557, None),
    ("resnet50-pixd1", "resnet50", "downscale", 1, 224, 28.080, 4.092, 4.135),
    ("resnet50-pixd2", "resnet50", "downscale", 2, 224, 14.082, 2.086, 2.127),
    ("resnet50-pixd3", "resnet50", "downscale", 3, 224, 11.509, 1.723, 1.763),
    ("vgg16gap-pix1", "networks.small:vgg16_with_global_pooling", "downscale", 1, 112, 16.784, 3.837, None),
    ("vgg16gap-pix2", "networks.small:vgg16_with_global_pooling", "downscale", 2, 112, 8.654, 1.930, None),
    ("mobilenetv1-pix1", "timm/mobilenetv1_100", "downscale", 1, 224, 7.027, 0.572, None),
    ("mobilenetv1-pix2", "timm/mobilenetv1_100", "downscale", 2, 224, 4.060, 0.300, None),
]


def without_numbers(name: str) -> nn.Module:
    """The network on the meta device."""
    source, _, rest = name.rpartition("/")
    if source == "timm":
        timm = pytest.importorskip("timm")
        with torch.device("meta"):
            return timm.create_model(rest)
    with torch.device("meta"):
        if ":" in name:
            from networks import small

            return getattr(small, name.partition(":")[2])()
        return torchvision.models.get_model(name, weights=None)


@pytest.mark.parametrize(("row", "name", "mode", "zeta", "side", "params", "macs", "ops"), PAPER, ids=[row[0] for row in PAPER])
def test_the_papers_tables(row: str, name: str, mode: str, zeta: int, side: int, params: float, macs: float, ops: float | None) -> None:
    network = without_numbers(name)
    planned = chansurg.plan(network, "pix", mode=mode, zeta=zeta, input_size=(3, side, side))
    converted = chansurg.apply(network, planned, input_size=(3, side, side))
    after = chansurg.record_of(converted).journal[-1].after
    assert after == chansurg.count(converted, (3, side, side)).as_json()
    assert after["params"] == pytest.approx(params * 1e6, rel=1e-3)
    assert after["macs"] == pytest.approx(macs * 1e9, rel=5e-3)
    if ops is not None:
        assert after["ops"] == pytest.approx(ops * 1e9, rel=5e-3)


def test_the_copied_rows_are_those_of_the_specification() -> None:
    if not SPEC.exists():
        pytest.skip("the specification lies outside the repository and is not here")
    with SPEC.open() as file:
        rows = [row for row in csv.DictReader(file) if row["recipe"] == "pix"]
    ours = {row[0]: row[4:] for row in PAPER}
    assert {
        row["row"]: (int(row["resolution"]), *(float(row[k]) if row[k] else None for k in ("params_M", "macs_G", "ops_G"))) for row in rows
    } == ours


def test_a_vgg_of_the_users_own_is_converted_from_its_factorys_name() -> None:
    network = chansurg.load("networks.small:vgg16_with_global_pooling", input_size=(3, 112, 112))
    planned = chansurg.plan(network, "pix", mode="downscale", zeta=2)
    assert len(planned.sites) == 12
    assert [skip.path for skip in planned.skipped] == ["features.0"]


def small(build: Callable[[], nn.Module] = lambda: Small(5, 8)) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def plan(network: nn.Module, **options: Any) -> chansurg.Plan:
    return chansurg.plan(network, "pix", input_size=(3, 64, 64), **options)


def test_squeeze_takes_conv_norm_and_activation_and_leaves_the_rest() -> None:
    network = small()
    planned = plan(network)
    assert [site.path for site in planned.sites] == ["blocks.0.conv1", "blocks.1.conv1"]
    assert [(edit.op, edit.path) for edit in planned.edits] == [
        *(("swap", f"blocks.{i}.conv1") for i in range(2)),
        *(pair for i in range(2) for pair in (("bypass", f"blocks.{i}.bn1"), ("bypass", f"blocks.{i}.relu"))),
    ]
    converted = chansurg.apply(network, planned, input_size=(3, 32, 32))
    assert not hasattr(converted.blocks[0], "bn1")
    # The ReLU serves two more places, so it stays.
    assert isinstance(converted.blocks[0].relu, nn.ReLU)
    layer = converted.blocks[0].conv1
    assert (type(layer).__name__, layer.in_channels, layer.out_channels) == ("PickOrMix", 16, 8)


def test_a_number_scales_every_site_by_it_over_the_most_common_ratio() -> None:
    network = without_numbers("resnet50")
    widths = {zeta: [site.detail["width"] for site in plan(network, zeta=zeta).sites] for zeta in ("own", 4, 8)}
    assert widths["own"] == widths[4] == [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
    assert widths[8] == [width // 2 for width in widths["own"]]


def test_a_site_that_would_have_to_grow_is_refused_with_the_reason() -> None:
    with pytest.raises(chansurg.Refusal, match="would widen it from 8 to 32"):
        plan(small(), zeta=1)


def test_a_network_without_a_squeeze_says_why_site_by_site() -> None:
    for name in ("regnet_x_400mf", "mobilenet_v2"):
        network = torchvision.models.get_model(name, weights=None)
        with pytest.raises(chansurg.Refusal) as refused:
            plan(network)
        assert refused.value.exit_code == 1
        assert refused.value.what.count("\n") >= 2
    with pytest.raises(chansurg.Refusal, match=r"no spatial convolution follows it at once: .*features\.2\.conv\.2"):
        plan(network)


def test_a_width_is_rounded_up_from_the_exact_ratio() -> None:
    """49 / 10 has no exact floating-point form; a width must not depend on how a quotient was rounded."""

    class Squeezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 49, 3)
            self.squeeze = nn.Conv2d(49, 10, 1)
            self.spatial = nn.Conv2d(10, 10, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.spatial(torch.relu(self.squeeze(torch.relu(self.stem(x)))))

    for zeta in range(5, 49):
        exact = -(-10 * 49 // (10 * zeta))  # 10 / (zeta / (49 / 10)), rounded up
        assert [site.detail["width"] for site in plan(small(Squeezes), zeta=zeta).sites] == [exact]


@pytest.mark.parametrize("options", [{"zeta": 2**16}, {"mode": "downscale", "zeta": 40}, {"mode": "downscale", "zeta": 2**16}])
def test_a_factor_that_leaves_nothing_is_refused_site_by_site(options: dict[str, Any]) -> None:
    with pytest.raises(chansurg.Refusal, match=r"would leave nothing of its 8 channels|too few for subsets of"):
        plan(small(), **options)


@pytest.mark.parametrize("mode", ["squeeze", "downscale"])
@pytest.mark.parametrize("zeta", [10**400, 10**5000, "1" + 400 * "0", "1" + 5000 * "0", 2**16 + 1, 0, -(10**400)], ids=range(7))
def test_an_absurd_factor_is_a_users_mistake(zeta: object, mode: str) -> None:
    with pytest.raises(chansurg.InputError, match="is not a value of --zeta") as refused:
        PixOptions(mode=mode, zeta=zeta)  # type: ignore[arg-type]
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("operator", ["pick", "mix"])
def test_a_threshold_that_nothing_is_compared_with_is_refused(operator: str) -> None:
    assert PixOptions(operator=operator).tau == PixOptions(operator=operator, tau=0.5).tau == 0.5
    assert PixOptions(operator="min", tau=0.3).tau == 0.3
    with pytest.raises(chansurg.InputError, match="is not a value of --tau"):
        PixOptions(operator=operator, tau=0.3)


class ManySqueezes(nn.Module):
    """A plain bottleneck behind a squeeze whose 3x3 is ``spatial``, 16 channels wide."""

    def __init__(self, spatial: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.squeeze = nn.Conv2d(64, 16, 1)
        self.spatial = spatial
        self.plain = Bottleneck(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.plain(x).mean((2, 3)) + self.spatial(torch.relu(self.squeeze(x))).mean()


class WithGain(nn.Conv2d):
    """Scales each filter by a gain of its own."""

    def __init__(self) -> None:
        super().__init__(16, 16, 3)
        self.gain = nn.Parameter(torch.ones(16, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight * self.gain, self.bias)


@pytest.mark.parametrize(
    ("spatial", "reason"),
    [
        (
            lambda: nn.Conv2d(16, 32, 3, groups=16),
            "spatial cannot be narrowed: it is a depthwise convolution with several outputs a channel",
        ),
        (WithGain, r"spatial cannot be narrowed: it holds tensors that no rule slices (gain)"),
        (lambda: nn.Conv2d(16, 32, 3, groups=8), None),
        (lambda: nn.Conv2d(16, 32, 3, groups=4), None),
    ],
)
def test_one_site_that_cannot_shrink_is_left_alone_and_the_others_are_converted(
    spatial: Callable[[], nn.Module], reason: str | None
) -> None:
    network = small(lambda: ManySqueezes(spatial()))
    planned = plan(network, zeta=8)
    assert [site.path for site in planned.sites] == (["plain.conv1"] if reason else ["plain.conv1", "squeeze"])
    assert [skip.path for skip in planned.skipped if reason and skip.reason.startswith(reason)] == (["squeeze"] if reason else [])
    assert chansurg.apply(network, planned, input_size=(3, 32, 32))(torch.randn(2, 3, 32, 32)).shape == (2, 64)


def test_downscale_leaves_a_layer_with_tensors_of_its_own_alone() -> None:
    network = small(lambda: nn.Sequential(nn.Conv2d(3, 16, 3), WithGain(), nn.Conv2d(16, 8, 3)))
    planned = plan(network, mode="downscale", zeta=2)
    assert [site.path for site in planned.sites] == ["2"]
    assert "1 cannot be narrowed: it holds tensors that no rule slices (gain)" in [skip.reason for skip in planned.skipped]
    chansurg.apply(network, planned, input_size=(3, 32, 32))


def test_a_scaled_standardised_convolution_of_a_library_is_not_damaged() -> None:
    layers = pytest.importorskip("timm.layers")
    network = small(lambda: ManySqueezes(layers.ScaledStdConv2d(16, 16, 3, padding=1)))
    planned = plan(network, zeta=8)
    assert [site.path for site in planned.sites] == ["plain.conv1"]


def test_downscale_keeps_the_strongest_slice_of_each_subset() -> None:
    network = small(lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)))
    with torch.no_grad():
        network[2].weight[:, [1, 2, 4]] *= 100
    planned = plan(network, mode="downscale", zeta=2)
    narrowed = [edit for edit in planned.edits if isinstance(edit, Narrow)]
    assert narrowed == [Narrow("2", (1, 2, 4))]
    converted = chansurg.apply(network, planned, input_size=(3, 32, 32))
    assert torch.equal(converted[3].weight if len(converted) == 4 else converted[2].weight, network[2].weight[:, [1, 2, 4]])


def test_a_smaller_bottleneck_keeps_the_strongest_filters_all_the_way_through() -> None:
    network = small(lambda: nn.Sequential(Small(5, 8).stem, *list(Small(5, 8).blocks)[:2]))
    with torch.no_grad():
        network[2].conv2.weight[[0, 3, 5, 6]] *= 100
        network[2].conv2.weight[:, [1, 2, 4, 7]] *= 100
    planned = plan(network, zeta=8)  # the sites' own ratios are 2 and 4, the larger counts, so this is half of each width
    by_path = {edit.path: edit for edit in planned.edits if isinstance(edit, Narrow)}
    assert by_path["2.conv2"] == Narrow("2.conv2", (1, 2, 4, 7), (0, 3, 5, 6))
    assert by_path["2.bn2"].out_channels == (0, 3, 5, 6)
    assert by_path["2.conv3"] == Narrow("2.conv3", (0, 3, 5, 6))
    converted = chansurg.apply(network, planned, input_size=(3, 32, 32))
    assert torch.equal(converted[2].conv2.weight, network[2].conv2.weight[[0, 3, 5, 6]][:, [1, 2, 4, 7]])
    assert torch.equal(converted[2].bn2.running_var, network[2].bn2.running_var[[0, 3, 5, 6]])


def test_downscale_of_a_basic_block_goes_before_both_convolutions() -> None:
    network = small(lambda: nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), Basic(16)))
    planned = plan(network, mode="downscale", zeta=4)
    assert [edit.path for edit in planned.edits if isinstance(edit, Insert)] == ["1.conv1_pix", "1.conv2_pix"]
    assert not [edit for edit in planned.edits if isinstance(edit, (Bypass, Swap))]
    assert [skip.reason for skip in planned.skipped] == ["it is the stem"]


@pytest.mark.parametrize("subsets", ["contiguous", "strided"])
def test_a_meta_network_and_a_real_one_get_the_same_sites(subsets: str) -> None:
    with torch.device("meta"):
        empty = Small(5, 8)
    for mode in ("squeeze", "downscale"):
        real, meta = (plan(network, mode=mode, subsets=subsets) for network in (small(), empty))
        assert real.sites == meta.sites
        assert [edit.path for edit in real.edits] == [edit.path for edit in meta.edits]


def with_statistics(network: nn.Module) -> Survey:
    found = survey(network, (3, 16, 16))
    found.statistics = measure(network, [torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))])
    return found


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, ["blocks.0.conv1", "blocks.1.conv1"]),
        ({"zeta": 4}, ["blocks.0.conv1", "blocks.1.conv1"]),
        ({"mode": "downscale"}, ["blocks.0.conv2_pix", "blocks.2.conv1_pix", "blocks.2.conv2_pix"]),
        ({"mode": "downscale", "zeta": 3}, ["blocks.0.conv2_pix", "blocks.2.conv1_pix"]),
    ],
)
def test_with_data_subsets_are_fitted_and_every_one_is_mixed_at_first(options: dict[str, Any], layers: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = chansurg.load("networks.small:small", input_size=(16,))
    recipe = find_recipe("pix")
    planned = recipe.plan(with_statistics(network), recipe.options(options))
    assert planned.options["subsets"] == "fitted"
    assert planned == recipe.plan(with_statistics(network), recipe.options(options))
    converted = chansurg.apply(network, planned)
    for path in layers:
        layer = converted.get_submodule(path)
        assert layer.subset_indices() != PickOrMix(layer.in_channels, layer.out_channels, zeta=layer.zeta).subset_indices()
        assert layer.probability(torch.rand(2, layer.in_channels, 3, 3)).unique().tolist() == [pytest.approx(0.75)]
    x = torch.randn(2, 3, 16, 16)
    chansurg.save(converted, tmp_path / "fitted.safetensors")
    again = chansurg.load(tmp_path / "fitted.safetensors", arch="networks.small:small")
    with torch.no_grad():
        assert torch.equal(again(x), converted(x))


def test_fitted_subsets_serve_the_reader_better_than_neighbours() -> None:
    network = small()
    found = with_statistics(network)
    recipe = find_recipe("pix")
    planned = recipe.plan(found, recipe.options({"mode": "downscale"}))
    reader = next(node for node in found.regions[0].nodes if path_of(node) == "blocks.2.conv1")
    demand = demand_of(found, [reader])
    inserted = next(edit for edit in planned.edits if isinstance(edit, Insert) and edit.path == "blocks.2.conv1_pix")
    shares = []
    for subsets in (inserted.layer.arguments["subsets"], [[i, i + 1] for i in range(0, 32, 2)]):
        sums = torch.zeros(32, 16, dtype=torch.float64)
        for column, subset in enumerate(subsets):
            sums[subset, column] = 1
        shares.append(float(demand.given(sums)))
    assert shares[0] > shares[1] + 0.05


def test_a_kind_of_subsets_that_was_asked_for_stays_and_fitting_takes_data() -> None:
    network, recipe = small(), find_recipe("pix")
    planned = recipe.plan(with_statistics(network), recipe.options({"mode": "downscale", "subsets": "strided"}))
    kinds = {edit.layer.arguments["subsets"] for edit in planned.edits if isinstance(edit, Insert)}
    assert (kinds, planned.options["subsets"]) == ({"strided"}, "strided")
    with pytest.raises(chansurg.InputError, match="'fitted' is not a value of --subsets") as refused:
        plan(network, subsets="fitted")
    assert "--calibrate" in refused.value.to_do
    without = plan(network, mode="downscale")
    assert without == plan(network, mode="downscale", subsets="contiguous")
    assert all("constant" not in edit.layer.arguments for edit in without.edits if isinstance(edit, Insert))
