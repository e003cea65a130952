"""Build an open_clip model and its tokenizer, load weights from a file, and make a Backbone."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rmadapter.backbones.backbone import Backbone
from rmadapter.backbones.trust import CONFIG, check_folder
from rmadapter.errors import UserError
from rmadapter.support.files import JsonObject, read_json
from rmadapter.support.machine import seeded
from rmadapter.support.terminal import silenced

TRANSFORM_FIELDS = ("mean", "std", "interpolation", "resize_mode")
LOCAL = "local-dir:"  # before a folder, for open_clip's create_model
# A text encoder of one width, in the place of one that is not built.
STAND_IN: JsonObject = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
MAX_NAMES = 3  # of tensors in a message
# stored beside the weights in OpenAI's files
OPENAI_CONSTANTS = ("input_resolution", "context_length", "vocab_size")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip


def build_model(
    name: str,
    source: str,
    *,
    draw: bool,
    quick_gelu: bool = False,
    transform: JsonObject | None = None,
) -> nn.Module:
    """Build an open_clip model without its weights.

    Args:
        name: Name of the backbone, for messages.
        source: For open_clip's create_model, a name or local-dir:FOLDER.
        draw: Whether to fill it with random weights, always the same ones.
        quick_gelu: Whether it computes QuickGELU, whatever its configuration says.
        transform: Fields of its image transform.

    Raises:
        UserError: open_clip cannot build it.
    """
    import open_clip

    from rmadapter.backbones.importing import import_needed

    fill = nullcontext() if draw else Unfilled()
    config = (
        {key: transform[key] for key in TRANSFORM_FIELDS if key in transform} if transform else None
    )
    with silenced(), fill, seeded(0):
        try:
            import_needed(_config_of(source))
            model: nn.Module = open_clip.create_model(
                source,
                load_weights=False,
                pretrained_text=False,
                force_quick_gelu=quick_gelu,
                force_preprocess_cfg=config,
            )
        except Exception as error:  # a wrong configuration fails in many ways
            raise UserError(
                f"backbone {name!r}: open_clip cannot build it: {first_line(error)}"
            ) from error
    if not hasattr(model, "visual"):
        raise UserError(f"backbone {name!r}: it takes no images")
    return model


def build_front(name: str, config: JsonObject) -> nn.Module:
    """Build the image encoder and the logit scale of an open_clip model, without their weights, and
    with a stand-in for its text encoder.

    Args:
        name: Name of the model.
        config: Configuration in its folder.

    Raises:
        UserError: open_clip cannot build it.
    """
    import open_clip

    from rmadapter.backbones.importing import import_needed

    model, transform = open_clip.model, open_clip.transform
    parts = {**config["model_cfg"], "text_cfg": STAND_IN}
    parts["vision_cfg"] = {**parts["vision_cfg"], "timm_model_pretrained": False}
    parts.pop("custom_text", None)
    try:
        with silenced(), Unfilled(), seeded(0):
            import_needed(parts)
            front: nn.Module = model.CustomTextCLIP(**parts)
        own = config.get("preprocess_cfg") or {}
        merged = transform.merge_preprocess_dict(transform.PreprocessCfg(), own)
        merged["size"] = getattr(front.visual, "image_size", merged["size"])
        model.set_model_preprocess_cfg(front, merged)
    except Exception as error:  # as in `build_model`
        raise UserError(
            f"backbone {name!r}: open_clip cannot build it: {first_line(error)}"
        ) from error
    return front


def _config_of(source: str) -> JsonObject:
    """Return the configuration of a model that `build_model` may build."""
    import open_clip

    folder = source.removeprefix(LOCAL)
    if folder == source:
        return open_clip.get_model_config(source) or {}
    config = read_json(Path(folder) / CONFIG)
    model: JsonObject = config["model_cfg"]
    return model


def load_weights(
    name: str, model: nn.Module, file: Path, shown: Path | None = None, exact: bool = False
) -> None:
    """Fill a model with the weights of a safetensors file.

    Args:
        name: Name of the backbone, for messages.
        model: The model.
        file: The file.
        shown: Its name in messages.
        exact: Whether to refuse position embeddings of another image size or context length, which
            open_clip would resize.

    Raises:
        UserError: The file is damaged, or holds other names or shapes than the model.
    """
    import open_clip
    from safetensors import SafetensorError, safe_open

    shown = shown or file
    expected = model.state_dict()
    misfit = ""
    # masks are no weights, though files may hold them
    masks = {_last(key) for key, _ in model.named_buffers() if key not in expected}
    try:
        with safe_open(file, "pt") as opened:
            shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
        with silenced():
            missing, unexpected = open_clip.load_checkpoint(model, str(file), strict=False)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{shown}: not a readable safetensors file ({error}); fetch or write it again"
        ) from error
    except (RuntimeError, KeyError, StopIteration, AttributeError, AssertionError) as error:
        if "size mismatch" not in str(error):
            raise UserError(
                f"{shown}: these weights do not fit backbone {name!r}: {first_line(error)}"
            ) from error
        missing, unexpected, misfit = [], [], first_line(error)
    wrong = []
    for key, shape in shapes.items():
        ours = expected.get(key, expected.get(f"text.{key}"))
        may_differ = not exact and key.endswith("positional_embedding")
        if ours is not None and math.prod(shape) != ours.numel() and not may_differ:
            wrong.append(f"{key} {list(shape)} instead of {list(ours.shape)}")
    unexpected = [
        key for key in unexpected if _last(key) not in masks and key not in OPENAI_CONSTANTS
    ]
    lists = {"lack": missing, "also hold": unexpected, "hold": wrong}
    faults = [_first_names(what, names) for what, names in lists.items() if names]
    if faults:
        misfit = f"they {', and '.join(faults)}"  # else such as a transposed matrix
    if misfit:
        raise UserError(f"{shown}: these weights do not fit backbone {name!r}: {misfit}")


Split = Callable[[list[str]], Tensor]


class Tokenizer(NamedTuple):
    """A function of N texts -> long [N, context length], and the SHA-256 in hex of its files and
    settings."""

    split: Split
    digest: str


def files_of(place: Path) -> list[Path]:
    """Return the files of a Hugging Face tokenizer in a folder."""
    return sorted(
        file for file in place.iterdir() if file.name in TOKENIZER_FILES or file.suffix == ".model"
    )


@cache
def _clip_tokenizer(settings: str) -> Split:
    """Load CLIP's tokenizer with settings in JSON, once; its vocabulary takes long to read."""
    import open_clip

    tokenizer: Split = open_clip.SimpleTokenizer(**json.loads(settings))
    return tokenizer


def load_tokenizer(name: str, text: JsonObject, place: Path | None = None) -> Tokenizer:
    """Load the tokenizer that open_clip's settings describe.

    Args:
        name: Name of the backbone, for messages.
        text: open_clip's `text_cfg`.
        place: Folder with the files of a Hugging Face tokenizer; without one, it is CLIP's.

    Raises:
        UserError: The tokenizer cannot be read, or the folder holds or asks for code.
    """
    import open_clip

    settings = {"context_length": text.get("context_length") or 77}
    settings |= text.get("tokenizer_kwargs") or {}
    files: list[Path] = []
    try:
        if place is None:
            split = _clip_tokenizer(json.dumps(settings))
        else:
            check_folder(place, pickles=False)
            files = files_of(place)
            settings["tokenizer_mode"] = text.get("tokenizer_mode")
            split = open_clip.tokenizer.HFTokenizer(str(place), **settings, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # transformers raises many kinds
        raise UserError(
            f"backbone {name!r}: its tokenizer cannot be read: {first_line(error)}"
        ) from error
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in files:
        content = file.read_bytes()
        sha.update(f"{file.name} {len(content)} ".encode() + content)
    return Tokenizer(split, sha.hexdigest())


def as_backbone(
    name: str, model: nn.Module, tokenizer: Tokenizer, has_text: bool = True
) -> Backbone:
    """Freeze a model as a Backbone in float32. Raises UserError if its images are not square."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(**model.visual.preprocess_cfg)  # type: ignore[union-attr, arg-type]
    height, width = config.input_size[1:]
    if height != width:
        raise UserError(
            f"backbone {name!r} takes images of {height} x {width} pixels; use one that takes "
            "squares"
        )
    model = model.float().eval().requires_grad_(False)
    preprocess = image_transform_v2(config, is_train=False)
    mean, std = tuple(config.mean), tuple(config.std)
    split, digest = tokenizer
    return Backbone(name, model, preprocess, split, height, mean, std, digest, has_text)


def first_line(error: BaseException) -> str:
    """Return an error's message in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _first_names(what: str, names: Sequence[str]) -> str:
    """Return a text such as `lack a, b, c and 4 more`."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{what} {', '.join(name[:100] for name in names[:MAX_NAMES])}{more}"


class Unfilled(TorchFunctionMode):
    """A mode that leaves new weights uninitialised: a file has them all, and drawing takes
    seconds."""

    FILLS: tuple[object, ...] = (
        Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_,
        nn.init.uniform_, nn.init.normal_, nn.init.trunc_normal_, nn.init.kaiming_uniform_,
    )  # fmt: skip

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if func in self.FILLS and isinstance(target, nn.Parameter):
            return target
        return func(*args, **kwargs)
