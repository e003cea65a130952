"""Answers of an exported model; needs only NumPy, Pillow and its engine: onnxruntime, OpenVINO or
LiteRT.

    python predict.py IMAGES > answers.csv

    from predict import Model
    for label, probability in Model("this folder").predict(["cat.jpg"])[0]: ...

Images become the same tensors, bit for bit, as in the package that exported the model.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from rmadapter.answers.answer import UNSURE, Answer, cell
from rmadapter.answers.decider import Decider, check_outputs, read_decider
from rmadapter.answers.rejection import NONE_OF_THESE
from rmadapter.answers.sets import parse_share
from rmadapter.data.decode import ImageSource, load_image
from rmadapter.data.formats.base import image_files
from rmadapter.errors import UserError, damaged
from rmadapter.export import FACTS
from rmadapter.export.engines import CPU, ENGINES, GRAPH, Outputs, find_graph, joined, parse_outputs
from rmadapter.export.text_classes import WEIGHTS, TextClasses
from rmadapter.support.files import check_files, check_sums, csv_text, read_json
from rmadapter.support.labels import parse_labels
from rmadapter.support.machine import cores

LABELS, TRANSFORM = "labels.json", "preprocess.json"
BATCH_SIZE = 32  # images
MAX_FACTS_BYTES = 2**20  # of export.json and preprocess.json
MAX_LABELS_BYTES = 2**24  # of labels.json
MAX_SIDE = 4096  # pixels of a square image
RESIZES = ("shortest", "longest", "squash")
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Transform:
    """RGB image -> float32 [3, size, size], as preprocess.json says.

    Args:
        size: Side of the square, at most 4,096 pixels.
        resize: Fit the "shortest" side and crop the centre, fit the "longest" side and pad, or
            "squash".
        interpolation: One of FILTERS.
        mean: Of RGB in 0..1.
        std: Of RGB in 0..1.
        fill: Grey of the padding, 0 to 255.

    Raises:
        ValueError: No export says this.
    """

    def __init__(
        self,
        size: int,
        resize: str,
        interpolation: str,
        mean: Sequence[float],
        std: Sequence[float],
        fill: int = 0,
    ) -> None:
        self.size, self.resize, self.fill = size, resize, fill
        self.filter = FILTERS[interpolation]
        self.mean = np.array(mean, np.float32).reshape(3, 1, 1)
        self.std = np.array(std, np.float32).reshape(3, 1, 1)
        if resize not in RESIZES or not np.isfinite([self.mean, self.std]).all() or 0 in self.std:
            raise ValueError(f"resize {resize!r}, mean {mean} and std {std}")
        if not (type(size) is type(fill) is int and 0 < size <= MAX_SIDE and 0 <= fill <= 255):
            raise ValueError(f"size {size!r:.80} and fill {fill!r:.80}")

    def __call__(self, image: Image.Image) -> np.ndarray:
        channels = np.asarray(self._square(image)).transpose(2, 0, 1)
        values: np.ndarray = channels.astype(np.float32) / np.float32(255)
        scaled: np.ndarray = (values - self.mean) / self.std
        return scaled

    def _square(self, image: Image.Image) -> Image.Image:
        size, (width, height) = self.size, image.size
        if self.resize == "squash":
            return image.resize((size, size), self.filter)
        if self.resize == "longest":
            ratio = max(width / size, height / size)
            small = image.resize((round(width / ratio), round(height / ratio)), self.filter)
            square = Image.new("RGB", (size, size), (self.fill,) * 3)
            square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
            return square
        short = min(width, height)
        small = image.resize((int(size * width / short), int(size * height / short)), self.filter)
        left, top = (round((side - size) / 2) for side in small.size)
        return small.crop((left, top, left + size, top + size))


class Model:
    """An exported model.

    Args:
        folder: The exported folder.
        threads: Threads of the engine; 0 leaves it to the engine.
        device: Where onnxruntime computes: cpu, cuda or tensorrt, also with a number (cuda:1), or
            openvino.

    Attributes:
        decider: What decides about its answers.
        size: Height and width of an image, in pixels.
        grey: What it gives for a grey image, which it answers at the start.

    Raises:
        UserError: The folder holds no model, a damaged one or files that do not fit together, the
            engine is not installed, or it lacks the device.
    """

    def __init__(
        self,
        folder: str | Path = Path(__file__).parent,
        threads: int = 0,
        device: str = CPU,
    ) -> None:
        folder = Path(folder)
        graph = find_graph(folder) or GRAPH
        if not (folder / graph).is_file():
            raise UserError(f"{folder}: not an exported model; {graph} is missing")
        self.folder = folder
        self.classes: TextClasses | None = None
        try:
            check_files(folder)
            check_sums(folder)
            labels = parse_labels(read_json(folder / LABELS, MAX_LABELS_BYTES))
            self.decider = read_decider(folder, labels)
            self.transform = Transform(**read_json(folder / TRANSFORM, MAX_FACTS_BYTES))
            self.size = self.transform.size
            self._run, batch, side = ENGINES[graph](folder / graph, threads, device)
            if side not in (0, self.size):
                raise ValueError(f"images of {self.size} pixels for a graph that takes {side}")
            self.batch = batch or BATCH_SIZE
            self.grey = self._answer_grey()
        except UserError:
            raise
        except ModuleNotFoundError as error:
            raise _missing(error) from None
        except Exception as error:  # engines raise types of their own for a damaged file
            raise damaged(folder, error) from error

    @property
    def labels(self) -> list[str]:
        """Return the labels of the classes, in the order of the probabilities."""
        return [*self.decider.labels]

    @property
    def facts(self) -> Mapping[str, object]:
        """Return what export.json says, which may be missing. Raises UserError if it is damaged."""
        file = self.folder / FACTS
        facts = read_json(file, MAX_FACTS_BYTES) if file.is_file() else None
        return facts if isinstance(facts, dict) else {}

    def _answer_grey(self) -> Outputs:
        """Answer a grey image. Raises ValueError if the graph has no probability for each label."""
        grey = self.ask(self.pixels([Image.new("RGB", (9, 8), "gray")]))
        if grey.probabilities.shape != (1, len(self.labels)):
            shape = grey.probabilities.shape
            raise ValueError(f"{len(self.labels)} labels for probabilities of shape {shape}")
        return grey

    def add_class(self, label: str) -> None:
        """Add a class by name alone. Raises UserError for one that exists, and for a model exported
        without --text."""
        try:
            classes = self.classes or TextClasses(self.folder)
        except ModuleNotFoundError as error:
            raise _missing(error) from None
        shape = len(self.labels), features_of(self.grey).shape[1]
        if classes.weights.shape != shape:
            raise damaged(self.folder / WEIGHTS, ValueError(f"not {shape} numbers"))
        decider = self.decider.with_label(label)
        classes.add(label, self.labels)
        self.classes, self.decider = classes, decider

    def pixels(self, images: Iterable[ImageSource]) -> np.ndarray:
        """Return images as float32 [B, 3, size, size]. Raises UserError for an unreadable image."""
        tensors = [self.transform(load_image(image)) for image in images]
        shape = (0, 3, self.size, self.size)
        return np.stack(tensors) if tensors else np.empty(shape, np.float32)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Return probabilities [B, C] for float32 [B, 3, size, size]."""
        return self.ask(pixels).probabilities

    def ask(self, pixels: np.ndarray) -> Outputs:
        """Return all that the model gives for float32 [B, 3, size, size]. Raises UserError for
        numbers that are no probabilities."""
        starts = range(0, len(pixels), self.batch)
        parts = [parse_outputs(self._run(pixels[i : i + self.batch])) for i in starts]
        if not parts:  # not every engine takes an empty batch
            parts = [Outputs._make(one if one is None else one[:0] for one in self.grey)]
        outputs = joined(parts)
        if self.classes and outputs.features is not None:
            probabilities = self.classes.probabilities(outputs.features)
            outputs = outputs._replace(probabilities=probabilities)
        check_outputs(outputs.probabilities, outputs.distances, f"{self.folder}: ")
        return outputs

    def embed(self, images: Iterable[ImageSource]) -> np.ndarray:
        """Return features [N, e] of unit length, similar for similar images. Raises UserError for
        an unreadable image, and for a model exported without --embeddings."""
        none = features_of(self.grey)[:0]
        return np.concatenate([none, *(features_of(some) for _, some in self.outputs(images))])

    def answers(
        self, images: Iterable[ImageSource], decider: Decider | None = None, top: int = 5
    ) -> Iterator[Answer]:
        """Yield the answer for each image.

        Args:
            images: Paths, PIL images or arrays.
            decider: Decider of the same classes, by default one that promises nothing.
            top: Answers per image.
        """
        for _, outputs in self.outputs(images):
            yield from (decider or self.decider).answer(
                outputs.probabilities, outputs.distances, top
            )

    def outputs(
        self, images: Iterable[ImageSource], bad: list[str] | None = None
    ) -> Iterator[tuple[list[ImageSource], Outputs]]:
        """Yield batches of images, and all that the model gives for them; threads decode.

        Args:
            images: Paths, PIL images or arrays.
            bad: Collects a sentence for each unreadable image, which is left out; if None, the
                first one raises UserError.
        """
        rest = iter(images)
        with ThreadPoolExecutor(cores()) as pool:
            while batch := list(islice(rest, BATCH_SIZE)):
                readable: list[ImageSource] = []
                tensors = []
                for image, tensor in zip(batch, pool.map(self._load, batch), strict=True):
                    if isinstance(tensor, np.ndarray):
                        readable.append(image)
                        tensors.append(tensor)
                    elif bad is None:
                        raise tensor
                    else:
                        bad.append(str(tensor))
                if readable:
                    yield readable, self.ask(np.stack(tensors))

    def _load(self, image: ImageSource) -> np.ndarray | UserError:
        try:
            return self.transform(load_image(image))
        except UserError as error:
            return error

    def predict(self, images: Iterable[ImageSource], top: int = 5) -> list[list[tuple[str, float]]]:
        """Return labels and probabilities of each image (a path, a PIL image or an array), most
        probable first."""
        return [[*answer.best] for answer in self.answers(images, top=top)]

    def predict_set(self, images: Iterable[ImageSource], error: float = 0.05) -> list[list[str]]:
        """Return labels of the classes that may be right for each image, most probable first: of
        images like those of the calibration, a share of at most `error` has its class missing.

        Raises UserError without a calibration, or with too few images for this error.
        """
        decider = self.decider.at(error=error)
        return [[*answer.labels] for answer in self.answers(images, decider)]

    def predict_levels(self, images: Iterable[ImageSource]) -> list[list[tuple[str, float]]]:
        """Return the most probable parent of each image, grandparent and so on, with its
        probability, the sum over its classes; nothing for a run without a taxonomy."""
        return [[*(each.levels.best if each.levels else ())] for each in self.answers(images)]

    def predict_common(self, images: Iterable[ImageSource], error: float = 0.05) -> list[str]:
        """Return the class of each image, or the lowest common parent of those that may be right;
        "unsure" without one. At most a share of `error` is wrong. Raises UserError as
        `predict_set`."""
        decider = self.decider.at(error=error)
        places = [answer.place() for answer in self.answers(images, decider)]
        return [place.name if place else UNSURE for place in places]

    def is_familiar(self, images: Iterable[ImageSource], turn_away: float = 0.05) -> list[bool]:
        """Return whether each image is of the model's classes at all: of images like those of the
        run, a share of at most `turn_away` is called none of them.

        Raises UserError for a model that cannot tell, and for one with too few images of its own.
        """
        decider = self.decider.at(reject_rate=turn_away)
        return [bool(answer.familiar) for answer in self.answers(images, decider)]


def features_of(outputs: Outputs) -> np.ndarray:
    """Return the features [B, e]. Raises UserError if there are none."""
    if outputs.features is None:
        raise UserError(
            "this model gives no features; `rmadapter export RUN --embeddings` makes one that does"
        )
    return outputs.features


def _missing(error: ModuleNotFoundError) -> UserError:
    return UserError(f"{error.name} is missing; run `pip install {error.name}`")


def _files(words: Sequence[str]) -> list[Path]:
    """Return the named files, and the images in named folders."""
    files: list[Path] = []
    for word in words:
        files += image_files(Path(word), set()) if os.path.isdir(word) else [Path(word)]
    if not files:
        raise UserError(f"{', '.join(words)[:200]}: no images found")
    return files


def _decider(model: Model, error: float, reject_rate: float) -> Decider:
    """Return what decides at these shares, 0 for none, and print what is promised. Raises UserError
    if it cannot be, or if a class has the label of a decision."""
    decider = model.decider.at(error or None, reject_rate or None)
    for share, decision, option in (
        (error, UNSURE, "--error"),
        (reject_rate, NONE_OF_THESE, "--turn-away"),
    ):
        if share and decision in decider.names:
            raise UserError(f"a class is already labelled {decision!r}: leave out {option}")
    for text in decider.promises():
        print("promise:", text, file=sys.stderr)
    if (error or reject_rate) and model.facts.get("precision") == "int8":  # put into 8 bits later
        print(
            "promise: this holds for the model before it was put into 8 bits; README.md has how "
            "many decisions became others on the images compared",
            file=sys.stderr,
        )
    return decider


def _write(
    model: Model,
    decider: Decider,
    files: Sequence[Path],
    top: int,
    bad: list[str] | None,
    embeddings: str,
) -> None:
    """Print CSV as `rmadapter predict --no-zero-shot --out` writes it.

    Args:
        model: The model.
        decider: What decides about its answers.
        files: Images.
        top: Answers per image.
        bad: As for `Model.outputs`.
        embeddings: File for the features, in the order of the CSV; none if empty.
    """
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="")  # type: ignore[union-attr]
    header = decider.columns(top)
    print(csv_text(header, (), "\r\n"), end="")
    features = []
    for images, outputs in model.outputs(files, bad):
        if embeddings:
            features.append(features_of(outputs))
        answers = decider.answer(outputs.probabilities, outputs.distances, top)
        for image, answer in zip(images, answers, strict=True):
            row = {**answer.row(), "image": str(image)}
            print(csv_text([cell(column, row[column]) for column in header], (), "\r\n"), end="")
    if embeddings and features:
        with open(f"{embeddings}.part", "wb") as file:
            np.save(file, np.concatenate(features))
        os.replace(f"{embeddings}.part", embeddings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="The most probable classes of images, as CSV on stdout."
    )
    add = parser.add_argument
    add("images", nargs="+", help="files, or folders, which are searched to any depth")
    add("--top", type=int, default=5, help="answers per image, by default 5")
    add("--add", action="append", default=[], help="name of one more class; may be repeated")
    add(
        "--error",
        default="0",
        help="list the classes that may be right, and miss the right one on at most this share of "
        "images, such as 5%%",
    )
    add(
        "--turn-away",
        default="0",
        help="call images unlike those of the classes none of these, and at most this share of "
        "images of the classes",
    )
    add("--embeddings", default="", help="file.npy for the features [N, e] of the images")
    add("--skip-bad", action="store_true", help="go on without unreadable images and report them")
    add("--threads", type=int, default=0, help="by default as many as there are cores")
    add(
        "--device",
        default=CPU,
        help="where onnxruntime computes: cpu (the default), cuda, tensorrt, cuda:1, or openvino",
    )
    return parser


def main() -> None:
    """Run the command line; a UserError becomes one line on stderr and exit code 2."""
    words = _parser().parse_args()
    bad: list[str] | None = [] if words.skip_bad else None
    try:
        model = Model(threads=max(words.threads, 0), device=words.device)
        for label in words.add:
            model.add_class(label)
        top = min(max(words.top, 1), len(model.labels))
        decider = _decider(model, parse_share(words.error), parse_share(words.turn_away))
        _write(model, decider, _files(words.images), top, bad, words.embeddings)
    except (UserError, OSError) as error:
        print("predict.py:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    for text in bad or []:
        print("left out:", text, file=sys.stderr)


if __name__ == "__main__":
    main()
