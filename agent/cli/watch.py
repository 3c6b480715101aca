"""`tortiectl watch`: what happens on the nodes, a line each."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from agent.cli.errors import printable, warn

if TYPE_CHECKING:
    from agent.cli.sources import Source
    from agent.telemetry.fleet import Fleet
    from agent.telemetry.payloads import Event

NAMED = 5
"""Nodes named at the start."""

EPILOG = """\b
Examples:
  tortiectl watch
  tortiectl watch --node node-2 --node node-3
  tortiectl watch -o json | jq -r .subject

\b
From the same places as 'tortiectl top': the broker of TORTIE_MQTT_URL, or the
agents' sockets below TORTIE_RUN_DIR, looked at once a second.
"""


@click.command(epilog=EPILOG)
@click.option("--node", "nodes", metavar="NAME", multiple=True, help="Only of this node; may be repeated.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def watch(nodes: tuple[str, ...], output: str) -> None:
    """Show what happens on the nodes, line by line, until Ctrl-C."""
    import asyncio

    from agent.cli.sources import choose
    from agent.telemetry.fleet import Fleet

    async def run() -> None:
        source = choose()
        fleet = Fleet(source.prefix)
        heard: asyncio.Queue[list[Event]] = asyncio.Queue()
        hearing = asyncio.create_task(source.run(fleet, heard.put_nowait))
        hearing.add_done_callback(lambda _: heard.put_nowait([]))
        complaining = asyncio.create_task(_complain(source, fleet, nodes))
        try:
            while not hearing.done():
                for event in await heard.get():
                    if not nodes or event.node in nodes:
                        click.echo(_json(event) if output == "json" else line(event))
            hearing.result()
        finally:
            hearing.cancel()
            complaining.cancel()

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        pass


def watched(fleet: Fleet, where: str, chosen: tuple[str, ...]) -> str:
    """What the lines will be about, for somebody who waits for the first one."""
    names = sorted(view.node for view in fleet.nodes.values() if not chosen or view.node in chosen)
    listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    many = f"{len(names)} node{'' if len(names) == 1 else 's'}"
    text = (
        f"watching {many}{f' ({listed})' if listed else ''} at {where}: a line for each change, until Ctrl-C"
    )
    unknown = [name for name in chosen if name not in names]
    return text + (f"; not heard of yet: {', '.join(unknown)}" if unknown else "")


async def _complain(source: Source, fleet: Fleet, chosen: tuple[str, ...]) -> None:
    """On stderr: what is watched, then what keeps the lines from coming, once per change."""
    import asyncio

    said, left_out = "", 0
    await source.settled.wait()
    if not source.problem:
        click.echo(printable(watched(fleet, source.name, chosen)), err=True)
    while True:
        if source.problem != said:
            said = source.problem
            warn(said or f"{source.name}: heard again")
        if fleet.left_out and not left_out:
            left_out = fleet.left_out
            warn(f"messages that do not read as Tortie's are left out; first {fleet.first_left_out}")
        await asyncio.sleep(0.2)


def line(event: Event) -> str:
    """`14:03:22.120 node-1  peer node-2 (10.0.0.2): Established -> Idle: hold timer expired`."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.time)) + f".{int(event.time % 1 * 1000):03d}"
    who = f"{event.cluster}/{event.node}" if event.cluster not in ("", "default") else event.node
    change = f": {event.before} -> {event.after}" if event.before and event.after else ""
    if not change and (event.before or event.after):
        change = f": {event.after or 'gone'}"
    subject = event.subject if event.subject == event.kind else f"{event.kind} {event.subject}"
    return printable(f"{clock} {who}  {subject}{change}" + (f": {event.reason}" if event.reason else ""))


def _json(event: Event) -> str:
    import msgspec

    return msgspec.json.encode(event).decode()
