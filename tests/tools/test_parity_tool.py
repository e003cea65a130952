"""tools/parity.py: a method beside a clone that agrees and beside some that do not; the table of
docs/studies/parity.md."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import parity
import pytest
from originals import PEERS
from parity import BEGIN, DIFFERENCES, LIMIT, main, write_page

from rmadapter.methods import load_method
from rmadapter.settings import settings_of
from tests.helpers.clones import small, write_clone  # noqa: F401

MEASURED: dict[str, Any] = {
    "repository": "KaiyangZhou/CoOp", "commit": "0123456789", "trained": 2048,
    "largest logit": 3.14,
    "logits": 1.5e-6, "loss": 2e-7, "gradients": 3e-6, "versions": {},
}  # fmt: skip


def test_a_clone_that_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clone, out = write_clone(tmp_path / "clone"), tmp_path / "out.json"
    out.write_text(json.dumps({"mma": MEASURED}))
    assert main(["coop", "--upstream", str(clone), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["mma"] == MEASURED
    coop = found["coop"]
    assert coop.keys() == MEASURED.keys()
    assert (coop["repository"], coop["commit"], coop["trained"]) == (
        "KaiyangZhou/CoOp",
        "unknown",
        4 * 64,
    )
    assert all(coop[key] < LIMIT for key in DIFFERENCES)
    assert coop["largest logit"] > 1
    assert "torch" in coop["versions"]
    told = capsys.readouterr().out
    assert "coop: 256 trained numbers" in told
    assert all(f"{text}: {coop[key]:.1e}" in told for key, text in DIFFERENCES.items())


@pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        (('{name}."', '{name}"'), {"logits", "loss", "gradients"}),  # another prompt
        (
            (
                'F.cross_entropy(logits, batch["label"])',
                'F.cross_entropy(logits, batch["label"]) + 0.01',
            ),
            {"loss"},
        ),
        (
            ("ctx.expand(count, -1, -1)", "(0.9 * ctx.detach() + 0.1 * ctx).expand(count, -1, -1)"),
            {"gradients"},
        ),
    ],
)
def test_a_clone_that_does_not(wrong: tuple[str, str], seen: set[str], tmp_path: Path) -> None:
    clone, out = write_clone(tmp_path / "clone", wrong), tmp_path / "out.json"
    assert main(["coop", "--upstream", str(clone), "--out", str(out)]) == 1
    found = json.loads(out.read_text())["coop"]
    assert {key for key in DIFFERENCES if found[key] > LIMIT} == seen


def test_the_page_is_made_of_what_was_measured(tmp_path: Path) -> None:
    page = tmp_path / "parity.md"
    shutil.copy(parity.PAGE, page)
    assert page.read_text(encoding="utf-8").count(BEGIN) == 1
    write_page(parity.RESULTS, page)
    assert page.read_text(encoding="utf-8") == parity.PAGE.read_text(encoding="utf-8")
    measured = json.loads(parity.RESULTS.read_text(encoding="utf-8"))
    assert {*measured} <= {*PEERS}
    for name, line in measured.items():
        assert line["repository"] == PEERS[name].repository
        assert len(line["commit"]) == 40
        assert all(line[key] < LIMIT for key in DIFFERENCES), name


def test_where_we_differ_we_do() -> None:
    """Each setting of the last column exists, and is another one than ours."""
    section = (
        parity.PAGE.read_text(encoding="utf-8")
        .split("## Where we differ: settings")[1]
        .split("\n## ")[0]
    )
    found = re.findall(r"--set ([\w-]+)\.(\w+)=([\d.]+)", section)
    assert len(found) > 20
    for method, name, value in found:
        assert settings_of(load_method(method))[name] != float(value), f"{method}.{name}"
