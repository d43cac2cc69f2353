"""Counts against ptflops, against the published numbers, and against a layer formula written out here."""

from __future__ import annotations

import contextlib
import io
import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model

from chansurg.surgery.counting import count
from chansurg.surgery.errors import InputError


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return get_model(name, weights=None, **options)


@pytest.mark.parametrize(
    ("name", "params", "macs", "ops"),
    [("resnet50", 25.557, 4.089, 4.132), ("mobilenet_v2", 3.505, 0.301, 0.320)],
)
def test_published_numbers(name: str, params: float, macs: float, ops: float) -> None:
    counts = count(on_meta(name), (3, 224, 224))
    assert counts.params / 1e6 == pytest.approx(params, abs=5e-4)
    assert counts.macs / 1e9 == pytest.approx(macs, abs=5e-4)
    assert counts.ops / 1e9 == pytest.approx(ops, abs=5e-4)
    assert counts.uncounted == ("aten.add",)


PTFLOPS_NETWORKS = {
    "alexnet": {},
    "densenet121": {},
    "efficientnet_b0": {},
    "googlenet": {"init_weights": False, "aux_logits": False},
    "mnasnet1_0": {},
    "mobilenet_v2": {},
    "mobilenet_v3_large": {},
    "resnet18": {},
    "resnet50": {},
    "resnext50_32x4d": {},
    "shufflenet_v2_x1_0": {},
    "squeezenet1_1": {},
    "vgg11_bn": {},
    "vit_b_16": {"image_size": 64},
}


@pytest.mark.parametrize("name", PTFLOPS_NETWORKS)
def test_ops_are_those_of_ptflops(name: str) -> None:
    ptflops = pytest.importorskip("ptflops")
    model = on_meta(name, **PTFLOPS_NETWORKS[name])
    ours = count(model, (3, 64, 64)).ops
    # ptflops needs real tensors: on the meta device some functions call others that it patches too.
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        theirs, _ = ptflops.get_model_complexity_info(
            model.to_empty(device="cpu"), (3, 64, 64), as_strings=False, print_per_layer_stat=False, backend="pytorch"
        )
    assert ours == pytest.approx(theirs, rel=0.005)


def layer_formula(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """``macs`` and ``memory_access`` from the shapes that hooks see at convolutions and linear layers."""
    totals = [0, 0]

    def hook(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        x = args[0]
        if isinstance(layer, nn.Linear):
            totals[0] += out.numel() * layer.in_features
        else:
            taps = math.prod(layer.kernel_size)
            if isinstance(layer, nn.ConvTranspose2d):
                totals[0] += x.numel() * taps * layer.out_channels // layer.groups
            else:
                totals[0] += out.numel() * taps * layer.in_channels // layer.groups
        totals[1] += layer.weight.numel() + out.numel()

    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d):
            layer.register_forward_hook(hook)
    with torch.no_grad():
        model.eval()(torch.empty(shape, device=next(model.parameters()).device))
    return totals[0], totals[1]


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "mobilenet_v2", "densenet121", "convnext_tiny", "fcn_resnet50"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_macs_and_memory_access_by_formula(name: str, batch_size: int) -> None:
    model = on_meta(name, **({"weights_backbone": None} if name.startswith("fcn") else {}))
    counts = count(model, (3, 64, 96), batch_size=batch_size)
    assert (counts.macs, counts.memory_access) == layer_formula(model, (batch_size, 3, 64, 96))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=False),
        nn.Conv2d(6, 8, (1, 3), dilation=2, padding="same"),
        nn.Conv2d(6, 6, 5, groups=6),
        nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2),
        nn.Linear(20, 7),
        nn.Linear(20, 7, bias=False),
    ],
    ids=repr,
)
def test_one_layer(layer: nn.Module) -> None:
    counts = count(layer, (6, 16, 20))
    macs, memory_access = layer_formula(layer, (1, 6, 16, 20))
    bias = layer(torch.zeros(1, 6, 16, 20)).numel() if layer.bias is not None else 0
    assert (counts.macs, counts.ops, counts.memory_access) == (macs, macs + bias, memory_access)
    assert counts.uncounted == ()


class Tokens(nn.Module):
    """``[B, C, H, W]`` to what a layer on ``[B, H, W]`` tokens wants; ``C`` is 1."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.squeeze(1)
        if isinstance(self.inner, nn.MultiheadAttention):
            tokens = tokens if self.inner.batch_first else tokens.transpose(0, 1)
            return self.inner(tokens, tokens, tokens, need_weights=False)[0]
        return self.inner(tokens)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x)


def test_attention_in_every_form() -> None:
    length, width, heads = 10, 32, 4
    scores = 2 * length * length * width
    projections = 4 * length * width * width
    assert count(Attention(), (heads, length, width // heads)).macs == scores
    for batch_first in (True, False):
        attention = nn.MultiheadAttention(width, heads, batch_first=batch_first)
        counts = count(Tokens(attention), (1, length, width))
        assert counts.macs == scores + projections
        assert counts.memory_access == 4 * width * width + 4 * length * width
    encoder = nn.TransformerEncoderLayer(width, heads, dim_feedforward=48, batch_first=True)
    assert count(Tokens(encoder), (1, length, width)).macs == scores + projections + 2 * length * width * 48


def test_a_volume() -> None:
    class Volume(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 5, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x[:, None])

    assert count(Volume(), (6, 8, 8)).macs == 5 * 27 * 4 * 6 * 6


def test_a_tied_weight_is_one_parameter_used_twice() -> None:
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    second.weight = first.weight
    counts = count(nn.Sequential(first, second), (1, 1, 8))
    assert (counts.params, counts.macs, counts.memory_access) == (64, 128, 2 * (64 + 8))


def test_what_has_no_formula_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.fft.rfft(x).abs().transpose(1, 2).reshape(x.shape[0], -1).contiguous()
            return torch.cat([y, torch.zeros_like(y)]).add_(1).cumsum(0)

    assert count(Odd(), (3, 4, 4)).uncounted == ("aten._fft_r2c", "aten.abs", "aten.add", "aten.cumsum")


def test_a_pass_that_stops_is_counted_so_far() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 4, 1, bias=False)
            self.head = Choose()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    class Choose(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0]

    counts = count(Detector(), (3, 5, 5))
    assert counts.macs == 3 * 4 * 25
    assert counts.uncounted[:-1] == ("aten.gt",)
    assert counts.uncounted[-1].startswith("stopped at head: aten.index depends on values")


def test_a_detector_is_counted_up_to_its_proposals() -> None:
    model = on_meta("fasterrcnn_resnet50_fpn", weights_backbone=None)
    counts = count(model, (3, 64, 64))
    assert counts.macs > 1e10
    assert counts.uncounted[-1].startswith("stopped at rpn")


@pytest.mark.parametrize(
    ("model", "input_size"),
    [(nn.Conv2d(3, 4, 3), (4, 8, 8)), (nn.Conv2d(3, 4, 3), (3, 2, 2)), (nn.Conv2d(3, 4, 3), (3, 0, 8)), (nn.Conv2d(3, 4, 3), (3, 8))],
)
def test_an_impossible_input_is_refused(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    with pytest.raises(InputError) as caught:
        count(model, input_size)
    assert str(input_size[-1]) in caught.value.what
    assert all(caught.value.parts().values())


def test_the_model_is_left_alone() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.scale = torch.ones(1, 4, 1, 1)  # a plain attribute, not a buffer

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * self.scale

    model = Scaled().train()
    before = model.conv.weight.clone()
    assert count(model, (3, 4, 4)).macs == 3 * 4 * 16
    assert model.training
    assert not model.conv._forward_hooks
    assert torch.equal(model.conv.weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_of_the_numbers_does_not_matter(dtype: torch.dtype) -> None:
    model = torchvision.models.squeezenet1_1(weights=None)
    assert count(model.to(dtype), (3, 64, 64)) == count(model.float(), (3, 64, 64))


def test_as_json() -> None:
    counts = count(nn.Conv2d(3, 4, 1), (3, 2, 2))
    assert counts.as_json() == {"params": 16, "macs": 48, "ops": 64, "memory_access": 28}
    assert all(type(value) is int for value in counts.as_json().values())
