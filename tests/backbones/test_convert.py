"""Pickled checkpoints become model folders; a refused one leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory
from safetensors.torch import save_file

from rmadapter.backbones import load_backbone, unpickle
from rmadapter.backbones.convert import convert
from rmadapter.errors import UserError
from rmadapter.support.files import check_sums
from rmadapter.support.locks import claim
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


def test_relative_paths_are_those_of_the_working_folder(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is read by a process in another folder."""
    monkeypatch.chdir(tmp_path)
    convert(Path(written(tmp_path, state).name), NAME, Path("my-clip"))
    assert load_backbone("my-clip").model.state_dict().keys() == state.keys()


def test_old_files_and_half_precision_are_read(state: State, tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in state.items()}
    torch.save(halves, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    convert(tmp_path / "a.bin", NAME, tmp_path / "out")
    weights = load_backbone(str(tmp_path / "out")).model.state_dict()
    assert all(torch.equal(weights[name], half.float()) for name, half in halves.items())


class Both(torch.nn.Module):
    """OpenAI's archives hold a model with its activation as a module, and numbers beside its
    weights."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model.encode_image(image), self.model.encode_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
def test_torchscript_gives_its_tensors_and_its_activation(quick: bool, tmp_path: Path) -> None:
    names = [f"{NAME}-quickgelu", NAME]
    right, wrong = names if quick else names[::-1]
    model = plain(right)
    example = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.long))
    torch.jit.trace(Both(model), example, check_trace=False).save(str(tmp_path / "jit.pt"))
    with pytest.raises(UserError, match=f"is not that of {wrong}; use '{right}'"):
        convert(tmp_path / "jit.pt", wrong, tmp_path / "out")
    assert convert(tmp_path / "jit.pt", right, tmp_path / "out")["scripted"]
    found = load_backbone(str(tmp_path / "out")).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


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


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads in this process, where what a file asks for is not in question."""

    def read(file: Path, flat: Path) -> dict[str, Any]:
        tensors, facts = unpickle.read(str(file))
        save_file(unpickle.checked(tensors, file.stat().st_size), flat)
        return facts

    monkeypatch.setattr("rmadapter.backbones.convert._read", read)


@pytest.mark.parametrize(("tensors", "named"), UNFIT, ids=[named for _, named in UNFIT])
def test_weights_of_another_model_are_refused(
    tensors: Any, named: str, state: State, tmp_path: Path, read_here: None
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
        claim(tmp_path / ".out.part.lock"),
        pytest.raises(UserError, match="another process is at work"),
    ):
        convert(file, NAME, out)
    assert left.read_bytes() == b"half"
    convert(file, NAME, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "weights.pt"]
    assert not (out / "half.safetensors").exists()


def test_the_command_converts_and_reports(rmadapter: Command, state: State, tmp_path: Path) -> None:
    file, out = written(tmp_path, {**state, "step": 7}), tmp_path / "out"
    command = ["convert", file, "--architecture", NAME, "--out"]
    done = rmadapter(*command, out)
    assert done.code == 0
    assert f"--backbone {out}" in done.out
    assert "step" in done.err
    refused(rmadapter(*command, out), "already exists")
    report = json.loads(rmadapter(*command, tmp_path / "b", "--json").out)
    assert report["digest"] == load_backbone(str(out)).digest
