"""The page in a browser, from the first click to the model that `rmadapter.load` opens, by keys,
narrow and wide."""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="pip install 'rmadapter[app]'")
pytest.importorskip("uvicorn", reason="pip install 'rmadapter[app]'")

from rmadapter import load
from rmadapter.backbones import Backbone
from tests.helpers.app import running_app
from tests.helpers.web_pages import STATE, Tab, axe, engine, needs_browser, served, tab

__all__ = ["axe"]  # a fixture

LABELS = ("red", "blue", "a class whose name is rather long, as those of some data sets are, تفاحة")


@pytest.fixture(scope="module")
def address(
    tiny_clip: Backbone, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Of one which may open one run."""
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished, runs / "colours")
    with running_app(tiny_clip, "--runs", str(runs)) as found:
        yield found


@pytest.fixture
def page(address: str, tmp_path: Path) -> Iterator[Tab]:
    """In a browser of its own, with a camera that shows a test image."""
    camera = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    with tab(tmp_path / "home", *camera) as found:
        (tmp_path / "got").mkdir()
        found("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "got"))
        found.go(address)
        found.until("document.querySelectorAll('#methods input').length === 3")
        yield found


@pytest.fixture
def images(colors: Path, tmp_path: Path) -> dict[str, list[str]]:
    """Of each label, and one that is none."""
    bad = tmp_path / "an unreadable file with a long_name_without_any_place_to_break_it_in_two.jpg"
    bad.write_bytes(b"no")
    found = {label: sorted(map(str, (colors / "train" / color).iterdir())) for label, color in
             zip(LABELS, ("red", "blue", "green"), strict=True)}  # fmt: skip
    found["red"].append(str(bad))
    return found


def told(section: str) -> str:
    return f"document.querySelector('#{section} > .told').textContent"


def click(page: Tab, selector: str) -> None:
    page.script(f"document.querySelector({json.dumps(selector)}).click()")


def choose(page: Tab, selector: str, *files: str) -> None:
    root = page("DOM.getDocument")["root"]["nodeId"]
    node = page("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
    page("DOM.setFileInputFiles", files=list(files), nodeId=node)


def write(page: Tab, field: str, text: str) -> None:
    """Into a field, and Enter."""
    page.script(f"document.getElementById('{field}').focus()")
    page("Input.insertText", text=text)
    page.press("Enter")


def bring(page: Tab, images: dict[str, list[str]]) -> str:
    """Classes and their images; returns what is said in the end."""
    write(page, "names", ",".join(label for label in images if "," not in label))
    page.until("document.querySelectorAll('#classes > li').length > 1")
    said = ""
    for label, files in images.items():
        choose(page, f"[data-key='add {label}']", *files)
        start = f"{json.dumps(label)} + ': 6 images'"
        classes = "[...document.querySelectorAll('#classes > li')]"
        page.until(f"{classes}.some((e) => e.textContent.startsWith({start}))")
        said += page.script(told("images"))
    return said


def train(page: Tab, method: str) -> None:
    click(page, f"[value='{method}']")
    click(page, "#go")
    page.until(f"{told('train')} === 'Training is done.'", seconds=600)
    page.until("document.querySelector('#rates tbody tr') !== null")


def downloaded(folder: Path) -> Path:
    until = time.monotonic() + 60
    while not (found := [*folder.glob("*.zip")]):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found[0]


@needs_browser
def test_page_from_first_click_to_answers(
    page: Tab, images: dict[str, list[str]], colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    images = {label.replace(",", ""): files for label, files in images.items()}
    said = bring(page, images)
    assert "break_it_in_two.jpg: not an image in a supported format" in said
    train(page, "linear-probe-pair")
    assert "are right, compared with" in page.until(
        "document.getElementById('verdict').textContent"
    )
    assert page.script("document.querySelectorAll('#rates tbody tr').length") >= 2
    assert "cross-validation" in page.script("document.getElementById('how').textContent")
    choose(page, "#files", str(colors / "test/red/0.png"), images["red"][-1])
    page.until("document.querySelectorAll('#answers > li').length === 1")
    assert page.until(
        f"{told('try')}.includes('break_it') && document.querySelector('#answers h3').textContent"
    ) == ("0.png: red")
    looks(page)
    click(page, "#get a[href='download/model']")
    with zipfile.ZipFile(downloaded(tmp_path / "got")) as file:
        file.extractall(tmp_path / "mine")
    saved = load(tmp_path / "mine/model", tiny_clip)
    assert saved.labels == tuple(sorted(images))
    table = next(saved.fitted.probabilities([colors / "test/blue/0.png"], saved.names))
    assert saved.labels[int(table.argmax())] == "blue"


def looks(page: Tab) -> None:
    """Nothing is cut off, on a narrow screen and on a wide one."""
    for width in (400, 1280):
        page(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        assert page.script("document.documentElement.scrollWidth") <= width
        every = "[...document.querySelectorAll('main *:not(.heard, option, i, .button input)')]"
        is_wide = "(e) => e.clientWidth && e.scrollWidth > e.clientWidth + 1"
        assert page.script(f"{every}.filter({is_wide}).map((e) => e.outerHTML)") == []
        heights = page.script("[...document.querySelectorAll('li')].map((e) => e.offsetHeight)")
        assert all(height < 900 for height in heights)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Tab, colors: Path, scheme: str, axe: str) -> None:
    page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    write(page, "names", "red, blue")
    page.until("document.querySelectorAll('#classes > li').length === 2")
    click(page, "#alone")
    page.until("!document.getElementById('try').hidden")
    choose(page, "#files", str(colors / "test/red/0.png"))
    page.until("document.querySelectorAll('#answers > li').length === 1")
    page.script(f"{axe}; 0")
    found = page.script("axe.run()")
    assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == []
    assert "color-contrast" in [each["id"] for each in found["passes"]]


@needs_browser
def test_zero_shot_by_keyboard(page: Tab, colors: Path) -> None:
    for _ in range(2):
        page.press("Tab")
    assert page.script("document.activeElement.textContent") == "Add"
    write(page, "names", "red, blue")
    page.until("document.querySelectorAll('#classes > li').length === 2")
    seen = []
    while not seen or seen[-1] != "Use the names alone":
        page.press("Tab")
        seen.append(
            page.script(
                "document.activeElement.textContent || document.activeElement.ariaLabel || ''"
            )
        )
        assert len(seen) < 30
    assert {"Add images of red", "Camera red", "Remove blue", "Open", "Train on the images"} <= {
        *seen
    }
    page.press("Enter")
    page.until(
        f"{told('train')}.startsWith('The classifier is ready') && "
        "!document.getElementById('more').hidden"
    )
    write(page, "further", "night sky")
    page.until("document.getElementById('known').textContent.startsWith('Classes it knows (3)')")
    choose(page, "#files", str(colors / "test/red/0.png"))
    assert page.until(f"{told('try')}.startsWith('0.png: ')")
    heard = page.heard()
    assert {
        ("heading", "4. Try it"),
        ("list", "Classes"),
        ("textbox", "Class names, separated by commas"),
    } <= {*heard}
    assert sum(role == "status" for role, _ in heard) == 6
    page.press("Tab")
    click(page, "[data-key='remove red']")
    page.until("document.querySelectorAll('#classes > li').length === 1")


@needs_browser
def test_the_camera(page: Tab) -> None:
    write(page, "names", "green")
    page.until("document.querySelectorAll('#classes > li').length === 1")
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
    page.until(f"{told('train')}.startsWith('give images of at least two classes')")
    bring(page, {label: images[label] for label in LABELS[:2]})
    click(page, "[value='rmadapter']")
    click(page, "#go")
    page.until("!document.getElementById('work').hidden && document.getElementById('go').disabled")
    click(page, "#stop")
    page.until(f"{told('train')} === 'Training was stopped; nothing has changed.'")
    assert page.script(
        "document.getElementById('judge').hidden && !document.getElementById('go').disabled"
    )
    click(page, "#open button")
    page.until(
        f"{told('images')} === 'colours is open.' && !document.getElementById('judge').hidden"
    )
    assert page.script("document.querySelectorAll('#classes > li').length") == 0
    assert "A classifier is open" in page.script("document.getElementById('base').textContent")
    for count in (1, 2):  # the same file again
        choose(page, "#files", images[LABELS[0]][0])
        page.until(f"document.querySelectorAll('#answers > li').length === {count}")
    looks(page)


@pytest.mark.slow
@needs_browser
def test_exported_page_works(page: Tab, colors: Path, tmp_path: Path) -> None:
    """From a click to a zip, and from that to a page that answers by itself."""
    pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    engine()
    write(page, "names", "red, blue")
    page.until("document.querySelectorAll('#classes > li').length === 2")
    click(page, "#alone")
    page.until(
        f"{told('train')}.startsWith('The classifier is ready') && "
        "!document.getElementById('get').hidden"
    )
    click(page, "#targets button:nth-of-type(2)")
    page.until("document.querySelector('#targets a') !== null", seconds=300)
    assert (
        page.script("document.querySelector('#targets a').textContent")
        == "Download it as a web page"
    )
    click(page, "#targets a")
    with zipfile.ZipFile(downloaded(tmp_path / "got")) as file:
        file.extractall(tmp_path / "mine")
    [made] = (tmp_path / "mine").iterdir()
    with served(made) as address:
        page.go(address)
        page.until(f"{STATE} === 'Ready.'")
        choose(page, "#files", str(colors / "test/red/0.png"))
        page.until("document.querySelectorAll('#answers > li').length === 1")
        assert page.until("document.querySelector('#answers').textContent.includes('%')")


@needs_browser
def test_another_site_s_frame(tiny_clip: Backbone, tmp_path: Path) -> None:
    """Which a browser gives the cookie in, as the page allows it there: 127.0.0.1 is another site
    than localhost."""
    flat = "--disable-site-isolation-trials"  # else the frame is a page of its own to the protocol
    with (
        served(tmp_path) as site,
        tab(tmp_path / "home", flat) as page,
        running_app(tiny_clip, "--allow-frame", site.rstrip("/")) as address,
    ):
        framed = address.replace("127.0.0.1", "localhost")
        (tmp_path / "index.html").write_text(f"<iframe src={framed}></iframe>")
        page.go(site)
        while (context := page.event("Runtime.executionContextCreated")["context"])[
            "origin"
        ] + "/" != framed:
            pass
        code = """(async () => {
          await fetch("api/classes", {method: "POST", body: JSON.stringify({names: ["red"]})});
          const pause = () => new Promise((done) => setTimeout(done, 50));
          while (document.readyState !== "complete") await pause();
          const { classes } = await (await fetch("api/state")).json();
          return JSON.stringify([...classes, document.querySelector("#report a").target]);
        })()"""
        found = page(
            "Runtime.evaluate", expression=code, contextId=context["id"], awaitPromise=True
        )
        assert json.loads(found["result"]["value"]) == [{"label": "red", "images": 0}, "_self"]
