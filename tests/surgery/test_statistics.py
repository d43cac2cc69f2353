"""Moments of what goes into layers, against those of the activations themselves."""

from __future__ import annotations

import pytest
import torch
from networks.small import small
from torch import Tensor, nn
from torch.nn import functional

from chansurg.surgery.errors import InputError
from chansurg.surgery.statistics import measure
from chansurg.surgery.survey import survey


def _images(count: int = 6, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_moments_of_all_positions_are_those_of_the_patches() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    x = _images()
    found = measure(conv, x.split(4), positions=1000).layers[""]
    patches = functional.unfold(x, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)).double()  # [B, C P, L]
    by_channel = patches.reshape(6, 3, 6, -1)
    rows = by_channel.transpose(0, 1).flatten(1)
    assert found.samples == by_channel.shape[0] * by_channel.shape[3]
    assert torch.allclose(found.mean, rows.mean(1))
    assert torch.allclose(found.covariance, torch.cov(rows, correction=0))
    centred = by_channel - rows.mean(1).reshape(1, 3, 1, 1)
    overlap = torch.einsum("bcpl,bcql->pq", centred, centred)
    # The mean of a position under the kernel is not that of all positions, at the border: so the two agree about the common mean only.
    plain = torch.einsum("bcpl,bcql->pq", by_channel, by_channel) / found.samples - rows.mean(1).square().sum()
    assert torch.allclose(found.overlap, plain / plain.diagonal().mean())
    assert (found.overlap - overlap / overlap.diagonal().mean()).abs().max() < 0.2


def test_linear_layers_are_seen_token_by_token_and_vectors_whole() -> None:
    tokens = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0))
    found = measure(nn.Linear(4, 2), [tokens], positions=7).layers[""]
    assert found.samples == 35
    assert torch.allclose(found.covariance, torch.cov(tokens.flatten(0, 1).T.double(), correction=0))
    assert found.overlap.tolist() == [[1.0]]
    assert measure(nn.Linear(4, 2), [tokens[:, 0]]).layers[""].samples == 5


def test_drawn_positions_estimate_the_same_and_repeat() -> None:
    torch.manual_seed(0)
    network = small().train()
    x = _images(64, 16)
    every, some, again = (measure(network, x.split(32), positions=n) for n in (10_000, 8, 8))
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert some.images == 64
    assert set(some.layers) == {path for path, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    for path, found in some.layers.items():
        assert torch.equal(found.covariance, again.layers[path].covariance)
        assert torch.equal(found.overlap, again.layers[path].overlap)
        exact = every.layers[path].covariance
        assert (found.covariance - exact).norm() < 0.25 * exact.norm()


def test_a_layer_called_twice_is_measured_over_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x))  # type: ignore[no-any-return]

    assert measure(Twice(), [torch.randn(4, 3)]).layers["fc"].samples == 8


def test_no_image_is_refused() -> None:
    with pytest.raises(InputError, match="no image"):
        measure(small(), [])


def test_a_survey_has_no_statistics_of_its_own() -> None:
    assert survey(small(), (3, 16, 16)).statistics is None
