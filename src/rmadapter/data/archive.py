"""What is known of a public data set: where its archive keeps what, and what a person should know."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Dataset(BaseModel):
    """A row of the table. What a reader of an archive format needs is in the second block."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    title: str
    folder: str  # as CoOp calls it, below the common root
    classes: int
    counts: dict[str, int]  # split -> images
    templates: tuple[str, ...]
    licence: str
    size: str
    citation: str
    url: str
    steps: tuple[str, ...]  # what a person does; {home} is the data set's folder
    archives: dict[str, str] = {}  # address -> "sha256:..." or "md5:...", "" where none is published
    mirrors: dict[str, str] = {}  # address -> what is there; not checked by us, and not fetched by itself
    unpacked: str = "."  # folder in them that holds what is wanted

    reader: str  # of readers.READERS
    images: str = ""  # folder that the paths of a split are relative to
    split: str = ""  # CoOp's split file
    split_url: str = ""
    lists: dict[str, str] = {}  # split -> the archive's own list, or folder of class folders
    order: str = ""  # file of class names
    order_line: str = "(?P<name>.+)"
    line: str = ""
    file: str = ""
    spelling: str = "as is"
    renames: dict[str, str] = {}  # class folder -> class name
    ignored: tuple[str, ...] = ()

    @property
    def most(self) -> int:
        """Bytes beyond which an archive, packed or unpacked, is not what it says."""
        return int(4e9 * float(self.size.split()[0]))

    def laid_out(self, home: Path) -> bool:
        """Does `home` look like the archive, and not like any folder of class folders?"""
        return any((home / path).exists() for path in (self.split, self.images, *self.lists.values()) if path)
