"""Network namespaces of a test's own: a fabric with a bridge, and nodes plugged into it.

No packet leaves them. Names start with `tt<pid>-`; `Fabric.close` deletes all of them.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
_counter = itertools.count(1)
_CLONE_NEWNET = 0x40000000


def run(*command: str) -> str:
    """Run a command; its output. Raises AssertionError with what it said when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


class Namespace:
    """One network namespace, with what was started in it."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.name = f"tt{os.getpid()}-{next(_counter)}{label}"
        self._processes: list[subprocess.Popen[Any]] = []
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    @property
    def path(self) -> Path:
        return Path("/run/netns") / self.name

    def ip(self, *arguments: str) -> str:
        return run("ip", "-n", self.name, *arguments)

    def run(self, *command: str) -> str:
        return run("nsenter", f"--net={self.path}", *command)

    def start(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a process inside; it is killed with the namespace."""
        process = subprocess.Popen(["nsenter", f"--net={self.path}", *command], **options)
        self._processes.append(process)
        return process

    def sysctl(self, name: str, value: str) -> None:
        """Write /proc/sys/net/... of this namespace."""
        self.inside(lambda: Path("/proc/sys/net", *name.split("/")).write_text(value))

    def inside(self, call: Callable[[], T]) -> T:
        """Call a function in a thread that lives in this namespace (sockets it opens stay there)."""
        results: list[T] = []
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                with self.path.open() as handle:
                    if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"setns {self.name}")
                results.append(call())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        run("ip", "netns", "del", self.name)


class Fabric:
    """A bridge in a namespace, and one namespace per node with `eth0` on it.

    Node n gets 192.0.2.n/24 and 2001:db8::n/64 (documentation addresses).
    """

    def __init__(self) -> None:
        self._members: list[Namespace] = []
        self.hub = self._make("hub")
        self.hub.ip("link", "add", "br0", "type", "bridge")
        self.hub.ip("link", "set", "br0", "up")

    def _make(self, label: str) -> Namespace:
        made = Namespace(label)
        self._members.append(made)
        return made

    def node(self, number: int, label: str = "n") -> Namespace:
        node = self._make(f"{label}{number}")
        self.hub.ip("link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", node.name)
        self.hub.ip("link", "set", f"p{number}", "master", "br0", "up")
        node.sysctl("ipv6/conf/eth0/accept_dad", "0")
        node.ip("addr", "add", f"192.0.2.{number}/24", "dev", "eth0")
        node.ip("-6", "addr", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
        node.ip("link", "set", "eth0", "up")
        self._wait_forwarding(number, node)
        return node

    def _wait_forwarding(self, number: int, node: Namespace) -> None:
        """The kernel's link watch may be a second late: what is sent before is lost, and ARP asks again only
        after a second."""
        deadline = time.monotonic() + 30
        while not (
            json.loads(node.ip("-j", "link", "show", "eth0"))[0]["operstate"] == "UP"
            and self._port_state(number) == "forwarding"
        ):
            assert time.monotonic() < deadline, f"{node.name} has no link"
            time.sleep(0.01)

    def _port_state(self, number: int) -> str:
        (port,) = json.loads(self.hub.ip("-j", "-d", "link", "show", f"p{number}"))
        return str(port["linkinfo"]["info_slave_data"]["state"])

    def unplug(self, number: int) -> None:
        """Cut a node off; both ends keep their carrier (the bridge port stops forwarding)."""
        self.hub.ip("link", "set", f"p{number}", "nomaster")

    def plug(self, number: int) -> None:
        self.hub.ip("link", "set", f"p{number}", "master", "br0")

    def close(self) -> None:
        while self._members:
            self._members.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def fabric() -> Iterator[Fabric]:
    with Fabric() as made:
        yield made
