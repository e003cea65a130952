"""The package itself: its public names, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

import rmadapter

HEAVY = (
    "torch",
    "open_clip",
    "timm",
    "transformers",
    "matplotlib",
    "jinja2",
    "sklearn",
    "numpy",
    "PIL",
    "pydantic",
)


@pytest.mark.parametrize("name", rmadapter.__all__)
def test_public_names_resolve(name: str) -> None:
    found = getattr(rmadapter, name)
    if name != "__version__":
        assert found is getattr(import_module(found.__module__), name)
        assert found.__doc__


def test_version_is_the_installed_one() -> None:
    assert rmadapter.__version__ == metadata.version("rmadapter")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'RMAdaptor'"):
        _ = rmadapter.RMAdaptor  # type: ignore[attr-defined]


def test_importing_the_package_pulls_in_nothing_heavy() -> None:
    code = f"import sys, rmadapter; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_name_of_version_0_1_is_an_alias() -> None:
    assert rmadapter.RMAdapterClassifier is rmadapter.FewShotClassifier


SCRIPT = """
from rmadapter import FewShotClassifier, Task, load_backbone, load_method, read_images, run_task
reveal_type(FewShotClassifier(method="coop").fit)
reveal_type(load_backbone)
reveal_type(load_method("mma").title)
reveal_type(read_images("x")["train"].classes)
reveal_type(Task().shots)
reveal_type(run_task)
"""


@pytest.mark.slow
def test_a_type_checker_sees_types(tmp_path: Path) -> None:
    """mypy --strict on a user's script finds no Any where a name of ours stands."""
    from mypy import api

    (tmp_path / "script.py").write_text(SCRIPT)
    libraries = ",".join(f"{name}.*" for name in (*HEAVY, "scipy", "yaml", "huggingface_hub"))
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nstrict = True\n[mypy-{libraries}]\nfollow_imports = skip\n"
    )
    where = ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache")]
    out, err, _ = api.run([*where, str(tmp_path / "script.py")])
    seen = [line.split('"')[1] for line in out.splitlines() if "Revealed type" in line]
    assert len(seen) == 6, out + err
    assert not [line for line in out.splitlines() if "script.py" in line and "error" in line], out
    assert not any("Any" in text for text in seen), seen
    for text, words in zip(
        seen, ("FewShotClassifier", "Backbone", "str", "tuple[str", "int", "Outcome"), strict=True
    ):
        assert words in text
