"""Gates wherever they can be: behind every convolution and linear layer, whether or not a recipe would ever put one there."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from chansurg.surgery.editing import building
from chansurg.surgery.editing.applying import perform
from chansurg.surgery.edits import Attach, LayerSpec
from chansurg.surgery.gating import Gate, gates
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.survey import survey
from chansurg.surgery.survey.chains import tail_of
from chansurg.surgery.survey.kinds import conv_of, is_depthwise, linear_of, shape_of, tensor_inputs


class Plain(Gate):
    """A sigmoid of one linear layer of the source's mean; ``[B, C, …], [B, D, …] -> [B, C, …]`` or channels last."""

    def __init__(self, in_channels: int, entries: int, unit: int = 1, channel_dim: int = 1) -> None:
        super().__init__()
        self.unit, self.channel_dim = unit, channel_dim
        self.fc = nn.Linear(in_channels, entries)
        self.register_buffer("mask", torch.ones(entries, dtype=torch.bool))
        self.register_buffer("running_salience", torch.zeros(entries))
        self.register_buffer("importance", torch.zeros(entries))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.fc.weight, std=0.3, generator=generator)
        nn.init.normal_(self.fc.bias, generator=generator)
        self.mask.fill_(True)
        self.running_salience.copy_(torch.rand(self.entries, generator=generator))
        self.importance.copy_(torch.rand(self.entries, generator=generator))

    @property
    def shrinkable(self) -> int:
        return self.entries // 2

    def forward(self, features: Tensor, source: Tensor) -> Tensor:
        dims = [dim for dim in range(1, source.ndim) if dim != self.channel_dim % source.ndim]
        salience = torch.sigmoid(self.fc(source.mean(dims) if dims else source)) * self.mask
        salience = salience.repeat_interleave(self.unit, 1)
        shape = [1] * features.ndim
        shape[0], shape[self.channel_dim] = features.shape[0], -1
        return features * salience.view(shape)

    def reason_against_narrowing(self, in_channels: Sequence[int] | None, out_channels: Sequence[int] | None) -> str | None:
        kept = range(self.entries * self.unit) if out_channels is None else out_channels
        entries = sorted({channel // self.unit for channel in kept})
        whole = [entry * self.unit + i for entry in entries for i in range(self.unit)]
        return None if list(kept) == whole else f"it keeps whole units of {self.unit} channels"

    def narrow(self, in_channels: Sequence[int] | None, out_channels: Sequence[int] | None) -> None:
        with torch.no_grad():
            if in_channels is not None:
                self.fc.weight = nn.Parameter(self.fc.weight[:, list(in_channels)].clone())
                self.fc.in_features = len(in_channels)
            if out_channels is not None:
                entries = [channel // self.unit for channel in out_channels if channel % self.unit == 0]
                self.fc.weight = nn.Parameter(self.fc.weight[entries].clone())
                self.fc.bias = nn.Parameter(self.fc.bias[entries].clone())
                self.fc.out_features = len(entries)
                for name in ("mask", "running_salience", "importance"):
                    setattr(self, name, getattr(self, name)[entries].clone())


def performing() -> Any:
    """Let edits build :class:`Plain` under the name of a recipe ``testing``."""
    found = building.find_recipe

    def find(name: str) -> Any:
        layers: dict[str, type[RecipeLayer]] = {"Plain": Plain}
        return SimpleNamespace(layer=layers.__getitem__) if name == "testing" else found(name)

    return patch.object(building, "find_recipe", find)


def with_gates(network: nn.Module, input_size: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Attach a gate behind every convolution and linear layer, after its norm and activation, where the code can be changed there."""
    surveyed = survey(network, input_size)
    edits, signatures = [], {}
    for region in surveyed.regions:
        for node in region.nodes:
            conv, linear = conv_of(node), linear_of(node)
            if conv is None and linear is None:
                continue
            last, at = tail_of(node).last, node.meta["address"]
            while last is not node and last.meta["address"].owner != at.owner:
                last = last.all_input_nodes[0]
            features, source = shape_of(last), shape_of(tensor_inputs(node)[0])
            if features is None or source is None or not last.meta.get("batched") or not tensor_inputs(node)[0].meta.get("batched"):
                continue
            if surveyed.uneditable(region, node, replaces=False) or surveyed.uneditable(region, last, replaces=False):
                continue
            dim = 1 if conv is not None or len(features) == 2 else -1
            unit = 1
            if conv is not None and conv.groups > 1 and not is_depthwise(conv):
                unit = conv.out_channels // conv.groups
            arguments = {"in_channels": source[dim], "entries": features[dim] // unit, "unit": unit, "channel_dim": dim}
            name = f"gate_{len(edits)}"
            edits.append(Attach(last.meta["address"], at, name, LayerSpec("testing.Plain", arguments)))
            signatures[at.owner] = surveyed.signature(region, at.owner)
    with performing():
        perform(network, edits, signatures, seed=seed)
    return network.eval()


def draw_masks(network: nn.Module, share: float, generator: torch.Generator) -> None:
    """Mask about this share of every gate's entries, and never all of them; ``share`` 1 leaves one."""
    for gate in gates(network).values():
        mask = torch.rand(gate.entries, generator=generator) >= share
        mask[int(torch.randint(gate.entries, (1,), generator=generator))] = True
        gate.mask.copy_(mask)


def shift_norms(network: nn.Module, x: Tensor, generator: torch.Generator) -> None:
    """Give every batch norm the statistics of ``x``, and then large shifts of its own."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for module in norms:
            module.momentum = 1.0
            module.train()
            if module.affine:
                module.bias.copy_(2 * torch.randn(module.bias.shape, generator=generator))
        network(x)
        for module in norms:
            module.momentum = 0.1
            module.eval()
