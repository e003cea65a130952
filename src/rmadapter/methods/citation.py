"""Cite the papers of methods in BibTeX, by what their sources say."""

from __future__ import annotations

import re

# "Zhou et al., IJCV 2022 (arXiv 2109.01134); ..." and "ZS-LP of Silva-Rodriguez et al., ..."
PAPER = re.compile(
    r"(?:[\w-]+ of )?(?P<authors>[A-Z][\w-]+(?: et al\.| (?:and|&) [\w ]+)?), "
    r"(?P<venue>[\w .-]*?\d\d)(?![.\d])"
)
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")


def bibtex(name: str, title: str, source: str) -> str:
    """Return an entry for the paper of a method; "" for a method of this project, and for a source
    that names no authors.

    A source names the first author and the place of publication, but not the paper's title, in
    whose place the entry has the method's.

    Args:
        name: Name of the method, the entry's key.
        title: Title of the method.
        source: Source of the method.
    """
    paper = PAPER.match(source)
    if paper is None:
        return ""
    authors = paper["authors"].replace(" et al.", " and others").replace("&", "and")
    fields = {"author": authors, "title": f"{{{title}}}", "howpublished": paper["venue"]}
    if number := ARXIV.search(source.partition(";")[0]):
        fields |= {"eprint": number[1], "archiveprefix": "arXiv"}
    lines = [f"  {field} = {{{text}}}," for field, text in fields.items()]
    return "\n".join([f"@misc{{{name},", *lines, "}"]) + "\n"
