"""Measure images per second from files to probabilities, where each image is decoded once and
encoded once.

    python benchmarks/predict.py --backbone pocket --json

In turns, over the same JPEG files: `file`, all that `rmadapter predict FOLDER --out answers.csv`
does after loading the model; `model`, the model's part of it, adapted and untouched, on tensors in
memory; `predict` (`Fitted.probabilities`); its parts, `decode` (files to image tensors, one after
the other), `encode` (image tensors through the untouched encoder) and `prompts` (class weights);
and `twice`, the way of version 0.1, which decoded and encoded every image for the adapted features,
by hooks, and again for the frozen ones. All ways must give the same probabilities. `share_of_parts`
is decode + encode + prompts over predict: 1 where nothing is added, and more where decoding runs
beside the model. `share_of_model` is model over file: 1 where the model never waits.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, class_names, interleaved, medians, set_up, setting, show
from PIL import Image
from torch import Tensor

from rmadapter.backbones import load_backbone
from rmadapter.data.formats.registry import find_images
from rmadapter.data.read import ImageSet
from rmadapter.data.transforms import ImageTensors, batches
from rmadapter.methods import load_method
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.model import AdaptedCLIP
from rmadapter.predict.stream import Predictor
from rmadapter.predict.write import AnswerFile, write_answers
from rmadapter.prompts import cosine_logits
from rmadapter.training.cache import BATCH_SIZE
from rmadapter.training.contract import Fitted, Known

KEYS = ("run", "seconds", "images_per_second", "times_predict")


def main() -> None:
    parser = arguments(__doc__, "classes", repeat=5)
    parser.add_argument("--images", type=int, default=128, help="files")
    parser.add_argument(
        "--pixels", type=int, nargs=2, default=[500, 375], help="width and height of a file"
    )
    options = parser.parse_args()
    set_up(options)
    with tempfile.TemporaryDirectory() as folder:
        files = tuple(write_files(Path(folder), options))
        result = measure(options, ImageSet(files, (0,) * len(files), ("",), Path(folder)))
    show(options, result, KEYS, result["rows"])


def write_files(folder: Path, options: argparse.Namespace) -> Iterator[Path]:
    """Write JPEG files of smooth noise, which take about as many bytes as photographs."""
    rng = np.random.default_rng(options.seed)
    size = tuple(options.pixels)
    for number in range(options.images):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        yield folder / f"{number}.jpg"


def measure(options: argparse.Namespace, images: ImageSet) -> dict[str, Any]:
    """Time every run in turns, and compare the answers of those that should agree."""
    backbone = load_backbone(options.backbone)
    method: Any = load_method("rmadapter", {"init": "kaiming"})  # adapters that change every answer
    model = method.model(backbone, options.seed)
    names = tuple(class_names(options.classes, options.seed))
    fitted = method.restore(backbone, Known(names), model.adapters.state_dict())
    runs = make_runs(fitted, model, images, names)
    answers, twice, file = (runs[name]() for name in ("predict", "twice", "file"))
    differences = [(answers - twice).abs().max(), (answers.max(-1).values - file).abs().max()]
    difference = float(max(differences))
    if difference > 1e-3:
        raise SystemExit(f"the ways differ by {difference}: they do not answer the same question")
    spent = medians(interleaved(runs, options.repeat, text="images"))
    parts = sum(spent[name] for name in ("decode", "encode", "prompts"))
    rows = [
        dict(zip(KEYS, (name, value, len(images) / value, value / spent["predict"]), strict=True))
        for name, value in spent.items()
    ]
    return {
        "rows": rows,
        "ratio": spent["twice"] / spent["predict"],
        "share_of_model": spent["model"] / spent["file"],
        "share_of_parts": parts / spent["predict"],
        "largest_difference": difference,
        **setting(options, "images", "pixels", "classes"),
    }


def make_runs(
    fitted: Fitted, model: AdaptedCLIP, images: ImageSet, names: tuple[str, ...]
) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name."""
    backbone = fitted.backbone
    tensors = ImageTensors(images, backbone.preprocess)
    rows = [part.tolist() for part in torch.arange(len(images)).split(BATCH_SIZE)]

    def decode() -> Iterator[Tensor]:
        return batches(tensors, rows)

    @torch.no_grad()
    def twice() -> Tensor:
        weights = model.class_weights(names)
        tables = []
        for pixels in decode():
            tables.append(cosine_logits(backbone, model.encode_image(pixels), weights).softmax(-1))
        for pixels in decode():
            backbone.image.frozen(pixels)
        return torch.cat(tables)

    def predict() -> Tensor:
        return torch.cat(list(fitted.probabilities(images.images)))

    untouched = ZeroShot().restore(backbone, Known(names), {}).score()
    predictor = Predictor(fitted, names, names, 1)
    scorers = {"own": fitted.score(names), "untouched": untouched}

    def file() -> Tensor:
        """Write the answers, and return the probabilities of the best class."""
        with tempfile.TemporaryDirectory() as folder:
            out = AnswerFile(
                Path(folder) / "answers.csv", predictor.decider.columns(1, ["zero_shot_label"]), ""
            )
            files = find_images([str(images.root)]).files
            write_answers(files, predictor, 0.0, False, out, None, progress=False)
            with open(out.path, newline="", encoding="utf-8") as text:
                best = {row["image"]: float(row["probability"]) for row in csv.DictReader(text)}
        return torch.tensor([best[str(path)] for path in images.images])

    decoded = list(decode())
    return {
        "file": file,
        "model": lambda: [fitted.answers(scorers, pixels) for pixels in decoded],
        "predict": predict,
        "decode": lambda: list(decode()),
        "encode": lambda: [backbone.image.frozen(pixels) for pixels in decoded],
        "prompts": lambda: fitted.score(names),
        "twice": twice,
    }


if __name__ == "__main__":
    main()
