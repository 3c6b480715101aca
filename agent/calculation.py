"""The calc graph inside the event loop: whoever learns something tells it, the sinks get what follows.

Everything runs on the loop's thread. A burst of tellings within one turn of the loop leads to one outcome.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from agent.latest import Latest
from felix_like.calc.graph import CalcGraph, Outcome
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import Desired, NextHopState, Route, RouteKey
from felix_like.model.path import Attributes

log = logging.getLogger(__name__)


class RouteTable(Protocol):
    """The kernel sink as the calculation sees it."""

    def want(self, changes: Mapping[RouteKey, Route | None]) -> None: ...

    def allow_sweep(
        self, authoritative: bool, awaiting: frozenset[Address], peers: frozenset[Address]
    ) -> None: ...


class Speaker(Protocol):
    """The link to the speaker as the calculation sees it."""

    def advertise(self, changes: Mapping[Address, Mapping[Prefix, Attributes | None]]) -> None: ...

    def full_sync_done(self) -> None: ...

    def limits(self, peers: Mapping[Address, int], default: int | None = None) -> None: ...


class NextHops(Protocol):
    """The resolver of BGP next hops as the calculation sees it."""

    def ask(self, addresses: Iterable[Address]) -> Mapping[Address, NextHopState]: ...

    def forget(self, addresses: Iterable[Address]) -> None: ...


class Calculation:
    """Owns the graph and hands its outcomes on."""

    def __init__(
        self,
        graph: CalcGraph,
        *,
        clock: Callable[[], float],
        kernel: RouteTable,
        speaker: Speaker,
        next_hops: NextHops,
    ) -> None:
        self.graph = graph
        self.desired: Latest[Desired] = Latest()
        self._clock = clock
        self._kernel = kernel
        self._speaker = speaker
        self._next_hops = next_hops
        self._flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._synced = False
        self._replayed = False
        self.told_at = 0.0
        """When the news came that the latest outcome answers, on `clock`."""
        self._asked: set[Address] = set()
        """Next hops whose way is being watched."""
        self._restarting: frozenset[Address] = frozenset()
        self._peers: frozenset[Address] = frozenset()
        self._sweep: tuple[bool, frozenset[Address], frozenset[Address]] | None = None

    def told(self) -> None:
        """Something was told to the graph: hand on what follows, once, at the end of this turn."""
        if not self._flush_due:
            self._flush_due = True
            self.told_at = self._clock()
            asyncio.get_running_loop().call_soon(self._flush)

    def next_hops_changed(self, states: Mapping[Address, NextHopState]) -> None:
        """The kernel reaches next hops another way, or no longer."""
        self.graph.on_next_hops(states)
        self.told()

    @property
    def synced(self) -> bool:
        """Everything we advertise has been said to the speaker at least once."""
        return self._synced

    @property
    def replayed(self) -> bool:
        """The speaker has told everything it knows at least once."""
        return self._replayed

    @property
    def awaited(self) -> frozenset[Address]:
        """Peers that may still tell what they told before we started; each for a bounded time."""
        return self._sweep[1] if self._sweep is not None else frozenset()

    @property
    def restarting(self) -> frozenset[Address]:
        """Of those awaited, the ones that have just begun, too: they may be waiting for a peer of theirs."""
        return self._restarting

    def speaker_replayed(self) -> None:
        """The speaker has told everything it knows."""
        self._replayed = True
        self.told()

    def _flush(self) -> None:
        self._flush_due = False
        outcome = self.graph.take()
        changed = bool(outcome.fib)
        while outcome.resolve:
            # A lookup in the kernel's table takes microseconds, so a new next hop costs no extra turn.
            self._hand_on(outcome)
            self.graph.on_next_hops(self._next_hops.ask(outcome.resolve))
            self._asked |= outcome.resolve
            outcome = self.graph.take()
            changed |= bool(outcome.fib)
        self._hand_on(outcome)
        self._conclude(outcome)
        if changed and (unused := self._asked - self.graph.next_hops_in_use()):
            self._next_hops.forget(unused)
            self._asked -= unused
        self._set_timer()

    def _hand_on(self, outcome: Outcome) -> None:
        if outcome.fib:
            self._kernel.want(outcome.fib)
        if outcome.adverts:
            self._speaker.advertise(outcome.adverts)
        if outcome.desired is not None:
            self._tell_peers(outcome.desired)
            self._peers = frozenset(outcome.desired.peers)

    def _conclude(self, outcome: Outcome) -> None:
        """What only the last outcome of a turn can say: nothing is left to resolve, all was handed on."""
        if not self._synced and self._whole(outcome):
            self._synced = True
            self._speaker.full_sync_done()
        self._restarting = outcome.restarting
        sweep = (outcome.authoritative, outcome.awaiting, self._peers)
        if sweep != self._sweep:
            self._sweep = sweep
            self._kernel.allow_sweep(*sweep)

    def _whole(self, outcome: Outcome) -> bool:
        """Everything we advertise is with the speaker, so peers that kept our routes over a restart may
        drop the rest (RFC 4724 section 4.1).

        Who passes on what others announce has all of it only when they have said it all again. Peers that
        restart at the same time do not count: each would wait for the other's End-of-RIB.
        """
        desired = self.graph.desired
        if desired is None or not self._replayed or outcome.holding:
            return False
        passes_on = any(peer.is_ebgp or peer.route_reflector_client for peer in desired.peers.values())
        return not (passes_on and outcome.awaiting - outcome.restarting)

    def _tell_peers(self, desired: Desired) -> None:
        """Most changes of the datastore leave the peers alone: then there is no file to render."""
        before = self.desired.peek()
        if before is not None and before.peers == desired.peers:
            return
        self.desired.put(desired)
        named = {peer.address: peer.prefix_limit for peer in desired.peers.values()}
        self._speaker.limits(
            {address: limit for address, limit in named.items() if limit is not None},
            self.graph.local.prefix_limit,
        )

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        deadline = self.graph.tick(now)
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_later(max(deadline - now, 0.01), self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.graph.tick(self._clock())
        self.told()
