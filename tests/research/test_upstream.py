"""upstream.py with a clone that the test writes: one step of its code, without a trace
afterwards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import originals
import parity
import pytest
import torch
import upstream
from originals import PEERS
from torch import Tensor, nn
from upstream import LEFT, imported, theirs

from tests.helpers.clones import write_clone


def step_of(name: str, clone: Path, weights: Any, more: int) -> tuple[Any, Tensor]:
    """Take one step and `more` further ones; return the first and its labels."""
    pixels = torch.randn(2, 3, upstream.SIZE, upstream.SIZE)
    labels = torch.tensor([1, 0])
    steps: list[int] = []
    further = (steps.append(i) for i in range(more))
    step = theirs(PEERS[name], clone, weights, ("cat", "sea lion"), pixels, labels, further)
    assert steps == [*range(more)]
    loss = float(nn.functional.cross_entropy(step.logits, labels))
    assert step.loss == pytest.approx(loss, abs=1e-4)
    return step, labels


def test_a_step_of_a_trainer_leaves_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backbone, before = parity.tiny_clip(), list(sys.path)
    weights = backbone.model.state_dict()
    step, _ = step_of("coop", write_clone(tmp_path), weights, more=3)
    assert step.logits.shape == (2, 2)
    [(name, (context, gradient))] = step.tensors.items()
    assert (name, step.settings) == ("prompt_learner.ctx", {})
    assert context.shape == (4, originals.WIDTHS[1])
    assert gradient.abs().max() > 0
    words = weights["token_embedding.weight"][backbone.tokenizer(["a photo of a"])[0, 1:5]]
    assert (context - words).std() == pytest.approx(upstream.NOISE, rel=0.1)
    assert capfd.readouterr() == ("", "")
    assert sys.path == before
    assert not [name for name in sys.modules if name.partition(".")[0] in LEFT]
    assert torch.ones(1).half().dtype == nn.Linear(1, 1).half().weight.dtype == torch.float16
    assert "half" not in vars(Tensor)


def test_imported_code_rounds_and_moves_nothing(tmp_path: Path) -> None:
    with imported(write_clone(tmp_path), "trainers.coop", {"a": torch.ones(1)}):
        for tensor in (torch.ones(1).half().cuda(), nn.Linear(1, 1).half().cuda().weight):
            assert (tensor.dtype, tensor.device.type) == (torch.float32, "cpu")
        assert torch.ones(1).to("cuda").device == torch.device("cpu")
        assert torch.ones(1).to(torch.float64).dtype == torch.float64
        assert torch.load("anything").keys() == {"a"}


LORA = """
import torch
from torch.nn import functional as F

from clip import clip


def mark_only_lora_as_trainable(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name == "logit_scale"


def cls_acc(*_):
    raise TypeError("only 0-dimensional arrays can be converted to Python scalars")


def run_lora(args, model, scale, dataset, train, val, test):
    mark_only_lora_as_trainable(model)
    optimizer = torch.optim.AdamW([model.logit_scale], lr=args.lr)
    prompts = [dataset.template[0].format(name) for name in dataset.classnames]
    texts = torch.cat([clip.tokenize(prompt) for prompt in prompts]).cuda()
    w = F.normalize(model.encode_text(texts), dim=-1)
    for images, labels in train:
        x = F.normalize(model.encode_image(images.cuda()), dim=-1)
        logits = scale * model.logit_scale * x @ w.T
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        cls_acc(logits, labels)
"""


def test_a_step_of_a_function_has_the_gradient_of_its_logits(tmp_path: Path) -> None:
    """Of logits s z, whose gradient by s is the mean of (p - y) z."""
    backbone, clone = parity.tiny_clip(), write_clone(tmp_path)
    (clone / "lora.py").write_text(LORA)
    step, labels = step_of("clip-lora", clone, backbone.model.state_dict(), more=2)
    [(name, (s, gradient))] = step.tensors.items()
    assert (name, step.settings) == ("logit_scale", {"dropout": 0.0})
    assert 0 < abs(float(s) - float(backbone.model.logit_scale)) < 5 * upstream.NOISE  # type: ignore[arg-type]
    error = step.logits.softmax(-1) - nn.functional.one_hot(labels, 2)
    torch.testing.assert_close(gradient, (error * step.logits / s).sum() / 2, rtol=1e-4, atol=1e-4)
