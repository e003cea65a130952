"""The rules under a group's tables: of our methods by their names, of others by what their records
say."""

from __future__ import annotations

from rmadapter.artifacts.record import MethodName
from rmadapter.bench.report.groups import group_records
from rmadapter.bench.report.tables import make_tables
from rmadapter.bench.report.uses import HEADS, to_tables, uses
from rmadapter.methods.uses import Uses
from tests.helpers.synthetic_runs import record

HALVES = {"base": 80.0, "novel": 70.0}


def test_a_row_for_each_method_with_what_it_uses() -> None:
    own = record("mmrl", "dtd", 1, HALVES, title="MMRL", variant="MMRL, as published for each set")
    theirs = [record(f"{x}.py:X", "dtd", 1, HALVES, title=x) for x in "XY"]
    uses = Uses(extra="50 templates", tuned="nothing")
    told = record("z:Z", "dtd", 1, HALVES).model_copy(
        update={"method": MethodName(name="z:Z", title="Z", uses=uses)}
    )
    mmrl = record("mmrl", "dtd", 1, HALVES, title="MMRL")
    group, silent = group_records([own, *theirs, told, mmrl])
    [table] = to_tables(group, "method")
    assert table.columns == ("method", *HEADS)
    cells = {row.label: [cell.text for cell in row.cells] for row in table.rows}
    assert cells["Z"] == ["ranked", "50 templates", "–", "–", "–", "nothing"]
    assert [cell.text for cell in to_tables(silent, "method")[0].rows[0].cells] == [
        "not stated",
        *["–"] * 5,
    ]
    assert cells["MMRL"][0] == "ranked"
    assert cells["MMRL"][4].startswith("not in use: weight of regularisation")
    assert cells["MMRL, as published for each set"][4].startswith(
        "in use: weight of regularisation"
    )
    assert make_tables(group)[-1] == table
    [alone] = group_records([mmrl])
    assert to_tables(alone, "method") == []
    [apart] = group_records([record("tda", "dtd", 1, HALVES)])
    assert [row.cells[0].text for row in to_tables(apart, "method")[0].rows] == ["test time"]


def test_a_setting_may_change_the_track() -> None:
    method = MethodName(name="coprompt", settings={"descriptions": "texts.json"})
    found = uses([record("coprompt", "dtd", 1, HALVES).model_copy(update={"method": method})])
    assert found is not None
    assert found.track == "extra data"
