"""CoPrompt against a plain reimplementation, its descriptions, and what a fit does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods.coprompt import CoPrompt, Descriptions
from rmadapter.methods.descriptions import without_texts
from rmadapter.settings import configured
from tests.helpers.deep_prompts import (
    LABELS,
    NAMES,
    assert_same_terms,
    eight_images,
    pixels,
    prompts_inserted,
)
from tests.helpers.rounding import double
from tests.helpers.shots import logits_of, noise_images, shots_of, untrained
from tests.helpers.slow import ci_except


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
def test_terms_and_gradients_are_plain_ones(name: str, request: pytest.FixtureRequest) -> None:
    backbone = double(request.getfixturevalue(name))
    method = CoPrompt(n_ctx=2, depth=3, consistency=4, reduction=1)
    module = method.module(backbone).double()
    images, text = pixels(backbone), module.text(NAMES)
    generator = torch.Generator().manual_seed(2)
    frozen = [
        torch.randn(n, 40, generator=generator, dtype=torch.float64)
        for n in (len(LABELS), len(NAMES))
    ]
    lean = method.loss(
        module, LABELS, backbone.image.frozen(images, 1), text, (frozen[0], frozen[1])
    )
    assert_same_terms(module, lean, plain_terms(backbone, module, images, frozen))


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
def test_a_fit_compares_with_the_untouched_encoders(
    name: str, request: pytest.FixtureRequest
) -> None:
    """The loss that is minimised, of images in one view and the class prompts of the run."""
    given = request.getfixturevalue(name)
    backbone, images = double(given), pixels(given)
    method = CoPrompt(n_ctx=2, depth=3, consistency=4, reduction=1)
    start = untrained(
        method, backbone, shots_of(given, noise_images(5, NAMES), templates=("the {}",))
    )
    module, model = start.module.double(), backbone.model
    frozen = [
        model.encode_image(images),
        model.encode_text(backbone.tokenizer([f"the {name}" for name in NAMES])),
    ]  # type: ignore[operator]
    lean = start.terms(range(5), images=backbone.image.frozen(images, 1))
    assert_same_terms(module, lean, plain_terms(backbone, module, images, frozen))


def plain_terms(
    backbone: Backbone, module: Any, images: torch.Tensor, frozen: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """With a consistency of weight 4."""
    mapped = [
        p @ layer.weight.T + layer.bias
        for p, layer in zip(module.coupled.prompts, module.coupled.maps, strict=True)
    ]
    with prompts_inserted(backbone, list(module.coupled.prompts), mapped) as model:
        w = model.encode_text(backbone.tokenizer([f"a photo of a {name}." for name in NAMES]))
        f = model.encode_image(images)
    mixed = []
    for side, x, m in (("image", f, 0.1), ("text", w, 0.2)):
        adapter: Any = module.adapters[side]
        down, up = adapter[0], adapter[2]
        x = m * (x @ down.weight.T).clamp(min=0).matmul(up.weight.T).clamp(min=0) + (1 - m) * x
        mixed.append(x / x.norm(dim=-1, keepdim=True))
    logits = model.logit_scale.exp() * mixed[0] @ mixed[1].T
    near = [
        1 - (x * F.normalize(y, dim=-1)).sum(-1).mean() for x, y in zip(mixed, frozen, strict=True)
    ]
    plain = {"ce": F.cross_entropy(logits, LABELS), "image": 4 * near[0], "text": 4 * near[1]}
    return {"loss": plain["ce"] + plain["image"] + plain["text"], **plain}


def write(folder: Path, value: Any) -> str:
    file = folder / "descriptions.json"
    file.write_text(json.dumps(value))
    return str(file)


def test_descriptions_are_features_of_their_sentences(tiny_clip: Backbone, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {"Tree_House": ["a house in a tree", "a tree"], "cat": ["{it} purrs"], "dog": ["it barks"]},
    )
    found = CoPrompt(descriptions=file).read(tiny_clip, ["cat", "tree house | hut"], ["{}"])
    assert found.counts.tolist() == [1, 2]
    tokens = tiny_clip.tokenizer(["{it} purrs", "a house in a tree", "a tree"])
    expected = F.normalize(tiny_clip.model.encode_text(tokens), dim=-1)  # type: ignore[operator]
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-5)


def test_every_description_is_drawn_equally_often() -> None:
    found = Descriptions(torch.arange(6.0)[:, None], torch.tensor([1, 3, 2]))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([found.draw(generator)[:, 0] for _ in range(3000)]).long()
    # [sentence, class]
    shares = torch.stack([(drawn == i).float().sum(0) for i in range(6)]) / 3000
    expected = torch.tensor(
        [[1, 0, 0], [0, 1 / 3, 0], [0, 1 / 3, 0], [0, 1 / 3, 0], [0, 0, 1 / 2], [0, 0, 1 / 2]]
    )
    assert (shares - expected).abs().max() < 0.03


def test_class_prompts_stand_in_and_a_note_says_so(
    tiny_clip: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    without_texts.cache_clear()
    for _ in range(2):
        found = CoPrompt().read(tiny_clip, NAMES, ["a photo of a {}."])
    assert capsys.readouterr().err.count("without generated descriptions") == 1
    tokens = tiny_clip.tokenizer([f"a photo of a {name}." for name in NAMES])
    expected = F.normalize(tiny_clip.model.encode_text(tokens), dim=-1)  # type: ignore[operator]
    torch.testing.assert_close(found.draw(torch.Generator()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "value", [["a cat"], {"dog": ["it barks"]}, {"cat": []}, {"cat": "it purrs"}], ids=str
)
def test_wrong_descriptions_are_named(tiny_clip: Backbone, tmp_path: Path, value: Any) -> None:
    with pytest.raises(UserError, match=r"descriptions\.json"):
        CoPrompt(descriptions=write(tmp_path, value)).read(tiny_clip, ["cat"], ["{}"])


@pytest.mark.parametrize("views", [1, 2, 0])
def test_images_are_compared_with_another_view(tiny_clip: Backbone, views: int) -> None:
    """With one view of each image it is compared with itself; else with that of the next epoch,
    held or fresh."""
    shots = eight_images(tiny_clip, augmentation="standard", views=views)
    start = untrained(CoPrompt(), tiny_clip, shots)
    rows, epoch = torch.arange(8), 1
    own, other = (start.source.batch(rows, e).features for e in (epoch, epoch + 1))
    assert torch.equal(own, other) == (views == 1)
    f = start.module.image_features(start.source.batch(rows, epoch))
    expected = 8 * (1 - F.cosine_similarity(f, other).mean())
    torch.testing.assert_close(start.terms(range(8), epoch)["image"], expected)


def test_a_class_is_compared_with_a_sentence_drawn_anew_in_each_step(
    tiny_clip: Backbone, tmp_path: Path
) -> None:
    """By the generator that a resumed training goes on with; answers need no file any more."""
    names = ("bird", "car", "cat", "dog")
    file = write(
        tmp_path,
        {name: [f"{name} {word}" for word in ("a", "the photo of", "house")] for name in names},
    )
    method = configured(
        CoPrompt(), {"descriptions": file, "epochs": 6, "learning_rate": 1e-12, "warmup_epochs": 0}
    )
    shots = eight_images(tiny_clip)
    fitted = method.fit(tiny_clip, shots)
    found = [step["text"] for step in fitted.trained.history]
    module, generator = method.module(tiny_clip), torch.Generator().manual_seed(shots.seed)
    w = module.class_features(module.text(names)).detach()
    read = method.read(tiny_clip, names, shots.templates)
    expected = [8 * float(1 - F.cosine_similarity(w, read.draw(generator)).mean()) for _ in found]
    assert found == pytest.approx(expected, rel=1e-3)
    assert len({round(value, 2) for value in expected}) == 3
    Path(file).unlink()
    again = method.restore(tiny_clip, fitted.known, fitted.tensors)
    assert torch.equal(logits_of(again, shots), logits_of(fitted, shots))
