"""What of a file gets into a report: its pixels, drawn anew."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from rmadapter.artifacts.predictions import Evaluation
from rmadapter.data.read import ImageSet
from tests.helpers.html import Page
from tests.helpers.run_pages import HISTORY, evaluation, record, score, write


def test_images_are_drawn_anew_and_bring_nothing_of_their_files(tmp_path: Path) -> None:
    """Comment, EXIF, ICC profile, and what follows the end of the image."""
    novel = evaluation("test, novel classes", 40, ("x", "y"), 1)
    secret = b"SECRET, and <script>alert(1)</script>"
    exif = Image.Exif()
    exif[0x010E] = secret.decode()
    path = tmp_path / "x.jpg"
    Image.new("RGB", (40, 30), "red").save(path, comment=secret, exif=exif, icc_profile=secret)
    path.write_bytes(path.read_bytes() + secret)
    images = ImageSet((path,) * len(novel.labels), novel.images.labels, novel.classes, tmp_path)
    e = Evaluation(novel.title, images, novel.probabilities, novel.zero_shot)
    write(tmp_path / "page.html", record(score(e, "novel")), [e], HISTORY)
    found = [
        v.split(",")[1]
        for v in Page(tmp_path / "page.html").values("src")
        if v.startswith("data:image")
    ]
    assert found
    for data in map(base64.b64decode, found):
        assert b"SECRET" not in data
        assert set(Image.open(io.BytesIO(data)).info) <= {
            "jfif",
            "jfif_version",
            "jfif_unit",
            "jfif_density",
        }
