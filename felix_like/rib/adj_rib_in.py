"""Adj-RIB-In: what one peer has announced, and which of it is stale (RFC 4724).

Stale marks are a set beside the paths, not a field in them: losing a session with 100,000 paths costs
one set, and the decision process does not look at them.
"""

from __future__ import annotations

from collections.abc import Iterable

from felix_like.model.address import Address, IpVersion, Prefix
from felix_like.model.path import Path
from felix_like.rib.session import DEFAULT_RESTART_TIME, STALE_PATH_TIME, UNMARKED_WAIT, Session

_OCTETS: dict[IpVersion, int] = {4: 4, 6: 16}


class AdjRibIn:
    """Paths of one peer. Methods that end paths take them out and return them, for the indexes outside.

    Times are float seconds of the caller's monotonic clock.
    """

    __slots__ = (
        "_ours",
        "_resyncing",
        "_stale_since",
        "end_of_rib",
        "established_at",
        "last_session",
        "over_limit",
        "paths",
        "peer",
        "session",
        "stale",
        "stale_until",
    )

    def __init__(self, peer: Address) -> None:
        self.peer = peer
        self.paths: dict[Prefix, Path] = {}
        self.session: Session | None = None
        """None while the session is down."""
        self.last_session: Session | None = None
        """The session the paths came from: still known while it is down and they are stale."""
        self.established_at: float | None = None
        self.stale: set[Prefix] = set()
        self.stale_until: float | None = None
        self.end_of_rib: set[IpVersion] = set()
        """Families whose End-of-RIB has come in this session."""
        self.over_limit = 0
        """NLRI refused since the session came up because the peer is past its prefix limit."""
        self._ours = False
        self._resyncing = False
        self._stale_since = 0.0
        """When the oldest stale mark was set, while there is any."""

    @property
    def complete(self) -> bool:
        """Every negotiated family has had its End-of-RIB in this session, and its paths are told."""
        return (
            not self._resyncing
            and self.session is not None
            and self.end_of_rib.issuperset(self.session.families)
        )

    def established(self, session: Session, now: float) -> list[Path]:
        """The session came up.

        A peer that restarted keeps its stale paths only for families whose F bit its new OPEN sets
        (RFC 4724 section 4.2). When it was our own speaker that restarted the peer has nothing to
        prove: its paths wait for its End-of-RIB (section 4.1). During a resynchronisation the session
        is an old one told again.
        """
        gone: list[Path] = []
        if self._resyncing:
            self.session = self.last_session = session
            self.end_of_rib = set(session.end_of_rib)
            self.established_at = now if self.established_at is None else self.established_at
            return gone
        if self.session is not None:  # a second connection replaced the first, no loss was told
            gone = self.lost(now, graceful=True)
        keep = session.families if self._ours else (v for v in session.families if v in session.forwarding)
        kept = {_OCTETS[v] for v in keep}
        gone += self._sweep(p for p in self.stale if len(p.network) not in kept)
        self.session = self.last_session = session
        self.established_at = now
        self.end_of_rib = set(session.end_of_rib)
        self.over_limit = 0
        self._ours = False
        self._be_patient(session, now)
        return gone

    def lost(self, now: float, *, graceful: bool) -> list[Path]:
        """The session went down. Paths of families the peer can restart gracefully become stale.

        `graceful` is false when the peer said goodbye (a NOTIFICATION) or was removed.
        """
        session = self.session
        if session is None:  # a failed connection attempt: what is stale keeps its deadline
            return []
        self.session = self.established_at = None
        self.end_of_rib.clear()
        kept = {_OCTETS[v] for v in session.graceful} if graceful and session.restart_time else set()
        # Paths still stale from the restart before are not kept over another (RFC 4724 section 4.2). Who did
        # not say that it had restarted (the R bit) only lost a connection, perhaps twice in a row; but what
        # has waited too long goes all the same.
        too_long = now + session.restart_time > self._stale_since + STALE_PATH_TIME
        twice = self.stale if session.restarting or too_long else ()
        gone = self._sweep([p for p in self.paths if p in twice or len(p.network) not in kept])
        self._mark(now, session.restart_time)
        self._ours = False
        return gone

    def speaker_lost(self, now: float) -> None:
        """Our own speaker is gone, perhaps in the midst of telling."""
        self._resyncing = False
        self.left(now)

    def left(self, now: float) -> None:
        """The session ended by our doing and will be built anew: nothing is the peer's fault."""
        restart = self.session.restart_time if self.session is not None else 0
        if self.session is not None or self.stale_until is None:
            self._mark(now, restart or DEFAULT_RESTART_TIME)
        else:
            self.stale.update(self.paths)
        self.session = self.established_at = None
        self.end_of_rib.clear()
        self._ours = True

    def resync_begin(self, now: float) -> None:
        """The speaker will tell its whole Adj-RIB-In again; what it does not repeat is gone."""
        self._resyncing = True
        if self.stale_until is None:
            self._mark(now, DEFAULT_RESTART_TIME)
        else:
            self.stale.update(self.paths)

    def resync_end(self, now: float, *, up: bool) -> list[Path]:
        """Everything was told. A family is complete when its End-of-RIB has come or never will."""
        self._resyncing = False
        session = self.session
        if not up or session is None:
            self.session = self.established_at = None
            self.end_of_rib.clear()
            self._ours = True
            return []
        waiting = {_OCTETS[v] for v in session.families if v not in self.end_of_rib}
        gone = self._sweep(p for p in self.stale if len(p.network) not in waiting)
        self._ours = False
        self._be_patient(session, now)
        return gone

    def ended(self, version: IpVersion) -> list[Path]:
        """End-of-RIB: what is still stale in that family has not come back."""
        self.end_of_rib.add(version)
        if self._resyncing:  # a replay may tell it before the paths
            return []
        octets = _OCTETS[version]
        return self._sweep(p for p in self.stale if len(p.network) == octets)

    def expire(self, now: float) -> list[Path]:
        """Give up on stale paths whose time is over."""
        if self.stale_until is None or now < self.stale_until or self._resyncing:
            return []
        return self._sweep(self.stale)

    def removed(self) -> list[Path]:
        """The peer is no longer configured: nothing of it is kept."""
        self.session = self.established_at = None
        self.end_of_rib.clear()
        return self._sweep(list(self.paths))

    def refreshed(self, prefix: Prefix) -> None:
        """The peer announced it again, or withdrew it."""
        if self.stale:
            self.stale.discard(prefix)
            if not self.stale:
                self.stale_until = None

    def _mark(self, now: float, patience: float) -> None:
        """All is stale, for so many seconds."""
        if not self.stale:
            self._stale_since = now
        self.stale = set(self.paths)
        self.stale_until = now + patience if self.stale else None

    def _be_patient(self, session: Session, now: float) -> None:
        """Stale paths wait for End-of-RIB; shortly only where the peer need not send one."""
        if self.stale:
            self.stale_until = now + (STALE_PATH_TIME if session.graceful else UNMARKED_WAIT)

    def _sweep(self, prefixes: Iterable[Prefix]) -> list[Path]:
        gone = [self.paths.pop(prefix) for prefix in list(prefixes)]
        self.stale.difference_update(path.prefix for path in gone)
        if not self.stale:
            self.stale_until = None
        return gone
