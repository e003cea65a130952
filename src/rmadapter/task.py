"""A task: which images to learn from, and what to test afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Annotated, Literal

from pydantic import FailFast
from pydantic.dataclasses import dataclass

from rmadapter.errors import UserError, quoted
from rmadapter.settings import STRICT, Draw, Machine, option
from rmadapter.support.files import JsonObject

Half = Literal["all", "base", "novel"]
BALANCED = ("draw", "balanced")
TEMPLATES = ("a photo of a {}.",)
MAX_TEMPLATES, MAX_TEMPLATE_LENGTH = 1_000, 1_000  # characters; CLIP reads 77 tokens
SHARED_GROUPS = "train and test share the group"  # begins a run's note


@dataclass(frozen=True, config=STRICT)
class Question:
    """A set of images to test on.

    Args:
        name: Name of the set in the record.
        data: Data set other than the task's; empty for the task's own test split or, if it has
            none, for its images that were not drawn as shots.
        classes: All, the first half (base) or the second half (novel) of the classes.

    Example:
        >>> from rmadapter import Question, Task
        >>> novel = Question("novel", classes="novel")
        >>> elsewhere = Question("sketches", data="sketches")
        >>> len(Task("photos", classes="base", tests=(novel, elsewhere)).questions)
        2
    """

    name: str
    data: str = ""
    classes: Half = "all"


@dataclass(frozen=True, config=STRICT)
class Task:
    """A training and its tests.

    Without `tests`, it is tested on the classes that it trains on, and after base classes also on
    the novel ones.

    Raises:
        ValueError: A value is not allowed, such as a template without exactly one {}.

    Example:
        >>> from rmadapter import Task
        >>> [test.name for test in Task("photos", shots=4, classes="base").questions]
        ['base', 'novel']
    """

    data: str = option("", "name of a data set, folder of class folders, or table")
    backbone: str = option("pocket", "name that load_backbone understands")
    shots: int = option(16, "training images drawn per class; 0 takes all", ge=0, le=1_000_000)
    seed: int = option(
        1, "seed of the draw, the initialisation and the order of batches", ge=0, le=2**32 - 1
    )
    draw: Draw = option(
        "balanced",
        "balanced: as many images of each class; natural: as many in all, by the data's "
        "frequencies",
    )
    classes: Half = option(
        "all", "classes to train on: all, the first half (base) or the second half (novel)"
    )
    templates: Annotated[tuple[str, ...], FailFast()] = option(
        TEMPLATES, "prompt templates, one {} each; several are averaged"
    )
    augmentation: Literal["none", "standard"] = option(
        "none", "test transform, or random resized crop and flip"
    )
    views: int = option(
        0,
        "augmented views kept per image; as many as epochs for fresh ones; 0 computes them anew",
        ge=0,
        le=10_000,
    )
    tests: Annotated[tuple[Question, ...], FailFast()] = option((), "what to ask afterwards")

    def __post_init__(self) -> None:
        check_templates(self.templates)

    @property
    def questions(self) -> tuple[Question, ...]:
        """Return the tests, or the default ones."""
        halves: tuple[Half, ...] = ("base", "novel") if self.classes == "base" else (self.classes,)
        return self.tests or tuple(Question(which, classes=which) for which in halves)

    def values(self) -> JsonObject:
        """Return the fields by name, without a draw that is balanced.

        Tasks had no draw at first, and their keys are to stay.

        Returns:
            The fields, whose tests are dictionaries, too.
        """
        return without_balanced(asdict(self))


def without_balanced(values: JsonObject) -> JsonObject:
    """Return the fields of a task without a draw that is balanced."""
    return {name: value for name, value in values.items() if (name, value) != BALANCED}


def check_views(task: Task) -> Task:
    """Return the task. Raises UserError if it sets views without augmentation."""
    if task.views and task.augmentation == "none":
        raise UserError(
            f"views={task.views}: only augmented images have views: set augmentation=standard too"
        )
    return task


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates. Raises UserError unless there are 1 to MAX_TEMPLATES of at most
    MAX_TEMPLATE_LENGTH characters and each has one place for the class name."""
    if not templates:
        raise UserError('templates is empty: give at least one, such as "a photo of a {}."')
    if len(templates) > MAX_TEMPLATES:
        raise UserError(f"{len(templates):,} templates: give at most {MAX_TEMPLATES:,}")
    for template in templates:
        if len(template) > MAX_TEMPLATE_LENGTH:
            raise UserError(
                f"template {quoted(template)} has {len(template):,} characters: give at most "
                f"{MAX_TEMPLATE_LENGTH:,}"
            )
        before, braces, after = template.partition("{}")
        if not braces or set("{}") & set(before + after):
            raise UserError(
                f"template {quoted(template)} needs exactly one {{}} for the class name, as in "
                '"a photo of a {}."'
            )
    return tuple(templates)


# Names of settings that all methods share. `data` and `tests` are arguments, not settings.
TASK_SETTINGS = tuple(f.name for f in fields(Task) if f.name not in ("data", "tests"))
MACHINE_SETTINGS = tuple(f.name for f in fields(Machine))
COMMON_SETTINGS = (*TASK_SETTINGS, *MACHINE_SETTINGS)


def qualified_settings(method: str, settings: Mapping[str, object]) -> JsonObject:
    """Return a method's settings by the names that `Request.make` takes: METHOD.field where a
    common setting has the same name."""
    common = {*COMMON_SETTINGS} & settings.keys()
    return {f"{method}.{n}" if n in common else n: value for n, value in settings.items()}
