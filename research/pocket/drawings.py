"""Step 4: draw emoji, line art, icons, clip art and stamps as pixels (minutes, 5 GB).

Reads SOURCES/npm and, where they are there, Debian's folders openclipart/, tuxpaint/stamps/ and
fonts/ in --debian. Needs `pip install resvg_py`. Writes the pools `drawings` and `unseen_emoji`.
"""

from __future__ import annotations

import argparse
import io
import random
import re
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from pools import HELD_OUT, IMAGE_SIZE, read, save_pool
from sources import package
from vector import COMPONENTS, FLAGS, emoji_drawings, icon_drawings

from rmadapter.data.read import load_image
from rmadapter.errors import UserError

BICUBIC = Image.Resampling.BICUBIC
DRAWN = 288  # pixels, before a drawing is placed
MAX_DRAWINGS = 7_500  # drawn at random from all
UNSEEN = "fxemoji:"
NO_THINGS = re.compile(
    r"/(shapes|special|buttons|computer/icons|computer/buttons|flags|led|callouts|arrows|logos|roadsigns|decorations|"
    r"map_symbols|jigsaw)/"
)
NO_KINDS = {
    "unsorted",
    "special",
    "recreation",
    "signs and symbols",
}  # folders that say nothing of what is in them


class Piece(NamedTuple):
    """The source of one drawing. content: what `draw` takes, an SVG document, a file or a (font,
    character)."""

    style: str
    key: list[Any]
    draw: Callable[[Any], Image.Image | None]
    content: Any


def rasterise(svg: str) -> Image.Image | None:
    """Draw a square SVG document on white; None if resvg cannot read it, and for what is all but
    empty."""
    try:
        import resvg_py
    except ModuleNotFoundError:
        raise UserError("drawing SVG files needs resvg_py; run: pip install resvg_py") from None
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=DRAWN, background="white", skip_system_fonts=True
        )
    except ValueError:
        return None
    image = load_image(Image.open(io.BytesIO(png)))
    pixels = np.asarray(image)
    return None if pixels.mean() > 253.5 or pixels.min() > 200 else image


def squared(file: Path) -> Image.Image | None:
    """Put an image file into the middle of a white square."""
    try:
        image = load_image(file)
    except UserError:
        return None
    side = round(max(image.size) * 1.08)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((DRAWN, DRAWN), BICUBIC, reducing_gap=3)


def glyph(content: tuple[Path, str]) -> Image.Image | None:
    """Draw a character of a font; None if the font lacks it."""
    image = Image.new("RGB", (DRAWN, DRAWN), "white")
    font = ImageFont.truetype(str(content[0]), 200)
    ImageDraw.Draw(image).text((DRAWN / 2, DRAWN / 2), content[1], "black", font, anchor="mm")
    return image if np.asarray(image).mean() < 254 else None


def noun_among(words: list[str], nouns: Container[str]) -> str | None:
    """Return the longest run of words that is a visible noun."""
    for length in range(min(3, len(words)), 0, -1):
        for start in range(len(words) - length + 1):
            run = " ".join(words[start : start + length])
            for noun in (run, run.removesuffix("s")):
                if noun in nouns:
                    return noun
    return None


def words_of(text: str) -> list[str]:
    """Split "BlueBird_2" -> ["blue", "bird"]."""
    apart = re.sub(r"([a-z])([A-Z])", r"\1 \2", text).lower()
    return [word for word in re.split(r"[^a-z]+", apart) if len(word) > 2]


def clip_art(debian: Path, nouns: Container[str]) -> Iterator[Piece]:
    """Yield Open Clip Art whose file name has a visible noun; its folder is taken for a kind."""
    for file in sorted((debian / "openclipart/png").rglob("*.png")):
        folders = file.relative_to(debian / "openclipart/png").parts[:-1]
        noun = noun_among(words_of(file.stem)[:4], nouns)
        if noun and not NO_THINGS.search(file.as_posix()):
            kinds = [
                name for folder in folders if (name := folder.replace("_", " ")) not in NO_KINDS
            ]
            yield from [Piece("clip", ["clip", [noun, *kinds[-1:]]], squared, file)] * 3


def stamps(debian: Path, nouns: Container[str]) -> Iterator[Piece]:
    """Yield Tux Paint's stamps, each with a sentence."""
    for file in sorted((debian / "tuxpaint/stamps").rglob("*.txt")):
        image = file.with_suffix(".png")
        if image.is_file() and not re.search(r"/alphabets/|/numbers|/flags", file.as_posix()):
            [sentence, *_] = file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
            noun = noun_among(words_of(file.stem), nouns) or noun_among(words_of(sentence), nouns)
            texts = [text for text in (noun, sentence.strip().rstrip(".!").lower()) if text]
            yield from [Piece("clip", ["clip", texts], squared, image)] * (3 if texts else 0)


def symbols(debian: Path, sources: Path) -> Iterator[Piece]:
    """Yield the font Symbola's emoji of one character."""
    for font in sorted((debian / "fonts").rglob("Symbola*"))[:1]:
        for emoji in read(package("emojibase-data", sources) / "en/data.json"):
            character = emoji["emoji"].replace("\ufe0f", "")
            if len(character) == 1 and emoji.get("group") not in (COMPONENTS, FLAGS):
                yield from [
                    Piece("symbola:line", ["emoji", emoji["hexcode"]], glyph, (font, character))
                ] * 2


def placed(image: Image.Image, seed: int) -> np.ndarray:
    """Return [224, 224, 3]: made smaller, moved, some turned, mirrored, inverted or in other
    colours."""
    rng = random.Random(seed)
    side = round(IMAGE_SIZE * (rng.uniform(0.62, 1) if rng.random() < 0.8 else 1))
    image = image.resize((side, side), BICUBIC)
    if rng.random() < 0.35:
        image = ImageOps.mirror(image)
    if rng.random() < 0.3:
        image = image.rotate(rng.uniform(-15, 15), BICUBIC, fillcolor="white")
    canvas = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    canvas.paste(image, (rng.randint(0, IMAGE_SIZE - side), rng.randint(0, IMAGE_SIZE - side)))
    pixels = np.asarray(canvas, np.float32)
    way = rng.random()
    if way < 0.10:
        pixels = 255 - pixels
    elif way < 0.30:
        pixels = pixels * np.array([rng.uniform(0.6, 1) for _ in "rgb"])
    elif way < 0.36:
        pixels = pixels[..., rng.sample(range(3), 3)]
    elif way < 0.42:
        pixels = np.repeat((pixels @ np.array([0.299, 0.587, 0.114]))[..., None], 3, axis=-1)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def made(piece: Piece, seed: int) -> np.ndarray | None:
    image = piece.draw(piece.content)
    return None if image is None else placed(image, seed)


def pieces_of(sources: Path, debian: Path, nouns: Container[str]) -> list[Piece]:
    rng = random.Random(0)
    vectors = [*emoji_drawings(sources, rng), *icon_drawings(sources, nouns, rng)]
    pieces = [Piece(drawing.style, drawing.key, rasterise, drawing.svg) for drawing in vectors]
    pieces += [*clip_art(debian, nouns), *stamps(debian, nouns), *symbols(debian, sources)]
    return rng.sample(pieces, min(MAX_DRAWINGS, len(pieces)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=Path, required=True, help="folder of step 1")
    parser.add_argument("--work", type=Path, required=True, help="folder of step 3")
    parser.add_argument(
        "--debian", type=Path, default=Path("/usr/share"), help="default %(default)s"
    )
    arguments = parser.parse_args()
    pieces = pieces_of(arguments.sources, arguments.debian, read(arguments.work / "nouns.json"))
    with ProcessPoolExecutor() as executor:
        drawn = list(executor.map(made, pieces, range(len(pieces)), chunksize=64))
    good = [(image, piece) for image, piece in zip(drawn, pieces, strict=True) if image is not None]
    for pool, unseen in (("drawings", False), (HELD_OUT, True)):
        rows = [
            (image, piece.key) for image, piece in good if piece.style.startswith(UNSEEN) == unseen
        ]
        save_pool(
            arguments.work, pool, np.stack([image for image, _ in rows]), [key for _, key in rows]
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
