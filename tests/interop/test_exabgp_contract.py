"""What we rely on of ExaBGP's internals, which promise nothing: run before any change of its version.

Two of the adapter's sessions talk over a loopback TCP connection; no root needed.
"""

from __future__ import annotations

import inspect
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import exabgp.bgp.timer
import pytest
from exabgp.configuration.configuration import Configuration
from exabgp.reactor.network import tcp
from exabgp.reactor.peer import Peer
from exabgp.reactor.protocol import Protocol
from exabgp.rib import RIB
from exabgp.version import version

from agent.speaker import adapter
from agent.speaker.adapter import Session
from agent.speaker.nlri import Nlri, Packed
from agent.speaker.protocol import State
from agent.speaker.settings import Batch, ConfError, Negotiation, Neighbor, Update
from felix_like.model.address import Address, Asn, IpVersion, Prefix
from felix_like.model.path import Attributes, OriginCode
from tests.support.speaker import neighbor

adapter.prepare()


def test_the_version_is_the_tested_one() -> None:
    assert version == adapter.PINNED == "5.0.15"


def test_the_names_we_lean_on_are_there() -> None:
    assert {"run", "_close", "_reset", "socket"} <= set(dir(Peer))
    assert "self.proto = Protocol(self).accept" in inspect.getsource(Peer.handle_connection)
    assert "if not self.proto" in inspect.getsource(Peer._establish)
    assert {"accept", "write", "new_update"} <= set(dir(Protocol))
    assert list(inspect.signature(tcp.md5).parameters) == ["io", "ip", "port", "md5", "md5_base64"]
    assert isinstance(RIB._cache, dict)
    assert "time.time()" in inspect.getsource(exabgp.bgp.timer), "the clock we replace"


def test_a_failed_parse_does_not_poison_the_next() -> None:
    good = neighbor("192.0.2.1", "192.0.2.2")
    for bad in (
        "neighbor 192.0.2.9 {\n  bogus 1;\n}\n",
        "neighbor 192.0.2.9 {\n  hold-time nine;\n}\n",
        "nonsense {\n}\n",
        "neighbor 192.0.2.9 {",
    ):
        with pytest.raises(ConfError):
            adapter.parse(bad)
        assert [str(one.address) for one in adapter.parse(good)] == ["192.0.2.2"]


def test_parsing_leaves_nothing_in_the_rib_cache() -> None:
    before = dict(RIB._cache)  # other tests call ExaBGP's own parser in this process
    adapter.parse(neighbor("192.0.2.1", "192.0.2.2"))
    assert before == RIB._cache


def test_a_neighbor_is_read_whole() -> None:
    (one,) = adapter.parse(neighbor("2001:db8::1", "2001:db8::2", peer_as=65001, password="p;w", hold=30))
    assert one.address == Address.parse("2001:db8::2")
    assert one.local_address == Address.parse("2001:db8::1")
    assert (one.asn, one.local_asn, one.router_id) == (65001, 64512, "192.0.2.1")
    assert (one.password, one.hold_time, one.families, one.restart_time) == ("cDt3", 30, (6,), 120)
    assert one.is_ebgp
    (again,) = adapter.parse(neighbor("2001:db8::1", "2001:db8::2", peer_as=65001, password="p;w", hold=30))
    (other,) = adapter.parse(neighbor("2001:db8::1", "2001:db8::2", peer_as=65001, password="other", hold=30))
    assert one == again
    assert one != other


@pytest.mark.parametrize(
    "change",
    [
        ("local-as 64512;", "local-as auto;"),
        ("neighbor 192.0.2.2", "neighbor 192.0.2.0/24"),
        ("capability {", "capability { add-path send/receive;"),
    ],
)
def test_what_we_cannot_do_is_refused(change: tuple[str, str]) -> None:
    text = neighbor("192.0.2.1", "192.0.2.2", passive=True)
    assert change[0] in text
    with pytest.raises(ConfError):
        adapter.parse(text.replace(*change))


def test_many_parses_do_not_share_state() -> None:
    assert Configuration([neighbor("192.0.2.1", "192.0.2.2")], text=True).reload()
    assert len(adapter.parse(neighbor("192.0.2.1", "192.0.2.3") + neighbor("192.0.2.1", "192.0.2.4"))) == 2


# --------------------------------------------------------------------------- two sessions, one wire


@dataclass
class Ear:
    """Records what a session says."""

    states: list[State] = field(default_factory=list)
    up: list[Negotiation] = field(default_factory=list)
    down: list[tuple[str, bool]] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    refreshed: list[IpVersion] = field(default_factory=list)

    def on_state(self, state: State) -> None:
        self.states.append(state)

    def on_up(self, negotiation: Negotiation) -> None:
        self.up.append(negotiation)

    def on_down(self, reason: str, graceful: bool) -> None:
        self.down.append((reason, graceful))

    def on_update(self, update: Update) -> None:
        self.updates.append(update)

    def on_refresh(self, version: IpVersion) -> None:
        self.refreshed.append(version)

    def has_batches(self) -> bool:
        return bool(self.batches)

    def next_batch(self) -> Batch | None:
        return self.batches.pop(0) if self.batches else None

    @property
    def announced(self) -> dict[Prefix, Attributes]:
        table: dict[Prefix, Attributes] = {}
        for update in self.updates:
            for version_, nlri in update.withdrawn:
                for prefix in Nlri.joined(version_, nlri):
                    table.pop(prefix, None)
            for version_, attributes, nlri in update.announced:
                table.update(dict.fromkeys(Nlri.joined(version_, nlri), attributes))
        return table

    @property
    def faults(self) -> list[str]:
        return [update.fault for update in self.updates if update.fault is not None]


class Wire:
    """A (the one under test) and B over TCP on 127.0.0.1; addresses of the configuration are only text."""

    def __init__(
        self, *, ebgp: bool = False, graceful: int = 120, ipv6: bool = False, restarting: bool = True
    ) -> None:
        asn = 64513 if ebgp else 64512
        addresses = ("2001:db8::1", "2001:db8::2") if ipv6 else ("192.0.2.1", "192.0.2.2")
        self.conf_a = self._conf(*addresses, peer_as=asn, graceful=graceful)
        self.conf_b = self._conf(
            *reversed(addresses), local_as=asn, peer_as=64512, router_id="192.0.2.2", graceful=graceful
        )
        self.a_ear, self.b_ear = Ear(), Ear()
        self.a = Session(self.conf_a, self.a_ear, True)
        self.b = Session(self.conf_b, self.b_ear, False)
        self.sockets: list[socket.socket] = []

    def _conf(self, local: str, peer: str, **options: object) -> Neighbor:
        (parsed,) = adapter.parse(neighbor(local, peer, **options))  # type: ignore[arg-type]
        return parsed

    def connect(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            one = socket.create_connection(server.getsockname())
            two, _ = server.accept()
        for session, io, outgoing in ((self.a, one, True), (self.b, two, False)):
            io.setblocking(False)
            io.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets.append(io)
            session.attach(io, outgoing)

    def run(self, turns: int = 200) -> None:
        for _ in range(turns):
            self.a.run()
            self.b.run()

    def up(self) -> Wire:
        self.connect()
        self.run()
        assert self.a.established
        assert self.b.established
        return self

    def raw(self, body: bytes) -> None:
        """An UPDATE from B exactly so."""
        message = b"\xff" * 16 + struct.pack("!HB", 19 + len(body), 2) + body
        self.b._peer.proto.connection.out += message
        self.b.flush()
        self.run(50)

    def close(self) -> None:
        for io in self.sockets:
            io.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made.up()
    made.close()


@pytest.fixture
def external() -> Iterator[Wire]:
    made = Wire(ebgp=True)
    yield made.up()
    made.close()


def packed(*prefixes: str) -> list[Packed]:
    return Nlri.of(6 if ":" in prefixes[0] else 4, [Prefix.parse(one) for one in prefixes]).packed


def rich(next_hop: str, **more: object) -> Attributes:
    values = {
        "next_hop": Address.parse(next_hop),
        "origin": OriginCode.INCOMPLETE,
        "as_path": (("sequence", (Asn(65001), Asn(4_200_000_000))), ("set", (Asn(1), Asn(2)))),
        "med": 0,
        "local_pref": 200,
        "atomic_aggregate": True,
        "communities": ("65001:1", "65535:65281"),
        "large_communities": ("4200000000:1:2",),
        "originator_id": "10.0.0.9",
        "cluster_list": ("10.0.0.1", "10.0.0.2"),
    }
    return Attributes(**(values | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("ipv6", [False, True])
def test_attributes_survive_the_wire(ipv6: bool) -> None:
    wire = Wire(ipv6=ipv6).up()
    family: IpVersion = 6 if ipv6 else 4
    next_hop, prefix = ("2001:db8::2", "2001:db8:1::/48") if ipv6 else ("192.0.2.2", "10.1.0.0/26")
    wire.b_ear.batches.append(Batch(family, rich(next_hop), packed(prefix)))
    wire.run()
    assert wire.a_ear.announced == {Prefix.parse(prefix): rich(next_hop)}
    wire.b_ear.batches.append(Batch(family, None, packed(prefix)))
    wire.run()
    assert wire.a_ear.announced == {}
    wire.close()


def test_ipv6_is_packed(wire: Wire) -> None:
    six = Wire(ipv6=True).up()
    prefixes = [f"2001:db8:{n:x}::/48" for n in range(1, 200)]
    six.b_ear.batches.append(Batch(6, rich("2001:db8::2"), packed(*prefixes)))
    six.run()
    assert len(six.a_ear.updates) == 1
    assert len(six.a_ear.announced) == 199
    six.close()


def test_what_was_negotiated_is_told(wire: Wire) -> None:
    (agreed,) = wire.b_ear.up
    assert (agreed.router_id, agreed.asn, agreed.hold_time, agreed.families) == ("192.0.2.1", 64512, 90, (4,))
    assert agreed.restart_time == 120
    assert agreed.restarting, "the first OPEN of a process carries the R bit"
    assert [(one.version, one.forwarding) for one in agreed.graceful] == [(4, True)], "the F bit"
    assert not wire.a_ear.up[0].restarting


def test_the_restart_bit_is_gone_after_the_first_session(wire: Wire) -> None:
    wire.a.drop("test")
    wire.run()
    wire.connect()
    wire.run()
    assert [one.restarting for one in wire.b_ear.up] == [True, False]


def test_end_of_rib_only_when_asked_and_after_the_routes(wire: Wire) -> None:
    wire.run()
    assert wire.a_ear.updates == []
    wire.b_ear.batches += [Batch(4, rich("192.0.2.2"), packed(f"10.{n}.0.0/16")) for n in range(5)]
    wire.b.send_end_of_rib(4)
    wire.run()
    assert [update.end_of_rib for update in wire.a_ear.updates] == [None] * 5 + [4]


def test_a_cease_is_sent_although_graceful_restart_is_on(wire: Wire) -> None:
    io = wire.a.cease(3, "removed")
    assert io is not None
    wire.run()
    assert wire.a_ear.down[0][1] is False
    ((reason, graceful),) = wire.b_ear.down
    assert "Peer De-configured" in reason
    assert not graceful
    io.close()


def test_dropping_says_nothing_and_is_graceful_at_the_peer(wire: Wire) -> None:
    wire.a.drop("upgrade")
    wire.run()
    ((_, graceful),) = wire.b_ear.down
    assert graceful
    assert not wire.b.attached


def test_without_graceful_restart_a_loss_is_not_graceful() -> None:
    wire = Wire(graceful=0).up()
    wire.a.drop("gone")
    wire.run()
    assert [graceful for _, graceful in wire.b_ear.down] == [False]
    assert wire.b_ear.up[0].restart_time is None
    wire.close()


def test_a_session_comes_back_over_a_new_connection(wire: Wire) -> None:
    wire.a.drop("test")
    wire.run()
    wire.connect()
    wire.run()
    assert wire.a.established
    wire.b_ear.batches.append(Batch(4, rich("192.0.2.2"), packed("10.1.0.0/16")))
    wire.run()
    assert len(wire.a_ear.announced) == 1


def test_a_peer_that_does_not_read_blocks_only_its_own_updates(wire: Wire) -> None:
    for io in wire.sockets:
        io.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        io.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    prefixes = packed(*[f"10.{n >> 8}.{n & 255}.0/24" for n in range(200)])
    for med in range(300):  # distinct attributes: one large message after the other
        wire.a_ear.batches.append(Batch(4, rich("192.0.2.1", med=med), prefixes))
    for _ in range(20_000):
        wire.a.run()
        if wire.a.blocked:
            break
    assert wire.a.blocked
    before = len(wire.a_ear.batches)
    assert before > 0
    for _ in range(50):
        wire.a.run()
    assert wire.a.unsent < 2 * 65536, "bounded"
    for io in wire.sockets:
        io.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        io.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    deadline = time.monotonic() + 30
    while len(wire.b_ear.updates) < 300 and time.monotonic() < deadline:
        wire.run(20)
        time.sleep(0.001)
    assert wire.b.established, "nothing was written into the middle of a message"
    assert {a.med for a in wire.b_ear.announced.values()} == {299}


def test_a_callback_that_fails_does_not_cost_the_session(wire: Wire) -> None:
    def fail(_update: Update) -> None:
        raise RuntimeError("a bug")

    wire.a_ear.on_update = fail  # type: ignore[method-assign]
    wire.b_ear.batches.append(Batch(4, rich("192.0.2.2"), packed("10.1.0.0/16")))
    wire.run()
    assert wire.a.established


def test_timers_do_not_read_the_wall_clock() -> None:
    assert abs(exabgp.bgp.timer.time.time() - time.monotonic()) < 1


# --------------------------------------------------------------------------- RFC 7606 and section 6.3

ORIGIN_IGP = bytes.fromhex("40010100")
AS_EMPTY = bytes.fromhex("400200")
AS_65001 = bytes.fromhex("4002060201") + struct.pack("!L", 64513)
HOP = bytes.fromhex("400304c0000202")
PREF = bytes.fromhex("40050400000064")
TEN = bytes.fromhex("180a0100")  # 10.1.0.0/24


def update(attributes: bytes, nlri: bytes = TEN, withdrawn: bytes = b"") -> bytes:
    return (
        struct.pack("!H", len(withdrawn)) + withdrawn + struct.pack("!H", len(attributes)) + attributes + nlri
    )


GOOD = ORIGIN_IGP + AS_EMPTY + HOP + PREF


def test_the_hand_made_update_is_good(wire: Wire) -> None:
    wire.raw(update(GOOD))
    assert [str(prefix) for prefix in wire.a_ear.announced] == ["10.1.0.0/24"]


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (AS_EMPTY + HOP + PREF, "ORIGIN is missing"),
        (ORIGIN_IGP + HOP + PREF, "AS_PATH is missing"),
        (ORIGIN_IGP + AS_EMPTY + PREF, "NEXT_HOP is missing"),
        (ORIGIN_IGP + AS_EMPTY + HOP, "LOCAL_PREF is missing"),
        (bytes.fromhex("40010103") + AS_EMPTY + HOP + PREF, "undefined value 3"),
        (bytes.fromhex("4001020000") + AS_EMPTY + HOP + PREF, "ORIGIN does not have one octet"),
        (ORIGIN_IGP + AS_EMPTY + bytes.fromhex("40030400000000") + PREF, "0.0.0.0 is no address"),
        (ORIGIN_IGP + AS_EMPTY + bytes.fromhex("400304e0000001") + PREF, "not a unicast address"),
        (ORIGIN_IGP + AS_EMPTY + bytes.fromhex("400304c0000201") + PREF, "our own address"),
        (GOOD + bytes.fromhex("c00803fde800"), "malformed"),
        (GOOD + bytes.fromhex("8004020000"), "malformed"),
    ],
)
def test_a_faulty_route_counts_as_withdrawn_and_the_session_stays(
    wire: Wire, attributes: bytes, words: str
) -> None:
    wire.raw(update(GOOD))
    wire.raw(update(attributes))
    assert wire.a_ear.announced == {}, "treat-as-withdraw takes the earlier route away"
    assert words in wire.a_ear.faults[0]
    assert wire.a_ear.updates[-1].faulty == 1
    assert wire.a.established


def test_ibgp_attributes_from_outside_are_dropped(external: Wire) -> None:
    originator, clusters = bytes.fromhex("8009040a000009"), bytes.fromhex("800a040a000001")
    external.raw(update(ORIGIN_IGP + AS_65001 + HOP + PREF + originator + clusters))
    (attributes,) = external.a_ear.announced.values()
    assert (attributes.local_pref, attributes.originator_id, attributes.cluster_list) == (None, None, ())
    assert attributes.neighbor_as == 64513


@pytest.mark.parametrize(
    "body",
    [
        update(GOOD, bytes.fromhex("210a01000001")),  # /33
        update(GOOD, bytes.fromhex("180a")),  # cut short
        b"\x00\x00\x00\xff",  # attributes that are not there
        update(bytes.fromhex("800e05000201") + b"\x03\x00"),  # MP_REACH with a bad next hop length
    ],
)
def test_what_cannot_be_read_ends_the_session_with_a_notification(wire: Wire, body: bytes) -> None:
    wire.raw(body)
    assert not wire.a.established
    assert "UPDATE message error" in wire.b_ear.down[0][0]
    assert wire.a_ear.down[0][1] is False


def test_ipv6_end_of_rib_and_withdrawal(wire: Wire) -> None:
    six = Wire(ipv6=True).up()
    six.raw(update(bytes.fromhex("800f03000201"), b""))
    assert [one.end_of_rib for one in six.a_ear.updates] == [6]
    six.raw(update(bytes.fromhex("800f0a000201") + packed("2001:db8:1::/48")[0], b""))
    assert six.a_ear.updates[-1].withdrawn == ((6, packed("2001:db8:1::/48")),)
    six.close()


def test_route_refresh_is_asked_of_us_plainly(wire: Wire) -> None:
    wire.b._peer.proto.connection.out += b"\xff" * 16 + struct.pack("!HBHBB", 23, 5, 1, 0, 1)
    wire.b.flush()
    wire.run()
    assert wire.a_ear.refreshed == [4]
    assert wire.a.established
