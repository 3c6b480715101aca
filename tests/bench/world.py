"""A fabric of nodes in network namespaces with an etcd of its own, for Tortie and for BIRD alike.

IPv4 only, as BIRD 1.6 in calico-node runs one daemon per family. Addresses and cables are the lab's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from agent.lab import netns, processes, sysctls, wiring
from agent.lab.plan import Lab, bridge_port, node_addresses, node_name
from agent.lab.state import LabNode
from felix_like.model.address import Prefix

POOL = "10.65.0.0/16"
BIN = Path(sys.executable).parent


class World:
    """Namespaces, cables and processes that one benchmark made; `close` removes them all."""

    def __init__(self, name: str, nodes: int) -> None:
        self.lab = Lab(name=name, folder=Path(tempfile.mkdtemp(prefix=f"{name}-")))
        self.nodes = [self._node(index) for index in range(1, nodes + 1)]
        self._children: list[subprocess.Popen[bytes]] = []

    @staticmethod
    def _node(index: int) -> LabNode:
        ipv4, ipv6 = node_addresses(index)
        return LabNode(name=node_name(index), index=index, ipv4=ipv4, ipv6=ipv6)

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def namespaces(self) -> list[str]:
        return [self.lab.namespace(node.name) for node in self.nodes]

    @property
    def endpoint(self) -> str:
        """etcd as programs outside the namespaces reach it."""
        return self.lab.etcd_endpoint

    @property
    def node_endpoint(self) -> str:
        return self.lab.node_etcd_endpoint

    def folder(self, node: LabNode) -> Path:
        folder = self.lab.node_folder(node.name)
        folder.mkdir(exist_ok=True)
        return folder

    def block(self, node: LabNode, number: int = 0) -> Prefix:
        """The `number`-th /26 that the benchmark gives to the node: distinct for 1,000 nodes' worth."""
        index = number * len(self.nodes) + node.index - 1
        return Prefix.of(f"10.65.{index >> 2}.{(index & 3) << 6}/26")

    def _build(self) -> None:
        sysctls.claim(self.lab.name, sysctls.needed(len(self.nodes), 0))
        netns.ip_batch(wiring.namespaces([self.lab.fabric, *self.namespaces]))
        netns.write_sysctls(self.lab.fabric, wiring.host_settings())
        netns.ip_batch(wiring.bridge(), self.lab.fabric)
        for namespace in self.namespaces:
            netns.write_sysctls(namespace, wiring.node_settings())
        netns.ip_batch(wiring.node_cables(self.lab, self.nodes), self.lab.fabric)
        netns.ip_batches({self.lab.namespace(node.name): wiring.node(self.lab, node) for node in self.nodes})

    def start_etcd(self) -> None:
        """One member with real fsync, as in the lab."""
        unit = processes.etcd(self.lab)
        self.lab.etcd_folder.mkdir()
        self.lab.etcd_socket.symlink_to(Path("etcd") / "client:0")
        self.start(unit.namespace, unit.command, log=Path(unit.log), env=unit.env, cwd=unit.cwd)
        wait_until(self.lab.etcd_socket.exists, 15, "etcd's socket")

    def start(
        self,
        namespace: str,
        command: Sequence[str],
        *,
        log: Path,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            child = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{namespace}", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def stop(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        for child in children:
            child.wait()
            self._children.remove(child)

    def close(self) -> None:
        self.stop(list(self._children))
        netns.delete([*self.namespaces, self.lab.fabric])
        sysctls.give_back(self.lab.name)
        shutil.rmtree(self.lab.folder, ignore_errors=True)

    def cut(self, node: LabNode) -> None:
        netns.ip_batch([f"link set {bridge_port(node.index)} down"], self.lab.fabric)


@contextlib.contextmanager
def world(name: str, nodes: int) -> Iterator[World]:
    with World(name, nodes) as made:
        made.start_etcd()
        yield made


def wait_until(check: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds until the check holds. Raises TimeoutError naming what did not come."""
    start = time.monotonic()
    while not check():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.02)
    return time.monotonic() - start
