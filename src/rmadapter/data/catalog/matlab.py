"""Read MATLAB files with SciPy in a separate process: a damaged file can crash it or take unlimited
memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 60  # limits of the other process
BYTES = 2**32


def variable(path: Path, key: str, *fields: str) -> list[Any]:
    """Return a variable as a list; with `fields`, a list of structures as tuples of those fields.

    Numbers and texts stay as they are, anything else becomes its repr. Raises UserError for a file
    that is missing, damaged or has no such variable.
    """
    from rmadapter.errors import UserError
    from rmadapter.support.files import opened

    wanted = f"a MATLAB file with {key!r}" + (f" of {' and '.join(fields)}" if fields else "")
    with opened(path, wanted):  # refuses pipes, on which SciPy would wait
        command = [sys.executable, __file__, str(path), key, *fields]
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
            rows = json.loads(done.stdout)
        except (subprocess.SubprocessError, ValueError):
            raise UserError(f"{path}: not {wanted}") from None
    return [tuple(row) for row in rows] if fields else list(rows)


def _read(path: str, key: str, *fields: str) -> list[Any]:
    import numpy as np
    from scipy.io import loadmat

    rows = np.atleast_1d(loadmat(path, squeeze_me=True, variable_names=[key])[key])
    return [[_plain(row[field]) for field in fields] if fields else _plain(row) for row in rows]


def _plain(value: Any) -> Any:
    item = value.item() if getattr(value, "ndim", None) == 0 else value
    return item if isinstance(item, (int, float, str)) else repr(item)[:80]


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit()
    print(json.dumps(_read(*sys.argv[1:])))
