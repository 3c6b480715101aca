"""The whole product in namespaces: a fabric, an etcd, and `tortie-agent` with `tortie-speaker` per node.

Node n has 192.0.2.n and 2001:db8::n; etcd lives in the hub, at an address of each family. Blocks follow
from the node's number.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from felix_like.datastore.keys import affinity_key, block_key, resource_key
from felix_like.model.address import Prefix
from tests.support.netns import Fabric, Namespace

BIN = Path(sys.executable).parent
POOL4, POOL6 = "10.65.0.0/16", "fd00:65::/112"
ETCD, ETCD6 = "192.0.2.250", "2001:db8::250"
ASN = 64512
STATIC = "where source = RTS_STATIC"


def v4(number: int) -> str:
    return f"192.0.2.{number}"


def v6(number: int) -> str:
    return f"2001:db8::{number}"


def block4(number: int, index: int = 0) -> str:
    """The index-th (0 to 3) /26 that is meant for a node."""
    return f"10.65.{number}.{index * 64}/26"


def block6(number: int, index: int = 0) -> str:
    return str(Prefix.parse(f"fd00:65::{number * 256 + index * 64:x}/122"))


def pod4(number: int) -> str:
    """The first usable address of the node's first block."""
    return f"10.65.{number}.1"


def pod6(number: int) -> str:
    return f"fd00:65::{number * 256 + 1:x}"


def until(check: Callable[[], object], what: object = "", seconds: float = 20.0) -> Any:
    """Poll until `check()` is true, and return that. `what` may be a callable that looks when it failed."""
    deadline = time.monotonic() + seconds
    while not (answer := check()):
        if time.monotonic() > deadline:
            raise AssertionError(
                f"still not so after {seconds:g} s: {what() if callable(what) else what or check}"
            )
        time.sleep(0.05)
    return answer


def holds(check: Callable[[], object], seconds: float, what: object = "") -> None:
    """Nothing happens: `check()` stays true for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert check(), what() if callable(what) else what
        time.sleep(0.1)


class Etcd:
    """One member in the hub; may be killed and started again. Written with etcdctl, as an operator would."""

    def __init__(self, where: Namespace, folder: Path) -> None:
        self._where = where
        self._folder = folder
        folder.mkdir()
        where.ip("addr", "add", f"{ETCD}/24", "dev", "br0")
        where.ip("-6", "addr", "add", f"{ETCD6}/64", "dev", "br0", "nodad")
        self.process: subprocess.Popen[Any] | None = None
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://{ETCD}:2379"

    @property
    def endpoint6(self) -> str:
        return f"http://[{ETCD6}]:2379"

    def start(self) -> None:
        peer = "http://127.0.0.1:2380"
        with (self._folder / "etcd.log").open("ab") as log:
            self.process = self._where.start(
                "etcd", "--name=m", f"--data-dir={self._folder}/member",
                f"--listen-client-urls={self.endpoint},{self.endpoint6}",
                f"--advertise-client-urls={self.endpoint}",
                f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=m={peer}", "--heartbeat-interval=30", "--election-timeout=300",
                stdout=log, stderr=log,
            )  # fmt: skip
        until(lambda: self._ctl("endpoint", "health").returncode == 0, "etcd answers")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def _ctl(self, *words: str, value: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [
                "nsenter", f"--net={self._where.path}", "etcdctl", f"--endpoints={self.endpoint}", *words,
            ],
            input=value, capture_output=True, check=False, env=os.environ | {"ETCDCTL_API": "3"},
        )  # fmt: skip

    def put(self, key: str, value: bytes | str | Mapping[str, Any]) -> int:
        """Write; returns etcd's revision with it."""
        if isinstance(value, Mapping):
            value = json.dumps(value)
        octets = value.encode() if isinstance(value, str) else value
        # etcdctl takes an empty value as a word only.
        done = self._ctl("put", "-w", "json", "--", key, *(() if octets else ("",)), value=octets)
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["header"]["revision"])

    def delete(self, key: str) -> int:
        """Delete what must be there; returns etcd's revision without it."""
        done = self._ctl("del", "-w", "json", key)
        answer = json.loads(done.stdout)
        assert answer.get("deleted") == 1, (key, done)
        return int(answer["header"]["revision"])

    def get(self, key: str) -> str:
        return self._ctl("get", "--print-value-only", key).stdout.decode()

    # Calico's resources

    def resource(self, kind: str, name: str, spec: Mapping[str, Any], **metadata: Mapping[str, str]) -> int:
        return self.put(
            resource_key(kind, name),
            {
                "kind": kind,
                "apiVersion": "projectcalico.org/v3",
                "metadata": {
                    "name": name,
                    "uid": f"uid-{name}",
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                    **metadata,
                },
                "spec": spec,
            },
        )

    def drop(self, kind: str, name: str) -> int:
        return self.delete(resource_key(kind, name))

    def node(self, name: str, number: int, labels: Mapping[str, str] | None = None, **bgp: Any) -> int:
        return self.resource(
            "Node",
            name,
            {"bgp": {"ipv4Address": f"{v4(number)}/24", "ipv6Address": f"{v6(number)}/64"} | bgp},
            labels=labels or {},
        )

    def claim(self, name: str, *cidrs: str) -> None:
        """Blocks with a confirmed affinity, as Calico's two-phase claim leaves them."""
        for cidr in cidrs:
            prefix = Prefix.parse(cidr)
            self.put(affinity_key(name, prefix), {"state": "pending", "deleted": False})
            self.put(block_key(prefix), block(name, prefix))
            self.put(affinity_key(name, prefix), {"state": "confirmed", "deleted": False})

    def release(self, name: str, *cidrs: str) -> None:
        for cidr in cidrs:
            prefix = Prefix.parse(cidr)
            self.delete(block_key(prefix))
            self.delete(affinity_key(name, prefix))


def block(name: str, prefix: Prefix) -> dict[str, Any]:
    """An empty IPAM block."""
    size = 1 << (prefix.bits - prefix.length)
    return {
        "cidr": str(prefix),
        "affinity": f"host:{name}",
        "allocations": [None] * size,
        "unallocated": list(range(size)),
        "attributes": [],
        "sequenceNumber": 1,
        "sequenceNumberForAllocation": {},
        "deleted": False,
    }


class Node:
    """A host with an agent and a speaker. Both are children of the test, so it knows their exit status."""

    def __init__(self, where: Namespace, number: int, folder: Path, settings: Mapping[str, str]) -> None:
        self.where, self.number, self.folder = where, number, folder
        self.name = f"node-{number}"
        self.settings = dict(settings)
        self.speaker: subprocess.Popen[Any] | None = None
        self.agent: subprocess.Popen[Any] | None = None
        (folder / "secrets").mkdir(parents=True)

    def start_speaker(self, *options: str) -> None:
        self.speaker = self._start("tortie-speaker", *options)

    def start_agent(self) -> None:
        self.agent = self._start("tortie-agent")

    def _start(self, command: str, *options: str) -> subprocess.Popen[Any]:
        with (self.folder / f"{command}.log").open("ab") as log:
            return self.where.start(
                str(BIN / command), *options, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | self.settings,
            )  # fmt: skip

    def kill_speaker(self, number: int = signal.SIGKILL) -> int:
        return _kill(self.speaker, number)

    def kill_agent(self, number: int = signal.SIGKILL) -> int:
        return _kill(self.agent, number)

    @property
    def agent_log(self) -> str:
        return (self.folder / "tortie-agent.log").read_text()

    @property
    def speaker_log(self) -> str:
        return (self.folder / "tortie-speaker.log").read_text()

    def secret(self, name: str, key: str, text: str) -> None:
        file = self.folder / "secrets" / name / key
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    # What the agent says

    def ask(self, **question: str) -> dict[str, Any]:
        """The agent's answer; empty while it does not answer."""
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
            sock.settimeout(5)
            sock.connect(str(self.folder / "agent.sock"))
            sock.sendall(json.dumps(question).encode() + b"\n")
            answer: dict[str, Any] = json.loads(sock.makefile("rb").readline() or b"{}")
            return answer
        return {}

    def status(self) -> dict[str, Any]:
        return self.ask(ask="status")

    def peers(self) -> dict[str, dict[str, Any]]:
        return {peer["address"]: peer for peer in self.status().get("peers", ())}

    def established(self, *addresses: str) -> bool:
        peers = self.peers()
        return all(peers.get(address, {}).get("state") == "Established" for address in addresses)

    def refusals(self, word: str = "") -> list[str]:
        every = (f"{r['subject']}: {r['reason']}" for r in self.status().get("refusals", ()))
        return [sentence for sentence in every if word in sentence]

    def path(self, prefix: str, peer: str) -> dict[str, Any]:
        """What the agent makes of a prefix from a peer; empty when it has not heard it."""
        for route in self.ask(ask="routes", prefix=prefix).get("routes", ()):
            for path in route["paths"]:
                if path["peer"] == peer:
                    found: dict[str, Any] = path
                    return found
        return {}

    def explain(self, prefix: str) -> str:
        return "\n".join(self.ask(ask="explain", prefix=prefix).get("lines", ()))

    # What the kernel says

    def kernel(self) -> dict[str, str]:
        """Prefix -> gateway, or the route's type, of both families' main table; the node's own left out."""
        return kernel_routes(self.where)

    def wait_route(self, prefix: str, via: str | None, seconds: float = 20) -> None:
        until(
            lambda: self.kernel().get(prefix) == via,
            lambda: f"{self.name}: {prefix} via {via}; {self.kernel()}; {self.explain(prefix)}",
            seconds,
        )


def kernel_routes(where: Namespace) -> dict[str, str]:
    found: dict[str, str] = {}
    for version in ("-4", "-6"):
        for route in json.loads(where.ip(version, "-j", "route") or "[]"):
            if route.get("protocol") == "kernel":
                continue
            hops = [route.get("gateway", "")] + [hop["gateway"] for hop in route.get("nexthops", ())]
            value = ",".join(hop for hop in hops if hop) or route.get("type", "?")
            destination = route["dst"].replace("default", "0.0.0.0/0" if version == "-4" else "::/0")
            if "/" not in destination:
                destination += "/128" if ":" in destination else "/32"
            found[destination] = value
    return found


def _kill(process: subprocess.Popen[Any] | None, number: int) -> int:
    assert process is not None
    process.send_signal(number)
    return process.wait(15)


class System:
    """A fabric with an etcd; nodes are added by number. `settings`: for every agent."""

    def __init__(self, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tts-"))
        self._settings = settings
        self.fabric = Fabric()
        self.nodes: dict[int, Node] = {}
        try:
            self.etcd = Etcd(self.fabric.hub, self.folder / "etcd")
            self.etcd.resource("ClusterInformation", "default", {"datastoreReady": True})
            self.etcd.resource("IPPool", "four", {"cidr": POOL4, "blockSize": 26})
            self.etcd.resource("IPPool", "six", {"cidr": POOL6, "blockSize": 122})
        except BaseException:
            self.close()
            raise

    def node(self, number: int, *, start: bool = True, **settings: str) -> Node:
        """A host that runs Tortie; it registers itself. Its first block of each family is claimed for it."""
        where = self.host(number)
        folder = self.folder / f"n{number}"
        env = {
            "NODENAME": f"node-{number}",
            "IP": f"{v4(number)}/24",
            "IP6": f"{v6(number)}/64",
            "ETCD_ENDPOINTS": self.etcd.endpoint,
            "TORTIE_RUN_DIR": str(folder),
            "TORTIE_SECRETS_DIR": str(folder / "secrets"),
            # The cluster of whoever runs the tests is not asked.
            "TORTIE_KUBERNETES": "auto" if "KUBECONFIG" in settings else "off",
        }
        node = self.nodes[number] = Node(where, number, folder, env | self._settings | settings)
        self.etcd.claim(node.name, block4(number), block6(number))
        if start:
            node.start_speaker()
            node.start_agent()
        return node

    def host(self, number: int) -> Namespace:
        """A host on the fabric with a pod's addresses on it."""
        where = self.fabric.node(number)
        where.ip("addr", "add", f"{pod4(number)}/32", "dev", "lo")
        where.ip("-6", "addr", "add", f"{pod6(number)}/128", "dev", "lo", "nodad")
        return where

    def close(self) -> None:
        self.fabric.close()
        if keep := os.environ.get("TORTIE_TEST_KEEP"):  # logs and files of every System, for who looks
            shutil.copytree(self.folder, Path(keep) / self.folder.name, ignore=_not_kept)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _not_kept(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "etcd" or (Path(folder) / name).is_socket()]


class Ping:
    """A ping every 10 ms from one pod's address to another's, until `lost` is asked."""

    def __init__(self, where: Namespace, source: str, target: str, interval: float = 0.01) -> None:
        self._file = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = where.start(
            "ping", "-n", "-i", str(interval), "-W", "1", "-I", source, target,
            stdout=self._file, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def lost(self) -> tuple[int, list[int]]:
        """End it: packets answered, and the sequence numbers that never were."""
        time.sleep(0.2)
        self._process.send_signal(signal.SIGINT)
        self._process.wait(10)
        self._file.seek(0)
        text = self._file.read()
        self._file.close()
        seen = {int(one) for one in re.findall(r"icmp_seq=(\d+) ttl=", text)}
        sent = int(re.search(r"(\d+) packets transmitted", text)[1])  # type: ignore[index]
        # The last one may have been under way when it was told to end.
        return len(seen), sorted(set(range(1, sent)) - seen)


@contextlib.contextmanager
def pinging(pairs: Iterable[tuple[Namespace, str, str]], least: int = 20) -> Any:
    """Pings beside the body, for a second at least; not one packet may be lost, and at least so many must
    have been answered."""
    end = time.monotonic() + 1
    pings = [((source, target), Ping(where, source, target)) for where, source, target in pairs]
    yield
    time.sleep(max(0.0, end - time.monotonic()))
    for pair, ping in pings:
        answered, lost = ping.lost()
        assert not lost, f"{pair}: {len(lost)} packets lost, first {lost[:10]}, of {answered + len(lost)}"
        assert answered >= least, f"{pair}: only {answered} packets"
