"""torch-pruning's dependency graph, where it can give one, names the same layers for every channel."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from chansurg.surgery.slicing.couplings import Couplings
from chansurg.surgery.survey import survey

SIZE = (3, 32, 32)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11_bn", "mobilenet_v2"])
def test_the_layers_that_lose_a_channel_together(name: str) -> None:
    pruning = pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    if name.startswith("vgg"):
        network.classifier = nn.Linear(512 * 7 * 7, 7)
    paths = {module: path for path, module in network.named_modules()}
    rules = Couplings(survey(network, SIZE)).rules("coupled")
    graph = pruning.DependencyGraph().build_dependency(network, torch.randn(1, *SIZE))
    compared = 0
    for layer in rules.layers:
        module = network.get_submodule(layer.path)
        if not isinstance(module, nn.Conv2d) or layer.inputs is None:
            continue
        group = graph.get_pruning_group(module, pruning.prune_conv_out_channels, idxs=[1])
        theirs = {
            (paths[dep.target.module], graph.is_out_channel_pruning_fn(dep.handler)) for dep, _ in group if dep.target.module in paths
        }
        theirs = {(path, out) for path, out in theirs if isinstance(network.get_submodule(path), (nn.Conv2d, nn.Linear, nn.BatchNorm2d))}
        number = layer.outputs[1]
        ours = {(other.path, True) for other in rules.layers if number in other.outputs}
        ours |= {(other.path, False) for other in rules.layers if other.inputs is not None and number in other.inputs}
        depthwise = {(path, out) for path, out in theirs if getattr(network.get_submodule(path), "groups", 1) > 1 and not out}
        assert ours == theirs - depthwise
        compared += 1
    assert compared > 5
