"""The web page of an export: the numbers of Pillow in JavaScript, and the answers of `predict` in a
browser."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from rmadapter.answers.answer import Levels
from rmadapter.answers.decider import Decider
from rmadapter.answers.held_out import needed
from rmadapter.answers.rejection import RejectionScore
from rmadapter.answers.sets import Calibration
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.artifacts.checkpoint import Saved
from rmadapter.errors import UserError
from rmadapter.export import graph, web
from rmadapter.export.folder import export
from rmadapter.export.runtime import Transform
from rmadapter.export.targets import ExportOptions
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
SIZES = [(32, 32), (33, 32), (31, 47), (200, 33), (64, 300), (7, 5), (401, 277), (96, 33)]
SIZES += [(4, 90), (90, 4), (1, 1)]
KINDS = list(itertools.product(("shortest", "longest", "squash"), ("bicubic", "bilinear")))
needs_node = pytest.mark.skipif(NODE is None, reason="no Node.js")


def in_node(
    folder: Path, images: list[np.ndarray], transforms: list[dict[str, Any] | None]
) -> list[bytes]:
    """Return the page's float32 [3, size, size] of RGB images, or their halves without a
    transform."""
    cases = []
    for number, (pixels, transform) in enumerate(zip(images, transforms, strict=True)):
        file = folder / f"{number}.rgb"
        file.write_bytes(pixels.tobytes())
        size = {"width": pixels.shape[1], "height": pixels.shape[0]}
        cases.append({**size, "file": str(file), "transform": transform})
    (folder / "cases.json").write_text(json.dumps(cases))
    module = json.dumps(str(web.PAGE / "pixels.mjs"))
    script = IN_NODE.format(module=module, cases=json.dumps(str(folder / "cases.json")))
    (folder / "run.mjs").write_text(script)
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
    tensors = in_node(tmp_path, images, transforms)
    for pixels, numbers, tensor in zip(images, transforms, tensors, strict=True):
        expected = Transform(**numbers)(Image.fromarray(pixels))
        assert expected.tobytes() == tensor, (pixels.shape, numbers)


@needs_node
def test_a_large_image_is_halved_as_in_python(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = [(height, width, 3) for height in (8, 7, 1) for width in (8, 9)]
    images = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    halves = in_node(tmp_path, images, [None] * len(images))
    for pixels, half in zip(images, halves, strict=True):
        assert Image.fromarray(pixels).reduce(2).tobytes() == half, pixels.shape


KEPT_IN_NODE = """
import {{ checked, isKept }} from {module};
import {{ readFileSync, writeFileSync }} from "node:fs";
const {{ calibration, errors }} = JSON.parse(readFileSync({cases}, "utf8"));
const own = checked(calibration, 3);
writeFileSync({out}, JSON.stringify(errors.filter((error) => isKept(own, error))));
"""
SETS_IN_NODE = """
import {{ checked, chosen, decide, limits, needed }} from {module};
import {{ readFileSync, writeFileSync }} from "node:fs";
const found = JSON.parse(readFileSync({cases}, "utf8")).map(({{ calibration, error, tables }}) => {{
  const bounds = limits(checked(calibration, tables[0].length), error, tables[0].length);
  const sets = tables.map((table) => {{
    const rows = table.map((probability, place) => ({{ probability, place }}));
    return chosen(rows.sort((a, b) => b.probability - a.probability), bounds);
  }});
  return {{ bounds, needed: needed(error), sets: sets.map((rows) => rows.map((row) => row.place)),
    decided: sets.map(decide) }};
}});
writeFileSync({out}, JSON.stringify(found));
"""
BROKEN_IN_NODE = """
import {{ checked }} from {module};
import {{ readFileSync }} from "node:fs";
for (const calibration of JSON.parse(readFileSync({cases}, "utf8"))) {{
  let refused = false;
  try {{ checked(calibration, 3); }}
  catch (error) {{ refused = error.message.includes("damaged"); }}
  if (!refused) throw Error(JSON.stringify(calibration));
}}
"""


FAMILIAR_IN_NODE = """
import {{ checked, judge, possible }} from {module};
import {{ readFileSync, writeFileSync }} from "node:fs";
const cases = JSON.parse(readFileSync({cases}, "utf8"));
const found = cases.map(({{ familiarity, share, tables, far }}) => {{
  const own = checked(familiarity, tables[0].length);
  const isNone = judge(own, share), rows = tables.map((table) => {{
    const places = table.map((probability, place) => ({{ probability, place }}));
    return places.sort((a, b) => b.probability - a.probability);
  }});
  return {{ possible: [0.01, 0.05, 0.1].filter((each) => possible(own, each)),
    none: rows.map((row, i) => isNone(row, far[i])) }};
}});
writeFileSync({out}, JSON.stringify(found));
"""


def run_node(folder: Path, script: str, cases: object, name: str = "sets.mjs") -> object:
    """Run a script on cases; return what it wrote."""
    (folder / "cases.json").write_text(json.dumps(cases))
    files = {"cases": folder / "cases.json", "out": folder / "out.json"}
    words = {name: json.dumps(str(file)) for name, file in files.items()}
    module = json.dumps(str(web.PAGE / name))
    (folder / "run.mjs").write_text(script.format(module=module, **words))
    subprocess.run([str(NODE), folder / "run.mjs"], check=True)
    return json.loads(files["out"].read_text()) if files["out"].exists() else None


@needs_node
def test_the_sets_of_python(tmp_path: Path) -> None:
    """Of small and large calibrations, with and without limits for each class, and of ties."""
    rng = np.random.default_rng(0)
    cases: list[dict[str, Any]] = []
    expected = []
    for number in range(60):
        classes, images = int(rng.integers(2, 6)), int(np.exp(rng.uniform(0.7, 8)))
        error = [0.01, 0.05, 0.1, 0.3, 1 / 3, 0.5][number % 6]
        table = rng.dirichlet(np.full(classes, 0.4), images).round(2)
        calibration = Calibration.of(table, rng.integers(0, classes, images), "folds")
        if needed(error) > images:
            continue
        labels = [*map(str, range(classes + number % 2))]
        decider = Decider(labels, classes, calibration, error=error)
        new = rng.dirichlet(np.full(classes + number % 2, 0.4), 30).round(2).astype(np.float32)
        assert decider.limits is not None
        answers = decider.answer(new)
        expected.append({
            "bounds": decider.limits.tolist(), "needed": needed(error),
            "sets": [[*map(int, answer.labels)] for answer in answers],
            "decided": [answer.decision() for answer in answers],
        })  # fmt: skip
        cases.append({"calibration": calibration.json(), "error": error, "tables": new.tolist()})
    assert any(case["bounds"][0] != case["bounds"][1] for case in expected)
    assert len(expected) > 30
    assert run_node(tmp_path, SETS_IN_NODE, cases) == expected


@needs_node
def test_a_damaged_calibration_is_refused_by_the_page(tmp_path: Path) -> None:
    sound = Calibration((0.25, 0.5), (0, 2), 3, "folds").json()
    changes: list[dict[str, object]] = [
        {"shares": [0.5, 0.25]}, {"shares": ["0.1", "0.2"]}, {"shares": [0.1]}, {"known": 4},
        {"shares": [-1, 0.5]}, {"shares": [0.5, 2]}, {"classes": [0, 3]}, {"classes": [0, 0.5]},
        {"shares": [], "classes": []}, {"source": "x"}, {"known": "3"}, {"shares": None},
        {"broken": [0.1]}, {"broken": ["0.1"], "missed": [0.2]}, {"missed": 0.2},
    ]  # fmt: skip
    broken = [None, 3, [], *({**sound, **change} for change in changes)]
    run_node(tmp_path, BROKEN_IN_NODE, broken)


@needs_node
def test_errors_that_were_not_kept_are_those_of_python(tmp_path: Path) -> None:
    errors = [0.01, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3]
    sound = Calibration((0.25, 0.5), (0, 2), 3, "folds")
    broken = replace(sound, broken=(0.05, 0.1), missed=(0.08, 0.2))
    for calibration in (sound, broken):
        case = {"calibration": calibration.json(), "errors": errors}
        kept = [error for error in errors if not calibration.doubt(error)]
        assert run_node(tmp_path, KEPT_IN_NODE, case) == kept
    assert kept == [0.01, 0.2, 0.3]


@needs_node
def test_the_rejected_images_of_python(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases: list[dict[str, Any]] = []
    expected = []
    for number in range(40):
        classes, images = int(rng.integers(2, 6)), int(np.exp(rng.uniform(3, 7)))
        share = [0.05, 0.1, 0.3, 1 / 3][number % 4]
        table, far = rng.dirichlet(np.full(classes, 0.4), images), rng.beta(2, 8, images)
        own = RejectionScore.of(table, far, "folds")
        added = number % 2
        new = rng.dirichlet(np.full(classes + added, 0.4), 30).astype(np.float32)
        new_far = rng.beta(2, 6, 30).astype(np.float32)
        labels = [*map(str, range(classes + added))]
        none = ~Decider(labels, classes, rejection=own, reject_rate=share).familiar(new, new_far)
        expected.append({"possible": own.possible(), "none": none.tolist()})
        cases.append(
            {
                "familiarity": {**own.json(), "known": classes},
                "share": share,
                "tables": new.tolist(),
                "far": new_far.tolist(),
            }
        )
    assert run_node(tmp_path, FAMILIAR_IN_NODE, cases, "familiar.mjs") == expected
    assert {each for case in expected for each in case["none"]} == {True, False}


@needs_node
def test_a_damaged_familiarity_is_refused_by_the_page(tmp_path: Path) -> None:
    sound = {**RejectionScore((0.25, 0.5), (0.1, 2), "folds").json(), "known": 3}
    changes: list[dict[str, object]] = [
        {"sure": ["0.1", "0.2"]}, {"sure": [0.1]}, {"known": 4}, {"known": 0}, {"known": "3"},
        {"sure": [-1, 0.5]}, {"sure": [0.5, 2]}, {"distances": [0, 3]}, {"distances": None},
        {"sure": [], "distances": []}, {"source": "x"},
    ]  # fmt: skip
    broken = [None, 3, [], *({**sound, **change} for change in changes)]
    run_node(tmp_path, BROKEN_IN_NODE, broken, "familiar.mjs")


TAXONOMY_IN_NODE = """
import {{ best, checked, common }} from {module};
import {{ readFileSync, writeFileSync }} from "node:fs";
const cases = JSON.parse(readFileSync({cases}, "utf8"));
writeFileSync({out}, JSON.stringify(cases.map(({{ parents, labels, tables, sets }}) => {{
  const tree = checked(parents, labels), row = (probability, place) => ({{ probability, place }});
  const ranked = (table) => table.map(row).sort((a, b) => b.probability - a.probability);
  return tree && {{ levels: tables.map((table) => best(tree, ranked(table))),
    common: sets.map((set) => common(tree, set.map((place) => ({{ place }})))) }};
}})));
"""
DAMAGED_IN_NODE = """
import {{ checked }} from {module};
import {{ readFileSync }} from "node:fs";
for (const parents of JSON.parse(readFileSync({cases}, "utf8"))) {{
  let refused = false;
  try {{ checked(parents, ["a", "b"]); }}
  catch (error) {{ refused = error.message.includes("damaged"); }}
  if (!refused) throw Error(JSON.stringify(parents));
}}
"""


@needs_node
def test_the_levels_of_python(tmp_path: Path) -> None:
    """Of trees in which labels have no parent, one, two or three, and of equal probabilities."""
    rng = np.random.default_rng(0)
    cases: list[dict[str, Any]] = []
    expected: list[object] = []
    for number in range(40):
        labels = [f"label {i}" for i in range(int(rng.integers(2, 9)))]
        below = labels if number % 4 else []
        parents = {label: f"parent {rng.integers(3)}" for label in below if rng.random() < 0.8}
        if number % 3:
            parents |= {"parent 0": "top 0", "parent 1": f"top {number % 2}", "top 0": "root"}
        table = rng.dirichlet(np.full(len(labels), 0.5), 10).round(2).astype(np.float32)
        sizes = rng.integers(1, len(labels) + 1, 10)
        sets = [rng.choice(len(labels), size, replace=False).tolist() for size in sizes]
        tree = Taxonomy.if_any(parents, labels)
        cases.append({"parents": parents, "labels": labels, "tables": table.tolist(), "sets": sets})
        if tree is None:
            expected.append(None)
            continue
        places = [tree.common(members) for members in sets]
        levels = [[*one.best] for one in Levels.of(tree, table, sets)]
        expected.append((levels, [place and place.name for place in places]))
    found = run_node(tmp_path, TAXONOMY_IN_NODE, cases, "taxonomy.mjs")
    assert isinstance(found, list)
    for one, wanted in zip(found, expected, strict=True):
        if not isinstance(wanted, tuple):
            assert one is None
            continue
        levels, common = wanted
        rounded = [
            [(group["label"], round(group["probability"], 6)) for group in groups]
            for groups in one["levels"]
        ]
        assert rounded == levels
        assert one["common"] == common
    assert None in expected


@needs_node
def test_a_damaged_taxonomy_is_refused_by_the_page(tmp_path: Path) -> None:
    deep = {"a": "0", **{str(number): str(number + 1) for number in range(100)}}
    broken = [None, 3, [], {"a": 3}, {"a": "b"}, {"a": "a"}, {"a": "x", "x": "y", "y": "x"}, deep]
    run_node(tmp_path, DAMAGED_IN_NODE, broken, "taxonomy.mjs")


def write_photographs(folder: Path) -> list[Path]:
    """Write a tall image, one of 24.01 megapixels, a turned one and a transparent one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    image = Image.fromarray(noise)
    files = [folder / name for name in ("tall.png", "large.png", "turned.jpg", "clear.png")]
    image.resize((70, 300)).save(files[0])
    image.resize((5000, 4802)).save(files[1], compress_level=1)
    image.resize((700, 900)).save(files[2], exif=exif)
    Image.fromarray(np.dstack([noise, noise[:, :, :1]])).save(files[3])
    return files


ASK = """(async () => {
const { ask } = await (await import("./answer.mjs")).load(), answers = [];
for (const name of NAMES) answers.push(await ask(await (await fetch(name)).blob()));
return answers; })()"""


@pytest.mark.slow
@needs_browser
def test_a_browser_answers_as_the_model_does(
    finished: Path, saved: Saved, colors: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    engine()
    out = tmp_path / "page"
    export(finished, saved, out, ExportOptions("web"), data=colors)
    images = [*sorted(colors.glob("test/*/*.png")), *write_photographs(tmp_path)]
    names = [f"{number}{image.suffix}" for number, image in enumerate(images)]
    for name, image in zip(names, images, strict=True):
        shutil.copy(image, out / name)
    with served(out) as address, tab(tmp_path / "home") as browser:
        browser.go(address)
        browser.until(f"{STATE} === 'Ready.'")
        answers = browser.script(ASK.replace("NAMES", json.dumps(names)))
    table = next(saved.fitted.probabilities(images, saved.names)).numpy()
    for image, answer, shares in zip(images, answers, table, strict=True):
        assert answer[0]["label"] == saved.labels[int(shares.argmax())]
        page = {each["label"]: each["probability"] for each in answer}
        probabilities = np.array([page[str(label)] for label in saved.labels])
        exact = image.suffix == ".png" and image.stem != "clear"
        assert np.abs(probabilities - shares).max() < (1e-4 if exact else 2e-2), image


def test_missing_npm_and_wrong_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=rf"{web.NAME} .*npm"):
        web.engine()
    (tmp_path / web.TARBALL).write_bytes(b"another file")
    with pytest.raises(UserError, match=web.TARBALL):
        web.engine()


def test_model_too_large_for_a_page_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / graph.EXTERNAL_WEIGHTS, "wb") as file:
        file.truncate(2_500_000_000)
    with pytest.raises(UserError, match=r"2\.5 GB.*--precision"):
        web.add_page(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [graph.EXTERNAL_WEIGHTS]
