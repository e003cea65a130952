"""The web page of an export: the numbers of Pillow in JavaScript, and the answers of `predict` in a
browser."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from rmadapter.deploy.export import graph, web
from rmadapter.deploy.export.runtime import Transform
from rmadapter.errors import UserError
from tests.helpers.web_pages import STATE, engine, needs_browser, served, tab

NODE = shutil.which("node")
IN_NODE = """
import {{ halve, tensor }} from {module};
import {{ readFileSync, writeFileSync }} from "node:fs";
for (const {{ width, height, file, transform }} of JSON.parse(readFileSync({cases}, "utf8"))) {{
  const image = {{ width, height, data: readFileSync(file) }};
  const found = transform ? tensor(image, transform) : halve(image).data;
  writeFileSync(file + ".out", Buffer.from(found.buffer));
}}
"""
# Upright and lying, tall enough for the height to come first, larger and smaller than what the
# model sees, and lines.
SIZES = [
    (32, 32),
    (33, 32),
    (31, 47),
    (200, 33),
    (64, 300),
    (7, 5),
    (401, 277),
    (96, 33),
    (4, 90),
    (90, 4),
    (1, 1),
]
KINDS = list(itertools.product(("shortest", "longest", "squash"), ("bicubic", "bilinear")))
needs_node = pytest.mark.skipif(NODE is None, reason="no Node.js")


def in_node(
    folder: Path, images: list[np.ndarray], transforms: list[dict[str, Any] | None]
) -> list[bytes]:
    """What the page makes of RGB images: float32 [3, size, size], or without a transform half of
    it."""
    cases = []
    for number, (pixels, transform) in enumerate(zip(images, transforms, strict=True)):
        (folder / f"{number}.rgb").write_bytes(pixels.tobytes())
        height, width = pixels.shape[:2]
        cases.append(
            {
                "width": width,
                "height": height,
                "file": str(folder / f"{number}.rgb"),
                "transform": transform,
            }
        )
    (folder / "cases.json").write_text(json.dumps(cases))
    module, listed = (
        json.dumps(str(path)) for path in (web.PAGE / "pixels.mjs", folder / "cases.json")
    )
    (folder / "run.mjs").write_text(IN_NODE.format(module=module, cases=listed))
    subprocess.run([str(NODE), folder / "run.mjs"], check=True)
    return [Path(f"{case['file']}.out").read_bytes() for case in cases]


@needs_node
def test_the_numbers_of_pillow(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = SIZES + [(int(w), int(h)) for w, h in np.exp(rng.uniform(0, 6, (60, 2)))]
    if int(PIL.__version__.partition(".")[0]) < 13:  # which always takes the width first
        sizes = [(width, height) for width, height in sizes if height <= width]
    images, transforms = [], []
    for number, (width, height) in enumerate(sizes):
        for resize, interpolation in KINDS if number < len(SIZES) else [KINDS[number % len(KINDS)]]:
            if resize == "longest" and 32 * min(width, height) < max(width, height):
                continue  # less than a pixel
            numbers = {"size": 32, "resize": resize, "interpolation": interpolation, "fill": 7}
            images.append(rng.integers(0, 256, (height, width, 3), np.uint8))
            transforms.append(numbers | {"mean": [0.48, 0.45, 0.4], "std": [0.22, 0.3, 0.26]})
    for pixels, numbers, found in zip(
        images, transforms, in_node(tmp_path, images, transforms), strict=True
    ):  # type: ignore[arg-type]
        assert Transform(**numbers)(Image.fromarray(pixels)).tobytes() == found, (
            pixels.shape,
            numbers,
        )  # type: ignore[arg-type]


@needs_node
def test_a_large_image_is_halved_as_in_python(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (height, width, 3), np.uint8)
        for height in (8, 7, 1)
        for width in (8, 9)
    ]
    for pixels, found in zip(images, in_node(tmp_path, images, [None] * len(images)), strict=True):
        assert Image.fromarray(pixels).reduce(2).tobytes() == found, pixels.shape


@pytest.mark.slow
@needs_browser
def test_a_browser_answers_as_the_model_does(finished: Path, colors: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    from rmadapter.artifacts.checkpoint import load
    from rmadapter.artifacts.record import read_record
    from rmadapter.deploy.export.folder import export

    engine()
    saved = load(finished, read_record(finished / "run.json").backbone.name)
    out = tmp_path / "page"
    export(finished, saved, out, data=colors, to="web")
    images = sorted(colors.glob("test/*/*.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    Image.fromarray(noise).resize((70, 300)).save(tmp_path / "tall.png")
    Image.fromarray(noise).resize((5000, 4802)).save(
        tmp_path / "large.png", compress_level=1
    )  # 24.01 megapixels
    Image.fromarray(noise).resize((700, 900)).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.dstack([noise, noise[:, :, :1]])).save(tmp_path / "clear.png")
    images += [tmp_path / name for name in ("tall.png", "large.png", "turned.jpg", "clear.png")]
    for number, image in enumerate(images):
        shutil.copy(image, out / f"{number}{image.suffix}")
    names = json.dumps([f"{number}{image.suffix}" for number, image in enumerate(images)])
    with served(out) as address, tab(tmp_path / "home") as browser:
        browser.go(address)
        browser.until(f"{STATE} === 'Ready.'")
        found = browser.script(
            f"""(async () => {{
            const {{ ask }} = await (await import("./answer.mjs")).load(), answers = [];
            for (const name of {names}) answers.push(await ask(await (await fetch(name)).blob()));
            return answers; }})()"""
        )
    table = next(saved.fitted.probabilities(images, saved.names)).numpy()
    for image, answer, shares in zip(images, found, table, strict=True):
        assert answer[0]["label"] == saved.labels[int(shares.argmax())]
        theirs = {each["label"]: each["probability"] for each in answer}
        difference = max(
            abs(theirs[str(label)] - share)
            for label, share in zip(saved.labels, shares, strict=True)
        )
        assert difference < (1e-4 if image.suffix == ".png" and image.stem != "clear" else 2e-2), (
            image
        )


def test_missing_npm_and_wrong_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"--to web takes onnxruntime-web .+ from npm, which is not installed"
    ):
        web.engine()
    (tmp_path / web.TARBALL).write_bytes(b"another file")
    with pytest.raises(UserError, match="not the expected file"):
        web.engine()


def test_model_too_large_for_a_page_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / graph.BESIDE, "wb") as file:
        file.truncate(2_500_000_000)
    with pytest.raises(UserError, match=r"the model takes 2\.5 GB, but a page holds less than 2"):
        web.add_page(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [graph.BESIDE]
