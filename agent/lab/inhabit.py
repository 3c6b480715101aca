"""Be somewhere in the lab: replace this process by a command inside a node, a pod or the fabric."""

from __future__ import annotations

import os
import sys

from agent.lab import netns
from agent.lab.plan import Lab, LabError
from agent.lab.processes import node_environment
from agent.lab.state import LabNode, State


def execute(lab: Lab, made: State, place: str, command: list[str]) -> None:
    """Enter the place's namespace and become the command. Returns only by raising LabError."""
    namespace, node = find(lab, made, place)
    env = dict(os.environ)
    if node is not None:
        env |= settings_of(lab, made, node)
    env["TORTIE_LAB_PLACE"] = place
    env["PS1"] = f"({place}) \\w \\$ "
    env["PATH"] = f"{os.path.dirname(sys.executable)}:{env.get('PATH', '')}:/usr/sbin:/sbin"  # noqa: PTH120
    sys.stdout.flush()
    netns.enter(namespace)
    try:
        os.execvpe(command[0], command, env)
    except OSError as error:
        raise LabError(f"{command[0]!r} does not start: {error.strerror}") from None


def settings_of(lab: Lab, made: State, node: LabNode) -> dict[str, str]:
    """As the node's agent has them, with those of `lab up --set`: `checksystem` and `diags` judge by them."""
    return node_environment(lab, node) | made.settings


def find(lab: Lab, made: State, place: str) -> tuple[str, LabNode | None]:
    """The namespace of a place, and the node when it is one. Raises LabError with the names there are."""
    if place == "fabric":
        return lab.fabric, None
    for node in made.nodes:
        if node.name == place:
            return lab.namespace(place), node
    for _, pod in made.pods:
        if pod.name == place:
            return lab.pod_namespace(place), None
    nodes = ", ".join(node.name for node in made.nodes)
    raise LabError(f"the lab has no {place!r}: use fabric, a node ({nodes}) or a pod (like node-1-pod-1)")


def address(made: State, place: str, six: bool) -> str:
    """The address of a node or pod."""
    for node in made.nodes:
        if node.name == place:
            return node.ipv6 if six else node.ipv4
    _, pod = made.pod(place)
    return pod.ipv6 if six else pod.ipv4
