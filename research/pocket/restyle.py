"""Step 5: photographs as ink lines, edges, pencil, cartoons, prints and paintings (minutes).

What a photograph shows, and what the teacher says of it, stays. Writes the pool `restyled` and
WORK/origins.json, which says for each row its [pool, row].
"""

from __future__ import annotations

import argparse
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from pools import IMAGE_SIZE, images_of, read, save_pool, write
from scipy import ndimage

RESTYLED = {
    "mini": 800, "samples": 2500, "nette": 300, "imagen": 1000, "animals": 600,
}  # fmt: skip
RESTYLED |= {"mini2": 200, "vegetables": 100, "flickr": 300, "scenes": 200}
SIDES = (112, 160, 224)  # pixels at which a style is applied: its strokes are as wide everywhere
STYLES = {
    "ink": 16, "edges": 14, "pencil": 10, "cartoon": 18, "poster": 8, "painting": 16,
    "negative": 4, "grey": 4,
}  # fmt: skip
STYLES |= {"hues": 6, "two tones": 4}  # with their weights
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def ink(grey: np.ndarray, rng: random.Random) -> np.ndarray:
    """Return [H, W] in 0..1 by an extended difference of Gaussians (Winnemoeller et al. 2012)."""
    sigma = rng.uniform(0.6, 1.3)
    narrow, wide = (ndimage.gaussian_filter(grey, s) for s in (sigma, 1.6 * sigma))
    difference = narrow - rng.uniform(0.92, 0.98) * wide
    slope = rng.uniform(8, 40) / 255
    threshold = rng.uniform(-0.5, 6)
    return np.where(difference > threshold, 1.0, 1 + np.tanh(slope * (difference - threshold)))


def edges(grey: np.ndarray, rng: random.Random) -> np.ndarray:
    """Return [H, W] in 0..1: Sobel's edges, dark on white."""
    smooth = ndimage.gaussian_filter(grey, rng.uniform(0.6, 1.4))
    strength = np.hypot(ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1))
    strength = strength / (np.percentile(strength, rng.uniform(94, 99)) + 1e-3)
    return 1 - np.clip((strength - rng.uniform(0.1, 0.35)) * rng.uniform(1, 3), 0, 1)


def pencil(grey: np.ndarray, rng: random.Random) -> np.ndarray:
    """Return [H, W] in 0..1: brightness against its surroundings."""
    around = ndimage.gaussian_filter(grey, rng.uniform(2, 6))
    return np.clip(grey / (1e-3 + around), 0, 1) ** rng.uniform(1, 5)


def brushed(pixels: np.ndarray, radius: int) -> np.ndarray:
    """Apply Kuwahara's filter: the mean of that quadrant around a pixel which varies least."""
    grey, size = pixels @ LUMA, radius + 1
    mean = ndimage.uniform_filter(grey, size)
    variance = ndimage.uniform_filter(grey * grey, size) - mean**2
    means = ndimage.uniform_filter(pixels, (size, size, 1))
    half = (radius + 1) // 2
    shifts = [(y, x) for y in (-half, half) for x in (-half, half)]
    variances = np.stack([np.roll(variance, shift, (0, 1)) for shift in shifts])
    colours = np.stack([np.roll(means, shift, (0, 1)) for shift in shifts])
    return np.take_along_axis(colours, variances.argmin(0)[None, ..., None], axis=0)[0]


def levels(pixels: np.ndarray, number: int) -> np.ndarray:
    return np.round(pixels / 255 * (number - 1)) / (number - 1) * 255


def saturated(pixels: np.ndarray, factor: float) -> np.ndarray:
    grey = (pixels @ LUMA)[..., None]
    return grey + (pixels - grey) * factor


def cartoon(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    size = rng.choice((3, 5))
    flat = levels(ndimage.median_filter(pixels, (size, size, 1)), rng.randint(4, 7))
    lines = ink(pixels @ LUMA, rng)[..., None] if rng.random() < 0.8 else 1.0
    return saturated(flat, rng.uniform(1.1, 1.9)) * lines


def painting(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    strokes = saturated(brushed(pixels, rng.randint(3, 6)), rng.uniform(0.6, 1.6))
    tint = np.array([rng.uniform(0.8, 1.15) for _ in "rgb"])
    canvas = np.random.default_rng(rng.randrange(2**32)).normal(
        0, rng.uniform(0, 8), (*pixels.shape[:2], 1)
    )
    return strokes * tint + canvas


def two_tones(grey: np.ndarray, rng: random.Random) -> np.ndarray:
    dark = np.array([rng.uniform(0, 120) for _ in "rgb"])
    light = np.array([rng.uniform(140, 255) for _ in "rgb"])
    share = (grey / 255)[..., None]
    share = np.round(share * 3) / 3 if rng.random() < 0.5 else share
    return dark * (1 - share) + light * share


def restyled(pixels: np.ndarray, style: str, rng: random.Random) -> np.ndarray:
    """Return float [H, W, 3], about in 0..255."""
    grey = pixels @ LUMA
    if style in ("ink", "edges", "pencil"):
        lines = {"ink": ink, "edges": edges, "pencil": pencil}[style](grey, rng) * 255
        return np.repeat((255 - lines if rng.random() < 0.1 else lines)[..., None], 3, axis=-1)
    if style in ("cartoon", "painting"):
        return {"cartoon": cartoon, "painting": painting}[style](pixels, rng)
    if style == "poster":
        return saturated(
            levels(ndimage.gaussian_filter(pixels, (1, 1, 0)), rng.randint(2, 4)),
            rng.uniform(1, 1.6),
        )
    if style == "negative":
        return 255 - pixels
    if style == "grey":
        contrast = (grey - grey.mean()) * rng.uniform(0.8, 1.6) + grey.mean()
        return np.repeat(contrast[..., None], 3, axis=-1)
    if style == "hues":
        return pixels[..., rng.sample(range(3), 3)] * np.array(
            [rng.uniform(0.6, 1.2) for _ in "rgb"]
        )
    return two_tones(grey, rng)


def restyle(image: np.ndarray, seed: int) -> np.ndarray:
    """Convert uint8 [S, S, 3] -> uint8 [224, 224, 3] in a style that the seed draws."""
    rng = random.Random(seed)
    side = rng.choice(SIDES)
    picture = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    picture = ImageOps.mirror(picture) if rng.random() < 0.5 else picture
    [style] = rng.choices(list(STYLES), list(STYLES.values()))
    pixels = np.clip(restyled(np.asarray(picture, np.float32), style, rng), 0, 255)
    drawn = Image.fromarray(pixels.astype(np.uint8))
    return np.asarray(drawn.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of step 2")
    work = parser.parse_args().work
    rng = random.Random(1)
    origins = []
    for pool, number in RESTYLED.items():
        count = len(images_of(work, pool))
        origins += [(pool, row) for row in rng.sample(range(count), min(number, count))]
    images = {pool: images_of(work, pool) for pool in RESTYLED}
    keys = {pool: read(work / f"{pool}_keys.json") for pool in RESTYLED}
    chosen = (np.array(images[pool][row]) for pool, row in origins)
    with ProcessPoolExecutor() as executor:
        rows = list(executor.map(restyle, chosen, range(len(origins)), chunksize=64))
    save_pool(work, "restyled", np.stack(rows), [keys[pool][row] for pool, row in origins])
    write(work / "origins.json", origins)


if __name__ == "__main__":
    main()
