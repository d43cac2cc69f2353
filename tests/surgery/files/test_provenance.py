"""What a network is known as: from its library, from its file, or not at all; and never by changing it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from networks import small
from torch import nn

import chansurg
from chansurg.surgery.files.likeness import differences
from chansurg.surgery.files.provenance import refuse_wrapped, unwrapped, with_input_size
from chansurg.surgery.journal import Record


@pytest.mark.parametrize(
    ("make", "name", "kwargs"),
    [
        (lambda: torchvision.models.resnet18(), "torchvision/resnet18", {}),
        (lambda: torchvision.models.mobilenet_v2(num_classes=7), "torchvision/mobilenet_v2", {"num_classes": 7}),
        (lambda: chansurg.load("cifar/resnet20-b"), "cifar/resnet20-b", {}),
        (small.small, None, None),
        (small.convnext, None, None),
        (lambda: nn.Sequential(torchvision.models.resnet18()), None, None),
    ],
)
def test_a_network_is_known_by_its_library_only_if_that_builds_the_same(make: Any, name: str | None, kwargs: dict[str, Any] | None) -> None:
    network = make()
    found = chansurg.record_of(network).architecture
    assert (None if found is None else str(found)) == name
    if found is not None:
        assert {k: v for k, v in found.kwargs.items() if (k, v) != ("num_classes", 1000 if "resnet18" in str(name) else 10)} == kwargs


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net, "relu", nn.SiLU()),
        lambda net: setattr(net.layer1[0].conv1, "padding", (2, 2)),
        lambda net: setattr(net.layer2[0].bn1, "eps", 1e-3),
        lambda net: setattr(net, "maxpool", nn.Identity()),
        lambda net: setattr(net, "forward", lambda x: x),
    ],
)
def test_a_changed_network_is_not_taken_for_the_librarys(change: Any) -> None:
    network = torchvision.models.resnet18()
    change(network)
    assert chansurg.record_of(network).architecture is None


def test_asking_does_not_change_the_network() -> None:
    network = torchvision.models.resnet18()
    before = dict(vars(network))
    chansurg.record_of(network)
    chansurg.plan(network, "pix", mode="downscale", input_size=(3, 64, 64))
    assert vars(network) == before


def test_the_record_travels_with_copies_and_through_wrappers() -> None:
    network = chansurg.convert(chansurg.load("cifar/resnet20"), "pix", mode="downscale")
    record = chansurg.record_of(network)
    assert len(record.journal) == 1
    for other in (copy.deepcopy(network), nn.DataParallel(network), torch.optim.swa_utils.AveragedModel(network), torch.compile(network)):
        assert chansurg.record_of(other) == record
    assert unwrapped(nn.DataParallel(network)) is network
    assert unwrapped(network) is network
    refuse_wrapped(network)
    with pytest.raises(chansurg.InputError, match="wrapped in DataParallel"):
        refuse_wrapped(nn.DataParallel(network))


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, (3, 224, 224)), ((64,), (3, 64, 64)), ((64, 48), (3, 64, 48)), ((1, 28, 28), (1, 28, 28)), ((4, 64, 48), (4, 64, 48))],
)
def test_input_sizes(given: tuple[int, ...] | None, expected: tuple[int, int, int]) -> None:
    preprocessing = with_input_size(Record(None), given).preprocessing
    assert preprocessing.input_size == expected
    assert len(preprocessing.mean) == len(preprocessing.std) == expected[0]


@pytest.mark.parametrize("given", [(), (0,), (-3, 4), (1, 2, 3, 4), (64, 0)])
def test_impossible_input_sizes(given: tuple[int, ...]) -> None:
    with pytest.raises(chansurg.InputError, match="not an input size"):
        with_input_size(Record(None), given)


def test_differences_are_told_in_words() -> None:
    one, other = small.tiny(), small.tiny()
    assert differences(one, other) == []
    other.fc = nn.Linear(16, 4)
    other.blocks[0].relu = nn.GELU()
    other.blocks[1].bn1.eps = 0.5
    other.add_module("extra", nn.Identity())
    assert differences(other, one) == [
        "fc.weight is [4, 16] and was built as [3, 16]",
        "fc.bias is [4] and was built as [3]",
        "blocks.0.relu is GELU and was built as ReLU",
        "blocks.1.bn1.eps is 0.5 and was built as 1e-05",
        "fc.out_features is 4 and was built as 3",
        "the module extra (Identity) is new",
    ]
