"""What a node of a region's graph is: convolution, norm, activation, addition, or something that lets channels pass unchanged."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

_ACTIVATION_NAMES = frozenset(
    (
        "relu relu6 leaky_relu prelu elu celu selu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh softplus swish "
        "hard_swish hard_sigmoid hard_mish quick_gelu gelu_tanh rrelu logsigmoid softsign"
    ).split()
)
_MIXING_ACTIVATIONS = (nn.MultiheadAttention, nn.GLU, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)
_NORM_NAMES = frozenset(
    "batch_norm layer_norm group_norm instance_norm rms_norm fast_layer_norm fast_group_norm fast_rms_norm fast_rms_norm2d".split()
)
_NEUTRAL_NAMES = frozenset(
    ("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout contiguous clone detach to float").split()
)
_ADDITIONS = frozenset(("add", "iadd"))
_POOL_NAMES = frozenset(
    (
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d interpolate upsample pad"
    ).split()
)
_POOL_MODULES: tuple[type[nn.Module], ...] = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
    nn.Upsample,
)


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of what the node computes, where it is one tensor and known."""
    shape: tuple[int, ...] | None = node.meta.get("shape")
    return shape


def module_of(node: fx.Node) -> nn.Module | None:
    """The module that the node calls, on the meta device."""
    module: nn.Module | None = node.meta.get("module")
    return module


def is_batched(node: fx.Node) -> bool | None:
    """Whether the first dimension of what the node computes is the batch, and no other is; ``None`` where that is not known."""
    batched: bool | None = node.meta.get("batched")
    return batched


def is_pooled(node: fx.Node) -> bool:
    """Whether the node works on globally pooled vectors (:mod:`chansurg.surgery.survey.pooling`)."""
    return bool(node.meta.get("pooled", False))


def path_of(node: fx.Node) -> str:
    """A path that a reader can find the node by: the module's, or the calling module's with the operation."""
    path = node.meta.get("path")
    if isinstance(path, str):
        return path
    address = node.meta.get("address")
    return address.path if address is not None else node.name


def function_name(node: fx.Node) -> str:
    """Plain name of the function or method that the node calls; empty for anything else. ``add_`` and ``add`` are one."""
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", "")).rstrip("_")
    return str(node.target).rstrip("_") if node.op == "call_method" else ""


def conv_of(node: fx.Node) -> nn.modules.conv._ConvNd | None:
    """The convolution that the node calls, if it calls one that is not transposed."""
    module = module_of(node)
    return module if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed else None


def linear_of(node: fx.Node) -> nn.Linear | None:
    """The linear layer that the node calls, if it calls one."""
    module = module_of(node)
    return module if isinstance(module, nn.Linear) else None


def is_pointwise(conv: nn.modules.conv._ConvNd) -> bool:
    """Whether the kernel is 1x1."""
    return all(size == 1 for size in conv.kernel_size)


def is_strided(conv: nn.modules.conv._ConvNd) -> bool:
    """Whether the convolution skips positions."""
    return any(step != 1 for step in conv.stride)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution has one input channel a group, and more than one group."""
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and module.groups == module.in_channels


def is_norm(node: fx.Node) -> bool:
    """Batch, layer, group, instance or RMS norm; with or without an activation of its own."""
    module = module_of(node)
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
        return True
    if module is None:
        return function_name(node) in _NORM_NAMES
    return "norm" in type(module).__name__.lower() and not isinstance(module, nn.modules.normalization.LocalResponseNorm)


def is_activation(node: fx.Node) -> bool:
    """A pointwise non-linearity: every element by itself, so neither a softmax nor a gated linear unit."""
    module = module_of(node)
    if module is None:
        return function_name(node) in _ACTIVATION_NAMES
    home = type(module).__module__
    if home == "torch.nn.modules.activation":
        return not isinstance(module, _MIXING_ACTIVATIONS)
    return "activations" in home or type(module).__name__.lower() in _ACTIVATION_NAMES


def is_neutral(node: fx.Node) -> bool:
    """Passes its input on in eval mode: identity, dropout, stochastic depth, a change of memory layout."""
    module = module_of(node)
    if module is None:
        return function_name(node) in _NEUTRAL_NAMES
    return isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd)) or type(module).__name__ in ("DropPath", "StochasticDepth")


def is_pooling(node: fx.Node) -> bool:
    """Pools, pads or resamples in space, each channel by itself."""
    module = module_of(node)
    if module is None:
        return function_name(node) in _POOL_NAMES
    return isinstance(module, _POOL_MODULES) or type(module).__name__ in ("BlurPool2d", "AvgPool2dSame", "MaxPool2dSame", "AvgPool2dAa")


def is_addition(node: fx.Node) -> bool:
    """Adds two tensors of one shape."""
    if function_name(node) not in _ADDITIONS:
        return False
    operands = node.all_input_nodes
    return len(operands) == 2 and shape_of(operands[0]) is not None and shape_of(operands[0]) == shape_of(operands[1])


def is_layout_change(node: fx.Node) -> bool:
    """Moves the channel axis, or folds and unfolds the spatial ones, without touching values."""
    module = module_of(node)
    name = type(module).__name__.lower() if module is not None else function_name(node)
    return name in ("permute", "transpose", "flatten", "unflatten", "movedim", "view", "reshape")


def permutation(node: fx.Node) -> tuple[int, ...] | None:
    """The order in which a permutation or transposition puts the dimensions of its input, counted from 0; ``None`` for any other node."""
    sources = tensor_inputs(node)
    shape = shape_of(sources[0]) if len(sources) == 1 else None
    if shape is None:
        return None
    module, name = module_of(node), function_name(node)
    order: list[int] = list(range(len(shape)))
    if type(module).__name__ == "Permute":
        order = [int(dim) for dim in module.dims]  # type: ignore[union-attr]
    elif name == "permute":
        dims = node.args[1:] if len(node.args) > 2 else node.args[1] if len(node.args) > 1 else node.kwargs.get("dims", ())
        order = [dim for dim in dims if isinstance(dim, int)] if isinstance(dims, (tuple, list)) else []
    elif name == "transpose" and len(node.args) == 3 and all(isinstance(dim, int) for dim in node.args[1:]):
        first, second = (int(str(dim)) for dim in node.args[1:])
        order[first], order[second] = order[second], order[first]
    else:
        return None
    return tuple(dim % len(shape) for dim in order) if len(order) == len(shape) else None


def follow(node: fx.Node, passing: Callable[[fx.Node], bool]) -> Iterator[fx.Node]:
    """Every node that ``node``'s output reaches through ``passing`` nodes, nearest first; passing nodes included."""
    seen: set[fx.Node] = set()
    queue = list(node.users)
    while queue:
        user = queue.pop(0)
        if user in seen:
            continue
        seen.add(user)
        yield user
        if passing(user):
            queue.extend(user.users)


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Inputs that depend on the network's input; parameters and constants are left out."""
    return [source for source in node.all_input_nodes if source.op != "get_attr"]


def is_elementwise(node: fx.Node) -> bool:
    """Works on each element by itself, so that every channel stays what it is."""
    return is_activation(node) or is_neutral(node) or function_name(node) in _ELEMENTWISE_NAMES or node.target in _ELEMENTWISE_TARGETS


_ELEMENTWISE_NAMES = frozenset(("add iadd sub isub mul imul truediv div neg abs exp sqrt clamp clip square pow maximum minimum").split())
_ELEMENTWISE_TARGETS: frozenset[Any] = frozenset((operator.add, operator.mul, operator.sub, operator.truediv, torch.add, torch.mul))
