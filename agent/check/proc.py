"""/proc as it is seen from here: sysctls, listening sockets, processes. `root` is another tree in tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LONGEST = 1 << 20
"""Octets read of one file at most."""
_LISTEN = "0A"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A process, as far as its files could be read."""

    pid: int
    name: str
    arguments: tuple[str, ...]
    uid: int
    capabilities: int
    """Effective ones, as a bit mask."""
    resident: int
    """Octets."""
    threads: int
    state: str
    open_files: int | None
    """Its present limit; None where only root may look."""
    here: bool | None
    """Whether it is in our network namespace; None where only root may look."""

    @property
    def program(self) -> str:
        """`tortie-agent`, `tortie-speaker`, or the kernel's name for it."""
        words = [word.rpartition("/")[2] for word in self.arguments[:4]]
        for ours, module in (("tortie-agent", "agent.main"), ("tortie-speaker", "agent.speaker.worker")):
            if ours in words or module in words:
                return ours
        return self.name


@dataclass(frozen=True, slots=True)
class Proc:
    root: Path = PROC

    def text(self, *path: str) -> str | None:
        """A file's content, stripped; None when it is not there or not for us."""
        try:
            with Path(self.root, *path).open("rb") as file:
                return file.read(LONGEST).decode(errors="replace").strip()
        except OSError:
            return None

    def sysctl(self, name: str) -> int | None:
        """`net/ipv4/ip_forward`; None when this kernel, or this namespace, has no such setting."""
        text = self.text("sys", *name.split("/"))
        try:
            return int(text) if text is not None else None
        except ValueError:
            return None

    def processes(self) -> list[Running]:
        """All that can be seen from here: in a container those of the container only."""
        own = self._namespace("self")
        try:
            numbers = sorted(int(entry.name) for entry in self.root.iterdir() if entry.name.isdigit())
        except OSError:
            return []
        return [found for pid in numbers if (found := self._process(pid, own)) is not None]

    def listeners(self, port: int) -> dict[int, str]:
        """Inode -> local address in hexadecimal of the TCP sockets that listen on a port."""
        found = {}
        for file in ("tcp", "tcp6"):
            for line in (self.text("net", file) or "").splitlines()[1:]:
                field = line.split()
                if len(field) > 9 and field[3] == _LISTEN and int(field[1].rpartition(":")[2], 16) == port:
                    found[int(field[9])] = field[1].rpartition(":")[0]
        return found

    def owners(self, inodes: set[int], among: list[Running]) -> dict[int, Running]:
        """Inode -> process that holds the socket, where we may look."""
        found = {}
        for process in among:
            for target in self._links(process.pid):
                if target.startswith("socket:[") and int(target[8:-1]) in inodes:
                    found[int(target[8:-1])] = process
        return found

    def _links(self, pid: int) -> Iterator[str]:
        try:
            for entry in os.scandir(self.root / str(pid) / "fd"):
                try:
                    yield os.readlink(entry.path)  # noqa: PTH115 -- thousands of them
                except OSError:
                    continue
        except OSError:
            return

    def _process(self, pid: int, own: str | None) -> Running | None:
        status = self.text(str(pid), "status")
        if not status:
            return None
        field = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "VmRSS" not in field:
            return None  # the kernel's own
        theirs = self._namespace(str(pid))
        return Running(
            pid=pid,
            name=field.get("Name", "").strip(),
            arguments=tuple((self.text(str(pid), "cmdline") or "").rstrip("\0").split("\0")),
            uid=int(field.get("Uid", "0").split()[1]),
            capabilities=int(field.get("CapEff", "0").strip(), 16),
            resident=int(field["VmRSS"].split()[0]) << 10,
            threads=int(field.get("Threads", "0")),
            state=field.get("State", "").strip(),
            open_files=self._open_files(pid),
            here=None if theirs is None or own is None else theirs == own,
        )

    def _open_files(self, pid: int) -> int | None:
        for line in (self.text(str(pid), "limits") or "").splitlines():
            if line.startswith("Max open files"):
                word = line.split()[3]
                return int(word) if word.isdigit() else 1 << 30
        return None

    def _namespace(self, pid: str) -> str | None:
        try:
            return os.readlink(self.root / pid / "ns" / "net")  # noqa: PTH115
        except OSError:
            return None
