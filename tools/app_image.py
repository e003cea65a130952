"""Make the image of docs/guide/deploy.md: the application after a training on pictograms, in a
headless Chromium.

rmadapter app --backbone pocket
python tools/app_image.py http://127.0.0.1:8080 docs/guide/app.png pictograms
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from browser import tab

CLASSES = ("animal", "building", "face", "fruit or vegetable", "vehicle")
ASKED = ("building/post-office.png", "animal/t-rex.png", "animal/chipmunk.png")
WIDTH = 1265


def main(
    address: str,
    out: Path,
    data: Path,
    classes: Sequence[str] = CLASSES,
    files: Sequence[str] = ASKED,
) -> None:
    """Train in the application, and save its page. data: a folder with train/ and test/."""
    with tempfile.TemporaryDirectory() as home:
        for name in classes:
            shutil.copytree(data / "train" / name, Path(home, "zipped", name))
        packed = shutil.make_archive(str(Path(home, "train")), "zip", Path(home, "zipped"))
        with tab(Path(home, "browser")) as page:
            page.resize(WIDTH, 800)
            page.go(address)
            page.until("document.querySelectorAll('#methods input').length === 2")
            page.choose("#zip", Path(packed))
            page.until(f"document.querySelectorAll('#classes > li').length === {len(classes)}")
            page.script("document.querySelector('[value=block-ridge]').click()")
            page.script("document.getElementById('go').click()")
            page.until("document.querySelector('#rates tbody tr') !== null", seconds=600)
            page.choose("#files", *(data / "test" / name for name in files))
            page.until(f"document.querySelectorAll('#answers > li').length === {len(files)}")
            page.resize(WIDTH)
            page.shot(out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
