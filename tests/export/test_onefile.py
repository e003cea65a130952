"""A module as one file: only what it reaches, in an order that runs, and without this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rmadapter.export import onefile
from rmadapter.export.onefile import one_file

RUNTIME = "rmadapter.export.runtime"
# Torch and this package cannot be imported; numpy and Pillow can.
ALONE = """
import sys
sys.modules["torch"] = sys.modules["rmadapter"] = None
import {name}
print({expression})
"""


def run_alone(folder: Path, name: str, expression: str) -> str:
    code = ALONE.format(name=name, expression=expression)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_runtime_needs_neither_torch_nor_this_package(tmp_path: Path) -> None:
    text = one_file(RUNTIME, "a comment")
    assert text.startswith("# a comment\n")
    assert "\nimport rmadapter" not in text
    assert "\nfrom rmadapter" not in text
    assert "def atomic" not in text  # of files.py it reaches reading alone
    (tmp_path / "predict.py").write_text(text, encoding="utf-8")
    expression = "predict.TURNS[6].name, predict.inert('=1')"
    assert run_alone(tmp_path, "predict", expression) == "ROTATE_270 '=1"


def test_equal_sources_give_equal_files() -> None:
    """Python orders a set of names anew in each process."""
    code = f"from {onefile.__name__} import one_file; print(one_file('{RUNTIME}', ''))"
    texts = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        texts.add(subprocess.check_output([sys.executable, "-c", code], env=environment))
    assert len(texts) == 1


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of two modules."""
    folder = tmp_path / "small_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "low.py").write_text(
        "import re\nfrom os import path as place\nfrom decimal import Decimal\n\n"
        "# why it is two\nTWO = 2\nUNUSED = Decimal(3)\n\n\n"
        "def _same(text: str) -> str:\n    return re.sub('a', 'b', text) * TWO\n\n\n"
        "def outer(text: str) -> str:\n    return place.join('x', _same(text))\n"
    )
    (folder / "high.py").write_text(
        '"""About it."""\n\nfrom __future__ import annotations\n\n'
        "from small_package.low import outer\n\n\n"
        "def main() -> None:\n    print(outer('a'))\n\n\nif __name__ == '__main__':\n    main()\n"
    )
    sys.modules.pop("small_package", None)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(onefile, "PACKAGE", "small_package")
    onefile._module.cache_clear()
    return folder


def test_only_used_definitions_are_copied(package: Path, tmp_path: Path) -> None:
    text = one_file("small_package.high", "made")
    assert '"""About it.\n"""' in text
    assert "import re\nfrom os import path as place\n" in text
    assert "# why it is two\nTWO = 2\n" in text
    assert "UNUSED" not in text
    assert "Decimal" not in text
    (tmp_path / "alone.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-I", tmp_path / "alone.py"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(Path("x") / "bb")]


def test_two_meanings_of_a_name_are_refused(package: Path) -> None:
    with open(package / "high.py", "a", encoding="utf-8") as file:
        file.write("\n\ndef _same(text: str) -> str:\n    return text\n")
    with pytest.raises(ValueError, match=r"small_package\.high .*small_package\.low .*_same"):
        one_file("small_package.high", "made")
