"""Operators of torch's own kind: registered with a shape rule, gradients and a batching rule, so that whatever looks at a network sees one.

Each has a *plain* form, of torch's operators, which is its definition: it serves where there is no kernel for a device or a precision, its
gradients are what a backward kernel has to match, and it is differentiated where gradients of gradients are asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from chansurg.surgery.kernels.compiled import is_available, library
from chansurg.surgery.kernels.layouts import empty

NAMESPACE = "chansurg"
_LIBRARY = cast(Any, torch.library).Library(NAMESPACE, "FRAGMENT")
HAS_TRITON = find_spec("triton") is not None
_COMPILED = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_ON_CUDA = (torch.float32, torch.bfloat16, torch.float16)


class Operator(ABC):
    """One operator, ``chansurg::<name>``, and its backward.

    A subclass says what it computes; an instance is called with the operator's arguments. The first ``differentiable`` ones are tensors
    that gradients flow to, the first of them with the batch along its first dimension and channels along its second.

    Attributes:
        name: of the operator.
        arguments: their schema, as torch's operators have it.
        differentiable: how many of them gradients flow to.
        source: the kernels for the CPU, in C++.
        on_cuda: the module with those for CUDA, which needs Triton; empty where there are none.
    """

    name: str
    arguments: str
    differentiable: int
    source: Path
    on_cuda = ""

    _is_built = False

    def __init__(self) -> None:
        gradients = ", ".join(["Tensor"] * self.differentiable)
        _LIBRARY.define(f"{self.name}({self.arguments}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.define(f"{self.name}_backward(Tensor gradient, {self.arguments}) -> ({gradients})", tags=(torch.Tag.pt2_compliant_tag,))
        forward, backward = f"{NAMESPACE}::{self.name}", f"{NAMESPACE}::{self.name}_backward"
        for device, key in (("cpu", "CPU"), ("cuda", "CUDA")):
            _LIBRARY.impl(self.name, self._forward_on(device), key)
            _LIBRARY.impl(f"{self.name}_backward", self._backward_on(device), key)
        torch.library.register_fake(forward, self.empty, lib=_LIBRARY)
        torch.library.register_fake(backward, self._empty_gradients, lib=_LIBRARY)
        torch.library.register_autograd(forward, self._differentiate, setup_context=self._remember, lib=_LIBRARY)
        torch.library.register_vmap(forward, self._batched, lib=_LIBRARY)
        self._forward = getattr(getattr(torch.ops, NAMESPACE), self.name)
        self._backward = getattr(getattr(torch.ops, NAMESPACE), f"{self.name}_backward")

    def __call__(self, *arguments: Any) -> Tensor:
        """What the operator's arguments give."""
        found: Tensor = self._forward(*arguments)
        return found

    def serves(self, x: Tensor) -> bool:
        """Whether to call the operator on such a tensor, and not the plain form.

        Exporters always get the plain form: what they write needs nothing but torch. So do compilers on CPU as long as no kernel has
        been asked for outside of them: nothing can be built while a network is compiled.
        """
        if x.numel() == 0 or torch._C._get_tracing_state() is not None or torch.compiler.is_exporting():
            return False
        if torch.compiler.is_compiling() and not x.is_cuda:
            return self._is_built and x.device.type == "cpu" and x.dtype in _COMPILED
        return self.has_kernel(x)

    def has_kernel(self, x: Tensor) -> bool:
        """Whether there is a kernel here: on CPU where there is a compiler, on CUDA where there is Triton, in single and half precision."""
        if x.device.type == "cuda":
            return bool(self.on_cuda) and x.dtype in _ON_CUDA and HAS_TRITON
        if x.device.type != "cpu" or x.dtype not in _COMPILED:
            return False
        self._is_built = is_available(self.source)
        return self._is_built

    @cached_property
    def triton(self) -> ModuleType:
        """The module with the kernels for CUDA; needs Triton."""
        return import_module(self.on_cuda)

    def compiled(self, function: str, x: Tensor) -> Callable[..., None]:
        """A function of the source, for the precision of ``x``."""
        functions = library(self.source)
        assert not isinstance(functions, str)
        found: Callable[..., None] = getattr(functions, f"{function}_{_COMPILED[x.dtype]}")
        return found

    @abstractmethod
    def plain(self, *arguments: Any) -> Tensor:
        """The definition, in torch's operators."""

    @abstractmethod
    def empty(self, *arguments: Any) -> Tensor:
        """An unwritten tensor of the shape, the precision and the layout of what comes out."""

    @abstractmethod
    def forward_kernel(self, *arguments: Any) -> Tensor:
        """What comes out, by the kernel of the device."""

    @abstractmethod
    def backward_kernel(self, gradient: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        """The gradients of the differentiable arguments, by the kernel of the device."""

    @abstractmethod
    def unbatched(self, size: int, arguments: Sequence[Any], dims: Sequence[int | None]) -> tuple[Tensor, int]:
        """What a batch of ``size`` calls gives, and along which dimension it lies; ``dims`` says along which each argument varies."""

    def _forward_on(self, device: str) -> Any:
        def forward(*arguments: Any) -> Tensor:
            return (self.forward_kernel if self.has_kernel(arguments[0]) else self.plain)(*arguments)

        return forward

    def _backward_on(self, device: str) -> Any:
        def backward(gradient: Tensor, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
            if self.has_kernel(arguments[0]):
                return _as_returned(self.backward_kernel(gradient, *arguments))
            return _as_returned(self.gradients(self.plain, gradient, arguments))

        return backward

    def gradients(self, compute: Callable[..., Tensor], gradient: Tensor, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        """The gradients of the differentiable arguments, as those of a function that computes the same."""
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in arguments[: self.differentiable]]
            return torch.autograd.grad(compute(*leaves, *arguments[self.differentiable :]), leaves, gradient)

    def _empty_gradients(self, gradient: Tensor, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
        x, *others = arguments[: self.differentiable]
        return _as_returned((empty(x, x.shape[1]), *(torch.empty_like(tensor) for tensor in others)))

    def _remember(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = [number for number, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.save_for_backward(*(inputs[number] for number in tensors))
        ctx.tensors, ctx.others = tensors, [None if number in tensors else value for number, value in enumerate(inputs)]

    def _differentiate(self, ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        arguments = list(ctx.others)
        for number, tensor in zip(ctx.tensors, ctx.saved_tensors, strict=True):
            arguments[number] = tensor
        wanted = arguments[: self.differentiable]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in wanted):  # gradients of gradients
            with torch.enable_grad():
                views = [tensor.view_as(tensor) for tensor in wanted]
                found = self.plain(*views, *arguments[self.differentiable :])
                needed = [view for view in views if view.requires_grad]
                made = iter(torch.autograd.grad(found, needed, gradient, create_graph=True))
            gradients = [next(made) if view.requires_grad else None for view in views]
        else:
            found = self._backward(gradient, *arguments)
            gradients = [found] if isinstance(found, Tensor) else list(found)
        return (*gradients, *[None] * (len(arguments) - self.differentiable))

    def _batched(self, info: Any, dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        return self.unbatched(info.batch_size, arguments, dims)


def _as_returned(gradients: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """As an operator gives them: one alone is no tuple."""
    return gradients[0] if len(gradients) == 1 else gradients


def in_front(size: int, tensors: Sequence[Tensor], dims: Sequence[int | None]) -> list[Tensor]:
    """The tensors of a batch of ``size`` calls, with the calls along a first dimension of their own."""
    pairs = zip(tensors, dims, strict=True)
    return [tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0) for tensor, dim in pairs]
