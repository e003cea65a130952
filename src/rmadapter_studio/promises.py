"""What the page says of an image beyond its classes, at each share that it offers."""

from __future__ import annotations

import numpy as np
from PIL import Image

from rmadapter.artifacts import Saved
from rmadapter.runs import examine


def look(saved: Saved, image: Image.Image) -> tuple[np.ndarray, dict[str, object]]:
    """Return the probabilities [C] of an image, and what else is said of it.

    That is at each error that can be promised the classes that may be right, what they decide, and
    the parent that answers for several of them, "" if none does; at each share of images that may
    be turned away whether it is of the classes; and the levels of a taxonomy, as `Answer.json` has
    them.
    """
    table, far = examine(saved.fitted, [image], False, saved.names)
    decider = saved.decider()
    possible = decider.possible()
    [plain] = decider.answer(table)
    sets: list[dict[str, object]] = []
    for error in possible["errors"]:
        [answer] = decider.at(error=error).answer(table)
        decision, parent = answer.decision(), answer.parent
        sets.append(
            {"error": error, "set": [*answer.labels], "decision": decision, "parent": parent}
        )
    familiar: list[dict[str, object]] = []
    for share in possible["shares"]:
        [is_familiar] = decider.at(reject_rate=share).familiar(table, far).tolist()
        familiar.append({"share": share, "familiar": is_familiar})
    levels = plain.json().get("levels", [])
    return table[0], {"sets": sets, "familiar": familiar, "levels": levels}
