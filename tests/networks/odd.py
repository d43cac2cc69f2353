"""Networks that are awkward to rewrite, each for one reason. All take ``[B, 3, H, W]``.

Most are an odd bottleneck and a plain one, so that there is something to convert: what is not odd must be found, and what is must be left
alone with a reason.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, every norm and activation a module of its own: ``[B, 32, H, W] -> [B, 32, H, W]``."""

    def __init__(self, channels: int = 32, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.act3 = nn.ReLU()

    def squeezed(self, x: Tensor) -> Tensor:
        return self.act1(self.bn1(self.conv1(x)))

    def finished(self, x: Tensor, shortcut: Tensor) -> Tensor:
        x = self.act2(self.bn2(self.conv2(x)))
        return self.act3(self.bn3(self.conv3(x)) + shortcut)

    def forward(self, x: Tensor) -> Any:
        return self.finished(self.squeezed(x), x)


class Odd(nn.Module):
    """A stem, an odd middle and a plain bottleneck. Returns ``[B, 5]``."""

    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.odd = odd
        self.plain = Bottleneck()
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.plain(self.odd(torch.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


class SharedSqueeze(Bottleneck):
    """Its squeezing convolution also goes by another name, which is the one it is called by."""

    def __init__(self) -> None:
        super().__init__()
        self.other_name = self.conv1

    def squeezed(self, x: Tensor) -> Tensor:
        return self.act1(self.bn1(self.other_name(x)))


class CalledTwice(Bottleneck):
    """Its squeezing convolution is called twice."""

    def forward(self, x: Tensor) -> Any:
        return self.finished(self.squeezed(x), x) + self.conv1(x).mean()


class BlockCalledTwice(nn.Module):
    """One whole bottleneck is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Bottleneck()

    def forward(self, x: Tensor) -> Tensor:
        twice: Tensor = self.block(self.block(x))
        return twice


class TiedWeights(nn.Module):
    """Two bottlenecks whose squeezing convolutions share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Bottleneck(), Bottleneck()
        self.second.conv1.weight = self.first.conv1.weight

    def forward(self, x: Tensor) -> Tensor:
        both: Tensor = self.second(self.first(x))
        return both


class ComputedWeight(Bottleneck):
    """The weight of its squeezing convolution is computed from another."""

    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.conv1)


class WeightReadElsewhere(Bottleneck):
    """The weight of its squeezing convolution is used by a function too."""

    def forward(self, x: Tensor) -> Any:
        return self.finished(self.squeezed(x), x) + functional.conv2d(x, self.conv1.weight).mean()


class FunctionalConv(Bottleneck):
    """Its spatial convolution is a function with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        del self.conv2
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3) * 0.1)

    def finished(self, x: Tensor, shortcut: Tensor) -> Tensor:
        x = self.act2(self.bn2(functional.conv2d(x, self.kernel, padding=1)))
        return self.act3(self.bn3(self.conv3(x)) + shortcut)


class KeywordArguments(Bottleneck):
    """Takes flags and numbers beside its input, by keyword."""

    def forward(self, x: Tensor, *, scale: float = 1.0, mode: str = "none", shape: tuple[int, ...] = ()) -> Tensor:
        return self.finished(self.squeezed(x), x if mode == "add" else x * 0) * scale * len(shape)


class Keywords(nn.Module):
    """Calls :class:`KeywordArguments`."""

    def __init__(self) -> None:
        super().__init__()
        self.block = KeywordArguments()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x, mode="add", scale=0.5, shape=(1, 2))
        return result


class NestedSequentials(nn.Module):
    """Containers inside containers, called by index, by slice and in a loop."""

    def __init__(self) -> None:
        super().__init__()
        block = Bottleneck()
        self.parts = nn.Sequential(
            nn.Sequential(block.conv1, nn.Sequential(block.bn1, block.act1)),
            nn.Sequential(block.conv2, block.bn2, block.act2, block.conv3),
            nn.ModuleDict({"norm": block.bn3, "unused": nn.Conv2d(4, 4, 1)}),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.parts[0](x)
        for layer in self.parts[1][:2]:
            y = layer(y)
        y = self.parts[1][3](self.parts[1][-2](y))
        norm: Tensor = self.parts[2]["norm"](y)  # type: ignore[index]
        return torch.relu(norm + x)


class VariableArguments(Bottleneck):
    """Takes any number of inputs."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.finished(self.squeezed(inputs[0]), inputs[-1])


class DecidesByValue(Bottleneck):
    """Takes another path for another input."""

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.squeezed(x)
        return self.finished(squeezed if squeezed.mean() > 0.3 else -squeezed, x)


class DecidesByType(Bottleneck):
    """Takes another path for a tensor than for what is none."""

    def forward(self, x: Any) -> Tensor:
        if isinstance(x, Tensor):
            return self.finished(self.squeezed(x), x)
        return self.finished(self.squeezed(x.relu()), x)


class DecidesByChance(Bottleneck):
    """Skips itself by chance in training mode, deciding in Python."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and random.random() < 0.1:
            return x
        return self.finished(self.squeezed(x), x)


class OnlyInTraining(Bottleneck):
    """Takes another path in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.squeezed(x)
        if self.training:
            squeezed = squeezed + torch.tanh(squeezed)
        return self.finished(squeezed, x)


class InPlace(Bottleneck):
    """Changes the squeezed tensor in place, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.act1 = nn.Hardtanh(0, 6)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.squeezed(x)
        same = squeezed
        same += 1
        same *= 0.5
        same[:, 0] = 0.25
        return self.finished(squeezed, x)


class FunctionalDropout(Bottleneck):
    """Drops out by the function, with ``self.training``."""

    def forward(self, x: Tensor) -> Tensor:
        squeezed = functional.dropout(self.squeezed(x), 0.4, training=self.training)
        return self.finished(squeezed, functional.dropout2d(x, 0.2, self.training))


class Checkpointed(nn.Module):
    """Recomputes a bottleneck in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Bottleneck()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = checkpoint(self.block, x, use_reentrant=False)
        return result


class KeepsItsInput(Bottleneck):
    """Keeps something from one call to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None
        self.calls = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.squeezed(x)
        self.calls[0] += 1
        return self.finished(self.last, x)


class Pair(NamedTuple):
    """A named result."""

    features: Tensor
    logits: Tensor


class StructuredOutput(Odd):
    """Returns tuples in an ordered dictionary: ``{"pair": ([B, 32, H, W], [B, 5]), "list": [[B, 5]]}``."""

    def __init__(self) -> None:
        super().__init__(Bottleneck())

    def forward(self, x: Tensor) -> Any:
        features = self.plain(self.odd(torch.relu(self.stem(x))))
        logits = self.head(features.mean((2, 3)))
        return OrderedDict(pair=Pair(features, logits), list=[logits * 2])


class FillsItsArgument(nn.Module):
    """Hands a list on, which another module fills."""

    class Filling(Bottleneck):
        def forward(self, x: Tensor, names: list[str]) -> Any:  # type: ignore[override]
            names.append("more")
            return self.finished(self.squeezed(x), x) * len(names), names

    def __init__(self) -> None:
        super().__init__()
        self.block = FillsItsArgument.Filling()

    def forward(self, x: Tensor) -> Tensor:
        result, _ = self.block(x, ["one"])
        filled: Tensor = result
        return filled


class TakesAList(nn.Module):
    """Hands on a list of tensors and a dictionary with a tuple, to a module that takes another path for a single tensor."""

    class Inner(Bottleneck):
        def forward(self, inputs: Any, more: Any = None) -> Any:
            if not isinstance(inputs, list):
                inputs = [inputs.relu(), inputs.abs()]
            shortcut = inputs[1] if more is None else more["pair"][1]
            return self.finished(self.squeezed(inputs[0]), shortcut)

    def __init__(self) -> None:
        super().__init__()
        self.block = TakesAList.Inner()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block([x, x * 2], {"pair": (1.5, x * 3)})
        return result


class SizeArithmetic(nn.Module):
    """Computes with sizes in place, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Bottleneck()

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        padded = height
        padded += 2
        x = functional.pad(x, (0, 0, 1, 1))
        result: Tensor = self.block(x.reshape(x.shape[0], x.shape[1], padded, -1))[:, :, :height]
        return result
