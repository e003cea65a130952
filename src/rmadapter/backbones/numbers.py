"""Check the numbers in a model folder before any library builds the model.

A library makes as many layers, and tensors as wide, as a configuration says, before it looks at the
weights. Here every number is compared with the tensors in the weights' headers, which cannot claim
more than their file holds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rmadapter.errors import UserError, quoted
from rmadapter.support.files import MAX_TEXT_BYTES, read_text

CONFIGS = ("open_clip_config.json", "config.json")
TRANSFORMS = ("preprocessor_config.json", "processor_config.json")
MAX_CONFIG_BYTES = 2**20  # bytes of one of these
MAX_SIDE = 2_048  # pixels of an image, and tokens of a prompt
MAX_PATCHES = 16_384  # of an image
MAX_LAYERS = 1_000
MAX_RATIO = 16  # of the width in a block to that outside
MAX_NUMBER = 2**16  # of any other field, unless a tensor is as large
MIN_LARGE_ROWS = 4_096  # from here on, that times the width is compared with the weights
MAX_ID = 1_000_000  # of a token
# what any weights may have: small, and files state defaults that nothing uses
ALLOWED_LAYERS, ALLOWED_WIDTH, ALLOWED_NUMBERS = 100, 1_024, 1_000_000
MAX_TOKENIZER_NUMBER = 1e31  # in a tokenizer's files: transformers writes 1e30 for "no limit"
MAX_LIST_LENGTH = 1_000
MAX_TIMES_WEIGHTS = 8  # times the weights that an object may seem to need: layers can share theirs

LAYERS = re.compile(r".*(layers?|depths?|blocks)")
WIDTHS = re.compile(r".*(width|hidden_size|embed_dims?|intermediate_size|d_model|d_ff)")
IDS = re.compile(r".*_ids?")
SIDES = re.compile(r"size|(image|img|input|crop)_size|height|width|(shortest|longest)_edge")
TOKENS = "context_length"
RATIOS = re.compile(r".*ratio")


class Headers(NamedTuple):
    """What the headers of a folder's weights say.

    Attributes:
        tensors: Number of tensors.
        largest: Size of the largest dimension.
        numbers: Numbers in all tensors.
    """

    tensors: int
    largest: int
    numbers: int


def check_numbers(folder: Path) -> None:
    """Raise UserError for a number in a .json file of a model folder that is not finite, or is
    larger than its weights have room for."""
    headers = read_headers(folder)
    sides, patches = [1.0], [math.inf]
    for file in sorted(folder.rglob("*.json")):
        if not file.is_file():
            continue
        strict = file.name in (*CONFIGS, *TRANSFORMS)
        try:
            limit = MAX_CONFIG_BYTES if strict else MAX_TEXT_BYTES
            text = read_text(file, "readable JSON", limit)
            value = json.loads(text, parse_constant=_not_finite)
            if strict:
                _check_products(value, headers)
            for field, number in _numbers(value, "", file.name in TRANSFORMS):
                _check(field, number, headers if strict else None)
                if strict and SIDES.fullmatch(field):
                    sides.append(number)
                elif strict and field == "patch_size":
                    patches.append(max(number, 1))
        except UserError:
            raise
        except (ValueError, RecursionError, OverflowError) as error:
            raise UserError(f"{file}: {error}") from None
    if max(sides) / min(patches) > math.sqrt(MAX_PATCHES):
        raise UserError(
            f"{folder}: images of {max(sides):,.0f} pixels in patches of {min(patches):,.0f} are "
            f"more than {MAX_PATCHES:,} patches"
        )


def read_headers(folder: Path) -> Headers:
    """Read the headers of all safetensors files. Raises UserError for a damaged one."""
    from safetensors import SafetensorError, safe_open

    shapes: list[list[int]] = []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                shapes += [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file}: not a readable safetensors file ({error}); fetch or write it again"
            ) from None
    sizes = [size for shape in shapes for size in shape]
    return Headers(len(shapes), max(sizes, default=0), sum(map(math.prod, shapes)))


def _not_finite(word: str) -> float:
    raise ValueError(f"holds {word}, which is no number")


def _numbers(value: object, field: str, transform: bool) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a JSON value, each with the field that it, or its list, is under.

    Args:
        value: The value.
        field: Field that it is under.
        transform: Whether fields of images alone are expected, as "size".

    Raises:
        ValueError: A list of layers is too long.
    """
    if isinstance(value, dict):
        for key, part in value.items():
            # "width" of an encoder is no side of an image
            name = f"model {key}" if key in ("size", "width", "height") and not transform else key
            yield from _numbers(part, name, transform or key == "preprocess_cfg")
    elif isinstance(value, list):
        if LAYERS.fullmatch(field) and len(value) > MAX_LIST_LENGTH:
            raise ValueError(f"{quoted(field)} has {len(value):,} parts")
        for part in value:
            yield from _numbers(part, field, transform)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield field, value


def _check_products(value: object, headers: Headers) -> None:
    """Raise ValueError for an object of a configuration whose numbers together need far more
    weights than there are: layers of a width, or a vocabulary of a width."""
    if isinstance(value, list):
        for part in value:
            _check_products(part, headers)
    if not isinstance(value, dict):
        return
    layers, widths, others = [1.0], [1.0], [0.0]
    for key, part in value.items():
        _check_products(part, headers)
        parts = [one for _, one in _numbers(part, key, False)] if not isinstance(part, dict) else []
        if LAYERS.fullmatch(key):
            layers.append(sum(map(abs, parts)))
        elif WIDTHS.fullmatch(key):
            widths += parts
        elif not IDS.fullmatch(key):
            others += [one for one in parts if one > MIN_LARGE_ROWS]
    needed = max(max(layers) * max(widths) ** 2, max(others) * max(widths))
    if needed > MAX_TIMES_WEIGHTS * max(headers.numbers, ALLOWED_NUMBERS):
        raise ValueError(
            f"{max(layers):,.0f} layers, {max(widths):,.0f} wide, with {max(others):,.0f} rows "
            f"need more than the {headers.numbers:,} numbers of these weights"
        )


def _check(field: str, number: float, headers: Headers | None) -> None:
    """Raise ValueError for a number that is too large.

    Args:
        field: Field that holds the number.
        number: The number.
        headers: Headers of the weights; None in a tokenizer's file.
    """
    if headers is None:
        most: float = MAX_TOKENIZER_NUMBER
    elif field == TOKENS or SIDES.fullmatch(field):
        most = MAX_SIDE
    elif RATIOS.fullmatch(field):
        most = MAX_RATIO
    elif LAYERS.fullmatch(field):
        most = min(MAX_LAYERS, max(headers.tensors, ALLOWED_LAYERS))
    elif WIDTHS.fullmatch(field):  # a block has a matrix of at least a quarter of its square
        most = max(min(headers.largest, 2 * math.isqrt(headers.numbers)), ALLOWED_WIDTH)
    elif IDS.fullmatch(field):
        most = MAX_ID
    else:
        most = max(MAX_NUMBER, headers.largest)
    if not abs(number) <= most:
        shown = quoted(number)
        raise ValueError(
            f"{quoted(field)} is {shown}, and a model with these weights has at most {most:,.0f}"
        )
