"""Pickled checkpoints become folders; what is hostile, damaged or foreign is told in a sentence,
and leaves nothing."""

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
from rmadapter.support.checksums import check_sums
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


def test_a_folder_is_named_from_here(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is read by a process in another folder."""
    monkeypatch.chdir(tmp_path)
    convert(Path(written(tmp_path, state).name), NAME, Path("my-clip"))
    assert load_backbone("my-clip").model.state_dict().keys() == state.keys()


def test_old_files_and_half_precision_are_read(state: State, tmp_path: Path) -> None:
    torch.save(
        {k: v.half() for k, v in state.items()},
        tmp_path / "a.bin",
        _use_new_zipfile_serialization=False,
    )
    convert(tmp_path / "a.bin", NAME, tmp_path / "out")
    found = load_backbone(str(tmp_path / "out")).model.state_dict()
    assert all(torch.equal(found[name], tensor.half().float()) for name, tensor in state.items())


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


def changed(state: State, **tensors: Any) -> State:
    found = {**state, **tensors}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


UNFIT = [
    ({"ln_final.weight": None, "ln_final.bias": None}, "they lack ln_final.weight, ln_final.bias$"),
    ({"decoder": torch.zeros(1)}, "they also hold decoder$"),
    ({"logit_scale": None}, "they lack logit_scale$"),
    ({"logit_bias": torch.zeros(1)}, "do not fit backbone"),
    (
        {"text_projection": torch.zeros(4, 2)},
        r"they hold text_projection \[4, 2\] instead of \[16, 24\]$",
    ),
    ({"text_projection": torch.zeros(24, 16)}, r"size mismatch for text_projection"),  # transposed
    (
        {"positional_embedding": torch.zeros(16, 20)},
        r"text pos_embed width changed",
    ),  # of a wider text encoder
    (
        {"positional_embedding": torch.zeros(77, 16)},
        r"hold positional_embedding \[77, 16\] instead of \[16, 16\]$",
    ),
    (
        {"visual.positional_embedding": torch.zeros(5, 32)},
        r"hold visual.positional_embedding \[5, 32\] instead of",
    ),
]


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads in this process, where what a file asks for is not in question."""

    def read(file: Path, flat: Path) -> dict[str, Any]:
        tensors, facts = unpickle.read(str(file))
        save_file(unpickle.checked(tensors, file.stat().st_size), flat)
        return facts

    monkeypatch.setattr("rmadapter.backbones.convert._read", read)


@pytest.mark.parametrize(("tensors", "told"), UNFIT, ids=[told for _, told in UNFIT])
def test_weights_of_another_model_are_refused(
    tensors: Any, told: str, state: State, tmp_path: Path, read_here: None
) -> None:
    file = written(tmp_path, changed(state, **tensors))
    with pytest.raises(
        UserError, match=f"weights.pt: these weights do not fit backbone '{NAME}'.*"
    ) as caught:
        convert(file, NAME, tmp_path / "out")
    assert caught.match(told)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_one_that_does_more_than_be_read_is_to_be_deleted(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, reader = written(tmp_path, state), tmp_path / "reader.py"
    reader.write_text("import os; os._exit(3)")  # as unpickle.py ends then
    monkeypatch.setattr("rmadapter.backbones.unpickle.__file__", str(reader))
    with pytest.raises(
        UserError, match=r"weights\.pt: tried to do more than be read and was stopped; delete it"
    ):
        convert(file, NAME, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reader.py", "weights.pt"]


def test_many_faults_are_three_and_a_number(state: State, tmp_path: Path, read_here: None) -> None:
    file = written(
        tmp_path, {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}
    )
    with pytest.raises(
        UserError, match=r"they lack visual\.[\w.]+, visual\.[\w.]+, visual\.[\w.]+ and \d+ more$"
    ):
        convert(file, NAME, tmp_path / "out")


def test_what_is_asked_for_is_checked_before_the_file_is_opened(
    state: State, tmp_path: Path
) -> None:
    file, out = written(tmp_path, state), tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    for told, words in {
        "needs no conversion; use it as it is: --backbone": (
            tmp_path / "a.safetensors",
            NAME,
            out,
            "",
        ),
        "no.pt: not a checkpoint": (tmp_path / "no.pt", NAME, out, ""),
        "not named like a pickled checkpoint": (__file__, NAME, out, ""),
        "already exists": (file, NAME, tmp_path / "full", ""),
        "not abc": (file, NAME, out, "abc"),
        "open_clip has no architecture 'ViT-X'": (file, "ViT-X", out, ""),
        "weights.pt/out: cannot be written": (file, NAME, file / "out", ""),
    }.items():
        with pytest.raises(UserError, match=told):
            convert(Path(words[0]), *words[1:])
    assert not out.exists()
    digest = hashlib.sha256(file.read_bytes()).hexdigest().upper()
    assert convert(file, NAME, out, digest)["sha256"] == digest.lower()


def test_what_a_killed_one_left_goes_and_nobody_is_disturbed(state: State, tmp_path: Path) -> None:
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


def test_the_verb(rmadapter: Command, state: State, tmp_path: Path) -> None:
    file, out = written(tmp_path, {**state, "step": 7}), tmp_path / "out"
    done = rmadapter("convert", file, "--architecture", NAME, "--out", out)
    assert done.code == 0
    assert done.out.startswith(f"{out} is ready: --backbone {out}; ")
    assert "left out, not weights: step" in done.err
    refused(rmadapter("convert", file, "--architecture", NAME, "--out", out), "already exists")
    found = json.loads(
        rmadapter("convert", file, "--architecture", NAME, "--out", tmp_path / "b", "--json").out
    )
    assert found["digest"] == load_backbone(str(out)).digest
