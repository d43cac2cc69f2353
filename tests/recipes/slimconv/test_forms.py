"""A slim convolution by its kernel is the slim convolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from chansurg.recipes.slimconv.attending import ATTEND_CHANNELS
from chansurg.recipes.slimconv.forms import KernelSlimConv
from chansurg.recipes.slimconv.layer import SlimConv
from chansurg.surgery.delivery.folding import carry_out, norms_inside
from chansurg.surgery.layer import Target

CASES: list[dict[str, Any]] = [
    {},
    {"folds": 4},
    {"weights": "plain"},
    {"weights": "flipped"},
    {"weights": "shuffled"},
    {"paths": 3},
    {"groups": 16},
    {"bias": True, "stride": 2},
]
EAGER = Target("eager")


def with_norms(arguments: dict[str, Any], dtype: torch.dtype = torch.float32) -> SlimConv:
    """A layer that has seen images."""
    torch.manual_seed(0)
    layer = SlimConv(16, 16, 3, padding=1, **arguments)
    for norm in layer.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return layer.to(dtype).eval().requires_grad_(False)


def without_norms(layer: SlimConv) -> SlimConv:
    """The same, its norms in what comes ahead of them, as ``optimize`` leaves it."""
    for fold in norms_inside(layer):
        carry_out(layer, fold)
    return layer


@pytest.fixture(autouse=True)
def _needs_kernels() -> None:
    if not ATTEND_CHANNELS.has_kernel(torch.empty(1)):
        pytest.skip("no kernels here")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_it_computes_the_same(arguments: dict[str, Any], layout: torch.memory_format) -> None:
    layer = with_norms(arguments)
    x = torch.randn(3, 16, 9, 7).to(memory_format=layout)
    expected = layer(x)
    form = without_norms(layer).for_runtime(EAGER)
    assert isinstance(form, KernelSlimConv)
    assert torch.allclose(form(x), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(form(x.bfloat16()).float(), expected, rtol=0.1, atol=0.1)


def test_it_computes_the_same_in_half_precision() -> None:
    layer = without_norms(with_norms({"folds": 4}, torch.bfloat16))
    x = torch.randn(3, 16, 9, 7, dtype=torch.bfloat16)
    assert torch.allclose(layer.for_runtime(EAGER)(x), layer(x), rtol=2**-5, atol=2**-5)


def test_a_norm_that_was_left_leaves_the_layer_as_it_is() -> None:
    layer = with_norms({})
    assert layer.for_runtime(EAGER) is layer
    assert without_norms(layer).for_runtime(Target("export")) is layer


def test_its_modules_keep_their_names() -> None:
    layer = without_norms(with_norms({"paths": 3}))
    assert layer.for_runtime(EAGER).state_dict().keys() == layer.state_dict().keys()
