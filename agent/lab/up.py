"""Build a lab: namespaces, etcd, blocks and pods, agents and speakers, and the proof that it works."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.lab import cluster, control, expect, fib, icmp, netns, processes, report, state, sysctls, wiring
from agent.lab.caller import share_with_caller
from agent.lab.plan import (
    FABRIC_V4,
    MAX_PODS,
    MQTT_PORT,
    Lab,
    LabError,
    cali_interface,
    node_addresses,
    node_name,
)
from agent.lab.progress import Step, counted, step
from agent.lab.state import LabNode, Pod, State
from agent.settings import load
from agent.settings_values import SettingsError
from felix_like.model.address import Address

BROKER_SECONDS = 5.0


def up(lab: Lab, nodes: int, pods: int, timeout: float, extra: Mapping[str, str]) -> None:
    """Build, prove and print a lab. Raises LabError; what was built stays for a look, until `lab down`."""
    need_root()
    processes.check_commands()
    refuse_second(lab)
    for command in ("tortie-agent", "tortie-speaker"):
        processes.find(command)
    planned = [plan_node(index, node_name(index), pods) for index in range(1, nodes + 1)]
    check_settings(lab, planned[0], extra)
    made = State(nodes=planned, created=time.time(), settings=dict(extra))
    try:
        _make(lab, made, pods, timeout)
    except KeyboardInterrupt:
        # What was half made, an event loop say, would complain on stderr when it is collected.
        sys.unraisablehook = lambda _: None
        raise LabError(
            "stopped halfway: 'tortiectl lab down' (or 'make lab-down') removes what is there"
        ) from None
    print()
    print(report.table(lab, made, cluster.holders(lab), control.units(lab)))
    print()
    print(report.try_next(made))


def _make(lab: Lab, made: State, pods: int, timeout: float) -> None:
    nodes = len(made.nodes)
    with state.locked(lab):
        state.save(lab, made)
        share_with_caller(lab.folder)
        raise_limits(lab, made)
        with step(f"{counted(nodes, 'node')} and {counted(nodes * pods, 'pod')} in network namespaces"):
            build(lab, made.nodes, first=True)
        with step("etcd") as current:
            control.launch(lab)
            control.add(lab, [processes.etcd(lab)])
            current.result = f"version {cluster.wait_ready(lab)}, {lab.node_etcd_endpoint}"
            publish_etcd(lab)
        with step("pools, blocks and pod addresses in the datastore") as current:
            cluster.prepare(lab)
            cluster.furnish(lab, made.nodes, lambda done: current.news(f"{done} of {counted(nodes, 'node')}"))
            state.save(lab, made)
        with step("pod addresses and gateways"):
            address_pods(lab, made.nodes)
        start_broker(lab)
        start_processes(lab, made.nodes, made)
        prove(lab, made, timeout)
        made.complete = True
        state.save(lab, made)


def check_settings(lab: Lab, node: LabNode, extra: Mapping[str, str]) -> None:
    """Read the settings as the agents will: better one sentence now than agents that end at once.

    Raises LabError.
    """
    try:
        settings = load(processes.node_environment(lab, node) | dict(extra), hostname=node.name)
    except SettingsError as error:
        raise LabError(f"the agents would not start: {error}") from None
    for sentence in settings.not_used:
        print(f"  warning: {sentence}", file=sys.stderr)


def need_root() -> None:
    if os.geteuid() != 0:
        raise LabError(f"the lab makes network namespaces: run it as root ('sudo {' '.join(sys.argv)}')")


def refuse_second(lab: Lab) -> None:
    """Raises LabError when there is a lab, or leftovers of one, or a folder that is not a lab's."""
    if lab.state_file.exists() or any(lab.owns(name) for name in netns.names()):
        raise LabError(
            f"there is a lab {lab.name!r} already: 'tortiectl lab down' (or 'make lab-down') ends it"
        )
    strangers = (
        [entry.name for entry in lab.folder.iterdir() if entry.name != "lock"] if lab.folder.exists() else []
    )
    if strangers:
        raise LabError(
            f"{lab.folder} is not a lab's folder (it holds {strangers[0]}): choose another TORTIE_LAB_DIR"
        )


def raise_limits(lab: Lab, made: State) -> None:
    """Make room in the machine's tables for a lab of this size; say what could not be had."""
    most = max((len(node.pods) for node in made.nodes), default=0)
    for sentence in sysctls.claim(lab.name, sysctls.needed(len(made.nodes), most)):
        print(f"  warning: {sentence}", file=sys.stderr)


def plan_node(index: int, name: str, pods: int) -> LabNode:
    if not 0 <= pods <= MAX_PODS:
        raise LabError(f"a node of the lab holds 0 to {MAX_PODS} pods, not {pods}")
    ipv4, ipv6 = node_addresses(index)
    names = [f"{name}-pod-{number}" for number in range(1, pods + 1)]
    planned = [Pod(name=pod, interface=cali_interface(pod)) for pod in names]
    return LabNode(name=name, index=index, ipv4=ipv4, ipv6=ipv6, pods=planned)


def build(lab: Lab, nodes: Sequence[LabNode], *, first: bool = False) -> None:
    """Namespaces, settings, cables and the nodes' addresses; pods get theirs later."""
    hosts = [lab.pod_namespace(pod.name) for node in nodes for pod in node.pods]
    routers = [lab.namespace(node.name) for node in nodes]
    fabric = [lab.fabric] if first else []
    netns.ip_batch(wiring.namespaces([*fabric, *routers, *hosts]))
    for namespace in [*fabric, *hosts]:
        netns.write_sysctls(namespace, wiring.host_settings())
    for namespace in routers:
        netns.write_sysctls(namespace, wiring.node_settings())
    netns.ip_batch([*(wiring.bridge() if first else []), *wiring.node_cables(lab, nodes)], lab.fabric)
    netns.ip_batches({lab.namespace(node.name): wiring.node(lab, node) for node in nodes})
    for node in nodes:
        settings = [value for pod in node.pods for value in wiring.pod_port_settings(pod.interface)]
        netns.write_sysctls(lab.namespace(node.name), settings)
        lab.node_folder(node.name).mkdir(mode=0o755, exist_ok=True)
    if first:
        lab.etcd_folder.mkdir(mode=0o755, exist_ok=True)


def address_pods(lab: Lab, nodes: Sequence[LabNode]) -> None:
    """Give the pods what IPAM gave them, and the nodes their routes to them."""
    netns.ip_batches(
        {lab.pod_namespace(pod.name): wiring.pod(pod) for node in nodes for pod in node.pods}
        | {
            lab.namespace(node.name): [x for pod in node.pods for x in wiring.pod_routes(pod)]
            for node in nodes
        }
    )


def start_broker(lab: Lab) -> None:
    """Where mosquitto is installed the nodes tell it how they are; nobody waits for it but for its socket."""
    if (broker := processes.broker(lab)) is None:
        return
    with step("mosquitto") as current:
        control.add(lab, [broker])
        deadline = time.monotonic() + BROKER_SECONDS
        while not lab.broker_socket.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        current.result = f"mqtt://{FABRIC_V4}:{MQTT_PORT}"


def start_processes(lab: Lab, nodes: Sequence[LabNode], made: State) -> None:
    control.add(lab, [unit for node in nodes for unit in processes.of_node(lab, node, made.settings)])


def prove(lab: Lab, made: State, timeout: float) -> None:
    """Wait until every kernel has every route, then ping every pod from every pod. Raises LabError."""
    expected = expect.routes(lab, made.nodes, cluster.holders(lab))
    total = expect.count(expected)
    with step(f"routes in {counted(len(made.nodes), 'kernel')}") as current:
        wait_for_routes(lab, made, expected, timeout, current)
        current.result = f"{total} of {total}"
    with step("ping from every pod to every pod, IPv4 and IPv6") as current:
        current.result = ping_all(lab, made)


def wait_for_routes(lab: Lab, made: State, expected: fib.Expected, timeout: float, current: Step) -> float:
    """Seconds until no kernel lacked a route. Raises LabError with who lacks what, and the last log lines."""
    total = expect.count(expected)
    took, missing = fib.wait_for(
        lambda: fib.missing(expected),
        timeout,
        lambda wrong: current.news(f"{total - expect.left(wrong)} of {total}"),
    )
    if missing:
        current.result = f"{total - expect.left(missing)} of {total} after {timeout:g} s"
        lines = report.lacking(lab, made, missing)
        hint = f"look at '{report.command()} lab status' and '… node status --node {made.nodes[0].name}'"
        raise LabError("\n".join(["not every kernel has every route:", *lines, hint]))
    return took


def ping_all(lab: Lab, made: State) -> str:
    """`60 of 60 answered`. Raises LabError naming the silent pairs."""
    sources = [icmp.Source(pod.name, lab.pod_namespace(pod.name)) for _, pod in made.pods]
    targets = {
        pod.name: [Address.parse(pod.ipv4), Address.parse(pod.ipv6)] for _, pod in made.pods if pod.ipv4
    }
    tried, lost = icmp.matrix(sources, targets)
    silent = sum(len(names) for names in lost.values())
    if lost:
        lines = [
            f"{name} got no answer from {', '.join(missed[:3])}" for name, missed in list(lost.items())[:5]
        ]
        raise LabError(
            "\n".join([f"{silent} of {tried} pings were lost:", *(f"    {line}" for line in lines)])
        )
    return f"{tried} of {tried} answered"


def publish_etcd(lab: Lab) -> None:
    """A path without etcd's own odd name for it."""
    lab.etcd_socket.unlink(missing_ok=True)
    lab.etcd_socket.symlink_to(Path("etcd") / "client:0")
