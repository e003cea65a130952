"""Archives of the catalogue become the folders that CoOp has."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rmadapter.data.catalog.sets import CATALOG, describe, download, load_dataset
from rmadapter.errors import UserError
from rmadapter.support.locks import exclusive
from tests.helpers import archives


def packed(dataset: Any, source: Path, out: Path) -> None:
    """The files below `source` as the data set's archives, each of which holds them all."""
    for url in dataset.archives:
        name = url.rpartition("/")[2]
        inside = [path for path in source.rglob("*") if path.is_file()]
        if not name.endswith((".zip", "gz")):
            shutil.move(source / name, out / name)
        elif name.endswith(".zip"):
            with zipfile.ZipFile(out / name, "w") as file:
                for path in inside:
                    file.write(path, Path(dataset.unpacked, path.relative_to(source)))
        else:
            with tarfile.open(out / name, "w:gz") as file:
                for path in inside:
                    file.add(path, Path(dataset.unpacked, path.relative_to(source)))


@pytest.mark.parametrize("key", [key for key, dataset in CATALOG.items() if dataset.archives])
def test_downloads_end_up_as_coop_lays_them_out(tmp_path: Path, key: str) -> None:
    """Archives that were fetched already, so that no network is needed."""
    dataset, write = CATALOG[key], archives.WRITERS[key]
    home, source = tmp_path / dataset.folder, tmp_path / "source"
    write(source)
    (source / "cat_to_name.json").unlink(missing_ok=True)  # is in no archive
    (home / ".download").mkdir(parents=True)
    packed(dataset, source, home / ".download")
    download(dataset, tmp_path)
    write(tmp_path / "wanted")
    digests = (home / ".archives.sha256").read_text().splitlines()
    names = {url.rpartition("/")[2] for url in dataset.archives}
    assert {line.split("  ")[1] for line in digests} == names
    assert below(home) - {Path(".archives.sha256")} == below(tmp_path / "wanted")
    assert load_dataset(key, tmp_path)["train"]


def below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_a_failed_download_says_how_to_go_on(tmp_path: Path) -> None:
    archives = {"http://127.0.0.1:1/EuroSAT.zip": ""}
    gone = CATALOG["eurosat"].model_copy(update={"archives": archives})
    with pytest.raises(UserError, match=r"EuroSAT: not downloaded .*refused.*by hand"):
        download(gone, tmp_path)
    busy = pytest.raises(UserError, match=r"EuroSAT: not downloaded .*another process")
    with exclusive(tmp_path / "eurosat"), busy:
        download(gone, tmp_path)
    with pytest.raises(UserError, match="Stanford Cars has to be fetched by hand"):
        download(CATALOG["stanford_cars"], tmp_path)
    assert "CC BY 4.0" in describe(CATALOG["caltech101"], tmp_path)
    text = describe(CATALOG["stanford_cars"], tmp_path)
    assert all(address in text for address in CATALOG["stanford_cars"].mirrors)
    assert "Mirrors" not in describe(CATALOG["imagenet"], tmp_path)


def test_another_archive_than_at_the_first_download_is_refused(tmp_path: Path) -> None:
    dataset, stage = CATALOG["dtd"], tmp_path / "dtd" / ".download"
    for count in (1, 2):
        stage.mkdir(parents=True)
        shutil.rmtree(tmp_path / "source", ignore_errors=True)
        archives.dtd(tmp_path / "source")
        (tmp_path / "source" / "note.txt").write_text(str(count))
        packed(dataset, tmp_path / "source", stage)
        if count == 1:
            download(dataset, tmp_path)
    with pytest.raises(UserError, match=r"dtd-r1.0.1.tar.gz: not the file of the first download"):
        download(dataset, tmp_path)
    assert not list(stage.glob("*.gz"))
