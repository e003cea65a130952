"""Write a small clone of CoOp's repository, as `research/scripts/upstream.py` expects it."""

from __future__ import annotations

from pathlib import Path

import originals
import parity
import pytest


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the vectors of the 49,408 words from 512 to 64 numbers."""
    for file in (parity, originals):
        monkeypatch.setattr(file, "WIDTHS", (128, 64))


CLIP = """
import open_clip

_MODELS = {"ViT-B/16": "https://example.org/ViT-B-16.pt"}
tokenize = open_clip.SimpleTokenizer()


def _download(url):
    raise OSError("nobody asks " + url)


def build_model(weights):
    width, patch = weights["visual.conv1.weight"].shape[::3]
    blocks = {name.split(".")[2] for name in weights if name.startswith("transformer.resblocks")}
    size = round((len(weights["visual.positional_embedding"]) - 1) ** 0.5) * patch
    vision = {"image_size": size, "patch_size": patch, "width": width, "layers": len(blocks)}
    size = len(weights["ln_final.weight"])
    text = {"width": size, "heads": size // 64, "layers": len(blocks)}
    model = open_clip.CLIP(weights["text_projection"].shape[1], vision, text, quick_gelu=True)
    model.load_state_dict(weights)
    return model.eval()
"""


COOP = """
import torch
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_optimizer
from torch import nn
from torch.nn import functional as F

from clip import clip


def load(cfg):
    path = clip._download(clip._MODELS[cfg.MODEL.BACKBONE.NAME])
    try:
        weights = torch.jit.load(path).state_dict()
    except RuntimeError:
        weights = torch.load(path)
    return clip.build_model(weights)


class Model(nn.Module):
    def __init__(self, cfg, names, model):
        super().__init__()
        self.clip, self.prompt_learner = model.half().cuda(), nn.Module()
        coop = cfg.TRAINER.COOP
        self.tokens = torch.cat([clip.tokenize(f"{coop.CTX_INIT} {name}.") for name in names])
        self.words = model.token_embedding(self.tokens).detach()
        self.prompt_learner.ctx = nn.Parameter(self.words[0, 1 : 1 + coop.N_CTX].clone())

    def forward(self, images):
        model, ctx, count = self.clip, self.prompt_learner.ctx, len(self.tokens)
        start, end = self.words[:, :1], self.words[:, 1 + len(ctx) :]
        x = torch.cat([start, ctx.expand(count, -1, -1), end], 1)
        x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
        w = model.ln_final(x)[torch.arange(count), self.tokens.argmax(-1)] @ model.text_projection
        images = F.normalize(model.encode_image(images), dim=-1)
        return model.logit_scale.exp() * images @ F.normalize(w, dim=-1).T


@TRAINER_REGISTRY.register()
class CoOp(TrainerX):
    def build_model(self):
        self.model = Model(self.cfg, self.dm.dataset.classnames, load(self.cfg))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("prompt_learner" in name)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.register_model("prompt_learner", self.model, self.optim, None)
        print("built")

    def forward_backward(self, batch):
        logits = self.model(batch["img"].cuda())
        loss = F.cross_entropy(logits, batch["label"])
        self.model_backward_and_update(loss)
        return {"loss": loss.item(), "acc": compute_accuracy(logits, batch["label"])[0].item()}
"""


def write_clone(folder: Path, wrong: tuple[str, str] = ("", "")) -> Path:
    """Write a plain CoOp where its authors have it. wrong: a piece of the text and its
    replacement."""
    assert wrong[0] in COOP
    for name, text in (("clip", CLIP), ("trainers", COOP.replace(*wrong) if wrong[0] else COOP)):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
        (folder / name / f"{'clip' if name == 'clip' else 'coop'}.py").write_text(
            text, encoding="utf-8", newline="\n"
        )
    return folder
