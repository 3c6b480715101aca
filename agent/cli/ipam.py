"""`tortiectl ipam`: how full the pools and blocks are, in calicoctl's layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from agent.cli.errors import Failed, printable, warn
from agent.cli.group import Group
from agent.cli.ipam_check import check
from agent.cli.store import resources, with_etcd
from agent.cli.tables import box

if TYPE_CHECKING:
    from felix_like.datastore.client import Client
    from felix_like.model.address import Prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlock:
    """An IPAM block as stored (libcalico-go/lib/backend/model/block.go)."""

    cidr: Prefix
    raw: dict[str, Any]

    @property
    def allocations(self) -> list[Any]:
        value = self.raw.get("allocations")
        return value if isinstance(value, list) else []

    @property
    def in_use(self) -> int:
        return sum(1 for index in self.allocations if index is not None)


@dataclass(slots=True, kw_only=True)
class Usage:
    """A pool with its blocks."""

    cidr: Prefix
    blocks: list[StoredBlock] = field(default_factory=list)


@click.group(cls=Group)
def ipam() -> None:
    """Show how the pools' addresses are used."""


ipam.add_command(check)

EPILOG = """\b
Examples:
  tortiectl ipam show
  tortiectl ipam show --show-blocks
  tortiectl ipam show --ip 10.65.1.2
"""


@ipam.command(epilog=EPILOG)
@click.option("--show-blocks", is_flag=True, help="Show each pool's blocks, too.")
@click.option("--ip", "address", metavar="ADDRESS", help="Show who holds this address.")
@click.pass_obj
def show(config: str | None, show_blocks: bool, address: str | None) -> None:
    """Show how many addresses of each pool are in use, or who holds one address."""
    if address is not None:
        click.echo("\n".join(_holder(config, address)))
        return
    header = ("GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS FREE")
    rows = []
    for usage in with_etcd(config, _read):
        rows.append(_row("IP Pool", usage.cidr, sum(block.in_use for block in usage.blocks)))
        if show_blocks:
            rows += [_row("Block", block.cidr, block.in_use) for block in usage.blocks]
    click.echo(box(header, rows))


async def _read(etcd: Client) -> list[Usage]:
    """Every pool with the blocks that lie in it, by CIDR."""
    from felix_like.model.address import Prefix

    pools = []
    for pool in await resources(etcd, "ippools"):
        try:
            pools.append(Usage(cidr=Prefix.of(str(pool.spec.get("cidr")))))
        except ValueError as error:
            warn(f"IPPool {pool.name} is left out: {error}")
    for block in await _blocks(etcd):
        home = [pool for pool in pools if pool.cidr.covers(block.cidr)]
        if home:
            max(home, key=lambda pool: pool.cidr.length).blocks.append(block)
        else:
            warn(f"block {block.cidr} lies in no pool")
    for usage in pools:
        usage.blocks.sort(key=lambda block: block.cidr)
    return sorted(pools, key=lambda usage: (usage.cidr.version, usage.cidr))


async def _blocks(etcd: Client) -> list[StoredBlock]:
    from felix_like.datastore.keys import BLOCKS
    from felix_like.model.address import Prefix

    found = []
    for kv in (await etcd.get_prefix(BLOCKS)).kvs:
        try:
            raw = json.loads(kv.value)
            found.append(StoredBlock(cidr=Prefix.of(raw["cidr"]), raw=raw))
        except (ValueError, KeyError, TypeError, AttributeError):
            warn(f"{kv.key} is left out: it does not read as a block")
    return found


def _row(grouping: str, cidr: Prefix, used: int) -> tuple[str, ...]:
    total = 1 << (cidr.bits - cidr.length)
    return grouping, str(cidr), _number(total), _share(used, total), _share(total - used, total)


def _number(count: int) -> str:
    """Five significant digits, as Go's %.5g writes them."""
    return f"{count:.5g}"


def _share(count: int, total: int) -> str:
    return f"{_number(count)} ({count / total:.0%})"


def _holder(config: str | None, text: str) -> Iterator[str]:
    from felix_like.model.address import Address

    try:
        address = Address.parse(text)
    except ValueError as error:
        raise Failed(f"{error}; give one such as 10.65.1.2") from None
    for block in with_etcd(config, _blocks):
        if not block.cidr.contains(address):
            continue
        ordinal = int.from_bytes(address, "big") - int.from_bytes(block.cidr.network, "big")
        index = block.allocations[ordinal] if ordinal < len(block.allocations) else None
        if index is None:
            break
        yield f"IP {address} is in use"
        yield from _attributes(block.raw.get("attributes"), index)
        return
    yield f"{address} is not assigned"


def _attributes(attributes: Any, index: Any) -> Iterator[str]:
    try:
        attribute = attributes[index]
        secondary = attribute.get("secondary") or {}
        handle = attribute.get("handle_id")
        pairs = sorted(secondary.items())
    except (TypeError, IndexError, AttributeError, KeyError):
        yield "Its attributes cannot be read: the block is damaged"
        return
    if handle:
        yield printable(f"Handle ID: {handle}")
    yield "Attributes:" if pairs else "No attributes defined"
    for key, value in pairs:
        yield printable(f"  {key}: {value}")
