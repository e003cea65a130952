"""The authors' code that `parity.py` can compare with: where it is, its configuration, and its
names of our tensors.

A method's entry is made for an encoder size: a small one, on which `parity.py` compares, or a whole
ViT-B/16, on which `benchmarks/public.py` takes times.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor, zeros

from rmadapter.prompts import stems

# one per class, as theirs and ours draw differently from several
ONE_TEXT = Path(__file__).with_name("one_text.json")
DEPTH, WIDTHS = 3, (768, 512)  # MaPLe's authors hard-coded these widths


class Sizes(NamedTuple):
    """depth: blocks of each encoder. first: the lowest one with adapters or representation tokens.
    prompted: number of blocks with prompts."""

    depth: int
    first: int
    prompted: int

    @property
    def blocks(self) -> range:
        """The blocks with adapters or representation tokens."""
        return range(self.first, self.depth + 1)


@dataclass(frozen=True)
class Peer:
    """Where the authors' code is, its configuration, and our settings that mean the same.

    code: module and trainer, or function. section: of Dassl's configuration; "" for code that is
    not built on Dassl. names: our tensors -> theirs, with or without ".weight" and ".bias".
    settings: ours; may read the authors' module. taken: gets the logits from their model's answer.
    inner: the part of our module with the tensors, if it is not the whole. answering: the part of
    `inner` whose state answers. more: other sections, and more of the trainer's. clip: the package
    of their CLIP. folder: of the code within the repository. engine: file and name of a training
    function in the authors' own Dassl. loss: from what their step returns. labels: of the images.
    prepare: called with the authors' module before anything is built. whole: the trainer's
    attribute with all that is trained. ask: (trainer, images) -> the answer for `taken`. kept: our
    buffers, which are not trained -> how to get theirs from a trainer. idle: tensors of theirs that
    nothing can move, and that ours lacks. still: our tensors whose gradient is only rounding.
    later: our tensors that only a later stage trains -> their values in front of it, from our
    module and the shots. marks: for code not built on Dassl, its function that chooses what is
    trained. depth: blocks of the small CLIP's encoders, if their code needs another number than the
    usual one.
    """

    repository: str
    code: str
    section: str
    config: Mapping[str, Any]
    names: Mapping[str, str]
    settings: Callable[[ModuleType], Mapping[str, Any]] = lambda module: {}
    taken: Callable[[Any], Tensor] = lambda answer: answer
    inner: str = ""
    answering: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)
    clip: str = "clip"
    folder: str = ""
    engine: str = ""
    loss: Callable[[Mapping[str, float]], float] = itemgetter("loss")
    labels: tuple[int, ...] = (0, 1, 2, 3, 0, 1)
    prepare: Callable[[ModuleType], object] = lambda module: None
    whole: str = "model"
    ask: Callable[[Any, Tensor], Any] = lambda trainer, pixels: trainer.model(pixels)
    kept: Mapping[str, Callable[[Any], Tensor]] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    still: tuple[str, ...] = ()
    later: Mapping[str, Callable[[Any, Any], Tensor]] = field(default_factory=dict)
    marks: str = ""
    depth: int = 0

    def called(self, name: str) -> str:
        """Return the name of one of our tensors in their code."""
        head, _, leaf = name.rpartition(".")
        return self.names[name] if name in self.names else f"{self.names[head]}.{leaf}"


def _refined(answer: tuple[Any, tuple[Any, ...]]) -> Tensor:
    """Return the logits of TextRefiner, whose trainer calls its memory itself."""
    memory, (classes, images, scale, *_) = answer
    logits: Tensor = scale * images @ memory(classes)[0].T
    return logits


INIT = {"CTX_INIT": "a photo of a", "PREC": "fp32"}
REP, ALIGNER = "representation_learner.compound_rep_tokens", "representation_learner.srra"
COMPOUND, ADAPTER = "prompt_learner.compound_prompt", "adapter_learner"
STUDENT = (("down", 0), ("norm", 1), ("up", 3))
META_NET = {"down": "prompt_learner.meta_net.linear1", "up": "prompt_learner.meta_net.linear2"}


def _numbered(ours: str, theirs: str, count: int) -> dict[str, str]:
    """Name our tensors 1, 2, ..., which theirs number from 0."""
    return {f"{ours}.{i}": f"{theirs}.{i - 1}" for i in range(1, count)}


def one_text_per_class(module: Any) -> None:
    """Have the authors' module read ONE_TEXT."""
    vars(module).update(load_CuPL_templates=lambda _: json.loads(ONE_TEXT.read_text()))


def class_features(own: Any, shots: Any) -> Tensor:
    """Return 2SFS's class features at the start of its second stage."""
    prompts = stems(own.backbone, shots.classes, shots.templates)
    features: Tensor = own.class_features(prompts, 1)
    return features


def taught_nothing(module: Any) -> None:
    """Give PromptKD's trainer a teacher whose prompts are zeros, like ours before its first step,
    and which is as wide as the student; the authors hard-coded a projection from a width of 768."""
    names = {"image_encoder.VPT": 0, "prompt_learner.ctx": 1}
    for side, encoder in enumerate(("image_encoder", "text_encoder")):
        names |= {f"{encoder}.transformer.resblocks.{i}.VPT_shallow": side for i in range(1, DEPTH)}
    state = {name: zeros(4, WIDTHS[side]) for name, side in names.items()}
    module.load_checkpoint = lambda _: {"state_dict": state}
    projection = module.Feature_Trans_Module_two_layer
    start = projection.__init__
    projection.__init__ = lambda self, *_: start(self, WIDTHS[1], WIDTHS[1])


def by_the_teachers_classes(trainer: Any, pixels: Tensor) -> Tensor:
    features, scale = trainer.model.eval()(pixels)
    return scale * features @ trainer.model_teacher(pixels)[1].T


def one_view_twice(module: Any) -> None:
    """Give CoPrompt's trainer each image as both of its views, and descriptions in the file that it
    opens."""
    module.CoPrompt.parse_batch_train = lambda self, batch: (
        batch["img"],
        batch["img"],
        batch["label"],
    )
    Path("gpt_file").mkdir()
    shutil.copyfile(ONE_TEXT, "gpt_file/caltech_prompt.json")


# The lists of MAIL's layers by what they follow; its code swaps the names of the last two.
AGENTS = {
    "norm": "ln_proj_layers_att", "norm2": "ln_proj_layers_mlp",
    "attention": "mlp_proj_layers_mlp", "mlp": "att_proj_layers_att",
}  # fmt: skip


def _agents(depth: int) -> dict[str, str]:
    """Name MAIL's agent layers, whose code keeps those of both encoders together."""
    places = {
        f"{block}.{place}": f"mail_learner.{layers}.{block - 1}"
        for block in range(1, depth + 1)
        for place, layers in AGENTS.items()
    }
    places |= {"top.norm": "last_ln", "top.projection": "last_adapter"}
    names = {}
    for ours, theirs in places.items():
        for side, v in (("image", "visual"), ("text", "text")):
            names[f"agents.{side}.{ours}.scale"] = f"{theirs}.{v}_a"
            names[f"agents.{side}.{ours}.shift"] = f"{theirs}.{v}_b"
        for part in ("down", "up"):
            names[f"agents.image.{ours}.{part}"] = f"{theirs}.text_proj_{part}"
    return names


KNOWLEDGE = {"N_CTX": 4, "CSC": False, "CLASS_TOKEN_POSITION": "end", "PREC": "fp32", "W": 8.0}
MAKERS: dict[str, Callable[[Sizes], Peer]] = {
    "coop": lambda s: Peer(
        "KaiyangZhou/CoOp", "trainers.coop:CoOp", "COOP",
        {**INIT, "N_CTX": 4, "CSC": False, "CLASS_TOKEN_POSITION": "end"},
        {"ctx": "prompt_learner.ctx"},
    ),
    "cocoop": lambda s: Peer(
        "KaiyangZhou/CoOp", "trainers.cocoop:CoCoOp", "COCOOP", {**INIT, "N_CTX": 4},
        {"ctx": "prompt_learner.ctx", **META_NET},
    ),
    "kgcoop": lambda s: Peer(
        "htyao89/KgCoOp", "trainers.kgcoop:KgCoOp", "COOP", {**KNOWLEDGE, "CTX_INIT": True},
        {"ctx": "prompt_learner.ctx"},
        taken=itemgetter(0),
        more={"DATASET": {"NAME": "Caltech101"}, "TRAINER": {"COCOOP": {"PREC": "fp32"}}},
        folder="KgCoOp",
    ),
    "tcp": lambda s: Peer(
        "htyao89/Textual-based_Class-aware_prompt_tuning", "trainers.tcp:TCP", "COOP",
        {**KNOWLEDGE, "CTX_INIT": ""},
        {"ctx": "prompt_learner.ctx", **META_NET},
        more={"DATASET": {"NAME": "Caltech101"}, "TRAINER": {"COCOOP": {"PREC": "fp32"}}},
        clip="trainers.clip_text",
        depth=12,  # the authors' code replaces the context before the ninth block
    ),
    "prograd": lambda s: Peer(
        "BeierZhu/Prompt-align", "trainers.prograd:ProGrad", "COOP",
        {**INIT, "N_CTX": 16, "CSC": False, "CLASS_TOKEN_POSITION": "end"},
        {"ctx": "prompt_learner.ctx"},
        more={
            "DATASET": {"NAME": "Caltech101"},
            "LOSS": {"NAME": "prograd", "T": 1.0, "LAMBDA": 1.0},
        },
        folder="ProGrad.public",
        engine="Dassl.ProGrad.pytorch/dassl/engine/trainer.py:prograd_backward_and_update",
        loss=lambda summary: summary["xe_loss"] + summary["kl_loss"],
        labels=(0, 0, 0, 0, 1, 1),  # for these the gradients of the two losses conflict
    ),
    "text-refiner": lambda s: Peer(
        "xjjxmu/TextRefiner", "trainers.textrefiner:TextRefiner", "COOP",
        {**INIT, "N_CTX": 4, "CSC": False, "CLASS_TOKEN_POSITION": "end"},
        {
            "refiner.ctx": "0.prompt_learner.ctx",
            "refiner.map": "1.extractor",
            **{f"align.{i}": f"0.mid_image_trans.conv1.{i}" for i in (0, 1, 3)},
        },
        taken=_refined,
        answering="refiner",
        more={"TRAINER": {"TF": {"MEMORY_SIZE": 25, "ALPHA": 0.2, "BALANCE": 50, "DISTILL": 20}}},
        whole="trainable_list",
        ask=lambda trainer, pixels: (trainer.memory, trainer.model(pixels)),
        kept={"refiner.cache": lambda trainer: trainer.memory.text_fine_cache},
        idle=("0.mid_image_trans.conv1.0.bias",),  # the BatchNorm after it cancels it
    ),
    "maple": lambda s: Peer(
        "muzairkhattak/multimodal-prompt-learning", "trainers.maple:MaPLe", "MAPLE",
        {**INIT, "N_CTX": 2, "PROMPT_DEPTH": s.prompted},
        {
            "prompts.0": "prompt_learner.ctx",
            "maps.0": "prompt_learner.proj",
            **_numbered("prompts", f"{COMPOUND}s_text", s.prompted),
            **_numbered("maps", f"{COMPOUND}_projections", s.prompted),
        },
        lambda module: {"depth": s.prompted},
    ),
    "coprompt": lambda s: Peer(
        "ShuvenduRoy/CoPrompt", "trainers.coprompt:CoPrompt", "CoPrompt",
        {**INIT, "N_CTX": 4, "PROMPT_DEPTH": s.prompted},
        {
            **{f"coupled.{own}": name for own, name in MAKERS["maple"](s).names.items()},
            **{f"adapters.image.{i}": f"adapter_image.fc.{i}" for i in (0, 2)},
            **{f"adapters.text.{i}": f"adapter_text.fc.{i}" for i in (0, 2)},
        },
        lambda module: {"depth": s.prompted, "descriptions": str(ONE_TEXT)},
        more={"DATASET": {"NAME": "Caltech101"}, "TRAINER": {"W": 8.0, "DISTILL": "cosine"}},
        prepare=one_view_twice,
    ),
    "dept": lambda s: Peer(
        "Koorye/DePT", "trainers.elp_maple:ExtrasLinearProbeMaPLe", "MAPLE",
        {**INIT, "N_CTX": 2, "PROMPT_DEPTH": s.prompted},
        {
            **{f"prompts.{own}": name for own, name in MAKERS["maple"](s).names.items()},
            **{
                f"{side}.{own}": f"film_lp_{theirs}.{name}"
                for side, theirs in (("image", "img"), ("text", "text"))
                for own, name in (("scale", "scale"), ("shift", "bias"))
            },
            "head": "linear_probe_proj",
        },
        lambda module: {"depth": s.prompted},
        more={
            "DATASET": {"NAME": "Caltech101", "SUBSAMPLE_CLASSES": "base"},
            "OPTIM": {
                "NAME": "sgd", "LR": 0.0035, "LR_EXP": 6.5, "BASE_LR_MULT": 1.0, "STAGED_LR": True,
                "NEW_LAYERS": ["linear_probe", "film"], "WEIGHT_DECAY": 5e-4, "MOMENTUM": 0.9,
                "SGD_DAMPNING": 0,
                "SGD_NESTEROV": False, "RMSPROP_ALPHA": 0.99, "ADAM_BETA1": 0.9,
                "ADAM_BETA2": 0.999,
            },
            "TRAINER": {
                "NAMES_TO_UPDATE": ["prompt_learner", "linear_probe", "film"],
                "FILM": {"LINEAR_PROBE": True},
                "LINEAR_PROBE": {"TYPE": "linear", "WEIGHT": 0.7, "TEST_TIME_FUSION": True},
            },
        },
        clip="clip_maple",
    ),
    "promptsrc": lambda s: Peer(
        "muzairkhattak/PromptSRC", "trainers.promptsrc:PromptSRC", "PROMPTSRC",
        {
            **INIT, "N_CTX_VISION": 4, "N_CTX_TEXT": 4,
            "PROMPT_DEPTH_VISION": s.prompted, "PROMPT_DEPTH_TEXT": s.prompted,
            "TEXT_LOSS_WEIGHT": 25, "IMAGE_LOSS_WEIGHT": 10, "GPA_MEAN": 15, "GPA_STD": 1,
        },
        {
            "text_prompts.0": "prompt_learner.ctx",
            "image_prompts.0": "image_encoder.VPT",
            **{
                f"{side}_prompts.{i}": f"{side}_encoder.transformer.resblocks.{i}.VPT_shallow"
                for side in ("text", "image")
                for i in range(1, s.prompted)
            },
        },
        lambda module: {"depth": s.prompted, "templates": tuple(module.IMAGENET_TEMPLATES)},
        inner="prompts",
    ),
    "prompt-kd": lambda s: Peer(
        "zhengli97/PromptKD", "trainers.promptkd:PromptKD", "PROMPTKD",
        {
            **INIT, "N_CTX_VISION": 4, "N_CTX_TEXT": 4, "PROMPT_DEPTH_VISION": s.prompted,
            "PROMPT_DEPTH_TEXT": s.prompted, "TEACHER_NAME": "ViT-B/16", "TEMPERATURE": 2.0,
            "KD_WEIGHT": 1.0,
        },
        {
            "student.prompts.0": "image_encoder.VPT",
            **{
                f"student.prompts.{i}": f"image_encoder.transformer.resblocks.{i}.VPT_shallow"
                for i in range(1, s.prompted)
            },
            **{f"student.{ours}": f"VPT_image_trans.conv1.{i}" for ours, i in STUDENT},
        },
        lambda module: {"depth": s.prompted, "tau": 2.0, "weight": 1.0},
        ask=by_the_teachers_classes,
        still=("student.down.bias",),  # the norm after it cancels it
        more={"DATASET": {"NAME": "Caltech101"}, "TRAINER": {"MODAL": "cross", "NAME": "PromptKD"}},
        prepare=taught_nothing,
    ),
    "mmrl": lambda s: Peer(
        "yunncheng/MMRL", "trainers.mmrl:MMRL", "MMRL",
        {
            "ALPHA": 0.7, "REG_WEIGHT": 1.0, "N_REP_TOKENS": 5, "REP_DIM": 512,
            "REP_LAYERS": [*s.blocks], "PREC": "fp32",
        },
        {
            "space": REP,
            "projection": "image_encoder.proj_rep",
            **{f"maps.image.{b}": f"{REP}_r2vproj.{b - s.first}" for b in s.blocks},
            **{f"maps.text.{b}": f"{REP}_r2tproj.{b - s.first}" for b in s.blocks},
        },
        lambda module: {"first_block": s.first},
        taken=lambda answer: answer[2],  # from both features together, as ours for trained classes
        more={"DATASET": {"NAME": "Caltech101"}},  # its prompt is "a photo of a NAME."
    ),
    "mmrl-plus-plus": lambda s: Peer(
        "yunncheng/MMRL", "trainers.mmrlpp:MMRLpp", "MMRLpp",
        {
            "ALPHA": 0.7, "BETA": 0.9, "REG_WEIGHT": 1.0, "N_REP_TOKENS": 5, "REP_DIM": 512,
            "REP_LAYERS": [*s.blocks],
            "PROJ_LORA_DIM": 64, "RES_LORA_DIM": 4, "PREC": "fp32",
        },
        {
            "space": REP,
            "projection.a": "image_encoder.A",
            "projection.b": "image_encoder.B",
            "shared.image": f"{ALIGNER}_r2vproj.weight",
            "shared.text": f"{ALIGNER}_r2tproj.weight",
            **{
                f"maps.{side}.{b}.{ours}": f"{ALIGNER}_r2{v}proj.srra.{b - s.first}.{name}"
                for side, v in (("image", "v"), ("text", "t"))
                for b in s.blocks
                for ours, name in (("a", "A"), ("b", "B"), ("bias", "bias"))
            },
        },
        lambda module: {"first_block": s.first},
        taken=lambda answer: answer[2],
        more={"DATASET": {"NAME": "Caltech101"}},
    ),
    "lweib": lambda s: Peer(
        "ZjjConan/VLM-LwEIB", "trainers.lweib:LwEIB", "LWEIB",
        {
            "TEXT_CTX_INIT": "a photo of a", "PREC": "fp32", "ADAPTER_START": 1,
            "ADAPTER_END": s.depth,
            "ADAPTER_SCALE": 0.3, "ADAPTER_SCALE_FACTOR": 1.0, "SLOW_FAST_RATIO": 0.8,
            "NEG_SAMPLING_RATIO": 7,
        },
        {
            f"layers.{side}.{i}.{ours}": f"{ADAPTER}.{theirs}_adapter.{i + 1}.{part}_conv.conv"
            for side, theirs in (("image", "visual"), ("text", "text"))
            for i in range(s.depth)
            for ours, part in (("attention", "att"), ("mlp", "mlp"))
            if (side, i, ours) != ("image", s.depth - 1, "mlp")
        },
        lambda module: {"scale": 0.3, "fast": 1.0, "descriptions": str(ONE_TEXT)},
        more={"DATASET": {"NAME": "Caltech101"}},
        prepare=one_text_per_class,
    ),
    "mail": lambda s: Peer(
        "pSGAme/MAIL-for-Classification", "trainers.mailsrc:MAILSRC_Trainer", "MAILSRC_Trainer",
        {
            "PREC": "fp32", "RANK": 32, "IVLU_START_LAYER": 1, "IVLU_END_LAYER": 12,
            "START_LAYER": 1, "END_LAYER": 12, "PROJ": True, "PREFIX_INIT": "a photo of a",
            "POSTFIX_INIT": ".", "TEXT_LOSS_WEIGHT": 0.0, "IMAGE_LOSS_WEIGHT": 0.0,
            "LOGIT_LOSS_WEIGHT": 0.0,
        },
        {
            **_agents(s.depth),
            "projections.image": "image_encoder.proj",
            "projections.text": "text_encoder.text_projection",
        },
        more={"TRAINER": {"MAPLE": {"N_CTX": 2}}},
        clip="clip_mail",
    ),
    "mma": lambda s: Peer(
        "ZjjConan/Multi-Modal-Adapter", "trainers.mmadapter:MultiModalAdapter", "MMADAPTER",
        {
            "TEXT_CTX_INIT": "a photo of a", "PREC": "fp32", "ADAPTER_START": s.first,
            "ADAPTER_END": s.depth,
            "ADAPTER_DIM": 32, "ADAPTER_SCALE": 0.1,
        },
        {
            **{f"cross.{s.depth - b}": f"adapter_learner.shared_adapter.{b}.0" for b in s.blocks},
            **{f"image.{b}.down": f"adapter_learner.visual_adapter.{b}.down.0" for b in s.blocks},
            **{f"image.{b}.up": f"adapter_learner.visual_adapter.{b}.up" for b in s.blocks},
            **{f"text.{b}.down": f"adapter_learner.text_adapter.{b}.down.0" for b in s.blocks},
            **{f"text.{b}.up": f"adapter_learner.text_adapter.{b}.up" for b in s.blocks},
        },
        lambda module: {"first_block": s.first, "alpha": 0.1},
    ),
    "clip-lora": lambda s: Peer(
        "MaxZanella/CLIP-LoRA", "lora:run_lora", "",
        {
            "encoder": "both", "position": "all", "params": ["q", "k", "v"], "r": 2, "alpha": 1,
            "backbone": "ViT-B/16",
            "dropout_rate": 1e-9,  # drops nothing, but runs the code of their default, unlike 0
            "n_iters": 10**9, "shots": 1, "lr": 0.0, "eval_only": False, "save_path": None,
        },
        {
            f"updates.{side}.{i}.{j}.{ours}.weight": (
                f"{tower}.resblocks.{i}.attn.{part}_proj.w_lora_{matrix}"
            )
            for side, tower in enumerate(("visual.transformer", "transformer"))
            for i in range(s.depth)
            for j, part in enumerate("qkv")
            for ours, matrix in (("down", "A"), ("up", "B"))
        },
        lambda module: {"dropout": 0.0},
        marks="mark_only_lora_as_trainable",
    ),
    "2sfs": lambda s: Peer(
        "FarinaMatteo/rethinking_fewshot_vlms", "fs.twostage:run_twostage", "",
        {
            "peft": "ln", "ln_modality": "both", "ln_vision_start": 0, "ln_text_start": 0,
            "lr": 0.0, "wd": 0.01,
            "n_iters": 10**9, "n_iters_frac": 0.6, "shots": 1, "debug": False,
            "setting": "standard",
        },
        {
            f"norms.{2 * (s.depth * side + i) + j}": f"{tower}.resblocks.{i}.ln_{j + 1}"
            for side, tower in enumerate(("visual.transformer", "transformer"))
            for i in range(s.depth)
            for j in (0, 1)
        },
        marks="trainable_norm_params",
        later={"classes": class_features},
    ),
}  # fmt: skip
PEERS = {name: make(Sizes(DEPTH, first=2, prompted=DEPTH)) for name, make in MAKERS.items()}
