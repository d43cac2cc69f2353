"""What a run takes for the settings that its user left out."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import small
from torch import nn

import chansurg
from chansurg.surgery.files.provenance import attach
from chansurg.surgery.recipe import find_recipe
from chansurg.surgery.training.settings import Settings
from chansurg.surgery.training.suited import Suited, suited

SIZE = (3, 32, 32)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return chansurg.convert(chansurg.load("networks.small:tiny", input_size=(16, 16)), "pix", mode="downscale")


def of(network: nn.Module, *, is_taught: bool = False, **settings: object) -> Suited:
    return suited(Settings(**settings), chansurg.record_of(network), is_taught=is_taught)  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", ["pix", "mod", "slimconv", "pcs"])
def test_a_converted_network_takes_what_its_recipe_advises(recipe: str) -> None:
    advice = find_recipe(recipe).recovery
    made = of(chansurg.convert(small.small(), recipe, input_size=SIZE), is_taught=True)
    assert (made.rate, made.distill_logits, made.distill_blocks) == (advice.learning_rate, 1.0, advice.distill_blocks)
    assert 0 < made.rate <= 1


def test_a_calibrated_network_may_take_another_rate() -> None:
    fresh = chansurg.convert(small.small(), "mod", input_size=SIZE)
    record = chansurg.record_of(fresh)
    fitted = replace(record, journal=(*record.journal[:-1], replace(record.journal[-1], results={"calibration": {}})))
    advice = find_recipe("mod").recovery
    assert advice.calibrated_rate is not None
    assert (of(fresh).rate, of(attach(fresh, fitted)).rate) == (advice.learning_rate, advice.calibrated_rate)
    assert advice.calibrated_rate < advice.learning_rate


def test_random_weights_take_the_published_rate_and_those_of_a_file_a_lower_one() -> None:
    network = small.small()
    assert of(network).rate == 1.0
    assert of(attach(network, replace(chansurg.record_of(network), file="trained.pth"))).rate < 1.0


def test_without_a_teacher_nothing_is_distilled() -> None:
    made = of(chansurg.convert(small.small(), "pix", input_size=SIZE))
    assert (made.distill_logits, made.distill_blocks) == (0.0, 0.0)


def test_what_the_user_says_counts() -> None:
    network = chansurg.convert(small.small(), "pix", input_size=SIZE)
    made = of(network, is_taught=True, distill_logits=0.3, distill_blocks=0.7, new_first=2.0)
    assert (made.distill_logits, made.distill_blocks, made.new_first) == (0.3, 0.7, 2.0)


def test_new_is_what_the_conversions_since_the_last_training_left_untrained(tree: Path) -> None:
    pix = classifier()
    new = of(pix).new
    assert new
    assert new == {name for name in pix.state_dict() if name.endswith((".theta", ".beta"))}
    trained = chansurg.finetune(pix, tree, epochs=1, batch_size=4, max_steps=1)
    assert not of(trained).new
    with pytest.raises(chansurg.InputError, match="no layer that started anew"):
        of(trained, new_first=1.0)


def test_new_layers_alone_are_trained_at_first(tree: Path) -> None:
    pix = classifier()
    before = copy.deepcopy(pix.state_dict())

    def moved(**settings: float) -> set[str]:
        after = chansurg.finetune(pix, tree, epochs=2, batch_size=4, lr=0.1, **settings).state_dict()
        return {name for name, _ in pix.named_parameters() if not torch.equal(after[name], before[name])}

    new = of(pix).new
    assert moved(new_first=2.0) == new
    assert moved(new_first=1.0) > new
    assert moved(new_first=0.0) > new
