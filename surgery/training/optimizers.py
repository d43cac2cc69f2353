"""Optimizers by name, and which parameters weight decay leaves alone.

SGD and AdamW are PyTorch's; the others, made for large batches or few steps, are timm's. Nothing is chosen here that trades exactness
for speed: PyTorch picks its multi-tensor kernels on a GPU by itself, and plain loops on a CPU.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import unwrapped
from chansurg.surgery.layer import RecipeLayer

_TORCH = ("sgd", "adamw")
_TIMM = ("adan", "adopt", "lamb", "lars", "lion", "nadamw", "rmsproptf")
OPTIMIZERS = (*_TORCH, *_TIMM)

# Learning rate and the batch size it was published with.
_PUBLISHED = {
    "sgd": (0.1, 256),  # He et al., "Deep Residual Learning", section 3.4
    "adamw": (1e-3, 1024),  # Touvron et al., "Training data-efficient image transformers", table 9
    "adan": (1.5e-2, 2048),  # Xie et al., "Adan", section 5
    "adopt": (1e-3, 1024),
    "lamb": (5e-3, 2048),  # Wightman et al., "ResNet strikes back", table 2 (A2)
    "lars": (1.0, 1024),  # You et al., "Large Batch Training of Convolutional Networks"
    "lion": (1e-4, 1024),  # Chen et al., "Symbolic Discovery of Optimization Algorithms": a tenth of AdamW's
    "nadamw": (1e-3, 1024),
    "rmsproptf": (0.016, 256),  # Tan and Le, "EfficientNet", section 5.2: 0.256 at 4096
}

_NORMS: tuple[type[nn.Module], ...] = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


def default_learning_rate(optimizer: str, batch_size: int) -> float:
    """The optimizer's published learning rate, scaled linearly with the batch size (Goyal et al., 2017, section 2.1).

    Args:
        optimizer: one of :data:`OPTIMIZERS`.
        batch_size: images an optimizer step, over all processes and accumulated batches.

    Raises:
        InputError: where there is no such optimizer.
    """
    _require_known(optimizer)
    rate, published_batch_size = _PUBLISHED[optimizer]
    return rate * batch_size / published_batch_size


def parameter_groups(model: nn.Module, weight_decay: float, new: Collection[str] = ()) -> list[dict[str, Any]]:
    """The trainable parameters in groups, with and without weight decay, old and new; each parameter is in one of them, once.

    Left alone are parameters of norms, vectors and scalars (biases among them), and what a recipe's layer names in ``no_weight_decay``.

    Args:
        model: the network; a wrapped one is unwrapped.
        weight_decay: of the others.
        new: parameters of layers that started anew, by name; their groups say so under ``new``.

    Raises:
        InputError: where no parameter is trainable.
    """
    network = unwrapped(model)
    fresh = {parameter for name, parameter in network.named_parameters(remove_duplicate=False) if name in new}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {(spared, new): [] for new in (False, True) for spared in (False, True)}
    seen: set[nn.Parameter] = set()
    for module in network.modules():
        protected = module.no_weight_decay if isinstance(module, RecipeLayer) else frozenset[str]()
        below = dict(module.named_parameters()) if protected else {}
        own = dict(module.named_parameters(recurse=False))
        for name, parameter in {**{name: below[name] for name in protected if name in below}, **own}.items():
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            spared = name in protected or parameter.ndim <= 1 or isinstance(module, _NORMS)
            groups[spared, parameter in fresh].append(parameter)
    if not seen:
        raise InputError(
            "The network has no parameter that can be trained.",
            where=type(network).__name__,
            not_done="Nothing was trained.",
            to_do="Set requires_grad of the parameters to be trained.",
        )
    return [
        {"params": parameters, "weight_decay": 0.0 if spared else weight_decay, "new": is_new}
        for (spared, is_new), parameters in groups.items()
        if parameters
    ]


def build_optimizer(
    model: nn.Module,
    name: str = "sgd",
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = True,
    new: Collection[str] = (),
) -> Optimizer:
    """The optimizer of a network's trainable parameters.

    Args:
        model: the network; a wrapped one is unwrapped.
        name: one of :data:`OPTIMIZERS`; all but ``sgd`` and ``adamw`` need timm.
        lr: the learning rate.
        weight_decay: see :func:`parameter_groups`.
        momentum: for ``sgd``, ``lars`` and ``rmsproptf``; the others have moments of their own.
        nesterov: Nesterov's form of momentum, for ``sgd``.
        new: see :func:`parameter_groups`.

    Raises:
        InputError: where there is no such optimizer, or timm is needed and not installed.
    """
    _require_known(name)
    groups = parameter_groups(model, weight_decay, new)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    try:
        from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
    except ImportError as error:
        raise InputError(
            f"The optimizer {name!r} is timm's, and timm is not installed.",
            where="option --optimizer",
            not_done="Nothing was trained.",
            to_do=f"Install it with `pip install chansurg[timm]`, or choose one of: {', '.join(_TORCH)}.",
        ) from error
    return create_optimizer_v2(groups, opt=name, lr=lr, momentum=momentum)


def _require_known(name: str) -> None:
    if name not in OPTIMIZERS:
        raise InputError(
            f"There is no optimizer {name!r}.",
            where="option --optimizer",
            not_done="Nothing was trained.",
            to_do=f"Choose one of: {', '.join(OPTIMIZERS)}.",
        )
