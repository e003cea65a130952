"""tools/upstream.py with a repository that the test writes: what is imported from it, and what is
left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import originals
import parity
import pytest
import torch
import upstream
from originals import PEERS
from torch import Tensor, nn
from upstream import LEFT, imported, theirs

from tests.helpers.clones import write_clone


def test_their_side_of_a_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    backbone, before = parity.tiny_clip(), list(sys.path)
    pixels, labels = torch.randn(2, 3, upstream.SIZE, upstream.SIZE), torch.tensor([1, 0])
    weights = backbone.model.state_dict()
    steps: list[int] = []
    more = (steps.append(i) for i in range(3))
    found = theirs(
        PEERS["coop"], write_clone(tmp_path), weights, ("cat", "sea lion"), pixels, labels, more
    )
    assert steps == [0, 1, 2]
    assert found.logits.shape == (2, 2)
    assert found.loss == pytest.approx(
        float(nn.functional.cross_entropy(found.logits, labels)), abs=1e-4
    )
    [(name, (context, gradient))] = found.tensors.items()
    assert (name, context.shape, found.settings) == (
        "prompt_learner.ctx",
        (4, originals.WIDTHS[1]),
        {},
    )
    assert gradient.abs().max() > 0
    words = weights["token_embedding.weight"][backbone.tokenizer(["a photo of a"])[0, 1:5]]
    assert (context - words).std() == pytest.approx(upstream.NOISE, rel=0.1)
    assert capfd.readouterr() == ("", "")
    # and nothing of it is left
    assert sys.path == before
    assert not [name for name in sys.modules if name.partition(".")[0] in LEFT]
    assert torch.ones(1).half().dtype == nn.Linear(1, 1).half().weight.dtype == torch.float16
    assert "half" not in vars(Tensor)


def test_within_it_nothing_is_rounded_or_moved(tmp_path: Path) -> None:
    with imported(write_clone(tmp_path), "trainers.coop", {"a": torch.ones(1)}):
        assert (
            torch.ones(1).half().cuda().dtype
            == nn.Linear(1, 1).half().cuda().weight.dtype
            == torch.float32
        )
        assert (
            torch.ones(1).to("cuda").device
            == nn.Linear(1, 1).to("cuda").weight.device
            == torch.device("cpu")
        )
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


def test_a_step_that_is_a_function(tmp_path: Path) -> None:
    """Of logits s z, whose gradient by s is the mean of (p - y) z."""
    backbone, clone = parity.tiny_clip(), write_clone(tmp_path)
    (clone / "lora.py").write_text(LORA)
    pixels, labels = torch.randn(2, 3, upstream.SIZE, upstream.SIZE), torch.tensor([1, 0])
    steps: list[int] = []
    more = (steps.append(i) for i in range(2))
    weights = backbone.model.state_dict()
    found = theirs(PEERS["clip-lora"], clone, weights, ("cat", "sea lion"), pixels, labels, more)
    assert steps == [0, 1]
    [(name, (s, gradient))] = found.tensors.items()
    assert (name, found.settings) == ("logit_scale", {"dropout": 0.0})
    assert 0 < abs(float(s) - float(backbone.model.logit_scale)) < 5 * upstream.NOISE  # type: ignore[arg-type]
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(found.logits, labels)))
    error = found.logits.softmax(-1) - nn.functional.one_hot(labels, 2)
    torch.testing.assert_close(gradient, (error * found.logits / s).sum() / 2, rtol=1e-4, atol=1e-4)
