"""Keeps the speaker's configuration file as calculated: compose, render, publish, reload."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.keep import Report
from agent.latest import Latest
from bird_config.compose import compose
from bird_config.publish import Publisher
from bird_config.render import Unrenderable, render
from felix_like.model.desired import Desired
from felix_like.model.verdict import No, Refusal

log = logging.getLogger(__name__)

RETRY = 5.0
"""Seconds before a file that was refused or could not be written is tried again."""

Reload = Callable[[Path], Awaitable[str | None]]
"""Tell the speaker to read the file. None: done, or done when it comes back; else the reason."""


class SpeakerConfSink:
    """Owns exabgp.conf. Only a file that the speaker's own parser accepts is put in place."""

    name = "speaker configuration"

    def __init__(self, desired: Latest[Desired], publisher: Publisher, reload: Reload) -> None:
        self._desired = desired
        self._publisher = publisher
        self._reload = reload
        self._untold = True
        """The speaker may not have read the file as it is now: we may have died between file and word."""
        self._told: Desired | None = None
        self._problem: Refusal | None = None
        self._refusals: tuple[Refusal, ...] = ()

    @property
    def wake(self) -> asyncio.Event:
        return self._desired.wake

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Peers the speaker could not be told about, and what is wrong with the file itself."""
        return (*self._refusals, *((self._problem,) if self._problem else ()))

    @property
    def settled(self) -> bool:
        """The speaker was told of the newest peers; it ends the sessions that they change."""
        return self._told is self._desired.peek() and not self._untold

    def tell_again(self) -> None:
        """The speaker did not take the file after all, or may not have: have it read again."""
        self._untold = True
        self.wake.set()

    async def start(self) -> None:
        await asyncio.to_thread(self._publisher.path.parent.mkdir, mode=0o755, parents=True, exist_ok=True)

    async def apply(self) -> Report:
        desired = self._desired.peek()
        if desired is None:
            return Report()
        config = compose(desired)
        self._refusals = config.refusals
        try:
            text = render(config)
        except Unrenderable as error:
            return self._refused(str(error))
        published = await self._publisher.publish(text)
        if isinstance(published, No):
            return self._refused(published.reason)
        if published.changed or self._untold:
            self._untold = True
            problem = await self._reload(self._publisher.path)
            if problem is not None:
                return self._refused(f"the speaker did not take it: {problem}")
            self._untold = False
        self._problem = None
        self._told = desired
        return Report()

    def _refused(self, reason: str) -> Report:
        refusal = Refusal(str(self._publisher.path), reason)
        if refusal != self._problem:
            log.warning("%s", refusal)
        self._problem = refusal
        return Report(retry_after=RETRY)
