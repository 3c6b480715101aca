"""tortie-speaker against GoBGP and FRR: the same wire in other hands."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.speaker.protocol import PeerDown, PeerUp
from tests.support.netns import Fabric, Namespace
from tests.support.speaker import Listener, SpeakerProcess, adverts, neighbor, via

pytestmark = pytest.mark.interop
US4, US6 = "192.0.2.1", "2001:db8::1"


@pytest.fixture
def net() -> Iterator[Fabric]:
    with Fabric() as made:
        yield made


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "state not reached"
        await asyncio.sleep(0.1)


def gobgp_conf(folder: Path) -> Path:
    """AS 65001 with graceful restart, and us as its neighbor in both families."""
    conf = folder / "gobgpd.toml"
    blocks = "".join(
        f"""
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{address}"
    peer-as = 64512
    auth-password = "secret"
  [neighbors.transport.config]
    local-address = "{own}"
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "{family}-unicast"
    [neighbors.afi-safis.mp-graceful-restart.config]
      enabled = true
  [neighbors.graceful-restart.config]
    enabled = true
    restart-time = 60
"""
        for address, own, family in ((US4, "192.0.2.2", "ipv4"), (US6, "2001:db8::2", "ipv6"))
    )
    conf.write_text(f'[global.config]\n  as = 65001\n  router-id = "192.0.2.2"\n{blocks}')
    return conf


async def test_gobgp_both_families_ebgp_with_a_password(net: Fabric, tmp_path: Path) -> None:
    us, them = net.node(1), net.node(2)
    conf = gobgp_conf(tmp_path)
    them.start("gobgpd", "-f", str(conf), "--api-hosts", "127.0.0.1:50051", stdout=subprocess.DEVNULL)

    def gobgp(*words: str) -> str:
        return them.run("gobgp", *words)

    def rib(family: str) -> dict[str, object]:
        try:
            return dict(json.loads(gobgp("-j", "global", "rib", "-a", family)))
        except (AssertionError, ValueError):
            return {}

    speaker = SpeakerProcess(
        us,
        tmp_path,
        neighbor(US4, "192.0.2.2", peer_as=65001, password="secret"),
        neighbor(US6, "2001:db8::2", peer_as=65001, password="secret"),
    )
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.up("192.0.2.2", "2001:db8::2"), 40)
        gobgp("global", "rib", "add", "198.51.100.0/26", "-a", "ipv4")
        gobgp("global", "rib", "add", "2001:db8:1::/64", "-a", "ipv6")
        await ear.until(lambda: ear.learned("192.0.2.2") == {"198.51.100.0/26"})
        await ear.until(lambda: ear.learned("2001:db8::2") == {"2001:db8:1::/64"})
        ours = (("sequence", (64512,)),)
        ear.link.advertise(
            adverts("192.0.2.2", {"203.0.113.0/26": via(US4, as_path=ours, local_pref=None)})
            | adverts("2001:db8::2", {"2001:db8:9::/64": via(US6, as_path=ours, local_pref=None)})
        )
        ear.link.full_sync_done()
        await until(lambda: "203.0.113.0/26" in rib("ipv4") and "2001:db8:9::/64" in rib("ipv6"))
        assert '"as_paths":[{"segment_type":2,"num":1,"asns":[64512]}]' in gobgp(
            "-j", "global", "rib", "-a", "ipv4"
        ).replace(" ", "")
        await kept_over_new_terms(
            speaker,
            ear,
            (
                neighbor(US4, "192.0.2.2", peer_as=65001, password="secret", hold=30),
                neighbor(US6, "2001:db8::2", peer_as=65001, password="secret", hold=30),
            ),
            lambda: "203.0.113.0/26" in rib("ipv4") and "2001:db8:9::/64" in rib("ipv6"),
        )
        ear.link.advertise(adverts("192.0.2.2", {"203.0.113.0/26": None}))
        await until(lambda: "203.0.113.0/26" not in rib("ipv4"))


async def kept_over_new_terms(
    speaker: SpeakerProcess, ear: Listener, blocks: tuple[str, str], has: Callable[[], bool]
) -> None:
    """Other timers: both sessions are built anew, and the peer has our routes all the while (RFC 4724)."""
    begun = len(ear.events)
    speaker.configure(*blocks)
    applied = await ear.link.reload(speaker.config)
    assert len(applied.changed) == 2
    looks = 0
    while sum(isinstance(event, PeerUp) for event in ear.events[begun:]) < 2:
        assert await asyncio.to_thread(has)
        looks += 1
        assert looks < 1000
    assert looks
    await asyncio.sleep(1)
    assert await asyncio.to_thread(has)
    downs = [event for event in ear.events[begun:] if isinstance(event, PeerDown)]
    assert [(down.graceful, down.ours) for down in downs] == [(True, True)] * 2


FRR = Path("/usr/lib/frr/bgpd")


def start_frr(where: Namespace, folder: Path) -> Callable[[str], str]:
    """bgpd alone (no zebra: nothing reaches a kernel); returns vtysh."""
    conf = folder / "bgpd.conf"
    conf.write_text(
        f"""hostname frr
router bgp 64512
 bgp router-id 192.0.2.2
 no bgp network import-check
 bgp graceful-restart
 neighbor {US4} remote-as 64512
 neighbor {US4} password secret
 neighbor {US4} timers connect 2
 neighbor {US6} remote-as 64512
 neighbor {US6} timers connect 2
 address-family ipv4 unicast
  network 198.51.100.0/26
  no neighbor {US6} activate
 exit-address-family
 address-family ipv6 unicast
  network 2001:db8:1::/64
  neighbor {US6} activate
 exit-address-family
"""
    )
    folder.chmod(0o755)
    shutil.chown(folder, "frr", "frr")
    shutil.chown(conf, "frr", "frr")
    where.start(
        str(FRR),
        "-f",
        str(conf),
        "-i",
        str(folder / "bgpd.pid"),
        "-z",
        str(folder / "no-zebra"),
        "--vty_socket",
        str(folder),
        "-A",
        "127.0.0.1",
        "-n",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def vtysh(command: str) -> str:
        done = subprocess.run(
            ["vtysh", "--vty_socket", str(folder), "-d", "bgpd", "-c", command],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    return vtysh


@pytest.fixture
def frr_folder() -> Iterator[Path]:
    """bgpd gives up root first: it cannot get into pytest's own folders."""
    with tempfile.TemporaryDirectory(prefix="tt-frr-") as name:
        yield Path(name)


@pytest.mark.skipif(not FRR.exists(), reason="FRR is not installed: 'make test' installs it on Debian")
async def test_frr_both_families_ibgp(frr_folder: Path, net: Fabric, tmp_path: Path) -> None:
    us, them = net.node(1), net.node(2)
    vtysh = start_frr(them, frr_folder)
    speaker = SpeakerProcess(
        us, tmp_path, neighbor(US4, "192.0.2.2", password="secret"), neighbor(US6, "2001:db8::2")
    )
    async with Listener(speaker.socket) as ear:
        await ear.until(lambda: ear.up("192.0.2.2", "2001:db8::2"), 40)
        await ear.until(lambda: ear.learned("192.0.2.2") == {"198.51.100.0/26"})
        await ear.until(lambda: ear.learned("2001:db8::2") == {"2001:db8:1::/64"})
        ear.link.advertise(
            adverts("192.0.2.2", {"203.0.113.0/26": via(US4)})
            | adverts("2001:db8::2", {"2001:db8:9::/64": via(US6)})
        )
        await until(lambda: "203.0.113.0/26" in vtysh("show bgp ipv4 unicast json"))
        await until(lambda: "2001:db8:9::/64" in vtysh("show bgp ipv6 unicast json"))
        await kept_over_new_terms(
            speaker,
            ear,
            (
                neighbor(US4, "192.0.2.2", password="secret", hold=30),
                neighbor(US6, "2001:db8::2", hold=30),
            ),
            lambda: (
                "203.0.113.0/26" in vtysh("show bgp ipv4 unicast json")
                and "2001:db8:9::/64" in vtysh("show bgp ipv6 unicast json")
            ),
        )
        ear.link.advertise(adverts("2001:db8::2", {"2001:db8:9::/64": None}))
        await until(lambda: "2001:db8:9::/64" not in vtysh("show bgp ipv6 unicast json"))
