"""Restart the lab as an update of a DaemonSet would, with traffic between all pods, and count the lost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agent.cli import agentsocket
from agent.cli.errors import Failed
from agent.lab import control, fib, icmp, state, up
from agent.lab.plan import Lab, LabError
from agent.lab.progress import Step, counted, step
from agent.lab.state import LabNode, State
from agent.lab.traffic import INTERVAL, Tally, Traffic
from felix_like.model.address import Address, Prefix

MOST_PACKETS: Final = 3000
"""Requests a second that all pods send together; with many pods each sends less often."""
ROUNDS: Final = 100
"""Requests that every pod sends to every address at least, however soon the restart is over."""
ROLES: Final = {"nodes": ("agent", "speaker"), "agents": ("agent",), "speakers": ("speaker",)}
"""What to restart -> which of a node's processes that is."""
ASK_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Before:
    """The lab as it was: what it must be again after each restart."""

    peers: dict[str, int]
    routes: dict[str, dict[Prefix, fib.KernelRoute]]
    """Namespace -> what its kernel had by a gateway. Asked of the kernels, so it needs no etcd."""


def roll(lab: Lab, what: str, at_once: bool, timeout: float) -> None:
    """Each node's processes get SIGTERM and start again, one node after the other or all at once.

    Raises LabError when packets were lost, or when the lab did not become whole again.
    """
    up.need_root()
    with state.locked(lab):
        made = state.require(lab)
        if not made.nodes or not made.pods:
            raise LabError(
                "there is nothing to prove in a lab without pods: 'tortiectl lab node add' makes some"
            )
        with step("the lab is whole") as current:
            wait_whole(lab, made, None, timeout, current)
            before = look(lab, made)
            current.result = up.ping_all(lab, made)
        traffic, pace = between_all_pods(lab, made)
        traffic.start()
        try:
            groups = [made.nodes] if at_once else [[node] for node in made.nodes]
            for group in groups:
                restart(lab, made, group, what, before, timeout)
            while traffic.rounds < ROUNDS:
                time.sleep(INTERVAL)
        finally:
            tally = traffic.stop()
        judge(tally, pace)


def between_all_pods(lab: Lab, made: State) -> tuple[Traffic, float]:
    """The traffic, and the seconds between two requests of a pod to an address."""
    sources = [icmp.Source(pod.name, lab.pod_namespace(pod.name)) for _, pod in made.pods]
    targets = {
        pod.name: [Address.parse(pod.ipv4), Address.parse(pod.ipv6)] for _, pod in made.pods if pod.ipv4
    }
    pairs = len(sources) * max(1, len(targets) - 1) * 2
    pace = max(INTERVAL, pairs / MOST_PACKETS)
    return Traffic(sources, targets, pace), pace


def restart(
    lab: Lab, made: State, group: Sequence[LabNode], what: str, before: Before, timeout: float
) -> None:
    """SIGTERM to the group's processes at once, as to a pod's containers; wait until all is as it was."""
    names = [f"{node.name}/{role}" for node in group for role in ROLES[what]]
    whom = ", ".join(node.name for node in group) if len(group) < 4 else counted(len(group), "node")
    with step(f"{whom}: {' and '.join(ROLES[what])} restarted") as current:
        control.stop(lab, names)
        control.start(lab, names)
        begun = time.monotonic()
        wait_whole(lab, made, before, timeout, current)
        current.result = f"whole {time.monotonic() - begun:.1f} s after the start"


def judge(tally: Tally, pace: float) -> None:
    """Say what was lost. Raises LabError for a single packet."""
    if tally.lost:
        lines = [f"    {line}" for line in tally.losses()]
        more = [f"    and {len(lines) - 10} more"] if len(lines) > 10 else []
        raise LabError("\n".join([f"{tally.lost} of {tally.sent} packets were lost:", *lines[:10], *more]))
    print(
        f"0 of {tally.sent} packets lost: every pod pinged every other one each {pace * 1000:.0f} ms, "
        "IPv4 and IPv6"
    )


def look(lab: Lab, made: State) -> Before:
    """What there is now, asked of the agents and the kernels."""
    return Before(
        peers={node.name: len(_status(lab, node).get("peers", ())) for node in made.nodes},
        routes={lab.namespace(node.name): _by_gateway(lab, node) for node in made.nodes},
    )


def _by_gateway(lab: Lab, node: LabNode) -> dict[Prefix, fib.KernelRoute]:
    table = fib.read(lab.namespace(node.name))
    return {prefix: route for prefix, route in table.items() if route.gateway is not None}


def wait_whole(lab: Lab, made: State, before: Before | None, timeout: float, current: Step) -> None:
    """Until every session is up, nothing is stale or inherited, and every kernel has what it had."""
    _, lacking = fib.wait_for(
        lambda: {node.name: lacks for node in made.nodes if (lacks := list(_lacking(lab, node, before)))},
        timeout,
        lambda wrong: current.news(f"{counted(len(wrong), 'node')} not yet"),
    )
    if lacking:
        lines = [f"    {name}: {', '.join(phrases[:4])}" for name, phrases in list(lacking.items())[:10]]
        raise LabError("\n".join([f"not whole after {timeout:g} s:", *lines]))


def _lacking(lab: Lab, node: LabNode, before: Before | None) -> Iterator[str]:
    try:
        answer = _status(lab, node)
    except Failed as failed:
        yield failed.message
        return
    if answer.get("speaker", {}).get("state") != "connected":
        yield "the agent has no speaker"
        return
    peers, routes = answer.get("peers", []), answer.get("routes", {})
    if before is not None and len(peers) != before.peers[node.name]:
        yield f"{len(peers)} of {before.peers[node.name]} peers"
    for peer in peers:
        if peer.get("state") != "Established":
            yield f"peer {peer.get('address')} is {peer.get('state')}"
        elif peer.get("stale"):
            yield f"{peer['stale']} routes of {peer.get('address')} are stale"
    if routes.get("wanted") != routes.get("installed") or routes.get("inherited"):
        yield f"{routes.get('installed')} of {routes.get('wanted')} routes installed"
    if before is not None:
        now = _by_gateway(lab, node)
        wanted = before.routes[lab.namespace(node.name)]
        yield from (
            f"no {prefix} via {route.gateway}" for prefix, route in wanted.items() if now.get(prefix) != route
        )


def _status(lab: Lab, node: LabNode) -> dict[str, Any]:
    return agentsocket.ask(lab.node_folder(node.name) / agentsocket.SOCKET, {"ask": "status"}, ASK_SECONDS)
