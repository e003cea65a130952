"""The authors' code that `parity.py` knows: where it is, its configuration, and what our tensors are called there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from types import ModuleType
from typing import Any

from torch import Tensor

DEPTH, WIDTHS = 3, (768, 512)  # MaPLe's authors wrote these widths into their code
BLOCKS = range(2, DEPTH + 1)  # of methods that leave the lower ones alone


@dataclass(frozen=True)
class Peer:
    """Where the authors' code stands, its configuration, and our settings that are the same.

    code: module and trainer, or function. section: of Dassl's configuration; "" for code that is not built on Dassl.
    names: of our tensors in theirs, with or without ".weight" and ".bias". settings: may read the authors' module.
    taken: the logits in what their model answers. inner: the part of what we train that has the tensors, where it is
    not the whole. more: other sections. folder: of the code within the repository. engine: file and name of a function
    of the authors' own Dassl, which trains. loss: of what their step tells. labels: of the images.
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
    folder: str = ""
    engine: str = ""
    loss: Callable[[Mapping[str, float]], float] = itemgetter("loss")
    labels: tuple[int, ...] = (0, 1, 2, 3, 0, 1)

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
    "prograd": Peer(
        "BeierZhu/Prompt-align", "trainers.prograd:ProGrad", "COOP",
        {**INIT, "N_CTX": 16, "CSC": False, "CLASS_TOKEN_POSITION": "end"},
        {"ctx": "prompt_learner.ctx"},
        more={"DATASET": {"NAME": "Caltech101"}, "LOSS": {"NAME": "prograd", "T": 1.0, "LAMBDA": 1.0}},
        folder="ProGrad.public",
        engine="Dassl.ProGrad.pytorch/dassl/engine/trainer.py:prograd_backward_and_update",
        loss=lambda told: told["xe_loss"] + told["kl_loss"],
        labels=(0, 0, 0, 0, 1, 1),  # whose gradient stands against the other one
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
