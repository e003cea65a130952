"""The page for labelling in a browser: by keys alone, with a screen reader's tree, narrow and wide,
light and dark."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="pip install 'rmadapter[app]'")
pytest.importorskip("uvicorn", reason="pip install 'rmadapter[app]'")

import uvicorn

from rmadapter.backbones import Backbone
from rmadapter_serve.sockets import address, bind
from rmadapter_studio.jobs import Jobs
from rmadapter_studio.labelling import number_of
from rmadapter_studio.project import Project
from rmadapter_studio.server import build
from rmadapter_studio.shared import Shared
from tests.helpers.web_pages import (
    CAMERA,
    Tab,
    axe,
    check_layout,
    check_with_axe,
    needs_browser,
    set_color_scheme,
    tab,
    until_count,
)  # fmt: skip

__all__ = ["axe"]  # a fixture

LABELS = ("red", "blue", "green")
WORDS = Path(__file__).parents[2] / "src/rmadapter_studio/assets/words.en.json"
SETTLED = (
    "document.querySelectorAll('#grid > li').length && document.getElementById('encoding').hidden"
)


@pytest.fixture
def photos(colors: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for c, label in enumerate(LABELS):
        for i, image in enumerate(sorted((colors / "train" / label).iterdir())):
            shutil.copyfile(image, folder / f"{3 * i + c:02} of a camera with long names.png")
    return folder


@pytest.fixture
def project(photos: Path) -> Project:
    return Project(photos)


@pytest.fixture
def page(
    project: Project, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Tab]:
    """Open the page in a new browser, with a camera that shows a test image."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    site = build(Shared(tiny_clip, Jobs(), project=project))
    server = uvicorn.Server(uvicorn.Config(site, log_level="warning"))
    with bind("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            with tab(tmp_path / "home", *CAMERA) as page:
                page.go(f"{address(listening)}/label")
                page.until(SETTLED)
                yield page
        finally:
            server.should_exit = True
            thread.join()


def message(page: Tab, key: str, form: str = "", place: str = "message") -> str:
    """Wait until the page says something, and return it. key: of the words, before any value."""
    words = json.loads(WORDS.read_text("utf-8"))["label"][key]
    start = (words[form] if form else words).partition("{")[0]
    said = f"document.getElementById('{place}').textContent"
    return str(page.until(f"{said}.startsWith({json.dumps(start)}) && {said}"))


def write_names(page: Tab, names: str) -> None:
    page.script("document.getElementById('names').focus()")
    page("Input.insertText", text=names)
    page.press("Enter")
    until_count(page, "#labels > li", len(names.split(",")))
    page.until("document.querySelectorAll('#view option[value=sure]').length === 1")


def show(page: Tab, view: str) -> None:
    """Choose which images the page shows."""
    chosen = f"const view = document.getElementById('view'); view.value = {json.dumps(view)}"
    page.script(f"{{ {chosen}; view.dispatchEvent(new Event('change')) }}")


def enter_grid(page: Tab) -> None:
    page.script("document.querySelector('#grid > li[tabindex=\"0\"]').focus()")


def selected(page: Tab) -> int:
    return int(page.script("document.querySelectorAll('#grid [aria-selected=true]').length"))


def label_all(page: Tab, names: Mapping[str, Sequence[str]]) -> None:
    """Label images by requests, and open the page again. names: by label."""
    for label, some in names.items():
        body = json.dumps({"ids": [*map(number_of, some)], "label": label})
        sent = f"fetch('api/label/set', {{method: 'POST', body: {json.dumps(body)}}})"
        assert page.script(f"{sent}.then((answer) => answer.ok)")
    page.go(page.script("location.href"))
    count = sum(map(len, names.values()))
    page.until(f"document.getElementById('count').textContent.includes(' {count} of ')")
    page.until("!document.getElementById('chosen').hidden")


def focus(page: Tab, selector: str) -> None:
    page.script(f"document.querySelector({json.dumps(selector)}).focus()")


def labels_of(project: Project, count: int) -> list[str]:
    """Return the labels, once there are so many."""
    until = time.monotonic() + 60
    while len(project.labels) != count:
        assert time.monotonic() < until, project.labels
        time.sleep(0.02)
    return sorted(project.labels.values())


@needs_browser
def test_labelling_by_keys_alone(page: Tab, project: Project) -> None:
    write_names(page, "red,blue,green")
    enter_grid(page)
    page.press("1")
    assert labels_of(project, 1) == ["red"]
    page.until("document.querySelector('#grid > li.done') !== null")
    page.until("document.activeElement.matches('#grid > li:not(.done)')")  # the next one
    for _ in range(2):
        page.press("ArrowRight", shift=True)
    assert selected(page) == 3
    page.press("2")
    assert labels_of(project, 4) == ["blue", "blue", "blue", "red"]
    page.until("document.querySelectorAll('#grid > li.done').length === 4")
    assert selected(page) == 0
    page.press("u")
    assert labels_of(project, 1) == ["red"]
    page.until("document.querySelectorAll('#grid > li.done').length === 1")
    page.press("s")
    page.until("document.querySelectorAll('#grid > li.done').length === 2")
    page.until("document.getElementById('message').textContent === '1 image was skipped.'")
    assert len(project.skipped) == 1
    page.press("0")
    assert labels_of(project, 2) == ["none", "red"]
    page.until("document.getElementById('message').textContent === '1 image is none now.'")
    page.press("9")
    assert "9" in message(page, "no_class")
    page.press("n")
    until_count(page, "#grid > li", 15)
    page.until("document.getElementById('grid').ariaBusy === 'false'")
    page.press(" ")
    page.press("ArrowDown")
    page.press(" ")
    assert selected(page) == 2
    page.press("a")
    assert selected(page) == 15
    page.press("Escape")
    assert selected(page) == 0
    page.press("z")
    page.until("document.getElementById('large').open")
    page.until("document.querySelector('#large img').naturalWidth > 0")
    page.press("Escape")
    page.until("!document.getElementById('large').open")
    page.until("document.activeElement.matches('#grid > li')")


@needs_browser
def test_images_and_keys_are_in_sight_with_ten_classes(page: Tab) -> None:
    """On the first screen, and of the keys also where the images are scrolled to their end."""
    wide = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page("Emulation.setDeviceMetricsOverride", **wide)
    write_names(page, ",".join(f"class {i}" for i in range(10)))
    place = "document.querySelector('{}').getBoundingClientRect()"
    assert page.script(f"{place.format('#grid > li')}.bottom") < 900
    page.script("document.getElementById('grid').lastElementChild.scrollIntoView()")
    first = place.format("#labels .pick")
    assert page.script(f"{first}.top") >= 0
    assert page.script(f"{first}.bottom") < 900


@needs_browser
def test_a_visitor_whom_the_server_forgot_goes_on(page: Tab, project: Project) -> None:
    """As after a restart: the step of the person is not lost, and nothing must be loaded anew."""
    write_names(page, "red, blue")
    enter_grid(page)
    for count, key in enumerate("12"):
        page("Network.clearBrowserCookies")
        page.press(key)
        assert len(labels_of(project, count + 1)) == count + 1
    message(page, "labelled", "one")
    page.until("document.getElementById('count').textContent.includes(' 2 of ')")


@needs_browser
def test_images_that_come_before_late_answers_keep_their_proposals(page: Tab) -> None:
    """The answers to an earlier question are of other images, and may come after the next ones."""
    write_names(page, "red, blue")
    enter_grid(page)
    page.press("1")
    page.until("document.querySelector('#view option[value=\"labelled red\"]') !== null")
    show(page, "labelled red")
    until_count(page, "#grid > li", 1)
    page.until("document.getElementById('grid').textContent.includes('Label: red')")
    enter_grid(page)
    page.script(
        """globalThis.late = 0, globalThis.plain = fetch, globalThis.fetch = async (path, more) => {
          const found = await plain(path, more);
          if (path.endsWith("/answers") && !late) {
            late = 1;
            while (late < 2) await new Promise((done) => setTimeout(done, 20));
          }
          return found;
        }, 0"""
    )
    page.press("2")
    page.until("late === 1")
    show(page, "random")
    page.until("document.querySelectorAll('#grid > li').length > 1")
    page.script("late = 2")
    page.script("new Promise((done) => setTimeout(done, 500))")
    shown = "[...document.querySelectorAll('#grid > li')].map((one) => one.textContent)"
    assert all("Perhaps" in text for text in page.script(shown))


@needs_browser
def test_proposals_are_accepted_and_mended(page: Tab, project: Project) -> None:
    write_names(page, "red,blue")
    view = "document.getElementById('view')"
    page.script(f"{view}.value = 'sure'; {view}.dispatchEvent(new Event('change')); 0")
    page.until("document.getElementById('grid').ariaBusy === 'false'")
    page.until("document.querySelector('#grid > li bdi') !== null")
    page.until("document.querySelector('#grid > li p').textContent.startsWith('Perhaps')")
    enter_grid(page)
    page.press("a")
    page.press("Enter")
    given = labels_of(project, 18)
    assert {*given} <= {"red", "blue"}
    page.press("n")
    page.until("!document.getElementById('empty').hidden")
    page.until("!document.getElementById('chosen').hidden")
    label = given[0]
    page.script(f"document.querySelector('[data-key=\"show {label}\"]').click()")
    until_count(page, "#grid > li.done", given.count(label))
    enter_grid(page)
    page.press("Delete")
    labels_of(project, 17)


@needs_browser
def test_looking_by_keys(page: Tab, project: Project) -> None:
    """At confusions, mistakes and unfamiliar images, and at the nearest labelled images."""
    red, blue, green = (project.images[c::3] for c in range(3))
    label_all(page, {"red": [*red, blue[0]], "blue": blue[1:], "green": green[:2]})
    pair = '#confused [data-pair=\'confused ["red","blue"]\']'
    page.until(f"document.querySelector({json.dumps(pair)}) !== null")
    focus(page, pair)
    page.press("Enter")
    page.until("document.activeElement.matches('#grid > li')")
    until_count(page, "#grid > li", 1)
    card = page.script("document.activeElement.textContent")
    assert card.startswith("Label: redTaken for blue (")
    assert card.endswith(blue[0])
    page.press("z")
    until_count(page, "#near li", 5)
    near = page.script("document.querySelector('#near li').textContent")
    assert near.startswith("blue, similarity ")
    page.press("Escape")
    page.until("document.activeElement.matches('#grid > li')")
    page.press("Enter")
    page.until("document.querySelector('#grid .label').textContent === 'Label: blue'")
    page.until(f"document.querySelector({json.dumps(pair)}) === null")
    assert labels_of(project, 14).count("blue") == 6
    assert page.script("document.getElementById('view').value") == 'confused ["red","blue"]'
    page.press("n")
    page.until("!document.getElementById('empty').hidden")
    focus(page, "#unfamiliar")
    page.press("Enter")
    until_count(page, "#grid > li", 4)
    assert "out-of-distribution score: " in page.script("document.activeElement.textContent")
    page.press("0")
    assert labels_of(project, 15).count("none") == 1
    page.press("n")
    until_count(page, "#grid > li", 3)


@needs_browser
def test_every_page_of_a_view_is_reached(page: Tab, project: Project) -> None:
    rng = np.random.default_rng(1)
    for number in range(40):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(project.folder / f"noise {number:02}.png")
    page.script("document.getElementById('scan').click()")
    page.until("document.getElementById('count').textContent.includes('of 58 images')")
    page.until(SETTLED)
    label_all(page, {"red": project.images[:53], "blue": project.images[53:]})
    page.script("document.querySelector('[data-key=\"show red\"]').click()")
    until_count(page, "#grid > li.done", 24)
    names = (
        "[...document.querySelectorAll('#grid > li')].map((e) => e.lastElementChild.textContent)"
    )
    enter_grid(page)
    seen = {*page.script(names)}
    for count in (48, 53):
        page.press("n")
        page.until(f"!{json.dumps(sorted(seen))}.includes({names}[0])")
        seen |= {*page.script(names)}
        assert len(seen) == count


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_reports_nothing(page: Tab, axe: str, scheme: str) -> None:
    set_color_scheme(page, scheme)
    write_names(page, "red,blue,a class whose name is rather long")
    enter_grid(page)
    for key in ("1", "1", "2", "2", "1", "2"):  # at once: the next key is for the next card
        page.press(key)
    page.until("!document.getElementById('chosen').hidden")
    page.until("document.querySelector('#confused li') !== null")
    page.press(" ")
    for details in ("#pictures details", "#curve details", "#each details"):
        page.script(f"document.querySelector('{details}').open = true")
    check_with_axe(page, axe)
    for width in (400, 1920):
        check_layout(page, width, ".heard, option, svg, svg *, input, #large *")
    heard = page.heard()
    assert {("heading", "Classes"), ("heading", "Images")} <= {*heard}
    options = [name for role, name in heard if role == "option" and ".png" in name]
    assert len(options) == 18
    assert sum("Label: red" in name for name in options) == 3


@needs_browser
def test_page_in_german(page: Tab, project: Project, axe: str) -> None:
    focus(page, "nav a[lang=de]")
    page.press("Enter")
    page.event("Page.loadEventFired")
    assert page.script("document.documentElement.lang") == "de"
    page.until(SETTLED)
    german = json.loads(WORDS.with_name("words.de.json").read_text("utf-8"))["label"]
    for words, language in ((german, "de"), (json.loads(WORDS.read_text("utf-8"))["label"], "en")):
        rules = f"new Intl.PluralRules('{language}').resolvedOptions().pluralCategories"
        assert sorted(words["copies"]) == sorted(page.script(rules))
    write_names(page, "rot,blau")
    enter_grid(page)
    for key in ("1", "1", "2", "2", "1", "2"):
        page.press(key)
    labels_of(project, 6)
    page.until("document.getElementById('message').textContent.startsWith('1 Bild hat jetzt ')")
    page.until("document.getElementById('accuracy').textContent.includes('sind')")
    text = page.script("document.getElementById('curve').textContent")
    assert re.search(r"\d,\d\xa0%", text)
    assert not re.search(r"\d\.\d", text)
    check_with_axe(page, axe)
    for width in (400, 1280):
        check_layout(page, width, ".heard, option, svg, svg *, input, #large *")
    page.script("document.querySelector('nav a[lang=en]').click()")
    page.event("Page.loadEventFired")
    assert page.script("document.title") == "Label images"


@needs_browser
def test_pictures_of_the_camera_join_the_others(page: Tab, project: Project) -> None:
    focus(page, "#photograph")
    page.press("Enter")
    page.until("document.activeElement.className === 'shoot'")
    for width in (400, 1280):
        check_layout(page, width, ".heard, option, svg, svg *, input, #large *")
    for count in (19, 20):
        page.press("Enter")
        page.until(f"document.getElementById('count').textContent.includes('of {count} images')")
        assert message(page, "photographed", place="sent")
    assert project.images[-2:] == ("added/camera.png", "added/camera-2.png")
    page.until("document.getElementById('encoding').hidden")
    assert page.script("document.getElementById('bad').hidden")
    page.press("Tab")
    page.press("Enter")
    assert page.until("document.querySelector('.camera').hidden")
    assert page.script("document.querySelector('video').srcObject === null")
    assert page.script("document.activeElement.id") == "photograph"


@needs_browser
def test_images_that_are_dropped_join_the_others(
    page: Tab, project: Project, colors: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no")
    root = page("DOM.getDocument")["root"]["nodeId"]
    node = page("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
    files = [str(colors / "test/red/0.png"), str(bad)]
    page("DOM.setFileInputFiles", files=files, nodeId=node)
    page.until("document.getElementById('sent').textContent.includes('bad.png: not an image')")
    page.until("document.getElementById('count').textContent.includes('of 19 images')")
    assert project.images[-1] == "added/0.png"
    page.go(page.script("location.href.replace('label', '')"))
    page.until("document.getElementById('new').hidden")
    removed = page.script("document.getElementById('removed').textContent")
    assert f"kept in the folder {project.folder.name};" in removed
