"""What is kept of a model folder, and its image encoder loaded without the rest."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rmadapter import AdaptedCLIP, AdapterSettings
from rmadapter.artifacts.checkpoint import load, save, save_run
from rmadapter.artifacts.model_file import read_model
from rmadapter.artifacts.record import read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone, known
from rmadapter.backbones.backbone import Facts
from rmadapter.backbones.known import ImageFirst, Seen, key_of, load_image_first
from rmadapter.backbones.load import load_backbone, load_known
from rmadapter.encoders import pausing
from rmadapter.errors import UserError
from rmadapter.methods import METHODS
from rmadapter.methods.rmadapter import RMAdapter
from rmadapter.prompts import zero_shot_weights
from tests.helpers.methods import quick_method
from tests.helpers.models import write_tiny_clip, write_tiny_timm
from tests.helpers.shots import noisy_colors, shots_of, untrained
from tests.helpers.slow import ONE_OF_EACH, ci_except

NAMES, TEMPLATES = ("cat", "red dog"), ("a photo of a {}.", "{}")
WEIGHTS = "open_clip_model.safetensors"
# methods that adapt texts and keep class weights
KEEPING = (
    "rmadapter", "rmadapter-plus", "mma", "maple", "promptsrc", "coprompt", "coop", "kgcoop",
    "tcp", "prograd", "coop-few-shot", "cocoa-mix", "text-refiner", "dept", "hicropl", "mmrl",
    "mmrl-plus-plus", "clip-lora",
)  # fmt: skip
# methods that need the text encoder for each image, or to be restored
LOADING = ("cocoop", "tpt", "2sfs", "skip-tuning", "full-finetune", "lweib", "heba", "mail")


@pytest.fixture(params=["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"])
def whole(request: pytest.FixtureRequest) -> Backbone:
    backbone: Backbone = request.getfixturevalue(request.param)
    return backbone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_clip(tmp_path / "model")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the only one where facts are kept."""
    monkeypatch.setattr("rmadapter.backbones.known.CACHE_FOLDER", str(tmp_path / "kept"))
    return tmp_path / "kept"


def no_text(backbone: Backbone) -> Backbone:
    """Return a backbone of the same folder that has facts, and fails where the text encoder is
    needed."""

    def load() -> Backbone:
        raise LookupError("the text encoder")

    place, facts = Path(backbone.name), backbone.facts
    assert facts is not None
    seen = Seen(place, key_of(place), facts)
    first = load_image_first(backbone.name, place / WEIGHTS, seen, load)
    assert first is not None
    return first


def test_the_image_encoder_alone_is_that_of_the_whole(whole: Backbone, kept: Path) -> None:
    first, later = load_known(whole.name), load_known(whole.name)
    assert (type(first), type(later)) == (Backbone, ImageFirst)
    assert first.facts == later.facts == Facts(
        whole.digest, whole.structure, whole.embedding_size, whole.tokenizer_digest, True,
        whole.text.width, whole.text.depth, whole.text_length,
    )  # fmt: skip
    images = torch.rand(2, 3, 32, 32)
    for one in (later, no_text(first)):
        assert torch.equal(one.image.frozen(images).features, whole.image.frozen(images).features)
        assert torch.equal(one.logit_scale, whole.logit_scale)
        same: list[Callable[[Backbone], Any]] = [
            lambda b: str(b.preprocess), lambda b: (b.image_size, b.mean, b.std, b.resizing),
            lambda b: (b.digest, b.structure, b.tokenizer_digest, b.embedding_size, b.device),
            lambda b: b.text_length,
        ]  # fmt: skip
        assert [fact(one) for fact in same] == [fact(whole) for fact in same]
    text = no_text(first).text
    sizes = [(one.side, one.width, one.depth, one.opaque) for one in (text, whole.text)]
    assert sizes[0] == sizes[1]
    with pytest.raises(LookupError, match="the text encoder"):
        assert text.blocks


def test_the_rest_is_loaded_once_something_asks_for_it(whole: Backbone, kept: Path) -> None:
    load_known(whole.name)
    later = load_known(whole.name)
    tokens = later.tokenizer(["a cat"])
    assert torch.equal(tokens, whole.tokenizer(["a cat"]))
    assert torch.equal(later.text.frozen(tokens).features, whole.text.frozen(tokens).features)
    assert later.model.get_submodule("visual") is later.visible.get_submodule("visual")
    assert later.model is later.model
    ours, theirs = later.model.state_dict(), whole.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = replace(later, name="other")
    assert (again.name, again.facts, again.digest) == ("other", None, whole.digest)


def test_class_weights_need_no_text_encoder_the_second_time(tiny_hf: Backbone, kept: Path) -> None:
    first = load_known(tiny_hf.name)
    expected = zero_shot_weights(tiny_hf, NAMES, TEMPLATES)
    assert torch.equal(zero_shot_weights(first, NAMES, TEMPLATES), expected)
    assert torch.equal(zero_shot_weights(no_text(first), NAMES, TEMPLATES), expected)
    for names, templates in ((NAMES[::-1], TEMPLATES), (NAMES, TEMPLATES[:1])):
        with pytest.raises(LookupError):
            zero_shot_weights(no_text(first), names, templates)
    [file] = kept.glob("*.safetensors")
    file.write_bytes(b"damaged")
    with pytest.raises(LookupError):
        zero_shot_weights(no_text(first), NAMES, TEMPLATES)


# Of saved models


@pytest.fixture
def model(request: pytest.FixtureRequest, tiny_hf: Backbone, tmp_path: Path) -> Path:
    """A saved model whose method has the name of the parameter, with random weights."""
    method = quick_method(request.param)
    fitted = untrained(method, tiny_hf, shots_of(tiny_hf, noisy_colors(1))).fitted
    generator = torch.Generator().manual_seed(0)
    tensors = {
        key: 0.1 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in fitted.tensors.items()
    }
    save(tmp_path / "model", replace(fitted, tensors=tensors), request.param)
    return tmp_path / "model"


def logits(
    model: Path, backbone: Backbone, names: tuple[str, ...] | None = None, **more: Any
) -> torch.Tensor:
    """Return what a saved model answers on a backbone."""
    fitted = load(model, backbone, **more).fitted
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return fitted.score(names)(fitted.states(pixels))


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare answers by class weights that were kept with answers by those that were just made,
    which on one processor differed by 2e-7 from them."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.ci
@pytest.mark.parametrize("model", KEEPING, indirect=True)
def test_a_saved_model_needs_no_text_encoder_the_second_time(
    model: Path, tiny_hf: Backbone, kept: Path
) -> None:
    known = load_known(tiny_hf.name)
    expected = logits(model, tiny_hf)
    for backbone in (known, no_text(known)):
        same(logits(model, backbone), expected)
    some = read_model(RunFolder(model).model).classes[:2]
    with pytest.raises(LookupError):
        logits(model, no_text(known), some)
    same(logits(model, known, some), logits(model, tiny_hf, some))
    same(logits(model, no_text(known), some), logits(model, tiny_hf, some))


class Encoded(Exception):
    """A block of a text encoder was run."""


def refuse() -> None:
    raise Encoded


@pytest.mark.parametrize("name", ci_except(METHODS, *ONE_OF_EACH))
def test_no_method_encodes_its_classes_a_second_time(
    name: str, tiny_hf: Backbone, kept: Path, tmp_path: Path
) -> None:
    known = load_known(tiny_hf.name)
    fitted = quick_method(name).fit(known, shots_of(known, noisy_colors(2)))
    save(tmp_path / "model", fitted, name)
    load(tmp_path / "model", known).fitted.score()
    again = known if name in LOADING else no_text(known)
    with pausing(refuse):
        load(tmp_path / "model", again).fitted.score()


class Outside(RMAdapter):
    """A method whose code is not this package's."""


def test_saving_a_run_encodes_only_what_can_be_kept(
    finished: Path, tiny_clip: Backbone, kept: Path, tmp_path: Path
) -> None:
    record, saved = read_record(finished / "run.json"), load(finished, tiny_clip)
    plain, known = saved.fitted, load_known(tiny_clip.name)
    ours = replace(plain, backbone=known)
    others = replace(ours, method=Outside(**vars(plain.method)))
    with pausing(refuse):
        for number, fitted in enumerate((plain, others)):
            save_run(tmp_path / f"{number}", fitted, saved.name, record)
    with pytest.raises(Encoded), pausing(refuse):
        save_run(tmp_path / "ours", ours, saved.name, record)
    save_run(tmp_path / "ours", ours, saved.name, record)
    same(logits(tmp_path / "ours", no_text(known)), logits(finished, tiny_clip))


@pytest.mark.parametrize("model", ["rmadapter"], indirect=True)
def test_class_weights_of_another_model_are_not_taken(
    model: Path, tiny_hf: Backbone, kept: Path
) -> None:
    known = load_known(tiny_hf.name)
    expected = logits(model, known)
    with pytest.raises(LookupError):  # others have a gradient
        load(model, no_text(known)).fitted.for_classes(NAMES)
    more = {"settings": {"alpha": 0.5}}
    with pytest.raises(LookupError):
        logits(model, no_text(known), **more)
    same(logits(model, known, **more), logits(model, tiny_hf, **more))
    fitted = load(model, tiny_hf).fitted
    tensors = {name: 2 * tensor for name, tensor in fitted.tensors.items()}
    templates = replace(fitted.known, templates=("the {}",))
    for number, other in enumerate(
        (replace(fitted, tensors=tensors), replace(fitted, known=templates))
    ):
        save(model.parent / f"{number}", other, "rmadapter")
        with pytest.raises(LookupError):
            logits(model.parent / f"{number}", no_text(known))
    same(logits(model, no_text(known)), expected)


@pytest.mark.parametrize("model", ["rmadapter"], indirect=True)
def test_damaged_class_weights_are_made_again(model: Path, tiny_hf: Backbone, kept: Path) -> None:
    known = load_known(tiny_hf.name)
    expected = logits(model, known)
    [file] = kept.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        whole, metadata = opened.get_tensor("weights"), opened.metadata()
    for damaged in (whole[1:], whole * torch.nan, whole.roll(1, 0), -whole, None):
        if damaged is None:
            file.write_bytes(b"damaged")
        else:
            save_file({"weights": damaged.contiguous()}, file, metadata)
        with pytest.raises(LookupError):
            logits(model, no_text(known))
        same(logits(model, known), expected)
        same(logits(model, no_text(known)), expected)


@pytest.mark.skipif(os.name != "posix", reason="modes and links as POSIX has them")
@pytest.mark.parametrize("model", ["rmadapter"], indirect=True)
def test_class_weights_that_others_may_change_are_not_believed(
    model: Path, tiny_hf: Backbone, kept: Path
) -> None:
    known = load_known(tiny_hf.name)
    expected = logits(model, known)
    [file] = kept.glob("*.safetensors")
    file.chmod(0o666)
    with pytest.raises(LookupError):
        logits(model, no_text(known))
    same(logits(model, known), expected)
    file.chmod(0o644)
    same(logits(model, no_text(known)), expected)
    elsewhere = kept.rename(kept.with_name("elsewhere"))
    kept.symlink_to(elsewhere)
    with pytest.raises(LookupError):
        logits(model, no_text(known))


def test_a_changed_folder_is_loaded_whole(folder: Path, kept: Path) -> None:
    digest = load_known(str(folder)).digest
    other = write_tiny_clip(folder.parent / "other", seed=1)
    shutil.copyfile(other / WEIGHTS, folder / WEIGHTS)
    changed = load_known(str(folder))
    assert type(changed) is Backbone
    assert changed.digest != digest
    (folder / "merges.pkl").write_bytes(b"code")
    with pytest.raises(UserError, match=r"merges\.pkl"):
        load_known(str(folder))


def replace_weights(folder: Path) -> None:
    """Put the weights of another model into a folder."""
    other = write_tiny_clip(folder.parent / "other", seed=1)
    shutil.copyfile(other / WEIGHTS, folder / "new")
    (folder / "new").replace(folder / WEIGHTS)


def test_the_rest_of_another_model_is_not_loaded(folder: Path, kept: Path) -> None:
    for _ in range(2):
        later = load_known(str(folder))
    replace_weights(folder)
    for _ in range(2):
        with pytest.raises(UserError, match="load it again"):
            zero_shot_weights(later, NAMES, TEMPLATES)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="load it again"):
        later.tokenizer(["a cat"])
    assert not list(kept.glob("*.safetensors"))


def test_the_rest_is_loaded_from_wherever_the_user_is(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_clip(folder.parent / "elsewhere" / "model", seed=1)
    monkeypatch.chdir(folder.parent)
    expected = zero_shot_weights(load_backbone("model"), NAMES, TEMPLATES)
    load_known("model")
    for place in (folder.parent.parent, folder.parent / "elsewhere"):
        monkeypatch.chdir(folder.parent)
        later = load_known("model")
        assert type(later) is ImageFirst
        monkeypatch.chdir(place)
        assert torch.equal(zero_shot_weights(later, NAMES, TEMPLATES), expected)
        for file in kept.glob("*.safetensors"):
            file.unlink()


def test_the_same_files_written_again_are_the_same_model(folder: Path, kept: Path) -> None:
    for _ in range(2):
        later = load_known(str(folder))
    (folder / "notes.txt").write_text("more")
    assert later.tokenizer(["a cat"]).shape == (1, later.text_length)


def test_a_folder_that_is_replaced_while_it_is_read_is_loaded_whole(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_known(str(folder))
    read = known.read_facts

    def slow(key: str) -> Facts | None:
        facts = read(key)
        replace_weights(folder)
        return facts

    monkeypatch.setattr("rmadapter.backbones.load.read_facts", slow)
    later = load_known(str(folder))
    whole = load_backbone(str(folder))
    assert later.digest == whole.digest
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(later.image.frozen(images).features, whole.image.frozen(images).features)


def test_what_is_loaded_in_inference_mode_can_be_trained_on(folder: Path, kept: Path) -> None:
    for _ in range(2):
        later = load_known(str(folder))
    with torch.inference_mode():
        zero_shot_weights(later, NAMES, TEMPLATES)
    adapted = AdaptedCLIP(later, AdapterSettings(first_block=3, rank=4))
    adapted.class_weights(NAMES).sum().backward()
    assert not any(one.is_inference() for one in later.model.state_dict().values())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_is_whole_and_finds_its_own_digest(
    folder: Path, kept: Path, copied: Callable[[Backbone], Backbone]
) -> None:
    whole = load_known(str(folder))
    for backbone in (whole, load_known(str(folder))):
        twin = copied(backbone)
        assert twin.facts is None
        assert twin.digest == whole.digest
        tokens = twin.tokenizer(["a cat"])
        assert torch.equal(twin.text.frozen(tokens).features, whole.text.frozen(tokens).features)
        again = copied(backbone)
        next(again.model.parameters()).data += 1
        assert again.digest != backbone.digest == whole.digest


def test_an_image_encoder_alone_has_no_length_of_texts(tmp_path: Path, kept: Path) -> None:
    name = str(write_tiny_timm(tmp_path / "model"))
    for load_it in (load_backbone, load_known, load_known):
        with pytest.raises(UserError, match="no text encoder"):
            _ = load_it(name).text_length


@pytest.mark.parametrize("text", ["", "[]", '{"digest": "0"}', '{"digest": 1, "alone": true}'])
def test_damaged_facts_are_found_again(folder: Path, kept: Path, text: str) -> None:
    facts = load_known(str(folder)).facts
    [file] = kept.iterdir()
    content = json.loads(file.read_text())
    damaged = json.dumps({**content, **json.loads(text)}) if text.endswith("true}") else text
    file.write_text(damaged)
    again = load_known(str(folder))
    assert (type(again), again.facts) == (Backbone, facts)
    assert json.loads(file.read_text()) == content


def test_other_weights_than_the_files_are_not_loaded_alone(folder: Path, kept: Path) -> None:
    """open_clip resizes the positions of another image size."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = 64
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    digests = {load_known(str(folder)).digest for _ in range(2)}
    again = load_known(str(folder))
    assert type(again) is Backbone
    assert digests == {again.digest}
    assert again.facts is not None
    assert not again.facts.alone


def test_a_cache_that_cannot_be_written_stops_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("rmadapter.backbones.known.CACHE_FOLDER", str(tmp_path / "file" / "kept"))
    for _ in range(2):
        assert zero_shot_weights(load_known(str(folder)), NAMES, TEMPLATES).shape == (2, 40)


def test_without_a_home_folder_nothing_is_kept(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Path:
        raise UserError("there is no home folder")

    first = load_known(str(folder))
    expected = zero_shot_weights(first, NAMES, TEMPLATES)
    monkeypatch.setattr("rmadapter.backbones.known.cache_folder", missing)
    later = load_known(str(folder))
    assert (type(later), later.facts) == (Backbone, first.facts)
    assert torch.equal(zero_shot_weights(later, NAMES, TEMPLATES), expected)


def test_the_oldest_files_are_removed(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmadapter.backbones.known.MAX_FILES", 2)
    backbone = load_known(str(folder))
    for name in ("cat", "dog", "car"):
        zero_shot_weights(backbone, (name,), TEMPLATES)
        assert len(list(kept.iterdir())) <= 2
    assert torch.equal(
        zero_shot_weights(no_text(backbone), ("car",), TEMPLATES),
        zero_shot_weights(backbone, ("car",), TEMPLATES),
    )
