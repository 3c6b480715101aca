"""`tortiectl top`: all nodes in one table, live."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from agent.cli.errors import Failed, warn

if TYPE_CHECKING:
    from agent.cli.sources import Source
    from agent.telemetry.fleet import Fleet

REDRAW = 1.0
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The terminal's other screen, without a cursor; and back."""

EPILOG = """\b
Examples:
  tortiectl top                 live, until Ctrl-C
  tortiectl top --once          one table; into a pipe nothing is wrapped or left out
  TORTIE_MQTT_URL=mqtt://broker:1883 tortiectl top

\b
With TORTIE_MQTT_URL (and _USERNAME, _PASSWORD_FILE, _CA_CERT_FILE, _CERT_FILE,
_KEY_FILE, _TOPIC as the agents have them) the nodes come from the broker: the
whole cluster. Without, from the agents' sockets below TORTIE_RUN_DIR: this
host, or a lab. STATE: running; stopped (ended in order); gone (its last will);
silent (no word for long); unreachable (its socket does not answer).
"""


@click.command(epilog=EPILOG)
@click.option("--once", is_flag=True, help="Print the table once and end; so it does into a pipe.")
def top(once: bool) -> None:
    """Show all nodes in one table, live."""
    import asyncio
    import sys

    from agent.cli.sources import choose
    from agent.telemetry.fleet import Fleet

    async def run() -> None:
        source = choose()
        fleet = Fleet(source.prefix)
        if once or not sys.stdout.isatty():
            await _once(source, fleet)
        else:
            await _live(source, fleet)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        pass


async def _once(source: Source, fleet: Fleet) -> None:
    import asyncio
    import shutil
    import sys

    from agent.cli.fleettable import left_out, table

    task = asyncio.create_task(source.run(fleet, lambda _: None))
    settled = asyncio.create_task(source.settled.wait())
    await asyncio.wait((task, settled), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        settled.cancel()
        task.result()
    task.cancel()
    await asyncio.wait((task,))
    if source.problem:
        raise Failed(source.problem)
    if not fleet.nodes:
        warn(f"{source.name}: no node has told anything yet")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table(fleet, time.time(), width):
        click.echo(line)
    if fleet.left_out:
        warn(left_out(fleet))


async def _live(source: Source, fleet: Fleet) -> None:
    import asyncio
    import shutil

    from agent.cli.fleettable import screen

    task = asyncio.create_task(source.run(fleet, lambda _: None))
    click.echo(ENTER, nl=False)
    try:
        while not task.done():
            size = shutil.get_terminal_size()
            lines = screen(fleet, source.name, source.problem, time.time(), size.columns, size.lines)
            # Written over the old picture line by line, so that it does not flicker.
            click.echo(
                "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines[:-1]) + lines[-1] + "\x1b[J", nl=False
            )
            await asyncio.wait((task,), timeout=REDRAW)
        task.result()
    finally:
        click.echo(LEAVE, nl=False)
        task.cancel()
