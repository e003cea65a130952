"""Export a run to a folder that answers without this package, written whole or not at all."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rmadapter.artifacts.checkpoint import Saved
from rmadapter.artifacts.record import BackboneName, MethodName, Record, read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone
from rmadapter.backbones.choice import licence_of
from rmadapter.deploy.export.card import card
from rmadapter.deploy.export.engines import FACTS, GRAPH, LITERT, OPENVINO, TORCH
from rmadapter.deploy.export.onefile import one_file
from rmadapter.deploy.hub.anonymise import bare_command, bare_names
from rmadapter.errors import UserError
from rmadapter.support.checksums import sha256, write_sums
from rmadapter.support.files import check_new, write_json, write_text
from rmadapter.support.locks import staged_folder
from rmadapter.support.machine import version_of, versions
from rmadapter.support.terminal import note
from rmadapter.training.contract import NotApplicable

if TYPE_CHECKING:
    from rmadapter.deploy.export.parity import Questions

README, PREDICT, NEEDS = "README.md", "predict.py", "requirements.txt"
COMMON = "numpy>=1.26\npillow>=12.3\n"


class Target(NamedTuple):
    """precisions: those available. modules: needed to write it. needs: lines of its
    requirements.txt."""

    precisions: tuple[str, ...]
    modules: tuple[str, ...]
    needs: str


ONNX = ("onnx", "onnxruntime", "onnxscript")
TARGETS = {
    "onnx": Target(("fp32", "fp16", "int8"), ONNX, f"{COMMON}onnxruntime>=1.22\n"),
    "web": Target(("fp32", "fp16"), ONNX, f"{COMMON}onnxruntime>=1.22\n"),
    "torch": Target(
        ("fp32",),
        ("torch",),
        f"{COMMON}torch>={'.'.join(metadata.version('torch').split('.')[:2])}\n",
    ),
    "litert": Target(("fp32",), ("litert_torch",), f"{COMMON}ai-edge-litert>=2\n"),
    "openvino": Target(
        ("fp32", "fp16", "bf16", "int8"), (*ONNX, "openvino"), f"{COMMON}openvino>=2025\n"
    ),
}


def check_options(
    out: Path, to: str, precision: str, text: bool = False, embeddings: bool = False
) -> None:
    """Check wishes before slow work. Raises UserError for a folder that exists, bad wishes and
    missing packages."""
    if to not in TARGETS:
        raise UserError(f"--to {to}: choose one of {', '.join(TARGETS)}")
    check_new(out)
    target = TARGETS[to]
    if precision not in target.precisions:
        raise UserError(
            f"--precision {precision}: choose one of {', '.join(target.precisions)} for --to {to}"
        )
    if text and to != "onnx":
        raise UserError("--text only works with --to onnx")
    if embeddings and to == "litert":
        raise UserError("--embeddings does not work with --to litert")
    modules = (*target.modules, *["nncf"] * (to == "openvino" and precision == "int8"))
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        extra = to if to in ("openvino", "litert") else "export"
        raise UserError(
            f"export needs {', '.join(missing)}; run `pip install 'rmadapter[{extra}]'`"
        )


def export(
    run: Path, saved: Saved, out: Path, precision: str = "fp32", data: Path | None = None, *,
    to: str = "onnx", outside: bool = False, force: bool = False, command: str = "", embeddings: bool = False,
    text: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Export a run to a new folder, which is kept only if the exported model answers images as the
    run does.

    to: one of TARGETS. data: images to compare on, as in `questions`. force: keep a model that
    differs by more than its precision allows. embeddings: whether it outputs features, too. text:
    whether classes can be added by name, which implies features. Returns the contents of
    export.json. Raises UserError as `check_options` does, for a method that cannot become a graph,
    for a model that differs too much, and where nothing can be written.
    """
    check_options(out, to, precision, text, embeddings)
    with staged_folder(out) as stage:
        asked = _questions(run, saved, data, outside, precision)
        facts, record = _write_model(
            stage, run, saved, asked, to, precision, force, embeddings or text, text
        )
        facts["command"] = bare_command(command)
        write_json(stage / FACTS, facts)
        write_text(stage / PREDICT, one_file("rmadapter.deploy.export.runtime", _header()))
        write_text(stage / NEEDS, TARGETS[to].needs + "tokenizers>=0.20\nftfy>=6.1\n" * text)
        write_text(stage / README, card(facts, record, saved.fitted.backbone.image_size))
    return facts


def _questions(
    run: Path, saved: Saved, data: Path | None, outside: bool, precision: str
) -> Questions:
    from rmadapter.deploy.export import graph, int8
    from rmadapter.deploy.export.parity import questions

    asked = questions(run, saved, data, outside, int8.ASKED if precision == "int8" else graph.ASKED)
    if precision == "int8" and not asked.labels:
        raise UserError(
            f"{run}: int8 is judged by accuracy, but the run's images are missing; give others with --data"
        )
    if not asked.labels and data is None:
        note(
            "compared on generated images, as the run's data is gone or all trained on; --data compares on photographs"
        )
    return asked


def _write_graph(
    stage: Path, run: Path, saved: Saved, to: str, precision: str, embeddings: bool
) -> list[Any]:
    """Write the graph; returns the rows of the int8 search, if there was one."""
    from rmadapter.deploy.export import graph, int8, web
    from rmadapter.deploy.export.parity import training
    from rmadapter.deploy.export.runtime import Model

    try:
        if to == "torch":
            graph.write_torch(graph.program(saved.fitted, saved.names, embeddings), stage / TORCH)
            return []
        if to == "litert":
            graph.write_litert(saved.fitted, saved.names, stage / LITERT)
            return []
        model = graph.trace(saved.fitted, saved.names, embeddings)
    except NotApplicable as error:
        raise UserError(f"{run}: {error}") from None
    graph.write(
        graph.in_half(model) if precision == "fp16" and to != "openvino" else model, stage / GRAPH
    )
    search = int8.search(stage, training(run)) if precision == "int8" and to == "onnx" else []
    if to == "openvino":
        if precision == "int8":
            int8.make_even(
                stage / GRAPH, stage / GRAPH, Model(stage).pixels(training(run)[: int8.SEEN])
            )
        graph.write_openvino(stage, precision)
    if to == "web":
        web.add_page(stage)
    return search


def write_tower(stage: Path, run: Path, saved: Saved) -> tuple[str, ...]:
    """Write the text encoder; returns its files."""
    from rmadapter.deploy.export.adding import KNOWN, PROMPTS, TOWER, WORDS
    from rmadapter.deploy.export.tower import write_text_encoder

    try:
        write_text_encoder(saved.fitted, saved.names, stage)
    except NotApplicable as error:
        raise UserError(f"{run}: {error}; leave --text out") from None
    return TOWER, WORDS, PROMPTS, KNOWN


def _write_model(
    stage: Path,
    run: Path,
    saved: Saved,
    asked: Questions,
    to: str,
    precision: str,
    force: bool,
    embeddings: bool,
    text: bool,
) -> tuple[dict[str, Any], Record | None]:
    """Write and compare the model; returns its part of export.json, and the run's record if there
    is one."""
    from rmadapter.deploy.export import graph
    from rmadapter.deploy.export.parity import LIMITS, compare
    from rmadapter.deploy.export.runtime import LABELS, TRANSFORM, Model

    write_json(stage / LABELS, [*map(str, saved.labels)])  # JavaScript would round large numbers
    write_json(stage / TRANSFORM, transform_facts(saved.fitted.backbone))
    search = _write_graph(stage, run, saved, to, precision, embeddings)
    files = [
        name
        for name in (GRAPH, graph.BESIDE, OPENVINO, graph.WEIGHTS, TORCH, LITERT)
        if (stage / name).exists()
    ]
    more = write_tower(stage, run, saved) if text else ()
    write_sums(stage, (*files, LABELS, TRANSFORM, *more))
    parity = compare(saved, Model(stage), asked, embeddings, text)
    if (fault := parity.fault(LIMITS[precision])) and not force:
        raise UserError(
            f"{saved.fitted.method.title} in {precision}: {fault}; --force keeps it anyway"
        )
    file = RunFolder(run).record
    record = read_record(file) if file.is_file() else None
    return {
        "format": 1,
        "to": to,
        "precision": precision,
        "opset": None if to in ("torch", "litert") else graph.OPSET,
        "embeddings": embeddings,
        "text": text,
        "files": files,
        "bytes": sum((stage / name).stat().st_size for name in files),
        "sha256": sha256(stage / files[0]),
        **_run_facts(saved, record),
        "parity": parity.json(),
        "kept in spite of": fault,
        "search": search,
        "versions": versions() | {name: version_of(name) for name in TARGETS[to].modules},
    }, record  # fmt: skip


def _header() -> str:
    return f"Written by rmadapter {metadata.version('rmadapter')} from its own code; MIT licence"


def _run_facts(saved: Saved, record: Record | None) -> dict[str, Any]:
    fitted = saved.fitted
    method, backbone = bare_names(
        MethodName(name=saved.name, title=fitted.method.title, source=fitted.method.source),
        BackboneName(name=fitted.backbone.name, digest=fitted.backbone.digest),
    )
    return {
        "method": method.model_dump(include={"name", "title", "source"}),
        "backbone": backbone.model_dump(),
        "classes": len(saved.labels),
        "licence of the weights": licence_of(fitted.backbone.name),
        "run": None if record is None else {"key": record.key, "split_digest": record.split_digest},
    }


def transform_facts(backbone: Backbone) -> dict[str, Any]:
    """Arguments of `runtime.Transform` that describe `backbone.preprocess`."""
    return {
        "size": backbone.image_size,
        "mean": backbone.mean,
        "std": backbone.std,
        **backbone.resizing,
    }
