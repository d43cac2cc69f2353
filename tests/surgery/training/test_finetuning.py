"""What a run gives, and what it says when it cannot."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chansurg
from chansurg.surgery.errors import InputError, Refusal
from chansurg.surgery.training import checkpoints
from chansurg.surgery.training.evaluation import evaluate
from chansurg.surgery.training.finetuning import finetune
from chansurg.surgery.training.interruption import Interrupted
from chansurg.surgery.training.loop import Standing, Training
from chansurg.surgery.training.settings import settings_from

MakeTree = Callable[..., Path]
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.05}


def tiny(size: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return chansurg.load("networks.small:tiny", input_size=(size, size))


def run_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.run")


def test_it_learns_and_says_what_it_reached(make_tree: MakeTree, tmp_path: Path) -> None:
    tree, output, model = make_tree(train=60, val=30), tmp_path / "tuned.safetensors", tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = finetune(model, tree, output=output, epochs=8, batch_size=10, lr=0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not tuned.training
    record = chansurg.record_of(tuned)
    assert record.class_names == ("ant", "bee", "cat")
    entry = record.journal[-1]
    assert (entry.kind, entry.recipe, entry.seed, entry.options["lr"]) == ("finetune", "finetune", 0, 0.1)
    reached = evaluate(tuned, tree)
    assert reached.top1 > evaluate(model, tree).top1 + 20
    assert (entry.results["val_top1"], entry.results["val_loss"]) == (reached.top1, reached.loss)
    again = chansurg.load(output, arch="networks.small:tiny")
    assert chansurg.verify(tuned, again).equal
    assert chansurg.record_of(again).journal[-1].results == entry.results


def test_the_run_folder_says_everything(tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned.safetensors"
    finetune(tiny(), tree, output=output, **QUICK)
    told = json.loads((run_of(output) / "settings.json").read_text())
    assert told["settings"] == settings_from(QUICK).as_json()
    assert {"command", "same", "model", "data", "versions", "threads"} <= told.keys()
    assert told["data"]["classes"] == ["ant", "bee", "cat"]
    lines = [json.loads(line) for line in (run_of(output) / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert {"learning_rate", "train_loss", "train_task", "train_top1", "images_per_second", "val_top1", "val_top5", "val_loss"} <= lines[
        0
    ].keys()
    assert not list(run_of(output).rglob("*.p*t*")), "nothing is pickled"
    best = json.loads((run_of(output) / "best" / "metrics.json").read_text())
    assert best["val_top1"] == max(line["val_top1"] for line in lines)
    assert chansurg.load(run_of(output) / "best" / "model.safetensors", arch="networks.small:tiny")


def test_the_same_run_gives_the_same_bytes_whatever_the_workers(tree: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    model = tiny()
    state = torch.get_rng_state()
    for file, workers in zip(files, (0, 2), strict=True):
        finetune(model, tree, output=file, augment="imagenet", workers=workers, **QUICK)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state is left alone"
    assert len({chansurg.load(file, arch="networks.small:tiny").fc.weight.sum().item() for file in files}) == 1
    other = finetune(tiny(), tree, seed=1, augment="imagenet", **QUICK)
    assert not torch.equal(other.fc.weight, chansurg.load(files[0], arch="networks.small:tiny").fc.weight)


def test_the_first_step_is_that_of_a_plain_loop(tree: Path) -> None:
    model = tiny()
    model.dropout.p = 0.0
    tuned = finetune(model, tree, epochs=1, batch_size=24, lr=0.1, weight_decay=0.0, augment="none", nesterov=False)
    from torchvision import datasets

    from chansurg.surgery.images.classified import evaluation_transform

    images = datasets.ImageFolder(str(tree / "train"), transform=evaluation_transform(chansurg.record_of(model).preprocessing))
    batch, labels = (torch.stack([x for x, _ in images]), torch.tensor([y for _, y in images]))
    model.train()
    F.cross_entropy(model(batch), labels).backward()
    for (name, parameter), ours in zip(model.named_parameters(), tuned.parameters(), strict=True):
        assert torch.allclose(parameter.detach() - 0.1 * parameter.grad, ours, atol=2e-5), name


def test_accumulating_is_a_larger_batch(tree: Path) -> None:
    common = {"epochs": 2, "lr": 0.05, "eval_bn": True, "augment": "none"}
    model = tiny()
    model.dropout.p = 0.0
    whole, parts = (finetune(model, tree, batch_size=size, accumulate=n, **common) for size, n in ((12, 1), (4, 3)))
    for ours, theirs in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_frozen_modules_stay_as_they_are(tree: Path) -> None:
    model = tiny()
    for parameter in model.blocks[0].parameters():
        parameter.requires_grad_(False)
    tuned = finetune(model, tree, **QUICK)
    before, after = model.state_dict(), tuned.state_dict()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("blocks.0.")} <= unchanged
    assert not any(name.startswith(("blocks.1.", "fc.")) and "num_batches" not in name for name in unchanged)


def test_norms_in_eval_mode_keep_their_statistics(tree: Path) -> None:
    tuned = finetune(tiny(), tree, eval_bn=True, **QUICK)
    assert torch.equal(tuned.blocks[0].bn1.running_mean, tiny().blocks[0].bn1.running_mean)


def test_the_best_epoch_can_be_kept(tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned.safetensors"
    tuned = finetune(tiny(), tree, output=output, keep="best", epochs=6, batch_size=8, lr=0.3)
    lines = [json.loads(line) for line in (run_of(output) / "metrics.jsonl").read_text().splitlines()]
    assert evaluate(tuned, tree).top1 == max(line["val_top1"] for line in lines)
    unkept = finetune(tiny(), tree, keep="best", epochs=6, batch_size=8, lr=0.3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tuned.parameters(), unkept.parameters(), strict=True))


def test_the_average_is_what_is_written(tree: Path) -> None:
    plain, averaged = (finetune(tiny(), tree, ema=decay, **QUICK) for decay in (None, 0.9))
    assert not torch.equal(plain.fc.weight, averaged.fc.weight)
    assert chansurg.record_of(averaged).journal[-1].results["val_loss"] == evaluate(averaged, tree).loss


def test_bfloat16_trains_and_validates_in_float32(tree: Path) -> None:
    tuned = finetune(tiny(), tree, precision="bf16", **QUICK)
    assert tuned.fc.weight.dtype == torch.float32
    assert not torch.equal(tuned.fc.weight, finetune(tiny(), tree, **QUICK).fc.weight)
    assert chansurg.record_of(tuned).journal[-1].results["val_loss"] == evaluate(tuned, tree).loss


def test_a_teacher_is_learnt_from(tree: Path) -> None:
    tuned = finetune(tiny(), tree, teacher=tiny(), **QUICK)
    results = chansurg.record_of(tuned).journal[-1].results
    assert results["train_distillation"] > 0
    assert results["train_loss"] == pytest.approx(results["train_task"] + results["train_distillation"])


def test_a_converted_network_is_trained_and_saved(make_tree: MakeTree, tmp_path: Path) -> None:
    tree = make_tree(classes=tuple("abcdefghij"), train=20, val=10, size=8)
    converted = chansurg.convert(chansurg.load("cifar/resnet20", input_size=(8, 8)), "pix", mode="downscale")
    tuned = finetune(converted, tree, output=tmp_path / "tuned.safetensors", **QUICK)
    assert [entry.kind for entry in chansurg.record_of(tuned).journal] == ["convert", "finetune"]
    assert chansurg.verify(tuned, chansurg.load(tmp_path / "tuned.safetensors")).equal


class WithAuxiliary(nn.Module):
    """Puts out more than logits in train mode, as GoogLeNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.extra = tiny(), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> Any:
        from torchvision.models.googlenet import GoogLeNetOutputs

        logits = self.body(x)
        return GoogLeNetOutputs(logits, self.extra(x.mean((1, 2))), None) if self.training else logits


def test_auxiliary_outputs_are_trained(tree: Path) -> None:
    model = chansurg.surgery.files.provenance.attach(WithAuxiliary(), chansurg.record_of(tiny()))
    tuned = finetune(model, tree, **QUICK)
    assert not torch.equal(tuned.extra.weight, model.extra.weight)


def test_without_validation_images_it_trains(make_tree: MakeTree, tmp_path: Path) -> None:
    tree = make_tree(val=0)
    tuned = finetune(tiny(), tree, **QUICK)
    assert "val_top1" not in chansurg.record_of(tuned).journal[-1].results
    with pytest.raises(InputError, match="no best epoch"):
        finetune(tiny(), tree, keep="best", **QUICK)


def test_progress_tells_where_it_stands(tree: Path) -> None:
    seen: list[Standing] = []
    finetune(tiny(), tree, progress=seen.append, **QUICK)
    ends = [standing for standing in seen if standing.metrics is not None]
    assert [(end.epoch, end.step, end.steps) for end in ends] == [(1, 3, 6), (2, 6, 6)]
    assert ends[-1].seconds_left == 0


# --- what goes wrong ---


def copied(tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tree, tmp_path / "copied"))


def test_no_train_folder(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder 'train'") as caught:
        finetune(tiny(), tree / "train", output=tmp_path / "o.safetensors", **QUICK)
    assert "train/CLASS" in caught.value.to_do
    shutil.rmtree((broken := copied(tree, tmp_path)) / "train")
    with pytest.raises(InputError, match="no folder 'train'"):
        finetune(tiny(), broken, **QUICK)
    assert list(tmp_path.glob("o.*")) == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class(split: str, tree: Path, tmp_path: Path) -> None:
    (broken := copied(tree, tmp_path)).joinpath(split, "dog").mkdir()
    with pytest.raises(InputError, match="dog' holds no image"):
        finetune(tiny(), broken, **QUICK)


def test_classes_that_do_not_match(make_tree: MakeTree) -> None:
    with pytest.raises(InputError, match="2 classes and the network has 3 outputs"):
        finetune(tiny(), make_tree(classes=("ant", "bee")), **QUICK)


@pytest.mark.parametrize(("augment", "workers"), [("cifar", 0), ("imagenet", 0), ("imagenet", 2)])
def test_an_unreadable_image_in_the_middle_loses_nothing(augment: str, workers: int, tree: Path, tmp_path: Path) -> None:
    broken, output = copied(tree, tmp_path), tmp_path / "tuned.safetensors"
    bad = broken / "train" / "bee" / "010.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:40])
    settings = {**QUICK, "batch_size": 2, "augment": augment, "workers": workers}
    with pytest.raises(InputError, match="image cannot be read") as caught:
        finetune(tiny(), broken, output=output, **settings)
    assert "bee/010.png" in caught.value.where
    assert json.loads((run_of(output) / "last" / "state.json").read_text())["step"] > 0
    bad.write_bytes(whole)
    finetune(tiny(), broken, output=output, **settings)
    finetune(tiny(), tree, output=tmp_path / "alone.safetensors", **settings)
    assert output.read_bytes() == (tmp_path / "alone.safetensors").read_bytes()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned.safetensors"
    with pytest.raises(Refusal, match=r"not a number|not numbers") as caught:
        finetune(tiny(), tree, output=output, epochs=40, batch_size=8, lr=1e18)
    assert "step" in caught.value.where
    assert "--lr" in caught.value.to_do
    assert not output.exists()
    last = run_of(output) / "last"
    if last.exists():
        kept = checkpoints.read_checkpoint(last)
        assert kept is not None
        assert all(torch.isfinite(tensor).all() for tensor in kept.part("model").values())


def test_a_loss_that_turns_nan_is_told_with_its_step(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, real = tmp_path / "tuned.safetensors", Training._take_step

    def poisoned(self: Training, batches: list[Any]) -> None:
        real(self, [(images * float("nan"), labels) for images, labels in batches] if self.step == 4 else batches)

    monkeypatch.setattr(Training, "_take_step", poisoned)
    with pytest.raises(Refusal, match="loss is not a number") as caught:
        finetune(tiny(), tree, output=output, **QUICK)
    assert caught.value.where.startswith("step 5 of 6, epoch 2")
    assert json.loads((run_of(output) / "last" / "state.json").read_text())["step"] == 3
    monkeypatch.undo()
    assert finetune(tiny(), tree, output=output, **QUICK)


def test_a_full_disk_leaves_the_checkpoint_before_whole(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, real, calls = tmp_path / "tuned.safetensors", checkpoints.save_file, 0

    def full(tensors: Any, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(Refusal, match="disk is full") as caught:
        finetune(tiny(), tree, output=output, **QUICK)
    assert "same command" in caught.value.to_do
    assert sorted(path.name for path in run_of(output).iterdir() if path.name.startswith("last")) == ["last"]
    assert json.loads((run_of(output) / "last" / "state.json").read_text())["step"] == 3
    monkeypatch.undo()
    finetune(tiny(), tree, output=output, **QUICK)
    finetune(tiny(), tree, output=tmp_path / "alone.safetensors", **QUICK)
    assert output.read_bytes() == (tmp_path / "alone.safetensors").read_bytes()


def test_an_interrupt_waits_for_the_step_and_keeps_it(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, real, before = tmp_path / "tuned.safetensors", Training._take_step, signal.getsignal(signal.SIGINT)

    def interrupted(self: Training, batches: list[Any]) -> None:
        if self.step == 3:
            signal.raise_signal(signal.SIGINT)
        real(self, batches)

    monkeypatch.setattr(Training, "_take_step", interrupted)
    with pytest.raises(Interrupted, match="step 4 of 6"):
        finetune(tiny(), tree, output=output, **QUICK)
    assert signal.getsignal(signal.SIGINT) is before
    assert json.loads((run_of(output) / "last" / "state.json").read_text())["step"] == 4
    monkeypatch.undo()
    finetune(tiny(), tree, output=output, **QUICK)
    finetune(tiny(), tree, output=tmp_path / "alone.safetensors", **QUICK)
    assert output.read_bytes() == (tmp_path / "alone.safetensors").read_bytes()


def test_networks_that_are_no_classifiers_are_refused_with_the_way_to_train_them(tree: Path) -> None:
    segmenter = chansurg.load("lraspp_mobilenet_v3_large", input_size=(32, 32))
    with pytest.raises(InputError, match="no image classifier") as caught:
        finetune(segmenter, tree, **QUICK)
    assert "recipe_loss" in caught.value.to_do


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"lr": -1.0}, "--lr"),
        ({"lr": float("nan")}, "--lr"),
        ({"epochs": "3"}, "--epochs"),
        ({"batch_size": True}, "--batch-size"),
        ({"schedule": "linear"}, "--schedule"),
        ({"milestones": "1,x", "schedule": "step"}, "--milestones"),
        ({"milestones": "1,2"}, "--schedule step"),
        ({"target_macs": 0.5, "target_params": 0.5}, "two targets"),
        ({"target_macs": 45}, "--target-macs"),
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"precision": "fp16", "device": "cpu"}, "--precision"),
        ({"distill_logits": 1.0}, "--teacher"),
        ({"warmup_epochs": 9.0}, "--warmup-epochs"),
        ({"optimizer": "magic"}, "--optimizer"),
        ({"target_macs": 0.5}, "--target-macs"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], told: str, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        finetune(tiny(), tree, output=tmp_path / "o.safetensors", **{**QUICK, **settings})
    assert told in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_no_file_could_give_back_is_refused_at_once(tree: Path, tmp_path: Path) -> None:
    model = chansurg.load("cifar/resnet20", input_size=(16, 16))
    model.layer1[0].conv1 = nn.Conv2d(16, 16, 1)
    model.linear = nn.Linear(64, 3)
    with pytest.raises(Refusal, match="was changed since"):
        finetune(model, tree, output=tmp_path / "o.safetensors", **QUICK)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sliced", [False, True])
def test_a_network_that_is_as_small_as_wanted_shrinks_no_further(tree: Path, tmp_path: Path, sliced: bool) -> None:
    """Trained to a target, or sliced, its gates may let go of more; a run without a target is for its accuracy alone."""
    gated = chansurg.convert(tiny(), "pcs", shrink="3/4", lambda_base=0.5)
    small = finetune(gated, tree, output=tmp_path / "small.safetensors", target_macs=0.7, **QUICK)
    if sliced:
        small = chansurg.slice(small)
    kept = {path: int(mask.sum()) for path, mask in chansurg.masks(small).items()}
    output = tmp_path / "again.safetensors"
    again = finetune(small, tree, output=output, **QUICK)
    assert {path: int(mask.sum()) for path, mask in chansurg.masks(again).items()} == kept
    lines = [json.loads(line) for line in (run_of(output) / "metrics.jsonl").read_text().splitlines()]
    assert [line["train_recipe"] for line in lines] == [0.0, 0.0]
    further = finetune(small, tree, output=tmp_path / "further.safetensors", target_macs=0.6, **QUICK)
    assert sum(int(mask.sum()) for mask in chansurg.masks(further).values()) < sum(kept.values())
