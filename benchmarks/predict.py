"""Images per second from files to probabilities, where each image is decoded once and encoded once.

    python benchmarks/predict.py --backbone pocket --json

In turns, over the same JPEG files: `predict` (`Fitted.probabilities`); its parts, `decode` (files to image tensors),
`encode` (image tensors through the untouched encoder) and `prompts` (class weights); and `twice`, the way of version
0.1, which decoded and encoded every image for the adapted features, by hooks, and again for the frozen ones. Both ways
must give the same probabilities. `share_of_parts` is decode + encode + prompts over predict: 1 where nothing is added.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, class_names, interleaved, medians, set_up, setting, show
from PIL import Image
from torch import Tensor

from rmadapter.backbones import load_backbone
from rmadapter.cache import BATCH
from rmadapter.data.images import ImageSet
from rmadapter.data.transforms import ImageTensors, batches
from rmadapter.method import Known
from rmadapter.methods import load_method
from rmadapter.prompts import cosine_logits

KEYS = ("run", "seconds", "images_per_second", "times_predict")


def main() -> None:
    parser = arguments(__doc__, "classes", repeat=5)
    parser.add_argument("--images", type=int, default=128, help="files")
    parser.add_argument("--pixels", type=int, nargs=2, default=[500, 375], help="width and height of a file")
    options = parser.parse_args()
    set_up(options)
    with tempfile.TemporaryDirectory() as folder:
        files = tuple(write_files(Path(folder), options))
        result = measure(options, ImageSet(files, (0,) * len(files), ("",)))
    show(options, result, KEYS, result["rows"])


def write_files(folder: Path, options: argparse.Namespace) -> Iterator[Path]:
    """JPEG files of smooth noise, which take about as many bytes as photographs."""
    rng, size = np.random.default_rng(options.seed), tuple(options.pixels)
    for number in range(options.images):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        yield folder / f"{number}.jpg"


def measure(options: argparse.Namespace, images: ImageSet) -> dict[str, Any]:
    about, backbone = setting(options, "images", "pixels", "classes"), load_backbone(options.backbone)
    method: Any = load_method("rmadapter", {"init": "kaiming"})  # adapters that change every answer
    model, names = method.model(backbone, options.seed), tuple(class_names(options.classes, options.seed))
    fitted = method.restore(backbone, Known(names), model.adapters.state_dict())
    tensors, rows = ImageTensors(images, backbone.preprocess), torch.arange(len(images)).split(BATCH)

    def decode() -> Iterator[Tensor]:
        return batches(tensors, [part.tolist() for part in rows])

    @torch.no_grad()
    def twice() -> Tensor:
        weights, found = model.class_weights(names), []
        for pixels in decode():
            found.append(cosine_logits(backbone, model.encode_image(pixels), weights).softmax(-1))
        for pixels in decode():
            backbone.image.frozen(pixels)
        return torch.cat(found)

    def predict() -> Tensor:
        return torch.cat(list(fitted.probabilities(images.images)))

    decoded = list(decode())
    runs = {
        "predict": predict,
        "decode": lambda: list(decode()),
        "encode": lambda: [backbone.image.frozen(pixels) for pixels in decoded],
        "prompts": lambda: fitted.score(names),
        "twice": twice,
    }
    difference = float((predict() - twice()).abs().max())
    if difference > 1e-3:
        raise SystemExit(f"the two ways differ by {difference}: they do not answer the same question")
    spent = medians(interleaved(runs, options.repeat, text="images"))
    parts = sum(spent[name] for name in ("decode", "encode", "prompts"))
    return {
        "rows": [
            dict(zip(KEYS, (name, value, len(images) / value, value / spent["predict"]), strict=True))
            for name, value in spent.items()
        ],
        "ratio": spent["twice"] / spent["predict"],
        "share_of_parts": parts / spent["predict"],
        "largest_difference": difference,
        **about,
    }


if __name__ == "__main__":
    main()
