"""parity.py with originals.py: a method beside a clone that agrees and beside some that do
not, the names of tensors in the authors' code, and the table of docs/studies/parity.md."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import parity
import pytest
from originals import MAKERS, PEERS, Sizes
from parity import BEGIN, DIFFERENCES, LIMIT, main, write_page

from rmadapter.methods import load_method
from rmadapter.settings import settings_of
from tests.helpers.clones import small, write_clone  # noqa: F401

MEASURED: dict[str, Any] = {
    "repository": "KaiyangZhou/CoOp", "commit": "0123456789", "trained": 2048,
    "largest logit": 3.14, "logits": 1.5e-6, "loss": 2e-7, "gradients": 3e-6, "versions": {},
}  # fmt: skip


def test_a_clone_that_agrees_adds_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clone, out = write_clone(tmp_path / "clone"), tmp_path / "out.json"
    out.write_text(json.dumps({"mma": MEASURED}))
    assert main(["coop", "--upstream", str(clone), "--out", str(out)]) == 0
    lines = json.loads(out.read_text())
    assert lines["mma"] == MEASURED
    coop = lines["coop"]
    assert coop.keys() == MEASURED.keys()
    facts = (coop["repository"], coop["commit"], coop["trained"])
    assert facts == ("KaiyangZhou/CoOp", "unknown", 4 * 64)
    assert all(coop[key] < LIMIT for key in DIFFERENCES)
    assert coop["largest logit"] > 1
    assert "torch" in coop["versions"]
    shown = capsys.readouterr().out
    assert all(f"{text}: {coop[key]:.1e}" in shown for key, text in DIFFERENCES.items())


LOSS = 'F.cross_entropy(logits, batch["label"])'
CONTEXT = "ctx.expand(count, -1, -1)"


@pytest.mark.parametrize(
    ("right", "wrong", "differences"),
    [
        ('{name}."', '{name}"', {"logits", "loss", "gradients"}),  # another prompt
        (LOSS, f"{LOSS} + 0.01", {"loss"}),
        (CONTEXT, f"(0.9 * ctx.detach() + 0.1 * ctx){CONTEXT[3:]}", {"gradients"}),
    ],
)
def test_a_clone_that_differs_fails(
    right: str, wrong: str, differences: set[str], tmp_path: Path
) -> None:
    clone, out = write_clone(tmp_path / "clone", (right, wrong)), tmp_path / "out.json"
    assert main(["coop", "--upstream", str(clone), "--out", str(out)]) == 1
    coop = json.loads(out.read_text())["coop"]
    assert {key for key in DIFFERENCES if coop[key] > LIMIT} == differences


@pytest.mark.parametrize("sizes", [Sizes(3, 2, 3), Sizes(5, 4, 2)])
@pytest.mark.parametrize("name", MAKERS)
def test_every_trained_tensor_of_ours_has_a_name_of_its_own_in_theirs(
    name: str, sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "DEPTH", sizes.depth)
    peer, backbone = MAKERS[name](sizes), parity.tiny_clip()
    module = SimpleNamespace(IMAGENET_TEMPLATES=("a {}.",))
    method = load_method(name, peer.settings(module))  # type: ignore[arg-type]
    ours = parity.untrained(method, parity.shots_of(peer, backbone))[0].get_submodule(peer.inner)
    names = [own for own, p in ours.named_parameters() if p.requires_grad and own not in peer.later]
    assert len({peer.called(own) for own in names}) == len(names)
    heads = {own if own in peer.names else own.rpartition(".")[0] for own in names}
    assert heads == {*peer.names}, "a name that nothing has"


# The page


def test_the_table_of_the_page_is_that_of_the_results(tmp_path: Path) -> None:
    page = tmp_path / "parity.md"
    shutil.copy(parity.PAGE, page)
    assert page.read_text(encoding="utf-8").count(BEGIN) == 1
    write_page(parity.RESULTS, page)
    assert page.read_text(encoding="utf-8") == parity.PAGE.read_text(encoding="utf-8")
    for name, line in json.loads(parity.RESULTS.read_text(encoding="utf-8")).items():
        assert line["repository"] == PEERS[name].repository
        assert len(line["commit"]) == 40
        assert all(line[key] < LIMIT for key in DIFFERENCES), name


def test_every_setting_that_makes_ours_theirs_differs_from_ours() -> None:
    text = parity.RECORDS.read_text(encoding="utf-8")
    section = text.split("## Where we differ: settings")[1].split("\n## ")[0]
    settings = re.findall(r"--set ([\w-]+)\.(\w+)=([\d.]+)", section)
    assert len(settings) > 20
    for method, name, value in settings:
        assert settings_of(load_method(method))[name] != float(value), f"{method}.{name}"
