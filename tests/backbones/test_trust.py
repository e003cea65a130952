"""Folders and hub repositories that try to run code or lead elsewhere: refused in one sentence,
before anything of theirs runs.

The code in them would leave a file behind.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.backbones.load import fetch
from rmadapter.errors import UserError
from tests.helpers.models import SIZE, write_timm_bert

CONFIG, TOKENIZER, BERT = "open_clip_config.json", "tokenizer_config.json", "bert/config.json"
MALICIOUS = {
    "AutoTokenizer": ["evil.Evil"] * 2,
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
}
TRUST = {"tokenizer_kwargs": {"trust_remote_code": True}}
PAYLOAD = b"""import os
from transformers import BertTokenizer
open(os.environ['MARKER'], 'w').close()
class Evil(BertTokenizer): pass
"""


@pytest.fixture(scope="session")
def built_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_timm_bert(tmp_path_factory.mktemp("built") / "model")


@pytest.fixture
def model(built_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy at `model` in the working folder, no network, and a user who agrees to all. The
    payload must not run."""
    folder = Path(shutil.copytree(built_model, tmp_path / "model"))
    config = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(config.replace(str(built_model), str(folder)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("MARKER", str(tmp_path / "ran"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks before it runs code
    yield folder
    assert not (tmp_path / "ran").exists(), "the payload ran"


def edit_json(file: Path, edit: Callable[[Any], object]) -> None:
    """Change a JSON file; `edit` changes its content in place."""
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def text(folder: Path, **fields: Any) -> None:
    edit_json(folder / CONFIG, lambda config: config["model_cfg"]["text_cfg"].update(fields))


def vision(folder: Path, **fields: Any) -> None:
    edit_json(folder / CONFIG, lambda config: config["model_cfg"]["vision_cfg"].update(fields))


def add_fields(file: Path, **fields: Any) -> None:
    edit_json(file, lambda content: content.update(fields))


def assert_refused(name: object, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        load_backbone(str(name))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


def test_a_folder_without_code_is_read(model: Path) -> None:
    text(model, tokenizer_kwargs={"clean": "canonicalize", "strip_sep_token": True})
    # words like any other
    (model / "words.json").write_text('{"vocab": {"auto_map": 7, "tokenizer_class": 8}}')
    os.symlink(model / "README.md", model / "card.md")
    (model / "README.md").write_text("a link inside is fine")
    assert load_backbone(str(model)).tokenizer(["A dog!"]).shape == (1, 16)


# ---- code ----

ASKS = "asks to run code"
NO_CONFIG = "a model_cfg with a vision_cfg and a text_cfg is missing"
# what the folder then holds: fields to add to a file, or a file's content; what the message names
ATTACKS: dict[str, tuple[dict[str, dict[str, Any] | bytes], str]] = {
    "a tokenizer setting and a module": (
        {CONFIG: TRUST, TOKENIZER: {"auto_map": MALICIOUS}, "evil.py": PAYLOAD},
        r"evil\.py is code, which a model folder may not hold",
    ),
    "a tokenizer setting": ({CONFIG: TRUST}, f"{CONFIG}: its field 'trust_remote_code' {ASKS}"),
    "the tokenizer's configuration": (
        {TOKENIZER: {"auto_map": MALICIOUS, "tokenizer_class": "Evil"}, "evil.py": PAYLOAD},
        rf"evil\.py is code|tokenizer_config\.json: its field .* {ASKS}",
    ),
    "another repository": (
        {TOKENIZER: {"auto_map": {"AutoTokenizer": ["somebody/code--evil.Evil", None]}}},
        rf"tokenizer_config\.json: its field .* {ASKS}",
    ),
    "the text encoder's configuration": (
        {BERT: {"auto_map": MALICIOUS, "model_type": "evil"}, "bert/evil.py": PAYLOAD},
        rf"config\.json: its field 'auto_map' {ASKS}|is code",
    ),
    "a list": ({TOKENIZER: {"auto_map": ["evil.Evil", None]}}, f"its field 'auto_map' {ASKS}"),
    "a class that loads models": (
        {TOKENIZER: {"tokenizer_class": "AutoModel"}},
        f"its field 'tokenizer_class' {ASKS}",
    ),
    "a kernel of the hub": (
        {BERT: {"attn_implementation": "somebody/kernel"}},
        f"its field 'attn_implementation' {ASKS}",
    ),
    "a kernel under its internal name": (
        {BERT: {"_attn_implementation_internal": "somebody/kernel"}},
        f"its field '_attn_implementation_internal' {ASKS}",
    ),
    "deep in a file": (
        {"vit/more.json": json.dumps({"a": [{"b": {"auto_map": MALICIOUS}}]}).encode()},
        rf"more\.json: its field 'auto_map' {ASKS}",
    ),
    "an encoder that builds others": (
        {BERT: {"model_type": "timm_wrapper", "architecture": "hf-hub:somebody/else"}},
        "model_type 'timm_wrapper' is not a text encoder; known are roberta, ",
    ),
    "a Python file": ({"evil.py": PAYLOAD}, r"evil\.py is code"),
    "a library": ({"vit/fast.SO": b"\x7fELF"}, r"fast\.SO is code"),
    "a pickle": (
        {"bert/pytorch_model.bin": b"\x80\x04N."},
        r"pytorch_model\.bin is a pickle, which is never read",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_code_is_refused_and_does_not_run(model: Path, attack: str) -> None:
    files, named = ATTACKS[attack]
    for name, content in files.items():
        if isinstance(content, bytes):
            (model / name).write_bytes(content)
        elif name == CONFIG:
            text(model, **content)
        else:
            add_fields(model / name, **content)
    assert_refused(model, named)


# ---- ways out of the folder ----


IMAGE_ENCODERS = [
    "local-dir:{outside}/vit", "LOCAL-DIR:{outside}/vit", "local-dir:outside/vit",
    "local-dir:model/../outside/vit", "local-dir:{outside}/../model/../outside/vit",
    "local-dir:model/gone", "hf-hub:somebody/else", "hf_hub:somebody/else",
    "https://example.com/vit", "somebody/else", ["vit_base_patch16_224"],
]  # fmt: skip
TEXT_ENCODERS = [
    "{outside}/bert", "outside/bert", "model/../outside/bert", "./gone", "somebody/else",
    "roberta-base", {"a": 1},
]  # fmt: skip


@pytest.mark.parametrize("name", IMAGE_ENCODERS, ids=str)
def test_names_of_image_encoders_stay_inside(model: Path, tmp_path: Path, name: Any) -> None:
    outside = shutil.copytree(model, tmp_path / "outside")
    vision(model, timm_model_name=name.format(outside=outside) if isinstance(name, str) else name)
    assert_refused(model, "timm_model_name leads out of the folder|timm_model_name is a")


@pytest.mark.parametrize("name", TEXT_ENCODERS, ids=str)
def test_names_of_text_encoders_stay_inside(model: Path, tmp_path: Path, name: Any) -> None:
    """A plain name of open_clip's own is let through, unless a folder here is called so."""
    outside = shutil.copytree(model, tmp_path / "outside")
    shutil.copytree(outside / "bert", tmp_path / "roberta-base")
    text(model, hf_model_name=name.format(outside=outside) if isinstance(name, str) else name)
    assert_refused(
        model, "hf_model_name leads out of the folder|hf_model_name must be a plain value"
    )


def test_relative_names_that_stay_inside_are_read(model: Path) -> None:
    vision(model, timm_model_name="local-dir:model/bert/../vit")
    text(model, hf_model_name="./model/bert")
    assert load_backbone("model").image_size == SIZE


def test_a_folder_here_is_not_read_in_place_of_the_hubs(model: Path, tmp_path: Path) -> None:
    add_fields(model / BERT, auto_map=MALICIOUS, model_type="evil")
    (model / "bert/evil.py").write_bytes(PAYLOAD)
    (model / "bert").rename(tmp_path / "roberta-base")
    assert_refused("roberta-ViT-B-32/none", "roberta-base would be read instead of the hub's")


@pytest.mark.parametrize(
    "name", ["bert", "vit/config.json", TOKENIZER, "open_clip_model.safetensors"]
)
def test_links_out_of_the_folder_are_refused(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (model / name).rename(tmp_path / "outside" / "it")
    os.symlink(tmp_path / "outside" / "it", model / name)
    assert_refused(model, f"{name} leads out of its folder, to .+/outside/it")


def test_broken_links_and_pipes_are_refused(model: Path, tmp_path: Path) -> None:
    os.symlink("gone.json", model / "a.json")
    assert_refused(model, r"a\.json is not a plain file")
    (model / "a.json").unlink()
    os.mkfifo(model / "b.json")  # opening it would wait for ever
    assert_refused(model, r"b\.json is not a plain file")


def test_a_config_that_is_not_a_table_is_refused(model: Path) -> None:
    (model / CONFIG).write_text('[{"model_cfg": {}}]')
    assert_refused(model, NO_CONFIG)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("pretrained", "x", "'pretrained' is not a field"),
        ("model_cfg.multimodal_cfg.hf_model_name", "x", "hf_model_name' is not a field"),
        ("model_cfg.vision_cfg.timm_modelname", "x", "did you mean 'timm_model_name'"),
        ("model_cfg.text_cfg.tokenizer_kwargs.bpe_path", "/etc/passwd", "bpe_path' is not a field"),
        ("model_cfg.text_cfg.tokenizer_kwargs.gguf_file", "x", "gguf_file' is not a field"),
        ("model_cfg.text_cfg.norm_kwargs.device", "meta", "norm_kwargs.device' is not a field"),
        ("model_cfg.text_cfg.width", {"a": 1}, "width must be a plain value, not a table"),
        ("preprocess_cfg.mean", [{"a": 1}], "preprocess_cfg.mean must be a list of plain values"),
        ("model_cfg", [], NO_CONFIG),
    ],
)
def test_fields_that_open_clip_does_not_have_are_refused(
    model: Path, field: str, value: object, named: str
) -> None:
    config = json.loads((model / CONFIG).read_text())
    *path, last = field.split(".")
    table = config
    for name in path:
        table = table.setdefault(name, {})
    table[last] = value
    (model / CONFIG).write_text(json.dumps(config))
    assert_refused(model, named)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\ufeff{}", '"\ud800"'])
def test_files_that_are_no_json_are_refused(model: Path, content: str) -> None:
    (model / "more.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert_refused(model, r"more\.json: not readable JSON")


# ---- hostile repositories on the hub ----


def write_hub_cache(folder: Path, repository: Path) -> Path:
    """Write a repository of the hub's cache, each file a link to a blob, as its library does."""
    revision = "0" * 40
    snapshot = repository / "snapshots" / revision
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        name = file.relative_to(folder)
        blob, link = repository / "blobs" / "-".join(name.parts), snapshot / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        os.symlink(os.path.relpath(blob, link.parent), link)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(revision)
    return snapshot


HUB_MODEL = "hf-hub:somebody/model"


@pytest.fixture
def hub(model: Path, empty_hub: Path) -> Path:
    """The snapshot of `somebody/model`."""
    vision(model, timm_model_name="vit_small_patch16_224")
    text(model, hf_tokenizer_name="somebody/model", hf_model_name=None, heads=3, width=48)
    return write_hub_cache(model, empty_hub / "models--somebody--model")


def test_a_snapshot_of_links_is_read(tiny_clip: Backbone, empty_hub: Path) -> None:
    """Also without a network."""
    snapshot = write_hub_cache(Path(tiny_clip.name), empty_hub / "models--somebody--clip")
    assert (snapshot / CONFIG).is_symlink()
    assert fetch("somebody/clip", "open_clip_model.safetensors").is_file()
    for name in ("hf-hub:somebody/clip", str(snapshot)):
        backbone = load_backbone(name)
        assert backbone.name == name
        assert backbone.digest == tiny_clip.digest
        assert backbone.tokenizer_digest == tiny_clip.tokenizer_digest


def test_code_in_a_repository_does_not_run(hub: Path) -> None:
    add_fields(hub / TOKENIZER, auto_map=MALICIOUS)
    text(hub, **TRUST)
    (hub / "evil.py").write_bytes(PAYLOAD)
    assert_refused(HUB_MODEL, r"evil\.py is code")
    (hub / "evil.py").unlink()
    assert_refused(HUB_MODEL, f"its field 'trust_remote_code' {ASKS}")
    text(hub, tokenizer_kwargs={})
    assert_refused(HUB_MODEL, f"its field 'auto_map' {ASKS}")


@pytest.mark.parametrize("name", ["somebody/tokenizer", "../../evil", "model", "/etc"])
def test_a_repository_does_not_lead_to_another_one(hub: Path, empty_hub: Path, name: str) -> None:
    write_hub_cache(empty_hub.parent / "model", empty_hub / "models--somebody--tokenizer")
    text(hub, hf_tokenizer_name=name)
    assert_refused(HUB_MODEL, "hf_tokenizer_name leads out of the repository, to")


def test_the_tokenizer_that_open_clip_itself_takes_is_checked_too(
    hub: Path, empty_hub: Path
) -> None:
    other = write_hub_cache(empty_hub.parent / "model", empty_hub / "models--timm--ViT-B-16-SigLIP")
    text(hub, hf_tokenizer_name="timm/ViT-B-16-SigLIP")
    add_fields(other / TOKENIZER, auto_map=MALICIOUS)
    assert_refused(HUB_MODEL, f"SigLIP/.+ its field 'auto_map' {ASKS}")


def test_a_link_from_a_snapshot_to_elsewhere_is_refused(hub: Path, tmp_path: Path) -> None:
    (hub / TOKENIZER).unlink()
    os.symlink(tmp_path / "model" / TOKENIZER, hub / TOKENIZER)
    assert_refused(HUB_MODEL, f"{TOKENIZER} leads out of its folder")
