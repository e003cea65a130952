"""Decide what is answered for an image. NumPy only, since exports hold these files."""

from rmadapter.answers.answer import Answer
from rmadapter.answers.decider import Decider, read_decider, write_decider
from rmadapter.answers.held_out import HeldOutFacts
from rmadapter.answers.rejection import RejectionScore
from rmadapter.answers.sets import Calibration, parse_share
from rmadapter.answers.taxonomy import Taxonomy

__all__ = [
    "Answer",
    "Calibration",
    "Decider",
    "HeldOutFacts",
    "RejectionScore",
    "Taxonomy",
    "parse_share",
    "read_decider",
    "write_decider",
]
