"""What keeps the code running on Windows and macOS, checked on any system: nothing that only POSIX
has is needed to import a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
# Not tools and research, which `make` starts.
FOLDERS = ("src", "packages", "benchmarks", "examples", "tests")
LACKS = {  # of Windows, by module; all of a module in MODULES
    "os": {
        "fork", "forkpty", "register_at_fork", "getuid", "geteuid", "getgid", "getegid", "setsid",
        "getsid", "killpg", "getpgid", "setpgid", "getpgrp", "WNOHANG", "uname", "mkfifo", "mknod",
        "chown", "lchown", "nice", "getloadavg", "sysconf", "statvfs", "sched_getaffinity", "pread",
        "pwrite", "posix_fallocate", "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "waitid", "wait",
    },
    "signal": {
        "SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "SIGQUIT",
        "SIGSTOP", "SIGTSTP", "SIGCONT", "SIGWINCH", "alarm", "setitimer", "pause", "sigwait",
        "pthread_kill", "pthread_sigmask", "sigtimedwait", "SIG_BLOCK", "SIG_SETMASK",
    },
    "socket": {"SO_REUSEPORT", "AF_UNIX", "socketpair"},
}  # fmt: skip
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "crypt"}
POSIX = ("tests/hostile/kills.py", "tests/hostile/special_files.py")  # Windows leaves them out
GUARDS = ("sys.platform", "os.name", "hasattr", "platform.system", "importorskip")


def guarded(test: ast.expr) -> bool:
    return any(guard in ast.unparse(test) for guard in GUARDS)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below one that run when a file is imported, but for what a guard covers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Assert) and guarded(child.test):
            return
        if isinstance(child, (ast.If, ast.IfExp)) and guarded(child.test):
            continue
        if isinstance(child, ast.Try) and any("Import" in ast.unparse(x) for x in child.handlers):
            continue
        if isinstance(child, ast.Lambda):
            continue
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            now: list[ast.AST] = [child.args, *child.decorator_list]
        else:
            now = [child]
        for part in now:
            yield part
            yield from at_import(part)


def lacking(source: str) -> list[str]:
    """Return what Windows lacks and a file needs to be imported, with lines. A module that skips
    itself there may need all."""
    tree = ast.parse(source)
    found = []
    for node in at_import(tree):
        names: list[tuple[str, str]] = []
        if isinstance(node, ast.Import):
            names = [(one.name.split(".")[0], "") for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [(node.module, one.name) for one in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [(node.value.id, node.attr)]
        for module, name in names:
            if module in MODULES or name in LACKS.get(module, ()):
                found.append(f"line {getattr(node, 'lineno', 0)}: {module}.{name}".rstrip("."))
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_needs_posix_to_be_imported(folder: str) -> None:
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / folder).rglob("*.py")}
    assert files
    needs = {name: lacking(path.read_text("utf-8")) for name, path in files.items()}
    assert {name: lines for name, lines in needs.items() if lines and name not in POSIX} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import fcntl", ["line 1: fcntl"]),
        ("from os import fork", ["line 1: os.fork"]),
        ("import signal\nSTOP = (signal.SIGINT, signal.SIGKILL)", ["line 2: signal.SIGKILL"]),
        ("import os\nclass A:\n    user = os.getuid()", ["line 3: os.getuid"]),
        ("import os\ndef f(user=os.getuid()): ...", ["line 2: os.getuid"]),
        ("import os\ndef f():\n    return os.getuid()", []),
        ("import os\nuser = os.getuid() if hasattr(os, 'getuid') else 0", []),
        ("import os, sys\nassert sys.platform == 'linux'\nuser = os.getuid()", []),
        ("import sys\nif sys.platform != 'win32':\n    import fcntl", []),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", []),
    ],
)
def test_what_windows_lacks_is_found(source: str, found: list[str]) -> None:
    assert lacking(source) == found


def untold(source: str) -> list[int]:
    """Return the lines that write text and leave the ends of its lines to the system."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if isinstance(node.func, ast.Name):
            name = f"{node.func.id}()"
        words = [one.value for one in node.args if isinstance(one, ast.Constant)]
        words += [one.value.value for one in node.keywords if isinstance(one.value, ast.Constant)]
        writes = name == "open()" and {*words} & {"w", "a", "x", "wt", "at", "xt", "w+", "r+"}
        is_told = any(one.arg == "newline" for one in node.keywords) or len(node.args) > 3
        if (writes or name == "write_text") and not is_told:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("folder", ["src", "packages"])
def test_text_has_the_same_ends_of_lines_on_every_system(folder: str) -> None:
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / folder).rglob("*.py")}
    lines = {name: untold(path.read_text("utf-8")) for name, path in files.items()}
    assert {name: found for name, found in lines.items() if found} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("open(path, 'w')", [1]),
        ("open(path, mode='a', encoding='utf-8')", [1]),
        ("path.write_text(text, 'utf-8')", [1]),
        ("open(path, 'wb')\nopen(path)\nwrite_text(path, text)", []),
        ("open(path, 'w', newline='')\npath.write_text(text, newline='\\n')", []),
        ("path.write_text(text, 'utf-8', 'strict', '\\n')", []),
    ],
)
def test_untold_ends_of_lines_are_found(source: str, found: list[int]) -> None:
    assert untold(source) == found


def test_ci_runs_on_all_three_systems() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text("utf-8"))["jobs"]
    systems = set()
    for job in jobs.values():
        matrix = job.get("strategy", {}).get("matrix", {})
        systems |= {job["runs-on"], *matrix.get("os", ())}
        systems |= {one["os"] for one in matrix.get("include", ()) if "os" in one}
    assert systems >= {"ubuntu-latest", "macos-latest", "windows-latest"}
