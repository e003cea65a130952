"""The side of the authors in `parity.py`: their trainers out of a clone, built on a small random CLIP, on the CPU.

Of Dassl, which the trainers are built on, there are stand-ins that do nothing; `.cuda()` and `.half()` do nothing
either, so that all is float32.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock, Mock, patch

import torch
from torch import Tensor, nn

from rmadapter.errors import UserError
from rmadapter.machine import seeded

DEPTH, WIDTHS, SIZE, NOISE = 3, (768, 512), 64, 0.05  # MaPLe's authors wrote these widths into their code
BLOCKS = range(2, DEPTH + 1)  # of methods that leave the lower ones alone
LEFT = ("clip", "trainers", "dassl", "lora", "loralib", "utils")  # what an import from a clone leaves in sys.modules


@dataclass(frozen=True)
class Peer:
    """Where the authors' code stands, its configuration, and our settings that are the same.

    code: module and trainer, or function. section: of Dassl's configuration; "" for code that is not built on Dassl.
    names: of our tensors in theirs, with or without ".weight" and ".bias". settings: may read the authors' module.
    taken: the logits in what their model answers. inner: the part of what we train that has the tensors, where it is
    not the whole. more: other sections.
    """

    repository: str
    code: str
    section: str
    config: Mapping[str, Any]
    names: Mapping[str, str]
    settings: Callable[[ModuleType], Mapping[str, Any]] = lambda module: {}
    taken: Callable[[Any], Tensor] = lambda answer: answer
    inner: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def called(self, name: str) -> str:
        """One of our tensors in their code."""
        head, _, leaf = name.rpartition(".")
        return self.names[name] if name in self.names else f"{self.names[head]}.{leaf}"


INIT = {"CTX_INIT": "a photo of a", "PREC": "fp32"}
REP, ALIGNER = "representation_learner.compound_rep_tokens", "representation_learner.srra"
META_NET = {"down": "prompt_learner.meta_net.linear1", "up": "prompt_learner.meta_net.linear2"}
PEERS = {
    "coop": Peer(
        "KaiyangZhou/CoOp", "trainers.coop:CoOp", "COOP",
        {**INIT, "N_CTX": 4, "CSC": False, "CLASS_TOKEN_POSITION": "end"},
        {"ctx": "prompt_learner.ctx"},
    ),
    "cocoop": Peer(
        "KaiyangZhou/CoOp", "trainers.cocoop:CoCoOp", "COCOOP", {**INIT, "N_CTX": 4},
        {"ctx": "prompt_learner.ctx", **META_NET},
    ),
    "maple": Peer(
        "muzairkhattak/multimodal-prompt-learning", "trainers.maple:MaPLe", "MAPLE",
        {**INIT, "N_CTX": 2, "PROMPT_DEPTH": DEPTH},
        {
            "prompts.0": "prompt_learner.ctx",
            "maps.0": "prompt_learner.proj",
            **{f"prompts.{i}": f"prompt_learner.compound_prompts_text.{i - 1}" for i in range(1, DEPTH)},
            **{f"maps.{i}": f"prompt_learner.compound_prompt_projections.{i - 1}" for i in range(1, DEPTH)},
        },
        lambda module: {"depth": DEPTH},
    ),
    "promptsrc": Peer(
        "muzairkhattak/PromptSRC", "trainers.promptsrc:PromptSRC", "PROMPTSRC",
        {
            **INIT, "N_CTX_VISION": 4, "N_CTX_TEXT": 4, "PROMPT_DEPTH_VISION": DEPTH, "PROMPT_DEPTH_TEXT": DEPTH,
            "TEXT_LOSS_WEIGHT": 25, "IMAGE_LOSS_WEIGHT": 10, "GPA_MEAN": 15, "GPA_STD": 1,
        },
        {
            "text_prompts.0": "prompt_learner.ctx",
            "image_prompts.0": "image_encoder.VPT",
            **{f"text_prompts.{i}": f"text_encoder.transformer.resblocks.{i}.VPT_shallow" for i in range(1, DEPTH)},
            **{f"image_prompts.{i}": f"image_encoder.transformer.resblocks.{i}.VPT_shallow" for i in range(1, DEPTH)},
        },
        lambda module: {"depth": DEPTH, "templates": tuple(module.IMAGENET_TEMPLATES)},
        inner="prompts",
    ),
    "mmrl": Peer(
        "yunncheng/MMRL", "trainers.mmrl:MMRL", "MMRL",
        {"ALPHA": 0.7, "REG_WEIGHT": 1.0, "N_REP_TOKENS": 5, "REP_DIM": 512, "REP_LAYERS": [*BLOCKS], "PREC": "fp32"},
        {
            "space": REP,
            "projection": "image_encoder.proj_rep",
            **{f"maps.image.{b}": f"{REP}_r2vproj.{b - BLOCKS[0]}" for b in BLOCKS},
            **{f"maps.text.{b}": f"{REP}_r2tproj.{b - BLOCKS[0]}" for b in BLOCKS},
        },
        lambda module: {"first_block": BLOCKS[0]},
        taken=lambda answer: answer[2],  # of both features together, as ours answers about trained classes
        more={"DATASET": {"NAME": "Caltech101"}},  # whose prompt is "a photo of a NAME."
    ),
    "mmrl-plus-plus": Peer(
        "yunncheng/MMRL", "trainers.mmrlpp:MMRLpp", "MMRLpp",
        {
            "ALPHA": 0.7, "BETA": 0.9, "REG_WEIGHT": 1.0, "N_REP_TOKENS": 5, "REP_DIM": 512, "REP_LAYERS": [*BLOCKS],
            "PROJ_LORA_DIM": 64, "RES_LORA_DIM": 4, "PREC": "fp32",
        },
        {
            "space": REP,
            "projection.a": "image_encoder.A",
            "projection.b": "image_encoder.B",
            **{f"shared.{side}": f"{ALIGNER}_r2{s}proj.weight" for side, s in (("image", "v"), ("text", "t"))},
            **{
                f"maps.{side}.{b}.{ours}": f"{ALIGNER}_r2{s}proj.srra.{b - BLOCKS[0]}.{name}"
                for side, s in (("image", "v"), ("text", "t"))
                for b in BLOCKS
                for ours, name in (("a", "A"), ("b", "B"), ("bias", "bias"))
            },
        },
        lambda module: {"first_block": BLOCKS[0]},
        taken=lambda answer: answer[2],
        more={"DATASET": {"NAME": "Caltech101"}},
    ),
    "mma": Peer(
        "ZjjConan/Multi-Modal-Adapter", "trainers.mmadapter:MultiModalAdapter", "MMADAPTER",
        {
            "TEXT_CTX_INIT": "a photo of a", "PREC": "fp32", "ADAPTER_START": BLOCKS[0], "ADAPTER_END": DEPTH,
            "ADAPTER_DIM": 32, "ADAPTER_SCALE": 0.1,
        },
        {
            **{f"cross.{DEPTH - b}": f"adapter_learner.shared_adapter.{b}.0" for b in BLOCKS},
            **{f"image.{b}.down": f"adapter_learner.visual_adapter.{b}.down.0" for b in BLOCKS},
            **{f"image.{b}.up": f"adapter_learner.visual_adapter.{b}.up" for b in BLOCKS},
            **{f"text.{b}.down": f"adapter_learner.text_adapter.{b}.down.0" for b in BLOCKS},
            **{f"text.{b}.up": f"adapter_learner.text_adapter.{b}.up" for b in BLOCKS},
        },
        lambda module: {"first_block": BLOCKS[0], "alpha": 0.1},
    ),
    "clip-lora": Peer(
        "MaxZanella/CLIP-LoRA", "lora:run_lora", "",
        {
            "encoder": "both", "position": "all", "params": ["q", "k", "v"], "r": 2, "alpha": 1, "backbone": "ViT-B/16",
            "dropout_rate": 1e-9,  # drops nothing, and takes the way of their default, which 0 does not
            "n_iters": 1, "shots": 1, "lr": 0.0, "eval_only": False, "save_path": None,
        },
        {
            f"updates.{side}.{i}.{j}.{ours}.weight": f"{tower}.resblocks.{i}.attn.{part}_proj.w_lora_{matrix}"
            for side, tower in enumerate(("visual.transformer", "transformer"))
            for i in range(DEPTH)
            for j, part in enumerate("qkv")
            for ours, matrix in (("down", "A"), ("up", "B"))
        },
        lambda module: {"dropout": 0.0},
    ),
}  # fmt: skip


class Theirs(NamedTuple):
    """logits: [B, C]. tensors: each trained one and its gradient, by their names. settings: of ours, the same."""

    logits: Tensor
    loss: float
    tensors: Mapping[str, tuple[Tensor, Tensor]]
    settings: Mapping[str, Any]


def theirs(
    peer: Peer, clone: Path, weights: Mapping[str, Tensor], classes: Sequence[str], pixels: Tensor, labels: Tensor
) -> Theirs:
    """What their code makes of images [B, 3, H, W] and labels [B], with noise on all that it trains.

    weights: of a CLIP as OpenAI's code names them. Raises as `imported`.
    """
    name, code = peer.code.split(":")
    with imported(clone, name, weights) as module, seeded(1):
        step = dassl_step if peer.section else lora_step
        logits, loss, model = step(peer, getattr(module, code), classes, pixels, labels)
        tensors = {name: (p.detach(), p.grad) for name, p in model.named_parameters() if p.grad is not None}
        return Theirs(logits, loss, tensors, peer.settings(module))


class Trainer:
    """What of Dassl's TrainerX a trainer calls: it is built on the CPU, and asked for one step that nothing takes."""

    device, batch_idx, num_batches = "cpu", 0, 2

    def __init__(self, config: Any, classes: Sequence[str]) -> None:
        self.cfg, self.dm = config, SimpleNamespace(dataset=SimpleNamespace(classnames=[*classes]))
        self.build_model()  # type: ignore[attr-defined]

    def register_model(self, *_: Any) -> None: ...

    def model_backward_and_update(self, loss: Any) -> None:
        loss.backward()


def dassl_step(
    peer: Peer, trainer: Any, classes: Sequence[str], pixels: Tensor, labels: Tensor
) -> tuple[Tensor, float, nn.Module]:
    """Logits, loss, and the model with its gradients, of a trainer that is a class."""
    model = {"BACKBONE": {"NAME": "ViT-B/16"}, "INIT_WEIGHTS": ""}  # its address is looked up, and never asked
    sections = {"INPUT": {"SIZE": (SIZE, SIZE)}, "OPTIM": {"MAX_EPOCH": 20}, "TRAINER": {peer.section: peer.config}}
    built = trainer(_tree({"MODEL": model, **sections, **peer.more}), classes)
    _shake(built.model)
    with torch.no_grad():
        logits = peer.taken(built.model.eval()(pixels))
    built.model.train()
    return logits, built.forward_backward({"img": pixels, "label": labels})["loss"], built.model


def lora_step(
    peer: Peer, run: Any, classes: Sequence[str], pixels: Tensor, labels: Tensor
) -> tuple[Tensor, float, nn.Module]:
    """The same of CLIP-LoRA's function, which takes one step at a rate of 0; logits are those of training."""
    module, seen = sys.modules[run.__module__], []
    mark, entropy = module.mark_only_lora_as_trainable, nn.functional.cross_entropy

    def marked(model: nn.Module) -> None:
        mark(model)
        _shake(model)

    def watched(logits: Tensor, target: Tensor) -> Tensor:
        seen.append((logits.detach(), entropy(logits, target)))
        return seen[-1][1]

    model = import_module("clip.clip").build_model(torch.load(""))
    data, loader = SimpleNamespace(classnames=classes, template=["a photo of a {}."]), [(pixels, labels)]
    with ExitStack() as stack:
        stack.enter_context(patch.object(module, "mark_only_lora_as_trainable", marked))
        stack.enter_context(patch.object(module, "cls_acc", lambda *_: 0.0))  # fails with today's numpy
        stack.enter_context(patch.object(nn.functional, "cross_entropy", watched))
        run(SimpleNamespace(**peer.config), model, 100.0, data, loader, loader, loader)
    [(logits, loss)] = seen
    return logits, loss.item(), model


def _shake(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += NOISE * torch.randn_like(parameter)


def _tree(value: Any) -> Any:
    return SimpleNamespace(**{k: _tree(v) for k, v in value.items()}) if isinstance(value, Mapping) else value


@contextmanager
def imported(clone: Path, name: str, weights: Mapping[str, Tensor]) -> Iterator[ModuleType]:
    """A module of the clone. As long as it is used, the clone's CLIP has these weights, and what it prints is lost.

    Raises UserError where the clone has no such file, or needs a package that is not installed.
    """
    file = f"{name.replace('.', '/')}.py"
    if not (clone / file).is_file():
        raise UserError(f"{clone}: no {file} there; give the folder of the authors' repository")
    engine = SimpleNamespace(TRAINER_REGISTRY=SimpleNamespace(register=lambda: lambda kind: kind), TrainerX=Trainer)
    stubs: dict[str, Any] = {f"dassl.{part}": MagicMock() for part in ("metrics", "utils", "optim")}
    stubs |= {"dassl": MagicMock(), "dassl.engine": engine}
    _forget()
    with ExitStack() as stack:
        stack.callback(_forget)
        stack.enter_context(patch.object(sys, "path", [str(clone), *sys.path]))
        sys.modules.update(stubs)
        for owner in (Tensor, nn.Module):
            for call in ("cuda", "half"):
                stack.enter_context(patch.object(owner, call, lambda self, *_, **__: self))
        stack.enter_context(patch.object(torch.cuda, "is_available", lambda: False))
        stack.enter_context(patch.object(torch.jit, "load", Mock(side_effect=RuntimeError)))  # "no such archive"
        stack.enter_context(patch.object(torch, "load", lambda *_, **__: dict(weights)))
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        try:
            module, clip = import_module(name), import_module("clip.clip")
        except ImportError as error:
            raise UserError(f"{clone}: {error}; install what the authors' code needs") from error
        stack.enter_context(patch.object(clip, "_download", lambda *_: ""))
        yield module


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in LEFT]:
        del sys.modules[name]
