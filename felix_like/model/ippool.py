"""A Calico IPPool."""

from __future__ import annotations

from dataclasses import dataclass

from felix_like.model.address import Prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class IPPool:
    """A range that pods' addresses come from (api/pkg/apis/projectcalico/v3/ippool.go)."""

    name: str
    cidr: Prefix
    block_size: int
    """Prefix length of the pool's blocks: 20 to 32 (IPv4, default 26), 116 to 128 (IPv6, default 122)."""
    disabled: bool = False
    """No new allocations; what is allocated is still routed."""
    disable_bgp_export: bool = False
    nat_outgoing: bool = False
    ipip_mode: str = "Never"
    vxlan_mode: str = "Never"
    node_selector: str = "all()"
    allowed_uses: tuple[str, ...] = ("Workload", "Tunnel")
    assignment_mode: str = "Automatic"
