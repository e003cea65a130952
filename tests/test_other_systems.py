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


# The place of the mode among the arguments of what opens a file, and what it is by default; `.open`
# is that of a path.
MODES = {
    "open": (1, "r"), "io.open": (1, "r"), "os.fdopen": (1, "r"), ".open": (0, "r"),
    "NamedTemporaryFile": (0, "w+b"), "TemporaryFile": (0, "w+b"),
}  # fmt: skip
OTHERS = {"Image", "gzip", "tarfile", "zipfile", "webbrowser", "os"}  # whose `open` is another


def mode_of(call: ast.Call) -> str:
    """Return the mode in which a call opens a file: "b" for a call that opens none, and "w" where a
    variable has the mode, since it may be this one."""
    name = ast.unparse(call.func)
    if isinstance(call.func, ast.Attribute) and name not in MODES:
        is_open = call.func.attr == "open"
        name = ".open" if is_open and ast.unparse(call.func.value) not in OTHERS else name
    name = name.removeprefix("tempfile.")
    if name not in MODES:
        return "b"
    place, default = MODES[name]
    named = [one.value for one in call.keywords if one.arg == "mode"]
    given = (named or [*call.args[place : place + 1], None])[0]
    if isinstance(given, ast.Constant):
        return str(given.value)
    if isinstance(given, ast.IfExp):
        both = ast.unparse(given.body), ast.unparse(given.orelse)
        return "b" if all("b" in one for one in both) else "w"
    is_mode = named or name != ".open" or "mode" in ast.unparse(given or call.func)
    return "w" if given and is_mode else default


def untold(source: str) -> list[int]:
    """Return the lines that write text and leave the ends of its lines, or its encoding, to the
    system."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        told, count, mode = {one.arg for one in node.keywords}, len(node.args), mode_of(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "write_text":
            is_told = (count > 3 or "newline" in told) and (count > 1 or "encoding" in told)
        else:
            is_told = "b" in mode or not {*mode} & {*"wax+"} or {"newline", "encoding"} <= told
        if not is_told:
            found.append(node.lineno)
    return found


WRITERS = ("src", "packages", "tools", "benchmarks", "examples", "research", "tests/helpers")


@pytest.mark.parametrize("folder", WRITERS)
def test_text_has_the_same_ends_of_lines_on_every_system(folder: str) -> None:
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / folder).rglob("*.py")}
    assert files
    lines = {name: untold(path.read_text("utf-8")) for name, path in files.items()}
    assert {name: found for name, found in lines.items() if found} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("open(path, 'w')", [1]),
        ("open(path, mode='a', encoding='utf-8')", [1]),
        ("open(path, mode, encoding='utf-8')\nopen(path, mode, -1, 'utf-8')", [1, 2]),
        ("path.open('w', encoding='utf-8')\npath.open(mode='x')\npath.open(mode)", [1, 2, 3]),
        ("os.fdopen(file, 'w', encoding='utf-8')\nio.open(path, 'r+')", [1, 2]),
        ("tempfile.NamedTemporaryFile('w')\nNamedTemporaryFile(mode='w')", [1, 2]),
        ("open(path, 'w' if new else 'a')\nopen(path, 'wb' if new else 'a')", [1, 2]),
        ("path.write_text(text, 'utf-8')", [1]),
        ("path.write_text(text, newline='\\n')\nopen(path, 'w', newline='')", [1, 2]),
        ("open(path, 'wb')\nopen(path)\nwrite_text(path, text)", []),
        ("open(path, 'wb' if new else 'ab')\npath.open('rb')\npath.open()", []),
        ("Image.open(file)\ntarfile.open(path, 'w')\nos.open(path, flags)", []),
        ("projects.open(name)\nTemporaryFile()\nos.fdopen(file, 'wb')", []),
        ("open(path, mode, encoding='utf-8', newline='')", []),
        ("path.write_text(text, encoding='utf-8', newline='\\n')", []),
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
