"""From pictures to tensors: augmentation that is a function of its seed, and batches in a fixed order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rmadapter.data.images import ImageSet, load_image
from rmadapter.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from rmadapter.backbone import Backbone


@dataclass(frozen=True)
class TrainTransform:
    """CoOp's augmentation: bicubic random resized crop, horizontal flip, tensor, normalisation; in this order.

    Call it with an RGB picture and a seed: float tensor [3, size, size], the same for the same seed. torch's
    global generators stay as they are. Can be pickled.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @cached_property
    def _steps(self) -> Callable[[Image.Image], Tensor]:
        from torchvision import transforms as tv

        bicubic = tv.InterpolationMode.BICUBIC
        crop = tv.RandomResizedCrop(self.size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation=bicubic)
        return tv.Compose([crop, tv.RandomHorizontalFlip(), tv.ToTensor(), tv.Normalize(self.mean, self.std)])

    def __call__(self, picture: Image.Image, seed: int) -> Tensor:
        # torchvision draws from the CPU's default generator; torch.manual_seed would also reset those of the GPUs.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._steps(picture)


def train_transform(backbone: Backbone) -> TrainTransform:
    """The augmentation for this backbone's image size, mean and standard deviation."""
    return TrainTransform(backbone.image_size, backbone.mean, backbone.std)


@dataclass(frozen=True, eq=False)
class Pictures(Dataset):
    """Index -> float tensor [3, H, W] of an ImageSet; can be pickled, so worker processes can read it.

    transform: picture -> tensor; with a `key`, (picture, seed) -> tensor as `train_transform` gives
    key: (seed, epoch); the augmentation of a picture depends on it and on the index alone, not on workers or batches
    """

    images: ImageSet
    transform: Callable[..., Tensor]
    key: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        picture = load_image(self.images.images[index])
        if self.key is None:
            return self.transform(picture)
        word = hashlib.sha256(f"{self.key[0]} {self.key[1]} {index}".encode()).digest()
        return self.transform(picture, int.from_bytes(word[:7], "big"))


def batches(
    images: ImageSet,
    preprocess: Callable[..., Tensor],
    batch_size: int,
    workers: int = 0,
    key: tuple[int, int] | None = None,
) -> Iterator[Tensor]:
    """Float tensors [B, 3, H, W] of all pictures in order, the last one maybe smaller. Raises UserError as load_image.

    A loader draws a base seed even when nothing is random: it gets a generator of its own, not torch's global one.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": workers, "generator": torch.Generator()}
    try:
        yield from DataLoader(Pictures(images, preprocess, key), **options)
    except UserError as error:  # a worker process sends its whole traceback as the message
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
