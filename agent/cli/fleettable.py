"""All nodes as a table, those in trouble first. Pure; what came over a wire is printed as harmless text."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterator

from agent.cli.errors import printable
from agent.cli.tables import columns, duration
from agent.telemetry.fleet import Fleet, NodeView
from agent.telemetry.payloads import Status

HEADER = ("NODE", "STATE", "UP", "DATASTORE", "SPEAKER", "PEERS", "ROUTES", "PATHS", "INVALID", "WRONG")
RIGHT = frozenset((7, 8))
GOOD = {"datastore": ("in-sync",), "Kubernetes": ("in-sync", "idle"), "speaker": ("connected",)}
FIRST_TO_GO = ("DATASTORE", "SPEAKER", "PATHS", "INVALID", "UP")
"""Columns that a narrow terminal does without, in this order: WRONG says it when something is."""
LEAST_WRONG = 32
"""Characters that the last column should have."""
MOST_LINES = (12, 3, 1)
"""Lines of one node's WRONG at most: the first of these with which all nodes are on the screen."""


def screen(fleet: Fleet, where: str, problem: str, now: float, width: int, height: int) -> list[str]:
    """A picture of at most `height` lines of `width` characters; `problem`: why nothing is heard.

    A narrow one has fewer columns and the last one wrapped: what is wrong is read to the end.
    """
    views = fleet.nodes.values()
    alive = [view for view in views if view.life(now) == "running"]
    up = sum(view.peers.established for view in alive if view.peers is not None)
    total = sum(view.peers.total for view in alive if view.peers is not None)
    counts = f"{len(alive)} of {len(views)} nodes running, {up} of {total} sessions established"
    head = [
        _spread(counts, f"{time.strftime('%H:%M:%S', time.localtime(now))}  {where}", width),
        printable(problem or (left_out(fleet) if fleet.left_out else ""))[:width],
    ]
    rows = _rows(fleet, now)
    for most in MOST_LINES:
        header, *nodes = _fitted(rows, width, most)
        if sum(map(len, (head, header, *nodes))) <= height:
            break
    lines, shown = [*head, *header], 0
    for node in nodes:
        # One line is kept for those that do not fit.
        if len(lines) + len(node) + (shown + 1 < len(nodes)) > height:
            break
        lines += node
        shown += 1
    if shown < len(nodes):
        lines.append(f"and {len(nodes) - shown} more (those in trouble come first)"[:width])
    return lines[:height]


def _spread(left: str, right: str, width: int) -> str:
    """Both, as far as there is room; of the right one the beginning."""
    return f"{left}  {right}"[:width] if len(left) + 2 + len(right) > width else f"{left}    {right}"[:width]


def table(fleet: Fleet, now: float, width: int | None = None) -> list[str]:
    """Header and a line per node; nothing is cut. With a width: as on the screen, of any height."""
    if width is None:
        return columns(HEADER, _rows(fleet, now), right=RIGHT).splitlines()
    return [line for lines in _fitted(_rows(fleet, now), width, MOST_LINES[0]) for line in lines]


def _rows(fleet: Fleet, now: float) -> list[tuple[str, ...]]:
    several = len({view.cluster for view in fleet.nodes.values()}) > 1
    rows = [_row(view, now, several) for view in fleet.nodes.values()]
    rows.sort(key=lambda row: (not row[-1], _natural(row[0])))
    return rows


def _fitted(rows: list[tuple[str, ...]], width: int, most: int) -> list[list[str]]:
    """The header's and each node's lines, none longer than `width`."""
    cells = [HEADER, *(tuple(map(printable, row)) for row in rows)]
    kept = list(range(len(HEADER)))
    longest = max(len(row[-1]) for row in cells)
    for name in ("", *FIRST_TO_GO):
        kept = [i for i in kept if HEADER[i] != name]
        widths = {i: max(len(row[i]) for row in cells) for i in kept[:-1]}
        room = width - sum(size + 2 for size in widths.values())
        if room >= min(longest, LEAST_WRONG):
            break
    return [_lines(row, widths, room, width, most) for row in cells]


def _lines(row: tuple[str, ...], widths: dict[int, int], room: int, width: int, most: int) -> list[str]:
    start = "".join((row[i].rjust(w) if i in RIGHT else row[i].ljust(w)) + "  " for i, w in widths.items())
    if room < len(" …") + 1:
        return [start[:width]]
    wrong = textwrap.wrap(row[-1], room, max_lines=most, placeholder=" …") or [""]
    return [
        f"{start if number == 0 else ' ' * len(start)}{part}".rstrip()[:width]
        for number, part in enumerate(wrong)
    ]


def left_out(fleet: Fleet) -> str:
    """What came and was not Tortie's."""
    many = f"{fleet.left_out} messages do" if fleet.left_out > 1 else "1 message does"
    return f"{many} not read as Tortie's, left out; first {fleet.first_left_out}"


def _row(view: NodeView, now: float, several: bool) -> tuple[str, ...]:
    name, life = f"{view.cluster}/{view.node}" if several else view.node, view.life(now)
    wrong = "; ".join(troubles(view, now))
    if life != "running":
        # What it said last is not how it is.
        return (name, life, *["-"] * (len(HEADER) - 3), wrong)
    status, peers, counts = view.status, view.peers, view.counts
    agent = status.agent if status is not None else None
    return (
        name,
        life,
        duration(now - agent.started) if agent is not None else "-",
        status.datastore.state if status is not None and status.datastore is not None else "-",
        status.speaker.state if status is not None and status.speaker is not None else "-",
        f"{peers.established}/{peers.total}" if peers is not None else "-",
        f"{counts.routes.installed}/{counts.routes.wanted}" if counts is not None else "-",
        str(counts.rib.paths) if counts is not None else "-",
        str(counts.rib.invalid) if counts is not None else "-",
        wrong,
    )


def troubles(view: NodeView, now: float) -> Iterator[str]:
    """What is not as it should be, the worst first."""
    match view.life(now):
        case "unreachable":
            yield view.unreachable
            return
        case "silent":
            yield f"no word for {duration(now - view.heard)}"
            return
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
    parts = (status.datastore, status.kubernetes, status.speaker)
    for (name, good), part in zip(GOOD.items(), parts, strict=True):
        if part is not None and part.state not in good:
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
