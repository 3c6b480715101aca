"""The agent's end of the link: windows, merging and resynchronisation by diff, against a fake speaker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.sinks.outbox import Outbox
from agent.sinks.speaker import LinkLost, SpeakerLink
from agent.speaker.protocol import (
    Ack,
    Advertise,
    Command,
    ConfigApplied,
    Event,
    FullSync,
    Hello,
    Lines,
    Nack,
    PeerUp,
    Reload,
    ReplayBegin,
    ReplayEnd,
    SyncBegin,
    SyncEnd,
    Withdraw,
    decode_command,
    encode,
)
from felix_like.model.address import Address, Asn, Prefix
from felix_like.model.path import Attributes

ONE, TWO = Address.parse("192.0.2.1"), Address.parse("192.0.2.2")
RED = Attributes(next_hop=ONE, med=1)
BLUE = Attributes(next_hop=ONE, med=2)
HELLO = Hello(1, 42, "boot", "5.0.15")


def p(number: int) -> Prefix:
    return Prefix.of(f"10.{number >> 8}.{number & 255}.0/24")


def drain(outbox: Outbox) -> list[Command]:
    said: list[Command] = []
    while outbox.pending():
        said += outbox.commands()
    return said


class Table:
    """What a speaker makes of commands."""

    def __init__(self) -> None:
        self.routes: dict[tuple[Address, Prefix], Attributes] = {}
        self.withdrawn = 0
        self._marked: set[tuple[Address, Prefix]] | None = None

    def take(self, command: Command) -> None:
        match command:
            case Advertise():
                for peer in command.peers:
                    for prefix in command.nlri.prefixes:
                        self.routes[peer, prefix] = command.attributes
                        if self._marked is not None:
                            self._marked.add((peer, prefix))
            case Withdraw():
                for peer in command.peers:
                    for prefix in command.nlri.prefixes:
                        self.withdrawn += self.routes.pop((peer, prefix), None) is not None
            case SyncBegin():
                self._marked = set()
            case SyncEnd():
                assert self._marked is not None
                before = len(self.routes)
                self.routes = {key: value for key, value in self.routes.items() if key in self._marked}
                self.withdrawn += before - len(self.routes)
                self._marked = None
            case _:
                pass


def test_peers_with_the_same_change_share_a_command() -> None:
    outbox = Outbox()
    outbox.merge({ONE: {p(1): RED, p(2): RED}, TWO: {p(1): RED, p(2): RED}})
    (said,) = drain(outbox)
    assert isinstance(said, Advertise)
    assert said.peers == (ONE, TWO)
    assert set(said.nlri.prefixes) == {p(1), p(2)}


def test_the_newest_change_wins_and_is_said_once() -> None:
    outbox = Outbox()
    outbox.merge({ONE: {p(1): RED}})
    outbox.merge({ONE: {p(1): BLUE, p(2): RED}})
    outbox.merge({ONE: {p(2): None}})
    said = drain(outbox)
    assert [(type(c), getattr(c, "attributes", None)) for c in said] == [(Advertise, BLUE), (Withdraw, None)]


def test_an_agent_that_knows_only_half_sweeps_nothing() -> None:
    outbox = Outbox()
    outbox.merge({ONE: {p(1): RED}})
    outbox.connected()
    assert [type(command) for command in drain(outbox)] == [Advertise]
    outbox.finish_sync()
    assert [type(command) for command in drain(outbox)] == [SyncBegin, Advertise, SyncEnd, FullSync]


def test_a_speaker_with_an_older_table_hears_the_difference() -> None:
    outbox, speaker = Outbox(), Table()
    speaker.routes = {(ONE, p(n)): RED for n in range(3000)} | {(TWO, p(9)): RED}
    outbox.merge({ONE: {p(n): RED for n in range(1, 3000)}})
    outbox.finish_sync()
    outbox.connected()
    walk = outbox.commands()
    speaker.take(next(walk))  # SyncBegin
    outbox.merge({ONE: {p(1): None, p(5): BLUE}})  # changes while it is under way
    for command in walk:
        speaker.take(command)
    for command in drain(outbox):
        speaker.take(command)
    assert speaker.routes == {(ONE, p(n)): BLUE if n == 5 else RED for n in range(2, 3000)}
    assert speaker.withdrawn == 3


class FakeSpeaker:
    """Accepts the link on a socket pair; acknowledges when told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commands: list[Command] = []
        self.acknowledge = True
        self.connections = 0
        self.greeting: tuple[Event, ...] = (HELLO, ReplayBegin(), ReplayEnd())
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writer = writer
        lines = Lines()
        for event in self.greeting:
            writer.write(encode(event))
        while octets := await reader.read(1 << 16):
            for line in lines.feed(octets):
                command = decode_command(line)
                self.commands.append(command)
                if self.acknowledge:
                    if isinstance(command, Reload):
                        writer.write(encode(ConfigApplied(command.path)))
                    writer.write(encode(Ack(command.seq)))
        writer.close()

    def say(self, event: Event) -> None:
        assert self._writer is not None
        self._writer.write(encode(event))

    def say_raw(self, octets: bytes) -> None:
        assert self._writer is not None
        self._writer.write(octets)

    async def cut(self) -> None:
        assert self._writer is not None
        self._writer.transport.abort()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()


@pytest.fixture
def speaker(tmp_path: Path) -> FakeSpeaker:
    return FakeSpeaker(tmp_path / "s")


async def until(condition, seconds: float = 5) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_events_arrive_in_order_and_the_state_follows(speaker: FakeSpeaker) -> None:
    heard: list[Event | LinkLost] = []
    link = SpeakerLink(speaker.path, heard.append, clock=lambda: 7.0)
    task = asyncio.create_task(link.run())
    await asyncio.sleep(0.1)
    assert link.state.state == "down"
    assert "cannot reach" in link.state.reason
    up = PeerUp(ONE, "1.1.1.1", Asn(1), 90, (4,))
    speaker.greeting = (HELLO, ReplayBegin(), up, ReplayEnd())
    await speaker.start()
    await until(lambda: len(heard) == 4)
    assert heard == [HELLO, ReplayBegin(), up, ReplayEnd()]
    assert link.up_peers == {ONE}
    assert (link.state.state, link.state.pid, link.state.exabgp) == ("connected", 42, "5.0.15")
    await speaker.cut()
    await until(lambda: isinstance(heard[4], LinkLost) if len(heard) > 4 else False)
    await until(lambda: len(heard) == 9)
    task.cancel()
    await speaker.stop()


async def test_no_more_than_a_window_is_under_way(speaker: FakeSpeaker) -> None:
    await speaker.start()
    speaker.acknowledge = False
    link = SpeakerLink(speaker.path, lambda _event: None, window=4)
    task = asyncio.create_task(link.run())
    await until(lambda: link.state.state == "connected")
    for n in range(20):
        link.advertise({ONE: {p(n): Attributes(next_hop=ONE, med=n)}})
        await asyncio.sleep(0.005)
    await until(lambda: len(speaker.commands) == 4)
    await asyncio.sleep(0.1)
    assert len(speaker.commands) == 4
    assert not link.settled
    speaker.acknowledge = True
    speaker.say(Ack(speaker.commands[-1].seq))
    await until(lambda: link.settled)
    assert len(speaker.commands) == 20
    task.cancel()
    await speaker.stop()


async def test_a_reload_is_answered_also_over_a_lost_link(speaker: FakeSpeaker) -> None:
    await speaker.start()
    speaker.acknowledge = False
    link = SpeakerLink(speaker.path, lambda _event: None)
    task = asyncio.create_task(link.run())
    await until(lambda: link.state.state == "connected")
    waiting = asyncio.create_task(link.reload(Path("/a/conf")))
    await until(lambda: len(speaker.commands) == 1)
    speaker.acknowledge = True
    await speaker.cut()
    assert (await asyncio.wait_for(waiting, 5)).path == "/a/conf"
    speaker.acknowledge = False
    waiting = asyncio.create_task(link.reload(Path("/b/conf")))
    await until(lambda: isinstance(speaker.commands[-1], Reload) and speaker.commands[-1].path == "/b/conf")
    speaker.say(Nack(speaker.commands[-1].seq, "boom"))
    assert (await asyncio.wait_for(waiting, 5)).error == "boom"
    task.cancel()
    await speaker.stop()


@pytest.mark.parametrize(
    "bad",
    [b"nonsense\n", b"\xff\xfe\n", encode(Hello(99, 1, "b", "x")), encode(Ack(1)), b"x" * (2 << 20)],
)
async def test_a_speaker_that_talks_nonsense_is_tried_again(speaker: FakeSpeaker, bad: bytes) -> None:
    await speaker.start()
    speaker.greeting = ()
    link = SpeakerLink(speaker.path, lambda _event: None)
    task = asyncio.create_task(link.run())
    await until(lambda: speaker.connections == 1)
    speaker.greeting = (HELLO, ReplayBegin(), ReplayEnd())
    speaker.say_raw(bad)
    await until(lambda: link.state.state == "connected")
    assert not task.done()
    task.cancel()
    await speaker.stop()


async def test_a_bug_in_the_listener_is_not_swallowed(speaker: FakeSpeaker) -> None:
    await speaker.start()

    def fail(_event: Event | LinkLost) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.wait_for(SpeakerLink(speaker.path, fail).run(), 5)
    await speaker.stop()
