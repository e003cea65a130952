"""Pass the inputs of `images` and `tables` to the functions that read them."""

from __future__ import annotations

from pathlib import Path

from rmadapter.data.catalog.readers import image_sets, split_json
from rmadapter.data.decode import image_error
from rmadapter.data.read import load_image, read_images
from rmadapter.errors import UserError
from tests.hostile.harness import Changed


def ask_image(name: str, content: bytes, folder: Path) -> object:
    """What the check takes can be decoded, twice to the same pixels."""
    path = folder / name
    path.write_bytes(content)
    if text := image_error(path):
        raise UserError(text)
    try:
        once, twice = load_image(path), load_image(path)
    except UserError as error:
        raise Changed(f"the check took it, and then: {error}") from None
    if once.tobytes() != twice.tobytes():
        raise Changed("other pixels the second time")
    return once.size


def ask_table(name: str, content: bytes, folder: Path) -> object:
    """A CSV file of images that are there, or a split file."""
    from PIL import Image

    path = folder / name
    path.write_bytes(content)
    if path.suffix == ".json":
        return image_sets(split_json(path), folder, path)
    for label in "ab":
        (folder / label).mkdir()
        for number in range(5):
            Image.new("RGB", (4, 4)).save(folder / label / f"{number}.png")
    return read_images(path, progress=False)
