"""A static page around an exported graph: onnxruntime-web from npm, and a resize that matches
Pillow's."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from rmadapter.errors import UserError
from rmadapter.export.graph import EXTERNAL_WEIGHTS
from rmadapter.support.files import cache_folder

PAGE = Path(__file__).parents[1] / "support/assets/web"
NAME, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = (
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
TARBALL = f"{NAME}-{VERSION}.tgz"
# the files of the package that the page needs
ENGINE_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


def engine() -> Path:
    """Return the npm package in the cache; npm fetches it the first time.

    Raises UserError when npm is missing or cannot fetch, and when the file is not the expected one.
    """
    place = cache_folder() / TARBALL
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            _fetch(Path(folder))
            os.replace(Path(folder, TARBALL), place)
    if base64.b64encode(hashlib.sha512(place.read_bytes()).digest()).decode() != INTEGRITY:
        raise UserError(f"{place}: not the expected file; delete it to fetch it again")
    return place


def _fetch(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"a web page takes {NAME} {VERSION} from npm, which is not installed; install Node.js, "
            f"or put {TARBALL} into {cache_folder()}"
        )
    options = ["--pack-destination", str(folder), "--ignore-scripts", "--silent"]
    command = [npm, "pack", f"{NAME}@{VERSION}", *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not (folder / TARBALL).is_file():
        reason = (done.stderr.strip() or "npm failed").splitlines()[-1][:200]
        raise UserError(f"{NAME} {VERSION} could not be fetched ({reason}); check the connection")


def add_page(folder: Path) -> None:
    """Put the page and its engine beside a graph. Raises UserError as `engine` does and for a graph
    too large for a page, and OSError."""
    if (folder / EXTERNAL_WEIGHTS).exists():
        size = (folder / EXTERNAL_WEIGHTS).stat().st_size
        raise UserError(
            f"the model takes {size / 1e9:.1f} GB, but a web page holds less than 2; "
            "give --precision fp16, or remove --to"
        )
    with tarfile.open(engine()) as archive:
        for name in ENGINE_FILES:
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())
    for file in PAGE.iterdir():
        shutil.copyfile(file, folder / file.name)
