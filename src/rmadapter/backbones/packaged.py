"""Backbones that installed packages bring, through the entry point group `rmadapter.backbones`.

`pocket` is one: packages/pocket shows how such a package is written.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from rmadapter.errors import UserError

if TYPE_CHECKING:
    from rmadapter.backbones.backbone import Backbone

GROUP = "rmadapter.backbones"
POCKET = "pocket"  # of the records of studies
POCKET_3 = "pocket-3"  # the default of `fit`: at 224 pixels, in five times the time
OWN_PACKAGES = (POCKET, POCKET_3)
INSTALL = "pip install rmadapter-pocket"


class Packaged(Protocol):
    """What an entry point names: a module or object with these members.

    Attributes:
        LICENCE: Licence of the weights.
        MEGABYTES: Size of what is fetched on first use.
        ABOUT: What it is for, in a line.

    A package whose backbone is far weaker than a real CLIP also has `PURPOSE`, which says in a few
    words what the backbone is for, such as "a small offline model for teaching", and which
    `rmadapter.backbones.published.caveat` tells users.
    """

    LICENCE: str
    MEGABYTES: int
    ABOUT: str

    def place(self) -> Path:
        """Return the folder of the model, which need not exist yet."""

    def build(self) -> Path:
        """Return the folder of the model for open_clip; make it if it is not there. Raises
        UserError if it cannot be made."""

    def check(self, folder: Path, backbone: Backbone) -> None:
        """Raise UserError if a loaded backbone is not the one that the package means."""


def packaged_names() -> list[str]:
    """Return the names of the backbones that installed packages bring."""
    return [point.name for point in metadata.entry_points(group=GROUP)]


def is_packaged(name: str) -> bool:
    """Return whether an installed package brings a backbone. Raises UserError for our own without
    their package."""
    if name in packaged_names():
        return True
    if name in OWN_PACKAGES:
        raise UserError(
            f"backbone {name!r} is not installed: run `{INSTALL}`, or name another with "
            "--backbone, such as ViT-B-16/openai"
        )
    return False


def load_package(name: str) -> Packaged:
    """Load what describes a backbone of `packaged_names`. Raises UserError if its package is
    broken."""
    point = next(iter(metadata.entry_points(group=GROUP, name=name)))
    try:
        return cast(Packaged, point.load())
    except (ImportError, AttributeError) as error:
        raise UserError(f"backbone {name!r}: its package cannot be loaded ({error})") from error
