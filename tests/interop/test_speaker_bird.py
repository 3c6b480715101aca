"""tortie-speaker against BIRD 2 in namespaces: what the wire and the peer really do."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.speaker.protocol import (
    ConfigApplied,
    EndOfRib,
    Hello,
    LimitExceeded,
    PeerDown,
    PeerUp,
)
from tests.support.bird import Bird, bgp, static
from tests.support.netns import Fabric
from tests.support.speaker import Listener, SpeakerProcess, adverts, neighbor, via

pytestmark = pytest.mark.interop

US4, US6 = "192.0.2.1", "2001:db8::1"


@pytest.fixture
def net() -> Iterator[Fabric]:
    with Fabric() as made:
        yield made


def address4(number: int) -> str:
    return f"192.0.2.{number}"


def peer(number: int, **options: object) -> str:
    return neighbor(US4, address4(number), **options)  # type: ignore[arg-type]


async def until(condition, seconds: float = 20, what: str = "") -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what or "state not reached"
        await asyncio.sleep(0.05)


async def test_routes_go_both_ways_in_both_families(net: Fabric, tmp_path: Path) -> None:
    us, them = net.node(1), net.node(2)
    bird = Bird(
        them,
        tmp_path / "bird",
        "192.0.2.2",
        bgp("v4", "192.0.2.2", US4),
        bgp("v6", "2001:db8::2", US6),
        static("s4", ["198.51.100.0/26", "198.51.100.64/26"]),
        static("s6", ["2001:db8:1::/64"]),
    )
    speaker = SpeakerProcess(us, tmp_path, peer(2), neighbor(US6, "2001:db8::2"))
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.up("192.0.2.2", "2001:db8::2"))
        await ear.until(lambda: "198.51.100.64/26" in ear.learned("192.0.2.2"))
        await ear.until(lambda: "2001:db8:1::/64" in ear.learned("2001:db8::2"))
        ear.link.advertise(
            adverts("192.0.2.2", {"203.0.113.0/26": via(US4, communities=("64512:7",), med=5)})
            | adverts("2001:db8::2", {f"2001:db8:{n:x}::/64": via(US6) for n in range(0x100, 0x180)})
        )
        await until(lambda: bird.count("v6") == 128)
        assert "203.0.113.0/26" in bird.routes("v4")
        route = bird.route("203.0.113.0/26")
        assert "(64512,7)" in route
        assert "BGP.med: 5" in route
        ear.link.advertise(adverts("192.0.2.2", {"203.0.113.0/26": None}))
        await until(lambda: "203.0.113.0/26" not in bird.routes("v4"))
        bird.ask("disable", "s4")
        await ear.until(lambda: "198.51.100.0/26" not in ear.learned("192.0.2.2"))


async def test_ipv6_goes_out_packed(net: Fabric, tmp_path: Path) -> None:
    us, them = net.node(1), net.node(2)
    bird = Bird(them, tmp_path / "bird", "192.0.2.2", bgp("v6", "2001:db8::2", US6, extra="debug {packets};"))
    speaker = SpeakerProcess(us, tmp_path, neighbor(US6, "2001:db8::2"))
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.up("2001:db8::2"))
        ear.link.advertise(
            adverts("2001:db8::2", {f"2001:db8:{n:x}::/64": via(US6) for n in range(0x1000, 0x13E8)})
        )
        await until(lambda: bird.count("v6") == 1000)
    assert bird.log.count("Got UPDATE") <= 12


async def test_md5_on_both_ends_of_the_connection(net: Fabric, tmp_path: Path) -> None:
    us = net.node(1)
    awkward = "p{a};#\\s"
    birds = [
        Bird(
            net.node(number),
            tmp_path / f"bird{number}",
            address4(number),
            bgp("tortie", address4(number), US4, passive=number == 2, password="p{a};#\\s"),
        )
        for number in (2, 3)
    ]
    escaped = awkward.replace("\\", "\\\\")
    speaker = SpeakerProcess(us, tmp_path, peer(2, password=escaped), peer(3, password=escaped, passive=True))
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.up("192.0.2.2", "192.0.2.3"))
        # A wrong key: no session, and the others do not notice.
        speaker.configure(peer(2, password="wrong"), peer(3, password=escaped, passive=True))
        report = await ear.link.reload(speaker.config)
        assert [str(one) for one in report.changed] == ["192.0.2.2"]
        await asyncio.sleep(2)
        assert not ear.up("192.0.2.2")
        assert len(ear.of(PeerUp, "192.0.2.3")) == 1
        speaker.configure(peer(2, password=escaped), peer(3, password=escaped, passive=True))
        await ear.link.reload(speaker.config)
        await ear.until(lambda: ear.up("192.0.2.2"), 30)
    assert birds[1].state("tortie") == "Established"


async def test_peers_come_and_go_without_touching_the_others(net: Fabric, tmp_path: Path) -> None:
    us = net.node(1)
    birds = {
        number: Bird(
            net.node(number),
            tmp_path / f"bird{number}",
            address4(number),
            bgp("tortie", address4(number), US4, graceful=60),
        )
        for number in (2, 3, 4)
    }
    speaker = SpeakerProcess(us, tmp_path, peer(2), peer(3))
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.up("192.0.2.2", "192.0.2.3"))
        ear.link.advertise(adverts("192.0.2.3", {"203.0.113.0/26": via(US4)}))
        await until(lambda: birds[3].routes("tortie") == {"203.0.113.0/26"})
        since = birds[2].since("tortie")
        speaker.configure(peer(2, description="renamed"), peer(4))
        report = await ear.link.reload(speaker.config)
        assert ([str(p) for p in report.added], [str(p) for p in report.removed]) == (
            ["192.0.2.4"],
            ["192.0.2.3"],
        )
        assert (report.changed, report.unchanged) == ((), 1)
        await ear.until(lambda: ear.up("192.0.2.4"))
        # Graceful restart was negotiated, and still the removed peer gets its Cease and drops our routes.
        await until(lambda: "de-configured" in birds[3].log.lower() or "deconfigured" in birds[3].log.lower())
        await until(lambda: birds[3].routes("tortie") == set())
        assert birds[2].since("tortie") == since
        assert not ear.of(PeerDown, "192.0.2.2")


async def test_a_configuration_that_does_not_parse_changes_nothing(net: Fabric, tmp_path: Path) -> None:
    us, them = net.node(1), net.node(2)
    Bird(them, tmp_path / "bird", "192.0.2.2", bgp("tortie", "192.0.2.2", US4))
    speaker = SpeakerProcess(us, tmp_path, peer(2))
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.up("192.0.2.2"))
        for broken in ("neighbor 192.0.2.9 {\n  nonsense 1;\n}\n", "neighbor {", "process x {\n"):
            speaker.config.write_text(peer(2) + broken)
            report = await ear.link.reload(speaker.config)
            assert report.error, broken
        speaker.configure(peer(2))
        report = await ear.link.reload(speaker.config)
        assert (report.error, report.unchanged) == (None, 1)
        assert not ear.of(PeerDown)


async def test_the_agent_dies_and_comes_back(net: Fabric, tmp_path: Path) -> None:
    us, them = net.node(1), net.node(2)
    bird = Bird(
        them,
        tmp_path / "bird",
        "192.0.2.2",
        bgp("tortie", "192.0.2.2", US4),
        static("s4", ["198.51.100.0/26"]),
    )
    speaker = SpeakerProcess(us, tmp_path, peer(2))
    first = {f"203.0.113.{n * 64}/26": via(US4) for n in range(4)}
    async with Listener(speaker.socket) as ear:
        ear.link.advertise(adverts("192.0.2.2", dict(first)))
        ear.link.full_sync_done()
        await until(lambda: bird.routes("tortie") == set(first))
    since = bird.since("tortie")
    changes = bird.ask("show", "protocols", "all", "tortie")
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.replayed == 1)
        assert ear.learned("192.0.2.2") == {"198.51.100.0/26"}
        assert ear.up("192.0.2.2")
        second = {k: v for k, v in first.items() if k != "203.0.113.0/26"}
        # Not whole yet: what the new agent has not said is no withdrawal.
        ear.link.advertise(adverts("192.0.2.2", {"203.0.113.64/26": second["203.0.113.64/26"]}))
        await ear.until(lambda: ear.link.settled)
        await asyncio.sleep(0.3)
        assert bird.routes("tortie") == set(first)
        ear.link.advertise(adverts("192.0.2.2", dict(second)))
        ear.link.full_sync_done()
        await until(lambda: bird.routes("tortie") == set(second))
    assert bird.since("tortie") == since
    # Exactly one route was withdrawn, none announced again.
    assert _stats(bird, "Import updates") == _stats_of(changes, "Import updates")
    assert _stats(bird, "Import withdraws") == _stats_of(changes, "Import withdraws") + 1


def _stats(bird: Bird, row: str) -> int:
    return _stats_of(bird.ask("show", "protocols", "all", "tortie"), row)


def _stats_of(text: str, row: str) -> int:
    return int(text.split(row + ":")[1].split()[0])


async def test_a_killed_speaker_loses_no_route_at_the_peer(net: Fabric, tmp_path: Path) -> None:
    us, them = net.node(1), net.node(2)
    bird = Bird(them, tmp_path / "bird", "192.0.2.2", bgp("tortie", "192.0.2.2", US4, graceful=60))
    speaker = SpeakerProcess(us, tmp_path, peer(2, graceful=60))
    table = {"203.0.113.0/26": via(US4), "203.0.113.64/26": via(US4)}
    async with Listener(speaker.socket) as ear:
        ear.link.advertise(adverts("192.0.2.2", dict(table)))
        ear.link.full_sync_done()
        await until(lambda: bird.routes("tortie") == set(table))
        speaker.kill()
    assert bird.routes("tortie") == set(table)
    await asyncio.sleep(0.5)
    speaker.start()
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.up("192.0.2.2"), 30)
        bird.wait_established("tortie")
        assert "Restart recovery" in bird.ask("show", "protocols", "all", "tortie"), "the R bit was not set"
        await asyncio.sleep(1)
        assert bird.routes("tortie") == set(table), "End-of-RIB went out before the agent had said all"
        ear.link.advertise(adverts("192.0.2.2", {"203.0.113.0/26": via(US4)}))
        ear.link.full_sync_done()
        # End-of-RIB: what was not announced again goes.
        await until(lambda: bird.routes("tortie") == {"203.0.113.0/26"})


@pytest.mark.parametrize(("number", "kept"), [(signal.SIGTERM, True), (signal.SIGUSR1, False)])
async def test_leaving_with_and_without_a_word(net: Fabric, tmp_path: Path, number: int, kept: bool) -> None:
    us, them = net.node(1), net.node(2)
    bird = Bird(them, tmp_path / "bird", "192.0.2.2", bgp("tortie", "192.0.2.2", US4, graceful=60))
    speaker = SpeakerProcess(us, tmp_path, peer(2, graceful=60))
    async with Listener(speaker.socket) as ear:
        ear.link.advertise(adverts("192.0.2.2", {"203.0.113.0/26": via(US4)}))
        ear.link.full_sync_done()
        await until(lambda: bird.routes("tortie") == {"203.0.113.0/26"})
        speaker.kill(number)
    await until(lambda: bird.state("tortie") != "Established")
    assert bird.routes("tortie") == ({"203.0.113.0/26"} if kept else set())
    assert ("administrative shutdown" in bird.log.lower()) is not kept


async def test_a_peer_that_restarts_goes_down_gracefully(net: Fabric, tmp_path: Path) -> None:
    us, them = net.node(1), net.node(2)
    parts = (bgp("tortie", "192.0.2.2", US4, graceful=60), static("s4", ["198.51.100.0/26"]))
    bird = Bird(them, tmp_path / "bird", "192.0.2.2", *parts)
    speaker = SpeakerProcess(us, tmp_path, peer(2))
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.end_of_rib("192.0.2.2"))
        bird.process.kill()
        await ear.until(lambda: bool(ear.of(PeerDown, "192.0.2.2")))
        assert ear.of(PeerDown, "192.0.2.2")[0].graceful
        (tmp_path / "bird" / "bird.ctl").unlink()
        bird = Bird(them, tmp_path / "bird", "192.0.2.2", *parts)
        await ear.until(lambda: len(ear.of(PeerUp, "192.0.2.2")) == 2, 30)
        await ear.until(lambda: len(ear.of(EndOfRib, "192.0.2.2")) == 2, 30)
        bird.ask("disable", "tortie")
        await ear.until(lambda: len(ear.of(PeerDown, "192.0.2.2")) == 2)
        last = ear.of(PeerDown, "192.0.2.2")[1]
        assert not last.graceful
        assert "the peer closed it" in last.reason


async def test_a_flood_is_bounded_and_the_others_go_on(net: Fabric, tmp_path: Path) -> None:
    us = net.node(1)
    flood = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(3000)]
    loud = Bird(
        net.node(2), tmp_path / "bird2", "192.0.2.2", bgp("tortie", "192.0.2.2", US4), static("s4", flood)
    )
    Bird(
        net.node(3),
        tmp_path / "bird3",
        "192.0.2.3",
        bgp("tortie", "192.0.2.3", US4),
        static("s4", flood[:50]),
    )
    speaker = SpeakerProcess(us, tmp_path, peer(2), peer(3), options=("--prefix-limit", "1000"))
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: bool(ear.of(LimitExceeded, "192.0.2.2")))
        said = ear.of(LimitExceeded, "192.0.2.2")[0]
        assert (said.limit, said.retry_in) == (1000, 60.0)
        await until(lambda: "maximum number of prefixes" in loud.log.lower(), what=loud.log[-300:])
        await ear.until(lambda: len(ear.learned("192.0.2.3")) == 50)
        await asyncio.sleep(3)
        assert not ear.up("192.0.2.2")
        assert ear.learned("192.0.2.2") == set()
        assert ear.up("192.0.2.3")


async def test_an_agent_that_does_not_read_holds_up_nobody(net: Fabric, tmp_path: Path) -> None:
    us, them = net.node(1), net.node(2)
    many = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(6000)]
    parts = bgp("tortie", "192.0.2.2", US4, hold=9)
    bird = Bird(them, tmp_path / "bird", "192.0.2.2", parts, static("s4", many))
    speaker = SpeakerProcess(us, tmp_path, peer(2, hold=9))
    reader, writer = await asyncio.open_unix_connection(speaker_ready(speaker))
    bird.wait_established("tortie")
    since = bird.since("tortie")
    for turn in range(3):  # changes of the whole table that nobody reads, over more than the hold time
        bird.configure(parts, static("s4", [*many[turn * 1000 :], f"172.16.{turn}.0/24"]))
        await asyncio.sleep(3.5)
    assert bird.since("tortie") == since
    assert bird.state("tortie") == "Established"
    size = speaker.memory()
    seen: set[str] = set()
    decode = _table(seen)
    deadline = time.monotonic() + 20
    while seen != {*many[2000:], "172.16.2.0/24"} and time.monotonic() < deadline:
        decode(await asyncio.wait_for(reader.read(1 << 18), 20))
    assert seen == {*many[2000:], "172.16.2.0/24"}
    writer.close()
    assert size < 80_000


def speaker_ready(speaker: SpeakerProcess) -> str:
    deadline = time.monotonic() + 10
    while not speaker.socket.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)
    return str(speaker.socket)


def _table(seen: set[str]):  # type: ignore[no-untyped-def]
    from agent.speaker.protocol import Learned, Lines, Withdrawn, decode_event

    lines = Lines()

    def feed(octets: bytes) -> None:
        for line in lines.feed(octets):
            event = decode_event(line)
            if isinstance(event, Learned):
                seen.update(str(p) for p in event.nlri.prefixes)
            elif isinstance(event, Withdrawn):
                seen.difference_update(str(p) for p in event.nlri.prefixes)

    return feed


async def test_two_speakers_one_of_them_passive(net: Fabric, tmp_path: Path) -> None:
    one, two = net.node(1), net.node(2)
    a = SpeakerProcess(one, tmp_path / "a", peer(2))
    b = SpeakerProcess(
        two,
        tmp_path / "b",
        neighbor("192.0.2.2", US4, router_id="192.0.2.2", passive=True),
    )
    async with Listener(a.socket) as ear_a, Listener(b.socket) as ear_b:
        await ear_a.until(lambda: ear_a.up("192.0.2.2"))
        await ear_b.until(lambda: ear_b.up(US4))
        ear_a.link.advertise(adverts("192.0.2.2", {"203.0.113.0/26": via(US4)}))
        await ear_b.until(lambda: ear_b.learned(US4) == {"203.0.113.0/26"})
        ear_a.link.full_sync_done()
        await ear_b.until(lambda: ear_b.end_of_rib(US4))
        assert not ear_a.of(PeerDown)
        assert not ear_b.of(PeerDown)


async def test_two_speakers_both_active_settle_on_one_connection(net: Fabric, tmp_path: Path) -> None:
    one, two = net.node(1), net.node(2)
    a = SpeakerProcess(one, tmp_path / "a", peer(2))
    b = SpeakerProcess(two, tmp_path / "b", neighbor("192.0.2.2", US4, router_id="192.0.2.2"))
    async with Listener(a.socket) as ear_a, Listener(b.socket) as ear_b:
        await ear_a.until(lambda: ear_a.up("192.0.2.2"))
        await ear_b.until(lambda: ear_b.up(US4))
        await asyncio.sleep(3)
        assert ear_a.up("192.0.2.2")
        assert ear_b.up(US4)
        assert len(ear_a.of(PeerUp)) <= 2


async def test_who_connects_changes_hands_and_no_session_ends(net: Fabric, tmp_path: Path) -> None:
    us, them = net.node(1), net.node(2)
    bird = Bird(them, tmp_path / "bird", "192.0.2.2", bgp("tortie", "192.0.2.2", US4, graceful=60))
    speaker = SpeakerProcess(us, tmp_path, peer(2))
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.up("192.0.2.2"))
        since = bird.since("tortie")
        for passive in (True, False, True):
            speaker.configure(peer(2, passive=passive))
            assert await ear.link.reload(speaker.config) == ConfigApplied(str(speaker.config), unchanged=1)
            await asyncio.sleep(0.3)
        assert bird.since("tortie") == since
        assert not ear.of(PeerDown)
        # The next session goes by it: where both sides wait there is none, until one of them need not.
        bird.configure(bgp("tortie", "192.0.2.2", US4, graceful=60, passive=True))
        await ear.until(lambda: ear.of(PeerDown))
        await asyncio.sleep(3)
        assert not ear.up("192.0.2.2")
        speaker.configure(peer(2))
        await ear.link.reload(speaker.config)
        await ear.until(lambda: ear.up("192.0.2.2"))


async def test_without_an_agent_for_too_long_sessions_are_ceased(net: Fabric, tmp_path: Path) -> None:
    us, them = net.node(1), net.node(2)
    bird = Bird(them, tmp_path / "bird", "192.0.2.2", bgp("tortie", "192.0.2.2", US4, graceful=60))
    speaker = SpeakerProcess(us, tmp_path, peer(2), options=("--agent-hold", "2", "--first-agent", "0"))
    bird.wait_established("tortie")
    await until(lambda: "administrative shutdown" in bird.log.lower())
    assert bird.state("tortie") != "Established"
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.up("192.0.2.2"), 30)


async def test_a_newer_agent_replaces_the_older(net: Fabric, tmp_path: Path) -> None:
    us = net.node(1)
    speaker = SpeakerProcess(us, tmp_path)
    path = speaker_ready(speaker)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116
    old_reader, old_writer = await asyncio.open_unix_connection(path)
    await old_reader.readline()
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.replayed == 1)
        assert await asyncio.wait_for(old_reader.read(), 5) is not None
        # And a line that is not of the protocol costs the connection, not the process.
        bad_reader, bad_writer = await asyncio.open_unix_connection(path)
        bad_writer.write(b'{"type":"advertise","seq":"no"}\n')
        assert b"nack" in await asyncio.wait_for(bad_reader.read(), 5)
        bad_writer.close()
        await ear.until(lambda: len(ear.of(Hello)) == 2)
        speaker.configure()
        assert isinstance(await ear.link.reload(speaker.config), ConfigApplied)
    old_writer.close()


async def test_a_second_speaker_on_the_same_socket_gives_up(net: Fabric, tmp_path: Path) -> None:
    us, them = net.node(1), net.node(2)
    bird = Bird(them, tmp_path / "bird", "192.0.2.2", bgp("tortie", "192.0.2.2", US4))
    speaker = SpeakerProcess(us, tmp_path, peer(2))
    bird.wait_established("tortie")
    since, first = bird.since("tortie"), speaker.process
    second = speaker.start()
    assert second.wait(10) == 1
    assert "another tortie-speaker is running" in speaker.log
    await asyncio.sleep(1)
    assert bird.since("tortie") == since
    assert first.poll() is None


async def test_a_peer_that_crashed_unheard_may_connect_anew(net: Fabric, tmp_path: Path) -> None:
    """RFC 4724 section 4.2: its new connection ends the old one, long before our hold timer would."""
    us, them = net.node(1), net.node(2)
    parts = (bgp("tortie", "192.0.2.2", US4, graceful=60), static("s4", ["198.51.100.0/26"]))
    bird = Bird(them, tmp_path / "bird", "192.0.2.2", *parts)
    speaker = SpeakerProcess(us, tmp_path, peer(2, passive=True))
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.up("192.0.2.2"))
        await asyncio.sleep(5.5)
        net.unplug(2)
        bird.process.kill()
        bird.process.wait()
        # The socket's last words are lost with the cable; then it is forgotten.
        them.ip("link", "set", "eth0", "down")
        them.ip("addr", "add", "192.0.2.2/24", "dev", "lo")
        await asyncio.sleep(1)
        them.ip("addr", "del", "192.0.2.2/24", "dev", "lo")
        them.ip("link", "set", "eth0", "up")
        (tmp_path / "bird" / "bird.ctl").unlink()
        bird = Bird(them, tmp_path / "bird", "192.0.2.2", *parts)
        assert not ear.of(PeerDown)
        net.plug(2)
        await ear.until(lambda: len(ear.of(PeerUp, "192.0.2.2")) == 2, 30)
        (down,) = ear.of(PeerDown, "192.0.2.2")
        assert down.graceful
        await ear.until(lambda: ear.learned("192.0.2.2") == {"198.51.100.0/26"})


async def test_a_peer_that_is_switched_on_late_is_found_soon(net: Fabric, tmp_path: Path) -> None:
    us, them = net.node(1), net.node(2)
    net.unplug(2)
    Bird(them, tmp_path / "bird", "192.0.2.2", bgp("tortie", "192.0.2.2", US4, passive=True))
    speaker = SpeakerProcess(us, tmp_path, peer(2))
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: "192.0.2.2 port 179" in str([s.reason for s in ear.states.values()]))
        await asyncio.sleep(5)
        net.plug(2)
        # The longest pause is 15 s, the connect timeout 8 s; the kernel alone would take up to a minute.
        await ear.until(lambda: ear.up("192.0.2.2"), 26)


@pytest.mark.parametrize("graceful", [120, 1])
async def test_a_peer_that_comes_with_the_second_configuration_hears_of_our_restart(
    graceful: int, net: Fabric, tmp_path: Path
) -> None:
    """As after a boot: the sessions with passwords come once these are known. Later, when no peer can keep
    anything of an earlier life any more, it would be wrong."""
    us, them = net.node(1), net.node(2)
    speaker = SpeakerProcess(us, tmp_path / "us")
    other = SpeakerProcess(them, tmp_path / "them", neighbor("192.0.2.2", US4, router_id="192.0.2.2"))
    async with Listener(speaker.socket) as ear, Listener(other.socket) as their_ear:
        await ear.until(lambda: bool(ear.of(Hello)))
        heard = time.monotonic()
        await until(lambda: graceful > 60 or time.monotonic() > heard + graceful)
        speaker.configure(peer(2, graceful=graceful))
        speaker.process.send_signal(signal.SIGHUP)
        await their_ear.until(lambda: their_ear.up(US4))
        assert [one.restarting for one in their_ear.of(PeerUp, US4)] == [graceful > 60]
