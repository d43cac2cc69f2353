"""A PiX layer's form for a runtime is the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chansurg.recipes.pix.forms import BlendedPickOrMix, KernelPickOrMix
from chansurg.recipes.pix.fusing import PICK_OR_MIX
from chansurg.recipes.pix.layer import PickOrMix
from chansurg.surgery.layer import Target

OPERATORS = ("pick-or-mix", "pick", "mix", "min")
WIDTHS: list[tuple[int, int, dict[str, Any]]] = [
    (8, 4, {"zeta": 2}),
    (12, 3, {"subsets": "strided"}),
    (10, 4, {}),
    (10, 4, {"zeta": 3}),
    (11, 4, {"subsets": "strided"}),
    (6, 6, {}),
    (5, 1, {}),
]
SHAPES = {1: [(2, 5, 3), (2,), (2, 4, 3, 2), (1, 7)], -1: [(2, 5), (2, 4, 3)]}


def layers(operator: str, width: tuple[int, int, dict[str, Any]], channel_dim: int) -> PickOrMix:
    c, k, arguments = width
    torch.manual_seed(c)
    layer = PickOrMix(c, k, operator=operator, channel_dim=channel_dim, **arguments).double().eval()
    torch.nn.init.normal_(layer.beta)
    return layer


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_it_computes_the_same_in_every_shape_and_layout(operator: str, width: tuple[int, int, dict[str, Any]], channel_dim: int) -> None:
    layer = layers(operator, width, channel_dim)
    for runtime in ("eager", "onnxruntime", "compile"):
        for positive in (False, True):
            form = layer.for_runtime(Target(runtime, nonnegative=positive))
            assert isinstance(form, BlendedPickOrMix)
            for sides in SHAPES[channel_dim]:
                shape = (3, width[0], *sides[1:]) if channel_dim == 1 else (3, *sides, width[0])
                x = torch.randn(shape, dtype=torch.float64)
                x = x.abs() if positive else x
                assert torch.allclose(form(x), layer(x), rtol=1e-13, atol=1e-13)
                if x.ndim == 4:
                    last = x.to(memory_format=torch.channels_last)
                    assert torch.allclose(form(last), layer(x), rtol=1e-13, atol=1e-13)


def test_it_holds_the_layers_own_tensors_and_nothing_else_in_its_state() -> None:
    layer = layers("pick-or-mix", (10, 4, {}), 1)
    form = layer.for_runtime(Target("eager"))
    assert form.state_dict().keys() == layer.state_dict().keys()
    assert form.get_parameter("theta") is layer.theta


def test_half_precision_keeps_the_layer_which_sums_in_single_precision() -> None:
    layer = layers("pick-or-mix", (8, 4, {"zeta": 2}), 1).to(torch.bfloat16)
    assert layer.for_runtime(Target("export")) is layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("operator", OPERATORS)
def test_by_its_kernels_it_computes_the_same(operator: str, channel_dim: int, dtype: torch.dtype) -> None:
    for width in WIDTHS:
        layer = layers(operator, width, channel_dim).to(dtype)
        if not PICK_OR_MIX.has_kernel(layer.theta):
            pytest.skip("no kernels here")
        for positive in (False, True):
            form = layer.for_runtime(Target("eager", nonnegative=positive))
            assert isinstance(form, KernelPickOrMix)
            for sides in SHAPES[channel_dim]:
                shape = (3, width[0], *sides[1:]) if channel_dim == 1 else (3, *sides, width[0])
                x = torch.randn(shape, dtype=dtype)
                x = x.abs() if positive else x
                expected = layer(x)
                with torch.inference_mode():
                    assert torch.allclose(form(x), expected, rtol=1e-5 if dtype == torch.float32 else 2**-6, atol=1e-6)


def test_what_comes_in_another_precision_than_the_layers_is_no_matter_for_one_kernel() -> None:
    layer = layers("pick-or-mix", (8, 4, {"zeta": 2}), 1).float()
    form = layer.for_runtime(Target("eager"))
    x = torch.randn(2, 8, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(form(x.bfloat16()), layer(x.bfloat16()))
