"""A run in a repository: what is sent, what never is, and what a hub on loopback may refuse."""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load as stored

from rmadapter import FewShotClassifier
from rmadapter.answers.rejection import RejectionScore
from rmadapter.artifacts.checkpoint import EXAMPLES, load
from rmadapter.artifacts.model_file import read_model
from rmadapter.artifacts.record import (
    BackboneName,
    MethodName,
    read_record,
)
from rmadapter.artifacts.value import Promise
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.export.hub import (
    PushOptions,
    anonymise_command,
    anonymise_names,
    anonymise_record,
    hub_name,
    model_card,
    push,
)  # fmt: skip
from rmadapter.support.files import check_sums, last_part
from rmadapter.task import Question
from tests.helpers.fake_hub import Hub, Repository, hub, point_to
from tests.helpers.shell import Command, backbone_option, refused, rmadapter

__all__ = ["hub", "rmadapter"]  # fixtures

FILES = {"README.md", "SHA256SUMS", "config.yaml", "model.json", "model.safetensors", "run.json"}


def test_pushed_run_answers_like_the_run(
    rmadapter: Command, hub: Hub, finished: Path, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """Every verb that takes a run takes the repository, too."""
    done = rmadapter("push", finished, "anna/colors", "--private")
    assert done.code == 0, done.err
    assert done.err.startswith("note: to anna/colors: README.md (0.00 MB), SHA256SUMS")
    assert f"{hub.url}/anna/colors: rmadapter predict hf:anna/colors IMAGES" in done.out
    repository = hub.repositories["anna/colors"]
    assert repository.private
    assert {*repository.files} == {".gitattributes", *FILES}
    assert len(repository.log) == 2
    images, run = sorted((colors / "test").rglob("*.png")), "hf:anna/colors"
    expected = np.concatenate([*load(finished, tiny_clip).fitted.probabilities(images)])
    answers = np.concatenate([*load(run, tiny_clip).fitted.probabilities(images)])
    np.testing.assert_array_equal(answers, expected)
    with pytest.raises(UserError, match="tiny_clip0"):
        FewShotClassifier.load(run)
    its = backbone_option(finished)
    for words in (["predict", run, images[0]], ["eval", run, colors], ["explain", run, images[0]]):
        assert rmadapter(*words, *its, "--json").code == 0
    assert rmadapter("add", run, "yellow", *its, "--out", tmp_path / "more").code == 0


@pytest.mark.slow
def test_export_of_a_repository(
    rmadapter: Command, hub: Hub, finished: Path, colors: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("onnxruntime")
    push(finished, "anna/colors")
    monkeypatch.chdir(tmp_path)
    its = backbone_option(finished)
    assert rmadapter("export", "hf:anna/colors", *its, "--data", colors).code == 0
    assert (tmp_path / "colors-onnx/model.onnx").is_file()


def test_nothing_private_is_sent(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    record = read_record(run / "run.json")
    secret = "/home/anna/secret"
    reason = f"{secret}/1.jpg: damaged"
    score_update = {"data": f"{secret}/zoo", "reason": reason}
    test = Question("x", f"{secret}/zoo")
    update = {
        "task": replace(record.task, data=f"{secret}/pets", tests=(test,)),
        "scores": tuple(score.model_copy(update=score_update) for score in record.scores),
        "choice": {"chosen": secret, "rows": [{"reason": reason}]},
        "command": f"rmadapter fit {secret}",
        "notes": (secret,),
        "machine": {"cpu": secret},
        "reason": secret,
        "columns": {"image": "secret"},
        "copied_from": secret,
    }
    record.model_copy(update=update).save(run / "run.json")
    (run / "SHA256SUMS").unlink()
    push(run, "anna/pets", to=tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    for file in (tmp_path / "out").iterdir():
        for private in (platform.platform(), "secret", str(tmp_path.parent), ".png"):
            assert private.encode() not in file.read_bytes(), file
    assert read_record(tmp_path / "out/run.json").task.data == "pets"
    check_sums(tmp_path / "out", FILES - {"SHA256SUMS"})


def test_half_and_examples(finished: Path, tiny_clip: Backbone, tmp_path: Path) -> None:
    options = {
        "plain": PushOptions(),
        "half": PushOptions(half=True),
        "examples": PushOptions(examples=True),
    }
    tensors = {}
    for name, each in options.items():
        push(finished, "anna/colors", each, to=tmp_path / name)
        tensors[name] = stored((tmp_path / name / "model.safetensors").read_bytes())
        assert (load(tmp_path / name, tiny_clip).fitted.examples is None) == (name != "examples")
    whole = stored((finished / "model.safetensors").read_bytes())
    assert {*whole} - {*tensors["plain"]} == {EXAMPLES}
    assert {*whole} == {*tensors["examples"]}
    assert {str(tensor.dtype) for tensor in tensors["half"].values()} == {"float16"}
    for name, tensor in tensors["plain"].items():
        np.testing.assert_array_equal(tensor, whole[name])


def test_second_push_removes_old_files(hub: Hub, finished: Path, tmp_path: Path) -> None:
    push(finished, "anna/colors")
    bare = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in ("run.json", "SHA256SUMS"):
        (bare / name).unlink()
    facts = push(bare, "anna/colors", PushOptions(licence="mit"))
    repository = hub.repositories["anna/colors"]
    assert {*repository.files} == {".gitattributes", *FILES} - {"run.json", "config.yaml"}
    assert [message[:8] for _, _, message in repository.log] == ["initial ", "A run of", "A run of"]
    assert facts["commit"] == repository.log[-1][0]
    assert b"license: mit" in repository.files["README.md"]


def test_refused_pushes(rmadapter: Command, hub: Hub, finished: Path, tmp_path: Path) -> None:
    refused(rmadapter("push", finished, "colors"), "'colors'", "OWNER/NAME")
    refused(rmadapter("push", tmp_path, "anna/x"), "not a finished run")
    refused(rmadapter("push", finished, "anna/x", "--out", tmp_path), "already exists", "--out")
    assert not hub.asked
    hub.repositories["anna/text"] = Repository(**{"config.json": b"{}"})
    push(finished, "anna/open")
    for words, hints in (
        (["bert/x"], ["bert/x: your token may not write there"]),
        (["anna/text"], ["anna/text already exists and is not a run"]),
        (["anna/a", "--licence", "nonsense"], ["anna/a", '"license" must be one of']),
        (["anna/open", "--private"], ["anna/open already exists and is public"]),
    ):
        refused(rmadapter("push", finished, "--quiet", *words), *hints)
    assert len(hub.repositories["anna/open"].log) == 2


def test_damaged_run_is_refused(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        push(run, "anna/x", to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("token", ["", "hf_nobody"])
def test_push_without_a_token(
    rmadapter: Command, hub: Hub, finished: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, token: str,
) -> None:  # fmt: skip
    point_to(hub.url, tmp_path, monkeypatch, token)
    refused(rmadapter("push", finished, "anna/x", "--quiet"), "`hf auth login`")


def test_push_without_a_network(
    rmadapter: Command, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to("http://127.0.0.1:1", tmp_path, monkeypatch)
    refused(rmadapter("push", finished, "anna/x", "--quiet"), "anna/x", "cannot be reached")


def test_json_and_a_folder(rmadapter: Command, finished: Path, tmp_path: Path) -> None:
    done = rmadapter("push", finished, "anna/x", "--out", tmp_path / "a", "--json")
    facts = json.loads(done.out)
    assert (done.code, facts["folder"], {*facts["files"]}) == (0, str(tmp_path / "a"), FILES)
    done = rmadapter("push", finished, "anna/x", "--out", tmp_path / "b")
    assert done.out.splitlines()[-1] == f"folder: {tmp_path / 'b'}; nothing was sent"


# The model card


def test_metadata_and_figures(finished: Path) -> None:
    model, record = read_model(finished / "model.json"), read_record(finished / "run.json")
    judged = record.judgement
    assert judged is not None
    card = ModelCard(model_card(model, record, "anna/colors", "mit", examples=False))
    data = card.data.to_dict()
    kind = (data["license"], data["library_name"], data["pipeline_tag"])
    assert kind == ("mit", "rmadapter", "image-classification")
    assert {"few-shot", "rmadapter"} <= {*data["tags"]}
    assert "base_model" not in data  # the backbone is a folder
    accuracy = next(one for one in card.data.eval_results or () if one.metric_type == "accuracy")
    assert accuracy.metric_value == round(judged.fitted.accuracy / 100, 4)
    assert (accuracy.dataset_name, accuracy.dataset_split) == ("colors", judged.how)
    for row in judged.rows:
        assert f"| {row.name} | {row.accuracy:.1f} | {row.low:.1f} to {row.high:.1f} |" in card.text
    for text in (*judged.doubts, "blue, green, night\\_sky, red"):
        assert text in card.text
    assert 'FewShotClassifier.load("hf:anna/colors", backbone="BACKBONE")' in card.text
    assert "rmadapter predict hf:anna/colors photos --backbone BACKBONE\n" in card.text
    assert model.backbone.name.replace("_", "\\_") in card.text
    published = model.model_copy(update={"backbone": BackboneName(name="pocket", digest="0")})
    text = model_card(published, record, "anna/colors", "mit", examples=False)
    assert 'FewShotClassifier.load("hf:anna/colors")' in text
    assert "rmadapter predict hf:anna/colors photos\n" in text
    assert "BACKBONE" not in text


def test_a_card_says_what_is_promised(calibrated: Path) -> None:
    model, record = read_model(calibrated / "model.json"), read_record(calibrated / "run.json")
    judged = record.judgement
    assert judged is not None
    words: dict[str, Any] = {"calibrated": 20, "most": 9.7, "by_class": False, "low": 1, "high": 8}
    promise = Promise(error=5, missed=4.25, labels=1.3, answered=80, right=None, **words)
    with_promise = judged.model_copy(update={"promises": (promise,)})
    record = record.model_copy(update={"judgement": with_promise})
    text = model_card(model, record, "anna/colors", "mit", examples=False)
    assert "if they are like the 48 images that were not drawn. Errors from 4.7% on" in text
    assert "`rmadapter predict --error 5%` lists" in text
    assert "|---|---|---|---|---|\n| 5 | 4.2 (1.0 to 8.0) | 1.3 | 80.0 | - |\n" in text
    bare = model_card(model, None, "anna/colors", "mit", examples=False)
    assert "Errors from 4.7% on" in bare
    assert "promised error" not in bare
    model = model.model_copy(update={"calibration": None})
    assert "--error" not in model_card(model, record, "anna/colors", "mit", examples=False)


def test_a_card_says_what_may_be_turned_away(calibrated: Path) -> None:
    model = read_model(calibrated / "model.json")
    text = model_card(model, None, "anna/colors", "mit", examples=False)
    assert "`rmadapter predict --turn-away 5%`" in text
    assert "if they are like the 48 images that were not drawn. Shares from 4.7% on" in text
    own = model.familiarity
    assert own
    few = RejectionScore(own.sure[:12], own.distances[:12], "folds")
    model = model.model_copy(update={"familiarity": few})
    text = model_card(model, None, "anna/colors", "mit", examples=False)
    assert "`rmadapter predict --turn-away 17.5%`" in text
    assert "like the 12 training images, each answered by a model that had not seen it. " in text
    assert "estimated on the training images" in text
    assert few.rank(0.175) == 1
    with pytest.raises(UserError, match=r"allow 17\.5 % or more"):
        few.rank(0.174)
    model = model.model_copy(update={"familiarity": None})
    assert "turn-away" not in model_card(model, None, "anna/colors", "mit", examples=False)


def test_without_a_record_nothing_was_measured(finished: Path) -> None:
    model = read_model(finished / "model.json")
    card = ModelCard(model_card(model, None, "anna/colors", "unknown", examples=True))
    assert card.data.eval_results is None
    assert "metrics" not in card.data.to_dict()
    assert "Nothing was measured." in card.text
    assert "can tell whether a given image was among these" in card.text


def test_names_break_nothing(finished: Path) -> None:
    model, record = read_model(finished / "model.json"), read_record(finished / "run.json")
    odd = "<b>a|b</b>\n---\nlicense: mine"
    model = model.model_copy(update={"labels": (odd, *model.labels[1:])})
    task = record.task.__class__(**{**vars(record.task), "data": odd})
    record = record.model_copy(update={"task": task})
    card = ModelCard(model_card(model, record, "anna/colors", "mit", examples=False))
    assert card.data.license == "mit"
    assert "<b>" not in card.text
    assert "\\<b\\>a\\|b" in card.text


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("ViT-B-16/openai", "timm/vit_base_patch16_clip_224.openai"),
        ("hf-hub:a/b", "a/b"),
        ("pocket", None),
        ("ViT-B-16/none", None),
        ("folder", None),
    ],
)
def test_repository_of_a_backbone(backbone: str, name: str | None) -> None:
    assert hub_name(backbone) == name


# Paths of this machine


def test_names_without_folders(tmp_path: Path) -> None:
    (tmp_path / "a.json").touch()
    settings = {"file": str(tmp_path / "a.json"), "rank": 4, "x": "a/b"}
    outside = MethodName(name=f"{tmp_path}/m.py:Mine", settings=settings)
    local = BackboneName(name=f"ViT-B-16/{tmp_path}/w.safetensors", digest="0")
    method, backbone = anonymise_names(outside, local)
    assert method.name == "m.py:Mine"
    assert method.settings == {"file": "a.json", "rank": 4, "x": "a/b"}
    assert backbone.name == "w.safetensors"
    for name in ("pocket", "ViT-B-16/openai", "hf-hub:a/b"):
        assert anonymise_names(outside, BackboneName(name=name, digest="0"))[1].name == name
    settings = {"descriptions": "acme/merger/texts.json", "init": "a / b"}
    method = MethodName(name="lweib", title="LwEIB", settings=settings)
    settings["descriptions"] = "texts.json"
    assert anonymise_names(method, local)[0].settings == settings


@pytest.mark.parametrize(
    ("path", "name"),
    [("C:\\Users\\anna\\pets", "pets"), ("/home/anna/pets/", "pets"), ("pets", "pets"), ("", "")],
)
def test_last_part_of_a_path_of_any_system(path: str, name: str) -> None:
    assert last_part(path) == name


def test_anonymised_record_keeps_its_figures(finished: Path) -> None:
    record = read_record(finished / "run.json")
    anonymous = anonymise_record(record)
    for name in ("scores", "judgement", "split_digest"):
        assert getattr(anonymous, name) == getattr(record, name)


@pytest.mark.parametrize(
    ("written", "anonymous"),
    [
        (
            "export '/home/anna/my run' --out runs/model --to onnx --backbone ViT-B-16/openai",
            "export 'my run' --out model --to onnx --backbone ViT-B-16/openai",
        ),
        (
            "export hf:a/b --data=/home/anna/pets --set a=b/c",
            "export hf:a/b --data=pets --set a=b/c",
        ),
        (r"export r '--data=C:\Users\anna\pets'", "export r --data=pets"),
        ("as tested", "as tested"),
        (
            "fit --data=acme/photos --set descriptions=acme/t.json lweib.descriptions=b/t.json",
            "fit --data=photos --set descriptions=t.json lweib.descriptions=t.json",
        ),
    ],
)
def test_a_command_without_folders(written: str, anonymous: str) -> None:
    assert anonymise_command(f"rmadapter {written}") == f"rmadapter {anonymous}"
