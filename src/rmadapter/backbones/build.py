"""An open_clip model from its configuration, its weights from a file, and both as a Backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rmadapter.backbones.backbone import Backbone
from rmadapter.backbones.tokenizer import Tokenizer
from rmadapter.errors import UserError
from rmadapter.support.machine import seeded
from rmadapter.support.terminal import silenced

TRANSFORM = ("mean", "std", "interpolation", "resize_mode")
SHOWN = 3  # names of tensors in a message
CONSTANTS = (
    "input_resolution",
    "context_length",
    "vocab_size",
)  # kept beside the weights in OpenAI's files


def build_model(
    name: str,
    source: str,
    *,
    draw: bool,
    quick_gelu: bool = False,
    transform: dict[str, Any] | None = None,
) -> nn.Module:
    """An open_clip model without its weights. source: for open_clip's create_model. draw: random
    weights, always the same ones. Raises UserError if open_clip cannot build it."""
    import open_clip

    fill = nullcontext() if draw else Unfilled()
    with silenced(), fill, seeded(0):
        try:
            model = open_clip.create_model(
                source,
                load_weights=False,
                pretrained_text=False,
                force_quick_gelu=quick_gelu,
                force_preprocess_cfg={key: transform[key] for key in TRANSFORM if key in transform}
                if transform
                else None,
            )
        except Exception as error:  # a wrong configuration fails in many ways
            raise UserError(
                f"backbone {name!r}: open_clip cannot build it: {first_line(error)}"
            ) from error
    if not hasattr(model, "visual"):
        raise UserError(f"backbone {name!r}: it takes no images")
    return model


def load_weights(
    name: str, model: nn.Module, file: Path, shown: Path | None = None, exact: bool = False
) -> None:
    """Fill a model with the weights of a safetensors file. shown: the file's name in messages.
    exact: refuse position embeddings of another image size or context length, which open_clip would
    resize.

    Raises UserError if the file is damaged, or holds other names or shapes than the model.
    """
    import open_clip
    from safetensors import SafetensorError, safe_open

    shown = shown or file
    own = model.state_dict()
    misfit = ""
    masks = {
        _last(key) for key, _ in model.named_buffers() if key not in own
    }  # no weights, though files may hold them
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
    wrong = [
        f"{key} {list(shape)} instead of {list(ours.shape)}"
        for key, shape in shapes.items()
        if (ours := own.get(key, own.get(f"text.{key}"))) is not None
        and math.prod(shape) != ours.numel()
        and (exact or not key.endswith("positional_embedding"))
    ]
    unexpected = [key for key in unexpected if _last(key) not in masks and key not in CONSTANTS]
    faults = [
        _some(what, found)
        for what, found in (("lack", missing), ("also hold", unexpected), ("hold", wrong))
    ]
    told = (
        f"they {', and '.join(filter(None, faults))}" if any(faults) else misfit
    )  # such as a transposed matrix
    if told:
        raise UserError(f"{shown}: these weights do not fit backbone {name!r}: {told}")


def as_backbone(name: str, model: nn.Module, tokenizer: Tokenizer) -> Backbone:
    """A frozen Backbone in float32. Raises UserError if it takes images that are not square."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(**model.visual.preprocess_cfg)  # type: ignore[union-attr, arg-type]
    height, width = config.input_size[1:]
    if height != width:
        raise UserError(
            f"backbone {name!r} takes images of {height} x {width} pixels; only square ones are supported"
        )
    model = model.float().eval().requires_grad_(False)
    preprocess = image_transform_v2(config, is_train=False)
    mean, std = tuple(config.mean), tuple(config.std)
    return Backbone(name, model, preprocess, tokenizer.split, height, mean, std, tokenizer.digest)


def first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _some(what: str, names: Sequence[str]) -> str:
    """`lack a, b, c and 4 more`; nothing where there are none."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what} {', '.join(name[:100] for name in names[:SHOWN])}{more}" if names else ""


class Unfilled(TorchFunctionMode):
    """Leaves new weights uninitialised: they all come from a file, and drawing them takes seconds."""

    FILLS: tuple[Any, ...] = (
        Tensor.uniform_,
        Tensor.normal_,
        Tensor.erfinv_,
        Tensor.mul_,
        Tensor.add_,
        Tensor.clamp_,
    )
    FILLS += (nn.init.uniform_, nn.init.normal_, nn.init.trunc_normal_, nn.init.kaiming_uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        return (
            target
            if func in self.FILLS and isinstance(target, nn.Parameter)
            else func(*args, **kwargs)
        )
