"""The exported page in a browser: by keys alone, for a screen reader, on narrow and wide screens,
and when broken."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from rmadapter.deploy.export import web
from rmadapter.deploy.export.runtime import GRAPH
from tests.helpers.web_pages import NAMES, STATE, Tab, axe, needs_browser, served, tab, write_site

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
    (
        folder
        / "an unreadable file with a long_name_without_any_place_to_break_it_in_two_parts.jpg"
    ).write_bytes(b"no")
    Image.new("RGB", (301, 3), "red").save(folder / "line.png")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def browser(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tab, str]]:
    camera = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    with served(site) as address, tab(tmp_path_factory.mktemp("home"), *camera) as opened:
        yield opened, address


def choose(browser: Tab, files: list[str]) -> str:
    """What is said in the end, after files were chosen by keys alone."""
    browser("Page.setInterceptFileChooserDialog", enabled=True)
    browser.until(f"{STATE} === 'Ready.'")
    browser.press("Tab")
    assert browser.script("document.activeElement.id") == "files"
    browser.press("Enter")
    node = browser.event("Page.fileChooserOpened")["backendNodeId"]
    browser("DOM.setFileInputFiles", files=files, backendNodeId=node)
    browser.until(f"document.querySelectorAll('#answers > li').length === {len(files)}")
    return browser.until(f"!{STATE}.startsWith('Looking') && {STATE}")


@needs_browser
def test_page_works_by_keyboard_and_screen_reader(
    browser: tuple[Tab, str], pictures: list[str]
) -> None:
    page, address = browser
    page.go(address)
    said = choose(page, pictures)
    assert f"red.png: {NAMES[1]}, 73.0 %. " in said
    assert "break_it_in_two_parts.jpg is not an image that this browser can read. " in said
    assert "line.png has 301 x 3 pixels: more than 100 times as long as wide. " in said
    assert (
        page.script("getComputedStyle(document.activeElement.parentElement).outlineStyle")
        == "solid"
    )
    seen = []
    for _ in range(2):
        page.press("Tab")
        seen.append(page.script("document.activeElement.textContent"))
    assert seen == ["Use the camera", f"Classes it knows ({len(NAMES)})"]
    page.press("Enter")
    assert page.script("document.querySelector('details').open")
    heard = page.heard()
    assert {
        ("main", ""),
        ("heading", "What is in this image?"),
        ("list", "Answers, newest image first"),
    } <= {*heard}
    assert {("button", "Use the camera"), ("heading", f"red.png: {NAMES[1]}")} <= {*heard}
    assert sum(role == "status" for role, _ in heard) == 1
    assert not [name for role, name in heard if role in ("image", "Video")]


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
    assert page.until(f"{STATE}.startsWith('camera image: ') && {STATE}").endswith(" %. ")
    page(
        "Input.dispatchKeyEvent",
        type="rawKeyDown",
        key="Tab",
        code="Tab",
        windowsVirtualKeyCode=9,
        modifiers=8,
    )
    assert page.script("document.activeElement.textContent") == "Stop the camera"
    page.press("Enter")
    assert (
        page.until(
            "document.getElementById('video').srcObject === null && document.activeElement.id"
        )
        == "camera"
    )
    assert ("button", "Take picture") not in page.heard()


@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_cut_off(browser: tuple[Tab, str], pictures: list[str], width: int) -> None:
    page, address = browser
    page(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    page.go(address)
    choose(page, pictures)
    assert page.script("document.documentElement.scrollWidth") <= width
    every = "[...document.querySelectorAll('main *:not(.heard)')]"
    assert (
        page.script(
            f"{every}.filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.outerHTML)"
        )
        == []
    )
    heights = page.script(
        "[...document.querySelectorAll('#answers > li')].map((e) => e.offsetHeight)"
    )
    assert all(40 < height < 900 for height in heights)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(
    browser: tuple[Tab, str], pictures: list[str], scheme: str, axe: str
) -> None:
    page, address = browser
    page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.go(address)
    choose(page, pictures)
    page.script(f"{axe}; 0")
    found = page.script("axe.run()")
    assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == []
    assert "color-contrast" in [each["id"] for each in found["passes"]]


@needs_browser
@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        (GRAPH, None, "model.onnx is missing (404): copy the whole folder to the server."),
        (GRAPH, b"damaged", "model.onnx is damaged: copy the folder again, or export it again."),
        (
            web.ENGINE[1],
            None,
            "ort-wasm-simd-threaded.wasm is missing (404): copy the whole folder",
        ),
        (web.ENGINE[1], b"damaged", "The model cannot be started ("),
        (
            web.ENGINE[0],
            None,
            "A file of this page (page.mjs, answer.mjs, pixels.mjs or ort.wasm.bundle.min.mjs) is",
        ),
    ],
)
def test_page_without_its_engine(
    site: Path, browser: tuple[Tab, str], tmp_path: Path, name: str, damage: bytes | None, told: str
) -> None:
    broken = tmp_path / "site"
    shutil.copytree(site, broken)
    (broken / name).unlink()
    if damage:
        (broken / name).write_bytes(damage)
    with served(broken) as address:
        browser[0].go(address)
        assert told in browser[0].until(f"{STATE} !== 'The model is loading.' && {STATE}")
    assert browser[0].script("document.getElementById('files').disabled")


@needs_browser
@pytest.mark.parametrize(
    ("suffix", "told"), [(".mjs", "does not send it as JavaScript"), (".wasm", "Ready.")]
)
def test_page_with_wrong_content_types(
    site: Path, browser: tuple[Tab, str], suffix: str, told: str
) -> None:
    with served(site, {suffix: "text/plain"}) as address:
        browser[0].go(address)
        assert told in browser[0].until(f"{STATE} !== 'The model is loading.' && {STATE}")


@needs_browser
def test_a_page_opened_as_a_file(site: Path, browser: tuple[Tab, str]) -> None:
    browser[0].go((site / "index.html").as_uri())
    told = browser[0].until(f"{STATE} !== 'The model is loading.' && {STATE}")
    assert "Run “python -m http.server” in its folder and open http://localhost:8000." in told
