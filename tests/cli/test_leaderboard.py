"""`rmadapter leaderboard`: the page, what it refuses, and its filters in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.bench.leaderboard import (
    HEIGHT,
    make_standings,
    printed_averages,
    scatter,
    write_leaderboard,
)
from rmadapter.bench.report.write import write_reports
from rmadapter.errors import UserError
from tests.helpers.shell import Command, refused, rmadapter
from tests.helpers.shots import REQUIRED_SETTINGS
from tests.helpers.synthetic_runs import VIT, record, write
from tests.helpers.web_pages import axe, needs_browser, tab

__all__ = ["axe", "rmadapter"]  # fixtures

SETS = ("dtd", "eurosat", "food101", "sun397")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    runs = [
        record(method, data, seed, {"base": 60.0 + n + i, "novel": 50.0 - n + seed}, title=title)
        for n, (method, title) in enumerate(
            [("zero-shot", ""), ("mma", ""), ("coop", "<b>CoOp</b>")]
        )
        for i, data in enumerate(SETS)
        for seed in (1, 2)
    ]
    few = [
        record("mma", "dtd", 1, {"all": 50.0}, shots=k, protocol="few-shot", **VIT) for k in (1, 4)
    ]
    failed = record("mma", "ucf101", 1, {}, status="failed", reason="no memory")
    return write(tmp_path / "results", *runs, *few, failed)


def test_the_page_stands_alone_and_has_every_board(
    rmadapter: Command, results: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, told, _ = rmadapter("leaderboard", results, "--out", out)
    assert (code, told.strip()) == (0, f"leaderboard: {out / 'index.html'}")
    page = (out / "index.html").read_text(encoding="utf-8")
    HTMLParser().feed(page)
    assert not re.search(r'(src|href)="(?!#|data:|records\.jsonl")', page)
    [script] = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert page.count("<section data-part") == 3
    assert "<b>CoOp</b>" not in page  # names are text
    assert "&lt;b&gt;CoOp&lt;/b&gt;" in page
    assert "5 runs with the released code gave 69.87 to 74.90" in page
    records = (out / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(records) == 26


def test_the_same_records_give_the_same_bytes_and_json(
    rmadapter: Command, results: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    found = json.loads(rmadapter("leaderboard", results, "--out", first, "--json").out)
    write_leaderboard(first / "records.jsonl", second)
    for name in ("index.html", "leaderboard.json", "records.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert found == json.loads((first / "leaderboard.json").read_text(encoding="utf-8"))
    for _ in range(2):  # a page below its results does not stand in its own way
        assert (
            json.loads(rmadapter("leaderboard", results, "--out", results / "board", "--json").out)
            == found
        )
    assert [(board["protocol"], board["shots"], board["track"]) for board in found["boards"]] == [
        ("base-to-novel", 16, "ranked"),
        ("few-shot", 1, "ranked"),
        ("few-shot", 4, "ranked"),
    ]
    assert found["boards"][0]["datasets"] == [*SETS]


@pytest.mark.slow
def test_methods_of_their_own_tracks_stand_by_themselves_from_bench_to_page(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    methods, texts = (
        "zero-shot,zero-shot-ensemble,zero-shot-descriptions,tda",
        REQUIRED_SETTINGS["zero-shot-descriptions"],
    )
    given = [
        "bench",
        "few-shot",
        "--datasets",
        colors.name,
        "--root",
        colors.parent,
        "--backbone",
        tiny_clip.name,
    ]
    given += ["--methods", methods, "--seeds", "1,2", "--shots", "1", "--set", "device=cpu"]
    given += [
        "--set",
        f"zero-shot-descriptions.descriptions={texts['descriptions']}",
        "--out",
        tmp_path / "runs",
    ]
    code, out, err = rmadapter(*given, "--json")
    assert code == 0, err
    orders = {
        (r["method"]["name"], r["task"]["seed"]): r["scores"][0].get("order")
        for r in json.loads(out)
    }
    assert {key: order for key, order in orders.items() if order} == {("tda", 1): 1, ("tda", 2): 2}
    found = json.loads(
        rmadapter("leaderboard", tmp_path / "runs", "--out", tmp_path / "board", "--json").out
    )
    rows = {
        board["track"]: [row["label"] for row in board["standings"]] for board in found["boards"]
    }
    assert {track: len(labels) for track, labels in rows.items()} == {
        "ranked": 2,
        "extra data": 1,
        "test time": 1,
    }
    assert rows["test time"] == ["TDA"]
    page = (tmp_path / "board/index.html").read_text(encoding="utf-8")
    assert "extra: generated texts about each class, in a file" in page
    write_reports(tmp_path / "runs", tmp_path / "report")
    report = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    own = report.split(", test time\n")[1]
    assert "TDA" in own
    assert "zero-shot CLIP" not in own.split("## Appendix")[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"accuracy": 99}', "theirs.jsonl, line 1: not a run record (field format"),
        ("not JSON", "theirs.jsonl, line 1: not readable JSON"),
        ("FIT", "a run of 'fit', which is not a protocol of the bench"),
        ("MORE", "field accuracies: Extra inputs"),
    ],
)
def test_a_foreign_record_is_refused_in_a_sentence(
    rmadapter: Command, results: Path, tmp_path: Path, text: str, words: str
) -> None:
    own = read_record(results / "000.json")
    lines = {
        "FIT": own.model_copy(update={"protocol": "fit"}).line(),
        "MORE": own.line()[:-2] + ', "accuracies": 1}',
    }
    (results / "theirs.jsonl").write_text(lines.get(text, text))
    refused(rmadapter("leaderboard", results, "--out", tmp_path / "out"), words)
    assert not (tmp_path / "out").exists()


def test_nothing_finished_is_no_leaderboard(tmp_path: Path) -> None:
    failed = write(
        tmp_path / "r", record("mma", "ucf101", 1, {}, status="failed", reason="no memory")
    )
    with pytest.raises(UserError, match="no finished run of a method"):
        write_leaderboard(failed, tmp_path / "out")


def test_a_run_that_is_left_out_is_named(rmadapter: Command, results: Path, tmp_path: Path) -> None:
    write(
        results / "late",
        record("mma", "dtd", 1, {"base": 1.0, "novel": 1.0}, finished="2020-01-01T00:00:00+00:00"),
    )
    _, out, err = rmadapter("leaderboard", results, "--out", tmp_path / "out", "--json")
    assert "same experiment" in err
    assert json.loads(out)["runs"] == 26


def test_two_seeds_far_apart_are_no_fault(tmp_path: Path) -> None:
    """Their interval is wider than all accuracies."""
    runs = [
        record(method, "dtd", seed, {"base": 60.0, "novel": novel})
        for method in ("mma", "coop")
        for seed, novel in ((1, 5.0), (2, 45.0))
    ]
    write_leaderboard(write(tmp_path / "results", *runs), tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    ends = [
        float(y)
        for line in re.findall(r"<line [^>]*>", page)
        for y in re.findall(r'y[12]="([\d.-]+)"', line)
    ]
    assert ends
    assert all(-1 <= y <= HEIGHT for y in ends)


def test_the_scatter_keeps_the_order_and_stays_inside() -> None:
    runs = [
        record(method, "dtd", seed, {"base": base + seed, "novel": novel})
        for method, base, novel in (
            ("zero-shot", 30.0, 40.0),
            ("mma", 70.0, 35.0),
            ("coop", 90.0, 38.0),
        )
        for seed in (1, 2)
    ]
    plot = scatter(make_standings(runs)[0])
    assert plot is not None
    points = {point["label"]: point for point in plot["points"]}
    assert points["Zero-shot CLIP"]["x"] < points["MMA"]["x"] < points["coop"]["x"]
    assert points["MMA"]["y"] > points["coop"]["y"] > points["Zero-shot CLIP"]["y"]  # downwards
    for point in plot["points"]:
        for x, y in [
            (point["x"], point["y"]),
            *((bar[i], bar[i + 1]) for bar in point["bars"] for i in (0, 2)),
        ]:
            assert plot["left"] <= x <= plot["right"]
            assert plot["top"] <= y <= plot["bottom"]
    assert scatter(make_standings(runs[:2])[0]) is None


def test_printed_averages_show_all_values_where_sources_differ() -> None:
    tables = {table["title"]: table for table in printed_averages()}
    halves = tables["base-to-novel: ViT-B-16/openai, 16 shots"]
    assert halves["heads"] == ["base", "novel", "HM"]
    rows = {row["method"]: row for row in halves["rows"]}
    assert rows["mmrl"]["cells"] == ["85.68", "77.16", "81.20"]
    assert rows["cocoop"]["cells"] == ["80.47", "71.69 / 72.30", "75.83 / 76.17"]
    assert rows["2sfs"]["sources"] == 1
    assert "few-shot: backbone not stated, 4 shots" in tables


@needs_browser
def test_filters_in_a_browser(results: Path, tmp_path: Path, axe: str) -> None:
    write_leaderboard(results, tmp_path / "out")
    with tab(tmp_path / "home") as page:
        page.go(f"file://{tmp_path / 'out/index.html'}")
        headings = "document.querySelectorAll('section[data-part]:not([hidden]) h2')"
        shown = f"[...{headings}].map((h) => h.textContent)"
        rows = (
            "document.querySelectorAll('section:not([hidden]) tr[data-part]:not([hidden])').length"
        )
        pick = """((name, value) => {
            document.forms[0].elements[name].value = value;
            document.forms[0].dispatchEvent(new Event('change'));
        })"""
        assert len(page.script(shown)) == 3
        page.script(f"{pick}('shots', '4')")
        assert page.script(shown) == ["few-shot: ViT-B-16/openai, 4 shots, ranked"]
        assert page.script("document.querySelector('#shown').textContent") == "1 of 3 boards"
        page.script(f"{pick}('shots', '')")
        page.script(f"{pick}('set', 'sun397')")
        assert page.script(shown) == ["base-to-novel: pocket, 16 shots, ranked"]
        assert page.script(rows) == 3
        page.script("document.forms[0].reset()")
        page.until(f"{shown}.length === 3")
        page.script(axe)
        found = page.script("axe.run().then((found) => found.violations.map((one) => one.id))")
        assert found == []
