"""What the speaker tells: to the graph what it must calculate with, and kept here what people ask for."""

from __future__ import annotations

import logging
from collections.abc import Callable

from agent.calculation import Calculation
from agent.sinks.speaker import LinkLost
from agent.speaker.protocol import (
    ConfigApplied,
    EndOfRib,
    Event,
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
from felix_like.model.address import Address
from felix_like.model.verdict import Refusal

log = logging.getLogger(__name__)


class Sessions:
    """Hears the speaker's events. `clock` is monotonic seconds."""

    def __init__(self, calculation: Calculation, clock: Callable[[], float]) -> None:
        self._calculation = calculation
        self._clock = clock
        self._states: dict[Address, PeerState] = {}
        self._up: set[Address] = set()
        self._notices: dict[tuple[Address, str], str] = {}
        self._file_problem = ""
        """Why the speaker did not take its file; it is asked again and again, and said once."""

    def state(self, peer: Address) -> PeerState | None:
        """The session as last heard; None before the speaker knew the peer."""
        return self._states.get(peer)

    def is_up(self, peer: Address) -> bool:
        """Whether the session is established, as last heard."""
        return peer in self._up

    def refusals(self, names: Callable[[Address], str]) -> list[Refusal]:
        """What peers did that was not accepted, while it lasts."""
        return [Refusal(f"peer {names(peer)} ({peer})", text) for (peer, _), text in self._notices.items()]

    def hear(self, event: Event | LinkLost) -> None:
        """One event of the link, in order."""
        self._tell(event)
        self._calculation.told()

    def _tell(self, event: Event | LinkLost) -> None:
        """Paths first: there are many of them."""
        graph, now = self._calculation.graph, self._clock()
        match event:
            case Learned(peer, attributes, nlri):
                graph.on_learned(peer, attributes, nlri)
            case Withdrawn(peer, nlri):
                graph.on_withdrawn(peer, nlri)
            case EndOfRib(peer, version):
                graph.on_end_of_rib(peer, version, now)
            case ReplayBegin():
                self._up.clear()
                self._states.clear()
                graph.on_resync_begin(now)
            case ReplayEnd():
                self._notices = {key: text for key, text in self._notices.items() if key[0] in self._states}
                graph.on_resync_end(self._up, now)
                self._calculation.speaker_replayed()
            case LinkLost():
                graph.on_speaker_lost(now)
            case _:
                self._tell_of_peer(event, now)

    def _tell_of_peer(self, event: Event | LinkLost, now: float) -> None:
        graph = self._calculation.graph
        match event:
            case PeerState(peer):
                self._states[peer] = event
            case PeerUp(peer):
                self._up.add(peer)
                self._forget_notices(peer)
                graph.on_peer_up(peer, session_of(event), now)
                log.info("peer %s: session established", peer)
            case PeerDown(peer, reason, graceful, ours):
                self._up.discard(peer)
                graph.on_peer_down(peer, now, graceful=graceful, ours=ours)
                meanwhile = "until there is a new one" if ours else "while it restarts"
                kept = f"; routes kept {meanwhile}: {graph.stale_paths(peer)}" if graceful else ""
                log.warning("peer %s: session lost: %s%s", peer, reason, kept)
            case PeerGone(peer):
                self._up.discard(peer)
                self._states.pop(peer, None)
                self._forget_notices(peer)
                graph.on_peer_gone(peer)
                log.info("peer %s: no longer configured", peer)
            case _:
                self._complain(event)

    def _complain(self, event: Event | LinkLost) -> None:
        match event:
            case LimitExceeded(peer, count, limit, retry_in):
                self._notice(
                    peer,
                    "limit",
                    f"it announced {count} prefixes, more than its limit of {limit}: the session was ceased "
                    f"and is tried again after {retry_in:.0f} s (if so many are right, raise "
                    "TORTIE_PREFIX_LIMIT or the BGPPeer's annotation tortie/prefix-limit)",
                )
            case Malformed(peer, count, reason):
                self._notice(
                    peer, "malformed", f"{count} routes were treated as withdrawn (RFC 7606): {reason}"
                )
            case ConfigApplied(error=error):
                if error and error != self._file_problem:
                    log.error("the speaker keeps its peers as they were: %s", error)
                self._file_problem = error or ""
            case _:
                pass

    def _notice(self, peer: Address, kind: str, text: str) -> None:
        if (peer, kind) not in self._notices:
            log.warning("peer %s: %s", peer, text)
        self._notices[(peer, kind)] = text

    def _forget_notices(self, peer: Address) -> None:
        self._notices = {key: text for key, text in self._notices.items() if key[0] != peer}


def session_of(event: PeerUp) -> Session:
    """The negotiated facts in the graph's terms."""
    return Session(
        router_id=event.router_id,
        asn=event.asn,
        hold_time=event.hold_time,
        families=event.families,
        restart_time=event.restart_time or 0,
        graceful=frozenset(family.version for family in event.graceful),
        forwarding=frozenset(family.version for family in event.graceful if family.forwarding),
        restarting=event.restarting,
    )
