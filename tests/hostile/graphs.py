"""Graphs of torch with damaged or malicious members: what is read runs no code, and what still
opens answers."""

from __future__ import annotations

import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.harness import Changed
from tests.hostile.mutate import damage, damage_json, packed

RAN = "ran"  # a file that code in the graph would make in the working folder
CODE = f"open({RAN!r}, 'w')"
SYMBOL = "Symbol('s77', positive=True, integer=True)"
PROGRAM = "model/models/model.json"
WEIGHTS, CONSTANTS = (
    f"model/data/{name}/model_{name}_config.json" for name in ("weights", "constants")
)


class Opens:
    """Makes the file RAN when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (RAN, "w")


@cache
def members() -> dict[str, bytes]:
    """Return the members of a sound graph: pixels [B, 3, 4, 4] -> [B, 2]."""
    import torch

    from rmadapter.export.graph import write_torch
    from tests.hostile.valid import place

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(48, 2)
            self.scale = torch.full((2,), 3.0)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return (self.layer(pixels.flatten(1)) * self.scale).softmax(-1)

    batch = torch.export.Dim("batch")
    program = torch.export.export(Small(), (torch.ones(2, 3, 4, 4),), dynamic_shapes=({0: batch},))
    file = place() / "model.pt2"
    write_torch(program, file)
    with zipfile.ZipFile(file) as archive:
        names = {name: f"model/{name.partition('/')[2]}" for name in archive.namelist()}
        return {new: archive.read(name) for name, new in names.items()}


# Each changes the members so that torch itself would run CODE, or something like it


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects of a JSON value."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, (dict, list)):
            yield from objects(part)


def _in_field(rng: random.Random, program: Any, field: str, text: object) -> None:
    rng.choice([one for one in objects(program) if field in one])[field] = text


def _expression(rng: random.Random, program: Any) -> None:
    text = rng.choice((
        f"({SYMBOL}, {CODE})[0]", f"Mul(Integer(2), {CODE})", f"Integer(len(dir({CODE})))",
        f"{SYMBOL}.__class__.__base__.__subclasses__()", f"{SYMBOL} if {CODE} else 1",
        f"[{SYMBOL} for x in [{CODE}]][0]", f"eval({CODE!r})", f"sympify({CODE!r})",
        f"Symbol({CODE})", f"Symbol('s77', positive={CODE})", f"Integer(1) + {CODE}.fileno()",
        f"Max(Integer(1), {CODE}.fileno())", f"lambda: {CODE}", "9**9**9**9",
        "Pow(Integer(9), Pow(Integer(9), Integer(99)))", "factorial(Integer(99999999))",
        "Mul(" * 5000 + "Integer(1)" + ")" * 5000,
    ))  # fmt: skip
    _in_field(rng, program, "expr_str", text)


def _function(rng: random.Random, program: Any) -> None:
    name = rng.choice((
        "torch.os.mkdir", "torch.os.makedirs", "torch.hub.download_url_to_file", "torch.load",
        "torch.sys.modules", "torch.serialization.load", "torch.ops.load_library",
        "torch.ops.aten.from_file.default", "torch.ops.aten.save.default", "math.factorial",
        "torch.ops.higher_order.call_torchbind", "_operator.call", "_operator.methodcaller",
        "_operator.pow", "torch.classes.load_library", "#ext:x.y", f"torch.{CODE}",
    ))  # fmt: skip
    node = rng.choice([one for one in objects(program) if "target" in one])
    node["target"] = name
    node["inputs"] = [{"name": "", "arg": {"as_string": RAN}, "kind": 1}]


def _operator(rng: random.Random, program: Any) -> None:
    argument = {"as_operator": rng.choice(("torch.os.mkdir", "math.factorial"))}
    _in_field(rng, program, "inputs", [{"name": "", "arg": argument, "kind": 1}])


def _name(rng: random.Random, program: Any) -> None:
    name = rng.choice(
        (f"x={CODE}", f"x): pass\n{CODE}\ndef y(", f"x\n    {CODE}\n    x", "__class__")
    )
    _in_field(rng, program, "name", name)


def _guard(rng: random.Random, program: Any) -> None:
    program["guards_code"] = [rng.choice((f"bool({CODE})", f"1 if {CODE} else 0", "9**9**9**9"))]


def _structure(rng: random.Random, program: Any) -> None:
    context = json.dumps({"__enum__": True, "fqn": "antigravity:X", "name": "y"})
    kind = rng.choice(("builtins.tuple", "collections.namedtuple", "collections.defaultdict"))
    spec = [1, {"type": kind, "context": context, "children_spec": []}]
    _in_field(rng, program, rng.choice(("in_spec", "out_spec")), json.dumps(spec))


PROGRAMS: tuple[Callable[[random.Random, Any], None], ...] = (
    _expression, _expression, _function, _operator, _name, _guard, _structure,
)  # fmt: skip


def _with_pickle(rng: random.Random, contents: dict[str, bytes]) -> None:
    """Add a pickle where torch looks for one."""
    data = pickle.dumps(Opens())
    place = rng.choice((
        "data/weights/model.pt", "data/constants/model.pt", "data/sample_inputs/model.pt",
        "data/constants/opaque_obj_0", "data/constants/custom_obj_0", "data/constants/tensor_0",
        "data/aotinductor/model/x.so", "extra/x", "data/../../x",
    ))  # fmt: skip
    contents[f"model/{place}"] = data
    kind = place.rpartition("/")[2]
    config = json.loads(contents[CONSTANTS])
    if "constants/" in place and kind != "model.pt":
        for tensor in config["config"].values():
            tensor["path_name"], tensor["use_pickle"] = kind, rng.random() < 0.5
    contents[CONSTANTS] = json.dumps(config).encode()


def _without_numbers(rng: random.Random, contents: dict[str, bytes]) -> None:
    """Name a tensor of many numbers whose member is empty."""
    config = json.loads(contents[CONSTANTS])
    for tensor in config["config"].values():
        tensor["tensor_meta"]["sizes"] = [{"as_int": 10 ** rng.randrange(6, 14)}]
        contents[f"model/data/constants/{tensor['path_name']}"] = b""
    contents[CONSTANTS] = json.dumps(config).encode()


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    for number in range(count):
        contents = dict(members())
        kind = rng.randrange(10)
        if kind < 5:
            program = json.loads(contents[PROGRAM])
            change = rng.choice(PROGRAMS)
            change(rng, program)
            contents[PROGRAM], what = json.dumps(program).encode(), change.__name__
        elif kind == 5:
            _with_pickle(rng, contents)
            what = "pickle"
        elif kind == 6:
            _without_numbers(rng, contents)
            what = "empty"
        elif kind < 9:
            member = rng.choice((PROGRAM, PROGRAM, CONSTANTS, WEIGHTS))
            what, contents[member] = damage_json(rng, json.loads(contents[member]))
        else:
            what, data = damage(rng, packed(contents))
            yield f"{what}-{number}", data
            continue
        yield f"{what.strip('_')}-{number}", packed(contents)


def check(name: str, content: bytes, folder: Path) -> object:
    from rmadapter.export.runtime import LABELS, TRANSFORM, Model

    export = folder / "export"
    export.mkdir()
    (export / "model.pt2").write_bytes(content)
    (export / LABELS).write_text('["a", "b"]')
    transform = {"size": 4, "resize": "squash", "interpolation": "bicubic", "fill": 0}
    (export / TRANSFORM).write_text(json.dumps({**transform, "mean": [0.0] * 3, "std": [1.0] * 3}))
    before = Path.cwd()
    os.chdir(folder)
    try:
        return Model(export).probabilities(np.zeros((1, 3, 4, 4), np.float32))
    finally:
        os.chdir(before)
        if (folder / RAN).exists():
            raise Changed("the graph ran code")
