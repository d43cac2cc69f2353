"""An optimised network is the network: everywhere, in every precision, for every runtime; and what is left out has a reason."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import odd
from networks.gated import draw_masks
from networks.matrix import SMALL, Case, Network, cases, converted, of_torchvision, original
from networks.running import outputs
from networks.small import small
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

import chansurg
from chansurg.recipes.pix.layer import PickOrMix
from chansurg.recipes.slimconv.layer import SlimConv
from chansurg.surgery.delivery import folding, small_maps
from chansurg.surgery.delivery.optimizing import RUNTIMES, Optimization, optimization_of
from chansurg.surgery.layer import RecipeLayer, Target


def told(network: nn.Module) -> Optimization:
    found = optimization_of(network)
    assert found is not None
    return found


def with_running_statistics(network: nn.Module) -> list[str]:
    return [path for path, module in network.named_modules() if getattr(module, "running_var", None) is not None]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def numbers(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    "network", [*(n for n in SMALL if n.name not in ("vision_transformer", "beit")), of_torchvision("shufflenet_v2_x0_5", 32)], ids=str
)
def test_a_network_is_the_same_function_and_is_not_touched(network: Network) -> None:
    model = original(network)
    before, types = numbers(model), [type(module) for module in model.modules()]
    made = chansurg.optimize(model, network.inputs())
    assert {name: torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()} == dict.fromkeys(before, True)
    assert [type(module) for module in model.modules()] == types
    assert isinstance(made, type(model))
    assert chansurg.record_of(made) == chansurg.record_of(model)
    assert not made.training
    for x in (network.inputs(1), network.inputs(3)):
        assert relative_error(outputs(made, x), outputs(model, x)) < 1e-4
    assert told(made).max_rel_error_float64 is not None
    assert 0 <= told(made).max_rel_error_float64 < 1e-12
    tied = ["blocks.2.bn1", "blocks.2.bn2"] if network.name == "tied" else []
    assert with_running_statistics(made) == tied
    if network.name in ("small", "convnext", "swin"):
        assert not [module for module in made.modules() if isinstance(module, (nn.Dropout, nn.Identity, StochasticDepth))]


CONVERTED = [
    *(case for case in cases([n for n in SMALL if n.name == "small"], every=True) if ("subsets", "fitted") not in case.values[0].options),
    *cases([n for n in SMALL if n.name == "levit"]),
]


@pytest.mark.parametrize("case", CONVERTED)
def test_a_converted_network_is_the_same_function(case: Case) -> None:
    model = converted(case)
    made = chansurg.optimize(model, case.network.inputs())
    x = case.network.inputs(3)
    assert relative_error(outputs(made, x), outputs(model, x)) < 1e-5
    assert told(made).left == {}
    assert with_running_statistics(made) == []
    assert chansurg.record_of(made).journal == chansurg.record_of(model).journal


@pytest.mark.parametrize("residual", ["scatter", "coupled"])
def test_a_sliced_network_is_the_same_function(residual: str) -> None:
    gated = chansurg.convert(original(SMALL[0]), "pcs", input_size=(3, 32, 32))
    draw_masks(gated, 0.5, torch.Generator().manual_seed(0))
    sliced = chansurg.slice(gated, residual=residual)
    made = chansurg.optimize(sliced)
    assert (residual == "scatter") is ("GatherAdd" in told(made).forms.values())
    assert relative_error(outputs(made), outputs(sliced)) < 1e-5
    assert with_running_statistics(made) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("recipe", ["pix", "slimconv", "mod"])
def test_every_runtime_gets_the_same_function(runtime: str, recipe: str) -> None:
    network = next(n for n in SMALL if n.name == "small")
    model = converted(Case(network, recipe, ()))
    made = chansurg.optimize(model, network.inputs(), runtime=runtime)
    assert relative_error(outputs(made, network.inputs(5)), outputs(model, network.inputs(5))) < 1e-5
    assert told(made).runtime == runtime
    assert not {"folding", "removing", "forms"} & set(told(made).left)


ODD = [kind for kind in vars(odd).values() if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == odd.__name__]


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind not in (odd.Odd, odd.StructuredOutput)], ids=lambda kind: kind.__name__)
def test_what_is_awkward_to_rewrite_is_the_same_function(kind: Any) -> None:
    torch.manual_seed(0)
    model = odd.Odd(kind())
    x = torch.randn(2, 3, 16, 16)
    if kind is odd.DecidesByChance:
        return  # it is no function of its input
    outputs(model.train(), x)
    made = chansurg.optimize(model.eval(), x)
    assert relative_error(outputs(made, x), outputs(model, x)) < 1e-5
    if kind is odd.DecidesByValue:  # what comes behind it is not reached on shapes alone
        assert "could not be traced" in told(made).left["(the network)"]
    else:
        assert "plain.bn1" in told(made).folded


class Signs(nn.Module):
    """ReLUs that can act and some that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.first, self.behind_pool, self.behind_sum = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU()
        self.behind_difference, self.behind_change = nn.ReLU(), nn.ReLU()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.behind_pool(self.pool(self.first(self.conv(x))))
        x = self.behind_sum(x + 0.5 * torch.sigmoid(x))
        y = self.behind_difference(x - x.mean())
        z = torch.relu(x)
        z.sub_(0.7)
        return functional.dropout(self.behind_change(z), 0.5, training=self.training) + y


def test_a_relu_goes_where_nothing_negative_can_come() -> None:
    torch.manual_seed(0)
    model = Signs().eval()
    x = torch.randn(2, 3, 12, 12)
    made = chansurg.optimize(model, x)
    assert set(dict(made.named_children())) == {"conv", "first", "pool", "behind_difference", "behind_change"}
    assert torch.equal(outputs(made, x), outputs(model, x))
    assert any("dropout" in path for path in told(made).removed)


class AlwaysDrops(nn.Module):
    """Its dropout drops in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(self.conv(x), 0.5)


def test_a_dropout_that_acts_in_eval_mode_stays() -> None:
    made = chansurg.optimize(AlwaysDrops().eval(), torch.randn(1, 3, 12, 12))
    assert (outputs(made, torch.ones(1, 3, 12, 12)) == 0).any()


def test_behind_pix_no_relu_can_act() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), PickOrMix(8, 4, zeta=2), nn.ReLU(), SlimConv(4, 4, 3), nn.ReLU()).eval()
    x = torch.randn(2, 3, 12, 12)
    made = chansurg.optimize(model, x)
    assert told(made).removed == ("3",)
    assert torch.allclose(outputs(made, x), outputs(model, x), rtol=1e-5, atol=1e-6)


class Doubling(RecipeLayer):
    """Doubles its input; its form for a runtime is wrong."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def for_runtime(self, target: Target) -> nn.Module:
        seen.append(target)
        return nn.Identity()


seen: list[Target] = []


def test_a_form_that_computes_something_else_is_left_out_with_the_reason_and_the_rest_stays() -> None:
    seen.clear()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Doubling(), nn.Conv2d(8, 8, 3), Doubling()).eval()
    x = torch.randn(2, 3, 12, 12)
    made = chansurg.optimize(model, x, runtime="compile")
    assert "differ" in told(made).left["forms"]
    assert told(made).forms == {}
    assert told(made).folded == {"1": ("0",)}
    assert isinstance(made.get_submodule("3"), Doubling)
    assert torch.allclose(outputs(made, x), outputs(model, x), rtol=1e-5, atol=1e-6)
    assert {target.nonnegative for target in seen} == {True, False}
    assert {target.runtime for target in seen} == {"compile"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_precision_stays_what_it_is(dtype: torch.dtype) -> None:
    network = next(n for n in SMALL if n.name == "small")
    model = copy.deepcopy(original(network)).to(dtype)
    made = chansurg.optimize(model)
    assert {tensor.dtype for tensor in made.state_dict().values()} == {dtype}
    x = network.inputs().to(dtype)
    assert relative_error(outputs(made, x).double(), outputs(model, x).double()) < (1e-12 if dtype == torch.float64 else 0.05)


def test_it_is_a_module_like_any_other_but_no_model_file_says_that_it_was_not_changed(tmp_path: Path) -> None:
    network = next(n for n in SMALL if n.name == "cifar-resnet20")
    made = chansurg.optimize(converted(Case(network, "pix", (("mode", "downscale"),))))
    assert torch.equal(outputs(copy.deepcopy(made)), outputs(made))
    with pytest.raises(chansurg.Refusal, match="changed"):
        chansurg.save(made, tmp_path / "optimised.safetensors")
    assert list(tmp_path.iterdir()) == []
    assert optimization_of(small()) is None


def test_layouts_and_what_there_is_not() -> None:
    model = original(SMALL[0])
    x = SMALL[0].inputs()
    weight = chansurg.optimize(model, x, runtime="onnxruntime").get_parameter("blocks.0.conv2.weight")
    assert weight.is_contiguous()
    last = chansurg.optimize(model, x, layout="channels_last")
    assert last.get_parameter("blocks.0.conv2.weight").is_contiguous(memory_format=torch.channels_last)
    assert told(last).as_json()["layout"] == "channels_last"
    with pytest.raises(chansurg.InputError, match="no runtime"):
        chansurg.optimize(model, x, runtime="tensorrt")
    with pytest.raises(chansurg.InputError, match="no layout"):
        chansurg.optimize(model, x, layout="blocked")
    with pytest.raises(chansurg.InputError, match="does not"):
        chansurg.optimize(model, torch.randn(1, 5, 32, 32))
    with pytest.raises(chansurg.InputError, match="wrapped"):
        chansurg.optimize(nn.DataParallel(model), x)


def test_where_folding_is_what_goes_wrong_the_other_steps_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    real = folding.scale_and_shift
    monkeypatch.setattr(folding, "scale_and_shift", lambda norm: (real(norm)[0] * 1.001, real(norm)[1]))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), PickOrMix(8, 4, zeta=2)).eval()
    x = torch.randn(2, 3, 12, 12)
    made = chansurg.optimize(model, x)
    assert list(told(made).left) == ["folding"]
    assert told(made).removed == ("3",)
    assert "4" in told(made).forms
    assert with_running_statistics(made) == ["1"]
    assert torch.allclose(outputs(made, x), outputs(model, x), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not small_maps.HAS_ONEDNN, reason="needs oneDNN")
@pytest.mark.parametrize(
    ("layers", "size", "formed"),
    [
        ([nn.Conv2d(8, 8, 3, padding=1)], 12, {"0"}),
        ([nn.Conv2d(8, 8, (3, 1), stride=2, dilation=(2, 1), padding=(2, 0), bias=False)], 12, {"0"}),
        ([nn.Conv2d(8, 8, 1)], 12, set()),
        ([nn.Conv2d(8, 8, 3, groups=8, padding=1)], 12, set()),
        ([nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")], 12, set()),
        ([nn.Conv2d(8, 8, 3, padding="same")], 12, set()),
        ([nn.Conv2d(8, 8, 3, padding=1)], 3, set()),
        ([nn.Conv2d(8, 8, 3, padding=1)], 64, set()),
        ([SlimConv(8, 8, 3, padding=1)], 64, {"0.top", "0.bottom.conv"}),
    ],
)
def test_convolutions_of_small_maps_go_to_onednn(layers: list[nn.Module], size: int, formed: set[str]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*layers).eval(), torch.randn(1, 8, size, size)
    for layout in ("contiguous", "channels_last"):
        made = chansurg.optimize(model, x, layout=layout)
        assert {path for path, form in told(made).forms.items() if form == "SmallMapConv2d"} == formed
        assert torch.allclose(outputs(made, x), outputs(model, x), rtol=1e-5, atol=1e-6)
    assert not [form for form in told(chansurg.optimize(model, x, runtime="export")).forms.values() if form == "SmallMapConv2d"]
