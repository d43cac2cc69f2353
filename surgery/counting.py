"""What a network costs: parameters, multiply-accumulates, operations and memory access, without computing anything.

The network runs once on the meta device, and every operator that reaches torch's dispatcher is looked up in a table from operator to
formula. What computes and is not in the table is listed, never hidden. A pass that cannot finish without numbers (a detector's
post-processing, say) is counted as far as it came, and the list says where it stopped.

``macs`` are multiply-accumulates of convolutions, linear layers and matrix products. ``ops`` follow ptflops 0.7 with its ``pytorch``
backend, in which the PiX and MoD papers count: the same, plus biases, normalisation, activation and pooling. That backend sees most
activation and pooling modules twice, once as a module and once as the function the module calls; published numbers (4.132 G for
ResNet-50) contain this, so the table does too, however a network is written. Elementwise arithmetic is in neither count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import record_of
from chansurg.surgery.forwards.skeleton import meta_copy

_STOPPED = "stopped at "


@dataclass(frozen=True)
class Counts:
    """The cost of one forward pass over a whole batch.

    Attributes:
        params: numbers in parameters, a tied one counted once.
        macs: multiply-accumulates of convolutions, linear layers and matrix products.
        ops: ``macs`` plus biases, normalisation, activation and pooling, as ptflops counts them.
        memory_access: kernel elements plus output elements over convolutions and linear layers (PCS, Equation 16).
        uncounted: operators that compute and have no formula, by name; last, if the pass broke off, ``"stopped at …: reason"``.
        outputs: shapes of the tensors that the network put out; empty if the pass broke off.
    """

    params: int
    macs: int
    ops: int
    memory_access: int
    uncounted: tuple[str, ...] = ()
    outputs: tuple[tuple[int, ...], ...] = ()

    @property
    def stopped(self) -> str | None:
        """Where and why the pass broke off, if it did."""
        return next((note for note in self.uncounted if note.startswith(_STOPPED)), None)

    def as_json(self) -> dict[str, int]:
        """The four counts, as ``--json`` prints them."""
        return {"params": self.params, "macs": self.macs, "ops": self.ops, "memory_access": self.memory_access}


def count(model: nn.Module, input_size: tuple[int, ...] | None = None, *, batch_size: int = 1) -> Counts:
    """Count what one forward pass of ``model`` in eval mode costs; the model itself is not run.

    Args:
        model: a network that takes one tensor ``[B, C, H, W]``.
        input_size: ``(C, H, W)``, in pixels; the record's where left out.
        batch_size: ``B``; the counts, ``params`` apart, are for the whole batch.

    Raises:
        InputError: when the sizes are no positive whole numbers, or the pass failed before anything was counted.
    """
    shape = (batch_size, *(input_size or record_of(model).preprocessing.input_size))
    if len(shape) != 4 or any(not isinstance(size, int) or size < 1 for size in shape):
        raise InputError(
            f"[{', '.join(map(str, shape))}] is no input shape.",
            where="input size and batch size",
            not_done="nothing was counted",
            to_do="give channels, height and width, and a batch size, as whole numbers of at least 1",
        )
    network = meta_copy(model)
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.get_default_dtype())
    x = torch.empty(shape, dtype=dtype, device="meta")
    path = _follow(network)
    tally = _Tally(network)
    stopped: tuple[str, ...] = ()
    outputs: tuple[tuple[int, ...], ...] = ()
    try:
        with torch.no_grad(), tally:
            outputs = tuple(tuple(leaf.shape) for leaf in tree_leaves(network(x)) if isinstance(leaf, Tensor))
    # A network may fail in any way it likes where its numbers are missing.
    except Exception as error:
        place, reason = path[-1] or type(model).__name__, tally.reason(error)
        if not tally.counted:
            raise InputError(
                f"The network does not run on an input of shape {list(shape)}: {reason}",
                where=place,
                not_done="nothing was counted",
                to_do="give the input size that this network takes",
            ) from error
        stopped = (f"{_STOPPED}{place}: {reason}",)
    return Counts(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=tally.macs,
        ops=tally.macs + tally.extra,
        memory_access=tally.memory_access,
        uncounted=(*sorted(tally.uncounted), *stopped),
        outputs=outputs,
    )


class _Cost(NamedTuple):
    macs: int = 0
    extra: int = 0  # what `ops` has beyond `macs`
    memory_access: int = 0


# (the operator's arguments, its first output, the storages of the network's parameters) -> cost
_Formula = Callable[[Sequence[Any], Tensor, set[int]], _Cost]


def _convolution(args: Sequence[Any], out: Tensor, weights: set[int]) -> _Cost:
    x, weight, bias, *_, transposed, _, _ = args
    positions = (x if transposed else out).shape[2:].numel() * x.shape[0]
    return _Cost(positions * weight.numel(), out.numel() if bias is not None else 0, weight.numel() + out.numel())


def _deformable_convolution(args: Sequence[Any], out: Tensor, weights: set[int]) -> _Cost:
    weight = args[1]
    return _Cost(out.numel() * weight[0].numel(), out.numel(), weight.numel() + out.numel())


def _product(first: int, *, bias: bool = False) -> _Formula:
    """A matrix product of arguments ``first`` and the next; a linear layer if one of them is a parameter."""

    def formula(args: Sequence[Any], out: Tensor, weights: set[int]) -> _Cost:
        left, right = args[first], args[first + 1]
        of_weights = [t.numel() for t in (left, right) if _storage(t) in weights]
        memory_access = sum(of_weights) + out.numel() if of_weights else 0
        return _Cost(out.numel() * left.shape[-1], out.numel() if bias else 0, memory_access)

    return formula


def _per_input(times: int) -> _Formula:
    return lambda args, out, weights: _Cost(extra=times * args[0].numel())


def _per_output(times: int) -> _Formula:
    return lambda args, out, weights: _Cost(extra=times * out.numel())


def _scaled_norm(args: Sequence[Any], out: Tensor, weights: set[int]) -> _Cost:
    return _Cost(extra=args[0].numel() * (1 if args[1] is None else 2))


def _mean(args: Sequence[Any], out: Tensor, weights: set[int]) -> _Cost | None:
    """A mean over several dimensions is pooling; over one it may be anything, and is not counted."""
    dims = args[1] if len(args) > 1 and args[1] is not None else ()
    if len(dims) < 2:
        return None
    # Adaptive pooling to one pixel reaches the dispatcher in this form, and ptflops sees it twice.
    is_module = list(dims) in ([-1, -2], [-1, -2, -3])
    return _Cost(extra=args[0].numel() * (2 if is_module else 1))


_FORMULAS: dict[str, Callable[[Sequence[Any], Tensor, set[int]], _Cost | None]] = {
    "aten.convolution": _convolution,
    "torchvision.deform_conv2d": _deformable_convolution,
    "aten.mm": _product(0),
    "aten.bmm": _product(0),
    "aten.mv": _product(0),
    "aten.dot": _product(0),
    "aten.addmm": _product(1, bias=True),
    "aten.baddbmm": _product(1, bias=True),
    "aten.addmv": _product(1, bias=True),
    "aten.native_batch_norm": _scaled_norm,
    "aten._native_batch_norm_legit_no_training": _scaled_norm,
    "aten._native_batch_norm_legit": _scaled_norm,
    "aten.cudnn_batch_norm": _scaled_norm,
    "aten.native_group_norm": _scaled_norm,
    "aten.native_layer_norm": _per_input(1),
    "aten._fused_rms_norm": _per_input(1),
    "aten.relu": _per_input(2),
    "aten.elu": _per_input(2),
    "aten.gelu": _per_input(2),
    "aten._prelu_kernel": _per_input(2),
    "aten.hardtanh": _per_input(1),  # ReLU6
    "aten.leaky_relu": _per_input(1),
    "aten.silu": _per_input(1),
    "aten._softmax": _per_input(1),
    "aten._safe_softmax": _per_input(1),
    "aten.mean": _mean,
    **{f"aten.{kind}_pool{n}d": _per_input(2) for kind in ("avg", "_adaptive_avg", "adaptive_max") for n in (2, 3)},
    **{f"aten.max_pool{n}d_with_indices": _per_input(2) for n in (2, 3)},
    **{
        f"aten.upsample_{kind}": _per_output(1)
        for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d")
    },
}

# Views are recognised by their schema; these copy, place, pick out or create, and compute nothing.
# fmt: off
_FREE = frozenset({
    "_reshape_alias", "_reshape_copy", "_to_copy", "_unsafe_view", "alias_copy", "arange", "as_strided", "cat", "channel_shuffle", "clone",
    "constant_pad_nd", "copy", "detach", "embedding", "empty", "empty_like", "empty_permuted", "empty_strided", "expand_copy", "eye",
    "fill", "flip", "full", "full_like", "gather", "im2col", "index", "index_put", "index_select", "lift_fresh", "linspace",
    "masked_select", "native_channel_shuffle", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones", "ones_like",
    "permute_copy", "pixel_shuffle", "pixel_unshuffle", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "repeat",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "resize", "roll", "scalar_tensor", "scatter", "select_scatter", "set",
    "slice_scatter", "split_with_sizes_copy", "squeeze", "stack", "t", "take", "transpose", "tril_indices", "triu_indices", "unsafe_split",
    "unsafe_split_with_sizes", "unsqueeze", "view_copy", "zero", "zeros", "zeros_like",
})
# fmt: on


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the cost of every operator called while it is active."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = {_storage(parameter) for parameter in network.parameters()}
        self.macs = self.extra = self.memory_access = 0
        self.counted = 0
        self.uncounted: set[str] = set()
        self._running = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        # Tensors that a network keeps as plain attributes are no part of its meta copy.
        kwargs = kwargs or {}
        if any(isinstance(arg, Tensor) and arg.is_meta for arg in args):
            args = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), args)
        self._running = _plain_name(str(getattr(func, "overloadpacket", func)))
        out = func(*args, **kwargs)
        self._running = ""
        cost = self._cost(func, args, kwargs, out)
        if cost is not None:
            self.counted += 1
            self.macs += cost.macs
            self.extra += cost.extra
            self.memory_access += cost.memory_access
        return out

    def reason(self, error: Exception) -> str:
        """One line on why the pass broke off with ``error``."""
        if self._running and isinstance(error, NotImplementedError):
            return f"{self._running} depends on values, and there are none on the meta device"
        text = str(error).strip()
        return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__

    def _cost(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> _Cost | None:
        packet = getattr(func, "overloadpacket", func)
        name = _plain_name(str(packet))
        first = out[0] if isinstance(out, tuple | list) and out else out
        cost = None
        if name in _FORMULAS:
            cost = _FORMULAS[name](args, first, self._weights)
        elif packet in flop_registry:  # fused attention, mostly; it counts a multiply and an add as two
            cost = _Cost(macs=flop_registry[packet](*args, **kwargs, out_val=out) // 2)
        elif getattr(func, "is_view", False) or name.removeprefix("aten.") in _FREE:
            return None
        if cost is None:
            self.uncounted.add(name)
        return cost


def _plain_name(name: str) -> str:
    """An operator's name without the mark of its in-place form: ``aten.add_`` is ``aten.add``."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _follow(network: nn.Module) -> list[str]:
    """The paths of the modules being run, outermost first, kept up to date by hooks. A module that fails stays on the list."""
    running = [""]

    for name, module in network.named_modules():

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            running.append(name)

        def leave(_module: nn.Module, _args: Any, _out: Any) -> None:
            running.pop()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    return running
