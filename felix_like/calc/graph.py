"""The whole brain: told what happens, asked what follows. No event loop, no clock, no I/O.

Datastore, Kubernetes and BGP are told in any order; what follows depends only on the current state of all.
What is not told again is kept: the datastore while it is stale, a peer's paths over its graceful restart.

Times are float seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from felix_like.calc import explain as explanation
from felix_like.calc.backlog import Backlog, locks
from felix_like.calc.desire import desire
from felix_like.calc.explain import by_number
from felix_like.calc.kubernetes import KubernetesChange
from felix_like.calc.origin import OriginMode
from felix_like.calc.outcome import Outcome, PathView, PeerCounts, RibCounts
from felix_like.calc.pod_cidrs import without_blocks
from felix_like.calc.service_routes import ServiceRoutes
from felix_like.calc.snapshot import Change, Snapshot
from felix_like.calc.tables import Tables
from felix_like.calc.waits import Waits
from felix_like.model.address import Address, IpVersion, Prefix
from felix_like.model.bgp import BgpConfiguration, SecretRef
from felix_like.model.desired import Desired, LocalNode, NextHopState, Route, RouteKey
from felix_like.model.ippool import IPPool
from felix_like.model.node import Node
from felix_like.model.path import Attributes, Path
from felix_like.model.service import ServiceId
from felix_like.model.verdict import Refusal
from felix_like.rib.adj_rib_in import AdjRibIn
from felix_like.rib.session import Session

__all__ = ["CalcGraph", "OriginMode", "Outcome", "PathView", "PeerCounts", "RibCounts", "Session"]


class CalcGraph:
    """Tell it with the `on_…` methods, then `take()`; call `tick` when the deadline it gave has come."""

    def __init__(
        self,
        local: LocalNode,
        *,
        origin_validation: OriginMode = OriginMode.ENFORCE,
        kubernetes: bool = False,
    ) -> None:
        """`kubernetes`: there is access to it, so `on_kubernetes` will be called."""
        self.local = local
        self.snapshot = Snapshot()
        self.desired: Desired | None = None
        """What is acted on; None until the datastore, or its last good copy, was read."""
        self.frozen: str | None = None
        """Why the datastore's newest answer is not acted on (it is locked)."""
        self.stale: str | None = None
        """Why the datastore's answer may be old."""
        self.origin_validation = origin_validation
        self._secrets: Mapping[SecretRef, str] = {}
        self._backlog = Backlog()
        self._heard = False
        """The datastore, or its last good copy, has said something."""
        self._in_sync = False
        self._authoritative = False
        self._desired_changed = False
        self._resyncing = False

        self._tables = Tables(local, origin_validation)
        self._waits = Waits(self._tables.paths.by_peer)
        self._services = ServiceRoutes(local, self._tables.ownership, expected=kubernetes)
        self._base: Desired | None = None
        """What follows from the datastore alone, as acted on; `desired` has the services' routes as well."""
        self._without_pod_cidrs = False
        """It was calculated while nobody knew the podCIDRs that it should follow from."""

    # -- told: the datastore --------------------------------------------------------------------------

    def on_datastore(self, changes: Iterable[Change], in_sync: bool) -> None:
        """Keys changed. `in_sync`: the snapshot is now whole and current.

        Before the first time nothing is calculated: a half-read datastore has half the peers.
        """
        changes = tuple(changes)
        if in_sync and self._heard and self.desired is None and locks(changes):
            # Locked while we were away: what was right before is what the last good copy says.
            self._recalculate(from_copy=True)
        self._heard = True
        self._learn(changes)
        if in_sync:
            self._in_sync, self.stale = True, None
        self._recalculate()

    def on_datastore_stale(self, reason: str | None) -> None:
        """The datastore does not answer; what was last known, perhaps from disk, goes on being true.

        Where nothing was known, nothing is wanted and nothing is unwanted: a speaker that outlived us keeps
        the peers it has. None: it answers again, though it may not be in sync yet.
        """
        self.stale = reason
        self._recalculate()

    def on_kubernetes(self, changes: Iterable[KubernetesChange], in_sync: bool) -> None:
        """Objects of Kubernetes changed: services, endpoint slices, nodes. `in_sync`: what was told is now
        whole and current. The first telling is whole: Kubernetes', or its last good copy.

        A change costs the services that it concerns; what does not alter this node's answer touches nothing.
        """
        services, nodes = self._services.tell(changes, in_sync)
        self._follow_kubernetes(services, nodes=nodes)

    def on_kubernetes_stale(self, reason: str | None) -> None:
        """Kubernetes does not answer; what was last known, perhaps from disk, goes on being true.

        Before it was heard, nothing is known of services: see `Outcome.holding`. None: it answers again.
        """
        self._follow_kubernetes((), nodes=self._services.tell_stale(reason))

    def on_secrets(self, secrets: Mapping[SecretRef, str]) -> None:
        """All passwords there are."""
        if secrets != self._secrets:
            self._secrets = dict(secrets)
            self._backlog.desire = True
            self._recalculate()

    # -- told: the speaker ----------------------------------------------------------------------------

    def on_peer_up(self, peer: Address, session: Session, now: float) -> None:
        """A session is established (or, between `on_resync_begin` and `_end`, told again)."""
        rib = self._rib(peer, now)
        before = rib.last_session
        self._tables.paths.forget(rib.established(session, now))
        if before != session:
            self._tables.importer.forget_source(peer)
            self._tables.exports.forget_targets(peer)
            if before is None or before.router_id != session.router_id:
                self._tables.paths.dirty.update(rib.paths)
        self._tables.saw_router_id(peer)

    def on_peer_down(self, peer: Address, now: float, *, graceful: bool, ours: bool = False) -> None:
        """A session ended. `graceful`: the connection broke, without a goodbye. `ours`: by our own doing, to
        be built anew."""
        rib = self._rib(peer, now)
        if ours:
            rib.left(now)
        else:
            self._tables.paths.forget(rib.lost(now, graceful=graceful))

    def on_peer_gone(self, peer: Address) -> None:
        """The speaker no longer has this neighbor: nothing of it is kept."""
        rib = self._tables.paths.by_peer.pop(peer, None)
        if rib is not None:
            self._tables.paths.forget(rib.removed())
        self._tables.importer.forget_source(peer)
        self._tables.exports.forget_targets(peer)

    def on_learned(self, peer: Address, attributes: Attributes, prefixes: Iterable[Prefix]) -> None:
        """One UPDATE's NLRI with the attributes they share."""
        if peer not in self._tables.paths.by_peer:
            self._rib(peer, self._waits.now or 0.0)
        self._tables.importer.learned(peer, attributes, prefixes)

    def on_withdrawn(self, peer: Address, prefixes: Iterable[Prefix]) -> None:
        self._tables.importer.withdrawn(peer, prefixes)

    def on_end_of_rib(self, peer: Address, version: IpVersion, now: float) -> None:
        rib = self._rib(peer, now)
        self._tables.paths.forget(rib.ended(version))

    def on_speaker_lost(self, now: float) -> None:
        """The speaker is gone or unreachable. Its sessions may live on or restart gracefully."""
        self._tell_time(now)
        self._resyncing = False
        for rib in self._tables.paths.by_peer.values():
            rib.speaker_lost(now)

    def on_resync_begin(self, now: float | None = None) -> None:
        """The speaker tells everything again, first of all which peers are up."""
        if now is not None:
            self._tell_time(now)
        self._resyncing = True
        for rib in self._tables.paths.by_peer.values():
            rib.resync_begin(self._waits.now or 0.0)

    def on_resync_end(self, up_peers: Iterable[Address], now: float | None = None) -> None:
        """What a peer that is up did not tell again does not exist."""
        if now is not None:
            self._tell_time(now)
        self._resyncing = False
        up = set(up_peers)
        for peer, rib in self._tables.paths.by_peer.items():
            self._tables.paths.forget(rib.resync_end(self._waits.now or 0.0, up=peer in up))

    # -- told: the kernel and the clock ---------------------------------------------------------------

    def on_next_hops(self, states: Mapping[Address, NextHopState]) -> None:
        """Where next hops lead. Only those in use are remembered; ask again for others in their time."""
        known, users = self._tables.loc_rib.next_hops, self._tables.paths.by_next_hop
        for next_hop, state in states.items():
            # Also one that just fell out of use: it may be in use again before anybody asks anew.
            if (next_hop in users or next_hop in known) and known.get(next_hop) != state:
                known[next_hop] = state
                self._tables.paths.dirty.update(users.get(next_hop, ()))
                self._tables.kernel.next_hops_changed()

    def tick(self, now: float) -> float | None:
        """Let what has expired expire; the time to call again, at most `now` if there is something to
        take, None when nothing is waiting."""
        self._tell_time(now)
        for rib in self._tables.paths.by_peer.values():
            self._tables.paths.forget(rib.expire(now))
        if not self._services.decided:
            self._advertise_services()  # perhaps Kubernetes was waited for long enough
        if self._tables.paths.dirty and self.desired is not None:
            return now
        deadlines = [rib.stale_until for rib in self._tables.paths.by_peer.values() if not self._resyncing]
        deadlines += self._awaited().values()
        if self._services.waiting(self._waits.early):
            deadlines.append(self._waits.early_until)
        return min((d for d in deadlines if d is not None), default=None)

    # -- asked ----------------------------------------------------------------------------------------

    def take(self) -> Outcome:
        """What changed since the last call."""
        changed, self._desired_changed = self._desired_changed, False
        if self.desired is not None:
            self._tables.decide(self.desired)
        self._tables.forget_next_hops()
        awaiting = frozenset(self._awaited())
        return Outcome(
            desired=self.desired if changed else None,
            fib=self._tables.kernel.take(),
            adverts=self._tables.adj_rib_out.take(),
            resolve=frozenset(self._tables.paths.by_next_hop.keys() - self._tables.loc_rib.next_hops.keys()),
            authoritative=self._authoritative,
            awaiting=awaiting,
            restarting=self._waits.restarting(awaiting),
            holding=self._services.holding(self._waits.early, without_pod_cidrs=self._without_pod_cidrs),
        )

    def fib(self) -> dict[RouteKey, Route]:
        """Every kernel route wanted as of the last `take`."""
        return {route.key: route for route in self._tables.kernel.wanted.values()}

    def adverts(self, peer: Address) -> dict[Prefix, Attributes]:
        """Everything a peer is told as of the last `take`: for a speaker that remembers nothing."""
        return self._tables.adj_rib_out.to(peer)

    def next_hops_in_use(self) -> frozenset[Address]:
        return frozenset(self._tables.paths.by_next_hop)

    def prefixes(self) -> list[Prefix]:
        """Every prefix there is something to say about, sorted."""
        own = self.desired.blackholes | self.desired.originated.keys() if self.desired else set()
        every = own | self._tables.paths.by_prefix.keys()
        # A key function would take twice the time, and this runs on the loop.
        return [p for size in (4, 16) for p in sorted(q for q in every if len(q.network) == size)]

    def paths(self, prefix: Prefix) -> list[PathView]:
        """The paths of a prefix, best first, each with what the decision process made of it."""
        return explanation.path_views(self._tables, prefix)

    def explain(self, prefix: Prefix, device: Callable[[int], str] = by_number) -> list[str]:
        """What an operator reads: ownership, paths, verdicts, decision, route, adverts.

        `device` names an interface by its number; names change, so none is known here.
        """
        notes = [
            f"the datastore is {state}: {reason}"
            for state, reason in (("locked", self.frozen), ("stale", self.stale))
            if reason is not None
        ]
        about = self._services.explain(prefix) if self.desired is not None else []
        return explanation.explain(self._tables, self.desired, notes, prefix, about, device)

    def peer_counts(self, peer: Address) -> PeerCounts:
        return explanation.peer_counts(self._tables, peer)

    def stale_paths(self, peer: Address) -> int:
        """How many of a peer's paths stay only until it has announced them again."""
        rib = self._tables.paths.by_peer.get(peer)
        return len(rib.stale) if rib is not None else 0

    def rib_counts(self) -> RibCounts:
        return explanation.rib_counts(self._tables)

    def rejections(self, limit: int = 100) -> list[Path]:
        """Paths that import policy or origin validation keeps out, at most so many."""
        return explanation.rejections(self._tables, limit)

    def refusals(self) -> tuple[Refusal, ...]:
        """Every no: the datastore's and the peers'."""
        own = self.desired.refusals if self.desired is not None else ()
        locked = self._services.holding(False, without_pod_cidrs=self._without_pod_cidrs)
        held = (Refusal(f"Node {self.local.name}", locked),) if locked and self.frozen is not None else ()
        return (*own, *held, *explanation.peer_refusals(self._tables))

    # -- inside ---------------------------------------------------------------------------------------

    def _rib(self, peer: Address, now: float) -> AdjRibIn:
        self._tell_time(now)
        known = peer in self._tables.paths.by_peer
        rib = self._tables.paths.of(peer)
        if not known and self._resyncing:
            rib.resync_begin(now)
        return rib

    def _tell_time(self, now: float) -> None:
        self._waits.tell_time(now, read=self._base is not None)

    def _learn(self, changes: Iterable[Change]) -> None:
        """Take in the datastore's changes, and the podCIDRs that follow, in place of blocks."""
        if not self._services.by_pod_cidrs:
            self._backlog.add(self.snapshot.apply(changes), self.local.name)
            return
        self._backlog.add(self.snapshot.apply(without_blocks(changes)), self.local.name)
        derived = self._services.pod_cidr_changes(self.snapshot)
        self._backlog.add(self.snapshot.apply(derived), self.local.name)
        self._backlog.desire |= bool(derived)  # one of another node's may overlap ours

    def _recalculate(self, *, from_copy: bool = False) -> None:
        """Act on the backlog: who holds what, what we want, then what that makes of paths."""
        if not (self._in_sync or from_copy or (self._heard and self.stale is not None)):
            return
        backlog = self._backlog
        answer = self._base
        if backlog.desire:
            answer = desire(self.snapshot, self.local, self._secrets)
            self.frozen = answer.frozen
            backlog.desire = False
        if self.frozen is not None or answer is None:
            self._freeze()
            return
        self._backlog = Backlog(desire=False)
        self._without_pod_cidrs = self._services.waiting_for_pod_cidrs
        self._authoritative |= self._in_sync and not self._without_pod_cidrs
        ownership = self._tables.ownership
        judge_all = False
        if self._base is None or backlog.kinds & {Node, IPPool, BgpConfiguration}:
            judge_all = ownership.update_cluster(self.snapshot)
            self._services.read_rules(self.snapshot)
        blocks = ownership.update_blocks(self.snapshot, backlog.blocks)
        self._base = answer
        self._services.decide(self._waits.early, ownership_differs=judge_all)
        judge_all |= self._adopt(self._services.added_to(answer))
        self._tables.set_export_filter(self.snapshot.pools.values(), answer)
        if judge_all:
            self._tables.importer.judge_all()
        elif blocks:
            self._tables.importer.judge_inside(blocks)

    def _follow_kubernetes(self, services: Iterable[ServiceId], *, nodes: bool) -> None:
        """These services differ; `nodes`: and so does what is known of Kubernetes' nodes."""
        if nodes and self._services.by_pod_cidrs:
            self._learn(())
            self._recalculate()
        self._advertise_services(services)

    def _advertise_services(self, services: Iterable[ServiceId] = ()) -> None:
        """These services differ; or nothing does but the time, or what Kubernetes says of this node."""
        if self._base is None or self.desired is None:
            return
        changed = self._services.decide(self._waits.early, services)
        if changed or self._services.refuses_otherwise:
            self._tables.paths.dirty |= changed
            self.desired = replace(self._services.added_to(self._base), frozen=self.frozen)
            self._desired_changed = True

    def _freeze(self) -> None:
        """Locked: what was right before stays, and says why. `desire` runs again at the next change."""
        if self.desired is not None and self.desired.frozen != self.frozen:
            self.desired = replace(self.desired, frozen=self.frozen)
            self._desired_changed = True

    def _adopt(self, new: Desired) -> bool:
        """Make `new` what is acted on; True when every path must be judged again."""
        old = self.desired
        self.desired = new
        if old is not None and replace(new, revision=old.revision) == old:
            return False
        self._desired_changed = True
        node = self.snapshot.nodes.get(self.local.name)
        return self._tables.adopt(old or Desired(node=new.node, asn=new.asn), new, node)

    def _awaited(self) -> dict[Address, float]:
        """Peers that may still tell what they told before our start, and until when."""
        return self._waits.awaited(self.desired.peers) if self.desired is not None else {}
