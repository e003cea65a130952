"""From images to tensors: augmentation that is a function of its seed, and batches in a given
order."""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rmadapter.data.decode import ImageSource, load_image
from rmadapter.data.image_set import SKIP_BAD, ImageSet
from rmadapter.errors import UserError
from rmadapter.support.machine import cores, end_with_parent, seeded, uninterrupted

if TYPE_CHECKING:
    from PIL import Image

A = TypeVar("A")
S = TypeVar("S", bound=ImageSource)
T = TypeVar("T")
_GENERATOR_LOCK = Lock()


@dataclass(frozen=True)
class TrainTransform:
    """CoOp's augmentation: bicubic random resized crop, horizontal flip, tensor, normalisation; in
    this order.

    Called with an RGB image and a seed, it returns a float tensor [3, size, size], the same for the
    same seed, and leaves torch's global generators unchanged. It can be pickled.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @cached_property
    def _steps(self) -> Callable[[Image.Image], Tensor]:
        from torchvision import transforms as tv

        bicubic = tv.InterpolationMode.BICUBIC
        crop = tv.RandomResizedCrop(
            self.size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation=bicubic
        )
        flip = tv.RandomHorizontalFlip()
        steps: Callable[[Image.Image], Tensor] = tv.Compose(
            [crop, flip, tv.ToTensor(), tv.Normalize(self.mean, self.std)]
        )
        return steps

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        with seeded(seed):  # torchvision draws from the CPU's default generator
            return self._steps(image)


@dataclass(frozen=True)
class WithViews:
    """A transform and, behind its tensor, random crops of the image, half of them flipped:
    torchvision's resized crop with its own defaults.

    Called with an RGB image, it returns a float tensor [1 + count, 3, size, size]. The crops depend
    on the pixels alone, so that an image has the same ones in every command. It can be pickled.

    Args:
        plain: The transform.
        count: Number of crops.
        size: Pixels of a side.
        mean: Mean of the normalised colours.
        std: Their standard deviation.
    """

    plain: Callable[[Image.Image], Tensor]
    count: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> Tensor:
        from torchvision.transforms import RandomResizedCrop, functional as tv

        crop = RandomResizedCrop(self.size)
        word = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
        # torchvision draws from the CPU's default generator, which decoding threads share
        with _GENERATOR_LOCK, seeded(int.from_bytes(word[:7], "big")):
            boxes = [
                (crop.get_params(image, crop.scale, crop.ratio), bool(torch.rand(1) < 0.5))
                for _ in range(self.count)
            ]
        views = [self.plain(image)]
        for box, flipped in boxes:
            view = tv.resized_crop(image, *box, [self.size, self.size])
            tensor = tv.to_tensor(tv.hflip(view) if flipped else view)
            views.append(tv.normalize(tensor, self.mean, self.std))
        return torch.stack(views)


@dataclass(frozen=True, eq=False)
class ImageTensors(Dataset[Tensor]):
    """A mapping of index -> float tensor [3, H, W] of an ImageSet; can be pickled for worker
    processes.

    Args:
        images: The images.
        transform: Image -> tensor; with a `key`, (image, seed) -> tensor, such as TrainTransform.
        key: (seed, view); an image's augmentation depends only on it and on the index, not on
            workers or batches.
    """

    images: ImageSet
    transform: Callable[..., Tensor]
    key: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        source = self.images.images[index]
        if self.key is None:
            return self.images.reader.pixels(source, self.transform)
        image = self.images.reader.image(source)
        word = hashlib.sha256(f"{self.key[0]} {self.key[1]} {index}".encode()).digest()
        return self.transform(image, int.from_bytes(word[:7], "big"))


def batches(
    tensors: ImageTensors, orders: Sequence[Sequence[int]], workers: int = 0
) -> Iterator[Tensor]:
    """Yield float tensors [B, 3, H, W], one batch for each list of rows in `orders`.

    Images that are not augmented are decoded while the caller works on earlier ones.

    Args:
        tensors: The images and their transform.
        orders: Rows of each batch.
        workers: Processes that decode and augment; 0 decodes in threads, two batches ahead, and
            augments in the caller's.

    Raises:
        UserError: As for `load_image`.
    """
    try:
        if workers:
            yield from _in_processes(tensors, orders, workers)
        elif tensors.key:  # draws from torch's global generator, which the caller may use meanwhile
            for rows in orders:
                yield torch.stack([tensors[row] for row in rows])
        else:
            ahead = 2 * max(map(len, orders), default=1)
            stream = _ahead(tensors.__getitem__, chain.from_iterable(orders), ahead)
            for rows in orders:
                yield torch.stack([future.result() for _, future in islice(stream, len(rows))])
    except UserError as error:  # a worker process sends its whole traceback as the message
        raise UserError(f"{str(error).rpartition('UserError: ')[2].strip()}; {SKIP_BAD}") from None


def _in_processes(
    tensors: ImageTensors, orders: Sequence[Sequence[int]], workers: int
) -> Iterator[Tensor]:
    """Yield the same batches from worker processes.

    The loader draws a base seed even if nothing is random, so it gets its own generator instead of
    torch's global one.
    """
    loader: DataLoader[Tensor] = DataLoader(
        tensors,
        batch_sampler=orders,  # type: ignore[arg-type]
        num_workers=workers,
        generator=torch.Generator(),
        worker_init_fn=_in_worker,
    )
    with uninterrupted():
        stream = iter(loader)
    yield from stream


def decode_batches(
    images: Iterable[S],
    transform: Callable[[Image.Image], Tensor],
    size: int,
    bad: list[tuple[S, str]] | None = None,
) -> Iterator[tuple[list[S], Tensor]]:
    """Yield batches of up to `size` images with their tensors [B, 3, H, W], in order; threads
    decode two batches ahead.

    Args:
        images: The images.
        transform: RGB image -> tensor.
        size: Images of a batch.
        bad: Collects unreadable images with the reason, which are then left out. If None, the first
            one raises UserError, after the images before it were yielded.
    """
    batch: list[tuple[S, Tensor]] = []
    for image, future in _ahead(lambda one: transform(load_image(one)), images, 2 * size):
        try:
            batch.append((image, future.result()))
        except UserError as error:
            if bad is None:
                if batch:
                    yield _stacked(batch)
                raise
            bad.append((image, str(error)))
        if len(batch) == size:
            yield _stacked(batch)
            batch = []
    if batch:
        yield _stacked(batch)


def _stacked(batch: Sequence[tuple[S, Tensor]]) -> tuple[list[S], Tensor]:
    """Return the images of a batch, and their tensors as one."""
    return [image for image, _ in batch], torch.stack([pixels for _, pixels in batch])


def _ahead(
    function: Callable[[A], T], items: Iterable[A], ahead: int
) -> Iterator[tuple[A, Future[T]]]:
    """Yield items with their results to come, in order, while threads work on the next `ahead`
    items."""
    pool = ThreadPoolExecutor(cores())
    rest = iter(items)
    waiting: deque[tuple[A, Future[T]]] = deque()
    try:
        while True:
            more = islice(rest, ahead + 1 - len(waiting))
            waiting += [(item, pool.submit(function, item)) for item in more]
            if not waiting:
                return
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _in_worker(_: int) -> None:
    """Make a worker end with its parent, which torch misses if the parent is killed early.

    Silences tracebacks of what fails in that moment; the worker's own errors do not pass through
    the hook.
    """
    sys.excepthook = lambda *_: None
    end_with_parent()


def with_hint(stream: Iterator[T]) -> Iterator[T]:
    """Yield the same items; the error of an unreadable image mentions --skip-bad."""
    try:
        yield from stream
    except UserError as error:
        raise UserError(f"{error}; {SKIP_BAD}") from None
