"""Tensors become a network that computes what the network they came from computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.errors import InputError
from chansurg.surgery.reading.builders import fresh, preprocessing_of
from chansurg.surgery.reading.checkpoint import read_checkpoint
from chansurg.surgery.reading.weights import build_with_tensors, tensors_left_on_meta


def randomised(architecture: Architecture) -> nn.Module:
    """Weights, and batch norm's statistics, that no initialiser would give."""
    model = fresh(architecture)
    torch.manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "swin_t", "mnasnet0_5", "googlenet", "vit_b_32", "maxvit_t"])
def test_outputs_are_bit_equal_after_a_file(tmp_path: Path, name: str) -> None:
    architecture = Architecture("torchvision", name, {"num_classes": 5})
    model = randomised(architecture)
    torch.save(model.state_dict(), tmp_path / "file.pth")
    loaded = build_with_tensors(architecture, read_checkpoint(tmp_path / "file.pth").tensors)
    x = torch.randn(1, *preprocessing_of(architecture).input_size)
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))
    assert not loaded.training
    assert not list(tensors_left_on_meta(loaded))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("name", ["levit_128s", "beit_base_patch16_224", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_tables_that_no_file_contains(name: str) -> None:
    pytest.importorskip("timm")
    architecture = Architecture("timm", name, {"num_classes": 5})
    model = randomised(architecture)
    loaded = build_with_tensors(architecture, dict(model.state_dict()))
    x = torch.randn(1, *preprocessing_of(architecture).input_size)
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["resnet18", "swin_t"])
def test_half_precision_stays(name: str, dtype: torch.dtype) -> None:
    architecture = Architecture("torchvision", name)
    model = randomised(architecture).to(dtype)
    loaded = build_with_tensors(architecture, dict(model.state_dict()))
    for (key, found), expected in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert found.dtype == expected.dtype, key
    for (key, buffer), expected in zip(loaded.named_buffers(), model.buffers(), strict=True):
        assert buffer.dtype == expected.dtype, key
        assert torch.equal(buffer, expected), key


def test_tensors_are_assigned_and_not_copied() -> None:
    architecture = Architecture("cifar", "resnet20")
    tensors = dict(fresh(architecture).to(memory_format=torch.channels_last).state_dict())
    loaded = build_with_tensors(architecture, tensors)
    for key, found in loaded.state_dict().items():
        assert found.data_ptr() == tensors[key].data_ptr()
        assert found.stride() == tensors[key].stride()


def test_missing_counters_start_at_zero() -> None:
    architecture = Architecture("cifar", "resnet20")
    tensors = {k: v for k, v in fresh(architecture).state_dict().items() if not k.endswith("num_batches_tracked")}
    counter = build_with_tensors(architecture, tensors).get_buffer("bn1.num_batches_tracked")
    assert counter.dtype == torch.int64
    assert counter.item() == 0


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(4.0), persistent=False)


@pytest.fixture
def tied(monkeypatch: pytest.MonkeyPatch) -> Architecture:
    import sys
    import types

    module = types.ModuleType("tied_networks")
    module.Tied = Tied  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tied_networks", module)
    return Architecture("factory", "tied_networks:Tied")


@pytest.mark.parametrize("left_out", [None, "first.weight", "second.weight"])
def test_tied_weights_stay_one_parameter(tied: Architecture, left_out: str | None) -> None:
    state = Tied().state_dict()
    loaded = build_with_tensors(tied, {key: value for key, value in state.items() if key != left_out})
    assert loaded.first.weight is loaded.second.weight
    assert torch.equal(loaded.first.weight, state["first.weight"])
    assert torch.equal(loaded.table, torch.arange(4.0))
    assert len(list(loaded.parameters())) == 3


def test_weights_that_were_tied_after_building_stay_tied(tmp_path: Path) -> None:
    architecture = Architecture("cifar", "resnet20")
    model = fresh(architecture)
    model.layer1[1].conv1.weight = model.layer1[0].conv1.weight
    torch.save(model.state_dict(), tmp_path / "tied.pth")
    loaded = build_with_tensors(architecture, read_checkpoint(tmp_path / "tied.pth").tensors)
    assert loaded.layer1[1].conv1.weight is loaded.layer1[0].conv1.weight
    assert loaded.layer1[1].conv2.weight is not loaded.layer1[0].conv2.weight


def test_edits_are_prepared_on_the_skeleton(tied: Architecture) -> None:
    devices: list[str] = []

    def widen(model: nn.Module) -> nn.Module:
        device = next(model.parameters()).device
        devices.append(device.type)
        model.second = nn.Linear(4, 3, device=device)
        return model

    tensors = {**Tied().state_dict(), "second.weight": torch.ones(3, 4), "second.bias": torch.ones(3)}
    loaded = build_with_tensors(tied, tensors, prepare=widen)
    assert torch.equal(loaded.second(torch.ones(4)), torch.full((3,), 5.0))
    # The table is in no file, so the skeleton alone does not do.
    assert devices == ["meta", "cpu"]
    assert torch.equal(loaded.table, torch.arange(4.0))


def wrong(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    if kind == "missing":
        return {key: value for key, value in tensors.items() if key != "conv1.weight"}
    if kind == "unknown":
        return {**tensors, "conv9.weight": torch.ones(1)}
    other = torch.ones(16, 3, 5, 5) if kind == "shape" else torch.ones(16, 3, 3, 3, dtype=torch.int64)
    return {**tensors, "conv1.weight": other}


@pytest.mark.parametrize("kind", ["missing", "unknown", "shape", "integers"])
def test_misfits_are_named(kind: str) -> None:
    architecture = Architecture("cifar", "resnet20")
    with pytest.raises(InputError, match=r"conv[19]\.weight"):
        build_with_tensors(architecture, wrong(dict(fresh(architecture).state_dict()), kind))
