"""rmadapter: adapt a CLIP-like model with a few images per class without losing what it already
knows."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmadapter.adapter import DualBranchAdapter as DualBranchAdapter
    from rmadapter.artifacts.checkpoint import load as load, save as save
    from rmadapter.artifacts.record import Record as Record
    from rmadapter.backbones import Backbone as Backbone, load_backbone as load_backbone
    from rmadapter.bench.report.read import records as records
    from rmadapter.classifier import (
        FewShotClassifier as FewShotClassifier,
        RMAdapterClassifier as RMAdapterClassifier,
    )
    from rmadapter.curate.apply import apply_decisions as apply_decisions
    from rmadapter.curate.suspects import find_suspects as find_suspects
    from rmadapter.data.read import ImageSet as ImageSet, read_images as read_images
    from rmadapter.errors import UserError as UserError
    from rmadapter.methods import load_method as load_method
    from rmadapter.methods.rmadapter import RMAdapter as RMAdapter
    from rmadapter.model import AdaptedCLIP as AdaptedCLIP
    from rmadapter.predict.explain import explain_images as explain_images
    from rmadapter.runs.lab import Lab as Lab
    from rmadapter.runs.run import run_task as run_task
    from rmadapter.runs.track import Tracking as Tracking
    from rmadapter.settings import (
        AdapterSettings as AdapterSettings,
        LossSettings as LossSettings,
        Machine as Machine,
    )
    from rmadapter.task import Question as Question, Task as Task
    from rmadapter.training.contract import (
        Fitted as Fitted,
        Learner as Learner,
        Method as Method,
        ModuleMethod as ModuleMethod,
        NotApplicable as NotApplicable,
        Parameters as Parameters,
    )
    from rmadapter.training.loop import Batch as Batch, minimise as minimise
    from rmadapter.training.shots import Callback as Callback, Shots as Shots
    from rmadapter.training.traits import Recipe as Recipe, Traits as Traits, Uses as Uses

    __version__: str

# The same names at run time: imported when first used, so that `import rmadapter` pulls in no
# torch.
_HOMES = {
    "adapter": ["DualBranchAdapter"],
    "backbones": ["Backbone", "load_backbone"],
    "bench.report.read": ["records"],
    "artifacts.checkpoint": ["load", "save"],
    "classifier": ["FewShotClassifier", "RMAdapterClassifier"],
    "data.read": ["ImageSet", "read_images"],
    "errors": ["UserError"],
    "predict.explain": ["explain_images"],
    "training.contract": [
        "Fitted",
        "Learner",
        "Method",
        "ModuleMethod",
        "NotApplicable",
        "Parameters",
    ],
    "methods": ["load_method"],
    "methods.rmadapter": ["RMAdapter"],
    "model": ["AdaptedCLIP"],
    "artifacts.record": ["Record"],
    "runs.lab": ["Lab"],
    "runs.run": ["run_task"],
    "runs.track": ["Tracking"],
    "settings": ["AdapterSettings", "LossSettings", "Machine"],
    "curate.apply": ["apply_decisions"],
    "curate.suspects": ["find_suspects"],
    "task": ["Question", "Task"],
    "training.loop": ["Batch", "minimise"],
    "training.shots": ["Callback", "Shots"],
    "training.traits": ["Recipe", "Traits", "Uses"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib import metadata  # which takes longer to import than all else here

        return metadata.version("rmadapter")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
