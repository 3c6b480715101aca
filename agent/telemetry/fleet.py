"""All nodes, as they were heard of: messages of a broker, or documents of agents' sockets. Pure.

What comes from a broker may be anybody's: what does not read as a message of the node whose topic it is on
is counted and left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from agent.telemetry import summary, topics
from agent.telemetry.changes import changes
from agent.telemetry.payloads import KINDS, VERSION, Counts, Event, Payload, Peers, Status, bounded
from agent.telemetry.summary import Document
from felix_like.datastore.keys import check_name, quoted

MOST_NODES = 10_000
LARGEST = 262_144
"""Octets of a message that is read; ours have less at their worst, and usually a thousand."""
SILENT = 150.0
"""Seconds without a word, of an agent that writes every 60, after which it is not believed to be well."""


@dataclass(slots=True)
class NodeView:
    """What is known of one node. `heard` on the reader's clock, seconds since the epoch."""

    cluster: str
    node: str
    heard: float
    status: Status | None = None
    peers: Peers | None = None
    counts: Counts | None = None
    unreachable: str = ""
    """Why the agent's socket does not answer."""
    document: Document | None = None

    def life(self, now: float) -> str:
        """`running`, `stopped`, `gone`, `silent` or `unreachable`."""
        if self.unreachable:
            return "unreachable"
        state = self.status.state if self.status is not None else "running"
        return "silent" if state == "running" and now - self.heard > SILENT else state


class Fleet:
    """Told what came; asked for the nodes. Each telling returns the events worth a line."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: dict[tuple[str, str], NodeView] = {}
        self.left_out = 0
        """Messages that are not ours."""
        self.first_left_out = ""
        self._prefix = prefix

    def hear(self, topic: str, payload: bytes, *, retained: bool, now: float) -> list[Event]:
        """A message of the broker."""
        place = topics.parse(self._prefix, topic)
        try:
            if place is None:
                raise ValueError("not a topic of Tortie")
            check_name(place.node)
            if not payload:  # how a retained message is removed
                self.nodes.pop((place.cluster, place.node), None)
                return []
            message = _read(place, payload)
            if isinstance(message, Event):
                return [message]
            return self._keep(message, retained=retained, now=now)
        except (ValueError, RecursionError) as error:
            self._leave_out(topic, error)
            return []

    def tell(self, document: Document, now: float) -> list[Event]:
        """A status document from an agent's socket."""
        node = str(document.get("node", ""))
        try:
            check_name(node)
            view = self._view("", node, now)
        except ValueError as error:
            self._leave_out(node, error)
            return []
        events = changes(view.document, document, "") if view.document is not None else []
        if view.unreachable:
            events.insert(0, _life(view, "unreachable", "running", "", now))
        view.heard, view.unreachable, view.document = now, "", document
        view.status = summary.status(document, "")
        view.peers, view.counts = summary.peers(document, ""), summary.counts(document, "")
        return events

    def unreachable(self, node: str, reason: str, now: float) -> list[Event]:
        """The agent's socket does not answer."""
        view = self._view("", node, now)
        known, view.unreachable = view.unreachable, reason
        return [] if known else [_life(view, "running", "unreachable", reason, now)]

    def keep_only(self, nodes: set[str]) -> None:
        """Forget agents whose sockets are not there any more."""
        for key in [key for key in self.nodes if key[1] not in nodes]:
            del self.nodes[key]

    def _keep(self, message: Payload, *, retained: bool, now: float) -> list[Event]:
        known = (message.cluster, message.node) in self.nodes
        view = self._view(message.cluster, message.node, now)
        # A retained message is as old as it says; by a clock that may be ahead of ours.
        heard = min(message.time, now) if retained else now
        view.heard = max(view.heard, heard) if known else heard
        match message:
            case Status():
                was, view.status = view.status, message
                # An agent tells of its own start; only of its end it cannot.
                if (
                    not retained
                    and message.state != "running"
                    and (was is None or was.state != message.state)
                ):
                    return [_life(view, was.state if was is not None else "", message.state, "", now)]
            case Peers():
                view.peers = message
            case Counts():
                view.counts = message
        return []

    def _view(self, cluster: str, node: str, now: float) -> NodeView:
        view = self.nodes.get((cluster, node))
        if view is None:
            if len(self.nodes) >= MOST_NODES:
                raise ValueError(f"there are more than {MOST_NODES} nodes")
            view = self.nodes[(cluster, node)] = NodeView(cluster, node, now)
        return view

    def _leave_out(self, where: str, error: Exception) -> None:
        self.left_out += 1
        if not self.first_left_out:
            self.first_left_out = f"{quoted(where)}: {' '.join(str(error).split())[:200]}"


def _read(place: topics.Topic, payload: bytes) -> Payload:
    """Raises ValueError (msgspec's errors are such) or RecursionError."""
    if len(payload) > LARGEST:
        raise ValueError(f"{len(payload)} octets are more than any message of Tortie has")
    message = msgspec.json.decode(payload, type=KINDS[place.kind])
    if (message.cluster, message.node) != (place.cluster, place.node):
        raise ValueError(f"it speaks of another node, {quoted(message.node)}")
    return message


def _life(view: NodeView, before: str, after: str, reason: str, now: float) -> Event:
    if after == "gone":
        reason = "the broker lost it: the agent was killed, or its host or network is down"
    elif after == "stopped":
        reason = "ended in order; its routes and sessions stay"
    return Event(
        version=VERSION,
        cluster=view.cluster,
        node=view.node,
        time=now,
        kind="agent",
        subject="tortie-agent",
        before=before,
        after=after,
        reason=bounded(reason),
    )
