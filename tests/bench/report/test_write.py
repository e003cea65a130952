"""The whole report of a folder of synthetic runs: files, self-containedness, and what must be said
in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from scipy.stats import ttest_1samp

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.groups import group_records
from rmadapter.bench.report.write import summarise, write_reports
from rmadapter.errors import UserError
from rmadapter.support.locks import exclusive
from rmadapter.task import SHARED_GROUPS
from rmadapter_research.leaderboard import write_leaderboard
from tests.helpers.html import Page
from tests.helpers.synthetic_runs import VIT, record, with_method, write

pytestmark = pytest.mark.real_plots

NAME = "grocery <b>&"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    values = {"zero-shot": (60.0, 50.0), "mma": (64.0, 51.0), "rmadapter": (63.0, 49.0)}
    runs = [
        record(m, d, s, {"base": b + s * (m != "zero-shot"), "novel": n})
        for m, (b, n) in values.items()
        for d in ("caltech101", NAME)
        for s in (1, 2)
    ]
    few = {"protocol": "few-shot"}
    runs += [
        record("mma", "caltech101", 1, {"all": 50.0 + k}, shots=k, **few) for k in (1, 2, 4, 8)
    ]
    vit = {**VIT, "counts": {"base": 1000, "novel": 1465}}
    runs += [
        record("rmadapter", "caltech101", s, {"base": 98.0, "novel": 90.0}, **vit)
        for s in (1, 2, 3)
    ]
    runs.append(record("cocoop", "caltech101", 1, {}, status="failed", reason="out of memory"))
    write(root / "runs", *runs)
    (root / "runs/note.json").write_text("[]")
    write_reports(root / "runs", root / "out")
    return root


def text_of(folder: Path, name: str = "report.md") -> str:
    return (folder / "out" / name).read_text(encoding="utf-8")


@pytest.mark.ci
def test_a_folder_in_which_another_process_writes_is_refused(folder: Path, tmp_path: Path) -> None:
    with exclusive(tmp_path / "out"), pytest.raises(UserError, match="another process"):
        write_reports(folder / "runs", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert not list(folder.rglob("*.lock"))


def test_the_page_is_self_contained_and_well_formed(folder: Path) -> None:
    page = Page(folder / "out/report.html")
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = [link for key in ("href", "src", "xlink:href") for link in page.values(key)]
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert NAME in page.text


def test_the_finding_comes_first_then_one_scatter_and_the_tables(folder: Path) -> None:
    finding = json.loads(text_of(folder, "report.json"))["finding"]
    title = finding["title"]
    assert len(finding["sentences"]) == 3
    html, markdown = text_of(folder, "report.html"), text_of(folder)
    assert f"<title>{title}</title>" in html
    for text, parts in (
        (html, (f"<h1>{title}", "<svg", f"<p>{finding['sentences'][0]}", "<nav", "<table")),
        (markdown, (f"# {title}\n\n{finding['sentences'][0]}", "-trade-off.svg)", "\n## ", "\n| ")),
    ):
        places = [text.index(part) for part in parts]
        assert places == sorted(places)
    assert html.count("Base against novel accuracy") == 2  # its label and its caption
    assert markdown.count("-trade-off.svg)") == 1


def test_failures_foreign_files_and_printed_figures_are_in_the_report(folder: Path) -> None:
    text = re.sub(" +", " ", text_of(folder))
    for part in (
        "cocoop on caltech101 (base-to-novel, pocket, 16 shots, seed 1): failed: out of memory",
        "note.json: not a run record",
        "torch 2.6.0",
        "*RMAdapter, as printed* | *98.40* | *94.27* | *96.26*",
        "caltech101, RMAdapter, novel: 90.00, the paper has 94.27",
    ):
        assert part in text


def test_a_note_is_once_on_a_page(folder: Path) -> None:
    names = ("report.md", "report.html")
    assert [text_of(folder, name).count("Medians over the runs") for name in names] == [1, 1]


def test_cells_of_a_wide_table_name_their_columns_for_narrow_screens(folder: Path) -> None:
    text = text_of(folder, "report.html")
    wide = re.findall(r'<table class="results many">(.*?)</thead>(.*?)</table>', text, re.S)
    assert wide
    for head, body in wide:
        columns = re.findall("<th>(.*?)</th>", head)
        assert len(columns) > 6
        for row in re.findall("<tr.*?</tr>", body, re.S):
            assert re.findall('<td data-head="(.*?)">', row) == columns[1:]


def test_every_named_file_exists(folder: Path) -> None:
    out = folder / "out"
    summary = json.loads(text_of(folder, "report.json"))
    tables = {table["name"] for section in summary["sections"] for table in section["tables"]}
    assert {path.stem for path in (out / "tables").iterdir()} == tables
    images = re.findall(r"!\[.*?\]\((.+?)\)", text_of(folder))
    assert images
    assert {out / image for image in images} == set((out / "figures").iterdir())
    assert summary["runs"] == 12 + 4 + 3


def test_data_sets_with_similar_names_have_separate_files(tmp_path: Path) -> None:
    sets = {"pacs/photo": 10.0, "pacs-photo": 20.0, "average": 30.0}
    runs = [record("mma", data, 1, {"base": value, "novel": value}) for data, value in sets.items()]
    write_reports(write(tmp_path / "runs", *runs), tmp_path / "out")
    tables = {path.name: path.read_text() for path in (tmp_path / "out/tables").iterdir()}
    for value in (10, 20, 30):
        assert any(f"{value}.0" in text for text in tables.values())
    names = [name for name in tables if "average" in name]
    assert len(names) == 2
    assert len([name for name in tables if "pacs-photo" in name]) == 2


@pytest.mark.ci
def test_the_same_runs_give_the_same_bytes_even_in_a_folder_below_them(folder: Path) -> None:
    def content(out: Path) -> dict[str, bytes]:
        return {
            p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()
        }

    beside = folder / "runs/report"
    write_reports(folder / "runs", beside)
    first = content(beside)
    assert first == content(folder / "out")
    write_reports(folder / "runs", beside)
    assert content(beside) == first


def test_the_records_are_enough_to_write_the_report_again(folder: Path, tmp_path: Path) -> None:
    records = folder / "out/records.jsonl"
    assert len(records.read_text(encoding="utf-8").splitlines()) == 12 + 4 + 3 + 1
    write_reports(records, tmp_path)
    assert (tmp_path / "records.jsonl").read_bytes() == records.read_bytes()
    again, once = (
        json.loads((out / "report.json").read_text()) for out in (tmp_path, folder / "out")
    )
    assert {**again, "notes": once["notes"]} == once
    assert again["notes"] == []


@pytest.mark.ci
@pytest.mark.parametrize("study", ["photographs", "methods", "transfer"])
def test_documented_reports_equal_their_records(study: str, tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "research/results" / study
    write_reports(folder / "records.jsonl", tmp_path)
    assert (tmp_path / "records.jsonl").read_bytes() == (folder / "records.jsonl").read_bytes()
    ours, theirs = (
        (path / "report.md").read_text(encoding="utf-8").split() for path in (tmp_path, folder)
    )
    assert ours == theirs
    assert {p.name for p in tmp_path.glob("figures/*")} == {
        p.name for p in folder.glob("figures/*")
    }


def test_groups_in_both_train_and_test_are_named_once_per_set(tmp_path: Path) -> None:
    shared = f"{SHARED_GROUPS} the group 'p'"
    halves = {"base": 5.0, "novel": 4.0}
    runs = [
        record("mma", data, seed, halves, notes=(shared, "x")) for data in "ab" for seed in (1, 2)
    ]
    write_reports(write(tmp_path / "runs", *runs), tmp_path / "report")
    page = (tmp_path / "report/report.md").read_text()
    assert page.count(shared) == 2
    assert f"\n\n- a: {shared}\n- b: {shared}\n" in page


def runs(
    gaps: list[float], method: str = "rmadapter", other: str = "mma", **changes: float
) -> list[Record]:
    """Two methods of which the first has an HM that is so much larger, data set by data set."""
    values = [(60.0 + gap, 60.0) for gap in gaps]
    return [
        record(name, f"set {number}", seed, {"base": own, "novel": own}, **changes)
        for number, pair in enumerate(values)
        for name, own in zip((method, other), pair, strict=True)
        for seed in (1, 2)
    ]


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([1.0, 1.5, 2.0], "ahead of MMA"),
        ([-1.0, -1.5, -2.0], "behind MMA"),
        ([-3.0, 2.0, 4.0], "not shown to differ from MMA"),
        ([5.0, 5.1], "too few"),
        ([5.0], "too few"),
    ],
)
def test_the_title_says_what_the_test_over_data_sets_shows(gaps: list[float], verdict: str) -> None:
    found = summarise(group_records(runs(gaps)))
    for word in (verdict, "RMAdapter", "MMA", "HM", f"n = {len(gaps)} data set"):
        assert word in found.title
    count, largest, _ = found.sentences
    if len(gaps) > 2:
        assert ("not shown" in verdict) == (ttest_1samp(gaps, 0).pvalue >= 0.05)
        assert ("is not shown." in largest) == ("not shown" in verdict)
    else:
        assert "is not tested" in largest
    mean = sum(gaps) / len(gaps)
    assert f"to MMA, {mean:+.2f} points".replace("-", "−") in largest
    assert f"n = {len(gaps)})" in largest
    assert f"{4 * len(gaps)} runs, 2 rows, {len(gaps)} data set" in count


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([1.0, 1.1, 1.2], "ahead of coop and MMA and behind tcp"),
        ([1.0, 1.5, 2.0], "behind tcp and not shown to differ from coop and MMA"),
    ],
)
def test_several_others_are_counted_and_corrected_for(gaps: list[float], verdict: str) -> None:
    """1, 1.5 and 2 points are shown alone, with a p of 0.035, and not when they are two of three
    differences."""
    far = [run for run in runs([5.0, 5.5, 5.2], other="coop") if run.method.name == "coop"]
    better = [
        record("tcp", f"set {n}", seed, {"base": 70.0, "novel": 70.0})
        for n in range(3)
        for seed in (1, 2)
    ]
    found = summarise(group_records([*runs(gaps), *far, *better]))
    assert f" {verdict} in HM" in found.title
    assert "Holm for 3 comparisons" in found.sentences[2]


def test_the_finding_is_about_base_to_novel_on_the_most_data_sets() -> None:
    pair, few_shot = ("mma", "rmadapter"), {"protocol": "few-shot"}
    few = [record(m, "one", 1, {"all": 50.0}, shots=4, **few_shot) for m in pair]
    found = summarise(group_records([*few, *runs([1.0], shots=1), *runs([1.0, 2.0, 1.5])]))
    assert found.group is not None
    assert (found.group.protocol, found.group.shots) == ("base-to-novel", 16)
    nine = [record(m, f"set {n}", 1, {"all": 50.0}, **few_shot) for m in pair for n in range(9)]
    most = [*runs([1.0, 2.0, 1.5], shots=1), *runs([1.0, 2.0]), *nine]
    assert summarise(group_records(most)).title.endswith("n = 3 data sets")
    alone = summarise(group_records(few))
    assert alone.group is not None
    assert alone.group.protocol == "few-shot"
    assert "4 shots" in alone.title


def test_without_two_methods_there_is_no_finding() -> None:
    assert summarise([]) == (None, "0 runs, and no two methods to compare", ())
    found = summarise(group_records(runs([1.0], other="rmadapter")[:1]))
    assert found == (None, "1 run, and no two methods to compare", ())


def test_every_file_names_a_changed_setting(tmp_path: Path) -> None:
    changed = with_method(
        record("rmadapter", "a", 1, {"base": 60.0, "novel": 50.0}), settings={"epochs": 3}
    )
    other = record("mma", "a", 1, {"base": 62.0, "novel": 51.0})
    runs = write(tmp_path / "runs", changed, other)
    write_reports(runs, tmp_path / "out")
    write_leaderboard(runs, tmp_path / "board")
    out = tmp_path / "out"
    files = [*(out / name for name in ("report.html", "report.md", "report.json"))]
    files += [*out.glob("tables/*.csv"), *out.glob("figures/*.svg")]
    files += [tmp_path / "board/index.html", tmp_path / "board/leaderboard.json"]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "epochs=3" in text or "RMAdapter" not in text, file.name
        assert "epochs=3" in text or file.suffix in (".svg", ".csv"), file.name


def test_a_named_method_is_compared_with_the_others(folder: Path, tmp_path: Path) -> None:
    """By its name or its label; the last column, the verdict, stays in sight."""
    summary = write_reports(folder / "runs", tmp_path / "mma", reference="mma")
    titles = [table["title"] for one in summary["sections"] for table in one["tables"]]  # type: ignore[attr-defined]
    assert any(title.startswith("MMA minus the others") for title in titles)
    assert '<table class="results many ends">' in (tmp_path / "mma/report.html").read_text("utf-8")
    with pytest.raises(UserError, match="--reference mmma: not among the results"):
        write_reports(folder / "runs", tmp_path / "none", reference="mmma")


def test_papers_of_the_methods_are_cited_once(tmp_path: Path) -> None:
    source = "Zhou et al., IJCV 2022 (arXiv 2109.01134); their settings"
    runs = [with_method(record("coop", data, 1, {"base": 1.0}), source=source) for data in "ab"]
    write_reports(write(tmp_path / "runs", *runs), tmp_path / "out")
    assert (tmp_path / "out/references.bib").read_text("utf-8").count("2109.01134") == 1
