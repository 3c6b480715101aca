"""A real `tortie-speaker` in a namespace, and an agent's link to it that remembers what it heard."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from agent.sinks.speaker import LinkLost, SpeakerLink
from agent.speaker.protocol import (
    EndOfRib,
    Event,
    Learned,
    PeerDown,
    PeerGone,
    PeerState,
    PeerUp,
    ReplayBegin,
    ReplayEnd,
    Withdrawn,
)
from felix_like.model.address import Address, Prefix
from felix_like.model.path import Attributes
from tests.support.netns import Namespace

ROOT = Path(__file__).parents[2]


def neighbor(
    local: str,
    peer: str,
    *,
    local_as: int = 64512,
    peer_as: int = 64512,
    router_id: str = "192.0.2.1",
    hold: int = 90,
    passive: bool = False,
    password: str | None = None,
    graceful: int = 120,
    description: str = "a peer",
    listen: int = 179,
    connect: int = 179,
) -> str:
    """A neighbor block in the renderer's layout."""
    lines = [
        f'description "{description}";',
        f"router-id {router_id};",
        f"local-address {local};",
        f"local-as {local_as};",
        f"peer-as {peer_as};",
        f"hold-time {hold};",
        f"passive {'true' if passive else 'false'};",
        f"listen {listen};",
        f"connect {connect};",
        "manual-eor true;",
        f"family {{ {'ipv6' if ':' in peer else 'ipv4'} unicast; }}",
        "capability { asn4 enable; route-refresh enable; "
        + (f"graceful-restart {graceful}; " if graceful else "")
        + "}",
    ]
    if password is not None:
        lines.append(f'md5-password "{password}";')
    return f"neighbor {peer} {{\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


class SpeakerProcess:
    """`tortie-speaker` as a process; dies with its namespace."""

    def __init__(self, where: Namespace, folder: Path, *blocks: str, options: tuple[str, ...] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._where = where
        self._options = options
        self.config = folder / "exabgp.conf"
        self.socket = folder / "speaker.sock"
        self.log_path = folder / "speaker.log"
        self.configure(*blocks)
        self.process = self.start()

    def configure(self, *blocks: str) -> None:
        self.config.write_text("template { }\n" + "\n".join(blocks))

    def start(self) -> subprocess.Popen[Any]:
        with self.log_path.open("a") as log:
            self.process = self._where.start(
                sys.executable,
                "-m",
                "agent.speaker.worker",
                "--config",
                str(self.config),
                "--socket",
                str(self.socket),
                "--log-level",
                "debug",
                *self._options,
                cwd=ROOT,
                stderr=log,
            )
        return self.process

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(10)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def memory(self) -> int:
        """Resident KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100


class Listener:
    """An agent's ear: the state that the events add up to, and the events."""

    def __init__(self, socket: Path) -> None:
        self.events: list[Event | LinkLost] = []
        self.paths: dict[Address, dict[Prefix, Attributes]] = {}
        self.states: dict[Address, PeerState] = {}
        self.replayed = 0
        self.link = SpeakerLink(socket, self.hear)
        self._task: asyncio.Task[None] | None = None

    def hear(self, event: Event | LinkLost) -> None:
        if not isinstance(event, Learned | Withdrawn):
            self.events.append(event)
        match event:
            case ReplayBegin():
                self.paths = {}
                self.states = {}
            case ReplayEnd():
                self.replayed += 1
            case PeerState():
                self.states[event.peer] = event
            case PeerGone():
                self.states.pop(event.peer, None)
            case PeerUp() | PeerDown():
                self.paths[event.peer] = {}
            case Learned():
                self.paths.setdefault(event.peer, {}).update(
                    dict.fromkeys(event.nlri.prefixes, event.attributes)
                )
            case Withdrawn():
                for prefix in event.nlri.prefixes:
                    self.paths.get(event.peer, {}).pop(prefix, None)
            case _:
                pass

    def learned(self, peer: str) -> set[str]:
        return {str(prefix) for prefix in self.paths.get(Address.parse(peer), {})}

    def up(self, *peers: str) -> bool:
        return all(Address.parse(peer) in self.link.up_peers for peer in peers)

    def of(self, kind: type[Any], peer: str | None = None) -> list[Any]:
        return [
            event
            for event in self.events
            if isinstance(event, kind) and (peer is None or event.peer == Address.parse(peer))
        ]

    def end_of_rib(self, peer: str) -> bool:
        return bool(self.of(EndOfRib, peer))

    async def until(self, condition: Callable[[], bool], seconds: float = 20, what: str = "") -> None:
        """Wait for a state. Fails with what was heard last."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what or 'condition'} not reached; heard last: {self.events[-12:]}")
            await asyncio.sleep(0.02)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.link.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def adverts(peer: str, table: dict[str, Attributes | None]) -> dict[Address, dict[Prefix, Attributes | None]]:
    return {Address.parse(peer): {Prefix.parse(prefix): value for prefix, value in table.items()}}


def via(next_hop: str, **more: Any) -> Attributes:
    return Attributes(next_hop=Address.parse(next_hop), **({"local_pref": 100} | more))
