"""rmadapter: adapt a CLIP-like model with a few images per class without losing what it already
knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rmadapter.support.lazy import lazy_names

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

_import_name, _names = lazy_names(
    __name__,
    {
        "rmadapter.adapter": ["DualBranchAdapter"],
        "rmadapter.artifacts.checkpoint": ["load", "save"],
        "rmadapter.artifacts.record": ["Record"],
        "rmadapter.backbones": ["Backbone", "load_backbone"],
        "rmadapter.bench.report.read": ["records"],
        "rmadapter.classifier": ["FewShotClassifier", "RMAdapterClassifier"],
        "rmadapter.curate.apply": ["apply_decisions"],
        "rmadapter.curate.suspects": ["find_suspects"],
        "rmadapter.data.read": ["ImageSet", "read_images"],
        "rmadapter.errors": ["UserError"],
        "rmadapter.methods": ["load_method"],
        "rmadapter.methods.rmadapter": ["RMAdapter"],
        "rmadapter.model": ["AdaptedCLIP"],
        "rmadapter.predict.explain": ["explain_images"],
        "rmadapter.runs.lab": ["Lab"],
        "rmadapter.runs.run": ["run_task"],
        "rmadapter.settings": ["AdapterSettings", "LossSettings", "Machine"],
        "rmadapter.task": ["Question", "Task"],
        "rmadapter.training.contract": [
            "Fitted",
            "Learner",
            "Method",
            "ModuleMethod",
            "NotApplicable",
            "Parameters",
        ],
        "rmadapter.training.loop": ["Batch", "minimise"],
        "rmadapter.training.shots": ["Callback", "Shots"],
        "rmadapter.training.traits": ["Recipe", "Traits", "Uses"],
    },
)
__all__ = ["__version__", *_names]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib import metadata  # which takes longer to import than all else here

        return metadata.version("rmadapter")
    return _import_name(name)
