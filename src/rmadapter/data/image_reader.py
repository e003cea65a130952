"""Read an image file once for everything that needs it: pixels, near-duplicates, SHA-256."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from rmadapter.data.decode import ImageSource, content, load_hashed, load_image
from rmadapter.data.duplicates import thumbprint
from rmadapter.errors import UserError
from rmadapter.support.terminal import track

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Transform: TypeAlias = "Callable[[Image.Image], Tensor]"
S = TypeVar("S")
T = TypeVar("T")
ROOM = 1 << 29  # bytes of pixels that are kept for later


class ImageReader:
    """Reads image files, and remembers what else is needed of them, so that none is decoded again.

    `read` decodes images ahead of their use: the next `pixels` of each costs nothing, as long as
    they fit into `room` bytes. SHA-256 and thumbprints of files are remembered for good, the latter
    only after the first was requested, since most commands need none. Images in memory are not
    remembered. A copy, such as in a worker process, starts empty.
    """

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._lock = Lock()
        self._contents: dict[str, bytes] = {}
        self._thumbprints: dict[str, bytes] = {}
        self._pixels: dict[str, tuple[Transform, Tensor]] = {}
        self._wants_thumbprints = False

    def __reduce__(self) -> tuple[type[ImageReader], tuple[()]]:
        return ImageReader, ()

    def image(self, source: ImageSource) -> Image.Image:
        """Decode an image. Raises as `load_image`."""
        image = load_image(source)
        if self._wants_thumbprints and isinstance(source, (str, Path)):
            self._thumbprints.setdefault(str(source), thumbprint(image))
        return image

    def pixels(self, source: ImageSource, transform: Transform) -> Tensor:
        """Return the transformed image, from memory if `read` kept it. Raises as `load_image`."""
        if isinstance(source, (str, Path)):
            with self._lock:
                if self._pixels.get(str(source), (None,))[0] is transform:
                    _, pixels = self._pixels.pop(str(source))
                    self._room += pixels.nbytes
                    return pixels
        return transform(self.image(source))

    def content(self, source: ImageSource) -> bytes:
        """Return the SHA-256 of a file's bytes, or of the pixels of an image in memory."""
        if not isinstance(source, (str, Path)):
            return content(source)
        key = str(source)
        if key not in self._contents:
            self._contents[key] = content(source)
        return self._contents[key]

    def thumbprints(self, sources: Sequence[ImageSource], progress: bool = False) -> list[bytes]:
        """Return what `duplicates.looks` needs of each image. Raises as `load_image`."""
        self._wants_thumbprints = True
        return in_threads(self._thumbprint, sources, "looking for duplicates", progress)

    def _thumbprint(self, source: ImageSource) -> bytes:
        if not isinstance(source, (str, Path)):
            return thumbprint(load_image(source))
        if str(source) not in self._thumbprints:
            self.image(source)
        return self._thumbprints[str(source)]

    def read(
        self, sources: Sequence[ImageSource], transform: Transform, progress: bool = False
    ) -> list[str]:
        """Read images ahead of their use: pixels, thumbprints and SHA-256. Return for each image
        why it cannot be read, or ""."""
        self._wants_thumbprints = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the returned texts say what is wrong
            return in_threads(
                lambda source: self._read(source, transform), sources, "reading images", progress
            )

    def _read(self, source: ImageSource, transform: Transform) -> str:
        try:
            if not isinstance(source, (str, Path)):
                load_image(source)
                return ""
            key = str(source)
            image, self._contents[key] = load_hashed(source)
            self._thumbprints[key] = thumbprint(image)
        except UserError as error:
            return str(error)
        if self._room > 0:
            pixels = transform(image)
            with self._lock:
                if key not in self._pixels and pixels.nbytes <= self._room:
                    self._pixels[key] = transform, pixels
                    self._room -= pixels.nbytes
        return ""


def in_threads(
    function: Callable[[S], T], items: Sequence[S], text: str, progress: bool
) -> list[T]:
    """Return the results of a function for all items, in order, computed by several threads."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        return list(track(pool.map(function, items), len(items), text, progress))
    finally:
        pool.shutdown(cancel_futures=True)
