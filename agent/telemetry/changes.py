"""What happened between two status documents, as events. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from agent.telemetry.payloads import VERSION, Event, EventKind, bounded
from agent.telemetry.summary import Document, established, objects

MOST_AT_ONCE = 50
"""Events of one look at most: a speaker that dies takes a thousand sessions along."""

Change = tuple[EventKind, str, str, str, str]
"""Kind, subject, before, after, reason."""


def changes(before: Document | None, after: Document, cluster: str) -> list[Event]:
    """The events that lead from one document to the next; at most MOST_AT_ONCE and one that counts the rest.

    `before` None: nothing was known, so the agent itself is the only news.
    """
    found = _agent(before, after)
    if before is not None:
        found = _chain(found, _parts(before, after), _peers(before, after), _listed(before, after))
    events = [_event(after, cluster, change) for change in islice(found, MOST_AT_ONCE)]
    if left := sum(1 for _ in found):
        events.append(lost(str(after.get("node", "")), cluster, _time(after), left))
    return events


def lost(node: str, cluster: str, now: float, count: int) -> Event:
    """Stands for changes that are not told one by one."""
    reason = f"{count} more changes, not told one by one: see the status"
    return Event(
        version=VERSION,
        cluster=cluster,
        node=bounded(node),
        time=now,
        kind="lost",
        subject="events",
        reason=reason,
    )


def _chain(*sources: Iterator[Change]) -> Iterator[Change]:
    for source in sources:
        yield from source


def _event(document: Document, cluster: str, change: Change) -> Event:
    kind, subject, old, new, reason = change
    return Event(
        version=VERSION,
        cluster=cluster,
        node=bounded(document.get("node", "")),
        time=_time(document),
        kind=kind,
        subject=bounded(subject),
        before=bounded(old),
        after=bounded(new),
        reason=bounded(reason),
    )


def _agent(before: Document | None, after: Document) -> Iterator[Change]:
    """A new agent process: started for the first time, or again."""
    new = _object(after, "agent")
    if before is None or _object(before, "agent").get("started") != new.get("started"):
        yield "agent", f"tortie-agent {new.get('version', '')}", "", "running", ""


def _parts(before: Document, after: Document) -> Iterator[Change]:
    parts: tuple[tuple[EventKind, str], ...] = (
        ("datastore", "datastore"),
        ("datastore", "kubernetes"),
        ("speaker", "speaker"),
    )
    for kind, name in parts:
        old, new = _object(before, name), _object(after, name)
        if old.get("state") != new.get("state"):
            yield (
                kind,
                name,
                str(old.get("state", "")),
                str(new.get("state", "")),
                str(new.get("reason") or ""),
            )


def _peers(before: Document, after: Document) -> Iterator[Change]:
    """Only up, down and gone: what a session goes through while it is down is in the status."""
    old = {str(peer.get("address")): peer for peer in objects(before, "peers")}
    new = {str(peer.get("address")): peer for peer in objects(after, "peers")}
    for address, peer in new.items():
        was = old.get(address)
        was_up = was is not None and established(was)
        # A session that was lost and found between two looks shows by its age.
        again = was is not None and was_up and established(peer) and was.get("since") != peer.get("since")
        if was is None or was_up != established(peer) or again:
            state = "" if was is None else str(was.get("state", ""))
            reason = "it was lost and found meanwhile" if again else str(peer.get("info") or "")
            yield "peer", _peer_name(peer), state, str(peer.get("state", "")), reason
    for address, peer in old.items():
        if address not in new:
            yield "peer", _peer_name(peer), str(peer.get("state", "")), "", "it is no longer configured"


def _peer_name(peer: Mapping[str, Any]) -> str:
    name, address = str(peer.get("remote_node") or peer.get("name") or ""), str(peer.get("address", ""))
    return f"{name} ({address})" if name and name != address else address


def _listed(before: Document, after: Document) -> Iterator[Change]:
    """Routes, conflicts and refusals that came, changed their reason or went."""
    old, new = _object(before, "routes"), _object(after, "routes")
    yield from _entries("route", objects(old, "failed"), objects(new, "failed"), "prefix", "ok", "failed")
    yield from _entries(
        "conflict", objects(old, "conflicts"), objects(new, "conflicts"), "prefix", "none", "present"
    )
    yield from _entries(
        "refusal", objects(before, "refusals"), objects(after, "refusals"), "subject", "none", "present"
    )


def _entries(
    kind: EventKind,
    old: list[Mapping[str, Any]],
    new: list[Mapping[str, Any]],
    subject: str,
    absent: str,
    present: str,
) -> Iterator[Change]:
    """A subject may have several reasons; each is an entry of its own, and a changed reason is news."""

    def keys(entries: list[Mapping[str, Any]]) -> dict[tuple[str, str], None]:
        return {(str(entry.get(subject, "")), str(entry.get("reason") or "")): None for entry in entries}

    was, now = keys(old), keys(new)
    had = {name for name, _ in was}
    has = {name for name, _ in now}
    for name, reason in now:
        if (name, reason) not in was:
            yield kind, name, present if name in had else absent, present, reason
    for name, reason in was:
        if name not in has:
            yield kind, name, present, absent, f"no longer: {reason}"


def _object(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}


def _time(document: Document) -> float:
    value = document.get("time")
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1e11 else 0.0
