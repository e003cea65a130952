"""Answers of an exported model; needs only NumPy, Pillow and its engine: onnxruntime, OpenVINO,
torch or LiteRT.

    python predict.py IMAGES > answers.csv

    from predict import Model
    for label, probability in Model("this folder").predict(["cat.jpg"])[0]: ...

Images become the same tensors, bit for bit, as in the package that exported the model.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from rmadapter.conformal import UNSURE, chosen, limits_of, parse_share
from rmadapter.data.decode import ImageSource, load_image
from rmadapter.data.formats.base import image_files
from rmadapter.data.names import OR, default_name, key
from rmadapter.deploy.export.engines import CPU, ENGINES, GRAPH, Outputs, told_apart
from rmadapter.deploy.export.promised import (
    calibration_of,
    damaged,
    familiar_of,
    in_8_bits,
    parents_in,
)
from rmadapter.errors import UserError
from rmadapter.familiar import NONE, strangest
from rmadapter.predict.answer import Answer, Levels, best, cell, columns
from rmadapter.support.files import check_sums, csv_text
from rmadapter.support.machine import cores
from rmadapter.taxonomy import Taxonomy

LABELS, TRANSFORM = "labels.json", "preprocess.json"
TEXT_ENCODER, TOKENIZER = "text.onnx", "tokenizer.json"
PROMPTS, WEIGHTS = "prompts.json", "weights.npy"
TOKENS = "tokens"  # input of the text encoder
BATCH = 32  # images
LARGEST_PROMPTS = 1_000  # templates, and characters of one
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Transform:
    """RGB image -> float32 [3, size, size], as preprocess.json says.

    resize: fit the "shortest" side and crop the centre, fit the "longest" side and pad with `fill`,
    or "squash". mean, std: of RGB in 0..1.
    """

    def __init__(
        self, size: int, resize: str, interpolation: str, mean: Sequence[float],
        std: Sequence[float], fill: int = 0,
    ) -> None:  # fmt: skip
        self.size, self.resize, self.fill = size, resize, fill
        self.filter = FILTERS[interpolation]
        self.mean = np.array(mean, np.float32)[:, None, None]
        self.std = np.array(std, np.float32)[:, None, None]

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


class TextClasses:
    """Classes of an exported model, to which others are added by name alone: with its text encoder,
    run by onnxruntime and tokenizers, after ftfy.

    weights: class features [C, e]. scale: factor of their cosines with image features. Raises
    UserError if the export has no text encoder.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / TEXT_ENCODER).is_file():
            raise UserError(
                "this model takes no other classes; `rmadapter export RUN --text` makes one that "
                "does"
            )
        import ftfy
        import onnxruntime
        import tokenizers

        self._fix_text = ftfy.fix_text
        try:
            facts = json.loads((folder / PROMPTS).read_text("utf-8"))
            self.templates = [str(template) for template in facts["templates"]]
            self.scale = float(facts["scale"])
            # in prompts; earlier exports have none
            self.names = [str(name) for name in facts.get("names", [])]
            self.weights: np.ndarray = np.load(folder / WEIGHTS, allow_pickle=False)
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
            self._session = onnxruntime.InferenceSession(
                str(folder / TEXT_ENCODER), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # as for the model
            raise damaged(folder, error) from error
        if max(len(self.templates), *map(len, self.templates)) > LARGEST_PROMPTS:
            raise UserError(
                f"{folder / PROMPTS}: more than {LARGEST_PROMPTS:,} templates, or characters of one"
            )

    def tokens(self, name: str) -> np.ndarray:
        """Tokens of all prompts of a class, int64 [N, L]."""
        texts = [self._clean(template.replace("{}", name)) for template in self.templates]
        return np.array([self._tokenizer.encode(text).ids for text in texts], np.int64)

    def _clean(self, text: str) -> str:
        """Clean a text like open_clip before any tokenizer: straight quotes, no ligatures, no HTML
        entities."""
        return " ".join(html.unescape(html.unescape(self._fix_text(text))).split())

    def add(self, label: str, labels: list[str]) -> None:
        """Append a class, and its label to `labels`. Raises UserError for one that exists, or is
        not a single name."""
        name = default_name(label)
        if not name or OR in label:
            raise UserError(f"class {label!r}: give one name of at least one word")
        known_labels = {key(other) for other in labels}
        known_names = {key(other) for other in self.names}
        if key(label) in known_labels or key(name) in known_names:
            raise UserError(f"class {label!r} already exists")
        (weights,) = self._session.run(None, {TOKENS: self.tokens(name)})
        self.weights = np.concatenate([self.weights, weights])
        labels.append(label)
        self.names = [*self.names, name]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Features [B, e] of unit length -> [B, C]"""
        logits = self.scale * features @ self.weights.T
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        shares: np.ndarray = powers / powers.sum(-1, keepdims=True)
        return shares


class Model:
    """An exported model.

    labels: of the classes, in the order of the probabilities. calibration: by which errors are
    promised, if the run had one. known: what tells images of its classes from others, likewise.
    parents: of labels, and of parents, if the run had a taxonomy.
    threads: 0 leaves it to the engine. graph: the model's file, by default the one in the folder.
    device: where onnxruntime computes: cpu, cuda or tensorrt, also with a number (cuda:1), or
    openvino. Raises UserError if the folder holds no model or a damaged one, if its engine is
    not installed, or if that lacks the device.
    """

    def __init__(
        self, folder: str | Path = Path(__file__).parent, threads: int = 0, graph: str = "",
        device: str = CPU,
    ) -> None:  # fmt: skip
        folder = Path(folder)
        graph = graph or next((name for name in ENGINES if (folder / name).is_file()), GRAPH)
        if not (folder / graph).is_file():
            raise UserError(f"{folder}: not an exported model; {graph} is missing")
        check_sums(folder)
        try:
            self.labels = [str(label) for label in json.loads((folder / LABELS).read_text("utf-8"))]
            self.calibration = calibration_of(folder, len(self.labels))
            self.known = familiar_of(folder, len(self.labels))
            self.parents = parents_in(folder, self.labels)
            self.transform = Transform(**json.loads((folder / TRANSFORM).read_text("utf-8")))
            engine = ENGINES.get(graph, ENGINES[GRAPH])
            self._run, batch = engine(folder / graph, threads, device)
        except UserError:
            raise
        except ModuleNotFoundError as error:
            raise _missing(error) from None
        except Exception as error:  # engines raise types of their own for a damaged file
            raise damaged(folder, error) from error
        self.batch = batch or BATCH
        self.folder = folder
        self.classes: TextClasses | None = None

    def add_class(self, label: str) -> None:
        """Add a class by name alone. Raises UserError for one that exists, and for a model exported
        without --text."""
        try:
            self.classes = self.classes or TextClasses(self.folder)
        except ModuleNotFoundError as error:
            raise _missing(error) from None
        self.classes.add(label, self.labels)

    def pixels(self, images: Iterable[ImageSource]) -> np.ndarray:
        """Images -> float32 [B, 3, size, size]. Raises UserError for an unreadable image."""
        return np.stack([self.transform(load_image(image)) for image in images])

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [B, 3, size, size] -> [B, C]"""
        return self.ask(pixels).probabilities

    def ask(self, pixels: np.ndarray) -> Outputs:
        """float32 [B, 3, size, size] -> all that the model gives."""
        parts = [self._run(pixels[i : i + self.batch]) for i in range(0, len(pixels), self.batch)]
        outputs = told_apart([np.concatenate(part) for part in zip(*parts, strict=True)])
        if self.classes and outputs.features is not None:
            probabilities = self.classes.probabilities(outputs.features)
            return outputs._replace(probabilities=probabilities)
        return outputs

    def embed(self, images: Iterable[ImageSource]) -> np.ndarray:
        """Features [N, e] of unit length, similar for similar images. Raises UserError for an
        unreadable image, and for a model exported without --embeddings."""
        rows = [features_of(outputs) for _, outputs in self.outputs(images)]
        return np.concatenate(rows)

    def answers(
        self, images: Iterable[ImageSource], bad: list[str] | None = None
    ) -> Iterator[tuple[list[ImageSource], np.ndarray]]:
        """Like `outputs`, but with the probabilities [B, C] alone."""
        return (
            (readable, outputs.probabilities) for readable, outputs in self.outputs(images, bad)
        )

    def outputs(
        self, images: Iterable[ImageSource], bad: list[str] | None = None
    ) -> Iterator[tuple[list[ImageSource], Outputs]]:
        """Yield batches of images, and all that the model gives for them; threads decode.

        bad: collects a sentence for each unreadable image, which is left out; if None, the first
        one raises UserError.
        """
        rest = iter(images)
        with ThreadPoolExecutor(cores()) as pool:
            while batch := list(islice(rest, BATCH)):
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
        """Labels and probabilities of each image (a path, a PIL image or an array), most probable
        first."""
        return [self.best(row, top) for _, table in self.answers(images) for row in table]

    def predict_set(self, images: Iterable[ImageSource], error: float = 0.05) -> list[list[str]]:
        """Labels of the classes that may be right for each image, most probable first: of images
        like those of the calibration, a share of at most `error` has its class missing.

        Raises UserError without a calibration, or with too few images for this error.
        """
        limits = self.limits(error)
        return [[*self.members(row, limits)] for _, table in self.answers(images) for row in table]

    @property
    def tree(self) -> Taxonomy | None:
        """The tree of the labels; None without parents."""
        return Taxonomy.if_any(self.parents, self.labels)

    def predict_levels(self, images: Iterable[ImageSource]) -> list[list[tuple[str, float]]]:
        """The most probable parent of each image, grandparent and so on, with its probability, the
        sum over its classes; none for a run without a taxonomy."""
        tree = self.tree
        lines: list[list[tuple[str, float]]] = []
        for _, table in self.answers(images):
            lines += tree.best(table) if tree else [[] for _ in table]
        return lines

    def predict_common(self, images: Iterable[ImageSource], error: float = 0.05) -> list[str]:
        """The class of each image, or the lowest common parent of those that may be right; "unsure"
        without one. At most a share of `error` is wrong; UserError as `predict_set`."""
        tree, limits, names = self.tree, self.limits(error), []
        for _, table in self.answers(images):
            for row in table:
                members = chosen(row, limits).tolist()
                place = tree.common(members) if tree else None
                single = self.labels[members[0]] if len(members) == 1 else UNSURE
                names.append(place.name if place else single)
        return names

    def limits(self, error: float) -> np.ndarray:
        """Probabilities [C] from which on classes are in the sets; UserError as `predict_set`."""
        known = self.calibration.known if self.calibration else 0
        return limits_of(self.calibration, error, self.labels[:known], self.labels)

    def members(self, probabilities: np.ndarray, limits: np.ndarray) -> tuple[str, ...]:
        """Labels in the set of one image, most probable first. probabilities, limits: [C]."""
        return tuple(self.labels[i] for i in chosen(probabilities, limits))

    def is_familiar(self, images: Iterable[ImageSource], turn_away: float = 0.05) -> list[bool]:
        """Whether each image is of the model's classes at all: of images like those of the run, a
        share of at most `turn_away` is called none of them.

        Raises UserError for a model that cannot tell, and for one with too few images of its own.
        """
        count = self.strangest(turn_away)
        return [each for _, some in self.outputs(images) for each in self.familiar(some, count)]

    def strangest(self, turn_away: float) -> int:
        """How many of the strangest images are none of the classes; UserError as `is_familiar`."""
        return strangest(self.known.familiarity if self.known else None, turn_away)

    def familiar(self, outputs: Outputs, strangest: int) -> list[bool]:
        """Whether each of B images is of the classes. strangest: as from `strangest`."""
        assert self.known
        return self.known.familiar(outputs, strangest)

    def best(self, probabilities: np.ndarray, top: int = 5) -> list[tuple[str, float]]:
        """Labels and probabilities of one image, most probable first. probabilities: [C]."""
        return best(self.labels, probabilities, top)


def features_of(outputs: Outputs) -> np.ndarray:
    """The features [B, e]; UserError if there are none."""
    if outputs.features is None:
        raise UserError(
            "this model gives no features; `rmadapter export RUN --embeddings` makes one that does"
        )
    return outputs.features


def _missing(error: ModuleNotFoundError) -> UserError:
    return UserError(f"{error.name} is missing; run `pip install {error.name}`")


def _files(words: Sequence[str]) -> list[Path]:
    """The named files, and the images in named folders."""
    files: list[Path] = []
    for word in words:
        files += image_files(Path(word), set()) if os.path.isdir(word) else [Path(word)]
    if not files:
        raise UserError(f"{', '.join(words)[:200]}: no images found")
    return files


def _write(
    model: Model, files: Sequence[Path], top: int, bad: list[str] | None, embeddings: str,
    limits: np.ndarray | None, strangest: int | None,
) -> None:  # fmt: skip
    """Print CSV as `rmadapter predict --no-zero-shot --out` writes it. embeddings: file for
    features, in its order. limits: of classes in the sets, if an error is promised.
    strangest: how many images are none of the classes, if strange ones are turned away."""
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="")  # type: ignore[union-attr]
    tree = model.tree
    header = columns(
        top, zero_shot=False, sets=limits is not None, familiar=strangest is not None,
        depth=tree.depth if tree else 0,
    )  # fmt: skip
    print(csv_text(header, (), "\r\n"), end="")
    features = []
    for images, outputs in model.outputs(files, bad):
        if embeddings:
            features.append(features_of(outputs))
        none: list[bool | None] = [None] * len(images)
        familiar = none if strangest is None else model.familiar(outputs, strangest)
        table = outputs.probabilities
        sets = [[] if limits is None else chosen(line, limits).tolist() for line in table]
        levels = Levels.of(tree, table, sets) if tree else [None] * len(images)
        for image, line, own, members, level in zip(
            images, table, familiar, sets, levels, strict=True
        ):
            labels, found = tuple(model.labels[i] for i in members), tuple(model.best(line, top))
            answer = Answer(Path(str(image)), found, labels=labels, familiar=own, levels=level)
            row = answer.row()
            print(csv_text([cell(column, row[column]) for column in header], (), "\r\n"), end="")
    if embeddings and features:
        with open(f"{embeddings}.part", "wb") as file:
            np.save(file, np.concatenate(features))
        os.replace(f"{embeddings}.part", embeddings)


def _limits(model: Model, word: str) -> np.ndarray | None:
    """Limits of classes in the sets for an error such as 5%, None for 0; say what is promised."""
    error = parse_share(word)
    if not error:
        return None
    limits = model.limits(error)
    if UNSURE in _names(model):
        raise UserError(f"a class is already labelled {UNSURE!r}: leave out --error")
    calibration = model.calibration
    assert calibration
    _promise(model, calibration.promise(error), *calibration.details(error, len(model.labels)))
    return limits


def _strangest(model: Model, word: str) -> int | None:
    """How many of the strangest images are none of the classes for a share such as 5%, None for 0;
    say what is promised."""
    share = parse_share(word)
    if not share:
        return None
    count = model.strangest(share)
    if NONE in _names(model):
        raise UserError(f"a class is already labelled {NONE!r}: leave out --turn-away")
    assert model.known
    _promise(model, model.known.familiarity.promise(share))
    return count


def _names(model: Model) -> list[str]:
    """All labels and parents."""
    return [*model.labels, *(model.tree.nodes if model.tree else ())]


def _promise(model: Model, *texts: str) -> None:
    """Say what is promised."""
    for text in texts:
        print("promise:", text, file=sys.stderr)
    if in_8_bits(model.folder):
        text = "this holds for the model before it was put into 8 bits; README.md has how many "
        print("promise:", text + "decisions became others on the images compared", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="The most probable classes of images, as CSV on stdout."
    )
    add = parser.add_argument
    add("images", nargs="+", help="files, or folders, which are searched to any depth")
    add("--top", type=int, default=5, help="answers per image, by default 5")
    add("--add", action="append", default=[], help="name of one more class; may be repeated")
    text = "list the classes that may be right, and miss the right one on at most this share of "
    text += "images, such as 5%%"
    add("--error", default="0", help=text)
    text = "call strange images none of these, and at most this share of images of the classes"
    add("--turn-away", default="0", help=text)
    add("--embeddings", default="", help="file.npy for the features [N, e] of the images")
    add("--skip-bad", action="store_true", help="go on without unreadable images and report them")
    add("--threads", type=int, default=0, help="by default as many as there are cores")
    text = "where onnxruntime computes: cpu (the default), cuda, tensorrt, cuda:1, or openvino"
    add("--device", default=CPU, help=text)
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
        limits = _limits(model, words.error)
        strangest = _strangest(model, words.turn_away)
        _write(model, _files(words.images), top, bad, words.embeddings, limits, strangest)
    except (UserError, OSError) as error:
        print("predict.py:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    for text in bad or []:
        print("left out:", text, file=sys.stderr)


if __name__ == "__main__":
    main()
