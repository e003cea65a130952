"""Commands, links, settings, paths and names of the pages exist, and the walks through the code are
walked."""

from __future__ import annotations

import inspect
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import count, dropwhile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import reference

from rmadapter.backbones import Backbone
from rmadapter.methods import METHODS, load_method
from rmadapter.settings import parse_overrides, settings_of
from rmadapter.task import COMMON_SETTINGS
from tests.helpers.commands import assert_parses, parser

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/rmadapter"
NAMES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
    *("benchmarks/README.md", "docs/about/versions.md", "research/README.md"),
    *("research/benchmarks/README.md", "research/pocket/README.md"),
)
SHELVES = [ROOT / "docs", *(ROOT / f"docs/{name}" for name in ("guide", "reference", "studies"))]
RECORDS = ROOT / "research/results"
FOLDERS = (*SHELVES, ROOT / "research/studies", RECORDS, *RECORDS.glob("*/"))
PAGES = [
    *(ROOT / name for name in NAMES),
    *(
        page
        for folder in FOLDERS
        for page in sorted(folder.glob("*.md"))
        if folder.name != "reference" or page.name not in reference.PAGES
    ),
]
ENDINGS = "py md json yaml html csv safetensors onnx data tflite xml"  # of files
OTHERS = "pip python cd export mv pre-commit hf docker git uv uvx pipx twine torchrun sbatch"
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# Commands


def commands() -> list[tuple[str, bool]]:
    """Return every line of a bash block and every command in backticks, and whether it is whole: a
    command in a sentence may leave out what it needs."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S):
            found += [(line, True) for line in re.findall(r"^[^#\n].*", block, re.M)]
        sentences = re.sub(r"```.*?```", "", text, flags=re.S)
        found += [(c, False) for c in re.findall(r"`((?:rmadapter|pytest|make) [^`]+)`", sentences)]
    return found


@pytest.mark.parametrize(("line", "whole"), commands())
def test_commands_exist(line: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line.partition(" | ")[0], comments=True)
    program, *words = dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words)
    program = program.removeprefix(".venv/bin/")
    if program == "rmadapter":
        assert_parses(words, whole)
    elif program == "make":
        assert re.search(rf"^{words[0]}:", text_of("Makefile"), re.M), f"no target {words[0]}"
    elif program == "pytest":
        assert all((ROOT / word).is_file() for word in words if word.startswith("tests/"))
    else:
        assert program in OTHERS.split(), f"unknown command {program}"
        extras = text_of("pyproject.toml").split("[project.optional-dependencies]")[1]
        for name in ",".join(re.findall(r"\.\[([\w,]+)\]", line)).split(","):
            assert re.search(rf"^{name} = \[", extras, re.M) or not name, f"no extra {name}"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("fti DATA --out RUN", "no verb fti"),
        ("fit DATA --otu RUN", "--otu"),
        ("compare RUN OTHER", "data"),
        ("fit", "data"),
        ("fit DATA --method rmadapter --set rnak=8", "'rank'"),
        ("fit DATA --out RUN --method mna", "'mma'"),
        ("fit DATA --out RUN --effort fats", "'fast'"),
        ("bench few-shot --datasets a --out OUT --set mma.rnak=8", "'rank'"),
        ("bench few-shot --datasets a --out OUT --methods mna", "'mma'"),
    ],
)
def test_a_wrong_command_is_noticed(line: str, complaint: str) -> None:
    with pytest.raises(Exception, match=complaint):
        assert_parses(line.split())


def test_the_tests_of_a_first_run_on_a_gpu_exist() -> None:
    """Each row of the table names some, and the file that they are in."""
    section = text_of("docs/reference/parallel.md").split("## A first run on a GPU")[1]
    rows = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 10
    for row in rows:
        parts = re.findall(r"((?:`test_\w+`,? )+)\(\[[^]]+\]\(\.\./\.\./(tests/[^)]+)\)\)", row)
        assert parts, row
        for names, file in parts:
            defined = {*re.findall(r"^def (test_\w+)", text_of(file), re.M)}
            assert {*re.findall(r"test_\w+", names)} <= defined, file
        assert row.count("`test_") == sum(names.count("`test_") for names, _ in parts)


@each_page
def test_a_measured_mobileclip_has_its_licence_in_the_same_section(page: Path) -> None:
    """Its weights are for research only; the list of architectures advises nobody."""
    sections = re.split(r"^#+ ", page.read_text(encoding="utf-8"), flags=re.M)
    measured = [section for section in sections if "\n| MobileCLIP" in section]
    assert all("apple-amlr" in section for section in measured)


@each_page
def test_settings_exist(page: Path) -> None:
    """--set NAME=... anywhere, with or without a command around it."""
    methods = [*METHODS, f"{ROOT}/examples/nearest_mean.py:NearestMean"]
    owners = [*map(load_method, methods)]
    every = {name for owner in owners for name in settings_of(owner)} | {*COMMON_SETTINGS}
    for name in re.findall(r"--set ([\w.-]+)=", page.read_text(encoding="utf-8")):
        method, dot, field = name.rpartition(".")
        if name.islower():
            assert field in (settings_of(load_method(method)) if dot else every), name


# Links and names


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, part = target.partition("#")
        if not target.startswith("http"):
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not part or part in anchors(file), target
    for name in re.findall(r"`((?:tests|tools|examples|benchmarks|research)/[a-z_/]+\.py)`", text):
        assert (ROOT / name).is_file(), name


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_names_of_modules_exist(page: Path) -> None:
    """`adapter.DualBranchAdapter.base`, `bench.runner.work`, ..."""
    files = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("[a-z]*.py")]
    modules = "|".join(sorted((re.escape(".".join(f.parts)) for f in files), key=len, reverse=True))
    text = page.read_text(encoding="utf-8")
    for name in re.findall(rf"`((?:{modules})\.[A-Z_a-z][\w.]*)`", text):
        if name.rpartition(".")[2] not in ENDINGS.split():
            assert pkgutil.resolve_name(f"rmadapter.{name}") is not None


@pytest.mark.parametrize(
    "name", ["README.md", "CHANGELOG.md", "docs/README.md", "docs/reference/methods.md",
             "docs/reference/backbones.md"],
)  # fmt: skip
def test_the_number_of_methods_is_that_of_the_code(name: str) -> None:
    found = re.findall(r"\b(\d+) methods\b|lists all (\d+) with", text_of(name))
    assert str(len(METHODS)) in {one or other for one, other in found}


def test_files_of_the_tree_of_contributing_exist() -> None:
    [tree] = re.findall(r"^src/\n(.*?)^```", text_of("CONTRIBUTING.md"), re.M | re.S)
    names = {*re.findall(r"(?:^| )(\w+\.py)", tree, re.M)}
    assert names
    assert names <= {path.name for path in PACKAGE.rglob("*.py")}


def test_the_readme_and_the_guide_are_short() -> None:
    assert len(text_of("README.md").split()) < 900
    words = [len(page.read_text(encoding="utf-8").split()) for page in ROOT.glob("docs/guide/*.md")]
    assert max(words) <= 1_200
    assert sum(words) <= 12_000


def test_the_pages_of_studies_are_short() -> None:
    """The long tables of a page NAME.md are in research/results/NAME.md."""
    words = {
        page.stem: len(page.read_text(encoding="utf-8").split())
        for folder in ("docs", "research")
        for page in ROOT.glob(f"{folder}/studies/*.md")
    }
    assert words["findings"] <= 2_000
    assert max(words.values()) <= 2_500
    assert {page.stem for page in RECORDS.glob("*.md")} <= words.keys()


# docs/reference/serve.md


def test_defaults_of_serve_are_those_of_the_command() -> None:
    options = {o.opts[0]: o.default for o in parser().commands["serve"].params if o.opts}
    rows = re.findall(r"^\| `(--[\w-]+)` \| (\S+) \|", text_of("docs/reference/serve.md"), re.M)
    assert len(rows) > 9
    for name, default in rows:
        if default in ("none", "off"):
            assert not options[name], name
        else:
            assert str(options[name]) == default, name


# docs/reference/method.md


def test_open_points_and_the_changes_of_mma_are_settings() -> None:
    mma, ours = settings_of(load_method("mma")), settings_of(load_method("rmadapter"))
    text = text_of("docs/reference/method.md")
    rows = text.split("| open point |")[1].split("\n\n")[0].splitlines()
    fields = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[-2])}
    assert fields <= {*COMMON_SETTINGS, *ours}
    assert len(fields) > 15
    sentence = text.split("`--method mma` sets")[1].split("\n\n")[0]
    shown = parse_overrides(re.findall(r"`(\w+=\S+?)`", sentence))
    changed = {name for name in mma if mma[name] != ours[name]}
    changed = {name for name in changed if not name.startswith("lambda_")}
    assert shown == {name: mma[name] for name in {*shown, *changed}}


def walks() -> list[list[list[str]]]:
    """Return the functions of each line, for the three walks."""
    text = text_of("docs/reference/method.md").split("## Three walks")[1].split("\n## ")[0]
    parts = [re.findall(r"^\d+\. (.+)$", part, re.M) for part in text.split("\n**")[1:]]
    return [[re.findall(r"`(\w+(?:\.\w+)+)`", line) for line in lines] for lines in parts]


@pytest.mark.ci
def test_the_walks_are_walked(
    tiny_clip: Backbone, colors: Path, finished: Path, tmp_path: Path
) -> None:
    """Every function of a walk is called, directly or not, by the one above it."""
    from rmadapter.cli.bench import BenchOptions, bench
    from rmadapter.cli.options import RunOptions, SettingOptions
    from rmadapter.cli.predict import predict
    from rmadapter.cli.runs import FitOptions, fit

    name = tiny_clip.name
    sets = ["epochs=1", "rank=2", "first_block=3", "device=cpu"]
    own = [f"rmadapter.{s}" if "device" not in s else s for s in sets]
    numbers = count()  # a finished run is not trained again
    calls: list[Callable[[], Any]] = [
        lambda: fit(
            colors, tmp_path / f"run-{next(numbers)}",
            FitOptions(method="rmadapter", backbone=name, shots=2),
            settings=SettingOptions(sets=sets),
        ),
        lambda: predict(
            finished, [str(colors / "test/red/0.png")], options=RunOptions(backbone=name)
        ),
        lambda: bench(
            BenchOptions(
                protocol="base-to-novel", datasets=colors.name, out=tmp_path / "out",
                methods="rmadapter",
                backbone=name, seeds="1", shots="2", root=colors.parent, sets=own,
            )
        ),
    ]  # fmt: skip
    for walk, call in zip(walks(), calls, strict=True):
        chain = [line[0] for line in walk[:-1]]
        for end in walk[-1]:
            steps = [pkgutil.resolve_name(f"rmadapter.{step}") for step in (*chain, end)]
            codes = [inspect.unwrap(step).__code__ for step in steps]
            assert walked(codes, call), f"{' > '.join(chain)} > {end}"


def walked(codes: list[CodeType], call: Callable[[], Any]) -> bool:
    """Tell whether the last function was called below all others in their order."""
    seen = False

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal seen
        if event == "call" and frame.f_code is codes[-1] and not seen:
            rest, caller = list(codes), frame
            while caller and rest:
                if caller.f_code is rest[-1]:
                    rest.pop()
                caller = caller.f_back  # type: ignore[assignment]
            seen = not rest

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


# A release

BY_ITSELF = {"README.md", "LICENSE", "pyproject.toml", "src"}  # setuptools includes these


def test_the_version_is_the_same_everywhere() -> None:
    [own] = re.findall(r'^version = "(.+)"$', text_of("pyproject.toml"), re.M)
    assert re.findall(r"^version: (.+)$", text_of("CITATION.cff"), re.M) == [own]


def test_the_source_archive_has_every_file_of_the_repository() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        pytest.skip("no git repository")
    words = [word for line in text_of("MANIFEST.in").splitlines() for word in line.split()[1:]]
    included = {word for word in words if not word.startswith(("*", "__pycache__", ".DS"))}
    tops = {line.partition("/")[0] for line in done.stdout.splitlines()}
    own = {"packages"}  # distributions of their own
    assert tops - BY_ITSELF - {".gitignore"} - own == included


def test_make_dist_installs_and_runs_the_release_tools() -> None:
    [extra] = re.findall(r"^release = \[(.+)\]$", text_of("pyproject.toml"), re.M)
    [target] = re.findall(r"^dist:.*\n((?:\t.*\n)+)", text_of("Makefile"), re.M)
    tools = re.findall(r'"([a-z-]+)', extra)
    assert tools == ["build", "twine", "check-wheel-contents"]
    assert all(re.search(rf"(-m |/){name}\b", target) for name in tools)
    assert '".[release]"' in target
