"""`tortiectl routes` and `explain`: what the agent decided, in its own words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from agent.cli import agentsocket
from agent.cli.errors import Failed, printable
from agent.cli.node import node_option
from agent.cli.tables import columns

ROUTES_EPILOG = """\b
Examples:
  tortiectl routes                              every prefix, its state in the kernel
  tortiectl routes 10.65.1.0/26 --node node-1   one prefix, with every path to it
  tortiectl routes -o json

\b
Marks before a path: * best (several: ECMP), s stale (kept until it is
announced again), x refused.
"""


@click.command(epilog=ROUTES_EPILOG)
@click.argument("prefix", required=False)
@node_option
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def routes(prefix: str | None, name: str | None, output: str) -> None:
    """Show the routes an agent knows, and every path to one prefix."""
    question = {"ask": "routes"}
    if prefix is not None:
        question["prefix"] = _checked(prefix)
    answer = agentsocket.ask(agentsocket.find(name), question)
    if output == "json":
        click.echo(json.dumps(answer, indent=2))
        return
    entries = answer.get("routes", [])
    if prefix is not None and not entries:
        raise Failed(f"the agent knows no route to {prefix}: 'tortiectl explain {prefix}' says more")
    if prefix is not None:
        for entry in entries:
            click.echo("\n".join(_details(entry)))
        return
    header = ("PREFIX", "KIND", "KERNEL", "VIA", "FROM", "ORIGIN")
    click.echo(columns(header, [_row(entry) for entry in entries]))


EXPLAIN_EPILOG = """\b
Examples:
  tortiectl explain 10.65.1.0/26
  tortiectl explain 0.0.0.0/0 --node node-3
"""


@click.command(epilog=EXPLAIN_EPILOG)
@click.argument("prefix")
@node_option
def explain(prefix: str, name: str | None) -> None:
    """Say why a prefix is routed as it is, or not at all."""
    answer = agentsocket.ask(agentsocket.find(name), {"ask": "explain", "prefix": _checked(prefix)})
    for line in answer.get("lines", []):
        click.echo(printable(str(line)))


def _checked(text: str) -> str:
    """The prefix in canonical form; host bits are forgiven, as a person may paste an address."""
    from felix_like.model.address import Prefix

    try:
        return str(Prefix.of(text))
    except ValueError as error:
        raise Failed(f"{error}; write it like 10.65.1.0/26 or fd00:65::/122") from None


def _best(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [path for path in entry.get("paths", []) if path.get("best")]


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    best = _best(entry)
    paths = entry.get("paths", [])
    return (
        str(entry.get("prefix", "")),
        str(entry.get("kind", "")),
        str(entry.get("kernel", "")),
        ", ".join(str(via).removeprefix("via ") for via in entry.get("via", [])) or "-",
        ", ".join(str(path.get("peer_name") or path.get("peer")) for path in best) or "-",
        str((best or paths or [{}])[0].get("validity") or "-"),
    )


def _details(entry: dict[str, Any]) -> Iterator[str]:
    yield printable(f"{entry.get('prefix')}  {entry.get('kind')}  kernel: {entry.get('kernel')}")
    for via in entry.get("via", []):
        yield printable(f"  via {str(via).removeprefix('via ')}")
    paths = entry.get("paths", [])
    if not paths:
        return
    header = ("", "PEER", "NEXT HOP", "AS PATH", "LOCAL_PREF", "MED", "ORIGIN", "VERDICT", "WHY")
    for line in columns(header, [_path_row(path, len(paths)) for path in paths]).splitlines():
        yield f"  {line}"


def _path_row(path: dict[str, Any], among: int) -> tuple[str, ...]:
    def text(key: str) -> str:
        value = path.get(key)
        return "-" if value in (None, "") else str(value)

    mark = ("*" if path.get("best") else "x" if path.get("rejection") else "") + (
        "s" if path.get("stale") else ""
    )
    why = [str(path["rejection"])] if path.get("rejection") else []
    if path.get("step") and among > 1:
        why.append(str(path["step"]))
    if path.get("reason"):
        why.append(str(path["reason"]))
    peer = text("peer")
    if path.get("peer_name"):
        peer += f" ({path['peer_name']})"
    return (
        mark,
        peer,
        text("next_hop"),
        text("as_path"),
        text("local_pref"),
        text("med"),
        text("origin"),
        text("validity"),
        "; ".join(why) or "-",
    )
