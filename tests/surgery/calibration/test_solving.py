"""Least squares for single layers, against layers whose weights are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chansurg.surgery.calibration.moments import Moments, samples, shape_of_layer
from chansurg.surgery.calibration.solving import solve

LAYERS = [
    (nn.Conv2d(6, 4, 3, padding=1), (6, 9, 11)),
    (nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2), bias=False), (6, 9, 11)),
    (nn.Conv2d(6, 9, 3, groups=3, padding="same"), (6, 8, 8)),
    (nn.Conv2d(6, 6, 3, groups=6, padding=1, padding_mode="reflect"), (6, 8, 8)),
    (nn.Linear(5, 3), (5,)),
    (nn.Linear(5, 3), (7, 5)),
    (nn.Linear(5, 3), (4, 4, 5)),
]


def moments(layer: nn.Conv2d | nn.Linear, target: nn.Module, shape: tuple[int, ...], seed: int) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    found = Moments(*shape_of_layer(layer))
    for _ in range(8):
        x = torch.randn(32, *shape, generator=generator) + 0.5
        with torch.no_grad():
            found.add(*samples(layer, x, target(x), 13, generator))
    return found


def present(layer: nn.Conv2d | nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    groups, columns, outputs = shape_of_layer(layer)
    bias = torch.zeros(groups * outputs) if layer.bias is None else layer.bias.detach()
    return layer.weight.detach().reshape(groups, outputs, columns), bias.reshape(groups, outputs)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_the_weights_that_made_the_targets_are_found(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight, bias = present(layer)
    start = torch.randn_like(weight), torch.randn_like(bias) if layer.bias is not None else bias
    solution = solve(moments(layer, layer, shape, 1), moments(layer, layer, shape, 2), *start, intercept=layer.bias is not None)
    assert solution.before > 0.5
    assert solution.error < 1e-4
    torch.testing.assert_close(solution.weight.float(), weight, atol=0.02, rtol=0)
    torch.testing.assert_close(solution.bias.float(), bias, atol=0.05, rtol=0)


def test_the_error_is_that_of_the_samples() -> None:
    torch.manual_seed(0)
    x, t = torch.randn(500, 1, 7), torch.randn(500, 1, 2)
    found = Moments(1, 7, 2)
    found.add(x[:200], t[:200])
    found.add(x[200:], t[200:])
    weight, bias = torch.randn(1, 2, 7).double(), torch.randn(1, 2).double()
    given = x[:, 0].double() @ weight[0].T + bias
    torch.testing.assert_close(found.mean_square_error(weight, bias)[0], (given - t[:, 0]).square().mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.spread()[0], t[:, 0].double().var(0, unbiased=False), atol=1e-5, rtol=1e-5)
    mean, variance = found.of_outputs(weight)
    outputs = x[:, 0].double() @ weight[0].T
    torch.testing.assert_close(mean[0], outputs.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(variance[0], outputs.var(0, unbiased=False), atol=1e-5, rtol=1e-5)


def test_weights_that_cannot_be_bettered_stay() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    weight, bias = present(layer)
    exact = solve(moments(layer, layer, (5,), 1), moments(layer, layer, (5,), 2), weight, bias, intercept=True)
    assert exact.ridge is None
    assert torch.equal(exact.weight.float(), weight)

    noise = Moments(1, 5, 3)
    noise.add(torch.randn(8, 1, 5), torch.randn(8, 1, 3))  # few samples of nothing: what fits them fits no others
    held_out = moments(layer, layer, (5,), 3)
    misled = solve(noise, held_out, weight + 0.01, bias, intercept=True)
    assert misled.error <= misled.before


def test_directions_that_the_samples_do_not_show_keep_their_weights() -> None:
    torch.manual_seed(0)
    layer, flat = nn.Linear(4, 2), torch.tensor([1.0, 1.0, 1.0, 0.0])
    found = [Moments(1, 4, 2), Moments(1, 4, 2)]
    for each in found:
        x = torch.randn(400, 4) * flat
        with torch.no_grad():
            each.add(x.unsqueeze(1), layer(x).unsqueeze(1))
    start = torch.full((1, 2, 4), 3.0)
    solution = solve(*found, start, torch.zeros(1, 2), intercept=True)
    torch.testing.assert_close(solution.weight[0, :, 3], torch.full((2,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(solution.weight[0, :, :3].float(), layer.weight.detach()[:, :3], atol=0.01, rtol=0)
