"""A status document (the answer of `agent.sock`) as the fleet's messages. Pure.

It reads the documents of this version's agent; `tortiectl` reads other agents' documents with it as well,
so nothing is taken for granted: what is missing counts as nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from agent.telemetry import payloads
from agent.telemetry.payloads import (
    MOST_NAMED,
    VERSION,
    AgentLife,
    Counts,
    Life,
    Listed,
    Part,
    PathCounts,
    Peers,
    RibCounts,
    RouteCounts,
    Said,
    Status,
    Unestablished,
    bounded,
)

Document = Mapping[str, Any]


def status(document: Document, cluster: str, state: Life = "running") -> Status:
    """What is retained at `.../status`."""
    agent, routes = _object(document, "agent"), _object(document, "routes")
    kubernetes = _object(document, "kubernetes")
    return Status(
        **_head(document, cluster),
        state=state,
        agent=AgentLife(version=bounded(agent.get("version", "")), started=_time(agent.get("started"))),
        datastore=_part(_object(document, "datastore")),
        kubernetes=_part(kubernetes) if kubernetes else None,
        speaker=_part(_object(document, "speaker")),
        origin_validation=bounded(document.get("origin_validation", "")),
        failed=_listed(objects(routes, "failed"), "prefix"),
        conflicts=_listed(objects(routes, "conflicts"), "prefix"),
        refusals=_listed(objects(document, "refusals"), "subject"),
    )


def peers(document: Document, cluster: str) -> Peers:
    """What is retained at `.../peers`."""
    every = objects(document, "peers")
    down = [peer for peer in every if not established(peer)]
    return Peers(
        **_head(document, cluster),
        total=len(every),
        established=len(every) - len(down),
        unestablished=tuple(_unestablished(peer) for peer in down[:MOST_NAMED]),
    )


def counts(document: Document, cluster: str) -> Counts:
    """What is retained at `.../counts`."""
    routes, rib = _object(document, "routes"), _object(document, "rib")
    every = objects(document, "peers")
    return Counts(
        **_head(document, cluster),
        routes=RouteCounts(
            wanted=_count(routes.get("wanted")),
            installed=_count(routes.get("installed")),
            failed=len(objects(routes, "failed")),
            conflicts=len(objects(routes, "conflicts")),
        ),
        rib=RibCounts(**{name: _count(rib.get(name)) for name in RibCounts.__struct_fields__}),
        paths=PathCounts(
            **{name: sum(_count(peer.get(name)) for peer in every) for name in PathCounts.__struct_fields__}
        ),
        revision=_count(_object(document, "datastore").get("revision")),
    )


def will(node: str, cluster: str, now: float) -> Status:
    """What the broker says when the node is gone."""
    return Status(version=VERSION, cluster=cluster, node=node, time=now, state="gone")


def established(peer: Mapping[str, Any]) -> bool:
    return peer.get("state") == "Established"


def objects(parent: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """A list of objects; what is not one of both is left out."""
    value = parent.get(key)
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def encode(payload: payloads.Payload) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(payload)


def _head(document: Document, cluster: str) -> dict[str, Any]:
    return {
        "version": VERSION,
        "cluster": cluster,
        "node": bounded(document.get("node", "")),
        "time": _time(document.get("time")),
    }


def _part(part: Mapping[str, Any]) -> Part:
    return Part(
        state=bounded(part.get("state", "unknown")),
        since=_time(part.get("since")),
        reason=bounded(part.get("reason") or ""),
    )


def _listed(entries: list[Mapping[str, Any]], subject: str) -> Listed:
    return Listed(
        count=len(entries), first=tuple(said(entry, subject) for entry in _first(entries, MOST_NAMED))
    )


def said(entry: Mapping[str, Any], subject: str) -> Said:
    return Said(subject=bounded(entry.get(subject, "")), reason=bounded(entry.get("reason") or ""))


def _unestablished(peer: Mapping[str, Any]) -> Unestablished:
    remote = peer.get("remote_node")
    return Unestablished(
        address=bounded(peer.get("address", "")),
        name=bounded(peer.get("name", "")),
        type=bounded(peer.get("type", "")),
        state=bounded(peer.get("state", "")),
        since=_time(peer.get("since")),
        reason=bounded(peer.get("info") or ""),
        remote_node=None if remote is None else bounded(remote),
    )


def _first(entries: Iterable[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    return [entry for _, entry in zip(range(most), entries, strict=False)]


def _object(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value <= 2**53 else 0


def _time(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1e11 else 0.0
