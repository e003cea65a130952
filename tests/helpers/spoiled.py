"""A copy of `colors` with a wrong label, copies and a broken file."""

from __future__ import annotations

import shutil
from pathlib import Path


def spoil(colors: Path, root: Path) -> Path:
    shutil.copytree(colors, root)
    train = root / "train"
    shutil.copy(root / "test/red/0.png", train / "blue/is red.png")
    shutil.copy(train / "red/0.png", train / "red/copy.png")
    shutil.copy(train / "night_sky/1.png", train / "green/two.png")
    (train / "green/broken.png").write_bytes((train / "green/0.png").read_bytes()[:100])
    return root
