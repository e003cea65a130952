"""What loading a backbone imports, in a Python of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import torch

from rmadapter.backbones import Backbone

HEAVY = ("timm", "transformers", "torch._dynamo", "sympy", "scipy", "torchvision.models.resnet")
SCRIPT = """
import json, sys
import torch
from rmadapter.backbones import load_backbone

first, second = sys.argv[1:3]
one = load_backbone(first)
tokens = one.tokenizer(["a cat"])
found = {"features": one.model.encode_text(tokens)[0].tolist()}
found["imported"] = [name for name in json.loads(sys.argv[3]) if name in sys.modules]
two = load_backbone(second)
found["later"] = two.model.encode_text(two.tokenizer(["a cat"]))[0].tolist()
found["kinds"] = [type(two.image).__name__, type(two.text).__name__]

import torchvision
boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3.9], [8, 8, 9, 9]])
found["kept"] = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
found["model"] = torchvision.models.resnet18.__name__

import timm
found["timm"] = [timm.__version__, timm.models.resnet18.__name__, timm.data.ImageDataset.__name__]
found["timm"] += [type(timm.create_model("resnet18")).__name__, len(timm.list_models("vit_*")) > 50]
print(json.dumps(found))
"""


@torch.no_grad()
def features(backbone: Backbone) -> torch.Tensor:
    return backbone.model.encode_text(backbone.tokenizer(["a cat"]))[0]


def test_libraries_come_with_the_first_model_that_needs_them(
    tiny_clip: Backbone, tiny_hf: Backbone
) -> None:
    names = [tiny_clip.name, tiny_hf.name, json.dumps(HEAVY)]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["imported"] == []
    for name, backbone in (("features", tiny_clip), ("later", tiny_hf)):
        torch.testing.assert_close(torch.tensor(found[name]), features(backbone))
    assert found["kinds"] == [type(tiny_hf.image).__name__, type(tiny_hf.text).__name__]
    assert (found["kept"], found["model"]) == ([0, 2], "resnet18")
    version = metadata.version("timm")
    assert found["timm"] == [version, "resnet18", "ImageDataset", "ResNet", True]


def test_the_first_model_may_need_one(tiny_siglip: Backbone) -> None:
    script = SCRIPT.split("two = ")[0] + "print(json.dumps(found))"
    run = subprocess.run(
        [sys.executable, "-c", script, tiny_siglip.name, "", json.dumps(["timm", "transformers"])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    torch.testing.assert_close(torch.tensor(found["features"]), features(tiny_siglip))
    assert found["imported"] == ["timm"]


PLAIN = """
import json, sys
import torch
from rmadapter.backbones import load_backbone

load_backbone(sys.argv[1])
import open_clip

found = []
for name in sys.argv[2:]:
    model = open_clip.create_model(f"local-dir:{name}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{name}")(["a cat"])
    found.append(model.encode_text(tokens)[0].tolist())
print(json.dumps([found, type(model.visual).__name__, type(model.text).__name__]))
"""


def test_open_clip_works_as_usual_for_other_code(
    tiny_clip: Backbone, tiny_siglip: Backbone, tiny_eva: Backbone, tiny_hf: Backbone
) -> None:
    """A model of timm or transformers can be made after one that needs neither was loaded, and one
    of timm after another of timm."""
    others = (tiny_siglip, tiny_eva, tiny_hf)
    names = [one.name for one in (tiny_clip, *others)]
    command = [sys.executable, "-c", PLAIN, *names]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found, *kinds = json.loads(run.stdout.splitlines()[-1])
    for got, backbone in zip(found, others, strict=True):
        torch.testing.assert_close(torch.tensor(got), features(backbone))
    assert kinds == [type(tiny_hf.model.visual).__name__, type(tiny_hf.model.text).__name__]
