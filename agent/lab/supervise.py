"""The lab's supervisor: keeps etcd, the agents and the speakers running, each in its namespace.

Run as `python -m agent.lab.supervise FOLDER`. It is told what to do over a unix socket in the folder, one
JSON line each way (see `control.py` for the words). SIGTERM ends every child, then itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.lab.unit import Process, Unit

LOG_LIMIT = 16 << 20
"""Octets; a longer log is cut to nothing, as the folder is often in memory."""
REQUEST_LIMIT = 1 << 20


class Supervisor:
    """All processes of one lab, by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, Process] = {}
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or a request to end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        path = self._folder / "supervisor.sock"
        path.unlink(missing_ok=True)
        old = os.umask(0o177)
        server = await asyncio.start_unix_server(self._serve, path, limit=REQUEST_LIMIT)
        os.umask(old)
        async with server:
            watch = asyncio.create_task(self._watch_logs(), name="log sizes")
            await self._ending.wait()
            watch.cancel()
            await asyncio.gather(*(process.stop() for process in self._processes.values()))
        path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                answer = await self._answer(json.loads(await reader.readline()))
            except (ValueError, KeyError, TypeError, OSError) as error:
                answer = {"error": str(error) or type(error).__name__}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        word = request["do"]
        if word == "list":
            return {"pid": os.getpid(), "units": [process.report() for process in self._processes.values()]}
        if word == "add":
            for raw in request["units"]:
                self._add(Unit(**raw))
            return {}
        await self._do(word, [self._named(name) for name in request["names"]], request)
        return {}

    async def _do(self, word: str, chosen: list[Process], request: Mapping[str, Any]) -> None:
        if word == "signal":
            for process in chosen:
                process.signal(signal.Signals(request["signal"]))
        elif word == "start":
            for process in chosen:
                process.start()
        elif word in ("stop", "remove"):
            await asyncio.gather(*(process.stop() for process in chosen))
            for process in chosen if word == "remove" else ():
                del self._processes[process.unit.name]
        else:
            raise ValueError(f"unknown request {word!r}")

    def _add(self, unit: Unit) -> None:
        if unit.name in self._processes:
            raise ValueError(f"{unit.name} exists already")
        process = Process(unit, clock=time.time, chance=random.random)
        self._processes[unit.name] = process
        process.start()

    def _named(self, name: str) -> Process:
        if name not in self._processes:
            raise ValueError(
                f"there is no process {name!r}; there are {', '.join(self._processes) or 'none'}"
            )
        return self._processes[name]

    async def _watch_logs(self) -> None:
        while True:
            await asyncio.sleep(10)
            for process in self._processes.values():
                process.bound_log(LOG_LIMIT)


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "supervisor.pid").write_text(f"{os.getpid()}\n")
    asyncio.run(Supervisor(folder).run())


if __name__ == "__main__":
    main()
