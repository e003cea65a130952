"""Make the image of docs/guide/deploy.md: the status page of a running server with answers on
images, in a headless Chromium.

rmadapter demo --out runs/demo
rmadapter serve runs/demo
python tools/serve_image.py http://127.0.0.1:8000 docs/guide/serve.png IMAGES
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from browser import tab

SIZE = (900, 700)


def main(address: str, out: Path, images: Sequence[Path]) -> None:
    with tempfile.TemporaryDirectory() as home, tab(Path(home)) as page:
        page.resize(*SIZE)
        page.go(address)
        page.choose("input[type=file]", *images)
        page.script("document.querySelector('button').click()")
        page.event("Page.loadEventFired")
        assert page.until("!!document.querySelector('.answers')")
        page.shot(out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(word) for word in sys.argv[3:]])
