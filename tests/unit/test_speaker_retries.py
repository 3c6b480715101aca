"""When a driver connects again: with a fake engine over real connections to a listener of the test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from agent.speaker import adapter
from agent.speaker.driver import PeerDriver
from agent.speaker.session import PeerTable
from agent.speaker.settings import Neighbor
from felix_like.model.address import IpVersion
from tests.support.etcd import eventually
from tests.support.speaker import neighbor

adapter.prepare()


class ShortLived:
    """An engine whose sessions are established at once and end in the next step."""

    def __init__(self) -> None:
        self.begun = 0
        self.established = False
        self.io: socket.socket | None = None
        self.outgoing, self.graceful, self.remote_id, self.unsent, self.blocked = True, False, None, 0, False

    @property
    def attached(self) -> bool:
        return self.io is not None

    def fileno(self) -> int:
        return self.io.fileno() if self.io is not None else -1

    def attach(self, io: socket.socket, outgoing: bool) -> None:
        self.begun += 1
        self.io = io

    def run(self) -> bool:
        if self.established:
            self.drop("the peer closed it")
        elif self.attached:
            self.established = True
        return False

    def flush(self) -> None: ...

    def send_end_of_rib(self, version: IpVersion) -> None: ...

    def cease(self, subcode: int, reason: str) -> socket.socket | None:
        self.drop(reason)
        return None

    def drop(self, reason: str) -> None:
        if self.io is not None:
            self.io.close()
        self.io, self.established = None, False


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[int]:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def plain(one: Neighbor) -> socket.socket:
    made = socket.socket(socket.AF_INET if one.address.version == 4 else socket.AF_INET6)
    made.setblocking(False)
    return made


async def test_sessions_that_end_at_once_are_begun_less_and_less_often() -> None:
    async with listening() as port:
        (one,) = adapter.parse(neighbor("127.0.0.2", "127.0.0.1", connect=port))
        table, engine = PeerTable(lambda: 0.0, 1000), ShortLived()
        table.configure([one])
        (entry,) = table.peers.values()
        driver = PeerDriver(entry, lambda *_: engine, plain, False, first_retry=0.05)
        await asyncio.sleep(2.0)  # every 0.05 s would be 40
        driver.stop(None, "the test is over")
        assert 2 <= engine.begun <= 12


async def test_a_fault_that_nobody_expected_does_not_end_a_peers_retries(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with listening() as port:
        (one,) = adapter.parse(neighbor("127.0.0.2", "127.0.0.1", connect=port))
        table, engine = PeerTable(lambda: 0.0, 1000), ShortLived()
        table.configure([one])
        (entry,) = table.peers.values()
        faults = 3

        def faulty(wanted: Neighbor) -> socket.socket:
            nonlocal faults
            if faults:
                faults -= 1
                raise RuntimeError("nobody expected this")
            return plain(wanted)

        driver = PeerDriver(entry, lambda *_: engine, faulty, False, first_retry=0.01)
        await eventually(
            lambda: entry.state_event().reason.startswith("a fault of the speaker (RuntimeError)")
        )
        await eventually(lambda: engine.begun)
        assert not faults
        driver.stop(None, "the test is over")
    assert sum("nobody expected this" in (record.exc_text or "") for record in caplog.records) == 1, (
        "said once"
    )
