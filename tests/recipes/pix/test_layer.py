"""The PiX layer against loops written from the paper's equations, and what a network's user expects of any layer."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chansurg.recipes.pix.layer import PickOrMix
from chansurg.recipes.pix.partition import partition
from chansurg.surgery.counting import count
from chansurg.surgery.editing.narrowing import narrow
from chansurg.surgery.errors import InputError, Refusal

_spec = importlib.util.spec_from_file_location("pix_reference", Path(__file__).with_name("reference.py"))
assert _spec is not None
assert _spec.loader is not None
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

# (in, out, zeta): divisible, short last run, sizes differing by one, one channel a subset, one subset
SIZES = [(12, 3, 4), (13, 4, 4), (13, 4, None), (5, 5, 1), (6, 1, None)]


def build(*args: object, seed: int = 0, **options: object) -> PickOrMix:
    """A layer whose probabilities lie well away from one another, on both sides of the threshold."""
    layer = PickOrMix(*args, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    layer.reset_parameters(generator)
    nn.init.normal_(layer.beta, generator=generator)
    return layer.eval()


def expected(layer: PickOrMix, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    numbers = [t.detach().double().numpy() for t in (x, layer.theta, layer.beta)]
    members = reference.subsets_of(layer.in_channels, layer.out_channels, layer.zeta, layer.subsets)
    return reference.pick_or_mix(*numbers, members, layer.tau, layer.operator)


def random_case(seed: int) -> tuple[PickOrMix, Tensor]:
    rng = random.Random(seed)
    channels = rng.randint(1, 24)
    zeta = rng.choice([None, rng.randint(1, channels + 1)])
    layer = build(
        channels,
        -(-channels // zeta) if zeta else rng.randint(1, channels),
        seed=seed,
        zeta=zeta,
        operator=rng.choice(["pick-or-mix", "pick-or-mix", "pick", "mix", "min"]),
        tau=rng.random(),
        subsets=rng.choice(["contiguous", "strided"]),
        channel_dim=rng.choice([1, -1]),
    )
    shape = (rng.randint(1, 3), channels, *[rng.randint(1, 5) for _ in range(rng.randint(0, 3))])
    return layer, torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(200))
def test_agrees_with_the_equations(seed: int) -> None:
    layer, x = random_case(seed)
    y, p = expected(layer, x)
    # On the threshold itself float32 and float64 may rightly take different sides; no seed here comes near it.
    assert np.abs(p - layer.tau).min() > 1e-6
    ours = layer(x.movedim(1, -1)).movedim(-1, 1) if layer.channel_dim == -1 else layer(x)
    np.testing.assert_allclose(ours.detach().numpy(), y, rtol=0, atol=1e-6)


def test_the_random_cases_take_both_branches() -> None:
    below = [(p <= layer.tau).mean() for layer, x in map(random_case, range(40)) for p in [expected(layer, x)[1]]]
    assert min(below) == 0
    assert max(below) == 1
    assert any(0 < share < 1 for share in below)


@pytest.mark.parametrize("subsets", ["contiguous", "strided"])
@pytest.mark.parametrize(("channels", "outputs", "zeta"), SIZES)
def test_partition_is_a_partition(channels: int, outputs: int, zeta: int | None, subsets: str) -> None:
    parts = partition(channels, outputs, zeta, subsets)
    assert sorted(channel for part in parts for channel in part) == list(range(channels))
    assert parts == reference.subsets_of(channels, outputs, zeta, subsets)
    assert parts == PickOrMix(channels, outputs, zeta=zeta, subsets=subsets).subset_indices()


def test_partition_by_example() -> None:
    assert partition(10, 3, 4, "contiguous") == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert partition(10, 3, None, "contiguous") == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert partition(10, 3, None, "strided") == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


@pytest.mark.parametrize("operator", ["pick-or-mix", "pick", "mix", "min"])
@pytest.mark.parametrize("subsets", ["contiguous", "strided"])
def test_gradients(operator: str, subsets: str) -> None:
    for sizes in ((7, 3, 3), (6, 2, None)):
        layer = build(*sizes[:2], zeta=sizes[2], operator=operator, subsets=subsets).double()
        x = torch.randn(2, sizes[0], 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

        def call(x: Tensor, theta: Tensor, beta: Tensor, layer: PickOrMix = layer) -> Tensor:
            return torch.func.functional_call(layer, {"theta": theta, "beta": beta}, (x,))

        inputs = (x.requires_grad_(), layer.theta.detach().requires_grad_(), layer.beta.detach().requires_grad_())
        assert torch.autograd.gradcheck(call, inputs)


def test_gradients_reach_every_parameter() -> None:
    layer = build(12, 3, zeta=4)
    layer(torch.randn(2, 12, 5, 5)).square().sum().backward()
    assert layer.theta.grad is not None
    assert layer.beta.grad is not None
    assert layer.theta.grad.abs().min() > 0
    assert layer.beta.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("subsets", ["contiguous", "strided"])
def test_half_precision(dtype: torch.dtype, subsets: str) -> None:
    layer = build(13, 4, zeta=4, subsets=subsets).to(dtype)
    x = (100 * torch.rand(2, 13, 40, 40)).to(dtype)
    ours = layer(x)
    y, p = expected(layer, x)
    assert np.abs(p - layer.tau).min() > 0.01
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.detach().double().numpy(), y, rtol=4 * torch.finfo(dtype).eps, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_the_type_of_its_input(dtype: torch.dtype) -> None:
    layer = build(12, 3, zeta=4)
    x = torch.rand(2, 12, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), layer(x), rtol=0.03, atol=0.01)


@pytest.mark.parametrize("subsets", ["contiguous", "strided"])
@pytest.mark.parametrize(("channels", "outputs", "zeta"), SIZES)
def test_memory_format_is_kept(channels: int, outputs: int, zeta: int | None, subsets: str) -> None:
    layer = build(channels, outputs, zeta=zeta, subsets=subsets)
    x = torch.randn(2, channels, 4, 5)
    y, y_last = layer(x), layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, y_last, rtol=0, atol=1e-6)
    assert y.is_contiguous()
    assert y_last.is_contiguous(memory_format=torch.channels_last)
    volume = torch.randn(2, channels, 2, 4, 5).contiguous(memory_format=torch.channels_last_3d)
    assert layer(volume).is_contiguous(memory_format=torch.channels_last_3d)


def test_images_of_a_batch_do_not_meet() -> None:
    layer = build(13, 4, zeta=4)
    x = torch.randn(5, 13, 4, 4)
    torch.testing.assert_close(layer(x), torch.cat([layer(image[None]) for image in x]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 13, 4, 4), (1, 13, 1, 1), (1, 13), (3, 13, 7)])
@pytest.mark.parametrize("subsets", ["contiguous", "strided"])
def test_odd_shapes(shape: tuple[int, ...], subsets: str) -> None:
    x = torch.randn(shape)
    assert build(13, 4, zeta=4, subsets=subsets)(x).shape == (shape[0], 4, *shape[2:])


def test_one_channel_a_subset_is_a_gate() -> None:
    layer = build(6, 6, zeta=1)
    x = torch.rand(2, 6, 3, 3)
    gate = torch.sigmoid(nn.functional.linear(x.mean((2, 3)), layer.theta, layer.beta))
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])


@pytest.mark.parametrize(("subsets", "channel_dim"), [("contiguous", 1), ("strided", 1), ("contiguous", -1)])
def test_compiles_and_exports_whole(subsets: str, channel_dim: int) -> None:
    torch.compiler.reset()
    layer = build(13, 4, zeta=4, subsets=subsets, channel_dim=channel_dim)
    small, large = torch.randn(2, 13, 5, 4), torch.randn(7, 13, 5, 4)
    if channel_dim == -1:
        small, large = small.movedim(1, -1).contiguous(), large.movedim(1, -1).contiguous()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(small), layer(small), rtol=0, atol=1e-6)
    for dynamic in ({0: torch.export.Dim("batch")}, dict.fromkeys(range(4), torch.export.Dim.AUTO)):
        exported = torch.export.export(layer, (small,), dynamic_shapes=(dynamic,)).module()
        torch.testing.assert_close(exported(large), layer(large), rtol=0, atol=1e-6)


def test_is_one_call_in_a_trace() -> None:
    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, PickOrMix)

    network = nn.Sequential(nn.Conv2d(3, 8, 1), build(8, 2, zeta=4))
    traced = torch.fx.GraphModule(network, Leaves().trace(network))
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(traced(x), network(x))


def test_copies_and_state() -> None:
    layer = build(12, 3, zeta=4, operator="min", tau=0.3)
    x = torch.randn(2, 12, 3, 3)
    fresh = PickOrMix(12, 3, zeta=4, operator="min", tau=0.3)
    assert not torch.equal(fresh(x), layer(x))
    fresh.load_state_dict(layer.state_dict())
    assert set(layer.state_dict()) == {"theta", "beta"}
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))


def test_initialisation_is_reproducible_and_xavier() -> None:
    first, second = PickOrMix(256, 64), PickOrMix(256, 64)
    assert not torch.equal(first.theta, second.theta)
    for layer in (first, second):
        layer.reset_parameters(torch.Generator().manual_seed(7))
    assert torch.equal(first.theta, second.theta)
    assert first.beta.count_nonzero() == 0
    bound = (6 / (256 + 64)) ** 0.5
    assert 0.95 * bound < first.theta.abs().max() <= bound


def test_builds_and_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        layer = PickOrMix(12, 3, zeta=4)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    assert layer.theta.is_meta
    assert layer(torch.empty(2, 12, 5, 5, device="meta")).shape == (2, 3, 5, 5)


def test_repr_says_what_it_is() -> None:
    assert repr(PickOrMix(256, 64, zeta=4)) == "PickOrMix(256 -> 64, zeta=4, tau=0.5, contiguous)"
    assert "mix, strided, channel_dim=-1" in repr(PickOrMix(8, 3, operator="mix", subsets="strided", channel_dim=-1))


@pytest.mark.parametrize(
    ("args", "options", "named"),
    [
        ((0, 1), {}, "in_channels"),
        ((4, 0), {}, "out_channels"),
        ((4, 5), {}, "adds channels"),
        ((12, 4), {"zeta": 4}, "make 3 outputs"),
        ((12, 3), {"zeta": 0}, "zeta"),
        ((12, 3), {"zeta": 4.0}, "zeta"),
        ((12, 3), {"operator": "max"}, "operator"),
        ((12, 3), {"tau": 1.5}, "tau"),
        ((12, 3), {"tau": float("nan")}, "tau"),
        ((12, 3), {"subsets": "random"}, "random"),
        ((12, 3), {"channel_dim": 2}, "channel_dim"),
    ],
)
def test_refusals_teach(args: tuple[int, int], options: dict[str, object], named: str) -> None:
    with pytest.raises(InputError) as caught:
        PickOrMix(*args, **options)  # type: ignore[arg-type]
    assert named in caught.value.what
    assert all(caught.value.parts().values())


def test_its_own_cost_is_counted() -> None:
    counts = count(PickOrMix(12, 3, zeta=4), (12, 5, 7))
    average, predictor = 12 * 5 * 7, 12 * 3
    assert (counts.macs, counts.ops, counts.memory_access) == (predictor, predictor + 3 + average, predictor + 3)
    assert {"aten.amax", "aten.where"} <= set(counts.uncounted)


def test_code_around_a_linear_layer_reads_its_widths() -> None:
    layer = PickOrMix(6, 3)
    assert (layer.in_features, layer.out_features) == (6, 3)
    with pytest.raises(AttributeError):
        layer.in_features = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "kept_in", "kept_out", "zeta"),
    [
        ({"zeta": 4}, (0, 2, 3, 5, 6, 7, 9, 11), (2, 0), 4),
        ({"zeta": 4}, (0, 2, 3, 5, 6, 7), (2, 0), 4),
        ({"zeta": 4}, (0, 2, 3), (1, 2), None),
        ({}, None, (1,), None),
        ({"subsets": "strided"}, (3, 1, 0, 8, 4), None, None),
        ({"operator": "mix", "zeta": 4}, None, (0, 1), None),
    ],
)
def test_a_narrowed_layer_is_the_small_layer_with_the_kept_weights(
    arguments: dict[str, object], kept_in: tuple[int, ...] | None, kept_out: tuple[int, ...] | None, zeta: int | None
) -> None:
    layer = build(12, 3, **arguments)
    theta, beta = layer.theta.detach().clone(), layer.beta.detach().clone()
    narrow(layer, "pix", kept_in, kept_out)
    small = build(layer.in_channels, layer.out_channels, **{**arguments, "zeta": zeta})
    assert str(layer) == str(small)
    rows, columns = list(kept_out or range(3)), list(kept_in or range(12))
    assert torch.equal(layer.theta, theta[rows][:, columns])
    assert torch.equal(layer.beta, beta[rows])
    small.load_state_dict(layer.state_dict())
    x = torch.randn(2, len(columns), 5, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(layer(x), small(x))
    np.testing.assert_allclose(layer(x).detach().numpy(), expected(layer, x)[0], rtol=1e-4, atol=1e-5)
    layer(x).sum().backward()
    assert layer.theta.grad is not None


@pytest.mark.parametrize(
    ("kept_in", "kept_out", "reason"),
    [
        ((0, 1), None, "3 outputs would be left for 2 inputs"),
        ((0, 12), (0,), "12 input channels, and channel 12 was named"),
        (None, (3,), "3 output channels, and channel 3 was named"),
        ((), (0,), "no input channel would be left"),
        ((0, 0, 1), (0,), "one input channel was named twice"),
    ],
)
def test_a_layer_that_cannot_become_that_small_says_why_and_stays(
    kept_in: tuple[int, ...] | None, kept_out: tuple[int, ...] | None, reason: str
) -> None:
    layer = build(12, 3, zeta=4)
    with pytest.raises(Refusal, match=reason):
        narrow(layer, "pix", kept_in, kept_out)
    assert tuple(layer.theta.shape) == (3, 12)


NAMED = [[5, 0], [2, 6], [1, 3], [4]]


@pytest.mark.parametrize("operator", ["pick-or-mix", "pick", "mix", "min"])
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_named_subsets_are_contiguous_ones_of_channels_in_another_order(operator: str, channel_dim: int) -> None:
    torch.manual_seed(0)
    named = PickOrMix(7, 4, zeta=2, operator=operator, subsets=NAMED, channel_dim=channel_dim)
    plain = PickOrMix(7, 4, zeta=2, operator=operator, channel_dim=channel_dim)
    order = [channel for subset in NAMED for channel in subset]
    assert named.order.tolist() == order
    assert named.subset_indices() == NAMED
    with torch.no_grad():
        plain.theta.copy_(named.theta[:, order])
    x = torch.randn(3, 7, 5, 4) if channel_dim == 1 else torch.randn(3, 5, 4, 7)
    assert torch.allclose(named(x), plain(x.index_select(channel_dim, torch.tensor(order))), atol=1e-6)
    if channel_dim == 1:
        last = named(x.to(memory_format=torch.channels_last))
        assert torch.allclose(last, named(x), atol=1e-6)
        assert last.is_contiguous(memory_format=torch.channels_last)


def test_named_subsets_export_compile_and_build_without_numbers() -> None:
    named = PickOrMix(7, 4, zeta=2, subsets=NAMED).eval()
    x = torch.randn(2, 7, 5, 5)
    exported = torch.export.export(named, (x,)).module()
    assert torch.allclose(exported(x), named(x))
    assert torch.allclose(torch.compile(named, backend="eager", fullgraph=True)(x), named(x))
    with torch.device("meta"):
        empty = PickOrMix(7, 4, zeta=2, subsets=NAMED)
    assert empty(x.to("meta")).shape == (2, 4, 5, 5)
    empty.to_empty(device="cpu").load_state_dict(named.state_dict())
    assert torch.equal(empty(x), named(x))


def test_a_constant_start_mixes_every_subset_alike_and_learns() -> None:
    layer = PickOrMix(6, 3, zeta=2, constant=0.75)
    x = torch.randn(4, 6, 3, 3)
    assert torch.allclose(layer(x), 0.75 * x.unflatten(1, (3, 2)).mean(2), atol=1e-6)
    layer(x).square().sum().backward()
    assert layer.theta.grad.abs().min() > 0


def test_a_narrowed_layer_with_named_subsets_keeps_neighbours_together() -> None:
    layer = PickOrMix(7, 4, zeta=2, subsets=NAMED)
    layer.narrow([0, 1, 2, 5, 6], [0, 1, 3])
    assert layer.subsets == [[3, 0], [2, 4], [1]]
    assert layer.order.tolist() == [3, 0, 2, 4, 1]
    assert layer(torch.randn(2, 5, 4, 4)).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("subsets", [[[0, 1], [2]], [[0, 1], [1, 2]], [[0], [1, 2], [3]], [[0, 1], [2, 4]]])
def test_subsets_that_are_no_partition_are_refused(subsets: list[list[int]]) -> None:
    with pytest.raises(InputError, match="no partition"):
        PickOrMix(4, 2, zeta=2, subsets=subsets)
    with pytest.raises(InputError, match="p cannot be"):
        PickOrMix(4, 2, constant=1.0)
