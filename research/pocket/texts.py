"""Step 6: labels of all pools as weighted texts, and MiniLM's states of all texts (minutes).

Reads the keys of all pools; writes into WORK: POOL_labels.npy; labels.json, for each label its
texts, its place among the teacher's 1000 classes (or -1) and its weight; texts.npy, float16 [6
templates, texts, 384]; sentences.npy, which texts stand alone; class_texts.npy, float32 [1000, 9
prompts, 384].
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from labels import Labels
from pools import POOLS, read, write

from rmadapter.backbones import Backbone, load_backbone

TEMPLATES = (
    "{}", "a photo of a {}.", "a picture of a {}.", "a drawing of a {}.", "an icon of a {}.",
    "an emoji of a {}.",
)  # fmt: skip
PLAIN_PROMPT = 1  # "a photo of a {}." among the prompts of a class
SENTENCE = 5  # more words than this need no template
LONGEST = 40  # tokens


@torch.inference_mode()
def embed(texts: list[str], backbone: Backbone, batch: int = 256) -> torch.Tensor:
    """Average the token states before the projection, [N, 384], not normalised; texts of similar
    length go together."""
    model: Any = backbone.model
    tokenizer: Any = backbone.tokenizer
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    result = torch.zeros(len(texts), model.text.config.hidden_size)
    for start in range(0, len(texts), batch):
        part = order[start : start + batch]
        tokens = tokenizer.tokenizer(
            [texts[i] for i in part],
            padding=True,
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
        )
        states = model.text.transformer(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].to(states.dtype)
        result[part] = (states * mask).sum(1) / mask.sum(1)
    return result


def label_pools(work: Path, labels: Labels) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the labels and the texts that they are made of; -1 in POOL_labels.npy stands for
    none."""
    listed: list[dict[str, Any]] = []
    numbers: dict[str, int] = {}
    texts: dict[str, int] = {}
    for pool in POOLS:
        rows = []
        for key in read(work / f"{pool}_keys.json"):
            written = json.dumps(key)
            if written not in numbers:
                numbers[written] = -1
                if weighted := labels.of(key):
                    numbers[written] = len(listed)
                    pairs = [
                        (texts.setdefault(text, len(texts)), weight) for text, weight in weighted
                    ]
                    listed.append(
                        {"texts": pairs, "place": labels.place(key), "weight": labels.weight(key)}
                    )
            rows.append(numbers[written])
        np.save(work / f"{pool}_labels.npy", np.array(rows, np.int32))
    return listed, list(texts)


def class_prompts(labels: Labels) -> list[list[str]]:
    """Make nine prompts for each of the teacher's classes."""
    prompts = []
    for wnid in labels.wnids:
        name = labels.classnames[wnid]
        others = [word for word in labels.synonyms(wnid) if word.lower() != name.lower()]
        first, second = [*others, name, name][:2]
        named = [template.format(name) for template in (*TEMPLATES[:4], "a photo of the {}.")]
        photos = [
            f"a low resolution photo of a {name}.",
            f"a photo of a {first}.",
            f"a photo of a {second}.",
        ]
        prompts.append([*named, *photos, f"{name}, {labels.definition(wnid)}"])
    return prompts


def embed_texts(texts: list[str], alone: np.ndarray, backbone: Backbone) -> np.ndarray:
    """Return float16 [6, texts, 384]; a sentence has the same state under each template."""
    states = np.zeros((len(TEMPLATES), len(texts), 384), np.float16)
    words = np.flatnonzero(~alone)
    for number, template in enumerate(TEMPLATES):
        states[number, words] = (
            embed([template.format(texts[i]) for i in words], backbone).half().numpy()
        )
    sentences = np.flatnonzero(alone)
    states[:, sentences] = embed([f"{texts[i]}." for i in sentences], backbone).half().numpy()
    return states


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=Path, required=True, help="folder of step 1")
    parser.add_argument("--work", type=Path, required=True, help="folder of steps 2 to 5")
    parser.add_argument(
        "--classnames",
        type=Path,
        required=True,
        help="text file with lines 'wnid name', 1000 of them",
    )
    arguments = parser.parse_args()
    lines = arguments.classnames.read_text(encoding="utf-8").splitlines()
    classnames = dict(line.strip().split(" ", 1) for line in lines if line.strip())
    labels = Labels(arguments.sources, read(arguments.work / "nouns.json"), classnames)
    listed, texts = label_pools(arguments.work, labels)
    alone = np.array([len(text.split()) > SENTENCE for text in texts])
    print(f"{len(listed)} labels, {len(texts)} texts, {alone.sum()} of them sentences", flush=True)
    write(arguments.work / "labels.json", listed)
    np.save(arguments.work / "sentences.npy", alone)
    backbone = load_backbone("pocket")  # the text encoder is not trained
    np.save(arguments.work / "texts.npy", embed_texts(texts, alone, backbone))
    prompts = class_prompts(labels)
    states = embed([prompt for some in prompts for prompt in some], backbone)
    np.save(arguments.work / "class_texts.npy", states.unflatten(0, (len(prompts), -1)).numpy())


if __name__ == "__main__":
    main()
