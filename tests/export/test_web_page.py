"""The exported page in a browser: by keys alone, for a screen reader, on narrow and wide screens,
and when broken."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from rmadapter.export.engines import GRAPH
from rmadapter.export.runtime import Model
from tests.helpers.web_pages import (
    CAMERA,
    NAMES,
    STATE,
    Tab,
    axe,
    check_layout,
    check_with_axe,
    needs_browser,
    served,
    set_color_scheme,
    tab,
    until_count,
    write_site,
)  # fmt: skip

__all__ = ["axe"]  # a fixture


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A red image, one of a single pixel, a tall one, a file that is no image, and a line."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (300, 200), "red").save(folder / "red.png")
    Image.new("RGB", (1, 1), "blue").save(folder / "pixel.png")
    Image.radial_gradient("L").resize((60, 400)).save(folder / "تفاحة.png")
    bad = "an unreadable file with a long_name_without_any_place_to_break_it_in_two_parts.jpg"
    (folder / bad).write_bytes(b"no")
    Image.new("RGB", (301, 3), "red").save(folder / "line.png")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def browser(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tab, str]]:
    with served(site) as address, tab(tmp_path_factory.mktemp("home"), *CAMERA) as opened:
        yield opened, address


def choose(browser: Tab, files: list[str]) -> str:
    """Choose files by keys alone; return the last message."""
    browser("Page.setInterceptFileChooserDialog", enabled=True)
    browser.until(f"{STATE} === 'Ready.'")
    browser.press("Tab")
    assert browser.script("document.activeElement.id") == "files"
    browser.press("Enter")
    node = browser.event("Page.fileChooserOpened")["backendNodeId"]
    browser("DOM.setFileInputFiles", files=files, backendNodeId=node)
    until_count(browser, "#answers > li", len(files))
    return browser.until(f"!{STATE}.startsWith('Looking') && {STATE}")


@needs_browser
def test_page_works_by_keyboard_and_screen_reader(
    browser: tuple[Tab, str], pictures: list[str]
) -> None:
    page, address = browser
    page.go(address)
    said = choose(page, pictures)
    assert f"red.png: {NAMES[1]}, 73.0\xa0%. " in said
    assert "break_it_in_two_parts.jpg is not an image that this browser can read. " in said
    assert "line.png has 301 x 3 pixels: more than 100 times as long as wide. " in said
    outline = page.script("getComputedStyle(document.activeElement.parentElement).outlineStyle")
    assert outline == "solid"
    seen = []
    for _ in range(4):
        page.press("Tab")
        seen.append(page.script("document.activeElement.textContent"))
    choices = ["off5 %10 %"] * 2
    assert seen == ["Use the camera", *choices, f"Classes it knows ({len(NAMES)})"]
    page.press("Enter")
    assert page.script("document.querySelector('details').open")
    heard = page.heard()
    assert {("main", ""), ("heading", "What is in this image?")} <= {*heard}
    assert ("list", "Answers, newest image first") in heard
    assert {("button", "Use the camera"), ("heading", f"red.png: {NAMES[1]}")} <= {*heard}
    assert sum(role == "status" for role, _ in heard) == 1
    assert not [name for role, name in heard if role in ("image", "Video")]


CHOOSE = """(() => {
const error = document.getElementById("ID");
error.value = "VALUE"; error.dispatchEvent(new Event("change"));
const cards = [...document.querySelectorAll("#answers p")];
return cards.map((card) => card.hidden ? "" : card.textContent); })()"""


@needs_browser
def test_sets_at_the_chosen_error(browser: tuple[Tab, str], pictures: list[str]) -> None:
    """Of 60 images the limit of 10 % is the third, 0.06, and that of 5 % the first, 0.02."""
    page, address = browser
    page.go(address)
    choose(page, [path for path in pictures if path.endswith(("red.png", "pixel.png"))])
    chosen = CHOOSE.replace("ID", "error")
    blue, red = page.script(chosen.replace("VALUE", "0.1"))[::-1]
    assert red == f"answer: warm: it may be {NAMES[1]}, {NAMES[18]}"
    levels = page.script("[...document.querySelectorAll('#answers div')].map((e) => e.textContent)")
    assert levels[0].startswith("Levels above: warm ")
    assert blue == "answer"
    assert "At 10 %: answers for 2 of 2 images." in page.script(STATE)
    text = page.script("document.getElementById('promised').textContent")
    assert "at most 10 % of images like these 60 training images" in text
    assert page.script(chosen.replace("VALUE", "0")) == ["", ""]


@needs_browser
def test_strange_images_at_the_chosen_share(
    browser: tuple[Tab, str], site: Path, pictures: list[str]
) -> None:
    page, address = browser
    page.go(address)
    images = [path for path in pictures if path.endswith(("red.png", "pixel.png"))]
    assert Model(site).is_familiar(images, turn_away=0.1) == [True, False]  # blue, red
    choose(page, images)
    chosen = CHOOSE.replace("ID", "share")
    blue, red = page.script(chosen.replace("VALUE", "0.1"))[::-1]
    assert (blue, red) == ("answer", "none of these")
    said = "Turning away 10 %: answers for 1 of 2 images, 1 is none of these."
    assert page.script(STATE) == said
    text = page.script("document.getElementById('kept').textContent")
    assert "Estimated on folds, at most 10 % of images like these 60 training images" in text
    page.script(CHOOSE.replace("ID", "error").replace("VALUE", "0.1"))
    both = page.script(chosen.replace("VALUE", "0.1"))[::-1]
    assert both == ["answer", "none of these"]
    page.script(CHOOSE.replace("ID", "error").replace("VALUE", "0"))
    assert page.script(chosen.replace("VALUE", "0")) == ["", ""]


@needs_browser
def test_the_camera_by_keys(browser: tuple[Tab, str]) -> None:
    page, address = browser
    page.go(address)
    page.until(f"{STATE} === 'Ready.'")
    for key in ("Tab", "Tab", "Enter"):
        page.press(key)
    page.until(f"{STATE} === 'The camera is on.'")
    for key in ("Tab", "Enter"):
        page.press(key)
    assert page.until(f"{STATE}.startsWith('camera image: ') && {STATE}").endswith("\xa0%. ")
    back = {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9, "modifiers": 8}
    page("Input.dispatchKeyEvent", type="rawKeyDown", **back)
    assert page.script("document.activeElement.textContent") == "Stop the camera"
    page.press("Enter")
    page.until("document.getElementById('video').srcObject === null")
    assert page.until("document.activeElement.id") == "camera"
    assert ("button", "Take picture") not in page.heard()


@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_cut_off(browser: tuple[Tab, str], pictures: list[str], width: int) -> None:
    page, address = browser
    page.go(address)
    choose(page, pictures)
    check_layout(page, width)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_reports_nothing(
    browser: tuple[Tab, str], pictures: list[str], scheme: str, axe: str
) -> None:
    page, address = browser
    set_color_scheme(page, scheme)
    page.go(address)
    choose(page, pictures)
    check_with_axe(page, axe)


def message_after_loading(page: Tab, address: str) -> str:
    page.go(address)
    return page.until(f"{STATE} !== 'The model is loading.' && {STATE}")


WASM = "ort-wasm-simd-threaded.wasm"


@needs_browser
@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (GRAPH, None, "model.onnx is missing (404): copy the whole folder to the server."),
        (GRAPH, b"damaged", "model.onnx is damaged: copy the folder again"),
        (WASM, None, f"{WASM} is missing (404): copy the whole folder"),
        (WASM, b"damaged", "The model cannot be started ("),
        ("ort.wasm.bundle.min.mjs", None, "pixels.mjs or ort.wasm.bundle.min.mjs) is"),
    ],
)
def test_page_names_what_is_missing_or_damaged(
    site: Path, browser: tuple[Tab, str], tmp_path: Path, name: str, damage: bytes | None,
    message: str,
) -> None:  # fmt: skip
    broken = Path(shutil.copytree(site, tmp_path / "site"))
    (broken / name).unlink()
    if damage:
        (broken / name).write_bytes(damage)
    with served(broken) as address:
        assert message in message_after_loading(browser[0], address)
    assert browser[0].script("document.getElementById('files').disabled")


@needs_browser
@pytest.mark.parametrize(
    ("suffix", "message"), [(".mjs", "does not send it as JavaScript"), (".wasm", "Ready.")]
)
def test_page_with_wrong_content_types(
    site: Path, browser: tuple[Tab, str], suffix: str, message: str
) -> None:
    with served(site, {suffix: "text/plain"}) as address:
        assert message in message_after_loading(browser[0], address)


@needs_browser
def test_a_page_opened_as_a_file(site: Path, browser: tuple[Tab, str]) -> None:
    message = message_after_loading(browser[0], (site / "index.html").as_uri())
    assert "Run “python -m http.server” in its folder and open http://localhost:8000." in message
