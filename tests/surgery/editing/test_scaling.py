"""Scaling a layer against what it must compute: the same, times the factors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import chansurg
from chansurg.surgery.editing.scaling import scale

MAP, TOKENS, VECTOR = (2, 12, 6, 5), (2, 7, 12), (2, 12)
LAYERS = {
    "conv": (lambda: nn.Conv2d(12, 8, 3), MAP),
    "grouped": (lambda: nn.Conv2d(12, 8, 3, groups=4), MAP),
    "depthwise": (lambda: nn.Conv2d(12, 24, 3, groups=12, bias=False), MAP),
    "linear": (lambda: nn.Linear(12, 8), TOKENS),
    "batch norm": (lambda: nn.BatchNorm2d(12), MAP),
    "layer norm": (lambda: nn.LayerNorm(12), TOKENS),
    "layer norm without shift": (lambda: nn.LayerNorm(12, bias=False), TOKENS),
    "group norm": (lambda: nn.GroupNorm(3, 12), MAP),
    "norm of vectors": (lambda: nn.BatchNorm1d(12), VECTOR),
}


def layer(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    module = build().eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 2)
    return module, torch.randn(shape)


def along(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return factors if x.ndim == 3 else factors.reshape(-1, *(1,) * (x.ndim - 2))


@pytest.mark.parametrize("name", LAYERS)
def test_scaling_what_a_layer_puts_out(name: str) -> None:
    module, x = layer(name)
    module.double()
    before = module(x.double())
    channels = (5, 0, 7)
    scale(module, name, "out", (2.0, 0.3, 1.7), channels)
    factors = torch.ones(before.shape[2] if before.ndim == 3 else before.shape[1], dtype=torch.float64)
    factors[list(channels)] = torch.tensor([2.0, 0.3, 1.7], dtype=torch.float64)
    torch.testing.assert_close(module(x.double()), before * along(before, factors), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["conv", "grouped", "depthwise", "linear"])
def test_scaling_what_a_layer_makes_of_its_input(name: str) -> None:
    module, x = layer(name)
    x = x.double()
    module.double()
    channels = (11, 4)
    factors = torch.ones(12, dtype=torch.float64)
    factors[list(channels)] = torch.tensor([0.3, 5.0], dtype=torch.float64)
    expected = module(x * along(x, factors))
    scale(module, name, "in", (0.3, 5.0), channels)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_two_is_exact_in_every_precision(name: str, dtype: torch.dtype) -> None:
    module, x = layer(name)
    module.to(dtype)
    x = x.to(dtype)
    before = module(x)
    scale(module, name, "out", 2.0, None)
    assert torch.equal(module(x), before * 2)
    if "norm" not in name:
        scale(module, name, "in", 2.0, None)
        assert torch.equal(module(x / 2), before * 2)


def test_a_layer_keeps_its_parameters_and_their_memory_format() -> None:
    module = nn.Conv2d(12, 8, 3).to(memory_format=torch.channels_last)
    weight, bias, stride = module.weight, module.bias, module.weight.stride()
    scale(module, "conv", "in", 2.0, None)
    scale(module, "conv", "out", 2.0, None)
    assert module.weight is weight
    assert module.bias is bias
    assert weight.stride() == stride
    assert weight.requires_grad
    assert weight.grad_fn is None


@pytest.mark.parametrize(
    ("module", "side", "factors", "channels", "reason"),
    [
        (nn.ReLU(), "out", 2.0, None, "ReLU has no rule"),
        (nn.BatchNorm2d(4), "in", 2.0, None, "it is a norm"),
        (nn.BatchNorm2d(4, affine=False), "out", 2.0, None, "no scale"),
        (nn.ConvTranspose2d(4, 4, 3), "out", 2.0, None, "transposed"),
        (parametrizations.weight_norm(nn.Linear(4, 4)), "out", 2.0, None, "computed from other tensors"),
        (nn.Linear(4, 3), "out", 2.0, (3,), "it has 3 output channels, and channel 3 was named"),
        (nn.Linear(4, 3), "in", 2.0, (-1,), "it has 4 input channels, and channel -1 was named"),
        (nn.Linear(4, 3), "in", (1.0, 2.0), None, "2 factors for 4 channels"),
    ],
)
def test_what_cannot_be_scaled_is_refused_and_left_as_it_was(
    module: nn.Module, side: str, factors: float | tuple[float, ...], channels: tuple[int, ...] | None, reason: str
) -> None:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(chansurg.Refusal, match=f"here cannot be scaled: .*{reason}"):
        scale(module, "here", side, factors, channels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
