"""Backbones that installed packages bring through the entry point group `rmadapter.backbones`."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

import rmadapter_pocket
from rmadapter.backbones import Backbone, load_backbone, packaged, published
from rmadapter.backbones.load import is_published
from rmadapter.backbones.names import check_name
from rmadapter.cli import machine
from rmadapter.errors import UserError
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture

SOURCE = """
from pathlib import Path
LICENCE, MEGABYTES, ABOUT = "none", 3, "for this test"
def place():
    return Path({folder!r})
build = place
def check(folder, backbone):
    assert folder == place()
    print("checked", backbone.name)
"""


def install(monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    points = [EntryPoint(name, module, packaged.GROUP) for name, module in modules.items()]
    monkeypatch.setattr(packaged.metadata, "entry_points", EntryPoints(points).select)


@pytest.fixture
def mine(tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose backbone `mine` is a small folder."""
    tiny_folder = Path(tiny_clip.name)
    (tmp_path / "my_backbones.py").write_text(SOURCE.format(folder=str(tiny_folder)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_backbones", raising=False)
    install(monkeypatch, mine="my_backbones")
    return tiny_folder


def test_a_package_brings_a_backbone_that_is_loaded_checked_and_listed(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_name("mine")
    assert load_backbone("mine").digest == load_backbone(str(mine)).digest
    assert capsys.readouterr().out == "checked mine\n"
    assert is_published("mine")
    assert published.licence_of("mine") == "none"
    row = next(row for row in published.listed() if row["name"] == "mine")
    assert (row["state"], row["folder"], row["about"]) == ("ready", str(mine), "for this test")
    assert machine.diagnose()["licence of mine"] == "none"


def test_a_broken_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, mine="no_such_module")
    with pytest.raises(UserError, match=r"'mine'.*no_such_module"):
        load_backbone("mine")


def test_without_its_package_pocket_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, colors: Path, rmadapter: Command
) -> None:
    install(monkeypatch)
    for ask in (load_backbone, check_name):
        with pytest.raises(UserError, match="pip install rmadapter-pocket"):
            ask("pocket-3")
    refused(rmadapter("fit", colors, "--out", tmp_path / "run"), "pip install rmadapter-pocket")
    for name in packaged.OWN_PACKAGES:
        [row] = [row for row in published.listed() if row["name"] == name]
        assert row["state"] == "not installed: pip install rmadapter-pocket"
        assert "not installed" in str(machine.diagnose()[name])
        assert published.caveat(name) == ""
        assert is_published(name)  # a run that names it can be read, and says what is missing


def test_the_entry_points_of_our_package_have_all_members() -> None:
    packages = [packaged.load_package(name) for name in packaged.OWN_PACKAGES]
    assert packages == [rmadapter_pocket.POCKET, rmadapter_pocket.POCKET_3]
    for package in packages:
        for member in (*packaged.Packaged.__annotations__, "place", "build", "check"):
            assert hasattr(package, member)


def test_the_package_itself_holds_no_weights_and_does_not_need_pocket() -> None:
    source = Path(packaged.__file__).parents[1]
    files = [file for file in source.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(file.stat().st_size for file in files) < 4_000_000  # zipped, a third of it
    assert not [file for file in files if file.suffix in (".safetensors", ".onnx", ".pt", ".bin")]
    texts = [file.read_text("utf-8") for file in files if file.suffix == ".py"]
    assert not [text for text in texts if "import rmadapter_pocket" in text]
