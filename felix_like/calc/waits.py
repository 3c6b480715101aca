"""What a node that has just begun waits for, and until when, by the graph's clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from felix_like.calc.kubernetes import PATIENCE
from felix_like.model.address import Address
from felix_like.model.bgp import Peer
from felix_like.rib.adj_rib_in import AdjRibIn
from felix_like.rib.session import DEFAULT_RESTART_TIME, UNMARKED_WAIT


class Waits:
    """`ribs`: what the peers have told, live."""

    def __init__(self, ribs: Mapping[Address, AdjRibIn]) -> None:
        self.now: float | None = None
        """The latest time that we were told."""
        self._ribs = ribs
        self._started: float | None = None
        self._read_at: float | None = None
        """The first moment that we were told of after the datastore was first acted on."""

    def tell_time(self, now: float, *, read: bool) -> None:
        """`read`: the datastore is acted on."""
        self.now = now if self.now is None else max(now, self.now)
        if self._started is None:
            self._started = now
        if self._read_at is None and read:
            self._read_at = self.now

    # -- for Kubernetes -------------------------------------------------------------------------------

    @property
    def early(self) -> bool:
        """So soon after the datastore was read that Kubernetes may yet be heard."""
        until = self.early_until
        return self.now is None or until is None or self.now < until

    @property
    def early_until(self) -> float | None:
        """None: nobody knows yet."""
        return None if self._read_at is None else self._read_at + PATIENCE

    # -- for peers ------------------------------------------------------------------------------------

    def awaited(self, peers: Mapping[Address, Peer]) -> dict[Address, float]:
        """Those of these peers that may still tell what they told before our start, and until when."""
        ends = ((address, self._end(address, peer)) for address, peer in peers.items())
        return {address: end for address, end in ends if end is not None}

    def restarting(self, peers: Iterable[Address]) -> frozenset[Address]:
        """Those of these peers that have just begun, too."""
        found = ((address, self._ribs.get(address)) for address in peers)
        return frozenset(
            address
            for address, rib in found
            if rib is not None and rib.session is not None and rib.session.restarting
        )

    def _end(self, address: Address, peer: Peer) -> float | None:
        """Until when a peer is awaited after our start (RFC 4724 section 4.1's Selection_Deferral_Timer,
        but per peer and only for the sweep of inherited routes); None: no longer."""
        rib = self._ribs.get(address)
        if rib is not None and rib.complete:
            return None
        if self.now is None or self._started is None:
            return float("inf")
        deadline = self._started + (peer.restart_time or DEFAULT_RESTART_TIME)
        if rib is not None and rib.session is not None and not rib.session.graceful:
            deadline = min(deadline, (rib.established_at or self.now) + UNMARKED_WAIT)
        return deadline if self.now < deadline else None
