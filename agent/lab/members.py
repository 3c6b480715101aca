"""Change a running lab: nodes come and go, blocks are claimed and released, and everybody else follows."""

from __future__ import annotations

import shutil

from agent.lab import cluster, control, expect, fib, netns, report, state, up
from agent.lab.down import kill_all
from agent.lab.plan import MAX_NODES, Lab, LabError, check_node_name, node_name
from agent.lab.progress import counted, step
from agent.lab.state import LabNode, State
from felix_like.model.address import Prefix

TIMEOUT = 30.0


def add_node(lab: Lab, name: str | None, pods: int, timeout: float) -> None:
    """A node like the others: namespace, cable, processes, blocks, pods; proven by ping."""
    up.need_root()
    with state.locked(lab):
        made = state.require(lab)
        index = next(i for i in range(1, MAX_NODES + 1) if all(node.index != i for node in made.nodes))
        name = check_node_name(name or node_name(index))
        if any(node.name == name for node in made.nodes):
            raise LabError(f"the lab has a node {name!r} already")
        node = up.plan_node(index, name, pods)
        made.nodes.append(node)
        state.save(lab, made)
        up.raise_limits(lab, made)
        with step(f"{name} in its namespace, with {counted(pods, 'pod')}"):
            up.build(lab, [node])
            cluster.furnish(lab, [node])
            state.save(lab, made)
            up.address_pods(lab, [node])
        up.start_processes(lab, [node], made)
        up.prove(lab, made, timeout)


def remove_node(lab: Lab, name: str, timeout: float) -> None:
    """As a cluster loses a node for good: processes end, its resources go, the others forget its routes."""
    up.need_root()
    with state.locked(lab):
        made = state.require(lab)
        node = made.node(name)
        held = [prefix for prefix, holder in cluster.holders(lab).items() if holder == name]
        with step(f"{name} leaves"):
            _stop_processes(lab, node)
            cluster.forget(lab, node)
            namespaces = [lab.namespace(name), *(lab.pod_namespace(pod.name) for pod in node.pods)]
            kill_all(namespaces)
            netns.delete(namespaces)
            made.nodes.remove(node)
            state.save(lab, made)
            shutil.rmtree(lab.node_folder(name), ignore_errors=True)
        _wait_until_gone(lab, made, held, timeout)


def _stop_processes(lab: Lab, node: LabNode) -> None:
    known = control.units(lab)
    control.remove(
        lab, [f"{node.name}/{role}" for role in ("agent", "speaker") if f"{node.name}/{role}" in known]
    )


def _wait_until_gone(lab: Lab, made: State, held: list[Prefix], timeout: float) -> None:
    others = [lab.namespace(node.name) for node in made.nodes]
    with step(f"its routes gone from {counted(len(others), 'kernel')}") as current:
        _, left = fib.wait_for(lambda: fib.unwanted(held, others), timeout)
        if left:
            raise LabError(
                "\n".join(f"{namespace} still has {', '.join(wrong)}" for namespace, wrong in left.items())
            )
        current.result = ", ".join(map(str, held)) or "it held no block"


def claim(lab: Lab, name: str, cidr: Prefix | None, version: int, timeout: float) -> None:
    """One more block for a node; waits until every other kernel has the route and says how long it took."""
    up.need_root()
    made = state.require(lab)
    node = made.node(name)
    before = cluster.holders(lab)
    held = cidr is not None and before.get(cidr) == node.name
    with step(f"{name} holds {cidr} already" if held else f"{name} claims a block") as current:
        prefix = cluster.claim(lab, node.name, cidr, 6 if version == 6 else 4)
        held = before.get(prefix) == node.name
        current.result = (
            "" if cidr is not None and held else f"{prefix}{', which it held already' if held else ''}"
        )
    expected = expect.routes(lab, made.nodes, {prefix: name})
    with step(f"the route in {counted(len(made.nodes) - 1, 'other kernel')}") as current:
        took = up.wait_for_routes(lab, made, expected, timeout, current)
        since = "after the first look" if held else "after the claim's last write"
        current.result = f"{took * 1000:.0f} ms {since}"


def release(lab: Lab, name: str, cidr: Prefix, force: bool, timeout: float) -> None:
    """Give a block up; waits until no other kernel routes to it."""
    up.need_root()
    made = state.require(lab)
    made.node(name)
    with step(f"{name} releases {cidr}"):
        cluster.release(lab, name, cidr, force=force)
    _wait_until_gone(lab, made, [cidr], timeout)


def names(lab: Lab, who: str) -> list[str]:
    """The processes somebody means: `etcd`, `mosquitto`, `node-1` (both of its), `node-1/agent`."""
    if who in ("etcd", "mosquitto") or "/" in who:
        return [who]
    state.require(lab).node(who)
    return [f"{who}/agent", f"{who}/speaker"]


def _why(unit: control.UnitReport | None) -> str:
    return unit.last_end or unit.state if unit is not None else "unknown"


def status(lab: Lab) -> str:
    """The lab's table, with a sentence on top when something essential does not run."""
    made = state.require(lab)
    lines = []
    if not made.complete:
        lines.append("This lab was not finished or did not converge: 'tortiectl lab down' removes it.")
    try:
        processes = control.units(lab)
    except LabError as error:
        processes = {}
        lines.append(str(error))
    etcd = processes.get("etcd")
    if etcd is None or etcd.state != "running":
        lines.append(f"etcd does not run ({_why(etcd)}): blocks are not shown.")
        return "\n".join([*lines, report.table(lab, made, None, processes)])
    try:
        holders = cluster.holders(lab)
    except LabError:
        holders = None
        lines.append("etcd runs but does not answer (frozen?): blocks and routes are not shown.")
    return "\n".join([*lines, report.table(lab, made, holders, processes)])
