"""The checks between an UPDATE and the agent, with any octets; and the rule who may import ExaBGP."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.speaker.decode import missing, next_hop_fault, take_apart
from felix_like.model.address import Address

ROOT = Path(__file__).parents[2]
ORIGIN = bytes.fromhex("40010100")
HOP6 = bytes(Address.parse("2001:db8::1"))


def reach(nlri: bytes, hop: bytes = HOP6, flags: int = 0x80) -> bytes:
    body = b"\x00\x02\x01" + bytes((len(hop),)) + hop + b"\x00" + nlri
    return bytes((flags, 14, len(body))) + body


def unreach(nlri: bytes) -> bytes:
    body = b"\x00\x02\x01" + nlri
    return bytes((0x80, 15, len(body))) + body


SOME = bytes.fromhex("3020010db80001")


@given(st.binary(max_size=300))
@example(b"\x40")
@example(b"\x50\x01\x00")
@example(b"\x80\x0e\xff\x00\x02\x01")
def test_any_octets_are_taken_apart_or_refused(raw: bytes) -> None:
    try:
        pieces = take_apart(raw, ipv6=True)
    except ValueError:
        return
    if pieces.reach is None and pieces.unreach is None:
        assert pieces.attributes == raw, "what we do not take stays as it was"


def test_ipv6_unicast_is_taken_out_and_the_rest_is_left() -> None:
    pieces = take_apart(ORIGIN + reach(SOME) + unreach(SOME), ipv6=True)
    assert pieces.attributes == ORIGIN
    assert (pieces.reach, pieces.unreach, pieces.next_hop) == ([SOME], [SOME], HOP6)
    assert pieces.codes == {1, 14, 15}


def test_the_global_next_hop_is_taken_of_two() -> None:
    link_local = bytes(Address.parse("fe80::1"))
    assert take_apart(reach(SOME, HOP6 + link_local), ipv6=True).next_hop == HOP6


@pytest.mark.parametrize(
    "raw",
    [
        reach(SOME, flags=0xC0),  # wrong flags
        reach(SOME, hop=HOP6[:4]),  # wrong next hop length
        reach(b""),  # no NLRI
        b"\x80\x0e\x05\x00\x01\x01\x00\x00",  # another family
        b"\x80\x0e\xff" + reach(SOME)[3:],  # longer than the UPDATE
    ],
)
def test_what_is_not_well_formed_is_left_for_the_decoder_that_knows_the_error(raw: bytes) -> None:
    pieces = take_apart(raw, ipv6=True)
    assert pieces.attributes == raw
    assert pieces.reach is None


def test_a_second_mp_reach_is_left_for_the_decoder_to_refuse() -> None:
    pieces = take_apart(reach(SOME) + reach(SOME), ipv6=True)
    assert pieces.attributes == reach(SOME)


def test_a_family_that_was_not_negotiated_is_not_touched() -> None:
    assert take_apart(reach(SOME), ipv6=False).attributes == reach(SOME)


@pytest.mark.parametrize("nlri", [b"\x81" + bytes(17), SOME[:-1]])
def test_nlri_that_cannot_be_read_are_refused(nlri: bytes) -> None:
    with pytest.raises(ValueError, match="prefix"):
        take_apart(reach(nlri), ipv6=True)


@pytest.mark.parametrize(
    ("hop", "fine"),
    [
        ("192.0.2.7", True),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("192.0.2.1", False),
        ("2001:db8::7", True),
        ("::", False),
        ("ff02::1", False),
    ],
)
def test_next_hops(hop: str, fine: bool) -> None:
    fault = next_hop_fault(Address.parse(hop), Address.parse("192.0.2.1"))
    assert (fault is None) is fine


def test_mandatory_attributes_depend_on_the_family_and_the_session() -> None:
    assert missing({1, 2, 3}, 4, is_ebgp=True) is None
    assert missing({1, 2, 3}, 4, is_ebgp=False) == "LOCAL_PREF is missing"
    assert missing({1, 2}, 6, is_ebgp=True) is None
    assert missing({1, 2}, 4, is_ebgp=True) == "NEXT_HOP is missing"


def test_only_the_adapter_imports_exabgp() -> None:
    offenders = []
    for package in ("agent", "bird_config", "felix_like"):
        for path in (ROOT / package).rglob("*.py"):
            names: list[str] = []
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.append(node.module or "")
            if any(name.partition(".")[0] == "exabgp" for name in names):
                offenders.append(path.relative_to(ROOT))
    inside = Path("agent/speaker/adapter")
    # The renderer's check runs ExaBGP's validator in a process of its own.
    allowed = {Path("bird_config/validator_worker.py")}
    assert [str(p) for p in offenders if inside not in p.parents and p not in allowed] == []
