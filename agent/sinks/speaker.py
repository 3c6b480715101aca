"""The agent's end of the link to `tortie-speaker`.

The link may break and come back at any time: the speaker replays what it learned, and we say what it
should advertise again; what it holds beyond that is withdrawn, the rest is not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from agent.sinks.outbox import Adverts, Outbox
from agent.speaker.protocol import (
    MAX_LINE,
    VERSION,
    Ack,
    Command,
    ConfigApplied,
    Event,
    Hello,
    Lines,
    Nack,
    PeerDown,
    PeerGone,
    PeerUp,
    ProtocolError,
    Reload,
    ReplayBegin,
    decode_event,
    encode,
)
from felix_like.model.address import Address

_logger = logging.getLogger("tortie.speaker-link")

WINDOW = 32
"""Commands that may wait for their acknowledgement."""
FIRST_RETRY, LONGEST_RETRY = 0.05, 2.0
_READ = 256 * 1024
_EVENTS = 64
"""Events handed on per turn of the loop."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[Path], Awaitable[Streams]]


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The speaker is gone or unreachable; its sessions may live on. A replay follows when it is back."""

    reason: str


@dataclass(frozen=True, slots=True)
class LinkState:
    """For status."""

    state: Literal["connected", "down"]
    since: float
    """Seconds since the epoch."""
    pid: int | None = None
    exabgp: str | None = None
    boot: str | None = None
    reason: str = ""


async def _connect(path: Path) -> Streams:
    return await asyncio.open_unix_connection(path, limit=MAX_LINE)


class SpeakerLink:
    """Keeps the speaker told and hands its events on, in order.

    `on_event` is called in the loop with every event of `protocol` except acknowledgements, and with
    `LinkLost`. An exception in it is a bug of ours and ends `run`.
    """

    name = "speaker"

    def __init__(
        self,
        path: Path,
        on_event: Callable[[Event | LinkLost], None],
        *,
        clock: Callable[[], float] = time.time,
        connect: Connect = _connect,
        window: int = WINDOW,
    ) -> None:
        self._path = path
        self._on_event = on_event
        self._clock = clock
        self._connect = connect
        self._window = window
        self._outbox = Outbox()
        self._unacked: deque[int] = deque()
        self._work = asyncio.Event()
        self._replies: list[asyncio.Future[ConfigApplied]] = []
        self._asked: deque[tuple[Reload, list[asyncio.Future[ConfigApplied]]]] = deque()
        self._conf: str | None = None
        self._up: set[Address] = set()
        self.state = LinkState("down", clock(), reason="not connected yet")

    @property
    def up_peers(self) -> frozenset[Address]:
        """Peers whose session is up, as last heard; after `ReplayEnd` exactly those of the replay."""
        return frozenset(self._up)

    @property
    def advertised(self) -> Mapping[Address, int]:
        """Prefixes that each peer should have from us."""
        return {peer: len(table) for peer, table in self._outbox.wanted.items()}

    @property
    def settled(self) -> bool:
        """Connected, and everything said so far was carried out."""
        return self.state.state == "connected" and not self._outbox.pending() and not self._unacked

    def advertise(self, changes: Adverts) -> None:
        """Merge Adj-RIB-Out changes: attributes to advertise, None to withdraw. Never waits."""
        self._outbox.merge(changes)
        self._work.set()

    def full_sync_done(self) -> None:
        """Everything was advertised once: from now on the speaker holds that and nothing else."""
        self._outbox.finish_sync()
        self._work.set()

    def limits(self, peers: Mapping[Address, int], default: int | None = None) -> None:
        """Prefixes at most per peer; the speaker ceases a session that has more."""
        self._outbox.limit(peers, default)
        self._work.set()

    async def reload(self, path: Path) -> ConfigApplied:
        """Have the speaker read a configuration. Waits while it is away; a refused file is in `.error`."""
        reply: asyncio.Future[ConfigApplied] = asyncio.get_running_loop().create_future()
        self._replies.append(reply)
        self._conf = str(path)
        self._outbox.reload(self._conf)
        self._work.set()
        return await reply

    async def run(self) -> None:
        """Connect, talk, connect again; ends only by being cancelled or by a bug in `on_event`."""
        retry = FIRST_RETRY
        while True:
            reason = "the speaker closed the connection"
            said_hello = False
            try:
                reader, writer = await self._connect(self._path)
                said_hello = await self._talk(reader, writer)
            except OSError as error:
                reason = f"cannot reach {self._path}: {error.strerror or error}"
            except ProtocolError as error:
                reason = str(error)
                _logger.error("%s; connecting again", reason)
            said_hello = said_hello or self.state.state == "connected"
            self._lost(reason)
            retry = FIRST_RETRY if said_hello else min(retry * 2, LONGEST_RETRY)
            await asyncio.sleep(retry)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One connection, until the speaker closes it. Raises ProtocolError, OSError."""
        lines = Lines()
        sender: asyncio.Task[None] | None = None
        try:
            while octets := await reader.read(_READ):
                for at, line in enumerate(lines.feed(octets), 1):
                    event = decode_event(line)
                    if sender is None:
                        self._greeted(event)
                        sender = asyncio.create_task(self._send(writer), name="speaker link: send")
                    self._heard(event)
                    if at % _EVENTS == 0:
                        await asyncio.sleep(0)
                if sender is not None and sender.done():
                    sender.result()
            return sender is not None
        finally:
            if sender is not None:
                sender.cancel()
                # Not `await sender`: its end must not be taken for ours, nor ours be lost in it.
                await asyncio.wait([sender])
                if not sender.cancelled():
                    sender.exception()  # seen: a broken pipe is the reader's news, too
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _greeted(self, event: Event) -> None:
        if not isinstance(event, Hello):
            raise ProtocolError("the speaker did not say hello")
        if event.protocol != VERSION:
            raise ProtocolError(
                f"the speaker speaks version {event.protocol} of the protocol, we speak {VERSION}: "
                "install agent and speaker of the same release"
            )
        if self._replies and self._conf is not None:
            self._outbox.reload(self._conf)
        self._outbox.connected()
        self._work.set()
        self.state = LinkState("connected", self._clock(), event.pid, event.exabgp, event.boot)

    def _heard(self, event: Event) -> None:
        match event:
            case Ack():
                self._acknowledged(event.seq)
                return
            case Nack():
                _logger.error("the speaker could not carry out a command: %s", event.error)
                if self._asked and self._asked[0][0].seq == event.seq:
                    self._answer(ConfigApplied(self._asked[0][0].path, error=event.error))
                self._acknowledged(event.seq)
                return
            case ConfigApplied():
                self._answer(event)
            case ReplayBegin():
                self._up.clear()
            case PeerUp():
                self._up.add(event.peer)
            case PeerDown() | PeerGone():
                self._up.discard(event.peer)
            case _:
                pass
        self._on_event(event)

    def _answer(self, report: ConfigApplied) -> None:
        if self._asked:
            for reply in self._asked.popleft()[1]:
                if not reply.done():
                    reply.set_result(report)

    def _acknowledged(self, seq: int) -> None:
        while self._unacked and self._unacked[0] <= seq:
            self._unacked.popleft()
        self._work.set()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._outbox.pending() and len(self._unacked) < self._window:
                for command in self._outbox.commands():
                    self._note(command)
                    writer.write(encode(command))
                await writer.drain()

    def _note(self, command: Command) -> None:
        self._unacked.append(command.seq)
        if isinstance(command, Reload):
            self._asked.append((command, self._replies))
            self._replies = []

    def _lost(self, reason: str) -> None:
        self._unacked.clear()
        # Nobody will answer these any more: ask again when the speaker is back.
        self._replies = [
            reply for _, asked in self._asked for reply in asked if not reply.done()
        ] + self._replies
        self._asked.clear()
        if self.state.state == "connected":
            _logger.warning("the link to the speaker is lost: %s", reason)
            self.state = LinkState("down", self._clock(), reason=reason)
            self._on_event(LinkLost(reason))
        else:
            self.state = replace(self.state, reason=reason)
