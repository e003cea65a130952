"""A method whose process dies, for tests of workers: in a file that needs no other one of the
tests."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rmadapter import Backbone, Fitted, Method, Parameters, Shots
from rmadapter.methods.zero_shot import ZeroShot


@dataclass(frozen=True)
class Mortal(Method):
    """Zero-shot, whose process is killed in its first `deaths` fits; all are counted as files in a
    folder."""

    title: ClassVar[str] = "mortal"
    source: ClassVar[str] = "tests/helpers/mortal.py"
    grave: str = ""
    deaths: int = 1

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        dead = len(list(Path(self.grave).iterdir()))
        Path(self.grave, str(dead)).touch()
        if dead < self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return ZeroShot().fit(backbone, shots)

    def restore(self, backbone: Backbone, known: object, tensors: object) -> Fitted:
        raise NotImplementedError

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters()
