"""What MoD makes of a network: which blocks, how narrow, with which weights, and how stages grow."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from networks.matrix import lively
from networks.running import outputs
from networks.small import Basic, small
from torch import Tensor, nn

import chansurg
from chansurg.recipes.mod.layer import Fusion
from chansurg.recipes.pix.layer import PickOrMix
from chansurg.surgery.edits import Narrow, Repeat, Route, Scale
from chansurg.surgery.recipe import find_recipe
from chansurg.surgery.statistics import measure
from chansurg.surgery.survey import Survey, survey

SIZE = (3, 32, 32)


class Network(nn.Module):
    """A stem, two stages, and a head; with ``taps`` the outputs of all blocks are put out too."""

    def __init__(self, depths: tuple[int, ...] = (3, 2), width: int = 16, taps: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.stages = nn.ModuleList(nn.Sequential(*(Basic(width) for _ in range(depth))) for depth in depths)
        self.head = nn.Linear(width, 5)
        self.taps = taps

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        seen = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
                seen.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.head(x.mean((2, 3)))
        return (x, *seen) if self.taps else x


def network(*args: Any, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return lively(Network(*args, **kwargs), torch.rand(4, *SIZE))


def plan(model: nn.Module, **options: Any) -> chansurg.Plan:
    return chansurg.plan(model, "mod", input_size=SIZE, **options)


def convert(model: nn.Module, **options: Any) -> nn.Module:
    return chansurg.convert(model, "mod", input_size=SIZE, **options)


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({}, ["stages.0.1", "stages.1.1"]),
        ({"blocks": "all"}, ["stages.0.1", "stages.0.2", "stages.1.1"]),
        ({"blocks": "3"}, ["stages.0.2"]),
        ({"blocks": "2,3", "stages": "2"}, ["stages.1.1"]),
    ],
)
def test_which_blocks(options: dict[str, Any], paths: list[str]) -> None:
    planned = plan(network(), **options)
    assert [site.path for site in planned.sites] == paths
    assert not planned.skipped
    assert [edit.closes.owner for edit in planned.edits if isinstance(edit, Route)] == paths


def test_a_block_keeps_its_layers_its_names_its_strongest_channels_and_those_it_is_added_to() -> None:
    model = network()
    block = model.stages[0][1]
    with torch.no_grad():
        block.conv1.weight[:, [3, 7]] *= 100
        block.conv1.weight[[1, 4]] *= 100
        block.conv2.weight[[5, 9]] *= 100
    new = convert(model, c=8)
    narrow = new.stages[0][1]
    assert torch.equal(narrow.conv1.weight, block.conv1.weight[[1, 4]][:, [3, 7]])
    assert torch.equal(narrow.conv2.weight, block.conv2.weight[[0, 1]][:, [1, 4]])
    assert torch.equal(convert(model, c=8, fuse="last").stages[0][1].conv2.weight, block.conv2.weight[[14, 15]][:, [1, 4]])
    assert torch.equal(convert(model, c=8, fuse="original").stages[0][1].conv2.weight, block.conv2.weight[[5, 9]][:, [1, 4]])
    for norm, kept in (("bn1", [1, 4]), ("bn2", [0, 1])):
        for name, tensor in getattr(block, norm).state_dict().items():
            assert torch.equal(getattr(narrow, norm).state_dict()[name], tensor[kept] if tensor.ndim else tensor)
    assert type(narrow).__qualname__ == "Basic"
    assert [name for name, _ in narrow.named_children()] == ["conv1_selector", "conv1", "bn1", "conv2", "bn2", "conv1_fusion"]
    assert chansurg.record_of(new).journal[-1].new == tuple(
        f"stages.{i}.1.conv1_selector.{fc}.weight" for i in (0, 1) for fc in ("fc1", "fc2")
    )


@pytest.mark.parametrize("fuse", ["first", "last", "original"])
def test_the_block_is_what_the_paper_says(fuse: str) -> None:
    model = network()
    new = convert(model, c=4, fuse=fuse)
    block = new.stages[0][1]
    seen: list[Tensor] = []
    new.stages[0][0].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    block.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    outputs(new, torch.rand(3, *SIZE))
    x, y = seen
    s = torch.sigmoid(torch.relu(x.mean((2, 3)) @ block.conv1_selector.fc1.weight.T) @ block.conv1_selector.fc2.weight.T)
    for image in range(3):
        picked = s[image].argsort(descending=True, stable=True)[:4]
        with torch.no_grad():
            inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x[image : image + 1, picked])))))[0]
        expected = x[image].clone()
        expected[{"first": torch.arange(4), "last": torch.arange(12, 16), "original": picked}[fuse]] += s[image, picked, None, None] * inner
        torch.testing.assert_close(y[image], expected.relu(), rtol=1e-5, atol=1e-5)


def test_k_is_never_less_than_one_and_c_of_one_keeps_everything() -> None:
    model = network()
    assert [site.detail["selected"] for site in plan(model, c=1000).sites] == [1, 1]
    assert [site.detail["selected"] for site in plan(model).sites] == [1, 1]  # c is the first block's 16
    whole = convert(model, c=1)
    assert not chansurg.record_of(whole).journal[-1].sliced
    assert not torch.equal(outputs(whole, torch.rand(2, *SIZE)), outputs(model, torch.rand(2, *SIZE)))


def test_random_selection_has_no_parameters() -> None:
    new = convert(network(), select="random")
    assert {name.rpartition(".")[2] for name in chansurg.record_of(new).journal[-1].new} == {"fixed"}
    x = torch.rand(2, *SIZE)
    assert torch.equal(outputs(new, x), outputs(new, x))
    assert not torch.equal(new.train()(x), new(x))


def test_what_is_read_elsewhere_is_not_overwritten() -> None:
    x = torch.rand(2, *SIZE)
    for taps in (False, True):
        model = network(taps=taps)
        planned = plan(model, blocks="all")
        assert {edit.fusion.arguments["inplace"] for edit in planned.edits if isinstance(edit, Route)} == {not taps}
        new = chansurg.apply(model, planned, input_size=SIZE)
        recorded = new(x)  # with gradients nothing is written in place
        with torch.no_grad():
            written = new(x)
        for one, other in zip(*(value if taps else (value,) for value in (recorded, written)), strict=True):
            assert torch.equal(one, other)


class Aliased(nn.Module):
    """A block whose input is read behind it through a view of its memory."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Basic(8), Basic(8))
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        first = self.blocks[0](x)
        entry, read = _ALIASES[self.reads](first)
        return self.blocks[1](entry).mean((2, 3)) + read.flatten(2).mean(2)


_ALIASES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "view": lambda x: (x, x.flatten(2)),
    "identity": lambda x: (x, x.contiguous()),
    "same dtype": lambda x: (x, x.type_as(x)),
    "same shape": lambda x: (x, x.view_as(x)),
    "part": lambda x: (x, x.narrow(1, 0, 8)),
    "in place": lambda x: (torch.relu_(x), x),
    "none": lambda x: (x, x.clone()),
}


@pytest.mark.parametrize("reads", list(_ALIASES))
def test_a_view_of_the_input_counts_as_its_reader(reads: str) -> None:
    torch.manual_seed(0)
    model = lively(Aliased(reads), torch.rand(4, *SIZE))
    new = convert(model)
    x = torch.rand(2, *SIZE)
    with torch.no_grad():
        written = new(x)
    assert torch.equal(written, new(x))
    if reads != "none":
        assert not new.blocks[1].conv1_fusion.inplace


def test_a_selector_starts_non_negative_behind_a_relu_only() -> None:
    new = convert(network())
    assert new.stages[0][1].conv1_selector.fc1.weight.min() >= 0
    planned = chansurg.plan(torchvision.models.mobilenet_v2(weights=None), "mod", input_size=SIZE)
    assert not any(edit.layer.arguments["rectified"] for edit in planned.edits if isinstance(edit, Route))


def test_a_stage_grows_by_copies_of_its_last_block() -> None:
    model = network()
    planned = plan(model, depths="5,2")
    assert [edit for edit in planned.edits if isinstance(edit, Repeat)] == [Repeat("stages.0.2", "3"), Repeat("stages.0.3", "4")]
    assert [site.path for site in planned.sites] == ["stages.0.1", "stages.0.3", "stages.1.1"]
    assert planned.sites[1].detail["copy_of"] == "stages.0.2"
    new = chansurg.apply(model, planned, input_size=SIZE)
    last = model.stages[0][2]
    assert torch.equal(new.stages[0][4].conv1.weight, last.conv1.weight)
    kept = next(edit for edit in planned.edits if isinstance(edit, Narrow) and edit.path == "stages.0.3.conv1")
    assert torch.equal(new.stages[0][3].conv1.weight, last.conv1.weight[list(kept.out_channels)][:, list(kept.in_channels)])
    entry = chansurg.record_of(new).journal[-1]
    assert entry.sources["stages.0.4.conv1.weight"] == "stages.0.2.conv1.weight"
    assert not [name for name in entry.new if "selector" not in name]


def test_blocks_that_start_as_identities_change_nothing_until_they_are_trained() -> None:
    model = network()
    grown, same = (convert(model, blocks="2", **options) for options in ({"depths": "6,2", "grow": "identity"}, {}))
    x = torch.rand(2, *SIZE)
    assert torch.equal(outputs(grown, x), outputs(same, x))
    narrow = convert(model, blocks="2,4", depths="6,2", grow="identity")
    assert torch.equal(outputs(narrow, x), outputs(same, x))
    assert {edit.path for edit in chansurg.record_of(grown).journal[-1].edits if isinstance(edit, Scale)} == {
        f"stages.0.{i}.bn2" for i in (3, 4, 5)
    }
    grown.train()(x).square().sum().backward()
    assert grown.stages[0][5].bn2.weight.grad.any()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"depths": "3"}, chansurg.InputError, "whose stages have 3, 2 blocks"),
        ({"depths": "2,2"}, chansurg.InputError, "whose stages have 3, 2 blocks"),
        ({"stages": "3"}, chansurg.InputError, "has no stage 3"),
        ({"blocks": "2,7"}, chansurg.InputError, "No stage has a block 7: the deepest has 3"),
        ({"blocks": "3", "stages": "2"}, chansurg.Refusal, "the options leave block 2 of stage 2 out"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        plan(network(), **options)


def test_a_stage_of_one_block_is_left_alone_and_grows() -> None:
    planned = plan(network(depths=(1, 2)))
    assert [(skip.path, skip.reason) for skip in planned.skipped] == [("stages.0.0", "it is the only block of its stage")]
    assert [site.path for site in plan(network(depths=(1, 2)), depths="2,2").sites] == ["stages.0.1", "stages.1.1"]


@pytest.mark.parametrize(
    ("name", "depths", "copies"),
    [
        ("mobilenet_v2", "2,3,5,3,4", ["features.10_2", "features.16_2"]),
        ("regnet_y_400mf", "1,3,7,6", ["trunk_output.block3.block3_6"]),
    ],
)
def test_copies_get_names_that_are_free(name: str, depths: str, copies: list[str]) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    planned = plan(model, depths=depths, grow="identity")
    assert [edit.copy for edit in planned.edits if isinstance(edit, Repeat)] == copies
    x = torch.rand(2, *SIZE)
    assert torch.equal(outputs(chansurg.apply(model, planned, input_size=SIZE), x), outputs(convert(model), x))


@pytest.mark.parametrize(
    ("name", "depths", "said"),
    [("vgg11_bn", "2,2,3", "a plain block is no module"), ("regnet_y_400mf", "2,3,6,6", "changes the width or the resolution")],
)
def test_a_stage_that_cannot_grow_says_why(name: str, depths: str, said: str) -> None:
    with pytest.raises(chansurg.Refusal, match=said):
        chansurg.plan(torchvision.models.get_model(name, weights=None), "mod", input_size=(3, 64, 64), depths=depths)


def test_a_second_conversion_takes_other_blocks_only() -> None:
    once = convert(network())
    with pytest.raises(chansurg.Refusal, match=r"it is a Mixture-of-Depths block already: stages\.0\.1\.conv1_fusion"):
        plan(once)
    assert [site.path for site in plan(once, blocks="all").sites] == ["stages.0.2"]


def test_copies_of_a_narrow_block_are_named_one_by_one() -> None:
    once = convert(network(), blocks="all")
    found = survey(once, SIZE)
    skipped = find_recipe("mod").plan(found, find_recipe("mod").options({"depths": "3,4"})).skipped
    already = [skip.path for skip in skipped if skip.reason == "it is a Mixture-of-Depths block already"]
    assert already[-3:] == [f"stages.1.{number}.conv1_fusion" for number in (1, 2, 3)]


def test_recipes_stack_in_both_orders(tmp_path: Any) -> None:
    torch.manual_seed(0)
    base = lively(small(), torch.rand(2, *SIZE))
    x = torch.rand(2, *SIZE)
    for recipes in (("mod", "pix"), ("pix", "mod")):
        model = base
        for recipe in recipes:
            model = chansurg.convert(model, recipe, input_size=SIZE)
        assert isinstance(model.blocks[1].conv1, PickOrMix)
        assert isinstance(model.blocks[1].conv1_fusion, Fusion)
        chansurg.save(model, tmp_path / "both.safetensors")
        loaded = chansurg.load(tmp_path / "both.safetensors", arch="networks.small:small")
        assert [entry.recipe for entry in chansurg.record_of(loaded).journal] == list(recipes)
        assert torch.equal(outputs(loaded, x), outputs(model, x))


def test_an_optimizer_step_keeps_a_copied_network_apart_from_its_original() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    new = convert(model, depths="4,2")
    optimizer = torch.optim.SGD(new.parameters(), 0.1)
    new.train()(torch.rand(2, *SIZE)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(new.stages[0][2].conv1.weight, new.stages[0][3].conv1.weight[:, :])


def with_statistics(model: nn.Module) -> Survey:
    found = survey(model, SIZE)
    found.statistics = measure(model, [torch.rand(32, *SIZE, generator=torch.Generator().manual_seed(0))])
    return found


@pytest.mark.parametrize("fuse", ["first", "last", "original"])
def test_with_data_the_selector_starts_with_the_channels_that_the_block_was_made_for(fuse: str) -> None:
    model, recipe = network(), find_recipe("mod")
    planned = recipe.plan(with_statistics(model), recipe.options({"c": 4, "fuse": fuse}))
    assert planned == recipe.plan(with_statistics(model), recipe.options({"c": 4, "fuse": fuse}))
    new = chansurg.apply(model, planned, input_size=SIZE)
    narrow, block = new.stages[0][1], model.stages[0][1]
    ranking = narrow.conv1_selector.ranking
    seen: list[Tensor] = []
    new.stages[0][0].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    outputs(new, torch.rand(5, *SIZE))
    chosen, scores = narrow.conv1_selector.choose(seen[0])
    assert chosen.tolist() == [ranking] * 5
    assert scores.min() > 0.5
    added = {"first": [0, 1, 2, 3], "last": [12, 13, 14, 15], "original": ranking}[fuse]
    inside = next(edit for edit in planned.edits if isinstance(edit, Narrow) and edit.path == "stages.0.1.bn1").out_channels
    assert torch.equal(narrow.conv1.weight, block.conv1.weight[list(inside)][:, ranking])
    assert torch.equal(narrow.conv2.weight, block.conv2.weight[added][:, list(inside)])


def test_channels_that_tell_much_are_ranked_first_and_those_nobody_reads_never() -> None:
    model, recipe = network(), find_recipe("mod")
    block = model.stages[0][1]
    with torch.no_grad():
        block.conv1.weight[:, 8:] = 0
        block.conv1.weight[:, 5] *= 30
        block.conv2.weight[:, :10] = 0
    planned = recipe.plan(with_statistics(model), recipe.options({"c": 4}))
    route = next(edit for edit in planned.edits if isinstance(edit, Route))
    assert route.layer.arguments["ranking"][0] == 5
    assert max(route.layer.arguments["ranking"]) < 8
    narrowed = {edit.path: edit for edit in planned.edits if isinstance(edit, Narrow)}
    assert min(narrowed["stages.0.1.conv1"].out_channels) >= 10


def test_a_block_that_keeps_every_channel_keeps_their_order_with_data() -> None:
    model, recipe = network(), find_recipe("mod")
    planned = recipe.plan(with_statistics(model), recipe.options({"c": 1}))
    assert not any(isinstance(edit, Narrow) for edit in planned.edits)
    new = chansurg.apply(model, planned, input_size=SIZE)
    x = torch.rand(4, *SIZE)
    apart = (outputs(new, x) - outputs(model, x)).norm() / outputs(model, x).norm()
    assert apart < 0.2


def test_copies_are_ranked_as_what_they_are_copies_of_and_random_selection_is_left_alone() -> None:
    model, recipe = network(), find_recipe("mod")
    planned = recipe.plan(with_statistics(model), recipe.options({"depths": "4,2", "blocks": "3,4", "c": 4}))
    one, other = (edit.layer.arguments["ranking"] for edit in planned.edits if isinstance(edit, Route))
    assert one == other
    drawn = recipe.plan(with_statistics(model), recipe.options({"select": "random"}))
    assert all("ranking" not in edit.layer.arguments for edit in drawn.edits if isinstance(edit, Route))
    assert all("ranking" not in edit.layer.arguments for edit in plan(model).edits if isinstance(edit, Route))
