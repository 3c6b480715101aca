"""`tortiectl get`: resources of the datastore in calicoctl's columns, or as they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from agent.cli.errors import Failed
from agent.cli.store import Stored, resources, with_etcd
from agent.cli.tables import columns

if TYPE_CHECKING:
    from felix_like.datastore.client import Client

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How calicoctl shows a kind (calicoctl/resourcemgr/)."""

    kind: str
    plural: str
    aliases: tuple[str, ...]
    header: Row
    row: Callable[[Stored, str], Row]
    wide_header: Row | None = None
    wide_row: Callable[[Stored, str], Row] | None = None


def _text(spec: dict[str, Any], key: str, default: str) -> str:
    """A field as Go prints it: booleans in lower case, nothing as the default."""
    value = spec.get(key)
    if isinstance(value, bool):
        return str(value).lower()
    return default if value in (None, "") else str(value)


def _flag(spec: dict[str, Any], key: str) -> str:
    return _text(spec, key, "false")


def _node_wide(node: Stored, default_asn: str) -> Row:
    bgp = node.spec.get("bgp")
    bgp = bgp if isinstance(bgp, dict) else {}
    return (
        node.name,
        _text(bgp, "asNumber", f"({default_asn})"),
        _text(bgp, "ipv4Address", ""),
        _text(bgp, "ipv6Address", ""),
    )


def _pool_wide(pool: Stored, _asn: str) -> Row:
    spec = pool.spec
    return (
        pool.name,
        _text(spec, "cidr", ""),
        _flag(spec, "natOutgoing"),
        _text(spec, "ipipMode", "Never"),
        _text(spec, "vxlanMode", "Never"),
        _flag(spec, "disabled"),
        _flag(spec, "disableBGPExport"),
        _text(spec, "nodeSelector", "all()"),
        _text(spec, "assignmentMode", "Automatic"),
    )


def _peer(peer: Stored, default_asn: str) -> Row:
    spec = peer.spec
    where = _text(spec, "node", "") or _text(spec, "nodeSelector", "") or "(global)"
    address = _text(spec, "peerIP", "") or _text(spec, "peerSelector", "")
    return peer.name, address, where, _text(spec, "asNumber", f"({default_asn})")


def _configuration(configuration: Stored, _asn: str) -> Row:
    spec = configuration.spec
    return (
        configuration.name,
        _text(spec, "logSeverityScreen", "-"),
        _text(spec, "nodeToNodeMeshEnabled", "-"),
        _text(spec, "asNumber", "-"),
    )


KINDS = (
    Kind(
        kind="Node",
        plural="nodes",
        aliases=("node", "no"),
        header=("NAME",),
        row=lambda node, _: (node.name,),
        wide_header=("NAME", "ASN", "IPV4", "IPV6"),
        wide_row=_node_wide,
    ),
    Kind(
        kind="IPPool",
        plural="ippools",
        aliases=("ippool", "ipp", "pool", "pools"),
        header=("NAME", "CIDR", "SELECTOR"),
        row=lambda pool, _: (
            pool.name,
            _text(pool.spec, "cidr", ""),
            _text(pool.spec, "nodeSelector", "all()"),
        ),
        wide_header=(
            "NAME",
            "CIDR",
            "NAT",
            "IPIPMODE",
            "VXLANMODE",
            "DISABLED",
            "DISABLEBGPEXPORT",
            "SELECTOR",
            "ASSIGNMENTMODE",
        ),
        wide_row=_pool_wide,
    ),
    Kind(
        kind="BGPPeer",
        plural="bgppeers",
        aliases=("bgppeer", "bgpp"),
        header=("NAME", "PEERIP", "NODE", "ASN"),
        row=_peer,
    ),
    Kind(
        kind="BGPConfiguration",
        plural="bgpconfigurations",
        aliases=("bgpconfiguration", "bgpconfig", "bgpconfigs"),
        header=("NAME", "LOGSEVERITY", "MESHENABLED", "ASNUMBER"),
        row=_configuration,
    ),
)


def _complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(kind.plural) for kind in KINDS if kind.plural.startswith(incomplete.lower())]


EPILOG = """\b
Examples:
  tortiectl get nodes -o wide
  tortiectl get ippools
  tortiectl get bgppeer tor-1 -o yaml
  tortiectl get bgpconfigurations -o json

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
@click.pass_obj
def get(config: str | None, kind: str, names: tuple[str, ...], output: str) -> None:
    """Show nodes, IP pools, BGP peers and BGP configurations."""
    chosen = _kind(kind)

    async def read(etcd: Client) -> tuple[list[Stored], str]:
        found = await resources(etcd, chosen.plural)
        return found, await _default_asn(etcd) if output in ("ps", "wide") else ""

    found, asn = with_etcd(config, read)
    if names:
        by_name = {stored.name: stored for stored in found}
        for name in names:
            if name not in by_name:
                raise Failed(
                    f"there is no {chosen.kind} {name!r} in the datastore ('tortiectl get {chosen.plural}')"
                )
        found = [by_name[name] for name in names]
    if output in ("json", "yaml"):
        click.echo(_dump(_whole(chosen, found, single=len(names) == 1), output), nl=False)
        return
    wide = output == "wide"
    header = (wide and chosen.wide_header) or chosen.header
    row = (wide and chosen.wide_row) or chosen.row
    click.echo(columns(header, [row(stored, asn) for stored in found]))


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
            return _text(configuration.spec, "asNumber", str(DEFAULT_ASN))
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
