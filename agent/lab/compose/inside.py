"""What runs inside a node's container: `up` makes its pods and stays, the other words look and ping.

The container stands for a machine: agent and speaker join its network namespace from containers of their
own, so they come and go without it. Each word prints one JSON line and needs root in the container.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cli import agentsocket
from agent.cli.errors import Failed
from agent.lab import cluster, fib, icmp, netns, wiring
from agent.lab.compose.plan import PASSWORDS, READY, SECRETS, ContainerLab, planned, resources
from agent.lab.plan import Lab, LabError
from agent.lab.state import LabNode
from felix_like.model.address import Address

if TYPE_CHECKING:
    from felix_like.datastore.client import Client

ETCD_SECONDS = 60.0
PING_INTERVAL = 0.05
"""Seconds; what is lost, times this, is how long it was."""
_COUNTS = re.compile(r"(\d+) packets transmitted, (\d+) received")


def main(argv: list[str]) -> int:
    """Exit status 1 and one sentence when it cannot be done."""
    lab = ContainerLab(name="pod", folder=Path("/run/lab"), endpoint=os.environ["ETCD_ENDPOINTS"])
    words: dict[str, Callable[..., dict[str, Any]]] = {
        "up": _up,
        "ping": _ping,
        "stream": _stream,
        "look": _look,
    }
    try:
        word, *rest = argv
        print(json.dumps(words[word](lab, *rest)), flush=True)
    except (LabError, ValueError, KeyError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    if argv == ["up"]:
        signal.pause()  # the pods' namespaces live as long as this container
    return 0


def _up(lab: Lab) -> dict[str, Any]:
    """Claim blocks and addresses as the CNI plugin does, and plug the pods in."""
    READY.unlink(missing_ok=True)
    READY.parent.mkdir(parents=True, exist_ok=True)
    node = planned(os.environ["NODENAME"])
    _passwords()
    _datastore(lab, node)
    netns.ip_batch(wiring.namespaces(lab.pod_namespace(pod.name) for pod in node.pods))
    for pod in node.pods:
        netns.write_sysctls(lab.pod_namespace(pod.name), wiring.host_settings())
        netns.ip_batch(wiring.pod_port(lab, pod))
        for path, value in wiring.pod_port_settings(pod.interface):
            Path("/proc/sys/net", path).write_text(value)
        netns.ip_batch(wiring.pod(pod), lab.pod_namespace(pod.name))
        netns.ip_batch(wiring.pod_routes(pod))
    pods = {pod.name: [pod.ipv4, pod.ipv6] for pod in node.pods}
    READY.write_text(json.dumps(pods))
    return pods


def _passwords() -> None:
    """Where a Kubernetes Secret would be mounted; all machines share the volume and write the same."""
    for key, password in PASSWORDS.items():
        path = SECRETS / "bgp" / key
        path.parent.mkdir(exist_ok=True)
        staged = path.with_name(f".{key}.{os.environ['NODENAME']}")
        staged.write_text(f"{password}\n")
        staged.replace(path)


def _datastore(lab: Lab, node: LabNode) -> None:
    """Wait for etcd, write what an installer writes, and claim. A machine's old pods are gone first."""
    deadline = time.monotonic() + ETCD_SECONDS
    while True:
        try:
            cluster.prepare(lab)
            break
        except LabError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)

    async def write(etcd: Client) -> None:
        from felix_like.datastore.cas import ResourceStore
        from felix_like.datastore.errors import NotFound
        from felix_like.datastore.ipam import Ipam

        for pod in node.pods:
            try:
                await Ipam(etcd).release_by_handle(cluster.handle(pod))
            except NotFound:
                continue
        for kind, name, spec in resources():
            resource = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": {"name": name}}
            await ResourceStore(etcd).apply({**resource, "spec": dict(spec)})

    cluster.run(lab, write)
    cluster.furnish(lab, [node])


def _ping(lab: Lab, *targets: str) -> dict[str, Any]:
    """From every pod here to `name=address` each: who got no answer from whom."""
    node = planned(os.environ["NODENAME"])
    wanted: dict[str, list[Address]] = {}
    for target in targets:
        name, _, address = target.partition("=")
        wanted.setdefault(name, []).append(Address.parse(address))
    sources = [icmp.Source(pod.name, lab.pod_namespace(pod.name)) for pod in node.pods]
    tried, lost = icmp.matrix(sources, wanted)
    return {"tried": tried, "lost": lost}


def _stream(lab: Lab, pod: str, address: str) -> dict[str, Any]:
    """Ping from a pod until standard input ends; how many went out and came back."""
    child = subprocess.Popen(
        [
            "nsenter", f"--net=/run/netns/{lab.pod_namespace(pod)}",
            "ping", "-q", "-n", "-i", str(PING_INTERVAL), address,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    print("started", flush=True)
    sys.stdin.read()
    # The last answers are on their way: an interrupt now would count them as lost.
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=10)[0]
    counts = _COUNTS.search(said)
    if counts is None:
        raise LabError(f"ping from {pod} to {address} said: {said.strip() or 'nothing'}")
    sent, received = map(int, counts.groups())
    return {"sent": sent, "received": received}


def _look(_lab: Lab) -> dict[str, Any]:
    """The pods' addresses, this machine's routes (prefix -> gateway), and what its agent says of itself."""
    here = Path("/proc/net")
    routes = fib.parse_route((here / "route").read_text()) | fib.parse_ipv6_route(
        (here / "ipv6_route").read_text()
    )
    try:
        status = agentsocket.ask(agentsocket.find(None), {"ask": "status"}, timeout=2.0)
    except Failed as silent:
        status = {"error": silent.message}
    return {
        "pods": json.loads(READY.read_text()) if READY.exists() else {},
        "routes": {str(p): str(route.gateway) for p, route in routes.items() if route.gateway is not None},
        "status": status,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
