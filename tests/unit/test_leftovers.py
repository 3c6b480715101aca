"""`tortiectl node leftovers`: what may go, in which steps, and what is refused."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli import birdsocket
from agent.cli.errors import Failed
from agent.cli.leftover_routes import Heir, Leftover, Stations, by_prefix, judge
from agent.cli.leftovers import Write, leftovers, render, steps, taken_away
from agent.netlink import neighbours
from agent.netlink.rtnetlink import APPEND, DELETE, REPLACE, KernelRoute, attribute
from agent.netlink.sockets import Failure
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import KernelNextHop, Route, RouteKey
from felix_like.model.verdict import No

BIRD, OURS = 12, 186
FOUR, SIX = "10.65.1.0/26", "fd00:65::100/122"


def hops(*gateways: str) -> tuple[KernelNextHop, ...]:
    return tuple(KernelNextHop(Address.parse(gateway), 2) for gateway in gateways)


def seen(prefix: str, *gateways: str, metric: int = 0, protocol: int = BIRD) -> KernelRoute:
    """What BIRD left; without a gateway a blackhole."""
    kind = 1 if gateways else 6
    return KernelRoute(RouteKey(Prefix.parse(prefix), metric), kind, protocol, hops(*gateways))


def heir(prefix: str, *gateways: str, metric: int = 1024, installed: bool = True) -> Heir:
    key = RouteKey(Prefix.parse(prefix), metric)
    if not gateways:
        return Heir(Route(key, "blackhole", OURS), installed)
    return Heir(Route(key, "unicast", OURS, hops(*gateways)), installed)


def judged(left: KernelRoute, *heirs: Heir) -> Leftover:
    known = by_prefix(heirs)
    [found] = judge([left], lambda route: known.get(route.key.prefix), "Tortie")
    return found


@pytest.mark.parametrize(
    ("left", "present"),
    [
        (seen(FOUR, "192.0.2.1"), heir(FOUR, "192.0.2.1")),
        (seen(FOUR), heir(FOUR)),
        (seen(FOUR, "192.0.2.1", "192.0.2.2"), heir(FOUR, "192.0.2.2", "192.0.2.1")),
        (seen(SIX, "2001:db8::1", metric=1024), heir(SIX, "2001:db8::1", installed=False)),
    ],
)
def test_the_same_destination_by_the_same_way_may_go(left: KernelRoute, present: Heir) -> None:
    assert judged(left, present).verdict


@pytest.mark.parametrize(
    ("left", "present", "why"),
    [
        (seen(FOUR, "192.0.2.1"), (), "has no route to"),
        (seen(FOUR, "192.0.2.1"), (heir("10.65.2.0/26", "192.0.2.1"),), "has no route to"),
        (seen(FOUR, "192.0.2.1"), (heir("10.65.0.0/16", "192.0.2.1"),), "has no route to"),
        (seen(FOUR, "192.0.2.1"), (heir(FOUR, "192.0.2.2"),), "by another way"),
        (seen(FOUR, "192.0.2.1"), (heir(FOUR, "192.0.2.1", "192.0.2.2"),), "by another way"),
        (seen(FOUR, "192.0.2.1"), (heir(FOUR),), "by another way"),
        (seen(FOUR), (heir(FOUR, "192.0.2.1"),), "by another way"),
        (seen(FOUR, "192.0.2.1"), (heir(FOUR, "192.0.2.1", installed=False),), "not in the kernel yet"),
        (seen(SIX, "2001:db8::1", metric=1024), (heir(SIX, "2001:db8::2", installed=False),), "another way"),
    ],
)
def test_all_others_stay_and_say_why(left: KernelRoute, present: tuple[Heir, ...], why: str) -> None:
    verdict = judged(left, *present).verdict
    assert isinstance(verdict, No)
    assert why in verdict.reason


ROUTER, OTHER = (2, b"\x02\0\0\0\0\x01"), (2, b"\x02\0\0\0\0\x02")
LINK_LOCAL, GLOBAL, ELSEWHERE = (Address.parse(a) for a in ("fe80::1", "2001:db8::1", "2001:db8::2"))


@pytest.mark.parametrize(
    ("stations", "same"),
    [
        ({(LINK_LOCAL, 2): ROUTER, (GLOBAL, 2): ROUTER, (ELSEWHERE, 2): OTHER}, True),
        ({(LINK_LOCAL, 2): ROUTER, (GLOBAL, 2): OTHER}, False),
        ({(LINK_LOCAL, 2): ROUTER}, False),
        ({(GLOBAL, 2): ROUTER}, False),
        ({}, False),
        ({(LINK_LOCAL, 3): ROUTER, (GLOBAL, 2): ROUTER}, False),
    ],
)
def test_a_routers_two_addresses_are_one_way(stations: Stations, same: bool) -> None:
    left = seen(SIX, "fe80::1", metric=1024)
    present = heir(SIX, "2001:db8::1", installed=False)
    [found] = judge([left], lambda _: present, "Tortie", stations)
    assert bool(found.verdict) is same


def test_of_several_ways_each_must_be_known() -> None:
    left = seen(SIX, "fe80::1", "2001:db8::2", metric=1024)
    present = heir(SIX, "2001:db8::1", "2001:db8::2", installed=False)
    known = {(LINK_LOCAL, 2): ROUTER, (GLOBAL, 2): ROUTER, (ELSEWHERE, 2): OTHER}
    for stations, same in ((known, True), ({**known, (ELSEWHERE, 2): ROUTER}, False)):
        [found] = judge([left], lambda _: present, "Tortie", stations)
        assert bool(found.verdict) is same


def test_a_neighbour_is_read_and_what_is_incomplete_is_none() -> None:
    def entry(state: int, *parts: bytes) -> bytes:
        return struct.pack("=BBHiHBB", 10, 0, 0, 2, state, 0, 1) + b"".join(parts)

    address, hardware = attribute(1, GLOBAL), attribute(2, ROUTER[1])
    good = entry(0x02, address, hardware)
    assert neighbours.parse(good, 0, len(good)) == (GLOBAL, ROUTER)
    for octets in (
        entry(0x20, address, hardware),  # NUD_FAILED
        entry(0x01, address),  # NUD_INCOMPLETE
        entry(0x02, hardware),
        entry(0x02, attribute(1, b"\1\2\3"), hardware),
        entry(0x40, address, attribute(2, b"")),  # NUD_NOARP
    ):
        assert neighbours.parse(octets, 0, len(octets)) is None
    for end in range(len(good)):
        neighbours.parse(good, 0, end)  # whatever is cut off, it does not raise


def test_of_two_heirs_the_one_that_packets_follow_counts() -> None:
    left = seen(FOUR, "192.0.2.1", protocol=OURS, metric=1024)
    first, second = heir(FOUR, "192.0.2.9", metric=0), heir(FOUR, "192.0.2.1", metric=32)
    assert not judged(left, second, first).verdict
    assert not judged(left, first, second).verdict


@pytest.mark.parametrize(
    ("third", "goes"),
    [
        (seen(FOUR, "192.0.2.9", metric=100, protocol=3), False),
        (seen(FOUR, "192.0.2.9", metric=0, protocol=3), False),
        (seen(FOUR, metric=100, protocol=4), False),
        (KernelRoute(RouteKey(Prefix.parse(FOUR), 100), 7, 4, ()), False),  # unreachable
        (seen(FOUR, "192.0.2.1", metric=100, protocol=3), True),
        (seen(FOUR, "192.0.2.9", metric=2000, protocol=3), True),
        (seen("10.65.2.0/26", "192.0.2.9", metric=100, protocol=3), True),
        (seen(FOUR, "192.0.2.9", metric=100, protocol=3)._replace(plain=False), True),
    ],
)
def test_what_shields_another_programs_route_stays(third: KernelRoute, goes: bool) -> None:
    left, present = seen(FOUR, "192.0.2.1"), heir(FOUR, "192.0.2.1")
    table = (left, third, seen(FOUR, "192.0.2.1", metric=1024, protocol=OURS))
    [found] = judge([left], lambda _: present, "Tortie", table=table)
    assert bool(found.verdict) is goes
    if not goes:
        assert "packets would follow another route then" in str(found.verdict.reason)
        assert f"metric {third.key.priority})" in str(found.verdict.reason)


def test_what_neither_agent_makes_is_not_looked_at() -> None:
    unreachable = KernelRoute(RouteKey(Prefix.parse(FOUR), 0), 7, BIRD, ())
    by_tos = seen(FOUR, "192.0.2.1")._replace(plain=False)
    assert judge([unreachable, by_tos], lambda _: heir(FOUR), "Tortie") == []


def test_a_route_beside_ours_goes_by_itself() -> None:
    left = judged(seen(FOUR, "192.0.2.1"), heir(FOUR, "192.0.2.1"))
    assert steps(left) == [(DELETE, left.route)]


def test_a_route_in_our_place_becomes_ours_without_a_gap() -> None:
    four = judged(seen(FOUR, "192.0.2.1", metric=1024), heir(FOUR, "192.0.2.1", installed=False))
    assert four.heir is not None
    assert steps(four) == [(APPEND, four.heir.route), (DELETE, four.route)]
    six = judged(seen(SIX, "2001:db8::1", metric=1024), heir(SIX, "2001:db8::1", installed=False))
    assert six.heir is not None
    assert steps(six) == [(REPLACE, six.heir.route)]


def refusing(*numbers: int) -> tuple[list[object], Write]:
    """A kernel that refuses one message after the other with these errors, and what it was told."""
    told: list[object] = []

    def write(messages: Sequence[tuple[tuple[int, int], Route]]) -> list[Failure]:
        told.extend(messages)
        return [Failure(0, numbers[len(told) - 1], "so says the kernel")]

    return told, write


@pytest.mark.parametrize("gone", [errno.ESRCH, errno.ENOENT])
def test_what_changed_in_the_meantime_is_no_failure(gone: int) -> None:
    left = judged(seen(FOUR, "192.0.2.1", metric=1024), heir(FOUR, "192.0.2.1", installed=False))
    told, write = refusing(errno.EEXIST, gone)
    assert taken_away(left, write) is None
    assert told == steps(left), "every step is tried"


@pytest.mark.parametrize("number", [errno.ESRCH, errno.ENOENT])
def test_no_route_is_deleted_whose_heir_is_not_there(number: int) -> None:
    left = judged(seen(FOUR, "192.0.2.1", metric=1024), heir(FOUR, "192.0.2.1", installed=False))
    told, write = refusing(number, 0)
    assert taken_away(left, write) == "so says the kernel"
    assert len(told) == 1


def test_what_the_kernel_refuses_is_said_and_ends_it() -> None:
    left = judged(seen(FOUR, "192.0.2.1", metric=1024), heir(FOUR, "192.0.2.1", installed=False))
    told, write = refusing(errno.ENETUNREACH)
    assert taken_away(left, write) == "so says the kernel"
    assert len(told) == 1, "the old route is not deleted when the new one could not be put beside it"


def test_who_may_not_is_told_so() -> None:
    left = judged(seen(FOUR, "192.0.2.1"), heir(FOUR, "192.0.2.1"))
    with pytest.raises(Failed, match="run it as root"):
        taken_away(left, refusing(errno.EPERM)[1])


def test_the_table_says_what_may_go_and_why_not() -> None:
    lines = render([judged(seen(FOUR), heir(FOUR)), judged(seen(SIX, "2001:db8::1"))], "BIRD").splitlines()
    assert lines[0].split("  ")[0] == "DESTINATION"
    assert "BIRD'S WAY" in lines[0]
    assert lines[1].split() == [FOUR, "blackhole", "0", "yes", "Tortie", "has", "the", "same"]
    assert "via 2001:db8::1 dev " in lines[2]
    assert lines[2].endswith(f"no      Tortie has no route to {SIX}")


# -- BIRD's control socket --------------------------------------------------------------------------

TWO = """\
1007-Table master4:
 10.65.2.0/26         unicast [Mesh_192_0_2_2 08:18:01.123] * (100/0) [i]
 \tvia 192.0.2.2 on eth0
0000 
"""  # noqa: W291
SIXTEEN = """\
1007-10.65.2.0/26       via 192.0.2.2 on eth0 [Mesh_192_0_2_2 08:18:01] * (100/0) [i]
0000 
"""  # noqa: W291


@pytest.mark.parametrize("text", [TWO, SIXTEEN])
def test_both_birds_are_understood(text: str) -> None:
    ways = frozenset({(Address.parse("192.0.2.2"), "eth0")})
    assert birdsocket.parse(text) == birdsocket.BirdRoute("Mesh_192_0_2_2", False, ways)


@pytest.mark.parametrize(
    "text",
    [
        "1007-10.65.1.0/26      blackhole [static1 08:17:12.001] * (200)\n0000 \n",
        "1007-10.65.1.0/26      blackhole [static1 08:17:12] * (200)\n0000 \n",
    ],
)
def test_blackholes_are_understood(text: str) -> None:
    assert birdsocket.parse(text) == birdsocket.BirdRoute("static1", True, frozenset())


def test_no_route_and_nonsense_are_none() -> None:
    assert birdsocket.parse("8001 Network not found\n") is None
    assert birdsocket.parse("1007-10.65.1.0/26 via nowhere on eth0 [x 1] *\n0000 \n") is None


class FakeBird:
    """Greets and answers as BIRD does, or as it is told to."""

    def __init__(
        self, folder: Path, name: str, answer: bytes, greeting: bytes = b"0001 BIRD 2 ready.\n"
    ) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / name))
        self._listener.listen()
        self._answer, self._greeting = answer, greeting
        self.asked: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # Who only knocks is gone by now.
            with connection, contextlib.suppress(OSError):
                connection.sendall(self._greeting)
                self.asked.append(connection.recv(4096))
                # In two parts, as it may come.
                connection.sendall(self._answer[:7])
                connection.sendall(self._answer[7:])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def bird(tmp_path: Path) -> Iterator[FakeBird]:
    made = FakeBird(tmp_path, "bird.ctl", TWO.encode())
    yield made
    made.close()


def test_bird_is_asked_for_the_one_route_it_has_chosen(bird: FakeBird, tmp_path: Path) -> None:
    chosen = birdsocket.chosen(tmp_path, Prefix.parse("10.65.2.0/26"))
    assert chosen is not None
    assert chosen.protocol == "Mesh_192_0_2_2"
    assert bird.asked == [b"show route 10.65.2.0/26 primary\n"]


def test_who_does_not_greet_as_bird_is_not_bird(tmp_path: Path) -> None:
    other = FakeBird(tmp_path, "bird6.ctl", b"", greeting=b"9001 go away\n")
    try:
        assert not birdsocket.answers(tmp_path, 6)
        assert not birdsocket.answers(tmp_path, 4)
    finally:
        other.close()


# -- the command ------------------------------------------------------------------------------------


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    monkeypatch.setenv("TORTIE_RUN_DIR", str(tmp_path))
    done = CliRunner().invoke(leftovers, ["--bird-sockets", str(tmp_path), *words])
    return done.exit_code, done.output


def test_nothing_is_removed_while_bird_runs(
    bird: FakeBird, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = run(tmp_path, monkeypatch, "--remove")
    assert code == 1
    assert "BIRD still runs on this node" in said


def test_nothing_is_removed_without_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = run(tmp_path, monkeypatch, "--remove")
    assert code == 1
    assert "there is no agent at" in said


@pytest.mark.parametrize(
    ("datastore", "speaker", "why"),
    [("stale", "connected", "datastore is stale"), ("in-sync", "down", "speaker is down")],
)
def test_nothing_is_removed_while_the_agent_may_not_know_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, datastore: str, speaker: str, why: str
) -> None:
    answer = json.dumps({"datastore": {"state": datastore}, "speaker": {"state": speaker}})
    agent = FakeBird(tmp_path, "agent.sock", answer.encode() + b"\n", greeting=b"")
    try:
        code, said = run(tmp_path, monkeypatch, "--remove")
    finally:
        agent.close()
    assert code == 1
    assert why in said


def test_torties_routes_stay_while_its_agent_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = FakeBird(tmp_path, "agent.sock", b"{}\n", greeting=b"")
    try:
        code, said = run(tmp_path, monkeypatch, "--of", "tortie", "--remove")
    finally:
        agent.close()
    assert code == 1
    assert "tortie-agent still runs on this node" in said
