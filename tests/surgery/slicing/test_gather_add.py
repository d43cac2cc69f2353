"""The gathering form of a scattered addition is that addition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chansurg.surgery.layer import Target
from chansurg.surgery.slicing.scatter import GatherAdd, ScatterAdd

KEPT = (1, 4, 2)
WIDTH = 6


def pair(channel_dim: int, branch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    stage = torch.randn(2, WIDTH, 5, 4, generator=generator) if channel_dim == 1 else torch.randn(2, 7, WIDTH, generator=generator)
    small = stage.index_select(channel_dim, torch.arange(len(KEPT))) + 1
    return (stage, small) if branch == 1 else (small, stage)


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
@pytest.mark.parametrize(("channel_dim", "branch"), [(1, 1), (1, 0), (-1, 1), (-1, 0)])
def test_it_is_the_same_sum_in_the_same_layout(channel_dim: int, branch: int, runtime: str) -> None:
    layer = ScatterAdd(KEPT, channel_dim, branch)
    first, second = pair(channel_dim, branch)
    form = layer.for_runtime(Target(runtime, shapes=(tuple(first.shape), tuple(second.shape))))
    assert isinstance(form, GatherAdd)
    expected = layer(first, second)
    assert torch.equal(form(first, second), expected)
    assert form.state_dict().keys() == layer.state_dict().keys()
    if channel_dim == 1:
        last = [x.to(memory_format=torch.channels_last) for x in (first, second)]
        found = form(*last)
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_it_adds_as_precisely_as_the_more_precise_of_the_two() -> None:
    layer = ScatterAdd(KEPT)
    first, second = pair(1, 1)
    form = layer.for_runtime(Target("eager", shapes=(tuple(first.shape), tuple(second.shape))))
    for stage, branch in ((first.half(), second), (first, second.half())):
        assert form(stage, branch).dtype == torch.float32
        assert torch.equal(form(stage, branch), layer(stage, branch))


def test_where_the_width_is_not_known_the_layer_stays() -> None:
    layer = ScatterAdd(KEPT)
    assert layer.for_runtime(Target("onnxruntime")) is layer
