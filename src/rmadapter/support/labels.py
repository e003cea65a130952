"""Which texts a label of a class and a parent of labels may be: one rule for tables, folders, typed
names, runs and exports, so that what a run's files refuse is refused before a training.

`data.names` applies it where data is read, `data.label_files` to parents, `artifacts.value` to runs
and `answers.decider` and `export.runtime` to exports, which hold this file.
"""

from __future__ import annotations

import re

from rmadapter.errors import is_text
from rmadapter.support.files import inert

MAX_LABELS = 100_000  # classes of a model, and its names with a parent
MAX_LABEL_LENGTH = 1000  # characters
MAX_TYPED_LENGTH = 100  # characters of a name that a person types
NOT_TEXT = "is not UTF-8 or contains a NUL"
# control characters, and marks that change the direction of what follows
HIDDEN_MARK = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def label_fault(label: str) -> str:
    """Return why a text cannot be a label or a parent; "" if it can."""
    if not is_text(label):
        return NOT_TEXT
    if not label.strip():
        return "is empty"
    if len(label) > MAX_LABEL_LENGTH:
        return f"has more than {MAX_LABEL_LENGTH:,} characters"
    return ""


def typed_fault(label: str) -> str:
    """Return why a person cannot name a class so: as `label_fault`, and for what a spreadsheet
    takes for a formula or nobody sees."""
    if len(label) > MAX_TYPED_LENGTH:
        return f"has more than {MAX_TYPED_LENGTH} characters"
    if HIDDEN_MARK.search(label) or inert(label) != label:
        return "has a hidden mark, or begins with =, +, - or @, as formulas of spreadsheets do"
    return label_fault(label)


def parse_labels(values: object) -> list[str]:
    """Return the labels of an export, which may come from a stranger. Raises ValueError for
    anything but texts and whole numbers, each once."""
    if not isinstance(values, list) or not {type(value) for value in values} <= {str, int}:
        raise ValueError("no list of labels")
    labels = [*map(str, values)]
    if len(labels) > MAX_LABELS or any(map(label_fault, labels)):
        raise ValueError("too many labels, or one that is empty, very long or no text")
    if len({*labels}) < len(labels):
        raise ValueError("a label appears twice")
    return labels
