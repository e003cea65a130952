"""A compiled training is the same training, also where the last batch of an epoch is smaller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.methods import load_method
from rmadapter.training.contract import Fitted
from rmadapter.training.loop import Batch, minimise
from rmadapter.training.shots import Shots
from rmadapter.training.traits import Recipe
from tests.helpers.learning import fit_adapters, losses
from tests.helpers.shots import noisy_colors, shots_of

MODES = ("default", "reduce-overhead")
EIGHT = noisy_colors(4, size=40, names=("red", "blue"))
# Two whole batches of three and one of two an epoch; one adapted block, as compiling takes long.
# Adam would make a step of a gradient that is rounding alone.
FEW = {"first_block": 4, "batch_size": 3, "epochs": 2, "optimizer": "sgd", "learning_rate": 0.1}
# of torch's own code, when it traces a loss
dynamo = pytest.mark.filterwarnings("ignore:The .grad attribute")


@pytest.fixture
def inductor() -> None:
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(2))
    except Exception as error:  # no C++ compiler, a Python that dynamo does not know
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")


def follow(patch: pytest.MonkeyPatch, make: Callable[..., Any]) -> list[dict[str, Any]]:
    """Let torch.compile call a function instead, and return the options that it gets."""
    seen: list[dict[str, Any]] = []

    def compile(function: Any, *, options: dict[str, Any]) -> Any:
        seen.append(options)
        return make(function)

    patch.setattr(torch, "compile", compile)
    return seen


class Random(nn.Module):
    """A probe that drops features and draws numbers from both generators of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Linear(40, 4)
        nn.init.constant_(self.probe.weight, 0.1)
        nn.init.zeros_(self.probe.bias)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        noise = torch.rand(4, generator=batch.generator).to(batch.labels.device)
        x = F.dropout(batch.images.features, 0.3)
        ce = F.cross_entropy(self.probe(x) + noise, batch.labels)
        return {"loss": 2 * ce, "ce": ce}


def trained(shots: Shots) -> tuple[list[Any], Tensor]:
    """Train the probe on ten images, four a step; return what is recorded, and its weights."""
    module = Random()
    recipe = Recipe(learning_rate=0.1, epochs=3, batch_size=4, warmup_epochs=0)
    history = minimise(module, module.loss, recipe, shots, shots.source()).history
    return history, module.probe.weight.detach()


TEN = noisy_colors(5, names=("red", "blue"))


@pytest.mark.parametrize("mode", MODES)
def test_whole_batches_after_the_first_are_compiled(
    mode: str, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    begun: list[int] = []

    def make(loss: Any) -> Any:
        def call(batch: Batch) -> Any:
            sizes.append(len(batch.rows))
            return loss(batch)

        return call

    plain = trained(shots_of(tiny_clip, TEN))
    options = follow(monkeypatch, make)
    monkeypatch.setattr(
        torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(len(sizes))
    )
    found = trained(shots_of(tiny_clip, TEN, compile=mode))
    assert sizes == [4] * 5  # of nine steps; the last of each epoch has two images
    assert found[0] == plain[0]
    assert torch.equal(found[1], plain[1])
    graphs = mode == "reduce-overhead"
    assert [one.get("triton.cudagraphs", False) for one in options] == [graphs]
    assert begun == (list(range(5)) if graphs else [])  # before each of these steps


def test_fewer_images_than_a_batch_are_a_whole_batch(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    follow(monkeypatch, lambda loss: lambda batch: calls.append(batch) or loss(batch))
    fit_adapters(shots_of(tiny_clip, EIGHT, compile="default"), batch_size=16, epochs=3)
    assert len(calls) == 2  # after the first


class Overwriting:
    """A compiler of graphs that lose what they returned when the next step begins, as CUDA graphs
    do."""

    def __init__(self) -> None:
        self.graphs, self.returned = 0, list[Tensor]()

    def __call__(self, graph: nn.Module, inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1

        def run(*values: Any) -> Any:
            found = graph(*values)
            given = [x for x in values if isinstance(x, Tensor)]
            kept = {x.untyped_storage().data_ptr() for x in [*given, *graph.state_dict().values()]}
            for x in found:
                if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in kept:
                    self.returned.append(x)
            return found

        return run

    def begin(self) -> None:
        for x in self.returned:
            x.untyped_storage().fill_(255)  # a float of these bytes is not a number
        self.returned.clear()


@pytest.mark.ci
@dynamo
@pytest.mark.parametrize(
    ("name", "precision", "graphs"), [("rmadapter", "bf16", 1), ("text-refiner", "fp32", 2)]
)
def test_nothing_that_a_graph_returned_is_read_in_the_next_step(
    name: str, precision: str, graphs: int, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as frozen weights, which are cast once, and TextRefiner's cache."""
    real, compiler = torch.compile, Overwriting()
    torch.compiler.reset()
    fields = FEW if name == "rmadapter" else {"batch_size": 3, "epochs": 2}
    method = load_method(name, fields)
    plain = method.fit(tiny_clip, shots_of(tiny_clip, EIGHT, precision=precision))
    follow(monkeypatch, lambda loss: real(loss, backend=compiler))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", compiler.begin)
    again = load_backbone(tiny_clip.name)  # which has cast nothing
    shots = shots_of(again, EIGHT, precision=precision, compile="reduce-overhead")
    found = method.fit(again, shots)
    assert compiler.graphs == graphs
    assert compiler.returned
    assert_same(found, plain, 1e-5)


def assert_same(found: Fitted, plain: Fitted, tolerance: float) -> None:
    """Compare losses and trained tensors."""
    assert losses(found) == pytest.approx(losses(plain), rel=tolerance)
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=10 * tolerance, atol=1e-4)


@dynamo
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_compiled_steps_draw_the_same_numbers(
    mode: str, tiny_clip: Backbone, inductor: None
) -> None:
    plain, found = (trained(shots_of(tiny_clip, TEN, compile=one)) for one in ("none", mode))
    for step, other in zip(found[0], plain[0], strict=True):
        assert step == pytest.approx(other, rel=1e-4)
    torch.testing.assert_close(found[1], plain[1])


@dynamo
@pytest.mark.slow
def test_a_compiled_training_equals_an_eager_one(tiny_clip: Backbone, inductor: None) -> None:
    plain, found = (
        fit_adapters(shots_of(tiny_clip, EIGHT, compile=mode), **FEW)
        for mode in ("none", "default")
    )
    assert_same(found, plain, 1e-4)


@dynamo
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: replays CUDA graphs")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 5e-2)])
@pytest.mark.parametrize("mode", MODES)
def test_a_replayed_training_equals_an_eager_one(  # pragma: no cover: needs a GPU
    mode: str, precision: str, tolerance: float, tiny_clip: Backbone
) -> None:
    backbone = load_backbone(tiny_clip.name).to(torch.device("cuda"))
    few = {**FEW, "epochs": 4}  # a graph is replayed from the third step on
    plain, found = (
        fit_adapters(shots_of(backbone, EIGHT, precision=precision, compile=one), **few)
        for one in ("none", mode)
    )
    assert_same(found, plain, tolerance)
