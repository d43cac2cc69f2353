"""The SlimConv layer against the paper's equations in float64, and what a network's user expects of any layer."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
import random
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chansurg.recipes.slimconv.folding import FOLD_CHANNELS
from chansurg.recipes.slimconv.layer import SlimConv, fold
from chansurg.surgery.counting import count
from chansurg.surgery.errors import InputError

_spec = importlib.util.spec_from_file_location("slimconv_reference", Path(__file__).with_name("reference.py"))
assert _spec is not None
assert _spec.loader is not None
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)


def build(*args: Any, seed: int = 0, **options: Any) -> SlimConv:
    """A layer with every tensor drawn at random, in eval mode."""
    layer = SlimConv(*args, **options)
    generator = torch.Generator().manual_seed(seed)
    layer.reset_parameters(generator)
    with torch.no_grad():
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 2.0, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(generator=generator)
        layer.excite.bias.normal_(generator=generator)
    return layer.eval()


def expected(layer: SlimConv, x: Tensor, weights: str, paths: int) -> np.ndarray:
    tensors = {name: tensor.detach().double().numpy() for name, tensor in layer.state_dict().items()}
    top = layer.top
    arguments = {
        "stride": top.stride,
        "padding": top.padding,
        "dilation": top.dilation,
        "top_groups": top.groups,
        "other_groups": layer.bottom.conv.groups,
    }
    return reference.slim_convolution(x.detach().double().numpy(), tensors, layer.folds, weights, paths, arguments)


def random_case(seed: int) -> tuple[SlimConv, Tensor, str, int]:
    rng = random.Random(seed)
    folds = rng.choice([2, 2, 3, 4])
    inputs, outputs = (folds * rng.randint(2, 5) for _ in range(2))
    sort = rng.choice(["plain", "plain", "grouped", "depthwise"])
    if sort == "depthwise":
        outputs = inputs * rng.choice([1, 1, 2])
    divisors = [g for g in range(2, min(inputs, outputs) + 1) if inputs % g == 0 == outputs % g]  # folds at least
    groups = {"plain": 1, "grouped": rng.choice(divisors), "depthwise": inputs}[sort]
    weights, paths = rng.choice(["both", "both", "plain", "flipped", "shuffled"]), rng.choice([2, 2, 3])
    kernel = rng.choice([3, 3, (1, 3), 2])
    layer = build(
        inputs,
        outputs,
        kernel,
        seed=seed,
        stride=rng.choice([1, 1, 2, (2, 1)]),
        padding=rng.choice([0, 1, (1, 2)]),
        dilation=rng.choice([1, 1, 2]),
        groups=groups,
        bias=rng.random() < 0.3,
        folds=folds,
        floor=rng.choice([1, 1, 3, 24]),
        weights=weights,
        paths=paths,
    )
    x = torch.randn((rng.choice([1, 2, 3]), inputs, rng.randint(5, 7), rng.randint(5, 7)), generator=torch.Generator().manual_seed(seed))
    return layer, x, weights, paths


@pytest.mark.parametrize("seed", range(200))
def test_agrees_with_the_equations(seed: int) -> None:
    layer, x, weights, paths = random_case(seed)
    y = expected(layer, x, weights, paths)
    ours = layer.double()(x.double()).detach().numpy()
    assert ours.shape[1] == layer.out_channels
    if layer.in_channels % (2 * layer.folds) == 0 == layer.conv_channels % (2 * layer.folds):
        assert layer.out_channels == (1 + paths) * layer.conv_channels // (2 * layer.folds)
    np.testing.assert_allclose(ours, y, rtol=1e-10, atol=1e-10)


def test_the_orders_of_the_weights_differ() -> None:
    x = torch.randn(2, 16, 5, 5)
    layers = [build(16, 16, 3, folds=folds, weights=weights) for folds in (2, 4) for weights in ("both", "plain", "flipped", "shuffled")]
    results = [layer(x) for layer in layers]
    for other in layers:
        other.load_state_dict(layers[4 * (other.folds == 4)].state_dict())
    results = [layer(x) for layer in layers]
    assert all(not torch.allclose(a, b) for i, a in enumerate(results) for b in results[:i] if a.shape == b.shape)


@pytest.mark.parametrize(
    ("channels", "groups", "folds", "top", "bottom"),
    [
        ((128, 128), 32, 2, 32, 32),
        ((96, 96), 32, 3, 32, 16),
        ((96, 96), 96, 2, 48, 24),
        ((24, 48), 24, 2, 12, 6),
        ((24, 16), 1, 2, 1, 1),
        ((24, 24), 6, 2, 6, 6),
        ((24, 24), 8, 2, 4, 2),
        ((58, 58), 58, 2, 29, 14),
    ],
)
def test_groups_of_the_paths(channels: tuple[int, int], groups: int, folds: int, top: int, bottom: int) -> None:
    layer = SlimConv(*channels, 3, groups=groups, folds=folds)
    assert (layer.top.groups, layer.bottom.conv.groups) == (top, bottom)


@pytest.mark.parametrize("paths", [2, 3])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_gradients(paths: int, groups: int) -> None:
    layer = build(8, 8, 3, paths=paths, groups=groups, bias=True).double()
    x = torch.randn(2, 8, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *(p.detach().clone().requires_grad_() for p in layer.parameters())))


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_training_reaches_every_parameter_from_the_start(batch_size: int) -> None:
    layer = SlimConv(64, 64, 3, paths=3, selections=[range(16), range(16, 32)])
    layer.reset_parameters(torch.Generator().manual_seed(0))
    layer(torch.rand(batch_size, 64, 5, 5, generator=torch.Generator().manual_seed(2))).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if batch_size > 2:
            assert parameter.grad.any(), name


def test_a_single_image_uses_the_attentions_running_statistics_and_leaves_them() -> None:
    layer = build(16, 16, 3).train()
    before = {name: t.clone() for name, t in layer.norm.state_dict().items()}
    x = torch.rand(1, 16, 4, 4)
    alone = layer.channel_weights(x)
    assert all(torch.equal(t, before[name]) for name, t in layer.norm.state_dict().items())
    assert torch.equal(alone, layer.eval().channel_weights(x))
    layer.train().channel_weights(torch.rand(3, 16, 4, 4))
    assert not torch.equal(layer.norm.running_mean, before["running_mean"])


def test_the_weighted_input_never_exists_at_full_width() -> None:
    """What one image's forward and backward keep, beyond the input, is a folded map or less."""
    layer = build(64, 64, 3, padding=1)
    x = torch.randn(1, 64, 16, 16, requires_grad=True)
    made: list[Tensor] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and not func.is_view:
                made.append(out)
            return out

    with Watch(), mock.patch.object(type(FOLD_CHANNELS), "serves", return_value=False):
        layer(x)
    assert max(t.numel() for t in made) <= 3 * x.numel() // 4  # the output
    assert sum(t.numel() == x.numel() for t in made) == 0
    plain, made[:] = sum(t.numel() for t in made), []
    with Watch():
        layer(x)
    assert sum(t.numel() for t in made) <= plain


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    layer = build(32, 32, 3).to(dtype)
    x = (100 * torch.rand(2, 32, 40, 40)).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    wanted = expected(layer, x, "both", 2)
    np.testing.assert_allclose(y.detach().double().numpy(), wanted, rtol=0, atol=16 * torch.finfo(dtype).eps * np.abs(wanted).max())


def test_memory_format_is_kept() -> None:
    layer = build(32, 32, 3, padding=1)
    x = torch.randn(2, 32, 6, 5)
    y, y_last = layer(x), layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, y_last, rtol=0, atol=1e-5)
    assert y.is_contiguous()
    assert y_last.is_contiguous(memory_format=torch.channels_last)
    assert fold(layer.channel_weights(x), x.to(memory_format=torch.channels_last), layer.folds).is_contiguous(
        memory_format=torch.channels_last
    )


def test_images_of_a_batch_do_not_meet() -> None:
    layer = build(16, 16, 3)
    x = torch.randn(5, 16, 4, 4)
    torch.testing.assert_close(layer(x), torch.cat([layer(image[None]) for image in x]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"weights": "shuffled", "paths": 3, "folds": 4, "groups": 16}])
def test_compiles_and_exports_whole(options: dict[str, Any]) -> None:
    torch.compiler.reset()
    layer = build(16, 16, 3, **options)
    few, many = torch.randn(2, 16, 5, 4), torch.randn(7, 16, 5, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(few), layer(few), rtol=0, atol=1e-5)
    exported = torch.export.export(layer, (few,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    torch.testing.assert_close(exported(many), layer(many), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"bias": True}, {"weights": "shuffled", "paths": 3, "groups": 16, "folds": 4}])
def test_onnx_runtime_computes_the_same_for_any_number_of_images(options: dict[str, Any]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = build(16, 16, 3, **options)
    free = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(layer, (torch.randn(2, 16, 5, 4),), dynamic_shapes=free, dynamo=True, verbose=False)
    buffer = io.BytesIO()
    program.save(buffer)
    session = runtime.InferenceSession(buffer.getvalue())
    for batch_size in (1, 2, 7):
        x = torch.randn(batch_size, 16, 5, 4)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), layer(x), rtol=1e-5, atol=1e-5)


def test_copies_and_state() -> None:
    layer = build(16, 16, 3, paths=3)
    x = torch.randn(2, 16, 4, 4)
    fresh = SlimConv(16, 16, 3, paths=3).eval()
    fresh.load_state_dict(layer.state_dict())
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))


def test_it_starts_as_its_selection_and_the_same_seed_gives_the_same() -> None:
    selections = [[1, 3], [0, 2]]
    layers = [SlimConv(8, 8, 3, paths=3, selections=selections) for _ in range(2)]
    assert not torch.equal(layers[0].top.weight, layers[1].top.weight)
    for layer in layers:
        layer.reset_parameters(torch.Generator().manual_seed(3))
        for path, selection in zip((layer.bottom, layer.third), selections, strict=True):
            assert torch.equal(path.reduce.weight[:, :, 0, 0], torch.eye(4)[selection])
    assert all(torch.equal(a, b) for a, b in zip(layers[0].parameters(), layers[1].parameters(), strict=True))


def test_builds_and_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        layer = SlimConv(16, 32, 3, padding="same", selections=[range(4)])
    layer.reset_parameters(torch.Generator().manual_seed(0))
    assert layer(torch.empty(2, 16, 5, 5, device="meta")).shape == (2, 24, 5, 5)


def test_its_own_cost_is_counted() -> None:
    """The paper's Equation 4, and the attention with its norms."""
    inputs, outputs, n = 64, 128, 3
    counts = count(SlimConv(inputs, outputs, n, padding=1), (inputs, 8, 8))
    transform = (5 * n * n * inputs * outputs + 2 * inputs * inputs) // 16
    attention, norms = 2 * 2 * inputs + inputs, 2 * 2 + 2 * inputs // 4
    assert counts.params == transform + attention + norms
    assert counts.macs == 64 * transform + 2 * 2 * inputs


def test_an_attention_that_is_given_holds_for_every_image_at_first_and_learns() -> None:
    given = torch.linspace(0.1, 0.9, 16)
    layer = SlimConv(16, 16, 3, padding=1, attention=given.tolist())
    x = torch.randn(3, 16, 5, 5)
    assert torch.allclose(layer.channel_weights(x).flatten(1), given.expand(3, -1), atol=1e-6)
    folded = (given.reshape(2, 8, 1, 1) * x.unflatten(1, (2, 8))).sum(1)
    assert torch.allclose(layer(x)[:, :8], layer.top(folded), atol=1e-5)
    layer(x).square().sum().backward()
    assert layer.excite.weight.grad.abs().sum() > 0


def test_repr_says_what_it_is() -> None:
    assert repr(SlimConv(16, 16, 3)).startswith("SlimConv(\n  16 -> 12, folds=2\n")
    assert "16 -> 6, folds=4, weights=plain" in repr(SlimConv(16, 16, 3, folds=4, weights="plain"))


@pytest.mark.parametrize(
    ("args", "options", "named"),
    [
        ((7, 8, 3), {}, "in_channels"),
        ((8, 2, 3), {}, "conv_channels"),
        ((0, 8, 3), {}, "in_channels"),
        ((16, 16, 3), {"folds": 3}, "in_channels"),
        ((8, 8, 3), {"folds": 1}, "folds"),
        ((8, 8, 3), {"groups": 3}, "groups"),
        ((8, 8, 3), {"floor": 0}, "floor"),
        ((8, 8, 3), {"weights": "reversed"}, "reversed"),
        ((8, 8, 3), {"paths": 4}, "paths"),
        ((8, 8, 3), {"selections": [[0]]}, "selections"),
        ((8, 8, 3), {"selections": [[0, 4]]}, "selections"),
        ((8, 8, 3), {"paths": 3, "selections": [[0, 1]]}, "selections"),
        ((8, 8, 3), {"attention": [0.5] * 7}, "attention"),
        ((8, 8, 3), {"attention": [0.5] * 7 + [1.0]}, "attention"),
    ],
)
def test_refusals_teach(args: tuple[int, int, int], options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        SlimConv(*args, **options)
    assert named in caught.value.what
    assert all(caught.value.parts().values())
