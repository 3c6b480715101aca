"""What the speaker keeps: newest state wins, nothing is said twice, nothing is forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.speaker.conf import Reader, blocks
from agent.speaker.feed import Feed
from agent.speaker.nlri import Nlri, Packed, pack
from agent.speaker.protocol import (
    Advertise,
    Event,
    FullSync,
    Hello,
    Learned,
    LimitExceeded,
    Limits,
    Lines,
    PeerDown,
    PeerGone,
    PeerUp,
    ReplayBegin,
    ReplayEnd,
    SyncBegin,
    SyncEnd,
    Withdraw,
    Withdrawn,
    decode_event,
)
from agent.speaker.rib import AdjRibOut
from agent.speaker.session import PeerTable, refusal
from agent.speaker.settings import ConfError, Negotiation, Neighbor, Update
from felix_like.model.address import Address, Asn, Prefix
from felix_like.model.path import Attributes

HELLO = Hello(1, 1, "boot", "5.0.15")
KEYS = [pack(Prefix.of(f"10.0.{n}.0/24")) for n in range(8)]
COLOURS = [Attributes(next_hop=Address.parse("192.0.2.1"), med=n) for n in range(3)]
AGREED = Negotiation(
    router_id="192.0.2.9",
    asn=Asn(64512),
    hold_time=90,
    families=(4,),
    restart_time=120,
    restarting=False,
    graceful=(),
)


def a_neighbor(text: str = "192.0.2.2", **changes: object) -> Neighbor:
    values: dict[str, object] = {
        "address": Address.parse(text),
        "local_address": Address.parse("192.0.2.1"),
        "asn": Asn(64512),
        "local_asn": Asn(64512),
        "router_id": "192.0.2.1",
        "passive": False,
        "connect_port": 179,
        "listen_port": None,
        "hold_time": 90,
        "password": None,
        "incoming_ttl": None,
        "outgoing_ttl": None,
        "families": (4,),
        "restart_time": 120,
        "capabilities": (),
    }
    return Neighbor(**(values | changes))  # type: ignore[arg-type]


def a_table(*names: str, limit: int = 1000) -> PeerTable:
    table = PeerTable(lambda: 0.0, limit)
    table.configure([a_neighbor(name) for name in names or ("192.0.2.2",)])
    return table


def nlri(*prefixes: str) -> Nlri:
    return Nlri.of(4, [Prefix.parse(one) for one in prefixes])


# --------------------------------------------------------------------------- Adj-RIB-Out

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(COLOURS), st.sets(st.sampled_from(KEYS))),
        st.tuples(st.just("drop"), st.none(), st.sets(st.sampled_from(KEYS))),
        st.tuples(st.just("send"), st.none(), st.integers(1, 3)),
        st.tuples(st.just("flap"), st.none(), st.none()),
        st.tuples(st.just("refresh"), st.none(), st.none()),
    ),
    max_size=30,
)


@given(STEPS)
@settings(max_examples=200)
def test_a_peer_ends_with_what_is_wanted(  # noqa: C901 - one branch per verb
    steps: list[tuple[str, Attributes | None, object]],
) -> None:
    out, at_peer = AdjRibOut(), {}
    out.session_up()

    def send(most: int) -> None:
        for _ in range(most):
            batch = out.next_batch()
            if batch is None:
                return
            for one in batch.nlri:
                if batch.attributes is None:
                    assert one in at_peer, "a withdrawal of what the peer never had"
                    del at_peer[one]
                else:
                    at_peer[one] = batch.attributes

    for verb, attributes, argument in steps:
        if verb == "put":
            out.put(4, attributes, argument)  # type: ignore[arg-type]
        elif verb == "drop":
            out.drop(4, argument)  # type: ignore[arg-type]
        elif verb == "send":
            send(argument)  # type: ignore[arg-type]
        elif verb == "refresh":
            out.refresh(4)
        else:
            out.session_down()
            at_peer.clear()
            out.session_up()
    send(1000)
    assert at_peer == out.wanted[4]
    assert not out.pending()


def test_what_changes_before_it_is_sent_is_sent_once() -> None:
    out = AdjRibOut()
    out.session_up()
    for colour in COLOURS:
        out.put(4, colour, KEYS[:1])
    out.put(4, COLOURS[0], KEYS[1:2])
    out.drop(4, KEYS[1:2])
    batch = out.next_batch()
    assert batch is not None
    assert (batch.attributes, batch.nlri) == (COLOURS[2], KEYS[:1])
    assert out.next_batch() is None


def test_a_new_session_does_not_get_what_the_old_one_had_waiting() -> None:
    out = AdjRibOut()
    out.session_up()
    out.put(4, COLOURS[0], KEYS[:1])
    out.put(4, COLOURS[1], KEYS[1:2])
    assert out.next_batch() is not None  # the other waits
    out.session_down()
    out.drop(4, KEYS[1:2])
    out.session_up()
    batch = out.next_batch()
    assert batch is not None
    assert (batch.attributes, batch.nlri) == (COLOURS[0], KEYS[:1])
    assert out.next_batch() is None


def test_a_sync_withdraws_only_what_was_not_said_again() -> None:
    table = a_table()
    out = table.peers[Address.parse("192.0.2.2")].rib_out
    out.session_up()
    peer = (Address.parse("192.0.2.2"),)
    table.carry_out(Advertise(1, peer, COLOURS[0], nlri("10.0.0.0/24", "10.0.1.0/24")))
    while out.next_batch():
        pass
    table.carry_out(SyncBegin(2))
    table.carry_out(Advertise(3, peer, COLOURS[0], nlri("10.0.1.0/24")))
    table.carry_out(SyncEnd(4))
    batch = out.next_batch()
    assert batch is not None
    assert (batch.attributes, batch.nlri) == (None, KEYS[:1])
    assert out.next_batch() is None


def test_a_sync_that_is_broken_off_withdraws_nothing() -> None:
    table = a_table()
    peer = Address.parse("192.0.2.2")
    table.carry_out(Advertise(1, (peer,), COLOURS[0], nlri("10.0.0.0/24")))
    table.carry_out(SyncBegin(2))
    table.disconnected()
    table.connected(Feed(HELLO, ()))
    table.carry_out(SyncEnd(1))
    assert len(table.peers[peer].rib_out) == 1


def test_adverts_may_come_before_their_peer() -> None:
    table = PeerTable(lambda: 0.0, 1000)
    peer = Address.parse("192.0.2.2")
    table.carry_out(Advertise(1, (peer,), COLOURS[0], nlri("10.0.0.0/24")))
    table.configure([a_neighbor()])
    entry = table.peers[peer]
    entry.on_up(AGREED)
    assert entry.next_batch() is not None


def test_end_of_rib_waits_for_the_agent_and_goes_out_once() -> None:
    table = a_table()
    entry = next(iter(table.peers.values()))
    entry.on_up(AGREED)
    assert entry.due_end_of_rib() == []
    table.carry_out(FullSync(1))
    assert entry.due_end_of_rib() == [4]
    assert entry.due_end_of_rib() == []
    entry.on_down("gone", False)
    assert entry.due_end_of_rib() == []
    entry.on_up(AGREED)
    assert entry.due_end_of_rib() == [4]


# --------------------------------------------------------------------------- the feed


class Agent:
    """What an agent knows from the lines it read."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._lines = Lines()
        self.events: list[Event] = []
        self.paths: dict[Prefix, Attributes] = {}
        self.up = False

    def read(self, octets: int = 1 << 30) -> None:
        for line in self._lines.feed(self._feed.take(octets)):
            event = decode_event(line)
            self.events.append(event)
            match event:
                case PeerUp():
                    assert not self.up
                    self.up = True
                case PeerDown() | PeerGone():
                    self.up = False
                    self.paths.clear()
                case Learned():
                    assert self.up, "paths of a peer that is not up"
                    self.paths.update(dict.fromkeys(event.nlri.prefixes, event.attributes))
                case Withdrawn():
                    assert self.up, "a withdrawal of a peer that is not up"
                    for prefix in event.nlri.prefixes:
                        self.paths.pop(prefix, None)
                case _:
                    pass


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("learn"), st.sampled_from(COLOURS), st.sets(st.sampled_from(KEYS), min_size=1)),
            st.tuples(st.just("lose"), st.none(), st.sets(st.sampled_from(KEYS), min_size=1)),
            st.tuples(st.just("flap"), st.none(), st.booleans()),
            st.tuples(st.just("down"), st.none(), st.booleans()),
            st.tuples(st.just("read"), st.none(), st.integers(1, 400)),
            st.tuples(st.just("reconnect"), st.none(), st.none()),
        ),
        max_size=30,
    )
)
@settings(max_examples=200)
def test_an_agent_that_reads_when_it_likes_ends_with_the_truth(
    steps: list[tuple[str, Attributes | None, object]],
) -> None:
    table = a_table()
    entry = next(iter(table.peers.values()))

    def connect() -> Agent:
        feed = Feed(HELLO, table.peers.values())
        table.connected(feed)
        return Agent(feed)

    agent = connect()
    for verb, attributes, argument in steps:
        if verb == "read":
            agent.read(argument)  # type: ignore[arg-type]
        elif verb == "reconnect":
            agent = connect()
        elif verb == "down" or verb == "flap":
            if entry.negotiation is not None:
                entry.on_down("test", bool(argument))
            if verb == "flap":
                entry.on_up(AGREED)
        elif entry.negotiation is not None:
            packed: list[Packed] = sorted(argument)  # type: ignore[call-overload]
            if attributes is not None:
                entry.on_update(Update(announced=((4, attributes, packed),)))
            else:
                entry.on_update(Update(withdrawn=((4, packed),)))
    agent.read()
    assert agent.up == (entry.negotiation is not None)
    truth = {prefix: value for key, value in entry.rib_in.tables[4].items() for prefix in Nlri(4, key)}
    assert agent.paths == truth
    kinds = [type(event) for event in agent.events]
    assert kinds[:2] == [Hello, ReplayBegin]
    assert kinds.count(ReplayEnd) == 1


def test_a_loss_that_was_not_graceful_stays_so_while_nobody_reads() -> None:
    table = a_table()
    entry = next(iter(table.peers.values()))
    feed = Feed(HELLO, table.peers.values())
    table.connected(feed)
    for graceful in (True, False, True):
        entry.on_up(AGREED)
        entry.on_down("test", graceful)
    agent = Agent(feed)
    agent.read()
    assert [event.graceful for event in agent.events if isinstance(event, PeerDown)] == [False]


def test_a_peer_that_is_gone_has_no_paths_to_tell() -> None:
    table = a_table()
    entry = next(iter(table.peers.values()))
    feed = Feed(HELLO, ())
    table.connected(feed)
    entry.on_up(AGREED)
    agent = Agent(feed)
    agent.read()
    entry.on_update(Update(announced=((4, COLOURS[0], KEYS[:2]),)))
    entry.on_down("test", False)
    agent.read()
    assert isinstance(agent.events[-2], PeerDown)


def test_end_of_rib_is_told_after_the_paths() -> None:
    table = a_table()
    entry = next(iter(table.peers.values()))
    feed = Feed(HELLO, ())
    table.connected(feed)
    entry.on_up(AGREED)
    entry.on_update(Update(end_of_rib=4))
    entry.on_update(Update(announced=((4, COLOURS[0], KEYS[:2]),)))
    agent = Agent(feed)
    agent.read()
    assert [type(event).__name__ for event in agent.events[-3:]] == ["Learned", "EndOfRib", "ReplayEnd"]


# --------------------------------------------------------------------------- limits


def test_a_peer_past_its_limit_is_not_stored_further() -> None:
    table = a_table(limit=4)
    table.connected(Feed(HELLO, ()))
    entry = next(iter(table.peers.values()))
    entry.on_up(AGREED)
    entry.on_update(Update(announced=((4, COLOURS[0], KEYS[:5]),)))
    assert entry.over_limit == 5
    entry.on_update(Update(announced=((4, COLOURS[0], KEYS),)))
    assert len(entry.rib_in) == 5
    assert [entry.exceeded(), entry.exceeded()] == [60.0, 120.0]
    assert entry.limit_event() == LimitExceeded(entry.address, 0, 4, 120.0)


def test_a_limit_of_its_own_and_one_lowered_later() -> None:
    table = a_table(limit=4)
    entry = next(iter(table.peers.values()))
    table.carry_out(Limits(1, {entry.address: 8}))
    entry.on_up(AGREED)
    entry.on_update(Update(announced=((4, COLOURS[0], KEYS),)))
    assert entry.over_limit is None
    table.carry_out(Limits(2, {}, default=5))
    assert entry.over_limit == 8


def test_who_was_closed_comes_back_when_its_limit_is_raised_enough() -> None:
    table, pardoned = a_table(limit=4), []
    table.pardon = lambda entry: pardoned.append(str(entry.address))
    entry = table.peers[Address.parse("192.0.2.2")]
    entry.over_limit = 8
    entry.exceeded()
    for limit in (3, 4, 7):
        table.carry_out(Limits(1, {entry.address: limit}))
        assert pardoned == []
        assert entry.limit_event() is not None
    table.carry_out(Limits(2, {entry.address: 8}))
    assert pardoned == ["192.0.2.2"]
    assert entry.limit_event() is None
    table.carry_out(Limits(3, {entry.address: 9}))
    assert len(pardoned) == 1, "once"
    entry.over_limit = 10
    assert entry.exceeded() == 60.0, "its earlier offences are forgotten"


def test_a_withdrawal_for_an_unknown_peer_is_no_error() -> None:
    a_table().carry_out(Withdraw(1, (Address.parse("203.0.113.9"),), nlri("10.0.0.0/24")))


# --------------------------------------------------------------------------- configuration


def test_a_configuration_is_compared_peer_by_peer() -> None:
    table = a_table("192.0.2.2", "192.0.2.3", "192.0.2.4")
    changes = table.configure(
        [
            a_neighbor("192.0.2.2", description="new"),
            a_neighbor("192.0.2.3", hold_time=30),
            a_neighbor("192.0.2.5"),
        ]
    )
    report = changes.report("x")
    assert [str(a) for a in report.added] == ["192.0.2.5"]
    assert [str(a) for a in report.removed] == ["192.0.2.4"]
    assert [str(a) for a in report.changed] == ["192.0.2.3"]
    assert report.unchanged == 1


@pytest.mark.parametrize(
    ("changes", "renews"),
    [
        ({"hold_time": 30}, True),
        ({"restart_time": 60}, True),
        ({"restart_time": 0}, False),
        ({"password": "c2VjcmV0"}, True),
        ({"incoming_ttl": 255}, True),
        ({"connect_port": 1790}, True),
        ({"capabilities": (("asn4", "True"),)}, True),
        ({"asn": Asn(64600)}, False),
        ({"local_asn": Asn(64600)}, False),
        ({"local_address": Address.parse("192.0.2.7")}, False),
        ({"router_id": "192.0.2.7"}, False),
        ({"families": (4, 6)}, False),
    ],
)
def test_new_terms_between_the_same_two_keep_what_they_told(changes: dict[str, Any], renews: bool) -> None:
    """Who gives up graceful restart, or is another speaker, says goodbye."""
    before, after = a_neighbor(), a_neighbor(**changes)
    assert before != after
    assert after.renews(before) == renews


def test_who_connects_changes_without_ending_a_session() -> None:
    """A route reflector's clients waited for it as members of the mesh; as its clients they need not."""
    table = a_table("192.0.2.2", "192.0.2.3")
    changes = table.configure(
        [a_neighbor("192.0.2.2", passive=True, description="new"), a_neighbor("192.0.2.3")]
    )
    assert (changes.added, changes.removed, changes.changed, changes.unchanged) == ((), (), (), 2)
    now = table.peers[Address.parse("192.0.2.2")].neighbor
    assert (now.passive, now.description) == (True, "new"), "what the next connection goes by"


@pytest.mark.parametrize(
    ("neighbors", "words"),
    [
        ([a_neighbor(), a_neighbor()], "twice"),
        ([a_neighbor(f"192.0.2.{n}", hold_time=3) for n in range(2, 60)], "too short"),
        ([a_neighbor(families=())], "neither"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(neighbors: list[Neighbor], words: str) -> None:
    assert words in (refusal(neighbors) or "")


def test_a_short_hold_time_is_fine_in_a_small_mesh() -> None:
    assert refusal([a_neighbor(hold_time=3)]) is None


def a_reader() -> tuple[Reader, list[str]]:
    parsed: list[str] = []

    def parse(text: str) -> list[Neighbor]:
        parsed.append(text)
        if "bad" in text:
            raise ConfError("bad")
        return [a_neighbor(line.split()[1]) for line in text.splitlines() if line.startswith("neighbor ")]

    return Reader(parse), parsed


def block(name: str, body: str = "x 1;") -> str:
    return f"neighbor {name} {{\n  {body}\n}}\n"


def test_only_new_blocks_are_parsed() -> None:
    reader, parsed = a_reader()
    reader.read("# hello\ntemplate { }\n" + block("192.0.2.2") + "\n" + block("192.0.2.3"))
    assert len(parsed) == 2
    again = reader.read(block("192.0.2.3") + block("192.0.2.4"))
    assert parsed[2:] == [block("192.0.2.4")]
    assert [str(one.address) for one in again] == ["192.0.2.3", "192.0.2.4"]


def test_a_bad_block_forgets_nothing() -> None:
    reader, parsed = a_reader()
    reader.read(block("192.0.2.2"))
    with pytest.raises(ConfError):
        reader.read(block("192.0.2.2") + block("192.0.2.3", "bad"))
    reader.read(block("192.0.2.2"))
    assert len(parsed) == 2


@pytest.mark.parametrize(
    "text",
    [
        "process x {\n}\n",
        "neighbor 192.0.2.2 { x 1; }\n",
        "neighbor 192.0.2.2 {\n  x 1;\n",
        "neighbor 192.0.2.2 {\nneighbor 192.0.2.3 {\n}\n",
    ],
)
def test_another_layout_is_parsed_whole(text: str) -> None:
    reader, parsed = a_reader()
    assert blocks(text) is None
    reader.read(text)
    assert parsed == [text]


def test_a_file_without_neighbors_means_no_peers() -> None:
    reader, parsed = a_reader()
    assert reader.read("template { }\n") == []
    assert parsed == []
