from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.inception import InceptionOutputs

import chansurg
from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import attach
from chansurg.surgery.journal import Record
from chansurg.surgery.layer import Moment
from chansurg.surgery.training.distillation import block_loss, logit_loss
from chansurg.surgery.training.objective import Objective
from chansurg.surgery.training.teacher import Teacher
from tests.networks import small
from tests.networks.learning_gates import Gated

RECORD = Record(None, Preprocessing(input_size=(3, 16, 16)))
MOMENT = Moment(0.5)


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(size) % 5


def pair() -> tuple[nn.Module, Teacher]:
    """A student in train mode without dropout, and a teacher of its shape with other weights."""
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        networks.append(attach(small.small(), RECORD))
        networks[-1].dropout.p = 0.0
    return networks[0].train(), Teacher(networks[1], RECORD, 5)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_the_task_alone_is_cross_entropy() -> None:
    student, _ = pair()
    images, labels = batch()
    losses = Objective(copy.deepcopy(student))(images, labels, MOMENT)
    wanted = student(images)
    assert losses.total.item() == losses.task.item() == F.cross_entropy(wanted, labels).item()
    assert (losses.distillation.item(), losses.recipe.item()) == (0.0, 0.0)
    assert torch.equal(losses.outputs, wanted)
    assert not losses.outputs.requires_grad


@pytest.mark.parametrize("soft", [True, False])
def test_label_smoothing_spreads_a_share(soft: bool) -> None:
    student, _ = pair()
    images, labels = batch()
    targets = F.one_hot(labels, 5).float()
    losses = Objective(copy.deepcopy(student), label_smoothing=0.1)(images, targets if soft else labels, MOMENT)
    wanted = -((0.9 * targets + 0.02) * student(images).log_softmax(1)).sum(1).mean()
    assert torch.allclose(losses.task, wanted)


def test_the_total_is_the_weighted_sum_and_its_gradient() -> None:
    student, teacher = pair()
    images, labels = batch()
    twin = copy.deepcopy(student)
    objective = Objective(student, teacher, distill_logits=0.7, temperature=3.0, distill_blocks=0.2)
    losses = objective(images, labels, MOMENT)
    losses.total.backward()

    features = {"blocks.0": (x := twin.blocks[0](torch.relu(twin.stem(images)))), "blocks.1": (x := twin.blocks[1](x))}
    features["blocks.2"] = x = twin.blocks[2](x)
    logits = twin.fc(x.mean((2, 3)))
    with torch.no_grad():
        shown = {"blocks.0": (y := teacher.network.blocks[0](torch.relu(teacher.network.stem(images))))}
        shown["blocks.1"] = y = teacher.network.blocks[1](y)
        shown["blocks.2"] = teacher.network.blocks[2](y)
    distillation = 0.7 * logit_loss(logits, teacher.network(images), 3.0) + 0.2 * block_loss(features, shown)
    wanted = F.cross_entropy(logits, labels) + distillation
    wanted.backward()
    assert objective.blocks == ["blocks.0", "blocks.1", "blocks.2"]
    assert torch.allclose(losses.total, wanted)
    assert torch.allclose(losses.distillation, distillation)
    for ours, theirs in zip(student.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_a_recipes_layers_join_in() -> None:
    gated = Gated().train()
    images, labels = batch()
    losses = Objective(gated)(images, labels, Moment(0.5, pressure=2.0), closes_step=False)
    assert losses.recipe.item() == pytest.approx(gated.gate1.seen.mean().item() + gated.gate2.seen.mean().item())
    assert torch.allclose(losses.total, losses.task + losses.recipe)
    assert gated.gate1.steps == 0
    Objective(gated)(images, labels, MOMENT)
    assert gated.gate1.steps == 1


def test_a_teacher_that_nothing_asks_for_does_not_run() -> None:
    student, teacher = pair()
    teacher.network.register_forward_hook(lambda *_: pytest.fail("it ran"))
    assert Objective(student, teacher)(*batch(), MOMENT).distillation.item() == 0.0


def test_auxiliary_classifiers_count_as_their_paper_says() -> None:
    torch.manual_seed(0)
    network = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True, num_classes=5).train()
    network.eval().training = True
    network.aux1.training = network.aux2.training = True
    network.aux1.dropout.p = network.aux2.dropout.p = 0.0
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 3])
    main, second, first = network(images)
    wanted = F.cross_entropy(main, labels) + 0.3 * (F.cross_entropy(first, labels) + F.cross_entropy(second, labels))
    losses = Objective(network)(images, labels, MOMENT)
    assert torch.allclose(losses.task, wanted)
    assert torch.equal(losses.outputs, main)


class Returns(nn.Module):
    """Puts out whatever it is given to wrap its logits in."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.fc, self.wrap = nn.Linear(3, 5), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.fc(x.mean((2, 3))))


def test_inception_and_switched_off_auxiliaries() -> None:
    images, labels = batch()
    network = Returns(lambda logits: InceptionOutputs(logits, 2 * logits))
    logits = network.fc(images.mean((2, 3)))
    wanted = F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(2 * logits, labels)
    assert torch.allclose(Objective(network)(images, labels, MOMENT).task, wanted)
    network.wrap = lambda logits: InceptionOutputs(logits, None)
    assert torch.allclose(Objective(network)(images, labels, MOMENT).task, F.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda logits: {"out": logits}, "a dict"),
        (lambda logits: [logits], "a list"),
        (lambda logits: logits[:, :, None, None], r"\[6, 5, 1, 1\]"),
        (namedtuple("Pair", "a b")._make, "a Pair"),
    ],
)
def test_what_is_no_classifier_is_told_how_to_train(wrap: Any, told: str) -> None:
    network = Returns(wrap if told != "a Pair" else lambda logits: wrap((logits, logits)))
    with pytest.raises(InputError, match=f"no image classifier: in train mode it puts out {told}") as caught:
        Objective(network)(*batch(), MOMENT)
    assert "chansurg.recipe_loss" in caught.value.to_do


def test_a_real_segmenter() -> None:
    network = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    with pytest.raises(InputError, match="in train mode it puts out a"):
        Objective(network.train())(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]), MOMENT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_losses_are_float32(dtype: torch.dtype) -> None:
    student, teacher = pair()
    images, labels = batch()
    exact = Objective(copy.deepcopy(student), teacher, distill_logits=1.0, distill_blocks=1.0)(images, labels, MOMENT)
    objective = Objective(student, teacher, distill_logits=1.0, distill_blocks=1.0)
    with torch.autocast("cpu", dtype=dtype):
        losses = objective(images, labels, MOMENT)
    assert {losses.total.dtype, losses.task.dtype, losses.distillation.dtype, losses.outputs.dtype} == {torch.float32}
    assert not torch.equal(losses.outputs, exact.outputs)
    assert losses.total.item() == pytest.approx(exact.total.item(), rel=0.05)
    losses.total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in student.parameters())


def test_recipes_losses_under_autocast() -> None:
    gated = Gated().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = Objective(gated)(*batch(), MOMENT)
    assert losses.recipe.dtype == torch.float32


def test_two_halves_give_the_gradient_of_the_whole() -> None:
    student, teacher = pair()
    student.eval()  # norms would see other batches
    whole, halved = copy.deepcopy(student), student
    images, labels = batch()
    options = {"distill_logits": 1.0, "distill_blocks": 1.0, "label_smoothing": 0.1}
    Objective(whole, teacher, **options)(images, labels, MOMENT).total.backward()
    objective = Objective(halved, teacher, **options)
    for part in (slice(3), slice(3, 6)):
        (objective(images[part], labels[part], MOMENT).total / 2).backward()
    for ours, theirs in zip(halved.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


@pytest.mark.usefixtures("process_group")
def test_blocks_are_heard_inside_a_distributed_wrapper() -> None:
    student, teacher = pair()
    alone = Objective(copy.deepcopy(student), teacher, distill_blocks=1.0)(*batch(), MOMENT)
    wrapped = DistributedDataParallel(student)
    losses = Objective(wrapped, teacher, distill_blocks=1.0)(*batch(), MOMENT)
    losses.total.backward()
    assert losses.distillation.item() == pytest.approx(alone.distillation.item())
    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize("before", [True, False])
def test_blocks_are_heard_inside_a_compiled_network(before: bool) -> None:
    student, teacher = pair()
    alone = Objective(copy.deepcopy(student), teacher, distill_blocks=1.0)(*batch(), MOMENT)
    compiled = torch.compile(student, backend="aot_eager")
    objective = Objective(compiled if before else student, teacher, distill_blocks=1.0)
    objective.model = compiled
    losses = objective(*batch(), MOMENT)
    assert losses.distillation.item() == pytest.approx(alone.distillation.item(), rel=1e-5)


def test_a_converted_network_learns_its_teachers_blocks() -> None:
    torch.manual_seed(0)
    original = chansurg.load("cifar/resnet20")
    with torch.no_grad():  # statistics that fit, as a trained network has them
        for norm in (module for module in original.train().modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = None
        original(torch.randn(64, 3, 32, 32))
    student = chansurg.convert(original, "pix", mode="downscale").train()
    objective = Objective(student, Teacher(original, chansurg.record_of(student), 10), distill_blocks=10.0)
    optimizer = torch.optim.SGD(student.parameters(), 0.02, momentum=0.9)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    history = []
    for _ in range(12):
        losses = objective(images, labels, MOMENT)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(losses.distillation.item())
    assert len(objective.blocks) == 9
    assert sorted(history, reverse=True) == history
    assert history[-1] < 0.85 * history[0]


def test_a_pcs_network_starts_where_its_teacher_is() -> None:
    torch.manual_seed(0)
    original = chansurg.load("cifar/resnet20")
    student = chansurg.convert(original, "pcs").eval()
    objective = Objective(student, Teacher(original, chansurg.record_of(student), 10), distill_logits=1.0, distill_blocks=1.0)
    losses = objective(torch.randn(4, 3, 32, 32), torch.arange(4), MOMENT)
    assert len(objective.blocks) == 9
    assert losses.distillation.item() == 0.0
    assert losses.task.item() > 0


def test_closing_takes_every_hook_away() -> None:
    student, teacher = pair()
    Objective(student, teacher, distill_blocks=1.0).close()
    assert not any(module._forward_hooks for network in (student, teacher.network) for module in network.modules())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"label_smoothing": 1.0}, "not a share below 1"),
        ({"temperature": 0.0}, "not above 0"),
        ({"distill_logits": -1.0}, "A weight is negative"),
        ({"distill_logits": 1.0}, "no teacher to distil from"),
        ({"distill_blocks": 1.0}, "no teacher to distil from"),
    ],
)
def test_options_that_cannot_be(options: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Objective(small.small(), **options)
