"""sd_notify(3) without libsystemd: readiness, a status line, and the watchdog fed by the event loop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from typing import Final

from felix_like.model.verdict import Verdict

PATIENCE: Final = 10.0
"""Seconds after which a start counts as one even if not everything is in sync: what is ordered after us must
not wait for a datastore that is away, and systemd would end us at its start timeout."""
_STATUS_EVERY: Final = 10.0
_READY_EVERY: Final = 0.25


class Notifier:
    """Says things to the service manager; does nothing where there is none."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        text = environment.get("WATCHDOG_USEC", "")
        self.watchdog = int(text) / 1e6 if for_us and text.isascii() and text.isdigit() else 0.0
        """Seconds after which a silent process is ended; 0: never."""

    def __bool__(self) -> bool:
        return bool(self._address)

    def say(self, **words: str) -> None:
        """Best effort: a manager that does not listen stops nothing."""
        if not self._address:
            return
        lines = "\n".join(f"{name}={' '.join(value.split())}" for name, value in words.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto(lines.encode("utf-8", "replace"), self._address)
        except OSError:
            pass


async def keep_told(
    notifier: Notifier,
    *,
    ready: Callable[[], Verdict],
    sentence: Callable[[], str],
    patience: float = PATIENCE,
    status_every: float = _STATUS_EVERY,
) -> None:
    """For ever: READY=1 once ready or after `patience` seconds, then STATUS and WATCHDOG. Cheap when nobody
    listens."""
    clock = asyncio.get_running_loop().time
    started = next_status = clock()
    said_ready = False
    said = ""
    while True:
        now, words = clock(), {}
        if said_ready and notifier.watchdog:
            words["WATCHDOG"] = "1"
        elif not said_ready and (ready() or now >= started + patience):
            said_ready = True
            words["READY"] = "1"
            next_status = now
        if notifier and now >= next_status:
            next_status = now + status_every
            verdict = ready()
            status = sentence() if verdict else f"{verdict.reason}; {sentence()}"
            if status != said:
                words["STATUS"] = said = status
        if words:
            notifier.say(**words)
        if said_ready and not notifier:
            await asyncio.get_running_loop().create_future()
        pause = min(status_every, notifier.watchdog / 3 or status_every)
        await asyncio.sleep(pause if said_ready else min(pause, _READY_EVERY))
