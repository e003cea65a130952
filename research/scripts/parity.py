"""Compare a method with its authors' code in one process: logits, loss and gradients of their
trainer and of ours.

    git clone https://github.com/ZjjConan/Multi-Modal-Adapter
    python research/scripts/parity.py mma --upstream Multi-Modal-Adapter

    python research/scripts/parity.py \\
        --page    # table and figure of docs/studies/parity.md, of all measured

Their trainer is imported from your clone and built unchanged, on a small CLIP of random weights
that our side uses too. What it trains gets noise and is copied into ours; then both answer the same
images and take the gradient of the same step. `originals.py` says what their code is, `upstream.py`
what stands in for Dassl and for a GPU. A clone's code is run: read it first. Exits with 1 if
anything differs by more than 1e-4.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import torch
from originals import DEPTH, PEERS, WIDTHS, Peer
from torch import Tensor
from upstream import SIZE, Theirs, theirs

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.settings import Machine
from rmadapter.support.files import read_json, read_text, write_json, write_text
from rmadapter.support.html import COLOURS, canvas
from rmadapter.support.machine import seeded, versions
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Shots, Trained
from rmadapter.training.loop import Batch

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "research/results/parity.json", ROOT / "docs/studies/parity.md"
RECORDS = ROOT / "research/results/parity.md"
BEGIN, END = "<!-- by parity.py --page, from parity.json -->", "<!-- end -->"
LIMIT = 1e-4
TRAINING = ("rmadapter.methods.", "rmadapter.training.contract")  # modules that call `minimise`
BY_HAND = ("hicropl", "clip-adapter", "tip-adapter-f")  # not in this tool
CLASSES = ("cat", "night sky", "red fire engine", "very small dog")
DIFFERENCES = {
    "logits": "largest difference of logits",
    "loss": "difference of the loss",
    "gradients": "largest difference of a tensor's gradient, relative to its largest number",
}


KEPT = "largest difference of what a step keeps besides"  # if there is any


def tiny_clip(depth: int = 0, seed: int = 0) -> Backbone:
    """Make OpenAI's architecture with random weights that are not 0, temperature 1/100. depth: of
    encoders, DEPTH if 0."""
    import open_clip

    vision: Any = {
        "image_size": SIZE,
        "patch_size": 16,
        "width": WIDTHS[0],
        "layers": depth or DEPTH,
    }
    text: Any = {"width": WIDTHS[1], "heads": WIDTHS[1] // 64, "layers": depth or DEPTH}
    with seeded(seed):
        model: Any = open_clip.CLIP(512, vision, text, quick_gelu=True)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.logit_scale.data.fill_(np.log(100))
    look = open_clip.image_transform(SIZE, is_train=False)
    tokenizer = open_clip.SimpleTokenizer()
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return Backbone("tiny", model.eval().requires_grad_(False), look, tokenizer, SIZE, mean, std)


def shots_of(peer: Peer, backbone: Backbone) -> Shots:
    """Make images of noise."""
    arrays = np.random.default_rng(0).integers(0, 256, (len(peer.labels), SIZE, SIZE, 3), np.uint8)
    cache = Cache(backbone, Machine(device="cpu"), progress=False)
    return Shots(ImageSet(tuple(arrays), peer.labels, CLASSES), cache, progress=False)


def compare(name: str, clone: Path) -> dict[str, Any]:
    """Measure the differences; return them with the sizes of what is compared and the versions.
    Raises UserError if the clone does not have the trainer, or trains other tensors."""
    peer = PEERS[name]
    backbone = tiny_clip(peer.depth)
    shots = shots_of(peer, backbone)
    pixels = shots.pixels(torch.arange(len(peer.labels)), 0, 1)
    step = theirs(peer, clone, backbone.model.state_dict(), CLASSES, pixels, shots.labels)
    return {
        "repository": peer.repository,
        "commit": commit(clone),
        "trained": sum(tensor.numel() for tensor, _ in step.tensors.values()),
        "largest logit": float(step.logits.abs().max()),
        **differences(name, peer, step, shots, pixels, clone),
        "versions": versions(),
    }


def differences(
    name: str, peer: Peer, step: Theirs, shots: Shots, pixels: Tensor, clone: Path
) -> dict[str, float]:
    """Return the differences between their results and ours, on all shots. Raises UserError if
    other tensors are trained."""
    method = load_method(name, step.settings)
    backbone = shots.cache.backbone
    rows = torch.arange(len(pixels))
    module, loss, _, _, source = untrained(method, shots)
    inner = getattr(module, peer.inner) if peer.inner else module
    every = [
        (own, parameter) for own, parameter in inner.named_parameters() if parameter.requires_grad
    ]
    trained = {own: parameter for own, parameter in every if own not in peer.later}
    ours = {peer.called(own): parameter for own, parameter in trained.items()}
    if odd := sorted(ours.keys() ^ (step.tensors.keys() - {*peer.idle})):
        raise UserError(f"{clone}: not trained on both sides: {', '.join(odd)}")
    for own, parameter in ours.items():
        parameter.data.copy_(
            step.tensors[own][0].view_as(parameter)
        )  # their 1 x 1 convolution is our linear layer
    for own, value in peer.later.items():
        inner.get_parameter(own).data.copy_(value(inner, shots))
    for own, (before, _) in step.kept.items():
        inner.get_buffer(own).copy_(before)
    fitted = method.restore(backbone, shots.known, inner.get_submodule(peer.answering).state_dict())
    logits = fitted.score()(backbone.image.frozen(pixels, fitted.first))
    value = loss(Batch(0, rows, shots.labels, source.batch(rows), torch.Generator()))
    value = value["loss"] if isinstance(value, dict) else value
    gradients = dict(zip(ours, torch.autograd.grad(value, [*ours.values()]), strict=True))
    kept = [_relative(inner.get_buffer(own), after) for own, (_, after) in step.kept.items()]
    moved = {peer.called(own) for own in trained.keys() - {*peer.still}}
    return {
        "logits": float((logits - step.logits).abs().max()),
        "loss": abs(value.item() - step.loss),
        "gradients": max(_relative(gradients[own], step.tensors[own][1]) for own in moved),
        **({"kept": max(kept)} if kept else {}),
    }


def untrained(method: Any, shots: Shots) -> tuple[Any, ...]:
    """Return module, loss, recipe, shots and source of images that `fit` passes to `minimise`,
    which takes no step here."""
    minimise = Mock(return_value=Trained())
    with ExitStack() as stack:
        for name, file in list(sys.modules.items()):
            if name.startswith(TRAINING) and hasattr(file, "minimise"):
                stack.enter_context(patch.object(file, "minimise", minimise))
        method.fit(shots.cache.backbone, shots)
    return tuple(minimise.call_args.args[:5])


def _relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected.view_as(value)).abs().max() / expected.abs().max())


def commit(folder: Path) -> str:
    """Return the commit of the clone; "unknown" for a folder that is not one."""
    command = ["git", "-C", str(folder), "rev-parse", "--show-toplevel", "HEAD"]
    top, head, *_ = [
        *subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n"),
        "",
        "",
    ]
    return head if top and Path(top) == folder.resolve() else "unknown"


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Make a table of what was measured, and what was not run."""
    heads = ["method", "authors' code", "trained numbers", "logits go up to", *DIFFERENCES.values()]
    rows = [heads, ["---"] * len(heads)]
    for name in (*PEERS, *BY_HAND):
        cells = ["not run", *[""] * (len(heads) - 2)]
        if name in results:
            r = results[name]
            cells = [
                f"{r['repository']} at {r['commit'][:7]}",
                f"{r['trained']:,}",
                f"{r['largest logit']:.1f}",
            ]
            cells += [f"{r[key]:.1e}" for key in DIFFERENCES]
        rows.append([f"`{name}`", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def drawn(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the differences of each method beside the limit, as SVG; the largest in figures."""
    names = [name for name in PEERS if name in results]
    marks = {"logits": ("adapted", "o"), "loss": ("ink", "D"), "gradients": ("zero-shot", "s")}
    with canvas(6.4, 4.4, "parity", "Differences between our methods and their authors' code") as (
        axes,
        out,
    ):
        for place, name in enumerate(names):
            for kind, (colour, marker) in marks.items():
                label = kind if place == 0 else None
                axes.plot(
                    results[name][kind], place, marker, color=COLOURS[colour], markersize=4,
                    label=label,
                )  # fmt: skip
            largest = max(results[name][kind] for kind in marks)
            axes.text(LIMIT * 0.85, place, f"{largest:.1e}", ha="right", va="center", fontsize=7)
        axes.axvline(LIMIT, color=COLOURS["ink"], linewidth=0.8)
        axes.set(xscale="log", xlim=(1e-7, 2 * LIMIT), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("difference; the line is the limit, the number the largest of the three")
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.12), ncols=3)
    return out[0]


def write_page(results: Path, page: Path) -> None:
    """Replace the table between the marks, and draw the figure beside the page."""
    write_text(page.with_suffix(".svg"), drawn(read_json(results)))
    new = f"{BEGIN}\n\n{table(read_json(results))}\n\n{END}"
    write_text(
        page,
        re.sub(
            f"{re.escape(BEGIN)}.*?{re.escape(END)}",
            lambda _: new,
            read_text(page),
            flags=re.DOTALL,
        ),
    )


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", nargs="?", choices=PEERS)
    parser.add_argument(
        "--upstream", type=Path, metavar="DIR", help="your clone of the authors' repository"
    )
    parser.add_argument(
        "--out", type=Path, help="JSON that takes what was measured, one entry a method"
    )
    parser.add_argument(
        "--page", action="store_true", help=f"write table and figure of {PAGE.name}"
    )
    args = parser.parse_args(words)
    if not args.page and (args.method is None or args.upstream is None):
        parser.error("give a method and --upstream DIR, or --page")
    try:
        if args.page:
            write_page(args.out or RESULTS, PAGE)
            return 0
        result = compare(args.method, args.upstream)
        if args.out:
            write_json(
                args.out,
                {**(read_json(args.out) if args.out.exists() else {}), args.method: result},
            )
    except UserError as error:
        print(f"parity: {error}", file=sys.stderr)
        return 2
    print(
        f"{args.method}: {result['trained']:,} trained numbers; "
        f"logits up to {result['largest logit']:.1f}"
    )
    shown = {
        text: result[key] for key, text in {**DIFFERENCES, "kept": KEPT}.items() if key in result
    }
    for text, difference in shown.items():
        print(f"{text}: {difference:.1e}")
    return int(not all(difference <= LIMIT for difference in shown.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
