"""The channel spaces inside a branch: what becomes narrow together, and what stands in the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from chansurg.surgery.survey import survey
from chansurg.surgery.survey.branch import BranchSpaces, branch_spaces


class Block(nn.Module):
    """``x`` plus a branch, which is written out in ``forward`` of a subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.norm, self.spatial = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.expand = nn.Conv2d(4, 8, 1)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.factor = nn.Parameter(torch.ones(1))

    def inner(self, x: Tensor) -> Tensor:
        y: Tensor = self.spatial(torch.relu(self.norm(self.reduce(x))))
        return y

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.scale * self.expand(self.inner(x))


class Excited(Block):
    """Scales the inner channels by what their means say."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return x + self.expand(y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True))))))


class Normalised(Block):
    """Divides by a norm over positions, and that by its mean over channels, as response normalisation does."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        response = y.norm(p=2, dim=(2, 3), keepdim=True)
        return x + self.expand(torch.addcmul(y, y, response / (response.mean(1, keepdim=True) + 1e-6)))


class CountsChannels(Block):
    """Reshapes by a number of channels that is written in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.inner(x).view(-1, 4, 8, 8))


class ReadElsewhere(Block):
    """Lets something outside of the branch read its inner channels."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        out: Tensor = torch.relu(x + self.expand(y))
        return out * y.mean((1, 2, 3), keepdim=True)


class WithConstant(Block):
    """Adds a number to each inner channel, which no parameter holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.arange(4.0).view(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.inner(x) + self.shift)


class CountsInItsScale(Block):
    """Gives its scale a shape with a number of channels that is written in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.inner(x)) * self.scale.view(1, 8, 1, 1)


class ScalesColumns(Block):
    """Has a parameter for each column of its map, which are as many as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.inner(x)) * self.columns


def spaces(block: nn.Module) -> BranchSpaces:
    found = survey(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), block), (3, 8, 8))
    (region,) = found.regions
    return branch_spaces(found.blocks(region)[-1], region)


def members(found: BranchSpaces) -> list[list[str]]:
    return [[f"{member.path.removeprefix('1.')} {member.side}" for member in space.members] for space in found.all]


INNER = ["reduce out", "norm both", "spatial both"]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (Block, [["reduce in"], [*INNER, "expand in"], ["expand out", "scale parameter"]]),
        (
            Excited,
            [["reduce in"], [*INNER, "squeeze in", "excite out", "expand in"], ["squeeze out", "excite in"], ["expand out"]],
        ),
        (Normalised, [["reduce in"], [*INNER, "expand in"], ["expand out"]]),
    ],
)
def test_what_goes_together(build: Callable[[], nn.Module], expected: list[list[str]]) -> None:
    found = spaces(build())
    assert found.blocker is None
    assert found.axis == 1
    assert members(found) == expected


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (CountsChannels, "its channels go through view at 1:.view"),
        (ReadElsewhere, "what 1.spatial computes is read outside of the block too"),
        (WithConstant, "it is combined with a constant at 1:operator.add"),
        (ScalesColumns, "does not lie along its channels"),
        (CountsInItsScale, "it is combined with a constant at 1:operator.mul"),
    ],
)
def test_what_stands_in_the_way(build: Callable[[], nn.Module], reason: str) -> None:
    blocker = spaces(build()).blocker
    assert blocker is not None
    assert reason in blocker


def test_a_branch_without_a_layer_that_makes_channels_has_one_space() -> None:
    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.conv(x))

    found = spaces(Depthwise())
    assert found.entry is found.exit
    assert members(found) == [["conv both"]]
