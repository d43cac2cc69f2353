"""The rivals: torch-pruning's magnitude and Taylor criteria, down to the same multiply-accumulates.

Fang et al., "DepGraph: Towards Any Structural Pruning", with one global ranking over all layers. What the CIFAR ResNets add up in their
parameter-free shortcuts has fixed widths, so only the channels between the two convolutions of a block can go.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

import chansurg
from chansurg.surgery.files.provenance import attach
from chansurg.surgery.journal import Record

STEPS = 200
"""In how many steps the pruner would take everything; it is stopped at the target."""


def prune(network: nn.Module, criterion: str, share: float, batches: Iterable[tuple[Tensor, Tensor]]) -> nn.Module:
    """A pruned copy that costs at most this share of the network's multiply-accumulates.

    Args:
        network: a CIFAR ResNet.
        criterion: ``magnitude`` or ``taylor``.
        share: from 0 to 1.
        batches: images ``[B, C, H, W]`` and labels ``[B]``, whose gradients the Taylor criterion sums.
    """
    record = chansurg.record_of(network)
    # It is no architecture of any library's any more.
    pruned = attach(copy.deepcopy(network).eval(), Record(None, record.preprocessing, record.class_names))
    if criterion == "taylor":
        for images, labels in batches:
            F.cross_entropy(pruned(images), labels, reduction="sum").backward()
        importance = torch_pruning.importance.GroupTaylorImportance()
    else:
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    inner = {f"{path}.conv1" for path, module in pruned.named_modules() if hasattr(module, "conv2")}
    fixed = [module for path, module in pruned.named_modules() if isinstance(module, nn.Conv2d | nn.Linear) and path not in inner]
    example = torch.zeros(1, *record.preprocessing.input_size)
    pruner = torch_pruning.pruner.BasePruner(
        pruned,
        example,
        importance=importance,
        global_pruning=True,
        pruning_ratio=0.99,
        max_pruning_ratio=0.99,
        iterative_steps=STEPS,
        ignored_layers=fixed,
    )
    allowed = share * chansurg.count(network).macs
    for _ in range(STEPS):
        if chansurg.count(pruned).macs <= allowed:
            pruned.zero_grad()
            return pruned
        pruner.step()
    raise SystemExit(f"{criterion} pruning cannot bring this network to {share:.0%} of its multiply-accumulates.")
