"""How slim convolutions begin where there are statistics of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks.small import Basic, small
from torch import Tensor, nn

import chansurg
from chansurg.recipes.slimconv.fitting import fitted_attention
from chansurg.recipes.slimconv.layer import SlimConv
from chansurg.surgery.demand import Demand
from chansurg.surgery.recipe import find_recipe
from chansurg.surgery.statistics import measure
from chansurg.surgery.survey import Survey, survey

PLAIN, FLIPPED = torch.arange(8), torch.arange(8).flip(0)


def demand(seed: int, channels: int = 8, reads: Tensor | None = None) -> Demand:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(channels, channels, dtype=torch.float64, generator=generator)
    weight = torch.randn(channels, channels, dtype=torch.float64, generator=generator) if reads is None else torch.diag(reads.double())
    covariance = root @ root.T / channels + 0.1 * torch.eye(channels)
    return Demand(covariance, covariance @ weight.T @ weight @ covariance)


def given(demand: Demand, weights: Tensor, folds: int) -> float:
    functions = torch.zeros(len(weights), len(weights) // folds, dtype=torch.float64)
    functions[torch.arange(len(weights)), torch.arange(len(weights)) % functions.shape[1]] = weights
    return float(demand.given(functions))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("folds", [2, 4])
def test_the_attention_gives_more_than_weights_that_are_alike_or_drawn(seed: int, folds: int) -> None:
    top, bottom = demand(seed), demand(seed + 10)
    found = fitted_attention([top, bottom], [PLAIN, FLIPPED], folds)
    assert ((found > 0) & (found < 1)).all()

    def both(weights: Tensor) -> float:
        return given(top, weights, folds) + given(bottom, weights.flip(0), folds)

    generator = torch.Generator().manual_seed(seed)
    drawn = [both(torch.rand(8, dtype=torch.float64, generator=generator)) for _ in range(20)]
    assert both(found) > max(*drawn, both(torch.full((8,), 0.5, dtype=torch.float64)))


def test_what_nobody_reads_is_shut() -> None:
    """Of channels i and i + 4, which fold onto each other, the top path reads but one; the bottom path reads nothing."""
    reads = torch.tensor([1, 0, 0, 1, 0, 1, 1, 0])
    found = fitted_attention([demand(0, reads=reads), demand(0, reads=torch.zeros(8))], [PLAIN, FLIPPED], 2)
    other = found.roll(4)
    assert (found > other)[reads.bool()].all()


def test_a_network_that_never_varies_has_an_attention_too() -> None:
    still = Demand(torch.eye(8, dtype=torch.float64), torch.zeros(8, 8, dtype=torch.float64))
    assert fitted_attention([still, still], [PLAIN, FLIPPED], 2).isfinite().all()


def with_statistics(network: nn.Module) -> Survey:
    found = survey(network, (3, 16, 16))
    found.statistics = measure(network, [torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))])
    return found


@pytest.mark.parametrize("options", [{"k": "8/3"}, {"paths": 3}, {"weights": "shuffled"}, {"weights": "flipped"}])
def test_a_conversion_with_data_runs_repeats_and_is_read_back(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = chansurg.load("networks.small:small", input_size=(16,))
    recipe = find_recipe("slimconv")
    planned = recipe.plan(with_statistics(network), recipe.options(options))
    assert planned == recipe.plan(with_statistics(network), recipe.options(options))
    converted = chansurg.apply(network, planned)
    x = torch.randn(2, 3, 16, 16)
    for layer in converted.modules():
        if isinstance(layer, SlimConv):
            seen = layer.channel_weights(torch.rand(1, layer.in_channels, 4, 4)).flatten()
            assert torch.allclose(seen, torch.tensor(layer.attention), atol=1e-4)
    chansurg.save(converted, tmp_path / "slim.safetensors")
    again = chansurg.load(tmp_path / "slim.safetensors", arch="networks.small:small")
    with torch.no_grad():
        assert torch.equal(again(x), converted(x))


def test_the_filters_that_stay_are_those_that_the_next_layer_needs() -> None:
    """The strongest filters of the first convolution are read by nobody."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), Basic(16)).eval()
    with torch.no_grad():
        network[1].conv1.weight[:8] *= 3
        network[1].conv2.weight[:, :8] *= 0.001
    recipe = find_recipe("slimconv")

    def kept(surveyed: Survey) -> set[int]:
        planned = recipe.plan(surveyed, recipe.options({"k": "8/3"}))
        return set(next(edit for edit in planned.edits if edit.path == "1.conv2").in_channels)

    assert kept(survey(network, (3, 16, 16))) <= set(range(8))
    assert kept(with_statistics(network)) <= set(range(8, 16))


@pytest.mark.parametrize("build", [lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16), lambda: nn.Conv2d(16, 16, 3, padding=1, groups=4)])
def test_convolutions_with_groups_keep_their_filters_and_get_an_attention(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), build(), nn.ReLU(), nn.Conv2d(16, 8, 1)).eval()
    recipe = find_recipe("slimconv")
    plain, fitted = (recipe.plan(found, recipe.options({})) for found in (survey(network, (3, 16, 16)), with_statistics(network)))
    assert plain.edits[1:] == fitted.edits[1:]
    assert len(fitted.edits[0].layer.arguments["attention"]) == 16
    assert "attention" not in plain.edits[0].layer.arguments
    chansurg.apply(network, fitted, input_size=(3, 16, 16))


def test_without_data_nothing_changes() -> None:
    planned = chansurg.plan(small(), "slimconv", input_size=(3, 16, 16))
    assert all("attention" not in edit.as_json().get("layer", {}).get("arguments", {}) for edit in planned.edits)
