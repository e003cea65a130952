"""BibTeX entries of the methods' papers."""

from __future__ import annotations

import re
import sys

import pytest

from rmadapter.methods import METHODS, load_method
from rmadapter.methods.citation import bibtex


@pytest.mark.parametrize("name", METHODS)
def test_every_paper_has_an_entry_and_nothing_of_this_project(name: str) -> None:
    method = load_method(name)
    entry = bibtex(name, method.title, method.source)
    own = method.source.startswith("of this project")
    assert bool(entry) == (not own and name != "mail")  # whose source names no author
    if entry:
        assert entry.startswith(f"@misc{{{name},\n  author = {{")
        assert entry.count("{") == entry.count("}")
        assert ("eprint" in entry) == ("arXiv" in method.source.partition(";")[0])


@pytest.mark.parametrize("name", METHODS)
def test_an_entry_has_the_title_that_the_file_of_the_method_quotes(name: str) -> None:
    method = load_method(name)
    entry = bibtex(name, method.title, method.source)
    file = " ".join((sys.modules[type(method).__module__].__doc__ or "").split())
    found = re.search(r"title = \{\{(.*)\}\}", entry)
    cites = re.search(r'et al\., "|[A-Z]\w+(?: & \w+| and \w+)?, "', file)
    if found:
        assert found[1] != method.title
    # the other files quote none, or that of another method
    if found and cites and name != "mmrl-plus-plus":
        assert f'"{found[1]}' in file


def test_an_entry_has_authors_place_and_number() -> None:
    source = "Guo & Gu, CVPR 2025 (arXiv 2503.08497); configs of (arXiv 2501.00001)"
    assert bibtex("mmrl", "MMRL", source) == (
        "@misc{mmrl,\n  author = {Guo and Gu},\n"
        "  title = {{MMRL: Multi-Modal Representation Learning for Vision-Language Models}},\n"
        "  howpublished = {CVPR 2025},\n  eprint = {2503.08497},\n  archiveprefix = {arXiv},\n}\n"
    )
