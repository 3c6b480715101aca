"""A lab built by the real command, under a name and in a folder of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class RealLab:
    """Calls `tortiectl lab …` as a person would; every namespace it makes starts with `name`-."""

    def __init__(self, tag: str, **environ: str) -> None:
        self.name = f"tt{os.getpid() % 1_000_000}{tag}"
        self.folder = Path(tempfile.gettempdir()) / f"{self.name}-lab"
        self._environ = os.environ | {
            "TORTIE_LAB_NAME": self.name,
            "TORTIE_LAB_DIR": str(self.folder),
            "ETCD_ENDPOINTS": f"unix://{self.folder}/etcd.sock",
            "TORTIE_RUN_DIR": str(self.folder),
            **environ,
        }

    def tortiectl(self, *arguments: str, code: int = 0, seconds: float = 180) -> str:
        """Run the command; its whole output. AssertionError unless it ends with `code`."""
        done = subprocess.run(
            [sys.executable, "-m", "agent.cli.main", *arguments],
            env=self._environ,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == code, f"tortiectl {' '.join(arguments)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def lab(self, *arguments: str, code: int = 0, seconds: float = 180) -> str:
        return self.tortiectl("lab", *arguments, code=code, seconds=seconds)

    def interrupted(self, *arguments: str, after: str, seconds: float = 180) -> tuple[int, str]:
        """Run `lab …`, press Ctrl-C once it has said `after`: its exit status and whole output."""
        with subprocess.Popen(
            [sys.executable, "-m", "agent.cli.main", "lab", *arguments],
            env=self._environ | {"PYTHONUNBUFFERED": "1"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # As from a terminal: a process group of its own, that does not ignore the signal.
            process_group=0,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        ) as process:
            assert process.stdout is not None
            said = ""
            while after not in said and (line := process.stdout.readline()):
                said += line
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            rest, _ = process.communicate(timeout=seconds)
        return process.returncode, said + rest

    def routes(self, node: str, version: int = 4) -> dict[str, dict[str, Any]]:
        """The node's main table, as the kernel tells `ip`."""
        text = subprocess.run(
            ["ip", "-n", f"{self.name}-{node}", f"-{version}", "-j", "route"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return {route["dst"]: route for route in json.loads(text or "[]")}

    def learned(self, node: str, version: int = 4) -> dict[str, str]:
        """Prefix -> gateway of the routes with protocol bgp, our own blocks apart."""
        return {
            prefix: route.get("gateway", "")
            for prefix, route in self.routes(node, version).items()
            if route.get("protocol") == "bgp" and route.get("type") != "blackhole"
        }

    def status(self, node: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.tortiectl("node", "status", "--node", node, "-o", "json"))
        return answer

    def state(self) -> dict[str, Any]:
        made: dict[str, Any] = json.loads((self.folder / "lab.json").read_text())
        return made

    def pod(self, name: str) -> dict[str, str]:
        return next(pod for node in self.state()["nodes"] for pod in node["pods"] if pod["name"] == name)

    def processes(self) -> dict[str, dict[str, Any]]:
        """What the supervisor says, by name."""
        import socket

        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.folder / "supervisor.sock"))
            connection.sendall(b'{"do": "list"}\n')
            with connection.makefile("rb") as stream:
                return {unit["name"]: unit for unit in json.loads(stream.readline())["units"]}

    def ping(self, source: str, target: str, count: int, interval: float) -> Ping:
        """`ping` from pod to pod, running beside the test."""
        return Ping(f"{self.name}-{source}", self.pod(target)["ipv4"], count, interval)

    def leftovers(self) -> list[str]:
        """Everything of this lab that still exists; empty when it is gone."""
        found = [f"namespace {entry.name}" for entry in Path("/run/netns").glob(f"{self.name}-*")]
        found += [f"folder {self.folder}"] if self.folder.exists() else []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                except OSError:
                    continue
                if os.fsencode(self.folder) in text:
                    found.append(f"process {entry.name}: {text[:80]!r}")
        return found


class Ping:
    """A ping under way; `result` waits for its end: packets sent and answered."""

    def __init__(self, namespace: str, address: str, count: int, interval: float) -> None:
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "ping", "-q", "-i", str(interval), "-c", str(count), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def result(self, seconds: float = 120) -> tuple[int, int]:
        text, _ = self._process.communicate(timeout=seconds)
        words = next(line for line in text.splitlines() if "packets transmitted" in line).split()
        return int(words[0]), int(words[3])


def until(check: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Poll until `check()` is true; generous, because the machine may be busy."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"still not so after {seconds:g} s: {what}"
        time.sleep(0.1)


def machine() -> dict[str, str]:
    """What a lab must leave as it was: the machine's own links, routes and limits."""
    settings = [
        "net/ipv4/ip_forward",
        "net/ipv4/neigh/default/gc_thresh2",
        "net/ipv4/neigh/default/gc_thresh3",
        "net/ipv6/neigh/default/gc_thresh3",
        "fs/inotify/max_user_instances",
    ]
    seen = {name: (Path("/proc/sys") / name).read_text() for name in settings}
    seen["ledger"] = str(Path("/run/tortie-lab-limits.json").exists())
    for name, command in (
        ("links", ["ip", "-br", "link"]),
        ("routes", ["ip", "route"]),
        ("rules", ["ip", "rule"]),
    ):
        seen[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return seen
