"""Settings of the site: `make docs` builds it from the pages of this folder and the docstrings."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

import rmadapter

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT / "tools"))
import reference  # noqa: E402

reference.write(DOCS / "reference")
# pages outside of this folder, and which page of the site shows them
SHOWN = {
    ROOT / "README.md": "about/readme.md",
    ROOT / "CHANGELOG.md": "about/changelog.md",
    ROOT / "CONTRIBUTING.md": "about/contributing.md",
    ROOT / "CODE_OF_CONDUCT.md": "about/conduct.md",
    ROOT / "SECURITY.md": "about/security.md",
    DOCS / "README.md": "index.md",
}
HELP = re.compile(r"(?<!\[)`rmadapter help ((?!all`)[a-z]+)`")
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|[#/])([^)#\s]+)(#[^)\s]*)?\)")
PAGE = re.compile(r"docs/([\w/]+)\.md")  # as docstrings name it

project = "rmadapter"
author = copyright = "The rmadapter authors"
release = version = rmadapter.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
root_doc = "index"
exclude_patterns = ["README.md"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "rmadapter"
html_theme_options = {"top_of_page_buttons": []}  # one to a page's source helps no reader
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
templates_path = ["_templates"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
napoleon_custom_sections = [("Attributes", "params_style")]  # a list, as of parameters
smartquotes = False  # it makes one dash of the two in --option
default_role = "code"  # `name` in docstrings
# of `make links`: addresses of the reader's own machine
linkcheck_ignore = [
    r"https?://(localhost|127\.0\.0\.1)\b",
    r"https?://([\w-]+\.)*example\b",
]
linkcheck_anchors_ignore_for_url = [r"https://github\.com/"]  # its pages add them by a script
linkcheck_timeout = 20
copybutton_exclude = ".linenos, .gp, .go"


def with_links(text: str, file: Path, page: Path) -> str:
    """Return the Markdown of a file, as a part of a page, with relative links that lead to pages of
    the site or, elsewhere in the repository, to files. Links to folders become their text, and
    links to pages that the site does not show become their text and path. Where a text names the
    help of a command, it becomes a link to the command's options."""

    def link(match: re.Match[str]) -> str:
        words, target, part = match[1], match[2], match[3] or ""
        place = (file.parent / target).resolve()
        if place in SHOWN:
            return f"[{words}](/{SHOWN[place]}{part})"
        if place.is_dir():
            return words
        if place.suffix == ".md" and DOCS not in place.parents:
            return f"{words}, in `{place.relative_to(ROOT).as_posix()}`"
        return f"[{words}]({os.path.relpath(place, page.parent)}{part})"

    return HELP.sub(r"[\g<0>](/reference/commands.md#\1)", LINK.sub(link, text))


def with_settings(lines: list[str], item: object) -> None:
    """Add to a docstring the fields that `option` describes."""
    fields = getattr(item, "__pydantic_fields__", {})
    texts = {name: field.description for name, field in fields.items() if field.description}
    if texts:
        at = next(
            i for i, line in enumerate([*lines, "Raises:"]) if line in ("Raises:", "Example:")
        )
        described = [
            f"    {name}: {text[0].upper()}{text[1:]}. Default: `{fields[name].default!r}`."
            for name, text in texts.items()
        ]
        lines[at:at] = ["", "Args:", *described, ""]


def setup(app: Sphinx) -> None:
    def docstring(
        app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]
    ) -> None:
        if what == "class":
            with_settings(lines, item)
        lines[:] = [PAGE.sub(r":doc:`/\1`", line) for line in lines]

    def signature(
        app: Sphinx, what: str, name: str, item: object, options: object, text: str, result: str
    ) -> tuple[str, str] | None:
        """Hide the bounds of fields that pydantic checks, which would fill half a page; make the
        others Python, so that Sphinx reads them."""
        if what != "class" or not text:
            return None
        checked = hasattr(item, "__pydantic_fields__")
        return "" if checked else text.replace("<factory>", "..."), ""

    def colons(app: Sphinx, tree: nodes.document) -> None:
        """Write `name: meaning`, as docstrings have it, where Sphinx puts two dashes."""
        for text in [node for node in tree.findall(nodes.Text) if node.startswith(" -- ")]:
            text.parent.replace(text, nodes.Text(f": {text[4:]}"))

    def read(app: Sphinx, name: str, content: list[str]) -> None:
        page = Path(app.env.doc2path(name))
        content[0] = with_links(content[0], page, page)

    def include(app: Sphinx, path: Path, name: str, content: list[str]) -> None:
        page = Path(app.env.doc2path(app.env.docname))  # of `name`, MyST leaves out the folder
        content[0] = with_links(content[0], DOCS / path, page)

    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", signature)
    app.connect("doctree-read", colons)
    app.connect("source-read", read)
    app.connect("include-read", include)
