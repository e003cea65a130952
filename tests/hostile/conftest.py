"""Leave these tests out on Windows, whose processes have no such limits, signals and files."""

import sys

collect_ignore_glob = ["test_*.py"] if sys.platform == "win32" else []
