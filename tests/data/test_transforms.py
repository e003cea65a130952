"""Augmentation against torchvision under torch.manual_seed; batches against single images."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

from rmadapter.data.read import ImageSet
from rmadapter.data.transforms import (
    ImageTensors,
    TrainTransform,
    WithViews,
    batches,
    decode_batches,
)
from rmadapter.errors import UserError
from rmadapter.support.stop import STOPPED_MESSAGE

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
AUGMENT = TrainTransform(32, MEAN, STD)
PREPROCESS = tv.Compose([tv.Resize((8, 8)), tv.ToTensor()])


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (60, 90, 3), np.uint8)


def five() -> ImageSet:
    return ImageSet.from_lists([noise(i) for i in range(5)], ["a"] * 5)


def test_augmentation_equals_torchvision() -> None:
    image = Image.fromarray(noise(0))
    for seed in range(5):
        torch.manual_seed(seed)
        bicubic = tv.InterpolationMode.BICUBIC
        crop = tv.RandomResizedCrop(32, (0.08, 1), (3 / 4, 4 / 3), interpolation=bicubic)
        expected = np.asarray(tv.RandomHorizontalFlip()(crop(image))).transpose(2, 0, 1) / 255
        expected = (expected - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
        got = AUGMENT(image, seed)
        assert got.shape == (3, 32, 32)
        assert got.dtype == torch.float32
        assert np.abs(got.numpy() - expected).max() < 1e-5
    assert not torch.equal(AUGMENT(image, 1), AUGMENT(image, 2))


def test_views_are_torchvisions_crops_of_the_image_alone() -> None:
    """In threads, too, which share the generator that torchvision draws from."""
    images = [Image.fromarray(noise(i)) for i in range(8)]
    views = WithViews(PREPROCESS, 5, 8, MEAN, STD)
    before = torch.random.get_rng_state()
    first = [views(image) for image in images]
    assert torch.equal(torch.random.get_rng_state(), before)
    for image, found in zip(images, first, strict=True):
        assert found.shape == (6, 3, 8, 8)
        assert torch.equal(found[0], PREPROCESS(image))
        assert len({view.numpy().tobytes() for view in found}) == 6
    decoded = [pixels for _, pixels in decode_batches(images, pickle.loads(pickle.dumps(views)), 3)]
    assert torch.equal(torch.cat(decoded), torch.stack(first))
    whole = Image.new("RGB", (60, 60), (250, 10, 90))  # of which all crops are equal
    even = tv.Normalize(MEAN, STD)(tv.ToTensor()(whole.resize((8, 8))))
    assert all(torch.allclose(view, even) for view in views(whole)[1:])


def states() -> tuple[Any, ...]:
    numbers = np.random.get_state()[1]
    return random.getstate(), numbers.tobytes(), torch.random.get_rng_state().numpy().tobytes()  # type: ignore


def orders(size: int) -> list[list[int]]:
    """Five rows in batches."""
    return [list(range(5))[i : i + size] for i in range(0, 5, size)]


def test_global_generators_stay_untouched() -> None:
    before = states()
    AUGMENT(Image.fromarray(noise(0)), 2**56 - 1)
    list(batches(ImageTensors(five(), PREPROCESS), orders(2)))
    list(batches(ImageTensors(five(), AUGMENT, (1, 1)), orders(2)))
    assert states() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_the_requested_rows(workers: int) -> None:
    images = five()
    plain = list(batches(ImageTensors(images, PREPROCESS), [[4, 0], [2], [1, 3]], workers))
    assert [batch.shape for batch in plain] == [(2, 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8)]
    expected = [PREPROCESS(Image.fromarray(noise(i))) for i in (4, 0, 2, 1, 3)]
    assert torch.equal(torch.cat(plain), torch.stack(expected))
    augmented = ImageTensors(images, AUGMENT, (1, 0))
    two = torch.cat(list(batches(augmented, orders(2), workers)))
    assert torch.equal(two, torch.cat(list(batches(augmented, orders(3)))))
    backwards = torch.cat(list(batches(augmented, [[4, 3, 2, 1, 0]], workers)))
    assert torch.equal(two, backwards.flip(0))  # the place of an image does not matter


def test_images_are_decoded_while_the_caller_works() -> None:
    decoded = []
    images = ImageTensors(five(), lambda image: decoded.append(image) or PREPROCESS(image))
    stream = batches(images, [[0], [1], [2], [3], [4]])
    next(stream)
    end = time.monotonic() + 30
    while len(decoded) < 3:  # two batches ahead
        assert time.monotonic() < end
        time.sleep(0.01)
    stream.close()


def test_images_are_augmented_by_the_thread_that_asks() -> None:
    """Which may draw from the same generator between two batches."""
    seen = set()

    def augment(image: Image.Image, seed: int) -> torch.Tensor:
        seen.add(threading.get_ident())
        return AUGMENT(image, seed)

    list(batches(ImageTensors(five(), augment, (1, 0)), orders(2)))
    assert seen == {threading.get_ident()}


def test_augmentation_depends_on_seed_view_and_index() -> None:
    images = ImageSet.from_lists([noise(0)] * 2, ["a"] * 2)
    seen = [
        ImageTensors(images, AUGMENT, key)[i] for key in ((1, 0), (1, 1), (2, 0)) for i in (0, 1)
    ]
    assert len({tensor.numpy().tobytes() for tensor in seen}) == 6


def test_tensors_can_be_pickled() -> None:
    tensors = ImageTensors(five(), AUGMENT, (1, 0))
    first = tensors[0]  # fills whatever is computed on first use
    assert torch.equal(pickle.loads(pickle.dumps(tensors))[0], first)
    assert len(tensors) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_gives_a_one_line_error_from_workers_too(tmp_path: Path, workers: int) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    images = ImageSet.from_lists([tmp_path / "bad.png"], ["a"])
    with pytest.raises(UserError, match=r"^\S*bad\.png: [^\n]*0 bytes[^\n]*--skip-bad[^\n]*$"):
        list(batches(ImageTensors(images, PREPROCESS), [[0]], workers))


def test_images_decoded_ahead_keep_their_order() -> None:
    images = [noise(i)[: 20 + 4 * i] for i in range(11)]
    single = [PREPROCESS(Image.fromarray(image)) for image in images]
    found = list(decode_batches(images, PREPROCESS, 4))
    assert [len(some) for some, _ in found] == [4, 4, 3]
    assert torch.equal(torch.cat([pixels for _, pixels in found]), torch.stack(single))
    assert [image.shape for some, _ in found for image in some] == [image.shape for image in images]
    assert list(decode_batches([], PREPROCESS, 4)) == []


def test_decoding_ahead_is_bounded() -> None:
    taken = []

    def endless() -> Any:
        while True:
            taken.append(None)
            yield noise(0)

    stream = decode_batches(endless(), PREPROCESS, 2)
    for batch in range(3):
        next(stream)
        assert len(taken) <= 2 * batch + 6 + 2
    stream.close()


@pytest.mark.ci
def test_bad_images_are_left_out_or_raise(tmp_path: Path) -> None:
    nothing = np.zeros((0, 0), np.uint8)
    images = [nothing, noise(0), *[nothing] * 20, noise(1), noise(2), nothing]
    bad: list[Any] = []
    assert [len(some) for some, _ in decode_batches(images, PREPROCESS, 2, bad)] == [2, 1]
    assert len(bad) == 22
    assert all("image array of shape" in text for _, text in bad)
    before = []
    with pytest.raises(UserError, match="image array of shape"):
        before += (len(some) for some, _ in decode_batches(images[1:], PREPROCESS, 2))
    assert before == [1]


READS = """
import os, sys, threading, time
import numpy as np
import torch
from torch.utils.data._utils import worker
from rmadapter.support.stop import stoppable
from rmadapter.data.read import ImageSet
from rmadapter.data.transforms import ImageTensors, batches

def late(watchdog):  # torch's own watch begins when it is too late
    while os.getppid() == parent:
        time.sleep(0.01)
    usual(watchdog)

parent, usual = os.getpid(), worker.ManagerWatchdog.__init__
if sys.argv[1] == "late":
    worker.ManagerWatchdog.__init__ = late
    threading.Timer(1, print, ["in"], {"flush": True}).start()
images = ImageSet.from_lists([np.zeros((2, 2, 3), np.uint8)] * 2, ["a"] * 2)
with stoppable():
    rows = batches(ImageTensors(images, lambda image: torch.zeros(1)), [[0], [1]] * 50, 2)
    next(rows)
    print("in", flush=True)
    time.sleep(60)
"""


@contextmanager
def reading(how: str) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A process in a group of its own, and its two workers."""
    words = [sys.executable, "-c", READS, how]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, start_new_session=True, **pipes) as process:
        assert process.stdout
        assert process.stdout.readline() == "in\n"
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        yield process, workers
        process.kill()


@pytest.mark.ci
@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_ctrl_c_with_workers_prints_one_line() -> None:
    with reading("soon") as (process, workers):
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert errors.splitlines() == [STOPPED_MESSAGE]
        assert not psutil.wait_procs(workers, timeout=10)[1]


@pytest.mark.ci
@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_workers_end_if_their_parent_is_killed_at_start() -> None:
    with reading("late") as (process, workers):
        process.kill()
        assert not psutil.wait_procs(workers, timeout=10)[1]
