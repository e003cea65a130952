"""untouched_share.py and default_rule.py: what the data sets for choosing decide."""

from __future__ import annotations

from typing import Any

import default_rule
import learning
import numpy as np
import pytest
import torch
import untouched_share
from answer import SHARES, drawn
from studies import CHOOSE_ALL

from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import half
from rmadapter.data.image_set import ImageSet
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn

CHOOSING = learning.sets_of(CHOOSE_ALL)


def shared(data: str, novel: dict[float, float], shots: int = 4, draw: int = 1) -> dict[str, Any]:
    """Return a line of untouched_share whose novel accuracy is 0 but for the keeps in `novel`."""
    by_keep = {str(keep): [70.0, novel.get(keep, 0.0), 40.0] for keep in SHARES}
    return {"data": data, "shots": shots, "draw": draw, "by_keep": by_keep}


def kept(data: str, variant: str, novel: float, shots: int = 4, draw: int = 1) -> dict[str, Any]:
    points = [[20, 30, 0], [50, novel, 10]]
    return {"data": data, "draw": draw, "shots": shots, "variant": variant, "frontier": points}


def test_the_share_is_chosen_by_the_mean_over_sets_and_shots() -> None:
    lines = [
        shared("rooms", {0.2: 50, 0.7: 60}),
        shared("rooms", {0.2: 50, 0.7: 60}, draw=2),
        shared("office_caltech/web", {0.2: 90, 0.7: 60}),
        shared("rooms", {0.2: 50, 0.7: 60}, shots=16),
        shared("pacs/photo", {0.7: 99}),
    ]
    # a set counts once, whatever its draws: 0.2 has 70 and 50, 0.7 has 60 and 60
    assert untouched_share.chosen(lines) == 0.2
    assert untouched_share.chosen(lines[1:2]) == 0.7
    table = untouched_share.choice_table(
        lines[:1], [kept("rooms", name, 44.4) for name in untouched_share.RIVALS]
    )
    assert "| **keep 0.7** | 60.0 | 40.0 |" in table
    assert "| zero-shot | 44.4 | 10.0 |" in table


def test_a_mix_of_two_shares_is_the_share_between(tiny_clip: Backbone) -> None:
    """The logits are linear in keep, so the answers of 0 and 1 mix to those of any other."""
    rng, lab, name = np.random.default_rng(1), Lab(keep=True, progress=False), tiny_clip.name
    pixels = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(16)]
    images = ImageSet.from_lists(pixels, [f"class {i % 4}" for i in range(16)])
    lab.add_backbone(tiny_clip)
    lab.add("plain", {"train": images, "test": images})
    settings = {"backbone": name, "shots": 2, "seed": 1, "classes": "base", "first_block": 3}
    request = Request.make(settings, untouched_share.METHOD, data=drawn(lab, "plain", 1))
    few = lab.draw(request.task)
    fitted = learn(request.method, half(few.train, "base"), request.task, few, lab)
    test, cache = lab.splits("plain@1")["test"], lab.test_cache(request.task)
    models = {
        f"{keep}": untouched_share.with_keep(fitted, keep).score(test.classes)
        for keep in (0.0, 0.3, 1.0)
    }
    tables = predict_all(models, fitted, cache, test, 1)
    mix = 0.3 * tables["1.0"].log() + 0.7 * tables["0.0"].log()
    torch.testing.assert_close(mix.softmax(-1), tables["0.3"], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(tables["0.0"], tables["0.3"], atol=1e-3)
    found = untouched_share.ask(fitted, cache, test, 1)
    joint = 100 * float(np.mean(tables["0.3"].argmax(1).numpy() == np.array(test.labels)))
    assert found["0.3"][untouched_share.JOINT] == joint
    assert [*found] == [*map(str, SHARES)]
    assert len({base for base, *_ in found.values()}) == 1


def curves() -> dict[str, dict[int, float]]:
    return {
        "zero-shot": {4: 20.0, 16: 20.0},
        "linear-probe": {4: 50.0, 16: 70.0},
        "rmadapter-plain": {4: 50.0, 16: 60.0},
        "rmadapter-plus": {4: 54.0, 16: 70.0},
        "mmrl": {4: 55.0},
    }


def accuracies(plus: float) -> dict[str, dict[int, float]]:
    return {
        "zero-shot": {4: 50.0, 16: 51.0},
        "rmadapter-plain": {4: 40.0, 16: 52.0},
        "rmadapter-plus": {4: 60.0, 16: plus},
        "mmrl": {4: 60.0, 16: 60.0},
    }


def test_the_rule_takes_the_nearest_of_those_that_keep_enough() -> None:
    assert default_rule.behind(curves(), "rmadapter-plus", [4, 16]) == 0.5
    assert default_rule.behind(curves(), "mmrl", [4, 16]) is None
    # the adapters alone are the better rival with 16 images, and themselves miss with 4
    assert default_rule.qualifies(accuracies(51.0), "rmadapter-plus")
    assert not default_rule.qualifies(accuracies(50.9), "rmadapter-plus")
    assert not default_rule.qualifies(accuracies(51.0), "rmadapter-plain")


@pytest.fixture
def few_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name: default_rule.VARIANTS[name] for name in accuracies(0)}
    monkeypatch.setattr(default_rule, "VARIANTS", names)


@pytest.mark.usefixtures("few_variants")
def test_auto_has_to_be_ahead_by_more_than_half_a_point() -> None:
    assert default_rule.winner(curves(), accuracies(51), {4: 54.5, 16: 70.5}) == "rmadapter-plus"
    assert default_rule.winner(curves(), accuracies(51), {4: 55, 16: 70.5}) == "auto"
    # zero-shot is the only one left, and far behind
    assert default_rule.winner(curves(), accuracies(50), {16: 30.0}) == "auto"
    assert default_rule.winner(curves(), accuracies(50), {16: 20.4}) == "zero-shot"


def test_auto_is_what_was_chosen_in_the_draw_of_r1() -> None:
    common = {"chosen": True, "seed": learning.DRAW, "shots": 4}
    lines = [{**common, "data": data, "test": float(i)} for i, data in enumerate(CHOOSING)]
    others = [{**line, "chosen": False, "test": 99.0} for line in lines]
    later = [{**line, "seed": 2, "test": 99.0} for line in lines]
    found = default_rule.auto_curve([*lines, *others, *later], CHOOSING)
    assert found == {4: np.mean(range(len(CHOOSING)))}
    assert default_rule.auto_curve(lines[1:], CHOOSING) == {}


def test_novel_accuracies_use_the_chosen_share() -> None:
    variants = default_rule.VARIANTS.values()
    lines = [kept("rooms", name, 10.0 + i) for i, name in enumerate(variants)]
    found = default_rule.novel(lines, [], [4])
    assert found["rmadapter-plus"] == {4: 10.0 + [*variants].index("plus")}
    found = default_rule.novel(lines, [shared("rooms", {0.2: 77.0})], [4])
    assert found["rmadapter-plus"] == {4: 77.0}
    assert found["zero-shot"] == {4: 10.0}
