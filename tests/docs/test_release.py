"""Check that the workflows of GitHub parse, have the rights that they need and no others, and call
commands that exist; and that files about the project agree."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAY_WRITE = {
    ("release", "publish"): {"id-token"},
    ("docs", "deploy"): {"pages", "id-token"},
    ("scorecard", "scorecard"): {"security-events", "id-token"},
}
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# Workflows


def read(path: Path) -> dict[Any, Any]:
    """Return a workflow. YAML 1.1, which PyYAML reads, takes its key `on` for True."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(workflow, dict)
    return workflow


def steps(workflow: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def test_there_is_a_workflow_for_each_purpose() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "scorecard", "test"]


@each_workflow
def test_a_workflow_has_triggers_jobs_and_limits(path: Path) -> None:
    workflow = read(path)
    assert workflow["name"] == path.stem
    assert workflow[True], "no trigger"
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert 0 < job["timeout-minutes"] <= 120
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"])
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step), step
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


@each_workflow
def test_a_workflow_has_no_needless_permissions(path: Path) -> None:
    workflow = read(path)
    assert {*workflow["permissions"].values()} <= {"read"}
    for name, job in workflow["jobs"].items():
        rights = job.get("permissions", {})
        writes = {right for right, kind in rights.items() if kind == "write"}
        assert writes == MAY_WRITE.get((path.stem, name), set()), name


@each_workflow
def test_actions_are_named_by_a_version(path: Path) -> None:
    for step in steps(read(path)):
        if "uses" in step:
            assert re.fullmatch(
                r"[\w-]+(/[\w-]+)+@(v\d+(\.\d+)*|release/v\d+|[0-9a-f]{40})", step["uses"]
            ), step["uses"]


@each_workflow
def test_targets_and_scripts_exist(path: Path) -> None:
    runs = [step["run"] for step in steps(read(path)) if "run" in step]
    assert runs or path.stem == "scorecard"
    for line in runs:
        for target in re.findall(r"\bmake ([a-z-]+)", line):
            assert re.search(rf"^{target}:", text_of("Makefile"), re.M), f"no target {target}"
        for script in re.findall(r"(?:^|\s)((?:\.ci|tools|tests)/[\w/.]+)", line):
            assert (ROOT / script).is_file(), script
        for extra in re.findall(r"\.\[(\w+)\]", line):
            assert re.search(rf"^{extra} = \[", text_of("pyproject.toml"), re.M), extra


def test_the_oldest_python_is_tested() -> None:
    [oldest] = re.findall(r'^requires-python = ">=(.+)"$', text_of("pyproject.toml"), re.M)
    jobs = read(ROOT / ".github/workflows/test.yml")["jobs"]
    assert jobs["all"]["strategy"]["matrix"]["python"][0] == oldest
    [setup] = [step for step in jobs["lowest"]["steps"] if "setup-python" in step.get("uses", "")]
    assert setup["with"]["python-version"] == oldest


# Coverage


def test_a_line_is_left_out_of_the_coverage_for_a_reason() -> None:
    reasons = re.compile(r"# pragma: no cover: needs a (GPU|cluster|hub)$", re.M)
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("no cover") == len(reasons.findall(text)), path


# Forms and descriptions


def test_forms_have_fields_with_names() -> None:
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    fields: dict[str, set[str]] = {}
    for form in forms:
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        if form.stem != "config":
            assert {"name", "description", "body"} <= {*content}, form
            parts = [part for part in content["body"] if part["type"] != "markdown"]
            assert all(part["attributes"]["label"] for part in parts), form
            names = [part["id"] for part in parts]
            assert len({*names}) == len(names), form
            fields[form.stem] = {*names}
    assert {*fields} == {"bug", "method", "data_set"}
    assert "doctor" in fields["bug"]


def test_zenodo_says_what_the_citation_says() -> None:
    """Zenodo reads its own file, and then not the citation."""
    zenodo = json.loads(text_of(".zenodo.json"))
    citation = yaml.safe_load(text_of("CITATION.cff"))
    for field in ("title", "version", "license", "keywords"):
        assert zenodo[field] == citation[field], field
    assert zenodo["upload_type"] == citation["type"]
    names = [
        author.get("name") or f"{author['family-names']}, {author['given-names']}"
        for author in citation["authors"]
    ]
    assert [creator["name"] for creator in zenodo["creators"]] == names
    paper = citation["preferred-citation"]
    cited = {paper["doi"], *(other["value"] for other in paper["identifiers"])}
    assert {one["identifier"] for one in zenodo["related_identifiers"]} == cited
    assert f'"{zenodo["description"]}"' in text_of("pyproject.toml")


def test_every_place_for_the_owner_is_listed() -> None:
    listed = {*re.findall(r"^\| `(.+?)` \|", text_of("OWNER.md"), re.M)}
    assert all((ROOT / name).is_file() for name in listed)
    words = ["-e", "The rmadapter authors", "-e", "not filled in yet", "-e", "OWNER/REPOSITORY"]
    command = ["git", "grep", "-l", *words, "--", ":!tests", ":!OWNER.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git repository")
    assert {*done.stdout.splitlines()} <= listed


# docs/about/versions.md


def test_the_lowest_versions_are_those_of_the_package() -> None:
    [block] = re.findall(r"^dependencies = \[\n(.*?)^\]", text_of("pyproject.toml"), re.M | re.S)
    bounds: dict[str, list[str]] = {}
    for name, bound in re.findall(r'^ +"([\w-]+)>=([\d.]+)', block, re.M):
        bounds.setdefault(name, []).append(bound)
    page = text_of("docs/about/versions.md").split("| library |")[1]
    rows = re.findall(r"^\| ([\w-]+) \| (.+) \| ([\d.]+) \|", page, re.M)
    assert {name: lowest.split(" or ") for name, lowest, _ in rows} == bounds
    for name, lowest, tried in rows:
        assert Version(tried) >= Version(lowest.split(" or ")[0]), name
