"""An exported model without torch: the same tensors, bit for bit, and the same command line."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rmadapter.answers import decider as files
from rmadapter.answers.sets import Calibration
from rmadapter.artifacts.checkpoint import Saved
from rmadapter.backbones import Backbone
from rmadapter.data.read import load_image
from rmadapter.errors import UserError
from rmadapter.export import runtime
from rmadapter.export.engines import (
    GRAPH,
    LITERT,
    OPENVINO,
    PROVIDERS,
    parse_outputs,
    providers,
)
from rmadapter.export.folder import export, transform_facts
from rmadapter.export.onefile import one_file
from rmadapter.export.runtime import Model, Transform
from rmadapter.export.targets import ExportOptions
from rmadapter.export.text_classes import TextClasses
from tests.helpers.exports import write_export, write_graph

LABELS = ["red", "=green", "3"]
SIZES = [(32, 32), (33, 32), (31, 47), (200, 33), (64, 500), (7, 5), (1, 40), (1001, 777)]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    )


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
def test_the_same_tensors_bit_for_bit(
    tiny_clip: Backbone, resize: str, interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    visual: Any = tiny_clip.model.visual
    ways = {"resize_mode": resize, "interpolation": interpolation, "fill_color": 7}
    config = {**visual.preprocess_cfg, **ways}
    theirs = image_transform_v2(PreprocessCfg(**config), is_train=False)
    monkeypatch.setattr(visual, "preprocess_cfg", config)
    facts = json.dumps(transform_facts(replace(tiny_clip, preprocess=theirs)))
    ours = Transform(**json.loads(facts))
    for size in SIZES:
        image = noise(*size)
        tensor = ours(image)
        assert tensor.dtype == np.float32
        assert np.array_equal(tensor, theirs(image).numpy()), size


def test_pocket_and_photographs_of_all_turns(pocket: Backbone, tmp_path: Path) -> None:
    ours = Transform(**transform_facts(pocket))
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        noise(150, 70 + turn).save(tmp_path / f"{turn}.jpg", exif=exif)
        image = load_image(tmp_path / f"{turn}.jpg")
        assert np.array_equal(ours(image), pocket.preprocess(image).numpy())


@pytest.mark.parametrize("size", [0, 4097, 10**6, 10**400, "8", True, None])
def test_sizes_that_no_export_has(size: Any) -> None:
    with pytest.raises(ValueError, match="size"):
        Transform(size, "squash", "bicubic", [0] * 3, [1] * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export made by hand: its probabilities are a softmax of the mean of each colour."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
    return write_export(tmp_path_factory.mktemp("by hand"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, color in enumerate(["#ff0000", "#00ff00", "#0000ff"] * 12):
        Image.new("RGB", (20, 10 + number), color).save(tmp_path / f"{number:02}.png")
    return tmp_path


def test_answers_in_order(folder: Path, images: Path) -> None:
    files = sorted(images.iterdir())
    kinds = [files[0], Image.open(files[1]), np.asarray(Image.open(files[2]))]
    answers = Model(folder).predict(kinds, top=2)
    highest = round(float(np.exp(1) / (np.exp(1) + 2)), 6)
    assert [answer[0] for answer in answers] == [(name, highest) for name in LABELS]
    assert all(len(answer) == 2 for answer in answers)
    assert [row[0][0] for row in Model(folder).predict(files)] == LABELS * 12
    with pytest.raises(UserError, match="--embeddings"):
        Model(folder).embed(files)


def test_a_bad_image(folder: Path, images: Path) -> None:
    (images / "05.png").write_bytes(b"no image")
    files, bad = sorted(images.iterdir()), list[str]()
    with pytest.raises(UserError, match=r"05\.png: not an image"):
        Model(folder).predict(files)
    kept = [image for some, _ in Model(folder).outputs(files, bad) for image in some]
    assert kept == [file for file in files if file.name != "05.png"]
    assert len(bad) == 1


def test_a_damaged_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not an exported model; model\.onnx"):
        Model(tmp_path)
    for name in (GRAPH, runtime.LABELS, runtime.TRANSFORM):
        copy = tmp_path / name.replace(".", "-")
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        (copy / name).write_bytes(b"\x00nonsense")
        with pytest.raises(UserError, match=f"{copy.name}: damaged|{name}: not readable"):
            Model(copy)


def make_pipe(file: Path) -> None:
    os.mkfifo(file)


def link_to_zero(file: Path) -> None:
    file.symlink_to("/dev/zero")


def link_to_nothing(file: Path) -> None:
    file.symlink_to("missing")


def write_a_sparse_file(file: Path) -> None:
    with open(file, "wb") as content:
        content.truncate(2**40)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
@pytest.mark.parametrize("make", [make_pipe, link_to_zero, link_to_nothing, write_a_sparse_file])
@pytest.mark.parametrize(
    "name",
    [runtime.LABELS, runtime.TRANSFORM, files.CALIBRATION, files.FAMILIARITY, files.TAXONOMY],
)
def test_files_without_an_end_are_refused_at_once(
    folder: Path, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / name).unlink(missing_ok=True)
    make(copy / name)
    with pytest.raises(UserError, match=name):
        Model(copy)


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize("name", ["model.onnx.data", "text.onnx", "tokenizer.json", "weights.npy"])
def test_a_pipe_in_the_place_of_what_an_engine_opens_is_refused(
    folder: Path, tmp_path: Path, name: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    make_pipe(copy / name)
    with pytest.raises(UserError, match=name):
        Model(copy)


def test_an_export_may_be_made_of_links_as_in_the_cache_of_a_hub(
    folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert Model(tmp_path).labels == LABELS


def test_no_image_is_made_of_a_size_that_the_graph_does_not_take(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    facts = json.loads((copy / runtime.TRANSFORM).read_text())
    (copy / runtime.TRANSFORM).write_text(json.dumps({**facts, "size": 4096}))
    monkeypatch.setattr(Transform, "__call__", None)
    with pytest.raises(UserError, match=r"images of 4096 pixels for a graph that takes 8"):
        Model(copy)


UNFIT: dict[str, tuple[str, object]] = {
    "a text of labels": (runtime.LABELS, "abc"),
    "labels with numbers": (runtime.LABELS, {"a": 0, "b": 1, "c": 2}),
    "a label twice": (runtime.LABELS, ["a", "b", "a"]),
    "a number and its text": (runtime.LABELS, ["a", 3, "3"]),
    "a missing label": (runtime.LABELS, ["a", "b", None]),
    "a list as a label": (runtime.LABELS, ["a", "b", []]),
    "a truth as a label": (runtime.LABELS, ["a", "b", True]),
    "an empty label": (runtime.LABELS, ["a", "b", " "]),
    "a long label": (runtime.LABELS, ["a", "b", "c" * 1001]),
    "a label that is no text": (runtime.LABELS, ["a", "b", "\ud800"]),
    "too many labels": (runtime.LABELS, [*"abcd"]),
    "too few labels": (runtime.LABELS, [*"ab"]),
    "another size": (runtime.TRANSFORM, {"size": 16}),
    "no size": (runtime.TRANSFORM, {"size": 0}),
    "a negative size": (runtime.TRANSFORM, {"size": -8}),
    "a text of a size": (runtime.TRANSFORM, {"size": "8"}),
    "a size that is no whole number": (runtime.TRANSFORM, {"size": 8.0}),
    "a bright fill": (runtime.TRANSFORM, {"fill": 256}),
    "a dark fill": (runtime.TRANSFORM, {"fill": -1}),
    "a fill of True": (runtime.TRANSFORM, {"fill": True}),
    "two means": (runtime.TRANSFORM, {"mean": [0, 0]}),
    "no mean": (runtime.TRANSFORM, {"mean": [0, float("nan"), 0]}),
    "no deviation": (runtime.TRANSFORM, {"std": [1, 0, 1]}),
    "another resize": (runtime.TRANSFORM, {"resize": "crop"}),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_files_that_do_not_fit_together(folder: Path, tmp_path: Path, kind: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    name, changes = UNFIT[kind]
    if name == runtime.TRANSFORM:
        assert isinstance(changes, dict)
        changes = {**json.loads((copy / name).read_text()), **changes}
    (copy / name).write_text(json.dumps(changes))
    with pytest.raises(UserError, match="copy: damaged"):
        Model(copy)


@pytest.mark.parametrize(
    ("last", "factor"),
    [("", float("nan")), ("", float("inf")), ("", 100.0), ("Neg", 1.0), ("Log", 1.0)],
)
def test_a_graph_whose_numbers_are_no_probabilities_is_refused(
    folder: Path, tmp_path: Path, last: str, factor: float
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    write_graph(copy / GRAPH, last, factor)
    with pytest.raises(UserError, match=r"copy: .*no probabilities"):
        Model(copy)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:divide")
@pytest.mark.parametrize("changes", [{"std": [1e-45] * 3}, {"mean": [3e38] * 3, "std": [1e-3] * 3}])
def test_a_transform_that_overflows_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    facts = json.loads((copy / runtime.TRANSFORM).read_text())
    (copy / runtime.TRANSFORM).write_text(json.dumps({**facts, **changes}))
    with pytest.raises(UserError, match=r"copy: .*no probabilities"):
        Model(copy)


def test_an_answer_that_is_no_probability_is_refused_later_too(folder: Path) -> None:
    """As where 16 bits are too few for one image."""
    pixels = np.zeros((2, 3, 8, 8), np.float32)
    model = Model(folder)
    assert model.probabilities(pixels).shape == (2, 3)
    pixels[1, 0] = np.inf
    with pytest.raises(UserError, match="no probabilities"):
        model.probabilities(pixels)


@pytest.mark.ci
def test_no_images(folder: Path, with_text: Path) -> None:
    model = Model(folder)
    assert model.predict([]) == []
    assert model.probabilities(model.pixels([])).shape == (0, 3)
    with pytest.raises(UserError, match="--embeddings"):
        model.embed([])
    model = Model(with_text)
    assert model.embed([]).shape == (0, model.embed([noise(9, 9)]).shape[1])
    model.add_class("violet")
    assert model.probabilities(model.pixels([])).shape == (0, 5)


@pytest.mark.ci
def test_the_command_line(folder: Path, images: Path) -> None:
    code = one_file(runtime.__name__, "tested")
    (folder / "predict.py").write_text(code, encoding="utf-8")

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(folder / "predict.py"), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")

    done = call(images, "--top", 2)
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert header == "image,label,probability,guess,label_2,probability_2,unsure"
    # no formula for a spreadsheet
    assert lines[1].startswith(f"{images / '01.png'},'=green,0.576117,'=green,")
    assert len(lines) == 36
    (images / "bad.png").write_bytes(b"no image")
    done = call(images)
    assert done.returncode == 2
    assert done.stderr == f"predict.py: {images / 'bad.png'}: not an image in a supported format\n"
    done = call(images, "--skip-bad")
    assert done.returncode == 0
    assert done.stderr.startswith("left out: ")
    assert call(images / "none").returncode == 2
    done = call(images / "01.png", "--top", 2, "--device", "cpu")
    assert done.stdout.splitlines()[1] == lines[1]
    done = call(images / "01.png", "--device", "gpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("predict.py: --device gpu: write cpu, cuda, tensorrt, openvino")


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_the_file_of_an_export_reads_no_pipe(folder: Path, images: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "predict.py").write_text(one_file(runtime.__name__, "tested"), encoding="utf-8")
    (copy / runtime.LABELS).unlink()
    make_pipe(copy / runtime.LABELS)
    command = [sys.executable, str(copy / "predict.py"), str(images)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert runtime.LABELS in done.stderr


# Devices


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt", "tensorrt:0", "openvino"])
def test_a_device_whose_provider_is_not_installed(folder: Path, device: str) -> None:
    import onnxruntime

    provider, package = PROVIDERS[device.partition(":")[0]]
    if provider in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has {provider}")
    with pytest.raises(UserError, match=f"--device {device}: .* {provider}; install {package} "):
        Model(folder, device=device)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_device_whose_provider_does_not_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An onnxruntime that names the provider and goes on without it."""
    import onnxruntime

    if "OpenVINOExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has OpenVINO")
    names = [provider for provider, _ in PROVIDERS.values()]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    with pytest.raises(UserError, match=r"--device openvino: .*cannot start"):
        Model(folder, device="openvino")
    assert Model(folder, device="cpu").labels == LABELS


def test_providers_of_a_device() -> None:
    every = [provider for provider, _ in PROVIDERS.values()]
    cuda, tensorrt = PROVIDERS["cuda"][0], PROVIDERS["tensorrt"][0]
    assert providers("cpu", every) == ["CPUExecutionProvider"]
    assert providers("openvino", every) == ["OpenVINOExecutionProvider"]
    assert providers("cuda:2", every) == [(cuda, {"device_id": "2"})]
    assert providers("tensorrt", every) == [
        (tensorrt, {"device_id": "0"}),
        (cuda, {"device_id": "0"}),
    ]
    assert providers("tensorrt", [tensorrt]) == [(tensorrt, {"device_id": "0"})]
    for wrong in ("", "gpu", "cuda:", "cuda:x", "cpu:1", "openvino:0", "CUDA"):
        with pytest.raises(UserError, match=f"--device {wrong}: write cpu"):
            providers(wrong, every)


@pytest.mark.parametrize("name", [OPENVINO, LITERT])
def test_other_engines_have_no_choice_of_devices(folder: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / GRAPH).rename(copy / name)
    with pytest.raises(UserError, match=f"--device cuda: .* {name} is for another engine"):
        Model(copy, device="cuda")


def test_as_many_threads_decode_as_there_are_cores(
    folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rmadapter.data import image_set, transforms

    asked = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, threads: int) -> None:
            asked.append(threads)
            super().__init__(1)

    for module in (runtime, transforms, image_set):
        monkeypatch.setattr(module, "cores", lambda: 21)
        monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    files = sorted(images.iterdir())[:2]
    assert len(Model(folder).predict(files)) == 2
    assert len(list(transforms.decode_batches(files, lambda _: torch.zeros(1), 2))) == 1
    assert image_set.in_threads(len, ["a", "bc"], "", False) == [1, 2]
    assert asked == [21, 21, 21]


# A promised error


@pytest.fixture
def promising(folder: Path, tmp_path: Path) -> Path:
    """An export with a calibration: at 40 %, what has a probability of 0.3 is in the sets."""
    copy = Path(shutil.copytree(folder, tmp_path / "promising"))
    calibration = Calibration((0.3, 0.4, 0.5, 0.6, 0.7), (0, 0, 1, 1, 2), 3, "folds")
    (copy / files.CALIBRATION).write_text(json.dumps(calibration.json()))
    return copy


@pytest.mark.ci
def test_sets_of_an_export(promising: Path, folder: Path, tmp_path: Path) -> None:
    red, yellow = tmp_path / "red.png", tmp_path / "yellow.png"
    Image.new("RGB", (9, 9), "#ff0000").save(red)
    Image.new("RGB", (9, 9), "#ffff00").save(yellow)
    model = Model(promising)
    assert model.predict_set([red, yellow], error=0.4) == [["red"], ["red", "=green"]]
    with pytest.raises(UserError, match="needs 45 images"):
        model.predict_set([red])
    with pytest.raises(UserError, match="more than 0"):
        model.predict_set([red], error=0)
    with pytest.raises(UserError, match="--folds 4"):
        Model(folder).predict_set([red], error=0.4)
    limits = model.decider.with_label("added").at(error=0.4).limits
    assert limits is not None
    assert limits.tolist() == [0.3] * 4
    code = one_file(runtime.__name__, "tested")
    (promising / "predict.py").write_text(code, encoding="utf-8")

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, promising / "predict.py", red, yellow, *words]
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, encoding="utf-8"
        )

    done = call("--error", "40%", "--top", 1)
    assert "at most 40 % of images like these 5 training images" in done.stderr
    assert done.stdout.splitlines() == [
        "image,label,probability,guess,unsure,set,decision",
        f'{red},red,0.576117,red,false,"[""red""]",answer',
        f'{yellow},unsure,0.422319,red,true,"[""red"", ""=green""]",unsure',
    ]
    assert "8 bits" not in done.stderr
    (promising / "export.json").write_text('{"precision": "int8"}')
    assert "before it was put into 8 bits; README.md" in call("--error", "40%").stderr
    for word in ("x", "5%", "-1", "100%"):
        done = call("--error", word)
        assert done.returncode == 2
        assert "%" in done.stderr
    assert call("--error", "0").stdout.startswith("image,label,probability,guess,label_2")
    (promising / runtime.LABELS).write_text(json.dumps(["red", "unsure", "blue"]))
    assert "leave out --error" in call("--error", "40%").stderr


SOUND = Calibration((0.25, 0.5), (0, 2), 3, "folds").json()
BROKEN: dict[str, object] = {
    "a list": [1],
    "null": None,
    "a field less": {name: SOUND[name] for name in ("shares", "classes", "known")},
    "a field more": {**SOUND, "more": 1},
    "texts": {**SOUND, "shares": ["0.1", "0.2"]},
    "booleans": {**SOUND, "shares": [False, True]},
    "lists in a list": {**SOUND, "shares": [[0.1], [0.2]]},
    "no list": {**SOUND, "shares": 0.5},
    "half a class": {**SOUND, "classes": [0, 1.5]},
    "not a number": {**SOUND, "shares": [0.1, float("nan")]},
    "nan between": {**SOUND, "shares": [0.1, float("nan"), 0.5], "classes": [0, 1, 2]},
    "infinity": {**SOUND, "shares": [0.1, float("inf")]},
    "a large number": {**SOUND, "shares": [0, 10**4000]},
    "a descent": {**SOUND, "shares": [0.5, 0.25]},
    "no images": {**SOUND, "shares": [], "classes": []},
    "too many": {**SOUND, "shares": [0.5] * 10_001, "classes": [0] * 10_001},
    "more classes": {**SOUND, "known": 4},
    "very many classes": {**SOUND, "known": 10**15, "classes": [0, 10**14]},
    "a class too far": {**SOUND, "classes": [0, 3]},
    "another source": {**SOUND, "source": ["folds"]},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_damaged_calibrations(promising: Path, kind: str) -> None:
    file = promising / files.CALIBRATION
    file.write_text(json.dumps(BROKEN[kind]))
    with pytest.raises(UserError, match=re.escape(str(file))):
        Model(promising)


def test_calibrations_that_are_no_files(promising: Path) -> None:
    file = promising / files.CALIBRATION
    for content in (b"", b"{", b"[" * 100_000, b"\xff", b"0" * files.MAX_BYTES + b"1"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=re.escape(str(file))):
            Model(promising)
    file.unlink()
    file.symlink_to(promising / "nothing")
    with pytest.raises(UserError, match=re.escape(str(file))):
        Model(promising)


# None of these


OWN: dict[str, object] = {"sure": [0.9, 1], "distances": [0.1, 0], "source": "folds", "known": 3}
FOREIGN: dict[str, object] = {
    "a list": [1],
    "null": None,
    "a field less": {name: OWN[name] for name in ("sure", "distances", "source")},
    "a field more": {**OWN, "more": 1},
    "texts": {**OWN, "sure": ["0.1", "0.2"]},
    "booleans": {**OWN, "sure": [False, True]},
    "lists in a list": {**OWN, "distances": [[0.1], [0.2]]},
    "no list": {**OWN, "distances": 0.5},
    "not a number": {**OWN, "distances": [0.1, float("nan")]},
    "infinity": {**OWN, "distances": [0.1, float("inf")]},
    "a large number": {**OWN, "sure": [0, 10**4000]},
    "fewer distances": {**OWN, "distances": [0.1]},
    "no images": {**OWN, "sure": [], "distances": []},
    "too many": {**OWN, "sure": [0.5] * 10_001, "distances": [0] * 10_001},
    "more classes": {**OWN, "known": 4},
    "no classes": {**OWN, "known": 0},
    "half a class": {**OWN, "known": 1.5},
    "another source": {**OWN, "source": ["folds"]},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_damaged_familiarities(folder: Path, kind: str, tmp_path: Path) -> None:
    file = Path(shutil.copytree(folder, tmp_path / "copy")) / files.FAMILIARITY
    file.write_text(json.dumps(FOREIGN[kind]))
    with pytest.raises(UserError, match=re.escape(str(file))):
        Model(file.parent)


def test_familiarities_that_are_no_files(folder: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(folder, tmp_path / "copy")) / files.FAMILIARITY
    for content in (b"", b"{", b"[" * 100_000, b"\xff", b"0" * files.MAX_BYTES + b"1"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=re.escape(str(file))):
            Model(file.parent)
    file.unlink()
    file.symlink_to(folder / "nothing")
    with pytest.raises(UserError, match=re.escape(str(file))):
        Model(file.parent)


def test_a_graph_without_distances(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    own = {**OWN, "sure": [0.9] * 22, "distances": [0.1] * 22}
    (copy / files.FAMILIARITY).write_text(json.dumps(own))
    with pytest.raises(UserError, match="export the run again"):
        Model(copy).is_familiar([noise(9, 9)], turn_away=0.1)


def test_outputs_are_parse_outputs() -> None:
    table, features, distances = np.ones((3, 2)), np.ones((3, 5)), np.ones(3)
    assert parse_outputs([table]) == (table, None, None)
    assert parse_outputs([table, features]) == (table, features, None)
    assert parse_outputs([table, distances]) == (table, None, distances)
    assert parse_outputs([table, features, distances]) == (table, features, distances)


# Classes added by name


def test_without_a_text_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--text"):
        TextClasses(tmp_path)


@pytest.fixture(scope="session")
def with_text(finished: Path, saved: Saved, colors: Path, tmp_path_factory: Any) -> Path:
    """An export to which classes can be added."""
    for needed in ("onnxruntime", "onnxscript"):
        pytest.importorskip(needed, reason="pip install 'rmadapter[export]'")
    out = tmp_path_factory.mktemp("text") / "model"
    export(finished, saved, out, ExportOptions(text=True), data=colors)
    return out


class Opens:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("ran", "w")


def numbers(header: str) -> bytes:
    data = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data


DAMAGED: dict[str, tuple[str, bytes]] = {
    "a pickle": ("weights.npy", pickle.dumps(Opens())),
    "code": ("weights.npy", numbers("{'descr': open('ran', 'w'), 'shape': (1,)}")),
    "40 terabytes": (
        "weights.npy",
        numbers("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }"),
    ),
    "a long header": ("weights.npy", numbers("(" * 20_000)),
    "no JSON": ("prompts.json", b"{"),
    "no templates": ("prompts.json", b'{"scale": 1}'),
    "no tokenizer": ("tokenizer.json", b"{}"),
    "no graph": ("text.onnx", b"x"),
    "no scale": ("prompts.json", b'{"templates": ["{}"], "scale": NaN}'),
    "another number of templates": ("prompts.json", b'{"templates": ["{}", "my {}"]}'),
    "a text of templates": ("prompts.json", b'{"templates": "{}"}'),
    "1,001 templates": ("prompts.json", json.dumps({"templates": ["{}"] * 1001}).encode()),
    "a long template": ("prompts.json", json.dumps({"templates": ["{}" * 501]}).encode()),
}


@pytest.mark.ci
@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_of_the_text_encoder(
    with_text: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(with_text, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    name, content = DAMAGED[kind]
    if b'"templates"' in content:
        content = content.replace(b"{", b'{"scale": 1, ', 1)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(folder))):
        TextClasses(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.ci
@pytest.mark.parametrize("shape", [(4, 3), (3, 40), (5, 40), (160,)])
def test_class_features_that_do_not_fit(
    with_text: Path, shape: tuple[int, ...], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(with_text, tmp_path / "model"))
    (folder / "SHA256SUMS").unlink()
    assert np.load(folder / "weights.npy").shape == (4, 40)
    model = Model(folder)
    for weights in (np.ones(shape, np.float32), np.full((4, 40), np.inf, np.float32)):
        np.save(folder / "weights.npy", weights)
        with pytest.raises(UserError, match=r"model.*: damaged"):
            model.add_class("violet")
        assert len(model.labels) == 4


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("Night-Sky", "already exists"),
        ("The dark", "already exists"),
        ("_", "give one name"),
        ("crane | tall bird", "give one name"),
    ],
)
def test_refused_class_names(label: str, message: str) -> None:
    classes, labels = TextClasses.__new__(TextClasses), ["night_sky", "red"]
    classes.weights, classes.names = np.zeros((2, 3), np.float32), ["the dark", "red"]
    with pytest.raises(UserError, match=message):
        classes.add(label, labels)
    assert classes.weights.shape == (2, 3)


def test_class_names_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    classes, labels = TextClasses.__new__(TextClasses), ["red"]
    classes.weights, classes.names = np.zeros((1, 3), np.float32), ["red"]
    monkeypatch.setattr(classes, "tokens", lambda name: np.zeros((1, 1)))
    classes._session = SimpleNamespace(run=lambda *_: [np.ones((1, 3), np.float32)])
    classes.add("Other", labels)
    classes.add("sea-horse", [*labels, "Other"])
    assert classes.names == ["red", "something else", "sea horse"]
    with pytest.raises(UserError, match="already exists"):
        classes.add("none", [*labels, "Other", "sea-horse"])


# Engines


def test_litert(finished: Path, saved: Saved, colors: Path, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="pip install 'rmadapter[litert]'")
    facts = export(finished, saved, tmp_path / "model", ExportOptions("litert"), data=colors)
    assert facts["files"] == ["model.tflite"]
    assert facts["parity"]["same"] == 1
    assert facts["parity"]["difference"] <= 1e-4
