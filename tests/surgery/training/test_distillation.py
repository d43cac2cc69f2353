from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from chansurg.surgery.training.distillation import block_loss, logit_loss


def softmax(values: np.ndarray) -> np.ndarray:
    exponents = np.exp(values - values.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_logit_loss_is_the_squared_temperature_times_the_divergence(temperature: float) -> None:
    student, teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    p, q = softmax(teacher.double().numpy() / temperature), softmax(student.double().numpy() / temperature)
    wanted = temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean()
    assert logit_loss(student, teacher, temperature).item() == pytest.approx(wanted, rel=1e-5)


def test_logit_loss_of_two_classes_by_hand() -> None:
    loss = logit_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]]), 1.0)
    assert loss.item() == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))


def test_logit_loss_is_least_where_the_student_says_the_same() -> None:
    teacher = torch.randn(4, 5)
    student = (teacher + 3).requires_grad_()
    loss = logit_loss(student, teacher, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6


def test_large_temperatures_keep_the_size_of_gradients() -> None:
    """Hinton et al., equation 4: for high temperatures and logits of mean zero the gradient is their difference over the classes."""
    student, teacher = (x - x.mean(1, keepdim=True) for x in torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(2)))
    student.requires_grad_()
    logit_loss(student.double(), teacher.double(), 1000.0).backward()
    assert torch.allclose(student.grad, (student - teacher) / 5, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_compared_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (torch.randn(2, 6, 5) * 20).to(dtype)
    loss = logit_loss(student, teacher, 4.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(logit_loss(student.double(), teacher.double(), 4.0).item(), rel=1e-4)


def test_block_loss_is_the_relative_squared_error() -> None:
    teacher = {"a": torch.full((2, 3, 2, 2), 2.0), "b": torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])}
    assert block_loss(teacher, teacher).item() == 0.0
    assert block_loss({path: torch.zeros_like(output) for path, output in teacher.items()}, teacher).item() == 1.0
    student = {"a": torch.full((2, 3, 2, 2), 3.0), "b": torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]])}
    assert block_loss(student, teacher).item() == pytest.approx((0.25 + (16 / 25 + 1 / 4) / 2) / 2)


def test_block_loss_of_halves_is_that_of_the_whole() -> None:
    student, teacher = ({"a": output} for output in torch.randn(2, 6, 4, 3, 3))
    halves = [block_loss({"a": student["a"][part]}, {"a": teacher["a"][part]}).item() for part in (slice(3), slice(3, 6))]
    assert block_loss(student, teacher).item() == pytest.approx(sum(halves) / 2, rel=1e-5)


def test_block_loss_of_a_silent_teacher_is_a_number() -> None:
    assert block_loss({"a": torch.zeros(2, 3, 1)}, {"a": torch.zeros(2, 3, 1)}).item() == 0.0
    half = {"a": torch.full((2, 3, 1), 300.0, dtype=torch.float16)}
    assert block_loss(half, {"a": -half["a"]}).item() == pytest.approx(4.0)
