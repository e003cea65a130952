"""Step 2: MiniLM's embeddings of 11 sentences for each of the 1000 ImageNet classes, and of the selection classes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from sources import SELECTION, imagenet_wnids, mean_pooled, text_source
from timm.data.imagenet_info import ImageNetInfo
from transformers import BertModel, PreTrainedTokenizerBase

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "{}",
    "a cropped photo of a {}.",
    "a low resolution photo of a {}.",
)


def sentences(classnames: dict[str, str]) -> list[list[str]]:
    """11 sentences a class: six templates, two WordNet synonyms in a template, one alone, name with its definition."""
    info = ImageNetInfo("imagenet-1k")
    result = []
    for index, wnid in enumerate(imagenet_wnids()):
        name = classnames[wnid]
        lemmas = [lemma.strip() for lemma in info.index_to_description(index).split(",")]
        synonyms = [lemma for lemma in lemmas if lemma.lower() != name.lower()][:2]
        first, second = [*synonyms, name, name][:2]
        definition = info.index_to_description(index, detailed=True).split(":", 1)[1].strip()
        result.append(
            [template.format(name) for template in TEMPLATES]
            + [f"a photo of a {first}.", f"a photo of a {second}.", first]
            + [f"{name}, {definition}", f"a photo of a {name}: {definition}"]
        )
    return result


@torch.inference_mode()
def embed(texts: list[str], model: BertModel, tokenizer: PreTrainedTokenizerBase, batch: int = 128) -> torch.Tensor:
    """[N, 384], not normalised; texts of similar length go together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    result = torch.zeros(len(texts), model.config.hidden_size)
    for start in range(0, len(texts), batch):
        part = order[start : start + batch]
        tokens = tokenizer([texts[i] for i in part], padding=True, truncation=True, max_length=40, return_tensors="pt")
        result[part] = mean_pooled(model(**tokens).last_hidden_state, tokens["attention_mask"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of step 1")
    parser.add_argument("--classnames", type=Path, required=True, help="text file with lines 'wnid name', 1000 of them")
    arguments = parser.parse_args()
    lines = arguments.classnames.read_text(encoding="utf-8").splitlines()
    classnames = dict(line.split(" ", 1) for line in lines)
    model, tokenizer = text_source(arguments.work)
    texts = sentences(classnames)
    flat = [sentence for group in texts for sentence in group]
    embeddings = embed(flat, model, tokenizer).view(len(texts), len(texts[0]), -1)
    np.save(arguments.work / "class_texts.npy", embeddings.numpy())
    for pool in ("tiny", *SELECTION):
        names = json.loads((arguments.work / f"{pool}_classes.json").read_text())
        prompts = [f"a photo of a {classnames.get(name, name)}." for name in names]
        np.save(arguments.work / f"{pool}_texts.npy", embed(prompts, model, tokenizer).numpy())
    print(len(flat), "sentences")


if __name__ == "__main__":
    main()
