"""What each kind of peer is told: RFC 4271 sections 5 and 9.2, RFC 4456, RFC 1997, Calico's filter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from felix_like.model.address import Address, Asn, Prefix
from felix_like.model.bgp import Peer, PeerType
from felix_like.model.path import Attributes, Path
from felix_like.rib.adj_rib_out import (
    NO_ADVERTISE,
    NO_EXPORT,
    NO_EXPORT_SUBCONFED,
    AdjRibOut,
    ExportFilter,
    export,
    may_learn_from,
    originate,
    prepend,
)
from felix_like.rib.import_policy import Source
from felix_like.rib.session import Session

PREFIX = Prefix.parse("10.1.0.0/26")
OURS = Address.parse("10.0.0.1")
OWN: dict[Any, Address] = {4: OURS, 6: Address.parse("fd00::1")}


def peer(address: str, asn: int = 64512, **more: Any) -> Peer:
    return Peer(
        address=Address.parse(address),
        asn=Asn(asn),
        local_address=OURS,
        local_asn=Asn(64512),
        router_id="10.0.0.1",
        type=PeerType.MESH if asn == 64512 else PeerType.GLOBAL,
        name="x",
        **more,
    )


def source(one: Peer, router_id: str = "10.0.0.2") -> Source:
    return Source(one.address, one, Session(router_id=router_id, asn=one.asn))


def path(from_peer: Peer, **attributes: Any) -> Path:
    attributes.setdefault("next_hop", from_peer.address)
    return Path(PREFIX, from_peer.address, Attributes(**attributes))


NODE2, NODE3 = peer("10.0.0.2"), peer("10.0.0.3")
CLIENT = peer("10.0.0.4", route_reflector_client=True, cluster_id="1.0.0.1")
TOR, TOR2 = peer("10.0.0.254", 65000), peer("10.0.0.253", 65001)


def test_nobody_hears_his_own_path() -> None:
    assert "came from this peer" in (may_learn_from(TOR, source(TOR)) or "")


def test_ibgp_is_not_told_what_ibgp_said() -> None:
    assert "neither side is a route reflector client" in (may_learn_from(NODE3, source(NODE2)) or "")


def test_a_reflector_tells_clients_everything_and_others_what_clients_said() -> None:
    assert may_learn_from(CLIENT, source(NODE2)) is None
    assert may_learn_from(NODE2, source(CLIENT)) is None
    assert may_learn_from(NODE3, source(NODE2)) is not None


def test_a_reflected_path_carries_originator_and_cluster() -> None:
    got = export(path(CLIENT, local_pref=200, med=5), source(CLIENT, "4.4.4.4"), NODE2, OWN)
    assert got == Attributes(
        next_hop=CLIENT.address, local_pref=200, med=5, originator_id="4.4.4.4", cluster_list=("1.0.0.1",)
    )


def test_reflecting_again_keeps_the_originator_and_prepends_the_cluster() -> None:
    reflected = path(NODE2, originator_id="7.7.7.7", cluster_list=("2.0.0.2",))
    got = export(reflected, source(NODE2), CLIENT, OWN)
    assert isinstance(got, Attributes)
    assert got.originator_id == "7.7.7.7"
    assert got.cluster_list == ("1.0.0.1", "2.0.0.2")
    assert got.local_pref == 100


def test_to_another_as_goes_our_as_and_address_and_nothing_internal() -> None:
    learned = path(NODE2, local_pref=200, med=5, originator_id="7.7.7.7", cluster_list=("2.0.0.2",))
    assert export(learned, source(NODE2), TOR, OWN) == Attributes(
        next_hop=OURS, as_path=(("sequence", (Asn(64512),)),)
    )


def test_next_hop_modes() -> None:
    keep, plain = (
        peer("10.0.0.254", 65000, next_hop_mode="Keep"),
        path(TOR2, as_path=(("sequence", (65001,)),)),
    )
    got = export(plain, source(TOR2), keep, OWN)
    assert isinstance(got, Attributes)
    assert got.next_hop == TOR2.address
    assert got.as_path == (("sequence", (64512, 65001)),)
    inside = export(plain, source(TOR2), NODE2, OWN)
    assert isinstance(inside, Attributes)
    assert inside.next_hop == TOR2.address  # RFC 4271 5.1.3: not changed towards iBGP
    own = export(plain, source(TOR2), peer("10.0.0.2", next_hop_mode="Self"), OWN)
    assert isinstance(own, Attributes)
    assert own.next_hop == OURS


def test_what_ebgp_said_enters_ibgp_with_our_own_preference() -> None:
    learned = path(TOR, local_pref=4000, originator_id="9.9.9.9", cluster_list=("9.9.9.9",), med=7)
    got = export(learned, source(TOR), NODE2, OWN)
    assert got == Attributes(next_hop=TOR.address, local_pref=100, med=7)


@pytest.mark.parametrize(
    ("community", "to_node", "to_tor"),
    [
        (NO_ADVERTISE, False, False),
        (NO_EXPORT, True, False),
        (NO_EXPORT_SUBCONFED, True, False),
        ("1:1", True, True),
    ],
)
def test_well_known_communities(community: str, to_node: bool, to_tor: bool) -> None:
    learned = path(TOR2, communities=("65000:1", community))
    assert isinstance(export(learned, source(TOR2), NODE2, OWN), Attributes) == to_node
    assert isinstance(export(learned, source(TOR2), TOR, OWN), Attributes) == to_tor


def test_our_own_prefixes_inside_and_outside_the_as() -> None:
    own = Attributes(next_hop=OURS, med=3, communities=(NO_EXPORT,))
    assert originate(own, NODE2) == Attributes(next_hop=OURS, med=3, communities=(NO_EXPORT,), local_pref=100)
    assert originate(own, TOR) == Attributes(
        next_hop=OURS, med=3, communities=(NO_EXPORT,), as_path=(("sequence", (64512,)),)
    )


def test_a_peer_with_its_own_local_as_sees_that_one() -> None:
    odd = Peer(
        address=TOR.address, asn=Asn(65000), local_address=OURS, local_asn=Asn(64999), router_id="1.1.1.1",
        type=PeerType.GLOBAL, name="x",
    )  # fmt: skip
    assert originate(Attributes(next_hop=OURS), odd).as_path == (("sequence", (64999,)),)


def test_prepending_never_makes_a_segment_too_long_or_enters_a_set() -> None:
    full = (("sequence", tuple(range(1, 256))),)
    assert prepend(full, Asn(9)) == (("sequence", (9,)), *full)  # type: ignore[arg-type]
    assert prepend((("set", (Asn(1),)),), Asn(9)) == (("sequence", (9,)), ("set", (1,)))


def test_only_pools_and_services_leave_the_node() -> None:
    rules = ExportFilter()
    rules.pools.put(Prefix.parse("10.1.0.0/16"), True)
    rules.pools.put(Prefix.parse("10.2.0.0/16"), False)
    rules.services.put(Prefix.parse("10.96.0.0/12"), None)
    rules.own_blocks.put(Prefix.parse("10.1.7.0/26"), None)
    assert rules.refuse(PREFIX) is None
    assert rules.refuse(Prefix.parse("10.96.0.10/32")) is None
    assert "disableBGPExport" in (rules.refuse(Prefix.parse("10.2.0.0/26")) or "")
    assert "outside every pool" in (rules.refuse(Prefix.parse("0.0.0.0/0")) or "")
    assert "aggregated" in (rules.refuse(Prefix.parse("10.1.7.9/32")) or "")
    assert rules.refuse(Prefix.parse("10.1.7.0/26")) is None


def test_the_table_reports_changes_once_and_withdraws_what_is_no_longer_wanted() -> None:
    table, a, b = AdjRibOut(), NODE2.address, TOR.address
    attributes = Attributes(next_hop=OURS)
    table.put(PREFIX, {a: attributes, b: attributes})
    assert table.take() == {a: {PREFIX: attributes}, b: {PREFIX: attributes}}
    table.put(PREFIX, {a: Attributes(next_hop=OURS), b: attributes})
    assert table.take() == {}
    table.put(PREFIX, {a: attributes})
    assert table.take() == {b: {PREFIX: None}}
    assert (table.count(a), table.count(b)) == (1, 0)
    assert table.to(a) == {PREFIX: attributes}
    table.put(PREFIX, {})
    assert table.take() == {a: {PREFIX: None}}
    assert table.prefixes() == []


def test_mesh_nodes_with_as_numbers_of_their_own_do_not_carry_each_others_blocks() -> None:
    own_as, other_as = (replace(one, asn=Asn(65100 + i)) for i, one in enumerate((NODE2, NODE3)))
    assert "full mesh" in (may_learn_from(other_as, source(own_as)) or "")
    assert may_learn_from(TOR, source(own_as)) is None


def test_a_peer_is_not_told_of_routes_through_itself() -> None:
    through_node_3 = path(TOR, next_hop=NODE3.address, as_path=(("sequence", (65000,)),))
    assert export(through_node_3, source(TOR), NODE3, OWN) == "the peer itself is its next hop"
    assert isinstance(export(through_node_3, source(TOR), NODE2, OWN), Attributes)
