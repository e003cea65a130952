"""The training loop of every method: recipe, steps, exact resume, several processes.

Killed at any moment and started again, a training ends with the same weights, on a CPU with as many
threads bit for bit; a compiled one up to rounding, since it begins with an uncompiled step.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean, median
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rmadapter.encoders import States, send
from rmadapter.errors import UserError, memory_ended
from rmadapter.support.distributed import add_up, begin, several
from rmadapter.support.files import JsonObject, write_tensors
from rmadapter.support.machine import keep_freed_memory
from rmadapter.support.terminal import bar, note
from rmadapter.training.cache import DTYPES, Source
from rmadapter.training.disk_cache import checksum
from rmadapter.training.shots import Callback, Figures, Shots, Trained, Unfinished
from rmadapter.training.traits import Recipe

if TYPE_CHECKING:
    from rich.progress import Progress

SAVE_SECONDS = 30.0  # a killed run loses at most this much work
READ_SECONDS = 0.5  # between two readings of losses, for which a processor waits for its GPU


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of a loss.

    Attributes:
        epoch: Number of the epoch, from 0.
        rows: Indices of the shots on the CPU, [B].
        labels: Classes of the images, [B].
        images: States of the B images.
        generator: Generator for anything else drawn in a step; a resumed training restores its
            state.

    Example:
        >>> import torch
        >>> from rmadapter import Batch, Lab, Shots, Task
        >>> task, lab = Task("colors", backbone="tiny", shots=2), Lab(progress=False)
        >>> shots = Shots(lab.draw(task).train, lab.train_cache(task))
        >>> rows = torch.tensor([0, 7])
        >>> states = shots.source().batch(rows)
        >>> batch = Batch(0, rows, shots.labels[rows], states, torch.Generator())  # to try a loss
        >>> batch.labels
        tensor([0, 3])
        >>> batch.images.features.shape
        torch.Size([2, 40])
    """

    epoch: int
    rows: Tensor
    labels: Tensor
    images: States
    generator: torch.Generator


Loss = Callable[[Batch], "Tensor | dict[str, Tensor]"]


def summed(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the terms of a loss with their sum under "loss"."""
    return {"loss": torch.stack(list(terms.values())).sum(), **terms}


def minimise(
    module: nn.Module,
    loss: Loss,
    recipe: Recipe,
    shots: Shots,
    source: Source,
    after_epoch: Callable[[int], object] = lambda epoch: None,
    times: Callable[[str], float] = lambda name: 1.0,
) -> Trained:
    """Minimise a loss over the shots, with exact resume.

    The order of images depends only on the seed, the epoch and the weights of the images.

    Args:
        module: Module whose parameters are trained, and whose state is the result.
        loss: Function from a `Batch` to a scalar, or to terms by name with their sum under "loss".
        recipe: Optimiser and its schedule.
        shots: Images, with the device.
        source: Source of the states of a batch.
        after_epoch: Function that is called with the number of each finished epoch, from 0; it may
            change buffers of the module.
        times: Function from the name of a parameter to a factor on its peak learning rate.

    Returns:
        The record of the training, with steps, seconds, and the terms of every step.

    Raises:
        UserError: The loss is not finite, the unfinished training is another one, or the device
            lacks the number format.

    Example:
        >>> from torch import nn
        >>> from torch.nn.functional import cross_entropy
        >>> from rmadapter import Lab, Recipe, Shots, Task, minimise
        >>> task, lab = Task("colors", backbone="tiny", shots=4), Lab(progress=False)
        >>> shots = Shots(lab.draw(task).train, lab.train_cache(task), progress=False)
        >>> probe = nn.Linear(40, 4)  # from features of length 40 to four classes
        >>> def loss(batch):
        ...     return cross_entropy(probe(batch.images.features), batch.labels)
        >>> recipe = Recipe(epochs=3, batch_size=8)
        >>> trained = minimise(probe, loss, recipe, shots, shots.source())
        >>> trained.step  # 16 images make two batches
        6
    """
    device = shots.device
    _prepare(module, shots)
    trainer = Trainer(module, recipe, shots, times)
    trained = trainer.trained
    epochs, per_epoch = recipe.length(shots.images.labels)
    call = _ready(loss, recipe, shots)
    labels, shown = shots.labels, ""
    seconds: list[float] = []  # of each step that is read
    spent = 0.0  # on those that are not
    saved = read = time.monotonic()
    started = saved - trained.seconds
    # Processes that find out apart that a loss is not finite would wait for one another.
    always = bool(shots.callbacks) or several()
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus), bar(shots.progress) as display:
        trainer.seed()
        total = epochs * per_epoch
        advance = _advances(display, shots.training, total, trained.step)
        for epoch in range(trained.step // per_epoch, epochs):
            orders = order(len(labels), recipe.batch_size, shots.seed, epoch, shots.weights)
            orders = orders[trained.step % per_epoch :]
            parts, shares = zip(*map(_share, orders), strict=True)
            states = source.batches(epoch, parts)
            for part, share, images in zip(parts, shares, states, strict=True):
                begun = time.perf_counter()
                rates = [one.rate(trained.step, per_epoch, epochs) for one in trainer.recipes]
                batch = Batch(epoch, part, labels[send(part, device)], images, trainer.generator)
                with _memory_told(recipe, shots, len(part)):
                    trainer.step(call, batch, rates, share)
                if trained.step % per_epoch == 0:
                    after_epoch(epoch)
                now = time.monotonic()
                saves = shots.unfinished and trainer.writes and now - saved > SAVE_SECONDS
                reads = always or saves or trained.step == total or now - read > READ_SECONDS
                count = trainer.read() if reads else 0
                if count:
                    read = time.monotonic()
                    trained.seconds = read - started
                    notify(shots.callbacks if trainer.writes else (), trained.history, per_epoch)
                spent += time.perf_counter() - begun
                if count:
                    seconds += [spent / count] * count
                    spent, shown = 0.0, f"loss {trained.history[-1]['loss']:.3f}"
                advance(shown)
                if saves and shots.unfinished:
                    trainer.save(shots.unfinished)
                    saved = time.monotonic()
    module.eval()
    trained.step_seconds = median(seconds) if seconds else None
    trained.weighed = True
    return trained


def _advances(
    display: Progress, training: tuple[int, int], total: int, step: int
) -> Callable[[str], None]:
    """Add a bar of the steps of all trainings of a run, as if each took as many as this one, and
    return what advances it by a step and shows a text beside it.

    Args:
        display: Where the bar is shown.
        training: As in `Shots`.
        total: Number of steps of this training.
        step: Number of those that are done.
    """
    number, of = training
    which = [f"model {number} of {of}"] if of > 1 else []
    done = (number - 1) * total + step
    task = display.add_task("training", total=of * total, completed=done, note=", ".join(which))

    def advance(text: str) -> None:
        display.update(task, advance=1, note=", ".join(filter(None, [*which, text])))

    return advance


@contextmanager
def _memory_told(recipe: Recipe, shots: Shots, size: int) -> Iterator[None]:
    """Raise UserError where memory ends within the block, a step on `size` images; it names what
    can still be lowered."""
    try:
        yield
    except RuntimeError as error:
        if not memory_ended(error):
            raise
        batch = min(recipe.batch_size, len(shots.images))
        ways = [f"batch_size={batch // 2}"] if batch > 1 else []
        if shots.machine.precision == "fp32":
            ways.append("precision=bf16")
        lower = f"set {' or '.join(ways)}, or " if ways else ""
        raise UserError(
            f"{shots.device}: its memory ended in a step of {size} images and "
            f"{len(shots.classes)} classes: {lower}take a smaller backbone or fewer classes"
        ) from None


def _prepare(module: nn.Module, shots: Shots) -> None:
    """Move a module to the device of the shots, and set it to training."""
    if shots.device.type == "cpu":
        if shots.machine.precision == "fp16":
            raise UserError(
                "precision=fp16 needs a GPU: write precision=bf16 or fp32 on this machine"
            )
        keep_freed_memory()
    module.to(shots.device).train()


Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


def compiled(function: Callable[Inputs, Output], graphs: bool = False) -> Callable[Inputs, Output]:
    """Compile a function by torch.compile, so that it draws the same random numbers as before.

    Args:
        function: Function to compile.
        graphs: Whether to record what it does on a GPU as CUDA graphs.
    """
    # as mode="reduce-overhead", which torch takes only without other options
    more = {"triton.cudagraphs": True} if graphs else {}
    return torch.compile(function, options={"fallback_random": True, **more})


def _ready(loss: Loss, recipe: Recipe, shots: Shots) -> Loss:
    """Return a loss as the settings of the machine want it."""
    mode = shots.machine.compile
    if mode == "none":
        return loss
    whole, _ = _share(torch.arange(min(recipe.batch_size, len(shots.images))))
    return _Compiled(loss, len(whole), graphs=mode == "reduce-overhead")


class _Compiled:
    """A loss that is compiled for batches of one size.

    The first batch runs uncompiled: what a loss keeps from its first call, such as weights that are
    cast once, must be neither compiled into every step nor in the memory of a CUDA graph. So does
    the last batch of an epoch, if it is smaller: to compile its size too hardly pays for one step
    an epoch, and to pad it, each method's loss would have to leave images out.

    Args:
        loss: Loss to compile.
        size: Size of the part of a whole batch that this process has.
        graphs: As in `compiled`.
    """

    def __init__(self, loss: Loss, size: int, graphs: bool) -> None:
        self.loss, self.size, self.graphs = loss, size, graphs
        self.call, self.first = compiled(loss, graphs), True

    def __call__(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        if self.first or len(batch.rows) != self.size:
            self.first = False
            return self.loss(batch)
        if self.graphs:
            # From here on the graphs write over what they returned in the last step, of which
            # `Trainer.step` has copied the terms and dropped the gradients.
            torch.compiler.cudagraph_mark_step_begin()
        return self.call(batch)


def order(
    count: int, batch_size: int, seed: int, epoch: int, weights: Tensor | None = None
) -> list[Tensor]:
    """Return the rows of every step of an epoch.

    By systematic sampling, a row of weight w comes w times per epoch on average, and always less
    than once more or fewer, so that a loss need not know of weights.

    Args:
        count: Number of rows.
        batch_size: Rows of a step.
        seed: Seed of the order.
        epoch: Number of the epoch.
        weights: Weights [count] in float64, 1 on average; None for equal ones.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    rows = torch.randperm(count, generator=generator)
    if weights is not None:
        marks = torch.arange(count) + torch.rand((), generator=generator, dtype=torch.float64)
        last = int(weights.nonzero()[-1])
        rows = torch.searchsorted(weights.cumsum(0), marks).clamp(max=last)[rows]
    return list(rows.split(batch_size))


def _share(rows: Tensor) -> tuple[Tensor, float]:
    """Return this process's part of a batch, and its weight: one row with weight 0 if no row is
    left for it."""
    if not several():
        return rows, 1.0
    mine = rows[dist.get_rank() :: dist.get_world_size()]
    return (mine, len(mine) / len(rows)) if len(mine) else (rows[:1], 0.0)


def notify(callbacks: Iterable[Callback], history: Sequence[Figures], per_epoch: int) -> None:
    """Call the callbacks after a step.

    Args:
        callbacks: Callbacks.
        history: Figures of all steps so far.
        per_epoch: Steps in an epoch.
    """
    last = history[-1]
    for callback in callbacks:
        callback.on_step(dict(last))
        if last["step"] % per_epoch == 0:
            figures = dict(last)
            for term in last.keys() - {"step", "epoch", "lr"}:
                figures[term] = fmean(step[term] for step in history[-per_epoch:])
            callback.on_epoch(figures)


class Unread(NamedTuple):
    """A step whose loss terms are still on the device, of an epoch counted from 0."""

    step: int
    epoch: int
    rate: float
    names: Sequence[str]
    values: Tensor


class Trainer:
    """A step of a training, and all that the next steps depend on, in memory and on disk."""

    def __init__(
        self, module: nn.Module, recipe: Recipe, shots: Shots, times: Callable[[str], float]
    ) -> None:
        self.module, self.recipe, self.device = module, recipe, shots.device
        self.format = DTYPES[shots.machine.precision]
        self._seed = shots.seed
        groups = defaultdict[float, list[nn.Parameter]](list)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                groups[times(name)].append(parameter)
        self.parameters = [*chain.from_iterable(groups.values())]
        self.optimizer = recipe.make(
            ({"params": some} for some in groups.values()),
            fused=self.device.type == "cuda",  # a few launches for all parameters
        )
        self.recipes = [
            replace(recipe, learning_rate=factor * recipe.learning_rate) for factor in groups
        ]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.format == torch.float16)
        self.generator = torch.Generator().manual_seed(shots.seed)
        self.writes = not several() or dist.get_rank() == 0
        self.trained = Trained()
        self._unread: list[Unread] = []
        self._random: dict[str, Tensor] = {}
        saved = shots.unfinished
        if saved and saved.path.exists() and not (saved.before and key_of(saved) == saved.before):
            self.load(saved)
        if several():
            begin(module.state_dict().values(), self.trained.step)

    def seed(self) -> None:
        """Seed torch's own generators, or restore them when resuming."""
        torch.default_generator.manual_seed(self._seed)  # torch.manual_seed also seeds all GPUs
        if self.device.type == "cuda":  # pragma: no cover: needs a GPU
            torch.cuda.default_generators[self.device.index or 0].manual_seed(self._seed)
        if "random.cpu" in self._random:
            torch.set_rng_state(self._random["random.cpu"])
            self.generator.set_state(self._random["random.batch"])
        if "random.cuda" in self._random:  # pragma: no cover: needs a GPU
            torch.cuda.set_rng_state(self._random["random.cuda"], self.device)

    def step(self, loss: Loss, batch: Batch, rates: Sequence[float], share: float) -> None:
        """Do a step and count it; `read` gets its loss terms.

        Args:
            loss: Loss.
            batch: Input of the loss.
            rates: Learning rates, one per group.
            share: Share of the batch that is this process's.
        """
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.optimizer.zero_grad()  # first: a CUDA graph of the loss writes over the gradients
        with torch.autocast(self.device.type, self.format, enabled=self.format != torch.float32):
            result = loss(batch)
        terms = result if isinstance(result, dict) else {"loss": result}
        shared = several()
        self.scaler.scale(terms["loss"] * share if shared else terms["loss"]).backward()
        if shared:
            add_up(*(one.grad for one in self.parameters if one.grad is not None))
        if self.recipe.clip_gradient:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        values = torch.stack([term.detach().float() for term in terms.values()])
        if shared:
            add_up(values.mul_(share))
        self.trained.step += 1
        self._unread.append(Unread(self.trained.step, batch.epoch, rates[0], [*terms], values))

    def read(self) -> int:
        """Append the figures of the steps since the last reading to the history, and return their
        number. On a GPU this waits for the steps.

        Raises UserError for the first loss that is not finite.
        """
        unread, self._unread = self._unread, []
        values = torch.cat([one.values for one in unread]).tolist() if unread else []
        for one in unread:
            terms = dict(zip(one.names, values, strict=False))
            del values[: len(terms)]
            if not math.isfinite(terms["loss"]):
                raise UserError(
                    f"the loss became {terms['loss']} in step {one.step}: lower learning_rate"
                )
            figures = {"step": one.step, "epoch": one.epoch + 1, **terms, "lr": one.rate}
            self.trained.history.append(figures)
        return len(unread)

    def save(self, unfinished: Unfinished) -> None:
        """Write one safetensors file, atomically."""
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{slot}"] = value
        tensors |= {"random.cpu": torch.get_rng_state(), "random.batch": self.generator.get_state()}
        if self.device.type == "cuda":  # pragma: no cover: needs a GPU
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        record = {"key": unfinished.key, "scaler": self.scaler.state_dict(), **vars(self.trained)}
        # As a tensor, since metadata may have 100 MB at most.
        history = json.dumps(record.pop("history")).encode()
        tensors["history"] = torch.frombuffer(bytearray(history), dtype=torch.uint8)
        text = json.dumps(record | {"threads": torch.get_num_threads()})
        write_tensors(unfinished.path, tensors, {"progress": text, "sum": checksum(tensors, text)})

    def load(self, unfinished: Unfinished) -> None:
        """Resume an unfinished training. Raises UserError if the file is damaged or from another
        training."""
        path = unfinished.path
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if facts["sum"] != checksum(tensors, facts["progress"]):
                raise ValueError
            history = json.loads(tensors["history"].numpy().tobytes())
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError(
                f"{path}: not a readable training state ({type(error).__name__}); delete it"
            ) from None
        record: JsonObject = json.loads(facts["progress"])
        key, scaler, threads = (record.pop(name) for name in ("key", "scaler", "threads"))
        if key != unfinished.key:
            raise UserError(
                f"{path.parent} holds another, unfinished training: choose another --out or delete "
                "that folder"
            )
        now = torch.get_num_threads()
        if self.writes and self.device.type == "cpu" and threads != now:
            note(
                f"{path.parent}: resumed with {now} instead of {threads} threads, which add in "
                "another order: the last digits will differ from those of an unbroken run"
            )
        self.scaler.load_state_dict(scaler or {})
        weights, state = {}, self.optimizer.state_dict()
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "module":
                weights[rest] = tensor
            elif part == "optimizer":
                index, slot = rest.split(".", 1)
                state["state"].setdefault(int(index), {})[slot] = tensor
            elif part == "random":
                self._random[name] = tensor
        self.module.load_state_dict(weights)
        self.optimizer.load_state_dict(state)
        record["history"] = history
        self.trained = Trained(**record)


def key_of(unfinished: Unfinished) -> str:
    """Return the key of the saved training; empty if there is none, or a damaged one."""
    try:
        with safe_open(unfinished.path, "pt") as file:
            return str(json.loads((file.metadata() or {})["progress"])["key"])
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RecursionError):
        return ""
