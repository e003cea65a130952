"""Write a small data set of coloured images."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.helpers.models import SIZE

COLORS = {
    "blue": (40, 60, 220),
    "green": (30, 170, 60),
    "night_sky": (20, 20, 40),
    "red": (220, 40, 30),
}


def write_colors(root: Path) -> Path:
    """Write train/CLASS/0.png..5.png and test/CLASS/0.png..3.png in noisy colours."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for name, color in COLORS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(color, 40, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def write_damaged_colors(colors: Path, root: Path) -> Path:
    """Copy `colors` and add a wrong label, two duplicates and a broken file."""
    shutil.copytree(colors, root)
    train = root / "train"
    shutil.copy(root / "test/red/0.png", train / "blue/is red.png")
    shutil.copy(train / "red/0.png", train / "red/copy.png")
    shutil.copy(train / "night_sky/1.png", train / "green/two.png")
    (train / "green/broken.png").write_bytes((train / "green/0.png").read_bytes()[:100])
    return root
