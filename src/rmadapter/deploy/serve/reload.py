"""Reload a run that changes on disk; the old one answers meanwhile, and goes on if loading fails."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping

from rmadapter.deploy.serve.model import Wish, open_served
from rmadapter.deploy.serve.service import Service
from rmadapter.errors import UserError
from rmadapter.support.checksums import sign
from rmadapter.support.terminal import escape

EVERY = 2.0  # seconds between two looks


class Watch:
    """wishes: of the models, by name."""

    def __init__(self, service: Service, wishes: Mapping[str, Wish], every: float = EVERY) -> None:
        self._service, self._wishes, self._every = service, wishes, every
        self._loaded = {name: served.sign for name, served in service.models.items()}
        self._last = dict(self._loaded)
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Reload all models, whether or not they look changed."""
        self._asked.set()

    async def run(self) -> None:
        """Look for changes until cancelled."""
        while True:
            forced = True
            try:
                await asyncio.wait_for(self._asked.wait(), self._every)
            except asyncio.TimeoutError:
                forced = False
            self._asked.clear()
            await self.look(forced)

    async def look(self, forced: bool = False) -> None:
        """Reload what has changed; it is complete if it has not changed since the last look."""
        for name, wish in self._wishes.items():
            found = sign(wish.folder)
            settled, self._last[name] = found == self._last[name], found
            if forced or (found is not None and settled and found != self._loaded[name]):
                self._loaded[name] = found  # even if loading fails: this is reported only once
                await self._load(name, wish)

    async def _load(self, name: str, wish: Wish) -> None:
        try:
            served = await asyncio.to_thread(open_served, wish)
        except Exception as error:  # whatever is wrong with the new one, keep the old one
            reason = (
                str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            )
            self._tell(name, "refused", f"not reloaded, the old one keeps answering: {reason}")
        else:
            self._service.put(name, served)
            self._tell(name, "loaded", "reloaded")

    def _tell(self, name: str, outcome: str, text: str) -> None:
        self._service.counters.reloads.labels(name, outcome).inc()
        print(
            "rmadapter:", escape(" ".join(f"{name}: {text}".split())), file=sys.stderr, flush=True
        )
