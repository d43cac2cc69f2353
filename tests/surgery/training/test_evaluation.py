from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

import chansurg
from chansurg.surgery.architecture import Architecture, Preprocessing
from chansurg.surgery.errors import InputError, Refusal
from chansurg.surgery.files.provenance import attach
from chansurg.surgery.journal import Record
from chansurg.surgery.training.evaluation import Evaluation, evaluate

SHARED = Path(__file__).parents[4] / "shared"
SIZE = 12


def network(outputs: int = 7, class_names: tuple[str, ...] | None = None) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(outputs))
    layers(torch.zeros(2, 3, SIZE, SIZE))
    preprocessing = Preprocessing(input_size=(3, SIZE, SIZE), resize=14)
    return attach(layers, Record(Architecture("factory", "here:network"), preprocessing, class_names=class_names))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """57 pictures of 7 classes in several sizes, some of them of the network's own."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(57):
        height, width = (SIZE, SIZE) if index % 3 == 0 else random.integers(8, 40, 2)
        target = folder / "val" / f"class{index % 7}"
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(target / f"{index:02}.jpg")
    return folder


def plain_loop(model: nn.Module, files: list[tuple[Path, int]], preprocessing: Preprocessing) -> tuple[float, float, float]:
    """One image at a time, nothing of chansurg's."""
    _, height, width = preprocessing.input_size
    normalise = v2.Normalize(list(preprocessing.mean), list(preprocessing.std))
    top1 = top5 = 0
    loss = 0.0
    model.eval()
    with torch.no_grad():
        for file, label in files:
            image = Image.open(file).convert("RGB")
            if image.size != (width, height):
                image = v2.CenterCrop((height, width))(v2.Resize(preprocessing.resize or height)(image))
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
            logits = model(normalise(pixels)[None])[0]
            top1 += int(logits.argmax()) == label
            top5 += label in logits.topk(5).indices.tolist()
            loss -= float(logits.log_softmax(0)[label])
    return 100 * top1 / len(files), 100 * top5 / len(files), loss / len(files)


@pytest.mark.parametrize("batch_size", [1, 10, 100])
def test_it_is_what_a_plain_loop_gives_to_the_image(tree: Path, batch_size: int) -> None:
    model = network()
    files = [(file, int(file.parent.name.removeprefix("class"))) for file in sorted(tree.rglob("*.jpg"))]
    top1, top5, loss = plain_loop(model, files, Preprocessing(input_size=(3, SIZE, SIZE), resize=14))
    result = evaluate(model, tree, batch_size=batch_size)
    assert (result.top1, result.top5, result.images) == (top1, top5, 57)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert 0 < result.top1 < result.top5 < 100


@pytest.mark.parametrize("name", ["resnet20-12fca82f.th", "resnet56-4bfd9763.th"])
def test_published_cifar_networks_score_what_a_plain_loop_gives(name: str, tmp_path: Path) -> None:
    data = SHARED / "data" / "cifar10.zip"
    if not data.exists():
        pytest.skip("needs ../shared")
    with zipfile.ZipFile(data) as archive:
        names = [entry for entry in archive.namelist() if "/val/" in entry and int(entry[-8:-4]) % 17 == 0]
        archive.extractall(tmp_path, names)
    classes = sorted({entry.split("/")[2] for entry in names})
    model = chansurg.load(SHARED / "models" / name)
    record = chansurg.record_of(model)
    files = [(tmp_path / entry, classes.index(entry.split("/")[2])) for entry in sorted(names)]
    top1, top5, loss = plain_loop(model, files, Preprocessing(input_size=(3, 32, 32)))
    result = chansurg.evaluate(model, tmp_path)
    assert record.preprocessing.input_size == (3, 32, 32)
    assert (result.top1, result.top5, result.images) == (top1, top5, 300)
    assert result.loss == pytest.approx(loss, rel=1e-4)
    assert result.top1 > 75


def test_the_document_has_exactly_the_four_numbers(tree: Path) -> None:
    document = evaluate(network(), tree).as_json()
    assert list(document) == ["top1", "top5", "loss", "images"]


def test_every_module_keeps_the_mode_it_had(tree: Path) -> None:
    model = network().train()
    model[1].eval()
    modes, mean = [module.training for module in model.modules()], model[1].running_mean.clone()
    evaluate(model, tree)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[1].running_mean, mean)


def test_progress_comes_after_every_batch(tree: Path) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(network(), tree, batch_size=20, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(20, 57), (40, 57), (57, 57)]


def test_outputs_are_matched_to_folders_by_name(tree: Path) -> None:
    names = tuple(f"class{index}" for index in range(7))
    in_order, reversed_names = evaluate(network(7, names), tree), evaluate(network(7, names[::-1]), tree)
    assert in_order.top1 == evaluate(network(), tree).top1
    assert reversed_names.loss != pytest.approx(in_order.loss)


def test_fewer_than_five_outputs(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / name / "0.png")
    assert evaluate(network(2), tmp_path).top5 == 100.0


def test_half_precision_networks_are_fed_their_own_dtype(tree: Path) -> None:
    assert evaluate(network().bfloat16(), tree).images == 57


def test_classes_that_do_not_fit(tree: Path) -> None:
    with pytest.raises(InputError, match="7 classes and the network has 10 outputs"):
        evaluate(network(10), tree)


def test_networks_that_are_no_classifiers(tree: Path) -> None:
    body = attach(nn.Conv2d(3, 4, 3), Record(None, Preprocessing(input_size=(3, SIZE, SIZE))))
    with pytest.raises(InputError, match="no image classifier"):
        evaluate(body, tree)
    wrong_size = attach(network(), Record(None, Preprocessing(input_size=(3, 20, 20))))
    with pytest.raises(InputError, match="does not take an input of 3,20,20"):
        evaluate(wrong_size, tree)


def test_outputs_that_are_not_numbers_are_no_result(tree: Path) -> None:
    model = network()
    with torch.no_grad():
        model[5].bias.fill_(float("nan"))
    with pytest.raises(Refusal, match="NaN"):
        evaluate(model, tree)


def test_a_device_that_is_not_there(tree: Path) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        evaluate(network(), tree, device="nowhere")


def test_throughput() -> None:
    assert Evaluation(1, 2, 3, images=100, seconds=4).images_per_second == 25
