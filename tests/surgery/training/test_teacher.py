from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import chansurg
from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import attach
from chansurg.surgery.journal import Record
from chansurg.surgery.training.teacher import Teacher, match_teacher_classes
from tests.networks import small

SIZE = (3, 16, 16)
OWN = Preprocessing(input_size=SIZE, mean=(0.2, 0.5, 0.4), std=(0.3, 0.2, 0.25))
OTHER = Preprocessing(input_size=SIZE, mean=(0.5, 0.1, 0.3), std=(0.1, 0.5, 0.25))


def network(preprocessing: Preprocessing = OWN, names: tuple[str, ...] | None = None, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    return attach(nn.Sequential(layers, head), Record(None, preprocessing, class_names=names))


def normalised(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (pixels - mean) / std


def pixels(channels: int = 3, size: int = 16) -> Tensor:
    return torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_it_sees_the_students_images_in_its_own_normalisation() -> None:
    teacher = Teacher(network(), Record(None, OTHER), 5)
    wanted = network().eval()(normalised(pixels(), OWN))
    assert torch.allclose(teacher(normalised(pixels(), OTHER)), wanted, atol=1e-5)
    assert not torch.allclose(teacher(normalised(pixels(), OWN)), wanted, atol=1e-2)


def test_with_one_normalisation_nothing_is_computed_twice() -> None:
    images = normalised(pixels(), OWN)
    assert torch.equal(Teacher(network(), Record(None, OWN), 5)(images), network().eval()(images))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_it_sees_them_at_its_own_size(interpolation: str) -> None:
    preprocessing = Preprocessing(SIZE, OWN.mean, OWN.std, interpolation=interpolation)
    teacher = Teacher(network(preprocessing), Record(None, Preprocessing((3, 24, 24), OTHER.mean, OTHER.std)), 5)
    smooth = {} if interpolation == "nearest" else {"align_corners": False, "antialias": True}
    seen = F.interpolate(pixels(size=24), (16, 16), mode=interpolation, **smooth)
    wanted = network().eval()(normalised(seen, OWN))
    assert torch.allclose(teacher(normalised(pixels(size=24), OTHER)), wanted, atol=1e-5)


def test_grey_students_and_colour_teachers() -> None:
    grey = Preprocessing((1, 16, 16), OTHER.mean, OTHER.std)
    mean, std = sum(OTHER.mean) / 3, sum(OTHER.std) / 3
    wanted = network().eval()(normalised(pixels(1).expand(-1, 3, -1, -1), OWN))
    assert torch.allclose(Teacher(network(), Record(None, grey), 5)((pixels(1) - mean) / std), wanted, atol=1e-5)


def test_colour_students_and_grey_teachers() -> None:
    grey = Preprocessing((1, 16, 16), (0.4,), (0.2,))
    luma = (pixels() * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    wanted = network(grey, channels=1).eval()((luma - 0.4) / 0.2)
    assert torch.allclose(Teacher(network(grey, channels=1), Record(None, OWN), 5)(normalised(pixels(), OWN)), wanted, atol=1e-3)


def test_channels_that_have_no_translation() -> None:
    with pytest.raises(InputError, match="takes 3 input channels, the student 4"):
        Teacher(network(), Record(None, Preprocessing((4, 16, 16), (0.5,) * 4, (0.5,) * 4)), 5)


def test_classes_are_matched_by_name() -> None:
    teacher = network(names=tuple("abcde"))
    logits, images = network().eval()(pixels()), pixels()
    assert torch.equal(Teacher(teacher, Record(None, OWN, class_names=tuple("ecadb")), 5)(images), logits[:, [4, 2, 0, 3, 1]])
    assert torch.equal(Teacher(teacher, Record(None, OWN, class_names=tuple("db")), 2)(images), logits[:, [3, 1]])
    assert torch.equal(Teacher(teacher, Record(None, OWN, class_names=tuple("abcde")), 5)(images), logits)


def test_classes_are_matched_by_number_where_names_are_missing() -> None:
    assert match_teacher_classes(None, 5, tuple("abcde"), 5) is None
    assert match_teacher_classes(tuple("abcde"), 5, None, 5) is None
    with pytest.raises(InputError, match="has 5 classes and the student 2"):
        match_teacher_classes(tuple("ab"), 2, None, 5)


@pytest.mark.parametrize("teacher", [("a", "b", "c"), ("a", "b", "b")])
def test_classes_that_the_teacher_does_not_know_for_sure(teacher: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"not exactly one class named '[bx]'"):
        match_teacher_classes(("a", "x" if "c" in teacher else "b"), 2, teacher, 3)


def test_it_is_frozen_in_eval_mode_and_gives_no_graph() -> None:
    given = network().train()
    teacher = Teacher(given, Record(None, OTHER), 5)
    assert all(parameter.requires_grad for parameter in given.parameters())
    assert given.training
    assert not any(module.training for module in teacher.network.modules())
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    images = pixels().requires_grad_()
    logits = teacher(images)
    assert not logits.requires_grad
    student = nn.Linear(5, 5)
    F.mse_loss(student(torch.ones(4, 5)), logits).backward()
    assert student.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_close_and_comes_back_in_float32(dtype: torch.dtype) -> None:
    images = pixels()
    exact = Teacher(network(), Record(None, OTHER), 5)(images)
    logits = Teacher(network(), Record(None, OTHER), 5, autocast=dtype)(images)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, exact)
    assert torch.allclose(logits, exact, atol=0.1)


def test_teachers_in_half_precision() -> None:
    logits = Teacher(network().bfloat16(), Record(None, OTHER), 5)(pixels())
    assert torch.allclose(logits, Teacher(network(), Record(None, OTHER), 5)(pixels()), atol=0.1)


def test_it_can_be_a_file_or_a_wrapped_network(tmp_path: Path) -> None:
    original = chansurg.load("cifar/resnet20")
    chansurg.save(original, tmp_path / "teacher.safetensors")
    images = torch.randn(2, 3, 32, 32)
    student = chansurg.record_of(original)
    from_file = Teacher(tmp_path / "teacher.safetensors", student, 10)(images)
    assert torch.equal(from_file, original(images))
    assert torch.equal(Teacher(nn.DataParallel(original), student, 10)(images), from_file)


def test_teachers_that_teach_no_classes() -> None:
    body = attach(nn.Conv2d(3, 4, 3), Record(None, OWN))
    with pytest.raises(InputError, match=r"teacher is no image classifier: it puts out \[1, 4, 14, 14\]"):
        Teacher(body, Record(None, OWN), 5)
    with pytest.raises(InputError, match="does not take an input of 1,16,16"):
        Teacher(attach(small.small(), Record(None, Preprocessing((1, 16, 16)))), Record(None, OWN), 5)
    with pytest.raises(InputError, match="There is no such file"):
        Teacher("nowhere.pth", Record(None, OWN), 5)
