"""Methods train as many parameters of a ViT-B/16 as the authors' code, or as its equations say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rmadapter.backbones import Backbone
from rmadapter.methods import load_method
from rmadapter.methods.clip_adapter import Bottleneck
from rmadapter.methods.hicropl import HiCroPL
from rmadapter.methods.prompt_kd import PromptKD

# A feature has 512 numbers, the width of the text encoder; the width of the image encoder is 768.
MAPLE = 9 * 2 * 512 + 9 * (512 * 768 + 768)  # prompts, and linear maps to the image encoder
MMRL_MAPS = 7 * (512 * 768 + 768) + 7 * (512 * 512 + 512)  # for seven blocks of either encoder
SHARED_MAPS = 768 * 512 + 7 * (768 * 4 + 4 * 512 + 768)
SHARED_MAPS += 512 * 512 + 7 * (512 * 4 + 4 * 512 + 512)
LWEIB = 12 * (9 * (768 + 3072) + 3 * (512 + 2048))
HEBA = sum(
    2 * width * (width // 4) + 2 * width + 9 * (width // 4) * conv
    for width, conv in ((768, 1), (3072, 1), (512, 0), (2048, 0))
)
# factors and shifts of both encoders, and a bridge of rank 32, for one place in a block
MAIL = 2 * (768 + 512) + 32 * (512 + 768)
ALIGN = 2 * 512 * 512 + 512 + 2 * 512


def block(width: int) -> int:
    """Attention, an MLP of four widths and two norms, with biases."""
    return 12 * width**2 + 13 * width


def student(size: int) -> int:
    """Nine blocks of prompts; for teacher features of `size`, two linear layers and a norm."""
    return 9 * 4 * 768 + (512 + 1) * size + 2 * size + (size + 1) * size


# For 100 classes of 16 shots; the second number: those for training alone.
COUNTS = {
    "tip-adapter": (0, 0),
    "tip-adapter-f": (1600 * 512, 0),  # `adapter.weight` of the released code
    "linear-probe": (100 * (512 + 1), 0),
    # `prototypes` in trainers/adapters.py of jusiro/CLAP
    "linear-probe-zero-shot": (100 * 512, 0),
    "ridge": (100 * 512, 0),
    "clap": (100 * 512, 0),
    # `classifier` with a bias, and `alpha_vec`, in methods/linear_probe_p2.py of the released code
    "lp-plus-plus": (100 * (512 + 1) + 100, 0),
    "clip-adapter": (2 * 512 * 128, 0),
    "hoso-adapter": (2 * 512 * 128 + 1, 0),
    "biclip": (512 * 513 // 2, 0),  # what the mask of the released code leaves of `W`
    "prolip": (768 * 512, 0),  # 0.39 M in the authors' table
    "coop": (4 * 512, 0),
    "coop-few-shot": (16 * 512, 0),
    "kgcoop": (4 * 512, 0),  # the released trainer gives the optimiser "ctx" alone
    "cocoa-mix": (16 * 512, 0),
    # context; 512 -> 32 -> 512, both with biases
    "cocoop": (4 * 512 + (512 * 32 + 32) + (32 * 512 + 512), 0),
    # context; 512 -> 128 -> 4 * 512, both with biases
    "tcp": (4 * 512 + (512 * 128 + 128) + (128 * 2048 + 2048), 0),
    # Context; the extractor; and in training two convolutions of 1 x 1, the second with a bias (in
    # the code the first has one, too, that nothing can move), and a BatchNorm
    "text-refiner": (4 * 512 + 2 * 512 * 512 + ALIGN, ALIGN),
    # rank 2 for 3 matrices a block: the sum over get_lora_parameters of the released code
    "clip-lora": (12 * 3 * 2 * (768 + 768) + 12 * 3 * 2 * (512 + 512), 0),
    # Two norms a block: `trainable_norm_params` of the released code; and `classifier`
    "2sfs": (24 * 2 * (768 + 512) + 100 * 512, 0),
    "skip-tuning": (3 * (block(768) + block(512)) + (768 + 512) * 2 + (768 + 512) * 512, 0),
    "full-finetune": (12 * (block(768) + block(512)) + (768 + 512) * 2 + (768 + 512) * 512, 0),
    "maple": (MAPLE, 0),
    # MaPLe's, two scales and two shifts, and a linear layer
    "dept": (MAPLE + 4 * 512 + 100 * (512 + 1), 0),
    "promptsrc": (9 * (4 * 512 + 4 * 768), 0),
    # prompts and maps of 12 blocks, and two adapters 512-128-512
    "coprompt": (12 * (4 * 512 + 512 * 768 + 768) + 2 * 2 * 512 * 128, 0),
    "prompt-kd": (student(512), 0),
    # representations, maps into either encoder, and the projection of their features
    "mmrl": (5 * 512 + MMRL_MAPS + 768 * 512, 0),
    "mmrl-plus-plus": (5 * 512 + SHARED_MAPS + (768 + 512) * 64, 0),
    # all but 9 for each number in the top image block's MLP, which the class token never reads
    "lweib": (LWEIB - 9 * 3072, 0),
    # less the top image block's bottleneck in the MLP
    "heba": (12 * HEBA - (2 * 3072 * 768 + 2 * 3072 + 9 * 768), 0),
    # four places in 12 blocks, the norm above them, the place behind the projections, and these
    "mail": (49 * MAIL + 2 * (512 + 512) + 32 * (512 + 512) + (768 + 512) * 512, 0),
    "mma": (674_560, 0),
    "mma-adamw": (674_560, 0),
    "rmadapter": (1_020_928, 354_816),
    "rmadapter-paper": (1_020_928, 354_816),
    "rmadapter-plain": (1_020_928 - 354_816, 0),
}
PUBLISHED = {"cocoop": 35_360, "maple": 3_555_072, "dept": 3_608_420, "promptsrc": 46_080}
PUBLISHED |= {"coprompt": 5_014_528, "prompt-kd": 553_984, "mmrl": 4_992_256, "tcp": 331_904}
PUBLISHED |= {"mmrl-plus-plus": 813_312, "lweib": 479_232}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_released_code(name: str, vit_b16: Backbone) -> None:
    found = load_method(name).parameters(vit_b16, classes=100, shots=16)
    assert found == COUNTS[name]
    assert found.trained == PUBLISHED.get(name, found.trained)


def test_parameters_of_other_widths(vit_b16: Backbone) -> None:
    # 1024 x 256 twice, without biases: `Adapter(1024, 4)` of the released code for ResNet-50
    resnet: Any = SimpleNamespace(embedding_size=1024, with_blocks=lambda *sides: None)
    assert sum(p.numel() for p in Bottleneck(resnet, 4, 0.2).parameters()) == 2 * 1024 * 256
    large = PromptKD()._student(vit_b16, 768)
    assert sum(p.numel() for p in large.parameters()) == student(768) == 1_013_760


def test_parameters_of_hicropl(tiny_clip: Backbone) -> None:
    """Prompts, a proxy for each guiding block of either side, and two mappers."""

    def count(blocks: int, tokens: int, text: int, image: int) -> int:
        proxies = sum(blocks // 2 * (4 * w * w + 9 * w) for w in (text, image))
        widths = ((text, image), (image, text))
        mappers = sum(13 * w * w + 2 * w * other + 16 * w for w, other in widths)
        return blocks * tokens * (text + image) + proxies + mappers

    assert HiCroPL(n_ctx=2).parameters(tiny_clip) == (count(4, 2, 48, 64), 0)
    assert count(12, 16, 512, 768) == 33_431_040  # docs/reference/methods.md, and a ViT-B/16
