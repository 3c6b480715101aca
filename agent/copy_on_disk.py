"""A copy on disk of what is followed, for the next start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from felix_like.datastore import cache
from felix_like.datastore.watch import Known

log = logging.getLogger(__name__)

SAVE_DELAY: Final = 2.0
"""Seconds after a change before the copy goes to disk: a burst is one write."""


class CopyOnDisk:
    """Keeps a file up to date: a little after each change, at once where there is none yet, and at an orderly
    end, so that a process that lives for a second leaves what it knew. Written whole or not at all.

    `name` is what an operator calls it. `take`: what makes, in a thread, what is to be written, from what is
    known when `take` is called; None: nothing that should outlive the process. `wall` is the time of day.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        take: Callable[[], Callable[[], Known] | None],
        wall: Callable[[], float],
    ) -> None:
        self._file = file
        self._name = name
        self._take = take
        self._wall = wall
        self._changed = asyncio.Event()
        self._failure = ""

    def load(self) -> Known | None:
        """What an earlier process left; None: nothing that can be used. Not on the loop: it reads a disk."""
        for left in self._file.parent.glob(f".{self._file.name}.*"):
            left.unlink(missing_ok=True)  # half a file of an agent that was killed while it wrote
        loaded = cache.load(self._file)
        if loaded.reason:
            log.warning("%s: %s", self._name, loaded.reason)
        return loaded.known

    def changed(self) -> None:
        """What is in the file is no longer all."""
        self._changed.set()

    async def run(self) -> None:
        """For ever. A disk that refuses is said, and stops nothing."""
        try:
            while True:
                await self._changed.wait()
                if self._failure or self._file.exists():
                    await asyncio.sleep(SAVE_DELAY)
                await self._save()
        finally:
            if self._changed.is_set():
                await self._save()

    async def _save(self) -> None:
        self._changed.clear()
        made = self._take()
        if made is None:
            return
        writing = asyncio.ensure_future(asyncio.to_thread(self._write, made))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # Its thread goes on; what is saved at the end must come after it.
            await asyncio.wait((writing,))
            raise

    def _write(self, made: Callable[[], Known]) -> None:
        octets = cache.encode(made(), self._wall())
        try:
            cache.write(self._file, octets)
            self._failure = ""
        except OSError as error:
            # The whole error names a temporary file, each time another one.
            reason = error.strerror or str(error)
            if reason != self._failure:
                self._failure = reason
                log.warning("%s: %s cannot be written: %s", self._name, self._file, reason)
