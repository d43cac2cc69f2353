"""What PCS makes of real architectures: the same function bit for bit, gates where channels can go, and channels that really can."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torchvision
from networks import small
from networks.running import outputs
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig

import chansurg
from chansurg.recipes.pcs.importance import importance_of
from chansurg.recipes.pcs.sites import GateSite, gate_sites
from chansurg.surgery.edits import Attach, Scale
from chansurg.surgery.gating import gates
from chansurg.surgery.survey import survey
from chansurg.surgery.survey.flow import flow
from chansurg.surgery.survey.kinds import conv_of, path_of


def of_torchvision(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, **arguments)


WITHOUT_HEADS = {"init_weights": False, "aux_logits": False}
# name -> how it is built, the side of its images, and how many gates of each kind it gets
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, dict[str, int]]] = {
    "cifar-resnet20": (lambda: chansurg.load("cifar/resnet20"), 32, {"branch": 10, "convolution": 9}),
    "cifar-resnet56": (lambda: chansurg.load("cifar/resnet56"), 32, {"branch": 28, "convolution": 27}),
    "resnet18": (of_torchvision("resnet18"), 64, {"branch": 12, "convolution": 8}),
    "resnet50": (of_torchvision("resnet50"), 64, {"convolution": 33, "branch": 20}),
    "resnext50": (of_torchvision("resnext50_32x4d"), 64, {"convolution": 1, "grouped": 16, "branch": 20}),
    "vgg11": (of_torchvision("vgg11", init_weights=False, num_classes=10), 32, {"convolution": 8, "feed-forward": 1}),
    "vgg11_bn": (of_torchvision("vgg11_bn", init_weights=False, num_classes=10), 32, {"convolution": 8, "feed-forward": 1}),
    "mobilenet_v2": (of_torchvision("mobilenet_v2"), 64, {"convolution": 3, "depthwise": 16, "branch": 15}),
    "mobilenet_v3_small": (
        of_torchvision("mobilenet_v3_small"),
        64,
        {"convolution": 2, "depthwise": 10, "branch": 10, "feed-forward": 1},
    ),
    "efficientnet_b0": (of_torchvision("efficientnet_b0"), 64, {"convolution": 3, "depthwise": 15, "branch": 14}),
    "densenet121": (of_torchvision("densenet121"), 64, {"convolution": 58}),
    "googlenet": (of_torchvision("googlenet", **WITHOUT_HEADS), 64, {"convolution": 57}),
    "inception_v3": (of_torchvision("inception_v3", **WITHOUT_HEADS), 96, {"convolution": 94}),
    "regnet_y_400mf": (of_torchvision("regnet_y_400mf"), 64, {"convolution": 1, "branch": 20, "grouped": 16}),
    "regnet_x_400mf": (of_torchvision("regnet_x_400mf"), 64, {"convolution": 1, "branch": 26, "grouped": 22}),
    "convnext_tiny": (of_torchvision("convnext_tiny"), 64, {"feed-forward": 18}),
    "vit_b_16": (of_torchvision("vit_b_16", image_size=32), 32, {"feed-forward": 12}),
    "swin_t": (of_torchvision("swin_t"), 64, {"feed-forward": 12}),
    "shufflenet_v2_x0_5": (of_torchvision("shufflenet_v2_x0_5"), 64, {"depthwise": 16, "convolution": 6}),
    "squeezenet1_1": (of_torchvision("squeezenet1_1"), 64, {"convolution": 25}),
    "mnasnet0_5": (of_torchvision("mnasnet0_5"), 64, {"depthwise": 17, "convolution": 3, "branch": 15}),
}
LARGE = (
    "convnext_tiny",
    "swin_t",
    "vit_b_16",
    "cifar-resnet56",
    "inception_v3",
    "efficientnet_b0",
    "vgg11",
    "vgg11_bn",
    "regnet_x_400mf",
    "densenet121",
)
SMALL: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "small": (small.small, 32),
    "convnext": (
        lambda: torchvision.models.ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=5),
        64,
    ),
    "swin": (small.swin, 32),
    "vision_transformer": (small.vision_transformer, 32),
    **{name: FAMILIES[name][:2] for name in FAMILIES if name not in LARGE},
}


def unsettled(network: nn.Module) -> nn.Module:
    """Statistics, scales and shifts that are not all alike, and nothing at zero, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5, generator=generator)
        for parameter in network.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
    return network.eval()


@cache
def original(name: str) -> nn.Module:
    torch.manual_seed(0)
    return unsettled((FAMILIES.get(name) or SMALL[name])[0]())


def side(name: str) -> int:
    return (FAMILIES.get(name) or SMALL[name])[1]


def convert(network: nn.Module, side: int = 32, **options: Any) -> nn.Module:
    return chansurg.convert(network, "pcs", input_size=(3, side, side), **options)


def images(side: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversion_is_the_same_function_bit_for_bit(name: str) -> None:
    network, size = original(name), (3, side(name), side(name))
    plan = chansurg.plan(network, "pcs", input_size=size)
    assert Counter(site.kind for site in plan.sites) == FAMILIES[name][2]
    layers = [path for path, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    named = [site.path for site in plan.sites] + [site.detail["with"] for site in plan.sites if "with" in site.detail]
    left = [skip.path for skip in plan.skipped]
    # Attention that is one call, or reads its weights itself, makes no call of a layer.
    assert sorted(named + left) == sorted(path for path in layers if "attention" not in path and ".attn." not in path)
    gated = chansurg.apply(network, plan, input_size=size)
    for batch in (1, 2):
        x = images(side(name), batch)
        expected = outputs(network, x)
        assert expected.abs().max() > 0.05
        assert torch.equal(outputs(gated, x), expected)
    assert len(gates(gated)) == len(plan.sites)


def test_layers_on_tables_and_norms_with_activations_of_their_own() -> None:
    """Swin v2 computes its position bias from a table; timm's norms hold their activation."""
    x = images(64)
    network = unsettled(torchvision.models.swin_v2_t(weights=None))
    plan = chansurg.plan(network, "pcs", input_size=(3, 64, 64))
    assert {site.kind for site in plan.sites} == {"feed-forward"}
    assert "what goes into it does not depend on the image" in {skip.reason for skip in plan.skipped}
    network = unsettled(pytest.importorskip("timm").create_model("repvgg_a0"))
    plan = chansurg.plan(network, "pcs", input_size=(3, 64, 64))
    assert len(plan.sites) > 40
    assert torch.equal(outputs(chansurg.apply(network, plan, input_size=(3, 64, 64)), x), outputs(network, x))


@pytest.mark.parametrize("name", ["small", "cifar-resnet20", "mobilenet_v3_small", "convnext", "vision_transformer", "swin"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_so_it_is_in_other_precisions(name: str, dtype: torch.dtype) -> None:
    network = copy.deepcopy(original(name)).to(dtype)
    x = images(side(name), dtype=dtype)
    assert torch.equal(outputs(convert(network, side(name)), x), outputs(network, x))


@pytest.mark.parametrize("name", ["small", "cifar-resnet20", "convnext"])
def test_channels_last_and_the_first_training_pass_are_the_same_too(name: str) -> None:
    network = copy.deepcopy(original(name)).to(memory_format=torch.channels_last)
    x = images(side(name), 4).to(memory_format=torch.channels_last)
    gated = convert(network, side(name))
    assert torch.equal(outputs(gated, x), outputs(network, x))
    for each in (network, gated):
        each.train()
        for module in each.modules():
            if isinstance(module, nn.Dropout) or "StochasticDepth" in type(module).__name__:
                module.eval()
    assert torch.equal(gated(x), network(x))


def masked(name: str, seed: int) -> tuple[nn.Module, list[tuple[GateSite, Any]]]:
    """A gated network that is no longer the original, with random entries masked, and each site with its gate."""
    network, size = original(name), (3, side(name), side(name))
    sites, _ = gate_sites(survey(network, size))
    gated = convert(network, side(name))
    generator = torch.Generator().manual_seed(seed)
    pairs = list(zip(sites, [gated.get_submodule(e.path) for e in _attached(gated)], strict=True))
    for _, gate in pairs:
        with torch.no_grad():
            gate.fc2.weight.normal_(0, 0.3, generator=generator)
            gate.fc2.bias.uniform_(-1, 2, generator=generator)
            gate.mask.copy_(torch.rand(gate.entries, generator=generator) < 0.5)
            gate.mask[0] = True
    return gated, pairs


def _attached(gated: nn.Module) -> list[Attach]:
    return [edit for edit in chansurg.record_of(gated).journal[-1].edits if isinstance(edit, Attach)]


@pytest.mark.parametrize("name", SMALL)
def test_what_is_masked_can_be_anything_and_nobody_notices(name: str) -> None:
    """Filters, norms, the readers' input slices and all that belongs to dead channels are overwritten, and no bit of the output changes."""
    gated, pairs = masked(name, 3)
    x = images(side(name))
    expected = outputs(gated, x)
    assert expected.isfinite().all()
    with torch.no_grad():
        for site, gate in pairs:
            dead = [i for i, kept in enumerate(gate.per_channel(gate.mask).tolist()) if not kept]
            for node in (site.layer, site.tail.norm):
                if node is not None:
                    for tensor in gated.get_submodule(path_of(node)).state_dict().values():
                        if tensor.ndim:
                            tensor[dead] = tensor[dead].abs() * 3 + 1
            if site.first is not site.layer:
                feeder = gated.get_submodule(path_of(site.first))
                per_entry = feeder.out_channels // site.entries
                feeder.weight[[i for i in range(feeder.out_channels) if not gate.mask[i // per_entry]]] += 7
            readers = flow(site.region, site.tail.last, 1 if conv_of(site.layer) is not None else -1, homogeneous=False).readers
            assert readers
            for reader in readers:
                if reader.kind == "layer":
                    lost = [i for i, origin in enumerate(reader.origins) if origin is not None and origin in dead]
                    gated.get_submodule(path_of(reader.node)).weight[:, lost] += 7
    assert torch.equal(outputs(gated, x), expected)
    for _, gate in pairs:
        gate.mask.fill_(True)
    assert not torch.equal(outputs(gated, x), expected), "it is the mask that keeps it out"


@pytest.mark.parametrize("name", ["small", "vision_transformer", "swin", "convnext", "mobilenet_v3_small", "regnet_y_400mf"])
def test_every_new_parameter_has_a_gradient_after_one_step(name: str) -> None:
    gated = convert(original(name), side(name)).train()
    x = images(side(name), 8)
    optimizer = torch.optim.SGD(gated.parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        sum(gated(x).square().sum() for _ in range(4 if "swin" in name or "convnext" in name else 1)).backward()
        optimizer.step()
    for path, gate in gates(gated).items():
        for parameter_name, parameter in gate.named_parameters():
            assert parameter.grad is not None, path
            assert parameter.grad.isfinite().all(), path
            assert parameter.grad.any(), f"{path}.{parameter_name}"


def test_importance_is_the_norms_scale_times_the_filters_norm() -> None:
    network = copy.deepcopy(original("cifar-resnet20"))
    gated = convert(network)
    conv, norm = network.layer2[0].conv1.requires_grad_(False), network.layer2[0].bn1.requires_grad_(False)
    expected = [abs(float(norm.weight[i])) * float(conv.weight[i].square().sum().sqrt()) for i in range(32)]
    gate = gated.layer2[0].conv1_salience
    assert gate.importance.tolist() == pytest.approx(expected, rel=1e-4)
    assert gate.ranking().tolist() == sorted(range(32), key=lambda i: expected[i])
    assert importance_of(nn.Conv2d(4, 8, 1, device="meta"), None, 2) is None
    layer = nn.Linear(3, 4)
    by_unit = importance_of(layer, None, 2)
    assert by_unit == pytest.approx([float(layer.weight[i : i + 2].detach().norm()) for i in (0, 2)], rel=1e-4)


def test_options_reach_every_gate() -> None:
    options = {"shrink": "1/4", "lambda_base": 3e-5, "alpha": 0.05, "selection": "input", "closing": 0.5}
    found = gates(convert(original("small"), 32, **options)).values()
    assert {(g.shrink, g.lambda_base, g.alpha, g.selection, g.closing) for g in found} == {("1/4", 3e-5, 0.05, "input", 0.5)}
    assert {g.method for g in gates(convert(original("small"), 32, method="truncation")).values()} == {"truncation"}
    assert all(g.shrinkable == g.entries // 4 for g in found)


def test_the_memory_access_of_the_generators_is_the_papers() -> None:
    """Section IV, Table I: the dynamic networks' rows are 0.6 M and 1.2 M above those of ResNet-18 and ResNet-34."""
    for name, more in (("resnet18", 0.6), ("resnet34", 1.2)):
        with torch.device("meta"):
            network = torchvision.models.get_model(name, weights=None)
        plan = chansurg.plan(network, "pcs", input_size=(3, 224, 224))
        entry = chansurg.record_of(chansurg.apply(network, plan, input_size=(3, 224, 224))).journal[-1]
        assert (entry.after["memory_access"] - entry.before["memory_access"]) / 1e6 == pytest.approx(more, abs=0.15)


def test_a_factor_goes_ahead_through_a_relu_and_behind_anything_else() -> None:
    scales = {
        name: [
            (e.path, e.side, e.channels)
            for e in chansurg.plan(original(name), "pcs", input_size=(3, side(name), side(name))).edits
            if isinstance(e, Scale)
        ]
        for name in ("small", "mobilenet_v3_small", "convnext")
    }
    assert all(side == "out" for _, side, _ in scales["small"])
    assert ("blocks.0.bn1", "out", None) in scales["small"]
    assert [side for _, side, _ in scales["convnext"]] == ["in", "in"]
    # Hard swish behind the depthwise convolution: the gate of squeeze-and-excitation and the projection take the factor.
    assert ("features.4.block.2.fc1", "in", None) in scales["mobilenet_v3_small"]
    assert ("features.4.block.3.0", "in", None) in scales["mobilenet_v3_small"]
