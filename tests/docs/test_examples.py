"""The examples do what their pages say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import typer
import yaml

from rmadapter.artifacts.record import parse_record
from rmadapter.backbones import Backbone
from rmadapter.cli.main import app
from rmadapter.methods import load_method
from tests.helpers.shell import Command, refused, rmadapter
from tests.helpers.shots import accuracy_of, noisy_colors, shots_of

__all__ = ["rmadapter"]  # a fixture

ROOT = Path(__file__).parents[2]
NEAREST = f"{ROOT / 'examples/nearest_mean.py'}:NearestMean"


def test_the_page_shows_the_example_and_it_has_25_lines() -> None:
    page = (ROOT / "docs/your_method.md").read_text(encoding="utf-8")
    block = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)[0]
    assert (ROOT / "examples/nearest_mean.py").read_text(encoding="utf-8").endswith(block)
    assert len([line for line in block.splitlines() if line.strip()]) <= 25


def test_the_nearest_mean_is_that(tiny_clip: Backbone) -> None:
    shots, images = shots_of(tiny_clip), noisy_colors(5, seed=1)
    fitted = load_method(NEAREST).fit(tiny_clip, shots)
    with torch.no_grad():
        pixels = [
            torch.stack([tiny_clip.preprocess(_pil(i)) for i in some.images])
            for some in (shots.images, images)
        ]
        train, test = (F.normalize(tiny_clip.model.encode_image(part), dim=-1) for part in pixels)  # type: ignore[operator]
    means = [F.normalize(train[shots.labels == label].mean(0), dim=-1) for label in range(4)]
    expected = (20 * test @ torch.stack(means).T).softmax(-1)
    found = torch.cat(list(fitted.probabilities(images.images)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert accuracy_of(fitted, images) > 0.8


def _pil(array: object) -> object:
    from rmadapter.data.read import load_image

    return load_image(array)  # type: ignore[arg-type]


def test_the_commands_of_the_page(
    rmadapter: Command, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    out, image = tmp_path / "mine", colors / "test" / "red" / "0.png"
    common = ["--backbone", tiny_clip.name, "--set", "device=cpu"]
    assert (
        rmadapter("fit", colors, "--method", NEAREST, "--shots", 4, *common, "--out", out).code == 0
    )
    refused(rmadapter("predict", out, image), f"--method {NEAREST}")
    assert "red" in rmadapter("predict", out, image, "--method", NEAREST, *common[:2]).out
    methods = ["--methods", f"zero-shot,{NEAREST}", "--seeds", 1, "--shots", 2]
    data = ["--datasets", colors.name, "--root", colors.parent]
    code, table, _ = rmadapter(
        "bench", "few-shot", *data, *methods, *common, "--out", tmp_path / "results"
    )
    assert code == 0
    assert "nearest class mean" in table
    assert rmadapter("report", tmp_path / "results", "--out", tmp_path / "report").code == 0
    records = [
        parse_record(line, "")
        for line in (tmp_path / "report" / "records.jsonl").read_text().splitlines()
    ]
    [mine] = [record for record in records if record.method.name == NEAREST]
    assert mine.method.source == "docs/your_method.md"
    assert mine.metric("all") is not None


@pytest.mark.parametrize("sharpness", ["10", "many"])
def test_its_field_is_a_setting(
    rmadapter: Command, tiny_clip: Backbone, colors: Path, tmp_path: Path, sharpness: str
) -> None:
    words = [
        "--method",
        NEAREST,
        "--shots",
        1,
        "--backbone",
        tiny_clip.name,
        "--set",
        f"sharpness={sharpness}",
    ]
    answer = rmadapter("fit", colors, *words, "--out", tmp_path / "run")
    if sharpness == "many":
        refused(answer, "sharpness='many': Input should be a valid number")
    else:
        assert answer.code == 0


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
STUB = """#!/bin/bash
if [ "$1" = rmadapter ]; then shift; fi
printf '%s\\n' "$@" > "$HOME/said"
mkdir -p "$HOME/records/few-shot"
echo {} > "$HOME/records/few-shot/one.json"
"""


@needs_bash
@pytest.mark.parametrize("name", ["slurm.sh", "sky.yaml"])
def test_recipes_give_a_command_that_there_is(name: str, tmp_path: Path) -> None:
    """Run by bash, with somebody in the place of srun and of rmadapter who writes down what they
    are told."""
    script = (ROOT / "examples" / name).read_text(encoding="utf-8")
    if name == "sky.yaml":
        recipe = yaml.safe_load(script)
        assert (recipe["num_nodes"], recipe["setup"].strip()) == (4, "pip install .")
        script = recipe["run"].replace("/results", str(tmp_path / "bucket"))
        (tmp_path / "bucket").mkdir()
    for stub in ("srun", "rmadapter"):
        (tmp_path / stub).write_text(STUB)
        (tmp_path / stub).chmod(0o755)
    given = {"DATA": "/d", "RESULTS": "/r", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "4"}
    place = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, **given, **place}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bucket/few-shot/one.json").exists() == (name == "sky.yaml")
    words = (tmp_path / "said").read_text().splitlines()
    assert words[0] == "bench"
    assert words[words.index("--shard") + 1] == {"slurm.sh": "auto", "sky.yaml": "2/4"}[name]
    command = typer.main.get_command(app).commands["bench"]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
