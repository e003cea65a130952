"""Export a run to a folder that answers without this package, written whole or not at all."""

from __future__ import annotations

from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from rmadapter.answers.decider import CALIBRATION, FAMILIARITY, TAXONOMY, write_decider
from rmadapter.answers.held_out import HeldOutFacts, describe_images, least_share
from rmadapter.artifacts.checkpoint import Saved
from rmadapter.artifacts.record import BackboneName, MethodName, Record, read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone
from rmadapter.backbones.published import caveat, licence_of
from rmadapter.errors import UserError
from rmadapter.export import FACTS, graph, parity, web
from rmadapter.export.engines import GRAPH, LITERT, OPENVINO
from rmadapter.export.hub import README, anonymise_command, anonymise_names
from rmadapter.export.onefile import one_file
from rmadapter.export.runtime import LABELS, TRANSFORM, Model
from rmadapter.export.targets import DEFAULTS, TARGETS, ExportOptions, check_options
from rmadapter.support.files import JsonObject, sha256, write_json, write_sums, write_text
from rmadapter.support.html import template
from rmadapter.support.locks import staged_folder
from rmadapter.support.machine import version_of, versions
from rmadapter.support.terminal import note
from rmadapter.training.contract import NotApplicable

PREDICT, REQUIREMENTS = "predict.py", "requirements.txt"
TEXT_REQUIREMENTS = "tokenizers>=0.20\nftfy>=6.1\n"
MAX_IMAGES = 200  # images to compare on
MAX_IMAGES_INT8 = 1000  # half a point of accuracy is five of them


ExportFacts = TypedDict(
    "ExportFacts",
    {
        "format": int,
        "to": str,
        "precision": str,
        "opset": int | None,
        "embeddings": bool,
        "text": bool,
        "files": list[str],
        "bytes": int,
        "sha256": str,
        "method": dict[str, str],
        "backbone": dict[str, str],
        "classes": int,
        "licence of the weights": str,
        "run": dict[str, str] | None,
        "parity": JsonObject,  # of a `Parity`
        "calibration": HeldOutFacts | None,
        "broken promises": list[str],
        "familiarity": HeldOutFacts | None,
        "levels": list[str],
        "kept in spite of": str,
        "versions": dict[str, str],
        "command": str,
    },
)
ExportFacts.__doc__ = "The contents of export.json."


def export(
    run: Path,
    saved: Saved,
    out: Path,
    options: ExportOptions = DEFAULTS,
    *,
    data: Path | None = None,
    outside: bool = False,
    command: str = "",
) -> ExportFacts:
    """Export a run to a new folder, which is kept only if the exported model answers images as the
    run does.

    Args:
        run: Folder of the run.
        saved: The run, loaded.
        out: New folder.
        options: What is written.
        data: Images to compare on, as for `compared_images`.
        outside: Whether these may lie outside the folder of `data`.
        command: Command to name in export.json, without folders of this machine.

    Returns:
        The contents of export.json.

    Raises:
        UserError: As `check_options` does, a method that cannot become a graph, a model that
            differs too much, or a disk that refuses.
    """
    check_options(out, options)
    with staged_folder(out) as stage:
        return write_export(stage, run, saved, options, data, outside, command)


def write_export(
    stage: Path,
    run: Path,
    saved: Saved,
    options: ExportOptions,
    data: Path | None = None,
    outside: bool = False,
    command: str = "",
) -> ExportFacts:
    """Export a run to an empty folder. Arguments and errors are those of `export`."""
    version = metadata.version("rmadapter")
    header = f"Written by rmadapter {version} from its own code; MIT licence"
    images = comparison_images(run, saved, data, outside, options.precision)
    facts, record = _write_model(stage, run, saved, images, options)
    facts["command"] = anonymise_command(command)
    write_json(stage / FACTS, facts)
    write_text(stage / PREDICT, one_file("rmadapter.export.runtime", header))
    requirements = TARGETS[options.to].requirements + TEXT_REQUIREMENTS * options.text
    write_text(stage / REQUIREMENTS, requirements)
    write_text(stage / README, readme(facts, record, saved.fitted.backbone.image_size))
    return facts


def comparison_images(
    run: Path, saved: Saved, data: Path | None, outside: bool, precision: str
) -> parity.ComparedImages:
    """Choose images to compare on. Raises UserError if accuracy cannot be compared for int8."""
    most = MAX_IMAGES_INT8 if precision == "int8" else MAX_IMAGES
    images = parity.compared_images(run, saved, data, outside, most)
    if precision == "int8" and not images.labels:
        raise UserError(
            f"{run}: int8 is judged by accuracy, but the run's images are missing; give others "
            "with --data"
        )
    if not images.labels and data is None:
        note(
            "compared on generated images, as the run's data is gone; --data "
            "compares on photographs"
        )
    return images


def _write_graph(stage: Path, run: Path, saved: Saved, options: ExportOptions) -> None:
    to, precision = options.to, options.precision
    fitted, names = saved.fitted, saved.names
    try:
        if to == "litert":
            graph.write_litert(fitted, names, stage / LITERT)
            return
        model = graph.trace(fitted, names, options.features)
    except NotApplicable as error:
        raise UserError(f"{run}: {error}") from None
    if precision == "fp16" and to != "openvino":
        model = graph.in_half(model)
    graph.write(model, stage / GRAPH)
    if precision == "int8":
        from rmadapter.export import int8  # which needs the extra "export"

        pixels = Model(stage).pixels(parity.training_images(run))
        prepare = int8.quantize if to == "onnx" else int8.balance_file  # NNCF does the rest
        prepare(stage / GRAPH, pixels)
    if to == "openvino":
        graph.write_openvino(stage, precision)
    if to == "web":
        web.add_page(stage)


def _write_text_encoder(stage: Path, run: Path, saved: Saved) -> tuple[str, ...]:
    """Write the text encoder; return its files."""
    from rmadapter.export.text_encoder import write_text_encoder  # which needs transformers

    try:
        return write_text_encoder(saved.fitted, saved.names, stage)
    except NotApplicable as error:
        raise UserError(f"{run}: {error}; remove --text") from None


def _write_model(
    stage: Path, run: Path, saved: Saved, images: parity.ComparedImages, options: ExportOptions
) -> tuple[ExportFacts, Record | None]:
    """Write and compare the model; return its part of export.json, and the run's record if there is
    one."""
    # as texts: JavaScript would round large numbers
    write_json(stage / LABELS, [*map(str, saved.labels)])
    write_json(stage / TRANSFORM, transform_facts(saved.fitted.backbone))
    write_decider(stage, saved.decider())
    _write_graph(stage, run, saved, options)
    names = (GRAPH, graph.EXTERNAL_WEIGHTS, OPENVINO, graph.WEIGHTS, LITERT)
    files = [name for name in names if (stage / name).exists()]
    others = _write_text_encoder(stage, run, saved) if options.text else ()
    beside = (LABELS, TRANSFORM, CALIBRATION, FAMILIARITY, TAXONOMY)
    write_sums(stage, (*files, *beside, *others))
    measured = parity.compare(saved, Model(stage), images, options.features, options.text)
    fault = measured.fault(parity.LIMITS[options.precision])
    title = saved.fitted.method.title
    if fault and not options.force:
        raise UserError(f"{title} in {options.precision}: {fault}; --force keeps it anyway")
    file = RunFolder(run).record
    record = read_record(file) if file.is_file() else None
    return _facts(stage, saved, record, options, files, measured, fault), record


def _facts(
    stage: Path,
    saved: Saved,
    record: Record | None,
    options: ExportOptions,
    files: list[str],
    measured: parity.Parity,
    fault: str,
) -> ExportFacts:
    fitted = saved.fitted
    method, backbone = anonymise_names(
        MethodName(name=saved.name, title=fitted.method.title, source=fitted.method.source),
        BackboneName(name=fitted.backbone.name, digest=fitted.backbone.digest),
    )
    decider = saved.decider()
    possible, calibration = decider.possible(), decider.calibration
    return {
        "format": 1,
        "to": options.to,
        "precision": options.precision,
        "opset": None if options.to == "litert" else graph.OPSET,
        "embeddings": options.features,
        "text": options.text,
        "files": files,
        "bytes": sum((stage / name).stat().st_size for name in files),
        "sha256": sha256(stage / files[0]),
        "method": method.model_dump(include={"name", "title", "source"}),
        "backbone": backbone.model_dump(),
        "classes": len(saved.labels),
        "licence of the weights": licence_of(fitted.backbone.name),
        "run": {"key": record.key, "split_digest": record.split_digest} if record else None,
        "parity": asdict(measured),
        "calibration": possible["calibration"],
        "broken promises": calibration.doubts if calibration else [],
        "familiarity": possible["familiarity"],
        "levels": saved.tree.level_names if saved.tree else [],
        "kept in spite of": fault,
        "versions": versions() | {name: version_of(name) for name in TARGETS[options.to].modules},
        "command": "",
    }


def transform_facts(backbone: Backbone) -> dict[str, object]:
    """Return arguments of `runtime.Transform` that describe `backbone.preprocess`."""
    size = {"size": backbone.image_size, "mean": backbone.mean, "std": backbone.std}
    return {**size, **backbone.resizing}


def readme(facts: ExportFacts, record: Record | None, size: int) -> str:
    """Return README.md.

    Args:
        facts: Facts of the export.
        record: Record of the run, if there is one.
        size: Size of an image, in pixels.
    """
    forms = {"openvino": "OpenVINO", "litert": "LiteRT"}
    every = record.scores if record else ()
    text = template("export.md.j2", escape=False).render(
        facts=facts,
        caveat=caveat(facts["backbone"]["name"]),
        form=forms.get(facts["to"], f"ONNX of opset {facts['opset']}"),
        size=size,
        scores=[each for each in every if each.accuracy is not None],
        least=least_share,
        describe=describe_images,
        decisions=(parity.DECISIONS, parity.Parity(**facts["parity"]).decision_rows()),
    )
    return f"{text}\n"
