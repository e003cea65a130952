"""tools/prove_export.py: what it compares, and its fresh environment, where pip can make one."""

from __future__ import annotations

from pathlib import Path

import prove_export
import pytest
from prove_export import NoPip, asked, compare, fresh, rows

from tests.helpers.shell import backbone_option


def answer(image: str, label: str, probability: str, second: str, other: str) -> dict[str, str]:
    found = {"image": image, "label": label, "probability": probability, "guess": label}
    return {**found, "label_2": second, "probability_2": other, "unsure": "false"}


def test_answers_are_compared_label_by_label() -> None:
    mine = [answer("a", "cat", "0.6", "dog", "0.4"), answer("b", "cat", "0.9", "dog", "0.1")]
    theirs = [answer("a", "dog", "0.51", "cat", "0.49"), answer("b", "cat", "0.9", "dog", "0.1")]
    assert compare(mine, mine) == {"images": 2, "other answers": 0, "largest difference": 0}
    found = compare(mine, theirs)
    assert (found["images"], found["other answers"]) == (2, 1)
    assert found["largest difference"] == pytest.approx(0.11)
    with pytest.raises(SystemExit, match="other images"):
        compare(mine, theirs[::-1])


@pytest.mark.slow
@pytest.mark.slow
def test_a_fresh_environment(finished: Path, colors: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    images, its = sorted(colors.glob("test/*/*.png")), backbone_option(finished)
    prove_export.rmadapter("export", finished, "--data", colors, "--out", tmp_path / "model", *its)
    prove_export.rmadapter(
        "predict", finished, *images, *its, "--no-zero-shot", "--out", tmp_path / "ours.csv"
    )
    try:
        python = fresh(tmp_path / "venv", tmp_path / "model/requirements.txt")
    except NoPip as error:
        pytest.skip(f"pip cannot install here ({error})")
    theirs = asked(python, tmp_path / "model", images, tmp_path / "theirs.csv")
    found = compare(rows(tmp_path / "ours.csv"), theirs)
    assert (found["images"], found["other answers"]) == (16, 0)
    assert found["largest difference"] <= prove_export.LARGEST
