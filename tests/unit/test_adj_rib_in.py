"""Graceful restart as RFC 4724 sections 4.1 and 4.2 tell it, from one peer's side of the table."""

from __future__ import annotations

from dataclasses import replace

from felix_like.model.address import Address, Prefix
from felix_like.model.path import Attributes, Path
from felix_like.rib.adj_rib_in import AdjRibIn
from felix_like.rib.session import DEFAULT_RESTART_TIME, STALE_PATH_TIME, UNMARKED_WAIT, Session

PEER = Address.parse("10.0.0.2")
V4 = [Prefix.parse("10.1.0.0/26"), Prefix.parse("10.1.0.64/26")]
V6 = Prefix.parse("fd00:1::/122")
BOTH = frozenset({4, 6})
GRACEFUL = Session(router_id="10.0.0.2", asn=64512, restart_time=90, graceful=BOTH, forwarding=BOTH)
RUDE = Session(router_id="10.0.0.2", asn=64512)


def learn(rib: AdjRibIn, *prefixes: Prefix) -> None:
    for prefix in prefixes:
        rib.paths[prefix] = Path(prefix, PEER, Attributes(next_hop=PEER))
        rib.refreshed(prefix)


def up(session: Session = GRACEFUL, now: float = 1000.0) -> AdjRibIn:
    rib = AdjRibIn(PEER)
    assert rib.established(session, now) == []
    learn(rib, *V4, V6)
    return rib


def gone(paths: list[Path]) -> set[Prefix]:
    return {path.prefix for path in paths}


def test_a_peer_without_graceful_restart_takes_its_paths_along() -> None:
    rib = up(RUDE)
    assert gone(rib.lost(1010, graceful=True)) == {*V4, V6}
    assert rib.paths == {}
    assert rib.stale_until is None


def test_a_goodbye_ends_every_path_even_with_graceful_restart() -> None:
    rib = up()
    assert gone(rib.lost(1010, graceful=False)) == {*V4, V6}


def test_only_the_families_of_the_capability_are_kept() -> None:
    rib = up(replace(GRACEFUL, graceful=frozenset({4})))
    assert gone(rib.lost(1010, graceful=True)) == {V6}
    assert rib.stale == set(V4)


def test_stale_paths_end_at_the_peers_restart_time() -> None:
    rib = up()
    assert rib.lost(1010, graceful=True) == []
    assert rib.stale_until == 1100
    assert rib.expire(1099.9) == []
    assert gone(rib.expire(1100)) == {*V4, V6}
    assert rib.stale_until is None


def test_end_of_rib_sweeps_what_did_not_come_back_in_its_family_only() -> None:
    rib = up()
    rib.lost(1010, graceful=True)
    assert rib.established(GRACEFUL, 1020) == []
    learn(rib, V4[0])
    assert gone(rib.ended(4)) == {V4[1]}
    assert rib.stale == {V6}
    assert not rib.complete
    assert gone(rib.ended(6)) == {V6}
    assert rib.complete
    assert set(rib.paths) == {V4[0]}


def test_without_the_f_bit_the_family_is_swept_at_once() -> None:
    rib = up()
    rib.lost(1010, graceful=True)
    assert gone(rib.established(replace(GRACEFUL, forwarding=frozenset({4})), 1020)) == {V6}
    assert rib.stale == set(V4)


def test_without_the_capability_everything_is_swept_at_once() -> None:
    rib = up()
    rib.lost(1010, graceful=True)
    assert gone(rib.established(RUDE, 1020)) == {*V4, V6}


def test_a_peer_that_never_sends_end_of_rib_does_not_keep_stale_paths_for_ever() -> None:
    rib = up()
    rib.lost(1010, graceful=True)
    rib.established(GRACEFUL, 1020)
    assert rib.expire(1100) == []  # the restart time bounds the absence, not the refresh
    assert gone(rib.expire(1020 + STALE_PATH_TIME)) == {*V4, V6}


def test_a_second_restart_before_the_refresh_ends_what_was_stale_already() -> None:
    rib = up()
    rib.lost(1010, graceful=True)
    rib.established(replace(GRACEFUL, restarting=True), 1020)
    learn(rib, V4[0])
    assert gone(rib.lost(1030, graceful=True)) == {V4[1], V6}
    assert rib.stale == {V4[0]}


def test_a_second_connection_that_is_lost_is_no_second_restart_but_it_has_an_end() -> None:
    """Both ends of a session are configured anew: whoever is second ends the first one's new session."""
    rib = up()
    for now in range(1010, 1010 + int(STALE_PATH_TIME) - 89, 30):
        assert rib.lost(now, graceful=True) == []
        assert rib.stale_until == now + 90
        assert rib.established(GRACEFUL, now + 10) == []
        learn(rib, V4[0])
    assert gone(rib.lost(1310, graceful=True)) == {V4[1], V6}, "six minutes without an announcement"
    assert rib.stale_until == 1310 + 90, "what was announced meanwhile has its whole time"
    rib.established(GRACEFUL, 1320)
    assert rib.lost(1330, graceful=True) == []
    assert gone(rib.expire(1420)) == {V4[0]}


def test_a_failed_connection_attempt_is_not_a_second_loss() -> None:
    rib = up()
    rib.lost(1010, graceful=True)
    assert rib.lost(1015, graceful=True) == []
    assert rib.lost(1016, graceful=False) == []
    assert rib.stale_until == 1100


def test_a_replacing_connection_counts_as_a_restart() -> None:
    rib = up()
    assert rib.established(GRACEFUL, 1020) == []
    assert rib.stale == {*V4, V6}
    assert gone(rib.ended(4)) == set(V4)


def test_when_our_speaker_dies_a_peer_without_f_bit_loses_nothing() -> None:
    """A helper does not set the F bit: its own forwarding was never in question (RFC 4724 4.1)."""
    rib = up()
    rib.speaker_lost(1010)
    assert rib.stale_until == 1100
    assert rib.established(replace(GRACEFUL, forwarding=frozenset()), 1020) == []
    learn(rib, *V4)
    assert rib.ended(4) == []
    assert gone(rib.ended(6)) == {V6}


def test_when_our_speaker_dies_a_peer_without_graceful_restart_has_half_a_minute() -> None:
    rib = up(RUDE)
    rib.speaker_lost(1010)
    assert rib.stale_until == 1010 + DEFAULT_RESTART_TIME
    assert rib.established(RUDE, 1020) == []
    assert rib.expire(1020 + UNMARKED_WAIT - 1) == []
    assert gone(rib.expire(1020 + UNMARKED_WAIT)) == {*V4, V6}


def test_a_session_that_we_end_has_the_whole_restart_time_whatever_was_waited_for_before() -> None:
    rib = up(RUDE)
    rib.speaker_lost(1010)
    rib.established(RUDE, 1011)
    assert rib.stale_until == 1011 + UNMARKED_WAIT
    rib.left(1040)
    assert rib.stale_until == 1040 + DEFAULT_RESTART_TIME


def test_a_session_that_we_end_to_build_another_costs_nothing() -> None:
    rib = up()
    rib.left(1010)
    assert rib.stale == {*V4, V6}
    assert rib.lost(1011, graceful=False) == [], "a failed attempt on the new terms"
    assert rib.established(replace(GRACEFUL, forwarding=frozenset()), 1020) == []
    learn(rib, *V4)
    assert gone(rib.ended(6)) == {V6}
    assert gone(rib.ended(4)) == set()


def test_the_peers_own_restart_after_ours_is_judged_by_its_f_bit_again() -> None:
    rib = up()
    rib.speaker_lost(1010)
    rib.established(GRACEFUL, 1020)
    learn(rib, *V4, V6)
    rib.lost(1030, graceful=True)
    assert gone(rib.established(replace(GRACEFUL, forwarding=frozenset()), 1040)) == {*V4, V6}


def test_a_resynchronisation_sweeps_what_was_not_repeated() -> None:
    rib = up()
    rib.resync_begin(1010)
    assert rib.established(replace(GRACEFUL, end_of_rib=BOTH), 1011) == []
    learn(rib, V4[0])
    assert gone(rib.resync_end(1012, up=True)) == {V4[1], V6}
    assert rib.stale_until is None


def test_a_resynchronisation_before_end_of_rib_leaves_stale_paths_waiting() -> None:
    rib = up()
    rib.resync_begin(1010)
    rib.established(replace(GRACEFUL, end_of_rib=frozenset({6})), 1011)
    learn(rib, V4[0])
    assert gone(rib.resync_end(1012, up=True)) == {V6}
    assert rib.stale == {V4[1]}
    assert gone(rib.ended(4)) == {V4[1]}


def test_a_resynchronisation_does_not_sweep_in_the_middle() -> None:
    rib = up()
    rib.resync_begin(1010)
    rib.established(GRACEFUL, 1011)
    assert rib.ended(4) == []
    assert rib.expire(10_000) == []
    learn(rib, *V4, V6)
    assert rib.resync_end(1012, up=True) == []


def test_a_peer_that_is_down_after_the_resynchronisation_keeps_its_paths_until_the_deadline() -> None:
    rib = up()
    rib.resync_begin(1010)
    assert rib.resync_end(1011, up=False) == []
    assert rib.session is None
    assert rib.expire(1010 + DEFAULT_RESTART_TIME - 1) == []
    assert gone(rib.expire(1010 + DEFAULT_RESTART_TIME)) == {*V4, V6}
