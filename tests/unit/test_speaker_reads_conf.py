"""What the renderer writes, the speaker reads: both ends of exabgp.conf together."""

from __future__ import annotations

import base64

import pytest
from exabgp.environment import getenv
from exabgp.logger import log as exabgp_log

from agent.speaker.adapter.configuration import parse
from agent.speaker.conf import Reader, blocks
from agent.speaker.session import refusal
from agent.speaker.settings import Neighbor
from bird_config.compose import compose
from bird_config.render import render
from felix_like.model.address import Asn
from felix_like.model.bgp import PeerType
from tests.support.neighbors import desired, peer

PEERS = (
    peer("10.0.0.2", passive=True, listen_port=1790, restart_time=0),
    peer("fd00::2", asn=Asn(64600), port=1179, ttl_security=2, password='it\'s "so"; {ü}\n', hold_time=0),
)


@pytest.fixture(autouse=True)
def exabgps_log() -> None:
    """Its parser wants a log that has been set up."""
    exabgp_log.init(getenv())


class CountingParser:
    """ExaBGP's parser, counting the blocks it is given."""

    def __init__(self) -> None:
        self.parsed = 0

    def __call__(self, text: str) -> list[Neighbor]:
        self.parsed += 1
        return parse(text)


def test_every_value_arrives() -> None:
    text = render(compose(desired(*PEERS)))
    read = {neighbor.address: neighbor for neighbor in Reader(parse).read(text)}
    assert set(read) == {told.address for told in PEERS}
    for told in PEERS:
        got = read[told.address]
        assert (got.local_address, got.local_asn, got.asn) == (told.local_address, told.local_asn, told.asn)
        assert (got.router_id, got.hold_time, got.passive) == (told.router_id, told.hold_time, told.passive)
        assert (got.connect_port, got.listen_port) == (told.port, told.listen_port)
        assert (got.families, got.restart_time) == (told.families, told.restart_time)
        assert got.description == told.name
        assert (None if got.password is None else base64.b64decode(got.password).decode()) == told.password
    assert read[PEERS[1].address].incoming_ttl == 254
    assert read[PEERS[1].address].outgoing_ttl == 255
    assert read[PEERS[0].address].incoming_ttl is None


def test_a_node_that_joins_costs_one_block() -> None:
    many = [peer(f"10.0.1.{n}") for n in range(1, 40)]
    counting = CountingParser()
    reader = Reader(counting)
    before = reader.read(render(compose(desired(*many))))
    assert counting.parsed == 39
    after = reader.read(render(compose(desired(*many, peer("10.0.1.200")))))
    assert counting.parsed == 40
    assert {id(one) for one in before} <= {id(one) for one in after}, "the others are the very same"


def test_one_short_hold_time_does_not_cost_a_large_mesh_its_file() -> None:
    """The speaker refuses a file with one: no node could join or leave any more."""
    tor = peer("10.9.9.9", type=PeerType.GLOBAL, resource="tor", hold_time=6)
    few = compose(desired(tor, *(peer(f"10.0.0.{n}") for n in range(2, 25))))
    assert ({n.hold_time for n in few.neighbors}, few.refusals) == ({6, 90}, ())
    assert refusal(parse(render(few))) is None
    many = compose(desired(tor, *(peer(f"10.0.0.{n}") for n in range(2, 26))))
    assert {n.hold_time for n in many.neighbors} == {9, 90}
    assert [r.subject for r in many.refusals] == ["BGPPeer tor"]
    assert "9 s is used" in many.refusals[0].reason
    assert refusal(parse(render(many))) is None
    assert "too short" in (refusal(parse(render(many).replace("hold-time 9;", "hold-time 8;"))) or "")


def test_a_lone_node_has_no_blocks() -> None:
    text = render(compose(desired()))
    assert blocks(text) == []
    assert Reader(parse).read(text) == []
