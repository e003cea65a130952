"""Names of backbones are checked without torch and open_clip."""

from __future__ import annotations

import subprocess
import sys

import open_clip
import pytest

from rmadapter.backbones.load import published_config
from rmadapter.backbones.names import check_name
from rmadapter.errors import UserError


@pytest.mark.ci
def test_every_architecture_is_known() -> None:
    for architecture in open_clip.list_models():
        check_name(f"{architecture}/none")
    with pytest.raises(UserError, match=r"'ViT-B-61'.*nearest are ViT-B-16"):
        check_name("ViT-B-61/openai")


@pytest.mark.parametrize(
    ("architecture", "tag", "near"),
    [("ViT-B-16", "openia", "openai"), ("ViT-B-32", "laion2b_s34b_b79", "laion2b_s34b_b79k")],
)
def test_an_unknown_tag_is_refused_with_the_nearest(architecture: str, tag: str, near: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    with pytest.raises(UserError, match=near):
        published_config(architecture, tag, tags)


def test_no_heavy_library_is_imported() -> None:
    code = (
        "import sys; from rmadapter.backbones.names import check_name; "
        "check_name('ViT-B-16/openai'); "
        "sys.exit(bool({'torch', 'open_clip'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
