"""The whole report of a folder of synthetic runs: files, self-containedness, and what must be said
in it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy.stats import ttest_1samp

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.groups import group_records
from rmadapter.bench.report.write import summarise, write_reports
from rmadapter.errors import UserError
from rmadapter.support.locks import exclusive
from tests.helpers.synthetic_runs import VIT, record, write

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


def test_two_do_not_write_into_one_folder(folder: Path, tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "out"),
        pytest.raises(UserError, match="another process is at work in this folder"),
    ):
        write_reports(folder / "runs", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert not list(folder.rglob("*.lock"))


class Checker(HTMLParser):
    """Collects ids and links, and refuses tags that do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found[key] or "" for key in ("href", "src", "xlink:href") if key in found]
        if tag not in {"meta", "link", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_well_formed(folder: Path) -> None:
    html = (folder / "out/report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert all(link.startswith("#") or link == "data:," for link in checker.links)
    assert {link[1:] for link in checker.links if link.startswith("#")} <= set(checker.ids)
    assert "<b>&" not in html
    assert "grocery &lt;b&gt;&amp;" in html


def test_the_finding_is_the_title_then_one_scatter_three_sentences_and_tables(folder: Path) -> None:
    title = "n = 2 data sets are too few to compare RMAdapter with Zero-shot CLIP and MMA in HM"
    html = (folder / "out/report.html").read_text(encoding="utf-8")
    assert f"<title>{title}</title>" in html
    places = [
        html.index(part)
        for part in (f"<h1>{title}", "<svg", "<p>This is of", "<p>The largest", "<nav", "<table")
    ]
    assert places == sorted(places)
    assert html.count("Base against novel accuracy") == 2  # its label and its caption
    text = (folder / "out/report.md").read_text(encoding="utf-8")
    places = [
        text.index(part)
        for part in (f"# {title}\n\nThis is of", "-trade-off.svg)", "\n## ", "\n| ")
    ]
    assert places == sorted(places)
    assert text.count("-trade-off.svg)") == 1
    finding = json.loads((folder / "out/report.json").read_text(encoding="utf-8"))["finding"]
    assert (finding["title"], len(finding["sentences"])) == (title, 3)


def test_it_says_what_was_measured(folder: Path) -> None:
    for name in ("report.md", "report.html", "report.tex"):
        text = (folder / "out" / name).read_text(encoding="utf-8")
        for part in (
            "Average over 2 data sets",
            "HM of the means",
            "mean of the HMs",
            "verdict",
            "two data sets",
        ):
            assert part in text
    text = re.sub(" +", " ", (folder / "out/report.md").read_text(encoding="utf-8"))
    for part in (
        "cocoop on caltech101 (base-to-novel, pocket, 16 shots, seed 1): failed: out of memory",
        "note.json: not a run record",
        "torch 2.6.0",
        "test each half (Table 1). All runs share: templates",
        "Rows in italics are the paper's figures as they are printed",
        "*RMAdapter, as printed* | *98.40* | *94.27* | *96.26*",
        "caltech101, RMAdapter, novel: 90.00, the paper has 94.27",
    ):
        assert part in text
    assert text.count("Medians over the runs") == 1
    assert (folder / "out/report.tex").read_text(encoding="utf-8").count(
        "Medians over the runs"
    ) == 3


def test_a_wide_table_names_its_figures_where_a_narrow_screen_stacks_them(folder: Path) -> None:
    text = (folder / "out/report.html").read_text("utf-8")
    wide = re.findall(r'<table class="results many">(.*?)</thead>(.*?)</table>', text, re.S)
    assert wide
    for head, body in wide:
        columns = re.findall("<th>(.*?)</th>", head)
        assert len(columns) > 6
        for row in re.findall("<tr.*?</tr>", body, re.S):
            assert re.findall('<td data-head="(.*?)">', row) == columns[1:]


def test_backbones_never_share_a_table(folder: Path) -> None:
    summary = json.loads((folder / "out/report.json").read_text(encoding="utf-8"))
    assert len(summary["sections"]) == 3
    for section in summary["sections"]:
        for table in section["tables"]:
            assert f"{section['backbone']['name']} (" in table["facts"]
    pocket = next(
        s for s in summary["sections"] if (s["backbone"]["name"], s["shots"]) == ("pocket", 16)
    )
    assert not any(row["paper"] for table in pocket["tables"] for row in table["rows"])


def test_every_file_that_is_named_is_there(folder: Path) -> None:
    out = folder / "out"
    summary = json.loads((out / "report.json").read_text(encoding="utf-8"))
    tables = {table["name"] for section in summary["sections"] for table in section["tables"]}
    assert {path.stem for path in (out / "tables").iterdir()} == tables
    images = re.findall(r"!\[.*?\]\((.+?)\)", (out / "report.md").read_text(encoding="utf-8"))
    assert images
    assert {out / image for image in images} == set((out / "figures").iterdir())
    assert summary["runs"] == 12 + 4 + 3


def test_data_sets_whose_names_end_alike_have_files_of_their_own(tmp_path: Path) -> None:
    sets = {"pacs/photo": 10.0, "pacs-photo": 20.0, "average": 30.0}
    runs = [record("mma", data, 1, {"base": value, "novel": value}) for data, value in sets.items()]
    write_reports(write(tmp_path / "runs", *runs), tmp_path / "out")
    tables = {path.name: path.read_text() for path in (tmp_path / "out/tables").iterdir()}
    for value in (10, 20, 30):
        assert any(f"{value}.0" in text for text in tables.values())
    names = [name for name in tables if "average" in name]
    assert len(names) == 2
    assert len([name for name in tables if "pacs-photo" in name]) == 2


def test_the_same_runs_give_the_same_bytes_even_beside_the_report(folder: Path) -> None:
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
    assert (tmp_path / "report.tex").read_bytes() == (folder / "out/report.tex").read_bytes()
    again, once = (
        json.loads((out / "report.json").read_text()) for out in (tmp_path, folder / "out")
    )
    assert {**again, "notes": once["notes"]} == once
    assert again["notes"] == []


@pytest.mark.parametrize("study", ["photographs", "methods", "transfer"])
def test_documented_reports_equal_their_records(study: str, tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "docs/results" / study
    write_reports(folder / "records.jsonl", tmp_path)
    assert (tmp_path / "records.jsonl").read_bytes() == (folder / "records.jsonl").read_bytes()
    ours, theirs = (
        (path / "report.md").read_text(encoding="utf-8").split() for path in (tmp_path, folder)
    )
    assert ours == theirs
    assert {p.name for p in tmp_path.glob("figures/*")} == {
        p.name for p in folder.glob("figures/*")
    }


def test_latex_has_balanced_environments(folder: Path) -> None:
    text = (folder / "out/report.tex").read_text(encoding="utf-8")
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") > 0
    # Outside of labels and of the lines of tables, every special character is escaped.
    prose = [
        line
        for line in text.splitlines()
        if not re.match(r"%|\\label", line) and not line.endswith(r" \\")
    ]
    assert [line for line in prose if re.search(r"(?<!\\)[_&#%]", line)] == []


def test_groups_in_both_train_and_test_are_named_once_per_set(tmp_path: Path) -> None:
    """The start of the note is that of a run's, which test_judge has in full."""
    told = (
        "train and test share the group 'p': 3 of 6 test images inflate the accuracy",
        "another note",
    )
    runs = [
        record("mma", data, seed, {"base": 5.0, "novel": 4.0}, notes=told)
        for data in "ab"
        for seed in (1, 2)
    ]
    write_reports(write(tmp_path / "runs", *runs), tmp_path / "report")
    page = (tmp_path / "report/report.md").read_text()
    assert page.count("share the group") == 2
    assert f"**Groups in both train and test**\n\n- a: {told[0]}\n- b: {told[0]}\n" in page


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no bench records found"):
        write_reports(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    ("gaps", "title"),
    [
        ([1.0, 1.5, 2.0], "RMAdapter is ahead of MMA in HM, tested over n = 3 data sets"),
        ([-1.0, -1.5, -2.0], "RMAdapter is behind MMA in HM, tested over n = 3 data sets"),
        (
            [-3.0, 2.0, 4.0],
            "RMAdapter is not shown to differ from MMA in HM, tested over n = 3 data sets",
        ),
        ([5.0, 5.1], "n = 2 data sets are too few to compare RMAdapter with MMA in HM"),
        ([5.0], "n = 1 data set is too few to compare RMAdapter with MMA in HM"),
    ],
)
def test_the_title(gaps: list[float], title: str) -> None:
    found = summarise(group_records(runs(gaps)))
    assert found.title == title
    assert len(found.sentences) == 3
    if len(gaps) > 2:
        assert ("not shown" in title) == (ttest_1samp(gaps, 0).pvalue >= 0.05)
        assert ("is not shown." in found.sentences[1]) == ("not shown" in title)
    else:
        assert found.sentences[1].endswith("which is not tested.")
    mean = sum(gaps) / len(gaps)
    assert f"to MMA, {mean:+.2f} points".replace("-", "−") in found.sentences[1]
    assert f"n = {len(gaps)})" in found.sentences[1]
    assert f"{4 * len(gaps)} runs, 2 rows, {len(gaps)} data set" in found.sentences[0]


@pytest.mark.parametrize(
    ("gaps", "told"),
    [
        ([1.0, 1.1, 1.2], "ahead of coop and MMA and behind tcp"),
        ([1.0, 1.5, 2.0], "behind tcp and not shown to differ from coop and MMA"),
    ],
)
def test_several_others_are_counted_and_corrected_for(gaps: list[float], told: str) -> None:
    """1, 1.5 and 2 points are shown alone, with a p of 0.035, and not when they are two of three
    differences."""
    own, far = runs(gaps), runs([5.0, 5.5, 5.2], other="coop")
    worse = runs([-1.0, -1.5, -2.0], other="tcp")
    together = [*own, *(r for r in (*far, *worse) if r.method.name != "rmadapter")]
    shifted = [
        r.model_copy(
            update={"scores": tuple(s.model_copy(update={"accuracy": 70.0}) for s in r.scores)}
        )
        if r.method.name == "tcp"
        else r
        for r in together
    ]
    found = summarise(group_records(shifted))
    assert found.title == f"RMAdapter is {told} in HM, tested over n = 3 data sets"
    assert found.sentences[2].endswith("p is corrected by Holm for 3 comparisons.")


def test_it_is_of_base_to_novel_on_the_most_data_sets() -> None:
    few = [
        record(m, "one", 1, {"all": 50.0}, shots=4, protocol="few-shot")
        for m in ("mma", "rmadapter")
    ]
    found = summarise(group_records([*few, *runs([1.0], shots=1), *runs([1.0, 2.0, 1.5])]))
    assert found.group is not None
    assert (found.group.protocol, found.group.shots) == ("base-to-novel", 16)
    assert re.match("This is of base-to-novel: pocket, 16 shots: 12 runs", found.sentences[0])
    of_two = [
        record(m, f"set {n}", 1, {"all": 50.0}, shots=16) for m in ("x", "y") for n in range(9)
    ]
    assert summarise(
        group_records([*runs([1.0, 2.0, 1.5], shots=1), *runs([1.0, 2.0]), *of_two])
    ).title.endswith("n = 3 data sets")
    alone = summarise(group_records(few))
    assert alone.title == "n = 1 data set is too few to compare RMAdapter with MMA in 4 shots"


def test_where_nothing_is_compared_nothing_is_claimed() -> None:
    assert summarise([]) == (None, "0 runs, and no two methods to compare", ())
    found = summarise(group_records(runs([1.0], other="rmadapter")[:1]))
    assert found == (None, "1 run, and no two methods to compare", ())
