"""tools/parity.py: a method beside a clone that agrees and beside some that do not; the table of
docs/parity.md."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import parity
import pytest
from originals import PEERS
from parity import BEGIN, BY_HAND, DIFFERENCES, END, LIMIT, commit, main, table, write_page

from rmadapter.methods import METHODS, load_method
from rmadapter.settings import settings_of
from tests.helpers.clones import small, write_clone  # noqa: F401

MEASURED: dict[str, Any] = {
    "repository": "KaiyangZhou/CoOp", "commit": "0123456789", "trained": 2048, "largest logit": 3.14,
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


TWO_STAGES = """
import torch
from torch.nn import functional as F

from clip import clip


def trainable_norm_params(model, modality):
    model.requires_grad_(False)
    norms = [m for name, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm) and "resblocks" in name]
    return [p.requires_grad_() for norm in norms for p in norm.parameters()]


def cls_acc(*_):
    raise TypeError


def run_twostage(args, model, scale, dataset, train, val, test):
    optimizer = torch.optim.AdamW(trainable_norm_params(model, modality="both"), lr=args.lr)
    texts = torch.cat([clip.tokenize(dataset.template[0].format(name)) for name in dataset.classnames]).to("cuda")
    for images, labels in train:
        w = F.normalize(model.encode_text(texts), dim=-1)
        x = F.normalize(model.encode_image(images.cuda()), dim=-1)
        F.cross_entropy(model.logit_scale.exp() * x @ w.T, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    ("wrong", "code"), [(('"resblocks" in name', '"ln_2" in name'), 2), (("", ""), 0)]
)
def test_a_function_whose_second_stage_trains_more(
    wrong: tuple[str, str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = write_clone(tmp_path / "clone")
    (clone / "fs").mkdir()
    (clone / "fs/twostage.py").write_text(TWO_STAGES.replace(*wrong) if code else TWO_STAGES)
    assert main(["2sfs", "--upstream", str(clone)]) == code
    out, err = capsys.readouterr()
    if code:
        assert "not trained on both sides: transformer.resblocks.0.ln_1.bias" in err
    else:
        assert f"2sfs: {3 * 2 * 2 * (128 + 64):,} trained numbers" in out


def test_an_encoder_of_another_depth() -> None:
    assert (parity.tiny_clip().text.depth, parity.tiny_clip(5).image.depth) == (3, 5)


def test_what_cannot_be_compared_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert main(["mma", "--upstream", str(tmp_path), "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"parity: {tmp_path}: no trainers/mmadapter.py there")
    clone = write_clone(
        tmp_path / "clone", ('"prompt_learner" in name', '"prompt" in name or "scale" in name')
    )
    assert main(["coop", "--upstream", str(clone), "--out", str(out)]) == 2
    assert (
        capsys.readouterr().err == f"parity: {clone}: not trained on both sides: clip.logit_scale\n"
    )
    assert not out.exists()
    for words in ([], ["coop"], ["--upstream", "."], ["nothing", "--upstream", "."]):
        with pytest.raises(SystemExit, match="2"):
            main(words)


def test_the_commit_is_the_clones_own(tmp_path: Path) -> None:
    if not shutil.which("git"):
        pytest.skip("no git here")
    git = [
        "git",
        "-C",
        str(tmp_path),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b.c",
        "-c",
        "commit.gpgsign=false",
    ]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (tmp_path / "inside").mkdir()
    assert (commit(tmp_path), commit(tmp_path / "inside"), commit(tmp_path / "nowhere")) == (
        head,
        "unknown",
        "unknown",
    )


def test_the_table_says_what_was_not_run(tmp_path: Path) -> None:
    lines = table({"coop": MEASURED}).splitlines()
    assert (
        lines[2]
        == "| `coop` | KaiyangZhou/CoOp at 0123456 | 2,048 | 3.1 | 1.5e-06 | 2.0e-07 | 3.0e-06 |"
    )
    assert [line.split(" | ")[:2] for line in lines[3:]] == [
        [f"| `{name}`", "not run"] for name in (*PEERS, *BY_HAND) if name != "coop"
    ]
    assert len({line.count("|") for line in lines}) == 1
    assert {*PEERS, *BY_HAND} < {*METHODS}
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    results.write_text(json.dumps({"coop": MEASURED}))
    write_page(results, page)
    assert page.read_text().split("\n") == ["above", BEGIN, "", *lines, "", END, "below", ""]


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
