"""Find methods by name. Each entry names a module and the object in it with the published settings.

Methods from outside: `package.module:Class`, `file.py:Class`, or an entry point of the group
`rmadapter.methods`.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass, replace
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rmadapter.errors import UserError, did_you_mean, quoted
from rmadapter.settings import configured, settings_of
from rmadapter.support.files import JsonObject, user_path
from rmadapter.training.traits import Traits, Uses

if TYPE_CHECKING:
    from rmadapter.backbones import Backbone
    from rmadapter.training.contract import Method

METHODS: dict[str, str] = {
    "zero-shot": "zero_shot:ZeroShot",
    "zero-shot-ensemble": "zero_shot:ENSEMBLE",
    "zero-shot-descriptions": "descriptions:Descriptions",
    "tda": "tda:TDA",
    "stata": "stata:StatA",
    "linear-probe": "linear_probe:LinearProbe",
    "linear-probe-zero-shot": "clap:ZeroShotProbe",
    "linear-probe-pair": "probe_pair:ProbePair",
    "ridge": "ridge:Ridge",
    "block-ridge": "block_ridge:BlockRidge",
    "clap": "clap:CLAP",
    "lp-plus-plus": "lp_plus_plus:LPPlusPlus",
    "clip-adapter": "clip_adapter:CLIPAdapter",
    "hoso-adapter": "hoso:HOSOAdapter",
    "biclip": "biclip:BiCLIP",
    "tip-adapter": "tip_adapter:TipAdapter",
    "tip-adapter-f": "tip_adapter:TipAdapterF",
    "gda": "gda:GDA",
    "proker": "proker:ProKeR",
    "rehark": "rehark:ReHARK",
    "ss-text": "ss_text:SSText",
    "ss-text-plus": "ss_text:SSTextPlus",
    "ss-text-u": "ss_text:SSTextU",
    "prolip": "prolip:ProLIP",
    "tpt": "tpt:TPT",
    "coop": "coop:CoOp",
    "coop-few-shot": "coop:CoOpFewShot",
    "cocoop": "cocoop:CoCoOp",
    "kgcoop": "kgcoop:KgCoOp",
    "prograd": "prograd:ProGrad",
    "cocoa-mix": "cocoa_mix:CoCoAMix",
    "tcp": "tcp:TCP",
    "text-refiner": "text_refiner:TextRefiner",
    "clip-lora": "clip_lora:CLIPLoRA",
    "2sfs": "two_stages:TwoStages",
    "skip-tuning": "skip_tuning:SkipTuning",
    "full-finetune": "full_finetune:FullFinetune",
    "maple": "maple:MaPLe",
    "dept": "dept:DePT",
    "promptsrc": "promptsrc:PromptSRC",
    "coprompt": "coprompt:CoPrompt",
    "hicropl": "hicropl:HiCroPL",
    "prompt-kd": "prompt_kd:PromptKD",
    "mmrl": "mmrl:MMRL",
    "mmrl-plus-plus": "mmrl:MMRL_PLUS_PLUS",
    "lweib": "lweib:LwEIB",
    "heba": "heba:HeBA",
    "mail": "mail:MAIL",
    "mma": "rmadapter:MMA",
    "mma-adamw": "rmadapter:MMA_ADAMW",
    "rmadapter": "rmadapter:RMAdapter",
    "rmadapter-paper": "rmadapter:PAPER",
    "rmadapter-plain": "rmadapter:PLAIN",
    "rmadapter-plus": "rmadapter_plus:RMAdapterPlus",
}
DEFAULT = "block-ridge"  # of `fit` and FewShotClassifier, on every backbone
ENTRY_POINT_GROUP = "rmadapter.methods"
EFFORTS = {"fast": 0.3, "normal": 1.0, "thorough": 3.0}  # times the published epochs
# Methods from outside that this process has loaded, as its user named them.
_TRUSTED: set[str] = set()


def entry_points() -> dict[str, metadata.EntryPoint]:
    """Return the methods of installed packages by name; built-in names take precedence."""
    points = metadata.entry_points(group=ENTRY_POINT_GROUP)
    return {point.name: point for point in points if point.name not in METHODS}


def is_outside(name: str) -> bool:
    """Return whether loading the method runs code that neither this package nor an installed entry
    point names."""
    return name not in {*METHODS, *entry_points()}


def may_run(name: str) -> bool:
    """Return False if loading would run code the user did not name."""
    return not is_outside(name) or name in _TRUSTED


def check_named(file: Path, names: Iterable[str], user: Iterable[str]) -> None:
    """Raise UserError if a file names a method from outside that its user does not name, too."""
    for name in names:
        if ":" in name and is_outside(name) and name not in user:
            raise UserError(
                f"{file}: its method {quoted(name)} is custom code; to run it, pass "
                f"--method {name}, or --code {name} with a run"
            )


def load_method(
    name: str,
    values: Mapping[str, object] | None = None,
    effort: str = "normal",
) -> Method:
    """Return a method with its published settings, some of them replaced.

    Args:
        name: Name that `rmadapter methods` lists, `file.py:Class` or `package:Class`.
        values: Settings by flat name.
        effort: "fast", "normal" or "thorough": 0.3, 1 or 3 times the published epochs.

    Raises:
        UserError: Unknown name, field or effort.

    Example:
        >>> from rmadapter import load_method
        >>> load_method("rmadapter", {"rank": 16, "epochs": 3}).adapter.rank
        16
    """
    method = _checked(_find(name), name)
    if effort not in EFFORTS:
        raise UserError(f"effort={effort!r}{did_you_mean(effort, EFFORTS)}")
    return configured(_scaled(method, EFFORTS[effort]), values or {}, name)


def changed_settings(
    name: str, settings: Mapping[str, object], published: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Return those of the settings that differ from the method's published ones.

    Args:
        name: Name that `load_method` accepts.
        settings: Settings by flat name.
        published: Published settings; if not recorded, `published_settings` is asked.
    """
    own = published or published_settings(name)
    plain = {key: list(one) if isinstance(one, tuple) else one for key, one in settings.items()}
    return {key: one for key, one in plain.items() if own.get(key, one) != one}


def published_settings(name: str) -> JsonObject:
    """Return a method's published settings as JSON has them; none if loading it fails, or would run
    code that the user did not name."""
    known = name in METHODS or may_run(name)  # the second reads what is installed, each time
    return _published_settings(name) if known else {}


def name_with_settings(text: str, settings: Mapping[str, object]) -> str:
    """Return the text with settings in brackets, such as "RMAdapter (epochs=3)"."""
    pairs = [
        f"{setting}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for setting, value in settings.items()
    ]
    return f"{text} ({', '.join(pairs)})" if pairs else text


@cache
def _published_settings(name: str) -> JsonObject:
    """Load a method, and return its settings; none if that fails."""
    try:
        settings = settings_of(load_method(name))
    except UserError:  # such as a method of a package that is no longer installed
        return {}
    return dict(json.loads(json.dumps(settings)))


def _find(name: str) -> object:
    """Return the class or object that a name stands for."""
    place = METHODS.get(name)
    if place:
        module, _, attribute = place.partition(":")
        return getattr(import_module(f"rmadapter.methods.{module}"), attribute)
    point = entry_points().get(name)
    if point:
        return point.load()
    place, colon, attribute = name.rpartition(":")
    if not colon:
        known = [*METHODS, *entry_points()]
        raise UserError(
            f"unknown method {quoted(name)}{did_you_mean(name, known)}; for your own, write "
            "file.py:Class or package:Class"
        )
    try:
        custom = _from_file(Path(place)) if place.endswith(".py") else import_module(place)
        member: object = getattr(custom, attribute)
    except (ImportError, AttributeError, OSError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(
            f"method {quoted(name)} cannot be loaded ({type(error).__name__}: {str(error)[:300]})"
        ) from error
    _TRUSTED.add(name)
    return member


def _from_file(path: Path) -> ModuleType:
    """Load each file as its own module, so that two files of the same name do not clash."""
    file = user_path(path).resolve()
    key = f"rmadapter_method_{abs(hash(str(file)))}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, file)
        if spec is None or spec.loader is None or not file.is_file():
            raise ImportError(f"{file}: no such file")
        sys.modules[key] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[key])
        except BaseException:
            del sys.modules[key]
            raise
    return sys.modules[key]


def _checked(member: object, name: str) -> Method:
    """Return an instance of `Method`. Raises UserError if the class or object is none."""
    from rmadapter.training.contract import Method

    kind = member if isinstance(member, type) else type(member)
    if not is_dataclass(kind) or not issubclass(kind, Method):
        raise UserError(
            f"method {name!r} is not a dataclass that inherits rmadapter.Method: see "
            "docs/guide/your_method.md"
        )
    missing = kind.__abstractmethods__
    if missing:
        names = ", ".join(sorted(missing))
        raise UserError(f"method {name!r} has no {names}: see docs/guide/your_method.md")
    method = member if isinstance(member, Method) else kind()
    if not isinstance(method.traits.uses, Uses | None):
        raise UserError(
            f"method {name!r}: `uses` is not an rmadapter.Uses: see docs/guide/your_method.md"
        )
    return method


# What a method says about itself


@cache
def traits_of(name: str) -> Traits:
    """Return the traits of a method with its published settings."""
    return load_method(name).traits


def check_text(method: Method, backbone: Backbone) -> None:
    """Raise UserError for a method that needs a text encoder on a backbone that has none."""
    if not method.traits.without_text:
        need_text(backbone, method.title)


def need_text(backbone: Backbone, what: str) -> None:
    """Raise UserError for a backbone without a text encoder; it names the methods that need none.

    Args:
        backbone: Backbone to use.
        what: What needs a text encoder.
    """
    if not backbone.has_text:
        backbone.with_text(what, [name for name in METHODS if traits_of(name).without_text])


# Effort


def _scaled(method: Method, factor: float) -> Method:
    """Return the method with what counts its epochs and iterations scaled."""
    recipe = method.recipe
    if factor == 1 or recipe is None:
        return method
    longer = replace(
        recipe,
        epochs=math.ceil(factor * recipe.epochs),
        iterations=math.ceil(factor * recipe.iterations),
    )
    others = {}
    for name in method.traits.in_epochs:
        value = getattr(method, name)
        others[name] = factor * value if isinstance(value, float) else math.ceil(factor * value)
    return replace(method, recipe=longer, **others)  # type: ignore[type-var]
