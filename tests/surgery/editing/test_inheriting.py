"""Tensors that start as what the network held before: whole, sliced, reordered; and never when the tensors come from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import small
from torch import nn

import chansurg
from chansurg.surgery.editing.applying import perform
from chansurg.surgery.edits import Edit, Inherit, LayerSpec, Narrow, Repeat, Scale, Swap
from chansurg.surgery.forwards.skeleton import meta_copy
from chansurg.surgery.plan import Plan

ROWS = (3, 1, 1, 0)
PIX = LayerSpec("pix.PickOrMix", {"in_channels": 16, "out_channels": 4})
EDITS: list[Edit] = [
    Inherit("blocks.0.conv1.theta", "fc.weight", (ROWS, tuple(range(16)))),
    Inherit("blocks.0.conv1.beta", "blocks.2.conv2.bias", ((0, 31, 5, 5),)),
    Inherit("blocks.2.bn1.weight", "blocks.2.bn2.weight"),
    Inherit("blocks.2.bn2.weight", "blocks.2.bn1.weight"),
    Swap("blocks.0.conv1", PIX),
    Narrow("blocks.0.bn1", None, (0, 1, 2, 3)),
    Narrow("blocks.0.conv2", (0, 1, 2, 3)),
    Scale("blocks.2.conv2", "out", 4.0),
]


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    made = small.small().eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_start_as_slices_of_what_was_there_before_all_edits(dtype: torch.dtype) -> None:
    made = network(dtype)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    perform(made, EDITS, {}, seed=0)
    after = made.state_dict()
    assert torch.equal(after["blocks.0.conv1.theta"], before["fc.weight"][list(ROWS), :16])
    assert torch.equal(after["blocks.0.conv1.beta"], before["blocks.2.conv2.bias"][[0, 31, 5, 5]]), "as it was before it was scaled"
    assert torch.equal(after["blocks.2.bn1.weight"], before["blocks.2.bn2.weight"])
    assert torch.equal(after["blocks.2.bn2.weight"], before["blocks.2.bn1.weight"])
    assert after["blocks.0.conv1.theta"].dtype is dtype
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in made.parameters())


def test_what_a_file_says_is_not_overwritten(tmp_path: Path) -> None:
    start = chansurg.load("networks.small:small", input_size=(16,))
    edited = chansurg.apply(start, Plan("pix", 1, {}, (), tuple(EDITS)))
    with torch.no_grad():
        for parameter in edited.parameters():
            parameter.normal_()
    chansurg.save(edited, tmp_path / "trained.safetensors")
    loaded = chansurg.load(tmp_path / "trained.safetensors", arch="networks.small:small")
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x), edited(x))
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in edited.state_dict().items())


def test_a_copy_can_inherit_too() -> None:
    made = network()
    before = made.get_parameter("blocks.1.bn3.weight").detach().clone()
    perform(made, [Inherit("blocks.3.bn2.bias", "blocks.1.bn3.weight"), Repeat("blocks.2", "3")], {}, seed=0)
    assert torch.equal(made.get_parameter("blocks.3.bn2.bias"), before)


def test_several_slices_make_up_a_tensor_row_by_row() -> None:
    made = network(torch.bfloat16)
    before = made.get_parameter("blocks.2.conv1.weight").detach().clone()
    conv = nn.Conv2d(16, 4, 3, groups=2, dtype=torch.bfloat16)
    made.add_module("extra", conv)
    low, high = tuple(range(8)), tuple(range(24, 32))
    edits = [
        Inherit("extra.weight", "blocks.2.conv1.weight", ((5, 6), low, None, None), (1, 0)),
        Inherit("extra.weight", "blocks.2.conv1.weight", ((7, 8), high, None, None), (2, 3)),
    ]
    perform(made, edits, {}, seed=0)
    assert torch.equal(conv.weight[[1, 0]], before[[5, 6]][:, :8])
    assert torch.equal(conv.weight[2:], before[[7, 8]][:, 24:])


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (Inherit("fc.bias", "nix.bias"), "cannot start as 'nix.bias': Small has no such tensor"),
        (Inherit("nix.bias", "fc.bias"), "has no tensor 'nix.bias'"),
        (Inherit("fc.bias", "stem.bias"), r"it would be \[16\], and \[5\] is wanted"),
        (Inherit("fc.weight", "fc.weight", (None,)), "it has 2 dimensions, and slices were given for 1"),
        (Inherit("fc.weight", "fc.weight", (None, tuple(range(1, 33)))), "its dimension 1 has 32 entries, and others were named"),
        (Inherit("fc.bias", "stem.bias", ((),)), r"it would be \[0\]"),
        (Inherit("fc.bias", "stem.bias", ((0, 1),), (0, 3)), "as stem.bias in 2 of its 5 rows only"),
    ],
)
@pytest.mark.parametrize("seed", [0, None])
def test_an_inheritance_that_does_not_fit_is_refused(edit: Inherit, reason: str, seed: int | None) -> None:
    made = network() if seed == 0 else meta_copy(network())
    with pytest.raises(chansurg.Refusal, match=reason):
        perform(made, [edit], {}, seed=seed)


def test_nothing_starts_as_two_tensors() -> None:
    with pytest.raises(chansurg.Refusal, match="two tensors at once"):
        perform(
            network(), [Inherit("blocks.2.bn1.bias", "blocks.2.bn2.bias"), Inherit("blocks.2.bn1.bias", "blocks.2.bn1.bias")], {}, seed=0
        )


@pytest.mark.parametrize(
    ("rows", "reason"),
    [((0, 5), "its rows are not among"), ((1, 1), "its rows are not among"), ((0,), r"it would be \[2\], and \[1\] is wanted")],
)
def test_rows_that_do_not_fit_are_refused(rows: tuple[int, ...], reason: str) -> None:
    with pytest.raises(chansurg.Refusal, match=reason):
        perform(network(), [Inherit("fc.bias", "stem.bias", ((1, 2),), rows)], {}, seed=0)


def test_no_row_starts_as_two() -> None:
    edits = [Inherit("fc.bias", "stem.bias", ((0, 1),), (0, 1)), Inherit("fc.bias", "stem.bias", ((2, 3),), (1, 2))]
    with pytest.raises(chansurg.Refusal, match="two tensors at once"):
        perform(network(), edits, {}, seed=0)


def test_a_tensor_lies_in_memory_as_its_source_does() -> None:
    made = network()
    made.blocks[2].conv2.to(memory_format=torch.channels_last)
    perform(made, [Inherit("blocks.2.conv1.weight", "blocks.2.conv2.weight")], {}, seed=0)
    assert made.blocks[2].conv1.weight.stride() == made.blocks[2].conv2.weight.stride()
    assert torch.equal(made.blocks[2].conv1.weight, made.blocks[2].conv2.weight)
