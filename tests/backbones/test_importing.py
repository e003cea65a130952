"""What loading a backbone imports, in a Python of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from rmadapter.backbones import Backbone

AFTER_A_COMMAND = """
import json, sys
from rmadapter.backbones.importing import import_for_command

import_for_command()
from rmadapter.backbones import load_backbone

found = []
for name in sys.argv[1:]:
    one = load_backbone(name)
    found.append({
        "features": one.model.encode_text(one.tokenizer(["a cat"]))[0].tolist(),
        "kinds": [type(one.image).__name__, type(one.text).__name__],
        "imported": [library for library in ("timm", "transformers") if library in sys.modules],
    })
print(json.dumps(found))
"""
BESIDE_OTHER_CODE = """
import json, sys
from rmadapter.backbones import load_backbone

load_backbone(sys.argv[1])
import open_clip

found = []
for name in sys.argv[2:]:
    model = open_clip.create_model(f"local-dir:{name}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{name}")(["a cat"])
    found.append(model.encode_text(tokens)[0].tolist())
print(json.dumps(found))
"""


@torch.no_grad()
def features(backbone: Backbone) -> torch.Tensor:
    return backbone.model.encode_text(backbone.tokenizer(["a cat"]))[0]


def run(script: str, *backbones: Backbone) -> Any:
    """Run a script with the names of backbones, and return the JSON that it prints last."""
    command = [sys.executable, "-c", script, *(one.name for one in backbones)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.ci
def test_libraries_come_with_the_first_model_that_needs_them(
    tiny_clip: Backbone, tiny_siglip: Backbone, tiny_hf: Backbone
) -> None:
    backbones = (tiny_clip, tiny_siglip, tiny_hf)
    found = run(AFTER_A_COMMAND, *backbones)
    assert [one["imported"] for one in found] == [[], ["timm"], ["timm", "transformers"]]
    for one, backbone in zip(found, backbones, strict=True):
        torch.testing.assert_close(torch.tensor(one["features"]), features(backbone))
        assert one["kinds"] == [type(backbone.image).__name__, type(backbone.text).__name__]


@pytest.mark.ci
def test_open_clip_works_as_usual_for_other_code(
    tiny_clip: Backbone, tiny_siglip: Backbone, tiny_hf: Backbone
) -> None:
    """A model of timm or transformers can be made after one that needs neither was loaded."""
    found = run(BESIDE_OTHER_CODE, tiny_clip, tiny_siglip, tiny_hf)
    for one, backbone in zip(found, (tiny_siglip, tiny_hf), strict=True):
        torch.testing.assert_close(torch.tensor(one), features(backbone))
