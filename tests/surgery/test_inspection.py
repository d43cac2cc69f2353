"""Everything that is said of a network before anything is done to it."""

from __future__ import annotations

import json

import torch
from networks import small

import chansurg


def test_an_inspection_of_a_small_network() -> None:
    torch.manual_seed(0)
    network = small.small().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = chansurg.inspect(network, input_size=(3, 32, 32))
    document = found.as_json()
    json.dumps(document, allow_nan=False)
    assert document["architecture"] is None
    assert document["input_size"] == [3, 32, 32]
    assert document["params"] == sum(p.numel() for p in network.parameters())
    assert {key: document[key] for key in ("params", "macs", "ops", "memory_access")} == chansurg.count(network, (3, 32, 32)).as_json()
    assert [(block["path"], block["kind"]) for block in document["blocks"]] == [
        ("blocks.0", "bottleneck"),
        ("blocks.1", "bottleneck"),
        ("blocks.2", "basic"),
    ]
    assert document["stages"] == [
        {"shape": [32, 16, 16], "blocks": 3, "kinds": ["bottleneck", "basic"], "first": "blocks.0", "last": "blocks.2"}
    ]
    assert (document["regions"], document["untraced"]) == ([""], [])
    assert network.training
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in before.items())


def test_its_sites_are_those_that_plans_take() -> None:
    network = chansurg.load("cifar/resnet20")
    sites = {site.path for site in chansurg.inspect(network).sites["pix"]}
    planned = {site.path for site in chansurg.plan(network, "pix", mode="downscale").sites}
    assert sites == planned
    assert len(planned) == 18
    assert all(skip.reason for skips in chansurg.inspect(network).skipped.values() for skip in skips)


def test_a_converted_network_can_be_inspected() -> None:
    network = chansurg.convert(chansurg.load("cifar/resnet20"), "pix", mode="downscale", zeta=2)
    found = chansurg.inspect(network)
    assert found.counts.as_json() == chansurg.record_of(network).journal[-1].after
    assert str(found.record.architecture) == "cifar/resnet20"
