"""A real mosquitto on loopback: started, killed, frozen at will, and a reader of what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt

from tests.support.etcd import HOST, free_port

OPEN = "allow_anonymous true"


@dataclass
class Mosquitto:
    """One broker. `start` and `kill` may alternate; what was retained dies with it."""

    directory: Path
    port: int
    config: tuple[str, ...] = (OPEN,)
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"mqtt://{HOST}:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "mosquitto.log").read_text()

    def start(self) -> None:
        assert self.process is None, "already running"
        # As root it would become another user, who may not read the test's files.
        user = ["user root"] if os.geteuid() == 0 else []
        lines = [*user, "persistence false", f"listener {self.port} {HOST}", *self.config, ""]
        (self.directory / "mosquitto.conf").write_text("\n".join(lines))
        with (self.directory / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["mosquitto", "-v", "-c", str(self.directory / "mosquitto.conf")], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while True:
            assert self.process.poll() is None, self.log
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1):
                return
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def kill(self) -> None:
        if self.process is not None:
            self.thaw()
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def mosquitto(*config: str, start: bool = True) -> Iterator[Mosquitto]:
    """A broker in a temporary directory of its own; `{directory}` in a line of `config` is replaced."""
    directory = Path(tempfile.mkdtemp(prefix="tortie-mqtt-"))
    broker = Mosquitto(directory, free_port())
    broker.config = tuple(line.format(directory=directory) for line in config) or (OPEN,)
    try:
        if start:
            broker.start()
        yield broker
    finally:
        broker.kill()
        shutil.rmtree(directory, ignore_errors=True)


@dataclass
class Reader:
    """What a subscriber hears: the newest payload per topic, and everything in order."""

    retained: dict[str, Any] = field(default_factory=dict)
    """Topics whose message was there before us."""
    newest: dict[str, Any] = field(default_factory=dict)
    every: list[tuple[str, Any]] = field(default_factory=list)

    def said(self, kind: str, **fields: Any) -> bool:
        """Whether the newest message on a topic that ends so has these fields."""
        found = [payload for topic, payload in self.newest.items() if topic.endswith(kind)]
        return any(all(payload.get(name) == value for name, value in fields.items()) for payload in found)

    def events(self) -> list[dict[str, Any]]:
        return [payload for topic, payload in self.every if topic.endswith("/events")]


@contextlib.asynccontextmanager
async def reading(broker: Mosquitto, **client: Any) -> Any:
    """Subscribe to everything."""
    reader = Reader()

    async def read(connected: aiomqtt.Client) -> None:
        async for message in connected.messages:
            topic = str(message.topic)
            assert isinstance(message.payload, bytes)
            payload = json.loads(message.payload) if message.payload else {}
            if message.retain:
                reader.retained[topic] = payload
            reader.newest[topic] = payload
            reader.every.append((topic, payload))

    async with aiomqtt.Client(HOST, broker.port, protocol=aiomqtt.ProtocolVersion.V5, **client) as connected:
        await connected.subscribe("#", qos=1)
        task = asyncio.create_task(read(connected))
        try:
            yield reader
        finally:
            task.cancel()
            await asyncio.wait((task,))
