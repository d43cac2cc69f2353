"""What a survey says of networks: parts, calls, blocks, stages, and the reasons for what it leaves out."""

from __future__ import annotations

import pytest
import torch
from networks import odd, shapes
from torch import nn
from torchvision.models import get_model

from chansurg.surgery.errors import InputError
from chansurg.surgery.survey import Survey, survey
from chansurg.surgery.survey.kinds import conv_of, is_batched, is_pooled, linear_of


def surveyed(name: str, size: int = 64) -> Survey:
    with torch.device("meta"):
        network = get_model(name, weights=None, **({"weights_backbone": None} if name.startswith(("fcn", "faster")) else {}))
    return survey(network, (3, size, size))


def test_the_stages_of_a_residual_network() -> None:
    found = surveyed("resnet50", 224)
    (region,) = found.regions
    assert [(stage.shape, len(stage.blocks)) for stage in found.stages(region)] == [
        ((256, 56, 56), 3),
        ((512, 28, 28), 4),
        ((1024, 14, 14), 6),
        ((2048, 7, 7), 3),
    ]
    assert {block.kind for block in found.blocks(region)} == {"bottleneck"}
    assert [block.path for block in found.blocks(region)][:4] == ["layer1.0", "layer1.1", "layer1.2", "layer2.0"]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("resnet18", {"basic": 8}),
        ("mobilenet_v2", {"inverted residual": 10}),
        ("vit_b_16", {"attention": 12, "feed-forward": 12}),
        ("convnext_tiny", {"feed-forward": 18}),
        ("vgg11", {}),
    ],
)
def test_blocks_are_told_by_what_they_compute(name: str, kinds: dict[str, int]) -> None:
    found = surveyed(name, 224)
    blocks = [block.kind for region in found.regions for block in found.blocks(region)]
    assert {kind: blocks.count(kind) for kind in set(blocks)} == kinds


def test_a_detector_is_traced_below_the_top() -> None:
    found = surveyed("fasterrcnn_resnet50_fpn")
    assert [region.path for region in found.regions] == ["backbone", "rpn.head"]
    assert "loops over something in its input" in found.untraced[""]
    assert "neither a tensor nor a plain value" in found.untraced["rpn"]


def test_a_network_of_two_images_gets_the_example_twice() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 4, 3)

        def forward(self, first: torch.Tensor, second: torch.Tensor, flag: bool = False) -> torch.Tensor:
            result: torch.Tensor = self.conv(torch.cat([first, second], 1))
            return result

    (region,) = survey(Pair(), (3, 8, 8)).regions
    assert [node.meta["shape"] for node in region.nodes if node.op == "call_module"] == [(1, 4, 6, 6)]


REASONS = {
    "BlockCalledTwice": ("odd.block.conv1", "called more than once"),
    "CalledTwice": ("odd.conv1", "called more than once"),
    "ComputedWeight": ("odd.conv1", "computed from other parameters"),
    "SharedSqueeze": ("odd.conv1", "goes by several names (odd.conv1, odd.other_name)"),
    "TiedWeights": ("odd.first.conv1", "shares a weight with odd.second.conv1"),
    "WeightReadElsewhere": ("odd.conv1", "its weight is read by the code of"),
    "Bottleneck": ("odd.conv1", None),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_module_that_must_not_be_replaced(name: str) -> None:
    path, reason = REASONS[name]
    found = survey(odd.Odd(getattr(odd, name)()), (3, 16, 16))
    (region,) = found.regions
    node = next(node for node in region.nodes if node.meta.get("path") == path)
    said = found.uneditable(region, node, replaces=True)
    assert said is reason if reason is None or said is None else reason in said


REWRITES = {
    "DecidesByChance": "draws random numbers",
    "KeepsItsInput": "keeps something from one call to the next",
    "OnlyInTraining": "different paths in training and in eval mode",
    "VariableArguments": "variable number of arguments",
    "Bottleneck": None,
    "FunctionalDropout": None,
    "InPlace": None,
}


@pytest.mark.parametrize("name", REWRITES)
def test_a_forward_that_must_not_be_rewritten(name: str) -> None:
    found = survey(odd.Odd(getattr(odd, name)()), (3, 16, 16))
    (region,) = found.regions
    node = next(node for node in region.nodes if node.meta.get("path") == "odd.bn1")
    said = found.uneditable(region, node, replaces=False)
    reason = REWRITES[name]
    assert said is reason if reason is None or said is None else reason in said


def test_a_call_that_hides_layers_is_named() -> None:
    assert survey(shapes.HidesLayers(), (3, 16, 16)).untraced == {"encoder": "it is taken as one call"}
    assert survey(shapes.SpaceToDepth(), (3, 16, 16)).untraced == {}
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model("nf_resnet26")
    untraced = survey(network, (3, 64, 64)).untraced
    assert len(untraced) == 8
    assert set(untraced.values()) == {"timm declares it as not traceable"}


@pytest.mark.parametrize(
    ("name", "node", "batched"),
    [("batch first", "first.fc2", True), ("sequence first", "first.fc2", False), ("folded", "first.fc2", False), ("folded", "stem", True)],
)
def test_the_first_dimension_is_the_batch_or_not(name: str, node: str, batched: bool) -> None:
    (region,) = survey(shapes.Tokens(name), (3, 16, 16)).regions
    assert [is_batched(found) for found in region.nodes if found.meta.get("path") == node] == [batched]


def test_gates_and_heads_work_on_pooled_vectors_and_small_maps_do_not() -> None:
    found = surveyed("efficientnet_b0", 32)
    (region,) = found.regions
    pooled = {node.meta["path"] for node in region.nodes if is_pooled(node) and (conv_of(node) or linear_of(node))}
    gates = {path for path, _ in found.network.named_modules() if path.endswith((".fc1", ".fc2"))}
    assert pooled == gates | {"classifier.1"}


def test_surveying_changes_nothing() -> None:
    network = odd.Odd(odd.KeepsItsInput()).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    attributes = set(vars(network.odd))
    survey(network, (3, 16, 16))
    assert network.training
    assert network.odd.last is None
    assert set(vars(network.odd)) == attributes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_network_without_layers_and_an_impossible_input_are_refused() -> None:
    with pytest.raises(InputError, match="no convolution"):
        survey(nn.Flatten(), (3, 8, 8))
    with pytest.raises(InputError, match="does not take an input of size 4x8x8"):
        survey(nn.Sequential(nn.Conv2d(3, 4, 3)), (4, 8, 8))
