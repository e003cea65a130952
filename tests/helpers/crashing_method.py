"""A method that kills its process, in a file without imports from the tests."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rmadapter import Backbone, Fitted, Method, Parameters, Shots
from rmadapter.methods.zero_shot import ZeroShot


@dataclass(frozen=True)
class CrashingMethod(Method):
    """Zero-shot that kills its process in its first `crashes` fits; `fits_folder`: a file a fit."""

    title: ClassVar[str] = "crashing"
    source: ClassVar[str] = "tests/helpers/crashing_method.py"
    fits_folder: str = ""
    crashes: int = 1

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        fits = len(list(Path(self.fits_folder).iterdir()))
        Path(self.fits_folder, str(fits)).touch()
        if fits < self.crashes:
            os.kill(os.getpid(), signal.SIGKILL)
        return ZeroShot().fit(backbone, shots)

    def restore(self, backbone: Backbone, known: object, tensors: object) -> Fitted:
        raise NotImplementedError

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters()
