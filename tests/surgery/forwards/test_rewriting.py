"""Rewriting without an edit must change nothing: not an output, not a statistic, not a gradient, in either mode."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import pytest
import torch
from networks import odd
from torch import Tensor, fx, nn
from torchvision.models import ConvNeXt, DenseNet, SwinTransformer, VisionTransformer, get_model
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from chansurg.surgery.editing.identity import first_difference, rewrite_without_edits
from chansurg.surgery.edits import Address
from chansurg.surgery.forwards.rewriting import find_call, graph_hash, insert_before, install, original_class, trace_forward
from chansurg.surgery.forwards.tracing import TraceFailure
from chansurg.surgery.survey import survey


def unsettled(network: nn.Module) -> nn.Module:
    """Statistics, scales and biases that are not all alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5, generator=generator)
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.05, generator=generator))
    return network


def differences(network: nn.Module, size: tuple[int, ...]) -> tuple[dict[str, str], list[str | None]]:
    """What was left, and where the rewritten network differs: in eval mode, as a deep copy, in training mode."""
    surveyed = survey(network, size)
    report = rewrite_without_edits(rewritten := copy.deepcopy(network), surveyed)
    examples = (torch.randn(2, *size, generator=torch.Generator().manual_seed(1)),)
    found = [
        first_difference(network, rewritten, examples, training=False),
        first_difference(network, copy.deepcopy(rewritten), examples, training=False),
        first_difference(network, rewritten, examples, training=True),
    ]
    return {**surveyed.untraced, **report.left}, found


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "convnext": (lambda: ConvNeXt([CNBlockConfig(32, 64, 2), CNBlockConfig(64, None, 2)], stochastic_depth_prob=0.5), 32),
    "densenet": (lambda: DenseNet(8, (2, 3), 16, drop_rate=0.2), 32),
    "efficientnet_b0": (lambda: get_model("efficientnet_b0", weights=None), 32),
    "googlenet": (lambda: get_model("googlenet", weights=None, init_weights=False, aux_logits=False), 32),
    "mnasnet0_5": (lambda: get_model("mnasnet0_5", weights=None), 32),
    "mobilenet_v3_small": (lambda: get_model("mobilenet_v3_small", weights=None), 32),
    "regnet_y_400mf": (lambda: get_model("regnet_y_400mf", weights=None), 32),
    "resnet18": (lambda: get_model("resnet18", weights=None), 32),
    "resnet50": (lambda: get_model("resnet50", weights=None), 32),
    "shufflenet_v2_x0_5": (lambda: get_model("shufflenet_v2_x0_5", weights=None), 32),
    "squeezenet1_1": (lambda: get_model("squeezenet1_1", weights=None), 64),
    "swin": (lambda: SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0.5), 32),
    "swin_v2": (
        lambda: SwinTransformer(
            [4, 4], 24, [2, 2], [2, 4], [4, 4], dropout=0.2, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
        ),
        32,
    ),
    "vit": (lambda: VisionTransformer(32, 8, 2, 2, 16, 32, dropout=0.2, attention_dropout=0.2), 32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_whose_every_module_was_rewritten_is_the_same(name: str) -> None:
    build, side = NETWORKS[name]
    left, found = differences(unsettled(build()), (3, side, side))
    assert left == {}
    assert found == [None, None, None]


TIMM = {
    "convnextv2_atto": {"drop_path_rate": 0.2},
    "efficientvit_m0": {"img_size": 64},
    "legacy_seresnet18": {},
    "levit_128s": {"img_size": 64, "drop_path_rate": 0.2},
    "mobilevit_xxs": {},
    "res2next50": {},
    "selecsls42": {},
    "resnetv2_18": {"drop_path_rate": 0.2},
    "skresnet18": {"drop_path_rate": 0.2},
}


@pytest.mark.parametrize("name", TIMM)
def test_so_is_one_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    left, found = differences(unsettled(timm.create_model(name, **TIMM[name])), (3, 64, 64))
    # Attention biases are cached in eval mode; what timm declares as not traceable is one call.
    assert all("keeps something" in reason or "declares it as not traceable" in reason for reason in left.values()), left
    assert found == [None, None, None]


def test_stochastic_depth_and_dropout_stay_alive() -> None:
    network = unsettled(get_model("efficientnet_b0", weights=None, stochastic_depth_prob=0.5, dropout=0.5))
    rewrite_without_edits(network, survey(network, (3, 32, 32)))
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


def test_what_differs_is_found() -> None:
    network = unsettled(odd.Odd(odd.Bottleneck()))
    other = copy.deepcopy(network)
    examples = (torch.randn(2, 3, 8, 8),)
    assert first_difference(network, other, examples, training=True) is None
    other.plain.bn1.momentum = 0.2  # type: ignore[union-attr]
    assert first_difference(network, other, examples, training=True) == "state plain.bn1.running_mean"
    other = copy.deepcopy(network)
    other.stem.weight.requires_grad_(False)  # type: ignore[union-attr]
    assert first_difference(network, other, examples, training=True) == "gradient of differs"
    other = copy.deepcopy(network)
    other.head.bias.data[0] += 1e-6  # type: ignore[union-attr]
    assert first_difference(network, other, examples, training=False) == "output differs"


ODD = {
    name: kind
    for name, kind in vars(odd).items()
    if inspect.isclass(kind)
    and issubclass(kind, nn.Module)
    and kind.__module__ == odd.__name__
    and kind not in (odd.Odd, odd.KeywordArguments)
}

LEFT = {
    "Checkpointed": {"odd": "recomputes activations"},
    "DecidesByChance": {"odd": "draws random numbers"},
    "DecidesByType": {"odd": "something else on tensors"},
    "DecidesByValue": {"odd": "decides by the values", "plain": "not reached"},
    "FillsItsArgument": {"odd.block": "changes its argument 'names'"},
    "KeepsItsInput": {"odd": "keeps something from one call to the next (calls, last)"},
    "OnlyInTraining": {"odd": "different paths in training and in eval mode"},
    "VariableArguments": {"odd": "variable number of arguments"},
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_network_is_rewritten_or_left_with_the_reason(name: str) -> None:
    torch.manual_seed(0)
    network = odd.StructuredOutput() if name == "StructuredOutput" else odd.Odd(ODD[name]())
    left, found = differences(unsettled(network), (3, 16, 16))
    assert found == [None, None, None]
    for path, reason in LEFT.get(name, {}).items():
        assert reason in left[path]
    assert name in LEFT or left == {}


def test_nothing_of_a_trace_stays_on_the_module() -> None:
    module = odd.KeepsItsInput()
    with pytest.raises(TraceFailure, match="keeps something"):
        trace_forward(module, "", {})
    assert module.last is None
    assert module.calls == [0]
    assert module.training


class Constant(nn.Module):
    """Multiplies by a tensor that it makes from nothing: ``[B, 3, H, W]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(3.0).reshape(1, 3, 1, 1)


def test_a_constant_follows_the_module_and_stays_out_of_the_state_dict() -> None:
    module = Constant()
    graph = trace_forward(module, "", {})
    assert dict(module.named_buffers()) == {}, "tracing leaves the module alone"
    install(module, graph)
    assert [buffer.tolist() for buffer in module.buffers()] == [torch.arange(3.0).reshape(1, 3, 1, 1).tolist()]
    assert module.state_dict() == {}
    assert next(module.to("meta").buffers()).is_meta


class Renamed(nn.Module):
    """Changes a number under another name: ``[B, H, W] -> [B, H, W]``."""

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[1]
        more = height
        more += 2
        y = x
        y *= 2
        return x[:, :height] * more


def test_in_place_operations_mean_the_same_for_numbers_and_tensors() -> None:
    module = Renamed()
    expected, rewritten = module(torch.ones(1, 4, 5)), copy.deepcopy(module)
    install(rewritten, trace_forward(rewritten, "", {}))
    x = torch.ones(1, 4, 5)
    assert torch.equal(rewritten(x), expected)
    assert torch.equal(x, torch.full((1, 4, 5), 2.0)), "the input was changed in place, as by the original"


def _twice(x: Tensor, flag: bool = False) -> Tensor:
    return x * 2 if flag else x


class Flagged(nn.Module):
    """Doubles where it is told so: ``[B, C] -> [B, C]``."""

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        return _twice(x, flag)


def test_a_forward_made_for_a_list_refuses_another_length() -> None:
    module = odd.TakesAList.Inner()
    install(module, trace_forward(module, "", {"inputs": {"list": [{"tensor": True}] * 2}, "more": None}))
    x = torch.randn(1, 32, 4, 4)
    module.eval()
    assert torch.equal(module([x, x * 2]), odd.TakesAList.Inner.forward(module, [x, x * 2]))
    with pytest.raises(ValueError, match="made for inputs="):
        module([x])


def test_a_forward_made_for_one_flag_refuses_another() -> None:
    module = Flagged()
    install(module, trace_forward(module, "", {"flag": True}))
    x = torch.ones(1, 2)
    assert torch.equal(module(x, True), x * 2)
    with pytest.raises(ValueError, match="made for flag=True, and was called with another: False"):
        module(x)


def test_the_class_keeps_its_name_and_hooks_fire() -> None:
    network = get_model("resnet18", weights=None)
    block = network.layer1[0]
    calls: list[str] = []
    block.register_forward_hook(lambda *_: calls.append("hook"))
    rewrite_without_edits(network, survey(network, (3, 32, 32)))
    network(torch.randn(2, 3, 32, 32))
    assert calls == ["hook"]
    assert type(block).__name__ == "BasicBlock"
    assert isinstance(block, original_class(block))
    assert original_class(block).__module__ == "torchvision.models.resnet"
    assert list(network.state_dict()) == list(get_model("resnet18", weights=None).state_dict())


@pytest.mark.parametrize("name", ["resnet18", "densenet", "swin"])
def test_a_second_rewriting_is_one_of_the_first_class(name: str) -> None:
    network = unsettled(NETWORKS[name][0]())
    twice = copy.deepcopy(network)
    for _ in range(2):
        assert rewrite_without_edits(twice, survey(twice, (3, 32, 32))).left == {}
    assert original_class(twice) is type(network)
    assert first_difference(network, twice, (torch.randn(2, 3, 32, 32),), training=True) is None


def test_an_address_names_the_call_and_not_the_text() -> None:
    block = get_model("resnet18", weights=None).layer1[0]
    graph = trace_forward(block, "layer1.0", {})
    second = find_call(graph, Address("layer1.0", "self.relu", 1))
    assert second is not None
    assert second.all_input_nodes[0].target.__name__ == "iadd"  # type: ignore[union-attr]
    before = graph_hash(graph)
    insert_before(graph, second, "bn1")
    assert graph_hash(graph) != before
    assert find_call(graph, Address("layer1.0", "self.relu", 2)) is None


@pytest.mark.parametrize("build", [lambda: fx.Graph(), lambda: trace_forward(Flagged(), "", {"flag": False})])
def test_a_hash_is_the_same_each_time(build: Callable[[], fx.Graph]) -> None:
    assert graph_hash(build()) == graph_hash(build())
