"""The MoD layers against loops written from the paper's equations, and what a network's user expects of any layer."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chansurg.recipes.mod.layer import ChannelSelector, Fusion, _largest
from chansurg.surgery.counting import count
from chansurg.surgery.errors import InputError

_spec = importlib.util.spec_from_file_location("mod_reference", Path(__file__).with_name("reference.py"))
assert _spec is not None
assert _spec.loader is not None
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)


class Block(nn.Module):
    """A selector, an elementwise block that tells its channels apart, and a fusion."""

    def __init__(self, channels: int, k: int, *, fuse: str = "first", inplace: bool = False, channel_dim: int = 1, **options: Any) -> None:
        super().__init__()
        self.selector = ChannelSelector(channels, k, positions=fuse == "original", channel_dim=channel_dim, **options)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, k))
        self.fusion = Fusion(fuse, inplace=inplace, channel_dim=channel_dim)
        self.channel_dim = channel_dim

    def forward(self, x: Tensor) -> Tensor:
        selected, note = self.selector(x)
        gain = self.gain if self.channel_dim == -1 else self.gain.view(-1, *(1,) * (x.ndim - 2))
        return self.fusion(x, torch.tanh(selected) * gain, note)


def build(*args: Any, seed: int = 0, **options: Any) -> Block:
    block = Block(*args, **options)
    block.selector.reset_parameters(torch.Generator().manual_seed(seed))
    return block.eval()


def random_case(seed: int) -> tuple[Block, Tensor]:
    rng = random.Random(seed)
    channels = rng.randint(1, 48)
    block = build(
        channels,
        rng.choice([1, channels, rng.randint(1, channels)]),
        seed=seed,
        fuse=rng.choice(["first", "first", "last", "original"]),
        inplace=rng.random() < 0.5,
        rectified=rng.random() < 0.5,
        channel_dim=rng.choice([1, -1]),
    ).double()
    shape = (rng.randint(1, 3), channels, *[rng.randint(1, 5) for _ in range(rng.randint(0, 3))])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return block, x.relu() if block.selector.rectified else x


@pytest.mark.parametrize("seed", range(200))
def test_agrees_with_the_equations(seed: int) -> None:
    block, x = random_case(seed)
    numbers = [t.detach().numpy() for t in (x, block.selector.fc1.weight, block.selector.fc2.weight)]
    s = reference.scores(*numbers)
    picked = reference.largest(s, block.selector.out_channels)
    gain = block.gain.detach().numpy()
    y = reference.block(
        numbers[0], s, picked, lambda chosen: np.tanh(chosen) * gain.reshape(-1, *(1,) * (chosen.ndim - 1)), block.fusion.fuse
    )
    ours = x.movedim(1, -1).contiguous() if block.channel_dim == -1 else x.clone()
    assert block.selector.choose(ours)[0].tolist() == picked
    with torch.set_grad_enabled(seed % 3 == 0):
        result = block(ours)
    result = result.movedim(-1, 1) if block.channel_dim == -1 else result
    np.testing.assert_allclose(result.detach().numpy(), y, rtol=0, atol=1e-12)


def test_the_random_cases_differ_in_what_they_pick() -> None:
    found = [block.selector.choose(x if block.channel_dim == 1 else x.movedim(1, -1))[0] for block, x in map(random_case, range(60))]
    assert sum(1 for chosen in found if len(chosen) > 1 and not (chosen == chosen[0]).all()) > 5
    assert sum(1 for chosen in found if not torch.equal(chosen, chosen.sort(1).values)) > 20


def test_ties_go_to_the_lowest_channel_whoever_runs_it() -> None:
    torch.compiler.reset()
    block = build(40, 12)
    with torch.no_grad():
        block.selector.fc2.weight[1::2] = block.selector.fc2.weight[0::2]  # neighbours in pairs
        block.selector.fc2.weight[20:30] = block.selector.fc2.weight[3]
    compiled = torch.compile(block.selector.choose, fullgraph=True)
    for x in (torch.rand(3, 40, 4, 4), torch.zeros(3, 40, 4, 4), torch.full((3, 40, 4, 4), 1e4)):
        s = block.selector.scores(x).detach().double().numpy()
        assert all(len(np.unique(row)) <= 16 for row in s)
        assert block.selector.choose(x)[0].tolist() == reference.largest(s, 12)
        assert compiled(x)[0].tolist() == reference.largest(s, 12)


def test_scores_a_single_step_apart_are_no_tie() -> None:
    steps = torch.tensor([0.0, 1e-45, 1e-40, 1e-38, 1e-20, 0.25, 0.5, 1 - 2**-24])
    scores = torch.cat([steps, torch.nextafter(steps, torch.tensor(2.0)), torch.zeros(2**16 - 32), steps, torch.zeros(8)])[None]
    assert torch.equal(_largest(scores, 2**16 - 1), scores.argsort(dim=1, descending=True, stable=True)[:, :-1])
    assert torch.equal(_largest(scores, 40), _largest(scores.double(), 40))


class Picks(nn.Module):
    """A selector's choice as an output."""

    def __init__(self, selector: ChannelSelector) -> None:
        super().__init__()
        self.selector = selector

    def forward(self, x: Tensor) -> Tensor:
        return self.selector.choose(x)[0]


@pytest.mark.parametrize("fuse", ["first", "original"])
def test_onnx_runtime_picks_the_same_channels_and_computes_the_same(fuse: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    block = build(40, 12, fuse=fuse)
    with torch.no_grad():
        block.selector.fc2.weight[1::2] = block.selector.fc2.weight[0::2]
    inputs = [torch.rand(2, 40, 4, 4), torch.zeros(5, 40, 4, 4), torch.rand(1, 40, 4, 4)]
    for module, same in ((Picks(block.selector), torch.equal), (block, torch.allclose)):
        program = torch.onnx.export(
            module.eval(), (inputs[0],), dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, verbose=False
        )
        buffer = io.BytesIO()
        program.save(buffer)
        session = runtime.InferenceSession(buffer.getvalue())
        for x in inputs:
            (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            assert same(torch.from_numpy(found), module(x))


@pytest.mark.parametrize("fuse", ["first", "last", "original"])
def test_gradients(fuse: str) -> None:
    block = build(20, 6, fuse=fuse).double()
    x = torch.rand(2, 20, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = dict(block.named_parameters())

    def call(x: Tensor, *numbers: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(weights, numbers, strict=True)), (x,))

    inputs = (x.requires_grad_(), *(p.detach().requires_grad_() for p in weights.values()))
    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("fuse", ["first", "last", "original"])
def test_in_place_gives_the_same_and_copies_nothing_and_training_leaves_its_input_alone(fuse: str) -> None:
    copying, writing = build(20, 6, fuse=fuse), build(20, 6, fuse=fuse, inplace=True)
    writing.load_state_dict(copying.state_dict())
    x = torch.rand(2, 20, 4, 4)
    kept = x.clone()
    expected = copying(x)
    assert torch.equal(x, kept)
    with torch.no_grad():
        assert torch.equal(writing.train()(x), expected)
    assert torch.equal(writing.eval()(x), expected)
    assert torch.equal(writing(x.requires_grad_()), expected)
    with torch.no_grad():
        assert torch.equal(writing(x), expected)  # a recomputed segment runs without gradients on what it still needs
    assert torch.equal(x, kept)
    x = kept.clone()
    with torch.inference_mode():
        y = writing(x)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(y, expected)


def test_random_draws_for_every_image_in_training_and_keeps_to_one_choice_in_eval_mode() -> None:
    selector = ChannelSelector(32, 5, select="random")
    x = torch.rand(16, 32, 3, 3)
    assert not list(selector.parameters())
    drawn = selector.train().choose(x)[0]
    assert all(len(set(row)) == 5 for row in drawn.tolist())
    assert not (drawn == drawn[0]).all()
    assert not torch.equal(selector.choose(x)[0], drawn)
    fixed, scores = selector.eval().choose(x)
    assert fixed.tolist() == [selector.fixed.tolist()] * 16
    assert (scores == 1).all()
    for other in (ChannelSelector(32, 5, select="random"), copy.deepcopy(selector)):
        other.load_state_dict(selector.state_dict())
        assert torch.equal(other.eval().choose(x)[0], fixed)
    first, second, third = (selector.reset_parameters(torch.Generator().manual_seed(seed)) or selector.fixed.clone() for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_behind_a_relu_the_selector_is_never_born_dead() -> None:
    x = torch.rand(64, 16, 2, 2) * torch.rand(64, 16, 1, 1).round()
    alike = {}
    for rectified in (True, False):
        same = []
        for seed in range(20):
            selector = build(16, 1, rectified=rectified, seed=seed).selector
            same.append(float((selector.scores(x).std(1) == 0).float().mean()))
        alike[rectified] = max(same)
    assert alike[True] < 0.01
    assert alike[False] > 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fuse", ["first", "original"])
def test_half_precision_scores_and_counts_in_single(dtype: torch.dtype, fuse: str) -> None:
    block = build(600, 40, fuse=fuse).to(dtype)
    x = torch.rand(2, 600, 40, 40).to(dtype)
    y = block(x)
    assert y.dtype == dtype
    chosen, scores = block.selector.choose(x)
    assert scores.dtype == torch.float32
    assert chosen.max() > 512  # past what bfloat16 counts to
    assert chosen.tolist() == copy.deepcopy(block).float().selector.choose(x.float())[0].tolist()
    torch.testing.assert_close(y.float(), copy.deepcopy(block).float()(x.float()), rtol=0.02, atol=0.02)


def test_autocast_picks_as_without_it() -> None:
    block = build(64, 8)
    x = torch.rand(2, 64, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(block.selector.choose(x)[0], build(64, 8).selector.choose(x)[0])
        assert block(x).dtype == torch.float32
        assert block(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("fuse", ["first", "last", "original"])
def test_memory_format_is_kept(fuse: str) -> None:
    for inplace in (False, True):
        block = build(20, 6, fuse=fuse, inplace=inplace)
        x = torch.rand(2, 20, 4, 5)
        last = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            selected, y, y_last = block.selector(last)[0], block(x.clone()), block(last.clone())
        torch.testing.assert_close(y, y_last, rtol=0, atol=1e-6)
        assert y.is_contiguous()
        assert selected.is_contiguous(memory_format=torch.channels_last)
        assert y_last.is_contiguous(memory_format=torch.channels_last)


def test_images_of_a_batch_do_not_meet() -> None:
    block = build(20, 6)
    x = torch.randn(5, 20, 4, 4)
    torch.testing.assert_close(block(x), torch.cat([block(image[None]) for image in x]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 13, 4, 4), (1, 13, 1, 1), (1, 13), (3, 13, 7), (7, 13, 2, 3, 2)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    assert build(13, 4)(torch.randn(shape)).shape == shape


@pytest.mark.parametrize(
    "options", [{}, {"fuse": "original"}, {"select": "random"}, {"channel_dim": -1}, {"fuse": "last", "inplace": True}]
)
def test_compiles_and_exports_whole(options: dict[str, Any]) -> None:
    torch.compiler.reset()
    block = build(20, 6, **options)
    small, large = torch.rand(2, 20, 5, 4), torch.rand(7, 20, 5, 4)
    if block.channel_dim == -1:
        small, large = small.movedim(1, -1).contiguous(), large.movedim(1, -1).contiguous()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(small.clone()), block(small.clone()), rtol=0, atol=1e-6)
            for dynamic in ({0: torch.export.Dim("batch")}, {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}):
                exported = torch.export.export(block, (small.clone(),), dynamic_shapes=(dynamic,)).module()
                torch.testing.assert_close(exported(large.clone()), block(large.clone()), rtol=0, atol=1e-6)


def test_copies_and_state() -> None:
    block = build(20, 6, rectified=True)
    x = torch.rand(2, 20, 3, 3)
    fresh = build(20, 6, rectified=True, seed=1)
    assert not torch.equal(fresh(x), block(x))
    fresh.load_state_dict(block.state_dict())
    assert set(block.selector.state_dict()) == {"fc1.weight", "fc2.weight"}
    assert not block.fusion.state_dict()
    for other in (fresh, copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(other(x), block(x))


@pytest.mark.parametrize("select", ["topk", "random"])
def test_builds_and_runs_on_the_meta_device(select: str) -> None:
    with torch.device("meta"):
        layer = ChannelSelector(20, 6, select=select)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    selected, note = layer(torch.empty(2, 20, 5, 5, device="meta"))
    assert (selected.shape, note.shape) == ((2, 6, 5, 5), (2, 6))
    assert all(tensor.is_meta for tensor in layer.state_dict().values())


def test_repr_says_what_it_is() -> None:
    assert repr(ChannelSelector(256, 4, rectified=True)).startswith("ChannelSelector(\n  256 -> 4, rectified")
    assert repr(ChannelSelector(8, 3, select="random", channel_dim=-1)) == "ChannelSelector(8 -> 3, select=random, channel_dim=-1)"
    assert repr(Fusion("last", inplace=True)) == "Fusion(last, inplace)"


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ChannelSelector(4, 5), "5 of 4"),
        (lambda: ChannelSelector(4, 0), "0 of 4"),
        (lambda: ChannelSelector(4, 2, select="best"), "best"),
        (lambda: ChannelSelector(4, 2, channel_dim=2), "channel_dim"),
        (lambda: Fusion("middle"), "middle"),
        (lambda: Fusion(channel_dim=0), "channel_dim"),
    ],
)
def test_refusals_teach(make: Any, named: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert named in caught.value.what
    assert all(caught.value.parts().values())


def test_a_ranking_holds_for_usual_images_and_can_be_unlearnt() -> None:
    averages = torch.rand(32, generator=torch.Generator().manual_seed(0))
    for rectified in (False, True):
        layer = ChannelSelector(32, 3, ranking=[7, 30, 2], averages=averages.tolist(), rectified=rectified)
        x = averages.reshape(1, 32, 1, 1) * (1 + 0.3 * torch.rand(6, 32, 4, 4))
        chosen, scores = layer.choose(x)
        assert chosen.tolist() == [[7, 30, 2]] * 6
        assert scores.min() > 0.9
        layer.scores(x).sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())
    with torch.device("meta"):
        empty = ChannelSelector(32, 3, ranking=[7, 30, 2], averages=averages.tolist())
    empty.to_empty(device="cpu").load_state_dict(layer.state_dict())
    assert torch.equal(empty.scores(x), layer.scores(x))


@pytest.mark.parametrize(
    ("ranking", "averages"),
    [([0], [1.0] * 8), ([0, 0], [1.0] * 8), ([0, 8], [1.0] * 8), ([0, 1], [1.0] * 7), ([0, 1], [0.0] * 8), ([0, 1], None), (None, [1.0])],
)
def test_a_ranking_that_is_none_is_refused(ranking: list[int] | None, averages: list[float] | None) -> None:
    with pytest.raises(InputError, match="the ranking is not 2 of 8 channels"):
        ChannelSelector(8, 2, ranking=ranking, averages=averages)


def test_its_own_cost_is_counted() -> None:
    counts = count(ChannelSelector(32, 4), (32, 5, 7))
    average, layers = 32 * 5 * 7, 32 * 2 + 2 * 32
    assert (counts.params, counts.macs) == (layers, layers)
    assert counts.ops >= layers + average
