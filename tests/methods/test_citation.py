"""BibTeX entries of the methods' papers."""

from __future__ import annotations

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


def test_an_entry_has_authors_place_and_number() -> None:
    source = "Guo & Gu, CVPR 2025 (arXiv 2503.08497); configs of (arXiv 2501.00001)"
    assert bibtex("mmrl", "MMRL", source) == (
        "@misc{mmrl,\n  author = {Guo and Gu},\n  title = {{MMRL}},\n"
        "  howpublished = {CVPR 2025},\n  eprint = {2503.08497},\n  archiveprefix = {arXiv},\n}\n"
    )
