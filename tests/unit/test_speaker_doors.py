"""The speaker's doors to the world: what peers say in words, and sockets when the machine has none left."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket

import pytest
from exabgp.bgp.message import Notification

from agent.speaker import adapter
from agent.speaker.adapter.engine import LONGEST_REASON, _reason
from agent.speaker.listen import Listeners
from agent.speaker.settings import Neighbor
from agent.speaker.worker import allow_sockets
from felix_like.model.address import Address
from tests.support.speaker import neighbor

adapter.prepare()
LOOPBACK = Address.parse("127.0.0.1")


@pytest.mark.parametrize(
    ("code", "subcode", "octets"),
    [
        (6, 2, b"\x1cgone\x1b[2J\x1b[31m\n2026 ERROR forged\r\t"),
        (2, 2, b"\x1b[2Jabc\nforged line"),
        (3, 1, b"evil\nline\xe2\x80\xae"),
        (6, 2, bytes([250]) + b"a" * 250),
        (2, 2, b"x" * 4000),
    ],
)
def test_what_a_notification_says_is_one_short_printable_line(code: int, subcode: int, octets: bytes) -> None:
    reason = _reason("", Notification(code, subcode, octets))
    assert reason.startswith("the peer closed it: ")
    assert reason.isprintable()
    assert len(reason) <= LONGEST_REASON


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((str(LOOPBACK), 0))
        return int(probe.getsockname()[1])


def peer(port: int, password: str | None = None) -> Neighbor:
    (one,) = adapter.parse(neighbor("127.0.0.1", "127.0.0.9", password=password, listen=port))
    return one


async def test_a_listener_that_fails_is_retried_by_one_timer_however_often_it_is_told() -> None:
    tries = []

    def refuse(_io: socket.socket, _peer: Address, _password: str | None) -> None:
        tries.append(1)
        raise OSError("no keys here")

    listeners = Listeners(0, lambda *_: None, refuse, retry=0.2)
    wanted = [peer(free_port(), "secret")]
    for _ in range(10):
        listeners.update(wanted)
    assert len(tries) == 10
    await asyncio.sleep(0.3)
    assert len(tries) == 11
    listeners.close()


async def test_no_descriptors_left_is_a_pause_and_not_a_spinning_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    came = asyncio.Event()

    def accepted(_local: Address, _peer: Address, io: socket.socket) -> None:
        io.close()
        came.set()

    port = free_port()
    listeners = Listeners(0, accepted, lambda *_: None, retry=0.3)
    listeners.update([peer(port)])
    client = socket.socket()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with caplog.at_level(logging.WARNING, "tortie.speaker"):
            resource.setrlimit(resource.RLIMIT_NOFILE, (next_descriptor(), hard))
            client.connect((str(LOOPBACK), port))
            await asyncio.sleep(0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    said = [record for record in caplog.records if "cannot accept" in record.message]
    assert 1 <= len(said) <= 3
    await asyncio.wait_for(came.wait(), 5)
    client.close()
    listeners.close()


def next_descriptor() -> int:
    """A limit at which the next descriptor is refused."""
    with socket.socket() as probe:
        return probe.fileno()


def test_the_speaker_takes_the_descriptors_it_may_have() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        allow_sockets()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
