"""What the fleet is told, from status documents alone: states, events, queues, and readers of anything."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from agent.cli.fleettable import screen, table
from agent.cli.watch import line
from agent.telemetry import summary, topics
from agent.telemetry.changes import MOST_AT_ONCE, changes
from agent.telemetry.fleet import LARGEST, MOST_NODES, SILENT, Fleet
from agent.telemetry.outgoing import MOST_EVENTS, PAUSE, REFRESH, Message, Outgoing
from agent.telemetry.payloads import KINDS, LONGEST_TEXT, MOST_NAMED, Event, Peers, Status, schema
from tests.support.agentsocket import NOW, STATUS

SCHEMA = Path(__file__).parents[2] / "deploy" / "mqtt" / "tortie-v1.schema.json"
Document = dict[str, Any]


def document(**parts: Any) -> Document:
    """STATUS with top-level parts replaced, objects merged."""
    made = copy.deepcopy(STATUS)
    for name, value in parts.items():
        made[name] = (made[name] or {}) | value if isinstance(value, dict) else value
    return made


def peer(number: int, state: str = "Established", **fields: Any) -> Document:
    address = f"10.0.{number // 250}.{number % 250}"
    return STATUS["peers"][0] | {
        "address": address, "name": f"Mesh_{number}", "remote_node": f"node-{number}", "state": state,
        "received": 3, "accepted": 2, "rejected": 1, "stale": 0, "advertised": 4,
    } | fields  # fmt: skip


def drain(outgoing: Outgoing, now: float) -> list[Message]:
    """Everything there is to tell, told."""
    told = []
    while (message := outgoing.next(now)) is not None:
        outgoing.delivered(message, now)
        told.append(message)
    return told


def kinds(messages: list[Message]) -> list[str]:
    return [message.kind for message in messages]


def validator(kind: str) -> Draft202012Validator:
    whole = json.loads(SCHEMA.read_text())
    return Draft202012Validator({"$defs": whole["$defs"], "$ref": f"#/$defs/{KINDS[kind].__name__}"})


# -- the schema ----------------------------------------------------------------------------------------


def test_the_schema_file_is_what_the_code_writes() -> None:
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(schema())), (
        "write agent.telemetry.payloads.schema() into the file; a change that is no addition needs a v2"
    )
    Draft202012Validator.check_schema(schema())


def published(told: list[Message]) -> list[tuple[str, Any]]:
    return [(message.kind, json.loads(message.payload)) for message in told]


def test_everything_published_fits_the_schema_and_is_one_kind_only() -> None:
    outgoing = Outgoing("node-1", "default")
    outgoing.observe(STATUS)
    told = drain(outgoing, 0.0)
    troubled = document(
        peers=[peer(n, "Active", info="no route to host") for n in range(99)],
        datastore={"state": "stale", "reason": "etcd is away"},
        kubernetes={"state": "stale", "since": NOW, "server": "https://k:6443", "reason": "it is away"},
        routes={"failed": [{"prefix": "10.0.0.0/26", "reason": "no"}]},
        refusals=[{"subject": "BGPPeer x", "reason": "y" * 5000}],
    )
    outgoing.observe(troubled)
    told += drain(outgoing, 100.0)
    will = summary.encode(summary.will("node-1", "default", NOW))
    whole = Draft202012Validator(json.loads(SCHEMA.read_text()))
    everything = [*published(told), ("status", json.loads(will))]
    assert {kind for kind, _ in everything} == set(KINDS)
    for kind, payload in everything:
        validator(kind).validate(payload)
        whole.validate(payload)


@pytest.mark.parametrize("wrong", [{"version": 2}, {"state": "asleep"}, {"node": None}, {"time": -1}])
def test_the_schema_refuses_what_is_not_ours(wrong: Document) -> None:
    payload = json.loads(summary.encode(summary.status(STATUS, "default")))
    assert validator("status").is_valid(payload)
    assert not validator("status").is_valid(payload | wrong)


# -- cost ----------------------------------------------------------------------------------------------


def test_a_nodes_messages_do_not_grow_with_the_cluster() -> None:
    def size(peers: int) -> int:
        everything = document(
            peers=[peer(n, "Active", info="x" * 1000) for n in range(peers)],
            refusals=[{"subject": f"s{n}", "reason": "r" * 1000} for n in range(peers)],
            routes={"failed": [{"prefix": f"p{n}", "reason": "f" * 1000} for n in range(peers)]},
        )
        outgoing = Outgoing("node-1", "default")
        outgoing.observe(STATUS)
        outgoing.observe(everything)
        return sum(len(message.payload) for message in drain(outgoing, 0.0))

    hundred, thousand = size(100), size(3000)
    assert thousand - hundred < 64, "the digits of the counts may grow, nothing else"
    told = summary.peers(document(peers=[peer(n, "Active") for n in range(3000)]), "c")
    assert (told.total, told.established, len(told.unestablished)) == (3000, 0, MOST_NAMED)


def test_the_largest_message_is_one_that_readers_take() -> None:
    long = "\x00" * 10_000
    worst = document(
        peers=[peer(n, "Active", info=long, name=long, type=long) for n in range(50)],
        refusals=[{"subject": long, "reason": long}] * 50,
        routes={"failed": [{"prefix": long, "reason": long}] * 50,
                "conflicts": [{"prefix": long, "reason": long}] * 50},
    )  # fmt: skip
    for payload in (summary.status(worst, "c"), summary.peers(worst, "c"), summary.counts(worst, "c")):
        assert len(summary.encode(payload)) < LARGEST


def test_half_a_surrogate_pair_is_told_as_a_question_mark() -> None:
    half: str = json.loads('"\\ud800"')
    told = summary.status(document(node=half, refusals=[{"subject": half, "reason": half}]), "c")
    assert (told.node, told.refusals.first[0].reason) == ("?", "?")
    assert summary.encode(told)


def test_counts_are_sums() -> None:
    told = summary.counts(document(peers=[peer(1), peer(2)]), "default")
    assert (told.paths.received, told.paths.rejected, told.paths.advertised) == (6, 2, 8)
    assert (told.routes.wanted, told.routes.installed, told.rib.valid, told.revision) == (2, 2, 2, 42)


# -- events --------------------------------------------------------------------------------------------


def told_by(before: Document | None, after: Document) -> list[tuple[str, str, str, str]]:
    return [(e.kind, e.subject, e.before, e.after) for e in changes(before, after, "default")]


def test_nothing_happened_nothing_is_told() -> None:
    assert told_by(STATUS, document(time=NOW + 1)) == []


def test_the_first_look_tells_of_the_agent_only() -> None:
    assert told_by(None, STATUS) == [("agent", "tortie-agent 0.1.0", "", "running")]


def test_an_agent_that_started_again_is_news() -> None:
    assert told_by(STATUS, document(agent={"started": NOW})) == [
        ("agent", "tortie-agent 0.1.0", "", "running")
    ]


def test_peers_come_go_rise_and_fall() -> None:
    one, two = (
        document(peers=[peer(1), peer(2)]),
        document(peers=[peer(1, "Idle", info="Hold timer"), peer(3)]),
    )
    assert told_by(one, two) == [
        ("peer", "node-1 (10.0.0.1)", "Established", "Idle"),
        ("peer", "node-3 (10.0.0.3)", "", "Established"),
        ("peer", "node-2 (10.0.0.2)", "Established", ""),
    ]
    assert changes(one, two, "c")[0].reason == "Hold timer"


def test_what_a_session_goes_through_while_it_is_down_is_no_event() -> None:
    assert told_by(document(peers=[peer(1, "Idle")]), document(peers=[peer(1, "Connect", since=NOW)])) == []


def test_a_session_lost_and_found_between_two_looks_is_told() -> None:
    before, after = document(peers=[peer(1)]), document(peers=[peer(1, since=NOW)])
    assert [e.reason for e in changes(before, after, "c")] == ["it was lost and found meanwhile"]


def test_routes_conflicts_and_refusals_with_their_reasons() -> None:
    bad = document(
        routes={"failed": [{"prefix": "10.1.0.0/26", "reason": "no buffer"}],
                "conflicts": [{"prefix": "10.2.0.0/26", "reason": "docker has it"}]},
        refusals=[{"subject": "BGPPeer tor", "reason": "no password"}],
    )  # fmt: skip
    assert told_by(STATUS, bad) == [
        ("route", "10.1.0.0/26", "ok", "failed"),
        ("conflict", "10.2.0.0/26", "none", "present"),
        ("refusal", "BGPPeer tor", "none", "present"),
    ]
    assert told_by(bad, STATUS) == [
        ("route", "10.1.0.0/26", "failed", "ok"),
        ("conflict", "10.2.0.0/26", "present", "none"),
        ("refusal", "BGPPeer tor", "present", "none"),
    ]
    other = document(refusals=[{"subject": "BGPPeer tor", "reason": "AS 0"}], routes=bad["routes"])
    assert [(e.before, e.after, e.reason) for e in changes(bad, other, "c")] == [
        ("present", "present", "AS 0")
    ]


def test_datastore_and_speaker_states() -> None:
    after = document(datastore={"state": "stale", "reason": "gone"}, speaker={"state": "down"})
    assert told_by(STATUS, after) == [
        ("datastore", "datastore", "in-sync", "stale"),
        ("speaker", "speaker", "connected", "down"),
    ]


AWAY = {"state": "stale", "since": NOW - 9, "server": "https://k:6443", "reason": "connection refused"}


def with_kubernetes(state: str, **more: Any) -> Document:
    return STATUS | {"kubernetes": AWAY | {"state": state, "reason": ""} | more}


def test_kubernetes_is_a_part_of_the_status_where_there_is_access_to_it() -> None:
    told = json.loads(summary.encode(summary.status(STATUS | {"kubernetes": AWAY}, "c")))["kubernetes"]
    assert told == {"state": "stale", "since": NOW - 9, "reason": "connection refused"}
    for none in (STATUS, {name: part for name, part in STATUS.items() if name != "kubernetes"}):
        assert summary.status(none, "c").kubernetes is None


def test_kubernetes_goes_and_comes_as_events_and_at_once() -> None:
    fine, away = with_kubernetes("in-sync"), STATUS | {"kubernetes": AWAY}
    assert told_by(fine, away) == [("datastore", "kubernetes", "in-sync", "stale")]
    assert told_by(away, fine) == [("datastore", "kubernetes", "stale", "in-sync")]
    assert told_by(STATUS, STATUS) == []
    outgoing = Outgoing("node-1", "default")
    outgoing.observe(fine)
    drain(outgoing, 0.0)
    outgoing.observe(away)
    first = outgoing.next(PAUSE / 10)
    assert first is not None
    assert (first.kind, json.loads(first.payload)["kubernetes"]["state"]) == ("status", "stale")


@pytest.mark.parametrize(
    ("state", "wrong"),
    [("in-sync", ""), ("idle", ""), ("connecting", "Kubernetes connecting"), ("stale", "Kubernetes stale")],
)
def test_a_table_of_nodes_says_of_kubernetes_what_is_wrong(state: str, wrong: str) -> None:
    healthy = {"peers": [], "kubernetes": with_kubernetes(state)["kubernetes"]}
    [_, row] = table(heard(*whole("node-1", **healthy)), NOW)
    assert ("Kubernetes" in row) is bool(wrong)
    assert row.endswith(wrong or "0")


def test_a_thousand_sessions_lost_at_once_are_fifty_events_and_a_count() -> None:
    up, down = ([peer(n, state) for n in range(1000)] for state in ("Established", "Idle"))
    told = changes(document(peers=up), document(peers=down), "default")
    assert len(told) == MOST_AT_ONCE + 1
    assert told[-1].kind == "lost"
    assert told[-1].reason.startswith("950 more")


def test_a_story_of_events_leads_to_the_last_state() -> None:
    """Whatever is between, the events' last word on a peer is its state."""
    story = [document(peers=[peer(1, state)]) for state in ("Idle", "Established", "Active", "Established")]
    last: dict[str, str] = {}
    for before, after in pairwise(story):
        last |= {e.subject: e.after for e in changes(before, after, "c")}
    assert last == {"node-1 (10.0.0.1)": "Established"}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["state", "since", "reason", "peers", "failed", "started", "address"]), inner
        )
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(list(STATUS)), ANYTHING),
    st.dictionaries(st.sampled_from(list(STATUS)), ANYTHING),
)
def test_any_document_can_be_told(one: Document, two: Document) -> None:
    """`tortiectl` reads the sockets of other versions' agents."""
    outgoing = Outgoing("node-1", "default")
    outgoing.observe(one)
    outgoing.observe(two)
    for message in drain(outgoing, 0.0):
        assert type(msgspec.json.decode(message.payload, type=KINDS[message.kind])) is KINDS[message.kind]


# -- what is still to be told --------------------------------------------------------------------------


def observed() -> Outgoing:
    outgoing = Outgoing("node-1", "default")
    outgoing.observe(STATUS)
    return outgoing


def test_states_first_then_the_events_and_then_silence() -> None:
    outgoing = observed()
    told = drain(outgoing, 0.0)
    assert kinds(told) == ["status", "peers", "counts", "events"]
    assert [message.retain for message in told] == [True, True, True, False]
    outgoing.observe(document(time=NOW + 1))
    assert drain(outgoing, 1.0) == []


def test_the_newest_state_wins_while_nobody_listens() -> None:
    outgoing = observed()
    for number in range(1000):
        outgoing.observe(document(routes={"wanted": number}))
    counts = [message for message in drain(outgoing, 0.0) if message.kind == "counts"]
    assert [json.loads(message.payload)["routes"]["wanted"] for message in counts] == [999]


def test_what_was_not_confirmed_is_told_again() -> None:
    outgoing = observed()
    assert outgoing.next(0.0) == outgoing.next(1.0)


def test_a_state_that_moved_on_while_it_was_told_is_told_again() -> None:
    outgoing = observed()
    first = outgoing.next(0.0)
    assert first is not None
    outgoing.observe(document(speaker={"state": "down"}))
    outgoing.delivered(first, 0.1)
    again = outgoing.next(0.2)
    assert again is not None
    assert json.loads(again.payload)["speaker"]["state"] == "down"


def test_a_new_broker_is_told_every_state() -> None:
    outgoing = observed()
    drain(outgoing, 0.0)
    outgoing.connected()
    assert kinds(drain(outgoing, 1.0)) == ["status", "peers", "counts"]


def test_an_old_state_is_refreshed() -> None:
    outgoing = observed()
    drain(outgoing, 0.0)
    assert drain(outgoing, REFRESH - 1) == []
    assert outgoing.wait(REFRESH - 1) <= 1
    assert kinds(drain(outgoing, REFRESH)) == ["status", "peers", "counts"]


def test_numbers_are_told_at_a_pace_and_troubles_at_once() -> None:
    outgoing = observed()
    drain(outgoing, 0.0)
    outgoing.observe(document(rib={"paths": 3}))
    assert drain(outgoing, 1.0) == []
    assert kinds(drain(outgoing, PAUSE)) == ["counts"]
    down = document(peers=[STATUS["peers"][0] | {"state": "Idle"}, STATUS["peers"][1]])
    outgoing.observe(down)
    assert kinds(drain(outgoing, PAUSE + 1)) == ["peers", "events"]
    flapping = document(peers=[STATUS["peers"][0] | {"state": "Connect"}, STATUS["peers"][1]])
    outgoing.observe(flapping)
    assert drain(outgoing, PAUSE + 2) == []
    outgoing.observe(document(datastore={"state": "stale"}))
    assert "status" in kinds(drain(outgoing, PAUSE + 3))


def test_the_queue_of_events_is_bounded_and_says_what_it_lost() -> None:
    outgoing = observed()
    drain(outgoing, 0.0)
    for number in range(MOST_EVENTS + 30):
        outgoing.observe(document(agent={"started": NOW + number}, time=NOW + number))
    events = [json.loads(m.payload) for m in drain(outgoing, 1.0) if m.kind == "events"]
    assert len(events) == MOST_EVENTS + 1
    assert (events[0]["kind"], events[0]["reason"].split()[0]) == ("lost", "30")
    assert events[-1]["time"] == NOW + MOST_EVENTS + 29
    assert drain(outgoing, 2.0) == []


def test_losses_while_the_loss_is_told_are_not_forgotten() -> None:
    outgoing = observed()
    drain(outgoing, 0.0)
    for number in range(MOST_EVENTS + 1):
        outgoing.observe(document(agent={"started": NOW + number}))
    told = [m for m in drain_states(outgoing) if m.kind == "events"]
    outgoing.observe(document(agent={"started": NOW - 1}))
    outgoing.delivered(told[0], 1.0)
    again = outgoing.next(1.0)
    assert again is not None
    assert again.content.kind == "lost"  # type: ignore[attr-defined]
    assert again.stands_for == 1


def drain_states(outgoing: Outgoing) -> list[Message]:
    """Tell all states; the next message, an event, is on its way."""
    while (message := outgoing.next(1.0)) is not None and message.retain:
        outgoing.delivered(message, 1.0)
    return [message] if message is not None else []


def test_the_farewell_is_the_next_word() -> None:
    outgoing = observed()
    outgoing.stop(NOW + 5)
    message = outgoing.next(0.0)
    assert message is not None
    assert json.loads(message.payload) | {"agent": None} == json.loads(
        summary.encode(summary.status(document(time=NOW + 5), "default", "stopped"))
    ) | {"agent": None}


# -- the readers ---------------------------------------------------------------------------------------


def heard(*messages: tuple[str, bytes], retained: bool = True, now: float = NOW) -> Fleet:
    fleet = Fleet("tortie")
    for topic, payload in messages:
        fleet.hear(topic, payload, retained=retained, now=now)
    return fleet


def whole(node: str, *, retained: bool = True, now: float = NOW, **parts: Any) -> list[tuple[str, bytes]]:
    outgoing = Outgoing(node, "default")
    outgoing.observe(document(node=node, **parts))
    return [(f"tortie/v1/default/{node}/{m.kind}", m.payload) for m in drain(outgoing, 0.0)]


def test_the_table_shows_a_node_and_those_in_trouble_first() -> None:
    good = [STATUS["peers"][0]]
    fleet = heard(*whole("node-10", peers=good), *whole("node-9", peers=good), *whole("node-11"))
    lines = table(fleet, NOW)
    assert [text.split()[0] for text in lines] == ["NODE", "node-11", "node-9", "node-10"]
    assert lines[2].split() == ["node-9", "running", "100s", "in-sync", "connected", "1/1", "2/2", "2", "0"]
    assert lines[1].endswith("1 session down: Global_fd00__2 (fd00::2) Active Connection refused")


def test_a_last_will_marks_the_node_gone_and_is_an_event_only_when_it_happens() -> None:
    fleet = heard(*whole("node-1"))
    will = summary.encode(summary.will("node-1", "default", NOW))
    assert heard(("tortie/v1/default/node-1/status", will)).nodes[("default", "node-1")].life(NOW) == "gone"
    (event,) = fleet.hear("tortie/v1/default/node-1/status", will, retained=False, now=NOW)
    assert line(event).endswith(
        "node-1  agent tortie-agent: running -> gone: the broker lost it: the agent was killed, "
        "or its host or network is down"
    )
    assert fleet.hear("tortie/v1/default/node-1/status", will, retained=False, now=NOW) == []
    assert "killed, or its host or network is down" in table(fleet, NOW)[1]


def test_a_node_without_a_word_is_silent() -> None:
    fleet = heard(*whole("node-1"))
    assert fleet.nodes[("default", "node-1")].life(NOW + SILENT) == "running"
    assert fleet.nodes[("default", "node-1")].life(NOW + SILENT + 1) == "silent"
    late = heard(*whole("node-1", time=NOW - 1000))
    assert "no word for 16m40s" in table(late, NOW)[1]
    ahead = heard(*whole("node-1", time=NOW + 1000))
    assert ahead.nodes[("default", "node-1")].life(NOW + SILENT + 1) == "silent", "its clock is not ours"


def test_an_empty_payload_removes_the_node() -> None:
    fleet = heard(*whole("node-1"), ("tortie/v1/default/node-1/status", b""))
    assert fleet.nodes == {}


def test_two_clusters_on_one_broker_are_told_apart() -> None:
    other = [
        (topic.replace("default", "west"), payload.replace(b'"default"', b'"west"'))
        for topic, payload in whole("node-1")
    ]
    assert [text.split()[0] for text in table(heard(*whole("node-1"), *other), NOW)][1:] == [
        "default/node-1",
        "west/node-1",
    ]


GARBAGE = [
    ("tortie/v1/default/node-1/status", b"\x00\xff"),
    ("tortie/v1/default/node-1/status", b"{}"),
    ("tortie/v1/default/node-1/status", b"[" * 60_000),
    ("tortie/v1/default/node-1/status", b" " * (LARGEST + 1)),
    (
        "tortie/v1/default/node-1/peers",
        b'{"version":1,"cluster":"default","node":"node-1","time":1,"total":-1}',
    ),
    ("tortie/v1/default/node-2/status", whole("node-1")[0][1]),
    ("tortie/v1/west/node-1/status", whole("node-1")[0][1]),
    ("tortie/v1/default/\x1b[2J/status", b"{}"),
    ("tortie/v1/default/../status", b"{}"),
    ("tortie/v1/default/node-1/secrets", b"{}"),
    ("tortie/v2/default/node-1/status", b"{}"),
    ("other", b""),
]


@pytest.mark.parametrize(("topic", "payload"), GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_left_out_and_the_others_stay(topic: str, payload: bytes) -> None:
    fleet = heard(*whole("node-7"), (topic, payload))
    assert list(fleet.nodes) == [("default", "node-7")]
    assert fleet.left_out == 1
    assert fleet.first_left_out.isprintable()


@given(
    st.sampled_from(list(KINDS)),
    st.binary(max_size=60) | ANYTHING.map(lambda value: json.dumps(value).encode()),
)
def test_no_payload_breaks_the_reader(kind: str, payload: bytes) -> None:
    fleet = heard((f"tortie/v1/default/node-1/{kind}", payload))
    assert all(text.isprintable() for text in table(fleet, NOW))


def test_hostile_texts_reach_the_terminal_as_text() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\n\u202e"
    fleet = heard(*whole("node-1", refusals=[{"subject": evil, "reason": evil}], speaker={"state": evil}))
    for text in screen(fleet, "broker", "", NOW, 400, 50):
        assert text.isprintable()
    event = Event(version=1, cluster="c", node="n", time=NOW, kind="peer", subject=evil, reason=evil)
    assert line(event).isprintable()


def test_a_flood_of_invented_nodes_is_bounded() -> None:
    fleet = Fleet("tortie")
    template = whole("node-0")[0][1]
    for number in range(MOST_NODES + 5):
        payload = template.replace(b'"node-0"', b'"node-%d"' % number)
        fleet.hear(f"tortie/v1/default/node-{number}/status", payload, retained=True, now=NOW)
    assert len(fleet.nodes) == MOST_NODES
    assert fleet.left_out == 5


def test_the_screen_fits_the_terminal() -> None:
    fleet = heard(*(message for number in range(60) for message in whole(f"node-{number}")))
    picture = screen(fleet, "mqtt://b:1883 tortie", "", NOW, 80, 24)
    assert len(picture) == 24
    assert max(map(len, picture)) <= 80
    assert picture[0].startswith("60 of 60 nodes running, 60 of 120 sessions established")
    assert picture[-1] == "and 40 more (those in trouble come first)"


def test_what_is_wrong_is_read_to_the_end_on_a_narrow_terminal() -> None:
    trouble = {
        "state": "stale",
        "since": NOW - 9,
        "reason": "etcd does not answer at 192.0.2.1:2379 or :2380",
    }
    fleet = heard(*whole("node-1", datastore=trouble), *whole("node-2"))
    wide, narrow = (screen(fleet, "mqtt://b:1883 tortie", "", NOW, width, 24) for width in (400, 80))
    assert wide[2].split()[-1] == narrow[2].split()[-1] == "WRONG"
    assert "DATASTORE" in wide[2]
    assert "DATASTORE" not in narrow[2]
    assert max(map(len, narrow)) <= 80
    words = " ".join(" ".join(narrow[3:]).split())
    for sentence in (
        "datastore stale: etcd does not answer",
        "192.0.2.1:2379 or :2380",
        "Connection refused",
    ):
        assert sentence in words, narrow
    for width in range(20, 120):
        assert max(map(len, screen(fleet, "mqtt://b:1883 tortie", "", NOW, width, 24))) <= width
    assert table(fleet, NOW, 80) == narrow[2:], "the table alone, in a terminal"
    assert len(table(fleet, NOW)) == 3, "in a pipe: a line per node"


def test_a_node_that_is_gone_has_no_numbers_and_counts_in_no_total() -> None:
    will = summary.encode(summary.will("node-1", "default", NOW))
    fleet = heard(*whole("node-1"), *whole("node-2"), ("tortie/v1/default/node-1/status", will))
    picture = screen(fleet, "broker", "", NOW, 200, 24)
    assert picture[0].startswith("1 of 2 nodes running, 1 of 2 sessions established")
    gone = next(text for text in picture if text.startswith("node-1"))
    assert gone.split()[:9] == ["node-1", "gone", *["-"] * 7]


def test_sockets_tell_the_same_story() -> None:
    fleet = Fleet()
    assert fleet.tell(STATUS, NOW) == []
    assert [e.kind for e in fleet.tell(document(speaker={"state": "down"}), NOW + 1)] == ["speaker"]
    (lost,) = fleet.unreachable("node-1", "no agent listens", NOW + 2)
    assert (lost.after, fleet.unreachable("node-1", "no agent listens", NOW + 3)) == ("unreachable", [])
    assert table(fleet, NOW)[1].split()[:3] == ["node-1", "unreachable", "-"]
    assert table(fleet, NOW)[1].endswith("  no agent listens"), "what it said before is not how it is"
    back = fleet.tell(STATUS, NOW + 4)
    assert [(e.kind, e.before, e.after) for e in back] == [
        ("agent", "unreachable", "running"),
        ("speaker", "down", "connected"),
    ]
    fleet.keep_only({"node-2"})
    assert not fleet.nodes


def test_topics() -> None:
    assert topics.base("a/b", "c", "n") == "a/b/v1/c/n"
    assert topics.parse("a/b", "a/b/v1/c/n/status") == ("c", "n", "status")
    for wrong in ("a/b/v1/c/n", "a/b/v1/c/n/x", "a/v1/c/n/status", "a/b/v1/c//status", "a/b/v1/c/n/status/x"):
        assert topics.parse("a/b", wrong) is None


def test_types_that_readers_get() -> None:
    told = {m.kind: msgspec.json.decode(m.payload, type=KINDS[m.kind]) for m in drain(observed(), 0.0)}
    assert isinstance(told["status"], Status)
    assert isinstance(told["peers"], Peers)
    assert told["peers"].unestablished[0].reason == "Connection refused"
    assert all(len(entry.reason) <= LONGEST_TEXT for entry in told["status"].refusals.first)
