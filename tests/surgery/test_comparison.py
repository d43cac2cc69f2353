"""What differs between two networks as objects."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import torch
from networks import small
from torch import nn

import chansurg


def network() -> nn.Module:
    torch.manual_seed(0)
    return small.small().eval()


def test_a_copy_and_a_reloaded_file_have_no_difference(tmp_path: Path) -> None:
    one = chansurg.load("cifar/resnet20")
    chansurg.save(one, tmp_path / "a.safetensors")
    for other in (copy.deepcopy(one), chansurg.load(tmp_path / "a.safetensors")):
        found = chansurg.diff(one, other)
        assert found.same_architecture
        assert found.same_journal
        assert found.equal == len(one.state_dict())
        assert not (found.changed)
        assert not (found.reshaped)
        assert not (found.tensors_only_in_a)
        assert not (found.tensors_only_in_b)


def test_exactly_what_changed_is_listed() -> None:
    one = network()
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.stem.weight[0, 0, 0, 0] = one.stem.weight[0, 0, 0, 0] = 0.5
        other.stem.weight[0, 0, 0, 0] += 0.25
        other.fc.bias[2] = math.nan
    other.blocks[0].bn1.num_batches_tracked += 3
    other.blocks[2].conv1.half()
    found = chansurg.diff(one, other)
    changed = {change["name"]: change["max_abs_difference"] for change in found.changed}
    assert changed.keys() == {"stem.weight", "fc.bias", "blocks.0.bn1.num_batches_tracked", "blocks.2.conv1.weight", "blocks.2.conv1.bias"}
    assert changed["stem.weight"] == 0.25
    assert changed["fc.bias"] is None
    assert changed["blocks.0.bn1.num_batches_tracked"] == 3
    assert found.equal == len(one.state_dict()) - 5
    json.dumps(found.as_json(), allow_nan=False)
    assert not chansurg.diff(other, copy.deepcopy(other)).changed


def test_a_conversion_is_told_by_its_edits_and_tensors() -> None:
    one = network()
    other = chansurg.convert(one, "pix", mode="downscale", zeta=2, input_size=(3, 32, 32))
    entry = chansurg.record_of(other).journal[-1]
    found = chansurg.diff(one, other)
    assert found.same_architecture
    assert not found.same_journal
    assert found.edits_only_in_a == []
    assert [edit["path"] for edit in found.edits_only_in_b] == [edit.path for edit in entry.edits]
    assert found.tensors_only_in_a == list(entry.removed) == []
    assert found.tensors_only_in_b == list(entry.new)
    assert {change["name"] for change in found.reshaped} == set(entry.sliced)
    assert found.equal == len(one.state_dict()) - len(entry.sliced)
    assert not found.changed
    back = chansurg.diff(other, one)
    assert back.tensors_only_in_a == found.tensors_only_in_b
    assert back.edits_only_in_a == found.edits_only_in_b


def test_two_seeds_differ_in_the_new_tensors_only() -> None:
    one, other = (chansurg.convert(network(), "pix", seed=seed, input_size=(3, 32, 32)) for seed in (0, 1))
    found = chansurg.diff(one, other)
    assert found.same_journal
    assert {change["name"] for change in found.changed} == {"blocks.0.conv1.theta", "blocks.1.conv1.theta"}


def test_a_wrapper_is_looked_through() -> None:
    one = network()
    assert chansurg.diff(one, nn.DataParallel(one)).equal == len(one.state_dict())
