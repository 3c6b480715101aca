"""Registering this node in etcd, as calico-node's start-up does (node/pkg/lifecycle/startup).

Creates the Node resource, or changes its BGP addresses, AS number, name in Kubernetes and our annotation of
its router ID by compare-and-swap: labels, other annotations and every field this agent does not know stay as
they are, and so does an address that the settings only ask to keep.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

from agent.autodetect import Interface, Method, NotDetected, Reach, detect, length_on, route_lookup
from agent.settings import Settings
from agent.settings_values import AddressSetting, Fixed
from felix_like.datastore import fields
from felix_like.datastore.cas import Json, ResourceStore
from felix_like.datastore.errors import NotFound, Refused
from felix_like.datastore.keys import Kind, quoted, resource_key
from felix_like.model.address import Address, Asn, IpVersion

VERSIONS: tuple[IpVersion, IpVersion] = (4, 6)
SETTING: dict[IpVersion, str] = {4: "IP", 6: "IP6"}
FIELD: dict[IpVersion, str] = {4: "ipv4Address", 6: "ipv6Address"}


class CannotRegister(Exception):
    """This node must not or cannot be registered: one sentence, for stderr and exit status 1."""


class Own(NamedTuple):
    """An address of this node."""

    address: Address
    length: int
    """Of its subnet, in bits."""

    def __str__(self) -> str:
        return f"{self.address}/{self.length}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What became of a family's settings."""

    own: Own | None
    decided: bool
    """Set or detected; otherwise it is what the Node has, and not ours to write."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What the Node resource says of this node now."""

    ipv4: Own | None
    ipv6: Own | None
    changed: bool
    """Whether anything had to be written."""
    notes: tuple[str, ...] = ()
    """What was odd, for the log."""


async def register(
    store: ResourceStore,
    settings: Settings,
    interfaces: Sequence[Interface],
    *,
    reach: Reach = route_lookup,
) -> Registered:
    """Make the Node resource say what the settings and the interfaces say.

    Raises CannotRegister for good, EtcdError when etcd cannot be asked (try again later).
    """
    current = await _read(store, settings.nodename)
    notes: list[str] = []
    # A host name in can-reach= is looked up, which may block for seconds.
    choices = await asyncio.to_thread(choose, settings, current, interfaces, reach, notes)

    def change(node: Json) -> None:
        _put(node, choices, settings)

    if settings.check_node_ip:
        refuse_duplicates(settings.nodename, choices, await store.list(Kind.NODE))
    if current is not None and not _put(deepcopy(current), choices, settings):
        stored, changed = current, False
    else:
        stored = await store.edit(Kind.NODE, settings.nodename, change, create=True)
        changed = True
    return Registered(held(stored, 4, []), held(stored, 6, []), changed, tuple(notes))


def choose(
    settings: Settings,
    current: Json | None,
    interfaces: Sequence[Interface],
    reach: Reach,
    notes: list[str],
) -> dict[IpVersion, Choice]:
    """This node's addresses; what is odd about them goes to `notes`. Raises CannotRegister."""
    asked: dict[IpVersion, tuple[AddressSetting, Method]] = {
        4: (settings.ip, settings.ip_autodetection),
        6: (settings.ip6, settings.ip6_autodetection),
    }
    choices = {
        version: _choose_one(
            version, *asked[version], held(current, version, notes), interfaces, reach, notes
        )
        for version in VERSIONS
    }
    if all(choice.own is None for choice in choices.values()):
        raise CannotRegister(
            f"Node {settings.nodename} has no address: set IP or IP6 to an address or to autodetect"
        )
    notes.extend(
        f"no interface of this host has the node's address {choice.own.address}"
        for choice in choices.values()
        if choice.own is not None and length_on(choice.own.address, interfaces) is None
    )
    return choices


def _choose_one(
    version: IpVersion,
    setting: AddressSetting,
    method: Method,
    before: Own | None,
    interfaces: Sequence[Interface],
    reach: Reach,
    notes: list[str],
) -> Choice:
    if isinstance(setting, Fixed):
        length = setting.length
        if length is None:
            length = length_on(setting.address, interfaces)
        return Choice(Own(setting.address, len(setting.address) * 8 if length is None else length), True)
    if setting == "none" or (setting == "keep" and (before is not None or version == 6)):
        return Choice(before, False)
    try:
        return Choice(Own(*detect(method, version, interfaces, reach)), True)
    except NotDetected as problem:
        name = SETTING[version]
        sentence = f"{name}_AUTODETECTION_METHOD: {problem}"
        if before is None:
            raise CannotRegister(f"{sentence}; a node without IPv{version} needs {name}=none") from None
        notes.append(f"{sentence}; keeping {before.address}")
        return Choice(before, False)


def put_own(node: Json, choices: dict[IpVersion, Choice], asn: Asn | None) -> bool:
    """Write what was decided into a Node resource; whether that changed it. Raises CannotRegister."""
    bgp = _section(_section(node, "spec"), "bgp")
    changed = False
    for version, choice in choices.items():
        if choice.decided and held(node, version, []) != choice.own:
            bgp[FIELD[version]] = str(choice.own)
            changed = True
    if asn is not None and bgp.get("asNumber") != asn:
        bgp["asNumber"] = int(asn)
        changed = True
    return changed


def put_router_id(node: Json, router_id: str | None) -> bool:
    """Write a router ID that others cannot work out (neither our IPv4 address nor the hash of our name) into
    a Node's annotations, or take away one that no longer holds: behind a route reflector it is how they know
    our paths for ours (ORIGINATOR_ID). Whether that changed it. Raises CannotRegister.
    """
    wanted = None if router_id == "hash" else router_id
    if wanted is not None:
        annotations = _section(_section(node, "metadata"), "annotations")
        changed = annotations.get(fields.ROUTER_ID) != wanted
        annotations[fields.ROUTER_ID] = wanted
        return changed
    metadata = node.get("metadata")
    noted = metadata.get("annotations") if isinstance(metadata, dict) else None
    if not isinstance(noted, dict) or fields.ROUTER_ID not in noted:
        return False
    del noted[fields.ROUTER_ID]
    if not noted:
        del node["metadata"]["annotations"]
    return True


def put_kubernetes_name(node: Json, name: str | None) -> bool:
    """Write this node's name in Kubernetes into a Node's spec.orchRefs, as calico-node does: so others know
    whose podCIDRs are ours, and a Node that Kubernetes no longer has can be told from one it never had. Where
    no name is set, what stands there stays. Whether that changed it. Raises CannotRegister.
    """
    if name is None:
        return False
    spec = _section(node, "spec")
    references = spec.get("orchRefs") or []
    wanted = {"nodeName": name, "orchestrator": "k8s"}
    if not isinstance(references, list):
        raise CannotRegister(
            f"this node's Node resource: spec.orchRefs is {quoted(references)}, not a list; correct it"
        )
    if wanted in references:
        return False
    others = [one for one in references if not (isinstance(one, dict) and one.get("orchestrator") == "k8s")]
    spec["orchRefs"] = [*others, wanted]
    return True


def _put(node: Json, choices: dict[IpVersion, Choice], settings: Settings) -> bool:
    changed = put_own(node, choices, settings.asn)
    changed |= put_kubernetes_name(node, settings.kubernetes_name)
    return put_router_id(node, settings.router_id) or changed


def held(node: Json | None, version: IpVersion, notes: list[str]) -> Own | None:
    """The address that a Node resource has. One that does not parse counts as absent, with a note."""
    spec = node.get("spec") if node is not None else None
    bgp = spec.get("bgp") if isinstance(spec, dict) else None
    text = bgp.get(FIELD[version]) if isinstance(bgp, dict) else None
    field = f"spec.bgp.{FIELD[version]}"
    try:
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{field}: {quoted(text)} is not text")
        address, network = fields.node_address(field, text, version)
    except ValueError as error:
        notes.append(f"this node's Node resource: {error}; it counts as absent")
        return None
    return None if address is None or network is None else Own(address, network.length)


def refuse_duplicates(name: str, choices: dict[IpVersion, Choice], nodes: Sequence[Json]) -> None:
    """Two nodes with one address would take each other's sessions and packets. Raises CannotRegister."""
    for node in nodes:
        metadata = node.get("metadata")
        other = metadata.get("name") if isinstance(metadata, dict) else None
        if other == name:
            continue
        for version, choice in choices.items():
            theirs = held(node, version, [])
            if choice.own is not None and theirs is not None and theirs.address == choice.own.address:
                raise CannotRegister(
                    f"Node {quoted(other)} already has this node's address {theirs.address}: give one of the "
                    f"two another ({SETTING[version]}), delete Node {quoted(other)} if it is gone, "
                    "or set DISABLE_NODE_IP_CHECK=true"
                )


async def _read(store: ResourceStore, name: str) -> Json | None:
    try:
        return await store.get(Kind.NODE, name)
    except NotFound:
        return None
    except Refused as error:
        raise CannotRegister(f"Node {name}: {error}") from None


def _section(node: Json, name: str) -> dict[str, Any]:
    section = node.get(name)
    if section is None:
        section = node[name] = {}
    if not isinstance(section, dict):
        raise CannotRegister(
            f"this node's Node resource: {name} is {quoted(section)}, not an object; correct it, or delete "
            f"{resource_key(Kind.NODE, 'NAME')} with this node's name and it is made anew"
        )
    return section
