"""`tortiectl get`: resources of the datastore in calicoctl's columns, or as they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from agent.cli.errors import Failed
from agent.cli.kinds import KINDS, Kind, Row, text
from agent.cli.store import Stored, resources, with_etcd
from agent.cli.tables import columns

if TYPE_CHECKING:
    from felix_like.datastore.client import Client


def _complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(kind.plural) for kind in KINDS if kind.plural.startswith(incomplete.lower())]


EPILOG = """\b
Examples:
  tortiectl get nodes -o wide
  tortiectl get ippools
  tortiectl get bgppeer tor-1 -o yaml
  tortiectl get bgpconfigurations -o json
  tortiectl get networkpolicies -A -o wide
  tortiectl get workloadendpoints -n shop

\b
An AS number in parentheses is the cluster's, not the resource's own.
"""


@click.command(epilog=EPILOG)
@click.argument("kind", shell_complete=_complete)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["ps", "wide", "json", "yaml"]),
    default="ps",
    help="ps: the short table; json and yaml: the resources as stored.",
)
@click.option(
    "-n", "--namespace", default="default", show_default=True, help="Of policies and workload endpoints."
)
@click.option(
    "-A", "--all-namespaces", is_flag=True, help="Policies and workload endpoints of all namespaces."
)
@click.pass_obj
def get(
    config: str | None, kind: str, names: tuple[str, ...], output: str, namespace: str, all_namespaces: bool
) -> None:
    """Show nodes, pools, peers, configurations, policies, profiles and endpoints."""
    chosen = _kind(kind)
    everywhere = all_namespaces and chosen.namespaced
    if everywhere and names:
        raise Failed("a name and --all-namespaces do not go together; use -n NAMESPACE")
    where = f"{chosen.plural}/{namespace}" if chosen.namespaced and not everywhere else chosen.plural

    async def read(etcd: Client) -> tuple[list[Stored], str]:
        found = await resources(etcd, where)
        return found, await _default_asn(etcd) if output in ("ps", "wide") else ""

    found, asn = with_etcd(config, read)
    if names:
        found = [_named(name, chosen, found, namespace) for name in names]
    if output in ("json", "yaml"):
        click.echo(_dump(_whole(chosen, found, single=len(names) == 1), output), nl=False)
        return
    wide = output == "wide"
    header = (wide and chosen.wide_header) or chosen.header
    row = (wide and chosen.wide_row) or chosen.row
    if everywhere:
        rows = [_with_namespace(stored, asn, row) for stored in found]
        click.echo(columns(("NAMESPACE", *header), rows))
    else:
        click.echo(columns(header, [row(stored, asn) for stored in found]))


def _with_namespace(stored: Stored, asn: str, row: Callable[[Stored, str], Row]) -> Row:
    """A row of one that was found as namespace/name."""
    namespace, _, name = stored.name.partition("/")
    return namespace, *row(Stored(name, stored.resource), asn)


def _named(name: str, kind: Kind, found: list[Stored], namespace: str) -> Stored:
    """Raises Failed when it is not among what was found."""
    for stored in found:
        if stored.name == name:
            return stored
    if kind.namespaced:
        raise Failed(
            f"there is no {kind.kind} {name!r} in namespace {namespace!r} ('tortiectl get {kind.plural} -A')"
        )
    raise Failed(f"there is no {kind.kind} {name!r} in the datastore ('tortiectl get {kind.plural}')")


def _kind(text: str) -> Kind:
    for kind in KINDS:
        if text.lower() in (kind.plural, *kind.aliases):
            return kind
    raise Failed(f"unknown kind {text!r}; use {', '.join(kind.plural for kind in KINDS)}")


async def _default_asn(etcd: Client) -> str:
    """The cluster's AS number: BGPConfiguration default, else Calico's 64512."""
    from felix_like.model.bgp import DEFAULT_ASN

    for configuration in await resources(etcd, "bgpconfigurations"):
        if configuration.name == "default":
            return text(configuration.spec, "asNumber", str(DEFAULT_ASN))
    return str(DEFAULT_ASN)


def _whole(kind: Kind, found: list[Stored], *, single: bool) -> dict[str, Any]:
    """One resource by itself, several as calicoctl's List."""
    if single:
        return found[0].resource
    return {
        "kind": f"{kind.kind}List",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {},
        "items": [stored.resource for stored in found],
    }


def _dump(resource: dict[str, Any], output: str) -> str:
    if output == "json":
        return json.dumps(resource, indent=2) + "\n"
    import yaml

    # The pure Python dumper takes seconds for thousands of resources.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(resource, Dumper=dumper, default_flow_style=False, allow_unicode=True))
