"""Peers to write configuration tests with."""

from __future__ import annotations

from typing import Any

from felix_like.model.address import Address, Asn
from felix_like.model.bgp import Peer, PeerType
from felix_like.model.desired import Desired


def peer(address: str, local: str = "", **fields: Any) -> Peer:
    """A mesh peer unless `fields` say otherwise; one family, like Calico's sessions."""
    at = Address.parse(address)
    prefix = {PeerType.MESH: "Mesh", PeerType.GLOBAL: "Global", PeerType.NODE: "Node"}
    kind = fields.pop("type", PeerType.MESH)
    return Peer(
        **{
            "address": at,
            "asn": Asn(64512),
            "local_address": Address.parse(local or ("10.0.0.1" if at.version == 4 else "fd00::1")),
            "local_asn": Asn(64512),
            "router_id": "10.0.0.1",
            "type": kind,
            "name": f"{prefix[kind]}_{address.replace('.', '_').replace(':', '_')}",
            "families": (at.version,),
            **fields,
        }
    )


def desired(*peers: Peer, node: str = "node-1") -> Desired:
    return Desired(node=node, asn=Asn(64512), peers={p.address: p for p in peers})
