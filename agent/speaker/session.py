"""The table of peers: what is configured, what each told, what each is to be told. No I/O.

Time comes in as arguments: `clock` for what people read, nothing else needs one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from agent.speaker.feed import Feed
from agent.speaker.protocol import (
    Advertise,
    Command,
    ConfigApplied,
    FullSync,
    LimitExceeded,
    Limits,
    Malformed,
    PeerState,
    PeerUp,
    Reload,
    State,
    SyncBegin,
    SyncEnd,
    Withdraw,
)
from agent.speaker.rib import AdjRibIn, AdjRibOut, Interned
from agent.speaker.settings import Batch, Negotiation, Neighbor, Update
from bird_config.document import SHORTEST_HOLD, SMALL_MESH
from felix_like.model.address import Address, IpVersion

_logger = logging.getLogger("tortie.speaker")

HOLD_DOWN = 60.0
"""Seconds a peer that sent too much stays closed the first time; doubled each time after."""
LONGEST_HOLD_DOWN = 3600.0


class PeerEntry:
    """One configured peer and its tables; hears its session (SessionEvents)."""

    def __init__(self, neighbor: Neighbor, table: PeerTable, rib_out: AdjRibOut) -> None:
        self.neighbor = neighbor
        self.rib_in = AdjRibIn()
        self.rib_out = rib_out
        self.negotiation: Negotiation | None = None
        self.renewing = False
        """The session ends because another is built with the same peer, on other terms."""
        self.over_limit: int | None = None
        """The count that went over the limit; the driver ceases the session and clears it."""
        self.hold_down = HOLD_DOWN
        self._exceeded: LimitExceeded | None = None
        self._table = table
        self._state: State = "Idle"
        self._since = table.clock()
        self._reason = ""
        self._eor_sent: set[IpVersion] = set()
        self._faulty = 0
        self._faults: set[str] = set()

    @property
    def address(self) -> Address:
        return self.neighbor.address

    @property
    def state(self) -> State:
        return self._state

    def state_event(self) -> PeerState:
        return PeerState(self.address, self._state, self._since, self._reason)

    def up_event(self) -> PeerUp | None:
        agreed = self.negotiation
        if agreed is None:
            return None
        return PeerUp(
            peer=self.address,
            router_id=agreed.router_id,
            asn=agreed.asn,
            hold_time=agreed.hold_time,
            families=agreed.families,
            restart_time=agreed.restart_time,
            restarting=agreed.restarting,
            graceful=agreed.graceful,
        )

    def limit_event(self) -> LimitExceeded | None:
        """Set from the flood until the session is up again."""
        return self._exceeded

    def failing(self, reason: str, state: State = "Active") -> None:
        """Why the session does not come up, said when it is news."""
        if self.negotiation is None and (reason != self._reason or state != self._state):
            if reason != self._reason:
                _logger.info("neighbor %s: %s", self.address, reason)
            self._reason, self._state = reason, state
            self._tell()

    def due_end_of_rib(self) -> list[IpVersion]:
        """Families whose End-of-RIB is now to be sent; they count as sent."""
        if self.negotiation is None or not self._table.full_sync:
            return []
        due = [v for v in self.negotiation.families if v not in self._eor_sent]
        self._eor_sent.update(due)
        return due

    # SessionEvents

    def on_state(self, state: State) -> None:
        if state == self._state or (state == "Idle" and self._state in ("Active", "Connect")):
            return
        self._state, self._since = state, self._table.clock()
        self._tell()

    def on_up(self, negotiation: Negotiation) -> None:
        _logger.info("neighbor %s: established, router ID %s", self.address, negotiation.router_id)
        self.negotiation = negotiation
        self._reason = ""
        self._exceeded = None
        self._eor_sent = set()
        self._faulty, self._faults = 0, set()
        self.rib_in.clear()
        self.rib_out.session_up()
        if self._table.feed is not None:
            self._table.feed.up(self)
            self._table.wake()
        self._tell()

    def on_down(self, reason: str, graceful: bool) -> None:
        was_up = self.negotiation is not None
        if was_up or reason != self._reason:
            kept = ", gracefully" if graceful else ""
            _logger.info("neighbor %s: session closed%s: %s", self.address, kept, reason)
        self._reason = reason
        self._state, self._since = "Idle", self._table.clock()
        self.negotiation = None
        self.rib_in.clear()
        self.rib_out.session_down()
        if was_up and self._table.feed is not None:
            self._table.feed.down(self, reason, graceful, ours=graceful and self.renewing)
        self._tell()

    def on_update(self, update: Update) -> None:
        if self.over_limit is not None:
            return
        changed = self.rib_in.apply(update)
        if update.end_of_rib is not None:
            self.rib_in.end_of_rib.add(update.end_of_rib)
        if update.fault is not None:
            self._fault(update)
        if len(self.rib_in) > self._table.limit(self.address):
            self.over_limit = len(self.rib_in)
            return
        feed = self._table.feed
        if feed is not None:
            for version, nlri in changed:
                feed.changed(self, version, nlri)
            if update.end_of_rib is not None:
                feed.end_of_rib(self, update.end_of_rib)
            self._table.wake()

    def on_refresh(self, version: IpVersion) -> None:
        self.rib_out.refresh(version)

    def has_batches(self) -> bool:
        return self.rib_out.pending()

    def next_batch(self) -> Batch | None:
        return self.rib_out.next_batch()

    # limits

    def exceeded(self) -> float:
        """Say that the peer sent too much; returns the seconds to stay away from it."""
        count, self.over_limit = self.over_limit or 0, None
        pause, self.hold_down = self.hold_down, min(self.hold_down * 2, LONGEST_HOLD_DOWN)
        limit = self._table.limit(self.address)
        _logger.warning(
            "neighbor %s: sent %d prefixes, the limit is %d: closed for %.0f s; "
            "raise its prefix limit if it is right",
            self.address,
            count,
            limit,
            pause,
        )
        self._exceeded = LimitExceeded(self.address, count, limit, pause)
        if self._table.feed is not None:
            self._table.feed.limit(self)
        return pause

    def pardoned(self, limit: int) -> bool:
        """True once when the peer was closed for what a new limit allows: it may come back now."""
        closed = self._exceeded
        if closed is None or not closed.limit < limit or closed.count > limit:
            return False
        self._exceeded, self.hold_down = None, HOLD_DOWN
        return True

    def _fault(self, update: Update) -> None:
        reason = update.fault or ""
        self._faulty += update.faulty
        if reason in self._faults or len(self._faults) >= 20:
            return
        self._faults.add(reason)
        _logger.warning("neighbor %s: routes treated as withdrawn (RFC 7606): %s", self.address, reason)
        if self._table.feed is not None:
            self._table.feed.say(Malformed(self.address, self._faulty, reason))

    def _tell(self) -> None:
        if self._table.feed is not None:
            self._table.feed.state(self)
            self._table.wake()


@dataclass(frozen=True, slots=True)
class Changes:
    """What a new configuration means for the sessions."""

    added: tuple[PeerEntry, ...]
    removed: tuple[PeerEntry, ...]
    changed: tuple[PeerEntry, ...]
    """Entries whose session must be built anew, already with their new neighbor."""
    unchanged: int

    def report(self, path: str) -> ConfigApplied:
        def names(entries: tuple[PeerEntry, ...]) -> tuple[Address, ...]:
            return tuple(entry.address for entry in entries)

        return ConfigApplied(
            path, names(self.added), names(self.removed), names(self.changed), self.unchanged
        )


class PeerTable:
    """All peers. `wake` is called when the feed has something new, `kick` when a peer has to send,
    `pardon` when one that sent too much need not stay away any longer."""

    def __init__(self, clock: Callable[[], float], prefix_limit: int) -> None:
        self.clock = clock
        self.peers: dict[Address, PeerEntry] = {}
        self.feed: Feed | None = None
        self.full_sync = False
        self.wake: Callable[[], None] = lambda: None
        self.kick: Callable[[PeerEntry], None] = lambda _entry: None
        self.pardon: Callable[[PeerEntry], None] = lambda _entry: None
        self._default_limit = prefix_limit
        self._limits: dict[Address, int] = {}
        self._rib_out: dict[Address, AdjRibOut] = {}
        self._syncing = False
        self._intern = Interned()

    def limit(self, address: Address) -> int:
        return self._limits.get(address, self._default_limit)

    def configure(self, neighbors: Iterable[Neighbor]) -> Changes:
        """Take over a parsed configuration and say what is different.

        What is wanted for a peer survives its reconfiguration: adverts may arrive before it does.
        """
        wanted = {neighbor.address: neighbor for neighbor in neighbors}
        added: list[PeerEntry] = []
        changed: list[PeerEntry] = []
        unchanged = 0
        removed = [entry for address, entry in self.peers.items() if address not in wanted]
        for entry in removed:
            del self.peers[entry.address]
        for address, neighbor in wanted.items():
            known = self.peers.get(address)
            if known is None:
                self.peers[address] = PeerEntry(neighbor, self, self._out(address))
                added.append(self.peers[address])
                continue
            if known.neighbor == neighbor:
                unchanged += 1
            else:
                changed.append(known)
            known.neighbor = neighbor  # equal ones differ in who connects
        return Changes(tuple(added), tuple(removed), tuple(changed), unchanged)

    def connected(self, feed: Feed) -> None:
        """An agent is here; a sync that its predecessor began is void."""
        self.feed = feed
        self._broken_off()

    def disconnected(self) -> None:
        self.feed = None
        self._broken_off()

    def carry_out(self, command: Command) -> None:
        """Everything but Reload."""
        match command:
            case Advertise() | Withdraw():
                self._paths(command)
            case SyncBegin():
                self._syncing = True
                for out in self._rib_out.values():
                    out.mark()
            case SyncEnd():
                self._sweep()
            case FullSync():
                self.full_sync = True
                for address in self.peers:
                    self._kick(address)
            case Limits():
                self._set_limits(command.peers, command.default)
            case Reload():
                raise AssertionError("a reload is not for the table")

    def _paths(self, command: Advertise | Withdraw) -> None:
        version, packed = command.nlri.version, command.nlri.packed
        attributes = self._intern(command.attributes) if isinstance(command, Advertise) else None
        for address in command.peers:
            out = self._out(address)
            if out.drop(version, packed) if attributes is None else out.put(version, attributes, packed):
                self._kick(address)

    def _set_limits(self, limits: Mapping[Address, int], default: int | None) -> None:
        self._limits = dict(limits)
        if default is not None:
            self._default_limit = default
        for entry in self.peers.values():
            limit = self.limit(entry.address)
            if len(entry.rib_in) > limit:
                entry.over_limit = len(entry.rib_in)
                self._kick(entry.address)
            elif entry.pardoned(limit):
                self.pardon(entry)

    def _sweep(self) -> None:
        self._syncing = False
        for address, out in list(self._rib_out.items()):
            if out.sweep():
                self._kick(address)
            if not len(out) and address not in self.peers:
                del self._rib_out[address]

    def _broken_off(self) -> None:
        self._syncing = False
        for out in self._rib_out.values():
            out.unmark()

    def _out(self, address: Address) -> AdjRibOut:
        out = self._rib_out.get(address)
        if out is None:
            out = self._rib_out[address] = AdjRibOut()
            if self._syncing:
                out.mark()
        return out

    def _kick(self, address: Address) -> None:
        entry = self.peers.get(address)
        if entry is not None:
            self.kick(entry)


def refusal(neighbors: list[Neighbor]) -> str | None:
    """Why this configuration may not run."""
    seen: set[Address] = set()
    for neighbor in neighbors:
        if neighbor.address in seen:
            return (
                f"neighbor {neighbor.address} is there twice; "
                "two sessions to one address cannot be told apart"
            )
        seen.add(neighbor.address)
        if neighbor.hold_time and neighbor.hold_time < SHORTEST_HOLD and len(neighbors) > SMALL_MESH:
            return (
                f"neighbor {neighbor.address}: hold-time {neighbor.hold_time} is too short with "
                f"{len(neighbors)} neighbors; use {SHORTEST_HOLD} or more"
            )
        if not neighbor.families:
            return f"neighbor {neighbor.address}: neither ipv4 unicast nor ipv6 unicast is configured"
    return None
