"""Checkpoints become model folders; nothing in a hostile one runs, and a refused one leaves nothing
behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from filelock import FileLock
from open_clip import factory
from torch import nn

from rmadapter.backbones import load_backbone
from rmadapter.backbones.convert import convert, read_checkpoint
from rmadapter.errors import UserError
from rmadapter.support.files import check_sums
from tests.helpers.shell import Command, refused, rmadapter
from tests.helpers.slow import slow_except

__all__ = ["rmadapter"]  # a fixture

NAME = "tiny-for-tests"
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two of open_clip's for these tests alone, which differ in their activation."""
    folder, names = tmp_path_factory.mktemp("architectures"), (NAME, f"{NAME}-quickgelu")
    for name, quick in zip(names, (False, True), strict=True):
        config = {"embed_dim": 24, "quick_gelu": quick, "vision_cfg": VISION, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in names:
        del factory._MODEL_CONFIGS[name]


def plain(name: str = NAME) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.create_model(name).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def state() -> State:
    return plain().state_dict()


def written(folder: Path, content: Any) -> Path:
    file = folder / "weights.pt"
    torch.save(content, file)
    return file


BOTH = (("teacher", 0), ("student", 1))
MASK = "transformer.resblocks.0.attn_mask"


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": value for name, value in state.items()}


WRAPPED = {
    "plain": lambda state: state,
    "open_clip's trainer": lambda state: {"epoch": 3, "state_dict": prefixed("module", state)},
    "two wrappers": lambda state: {"model": {"state_dict": prefixed("_orig_mod", state)}},
    "a teacher": lambda state: {"teacher": state, "student": {k: v + 1 for k, v in state.items()}},
    "both in one": lambda state: {f"{w}.{k}": v + n for k, v in state.items() for w, n in BOTH},
    "OpenAI's constants": lambda state: {
        **state, "input_resolution": torch.tensor(32), MASK: torch.eye(16)},
    "a number among them": lambda state: {**state, "step": 7},
}  # fmt: skip


@pytest.mark.parametrize("how", slow_except(WRAPPED, "plain"))
def test_a_folder_opens_with_the_same_weights(how: str, state: State, tmp_path: Path) -> None:
    out = tmp_path / "made" / "here"
    file = written(tmp_path, WRAPPED[how](state))
    done = convert(file, NAME, out)
    backbone = load_backbone(str(out))
    found = backbone.model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert done["digest"] == backbone.digest
    assert done["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert done["left_out"] == (["step"] if "number" in how else [])
    check_sums(out, ["open_clip_model.safetensors", "open_clip_config.json"])
    assert [path.name for path in out.parent.iterdir()] == ["here"]


def test_old_files_and_half_precision_are_read(state: State, tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in state.items()}
    torch.save(halves, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    convert(tmp_path / "a.bin", NAME, tmp_path / "out")
    weights = load_backbone(str(tmp_path / "out")).model.state_dict()
    assert all(torch.equal(weights[name], half.float()) for name, half in halves.items())


def test_any_kind_of_numbers_and_views_is_read(tmp_path: Path) -> None:
    numbers = torch.arange(24.0).reshape(4, 6)
    kinds = (torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    weights = {str(kind): (numbers % 2).to(kind) for kind in kinds}
    weights |= {"part": numbers[1:3, ::2], "turned": numbers.T, "one": numbers[2, 3]}
    weights |= {"empty": torch.zeros(0, 3), "parameter": nn.Parameter(torch.ones(2))}
    for zipped in (True, False):
        content = {"state_dict": weights, "epoch": 3, "names": ["a", ("b", 2.5, None)]}
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        tensors, left_out = read_checkpoint(tmp_path / "a.pt")
        assert (tensors.keys(), left_out) == (weights.keys(), [])
        for name, tensor in tensors.items():
            assert tensor.dtype == weights[name].dtype
            assert torch.equal(tensor, weights[name])


WRONG_POSITION = r"positional_embedding \[77, 16\] instead of \[16, 16\]$"
# tensors in place of the model's own, None to leave out all whose names begin so; the message
UNFIT: list[tuple[dict[str, torch.Tensor | None], str]] = [
    ({"ln_final.weight": None, "ln_final.bias": None}, "they lack ln_final.weight, ln_final.bias$"),
    ({"decoder": torch.zeros(1)}, "they also hold decoder$"),
    ({"logit_scale": None}, "they lack logit_scale$"),
    ({"logit_bias": torch.zeros(1)}, ""),  # for which open_clip raises an error of its own
    ({"text_projection": torch.zeros(4, 2)}, r"text_projection \[4, 2\] instead of \[16, 24\]$"),
    ({"text_projection": torch.zeros(24, 16)}, r"size mismatch for text_projection"),  # transposed
    ({"positional_embedding": torch.zeros(16, 20)}, "text pos_embed width changed"),
    ({"positional_embedding": torch.zeros(77, 16)}, WRONG_POSITION),
    ({"visual.positional_embedding": torch.zeros(5, 32)}, r"visual.positional_embedding \[5, 32\]"),
    ({"visual.": None}, r"lack visual\.[\w.]+, visual\.[\w.]+, visual\.[\w.]+ and \d+ more$"),
]


@pytest.mark.parametrize(("tensors", "named"), UNFIT, ids=[named for _, named in UNFIT])
def test_weights_of_another_model_are_refused(
    tensors: Any, named: str, state: State, tmp_path: Path
) -> None:
    removed = tuple(name for name, tensor in tensors.items() if tensor is None)
    weights = {k: v for k, v in {**state, **tensors}.items() if not k.startswith(removed)}
    file = written(tmp_path, weights)
    message = f"weights.pt: these weights do not fit backbone '{NAME}'.*{named}"
    with pytest.raises(UserError, match=message):
        convert(file, NAME, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_arguments_are_checked_before_the_file_is_opened(state: State, tmp_path: Path) -> None:
    file, out = written(tmp_path, state), tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    for named, source, architecture, target, digest in (
        ("use it as it is: --backbone", tmp_path / "a.safetensors", NAME, out, ""),
        ("no.pt: not a checkpoint", tmp_path / "no.pt", NAME, out, ""),
        ("not named like a pickled checkpoint", Path(__file__), NAME, out, ""),
        ("already exists", file, NAME, tmp_path / "full", ""),
        ("not abc", file, NAME, out, "abc"),
        ("open_clip has no architecture 'ViT-X'", file, "ViT-X", out, ""),
        ("weights.pt/out: cannot be written", file, NAME, file / "out", ""),
    ):
        with pytest.raises(UserError, match=named):
            convert(source, architecture, target, digest)
    assert not out.exists()
    digest = hashlib.sha256(file.read_bytes()).hexdigest().upper()
    assert convert(file, NAME, out, digest)["sha256"] == digest.lower()


def test_leftovers_of_a_killed_conversion_go_unless_one_is_at_work(
    state: State, tmp_path: Path
) -> None:
    file, out = written(tmp_path, state), tmp_path / "out"
    left = tmp_path / ".out.part/half.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    with (
        FileLock(tmp_path / ".out.part.lock"),
        pytest.raises(UserError, match="another process is at work"),
    ):
        convert(file, NAME, out)
    assert left.read_bytes() == b"half"
    convert(file, NAME, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "weights.pt"]
    assert not (out / "half.safetensors").exists()


def test_the_command_converts_and_reports(rmadapter: Command, state: State, tmp_path: Path) -> None:
    file, out = written(tmp_path, {**state, "step": 7}), tmp_path / "out"
    command = ["backbones", "convert", file, "--architecture", NAME, "--out"]
    done = rmadapter(*command, out)
    assert done.code == 0
    assert f"--backbone {out}" in done.out
    assert "step" in done.err
    refused(rmadapter(*command, out), "already exists")
    report = json.loads(rmadapter(*command, tmp_path / "b", "--json").out)
    assert report["digest"] == load_backbone(str(out)).digest


# Hostile files


class Runs:
    """Asks for a function to be called."""

    def __init__(self, what: Any, *words: Any) -> None:
        self.what, self.words = what, words

    def __reduce__(self) -> Any:
        return self.what, self.words


def archive(data: bytes, *, compressed: bool = False, **records: bytes) -> bytes:
    """Return an archive like those of torch.save, of a pickle and storages."""
    file = io.BytesIO()
    files = {"data.pkl": data, "version": b"3\n", "byteorder": b"little", **records}
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as zipped:
        for name, content in files.items():
            zipped.writestr(f"a/{name}", content)
    return file.getvalue()


def saved(content: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def claims(shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A tensor that shows one number many times."""
    return saved({"a": torch.zeros(1).as_strided(shape, stride)})


def nested(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def doubled(levels: int) -> bytes:
    """Pickle a list that holds a list twice, and so on: small, but 2^levels parts to visit."""
    lines = [b"\x80\x02]q\x00"]
    for i in range(levels):
        lines.append(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]))
    return b"".join(lines) + b"."


def command(marker: Path) -> str:
    return f"touch {marker}"


WHOLE = saved({"a": torch.arange(1000.0)})
CANNOT = "cannot be converted"
HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system": (lambda m: saved({"a": Runs(os.system, command(m))}), r"asks for \w+.system"),
    "the old format": (
        lambda m: saved({"a": Runs(os.system, command(m))}, _use_new_zipfile_serialization=False),
        "it asks for"),
    "no torch at all": (lambda m: pickle.dumps(Runs(os.system, command(m)), 2), CANNOT),
    "eval": (lambda m: saved(Runs(eval, f"open({str(m)!r}, 'w')")), "it asks for .*eval"),
    "a subprocess": (lambda m: saved(Runs(subprocess.call, ["touch", str(m)])), "it asks for"),
    "in a script": (
        lambda m: archive(
            pickle.dumps(Runs(os.system, command(m)), 2),
            **{"constants.pkl": b"", "code/a.py": b""}),
        "TorchScript"),
    "cut in half": (lambda m: WHOLE[: len(WHOLE) // 2], "damaged or not a checkpoint"),
    "a name is changed": (
        lambda m: WHOLE.replace(b"rebuild_tensor_v2", b"rebuild_tensor_v9"), CANNOT),
    "empty": (lambda m: b"", CANNOT),
    "text": (lambda m: b"hello" * 100, CANNOT),
    "a zip of nothing": (lambda m: archive(b""), CANNOT),
    "a tensor of a terabyte": (lambda m: claims((1 << 38,), (0,)), "far larger than the file"),
    "a storage that is not there": (
        lambda m: claims((5,), (0,)).replace(b"K\x05", b"K\xff"), CANNOT),
    "a zip that unpacks to a gigabyte": (
        lambda m: archive(b"\x80\x02}.", compressed=True, **{"data/0": bytes(1 << 27)}),
        "unpacks to far more"),
    "very deep": (lambda m: archive(nested(100_000)), "no table of weights, but a list"),
    "exponentially many": (lambda m: archive(doubled(200)), "no table of weights, but a list"),
    "a long text": (
        lambda m: archive(b"\x80\x02X" + struct.pack("<I", 0xFFFFFFF0) + b"."), CANNOT),
    "names that are not text": (lambda m: saved({1: torch.zeros(1)}), "names that are not text"),
    "no tensors": (lambda m: saved({"state_dict": {}}), "no table of weights"),
    "another table": (
        lambda m: saved({"optimizer": 1, "epoch": 2}), "state_dict, .* but optimizer, epoch"),
    "sparse": (lambda m: saved({"a": torch.eye(3).to_sparse()}), "'a' is not a plain tensor"),
    "no model": (lambda m: saved([torch.zeros(1)]), "no table of weights, but a list"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_runs_and_nothing_is_left(kind: str, tmp_path: Path) -> None:
    marker, file = tmp_path / "ran", tmp_path / "weights.pt"
    make, named = HOSTILE[kind]
    file.write_bytes(make(marker))
    with pytest.raises(UserError, match=named) as caught:
        convert(file, NAME, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_the_payload_of_these_tests_works(tmp_path: Path) -> None:
    """The test above can fail: opened by pickle, the payload runs."""
    pickle.loads(pickle.dumps(Runs(os.system, command(tmp_path / "ran")), 2))
    assert (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "jit.pt"))
    with pytest.raises(UserError, match=r"ViT-B-16/openai.*torch\.jit\.load"):
        convert(tmp_path / "jit.pt", NAME, tmp_path / "out")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.pt")
    with pytest.raises(UserError, match="a pipe or device"):
        convert(tmp_path / "weights.pt", NAME, tmp_path / "out")
