"""The way back: the stock `exabgp server` runs on the very file that the renderer publishes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bird_config.compose import compose
from bird_config.publish import Published, Publisher
from bird_config.render import render
from bird_config.validator import StockValidator
from felix_like.model.address import Asn
from felix_like.model.bgp import Peer, PeerType
from tests.support.bird import Bird, bgp
from tests.support.neighbors import desired, peer
from tests.support.netns import Fabric, Namespace

pytestmark = pytest.mark.interop

V4 = "it's;{a}#key"
"""BIRD's syntax has no way to write a double quote in a password; ExaBGP's has none for either quote."""
V6 = "two words\\and a backslash"


def peers() -> list[Peer]:
    """An iBGP peer with a password, and an eBGP one over IPv6 with a password and GTSM."""
    return [
        peer("192.0.2.2", "192.0.2.1", router_id="192.0.2.1", password=V4, hold_time=9),
        peer(
            "2001:db8::2",
            "2001:db8::1",
            router_id="192.0.2.1",
            type=PeerType.NODE,
            asn=Asn(64600),
            password=V6,
            ttl_security=1,
            hold_time=9,
            passive=True,
        ),
    ]


def start_stock(where: Namespace, conf: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("exabgp")}
    environment |= {
        "exabgp_daemon_user": "root",
        "exabgp_api_cli": "false",
        "exabgp_log_destination": "stdout",
    }
    with (conf.parent / "exabgp.log").open("wb") as log:
        return where.start(
            sys.executable, "-m", "exabgp", "server", str(conf), stdout=log, stderr=log, env=environment
        )


async def test_the_stock_daemon_peers_with_bird_by_the_published_file(tmp_path: Path) -> None:
    conf = tmp_path / "exabgp.conf"
    published = await Publisher(conf, StockValidator()).publish(render(compose(desired(*peers()))))
    assert published == Published(changed=True)
    with Fabric() as fabric:
        ours, theirs = fabric.node(1), fabric.node(2)
        gtsm = "  ttl security yes;"
        bird = Bird(
            theirs,
            tmp_path / "bird",
            "192.0.2.2",
            bgp("v4", "192.0.2.2", "192.0.2.1", password=V4, hold=9),
            bgp(
                "v6",
                "2001:db8::2",
                "2001:db8::1",
                local_as=64600,
                peer_as=64512,
                password=V6,
                hold=9,
                extra=gtsm,
            ),
        )
        daemon = start_stock(ours, conf)
        try:
            bird.wait_established("v4", "v6", seconds=40)
        except AssertionError as error:
            log = (tmp_path / "exabgp.log").read_text()
            raise AssertionError(f"{error}\n{bird.log[-2000:]}\n{log[-3000:]}") from None
        details = bird.ask("show", "protocols", "all", "v6")
        assert "Neighbor AS:      64512" in details
        assert daemon.poll() is None


async def test_the_stock_daemon_starts_without_any_peer(tmp_path: Path) -> None:
    """A lone node's file: the daemon runs on and waits for a reload."""
    conf = tmp_path / "exabgp.conf"
    assert await Publisher(conf, StockValidator()).publish(render(compose(desired()))) == Published(
        changed=True
    )
    with Fabric() as fabric:
        daemon = start_stock(fabric.node(1), conf)
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.wait(3)
