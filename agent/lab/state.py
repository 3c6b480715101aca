"""What a lab has made, on disk before it is made: `lab down` must undo what `lab up` did not finish."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from agent.lab.plan import Lab, LabError

FORMAT = 1


@dataclass(slots=True, kw_only=True)
class Pod:
    """A pod: a namespace behind a `cali` veth on its node."""

    name: str
    interface: str
    ipv4: str = ""
    ipv6: str = ""
    """Empty until IPAM has given one."""


@dataclass(slots=True, kw_only=True)
class LabNode:
    name: str
    index: int
    ipv4: str
    ipv6: str
    pods: list[Pod] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class State:
    """Everything `lab down` needs, and what the other commands look up."""

    nodes: list[LabNode] = field(default_factory=list)
    created: float = 0.0
    """Seconds since the epoch."""
    settings: dict[str, str] = field(default_factory=dict)
    """What `lab up --set` gave every agent on top."""
    complete: bool = False
    """False while `lab up` works, and for ever if it failed."""

    def node(self, name: str) -> LabNode:
        for node in self.nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.nodes)
        raise LabError(f"the lab has no node {name!r}; it has {names or 'none'}")

    def pod(self, name: str) -> tuple[LabNode, Pod]:
        for node in self.nodes:
            for pod in node.pods:
                if pod.name == name:
                    return node, pod
        raise LabError(
            f"the lab has no pod {name!r}; pods are named like node-1-pod-1 ('tortiectl lab status')"
        )

    @property
    def pods(self) -> list[tuple[LabNode, Pod]]:
        return [(node, pod) for node in self.nodes for pod in node.pods]


def load(lab: Lab) -> State | None:
    """The lab's state, None when there is no lab. Raises LabError for a file we did not write."""
    try:
        text = lab.state_file.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _decode(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{lab.state_file} does not read as a lab's state ({error}): 'tortiectl lab down' removes the lab"
        ) from None


def require(lab: Lab) -> State:
    """Like `load`, for commands that need a lab."""
    state = load(lab)
    if state is None:
        raise LabError(f"there is no lab in {lab.folder}: start one with 'tortiectl lab up' (or 'make lab')")
    return state


def save(lab: Lab, state: State) -> None:
    """Replace the file in one step: a reader sees the old state or the new one."""
    lab.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    staged = lab.state_file.with_suffix(".new")
    staged.write_text(json.dumps({"format": FORMAT, "name": lab.name, **asdict(state)}, indent=1) + "\n")
    staged.replace(lab.state_file)


@contextlib.contextmanager
def locked(lab: Lab) -> Iterator[None]:
    """One command at a time may change a lab. Raises LabError when another one is at it."""
    lab.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(lab.folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(
                f"another command is changing the lab in {lab.folder}: wait for it to end"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _decode(raw: dict[str, Any]) -> State:
    if raw["format"] != FORMAT:
        raise ValueError(f"format {raw['format']!r}, expected {FORMAT}")
    nodes = [LabNode(**{**node, "pods": [Pod(**pod) for pod in node["pods"]]}) for node in raw["nodes"]]
    rest = {key: raw[key] for key in ("created", "settings", "complete")}
    return State(nodes=nodes, **rest)
