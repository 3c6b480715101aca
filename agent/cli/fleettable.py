"""All nodes as a table, those in trouble first. Pure; what came over a wire is printed as harmless text."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from agent.cli.errors import printable
from agent.cli.tables import columns, duration
from agent.telemetry.fleet import Fleet, NodeView
from agent.telemetry.payloads import Status

HEADER = ("NODE", "STATE", "UP", "DATASTORE", "SPEAKER", "PEERS", "ROUTES", "PATHS", "INVALID", "WRONG")
RIGHT = frozenset((7, 8))
GOOD = {"datastore": "in-sync", "speaker": "connected"}


def screen(fleet: Fleet, where: str, problem: str, now: float, width: int, height: int) -> list[str]:
    """A picture of at most `height` lines of `width` characters; `problem`: why nothing is heard."""
    views = fleet.nodes.values()
    running = sum(view.life(now) == "running" for view in views)
    up = sum(view.peers.established for view in views if view.peers is not None)
    total = sum(view.peers.total for view in views if view.peers is not None)
    counts = f"{running} of {len(views)} nodes running, {up} of {total} sessions established"
    lines = [
        f"{counts}    {time.strftime('%H:%M:%S', time.localtime(now))}  {where}",
        printable(problem or (left_out(fleet) if fleet.left_out else "")),
        *table(fleet, now),
    ]
    if len(lines) > height:
        hidden = len(lines) - height + 1
        lines = [*lines[: height - 1], f"and {hidden} more (those in trouble come first)"]
    return [line[:width] for line in lines]


def table(fleet: Fleet, now: float) -> list[str]:
    """Header and a line per node; nothing is cut."""
    several = len({view.cluster for view in fleet.nodes.values()}) > 1
    rows = [_row(view, now, several) for view in fleet.nodes.values()]
    rows.sort(key=lambda row: (not row[-1], _natural(row[0])))
    return columns(HEADER, rows, right=RIGHT).splitlines()


def left_out(fleet: Fleet) -> str:
    """What came and was not Tortie's."""
    many = f"{fleet.left_out} messages do" if fleet.left_out > 1 else "1 message does"
    return f"{many} not read as Tortie's, left out; first {fleet.first_left_out}"


def _row(view: NodeView, now: float, several: bool) -> tuple[str, ...]:
    life, status, peers, counts = view.life(now), view.status, view.peers, view.counts
    agent = status.agent if status is not None and life == "running" else None
    return (
        f"{view.cluster}/{view.node}" if several else view.node,
        life,
        duration(now - agent.started) if agent is not None else "-",
        status.datastore.state if status is not None and status.datastore is not None else "-",
        status.speaker.state if status is not None and status.speaker is not None else "-",
        f"{peers.established}/{peers.total}" if peers is not None else "-",
        f"{counts.routes.installed}/{counts.routes.wanted}" if counts is not None else "-",
        str(counts.rib.paths) if counts is not None else "-",
        str(counts.rib.invalid) if counts is not None else "-",
        "; ".join(troubles(view, now)),
    )


def troubles(view: NodeView, now: float) -> Iterator[str]:
    """What is not as it should be, the worst first."""
    match view.life(now):
        case "unreachable":
            yield view.unreachable
        case "silent":
            yield f"no word for {duration(now - view.heard)}"
        case "gone":
            yield "killed, or its host or network is down"
            return
        case "stopped":
            yield "its agent was stopped"
            return
    if view.status is not None:
        yield from _status_troubles(view.status)
    if view.peers is not None and view.peers.unestablished:
        one = view.peers.unestablished[0]
        count = view.peers.total - view.peers.established
        name = f"{one.remote_node or one.name} ({one.address}) {one.state} {one.reason}".strip()
        yield f"{count} session{'s' if count != 1 else ''} down: {name}"


def _status_troubles(status: Status) -> Iterator[str]:
    for name, part in (("datastore", status.datastore), ("speaker", status.speaker)):
        if part is not None and part.state != GOOD[name]:
            yield f"{name} {part.state}" + (f": {part.reason}" if part.reason else "")
    for what, listed in (
        ("failed", status.failed),
        ("in conflict", status.conflicts),
        ("refused", status.refusals),
    ):
        if listed.count:
            first = f": {listed.first[0].subject}: {listed.first[0].reason}" if listed.first else ""
            yield f"{listed.count} {what}{first}"


def _natural(name: str) -> list[tuple[int, int, str]]:
    """node-2 before node-10."""
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts]
