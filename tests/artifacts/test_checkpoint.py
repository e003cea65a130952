"""What a fitted model leaves on disk, what comes back from it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmadapter.artifacts.checkpoint import config_of, find_finished, load, read_draw, save, save_run
from rmadapter.artifacts.record import read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.data.fewshot import few_shot, split_digest
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.runs.request import Request
from rmadapter.settings import read_yaml, settings_of
from rmadapter.support.files import check_sums
from rmadapter.support.locks import exclusive
from rmadapter.training.contract import Fitted
from tests.helpers.shots import noisy_colors, shots_of

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


def refused(folder: Path, words: str, backbone: Backbone | None = None, **more: Any) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load(folder, backbone, **more)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


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
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {FILE, "model.json", "SHA256SUMS"}  # and no lock
    with (
        exclusive(tmp_path),
        pytest.raises(UserError, match="another process is at work in this folder"),
    ):
        save(tmp_path, fitted, "mma", half=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(fitted: Fitted, tmp_path: Path, half: bool) -> None:
    labels = ("Blau", "grün", "night_sky", "red")
    save(tmp_path, fitted, "mma", labels, half=half)
    loaded, names, method, asked = load(tmp_path, fitted.backbone.name)
    assert asked == fitted.classes
    assert (names, method) == (labels, "mma")
    assert loaded.method == fitted.method
    assert loaded.known == fitted.known
    for name, tensor in fitted.tensors.items():
        assert loaded.tensors[name].dtype == torch.float32
        if half:  # float16 has 11 significant bits: half a unit in the last place is 2^-11
            torch.testing.assert_close(loaded.tensors[name], tensor, rtol=2**-11, atol=2**-25)
        else:
            assert torch.equal(loaded.tensors[name], tensor)
    assert {path.name for path in tmp_path.iterdir()} == {FILE, "model.json", "SHA256SUMS"}
    content = json.loads((tmp_path / "model.json").read_text("utf-8"))
    resized = {"resize": "shortest", "interpolation": "bicubic", "fill": 0}
    assert content["transform"] == {
        "image_size": 32,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.3, 0.2, 0.1],
        **resized,
    }
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
    layers = [f"{layer}.{kind}" for layer in ("down", "up") for kind in ("weight", "bias")]
    keys = {
        f"{side}.{block}.{layer}"
        for side in ("image", "text")
        for block in (3, 4)
        for layer in layers
    }
    keys |= {f"cross.{height}.{kind}" for height in (0, 1) for kind in ("weight", "bias")}
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
    split = split_digest(few_shot(read_images(colors), 4, 1))
    assert (
        read_draw(finished)
        == (4, 1, split)
        == (record.task.shots, record.task.seed, record.split_digest)
    )
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
    method = record.method.model_copy(
        update={"name": "promptsrc", "settings": settings_of(load_method("promptsrc"))}
    )
    values = config_of(record.model_copy(update={"method": method}))
    assert values["templates"] == ("a photo of a {}.",)
    assert len(values["promptsrc.templates"]) == 20
    assert Request.make(values, values.pop("method")).method == load_method("promptsrc")


# ---- what is refused ----


def test_a_folder_without_a_model_is_refused(copy: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none", "none: no such folder; `rmadapter fit DATA --out .+` makes one")
    (copy / "model.json").unlink()
    refused(copy, "not a finished run")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (FILE, None, "not readable"),
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


def test_a_model_of_several_labels_per_image_is_refused(copy: Path, tiny_clip: Backbone) -> None:
    (copy / "SHA256SUMS").unlink()
    content = json.loads((copy / "model.json").read_text("utf-8"))
    (copy / "model.json").write_text(json.dumps({**content, "several": False, "threshold": 0.5}))
    load(copy, tiny_clip)
    (copy / "model.json").write_text(json.dumps({**content, "several": True, "threshold": 0.3}))
    refused(copy, r"model\.json: .*several labels per image", tiny_clip)


def test_one_flipped_bit_is_refused(copy: Path, tiny_clip: Backbone) -> None:
    content = bytearray((copy / FILE).read_bytes())
    content[-5] ^= 1
    (copy / FILE).write_bytes(bytes(content))
    refused(copy, "does not match model.json", tiny_clip)


def changed(folder: Path, **method: Any) -> None:
    """model.json with other settings of the method, or another name of it, by somebody who knows of
    SHA256SUMS."""
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    content = json.loads((folder / "model.json").read_text("utf-8"))
    name = method.pop("name", content["method"]["name"])
    content["method"] |= {"name": name, "settings": {**content["method"]["settings"], **method}}
    (folder / "model.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    "change", [{"rank": 5}, {"first_block": 2}, {"lambda_text_rec": 0.0}, {"cross_modal": True}]
)
def test_settings_of_other_shapes_are_refused(
    copy: Path, tiny_clip: Backbone, change: dict[str, Any]
) -> None:
    changed(copy, **change)
    refused(copy, "its weights do not fit the settings of RMAdapter", tiny_clip)


def test_unknown_settings_are_refused(copy: Path, tiny_clip: Backbone) -> None:
    changed(copy, rank="many")
    refused(copy, "rank='many'", tiny_clip)
    changed(copy, rank=4, rnak=4)
    refused(copy, "did you mean 'rank'", tiny_clip)
    changed(copy, name="coop")
    refused(copy, "coop: unknown field", tiny_clip)


def test_a_method_from_outside_needs_to_be_named_by_the_user(
    copy: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """Nothing of the named file or package is imported unless the user names it too."""
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    for name in (f"{tmp_path / 'evil.py'}:Evil", "evil:Evil"):
        changed(copy, name=name)
        refused(copy, "--method")
    named = f"{tmp_path / 'evil.py'}:Evil"
    changed(copy, name=named)
    with pytest.raises(SystemExit, match="ran"):
        load(copy, tiny_clip, method=named)


def test_another_backbone_is_refused(
    finished: Path, tiny_clip: Backbone, tiny_siglip: Backbone
) -> None:
    refused(
        finished,
        f"was trained on {tiny_clip.name} .+, but {tiny_siglip.name} .+ has other weights",
        tiny_siglip,
    )


def test_the_same_architecture_with_other_weights_is_refused(
    finished: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """One weight has changed since the training: nothing but the digest can tell."""
    folder = Path(shutil.copytree(tiny_clip.name, tmp_path / "backbone"))
    assert (
        load(finished, load_backbone(str(folder))).fitted.first == 3
    )  # a copy elsewhere is the same backbone
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.conv1.weight"][0, 0, 0, 0] += 1e-3
    save_file(weights, folder / "open_clip_model.safetensors")
    refused(finished, "load it with the backbone it was trained on", load_backbone(str(folder)))


def test_settings_passed_to_load_replace_the_saved_ones(
    finished: Path, tiny_clip: Backbone
) -> None:
    images = noisy_colors(1)
    dialled = load(finished, tiny_clip, settings={"alpha": 0}).fitted
    untouched = load_method("zero-shot").restore(tiny_clip, dialled.known, {})
    one, two = (
        torch.cat(list(fitted.probabilities(images.images))) for fitted in (dialled, untouched)
    )
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    refused(finished, "unknown field 'alfa'; did you mean 'alpha'", tiny_clip, settings={"alfa": 0})
