"""The lab's thinking parts: names, addresses, expectations, backoff, state, limits. No root."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from agent.lab import expect, fib, inhabit, report, state, sysctls, wiring
from agent.lab.backoff import LONGEST, STEADY, Backoff
from agent.lab.icmp import echo_request
from agent.lab.plan import CALI_LINK_LOCAL, CALI_MAC, MAX_NODES, Lab, LabError, cali_interface, node_addresses
from agent.lab.processes import etcd, of_node
from agent.lab.state import LabNode, Pod, State
from agent.lab.up import plan_node, refuse_second
from felix_like.model.address import Address, Prefix

LAB = Lab(name="tortie", folder=Path("/run/tortie-lab"))
P1, P2, P6 = Prefix.parse("10.65.1.0/26"), Prefix.parse("10.65.2.0/26"), Prefix.parse("fd00:65::40/122")


def word(address: str) -> str:
    """An IPv4 address as /proc/net/route writes it: a 32-bit word in host order."""
    return f"{struct.unpack('=I', Address.parse(address))[0]:08X}"


def node(number: int, pods: int = 0) -> LabNode:
    return plan_node(number, f"node-{number}", pods)


class TestPlan:
    def test_the_default_lab(self) -> None:
        lab = Lab.from_environment({})
        assert (lab.name, str(lab.folder), lab.fabric) == ("tortie", "/run/tortie-lab", "tortie-fabric")
        assert lab.pod_namespace("node-1-pod-1") == "tortie-node-1-pod-1"

    @pytest.mark.parametrize("name", ["Tortie", "a-b", "1a", "a" * 13, "a b", "a/b"])
    def test_names_that_could_collide_or_escape_are_refused(self, name: str) -> None:
        with pytest.raises(LabError, match="TORTIE_LAB_NAME"):
            Lab.from_environment({"TORTIE_LAB_NAME": name})

    @pytest.mark.parametrize("folder", ["relative", "/run/" + "x" * 90])
    def test_folders_that_cannot_hold_sockets_are_refused(self, folder: str) -> None:
        with pytest.raises(LabError, match="TORTIE_LAB_DIR"):
            Lab.from_environment({"TORTIE_LAB_DIR": folder})

    def test_no_lab_owns_another_ones_namespaces(self) -> None:
        other = Lab.from_environment({"TORTIE_LAB_NAME": "tortie2"})
        assert other.owns("tortie2-node-1")
        assert not other.owns("tortie-node-1")
        assert not LAB.owns("tortie2-fabric")

    def test_every_node_has_addresses_of_its_own_inside_the_fabric(self) -> None:
        every = [node_addresses(index) for index in range(1, MAX_NODES + 1)]
        assert len({a for pair in every for a in pair}) == 2 * MAX_NODES
        assert all(Prefix.parse("198.18.0.0/16").contains(Address.parse(v4)) for v4, _ in every)
        assert all(Prefix.parse("2001:db8:18::/64").contains(Address.parse(v6)) for _, v6 in every)
        assert every[0] == ("198.18.0.11", "2001:db8:18::11")

    def test_the_pods_ipv6_gateway_is_what_the_kernel_makes_of_the_mac(self) -> None:
        octets = bytes.fromhex(CALI_MAC.replace(":", ""))
        eui64 = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
        assert Address.parse(CALI_LINK_LOCAL) == bytes.fromhex("fe80000000000000") + eui64

    def test_cali_names_are_calicos_and_fit(self) -> None:
        # printf default.node-1-pod-1 | sha1sum
        assert cali_interface("node-1-pod-1") == "calia365fa710ac"
        assert len(cali_interface("x" * 200)) == 15

    @pytest.mark.parametrize("pods", [-1, 61])
    def test_more_pods_than_a_block_holds_are_refused(self, pods: int) -> None:
        with pytest.raises(LabError, match="0 to 60 pods"):
            plan_node(1, "node-1", pods)


class TestKernelTables:
    ROUTE = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        f"eth0 {word('0.0.0.0')} {word('198.18.0.1')} 0003 0 0 0 {word('0.0.0.0')} 0 0 0\n"
        f"eth0 {word('10.65.1.0')} {word('198.18.0.12')} 0003 0 0 1024 {word('255.255.255.192')} 0 0 0\n"
        f"* {word('10.65.2.0')} {word('0.0.0.0')} 0201 0 0 1024 {word('255.255.255.192')} 0 0 0\n"
    )
    IPV6 = (
        "fd000065000000000000000000000040 7a 00000000000000000000000000000000 00"
        " 20010db8001800000000000000000012 00000400 00000001 00000000 00000003     eth0\n"
        "fd000065000000000000000000000080 7a 00000000000000000000000000000000 00"
        " 00000000000000000000000000000000 00000400 00000001 00000000 00200200       lo\n"
    )

    def test_routes_are_read_with_their_gateways(self) -> None:
        table = fib.parse_route(self.ROUTE)
        assert table[P1] == fib.KernelRoute(Address.parse("198.18.0.12"), "eth0", 1024)
        assert Prefix.parse("0.0.0.0/0") in table

    def test_a_blackhole_is_no_way_to_anybody(self) -> None:
        assert P2 not in fib.parse_route(self.ROUTE)
        assert list(fib.parse_ipv6_route(self.IPV6)) == [P6]
        assert fib.parse_ipv6_route(self.IPV6)[P6].gateway == Address.parse("2001:db8:18::12")

    def test_what_is_missing_or_points_elsewhere_is_named(self) -> None:
        table = fib.parse_route(self.ROUTE)
        right, wrong = Address.parse("198.18.0.12"), Address.parse("198.18.0.13")
        assert fib.missing({"n": {P1: right}}, lambda _: table) == {}
        assert fib.missing({"n": {P1: wrong}}, lambda _: table) == {
            "n": ["10.65.1.0/26 via 198.18.0.13 (it has via 198.18.0.12)"]
        }
        assert fib.missing({"n": {P2: wrong}}, lambda _: table) == {"n": ["10.65.2.0/26 via 198.18.0.13"]}


class TestExpectations:
    def test_every_node_wants_the_others_blocks_by_family(self) -> None:
        wanted = expect.routes(LAB, [node(1), node(2)], {P1: "node-1", P6: "node-1", P2: "node-2"})
        assert wanted == {
            "tortie-node-1": {P2: Address.parse("198.18.0.12")},
            "tortie-node-2": {P1: Address.parse("198.18.0.11"), P6: Address.parse("2001:db8:18::11")},
        }
        assert expect.count(wanted) == 3

    def test_a_block_of_a_node_outside_the_lab_is_not_waited_for(self) -> None:
        assert expect.count(expect.routes(LAB, [node(1)], {P1: "elsewhere"})) == 0


class TestBackoff:
    def test_it_doubles_up_to_a_limit(self) -> None:
        backoff = Backoff()
        assert [backoff.died(0.1, 0.0) for _ in range(7)] == [1, 2, 4, 8, 16, LONGEST, LONGEST]

    def test_a_steady_life_is_forgiven(self) -> None:
        backoff = Backoff()
        for _ in range(5):
            backoff.died(0.1, 0.0)
        assert backoff.died(STEADY, 0.0) == 1

    def test_chance_takes_off_up_to_half(self) -> None:
        assert Backoff().died(0.1, 0.5) == 0.75
        assert 0.5 < Backoff().died(0.1, 0.999) < 0.51

    def test_it_survives_dying_for_ever(self) -> None:
        backoff = Backoff()
        assert max(backoff.died(0.0, 0.0) for _ in range(5000)) == LONGEST


class TestEnvironment:
    def test_a_command_on_a_node_has_the_settings_of_its_agent(self) -> None:
        made = State(nodes=[node(1)], settings={"KUBECONFIG": "/k", "TORTIE_HOLD_TIME": "9"})
        (speaker, agent) = of_node(LAB, made.nodes[0], made.settings, {"PATH": "/bin"})
        settings = inhabit.settings_of(LAB, made, made.nodes[0])
        assert settings["KUBECONFIG"] == "/k"
        assert settings.items() <= agent.env.items()
        assert settings.items() <= speaker.env.items()

    def test_the_shells_lines_are_for_etcdctl_too(self) -> None:
        lines = report.environment(LAB, default=True)
        assert "export ETCD_ENDPOINTS=unix:///run/tortie-lab/etcd.sock" in lines
        assert "export ETCDCTL_ENDPOINTS=unix:///run/tortie-lab/etcd.sock" in lines


class TestState:
    def test_what_is_saved_is_loaded(self, tmp_path: Path) -> None:
        lab = Lab(name="tortie", folder=tmp_path / "lab")
        made = State(nodes=[node(1, pods=2)], created=5.0, settings={"A": "b"})
        made.nodes[0].pods[0].ipv4 = "10.65.1.2"
        state.save(lab, made)
        assert state.load(lab) == made

    def test_no_lab_is_none(self, tmp_path: Path) -> None:
        assert state.load(Lab(name="tortie", folder=tmp_path / "nothing")) is None

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 99}', '{"format": 1, "nodes": [{"x": 1}]}'])
    def test_a_strange_file_is_a_sentence(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "lab.json").write_text(text)
        with pytest.raises(LabError, match="does not read as a lab's state"):
            state.load(Lab(name="tortie", folder=tmp_path))

    def test_two_commands_do_not_change_a_lab_at_once(self, tmp_path: Path) -> None:
        lab = Lab(name="tortie", folder=tmp_path)
        with state.locked(lab), pytest.raises(LabError, match="another command"), state.locked(lab):
            pass
        with state.locked(lab):
            pass

    def test_a_folder_with_strangers_in_it_never_becomes_a_lab(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(LabError, match=r"not a lab's folder \(it holds thesis.tex\)"):
            refuse_second(Lab(name="nobodys", folder=tmp_path))


class Machine:
    """A /proc/sys of a test's own, all limits at the same value."""

    def __init__(self, folder: Path, value: int) -> None:
        self.root, self.ledger = folder / "sys", folder / "ledger"
        for name in sysctls.needed(1, 1):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(f"{value}\n")

    def claim(self, lab: str, nodes: int) -> list[str]:
        return sysctls.claim(lab, sysctls.needed(nodes, 2), self.root, self.ledger)

    def give_back(self, lab: str) -> list[str]:
        return sysctls.give_back(lab, self.root, self.ledger)

    def values(self) -> set[int]:
        return {int((self.root / name).read_text()) for name in sysctls.needed(1, 1)}

    def neighbours(self) -> int:
        return int((self.root / "net/ipv4/neigh/default/gc_thresh3").read_text())


class TestLimits:
    def test_a_small_lab_changes_nothing(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path, 1024)
        assert machine.claim("a", 3) == []
        assert machine.values() == {1024}
        assert not machine.ledger.exists()

    def test_a_mesh_of_fifty_gets_its_neighbours_and_the_machine_its_limits_back(
        self, tmp_path: Path
    ) -> None:
        machine = Machine(tmp_path, 100)
        machine.claim("a", 50)
        assert machine.neighbours() > 50 * 49
        assert machine.give_back("a") == []
        assert machine.values() == {100}
        assert not machine.ledger.exists()

    @pytest.mark.parametrize("leaving", [("a", "b"), ("b", "a")])
    def test_labs_end_in_any_order(self, tmp_path: Path, leaving: tuple[str, str]) -> None:
        machine = Machine(tmp_path, 1024)
        machine.claim("a", 30)
        least = machine.neighbours()
        machine.claim("b", 60)
        assert machine.neighbours() > least
        machine.give_back(leaving[0])
        assert machine.neighbours() >= least, "the other one lives on"
        machine.give_back(leaving[1])
        assert machine.values() == {1024}

    def test_a_lab_that_grows_needs_more_and_gives_all_back(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path, 1024)
        machine.claim("a", 3)
        machine.claim("a", 60)
        assert machine.neighbours() > 60 * 59
        machine.give_back("a")
        assert machine.values() == {1024}

    def test_a_damaged_ledger_stops_nobody(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path, 1024)
        machine.ledger.write_text('{"before": [1]}')
        assert machine.claim("a", 60) == []
        machine.give_back("a")
        assert machine.values() == {1024}

    def test_a_limit_the_kernel_does_not_have_is_left_alone(self, tmp_path: Path) -> None:
        assert sysctls.claim("a", sysctls.needed(60, 2), tmp_path / "no", tmp_path / "ledger") == []
        assert not (tmp_path / "ledger").exists()


def test_an_echo_request_carries_a_right_checksum() -> None:
    packet = echo_request(4, 0x7467, 3)
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
    assert packet[0] == 8
    assert echo_request(6, 1, 1)[0] == 128


def test_a_pod_is_wired_as_calico_does() -> None:
    pod = Pod(name="node-1-pod-1", interface="cali1", ipv4="10.65.1.2", ipv6="fd00:65::42")
    lines = wiring.pod(pod)
    assert "route add 169.254.1.1 dev eth0 scope link" in lines
    assert "addr add 10.65.1.2/32 dev eth0" in lines
    assert f"route add default via {CALI_LINK_LOCAL} dev eth0" in lines
    assert ("ipv4/conf/cali1/proxy_arp", "1") in wiring.pod_port_settings("cali1")


def test_nodes_have_a_default_route_else_proxy_arp_stays_silent() -> None:
    assert "route add default via 198.18.0.1 dev eth0" in wiring.node(LAB, node(1))


def test_agents_learn_who_and_where_they_are() -> None:
    environ = {"TORTIE_LAB_AGENT": "/x/agent --flag", "TORTIE_LAB_SPEAKER": "/x/speaker"}
    speaker, agent = of_node(LAB, node(2), {"FELIX_LOGSEVERITYSCREEN": "Debug"}, environ)
    assert (speaker.name, agent.name) == ("node-2/speaker", "node-2/agent")
    assert agent.command == ["/x/agent", "--flag"]
    assert agent.argv()[:3] == ["nsenter", "--net=/run/netns/tortie-node-2", "--"]
    for unit in (speaker, agent):
        assert unit.env["NODENAME"] == "node-2"
        assert unit.env["IP"] == "198.18.0.12/16"
        assert unit.env["IP6"] == "2001:db8:18::12/64"
        assert unit.env["ETCD_ENDPOINTS"] == "http://198.18.0.1:2379"
        assert unit.env["TORTIE_RUN_DIR"] == "/run/tortie-lab/node-2"
        assert unit.env["FELIX_LOGSEVERITYSCREEN"] == "Debug"


def test_etcd_listens_inside_the_fabric_only() -> None:
    unit = etcd(LAB)
    assert unit.namespace == "tortie-fabric"
    assert "--listen-client-urls=http://198.18.0.1:2379,unix://client:0" in unit.command
