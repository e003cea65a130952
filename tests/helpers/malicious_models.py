"""Model folders that a test spoils, and a cache of the hub made of them. The payload leaves a file
when it runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from rmadapter.backbones import load_backbone
from rmadapter.errors import UserError
from tests.helpers.models import SIZE, timm_trunk, write_bert, write_model

CONFIG, TOKENIZER = "open_clip_config.json", "tokenizer_config.json"
MALICIOUS = {
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
}


@pytest.fixture(scope="session")
def built_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_bert(tmp_path_factory.mktemp("built") / "model")
    trunk = timm_trunk(folder / "vit", "vit_small_patch14_dinov2", init_values=0.1)
    vision = {
        "timm_model_name": trunk,
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": SIZE,
    }
    text = {
        "hf_model_name": str(write_bert(folder / "bert")),
        "hf_tokenizer_name": "x",
        "context_length": 16,
    }
    text |= {
        "hf_model_pretrained": False,
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear",
    }
    return write_model(folder, {"vision_cfg": vision, "text_cfg": text, "custom_text": True})


@pytest.fixture
def model(built_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy at `model` in the working folder, no network, and a user who agrees to all. The
    payload must not run."""
    folder = Path(shutil.copytree(built_model, tmp_path / "model"))
    edit_json(
        folder / CONFIG,
        lambda config: json.loads(json.dumps(config).replace(str(built_model), str(folder))),
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("MARKER", str(tmp_path / "ran"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks before it runs code
    yield folder
    assert not (tmp_path / "ran").exists(), "the payload ran"


def write_payload(folder: Path) -> None:
    """evil.py, whose import leaves a file."""
    lines = [
        "import os",
        "from transformers import BertTokenizer",
        "open(os.environ['MARKER'], 'w').close()",
    ]
    (folder / "evil.py").write_text("\n".join([*lines, "class Evil(BertTokenizer): pass", ""]))


def edit_json(file: Path, how: Callable[[Any], Any]) -> None:
    file.write_text(json.dumps(how(json.loads(file.read_text()))))


def text(folder: Path, **fields: Any) -> None:
    set_tower(folder, "text_cfg", fields)


def vision(folder: Path, **fields: Any) -> None:
    set_tower(folder, "vision_cfg", fields)


def set_tower(folder: Path, side: str, fields: dict[str, Any]) -> None:
    def more(config: Any) -> Any:
        config["model_cfg"][side] |= fields
        return config

    edit_json(folder / CONFIG, more)


def add_fields(folder: Path, name: str, **fields: Any) -> None:
    edit_json(folder / name, lambda config: config | fields)


def assert_refused(name: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_backbone(str(name))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


def write_hub_cache(folder: Path, repository: Path) -> Path:
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
