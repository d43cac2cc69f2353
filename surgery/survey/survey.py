"""The survey: all that is known of a network before anything is planned. It reads and never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from chansurg.surgery.edits import Address
from chansurg.surgery.errors import InputError
from chansurg.surgery.forwards.skeleton import meta_copy
from chansurg.surgery.forwards.tracing import untraced_modules
from chansurg.surgery.statistics import Statistics
from chansurg.surgery.survey.batch import mark_batched
from chansurg.surgery.survey.blocks import Block, Stage, find_blocks, find_stages
from chansurg.surgery.survey.channels import ChannelSpaces
from chansurg.surgery.survey.editability import Editability, is_own_child
from chansurg.surgery.survey.kinds import module_of, path_of
from chansurg.surgery.survey.plain import find_plain_stages
from chansurg.surgery.survey.pooling import mark_pooled
from chansurg.surgery.survey.regions import LAYERS, Call, Region, find_regions


@dataclass
class Survey:
    """What is known of a network.

    Args:
        network: the meta copy that was traced, in eval mode.
        original: the caller's network, for reading weights (their norms decide which slices are kept); never changed.
        input_size: ``(C, H, W)`` that shapes were taken at.
        regions: the traced parts.
        untraced: path and reason of each part that could not be traced.
        observed: how often each module was called when the network ran on shapes, where it could not be traced as a whole.
        statistics: moments of what goes into its layers; ``None`` where no images were given, and recipes choose by the weights alone.
    """

    network: nn.Module
    original: nn.Module
    input_size: tuple[int, ...]
    regions: list[Region]
    untraced: Mapping[str, str]
    observed: Mapping[str, int] = field(default_factory=dict)
    statistics: Statistics | None = None
    _blocks: dict[str, list[Block]] = field(default_factory=dict)
    _stages: dict[str, list[Stage]] = field(default_factory=dict)
    _spaces: dict[str, ChannelSpaces] = field(default_factory=dict)

    def blocks(self, region: Region) -> list[Block]:
        """The region's residual blocks that lie in no other block."""
        if region.path not in self._blocks:
            self._blocks[region.path] = find_blocks(region.nodes)
        return self._blocks[region.path]

    def stages(self, region: Region) -> list[Stage]:
        """The region's blocks grouped by output width and resolution; runs of plain blocks where no region has residual ones."""
        if region.path not in self._stages:
            residual = any(self.blocks(other) for other in self.regions)
            found = find_stages(region.nodes, self.blocks(region)) if residual else find_plain_stages(region.nodes)
            self._stages[region.path] = found
        return self._stages[region.path]

    def spaces(self, region: Region) -> ChannelSpaces:
        """The region's channel spaces."""
        if region.path not in self._spaces:
            self._spaces[region.path] = ChannelSpaces(region.nodes)
        return self._spaces[region.path]

    @cached_property
    def _editability(self) -> Editability:
        return Editability(self.network, self.regions, self.observed)

    def uneditable(self, region: Region, node: fx.Node, *, replaces: bool) -> str | None:
        """Why the call at ``node`` cannot be edited, or ``None``.

        Args:
            region: where the node is.
            node: a call.
            replaces: the called module itself would change, in its place; else the code that makes the call would.
        """
        address = node.meta.get("address")
        if not isinstance(address, Address):
            return "it is no call"
        if not is_own_child(address.owner, node):
            return "it is shared with another part of the network"
        if replaces:
            return self._editability.of_module(path_of(node))
        return self.unrewritable(region, address)

    def shared(self, path: str) -> str | None:
        """Why the module at ``path``, with all below it, is not one for itself, or ``None``."""
        return self._editability.of_tree(path)

    def unnarrowable(self, parameter: str) -> str | None:
        """Why a parameter that the code of a module reads cannot be narrowed, or ``None``."""
        return self._editability.of_parameter(parameter)

    def unrewritable(self, region: Region, address: Address) -> str | None:
        """Why the forward that makes a call, of a layer or of a module that holds layers, cannot be rewritten, or ``None``."""
        return self._editability.of_call(region, address, self.calls(region, address.owner))

    def signature(self, region: Region, owner: str) -> Mapping[str, Any]:
        """The non-tensor arguments with which ``owner`` is called."""
        return self.calls(region, owner)[0].concrete

    def calls(self, region: Region, owner: str) -> list[Call]:
        """Every call of a module; one without arguments stands for the region itself."""
        if owner == region.path:
            return [region.call]
        return region.calls.get(owner, [Call({})])

    def owners(self, region: Region) -> list[str]:
        """Paths of the modules whose own forwards make the region's calls: the region itself, and every module that was traced through."""
        leaves = {node.meta["path"] for node in region.nodes if node.op == "call_module"}
        return [region.path, *(path for path in region.calls if path not in leaves)]


def survey(network: nn.Module, input_size: tuple[int, ...]) -> Survey:
    """Survey a network; nothing is computed on real tensors.

    Args:
        network: any module that takes one float tensor ``[B, C, H, W]``.
        input_size: ``(C, H, W)``.

    Raises:
        InputError: where the network has no layer at all, or the input size is impossible for it.
    """
    if not any(isinstance(module, LAYERS) for module in network.modules()):
        raise InputError(
            "The network has no convolution, norm or linear layer.",
            where=type(network).__name__,
            not_done="It was not surveyed.",
            to_do="Pass a vision network made of torch.nn layers.",
        )
    meta = meta_copy(network)
    dtype = next((p.dtype for p in meta.parameters() if p.is_floating_point()), torch.float32)
    example = torch.empty(1, *input_size, dtype=dtype, device="meta")
    regions = find_regions(meta, example)
    for region in regions.found:
        last = [node for node in region.nodes[-3:] if node.op != "placeholder"]
        if region.path == "" and region.shapes_reason is not None and not any("shape" in node.meta for node in last):
            raise InputError(
                f"The network does not take an input of size {'x'.join(map(str, input_size))}: {region.shapes_reason}.",
                where=type(network).__name__,
                not_done="It was not surveyed, and nothing was changed.",
                to_do="Pass its input size: --input-size C,H,W, or input_size=(C, H, W).",
            )
    mark_batched(meta, regions.found, example)
    untraced = dict(regions.untraced)
    for region in regions.found:
        mark_pooled(region.nodes)
        untraced.update(_closed_parts(region))
    return Survey(meta, network, tuple(input_size), regions.found, untraced, dict(regions.observed))


def _closed_parts(region: Region) -> dict[str, str]:
    """Calls that hide layers, which are therefore in no region: path and reason."""
    declared = untraced_modules()
    closed: dict[str, str] = {}
    for node in region.nodes:
        module = module_of(node)
        if module is None or isinstance(module, LAYERS) or not any(isinstance(part, LAYERS) for part in module.modules()):
            continue
        library = type(module).__module__.partition(".")[0]
        closed[path_of(node)] = f"{library} declares it as not traceable" if isinstance(module, declared) else "it is taken as one call"
    return closed
