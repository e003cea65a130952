"""prove_export.py and prove_page.py: how they compare exported models with ours, and the
export's environment, where pip can make one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import prove_export
import prove_page
import pytest
from PIL import Image
from prove_export import NoPip, answers_of, compare, fresh, rows

from tests.helpers.shell import backbone_option


def answer(image: str, label: str, probability: str, second: str, other: str) -> dict[str, str]:
    first = {"image": image, "label": label, "probability": probability, "guess": label}
    return {**first, "label_2": second, "probability_2": other, "unsure": "false"}


def test_answers_of_an_export_are_compared_label_by_label() -> None:
    mine = [answer("a", "cat", "0.6", "dog", "0.4"), answer("b", "cat", "0.9", "dog", "0.1")]
    theirs = [answer("a", "dog", "0.51", "cat", "0.49"), answer("b", "cat", "0.9", "dog", "0.1")]
    assert compare(mine, mine) == {"images": 2, "other answers": 0, "largest difference": 0}
    facts = compare(mine, theirs)
    assert (facts["images"], facts["other answers"]) == (2, 1)
    assert facts["largest difference"] == pytest.approx(0.11)
    with pytest.raises(SystemExit):
        compare(mine, theirs[::-1])


def test_answers_of_a_page_are_compared_label_by_label() -> None:
    ours = np.array([[0.7, 0.3], [0.5, 0.5001]], np.float32)
    theirs = [{"cat": 0.7, "dog": 0.3}, {"dog": 0.49, "cat": 0.51}]
    facts = prove_page.compare(["cat", "dog"], ours, theirs)
    assert (facts["images"], facts["other answers"], facts["same to 1e-4"]) == (2, 1, 1)
    assert facts["largest difference"] == pytest.approx(0.0101, abs=1e-5)


def test_the_page_gets_tall_and_large_images() -> None:
    image = Image.new("RGB", (400, 300))
    image.paste((255, 0, 0), (150, 0, 250, 300))  # its middle strip
    tall = prove_page.tall(image)
    assert (tall.size, tall.getcolors()) == ((300, 900), [(300 * 900, (255, 0, 0))])
    assert prove_page.tall(Image.new("RGB", (20, 300))).size == (300, 900)
    large = prove_page.large(Image.new("RGB", (40, 30)))
    assert 24_000_000 < large.width * large.height < 26_000_000


@pytest.mark.slow
def test_an_export_answers_in_its_own_environment(
    finished: Path, colors: Path, tmp_path: Path
) -> None:
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="pip install 'rmadapter[export]'")
    images, backbone = sorted(colors.glob("test/*/*.png")), backbone_option(finished)
    model, ours = tmp_path / "model", tmp_path / "ours.csv"
    prove_export.rmadapter("export", finished, "--data", colors, "--out", model, *backbone)
    predict = ("predict", finished, *images, *backbone, "--no-zero-shot", "--out", ours)
    prove_export.rmadapter(*predict)
    try:
        python = fresh(tmp_path / "venv", model / "requirements.txt")
    except NoPip as error:
        pytest.skip(f"pip cannot install here ({error})")
    facts = compare(rows(ours), answers_of(python, model, images, tmp_path / "theirs.csv"))
    assert (facts["images"], facts["other answers"]) == (16, 0)
    assert facts["largest difference"] <= prove_export.LARGEST
