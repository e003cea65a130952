"""tools/upstream.py with a repository that the test writes: what is imported from it, and what is
left behind."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import originals
import parity
import pytest
import torch
import upstream
from originals import PEERS
from torch import Tensor, nn
from upstream import LEFT, imported, theirs

from rmadapter.errors import UserError
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


def test_a_clone_with_a_clip_of_another_name_and_more_sections(tmp_path: Path) -> None:
    pixels, labels = torch.randn(2, 3, upstream.SIZE, upstream.SIZE), torch.tensor([1, 0])
    given = parity.tiny_clip().model.state_dict(), ("cat", "sea lion"), pixels, labels
    expected = theirs(PEERS["coop"], write_clone(tmp_path / "plain"), *given)
    clone = write_clone(
        tmp_path / "other",
        ("from clip import clip", "from plotnine import *\nfrom clip_maple import clip"),
    )
    (clone / "clip").rename(clone / "clip_maple")
    more = {"TRAINER": {"OTHER": {"N_CTX": 2}}}
    found = theirs(replace(PEERS["coop"], clip="clip_maple", more=more), clone, *given)
    torch.testing.assert_close(found.logits, expected.logits)
    assert not [name for name in sys.modules if name.partition(".")[0] in LEFT]


def test_it_runs_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a clone that is named from here."""
    pixels, labels = torch.randn(2, 3, upstream.SIZE, upstream.SIZE), torch.tensor([1, 0])
    write_clone(tmp_path / "clone", ('print("built")', 'open("left.txt", "x").close()'))
    monkeypatch.chdir(tmp_path)
    theirs(
        PEERS["coop"],
        Path("clone"),
        parity.tiny_clip().model.state_dict(),
        ("cat", "sea lion"),
        pixels,
        labels,
    )
    assert Path.cwd() == tmp_path
    assert not [*tmp_path.rglob("left.txt")]


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


def test_what_is_no_clone(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no trainers/coop.py there; give the folder of the authors' repository"
    ):
        theirs(PEERS["coop"], tmp_path, {}, (), torch.empty(0), torch.empty(0))
    clone = write_clone(tmp_path, ("import torch\n", "import nothing_of_this_name\n"))
    with (
        pytest.raises(
            UserError,
            match="No module named 'nothing_of_this_name'; install what the authors' code needs",
        ),
        imported(clone, "trainers.coop", {}),
    ):
        pass
    assert not [name for name in sys.modules if name.partition(".")[0] in LEFT]


ENGINE = """
import nothing_of_this_name


class Engine:
    def own_backward(self, loss, scale):
        self.model_zero_grad(None)
        for name in self.get_model_names(None):
            (scale * loss).backward(retain_graph=True)
            self._optims[name].zero_grad()
            loss.backward()
            self.detect_anomaly(torch.zeros(1))
            self._optims[name].step()
"""


def test_a_step_of_the_authors_own_dassl(tmp_path: Path) -> None:
    """Of a file that cannot be imported; the gradient that it takes back is gone."""
    backbone, plain, peer = parity.tiny_clip(), write_clone(tmp_path / "plain"), PEERS["coop"]
    pixels, labels = torch.randn(2, 3, upstream.SIZE, upstream.SIZE), torch.tensor([1, 0])
    own = "self.own_backward(loss, 2)"
    write_clone(tmp_path / "other" / "inner", ("self.model_backward_and_update(loss)", own))
    given = backbone.model.state_dict(), ("cat", "sea lion"), pixels, labels
    expected = theirs(peer, plain, *given)
    other = replace(
        peer,
        folder="inner",
        engine="dassl/engine.py:own_backward",
        loss=lambda told: 2 * told["loss"],
    )
    with pytest.raises(UserError, match=r"no own_backward in dassl/engine.py; give the folder"):
        theirs(other, tmp_path / "other", *given)
    (tmp_path / "other" / "dassl").mkdir()
    (tmp_path / "other" / "dassl" / "engine.py").write_text(ENGINE)
    found = theirs(other, tmp_path / "other", *given)
    assert found.loss == 2 * expected.loss
    for one, same in zip(
        found.tensors["prompt_learner.ctx"], expected.tensors["prompt_learner.ctx"], strict=True
    ):
        torch.testing.assert_close(one, same)
    assert not hasattr(upstream.Trainer, "own_backward")


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
    texts = torch.cat([clip.tokenize(dataset.template[0].format(name)) for name in dataset.classnames]).cuda()
    w = F.normalize(model.encode_text(texts), dim=-1)
    for images, labels in train:
        logits = scale * model.logit_scale * F.normalize(model.encode_image(images.cuda()), dim=-1) @ w.T
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
