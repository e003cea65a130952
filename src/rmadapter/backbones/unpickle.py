"""Write a pickled checkpoint's tensors to a safetensors file: a program, which `convert` starts.

No pickle is opened: opcodes.py follows its instructions, and knows the few names that tensors need.
Memory, time and the size of files are bounded. If Python still were about to unpickle, to start a
program, to open a connection or to write another file, that would end the process; this stops only
what Python announces (PEP 578), and is no sandbox.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from typing import TYPE_CHECKING

from rmadapter.backbones.opcodes import (
    Checkpoint,
    Described,
    Refused,
    Scripted,
    as_tensor,
    read_archive,
    read_old,
)

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


def read(path: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return tensors by name, and facts: `scripted`, `quick_gelu` (None if unknown), `left_out`
    (what is no tensor)."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            return _tensors(read_old(file), scripted=False)
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST * os.path.getsize(path) + 2**20:
            raise Refused("its archive unpacks to far more than its size")
        scripted = any(name.endswith("/constants.pkl") for name in archive.namelist())
        return _tensors(read_archive(archive), scripted)


def _tensors(checkpoint: Checkpoint, scripted: bool) -> tuple[dict[str, Tensor], dict[str, object]]:
    if scripted:
        table: dict[str, object] = {**_attributes(checkpoint.content)}
    else:
        table = _table_of_tensors(checkpoint.content)
    described = {key: value for key, value in table.items() if isinstance(value, Described)}
    described = _stripped(described)
    storages: dict[str, bytes] = {}  # several tensors may share one
    tensors = {}
    for name, one in described.items():
        if one.storage and one.storage.key not in storages:
            storages[one.storage.key] = checkpoint.storages[one.storage.key]
        tensors[name] = as_tensor(name, one, storages)
    quick_gelu = any(name.endswith("QuickGELU") for name in checkpoint.names)
    return tensors, {
        "scripted": scripted,
        "quick_gelu": quick_gelu if scripted else None,
        "left_out": [str(key)[:100] for key in table if not isinstance(table[key], Described)],
    }


def _table_of_tensors(content: object) -> dict[str, object]:
    """Return the table that holds tensors, from under the names where training code nests it."""
    for _ in range(4):
        if not isinstance(content, dict):
            break
        if any(isinstance(value, Described) for value in content.values()):
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


def _stripped(tensors: dict[str, Described]) -> dict[str, Described]:
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


def _attributes(module: object) -> dict[str, Described]:
    """Return the tensors of a module of TorchScript and of those inside it."""
    if not isinstance(module, Scripted):
        raise Refused(f"it holds no module, but a {type(module).__name__}")
    tensors: dict[str, Described] = {}
    seen, waiting = {id(module)}, [("", module)]
    while waiting:
        place, one = waiting.pop()
        for name, value in one.attributes.items():
            if isinstance(value, Described):
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


if __name__ == "__main__":
    del sys.path[0]  # this file's folder, whose modules would shadow other packages
    main(*sys.argv[1:])
