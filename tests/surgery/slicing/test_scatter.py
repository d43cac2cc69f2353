"""Adding a branch into some of a stage's channels, against zeros written by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from chansurg.surgery.slicing.scatter import ScatterAdd


@pytest.mark.parametrize("branch", [0, 1])
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_each_channel_goes_to_its_place_and_gradients_follow(channel_dim: int, branch: int) -> None:
    layer = ScatterAdd([4, 0, 2], channel_dim, branch)
    stage, part = torch.randn(2, 5, 7, 5, requires_grad=True), torch.randn(2, 3, 7, 5, requires_grad=True)
    if channel_dim == -1:
        part = torch.randn(2, 5, 7, 3, requires_grad=True)
    zeros = torch.zeros_like(stage).index_copy(channel_dim, torch.tensor([4, 0, 2]), part)
    result = layer(stage, part) if branch == 1 else layer(part, stage)
    assert torch.equal(result, stage + zeros)
    gradients = torch.autograd.grad(result.square().sum(), (stage, part))
    expected = torch.autograd.grad((stage + zeros).square().sum(), (stage, part))
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_precision_layout_compiling_and_exporting() -> None:
    layer = ScatterAdd([1, 3])
    stage = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    part = torch.randn(2, 2, 6, 6).to(memory_format=torch.channels_last)
    assert layer(stage, part).is_contiguous(memory_format=torch.channels_last)
    assert layer(stage.half(), part.half()).dtype == torch.float16
    assert layer(stage, part.half()).dtype == torch.float32
    exported = torch.export.export(layer, (stage, part))
    assert torch.equal(exported.module()(stage, part), layer(stage, part))
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(stage, part), layer(stage, part))


def test_the_places_are_in_the_state_and_survive_an_empty_start() -> None:
    layer = ScatterAdd([1, 3])
    with torch.device("meta"):
        empty = ScatterAdd([1, 3])
    empty = empty.to_empty(device="cpu")
    empty.index.fill_(0)
    empty.reset_parameters()
    assert torch.equal(empty.index, layer.index)
    assert list(layer.state_dict()) == ["index"]


def test_narrowing_branch_and_stage() -> None:
    layer = ScatterAdd([4, 0, 2])
    stage, part = torch.randn(1, 5, 3, 3), torch.randn(1, 3, 3, 3)
    expected = layer(stage, part)
    assert layer.reason_against_narrowing([0, 2], [0, 2, 4]) is None
    assert "lets go of" in str(layer.reason_against_narrowing([1], [2, 4]))
    assert "would be left" in str(layer.reason_against_narrowing([], None))
    assert "has 3 channels" in str(layer.reason_against_narrowing([3], None))
    narrowed = copy.deepcopy(layer)
    narrowed.narrow([0, 2], [2, 4])
    assert narrowed.kept == (1, 0)
    assert torch.equal(narrowed(stage[:, [2, 4]], part[:, [0, 2]]), expected[:, [2, 4]])
    assert isinstance(narrowed, nn.Module)


@pytest.mark.parametrize("arguments", [{"kept": [0, 0]}, {"kept": [-1]}, {"kept": [0], "branch": 2}])
def test_places_that_make_no_sense(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="cannot be added"):
        ScatterAdd(**arguments)  # type: ignore[arg-type]
