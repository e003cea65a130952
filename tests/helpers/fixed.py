"""A backbone whose weights NumPy draws, so that they, and their digest, are the same on every
machine."""

from __future__ import annotations

import json
from pathlib import Path


def write_fixed_backbone(folder: Path) -> Path:
    import numpy as np
    import open_clip
    import torch
    from safetensors.torch import save_file

    vision = {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2}
    text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    preprocess = {
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": preprocess,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    rng, state = np.random.default_rng(0), model.state_dict()
    drawn = {}
    for name in sorted(state):
        # multiples of 2^-12: no rounding to float32, whatever made them
        drawn[name] = torch.tensor(
            rng.integers(-800, 800, tuple(state[name].shape)) / 4096, dtype=torch.float32
        )
    drawn["logit_scale"] = torch.tensor(4.5)
    save_file(drawn, folder / "open_clip_model.safetensors")
    return folder
