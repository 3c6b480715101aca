"""One supervised process: started in its namespace, started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.lab.backoff import Backoff
from agent.lab.caller import share_with_caller

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""
SOCKET_EVERY, SOCKET_LOOKS = 0.1, 100
"""Seconds between looks for a socket that a process makes after its start, and how many at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What to run, and where."""

    name: str
    """`etcd`, `node-1/agent`, `node-1/speaker`."""
    command: list[str]
    namespace: str
    """Empty: where the supervisor itself runs."""
    cwd: str
    log: str
    env: dict[str, str] = field(default_factory=dict)
    socket: str = ""
    """One that it makes for the host: open to whoever called sudo, and cleared away before each start, as
    etcd 3.4 does not start where that of a killed life lies."""

    def argv(self) -> list[str]:
        if not self.namespace:
            return self.command
        # nsenter replaces itself by the command, so the pid is the command's; and unlike `ip netns exec`
        # it leaves the mounts alone.
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *self.command]


class Process:
    """A unit's life. Clock and chance come in; ends are seen through a pidfd (Linux 5.3), without polling."""

    def __init__(self, unit: Unit, *, clock: Callable[[], float], chance: Callable[[], float]) -> None:
        self.unit = unit
        self._clock = clock
        self._chance = chance
        self._backoff = Backoff()
        self._child: subprocess.Popen[bytes] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()
        self._gone.set()
        self._wanted = False
        self._since = clock()
        self._next_start = 0.0
        self._deaths = 0
        self._last_end = ""

    def start(self) -> None:
        """Start it unless it runs; a pending retry is taken now."""
        self._wanted = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._child is None:
            self._spawn()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL after GRACE; returns when it is gone."""
        self._wanted = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._child is None:
            return
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        try:
            await asyncio.wait_for(self._gone.wait(), GRACE)
        except TimeoutError:
            self._note(f"did not end within {GRACE:g} s of SIGTERM: killed")
            self.signal(signal.SIGKILL)
            await self._gone.wait()

    def signal(self, number: signal.Signals) -> None:
        """Signal the process and what it started. Raises ValueError when it does not run."""
        if self._child is None:
            raise ValueError(f"{self.unit.name} does not run")
        os.killpg(self._child.pid, number)

    def report(self) -> dict[str, Any]:
        """Its state for `lab status`: times in seconds since the epoch."""
        state = "running" if self._child else "waiting" if self._retry else "stopped"
        return {
            "name": self.unit.name,
            "state": state,
            "pid": self._child.pid if self._child else 0,
            "since": self._since,
            "deaths": self._deaths,
            "last_end": self._last_end,
            "next_start": self._next_start if state == "waiting" else 0.0,
            "log": self.unit.log,
        }

    def bound_log(self, limit: int) -> None:
        """Empty the log when it has more octets; the process appends, so it goes on at its start."""
        log = Path(self.unit.log)
        with contextlib.suppress(OSError):
            if log.stat().st_size > limit:
                log.write_text(f"(emptied by the lab at {limit} octets)\n")

    def _spawn(self) -> None:
        self._retry = None
        self._since = self._clock()
        try:
            if self.unit.socket:
                Path(self.unit.socket).unlink(missing_ok=True)
            with Path(self.unit.log).open("ab") as log:
                child = subprocess.Popen(
                    self.unit.argv(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.unit.cwd,
                    env=self.unit.env,
                    start_new_session=True,
                )
        except OSError as error:
            self._ended(f"could not start: {error}")
            return
        descriptor = os.pidfd_open(child.pid)
        self._child = child
        self._gone.clear()
        asyncio.get_running_loop().add_reader(descriptor, self._exited, descriptor)
        if self.unit.socket:
            self._share(child, SOCKET_LOOKS)

    def _share(self, child: subprocess.Popen[bytes], looks: int) -> None:
        """Give the socket to the caller once it is there."""
        if self._child is child and looks and not share_with_caller(Path(self.unit.socket)):
            asyncio.get_running_loop().call_later(SOCKET_EVERY, self._share, child, looks - 1)

    def _exited(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        assert self._child is not None
        status = self._child.wait()
        self._child = None
        self._gone.set()
        self._ended(f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}")

    def _ended(self, how: str) -> None:
        now = self._clock()
        lived, self._since = now - self._since, now
        if not self._wanted:
            return
        self._deaths += 1
        self._last_end = how
        delay = self._backoff.died(lived, self._chance())
        self._next_start = now + delay
        self._note(f"ended: {how}; it starts again in {delay:.1f} s")
        self._retry = asyncio.get_running_loop().call_later(delay, self._spawn)

    def _note(self, text: str) -> None:
        with Path(self.unit.log).open("a") as log:
            log.write(f"(lab) {self.unit.name} {text}\n")
