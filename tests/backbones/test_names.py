"""Names of backbones are checked without torch and open_clip."""

from __future__ import annotations

import subprocess
import sys

import open_clip
import pytest

from rmadapter.backbones.names import check_name
from rmadapter.errors import UserError


def test_every_published_tag_is_known_in_each_spelling() -> None:
    for architecture, tag in open_clip.list_pretrained():
        check_name(f"{architecture}/{tag}")
        check_name(f"{architecture}/{tag.replace('_', '-').upper()}")
        check_name(f"{architecture}/none")


@pytest.mark.parametrize(
    ("name", "near"),
    [("ViT-B-16/openia", "openai"), ("ViT-B-32/laion2b_s34b_b79", "laion2b_s34b_b79k")],
)
def test_an_unknown_tag_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=near):
        check_name(name)


def test_no_heavy_library_is_imported() -> None:
    code = (
        "import sys; from rmadapter.backbones.names import check_name; "
        "check_name('ViT-B-16/openai'); "
        "sys.exit(bool({'torch', 'open_clip'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
