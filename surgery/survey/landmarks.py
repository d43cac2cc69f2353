"""Modules by whose outputs two versions of a network are compared: its blocks, by path.

Surgery keeps the paths of modules, so a block of a converted network and the block that it was have one name.
"""

from __future__ import annotations

from torch import nn

from chansurg.surgery.survey.kinds import module_of, path_of
from chansurg.surgery.survey.survey import Survey


def residual_blocks(found: Survey) -> list[str]:
    """Paths of the modules whose own forward closes a residual block, in order, each once; the network itself is none."""
    return list(dict.fromkeys(block.path for region in found.regions for block in found.blocks(region) if block.path))


def landmarks(found: Survey) -> list[str]:
    """Residual blocks; where there are none, the last layers of plain blocks, or else the larger modules."""
    residual = residual_blocks(found)
    if residual:
        return residual
    ends = [block.exit for region in found.regions for stage in found.stages(region) for block in stage.blocks]
    plain = [path_of(node) for node in ends if module_of(node) is not None]
    return list(dict.fromkeys(plain)) or larger_modules(found.original)


def larger_modules(network: nn.Module, path: str = "") -> list[str]:
    """Children with parts of their own; a sequence of such modules stands for those in it."""
    found = []
    for name, child in network.named_children():
        if next(child.children(), None) is not None:
            inside = larger_modules(child, f"{path}{name}.") if isinstance(child, nn.Sequential) else []
            found += inside or [f"{path}{name}"]
    return found
