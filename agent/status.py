"""What the agent answers to those who ask: read from the owners' own tables, decided nowhere here."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from agent.answers import Listing
from agent.calculation import Calculation
from agent.follow import Follower
from agent.sessions import Sessions
from agent.sinks.kernel import KernelSink
from agent.sinks.speaker import SpeakerLink
from agent.sinks.speaker_conf import SpeakerConfSink
from agent.speaker.protocol import PeerState
from felix_like.calc.outcome import PathView
from felix_like.model.address import Address, Prefix
from felix_like.model.bgp import Peer
from felix_like.model.desired import Route, RouteKey
from felix_like.model.verdict import Refusal

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The questions of `agent.sock`. `wall` is the time of day in seconds since the epoch."""

    node: str
    started: float
    endpoints: tuple[str, ...]
    wall: Callable[[], float]
    calculation: Calculation
    follower: Follower
    sessions: Sessions
    kernel: KernelSink
    link: SpeakerLink
    conf: SpeakerConfSink
    kubernetes: Callable[[], dict[str, Any] | None] = lambda: None
    """How it goes with the Kubernetes API; None: there is no access to one."""
    own: Callable[[], Iterable[Refusal]] = tuple
    """What the agent itself has to complain about: its registration, its sinks."""

    def answer(self, question: dict[str, Any]) -> dict[str, Any] | Listing:
        """One answer to one question. Raises ValueError with a sentence for a question nobody can answer."""
        match question:
            case {"ask": "status"}:
                return self.status()
            case {"ask": "routes", "prefix": str(text)}:
                return {"routes": [entry] if (entry := self.route(Prefix.of(text))) else []}
            case {"ask": "routes"} if "prefix" not in question:
                prefixes = self.calculation.graph.prefixes()
                return Listing("routes", (entry for prefix in prefixes if (entry := self.route(prefix))))
            case {"ask": "explain", "prefix": str(text)}:
                return self.explain(Prefix.of(text))
            case {"ask": "kernel"}:
                return Listing("kernel", map(self._wanted_route, list(self.kernel.wanted.values())))
        raise ValueError(
            'ask "status", "routes" (with or without a "prefix"), "explain" (with a "prefix") or "kernel"'
        )

    # -- status ----------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The node at a glance."""
        graph = self.calculation.graph
        rib = graph.rib_counts()
        return {
            "version": FORMAT,
            "node": self.node,
            "time": self.wall(),
            "agent": {"pid": os.getpid(), "started": self.started, "version": own_version()},
            "datastore": self._datastore(),
            "kubernetes": self.kubernetes(),
            "speaker": self._speaker(),
            "peers": [self._peer(peer) for peer in self._peers()],
            "routes": self._routes(),
            "rib": {name: getattr(rib, name) for name in RIB_COUNTS},
            "origin_validation": str(graph.origin_validation),
            "refusals": [{"subject": r.subject, "reason": r.reason} for r in self.refusals()],
        }

    def sentence(self) -> str:
        """The node in one line, for service managers."""
        peers, kernel = self._peers(), self.kernel.status()
        up = sum(self.sessions.is_up(peer.address) for peer in peers)
        kubernetes = (self.kubernetes() or {}).get("state", "idle")
        return (
            f"etcd: {self._datastore()['state']}; "
            + (f"Kubernetes: {kubernetes}; " if kubernetes != "idle" else "")
            + f"{up} of {len(peers)} sessions established; "
            f"{kernel.installed} of {kernel.wanted} routes in the kernel"
        )

    def pending_routes(self) -> int:
        """Wanted kernel routes that were neither installed nor refused yet."""
        kernel = self.kernel.status()
        return kernel.wanted - kernel.installed - len(kernel.failed) - len(kernel.conflicts)

    def refusals(self) -> list[Refusal]:
        """Every no, each once."""
        every = [
            *self.own(),
            *self.calculation.graph.refusals(),
            *self.conf.refusals,
            *self.sessions.refusals(self._peer_name),
        ]
        return list(dict.fromkeys(every))

    def _datastore(self) -> dict[str, Any]:
        state, graph = self.follower.state, self.calculation.graph
        frozen = graph.frozen if state.state == "in-sync" else None
        return {
            "state": "frozen" if frozen else state.state,
            "since": state.since,
            "revision": graph.snapshot.revision,
            "endpoints": list(self.endpoints),
            "reason": frozen or state.reason,
        }

    def _speaker(self) -> dict[str, Any]:
        state = self.link.state
        return {
            "state": state.state,
            "since": state.since,
            "pid": state.pid,
            "exabgp": state.exabgp,
            "reason": state.reason,
            "configured": self.conf.settled,
        }

    def _peers(self) -> list[Peer]:
        desired = self.calculation.graph.desired
        peers = desired.peers.values() if desired is not None else ()
        return sorted(peers, key=lambda peer: (peer.version, bytes(peer.address)))

    def _peer_name(self, address: Address) -> str:
        desired = self.calculation.graph.desired
        peer = desired.peers.get(address) if desired is not None else None
        return (peer.remote_node or peer.resource or peer.name) if peer is not None else str(address)

    def _peer(self, peer: Peer) -> dict[str, Any]:
        session, counts = self.sessions.state(peer.address), self.calculation.graph.peer_counts(peer.address)
        return {
            "address": str(peer.address),
            "port": peer.port,
            "type": str(peer.type),
            "name": peer.name,
            "asn": peer.asn,
            "state": session.state if session is not None else "Idle",
            "since": session.since if session is not None else self.link.state.since,
            "info": self._info(session),
            "remote_node": peer.remote_node,
            "received": counts.received,
            "accepted": counts.accepted,
            "rejected": counts.rejected,
            "stale": counts.stale,
            "advertised": counts.advertised,
        }

    def _info(self, session: PeerState | None) -> str:
        if self.link.state.state != "connected":
            return "the speaker is away" if session is None else "as last heard, the speaker is away"
        return session.reason if session is not None else "the speaker has not been told yet"

    def _routes(self) -> dict[str, Any]:
        kernel = self.kernel.status()
        return {
            "wanted": kernel.wanted,
            "installed": kernel.installed,
            "inherited": kernel.inherited,
            "repaired": kernel.repaired,
            "failed": [{"prefix": str(key.prefix), "reason": reason} for key, reason in kernel.failed],
            # A route that packets do not follow is there, and of no more use than one that is not.
            "conflicts": [
                {"prefix": str(key.prefix), "reason": reason}
                for key, reason in (*kernel.conflicts, *kernel.shadowed)
            ],
        }

    def _wanted_route(self, route: Route) -> dict[str, Any]:
        """One kernel route of ours in the kernel's own terms, for who compares."""
        return {
            "prefix": str(route.key.prefix),
            "metric": route.key.priority,
            "table": route.key.table,
            "protocol": route.protocol,
            "kind": route.kind,
            "next_hops": [
                {"gateway": str(hop.gateway) if hop.gateway is not None else None, "interface": hop.ifindex}
                for hop in route.next_hops
            ],
            "installed": self.kernel.installed(route.key) == route,
        }

    # -- routes ----------------------------------------------------------------------------------------

    def route(self, prefix: Prefix) -> dict[str, Any] | None:
        """One prefix: what is known of it, and what the kernel has. None when nothing is known."""
        graph = self.calculation.graph
        paths, desired = graph.paths(prefix), graph.desired
        own = desired is not None and (prefix in desired.blackholes or prefix in desired.originated)
        if not paths and not own:
            return None
        key = RouteKey(prefix, graph.local.route_priority)
        return {
            "prefix": str(prefix),
            "kind": "local" if own else "learned",
            "kernel": self.kernel.state(key),
            "via": spelled(self.kernel.installed(key)),
            "paths": [self._path(view) for view in paths],
        }

    def _path(self, view: PathView) -> dict[str, Any]:
        path, attributes = view.path, view.path.attributes
        return {
            "peer": str(path.peer),
            "peer_name": self._peer_name(path.peer),
            "next_hop": str(attributes.next_hop),
            "as_path": " ".join(map(str, attributes.asns)),
            "local_pref": attributes.local_pref,
            "med": attributes.med,
            "origin": attributes.origin.name,
            "communities": [*attributes.communities, *attributes.large_communities],
            "validity": str(path.origin.validity),
            "reason": path.origin.reason,
            "rejection": path.rejection,
            "stale": path.stale,
            "best": view.used,
            "step": view.step,
        }

    def explain(self, prefix: Prefix) -> dict[str, Any]:
        """The whole chain, for people."""
        graph = self.calculation.graph
        key = RouteKey(prefix, graph.local.route_priority)
        lines = [*graph.explain(prefix, interface_name), f"kernel: {self.kernel.state(key)}"]
        via = spelled(self.kernel.installed(key))
        if via:
            lines[-1] += f", {', '.join(via)}"
        elif (wider := self._covering(prefix)) is not None:
            state = self.kernel.state(RouteKey(wider, graph.local.route_priority))
            lines.append(f"covered by {wider} ({state}): 'tortiectl explain {wider}' says more")
        return {"prefix": str(prefix), "lines": lines}

    def _covering(self, prefix: Prefix) -> Prefix | None:
        """The longest other prefix known here that packets to this one may follow."""
        known = (
            other for other in self.calculation.graph.prefixes() if other != prefix and other.covers(prefix)
        )
        return max(known, key=lambda other: other.length, default=None)


RIB_COUNTS = ("prefixes", "paths", "valid", "invalid", "unknown")


def spelled(route: Route | None) -> list[str]:
    """A kernel route's next hops as `ip route` writes them."""
    if route is None:
        return []
    if route.kind == "blackhole":
        return ["blackhole"]
    return [
        (f"via {hop.gateway} " if hop.gateway is not None else "") + f"dev {interface_name(hop.ifindex)}"
        for hop in route.next_hops
    ]


def interface_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"


def own_version() -> str:
    try:
        return version("tortie")
    except PackageNotFoundError:
        return "unknown"
