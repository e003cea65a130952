"""rmadapter: adapt a CLIP-like model with a few images per class without losing what it already knows."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmadapter.adapter import DualBranchAdapter as DualBranchAdapter
    from rmadapter.backbones import Backbone as Backbone
    from rmadapter.backbones import load_backbone as load_backbone
    from rmadapter.bench.report.frame import records as records
    from rmadapter.callbacks import Callback as Callback
    from rmadapter.checkpoint import load as load
    from rmadapter.checkpoint import save as save
    from rmadapter.classifier import FewShotClassifier as FewShotClassifier
    from rmadapter.classifier import RMAdapterClassifier as RMAdapterClassifier
    from rmadapter.data.images import ImageSet as ImageSet
    from rmadapter.data.images import read_images as read_images
    from rmadapter.errors import UserError as UserError
    from rmadapter.explain.why import explain_images as explain_images
    from rmadapter.method import Fitted as Fitted
    from rmadapter.method import Learner as Learner
    from rmadapter.method import Method as Method
    from rmadapter.method import ModuleMethod as ModuleMethod
    from rmadapter.method import NotApplicable as NotApplicable
    from rmadapter.method import Parameters as Parameters
    from rmadapter.method import Shots as Shots
    from rmadapter.methods import load_method as load_method
    from rmadapter.methods.rmadapter import RMAdapter as RMAdapter
    from rmadapter.model import AdaptedCLIP as AdaptedCLIP
    from rmadapter.record import Record as Record
    from rmadapter.run import Lab as Lab
    from rmadapter.run import run_task as run_task
    from rmadapter.settings import AdapterSettings as AdapterSettings
    from rmadapter.settings import LossSettings as LossSettings
    from rmadapter.settings import Machine as Machine
    from rmadapter.suggest.propose import first_images as first_images
    from rmadapter.suggest.propose import suggest_images as suggest_images
    from rmadapter.suspects.apply import apply_decisions as apply_decisions
    from rmadapter.suspects.find import find_suspects as find_suspects
    from rmadapter.task import Question as Question
    from rmadapter.task import Task as Task
    from rmadapter.train import Batch as Batch
    from rmadapter.train import Recipe as Recipe
    from rmadapter.train import minimise as minimise
    from rmadapter.uses import Uses as Uses

__version__ = metadata.version("rmadapter")

# The same names at run time: imported when first used, so that `import rmadapter` pulls in no torch.
_HOMES = {
    "adapter": ["DualBranchAdapter"],
    "backbones": ["Backbone", "load_backbone"],
    "bench.report.frame": ["records"],
    "callbacks": ["Callback"],
    "checkpoint": ["load", "save"],
    "classifier": ["FewShotClassifier", "RMAdapterClassifier"],
    "data.images": ["ImageSet", "read_images"],
    "errors": ["UserError"],
    "explain.why": ["explain_images"],
    "method": ["Fitted", "Learner", "Method", "ModuleMethod", "NotApplicable", "Parameters", "Shots"],
    "methods": ["load_method"],
    "methods.rmadapter": ["RMAdapter"],
    "model": ["AdaptedCLIP"],
    "record": ["Record"],
    "run": ["Lab", "run_task"],
    "settings": ["AdapterSettings", "LossSettings", "Machine"],
    "suggest.propose": ["first_images", "suggest_images"],
    "suspects.apply": ["apply_decisions"],
    "suspects.find": ["find_suspects"],
    "task": ["Question", "Task"],
    "train": ["Batch", "Recipe", "minimise"],
    "uses": ["Uses"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
