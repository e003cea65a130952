"""`predict --engine ray`: the same answers from the workers of a cluster, through Ray Data.

A worker keeps the run loaded, decodes and encodes images like the local engine, and needs the run
and the images at the same path. Answers come back in order and are written here, so a stopped
command resumes like a local one.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rmadapter.bench.ray.cluster import connected, ray_module, settle, shares
from rmadapter.data.transforms import WAY_OUT
from rmadapter.errors import UserError
from rmadapter.predict.answer import Answer
from rmadapter.predict.parquet import unpacked_rows
from rmadapter.predict.stream import Asker
from rmadapter.training.cache import BATCH

CHUNK = 8 * BATCH  # most images given to a worker at once, and repeated if it dies


@dataclass(frozen=True)
class Model:
    """What every worker loads: arguments of `checkpoint.load` and of `Asker`. digest: as the
    function `digest`."""

    run: Path
    backbone: str | None
    method: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    top: int
    digest: str

    def asker(self) -> Asker:
        """Load the run. Raises UserError as `load`, and if a different model is there."""
        from rmadapter.artifacts.checkpoint import load

        asker = Asker(
            load(self.run, self.backbone, method=self.method).fitted,
            self.names,
            self.labels,
            self.top,
        )
        if digest(asker) != self.digest:
            raise UserError(f"{self.run}: a different model from the one where the command runs")
        return asker


def digest(asker: Asker) -> str:
    """SHA-256 of all that answers depend on; `load` has checked the backbone's digest against the
    run."""
    import hashlib

    fitted = asker.fitted
    rest = fitted.backbone.digest, fitted.known.templates, fitted.temperature
    found = hashlib.sha256(repr(rest).encode())
    for name, tensor in sorted(fitted.tensors.items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


class Answering:
    """An actor of Ray Data: turns a batch of names into lines of JSON, each an answer or a bad
    image."""

    def __init__(self, model: Model, words: Mapping[str, bool], home: Path, threads: float) -> None:
        self.words, node = words, settle(home, threads)
        self.asker: Asker | None = None
        try:
            self.asker = model.asker()
        except UserError as error:  # returned as a row: Ray would restart a failing actor for ever
            self.complaint = (
                f"node {node}: {error}; every node needs the run and the images at the same path"
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        if self.asker is None:
            return {"line": [json.dumps({"complaint": self.complaint})]}
        names, bad = [Path(name) for name in batch["image"]], list[tuple[Path, str]]()
        with tempfile.TemporaryDirectory() as folder:
            given, broken = unpacked_rows(names, Path(folder), bad), list[tuple[Path, str]]()
            name_of = dict(given)
            lines = [
                {**asdict(answer), "image": str(name_of[answer.image])}
                for some in self.asker.ask([file for file, _ in given], bad=broken, **self.words)
                for answer in some
            ]
        bad += [
            (name_of[file], text.replace(str(file), str(name_of[file]))) for file, text in broken
        ]
        lines += [{"image": str(name), "bad": text} for name, text in bad]
        return {"line": [json.dumps(line) for line in lines]}


@dataclass(frozen=True)
class Cluster:
    """Stands in for an `Asker`, with the same `ask`. address: as in `connected`."""

    model: Model
    jobs: int = 1
    address: str = ""

    def ask(
        self, images: Sequence[Path], zero_shot: bool = False, bad: list[tuple[Path, str]] | None = None,
        unfamiliar: bool = False,
    ) -> Iterator[list[Answer]]:  # fmt: skip
        """As `Asker.ask`. Also raises UserError if a node lacks the run or has a different one."""
        if not images:
            return
        import pyarrow

        ray = ray_module()
        with connected(self.address):
            context = ray.data.DataContext.get_current()
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised anyway
            context.execution_options.preserve_order = True
            context.enable_progress_bars = False
            own, words = shares(self.jobs), {"zero_shot": zero_shot, "unfamiliar": unfamiliar}
            size = min(
                CHUNK, -(-len(images) // (self.jobs * BATCH)) * BATCH
            )  # every worker gets some, even of few
            parts = [images[start : start + size] for start in range(0, len(images), size)]
            blocks = [pyarrow.table({"image": [str(image) for image in part]}) for part in parts]
            answered = ray.data.from_arrow(blocks).map_batches(
                Answering, fn_constructor_args=(self.model, words, Path.cwd(), own["num_cpus"]), batch_size=size,
                compute=ray.data.ActorPoolStrategy(size=min(self.jobs, len(blocks))), zero_copy_batch=True, **own,
            )  # fmt: skip
            for block in answered.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=1
            ):
                yield list(_answers([json.loads(line) for line in block["line"].to_pylist()], bad))


def cluster(
    asker: Asker, run: Path, backbone: str | None, method: str, jobs: int, address: str
) -> Cluster:
    """A `Cluster` that answers like `asker`, which was loaded with this run, backbone and method."""
    model = Model(
        run.absolute(), backbone, method, asker.names, tuple(asker.labels), asker.top, digest(asker)
    )
    return Cluster(model, jobs, address)


def _answers(
    lines: Sequence[dict[str, Any]], bad: list[tuple[Path, str]] | None
) -> Iterator[Answer]:
    for line in lines:
        if "complaint" in line:
            raise UserError(line["complaint"])
        image = Path(line.pop("image"))
        if "bad" not in line:
            best = tuple((label, share) for label, share in line.pop("best"))
            yield Answer(image, best, **{**line, "labels": tuple(line["labels"])})
        elif bad is None:
            raise UserError(f"{line['bad']}; {WAY_OUT}")
        else:
            bad.append((image, line["bad"]))
