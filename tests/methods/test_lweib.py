"""LwEIB against the backbones' own forward passes with hooks, its texts, and what a fit does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods import lweib
from rmadapter.methods.descriptions import TEXTS, unpacked, without_texts
from rmadapter.methods.lweib import LwEIB, rivals
from rmadapter.prompts import cosine_logits
from rmadapter.settings import configured
from rmadapter.training.contract import Known
from tests.helpers.deep_prompts import NAMES, eight_images, pixels
from tests.helpers.inside_blocks import SCALES, front_of, hooked, is_bert, scale_of, sum_of_patches
from tests.helpers.rounding import double
from tests.helpers.shots import gradients, logits_of, noise_images, shots_of, untrained
from tests.helpers.slow import ci_except

KINDS = ["tiny_clip", "tiny_hf", "tiny_siglip"]


def patches(x: Tensor, weight: Tensor, front: int) -> Tensor:
    """Of images of 16 patches after `front` other tokens."""
    return torch.cat([torch.zeros_like(x[:, :front]), sum_of_patches(x[:, front:], weight)], 1)


def words(x: Tensor, weight: Tensor, real: Tensor | None) -> Tensor:
    """Word by word; real: [C, L], whether a token counts, where not all do."""
    wide = F.pad(x if real is None else x * real[..., None], (0, 0, 1, 1))
    return sum(wide[:, i : i + x.shape[1]] * weight[:, 0, i] for i in range(3))  # type: ignore[return-value]


def near(backbone: Backbone, tokens: Tensor) -> dict[str, Any]:
    """What a convolution adds."""
    front, real = front_of(backbone), tokens.ne(0) if is_bert(backbone) else None
    return {
        "image": lambda x, layer: patches(x, layer.weight, front),
        "text": lambda x, layer: words(x, layer.weight, real),
    }


@pytest.mark.parametrize("name", ci_except(KINDS, "tiny_clip"))
def test_features_and_gradients_are_plain_ones(name: str, request: pytest.FixtureRequest) -> None:
    """Gradients of weights are as if s were 1, while in everything below it counts."""
    backbone = double(request.getfixturevalue(name))
    module, images = LwEIB().module(backbone).double(), pixels(backbone)
    tokens = backbone.tokenizer(["", *NAMES])
    goal = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    f = module.image_features(backbone.image.frozen(images, 1), SCALES)
    w = module.text_features(tokens, SCALES)
    with hooked(backbone, module, near(backbone, tokens)) as model:
        f_plain = model.encode_image(images)
        w_plain = F.normalize(model.encode_text(tokens), dim=-1)
    torch.testing.assert_close(f, f_plain, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(w, w_plain, rtol=1e-9, atol=1e-10)
    assert (f - model.encode_image(images)).abs().max() > 1e-4
    found, plain = (
        gradients(module, (x @ y.T * goal).sum()) for x, y in ((f, w), (f_plain, w_plain))
    )
    # which pools over all patches
    assert ("layers.image.3.mlp.weight" in found) == (name == "tiny_siglip")
    for own, expected in plain.items():
        assert expected.norm() > 0, own
        torch.testing.assert_close(found[own], expected / scale_of(own), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ci_except(KINDS, "tiny_clip"))
def test_texts_are_cut_where_nothing_is_seen_of_the_rest(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding behind the end of a text is read by its last tokens: 2 tokens a block, and fewer are
    too few."""
    backbone = double(request.getfixturevalue(name))
    module, tokens = LwEIB().module(backbone).double(), backbone.tokenizer(["cat", "dog"])
    with torch.no_grad():
        whole = module.text_features(tokens, SCALES)
        kept = module.layout(tokens).grid[1]
        if name == "tiny_clip":
            assert kept == 3 + 2 * 4 < tokens.shape[1]
            monkeypatch.setattr(lweib, "TOKENS_AHEAD", 1)
            assert (module.text_features(tokens, SCALES) - whole).abs().max() > 1e-6
        monkeypatch.setattr("rmadapter.prompts.CHUNK_PROMPTS", 1)
        monkeypatch.setattr(lweib, "TOKENS_AHEAD", 2)
        torch.testing.assert_close(module.text_features(tokens, SCALES), whole)


def write(folder: Path, value: Any) -> str:
    file = folder / "texts.json"
    file.write_text(json.dumps(value))
    return str(file)


def test_a_step_draws_texts_rivals_and_scales(tiny_clip: Backbone, tmp_path: Path) -> None:
    """By the generator that a resumed training goes on with."""
    texts = {
        name: [f"text {i} of it" for i in range(n)]
        for n, name in enumerate(("bird", "car", "cat", "dog"), 1)
    }
    method = LwEIB(descriptions=write(tmp_path, texts), scale=0.5, negatives=1)
    shots = eight_images(tiny_clip)
    start = untrained(method, tiny_clip, shots)
    rows, module = [0, 4], start.module  # two cats, and one rival of three
    generator = torch.Generator().manual_seed(shots.seed)
    rival = [0, 1, 3][int(torch.randperm(3, generator=generator)[0])]
    places = torch.rand(2, generator=generator).tolist()
    names = [shots.classes[2], shots.classes[rival]]
    drawn = [
        texts[name][int(place * len(texts[name]))]
        for name, place in zip(names, places, strict=True)
    ]
    tokens = tiny_clip.tokenizer(
        [f"a photo of a {name}, {text}" for name, text in zip(names, drawn, strict=True)]
    )
    scales = [
        [1.25 if x > 0.8 else 0.5 for x in torch.rand(4, generator=generator)] for _ in range(2)
    ]
    w = module.text_features(tokens, scales[0])
    f = module.image_features(start.source.batch(torch.tensor(rows)), scales[1])
    expected = F.cross_entropy(cosine_logits(tiny_clip, f, w), torch.tensor([0, 0]))
    torch.testing.assert_close(start.terms(rows)["loss"], expected)


def test_rivals_are_the_images_own_classes_and_some_others() -> None:
    generator, labels = torch.Generator().manual_seed(0), torch.tensor([7, 2, 7])
    seen = torch.zeros(9)
    for _ in range(300):
        own, places = rivals(labels, 9, 2, generator)
        assert own[:2].tolist() == [2, 7]
        assert places.tolist() == [1, 0, 1]
        assert len({*own.tolist()}) == len(own) == 6
        seen[own[2:]] += 1 / 300
    assert seen[[2, 7]].sum() == 0
    assert (seen[[0, 1, 3, 4, 5, 6, 8]] - 4 / 7).abs().max() < 0.12
    assert len(rivals(labels, 9, 5, generator)[0]) == 9
    for classes, negatives in ((3, 2), (9, 0)):
        own, places = rivals(labels, classes, negatives, generator)
        assert own.tolist() == [*range(classes)]
        assert torch.equal(places, labels)


def test_scales_of_blocks_are_slow_or_fast() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([LwEIB().scales(12, generator) for _ in range(500)])
    assert {round(x, 4) for x in drawn.unique().tolist()} == {0.025, 0.0625}
    assert (drawn > 0.05).float().mean() == pytest.approx(0.2, abs=0.02)
    assert LwEIB().scales(3) == [0.025] * 3


def test_a_class_is_asked_by_the_mean_of_its_texts(tiny_clip: Backbone, tmp_path: Path) -> None:
    """One that joins too; one without texts by the run's prompts. The file is needed no more."""
    texts = {name: [f"{name} stands", "it runs"] for name in ("bird", "car", "cat", "dog")} | {
        "tree": ["it grows"]
    }
    file = Path(write(tmp_path, texts))
    method = configured(LwEIB(), {"descriptions": str(file), "epochs": 1, "scale": 0.3})
    shots = eight_images(tiny_clip, templates=("the {}.", "my {}."))
    fitted = method.fit(tiny_clip, shots)
    file.unlink()
    again = method.restore(tiny_clip, fitted.known, fitted.tensors)
    found: Any = again.for_classes(("car", "tree", "house | hut"))
    module = method.module(tiny_clip, texts=fitted.tensors[TEXTS])
    module.load_state_dict(dict(fitted.tensors))
    asked = (
        ["a photo of a car, car stands", "a photo of a car, it runs"],
        ["a photo of a tree, it grows"],
        ["the house.", "the hut.", "my house.", "my hut."],
    )
    each = [module.text_features(tiny_clip.tokenizer(some), [0.3] * 4).mean(0) for some in asked]
    torch.testing.assert_close(
        found.weights, F.normalize(torch.stack(each), dim=-1), rtol=1e-4, atol=1e-5
    )
    damaged = {**fitted.tensors, TEXTS: fitted.tensors[TEXTS][:-2]}
    with pytest.raises(RuntimeError):
        method.restore(tiny_clip, fitted.known, damaged)


def test_every_trained_class_needs_texts(tiny_clip: Backbone, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"texts\.json: class 'bird' has no texts: add some"):
        LwEIB(descriptions=write(tmp_path, {"cat": ["it purrs"]})).fit(
            tiny_clip, eight_images(tiny_clip)
        )


def test_class_prompts_stand_in_and_a_note_says_so(
    tiny_clip: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    without_texts.cache_clear()
    for _ in range(2):
        fitted = configured(LwEIB(), {"epochs": 1}).fit(
            tiny_clip, shots_of(tiny_clip, noise_images(2))
        )
    assert capsys.readouterr().err.count("without generated descriptions") == 1
    assert unpacked(fitted.tensors[TEXTS]) == {}
    assert LwEIB().texts("cat | kitten", Known(("cat",), ("a {}", "the {}")), {}) == [
        *("a cat", "a kitten", "the cat", "the kitten")
    ]


def test_training_moves_answers_about_images(tiny_clip: Backbone) -> None:
    method = configured(LwEIB(), {"epochs": 4, "batch_size": 8, "scale": 0.3})
    shots = eight_images(tiny_clip)
    fitted = method.fit(tiny_clip, shots)
    assert fitted.trained.step == 4
    start = method.restore(
        tiny_clip, shots.known, method.module(tiny_clip, seed=shots.seed).state_dict()
    )
    assert (logits_of(fitted, shots) - logits_of(start, shots)).abs().max() > 1e-3
