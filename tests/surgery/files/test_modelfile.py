"""The model file: whole or not at all, the same bytes for the same network, and nothing in it is trusted."""

from __future__ import annotations

import copy
import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from networks import routed, small
from networks.running import X, outputs
from torch import nn

import chansurg
from chansurg.surgery.edits import Repeat
from chansurg.surgery.files import modelfile
from chansurg.surgery.plan import Plan

TINY = "networks.small:tiny"


# Writing


def test_writing_fails_whole(converted: nn.Module, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = file.read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(modelfile, "save_file", full)
    with pytest.raises(chansurg.Refusal, match="disk is full") as refused:
        chansurg.save(converted, file)
    assert refused.value.exit_code == 1
    assert file.read_bytes() == old
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("target", ["no/such/folder/a.safetensors", "."])
def test_an_impossible_target_is_refused_before_any_work(converted: nn.Module, tmp_path: Path, target: str) -> None:
    with pytest.raises(chansurg.InputError):
        chansurg.save(converted, tmp_path / target)
    assert not list(tmp_path.iterdir())


def test_saving_over_the_file_it_was_loaded_from(file: Path) -> None:
    loaded = chansurg.load(file, arch=TINY)
    expected = outputs(loaded)
    old = file.read_bytes()
    chansurg.save(loaded, file)
    assert file.read_bytes() == old
    assert torch.equal(outputs(loaded), expected)
    assert torch.equal(outputs(chansurg.load(file, arch=TINY)), expected)


def test_an_unconverted_network_of_a_library_needs_no_name(tmp_path: Path) -> None:
    for network in (chansurg.load("cifar/resnet20"), torchvision.models.resnet18(num_classes=7).eval()):
        chansurg.save(network, tmp_path / "a.safetensors")
        loaded = chansurg.load(tmp_path / "a.safetensors")
        assert torch.equal(outputs(loaded), outputs(network))
        assert chansurg.record_of(loaded).journal == ()
    assert chansurg.record_of(loaded).architecture.kwargs == {"num_classes": 7}


def test_settings_that_no_tensor_shows_are_not_lost(tmp_path: Path) -> None:
    network = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False, transform_input=True).eval()
    chansurg.save(network, tmp_path / "a.safetensors")
    assert chansurg.load(tmp_path / "a.safetensors").transform_input is True
    odd = torchvision.models.resnet18().eval()
    odd.relu = nn.GELU()
    assert chansurg.record_of(odd).architecture is None


def test_a_network_of_timm_is_told_from_those_with_the_same_tensors(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    for name in ("resnet18", "tf_efficientnet_lite0"):
        network = timm.create_model(name, num_classes=3).eval()
        assert str(chansurg.record_of(network).architecture) == f"timm/{name}"
        chansurg.save(network, tmp_path / "a.safetensors")
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(outputs(chansurg.load(tmp_path / "a.safetensors"), x), outputs(network, x))


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile], ids=["parallel", "averaged", "compiled"]
)
def test_of_a_wrapped_network_the_network_inside_is_written(converted: nn.Module, file: Path, wrap: Any) -> None:
    wrapped = wrap(copy.deepcopy(converted))
    chansurg.save(wrapped, file.with_name("wrapped"))
    assert file.with_name("wrapped").read_bytes() == file.read_bytes()
    with pytest.raises(chansurg.InputError, match="wrapped in"):
        chansurg.convert(wrapped, "pix", mode="downscale")
    assert chansurg.verify(wrapped, converted).equal


def test_after_training_the_new_numbers_are_written(converted: nn.Module, file: Path) -> None:
    tuned = copy.deepcopy(converted).train()
    optimizer = torch.optim.SGD(tuned.parameters(), 0.1)
    tuned(X).square().sum().backward()
    optimizer.step()
    tuned.eval()
    assert not torch.equal(outputs(tuned), outputs(converted))
    chansurg.save(tuned, file)
    assert torch.equal(outputs(chansurg.load(file, arch=TINY)), outputs(tuned))


def test_a_last_layer_for_other_classes_is_noted(tmp_path: Path) -> None:
    network = chansurg.convert(chansurg.load("cifar/resnet20"), "pix", mode="downscale", zeta=2)
    network.linear = nn.Linear(64, 17)
    chansurg.save(network, tmp_path / "a.safetensors")
    loaded = chansurg.load(tmp_path / "a.safetensors")
    assert torch.equal(outputs(loaded), outputs(network))
    assert loaded.linear.out_features == 17


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda net: net.add_module("extra", nn.Linear(2, 2)), "extra"),
        (lambda net: net.add_module("extra", nn.Identity()), "extra"),
        (lambda net: setattr(net, "linear", nn.Sequential(nn.Linear(64, 10))), "linear"),
        (lambda net: setattr(net.layer1[0], "relu1", nn.GELU()), "relu1 is GELU and was built as ReLU"),
        (lambda net: setattr(net.layer1[0].bn1, "eps", 0.1), "bn1.eps is 0.1"),
        (lambda net: setattr(net.layer1[0].conv1, "stride", (2, 2)), "stride"),
        (lambda net: delattr(net.layer1[0], "relu2"), "relu2 is gone"),
        (lambda net: setattr(net, "forward", lambda x: x), "forward is 'replaced on the instance'"),
    ],
)
def test_a_network_that_its_file_would_not_give_back_is_not_written(change: Callable[[nn.Module], None], told: str, tmp_path: Path) -> None:
    network = chansurg.convert(chansurg.load("cifar/resnet20"), "pix", mode="downscale", zeta=2)
    change(network)
    with pytest.raises(chansurg.Refusal, match="changed since it was loaded") as refused:
        chansurg.save(network, tmp_path / "a.safetensors")
    assert told in refused.value.what
    assert not list(tmp_path.iterdir())


def test_what_matters_in_training_alone_may_change(tmp_path: Path) -> None:
    network = chansurg.load("cifar/resnet20")
    network.layer1[0].bn1.momentum = 0.01
    network.requires_grad_(False)
    chansurg.save(nn.SyncBatchNorm.convert_sync_batchnorm(network), tmp_path / "a.safetensors")
    assert torch.equal(outputs(chansurg.load(tmp_path / "a.safetensors")), outputs(network))


class WithExtraState(small.Small):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}


def test_what_is_no_tensor_with_numbers_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = small.tiny()
    for network, told in ((WithExtraState(3, 4), "_extra_state is a dict"), (empty, "meta device")):
        with pytest.raises(chansurg.Refusal, match=told):
            chansurg.save(network, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_views_of_one_storage_are_written_apart(tmp_path: Path) -> None:
    network = small.tiny().eval()
    storage = torch.randn(40)
    network.fc.bias = nn.Parameter(storage[:3])
    network.stem.bias = nn.Parameter(storage[1:9])
    chansurg.save(network, tmp_path / "a.safetensors")
    assert torch.equal(outputs(chansurg.load(tmp_path / "a.safetensors", arch=TINY)), outputs(network))


# Reading


def test_a_factorys_file_loads_only_with_the_factory_named(file: Path, converted: nn.Module) -> None:
    with pytest.raises(chansurg.InputError, match="no file names code to import") as refused:
        chansurg.load(file)
    assert refused.value.to_do.endswith(f"--arch {TINY}")
    assert torch.equal(outputs(chansurg.load(file, arch=TINY)), outputs(converted))
    with pytest.raises(chansurg.InputError):
        chansurg.load(file, arch="networks.small:small")
    with pytest.raises(chansurg.InputError):
        chansurg.load(file, arch="resnet18")


def test_a_network_of_the_callers_own_class(tmp_path: Path) -> None:
    network = chansurg.convert(small.tiny().eval(), "pix", mode="downscale", input_size=(3, 32, 32))
    assert chansurg.record_of(network).architecture is None
    chansurg.save(network, tmp_path / "a.safetensors")
    with pytest.raises(chansurg.InputError, match="no file names code"):
        chansurg.load(tmp_path / "a.safetensors")
    assert torch.equal(outputs(chansurg.load(tmp_path / "a.safetensors", arch=TINY)), outputs(network))


def test_another_architecture_than_the_files_is_refused(tmp_path: Path) -> None:
    chansurg.save(chansurg.load("cifar/resnet20"), tmp_path / "a.safetensors")
    with pytest.raises(chansurg.InputError, match="says it is cifar/resnet20"):
        chansurg.load(tmp_path / "a.safetensors", arch="resnet18")


def test_a_file_of_timm_without_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    chansurg.save(timm.create_model("resnet18").eval(), tmp_path / "a.safetensors")
    monkeypatch.setattr("chansurg.surgery.reading.builders.timm_is_installed", lambda: False)
    with pytest.raises(chansurg.InputError, match="timm, which is not installed") as refused:
        chansurg.load(tmp_path / "a.safetensors")
    assert "pip install" in refused.value.to_do


def test_a_file_loads_in_another_process(file: Path, converted: nn.Module) -> None:
    script = (
        "import sys, torch, chansurg; "
        f"x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)); n = chansurg.load({str(file)!r}, arch={TINY!r}); "
        f"torch.save(n(x).detach(), {str(file.parent / 'out.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"})
    assert torch.equal(torch.load(file.parent / "out.pt"), outputs(converted))


def test_a_layer_of_a_recipe_that_was_changed_after_the_conversion_is_not_saved(tmp_path: Path) -> None:
    network = chansurg.convert(chansurg.load("networks.small:tiny", input_size=(16,)), "pix")
    layer = next(module for module in network.modules() if type(module).__name__ == "PickOrMix")
    layer.tau = 0.25  # type: ignore[assignment]
    with pytest.raises(chansurg.Refusal, match=r"tau is 0\.25 and was built as 0\.5"):
        chansurg.save(network, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_call_with_a_mapping_keeps_its_order(tmp_path: Path) -> None:
    network = chansurg.load("torchvision/lraspp_mobilenet_v3_large")  # its head takes {"low": …, "high": …}
    converted = chansurg.convert(network, "pcs", input_size=(3, 64, 64))
    assert "classifier" in chansurg.record_of(converted).journal[-1].signatures
    file = tmp_path / "segmenter.safetensors"
    chansurg.save(converted, file)
    loaded, x = chansurg.load(file), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x)["out"], converted.eval()(x)["out"])


@pytest.mark.usefixtures("test_layers")
@pytest.mark.parametrize("path", ["blocks.3.selector", "blocks.4.selector"])
def test_a_layer_that_routes_a_branch_is_not_saved_changed_in_a_copy_neither(tmp_path: Path, path: str) -> None:
    again = Plan("testing", 1, {}, (), (Repeat("blocks.3", "4"),))
    network = chansurg.apply(routed.routed(), again)
    chansurg.save(network, tmp_path / "x.safetensors")
    assert str(chansurg.load(tmp_path / "x.safetensors", arch=routed.NAME)) == str(network)
    network.get_submodule(path).kept = 4  # type: ignore[assignment]
    with pytest.raises(chansurg.Refusal, match=f"{path}.*kept is 4 and was built as 8"):
        chansurg.save(network, tmp_path / "x.safetensors", overwrite=True)
