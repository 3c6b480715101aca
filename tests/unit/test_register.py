"""Which addresses a node registers, and what of its Node resource that changes: no etcd needed."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest

from agent.autodetect import Method
from agent.register import (
    CannotRegister,
    Choice,
    Own,
    choose,
    held,
    put_kubernetes_name,
    put_own,
    put_router_id,
    refuse_duplicates,
)
from agent.settings import Settings, load
from felix_like.model.address import Address, Asn, IpVersion


@dataclass(frozen=True)
class Interface:
    name: str
    addresses: tuple[tuple[Address, int], ...]
    up: bool = True


ETH0 = Interface("eth0", ((Address.parse("192.0.2.10"), 24), (Address.parse("2001:db8::10"), 64)))


def settings(tmp_path: Any, **told: str) -> Settings:
    empty = tmp_path / "tortie.conf"
    empty.touch()
    return load({"NODENAME": "node-1", "TORTIE_CONFIG_FILE": str(empty)} | told, hostname="host")


def node(ipv4: Any = None, ipv6: Any = None, **bgp: Any) -> dict[str, Any]:
    addresses = {"ipv4Address": ipv4, "ipv6Address": ipv6}
    return {
        "kind": "Node",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "node-1", "uid": "u", "labels": {"rack": "r1"}, "annotations": {"a": "b"}},
        "spec": {
            "bgp": {k: v for k, v in addresses.items() if v is not None} | bgp,
            "futureField": {"x": [1, 2]},
            "orchRefs": [{"nodeName": "n", "orchestrator": "k8s"}],
        },
        "status": {"podCIDRs": ["10.244.1.0/24"]},
    }


def no_route(destination: str, version: IpVersion) -> Address:
    raise OSError(101, "Network is unreachable")


@pytest.mark.parametrize(
    ("told", "current", "ipv4", "ipv6", "decided"),
    [
        # Fresh node: IPv4 is detected, IPv6 is not.
        ({}, None, "192.0.2.10/24", None, (True, False)),
        ({"IP6": "autodetect"}, None, "192.0.2.10/24", "2001:db8::10/64", (True, True)),
        # What the Node has is kept...
        ({}, node("198.51.100.1/25", "fd00::1/64"), "198.51.100.1/25", "fd00::1/64", (False, False)),
        ({"IP": "none"}, node("198.51.100.1/25"), "198.51.100.1/25", None, (False, False)),
        # ... unless the settings say otherwise.
        ({"IP": "autodetect"}, node("198.51.100.1/25"), "192.0.2.10/24", None, (True, False)),
        (
            {"IP": "10.0.0.1/16", "IP6": "fd00::2/48"},
            node("1.1.1.1"),
            "10.0.0.1/16",
            "fd00::2/48",
            (True, True),
        ),
        # No length written: the interface says, or it is the host route.
        ({"IP": "192.0.2.10"}, None, "192.0.2.10/24", None, (True, False)),
        ({"IP": "192.0.2.11"}, None, "192.0.2.11/32", None, (True, False)),
        ({"IP": "none", "IP6": "2001:db8::11"}, None, None, "2001:db8::11/128", (False, True)),
        # Nonsense in the Node counts as absent.
        ({}, node("300.1.1.1/24"), "192.0.2.10/24", None, (True, False)),
        ({}, node(["192.0.2.9"]), "192.0.2.10/24", None, (True, False)),
    ],
)
def test_which_address(
    tmp_path: Any,
    told: dict[str, str],
    current: dict[str, Any] | None,
    ipv4: str | None,
    ipv6: str | None,
    decided: tuple[bool, bool],
) -> None:
    choices = choose(settings(tmp_path, **told), current, (ETH0,), no_route, [])
    assert [None if c.own is None else str(c.own) for c in choices.values()] == [ipv4, ipv6]
    assert tuple(c.decided for c in choices.values()) == decided


def test_detection_that_fails_keeps_what_the_node_has_and_says_so(tmp_path: Any) -> None:
    notes: list[str] = []
    told = settings(tmp_path, IP="autodetect", IP_AUTODETECTION_METHOD="interface=ens.*")
    choices = choose(told, node("198.51.100.1/25"), (ETH0,), no_route, notes)
    assert choices[4] == Choice(Own(Address.parse("198.51.100.1"), 25), decided=False)
    assert any("interface=ens.*" in note and "keeping 198.51.100.1" in note for note in notes)
    assert any("no interface of this host has" in note for note in notes)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"IP": "none"}, "set IP or IP6"),
        ({"IP_AUTODETECTION_METHOD": "interface=ens.*"}, "IP_AUTODETECTION_METHOD: method interface=ens.*"),
        ({"IP6": "autodetect", "IP6_AUTODETECTION_METHOD": "can-reach=2001:db8:f::1"}, "needs IP6=none"),
    ],
)
def test_a_node_without_an_address_cannot_start(tmp_path: Any, told: dict[str, str], words: str) -> None:
    with pytest.raises(CannotRegister, match=r"^(Node node-1|IP)") as caught:
        choose(settings(tmp_path, **told), None, (ETH0,), no_route, [])
    assert words in str(caught.value)


def decided(ipv4: str | None = None, ipv6: str | None = None) -> dict[IpVersion, Choice]:
    def one(text: str | None) -> Choice:
        if text is None:
            return Choice(None, False)
        address, length = text.split("/")
        return Choice(Own(Address.parse(address), int(length)), True)

    return {4: one(ipv4), 6: one(ipv6)}


def test_only_what_was_decided_is_written() -> None:
    before = node("10.0.0.1/24", "fd00::1/64", asNumber=65001, routeReflectorClusterID="1.0.0.1")
    after = deepcopy(before)
    assert put_own(after, decided("10.0.0.2/24"), None)
    assert after["spec"]["bgp"].pop("ipv4Address") == "10.0.0.2/24"
    before["spec"]["bgp"].pop("ipv4Address")
    assert after == before


def test_a_node_that_says_so_already_is_left_alone() -> None:
    current = node("10.0.0.1/24", "fd00:0::1/64", asNumber=65001)
    before = json.dumps(current)
    assert not put_own(current, decided("10.0.0.1/24", "fd00::1/64"), Asn(65001))
    assert json.dumps(current) == before, "not even another spelling of the same address"
    assert not put_own(current, decided(), None)


def test_an_as_number_is_written_only_when_set() -> None:
    current = node("10.0.0.1/24", asNumber=65001)
    assert put_own(current, decided("10.0.0.1/24"), Asn(65002))
    assert current["spec"]["bgp"]["asNumber"] == 65002
    assert put_own(current, decided("10.0.0.3/24"), None)
    assert current["spec"]["bgp"]["asNumber"] == 65002


def test_a_router_id_is_written_when_no_rule_leads_to_it() -> None:
    before = node("10.0.0.1/24")
    current = deepcopy(before)
    for nothing in (None, "hash"):
        assert not put_router_id(current, nothing)
    assert put_router_id(current, "9.9.9.9")
    assert current["metadata"]["annotations"] == {"a": "b", "tortie/router-id": "9.9.9.9"}
    assert not put_router_id(current, "9.9.9.9")
    assert put_router_id(current, "9.9.9.8")
    for gone in (None, "hash"):
        after = deepcopy(current)
        assert put_router_id(after, gone)
        assert after == before


@pytest.mark.parametrize("resource", [{}, {"metadata": None}, {"metadata": {"annotations": None}}])
def test_a_node_without_annotations_gets_its_first_and_loses_its_last(resource: dict[str, Any]) -> None:
    assert not put_router_id(resource, None)
    assert put_router_id(resource, "9.9.9.9")
    assert resource == {"metadata": {"annotations": {"tortie/router-id": "9.9.9.9"}}}
    assert put_router_id(resource, None)
    assert resource == {"metadata": {}}


def test_annotations_of_another_kind_are_not_overwritten() -> None:
    odd = {"metadata": {"annotations": ["x"]}}
    assert not put_router_id(odd, None)
    with pytest.raises(CannotRegister, match=r"annotations is .* not an object"):
        put_router_id(odd, "9.9.9.9")


def test_the_name_in_kubernetes_is_noted_beside_other_orchestrators_names() -> None:
    current = node("10.0.0.1/24")
    assert not put_kubernetes_name(current, None)
    assert put_kubernetes_name(current, "worker-1")
    assert current["spec"]["orchRefs"] == [{"nodeName": "worker-1", "orchestrator": "k8s"}]
    assert not put_kubernetes_name(current, "worker-1")
    current["spec"]["orchRefs"].insert(0, {"nodeName": "vm-7", "orchestrator": "openstack"})
    assert put_kubernetes_name(current, "worker-2")
    assert current["spec"]["orchRefs"] == [
        {"nodeName": "vm-7", "orchestrator": "openstack"},
        {"nodeName": "worker-2", "orchestrator": "k8s"},
    ]
    assert not put_kubernetes_name(current, None), "what stands there stays"
    with pytest.raises(CannotRegister, match=r"orchRefs is 'x', not a list"):
        put_kubernetes_name({"spec": {"orchRefs": "x"}}, "worker-1")


@pytest.mark.parametrize("spec", [{}, {"spec": None}, {"spec": {"bgp": None}}])
def test_missing_sections_are_made(spec: dict[str, Any]) -> None:
    assert put_own(spec, decided("10.0.0.1/24"), None)
    assert spec["spec"]["bgp"] == {"ipv4Address": "10.0.0.1/24"}


@pytest.mark.parametrize("spec", [{"spec": []}, {"spec": {"bgp": "x"}}])
def test_a_section_of_another_kind_is_not_overwritten(spec: dict[str, Any]) -> None:
    with pytest.raises(CannotRegister, match="not an object"):
        put_own(spec, decided("10.0.0.1/24"), None)


def test_another_node_with_the_address_stops_the_start() -> None:
    other = node("10.0.0.1/16") | {"metadata": {"name": "node-2"}}
    with pytest.raises(CannotRegister, match=r"Node 'node-2' already has .* 10\.0\.0\.1") as caught:
        refuse_duplicates("node-1", decided("10.0.0.1/24"), [other])
    assert "DISABLE_NODE_IP_CHECK=true" in str(caught.value)
    refuse_duplicates("node-1", decided("10.0.0.2/24"), [other])
    refuse_duplicates("node-2", decided("10.0.0.1/24"), [other])
    nonsense = [{"metadata": None}, {"spec": "x"}, node(7) | {"metadata": {"name": "x"}}]
    refuse_duplicates("node-1", decided("10.0.0.1/24"), nonsense)


def test_held_notes_what_does_not_parse() -> None:
    notes: list[str] = []
    assert held(node("10.0.0.1\n/24"), 4, notes) is None
    assert len(notes) == 1
    assert notes[0].isprintable()


def test_the_methods_name_shows_in_settings(tmp_path: Any) -> None:
    assert settings(tmp_path).ip_autodetection == Method("first-found")
