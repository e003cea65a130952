"""What a fitted model leaves on disk and what comes back; damaged files, files that do not belong
together, backbones that only the run names, and forged weights are refused."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmadapter import FewShotClassifier
from rmadapter.artifacts.checkpoint import (
    config_of,
    find_finished,
    load,
    read_draw,
    save,
    save_run,
)
from rmadapter.artifacts.record import read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.data.fewshot import few_shot, split_digest
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.methods import METHODS, load_method
from rmadapter.runs.request import Request
from rmadapter.settings import read_yaml, settings_of
from rmadapter.support.files import check_sums, sha256, write_sums
from rmadapter.support.locks import exclusive
from rmadapter.training.contract import Fitted
from tests.helpers.methods import probabilities, quick_method
from tests.helpers.shots import noisy_colors, shots_of
from tests.helpers.slow import ci_except

FILE = "model.safetensors"


@pytest.fixture(scope="module")
def fitted(tiny_clip: Backbone) -> Fitted:
    """MMA with no weight at zero, so that no tensor can be lost unnoticed."""
    method = load_method("mma", {"rank": 4, "first_block": 3, "epochs": 1})
    plain = method.fit(tiny_clip, shots_of(tiny_clip))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in plain.tensors.items()
    }
    return method.restore(tiny_clip, plain.known, tensors)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(folder: Path, words: str, backbone: Backbone | str | None = None, **more: Any) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load(folder, backbone, **more)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1300


def test_a_run_that_is_killed_before_its_sums_are_written_is_not_complete(
    copy: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, saved = read_record(copy / "run.json"), load(copy, tiny_clip)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "write_sums", killed)
        with pytest.raises(KeyboardInterrupt):
            save_run(copy, saved.fitted, saved.name, record)
    assert find_finished(copy, record.key) is None
    save_run(copy, saved.fitted, saved.name, record)
    assert find_finished(copy, record.key) == record
    check_sums(copy, ["run.json"])


def test_save_refuses_a_folder_that_another_process_holds(fitted: Fitted, tmp_path: Path) -> None:
    save(tmp_path, fitted, "mma")
    before = files_of(tmp_path)
    assert before.keys() == {FILE, "model.json", "SHA256SUMS"}  # and no lock
    with exclusive(tmp_path), pytest.raises(UserError, match="another process is at work"):
        save(tmp_path, fitted, "mma", half=True)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(fitted: Fitted, tmp_path: Path, half: bool) -> None:
    labels = ("Blau", "grün", "night_sky", "red")
    save(tmp_path, fitted, "mma", labels, half=half)
    saved = load(tmp_path, fitted.backbone.name)
    loaded = saved.fitted
    assert (saved.labels, saved.name, saved.names) == (labels, "mma", fitted.classes)
    assert (loaded.method, loaded.known) == (fitted.method, fitted.known)
    for name, tensor in fitted.tensors.items():
        assert loaded.tensors[name].dtype == torch.float32
        if half:  # float16 has 11 significant bits: half a unit in the last place is 2^-11
            torch.testing.assert_close(loaded.tensors[name], tensor, rtol=2**-11, atol=2**-25)
        else:
            assert torch.equal(loaded.tensors[name], tensor)
    assert {path.name for path in tmp_path.iterdir()} == {FILE, "model.json", "SHA256SUMS"}
    content = json.loads((tmp_path / "model.json").read_text("utf-8"))
    colours = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1]}
    resized = {"resize": "shortest", "interpolation": "bicubic", "fill": 0}
    assert content["transform"] == {"image_size": 32, **colours, **resized}
    assert content["method"]["settings"]["rank"] == 4
    assert loaded.examples is None
    shown = fitted.fitted_to(torch.randn(6, 40, generator=torch.Generator().manual_seed(0)))
    save(tmp_path, shown, "mma", half=half)
    examples = load(tmp_path, fitted.backbone).fitted.examples
    assert examples is not None
    assert torch.equal(examples, shown.examples.float())  # type: ignore[union-attr]


def test_a_folder_may_be_a_string_and_a_model_alone_records_no_draw(
    fitted: Fitted, tmp_path: Path
) -> None:
    save(str(tmp_path), fitted, "rmadapter")
    assert load(str(tmp_path), fitted.backbone).fitted.classes == fitted.classes
    with pytest.raises(UserError, match="does not say which images it was fitted to"):
        read_draw(tmp_path)


def test_only_trained_tensors_are_stored(fitted: Fitted, tmp_path: Path) -> None:
    save(tmp_path, fitted, "mma")
    kinds, blocks = ("weight", "bias"), product(("image", "text"), (3, 4), ("down", "up"))
    keys = {f"{side}.{block}.{layer}.{kind}" for side, block, layer in blocks for kind in kinds}
    keys |= {f"cross.{height}.{kind}" for height in (0, 1) for kind in kinds}
    stored = load_file(tmp_path / FILE)
    assert set(stored) == keys
    assert sum(tensor.numel() for tensor in stored.values()) == fitted.parameters
    assert (tmp_path / FILE).stat().st_size < 4 * fitted.parameters + 20_000


def test_saving_twice_gives_the_same_bytes(fitted: Fitted, tmp_path: Path) -> None:
    for number in range(5):
        save(tmp_path / str(number), fitted, "mma")
    assert len({(tmp_path / str(number) / FILE).read_bytes() for number in range(5)}) == 1


def test_a_run_records_what_it_takes_to_repeat_it(
    finished: Path, colors: Path, tiny_clip: Backbone
) -> None:
    record = read_record(finished / "run.json")
    assert (record.backbone.name, record.backbone.digest) == (tiny_clip.name, tiny_clip.digest)
    split, task = split_digest(few_shot(read_images(colors), 4, 1)), record.task
    assert read_draw(finished) == (task, split) == (record.task, record.split_digest)
    assert split == json.loads((finished / "split.json").read_text())["digest"]
    assert record.seconds["train"] > 0 < record.seconds["evaluate"]
    values = read_yaml(finished / "config.yaml")
    wanted = Request.make(values, values.pop("method"), data="colors")
    assert wanted.task == record.task
    assert json.loads(json.dumps(settings_of(wanted.method))) == record.method.settings


def test_settings_named_like_common_ones_get_the_prefix_of_their_method(
    tiny_clip: Backbone, finished: Path
) -> None:
    record = read_record(finished / "run.json")
    own = {"name": "promptsrc", "settings": settings_of(load_method("promptsrc"))}
    method = record.method.model_copy(update=own)
    values = config_of(record.model_copy(update={"method": method}))
    assert values["templates"] == ("a photo of a {}.",)
    assert len(values["promptsrc.templates"]) == 20
    assert Request.make(values, values.pop("method")).method == load_method("promptsrc")


# Damaged and foreign files


def test_a_folder_without_a_model_is_refused(copy: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none", "none: no such folder; `rmadapter fit DATA --out .+` makes one")
    (copy / "model.json").unlink()
    refused(copy, "not a finished run")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (FILE, None, "not a readable file"),
        (FILE, b"", "the folder is damaged"),
        (FILE, b"PK\x03\x04 a pickle of torch.save", "the folder is damaged"),
        ("model.json", b"{", r"model\.json: not readable JSON"),
        ("model.json", b"[]", r"model\.json: not a model of this version"),
        ("model.json", b'{"format": 3}', r"model\.json: not a model of this version"),
    ],
)
def test_damaged_files_are_refused(
    copy: Path, tiny_clip: Backbone, name: str, content: bytes | None, words: str
) -> None:
    (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
    refused(copy, words, tiny_clip)


def edit_model(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change model.json as somebody does who knows of SHA256SUMS."""
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    content = json.loads((folder / "model.json").read_text("utf-8"))
    change(content)
    (folder / "model.json").write_text(json.dumps(content), encoding="utf-8")


def rename_method(folder: Path, name: str) -> None:
    edit_model(folder, lambda content: content["method"].update(name=name))


def rename_backbone(folder: Path, name: str) -> None:
    edit_model(folder, lambda content: content["backbone"].update(name=name))


FIT = "its weights do not fit the settings of RMAdapter"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 5}, FIT),
        ({"first_block": 2}, FIT),
        ({"lambda_text_rec": 0.0}, FIT),
        ({"cross_modal": True}, FIT),
        ({"rank": "many"}, "rank='many'"),
        ({"rnak": 4}, "did you mean 'rank'"),
    ],
)
def test_settings_of_other_shapes_and_unknown_ones_are_refused(
    copy: Path, tiny_clip: Backbone, settings: dict[str, Any], words: str
) -> None:
    edit_model(copy, lambda content: content["method"]["settings"].update(settings))
    refused(copy, words, tiny_clip)


def test_settings_of_another_method_are_refused(copy: Path, tiny_clip: Backbone) -> None:
    rename_method(copy, "coop")
    refused(copy, "coop: unknown field", tiny_clip)


def test_a_method_from_outside_needs_to_be_named_by_the_user(
    copy: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """Nothing of the named file or package is imported unless the user names it too."""
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    named = f"{tmp_path / 'evil.py'}:Evil"
    for name in ("evil:Evil", named):
        rename_method(copy, name)
        refused(copy, "--code")
    with pytest.raises(SystemExit, match="ran"):
        load(copy, tiny_clip, method=named)


def test_another_backbone_is_refused(
    finished: Path, tiny_clip: Backbone, tiny_siglip: Backbone
) -> None:
    words = f"was trained on {tiny_clip.name} .+, but {tiny_siglip.name} .+ has other weights"
    refused(finished, words, tiny_siglip)


def test_the_same_architecture_with_other_weights_is_refused(
    finished: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """One weight has changed since the training: nothing but the digest can tell."""
    folder = Path(shutil.copytree(tiny_clip.name, tmp_path / "backbone"))
    # a copy elsewhere is the same backbone
    assert load(finished, load_backbone(str(folder))).fitted.first == 3
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.conv1.weight"][0, 0, 0, 0] += 1e-3
    save_file(weights, folder / "open_clip_model.safetensors")
    refused(finished, "load it with the backbone it was trained on", load_backbone(str(folder)))


def test_settings_passed_to_load_replace_the_saved_ones(
    finished: Path, tiny_clip: Backbone
) -> None:
    images = noisy_colors(1)
    changed = replace(load(finished, tiny_clip, settings={"alpha": 0}).fitted, temperature=1.0)
    untouched = load_method("zero-shot").restore(tiny_clip, changed.known, {})
    one, two = (probabilities(fitted, images) for fitted in (changed, untouched))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    refused(finished, "unknown field 'alfa'; did you mean 'alpha'", tiny_clip, settings={"alfa": 0})


# Backbones


def test_a_backbone_passed_to_load_replaces_the_saved_name(copy: Path, tiny_clip: Backbone) -> None:
    rename_backbone(copy, "/gone")
    refused(copy, "'/gone'.+--backbone")
    refused(copy, "'/gone'", "/gone")
    assert load(copy, replace(tiny_clip, name="here")).fitted.backbone.name == "here"
    assert load(copy, tiny_clip.name).fitted.backbone.name == tiny_clip.name


def test_a_folder_or_repository_needs_to_be_named_by_the_user(
    copy: Path, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A published name needs nobody's word, unless it is a folder here."""
    monkeypatch.setattr(
        "rmadapter.artifacts.checkpoint.load_known",
        lambda name, revision: pytest.fail(f"{name} was read"),
    )
    file = f"ViT-B-16/{tmp_path}/a.safetensors"
    for name in ("hf-hub:somebody/else", tiny_clip.name, file, "./x", "x" * 9000):
        rename_backbone(copy, name)
        refused(copy, "name it yourself: --backbone '")
    monkeypatch.setattr(
        "rmadapter.artifacts.checkpoint.load_known", lambda name, revision: tiny_clip
    )
    for name in ("pocket", "ViT-B-16/openai", "ViT-B-32/none"):
        rename_backbone(copy, name)
        assert load(copy).fitted.backbone is tiny_clip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ViT-B-32" / "none").mkdir(parents=True)
    refused(copy, "backbone 'ViT-B-32/none'")
    with pytest.raises(UserError, match="name it yourself"):
        FewShotClassifier.load(copy)


def test_another_tokenizer_or_transform_is_refused(
    finished: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((finished / "model.json").read_text("utf-8"))
    assert content["tokenizer"] == tiny_clip.tokenizer_digest != ""
    other = replace(tiny_clip, tokenizer_digest="0" * 64)
    refused(finished, "the tokenizer of its backbone", other)
    other = replace(tiny_clip, mean=(0.5, 0.4, 0.31))
    refused(finished, "the image transform of its backbone", other)
    assert content["transform"]["resize"] == "shortest"
    visual: Any = tiny_clip.model.visual
    for field, value in (("resize_mode", "squash"), ("interpolation", "bilinear")):
        monkeypatch.setattr(visual, "preprocess_cfg", {**visual.preprocess_cfg, field: value})
        refused(finished, "the image transform of its backbone", tiny_clip)
        monkeypatch.undo()


def test_a_model_that_does_not_say_its_tokenizer_or_resizing_is_read(
    copy: Path, tiny_clip: Backbone
) -> None:
    def forget(content: dict[str, Any]) -> None:
        for field in ("resize", "interpolation", "fill"):
            del content["transform"][field]
        del content["tokenizer"]

    edit_model(copy, forget)
    assert load(copy, replace(tiny_clip, tokenizer_digest="another")).name == "rmadapter"


# Files that do not belong together


def test_save_refuses_the_folder_of_a_run(copy: Path, tiny_clip: Backbone) -> None:
    before = files_of(copy)
    with pytest.raises(UserError, match="holds a run of `fit`"):
        FewShotClassifier.load(copy, backbone=tiny_clip.name).save(copy)
    assert files_of(copy) == before


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "run.json", "history.csv", "split.json", "report.html", "model.json", FILE],
)
def test_one_changed_byte_of_any_file_is_refused(
    copy: Path, tiny_clip: Backbone, name: str
) -> None:
    content = bytearray((copy / name).read_bytes())
    place = content.index(b"blue") if name == "model.json" else len(content) // 2
    content[place] ^= 1
    (copy / name).write_bytes(content)
    sums = "model.json" if name == FILE else "SHA256SUMS"
    refused(copy, rf"{name}: does not match {sums}", tiny_clip)


def test_a_record_that_the_sums_do_not_list_is_refused(copy: Path) -> None:
    assert read_draw(copy)[0].shots == 4
    write_sums(copy, (FILE, "model.json"))
    with pytest.raises(UserError, match=r"run\.json: not listed in SHA256SUMS"):
        read_draw(copy)


def test_a_run_without_sums_is_read(copy: Path, tiny_clip: Backbone) -> None:
    (copy / "SHA256SUMS").unlink()
    assert load(copy, tiny_clip).name == "rmadapter"
    assert read_draw(copy)[0].shots == 4


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(
    copy: Path, tiny_clip: Backbone, number: float
) -> None:
    fitted = load(copy, tiny_clip).fitted
    tensors = {name: tensor.clone() for name, tensor in fitted.tensors.items()}
    tensors["text.4.down.weight"][1, 1] = number
    (copy / "run.json").unlink()
    save(copy, replace(fitted, tensors=tensors), "rmadapter")
    refused(copy, rf"{FILE}: 'text.4.down.weight'", tiny_clip)


FORGED: dict[str, Callable[[Tensor], Tensor]] = {
    "more rows": lambda x: torch.cat([x, x]) if x.ndim else torch.stack([x, x]),
    "one number less": lambda x: x.flatten()[:-1],
    "a number": lambda x: torch.tensor(1.0) if x.ndim else torch.tensor(1),
    "one more side": lambda x: x[None],
    "whole numbers": lambda x: torch.ones(x.shape, dtype=torch.int64),
    "float8": lambda x: torch.ones(x.shape).to(torch.float8_e4m3fn),
    "double": lambda x: x.double(),
    "bfloat16": lambda x: x.bfloat16(),
}
# Those that make no module of their tensors, which torch would check, and some that do.
BY_HAND = (
    *("linear-probe", "linear-probe-zero-shot", "linear-probe-pair", "clap", "lp-plus-plus"),
    *("tip-adapter-f", "zero-shot-descriptions", "rmadapter-plus", "prompt-kd", "lweib", "mma"),
)


@pytest.mark.parametrize("name", ci_except(BY_HAND, "rmadapter-plus"))
def test_forged_weights_are_refused_or_give_probabilities(
    name: str, tiny_clip: Backbone, tmp_path: Path
) -> None:
    assert name in METHODS
    images = noisy_colors(1)
    save(tmp_path, quick_method(name).fit(tiny_clip, shots_of(tiny_clip, images)), name)
    file, model = tmp_path / "model.safetensors", tmp_path / "model.json"
    # copies, since older safetensors leave the tensors in the file, which is written again below
    whole = {what: tensor.clone() for what, tensor in load_file(file).items()}
    said = json.loads(model.read_text())
    last = {what.rpartition(".")[2]: what for what in whole}  # one of each kind
    for what in last.values():
        for how, change in FORGED.items():
            save_file({**whole, what: change(whole[what]).contiguous()}, file)
            model.write_text(json.dumps({**said, "sha256": sha256(file)}))
            try:
                loaded = load(tmp_path, tiny_clip).fitted
            except UserError:
                continue
            assert how in ("double", "bfloat16", "whole numbers"), what
            assert probabilities(loaded, images).shape == (len(images), len(images.classes))


@pytest.mark.parametrize(
    "template", ["{:>1000000000}", "{} {}", "{0.__class__}", "{", "{1}", "x", "{}" + "x" * 1000]
)
def test_templates_of_a_run_are_checked(template: str, copy: Path, tiny_clip: Backbone) -> None:
    edit_model(copy, lambda content: content.update(templates=[template]))
    with pytest.raises(UserError, match=r"model\.json.*template"):
        load(copy, tiny_clip)


def test_too_many_classes_of_a_run(copy: Path, tiny_clip: Backbone) -> None:
    names = [str(i) for i in range(100_001)]
    edit_model(copy, lambda content: content.update(classes=names, labels=names))
    with pytest.raises(UserError, match=r"model\.json.*classes"):
        load(copy, tiny_clip)


def test_the_first_of_many_bad_names_is_enough(copy: Path, tiny_clip: Backbone) -> None:
    names = [f"{i}\0" for i in range(50_000)]
    edit_model(copy, lambda content: content.update(classes=names, labels=names))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"model\.json.*classes"):
        load(copy, tiny_clip)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000


def test_too_many_prompts_of_a_run(copy: Path, tiny_clip: Backbone) -> None:
    templates = [f"{i} {{}}" for i in range(1001)]
    edit_model(copy, lambda content: content.update(templates=templates))
    with pytest.raises(UserError, match="1,001 templates"):
        load(copy, tiny_clip)
