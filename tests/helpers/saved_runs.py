"""A finished run, loaded and exported once for tests of exports and of what serves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmadapter.answers.rejection import RejectionScore
from rmadapter.answers.sets import Calibration
from rmadapter.artifacts.checkpoint import Saved, load
from rmadapter.backbones import Backbone
from rmadapter.support.files import write_sums


@pytest.fixture(scope="session")
def saved(finished: Path, tiny_clip: Backbone) -> Saved:
    return load(finished, tiny_clip)


@pytest.fixture(scope="session")
def exported(
    finished: Path, saved: Saved, colors: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An ONNX export with features."""
    for needed in ("onnxruntime", "onnxscript"):
        pytest.importorskip(needed, reason="pip install 'rmadapter[export]'")
    from rmadapter.export.folder import export
    from rmadapter.export.targets import ExportOptions

    out = tmp_path_factory.mktemp("exports") / "model"
    export(finished, saved, out, ExportOptions(embeddings=True), data=colors, command="as tested")
    return out


@pytest.fixture(scope="session")
def calibrated(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with 48 images that it was not fitted to: at an error of 10 %, classes of a
    probability of 0.2 or more are in the sets; of the colours, 10 % are turned away from a distance
    of about 0.4."""
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(finished, folder)
    facts = json.loads((folder / "model.json").read_text())
    shares = [0.05, *np.linspace(0.2, 0.99, 47).round(6).tolist()]
    calibration = Calibration((*shares,), (*range(4),) * 12, 4, "held out")
    sure, far = np.linspace(0.9, 0.99, 46), np.linspace(0, 0.3, 46)
    own = RejectionScore((*sure.tolist(), *[0.6] * 2), (*far.tolist(), *[0.39] * 2), "held out")
    facts |= {"calibration": calibration.json(), "familiarity": own.json()}
    (folder / "model.json").write_text(json.dumps(facts), encoding="utf-8", newline="\n")
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    write_sums(folder, [line[66:] for line in lines])
    return folder


@pytest.fixture(scope="session")
def parents() -> dict[str, str]:
    return {"green": "dark", "night_sky": "dark", "blue": "light", "red": "light"}


@pytest.fixture(scope="session")
def tree_run(
    calibrated: Path, parents: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The calibrated run, whose labels have parents."""
    folder = tmp_path_factory.mktemp("tree") / "run"
    shutil.copytree(calibrated, folder)
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(
        json.dumps(facts | {"parents": parents}), encoding="utf-8", newline="\n"
    )
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    write_sums(folder, [line[66:] for line in lines])
    return folder


@pytest.fixture(scope="session")
def blends(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images between pairs of the colours that the run knows."""
    folder = tmp_path_factory.mktemp("blends")
    ends = [np.array(end) for end in ((220, 30, 30), (30, 220, 30), (30, 30, 220), (5, 5, 40))]
    files = []
    for number in range(24):
        start, end = ends[number % 4], ends[(number // 4 + number + 1) % 4]
        color = start + (end - start) * number / 24
        files.append(folder / f"{number:02}.png")
        Image.new("RGB", (40, 40), tuple(int(value) for value in color)).save(files[-1])
    return files


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of blocks in many colours, unlike those of the run's classes."""
    file = tmp_path_factory.mktemp("noise") / "noise.png"
    blocks = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(blocks).resize((40, 40), Image.Resampling.NEAREST).save(file)
    return file
