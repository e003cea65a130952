"""Training time of the demo by the plain forward pass and by the lean one, in one run.

    python benchmarks/demo_fit.py --json

Both train the same model on the same images in the same order; the losses of the last step are compared.
"""

from __future__ import annotations

import argparse
import json

import torch

from rmadapter.backbone import load_backbone
from rmadapter.config import Config
from rmadapter.data.fewshot import few_shot, half
from rmadapter.data.openmoji import load_openmoji
from rmadapter.model import AdaptedCLIP
from rmadapter.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=Config().epochs)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    backbone = load_backbone("pocket")
    images = half(few_shot(load_openmoji(), 16, 1).train, "base")
    result: dict[str, float] = {"images": len(images), "threads": torch.get_num_threads()}
    for forward in ("reference", "lean"):
        model = AdaptedCLIP(backbone, Config.make({"classes": "base", "epochs": args.epochs, "forward": forward}))
        done = train(model, images)  # the seconds include the frozen activations
        result[f"{forward}_seconds"] = round(done.seconds, 2)
        result[f"{forward}_last_loss"] = done.history[-1]["loss"]
    result["ratio"] = round(result["reference_seconds"] / result["lean_seconds"], 2)
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
