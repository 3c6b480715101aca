"""What the speaker tells: each event reaches the graph; what peers did wrong is said once, while it lasts."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from agent.sessions import Sessions, session_of
from agent.sinks.speaker import LinkLost
from agent.speaker.nlri import Nlri
from agent.speaker.protocol import (
    ConfigApplied,
    EndOfRib,
    GracefulFamily,
    Hello,
    Learned,
    LimitExceeded,
    Malformed,
    PeerDown,
    PeerGone,
    PeerState,
    PeerUp,
    ReplayBegin,
    ReplayEnd,
    Withdrawn,
)
from felix_like.calc.graph import Session
from felix_like.model.address import Asn
from felix_like.model.verdict import Refusal
from tests.support.rib_world import ip, net, path

B, C = ip("192.0.2.2"), ip("192.0.2.3")
X = net("10.1.0.0/26")
UP = PeerUp(
    B, "192.0.2.2", Asn(64512), 90, (4,), 120, False, (GracefulFamily(4, True), GracefulFamily(6, False))
)
SESSION = Session(
    router_id="192.0.2.2",
    asn=Asn(64512),
    hold_time=90,
    families=(4,),
    restart_time=120,
    graceful=frozenset({4, 6}),
    forwarding=frozenset({4}),
)
NLRI = Nlri.of(4, [X])
LIMIT = LimitExceeded(B, 11, 10, 60.0)
MALFORMED = Malformed(B, 3, "attribute 2 is cut short")


class Graph:
    """Writes down every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> int:
            self.calls.append((name, *arguments, *([named] if named else [])))
            return 7

        return call


class Calculation:
    """The graph, and how often it was said that there is news."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.news = 0
        self.replays = 0

    def told(self) -> None:
        self.news += 1

    def speaker_replayed(self) -> None:
        self.replays += 1


class Hearing:
    def __init__(self) -> None:
        self.calculation = Calculation()
        self.sessions = Sessions(self.calculation, lambda: 77.0)  # type: ignore[arg-type]

    def hear(self, *events: Any) -> list[tuple[Any, ...]]:
        """The graph's calls for these events."""
        self.calculation.graph.calls.clear()
        for event in events:
            self.sessions.hear(event)
        return self.calculation.graph.calls

    def refused(self) -> list[Refusal]:
        return self.sessions.refusals(lambda address: {B: "b", C: "c"}[address])


@pytest.mark.parametrize(
    ("event", "calls"),
    [
        (UP, [("on_peer_up", B, SESSION, 77.0)]),
        (Learned(B, path("192.0.2.2"), NLRI), [("on_learned", B, path("192.0.2.2"), NLRI)]),
        (Withdrawn(B, NLRI), [("on_withdrawn", B, NLRI)]),
        (EndOfRib(B, 6), [("on_end_of_rib", B, 6, 77.0)]),
        (
            PeerDown(B, "bye", True),
            [("on_peer_down", B, 77.0, {"graceful": True, "ours": False}), ("stale_paths", B)],
        ),
        (PeerDown(B, "bye", False), [("on_peer_down", B, 77.0, {"graceful": False, "ours": False})]),
        (
            PeerDown(B, "new terms", True, ours=True),
            [("on_peer_down", B, 77.0, {"graceful": True, "ours": True}), ("stale_paths", B)],
        ),
        (PeerGone(B), [("on_peer_gone", B)]),
        (ReplayBegin(), [("on_resync_begin", 77.0)]),
        (ReplayEnd(), [("on_resync_end", set(), 77.0)]),
        (LinkLost("broken pipe"), [("on_speaker_lost", 77.0)]),
        (PeerState(B, "Active", 1.0), []),
        (LIMIT, []),
        (MALFORMED, []),
        (ConfigApplied("/run/exabgp.conf"), []),
        (Hello(1, 7, "boot", "5.0.15"), []),
    ],
)
def test_an_event_is_told_to_the_graph_and_that_there_is_news(event: Any, calls: list[Any]) -> None:
    hearing = Hearing()
    assert hearing.hear(event) == calls
    assert hearing.calculation.news == 1


def test_a_peer_that_has_just_begun_is_known_as_such() -> None:
    up = PeerUp(B, "192.0.2.2", Asn(64512), 90, (4,), 120, True)
    assert session_of(up).restarting
    assert not session_of(UP).restarting


def test_a_peer_without_graceful_restart_has_none() -> None:
    up = PeerUp(B, "192.0.2.2", Asn(64512), 90, (4,))
    assert session_of(up) == Session(router_id="192.0.2.2", asn=Asn(64512), hold_time=90, families=(4,))


def test_the_end_of_a_replay_names_who_is_up_now() -> None:
    hearing = Hearing()
    other = PeerUp(C, "192.0.2.3", Asn(64512), 90, (4,))
    hearing.hear(UP, other, ReplayBegin(), other)
    assert hearing.hear(ReplayEnd()) == [("on_resync_end", {C}, 77.0)]
    assert hearing.calculation.replays == 1


def test_who_went_down_or_away_in_a_replay_is_not_up_at_its_end() -> None:
    hearing = Hearing()
    other = PeerUp(C, "192.0.2.3", Asn(64512), 90, (4,))
    hearing.hear(ReplayBegin(), UP, other, PeerDown(B, "reset", True), PeerGone(C))
    assert hearing.hear(ReplayEnd()) == [("on_resync_end", set(), 77.0)]


def test_states_are_remembered_as_last_heard_until_the_speaker_tells_anew() -> None:
    hearing = Hearing()
    assert hearing.sessions.state(B) is None
    active, established = PeerState(B, "Active", 1.0, "refused"), PeerState(B, "Established", 2.0)
    hearing.hear(active, established)
    assert hearing.sessions.state(B) == established
    hearing.hear(LinkLost("broken pipe"))
    assert hearing.sessions.state(B) == established
    hearing.hear(ReplayBegin())
    assert hearing.sessions.state(B) is None
    hearing.hear(active, PeerGone(B))
    assert hearing.sessions.state(B) is None


def test_what_a_peer_did_is_said_once_and_stands_until_its_next_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hearing = Hearing()
    hearing.hear(
        LIMIT, LimitExceeded(B, 12, 10, 120.0), MALFORMED, Malformed(B, 4, "attribute 2 is cut short")
    )
    assert [(r.subject, r.reason) for r in hearing.refused()] == [
        (
            "peer b (192.0.2.2)",
            (
                "it announced 12 prefixes, more than its limit of 10: the session was ceased and is "
                "tried again after 120 s (if so many are right, raise TORTIE_PREFIX_LIMIT or the BGPPeer's "
                "annotation tortie/prefix-limit)"
            ),
        ),
        ("peer b (192.0.2.2)", "4 routes were treated as withdrawn (RFC 7606): attribute 2 is cut short"),
    ], "the newest numbers"
    assert len(caplog.records) == 2, "one line each"
    hearing.hear(UP)
    assert hearing.refused() == []


def test_a_peers_notices_do_not_touch_anothers() -> None:
    hearing = Hearing()
    hearing.hear(MALFORMED, Malformed(C, 1, "x"), PeerGone(B))
    assert [refusal.subject for refusal in hearing.refused()] == ["peer c (192.0.2.3)"]


def test_who_was_removed_while_the_speaker_was_away_leaves_no_notice() -> None:
    hearing = Hearing()
    hearing.hear(MALFORMED, Malformed(C, 1, "x"), LinkLost("gone"))
    hearing.hear(ReplayBegin(), PeerState(C, "Active", 1.0), ReplayEnd())
    assert [refusal.subject for refusal in hearing.refused()] == ["peer c (192.0.2.3)"]


def test_a_refused_configuration_is_said_once_until_one_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    hearing = Hearing()
    refused = ConfigApplied("/run/exabgp.conf", error="port 179 is in use")
    hearing.hear(refused, refused, refused)
    assert caplog.messages == ["the speaker keeps its peers as they were: port 179 is in use"]
    hearing.hear(ConfigApplied("/run/exabgp.conf"), refused)
    assert len(caplog.messages) == 2


def test_the_log_tells_sessions_that_come_and_go(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Hearing().hear(UP, PeerDown(B, "hold timer expired", True), PeerDown(B, "Cease", False), PeerGone(B))
    assert caplog.messages == [
        "peer 192.0.2.2: session established",
        "peer 192.0.2.2: session lost: hold timer expired; routes kept while it restarts: 7",
        "peer 192.0.2.2: session lost: Cease",
        "peer 192.0.2.2: no longer configured",
    ]
