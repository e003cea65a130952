"""The verbs of the bench: bench, report and leaderboard."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from rmadapter.artifacts.record import Score, parse_record, read_record
from rmadapter.backbones import Backbone
from rmadapter.bench.report.write import write_reports
from rmadapter.cli.bench import _show
from rmadapter.cli.options import is_ray
from rmadapter.errors import UserError
from rmadapter_research.leaderboard import printed_averages, write_leaderboard
from rmadapter_research.published import contradictions, explained
from tests.helpers.shell import Command, refused, rmadapter
from tests.helpers.shots import REQUIRED_SETTINGS
from tests.helpers.synthetic_runs import VIT, record, write
from tests.helpers.web_pages import axe, needs_browser, tab

__all__ = ["axe", "rmadapter"]  # fixtures

QUICK = [f"--set=rmadapter.{pair}" for pair in ("first_block=3", "rank=4", "epochs=1")]
BOTH = ["--methods", "zero-shot,rmadapter"]


@pytest.fixture
def words(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> list[object]:
    data = ["--datasets", colors.name, "--root", colors.parent, "--out", tmp_path / "out"]
    model = ["--backbone", tiny_clip.name, "--set", "device=cpu"]
    return ["bench", "base-to-novel", *data, *model, "--shots", "2"]


def test_bench_prints_a_table_json_and_reports(
    rmadapter: Command, words: list[object], tmp_path: Path
) -> None:
    command = [*words, *BOTH, "--seeds", "1,2", *QUICK]
    done = rmadapter.done(*command)
    assert done.err.count(": finished base ") == 4
    assert "2 of 2" in done.out
    again = rmadapter.done(*command, "--json")
    assert again.err == ""  # nothing was left to do
    records = [parse_record(json.dumps(record), "") for record in json.loads(again.out)]
    cells = [(seed, method) for seed in (1, 2) for method in ("zero-shot", "rmadapter")]
    assert [(record.task.seed, record.method.name) for record in records] == cells
    table = rmadapter(*command).out
    for method in ("zero-shot", "rmadapter"):
        mean = sum(r.metrics["base"] for r in records if r.method.name == method) / 2
        title = next(r.method.title for r in records if r.method.name == method)
        [line] = [line for line in table.splitlines() if f" {title} " in line]
        assert f" {mean:.2f} " in line
    report = ["report", tmp_path / "out", "--out", tmp_path / "report"]
    page = tmp_path / "report/report.html"
    assert rmadapter.done(*report).out.strip() == f"report: {page}"
    assert page.is_file()
    lines = rmadapter.done(*report, "--paper").out.splitlines()
    counts = r"0 of \d{3} printed figures were measured; 0 are within 1 points"
    assert re.fullmatch(counts, lines[-1])
    [first, *_] = [line for line in lines if "Table 1, average" in line and "RMAdapter" in line]
    assert "84.52" in first
    assert "not measured" in first


def test_a_plan_lists_the_runs_that_are_left_and_writes_nothing(
    rmadapter: Command, words: list[object], tmp_path: Path
) -> None:
    rmadapter.done(*words, "--methods", "zero-shot", "--seeds", "1")
    before = sorted(tmp_path.rglob("*"))
    planned = [*words, *BOTH, "--seeds", "1,2", *QUICK, "--plan"]
    found = rmadapter.json(*planned)
    lines = [(line["method"], line["left"], line["runs"]) for line in found["lines"]]
    assert lines == [("rmadapter", 2, 2), ("zero-shot", 1, 2)]
    assert (found["runs"], found["left"], len(found["order"])) == (4, 3, 3)
    assert found["order"][-1].endswith("zero-shot 2 shots seed 2")
    out = rmadapter.done(*planned).out
    assert "1 of 2" in out
    assert "3 of 4 runs are left" in out
    assert all(run in out for run in (found["order"][0], found["order"][-1]))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--shots", "6"), "no test split"),
        (("--set", "maple.epochs=1"), "maple"),
        (("--root", "nowhere"), "nowhere"),
    ],
)
def test_a_plan_refuses_what_a_bench_would(
    given: tuple[str, ...], named: str, rmadapter: Command, words: list[object], colors: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    shutil.copytree(colors / "train", tmp_path / colors.name)
    root = ["--root", tmp_path]
    refused(rmadapter(*words, "--methods", "zero-shot", *root, *given, "--plan"), named)


def test_parts_are_the_whole_together(
    rmadapter: Command, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*words, "--methods", "zero-shot", "--seeds", "1,2"]
    names = ("ID", "MIN", "MAX", "STEP", "COUNT")
    for name, value in zip(names, (5, 4, 6, 1, 3), strict=True):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    part = rmadapter.done(*command, "--shard", "auto")
    assert "note: part 2 of 3: 1 of 2 runs" in part.err
    assert len(list((tmp_path / "out").rglob("*.json"))) == 1
    last = rmadapter.done(*command, "--shard", "3/3", "--json")
    assert json.loads(last.out) == []
    assert "note: part 3 of 3: 0 of 2 runs" in last.err
    rest = rmadapter.done(*command).err
    assert "note: a task of an array without --shard auto" in rest
    assert rest.count(": finished base ") == 1  # the other one was there


def test_a_part_may_be_without_a_method_that_settings_name(
    rmadapter: Command, words: list[object]
) -> None:
    command = [*words, *BOTH, "--seeds", "1", *QUICK, "--shard", "2/2"]
    assert rmadapter.json(*command) == []
    code, _, err = rmadapter(*command, "--set", "mma.rank=4")
    assert code == 2
    assert "--set mma.*: no run uses the method 'mma'" in err


def test_two_methods_of_one_title_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {"a.py:Mine": (60.0, "Mine"), "b.py:Mine": (70.0, "Mine"), "mma": (65.0, "MMA")}
    _show(
        [
            record(name, "dtd", 1, {"base": value, "novel": 50}, title=title)
            for name, (value, title) in runs.items()
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    shown = {"Mine (a.py:Mine)": "60.00", "Mine (b.py:Mine)": "70.00", " MMA ": "65.00"}
    for name, value in shown.items():
        [line] = [line for line in lines if name in line]
        assert value in line


def test_a_figure_that_is_off_ends_with_1(rmadapter: Command, tmp_path: Path) -> None:
    """Runs as if of the paper's backbone and data: zero-shot on DTD, once as printed and once two
    points off."""
    printed = {"base": (53.24, 864, 24), "novel": (59.90, 828, 23)}
    for off, code in ((0.0, 0), (2.0, 1)):
        scores = tuple(
            Score(name=name, images=images, classes=classes, accuracy=value + off)
            for name, (value, images, classes) in printed.items()
        )
        runs = [record("zero-shot", "dtd", seed, {}, **VIT) for seed in (1, 2, 3)]
        runs = [run.model_copy(update={"scores": scores}) for run in runs]
        results = write(tmp_path / f"off{off:g}", *runs)
        code_found, out, _ = rmadapter(
            "report", results, "--out", tmp_path / "report", "--paper", "--json"
        )
        rows = [row for row in json.loads(out) if row["within"] is not None]
        within = {row["figure"]: row["within"] for row in rows}
        assert within == dict.fromkeys(("base", "novel", "HM"), not off)
        assert code_found == code


def test_a_failed_run_ends_with_one_sentence_and_2(rmadapter: Command, words: list[object]) -> None:
    failing = ["--seeds", "1", "--json", "--set", "rmadapter.first_block=9"]
    code, out, err = rmadapter(*words, *BOTH, *failing)
    assert code == 2
    states = [record.get("status", "finished") for record in json.loads(out)]
    assert states == ["finished", "failed"]
    last = err.splitlines()[-1]
    assert last.startswith("rmadapter: 1 of 2 runs failed")
    assert "have 4 and 4 blocks" in last


@pytest.mark.ci
def test_report_of_a_run_writes_its_page_again(
    rmadapter: Command, finished: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = (run / "report.html").read_bytes()
    assert rmadapter.done("report", run).out.strip() == f"report: {run / 'report.html'}"
    assert (run / "report.html").read_bytes() == before
    refused(rmadapter("report", run, "--tolerance", "2"), "--tolerance: is for --paper")
    refused(rmadapter("report", run, "--out", tmp_path / "else"), f"{run}: ", "leave out --out")
    refused(rmadapter("report", tmp_path), "--out: give a folder for the report")
    (run / "SHA256SUMS").unlink()
    for damage in ("step,loss\n1,x\n", 'step,loss\n"1,2\n'):
        (run / "history.csv").write_text(damage)
        refused(rmadapter("report", run), "history.csv: not the losses of a run")
    (run / "predictions.csv").unlink()
    refused(rmadapter("report", run), "predictions.csv: missing")


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--methods", "rmadaptor"], "did you mean 'rmadapter'"),
        (["--seeds", "one"], "--seeds one: write whole numbers, such as 1,2,3"),
        (["--set", "rank=4"], "write METHOD.rank"),
        (["--set", "rmadapter.rnak=4"], "did you mean 'rank'"),
        (["--set", "coop.epochs=4"], "no run uses the method 'coop'"),
        (["--templates", "a photo"], "needs exactly one {}"),
        (["--set", "shots=3"], "write METHOD.shots"),
        (["--datasets", "colours"], "colours"),
        (["--backbone", "pokket"], "'pokket'"),
        (["--shard", "3/2"], "write the part and the number of parts, such as 1/8, or auto"),
        (["--jobs-per-gpu", "2"], "--jobs-per-gpu: there is no GPU to share"),
    ],
)
def test_mistakes_in_bench_are_named(
    rmadapter: Command, words: list[object], more: list[str], complaint: str, tmp_path: Path
) -> None:
    code, out, err = rmadapter(*words, "--methods", "rmadapter", "--seeds", "1", *more)
    assert (code, out) == (2, "")
    assert not (tmp_path / "out").exists()
    last = err.splitlines()[-1]
    assert last.startswith("rmadapter: ")
    assert complaint in last


# Leaderboards


SETS = ("dtd", "eurosat", "food101", "sun397")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    methods = enumerate([("zero-shot", ""), ("mma", ""), ("coop", "<b>CoOp</b>")])
    runs = [
        record(method, data, seed, {"base": 60.0 + n + i, "novel": 50.0 - n + seed}, title=title)
        for (n, (method, title)), (i, data), seed in product(methods, enumerate(SETS), (1, 2))
    ]
    protocol: dict[str, Any] = {"protocol": "few-shot", **VIT}
    few = [record("mma", "dtd", 1, {"all": 50.0}, shots=shots, **protocol) for shots in (1, 4)]
    failed = record("mma", "ucf101", 1, {}, status="failed", reason="no memory")
    return write(tmp_path / "results", *runs, *few, failed)


def test_the_page_stands_alone_and_has_every_board(
    rmadapter: Command, results: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = rmadapter.done("leaderboard", results, "--out", out)
    assert done.out.strip() == f"leaderboard: {out / 'index.html'}"
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
    found = rmadapter.json("leaderboard", results, "--out", first)
    write_leaderboard(first / "records.jsonl", second)
    for name in ("index.html", "leaderboard.json", "records.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert found == json.loads((first / "leaderboard.json").read_text(encoding="utf-8"))
    assert (found["contradictions"], found["explained"]) == (contradictions(), explained())
    page = unescape((first / "index.html").read_text(encoding="utf-8"))
    assert all(f"<li>{text}</li>" in page for text in (*contradictions(), *explained()))
    for _ in range(2):  # a page below its results does not stand in its own way
        assert rmadapter.json("leaderboard", results, "--out", results / "board") == found
    boards = [(board["protocol"], board["shots"], board["track"]) for board in found["boards"]]
    shots = {"base-to-novel": [16], "few-shot": [1, 4]}
    assert boards == [(name, k, "ranked") for name, some in shots.items() for k in some]
    assert found["boards"][0]["datasets"] == [*SETS]


@pytest.mark.slow
def test_methods_of_their_own_tracks_stand_by_themselves_from_bench_to_page(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    described = "zero-shot-descriptions"
    methods = ["--methods", f"zero-shot,zero-shot-ensemble,{described},tda"]
    texts = REQUIRED_SETTINGS[described]["descriptions"]
    data = ["--datasets", colors.name, "--root", colors.parent, "--shots", "1", "--seeds", "1,2"]
    sets = ["--set", "device=cpu", "--set", f"{described}.descriptions={texts}"]
    out = ["--backbone", tiny_clip.name, "--out", tmp_path / "runs"]
    records = rmadapter.json("bench", "few-shot", *data, *methods, *sets, *out)
    orders = {
        (r["method"]["name"], r["task"]["seed"]): r["scores"][0].get("order") for r in records
    }
    assert {key: order for key, order in orders.items() if order} == {("tda", 1): 1, ("tda", 2): 2}
    found = rmadapter.json("leaderboard", tmp_path / "runs", "--out", tmp_path / "board")
    rows = {
        board["track"]: [row["label"] for row in board["standings"]] for board in found["boards"]
    }
    counts = {track: len(labels) for track, labels in rows.items()}
    assert counts == {"ranked": 2, "extra data": 1, "test time": 1}
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


def test_a_board_names_methods_that_are_not_written_from_their_code(tmp_path: Path) -> None:
    runs = [record(name, "dtd", 1, {"base": 60.0, "novel": 50.0}) for name in ("mma", "cocoa-mix")]
    found = write_leaderboard(write(tmp_path / "runs", *runs), tmp_path / "out")
    [board] = found["boards"]
    assert "cocoa-mix (" in str(board["notes"])
    assert "cocoa-mix (from" in (tmp_path / "out/index.html").read_text(encoding="utf-8")


def test_nothing_finished_is_no_leaderboard(tmp_path: Path) -> None:
    run = record("mma", "ucf101", 1, {}, status="failed", reason="no memory")
    failed = write(tmp_path / "r", run)
    with pytest.raises(UserError, match="no finished run of a method"):
        write_leaderboard(failed, tmp_path / "out")


def test_a_run_that_is_left_out_is_named(rmadapter: Command, results: Path, tmp_path: Path) -> None:
    earlier = {"finished": "2020-01-01T00:00:00+00:00"}
    write(results / "late", record("mma", "dtd", 1, {"base": 1.0, "novel": 1.0}, **earlier))
    _, out, err = rmadapter("leaderboard", results, "--out", tmp_path / "out", "--json")
    assert "same experiment" in err
    assert json.loads(out)["runs"] == 26


@pytest.mark.real_plots
def test_two_seeds_far_apart_are_no_fault(tmp_path: Path) -> None:
    """Their interval is wider than all accuracies."""
    runs = [
        record(method, "dtd", seed, {"base": 60.0, "novel": novel})
        for method in ("mma", "coop")
        for seed, novel in ((1, 5.0), (2, 45.0))
    ]
    write_leaderboard(write(tmp_path / "results", *runs), tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    (plot,) = re.findall(r'<figure class="plot">(.*?)</figure>', page, re.S)
    ticks = re.findall(r"<text[^>]*>([\d.\u2212]+)</text>", plot)
    assert len(ticks) > 4
    assert all(0 <= float(tick) <= 110 for tick in ticks)


def test_printed_averages_show_all_values_where_sources_differ() -> None:
    tables = {table["title"]: table for table in printed_averages()}
    halves = tables["base-to-novel: ViT-B-16/openai, 16 shots"]
    assert halves["heads"] == ["base", "novel", "HM"]
    rows = {row["method"]: row for row in halves["rows"]}
    assert rows["mmrl"]["cells"] == ["85.68", "77.16", "81.20"]
    assert rows["cocoop"]["cells"] == ["80.47", "71.69 / 72.30", "75.83 / 76.17"]
    assert rows["2sfs"]["sources"] == 2
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


def test_options_of_a_cluster_need_one() -> None:
    assert not is_ray(False)
    assert is_ray(True, "auto")
    with pytest.raises(UserError, match="--address"):
        is_ray(False, "auto")
    with pytest.raises(UserError, match="--jobs"):
        is_ray(False, workers=2)
