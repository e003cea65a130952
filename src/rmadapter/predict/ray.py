"""`predict --ray`: the same answers from the workers of a cluster, through Ray Data.

A worker keeps the run loaded, decodes and encodes images like the local engine, and needs the run
and the images at the same path. Answers come back in order and are written by this process, so a
stopped command resumes like a local one.

Images may also be stored as bytes in a parquet file; each row then has a name, FILE.parquet#ROW. A
row is written to a temporary file, so it is decoded by the same code as any other image. The column
holds bytes, or a struct with "bytes", as Hugging Face writes it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rmadapter.answers.answer import Answer, Levels
from rmadapter.answers.taxonomy import Place, Taxonomy
from rmadapter.bench.ray import connected, ray_module, settle, shares
from rmadapter.data.formats.base import Inputs
from rmadapter.data.formats.columnar import pyarrow
from rmadapter.data.formats.registry import find_images
from rmadapter.data.formats.tables import USUAL_NAMES
from rmadapter.data.image_set import SKIP_BAD
from rmadapter.errors import UserError
from rmadapter.predict.stream import BadImages, Predictor
from rmadapter.support.files import JsonObject, user_path
from rmadapter.training.cache import BATCH

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

IMAGES_PER_TASK = 8 * BATCH  # most images given to a worker at once, and repeated if it dies


@dataclass(frozen=True)
class Model:
    """What every worker loads: arguments of `checkpoint.load` and of `Predictor`. digest: as from
    the function `digest`."""

    run: Path
    backbone: str | None
    method: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    top: int
    error: float | None
    reject_rate: float | None
    tree: Taxonomy | None
    digest: str

    def load(self) -> Predictor:
        """Load the run. Raises UserError as `checkpoint.load`, and for a different model."""
        from rmadapter.artifacts.checkpoint import load

        saved = load(self.run, self.backbone, method=self.method)
        predictor = Predictor(
            saved.fitted, self.names, self.labels, self.top, self.error, self.reject_rate, self.tree
        )
        if digest(predictor) != self.digest:
            raise UserError(f"{self.run}: a different model from the one where the command runs")
        return predictor


def digest(predictor: Predictor) -> str:
    """Return the SHA-256 of all that answers depend on; `load` has checked the backbone's digest
    against the run."""
    fitted = predictor.fitted
    model = fitted.backbone.digest, fitted.known.templates, fitted.temperature
    sha256 = hashlib.sha256(repr((*model, predictor.decider.facts())).encode())
    for name, tensor in sorted(fitted.tensors.items()):
        sha256.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()


class Worker:
    """An actor of Ray Data, which turns a batch of names into lines of JSON: answers and bad
    images."""

    def __init__(
        self, model: Model, options: Mapping[str, bool], home: Path, threads: float
    ) -> None:
        self.options = options
        self.predictor: Predictor | None = None
        node = settle(home, threads)
        try:
            self.predictor = model.load()
        except UserError as error:  # returned as a row: Ray would restart a failing actor for ever
            self.complaint = (
                f"node {node}: {error}; every node needs the run and the images at the same path"
            )

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        if self.predictor is None:
            return {"line": [json.dumps({"complaint": self.complaint})]}
        bad: BadImages = []
        unreadable: BadImages = []
        lines: list[dict[str, object]] = []
        with tempfile.TemporaryDirectory() as folder:
            files = unpacked_rows([Path(name) for name in batch["image"]], Path(folder), bad)
            name_of = dict(files)
            images = [file for file, _ in files]
            for answers in self.predictor.predict(images, bad=unreadable, **self.options):
                for answer in answers:
                    lines.append(to_line(answer, name_of[answer.image]))
        for file, text in unreadable:
            bad.append((name_of[file], text.replace(str(file), str(name_of[file]))))
        lines += [{"image": str(name), "bad": text} for name, text in bad]
        return {"line": [json.dumps(line) for line in lines]}


@dataclass(frozen=True)
class Cluster:
    """A `Predictor` whose work is done by a cluster. address: as in `connected`."""

    model: Model
    jobs: int = 1
    address: str = ""

    def predict(
        self,
        images: Sequence[Path],
        zero_shot: bool = False,
        bad: BadImages | None = None,
        unfamiliar: bool = False,
    ) -> Iterator[list[Answer]]:
        """Yield answers like `Predictor.predict`. Also raises UserError if a node lacks the run or
        has a different one."""
        if not images:
            return
        import pyarrow as pa

        ray = ray_module()
        with connected(self.address):
            context = ray.data.DataContext.get_current()
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised anyway
            context.execution_options.preserve_order = True
            context.enable_progress_bars = False
            # every worker gets some, even of few
            size = min(IMAGES_PER_TASK, -(-len(images) // (self.jobs * BATCH)) * BATCH)
            parts = [images[start : start + size] for start in range(0, len(images), size)]
            blocks = [pa.table({"image": [str(image) for image in part]}) for part in parts]
            resources = shares(self.jobs)
            options = {"zero_shot": zero_shot, "unfamiliar": unfamiliar}
            answered = ray.data.from_arrow(blocks).map_batches(
                Worker,
                fn_constructor_args=(self.model, options, Path.cwd(), resources["num_cpus"]),
                batch_size=size,
                compute=ray.data.ActorPoolStrategy(size=min(self.jobs, len(blocks))),
                zero_copy_batch=True,
                **resources,
            )
            for block in answered.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=1
            ):
                yield list(
                    from_lines([json.loads(line) for line in block["line"].to_pylist()], bad)
                )


def cluster(
    predictor: Predictor, run: Path, backbone: str | None, method: str, jobs: int, address: str
) -> Cluster:
    """Return a cluster that answers like a predictor, which was loaded with this run, backbone and
    method."""
    decider = predictor.decider
    model = Model(
        run.absolute(), backbone, method, predictor.names, decider.labels, predictor.top,
        decider.error, decider.reject_rate, decider.tree, digest(predictor),
    )  # fmt: skip
    return Cluster(model, jobs, address)


def to_line(answer: Answer, name: Path) -> dict[str, object]:
    """Return an answer as JSON has it, for `from_lines`. name: of the image."""
    return {**asdict(answer), "image": str(name)}


def from_lines(lines: Sequence[JsonObject], bad: BadImages | None) -> Iterator[Answer]:
    """Yield the answers of a worker. bad: collects unreadable images; if None, the first one raises
    UserError, as a worker without the run always does."""
    for line in lines:
        if "complaint" in line:
            raise UserError(line["complaint"])
        image = Path(line.pop("image"))
        if "bad" not in line:
            best = tuple((label, share) for label, share in line.pop("best"))
            labels, levels = tuple(line.pop("labels")), line.pop("levels")
            yield Answer(best, labels, levels=levels and _levels(levels), image=image, **line)
        elif bad is None:
            raise UserError(f"{line['bad']}; {SKIP_BAD}")
        else:
            bad.append((image, line["bad"]))


def _levels(values: JsonObject) -> Levels:
    """Return what `asdict` and JSON made of levels."""
    best = tuple((name, share) for name, share in values["best"])
    above = tuple((Place(*place), share) for place, share in values["above"])
    return Levels(best, above, values["common"] and Place(*values["common"]))


# Images as bytes in a parquet file

MARK = ".parquet#"
NAMES = ("bytes", "image_bytes", *USUAL_NAMES["image"], "img", "content")


def is_row(name: Path) -> bool:
    return MARK in name.name.lower()


def find_rows(
    words: Sequence[str],
    column: str = "",
    outside: bool = False,
    none: bool = False,
    crops: bool = False,
) -> Inputs:
    """Find images like `find_images`, but `words` may include parquet files of bytes, whose rows
    come first."""
    rows = {word: rows_of(word) for word in words}
    others = [word for word in words if not rows[word]]
    inputs = find_images(others, column, outside, none, crops) if others else Inputs()
    inputs.files = [row for names in rows.values() for row in names] + inputs.files
    return inputs


def rows_of(word: str) -> list[Path]:
    """Name the images in a parquet file; none if it is another kind of file or a table of paths."""
    path = user_path(word)
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return []
    file = _opened(path)
    if not _column(file):
        return []
    return [path.with_name(f"{path.name}#{row}") for row in range(file.metadata.num_rows)]


def unpacked_rows(names: Sequence[Path], folder: Path, bad: BadImages) -> list[tuple[Path, Path]]:
    """Return (file, name) of each image in order; rows become files in `folder`. bad: collects rows
    without bytes."""
    files: list[tuple[Path, Path]] = []
    contents = dict(_contents([name for name in names if is_row(name)]))
    for number, name in enumerate(names):
        if not is_row(name):
            files.append((name, name))
        elif name in contents:
            file = folder / str(number)
            file.write_bytes(contents[name])
            files.append((file, name))
        else:
            bad.append((name, f"{name}: holds no bytes"))
    return files


def _contents(names: Sequence[Path]) -> Iterator[tuple[Path, bytes]]:
    """Yield (name, bytes) of the rows that hold bytes; each row group is read once."""
    rows_of_table: dict[Path, set[int]] = {}
    for name in names:
        table, _, number = name.name.rpartition("#")
        rows_of_table.setdefault(name.with_name(table), set()).add(int(number))
    for path, rows in rows_of_table.items():
        file = _opened(path)
        column = _column(file)
        start = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            in_group = sorted(row for row in rows if start <= row < start + size)
            if in_group:
                cells = file.read_row_group(group, columns=[column]).column(column)
                for row in in_group:
                    cell = cells[row - start].as_py()
                    content = cell.get("bytes") if isinstance(cell, dict) else cell
                    if content:
                        yield path.with_name(f"{path.name}#{row}"), content
            start += size


def _opened(path: Path) -> ParquetFile:
    parquet = pyarrow("parquet", str(path))
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # on broken files pyarrow raises nearly anything
        raise UserError(f"{path}: not a readable parquet file ({type(error).__name__})") from None


def _column(file: ParquetFile) -> str:
    """Return the column of bytes, by a usual name or else the first; "" if there is none."""
    types = pyarrow("types", "")
    columns = []
    for field in file.schema_arrow:
        is_bytes = types.is_binary(field.type) or types.is_large_binary(field.type)
        in_struct = types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if is_bytes or in_struct:
            columns.append(field.name)
    return next((name for name in NAMES if name in columns), columns[0] if columns else "")
