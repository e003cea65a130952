"""The authors' side of `parity.py` and `benchmarks/public.py`: their trainers from a clone, on the
CPU.

Dassl, which the trainers are built on, is replaced by stand-ins that do nothing; `.cuda()` and
`.half()` do nothing either, so that everything is float32.
"""

from __future__ import annotations

import ast
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock, Mock, patch

import packaging.version
import torch
from originals import Peer
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rmadapter.errors import UserError
from rmadapter.support.machine import seeded

SIZE, NOISE = 64, 0.05
# What an import from a clone leaves in sys.modules
LEFT = (
    "clip", "clip_maple", "clip_mail", "trainers", "dassl", "lora", "loralib", "utils", "fs",
    "plotnine", "pkg_resources",
)  # fmt: skip


class Theirs(NamedTuple):
    """Their results. logits: [B, C]. tensors: each trained one and its gradient, by their names.
    kept: others, by our names, before and after the step. settings: ours that mean the same as
    theirs."""

    logits: Tensor
    loss: float
    tensors: Mapping[str, tuple[Tensor, Tensor]]
    kept: Mapping[str, tuple[Tensor, Tensor]]
    settings: Mapping[str, Any]


def theirs(
    peer: Peer,
    clone: Path,
    weights: Mapping[str, Tensor],
    classes: Sequence[str],
    pixels: Tensor,
    labels: Tensor,
    more: Iterable[None] = (),
) -> Theirs:
    """Run their code on images [B, 3, H, W] and labels [B], with noise on all that it trains.

    weights: of a CLIP, named as in OpenAI's code. more: each item makes one more step after the one
    reported; the next item is requested as soon as a step is done. Raises as `imported`.
    """
    clone, (name, code) = clone.resolve(), peer.code.split(":")
    with ExitStack() as stack:
        stack.enter_context(seeded(1))
        stack.enter_context(_elsewhere())
        module = stack.enter_context(imported(clone / peer.folder, name, weights, peer.clip))
        if peer.engine:
            function = defined(clone, *peer.engine.split(":"))
            stack.enter_context(patch.object(Trainer, function.__name__, function, create=True))
        peer.prepare(module)
        step = dassl_step if peer.section else function_step
        return Theirs(
            *step(peer, getattr(module, code), classes, pixels, labels, more), peer.settings(module)
        )


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Work in an empty folder: some trainers read and write files where they run."""
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


class Trainer:
    """The part of Dassl's TrainerX that trainers call, on the CPU, with steps at a learning rate of
    0."""

    device, batch_idx, num_batches = "cpu", 0, 2
    optim: Any

    def __init__(self, config: Any, classes: Sequence[str]) -> None:
        self.cfg = config
        self.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=[*classes]))
        self.build_model()  # type: ignore[attr-defined]

    def register_model(self, name: str, model: nn.Module, *_: Any) -> None:
        self._models = {name: model}
        self._optims = {name: SimpleNamespace(zero_grad=model.zero_grad, step=lambda: None)}

    def get_model_names(self, _: Any) -> list[str]:
        return [*self._models]

    def model_zero_grad(self, *_: Any) -> None: ...

    def detect_anomaly(self, *_: Any) -> None: ...

    def model_backward_and_update(self, loss: Any) -> None:
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()


Pairs = dict[str, tuple[Tensor, Tensor]]
Step = tuple[Tensor, float, Pairs, Pairs]


def dassl_step(
    peer: Peer,
    trainer: Any,
    classes: Sequence[str],
    pixels: Tensor,
    labels: Tensor,
    more: Iterable[None],
) -> Step:
    """Return logits, loss, trained tensors and kept ones of a trainer class."""
    model = {
        "BACKBONE": {"NAME": "ViT-B/16"},
        "INIT_WEIGHTS": "",
    }  # its address is looked up, but never used
    sections = {
        "OPTIM": {"MAX_EPOCH": 20},
        "INPUT": {"SIZE": tuple(pixels.shape[-2:])},
        "MODEL": model,
        **peer.more,
    }
    sections["TRAINER"] = {peer.section: peer.config, **peer.more.get("TRAINER", {})}
    built = trainer(_tree(sections), classes)
    whole = getattr(built, peer.whole)
    _shake(whole)
    whole.eval()
    with torch.no_grad():
        logits = peer.taken(peer.ask(built, pixels))
    whole.train()
    built.optim = torch.optim.SGD([p for p in whole.parameters() if p.requires_grad], 0.0)
    batch = {"img": pixels, "label": labels}
    before = {name: of(built).clone() for name, of in peer.kept.items()}
    loss = peer.loss(built.forward_backward(batch))
    step = (
        logits,
        loss,
        _trained(whole),
        {name: (before[name], of(built).detach()) for name, of in peer.kept.items()},
    )
    for _ in more:
        built.forward_backward(batch)
    return step


class _Enough(Exception):
    """Raised to stop a function that would train to its end."""


def function_step(
    peer: Peer,
    run: Any,
    classes: Sequence[str],
    pixels: Tensor,
    labels: Tensor,
    more: Iterable[None],
) -> Step:
    """Do the same for a function that trains, of CLIP-LoRA and 2SFS; logits are those of
    training."""
    module = sys.modules[run.__module__]
    seen = list[tuple[Tensor, Tensor]]()
    tensors = dict[str, Any]()
    mark = getattr(module, peer.marks)
    entropy = nn.functional.cross_entropy
    model = import_module("clip.clip").build_model(torch.load(""))

    def marked(model: nn.Module, *given: Any, **more: Any) -> Any:
        chosen = mark(model, *given, **more)
        _shake(model)
        return chosen

    def stepped(*_: Any) -> None:
        if not tensors:
            tensors.update(_trained(model))

    def watched(logits: Tensor, target: Tensor) -> Tensor:
        seen.append((logits.detach(), entropy(logits, target)))
        return seen[-1][1]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield pixels, labels
        for _ in more:
            yield pixels, labels
        raise _Enough

    data = SimpleNamespace(classnames=classes, template=["a photo of a {}."])
    few = [(pixels[:1], labels[:1])]
    with ExitStack() as stack:
        stack.callback(register_optimizer_step_pre_hook(stepped).remove)
        stack.enter_context(patch.object(module, peer.marks, marked))
        stack.enter_context(
            patch.object(module, "cls_acc", lambda *_: 0.0)
        )  # fails with today's numpy
        stack.enter_context(patch.object(nn.functional, "cross_entropy", watched))
        stack.enter_context(suppress(_Enough))
        run(SimpleNamespace(**peer.config), model, 100.0, data, batches(), few, few)
    logits, loss = seen[0]
    return logits, loss.item(), tensors, {}


def _trained(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each tensor with a gradient that is not all zero, and the gradient."""
    named = [
        (name, p) for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
    ]
    return {name: (p.detach().clone(), p.grad.clone()) for name, p in named if p.grad is not None}


def defined(clone: Path, file: str, name: str) -> Callable[..., Any]:
    """Load a function of a file whose imports are not available; it may use torch. Raises UserError
    if it is missing."""
    path = clone / file
    space = dict[str, Any](torch=torch)
    tree = ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "")
    functions: list[ast.stmt] = [
        n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name
    ]
    if not functions:
        raise UserError(f"{clone}: no {name} in {file}; give the folder of the authors' repository")
    exec(compile(ast.Module(functions[:1], []), str(path), "exec"), space)
    function: Callable[..., Any] = space[name]
    return function


def _shake(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += NOISE * torch.randn_like(parameter)


def _tree(value: Any) -> Any:
    return (
        SimpleNamespace(**{k: _tree(v) for k, v in value.items()})
        if isinstance(value, Mapping)
        else value
    )


@contextmanager
def imported(
    clone: Path, name: str, weights: Mapping[str, Tensor], clip: str = "clip"
) -> Iterator[ModuleType]:
    """Import a module of the clone. While it is used, the clone's CLIP has these weights, and its
    output is discarded.

    clip: the package of that CLIP. Raises UserError if the clone has no such file, or needs a
    package that is not installed.
    """
    file = f"{name.replace('.', '/')}.py"
    if not (clone / file).is_file():
        raise UserError(f"{clone}: no {file} there; give the folder of the authors' repository")
    engine = SimpleNamespace(
        TRAINER_REGISTRY=SimpleNamespace(register=lambda: lambda kind: kind), TrainerX=Trainer
    )
    parts = ("metrics", "utils", "utils.tools", "optim", "optim.radam")
    stubs: dict[str, Any] = {f"dassl.{part}": MagicMock() for part in parts}
    stubs |= {
        "dassl": MagicMock(),
        "dassl.engine": engine,
        "dassl.engine.trainer": MagicMock(TrainerX=Trainer),
    }
    stubs["pkg_resources"] = SimpleNamespace(
        packaging=packaging
    )  # TCP's CLIP compares versions; setuptools dropped it
    stubs["plotnine"] = ModuleType("plotnine")  # DePT's trainers import it, but draw nothing
    _forget()
    with ExitStack() as stack:
        stack.callback(_forget)
        stack.enter_context(patch.object(sys, "path", [str(clone), *sys.path]))
        sys.modules.update(stubs)
        for owner in (Tensor, nn.Module):
            for call in ("cuda", "half"):
                stack.enter_context(patch.object(owner, call, lambda self, *_, **__: self))
            stack.enter_context(patch.object(owner, "to", _not_to_a_gpu(owner.to)))
        stack.enter_context(patch.object(torch.cuda, "is_available", lambda: False))
        stack.enter_context(
            patch.object(torch.jit, "load", Mock(side_effect=RuntimeError))
        )  # "no such archive"
        stack.enter_context(patch.object(torch, "load", lambda *_, **__: dict(weights)))
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        try:
            module = import_module(name)
            model = import_module(f"{clip}.clip")
        except ImportError as error:
            raise UserError(f"{clone}: {error}; install what the authors' code needs") from error
        stack.enter_context(patch.object(model, "_download", lambda *_: ""))
        yield module


def _not_to_a_gpu(to: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *given, **more: self if "cuda" in given else to(self, *given, **more)


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in LEFT]:
        del sys.modules[name]
