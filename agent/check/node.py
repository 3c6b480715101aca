"""This node in the datastore: is it there, with the addresses that this host has, and nobody else's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agent.autodetect import route_lookup
from agent.check.etcd import Held
from agent.check.finding import Finding, fail, ok, warn
from agent.check.netlink import Link
from agent.register import SETTING, VERSIONS, CannotRegister, Choice, choose, held, refuse_duplicates
from agent.settings import Settings
from felix_like.model.address import Address, IpVersion


def name_of(resource: dict[str, Any]) -> str:
    metadata = resource.get("metadata")
    return str(metadata.get("name")) if isinstance(metadata, dict) else ""


def check(
    settings: Settings, there: Held, links: Sequence[Link]
) -> tuple[list[Finding], dict[IpVersion, Address]]:
    """The findings, and the addresses this node would register: by the code that registers it."""
    current = next((node for node in there.nodes if name_of(node) == settings.nodename), None)
    found = list(_presence(settings, current, there))
    notes: list[str] = []
    try:
        choices = choose(settings, current, links, route_lookup, notes)
    except CannotRegister as error:
        return [*found, fail("node's address", str(error))], {}
    found += [
        warn("node's address", note, "correct the address, the method or the interface") for note in notes
    ]
    found += _addresses(current, choices)
    try:
        refuse_duplicates(settings.nodename, choices, there.nodes)
    except CannotRegister as error:
        level = fail if settings.check_node_ip else warn
        found.append(level("duplicate addresses", str(error)))
    else:
        found.append(ok("duplicate addresses", f"no other of {len(there.nodes)} nodes has this node's"))
    own = {version: choice.own.address for version, choice in choices.items() if choice.own is not None}
    return found, own


def _presence(settings: Settings, current: dict[str, Any] | None, there: Held) -> Iterator[Finding]:
    if current is not None:
        yield ok("Node resource", f"{settings.nodename} is there")
        return
    lower = settings.nodename.lower()
    near = [
        name
        for name in map(name_of, there.nodes)
        if name.partition(".")[0].lower() == lower.partition(".")[0]
    ]
    hint = f"; there is {near[0]}: is that this host?" if near else ""
    yield warn(
        "Node resource",
        f"there is no Node {settings.nodename}{hint}",
        "the agent makes it when it starts; if the name is wrong, set NODENAME",
    )


def _addresses(current: dict[str, Any] | None, choices: dict[IpVersion, Choice]) -> Iterator[Finding]:
    """What this host would say beside what the Node says."""
    for version in VERSIONS:
        registered, choice = held(current, version, []), choices[version]
        if choice.own is None:
            continue
        check = f"IPv{version} address"
        if current is not None and registered is not None and registered != choice.own:
            yield warn(
                check,
                f"the Node has {registered}, this host would say {choice.own}",
                f"the agent's next start writes that; if it is wrong, set {SETTING[version]} or "
                f"{SETTING[version]}_AUTODETECTION_METHOD",
            )
        else:
            yield ok(check, str(choice.own))
