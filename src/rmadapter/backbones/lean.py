"""open_clip, imported without what only some of its models need.

Its optional libraries, timm and transformers, and parts of torchvision that it never uses take
longer to import than open_clip itself. The libraries come in with the first model that needs them
(`bring_in`): of timm, only the modules of that model. The parts of torchvision, the rest of timm,
and open_clip apart from its models and transforms come in when somebody uses them.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from rmadapter.errors import UserError
from rmadapter.support.files import JsonObject, read_json

# library -> what a model's configuration names it by; open_clip's module that imports it, and the
# class in it that open_clip.model has, too
OPTIONAL = {
    "timm": ("vision_cfg", "timm_model_name", "timm_model", "TimmModel"),
    "transformers": ("text_cfg", "hf_model_name", "hf_model", "HFTextEncoder"),
}
UNUSED = ("datasets", "io", "models", "ops")  # of torchvision, as packages
LARGE = ("models", "data")  # of timm, likewise: each model needs little of them
_lock = threading.RLock()
_by_module = threading.local()  # .on: whether this thread takes names out of modules


class _Later(ModuleType):
    """A package that is executed at the first use of a name in it; its modules can be imported
    before that."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        home = _home(self, name) if getattr(_by_module, "on", False) else None
        if home is not None:
            return getattr(importlib.import_module(home), name)
        hidden = OPTIONAL if self.__name__ == "open_clip" else ()
        with _lock, _absent(*hidden):
            loader = self.__spec__.loader if self.__spec__ else None
            if isinstance(self, _Later) and loader is not None:
                self.__class__ = ModuleType  # type: ignore[assignment]
                loader.exec_module(self)
                _set_parts(self)
        return getattr(self, name)


def _set_parts(package: ModuleType) -> None:
    """Set the modules of a package as its attributes, which the import of one that was put off does
    not."""
    for full, module in list(sys.modules.items()):
        parent, _, name = full.rpartition(".")
        if parent == package.__name__ and name not in vars(package):
            setattr(package, name, module)


def _home(package: ModuleType, name: str) -> str | None:
    """Return the module that a package imports a name from when it is executed, if one of its own;
    of `from .module import *`, one whose top level defines the name."""
    found = re.compile(rf"^(def|class) {re.escape(name)}\b|^{re.escape(name)}\b[^=\n]*=", re.M)
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
    for part in reversed(tree.body):
        if not isinstance(part, ast.ImportFrom) or part.level != 1 or part.module is None:
            continue
        names = {alias.asname or alias.name: alias.name for alias in part.names}
        file = Path(package.__path__[0], *part.module.split(".")).with_suffix(".py")
        starred = "*" in names and file.is_file() and not name.startswith("_")
        if names.get(name) == name or (starred and found.search(file.read_text(encoding="utf-8"))):
            return f"{package.__name__}.{part.module}"
    return None


@contextmanager
def _taken_out_of_modules() -> Iterator[None]:
    """Let this thread take a name out of the module that defines it, without executing the package
    that it is taken from."""
    _by_module.on = True
    try:
        yield
    finally:
        _by_module.on = False


def _put_off(package: str, parts: Sequence[str], whole: bool = False) -> None:
    """Register packages inside of a package that was not executed yet, without executing them.
    whole: the package itself as well."""
    own = importlib.util.find_spec(package)
    if own is None or not isinstance(sys.modules.get(package, _Later(package)), _Later):
        return
    places = own.submodule_search_locations
    specs = [importlib.machinery.PathFinder.find_spec(f"{package}.{one}", places) for one in parts]
    for spec in [*([own] if whole else []), *specs]:
        if spec is None or spec.submodule_search_locations is None or spec.name in sys.modules:
            continue
        module = _Later(spec.name)
        module.__spec__, module.__loader__, module.__package__ = spec, spec.loader, spec.name
        module.__path__, module.__file__ = spec.submodule_search_locations, spec.origin
        sys.modules[spec.name] = module


@contextmanager
def _absent(*libraries: str) -> Iterator[None]:
    """Let imports of libraries fail as if they were not installed, unless they are imported."""
    hidden = [name for name in libraries if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is documented
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules[name] is None:
                del sys.modules[name]


def bring_in(config: JsonObject) -> None:
    """Give open_clip the optional libraries that a model's configuration needs."""
    for library, (part, field, where, name) in OPTIONAL.items():
        own = config.get(part)
        if not isinstance(own, dict) or not own.get(field):
            continue
        with _lock:
            module = importlib.import_module(f"open_clip.{where}")
            if library == "timm":
                _bring_in_timm(module)
            elif getattr(module, library) is None:
                importlib.import_module(library)
                importlib.reload(module)
            setattr(open_clip.model, name, getattr(module, name))


def _bring_in_when_built(library: str) -> None:
    """Let open_clip's class that needs a library which is absent bring it in when it is called, so
    that open_clip works as usual for other code of this process."""
    part, field, where, name = OPTIONAL[library]
    module = importlib.import_module(f"open_clip.{where}")
    if getattr(module, library) is not None:
        return

    def build(self: object, *args: object, **settings: object) -> None:
        bring_in({part: {field: args[0] if args else "any"}})  # makes the class anew
        self.__class__ = getattr(module, name)
        self.__init__(*args, **settings)  # type: ignore[misc]

    getattr(module, name).__init__ = build


class _Timm(ModuleType):
    """timm as open_clip uses it: a model that it creates brings in its architecture alone; other
    names are those of timm."""

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module("timm"), name)

    @staticmethod
    def create_model(model: str, *args: object, **settings: object) -> object:
        """Create a model by the name of its architecture, or by `local-dir:FOLDER`."""
        with _lock, _taken_out_of_modules():
            architecture = _architecture(model)
            if architecture:
                getattr(importlib.import_module("timm.models"), architecture, None)
            create = importlib.import_module("timm").create_model
        return create(model, *args, **settings)


def _bring_in_timm(module: ModuleType) -> None:
    """Give open_clip's module timm without its architectures, unless timm was already imported."""
    _put_off("timm", LARGE, whole=True)
    if module.timm is not None:
        return
    with _taken_out_of_modules():
        timm = importlib.import_module("timm")
        importlib.reload(module)
        if isinstance(timm, _Later):
            module.timm = _Timm("timm")  # type: ignore[attr-defined]


def _architecture(model: str) -> str:
    """Return the name of a function of timm.models, or nothing for what has another form."""
    _, colon, place = model.partition(":")
    if not colon:
        return model.partition(".")[0]
    try:
        return str(read_json(Path(place) / "config.json").get("architecture", ""))
    except (UserError, AttributeError):
        return ""  # timm says what is wrong with it


_put_off("torchvision", UNUSED)
_put_off("open_clip", (), whole=True)
with _absent(*OPTIONAL):
    import open_clip.model
    import open_clip.transform  # which imports no more than the models do

for _library in OPTIONAL:
    _bring_in_when_built(_library)

__all__ = ["bring_in", "open_clip"]
