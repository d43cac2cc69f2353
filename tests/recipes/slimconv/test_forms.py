"""A slim convolution's form for a runtime is that convolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chansurg.recipes.slimconv.forms import OrderedSlimConv
from chansurg.recipes.slimconv.layer import SlimConv
from chansurg.surgery.layer import Target

CASES: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"folds": 4}, True),
    ({"paths": 3}, True),
    ({"weights": "shuffled", "stride": 2}, True),
    ({"weights": "plain"}, False),
    ({"weights": "plain", "paths": 3}, True),
    ({"weights": "flipped", "paths": 3, "bias": True}, True),
]


@pytest.mark.parametrize(("arguments", "has_form"), CASES, ids=str)
def test_it_computes_the_same(arguments: dict[str, Any], has_form: bool) -> None:
    torch.manual_seed(0)
    layer = SlimConv(16, 8, 3, padding=1, **arguments).double().eval()
    for norm in (module for module in layer.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.running_mean)
    form = layer.for_runtime(Target("onnxruntime"))
    assert isinstance(form, OrderedSlimConv) is has_form
    assert has_form or form is layer
    for x in (torch.randn(3, 16, 6, 5, dtype=torch.float64), torch.randn(1, 16, 4, 4, dtype=torch.float64)):
        with torch.no_grad():
            assert torch.allclose(form(x), layer(x), rtol=1e-12, atol=1e-12)


def test_half_precision_keeps_the_layer_which_averages_in_single_precision() -> None:
    layer = SlimConv(16, 8, 3).half()
    assert layer.for_runtime(Target("eager")) is layer
