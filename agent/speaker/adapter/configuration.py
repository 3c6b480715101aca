"""exabgp.conf through ExaBGP's own parser."""

from __future__ import annotations

import base64
from typing import Any

from exabgp.configuration.configuration import Configuration
from exabgp.protocol.family import AFI, SAFI

from agent.speaker.settings import ConfError, Neighbor
from felix_like.model.address import Address, Asn, IpVersion


def parse(text: str) -> list[Neighbor]:
    """The neighbors of a configuration. Raises ConfError."""
    configuration = Configuration([text], text=True)
    try:
        good = configuration.reload()
    except Exception as error:  # the parser's own faults are the file's faults to us
        raise ConfError(f"the parser failed: {type(error).__name__}: {error}") from error
    if not good:
        reason = " ".join(str(configuration.error).split())
        raise ConfError(reason or "exabgp.conf is not valid")
    return [_neighbor(one) for one in configuration.neighbors.values()]


def _neighbor(source: Any) -> Neighbor:
    source.rib.uncache()  # RIBs otherwise outlive their neighbor in a cache by name
    if source["peer-as"] is None or source["local-as"] is None:
        raise ConfError(f"neighbor {source['peer-address']}: local-as and peer-as must be numbers")
    if source.range_size != 1:
        raise ConfError(f"neighbor {source['peer-address']}: address ranges are not supported")
    if source["capability"]["add-path"]:
        raise ConfError(f"neighbor {source['peer-address']}: add-path is not supported")
    families: list[IpVersion] = []
    for afi, safi in source.families():
        if safi == SAFI.unicast and afi in (AFI.ipv4, AFI.ipv6):
            families.append(4 if afi == AFI.ipv4 else 6)
    local = source["local-address"]
    return Neighbor(
        address=Address.parse(source["peer-address"].top()),
        local_address=None if local is None else Address.parse(local.top()),
        asn=Asn(int(source["peer-as"])),
        local_asn=Asn(int(source["local-as"])),
        router_id=str(source["router-id"]),
        passive=bool(source["passive"]),
        connect_port=int(source["connect"]) or 179,
        listen_port=int(source["listen"]) or None,
        hold_time=int(source["hold-time"]),
        password=_key(source),
        incoming_ttl=source["incoming-ttl"],
        outgoing_ttl=source["outgoing-ttl"],
        families=tuple(families),
        restart_time=int(source["capability"]["graceful-restart"] or 0),
        capabilities=tuple(sorted((key, str(value)) for key, value in source["capability"].items())),
        description=str(source["description"] or ""),
        source=source,
    )


def _key(source: Any) -> str | None:
    """The TCP MD5 key as base64, however the file wrote it: the renderer has no other way to carry quotes."""
    written = source["md5-password"]
    if not written:
        return None
    if source["md5-base64"] is None:
        raise ConfError(f"neighbor {source['peer-address']}: md5-base64 must be true or false, not auto")
    return str(written) if source["md5-base64"] else base64.b64encode(written.encode()).decode()
