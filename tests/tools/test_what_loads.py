"""Architectures of open_clip: some of each kind load and adapt, and the page has what the tool
finds of all."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
import what_loads
from what_loads import END, START, ask

from rmadapter.encoders.layouts import Packed
from rmadapter.methods import METHODS, traits_of
from tests.helpers.slow import ci_except

PAGE = Path(__file__).parents[2] / "docs/reference/backbones.md"
ALL = "all"
OPAQUE = (
    "all but text-refiner, clip-lora, maple, dept, promptsrc, coprompt, hicropl, prompt-kd, mmrl, "
    "mmrl-plus-plus, lweib, heba, mail"
)


NEEDS = {"parts": "features"}  # blocks are read where there are some


def reading(*what: str) -> str:
    """Name the methods that need no more of a backbone than this."""
    reads = {name: traits_of(name).reads for name in METHODS}
    needs = {name: NEEDS.get(one, str(one)) for name, one in reads.items()}
    return ", ".join(name for one in what for name in METHODS if needs[name] == one)


SOME = {
    "ViT-B-16-quickgelu": ALL,
    "ViT-H-14-CLIPA": "all but text-refiner",
    "ViT-B-16-SigLIP2": "all but prolip, text-refiner, mmrl-plus-plus",
    "EVA02-B-16": OPAQUE,
    "ViTamin-S": "all but text-refiner, lweib, heba, mail",  # whose MLPs have a gate
    "xlm-roberta-base-ViT-B-32": ALL,
    "RN50": reading("features", "text"),
    "MobileCLIP-S1": reading("features", "text"),
    "mt5-base-ViT-B-32": reading("features"),
    "coca_ViT-B-32": reading("features"),
}


@pytest.mark.parametrize("name", ci_except(SOME, "ViT-B-16-quickgelu"))
def test_some_of_each_kind_load_and_adapt(name: str) -> None:
    assert ask(name).verdict == SOME[name]


@pytest.mark.ci
def test_a_pass_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Packed.attend

    def wrong(self: Packed, *words: torch.Tensor) -> torch.Tensor:
        return right(self, *words) * (1 + 1e-8)  # type: ignore[arg-type]

    monkeypatch.setattr(Packed, "attend", wrong)
    with pytest.raises(AssertionError, match="ViT-B-16-quickgelu, text"):
        ask("ViT-B-16-quickgelu")


def table() -> list[str]:
    return PAGE.read_text("utf-8").split(START)[1].split(END)[0].strip().splitlines()


def test_the_page_knows_every_architecture_of_the_installed_open_clip() -> None:
    on_page = [name for row in table()[2:] for name in row.split("|")[-2].strip().split(", ")]
    assert sorted(on_page) == sorted(open_clip.list_models())
    for name, verdict in SOME.items():
        [row] = [row for row in table() if name in row.split("|")[-2].strip().split(", ")]
        assert row.split("|")[3].strip() == verdict


@pytest.mark.slow
def test_the_page_is_what_the_tool_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before {START} {END} after", "utf-8")
    monkeypatch.setattr("sys.argv", ["what_loads.py", "--page", str(page)])
    what_loads.main()
    written = "\n".join(["before " + START, *table(), END + " after"])
    assert page.read_text("utf-8") == written
