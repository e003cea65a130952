"""open_clip, imported without what only some of its models need.

Its optional libraries, timm and transformers, and parts of torchvision that it never uses take
longer to import than open_clip itself. The libraries come in with the first model that needs them
(`bring_in`), the parts of torchvision when somebody uses them.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from rmadapter.support.files import JsonObject

# library -> what a model's configuration names it by; open_clip's module that imports it, and the
# class in it that open_clip.model has, too
OPTIONAL = {
    "timm": ("vision_cfg", "timm_model_name", "timm_model", "TimmModel"),
    "transformers": ("text_cfg", "hf_model_name", "hf_model", "HFTextEncoder"),
}
UNUSED = ("datasets", "io", "models", "ops")  # of torchvision, as packages
_lock = threading.RLock()


class _Later(ModuleType):
    """A package that is executed at the first use of a name in it; its modules can be imported
    before that."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with _lock:
            loader = self.__spec__.loader if self.__spec__ else None
            if isinstance(self, _Later) and loader is not None:
                self.__class__ = ModuleType  # type: ignore[assignment]
                loader.exec_module(self)
        return getattr(self, name)


def _put_off(package: str, names: tuple[str, ...]) -> None:
    """Register packages inside of a package that was not imported yet, without executing them."""
    found = importlib.util.find_spec(package)
    if package in sys.modules or found is None:
        return
    for name in names:
        full = f"{package}.{name}"
        places = found.submodule_search_locations
        spec = importlib.machinery.PathFinder.find_spec(full, places)
        if spec is None or spec.submodule_search_locations is None:
            continue
        module = _Later(full)
        module.__spec__, module.__loader__, module.__package__ = spec, spec.loader, full
        module.__path__, module.__file__ = spec.submodule_search_locations, spec.origin
        sys.modules[full] = module


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
            if getattr(module, library) is None:
                importlib.import_module(library)
                importlib.reload(module)
                setattr(open_clip.model, name, getattr(module, name))


_put_off("torchvision", UNUSED)
with _absent(*OPTIONAL):
    import open_clip

__all__ = ["bring_in", "open_clip"]
