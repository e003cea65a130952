"""Variables of MATLAB files, read by SciPy in a process of its own: a damaged one can crash it, or take any memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS, BYTES = 60, 2**32  # that the other process may take


def variable(path: Path, key: str, *fields: str) -> list[Any]:
    """One variable as a list; with `fields`, tuples of those fields of a list of structures.

    Numbers and texts are what they are, anything else is the text that shows it. Raises UserError for a file that is
    missing, damaged or another one.
    """
    from rmadapter.errors import UserError
    from rmadapter.files import opened

    wanted = f"a MATLAB file with {key!r}" + (f" of {' and '.join(fields)}" if fields else "")
    with opened(path, wanted):  # no pipe, on which SciPy would wait
        command = [sys.executable, __file__, str(path), key, *fields]
        try:
            found = json.loads(subprocess.run(command, capture_output=True, timeout=SECONDS, check=True).stdout)
        except (subprocess.SubprocessError, ValueError):
            raise UserError(f"{path}: not {wanted}") from None
    return [tuple(row) for row in found] if fields else found


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
