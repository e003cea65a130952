"""`predict --ray`: the same answers from the workers of a cluster.

A worker keeps the run loaded, decodes and encodes images like the local engine, and needs the run
and the images at the same path. Answers come back in order and are written by this process, so a
stopped command resumes like a local one.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rmadapter.answers.answer import Answer
from rmadapter.data.image_set import SKIP_BAD
from rmadapter.errors import UserError
from rmadapter.predict.parquet import unpacked_rows
from rmadapter.predict.stream import BadImages, Predictor
from rmadapter.support.cluster import run_on_cluster
from rmadapter.training.cache import BATCH_SIZE
from rmadapter.training.contract import Fitted

IMAGES_PER_TASK = 8 * BATCH_SIZE  # most images given to a worker at once, and repeated if it dies


@dataclass(frozen=True)
class RayModel:
    """What every worker loads.

    Attributes:
        run: Folder of the run.
        backbone: Backbone, as for `checkpoint.load`.
        method: Method from outside, as for `checkpoint.load`.
        answering: Makes a predictor of the run's model.
        digest: Digest that the predictor must have.
    """

    run: Path
    backbone: str | None
    method: str
    answering: Callable[[Fitted], Predictor]
    digest: str

    def load(self) -> Predictor:
        """Load the run. Raises UserError as `checkpoint.load`, and for a different model."""
        from rmadapter.artifacts.checkpoint import load

        predictor = self.answering(load(self.run, self.backbone, method=self.method).fitted)
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


class PredictWorker:
    """Answers images on a node.

    Args:
        model: What it loads. Raises UserError as `RayModel.load`.
        options: What is reported of each image, as for `Predictor.predict`.
    """

    def __init__(self, model: RayModel, options: Mapping[str, bool]) -> None:
        self.predictor, self.options = model.load(), options

    def do(self, work: Sequence[Path]) -> tuple[list[Answer], BadImages]:
        """Return the answers in order, and the unreadable images."""
        bad: BadImages = []
        unreadable: BadImages = []
        with tempfile.TemporaryDirectory() as folder:
            files = unpacked_rows(work, Path(folder), bad)
            name_of = dict(files)
            images = [file for file, _ in files]
            batches = self.predictor.predict(images, bad=unreadable, **self.options)
            answers = [
                replace(answer, image=name_of[answer.image])
                for batch in batches
                for answer in batch
            ]
        for file, text in unreadable:
            bad.append((name_of[file], text.replace(str(file), str(name_of[file]))))
        return answers, bad


@dataclass(frozen=True)
class Cluster:
    """A `Predictor` whose work is done by a cluster.

    Attributes:
        model: What every worker loads.
        jobs: Number of workers.
        address: Address of the cluster, as for `connected`.
    """

    model: RayModel
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
        # every worker gets some, even of few
        size = min(IMAGES_PER_TASK, -(-len(images) // (self.jobs * BATCH_SIZE)) * BATCH_SIZE)
        starts = range(0, len(images), size)
        options = {"zero_shot": zero_shot, "unfamiliar": unfamiliar}
        found = run_on_cluster(
            partial(PredictWorker, self.model, options),
            starts,
            self.jobs,
            "auto",
            self.address,
            send=lambda start: images[start : start + size],
        )
        done: dict[int, tuple[list[Answer], BadImages]] = {}
        following = 0  # of the images, the first that has no answer yet
        for result in found:
            if result:
                start, answered = result
                done[start] = answered
            while following in done:
                answers, unreadable = done.pop(following)
                if unreadable and bad is None:
                    raise UserError(f"{unreadable[0][1]}; {SKIP_BAD}")
                if bad is not None:
                    bad += unreadable
                following += size
                yield answers


def cluster(
    predictor: Predictor, run: Path, backbone: str | None, method: str, jobs: int, address: str
) -> Cluster:
    """Return a cluster that answers like a predictor, which was loaded with this run, backbone and
    method."""
    decider = predictor.decider
    answering = partial(
        Predictor,
        names=predictor.names,
        labels=decider.labels,
        top=predictor.top,
        error=decider.error,
        reject_rate=decider.reject_rate,
        tree=decider.tree,
    )
    model = RayModel(run.absolute(), backbone, method, answering, digest(predictor))
    return Cluster(model, jobs, address)
