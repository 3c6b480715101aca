"""A real etcd on loopback for tests: started, killed, frozen, compacted and wiped at will."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

HOST = "127.0.0.1"


def free_port() -> int:
    """A port nobody uses now. Ports of the ephemeral range could be taken by a client meanwhile: retried."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@dataclass
class EtcdMember:
    """One etcd process with a directory of its own. `start` and `kill` may alternate."""

    name: str
    directory: Path
    client_port: int
    peer_port: int
    cluster: str
    extra: tuple[str, ...] = ()
    scheme: str = "http"
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://{HOST}:{self.client_port}"

    @property
    def log(self) -> Path:
        return self.directory / "etcd.log"

    def start(self) -> None:
        assert self.process is None, "already running"
        peer = f"http://{HOST}:{self.peer_port}"
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    "etcd", "--name", self.name, "--data-dir", str(self.directory / "data"),
                    "--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint,
                    "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                    "--initial-cluster", self.cluster, "--heartbeat-interval", "50",
                    "--election-timeout", "500", "--log-level", "warn", "--logger", "zap", *self.extra,
                ],
                cwd=self.directory, stdout=log, stderr=log,
            )  # fmt: skip

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Remove the data of a member that does not run."""
        assert self.process is None
        shutil.rmtree(self.directory / "data")

    def wait_ready(self, seconds: float = 20.0) -> None:
        """Until the client port accepts connections."""
        deadline = time.monotonic() + seconds
        while True:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"etcd ended with {self.process.returncode}: {self.log.read_text()[-2000:]}"
                )
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.client_port), 1):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"etcd does not listen: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)


@contextlib.contextmanager
def etcd(
    members: int = 1, *, extra: tuple[str, ...] = (), scheme: str = "http", wait: bool = True
) -> Iterator[list[EtcdMember]]:
    """A cluster of so many members in a temporary directory, removed afterwards with the processes."""
    directory = Path(tempfile.mkdtemp(prefix="tortie-etcd-"))
    ports = [(free_port(), free_port()) for _ in range(members)]
    cluster = ",".join(f"m{n}=http://{HOST}:{peer}" for n, (_, peer) in enumerate(ports))
    running = [
        EtcdMember(f"m{n}", directory / f"m{n}", client, peer, cluster, extra, scheme)
        for n, (client, peer) in enumerate(ports)
    ]
    try:
        for member in running:
            member.start()
        if wait:
            for member in running:
                member.wait_ready()
        yield running
    finally:
        for member in running:
            member.kill()
        shutil.rmtree(directory, ignore_errors=True)


class Cut:
    """A TCP proxy in front of a member: counts what it passes on, and cuts when told."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.passed = 0
        """Octets from the server to the clients since the last cut."""
        self.cut_after: int | None = None
        """Cut all connections, once, when so many octets have passed."""
        self.cuts = 0
        self.closed = False
        """Refuse new connections."""

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Reset all connections; new ones are welcome."""
        self.cuts += 1
        self.passed = 0
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.closed:
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there[1]}
        try:
            await asyncio.gather(
                self._pump(reader, there[1], count=False), self._pump(there[0], writer, count=True)
            )
        finally:
            self._writers -= {writer, there[1]}
            writer.transport.abort()
            there[1].transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        with contextlib.suppress(OSError):
            while octets := await reader.read(16_384):
                writer.write(octets)
                await writer.drain()
                if count:
                    self.passed += len(octets)
                    if self.cut_after is not None and self.passed >= self.cut_after:
                        self.cut_after = None
                        self.cut()
                        return
        writer.transport.abort()


async def eventually(check: Callable[[], object], seconds: float = 30.0) -> None:
    """Poll `check()` until it is true; generous, because the machine may be busy."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {seconds} s: {check}")
        await asyncio.sleep(0.02)


async def etcdctl(*arguments: str) -> str:
    """Run etcdctl; returns what it prints. Raises RuntimeError with its complaint."""
    process = await asyncio.create_subprocess_exec(
        "etcdctl", *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={"ETCDCTL_API": "3", "PATH": "/usr/local/bin:/usr/bin:/bin"},
    )  # fmt: skip
    output = (await process.communicate())[0].decode()
    if process.returncode:
        raise RuntimeError(f"etcdctl {' '.join(arguments)}: {output}")
    return output
