"""The page in a browser, from the first click to the model that `rmadapter.load` opens, by keys,
narrow and wide."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="pip install 'rmadapter[app]'")
pytest.importorskip("uvicorn", reason="pip install 'rmadapter[app]'")

from rmadapter import load
from rmadapter.backbones import Backbone
from rmadapter_studio.images import THUMBNAILS_PER_CLASS
from rmadapter_studio.words import languages
from tests.helpers.web_pages import (
    CAMERA,
    STATE,
    Tab,
    axe,
    check_layout,
    check_with_axe,
    engine,
    needs_browser,
    served,
    set_color_scheme,
    tab,
    until_count,
)  # fmt: skip

__all__ = ["axe"]  # a fixture

LABELS = ("red", "blue", "a class whose name is rather long, as those of some data sets are, تفاحة")


@contextmanager
def running_app(tiny_clip: Backbone, *words: str) -> Iterator[str]:
    """Start `rmadapter app` as a separate process; yield its address."""
    words = ("app", "--port", "0", "--backbone", tiny_clip.name, "--json", *words)
    command = [sys.executable, "-m", "rmadapter", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def address(
    tiny_clip: Backbone, finished: Path, calibrated: Path, tree_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:  # fmt: skip
    """Serve the page, which may open three runs."""
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished, runs / "colours")
    shutil.copytree(calibrated, runs / "with a calibration")
    shutil.copytree(tree_run, runs / "with parents")
    with running_app(tiny_clip, "--runs", str(runs)) as address:
        yield address


@pytest.fixture
def page(address: str, tmp_path: Path) -> Iterator[Tab]:
    """Open the page in a new browser, with a camera that shows a test image."""
    with tab(tmp_path / "home", *CAMERA) as page:
        (tmp_path / "got").mkdir()
        page("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "got"))
        page.go(address)
        until_count(page, "#methods input", 2)
        yield page


@pytest.fixture
def images(colors: Path, tmp_path: Path) -> dict[str, list[str]]:
    """Images of each label, and a file that is none."""
    bad = tmp_path / "an unreadable file with a long_name_without_any_place_to_break_it_in_two.jpg"
    bad.write_bytes(b"no")
    files = {}
    for label, color in zip(LABELS, ("red", "blue", "green"), strict=True):
        files[label] = sorted(map(str, (colors / "train" / color).iterdir()))
    files["red"].append(str(bad))
    return files


def message(section: str) -> str:
    return f"document.querySelector('#{section} > .message').textContent"


def click(page: Tab, selector: str) -> None:
    page.script(f"document.querySelector({json.dumps(selector)}).click()")


def choose(page: Tab, selector: str, *files: str) -> None:
    root = page("DOM.getDocument")["root"]["nodeId"]
    node = page("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
    page("DOM.setFileInputFiles", files=list(files), nodeId=node)


def write(page: Tab, field: str, text: str) -> None:
    """Write into a field, and press Enter."""
    page.script(f"document.getElementById('{field}').focus()")
    page("Input.insertText", text=text)
    page.press("Enter")


def add_images(page: Tab, images: dict[str, list[str]]) -> str:
    """Add classes and their images; return all messages."""
    write(page, "names", ",".join(label for label in images if "," not in label))
    page.until("document.querySelectorAll('#classes > li').length > 1")
    said = ""
    for label, files in images.items():
        choose(page, f"[data-key='add {label}']", *files)
        start = f"{json.dumps(label)} + ': 6 images'"
        classes = "[...document.querySelectorAll('#classes > li')]"
        page.until(f"{classes}.some((e) => e.textContent.startsWith({start}))")
        said += page.script(message("images"))
    return said


def train(page: Tab, method: str) -> None:
    click(page, f"[value='{method}']")
    click(page, "#go")
    page.until(f"{message('train')} === 'Training is done.'", seconds=600)
    page.until("document.querySelector('#rates tbody tr') !== null")


def downloaded(folder: Path) -> Path:
    until = time.monotonic() + 60
    while not [*folder.glob("*.zip")]:
        assert time.monotonic() < until
        time.sleep(0.05)
    return next(folder.glob("*.zip"))


def unzip_download(folder: Path) -> Path:
    """Unpack the only zip that was downloaded, and return its only folder."""
    with zipfile.ZipFile(downloaded(folder)) as file:
        file.extractall(folder / "mine")
    (inside,) = (folder / "mine").iterdir()
    return inside


def use_names(page: Tab, names: str, count: int) -> None:
    """Add classes, and make a classifier from their names alone."""
    write(page, "names", names)
    until_count(page, "#classes > li", count)
    click(page, "#alone")
    page.until("!document.getElementById('try').hidden && !document.getElementById('get').hidden")


@needs_browser
def test_page_from_first_click_to_answers(
    page: Tab, images: dict[str, list[str]], colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    images = {label.replace(",", ""): files for label, files in images.items()}
    said = add_images(page, images)
    assert "break_it_in_two.jpg: not an image in a supported format" in said
    train(page, "block-ridge")
    verdict = page.until("document.getElementById('verdict').textContent")
    assert re.search(r"\d+ of 18 images", verdict)
    low, high = (float(end) for end in re.findall(r"(\d+\.\d)\s", verdict))
    assert 0 < low < high <= 100
    more = "document.querySelector('#more form')"
    assert page.script(f"{more}.hidden && !document.getElementById('more').hidden")
    assert page.script("document.querySelectorAll('#rates tbody tr').length") >= 2
    assert "cross-validation" in page.script("document.getElementById('how').textContent")
    until_count(page, "#classes img", 3 * THUMBNAILS_PER_CLASS)
    tiff = tmp_path / "0.tif"  # which no Chromium draws
    Image.open(colors / "test/red/0.png").save(tiff)
    choose(page, "#files", str(tiff), images["red"][-1])
    until_count(page, "#answers > li", 1)
    page.until("[...document.images].every((image) => image.naturalWidth > 0)")
    page.until(f"{message('try')}.includes('break_it')")
    assert page.script("document.querySelector('#answers h3').textContent") == "0.tif: red"
    check_both_layouts(page)
    click(page, "#get a[href='download/model']")
    saved = load(unzip_download(tmp_path / "got"), tiny_clip)
    assert saved.labels == tuple(sorted(images))
    table = next(saved.fitted.probabilities([colors / "test/blue/0.png"], saved.names))
    assert saved.labels[int(table.argmax())] == "blue"


def check_both_layouts(page: Tab) -> None:
    for width in (400, 1280):
        check_layout(page, width, ".heard, option, i, .button input")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_reports_nothing(page: Tab, colors: Path, scheme: str, axe: str) -> None:
    set_color_scheme(page, scheme)
    use_names(page, "red, blue", 2)
    choose(page, "#files", str(colors / "test/red/0.png"))
    until_count(page, "#answers > li", 1)
    check_with_axe(page, axe)


@needs_browser
def test_page_in_german(page: Tab, colors: Path, axe: str) -> None:
    page.events.clear()
    page.script("document.querySelector('nav a[lang=de]').click()")
    page.event("Page.loadEventFired")
    words = languages()["de"]["train"]
    assert isinstance(words, dict)
    until_count(page, "#methods input", 2)
    assert page.script("document.querySelector('h1').textContent") == words["title"]
    write(page, "names", "rot, blau")
    until_count(page, "#classes > li", 2)
    assert page.script("document.querySelector('#classes > li').textContent").startswith(
        words["class_images"]["other"].format(label="rot", n=0)
    )
    click(page, "#alone")
    page.until(f"{message('train')} === {json.dumps(words['by_names'])}")
    page.until("!document.getElementById('try').hidden")  # else the answer is drawn over
    choose(page, "#files", str(colors / "test/red/0.png"))
    until_count(page, "#answers > li", 1)
    assert re.search(r"\d,\d\s%", page.script("document.querySelector('#answers').textContent"))
    assert page.script("document.getElementById('promised').textContent") == words["no_promise"]
    check_with_axe(page, axe)


@needs_browser
def test_zero_shot_by_keyboard(page: Tab, colors: Path) -> None:
    for _ in range(3):  # past the link to the other language
        page.press("Tab")
    assert page.script("document.activeElement.textContent") == "Add"
    write(page, "names", "red, blue")
    until_count(page, "#classes > li", 2)
    seen = []
    while not seen or seen[-1] != "Use the names alone":
        page.press("Tab")
        focused = "document.activeElement"
        seen.append(page.script(f"{focused}.textContent || {focused}.ariaLabel || ''"))
        assert len(seen) < 30
    reached = {"Add images of red", "Camera red", "Remove blue", "Open", "Train on the images"}
    assert reached <= {*seen}
    page.press("Enter")
    page.until(
        f"{message('train')}.startsWith('The classifier is ready') && "
        "!document.getElementById('more').hidden"
    )
    write(page, "further", "night sky")
    page.until("document.getElementById('known').textContent.startsWith('Classes it knows (3)')")
    choose(page, "#files", str(colors / "test/red/0.png"))
    assert page.until(f"{message('try')}.startsWith('0.png: ')")
    promised = page.script("document.getElementById('promised').textContent")
    assert promised.startswith("No error can be promised")
    heard = page.heard()
    assert {("heading", "4. Try it"), ("list", "Classes")} <= {*heard}
    assert ("textbox", "Class names, separated by commas") in heard
    assert sum(role == "status" for role, _ in heard) == 6
    page.press("Tab")
    click(page, "[data-key='remove red']")
    until_count(page, "#classes > li", 1)


def open_run(page: Tab, name: str) -> None:
    """Open a run that can promise an error."""
    page.until("document.querySelectorAll('#runs option').length === 3")
    page.script(f"document.getElementById('runs').value = '{name}'; 0")
    click(page, "#open button")
    page.until(f"{message('images')} === '{name} is open.'")
    page.until("!document.getElementById('error-row').hidden")


@needs_browser
def test_levels_of_a_taxonomy(page: Tab, blends: list[Path]) -> None:
    open_run(page, "with parents")
    changed = "document.getElementById('error').dispatchEvent(new Event('change'))"
    page.script(f"document.getElementById('error').value = '0.1'; {changed}")
    choose(page, "#files", *map(str, blends))
    until_count(page, "#answers > li", len(blends))
    decisions = page.script("[...document.querySelectorAll('.decision')].map((e) => e.textContent)")
    assert "answer: dark: it may be green, night_sky" in decisions
    assert any(text.startswith("unsure: it may be ") for text in decisions)
    levels = page.script("[...document.querySelectorAll('.levels')].map((e) => e.textContent)")
    assert len(levels) == len(blends)
    assert {text.split()[2] for text in levels} == {"dark", "light"}
    check_both_layouts(page)


@needs_browser
def test_sets_and_strange_images_at_chosen_shares(
    page: Tab, blends: list[Path], noise: Path
) -> None:
    open_run(page, "with a calibration")
    assert page.script("document.getElementById('error').value") == "0.05"
    promised = "document.getElementById('promised').textContent"
    assert "on at most 5\xa0% of images like these 48 images" in page.script(promised)
    choose(page, "#files", *map(str, blends[:12]))
    until_count(page, "#answers > li", 12)
    decisions = "[...document.querySelectorAll('.decision')].map((e) => e.textContent)"
    at_five = page.script(decisions)
    assert any(text.startswith("unsure: it may be ") for text in at_five)
    check_both_layouts(page)
    changed = "document.getElementById('error').dispatchEvent(new Event('change'))"
    page.script(f"document.getElementById('error').value = '0.1'; {changed}")
    at_ten = page.script(decisions)
    assert at_ten.count("answer") > at_five.count("answer")
    page.script(f"document.getElementById('error').value = '0'; {changed}")
    assert page.script(decisions) == [""] * 12
    assert page.script(promised) == ""
    choose(page, "#files", str(noise))
    until_count(page, "#answers > li", 13)
    share = "document.getElementById('share')"
    changed = f"{share}.dispatchEvent(new Event('change'))"
    page.script(f"{share}.value = '0.1'; {changed}")
    assert page.script(decisions)[0] == "none of these"
    assert "answer" in page.script(decisions)
    kept = "document.getElementById('kept').textContent"
    assert "At most 10\xa0% of images like these 48 images" in page.script(kept)
    check_both_layouts(page)
    page.script(f"{share}.value = '0'; {changed}")
    assert page.script(decisions) == [""] * 13


@needs_browser
def test_the_camera(page: Tab) -> None:
    write(page, "names", "green")
    until_count(page, "#classes > li", 1)
    click(page, "[data-key='camera green']")
    page.until("document.activeElement.className === 'shoot'")
    page.press("Enter")
    page.until("document.querySelector('#classes > li').textContent.startsWith('green: 1 image')")
    page.script("document.querySelector('#images .shoot').focus()")
    page.press("Tab")
    page.press("Enter")
    assert page.until("document.querySelector('#images .camera').hidden")
    assert page.script("document.querySelector('#images video').srcObject === null")


@needs_browser
def test_stopping_opening_and_mistakes(page: Tab, images: dict[str, list[str]]) -> None:
    click(page, "#go")
    page.until(f"{message('train')}.includes('at least two classes')")
    add_images(page, {label: images[label] for label in LABELS[:2]})
    click(page, "[value='rmadapter-plus']")
    click(page, "#go")
    page.until("!document.getElementById('work').hidden && document.getElementById('go').disabled")
    click(page, "#stop")
    page.until(f"{message('train')} === 'Training was stopped; nothing has changed.'")
    assert page.script(
        "document.getElementById('judge').hidden && !document.getElementById('go').disabled"
    )
    click(page, "#open button")
    page.until(
        f"{message('images')} === 'colours is open.' && !document.getElementById('judge').hidden"
    )
    assert page.script("document.querySelectorAll('#classes > li').length") == 0
    assert "A classifier is open" in page.script("document.getElementById('base').textContent")
    for count in (1, 2):  # the same file again
        choose(page, "#files", images[LABELS[0]][0])
        until_count(page, "#answers > li", count)
    check_both_layouts(page)


@pytest.mark.slow
@needs_browser
def test_exported_page_works(page: Tab, colors: Path, tmp_path: Path) -> None:
    """From a click to a zip, and from that to a page that answers by itself."""
    pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    engine()
    use_names(page, "red, blue", 2)
    click(page, "#targets button:nth-of-type(2)")
    page.until("document.querySelector('#targets a') !== null", seconds=300)
    link = page.script("document.querySelector('#targets a').textContent")
    assert link == "Download it as a web page"
    click(page, "#targets a")
    made = unzip_download(tmp_path / "got")
    with served(made) as address:
        page.go(address)
        page.until(f"{STATE} === 'Ready.'")
        choose(page, "#files", str(colors / "test/red/0.png"))
        until_count(page, "#answers > li", 1)
        assert page.until("document.querySelector('#answers').textContent.includes('%')")


@needs_browser
def test_page_works_in_the_frame_of_another_site(tiny_clip: Backbone, tmp_path: Path) -> None:
    """A browser sends the cookie there, too; 127.0.0.1 is another site than localhost."""
    flat = "--disable-site-isolation-trials"  # else the frame is a page of its own to the protocol
    with (
        served(tmp_path) as site,
        tab(tmp_path / "home", flat) as page,
        running_app(tiny_clip, "--allow-frame", site.rstrip("/")) as address,
    ):
        framed = address.replace("127.0.0.1", "localhost")
        (tmp_path / "index.html").write_text(f"<iframe src={framed}></iframe>")
        page.go(site)
        context = {"origin": ""}
        while f"{context['origin']}/" != framed:
            context = page.event("Runtime.executionContextCreated")["context"]
        code = """(async () => {
          await fetch("api/classes", {method: "POST", body: JSON.stringify({names: ["red"]})});
          const pause = () => new Promise((done) => setTimeout(done, 50));
          while (document.readyState !== "complete") await pause();
          const { classes } = await (await fetch("api/state")).json();
          return JSON.stringify([...classes, document.querySelector("#report a").target]);
        })()"""
        where = {"contextId": context["id"], "awaitPromise": True}
        answer = page("Runtime.evaluate", expression=code, **where)
        assert json.loads(answer["result"]["value"]) == [
            {"label": "red", "images": 0, "shown": []}, "_self",
        ]  # fmt: skip
