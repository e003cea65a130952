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

SIZE = {"width": 900, "height": 700, "deviceScaleFactor": 1, "mobile": False}


def main(address: str, out: Path, images: Sequence[Path]) -> None:
    with tempfile.TemporaryDirectory() as home, tab(Path(home)) as page:
        page("Emulation.setDeviceMetricsOverride", **SIZE)
        page.go(address)
        root = page("DOM.getDocument")["root"]["nodeId"]
        field = page("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        page(
            "DOM.setFileInputFiles", nodeId=field, files=[str(image.resolve()) for image in images]
        )
        page.script("document.querySelector('button').click()")
        page.event("Page.loadEventFired")
        assert page.until("!!document.querySelector('.answers')")
        page.shot(out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(word) for word in sys.argv[3:]])
