"""The site's own style and script: pages are accessible, and fit a phone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.web_pages import (
    Tab,
    axe,
    check_layout,
    check_with_axe,
    needs_browser,
    served,
    set_color_scheme,
    tab,
)

__all__ = ["axe"]  # a fixture

DOCS = Path(__file__).parents[2] / "docs"
COMMAND = "rmadapter bench few-shot --datasets pictograms --methods"
OPTIONS = ["few-shot", "--datasets", "--methods", "--out"]
PAGE = """# A page

![A figure](figure.svg)

```bash
{command} {many} --out results
```

```python
from rmadapter import Task  # {many}
```

## A table

|  | {columns} |
|---|{dashes}
| row | {columns} |

```{{eval-rst}}
.. autofunction:: rmadapter.records
```

```{{toctree}}
:caption: More
search
```
"""
FIGURE = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0h9v9"/></svg>'
WHITE = "rgb(255, 255, 255)"
IS_SEEN = """(() => {
  const one = document.activeElement, { left, right } = one.getBoundingClientRect();
  const { opacity, outlineStyle } = getComputedStyle(one);
  return outlineStyle === "solid" && opacity === "1" && right > 0 && left < innerWidth;
})()"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a small site with the settings of the real one."""
    source = tmp_path_factory.mktemp("source")
    many, columns = ",".join(["linear-probe"] * 9), " | ".join(["a long heading"] * 12)
    page = PAGE.format(command=COMMAND, many=many, columns=columns, dashes="---|" * 12)
    (source / "index.md").write_text(page, encoding="utf-8")
    (source / "figure.svg").write_text(FIGURE, encoding="utf-8")
    out = source / "out"
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "-c", DOCS, source, out]
    subprocess.run(sphinx, check=True)
    return out


@needs_browser
def test_pages_are_accessible_and_fit_a_phone(site: Path, tmp_path: Path, axe: str) -> None:
    with served(site) as address, tab(tmp_path / "browser") as page:
        for scheme in ("light", "dark"):
            set_color_scheme(page, scheme)
            page.go(address)
            for width in (1280, 400):
                check_layout(page, width)
                page.until("document.querySelector('.table-wrapper').tabIndex === 0")
                check_with_axe(page, axe)
            figure = "document.querySelector('article img[src$=\".svg\"]')"
            assert (
                page.script(f"getComputedStyle({figure}).backgroundColor") == "rgb(255, 255, 255)"
            )
        command = "document.querySelector('.highlight-bash pre')"
        assert page.script(f"{command}.scrollWidth <= {command}.clientWidth")
        assert page.script(f"{command}.textContent").startswith(f"{COMMAND} ")
        words = f"[...{command}.querySelectorAll('.word')]"
        assert page.script(f"{words}.map((word) => word.textContent)") == OPTIONS
        assert page.script(f"{words}.every((word) => word.getClientRects().length === 1)")
        page.go(f"{address}search.html")
        check_with_axe(page, axe)


def press_until(page: Tab, selector: str) -> None:
    """Press Tab until an element has the focus, and check that it and each before it is seen."""
    for _ in range(50):
        page.press("Tab")
        page.script(
            "Promise.allSettled(document.getAnimations().map((one) => one.finished)).then()"
        )
        assert page.script(IS_SEEN), page.script("document.activeElement.outerHTML")
        if page.script(f"document.activeElement.matches('{selector}')"):
            return
    raise AssertionError(f"no key reaches {selector}")


@needs_browser
def test_every_part_is_reached_by_keys(site: Path, tmp_path: Path) -> None:
    width = {"height": 900, "deviceScaleFactor": 1, "mobile": False}
    with served(site) as address, tab(tmp_path / "browser") as page:
        page("Emulation.setDeviceMetricsOverride", width=1280, **width)
        page.go(address)
        press_until(page, ".skip-to-content")
        for selector in (".sidebar-search", '.sidebar-drawer a[href="search.html"]', ".copybtn"):
            press_until(page, selector)
        page.go(address)
        press_until(page, ".skip-to-content")
        page.press("Enter")
        page.press("Tab")
        assert page.script("!!document.activeElement.closest('#furo-main-content')")


@needs_browser
def test_the_menus_of_a_phone_open_and_close_by_keys(site: Path, tmp_path: Path) -> None:
    size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    within = "!!document.activeElement.closest('{}')"
    with served(site) as address, tab(tmp_path / "browser") as page:
        page("Emulation.setDeviceMetricsOverride", **size)
        for button, menu in (
            (".nav-overlay-icon", ".sidebar-drawer"),
            (".toc-overlay-icon", ".toc-drawer"),
        ):
            page.go(address)
            press_until(page, button)
            for key in ("Enter", " "):
                page.press(key)
                page.until(within.format(menu))
                assert page.script(f"document.querySelector('{button}').ariaExpanded") == "true"
                page.press("Escape")
                assert page.script(f"document.activeElement.matches('{button}')")
                assert page.script(f"document.querySelector('{button}').ariaExpanded") == "false"
        page.go(address)  # with all menus closed, no key reaches what they hold
        press_until(page, ".copybtn")
        page.go(address)
        press_until(page, ".nav-overlay-icon")
        page.press("Enter")
        press_until(page, "article *")
        assert not page.script("document.getElementById('__navigation').checked")
