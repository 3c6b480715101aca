"""`tortiectl node checksystem`: hosts as they may be, and the line each of them gets."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.check import etcd, far, kernel, node, programs, routes
from agent.check.asked import Agent, ask_agent
from agent.check.examine import examine
from agent.check.finding import Finding, Level, fail, failed, ok, total, unseen, warn
from agent.check.netlink import Link, Network, SeenRoute
from agent.check.proc import Proc, Running
from agent.cli.main import tortiectl
from agent.settings import load
from felix_like.datastore.kube.access import find_access
from felix_like.model.address import Address, Prefix
from felix_like.model.ippool import IPPool
from tests.support.agentsocket import STATUS, AgentSocket
from tests.support.kube_api import kube_api

OWN = Address.parse("192.0.2.10")
ETH0 = Link("eth0", 2, 1500, True, ((OWN, 24),))
CALI = Link("cali1", 3, 1450, True)
DEFAULT = SeenRoute(Prefix.parse("0.0.0.0/0"), "unicast", 3, 0, "192.0.2.1", "eth0")
POOL = IPPool(name="blue", cidr=Prefix.parse("10.65.0.0/16"), block_size=26)
PLACE = kernel.Place(OWN, None, False, 3)
HEALTHY = {
    "sys/kernel/osrelease": "6.1.0-18-amd64",
    "sys/net/ipv4/ip_forward": "1",
    "sys/net/ipv6/conf/all/forwarding": "0",
    "sys/net/ipv4/fib_multipath_hash_policy": "0",
    "sys/net/ipv4/conf/all/rp_filter": "0",
    "sys/net/ipv4/conf/eth0/rp_filter": "2",
    "sys/net/ipv4/conf/cali1/proxy_arp": "1",
    "sys/net/ipv4/neigh/default/gc_thresh3": "1024",
    "sys/net/netfilter/nf_conntrack_count": "10",
    "sys/net/netfilter/nf_conntrack_max": "1000",
    "net/stat/arp_cache": "entries table_fulls\n0000000a 00000000\n0000000a 00000000",
}


def network(links: tuple[Link, ...] = (ETH0, CALI), *more: SeenRoute, gateway: str = "eth0") -> Network:
    return Network(links, (DEFAULT, *more), False, gateway)


def proc(root: Path, changed: Mapping[str, str | None]) -> Proc:
    for name, text in {**HEALTHY, **changed}.items():
        if text is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
    return Proc(root)


def wrong(found: Any) -> list[str]:
    return [one.line() for one in found if one.level in (Level.WARN, Level.FAIL)]


def kernel_lines(root: Path, seen: Network, place: kernel.Place = PLACE, **changed: str | None) -> list[str]:
    renamed = {name.replace("__", "/"): text for name, text in changed.items()}
    return wrong(kernel.check(proc(root, renamed), seen, place, lambda: ""))


def test_a_healthy_host_has_nothing_wrong(tmp_path: Path) -> None:
    assert kernel_lines(tmp_path, network()) == []


KERNELS: list[tuple[dict[str, str | None], Network, kernel.Place, str]] = [
    ({"sys/kernel/osrelease": "4.19.0-26"}, network(), PLACE, "FAIL  kernel: Linux 4.19.0-26"),
    ({"sys/kernel/osrelease": "5.1.0"}, network(), PLACE, "WARN  kernel: Linux 5.1.0"),
    ({"sys/net/ipv4/ip_forward": "0"}, network(), PLACE, "FAIL  IPv4 forwarding: off"),
    ({"sys/net/ipv4/fib_multipath_hash_policy": None}, network(), PLACE, "WARN  multipath"),
    ({}, network(), kernel.Place(OWN, None, True, 3), "FAIL  IPv6 forwarding: off"),
    ({}, network(), kernel.Place(OWN, None, None, 3), "WARN  IPv6 forwarding: off"),
    ({"sys/net/ipv4/conf/eth0/rp_filter": "1"}, network(), PLACE, "WARN  rp_filter: eth0 is strict (1)"),
    # The kernel takes the larger of the two numbers: loose.
    ({"sys/net/ipv4/conf/all/rp_filter": "1"}, network((Link("eth0", 2, 1500, True),)), PLACE, ""),
    ({}, network(gateway=""), PLACE, "FAIL  pods' gateway: no unicast route towards 169.254.1.1"),
    ({}, network((ETH0,), gateway=""), PLACE, "WARN  pods' gateway"),
    ({}, network(gateway="cali1"), PLACE, "FAIL  pods' gateway"),
    ({}, network((ETH0, Link("cali1", 3, 9000, True))), PLACE, "WARN  MTU: 1 of 1 pod interfaces"),
    ({}, network((Link("eth0", 2, 1500, False, ((OWN, 24),)),)), PLACE, "FAIL  uplink: eth0 is down"),
    ({"sys/net/netfilter/nf_conntrack_count": "900"}, network(), PLACE, "WARN  conntrack: 900 of 1000"),
    ({}, network(), kernel.Place(OWN, None, False, 900), "WARN  IPv4 neighbours: 10 entries, 1024 at most"),
    (
        {"net/stat/arp_cache": "entries table_fulls\n0000000a 00000002\n0000000a 00000001"},
        network(),
        PLACE,
        "overflowed 3 times",
    ),
]


@pytest.mark.parametrize(("changed", "seen", "place", "expected"), KERNELS)
def test_one_thing_wrong_with_the_kernel_is_one_line(
    tmp_path: Path, changed: dict[str, str | None], seen: Network, place: kernel.Place, expected: str
) -> None:
    lines = wrong(kernel.check(proc(tmp_path, changed), seen, place, lambda: ""))
    assert len(lines) <= 1, lines
    assert expected in "".join(lines)


def test_without_tcp_md5_passwords_cannot_work(tmp_path: Path) -> None:
    found = kernel.check(proc(tmp_path, {}), network(), PLACE, lambda: "no such option")
    assert wrong(found) == [
        "FAIL  TCP MD5: no such option; BGP passwords need a kernel built with CONFIG_TCP_MD5SIG"
    ]


def test_the_real_kernel_takes_a_key_and_keeps_nothing() -> None:
    assert kernel.tcp_md5() in ("", "the kernel does not take a TCP MD5 key (Protocol not available)")


# -- programs ------------------------------------------------------------------------------------------


def running(pid: int, program: str, *, capabilities: int = (1 << 12) | (1 << 10), **other: Any) -> Running:
    facts: dict[str, Any] = {
        "pid": pid, "name": program, "arguments": (f"/usr/bin/{program}",), "uid": 0, "resident": 1,
        "threads": 1, "state": "S", "open_files": 4096, "here": True, "capabilities": capabilities,
    } | other  # fmt: skip
    return Running(**facts)


class Machine(Proc):
    """A machine with these processes, of which the first that is named holds port 179."""

    def __init__(self, processes: list[Running], holder: int | None = None) -> None:
        super().__init__(Path("/nonexistent"))
        object.__setattr__(self, "_seen", processes)
        object.__setattr__(self, "_holder", holder)

    __slots__ = ("_holder", "_seen")
    _seen: list[Running]
    _holder: int | None

    def processes(self) -> list[Running]:
        return self._seen

    def listeners(self, port: int) -> dict[int, str]:
        return {77: "0A000001"} if self._holder is not None and port == 179 else {}

    def owners(self, inodes: set[int], among: list[Running]) -> dict[int, Running]:
        holding = [process for process in among if process.pid == self._holder and process.here]
        return dict.fromkeys(inodes, holding[0]) if holding else {}


BOTH = [running(1, "tortie-agent"), running(2, "tortie-speaker")]


def test_our_two_programs_with_their_rights() -> None:
    found = list(programs.check(Machine(BOTH, holder=2), None))
    assert wrong(found) == []
    assert "OK    port 179: held by tortie-speaker (process 2)" in [one.line() for one in found]


def test_another_daemon_on_port_179_is_named() -> None:
    lines = wrong(programs.check(Machine([*BOTH, running(9, "bird")], holder=9), None))
    assert lines[0].startswith("FAIL  port 179: held by bird (process 9): tortie-speaker cannot have it")
    assert "CALICO_NETWORKING_BACKEND=none" in lines[0]
    assert lines[1].startswith("WARN  other speakers: bird runs (process 9)")


def test_a_daemon_in_another_network_namespace_is_nobodys_business() -> None:
    assert wrong(programs.check(Machine([*BOTH, running(9, "bird", here=False)], holder=2), None)) == []


def test_a_program_without_its_right_cannot_work() -> None:
    bare = [running(1, "tortie-agent", capabilities=0), running(2, "tortie-speaker", open_files=256)]
    lines = wrong(programs.check(Machine(bare), None))
    assert lines[0].startswith("FAIL  tortie-agent: runs (process 1, user root) without CAP_NET_ADMIN")
    assert lines[1].startswith("WARN  tortie-speaker's open files: at most 256; raise it to 1024")


def test_of_many_that_only_root_may_tell_apart_the_agent_names_its_own() -> None:
    hidden = [running(n, name, here=None) for n, name in enumerate(["tortie-agent", "tortie-speaker"] * 3)]
    told = {"tortie-agent": 2, "tortie-speaker": 3}
    lines = [one.line() for one in programs.check(Machine(hidden, holder=3), told)]
    assert any(line.startswith("OK    tortie-agent: runs (process 2,") for line in lines)
    assert any("its process is not visible from here" in line for line in lines)
    untold = [one.line() for one in programs.check(Machine(hidden), None)]
    assert "----  tortie-agent: not seen: 3 run; only root may see which of them is this node's" in untold


def test_a_speaker_in_another_container_is_not_missed() -> None:
    lines = [
        one.line()
        for one in programs.check(Machine(BOTH[:1], holder=2), {"tortie-agent": 1, "tortie-speaker": 0})
    ]
    assert not [line for line in lines if line.startswith(("WARN", "FAIL"))], lines


def test_a_directory_that_everyone_may_write_is_refused(tmp_path: Path) -> None:
    run, state = tmp_path / "run", tmp_path / "state"
    run.mkdir()
    run.chmod(0o777)
    state.mkdir(mode=0o700)
    lines = wrong(programs.directories(run, state, tmp_path / "secrets", []))
    assert len(lines) == 1
    assert lines[0].startswith(f"FAIL  run directory: {run} may be written by everyone")


def test_an_agent_that_cannot_write_its_directory(tmp_path: Path) -> None:
    stranger = running(1, "tortie-agent", uid=65532)
    lines = wrong(programs.directories(tmp_path, tmp_path, tmp_path / "secrets", [stranger]))
    assert len(lines) == 1
    assert f"the agent's user 65532 cannot write there; chown 65532 {tmp_path}" in lines[0]


def test_without_the_agents_user_nobody_knows_whether_it_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    (found,) = programs.directories(tmp_path, tmp_path, tmp_path / "secrets", [])
    assert found.level is Level.UNSEEN
    assert "its user is not known" in found.found


def test_passwords_that_everyone_may_read(tmp_path: Path) -> None:
    secret = tmp_path / "secrets" / "tor"
    secret.mkdir(parents=True)
    (secret / "key").write_text("x")
    (secret / "key").chmod(0o644)
    lines = wrong(programs.directories(tmp_path, tmp_path, tmp_path / "secrets", []))
    assert lines == [
        f"WARN  passwords: every user may read files in {tmp_path}/secrets; chmod -R o-rwx {tmp_path}/secrets"
    ]


# -- routes --------------------------------------------------------------------------------------------


def route(
    prefix: str, protocol: int, metric: int = 0, kind: str = "unicast", gateway: str = "192.0.2.7"
) -> SeenRoute:
    return SeenRoute(
        Prefix.parse(prefix), kind, protocol, metric, gateway if kind == "unicast" else "", "eth0"
    )


def test_routes_that_are_as_they_should_be() -> None:
    ours = route("10.65.1.0/26", 186, 1024)
    pod = SeenRoute(Prefix.parse("10.65.0.1/32"), "unicast", 3, 0, "", "cali1")
    outside = route("172.16.0.0/12", 12)
    seen = network((ETH0,), ours, pod, outside)
    assert wrong(routes.check(seen, 1024, {ours.prefix}, [POOL])) == []


def test_a_route_with_our_mark_that_the_agent_does_not_know() -> None:
    seen = network((ETH0,), route("10.65.1.0/26", 186, 1024), route("10.9.0.0/16", 186, 1024))
    lines = wrong(routes.check(seen, 1024, {Prefix.parse("10.65.1.0/26")}, [POOL]))
    assert len(lines) == 1
    assert "1 of 2 with our mark" in lines[0]
    assert "10.9.0.0/16" in lines[0]


def test_what_calicos_bird_left_in_a_pool() -> None:
    left = [route("10.65.9.0/26", 12, 0, "blackhole"), route("10.65.10.0/26", 12)]
    lines = wrong(routes.check(network((ETH0,), *left), 1024, set(), [POOL]))
    assert len(lines) == 1
    assert lines[0].startswith(
        "WARN  leftovers in pools: 2 routes of protocol bird (first: blackhole 10.65.9.0/26, metric 0)"
    )
    assert "'tortiectl node leftovers' says which may go without loss" in lines[0]
    assert "flush" not in lines[0], "it would take those along that carry traffic"


@pytest.mark.parametrize(
    ("kubernetes", "said"),
    [
        (None, ""),
        ({"state": "idle", "reason": ""}, ""),
        ({"state": "in-sync", "reason": ""}, ""),
        ({"state": "stale", "reason": "connection refused"}, "stale: connection refused"),
        ({"state": "connecting", "reason": ""}, "connecting: no answer yet"),
    ],
)
def test_what_the_agent_says_of_kubernetes(kubernetes: dict[str, str] | None, said: str) -> None:
    lines = [one.line() for one in Agent(STATUS | {"kubernetes": kubernetes}).findings()]
    stays = "services and passwords stay as they were known"
    expected = [f"WARN  agent's Kubernetes: {said}; {stays}"] if said else []
    assert [line for line in lines if "Kubernetes" in line] == expected


def test_without_etcd_and_agent_it_says_what_it_does_not_know() -> None:
    lines = [one.line() for one in routes.check(network(), 1024, None, None)]
    assert lines == [
        "OK    our routes: none with our mark (protocol 186, metric 1024)",
        "----  leftovers in pools: not seen: etcd did not say which pools there are",
    ]


# -- certificates and clocks ---------------------------------------------------------------------------

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (-2, "FAIL  c: expired 2 days ago (2026-11-21); renew it"),
        (7, "WARN  c: expires in 7 days (2026-11-30); renew it"),
        (365, "OK    c: expires in 365 days (2027-11-23)"),
    ],
)
def test_a_certificates_end(days: int, expected: str) -> None:
    assert [one.line() for one in etcd.expires("c", NOW + timedelta(days=days), NOW)] == [expected]


def test_a_clock_beside_etcds() -> None:
    answer = b"HTTP/1.1 200 OK\r\nDate: Mon, 23 Nov 2026 00:00:00 GMT\r\n\r\n{}"
    at = NOW.timestamp()
    assert etcd.clock("http://e", answer, at + 0.3).level is Level.OK
    assert (
        etcd.clock("http://e", answer, at + 90)
        .line()
        .startswith("WARN  clock: this host is 90 s ahead of http://e")
    )
    assert "100 s behind" in etcd.clock("http://e", answer, at - 100).line()
    assert etcd.clock("http://e", b"\x00\x01nonsense", at).level is Level.UNSEEN
    assert etcd.clock("http://e", b"HTTP/1.1 200\r\nDate: never\r\n\r\n", at).level is Level.UNSEEN


# -- the node ------------------------------------------------------------------------------------------


def resource(name: str, address: str) -> dict[str, Any]:
    return {"kind": "Node", "metadata": {"name": name}, "spec": {"bgp": {"ipv4Address": address}}}


def node_lines(tmp_path: Path, *nodes: dict[str, Any], **told: str) -> list[str]:
    (tmp_path / "tortie.conf").touch()
    environ = {"NODENAME": "node-1", "TORTIE_CONFIG_FILE": str(tmp_path / "tortie.conf"), **told}
    settings = load(environ, hostname="host")
    return wrong(node.check(settings, etcd.Held(nodes, (), True), [ETH0])[0])


def test_a_node_that_is_what_it_says(tmp_path: Path) -> None:
    assert (
        node_lines(tmp_path, resource("node-1", "192.0.2.10/24"), resource("node-2", "192.0.2.11/24")) == []
    )


def test_two_nodes_with_one_address(tmp_path: Path) -> None:
    mine, theirs = resource("node-1", "192.0.2.10/24"), resource("node-2", "192.0.2.10/24")
    lines = node_lines(tmp_path, mine, theirs)
    assert lines[0].startswith("FAIL  duplicate addresses: Node 'node-2' already has this node's address")
    assert node_lines(tmp_path, mine, theirs, DISABLE_NODE_IP_CHECK="true")[0].startswith("WARN")


def test_the_detected_address_is_another_than_the_nodes(tmp_path: Path) -> None:
    lines = node_lines(tmp_path, resource("node-1", "192.0.2.99/24"), IP="autodetect")
    expected = (
        "WARN  IPv4 address: the Node has 192.0.2.99/24, this host would say 192.0.2.10/24; the agent's next "
        "start writes that; if it is wrong, set IP or IP_AUTODETECTION_METHOD"
    )
    assert lines == [expected]


def test_a_name_that_no_node_has(tmp_path: Path) -> None:
    lines = node_lines(tmp_path, resource("node-1.example.org", "192.0.2.20/24"))
    assert "there is no Node node-1; there is node-1.example.org: is that this host?" in lines[0]


# -- as a whole ----------------------------------------------------------------------------------------


def test_the_total_and_the_exit_status() -> None:
    found = [ok("a", "x"), warn("b", "x"), fail("c", "x"), unseen("d", "x"), ok("e", "x")]
    assert total(found) == "1 FAIL, 1 WARN, 2 OK, 1 not seen"
    assert failed(found)
    assert not failed(found[:2])


def test_the_agents_own_word(tmp_path: Path) -> None:
    listed = {"routes": [{"prefix": "10.65.0.0/26"}, {"prefix": "nonsense"}]}
    with AgentSocket(tmp_path, {"status": STATUS, "routes": listed}):
        agent = ask_agent(tmp_path)
    assert agent.known == {Prefix.parse("10.65.0.0/26")}
    assert agent.processes == {"tortie-agent": 7, "tortie-speaker": 8}
    assert len(wrong(agent.findings())) == 1
    assert "1 of 2 sessions established, 2 of 2 routes in the kernel" in wrong(agent.findings())[0]
    assert "does not run" in wrong(ask_agent(tmp_path / "elsewhere").findings())[0]
    assert Agent.unknown().processes is None


async def test_wrong_settings_are_a_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    found = await examine({"TORTIE_HOLD_TIME": "5", "TORTIE_CONFIG_FILE": os.devnull}, None)
    assert found[0].line().startswith("FAIL  settings: TORTIE_HOLD_TIME: 5 is not allowed")
    assert {"kernel", "IPv4 forwarding", "port 179"} <= {one.check for one in found}


async def test_settings_that_this_user_may_not_read_are_not_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"TORTIE_CONFIG_FILE": str(tmp_path)}  # a directory: not to be read, by root either
    assert (await examine(environ))[0].level is Level.FAIL
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    found = await examine(environ)
    assert found[0].level is Level.UNSEEN
    assert "without them etcd and the broker are not asked" in found[0].found


async def test_a_part_that_breaks_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Proc):
        __slots__ = ()

        def processes(self) -> list[Running]:
            raise RuntimeError("this is not /proc")

    found = await examine({"TORTIE_HOLD_TIME": "5", "TORTIE_CONFIG_FILE": os.devnull}, None, Broken())
    assert "----  programs: not seen: RuntimeError: this is not /proc" in [one.line() for one in found]
    assert "kernel" in {one.check for one in found}


def test_the_command_says_it_in_json_and_by_its_exit_status(tmp_path: Path) -> None:
    environ = {
        "TORTIE_CONFIG_FILE": os.devnull,
        "TORTIE_RUN_DIR": str(tmp_path),
        "TORTIE_HOLD_TIME": "5",
    }
    result = CliRunner().invoke(tortiectl, ["node", "checksystem", "-o", "json"], env=environ)
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told[0]["level"] == "FAIL"
    assert set(told[0]) == {"level", "check", "found", "todo"}
    assert isinstance(Finding(Level.OK, "a", "b").document()["level"], str)


# -- Kubernetes ----------------------------------------------------------------------------------------


async def test_the_kubernetes_api_as_it_may_be(tmp_path: Path) -> None:
    async def found(path: Path) -> str:
        (finding,) = await far.kubernetes(find_access({"KUBECONFIG": str(path)}))
        return finding.line()

    async with kube_api(tokens={"right"}) as api:
        good = api.kubeconfig(tmp_path / "good")
        assert (await found(good)).startswith(
            f"OK    Kubernetes API: v1.36.0, by kubeconfig {good}, answers within"
        )
        wrong = api.kubeconfig(tmp_path / "wrong", user={"token": "planted-token"})
        assert (await found(wrong)).startswith(f"FAIL  Kubernetes API: kubeconfig {wrong}: ")
        assert "planted-token" not in await found(wrong)
    assert (await found(good)).startswith(f"FAIL  Kubernetes API: kubeconfig {good}: ")
    assert (await found(tmp_path / "none")).startswith("FAIL  Kubernetes API: ")
    (none,) = await far.kubernetes(None)
    assert none.level is Level.OK
