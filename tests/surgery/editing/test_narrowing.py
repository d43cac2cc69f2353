"""Narrowing against slices written by hand: same numbers, same outputs as the original on the channels that stay."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.ops import FrozenBatchNorm2d

from chansurg.surgery.editing.applying import perform
from chansurg.surgery.editing.narrowing import can_narrow, narrow, reason_against
from chansurg.surgery.edits import Narrow
from chansurg.surgery.errors import Refusal

IN, OUT = [5, 1, 2], [3, 0]


def with_numbers(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module.eval()


def scattered(x: torch.Tensor, channels: list[int], width: int) -> torch.Tensor:
    """``x`` at its channels' old places, zero elsewhere."""
    full = x.new_zeros(x.shape[0], width, *x.shape[2:])
    full[:, channels] = x
    return full


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_a_convolution_keeps_the_named_slices_and_computes_the_same_on_them(make: type[nn.Module], bias: bool) -> None:
    dims = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[make]
    conv = with_numbers(make(6, 4, 3, padding=1, bias=bias))
    weight, offset = conv.weight.detach().clone(), None if conv.bias is None else conv.bias.detach().clone()
    x = torch.randn(2, 3, *(5,) * dims)
    with torch.no_grad():
        expected = conv(scattered(x, IN, 6))[:, OUT]
        narrow(conv, "conv", IN, OUT)
        assert torch.allclose(conv(x), expected, atol=1e-5)
    assert (conv.in_channels, conv.out_channels) == (3, 2)
    assert torch.equal(conv.weight, torch.stack([torch.stack([weight[o, i] for i in IN]) for o in OUT]))
    assert offset is None or torch.equal(conv.bias, offset[OUT])


def test_a_grouped_convolution_keeps_equally_many_in_each_group() -> None:
    conv = with_numbers(nn.Conv2d(6, 4, 3, padding=1, groups=2))
    weight = conv.weight.detach().clone()
    inputs, outputs = [2, 0, 4, 3], [1, 2]  # two of each three, one of each two
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        expected = conv(scattered(x, inputs, 6))[:, outputs]
        narrow(conv, "conv", inputs, outputs)
        assert torch.allclose(conv(x), expected, atol=1e-5)
    assert torch.equal(conv.weight, torch.stack([weight[1][[2, 0]], weight[2][[1, 0]]]))
    assert (conv.in_channels, conv.out_channels, conv.groups) == (4, 2, 2)


@pytest.mark.parametrize(
    ("inputs", "outputs"), [([0, 1, 4, 5], [2, 0, 8, 7]), ([0, 4], [2, 8]), ([4, 5], [6, 7, 8])], ids=["one goes", "both ways", "one stays"]
)
def test_groups_go_whole_with_their_inputs_and_outputs(inputs: list[int], outputs: list[int]) -> None:
    conv = with_numbers(nn.Conv2d(6, 9, 3, padding=1, groups=3))
    x = torch.randn(2, len(inputs), 5, 5)
    with torch.no_grad():
        expected = conv(scattered(x, inputs, 6))[:, outputs]
        narrow(conv, "conv", inputs, outputs)
        assert torch.allclose(conv(x), expected, atol=1e-5)
    assert (conv.in_channels, conv.out_channels, conv.groups) == (len(inputs), len(outputs), len({i // 2 for i in inputs}))


def test_a_depthwise_convolution_with_several_outputs_a_channel_loses_whole_groups() -> None:
    conv = with_numbers(nn.Conv2d(4, 8, 3, padding=1, groups=4))
    x = torch.randn(2, 2, 5, 5)
    with torch.no_grad():
        expected = conv(scattered(x, [1, 3], 4))[:, [2, 3, 6, 7]]
        narrow(conv, "conv", [1, 3], [2, 3, 6, 7])
        assert torch.allclose(conv(x), expected, atol=1e-5)
    assert (conv.in_channels, conv.out_channels, conv.groups) == (2, 4, 2)


@pytest.mark.parametrize("side", [0, 1])
def test_a_depthwise_convolution_loses_whole_channels(side: int) -> None:
    conv = with_numbers(nn.Conv2d(6, 6, 3, padding=1, groups=6))
    x = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        expected = conv(scattered(x, IN, 6))[:, IN]
        narrow(conv, "conv", *((IN, None) if side == 0 else (None, IN)))
        assert torch.allclose(conv(x), expected, atol=1e-6)
    assert (conv.in_channels, conv.out_channels, conv.groups) == (3, 3, 3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer(bias: bool) -> None:
    linear = with_numbers(nn.Linear(6, 4, bias=bias))
    x = torch.randn(2, 3)
    with torch.no_grad():
        expected = linear(scattered(x, IN, 6))[:, OUT]
        narrow(linear, "fc", IN, OUT)
        assert torch.allclose(linear(x), expected, atol=1e-5)
    assert (linear.in_features, linear.out_features) == (3, 2)


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm2d(6),
        lambda: nn.BatchNorm2d(6, affine=False),
        lambda: nn.BatchNorm2d(6, track_running_stats=False),
        lambda: FrozenBatchNorm2d(6),
    ],
)
def test_a_batch_norm_keeps_its_statistics_with_its_channels(norm: object) -> None:
    layer = with_numbers(norm())  # type: ignore[operator]
    x = torch.randn(4, 6, 3, 3)
    with torch.no_grad():
        expected = layer(x)[:, IN]
        narrow(layer, "bn", None, IN)
        assert torch.allclose(layer(x[:, IN]), expected, atol=1e-6)
    assert getattr(layer, "num_features", 3) == 3


def test_a_layer_norm() -> None:
    norm = with_numbers(nn.LayerNorm(6))
    weight, bias = norm.weight.detach().clone(), norm.bias.detach().clone()
    narrow(norm, "norm", IN, None)
    assert norm.normalized_shape == (3,)
    assert torch.equal(norm.weight, weight[IN])
    assert torch.equal(norm.bias, bias[IN])
    norm(torch.randn(2, 3))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_dtype_memory_format_and_the_gradient_flag_survive(kernel: int, groups: int) -> None:
    conv = nn.Conv2d(8, 8, kernel, groups=groups).half().to(memory_format=torch.channels_last)
    conv.weight.requires_grad_(False)
    narrow(conv, "conv", [0, 1, 4, 5], [0, 1, 4, 5])
    kept = conv.weight
    assert kept.dtype == torch.float16
    assert not kept.requires_grad
    assert conv.bias.requires_grad
    assert kept.stride() == torch.empty(kept.shape, memory_format=torch.channels_last).stride()


def test_a_plain_layout_stays_plain_even_for_pointwise_weights() -> None:
    conv = nn.Conv2d(8, 8, 1)
    narrow(conv, "conv", [0, 1, 2], None)
    assert conv.weight.stride() == (3, 1, 1, 1)


class WithGain(nn.Conv2d):
    """Scales each filter by a gain of its own."""

    def __init__(self) -> None:
        super().__init__(4, 4, 1)
        self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))


class LowRank(nn.Linear):
    """Adds a product of two small matrices to its weight."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)


class Packed(nn.Linear):
    """Keeps two weights in one byte."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)


@pytest.mark.parametrize(
    ("make", "inputs", "outputs", "reason"),
    [
        (lambda: nn.Conv2d(4, 4, 1), [0, 4], None, "channel 4 was named"),
        (lambda: nn.Conv2d(4, 4, 1), None, [-1, 0], "channel -1 was named"),
        (lambda: nn.Conv2d(4, 4, 1), [1, 1], None, "named twice"),
        (lambda: nn.Conv2d(4, 4, 1), [], None, "would be left"),
        (lambda: nn.BatchNorm2d(4), None, [0, 9], "channel 9 was named"),
        (lambda: nn.LayerNorm(4), None, [7], "channel 7 was named"),
        (lambda: nn.LayerNorm((4, 4)), None, [0], "more than the channels"),
        (lambda: nn.Linear(4, 4), [4], None, "channel 4 was named"),
        (lambda: nn.Conv2d(4, 4, 1, groups=2), [0, 1], None, "inputs and outputs alike"),
        (lambda: nn.Conv2d(4, 4, 1, groups=2), [2, 0], None, "unequal numbers of input"),
        (lambda: nn.Conv2d(4, 4, 1, groups=2), None, [0, 1, 2], "unequal numbers of output"),
        (lambda: nn.Conv2d(4, 8, 1, groups=4), None, [0, 1], "several outputs a channel"),
        (lambda: nn.Conv2d(4, 4, 1, groups=2), [0, 1], [2, 3], "inputs and outputs alike"),
        (lambda: nn.Conv2d(4, 4, 1, groups=2), None, [2, 3], "inputs and outputs alike"),
        (lambda: nn.ConvTranspose2d(4, 4, 1), [0], None, "transposed"),
        (lambda: nn.GroupNorm(2, 4), None, [0, 1], "no rule"),
        (lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), [0], None, "computed from other tensors"),
        (lambda: prune.l1_unstructured(nn.Conv2d(4, 4, 1), "weight", 0.5), [0], None, "computed from other tensors"),
        (WithGain, [0], None, r"no rule slices \(gain\)"),
        (LowRank, None, [0], r"no rule slices \(down.weight, up.weight\)"),
        (Packed, None, [0], "form of its own"),
    ],
)
def test_what_cannot_be_narrowed_is_refused_with_the_reason_and_left_alone(
    make: object, inputs: list[int] | None, outputs: list[int] | None, reason: str
) -> None:
    module = make()  # type: ignore[operator]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert re.search(reason, reason_against(module, inputs, outputs) or "")
    with pytest.raises(Refusal, match=reason) as refused:
        narrow(module, "some.layer", inputs, outputs)
    assert refused.value.where == "some.layer"
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_only_what_has_a_rule_is_said_to_have_one() -> None:
    assert all(can_narrow(m) for m in (nn.Conv2d(2, 2, 1), nn.Linear(2, 2), nn.BatchNorm2d(2), nn.LayerNorm(2), FrozenBatchNorm2d(2)))
    assert not any(can_narrow(m) for m in (nn.GroupNorm(1, 2), nn.ReLU(), nn.Embedding(2, 2), nn.Sequential()))


def test_nothing_is_said_against_what_works_and_asking_changes_nothing() -> None:
    conv = nn.Conv2d(6, 4, 3, groups=2)
    assert reason_against(conv, [0, 3], [1, 2]) is None
    assert reason_against(conv, None, None) is None
    assert (conv.in_channels, conv.out_channels, tuple(conv.weight.shape)) == (6, 4, (4, 3, 3, 3))
    plain = nn.Conv2d(4, 4, 1)
    plain.register_buffer("scale", torch.ones(()))
    assert reason_against(plain, [0], None) is None


class Scaled(nn.Module):
    """Multiplies by a scale of its own, as the end of a ConvNeXt block does: ``[B, 8, H, W] -> [B, 8, H, W]``."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.scale = nn.Parameter(torch.rand(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * self.scale


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1), (8,)])
def test_a_parameter_of_no_layer_is_sliced_where_its_channels_lie(shape: tuple[int, ...]) -> None:
    network = nn.Sequential(Scaled(*shape))
    network[0].scale.requires_grad_(False)
    before = network[0].scale.flatten().clone()
    perform(network, [Narrow("0.scale", None, (5, 1, 2)), Narrow("0.conv", None, (5, 1, 2))], {}, seed=0)
    assert tuple(network[0].scale.shape) == tuple(3 if size == 8 else 1 for size in shape)
    assert torch.equal(network[0].scale.flatten(), before[[5, 1, 2]])
    assert not network[0].scale.requires_grad


@pytest.mark.parametrize(
    ("narrowing", "reason"),
    [
        (Narrow("0.scale", None, (8,)), "it has 8 channels, and channel 8 was named"),
        (Narrow("0.scale", None, (1, 1)), "one channel was named twice"),
        (Narrow("0.scale", None, ()), "no channel would be left"),
        (Narrow("0.scale", (0,), None), "has no other channels than those it puts out"),
        (Narrow("0.scale"), "has no other channels than those it puts out"),
        (Narrow("0.conv.weight", None, (0,)), "it is part of a Conv2d, which is narrowed as a whole"),
        (Narrow("1.scale", None, (0,)), r"its shape \[8, 8\] does not tell where its channels lie"),
        (Narrow("0.nix", None, (0,)), "has no module '0.nix'"),
    ],
)
def test_a_parameter_that_cannot_be_sliced_is_refused(narrowing: Narrow, reason: str) -> None:
    network = nn.Sequential(Scaled(8, 1, 1), Scaled(8, 8))
    with pytest.raises(Refusal, match=reason):
        perform(network, [narrowing], {}, seed=0)
