"""exabgp.conf: golden files that ExaBGP's own validator accepts, and what its parser reads from them.

The golden files are rewritten with TORTIE_REWRITE_GOLDEN=1; look at the diff before you commit it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from exabgp.configuration.configuration import Configuration
from exabgp.environment import getenv
from exabgp.logger import log as exabgp_log
from exabgp.util.psk import decode_base64
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from bird_config.compose import compose, compose_neighbor
from bird_config.document import NeighborConfig, SpeakerConfig
from bird_config.render import FILTERS, Unrenderable, _environment, render
from felix_like.model.address import Address, Asn
from felix_like.model.bgp import Peer, PeerType
from felix_like.model.verdict import No, Refusal
from tests.support.neighbors import desired, peer

GOLDEN = Path(__file__).parent.parent / "golden"

TOR = peer(
    "192.0.2.1",
    type=PeerType.GLOBAL,
    resource="tor-r1",
    asn=Asn(64600),
    port=1790,
    password='it\'s a "secret"; {really} \\ # yes',
    ttl_security=1,
    restart_time=60,
)
STORIES = {
    "alone": desired(),
    "mesh": desired(peer("10.0.0.2"), peer("10.0.0.3", passive=True), peer("10.0.0.10")),
    "mesh-ipv6": desired(peer("10.0.0.2"), peer("fd00::2", passive=True)),
    "route-reflector": desired(
        peer("10.0.0.2", type=PeerType.NODE, route_reflector_client=True, cluster_id="1.0.0.1"),
        peer("10.0.0.9", type=PeerType.NODE, cluster_id="1.0.0.1", restart_time=0, hold_time=0),
    ),
    "tor-with-password": desired(
        peer("10.0.0.2"), TOR, peer("fd00:5::1", type=PeerType.NODE, asn=Asn(4200000001), listen_port=1179)
    ),
}


def parsed(text: str) -> dict[str, object]:
    """What ExaBGP's parser makes of a file: neighbor by peer address. Fails where it refuses the file."""
    exabgp_log.init(getenv())  # as every one of its commands does first
    configuration = Configuration([text], text=True)
    assert configuration.reload() is True, str(configuration.error)
    return {str(neighbor["peer-address"]): neighbor for neighbor in configuration.neighbors.values()}


@pytest.mark.parametrize("story", STORIES)
def test_golden(story: str) -> None:
    text = render(compose(STORIES[story]))
    golden = GOLDEN / f"{story}.exabgp.conf"
    if os.environ.get("TORTIE_REWRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_exabgps_own_validator_accepts_every_golden_file() -> None:
    files = sorted(GOLDEN.glob("*.exabgp.conf"))
    assert len(files) == len(STORIES)
    command = [sys.executable, "-m", "exabgp", "validate", "-n", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_parser_reads_what_was_composed() -> None:
    read = parsed(render(compose(STORIES["tor-with-password"])))
    tor = read["192.0.2.1"]
    assert (int(tor["local-as"]), int(tor["peer-as"]), int(tor["hold-time"])) == (64512, 64600, 90)
    assert (str(tor["local-address"]), str(tor["router-id"])) == ("10.0.0.1", "10.0.0.1")
    assert (tor["connect"], tor["listen"], tor["passive"], tor["manual-eor"]) == (1790, 179, False, True)
    assert (tor["outgoing-ttl"], tor["incoming-ttl"]) == (255, 255)
    assert tor["capability"]["graceful-restart"] == 60
    assert tor["capability"]["asn4"] is True
    assert tor["description"] == "Global_192_0_2_1"
    assert [f"{afi} {safi}" for afi, safi in tor.families()] == ["ipv4 unicast"]
    far = read["fd00:5::1"]
    assert (far["listen"], int(far["peer-as"])) == (1179, 4200000001)
    assert [f"{afi} {safi}" for afi, safi in far.families()] == ["ipv6 unicast"]
    assert far["incoming-ttl"] is None
    assert far["outgoing-ttl"] is None, "eBGP without ttlSecurity is multihop: the kernel's TTL, not 1"


def test_no_graceful_restart_is_no_graceful_restart() -> None:
    """A literal `graceful-restart 0` would mean the hold time to ExaBGP."""
    read = parsed(render(compose(desired(peer("10.0.0.2", restart_time=0)))))
    assert read["10.0.0.2"]["capability"]["graceful-restart"] is False


PASSWORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=80).filter(
    lambda text: len(text.encode()) <= 80
)


@given(PASSWORDS)
@example("'")
@example('"')
@example('it\'s "quoted"')
@example("\\")
@example("\\n\\u0022")
@example("a;b{c}d#e[f]g,h (i) `$j`")
@example("two\nlines\n")
@example(" leading and trailing ")
@example("\x00\x7f")
@example("pässwörd")
@example("x" * 80)
@settings(max_examples=150, deadline=None)
def test_exabgp_reads_exactly_the_password(password: str) -> None:
    read = parsed(render(compose(desired(peer("10.0.0.2", password=password)))))["10.0.0.2"]
    assert read["md5-base64"] is True
    assert decode_base64(read["md5-password"]) == password.encode()


HOSTILE = st.text(max_size=300)


@given(name=HOSTILE, node=HOSTILE)
@example(name='";} neighbor 6.6.6.6 { peer-as 1;', node="x\nneighbor 6.6.6.6 {")
@example(name="\\", node="\\")
@example(name="'", node='"')
@settings(max_examples=150, deadline=None)
def test_names_cannot_leave_their_place(name: str, node: str) -> None:
    text = render(compose(desired(peer("10.0.0.2", name=name), node=node)))
    read = parsed(text)
    assert list(read) == ["10.0.0.2"]
    assert text.count("\n") == render(compose(desired(peer("10.0.0.2")))).count("\n")
    assert set(read["10.0.0.2"]["description"]) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-"
    )


def blocks(text: str) -> dict[str, str]:
    head, *rest = text.split("\nneighbor ")
    return {"": head} | {block.split()[0]: block for block in rest}


def test_a_node_that_joins_changes_only_its_own_block() -> None:
    peers = [peer(f"10.0.0.{n}") for n in range(2, 30)]
    before = blocks(render(compose(desired(*peers))))
    after = blocks(render(compose(desired(*peers, peer("10.0.0.200")))))
    assert set(after) - set(before) == {"10.0.0.200"}
    assert {name: after[name] for name in before} == before


def test_the_order_of_the_telling_does_not_show() -> None:
    peers = [peer(f"10.0.0.{n}") for n in range(2, 30)] + [peer("fd00::9")]
    text = render(compose(desired(*peers)))
    for seed in range(5):
        random.Random(seed).shuffle(peers)
        assert render(compose(desired(*peers))) == text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"password": ""}, "empty"),
        ({"password": "x" * 81}, "81 octets"),
        ({"password": "ä" * 41}, "82 octets"),
        ({"password": "\udcff"}, "not valid text"),
        ({"asn": Asn(0)}, "AS 0"),
        ({"asn": Asn(1 << 32)}, "AS 4294967296"),
        ({"hold_time": 2}, "hold time 2 s"),
        ({"hold_time": 65536}, "hold time 65536 s"),
        ({"port": 0}, "0 is not a TCP port"),
        ({"listen_port": 65536}, "65536 is not a TCP port"),
        ({"router_id": "0.0.0.0"}, "0.0.0.0"),
        ({"router_id": "fd00::1"}, "fd00::1"),
        ({"router_id": "1.2.3.4; }"}, "1.2.3.4; }"),
        ({"ttl_security": 0}, "ttlSecurity 0"),
        ({"ttl_security": 256}, "ttlSecurity 256"),
        ({"restart_time": 4096}, "4096 s"),
        ({"families": ()}, "family"),
        ({"local_address": Address.parse("fd00::1")}, "different families"),
    ],
)
def test_a_peer_the_speaker_could_not_be_told_about_is_refused_alone(
    fields: dict[str, object], reason: str
) -> None:
    bad = replace(peer("10.0.0.3", resource="tor-1"), **fields)
    config = compose(desired(peer("10.0.0.2"), bad))
    assert [n.name for n in config.neighbors] == ["Mesh_10_0_0_2"]
    [refusal] = config.refusals
    assert refusal.subject == "BGPPeer tor-1"
    assert reason in refusal.reason
    parsed(render(config))


@given(
    asn=st.integers(-1, 1 << 33),
    hold_time=st.integers(-1, 70000),
    port=st.integers(-1, 70000),
    ttl=st.none() | st.integers(-1, 300),
    restart=st.integers(-1, 5000),
    router_id=st.ip_addresses(v=4).map(str),
)
@settings(max_examples=150, deadline=None)
def test_what_is_not_refused_the_parser_accepts(
    asn: int, hold_time: int, port: int, ttl: int | None, restart: int, router_id: str
) -> None:
    told: Peer = peer(
        "10.0.0.3",
        asn=Asn(asn),
        hold_time=hold_time,
        port=port,
        ttl_security=ttl,
        restart_time=restart,
        router_id=router_id,
    )
    composed = compose_neighbor(told)
    if isinstance(composed, No):
        assert composed.reason
        return
    [read] = parsed(render(SpeakerConfig(node="n", neighbors=(composed,)))).values()
    assert (int(read["peer-as"]), int(read["hold-time"]), read["connect"]) == (asn, hold_time, port)
    assert read["incoming-ttl"] == (None if ttl is None else 256 - ttl)


def test_the_password_does_not_show_in_a_traceback() -> None:
    composed = compose_neighbor(peer("10.0.0.2", password="hunter2"))
    assert isinstance(composed, NeighborConfig)
    assert "hunter2" not in repr(composed)


def test_a_refusal_names_the_mesh_peer() -> None:
    config = compose(desired(peer("10.0.0.3", restart_time=4096)))
    assert [type(r) for r in config.refusals] == [Refusal]
    assert config.refusals[0].subject == "peer Mesh_10_0_0_3"


@pytest.mark.parametrize(
    "template",
    [
        "{{ config.node }}",  # no filter
        "{{ 'text' }}",
        "{{ config.missing | label }}",
        "{{ config.node.__class__.__mro__ | label }}",
        "{% for i in range(3) %}{% endfor %}",  # no globals
        "{{ config.node | upper | label }}",  # not on the list
    ],
)
def test_a_template_cannot_print_a_raw_value(template: str) -> None:
    with pytest.raises((TemplateError, Unrenderable)):
        _environment().from_string(template).render(config=SpeakerConfig(node="n"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("address", "10.0.0.1"),
        ("dotted_quad", "10.0.0"),
        ("dotted_quad", "::1"),
        ("number", True),
        ("number", -1),
        ("number", "1"),
        ("switch", 1),
        ("secret", b""),
        ("secret", "text"),
    ],
)
def test_a_filter_refuses_what_it_is_not_for(name: str, value: object) -> None:
    with pytest.raises(Unrenderable):
        FILTERS[name](value)
