"""What every kernel of the lab should route, from who holds which block. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.lab.plan import Lab
from agent.lab.state import LabNode
from felix_like.model.address import Address, Prefix

Holders = Mapping[Prefix, str]
"""Block -> name of the node with the confirmed affinity."""


def routes(lab: Lab, nodes: Iterable[LabNode], holders: Holders) -> dict[str, dict[Prefix, Address]]:
    """Namespace -> every other node's block -> that node's address of the block's family."""
    everyone = list(nodes)
    address = {node.name: {4: Address.parse(node.ipv4), 6: Address.parse(node.ipv6)} for node in everyone}
    return {
        lab.namespace(node.name): {
            prefix: address[holder][prefix.version]
            for prefix, holder in holders.items()
            if holder != node.name and holder in address
        }
        for node in everyone
    }


def count(expected: Mapping[str, Mapping[Prefix, Address]]) -> int:
    return sum(len(wanted) for wanted in expected.values())


def left(missing: Mapping[str, Iterable[str]]) -> int:
    return sum(len(list(phrases)) for phrases in missing.values())
