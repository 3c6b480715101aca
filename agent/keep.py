"""The reconcile loop, written once: every sink is kept the same way."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)

SLOW_RESYNC = 90.0
"""Seconds between read-backs of a world that said nothing; Felix's RouteRefreshInterval."""
FIRST_BACKOFF = 0.2
LONGEST_BACKOFF = 30.0


@dataclass(frozen=True, slots=True)
class Report:
    """What one turn of a sink achieved."""

    retry_after: float | None = None
    """Seconds after which what did not succeed is worth another try; None: all is as wanted."""


class Sink(Protocol):
    """A part of the world that is kept as wanted."""

    @property
    def name(self) -> str: ...

    @property
    def wake(self) -> asyncio.Event:
        """Set whenever `apply` has something to do; `keep` clears it before each turn."""

    async def start(self) -> None:
        """Read the world back; called first, after a failure and on the slow timer. Raises OSError."""

    async def apply(self) -> Report:
        """Make the world as wanted, or as much of it as can be. Raises OSError for a lost world."""


def _nobody(_name: str, _problem: str | None) -> None:
    pass


async def keep(
    sink: Sink,
    *,
    resync: float = SLOW_RESYNC,
    first_backoff: float = FIRST_BACKOFF,
    longest_backoff: float = LONGEST_BACKOFF,
    tell: Callable[[str, str | None], None] = _nobody,
) -> None:
    """Run a sink for ever: on its own wake, after a failure with backoff, and on a slow timer.

    A sink that fails is started again from what the world says; it never ends its siblings. `tell` hears
    the sink's name and what is wrong with it as a whole, None when it works again. Times are seconds.
    """
    backoff = first_backoff
    clock = asyncio.get_running_loop().time
    read_back_at = 0.0
    started = False
    trouble: str | None = None
    while True:
        try:
            if not started:
                read_back_at = clock() + resync * random.uniform(0.9, 1.1)
                await sink.start()
            sink.wake.clear()
            report = await sink.apply()
        except (Exception, asyncio.CancelledError) as problem:
            # The broad catch is the sink's bulkhead: its siblings and the forwarding go on.
            if _told_to_end(problem):
                raise
            before, trouble = trouble, sentence(problem)
            if trouble != before:
                _log(sink.name, problem, trouble)
                tell(sink.name, trouble)
            started = False
            await asyncio.sleep(backoff * random.uniform(0.8, 1.2))
            backoff = min(backoff * 2, longest_backoff)
            continue
        backoff = first_backoff
        if trouble is not None:
            trouble = None
            log.info("%s: works again", sink.name)
            tell(sink.name, None)
        left = max(read_back_at - clock(), 0.0)
        pause = left if report.retry_after is None else min(left, report.retry_after)
        try:
            async with asyncio.timeout(pause):
                await sink.wake.wait()
        except TimeoutError:
            pass
        started = clock() < read_back_at


def sentence(problem: BaseException) -> str:
    """What the operator reads of an exception."""
    return str(problem) or type(problem).__name__


def _told_to_end(problem: BaseException) -> bool:
    """A CancelledError that nobody asked this task for comes from something the sink waited for."""
    task = asyncio.current_task()
    return isinstance(problem, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _log(name: str, problem: BaseException, said: str) -> None:
    """The world's refusals in a line; bugs of ours with where they are. Each once until it works again."""
    if isinstance(problem, OSError):
        log.warning("%s: %s; trying again", name, said)
    else:
        log.error("%s: %s; trying again", name, said, exc_info=problem)
