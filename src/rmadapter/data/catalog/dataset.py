"""Facts about a public data set: the layout of its archive, and what users should know."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Dataset(BaseModel):
    """A row of the catalogue. The second block of fields is for the readers of archive formats."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    title: str
    folder: str  # CoOp's name for it, below the common root
    classes: int
    counts: dict[str, int]  # split -> images
    templates: tuple[str, ...]
    licence: str
    size: str
    citation: str
    url: str
    steps: tuple[str, ...]  # for the user to do; {home} is the data set's folder
    archives: dict[str, str] = {}  # address -> "sha256:..." or "md5:...", "" if none is published
    mirrors: dict[
        str, str
    ] = {}  # address -> content; neither checked by us nor fetched automatically
    unpacked: str = "."  # the folder in the archives that holds the data

    reader: str  # of readers.READERS
    images: str = ""  # the folder that paths of a split are relative to
    split: str = ""  # CoOp's split file
    split_url: str = ""
    lists: dict[str, str] = {}  # split -> the archive's own list, or its folder of class folders
    order: str = ""  # file of class names
    order_line: str = "(?P<name>.+)"
    line: str = ""
    file: str = ""
    spelling: str = "as is"
    renames: dict[str, str] = {}  # class folder -> class name
    ignored: tuple[str, ...] = ()

    @property
    def most(self) -> int:
        """Upper bound on the bytes of the archive, packed or unpacked: four times `size`."""
        return int(4e9 * float(self.size.split()[0]))

    def laid_out(self, home: Path) -> bool:
        """Whether `home` looks like the unpacked archive rather than a plain folder of class
        folders."""
        return any(
            (home / path).exists()
            for path in (self.split, self.images, *self.lists.values())
            if path
        )
