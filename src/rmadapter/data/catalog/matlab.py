"""Read MATLAB files with SciPy in a separate process: a damaged file can crash it or take unlimited
memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

Value: TypeAlias = int | float | str
MAX_SECONDS = 60  # limits of the other process
MAX_BYTES = 2**32


def variable(path: Path, key: str) -> list[Value]:
    """Return a variable as a list.

    Numbers and texts stay as they are, anything else becomes its repr.

    Raises:
        UserError: A file is missing, damaged or has no such variable.
    """
    return [value for row in _rows(path, key, ()) for value in row]


def structures(path: Path, key: str, *fields: str) -> list[tuple[Value, ...]]:
    """Return a variable that is a list of structures as tuples of some of their fields, like
    `variable`."""
    return [tuple(row) for row in _rows(path, key, fields)]


def _rows(path: Path, key: str, fields: Sequence[str]) -> list[list[Value]]:
    """Run this file as a program on a MATLAB file, and return what it prints."""
    from rmadapter.errors import UserError
    from rmadapter.support.files import opened

    wanted = f"a MATLAB file with {key!r}" + (f" of {' and '.join(fields)}" if fields else "")
    with opened(path, wanted):  # refuses pipes, on which SciPy would wait
        command = [sys.executable, __file__, str(path), key, *fields]
        try:
            done = subprocess.run(command, capture_output=True, timeout=MAX_SECONDS, check=True)
            rows: list[list[Value]] = json.loads(done.stdout)
        except (subprocess.SubprocessError, ValueError):
            raise UserError(f"{path}: not {wanted}") from None
    return rows


def _read(path: str, key: str, *fields: str) -> list[list[Value]]:
    import numpy as np
    from scipy.io import loadmat

    rows = np.atleast_1d(loadmat(path, squeeze_me=True, variable_names=[key])[key])
    cells = [[row[field] for field in fields] if fields else [row] for row in rows]
    return [[_plain(cell) for cell in row] for row in cells]


def _plain(value: object) -> Value:
    import numpy as np

    if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    return value if isinstance(value, (int, float, str)) else repr(value)[:80]


def _limit() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit()
    print(json.dumps(_read(*sys.argv[1:])))
