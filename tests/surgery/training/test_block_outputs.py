from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

import chansurg
from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import attach
from chansurg.surgery.journal import Record
from chansurg.surgery.training.block_outputs import BlockOutputs, matched_blocks
from tests.networks import small


def sized(network: nn.Module, size: int = 32) -> nn.Module:
    return attach(network, Record(None, Preprocessing(input_size=(3, size, size))))


def test_a_converted_network_keeps_its_blocks() -> None:
    original = chansurg.load("resnet18", input_size=(64,))
    converted = chansurg.convert(original, "pix", mode="downscale")
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    assert matched_blocks(converted, original) == blocks
    modes = [module.training for module in converted.train().modules()]
    matched_blocks(converted, original)
    assert [module.training for module in converted.modules()] == modes


def test_bottlenecks_and_transformers() -> None:
    assert matched_blocks(sized(small.small()), sized(small.small())) == ["blocks.0", "blocks.1", "blocks.2"]
    found = matched_blocks(sized(small.vision_transformer()), sized(small.vision_transformer()))
    assert found == ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]


def test_networks_without_residual_blocks_are_matched_by_their_larger_modules() -> None:
    dense = torchvision.models.densenet121(weights=None)
    kinds = [[f"features.denseblock{number}", f"features.transition{number}"] for number in range(1, 5)]
    assert matched_blocks(sized(dense), sized(dense)) == [path for pair in kinds for path in pair][:-1]
    google = torchvision.models.googlenet(weights=None, init_weights=False)
    inceptions = [f"inception{name}" for name in "3a 3b 4a 4b 4c 4d 4e 5a 5b".split()]
    assert matched_blocks(sized(google, 64), sized(google, 64)) == ["conv1", "conv2", "conv3", *inceptions]
    plain = torchvision.models.vgg11(weights=None)
    assert matched_blocks(sized(plain), sized(plain)) == ["features"]


def test_blocks_of_another_width_are_left_out() -> None:
    student = small.Small(5, 8)
    student.blocks[1].conv3 = nn.Conv2d(8, 48, 1, bias=False)
    student.blocks[1].bn3 = nn.BatchNorm2d(48)
    student.blocks[1].shortcut = nn.Conv2d(32, 48, 1)
    student.blocks[2] = small.Basic(48)
    student.fc = nn.Linear(48, 5)
    assert matched_blocks(sized(student), sized(small.small())) == ["blocks.0"]


def test_where_nothing_matches_every_block_says_why() -> None:
    with pytest.raises(InputError, match=r"blocks.0: it puts out 16x16x16 in the student and 32x16x16 in the teacher; blocks.1"):
        matched_blocks(sized(small.tiny()), sized(small.small()))
    with pytest.raises(InputError, match=r"blocks.0: the student has no such block"):
        matched_blocks(sized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())), sized(small.small()))


def test_outputs_are_what_the_modules_put_out() -> None:
    network = small.small().eval()
    outputs = BlockOutputs(network, ["blocks.0", "blocks.2"])
    x = torch.randn(2, 3, 16, 16)
    network(x)
    taken = outputs.take()
    first = network.blocks[0](torch.relu(network.stem(x)))
    assert torch.equal(taken["blocks.0"], first)
    assert torch.equal(taken["blocks.2"].mean((2, 3)), network.blocks(torch.relu(network.stem(x))).mean((2, 3)))
    assert taken["blocks.0"].requires_grad


def test_an_output_is_taken_once() -> None:
    network = small.small()
    outputs = BlockOutputs(network, ["blocks.0"])
    network(torch.randn(2, 3, 16, 16))
    outputs.take()
    with pytest.raises(InputError, match=r"'blocks.0' put nothing out"):
        outputs.take()


def test_a_copy_of_the_network_keeps_nothing() -> None:
    network = small.small()
    outputs = BlockOutputs(network, ["blocks.0"])
    copy.deepcopy(network)(torch.randn(2, 3, 16, 16))
    with pytest.raises(InputError, match="put nothing out"):
        outputs.take()


def test_after_closing_no_hook_is_left() -> None:
    network = small.small()
    BlockOutputs(network, ["blocks.0", "blocks.1"]).close()
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_networks_give_outputs_with_gradients(backend: str) -> None:
    network = small.small().train()
    outputs = BlockOutputs(network, ["blocks.1"])
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    for _ in range(2):
        compiled(torch.randn(2, 3, 16, 16))
        network.zero_grad()
        outputs.take()["blocks.1"].square().sum().backward()
        assert network.stem.weight.grad.abs().sum() > 0
        assert network.fc.weight.grad is None or network.fc.weight.grad.abs().sum() == 0


class Rewriting(nn.Module):
    """Writes into its input where no gradient is wanted, and adds to a copy of it elsewhere: ``[B, C, H, W]``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if torch.is_grad_enabled() else x.add_(1)


def test_what_a_later_block_writes_into_is_taken_as_it_was_put_out() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Rewriting(), Rewriting()).eval()
    x = torch.randn(2, 3, 5, 5)
    taps = BlockOutputs(network, ["0", "1", "2"])
    with torch.no_grad():
        network(x)
        taken = taps.take()
        first = network[0](x)
        expected = {"0": first, "1": first + 1, "2": first + 1 + 1}
    assert all(torch.equal(taken[path], output) for path, output in expected.items())
    network(x)
    taken = taps.take()
    assert taken["0"].requires_grad
    assert torch.equal(taken["2"], expected["2"])
