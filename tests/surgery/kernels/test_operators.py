"""The operators against their plain forms: forward, backward, twice backward, batched, compiled, under autocast, exported."""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import chansurg
from chansurg.recipes.pix.fusing import PICK_OR_MIX
from chansurg.recipes.pix.layer import PickOrMix
from chansurg.recipes.pix.sampling import SAMPLE_CHANNELS
from chansurg.recipes.slimconv.attending import ATTEND_CHANNELS
from chansurg.recipes.slimconv.layer import SlimConv
from chansurg.surgery.kernels.operators import Operator
from tests.networks.calls import Call, calls

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))]

WHOLE = (SAMPLE_CHANNELS, ATTEND_CHANNELS)
"""Operators that are whole layers: several steps, each with a rounding of its own."""


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def gradients(found: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad(found, leaves, torch.randn(found.shape, device=found.device).to(found.dtype))


def served(call: Call) -> bool:
    """Whether a kernel runs here, and not the plain form."""
    return call.operator.has_kernel(call.arguments[0])


@pytest.mark.parametrize("device", DEVICES)
def test_kernels_agree_with_the_plain_forms_in_float64_forward_and_backward(device: str) -> None:
    for call in calls(device=device):
        leaves = call.leaves()
        inputs = leaves[: call.operator.differentiable]
        exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
        expected = call.operator.plain(*exact, *leaves[len(inputs) :])
        found = call.operator(*leaves)
        assert relative(found, expected) <= 1e-6, call.name
        for mine, its in zip(gradients(found, inputs), gradients(expected, tuple(exact)), strict=True):
            assert relative(mine, its) <= (4e-6 if call.operator in WHOLE else 2e-6), call.name


@pytest.mark.parametrize("device", DEVICES)
def test_in_bfloat16_kernels_differ_from_the_exact_result_by_a_rounding(device: str) -> None:
    for call in calls(torch.bfloat16, device):
        leaves = call.leaves()
        inputs = leaves[: call.operator.differentiable]
        roundings = 4 if call.operator in WHOLE else 1
        exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
        others = list(leaves[len(inputs) :])
        if call.operator is PICK_OR_MIX:  # the threshold, as a tensor of this precision compares with it
            others[-1] = float(torch.tensor(others[-1], dtype=torch.bfloat16))
        expected = call.operator.plain(*exact, *others)
        found = call.operator(*leaves)
        assert found.dtype == torch.bfloat16
        assert relative(found, expected) <= roundings * 2**-8, call.name
        for mine, its in zip(gradients(found, inputs), gradients(expected, tuple(exact)), strict=True):
            assert relative(mine, its) <= roundings * 2**-6, call.name


def test_every_number_is_written_in_the_layout_that_is_announced() -> None:
    """Unwritten memory is full of NaN here, and what comes out has none; and the rule for shapes says how it lies."""
    torch.use_deterministic_algorithms(True)
    try:
        for call in calls():
            found = call.operator(*call.arguments)
            announced = call.operator.empty(*call.arguments)
            assert not found.isnan().any(), call.name
            assert (found.shape, found.stride(), found.dtype) == (announced.shape, announced.stride(), announced.dtype), call.name
    finally:
        torch.use_deterministic_algorithms(False)


def of_each(shape: str = "2x10x30x33", layout: str = "channels_innermost") -> Iterator[Call]:
    seen: dict[type[Operator], Call] = {}
    for call in calls():
        if call.name.endswith(f"{shape}-{layout}"):
            seen.setdefault(type(call.operator), call)
    assert len(seen) == 6
    return iter(seen.values())


@pytest.mark.parametrize("layout", ["as_they_come", "channels_innermost"])
def test_they_are_operators_as_torch_wants_them(layout: str) -> None:
    for call in of_each("3x12x1x1", layout):
        name = f"chansurg::{call.operator.name}"
        torch.library.opcheck(getattr(torch.ops.chansurg, call.operator.name).default, call.leaves(), raise_exception=True)
        assert "Autograd" in torch._C._dispatch_dump(name)


def test_gradients_of_gradients_are_those_of_the_plain_form() -> None:
    for call in of_each():
        found = []
        for compute in (call.operator, call.operator.plain):
            leaves = call.leaves()
            inputs = leaves[: call.operator.differentiable]
            first = torch.autograd.grad(compute(*leaves).square().sum(), inputs, create_graph=True)
            found.append(torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs))
        for mine, its in zip(*found, strict=True):
            assert relative(mine, its) <= 1e-5, call.name


def test_a_batch_of_calls_gives_what_the_calls_give() -> None:
    for call in of_each():
        x, *others = call.arguments
        many = torch.stack([x, 2 * x, x.flip(0)])
        found = torch.vmap(lambda one, call=call, others=others: call.operator(one, *others))(many)
        expected = torch.stack([call.operator(one, *others) for one in many])
        assert torch.equal(found, expected), call.name


def test_a_kernel_is_what_ran() -> None:
    """Where there is a compiler, the plain form is not called: none of the above would notice otherwise."""
    for call in of_each():
        if not served(call):
            pytest.skip("no kernels here")
        with mock.patch.object(type(call.operator), "plain", side_effect=AssertionError("the plain form ran")):
            found = call.operator(*call.leaves())
            found.sum().backward()


def always(operator: Operator, x: Tensor) -> bool:
    return True


def never(operator: Operator, x: Tensor) -> bool:
    return False


class Both(nn.Module):
    """Layers with kernels, one after another: ``[B, 16, H, W] -> [B, 6, H, W]``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pix = PickOrMix(16, 8)
        self.slim = SlimConv(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.slim(self.pix(x.relu()))
        return y


@pytest.mark.parametrize("operators", [False, True], ids=["plain", "operators"])
def test_no_graph_break(operators: bool) -> None:
    network, x = Both().eval(), torch.randn(2, 16, 6, 6)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with mock.patch.object(Operator, "serves", always if operators else never):
        found = compiled(x.requires_grad_())
        found.sum().backward()
    expected = network(x)
    assert relative(found, expected) <= 1e-6


@pytest.mark.skipif(not PICK_OR_MIX.has_kernel(torch.zeros(1)), reason="no kernels are built here")
def test_what_was_built_before_is_used_where_a_network_is_compiled() -> None:
    exporting = torch.compile(lambda x: x * (2 if torch.compiler.is_exporting() else 1), backend="eager")
    if exporting(torch.ones(1)).item() == 2:
        pytest.skip("this PyTorch takes compiling for exporting, and gets the plain form")
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    x = torch.randn(2, 16, 6, 6)
    for network, operators in (
        (PickOrMix(16, 4).eval(), {"pick_or_mix"}),
        (chansurg.optimize(Both().eval(), x, runtime="compile"), {"sample_channels", "attend_channels"}),
    ):
        with torch.inference_mode():
            expected = network(x)
            found = torch.compile(network, backend=keep, fullgraph=True)(x)
        assert torch.equal(found, expected)
        targets = [str(node.target).partition(".") for node in graphs.pop().graph.nodes]
        assert {name for space, _, name in targets if space == "chansurg"} == operators


def test_autocast_runs_kernels_in_half_precision() -> None:
    network, x = Both().eval(), torch.randn(2, 16, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x)
    assert found.dtype == torch.bfloat16
    assert relative(found, network(x)) <= 2**-5


def test_an_exported_program_needs_nothing_but_torch() -> None:
    network = Both().eval()
    program = torch.export.export(network, (torch.randn(2, 16, 6, 6),))
    assert not [node for node in program.graph.nodes if "chansurg" in str(node.target)]


def test_an_operator_can_be_exported_as_one() -> None:
    class Alone(nn.Module):
        def forward(self, x: Tensor, p: Tensor) -> Tensor:
            return PICK_OR_MIX(x, p, None, [4], [4], False, False, 0.5)

    arguments = (torch.rand(2, 16, 5, 5), torch.rand(2, 4))
    program = torch.export.export(Alone(), arguments)
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == ["chansurg.pick_or_mix.default"]
    assert torch.equal(program.module()(*arguments), Alone()(*arguments))


def test_a_network_runs_the_same_with_and_without_kernels() -> None:
    torch.manual_seed(0)
    network = chansurg.convert(chansurg.load("cifar/resnet20"), "slimconv").eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = network(x)
        with mock.patch.object(Operator, "serves", never):
            expected = network(x)
    assert relative(found, expected) <= 1e-5
