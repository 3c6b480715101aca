"""The process's life: nothing in it ends unnoticed, and when it is told to stop it stops."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

log = logging.getLogger("tortie.agent")

PATIENCE = 4.0
"""Seconds that an orderly end may take: a thread may hang in a disk or a name server, a grpc channel too."""
OURS = ("agent", "bird_config", "felix_like")


class EndedByItself(Exception):
    """Something that should last as long as the process did not: a bug."""


async def lasting(work: Coroutine[Any, Any, None], name: str) -> None:
    """Run what should never return.

    A stray CancelledError, such as that of a call inside, would look like an orderly end to a task group.
    """
    try:
        await work
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
    raise EndedByItself(f"{name} ended by itself")


async def failing_callbacks() -> None:
    """Raise what a callback of ours raises (a timer, a socket's reader), where the loop would only log it.

    Else a bug in the calculation would leave a process that runs and calculates no more.
    """
    loop = asyncio.get_running_loop()
    broken: asyncio.Future[None] = loop.create_future()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "handle" in context and isinstance(error, Exception) and _ours(error) and not broken.done():
            broken.set_exception(error)
        else:
            loop.default_exception_handler(context)

    before = loop.get_exception_handler()
    loop.set_exception_handler(handle)
    try:
        await broken
    finally:
        loop.set_exception_handler(before)


def _ours(error: Exception) -> bool:
    """Whether the callback itself is in this project: the loop's own frame comes first, then that."""
    trace = error.__traceback__
    callback = trace.tb_next if trace is not None else None
    module = callback.tb_frame.f_globals.get("__name__", "") if callback is not None else ""
    return module.partition(".")[0] in OURS


class Stop:
    """The first SIGTERM or SIGINT ends the tasks in order; the second, or PATIENCE, ends the process.

    `leave` ends the process at once, whatever hangs.
    """

    def __init__(self, *, patience: float = PATIENCE, leave: Callable[[int], object] = os._exit) -> None:
        self._patience = patience
        self._leave = leave
        self._asked = False
        self._timer: threading.Timer | None = None

    def on_signals(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        """Call in the running loop."""
        stopped = tuple(tasks)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask, stopped)

    def ask(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        if self._asked:
            log.warning("told to stop a second time: ending at once")
            self._leave(1)
            return
        self._asked = True
        self.hurry()
        for task in tasks:
            task.cancel()

    def hurry(self) -> None:
        """From now on PATIENCE runs. A thread's timer: the loop itself may be what hangs."""
        if self._timer is None:
            self._timer = threading.Timer(self._patience, self._late)
            self._timer.daemon = True
            self._timer.start()

    def done(self) -> None:
        """For tests: the end was in time, and the process lives on."""
        if self._timer is not None:
            self._timer.cancel()

    def _late(self) -> None:
        log.warning("not ended within %g s of being told to: ending at once", self._patience)
        self._leave(1)


Work = Mapping[str, Coroutine[Any, Any, None]]


async def live(stop: Stop, passing: Work, lasting_ones: Work) -> None:
    """All these as tasks of one group, under their names, until `stop` is told to; only `passing` may end."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work, name=name) for name, work in passing.items()]
        tasks += [group.create_task(lasting(work, name), name=name) for name, work in lasting_ones.items()]
        stop.on_signals(tasks)
