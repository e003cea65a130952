"""Cite the papers of methods in BibTeX, by what their sources say."""

from __future__ import annotations

import re

# "Zhou et al., IJCV 2022 (arXiv 2109.01134); ..." and "ZS-LP of Silva-Rodriguez et al., ..."
PAPER = re.compile(
    r"(?:[\w-]+ of )?(?P<authors>[A-Z][\w-]+(?: et al\.| (?:and|&) [\w ]+)?), "
    r"(?P<venue>[\w .-]*?\d\d)(?![.\d])"
)
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")
# titles of papers by their number, or as a source without one begins
TITLES = {
    "2103.00020": "Learning Transferable Visual Models From Natural Language Supervision",
    "2109.01134": "Learning to Prompt for Vision-Language Models",
    "2110.04544": "CLIP-Adapter: Better Vision-Language Models with Feature Adapters",
    "2203.05557": "Conditional Prompt Learning for Vision-Language Models",
    "2205.14865": "Prompt-aligned Gradient for Prompt Tuning",
    "2207.09519": "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification",
    "2209.03320": "What does a platypus look like? Generating customized prompts for zero-shot "
    "image classification",
    "2209.07511": "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models",
    "2210.03117": "MaPLe: Multi-modal Prompt Learning",
    "2303.13283": "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization",
    "2306.01195": "Consistency-guided Prompt Learning for Vision-Language Models",
    "2307.06948": "Self-regulating Prompts: Foundational Model Adaptation without Forgetting",
    "2309.07439": "DePT: Decoupled Prompt Tuning",
    "2311.18231": "TCP: Textual-based Class-aware Prompt tuning for Visual-Language Model",
    "2312.12730": "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models",
    "2402.04087": "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation",
    "2403.03781": "PromptKD: Unsupervised Prompt Distillation for Vision-Language Models",
    "2403.18293": "Efficient Test-Time Adaptation of Vision-Language Models",
    "2404.02285": "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP",
    "2405.18541": "Low-Rank Few-Shot Adaptation of Vision-Language Models",
    "2410.05270": "CLIP's Visual Embedding Projector is a Few-shot Cornucopia",
    "2412.08176": "TextRefiner: Internal Visual Feature as Efficient Refiner for Vision-Language "
    "Models Prompt Tuning",
    "2412.11509": "Skip Tuning: Pre-trained Vision-Language Models are Effective and Efficient "
    "Adapters Themselves",
    "2501.03729": "Realistic Test-Time Adaptation of Vision-Language Models",
    "2501.11175": "ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language "
    "Models",
    "2503.08497": "MMRL: Multi-Modal Representation Learning for Vision-Language Models",
    "2503.11609": "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages",
    "2505.10088": "MMRL++: Parameter-Efficient and Interaction-Aware Representation Learning for "
    "Vision-Language Models",
    "2506.07484": "Confusion-and-Confidence-Aware Mixture Model for Context Optimization",
    "2506.17500": "Few-Shot, Now for Real: Medical VLMs Adaptation without Balanced Sets or "
    "Validation",
    "2507.14976": "Hierarchical Cross-modal Prompt Learning for Vision-Language Models",
    "2512.06811": "RMAdapter: Reconstruction-based Multi-Modal Adapter for Vision-Language Models",
    "2603.00478": "Benchmarking Few-shot Transferability of Pre-trained Models with Improved "
    "Evaluation Protocols",
    "2603.02959": "Semi-Supervised Few-Shot Adaptation of Vision-Language Models",
    "2603.04341": "Hold-One-Shot-Out (HOSO) for Validation-Free Few-Shot CLIP Adapters",
    "2603.08942": "BiCLIP: Domain Canonicalization via Structured Geometric Transformation",
    "2603.11542": "ReHARK: Refined Hybrid Adaptive RBF Kernels for Robust One-Shot Vision-Language "
    "Adaptation",
    "2603.16653": "HeBA: Heterogeneous Bottleneck Adapters for Robust Vision-Language Models",
    "Lin et al., AAAI-26": "RMAdapter: Reconstruction-based Multi-Modal Adapter for "
    "Vision-Language Models",
    "Yang et al., CVPR 2024": "MMA: Multi-Modal Adapter for Vision-Language Models",
    "Yang et al., IJCV 2025": "Learning with Enriched Inductive Biases for Vision-Language Models",
}


def bibtex(name: str, title: str, source: str) -> str:
    """Return an entry for the paper of a method; "" for a method of this project, and for a source
    that names no authors.

    A source names the first author and the place of publication; the entry of a paper that is not
    among `TITLES` has the method's title.

    Args:
        name: Name of the method, the entry's key.
        title: Title of the method.
        source: Source of the method.
    """
    paper = PAPER.match(source)
    if paper is None:
        return ""
    number = ARXIV.search(source.partition(";")[0])
    fields = {
        "author": paper["authors"].replace(" et al.", " and others").replace("&", "and"),
        "title": f"{{{TITLES.get(number[1] if number else paper[0], title)}}}",
        "howpublished": paper["venue"],
    }
    if number:
        fields |= {"eprint": number[1], "archiveprefix": "arXiv"}
    return "\n".join(
        [
            f"@misc{{{name},",
            *(f"  {field} = {{{text}}}," for field, text in fields.items()),
            "}\n",
        ]
    )
