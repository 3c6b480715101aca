"""`tortiectl node`: the state of one node's agent, in calicoctl's layout."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from agent.cli import agentsocket
from agent.cli.errors import Failed, printable
from agent.cli.group import Group
from agent.cli.leftovers import leftovers
from agent.cli.tables import box, duration

if TYPE_CHECKING:
    from pathlib import Path

PEER_HEADER = ("PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO")


def complete_node(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the nodes whose agents run below TORTIE_RUN_DIR."""
    import os
    from pathlib import Path

    run = Path(os.environ.get("TORTIE_RUN_DIR") or agentsocket.DEFAULT_RUN_DIR)
    return [CompletionItem(name) for name in agentsocket.nodes(run) if name.startswith(incomplete)]


node_option = click.option(
    "--node", "name", metavar="NAME", shell_complete=complete_node, help="Ask this node's agent (in a lab)."
)


@click.group(cls=Group)
def node() -> None:
    """Show the state of a node: its sessions and what is wrong."""


node.add_command(leftovers)


STATUS_EPILOG = """\b
Examples:
  tortiectl node status                  this host's agent
  tortiectl node status --node node-2    a node of the lab
  tortiectl node status -o json          everything, for programs

Not only for root. What is wrong is said below the tables: the state of the datastore
and of the speaker, routes that could not be installed, and what was refused and why.
"""


@node.command(epilog=STATUS_EPILOG)
@node_option
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def status(name: str | None, output: str) -> None:
    """Show the BGP sessions of a node, and everything that is not as it should be."""
    answer = agentsocket.ask(agentsocket.find(name), {"ask": "status"})
    if output == "json":
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo("\n".join(render(answer, time.localtime)))


CHECK_EPILOG = """\b
Examples:
  tortiectl node checksystem             this host: kernel, rights, etcd, ...
  tortiectl node checksystem | grep -v ^OK
  tortiectl node checksystem -o json
  tortiectl lab exec node-1 tortiectl node checksystem

\b
Before the first start and at any time after. Changes nothing. Reads the
settings as tortie-agent would here. FAIL: the agent cannot work or packets are
lost (exit status 1). WARN: look at it. ----: not to be seen from here (by this
user, or in this container) and why. As root it sees most.
"""


@node.command(epilog=CHECK_EPILOG)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_obj
def checksystem(config: str | None, output: str) -> None:
    """Say what this host lacks to be a node, one line each."""
    import asyncio

    from agent.check.examine import examine
    from agent.check.finding import failed, total

    found = asyncio.run(examine(calicoctl_file=config))
    if output == "json":
        click.echo(json.dumps([one.document() for one in found], indent=2))
    else:
        for one in found:
            click.echo(printable(one.line()))
        click.echo(total(found))
    if failed(found):
        raise SystemExit(1)


DIAGS_EPILOG = """\b
Examples:
  tortiectl node diags
  tortiectl node diags -o /tmp/node-1.tar.gz
  kubectl -n kube-system exec POD -c agent -- tortiectl node diags -o - > d.tar.gz
  tortiectl lab exec node-1 tortiectl node diags

\b
Works while the agent hangs or is gone, and while etcd is away: MANIFEST in the
archive says what could not be had and why. Passwords, keys and tokens are taken
out; addresses, names and labels are not. As root it sees most.
"""


@node.command(epilog=DIAGS_EPILOG)
@click.option(
    "-o", "--output", metavar="FILE", help="Where to write it; - is stdout. [default: by node and time, here]"
)
@click.pass_obj
def diags(config: str | None, output: str | None) -> None:
    """Gather what a bug report needs into one archive, without secrets."""
    import sys
    from pathlib import Path

    from agent.diags import archive
    from agent.diags.make import collect

    if output == "-" and sys.stdout.isatty():
        raise Failed("the archive does not go to a terminal: name a file with -o, or redirect")
    if output != "-":
        _writable(Path(output or "tortie-diags-NODE-TIME.tar.gz"))
    made = collect(calicoctl_file=config)
    if output == "-":
        archive.pack(sys.stdout.buffer, made.folder, made.texts, made.when)
        return
    path = Path(output or f"{made.folder}.tar.gz").absolute()
    try:
        archive.write(path, made.folder, made.texts, made.when)
    except OSError as error:
        raise Failed(f"{path} cannot be written: {error.strerror}; name another with -o") from None
    click.echo(
        f"{path}: {path.stat().st_size >> 10} KiB, {len(made.texts)} files; MANIFEST says what they are"
    )
    for name, reason in made.missing.items():
        click.echo(printable(f"  without {name}: {reason}"))


def _writable(path: Path) -> None:
    """Said before a minute is spent. Raises Failed."""
    import os

    folder = path.absolute().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Failed(f"{folder} is no directory you may write in: name a file elsewhere with -o, or -o -")
    if path.exists():
        raise Failed(f"{path} exists: name another file, or remove it")


def render(answer: dict[str, Any], local: Any) -> list[str]:
    """The whole text, as lines. `local` turns seconds since the epoch into a struct_time."""
    now = float(answer.get("time", 0.0))
    lines = ["Calico process is running."]
    peers = answer.get("peers", [])
    for version in (4, 6):
        mine = [peer for peer in peers if (":" in str(peer.get("address", ""))) == (version == 6)]
        lines += ["", f"IPv{version} BGP status"]
        lines.append(
            box(PEER_HEADER, [_peer_row(peer, now, local) for peer in mine])
            if mine
            else f"No IPv{version} peers found."
        )
    troubles = list(_troubles(answer, now))
    if troubles:
        lines += ["", *troubles]
    return lines


def _peer_row(peer: dict[str, Any], now: float, local: Any) -> Sequence[str]:
    state = str(peer.get("state", "Idle"))
    detail = str(peer.get("info") or "")
    return (
        str(peer.get("address", "")),
        str(peer.get("type", "")),
        _bird_state(state),
        _since(float(peer.get("since") or now), now, local),
        detail if detail.startswith(state) else f"{state}: {detail}".removesuffix(": "),
    )


def _bird_state(state: str) -> str:
    """BIRD's word for the protocol, which calicoctl prints beside BGP's own state."""
    return {"Established": "up", "Close": "down"}.get(state, "start")


def _since(since: float, now: float, local: Any) -> str:
    """As BIRD writes it: the time of day, or the date when that is longer ago than 20 hours."""
    return time.strftime("%H:%M:%S" if now - since < 20 * 3600 else "%Y-%m-%d", local(since))


def _troubles(answer: dict[str, Any], now: float) -> Iterator[str]:
    """Sentences about what is not as it should be; nothing when all is well."""
    store = answer.get("datastore", {})
    if store.get("state") != "in-sync":
        yield _trouble("Datastore", store, now) + "; forwarding goes on with what was known"
    kubernetes = answer.get("kubernetes") or {}
    if kubernetes.get("state") in ("connecting", "stale"):
        yield _trouble("Kubernetes", kubernetes, now) + "; services and passwords stay as they were known"
    speaker = answer.get("speaker", {})
    if speaker.get("state") != "connected":
        yield _trouble("Speaker", speaker, now) + "; routes stay, the sessions' state may be old"
    routes = answer.get("routes", {})
    yield from _listed("Routes that could not be installed", "prefix", routes.get("failed", []))
    yield from _listed("Routes that collide with somebody else's", "prefix", routes.get("conflicts", []))
    waiting = answer.get("rib", {}).get("unknown", 0)
    if waiting and answer.get("origin_validation") == "enforce":
        yield (
            f"Paths that wait for the datastore to say who holds them: {waiting} "
            "('tortiectl routes' marks them unknown)"
        )
    yield from _listed("Refused", "subject", answer.get("refusals", []))


def _trouble(what: str, state: dict[str, Any], now: float) -> str:
    text = f"{what}: {state.get('state', 'unknown')}"
    if state.get("since"):
        text += f" for {duration(now - float(state['since']))}"
    if state.get("reason"):
        text += f" ({state['reason']})"
    return printable(text)


def _listed(title: str, key: str, entries: list[dict[str, Any]]) -> Iterator[str]:
    if entries:
        yield f"{title} ({len(entries)}):"
        for entry in entries:
            yield printable(f"  {entry.get(key, '')}: {entry.get('reason', '')}")
