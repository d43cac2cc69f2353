from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from networks.small import small, vision_transformer
from torch import nn

import chansurg
from chansurg.surgery.architecture import Architecture, Preprocessing
from chansurg.surgery.delivery.report.drawing import Drawing, steps
from chansurg.surgery.delivery.report.page import page
from chansurg.surgery.delivery.report.speeds import read_speed
from chansurg.surgery.delivery.report.subject import gather
from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import attach
from chansurg.surgery.journal import Entry


class Page(HTMLParser):
    """What a page holds: its text, and every tag with its attributes; anything that is left open or closed twice fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return chansurg.load("cifar/resnet20", input_size=(3, 8, 8))


@pytest.fixture(scope="module")
def pix(resnet: nn.Module) -> nn.Module:
    return chansurg.convert(resnet, "pix", mode="downscale")


def row(**changed: Any) -> dict[str, Any]:
    usual = {"runtime": "eager", "batch_size": 1, "median_ms": 2.0, "against_median_ms": 3.0, "speedup": 1.5, "macs_allow": 2.0}
    return {**usual, "speedup_interval": [1.4, 1.6], "promise_kept": 2 / 3, "noise": None, "reason": None, **changed}


def test_the_page_needs_nothing_but_itself_and_is_well_formed(resnet: nn.Module, pix: nn.Module, tmp_path: Path) -> None:
    target = chansurg.report([resnet, pix], tmp_path / "report.html", names=["first", "second"])
    text = target.read_text(encoding="utf-8")
    found = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & {tag for tag, _ in found.tags}
    assert not re.search(r"https?:|url\(|@import|\bsrc=", text)
    pictures = [attributes for tag, attributes in found.tags if tag == "svg"]
    assert len(pictures) >= 3
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in pictures)
    places = {attributes.get("id") for _, attributes in found.tags}
    links = [attributes["href"] for tag, attributes in found.tags if tag == "a"]
    assert len(links) == 3
    assert all(link is not None and link.removeprefix("#") in places for link in links)
    assert "prefers-color-scheme: dark" in text


def test_the_same_networks_give_the_same_bytes(resnet: nn.Module, pix: nn.Module, tmp_path: Path) -> None:
    first, second = (chansurg.report([resnet, pix], tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_counts_and_journal_are_told(pix: nn.Module) -> None:
    told = Page(page([gather(pix, "small one")], [])).text
    before, after = (chansurg.record_of(pix).journal[0].before, chansurg.count(pix))
    for text in (
        "small one",
        f"{before['macs']:,}",
        f"{after.macs:,}",
        f"{after.macs / before['macs']:.3f}",
        "--mode downscale",
        "36 edits",
    ):
        assert text in told


def test_widths_stand_in_the_order_of_execution_beside_what_they_were(pix: nn.Module) -> None:
    widths = {width.path: width for width in gather(pix, "").widths}
    order = list(widths)
    assert order[:5] == ["conv1", "layer1.0.conv1_pix", "layer1.0.conv1", "layer1.0.conv2_pix", "layer1.0.conv2"]
    assert (widths["layer1.0.conv1"].now, widths["layer1.0.conv1"].before) == ((8, 16), (16, 16))
    assert (widths["layer1.0.conv1_pix"].before, widths["layer1.0.conv1_pix"].is_new) == (None, True)
    assert not widths["layer1.0.conv1"].is_new


def test_layers_that_are_read_and_not_called_stand_where_they_belong() -> None:
    network = attach(vision_transformer(), replace(chansurg.record_of(small()), preprocessing=Preprocessing((3, 32, 32))))
    order = [width.path for width in gather(network, "").widths]
    first = "encoder.layers.encoder_layer_0"
    assert order.index(f"{first}.self_attention.out_proj") + 1 == order.index(f"{first}.mlp.0")


def test_layers_that_are_gone_stand_where_they_stood(resnet: nn.Module) -> None:
    record = chansurg.record_of(resnet)
    deeper = Architecture("cifar", "resnet32", {"num_classes": 10})
    widths = gather(attach(copy.deepcopy(resnet), replace(record, architecture=deeper)), "").widths
    order = [width.path for width in widths]
    assert order[order.index("layer1.2.conv2") + 1] == "layer1.3.conv1"
    assert [(width.now, width.before) for width in widths if width.path == "layer1.3.conv1"] == [(None, (16, 16))]


def test_networks_that_know_their_accuracy_are_drawn_against_their_macs(resnet: nn.Module, pix: nn.Module) -> None:
    subjects = []
    for network, top1 in ((resnet, 91.5), (pix, 88.25)):
        record = chansurg.record_of(network)
        entry = Entry("finetune", 1, {}, 0, (), kind="finetune", results={"val_top1": top1})
        subjects.append(replace(gather(network, f"net {top1:g}"), record=replace(record, journal=(*record.journal, entry))))
    both, one = (Page(page(chosen, [])).tags for chosen in (subjects, subjects[:1]))
    told = [str(attributes["aria-label"]) for tag, attributes in both if tag == "svg"]
    assert any(f"net 88.25: 88.25 % at {chansurg.count(pix).macs / 1e6:.4g} M" in label for label in told)
    assert not any("against MACs" in str(attributes.get("aria-label")) for tag, attributes in one if tag == "svg")


def test_a_network_of_the_callers_own_is_told_without_an_original() -> None:
    subject = gather(attach(small(), replace(chansurg.record_of(small()), architecture=Architecture("factory", "absent:network"))), "own")
    assert all(width.before is None for width in subject.widths)
    assert "absent:network" in Page(page([subject], [])).text


def test_drift_is_drawn_where_the_journal_has_it(pix: nn.Module) -> None:
    record = chansurg.record_of(pix)
    blocks = [{"path": "layer1.0", "relative_error": 0.125}, {"path": "layer1.1", "relative_error": None}]
    drifted = {"kind": "images", "inputs": 8, "blocks": blocks, "outputs": 0.5, "agreement": 0.75, "reason": None}
    for drift, shown in ((drifted, True), ({"blocks": "?"}, False), (None, False)):
        changed = replace(record.journal[0], results={"drift": drift})
        told = Page(page([replace(gather(pix, "a"), record=replace(record, journal=(changed,)))], [])).text
        assert ("layer1.0: 0.125" in told) == shown
        assert ("not finite" in told) == shown
        assert ("8 images" in told and "75.0 % of predictions stay" in told) == shown


def test_training_curves_come_from_the_run_beside_the_file_if_it_is_the_journals(pix: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "tuned.safetensors"
    record = chansurg.record_of(pix)
    entry = Entry("finetune", 1, {"epochs": 2}, 0, (), kind="finetune", results={"epochs": 2, "steps": 20, "val_top1": 71.5})
    tuned = attach(pix, replace(record, journal=(*record.journal, entry)))
    try:
        chansurg.save(tuned, file)
    finally:
        attach(pix, record)
    run = tmp_path / "tuned.safetensors.run"
    run.mkdir()
    lines = [
        {"epoch": epoch, "step": 10 * epoch, "train_task": 2.0 / epoch, "train_top1": 40.0 * epoch, "val_top1": 35.75 * epoch}
        for epoch in (1, 2)
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    told = Page(chansurg.report([file], tmp_path / "a.html").read_text()).text
    assert "Training, entry 2 of the journal" in told
    assert "val, epoch 2: 71.5" in told
    assert "training, epoch 1: 2" in told
    assert "71.50 %" in told
    (run / "metrics.jsonl").write_text(json.dumps({**lines[0], "step": 7}) + "\n")
    assert "Training, entry" not in chansurg.report([file], tmp_path / "a.html").read_text()


def test_benchmarks_are_joined_to_the_model_of_the_same_file_name(resnet: nn.Module, pix: nn.Module, tmp_path: Path) -> None:
    document = {
        "model": "elsewhere/pix.safetensors",
        "against": "resnet20",
        "results": [
            row(),
            row(batch_size=8, speedup=None, promise_kept=None, noise="the ratio may lie anywhere from 1.00 to 2.00"),
            row(runtime="aoti", median_ms=None, against_median_ms=None, speedup=None, reason="there is no compiler"),
        ],
        "layers": [{**row(speedup=0.5), "path": "layer1.0", "slower": True}],
    }
    (tmp_path / "speed.json").write_text(json.dumps(document))
    options: dict[str, Any] = {"names": ["resnet20", "pix.safetensors"], "speeds": [tmp_path / "speed.json"]}
    told = Page(chansurg.report([resnet, pix], tmp_path / "a.html", **options).read_text()).text
    assert "Speed against resnet20" in told
    assert "1.50x" in told
    assert "67%" in told
    assert "eager, batch 8: too noisy to tell a speed-up: the ratio may lie anywhere from 1.00 to 2.00" in told
    assert "aoti, batch 1: there is no compiler" in told
    assert "1 of 1 slower" in told
    assert "Other timings" not in told
    others = Page(page([gather(resnet, "resnet20")], [read_speed(document)])).text
    assert "Other timings" in others
    assert "Other timings" not in Page(page([gather(resnet, "resnet20")], [])).text


def test_what_a_benchmark_prints_can_be_joined(resnet: nn.Module, pix: nn.Module, tmp_path: Path) -> None:
    found = chansurg.bench(pix, resnet, seconds=0, layouts=["contiguous"], optimized=False)
    document = json.loads(json.dumps({"model": "pix", "against": "first", **found.as_json()}))
    told = Page(chansurg.report([pix], tmp_path / "a.html", names=["pix"], speeds=[document]).read_text()).text
    assert "Speed against first" in told
    assert "contiguous" in told


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"model": "a", "results": [{"runtime": "eager"}]}', json.dumps({"model": "a", "results": [row(median_ms="2")]})],
)
def test_what_is_no_benchmark_is_refused_and_nothing_is_written(resnet: nn.Module, tmp_path: Path, text: str) -> None:
    (tmp_path / "speed.json").write_text(text)
    with pytest.raises(InputError, match="no benchmark"):
        chansurg.report([resnet], tmp_path / "a.html", speeds=[tmp_path / "speed.json"])
    assert not (tmp_path / "a.html").exists()


def test_names_and_texts_of_others_are_no_markup(resnet: nn.Module, tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    document = {"model": evil, "against": evil, "results": [row(runtime=evil), row(runtime=evil, reason=evil, median_ms=None)]}
    text = chansurg.report([resnet], tmp_path / "a.html", names=[evil], title=evil, speeds=[document]).read_text()
    assert "<script" not in text
    assert evil in Page(text).text


def test_an_existing_file_is_kept_where_it_must_not_be_replaced(resnet: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("mine")
    with pytest.raises(InputError, match="replace"):
        chansurg.report([resnet], tmp_path / "a.html", overwrite=False)
    assert (tmp_path / "a.html").read_text() == "mine"
    with pytest.raises(InputError, match="no model"):
        chansurg.report([], tmp_path / "b.html")
    with pytest.raises(InputError, match="as many names"):
        chansurg.report([resnet], tmp_path / "b.html", names=["a", "b"])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 1e-9), (13.2, 97.1), (5, 5), (-3, 4e6)])
def test_axes_have_few_round_numbers_that_span_what_is_drawn(low: float, high: float) -> None:
    ticks = steps(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert ticks == sorted(set(ticks))


def test_bars_of_negative_size_reach_the_other_way() -> None:
    drawing = Drawing(10, 10, title="a", described="b")
    drawing.bar(1, 5, 2, -4, "mark", "x < y")
    assert '<rect class="mark" x="1" y="1" width="2" height="4" rx="1"><title>x &lt; y</title></rect>' in drawing.rendered()
