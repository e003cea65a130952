"""Write a pickled checkpoint's tensors to a safetensors file: a program, which `convert` starts.

torch opens the pickle with weights_only: its own reader of pickles makes tensors and plain
containers, and calls nothing else that a file names. In case this reader has a hole, memory, time
and the size of files are bounded, and starting a program, opening a connection or writing another
file ends the process.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = [
    "state_dict", "model_state_dict", "model", "module", "teacher", "ema", "model_ema", "params",
]  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "state_dict.", "model.", "teacher.")
MOST = 4  # times the size of the file: limit on all tensors, and on the memory to read them
SLACK = 2**30  # further bytes of memory
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.", "socket.",
    "ctypes.dlopen", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.chmod",
    "shutil.", "pickle.find_class",
)  # fmt: skip


class Refused(Exception):
    """The file is refused; the message says why."""


class Scripted:
    """A stand-in for a module of TorchScript that holds its attributes."""


def read(path: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return tensors by name, and facts: `scripted`, `quick_gelu` (None if unknown), `left_out`
    (what is no tensor)."""
    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            size = sum(entry.file_size for entry in archive.infolist())
            if size > MOST * os.path.getsize(path) + 2**20:
                raise Refused("its archive unpacks to far more than its size")
        if any(name.endswith("/constants.pkl") for name in names):
            return _scripted(path)
    table = _table_of_tensors(torch.load(path, map_location="cpu", weights_only=True))
    tensors = {key: value for key, value in table.items() if isinstance(value, torch.Tensor)}
    left_out = [str(key)[:100] for key in table if key not in tensors]
    return _stripped(tensors), {"scripted": False, "quick_gelu": None, "left_out": left_out}


def _table_of_tensors(content: object) -> dict[str, object]:
    """Return the table that holds tensors, from under the names where training code nests it."""
    import torch

    for _ in range(4):
        if not isinstance(content, dict):
            break
        if any(isinstance(value, torch.Tensor) for value in content.values()):
            return content
        tables = [content[name] for name in WRAPPERS if isinstance(content.get(name), dict)]
        if not tables:
            names = ", ".join(str(name)[:40] for name in list(content)[:5])
            raise Refused(
                f"it holds no table of weights under {', '.join(WRAPPERS[:4])} or the like, but "
                f"{names}"
            )
        content = tables[0]
    raise Refused(f"it holds no table of weights, but a {type(content).__name__}")


def _stripped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers give to all names; keep the teacher rather than a
    student."""
    if not all(isinstance(name, str) for name in tensors):
        raise Refused("its weights have names that are not text")
    if any(name.startswith("student.") for name in tensors):
        tensors = {name: value for name, value in tensors.items() if name.startswith("teacher.")}
    while prefix := next(
        (one for one in PREFIXES if tensors and all(name.startswith(one) for name in tensors)), ""
    ):
        tensors = {name[len(prefix) :]: value for name, value in tensors.items()}
    return tensors


def _scripted(path: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return the attributes of the modules in a TorchScript archive.

    Without its code and constants, it is an archive like those of torch.save; its classes, which
    are not torch's, become `Scripted`.
    """
    import torch

    reduced = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(reduced, "w") as copy:
        for name in archive.namelist():
            inner = name.partition("/")[2]
            if inner != "constants.pkl" and not inner.startswith("code/"):
                copy.writestr(name, archive.read(name))
    kinds = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(reduced.getvalue()))
    makers = {"__torch__": Scripted, "torch.jit._pickle": list}  # modules, and lists of one type
    known: list[Callable[..., object] | tuple[Callable[..., object], str]] = []
    for start, maker in makers.items():
        known += [(maker, kind) for kind in kinds if kind.startswith(f"{start}.")]
    reduced.seek(0)
    with torch.serialization.safe_globals(known):
        module = torch.load(reduced, map_location="cpu", weights_only=True)
    facts = {
        "scripted": True,
        "quick_gelu": any(kind.endswith("QuickGELU") for kind in kinds),
        "left_out": [],
    }
    return _stripped(_attributes(module)), facts


def _attributes(module: object) -> dict[str, Tensor]:
    import torch

    tensors: dict[str, Tensor] = {}
    seen, waiting = {id(module)}, [("", module)]
    while waiting:
        place, one = waiting.pop()
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{place}{name}"] = value
            elif isinstance(value, Scripted) and id(value) not in seen:
                seen.add(id(value))
                waiting.append((f"{place}{name}.", value))
    return tensors


def checked(tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Copy the tensors. Raises Refused unless all are plain, and no larger than the file allows."""
    import torch

    if not tensors:
        raise Refused("it holds no weights")
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise Refused(f"{name[:100]!r} is not a plain tensor")
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > MOST * size + 2**20:
        raise Refused("its tensors claim to be far larger than the file")
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def limit(size: int, seconds: int) -> None:
    """Limit what this process may use, after its imports. size: bytes of the checkpoint."""
    try:
        import resource
    except ImportError:  # on Windows only the caller's time limit applies
        return
    used = 0
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    bounds = {
        resource.RLIMIT_AS: used + MOST * size + SLACK,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: MOST * size + 2**21,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in bounds.items():
        if kind != resource.RLIMIT_AS or used:
            hard = resource.getrlimit(kind)[1]
            least = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (least, least))


def watch() -> None:
    """End this process if Python is about to do more than read; safetensors writes without
    Python."""

    def hook(event: str, args: tuple[object, ...]) -> None:
        modes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        writes = event == "open" and isinstance(args[2], int) and args[2] & modes
        if event.startswith(FORBIDDEN) or writes:
            os._exit(3)

    sys.addaudithook(hook)


def main(source: str, target: str, seconds: str) -> None:
    import pickle

    import safetensors.torch  # noqa: F401  as torch, before memory is bounded
    import torch

    torch.set_num_threads(1)
    size = os.path.getsize(source)
    limit(size, int(seconds))
    watch()
    try:
        tensors, facts = read(source)
        _save(checked(tensors, size), target)
    except Refused as error:
        facts = {"error": str(error)}
    except MemoryError:
        facts = {"error": "it needs more memory than a file of its size may"}
    except pickle.UnpicklingError as error:
        facts = {"error": _reason(error)}
    except Exception as error:  # damaged files make torch raise many kinds
        facts = {"error": f"it is damaged or not a torch checkpoint ({type(error).__name__})"}
    print(json.dumps(facts))


def _save(tensors: dict[str, Tensor], target: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, target)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:100]
        raise Refused(f"its tensors cannot be written ({reason})") from error


def _reason(error: Exception) -> str:
    """Return torch's reason without its advice to open the file anyway."""
    name = re.search(r"GLOBAL (\S{1,100})", str(error))
    if name:
        return f"it asks for {name[1]}, but only tensors are accepted"
    return "it holds things other than tensors"


if __name__ == "__main__":
    del sys.path[0]  # this file's folder, whose modules would shadow other packages
    main(*sys.argv[1:])
