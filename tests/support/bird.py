"""BIRD 2 as a BGP peer in a namespace."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from tests.support.netns import Namespace

TIMERS = """
  connect delay time 1;
  connect retry time 2;
  error wait time 1, 2;
  startup hold time 30;
"""


def bgp(
    name: str,
    local: str,
    peer: str,
    *,
    local_as: int = 64512,
    peer_as: int = 64512,
    hold: int = 90,
    passive: bool = False,
    password: str | None = None,
    graceful: int | None = None,
    port: int = 179,
    export: str = "all",
    extra: str = "",
) -> str:
    """A `protocol bgp` block for the family of the addresses."""
    family = "ipv6" if ":" in peer else "ipv4"
    lines = [
        f"protocol bgp {name} {{",
        f"  local {local} as {local_as};",
        f"  neighbor {peer} port {port} as {peer_as};",
        f"  hold time {hold};",
        TIMERS,
        "  direct;" if local_as == peer_as else "  multihop;",
        f"  passive {'yes' if passive else 'no'};",
    ]
    if password is not None:
        lines.append(f'  password "{password}";')
    if graceful is not None:
        lines.append(f"  graceful restart yes; graceful restart time {graceful};")
    lines += [extra, f"  {family} {{ import all; export {export}; next hop self; }};", "}"]
    return "\n".join(lines) + "\n"


def static(name: str, routes: Iterable[str]) -> str:
    """A `protocol static` with blackholes; all routes must be of one family."""
    listed = list(routes)
    family = "ipv6" if any(":" in route for route in listed) else "ipv4"
    body = "\n".join(f"  route {route} blackhole;" for route in listed)
    return f"protocol static {name} {{\n  {family};\n{body}\n}}\n"


class Bird:
    """A BIRD process. Files live in `folder`; it dies with its namespace. `options`: of the command."""

    def __init__(
        self, where: Namespace, folder: Path, router_id: str, *parts: str, options: tuple[str, ...] = ()
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._where = where
        self._conf = folder / "bird.conf"
        self._control = folder / "bird.ctl"
        self._log = folder / "bird.log"
        self._router_id = router_id
        self._options = options
        self._since: dict[str, str] = {}
        self._write(parts)
        self.start()

    def start(self) -> None:
        self._control.unlink(missing_ok=True)
        self.process = self._where.start(
            "bird",
            "-f",
            "-c",
            str(self._conf),
            "-s",
            str(self._control),
            *self._options,
            stderr=subprocess.PIPE,
        )
        _wait(self._answers, 10, lambda: f"bird did not start: {self._complaint()}")

    def _answers(self) -> bool:
        return self.process.poll() is None and "BIRD" in self.ask("show", "status")

    def _complaint(self) -> str:
        self.process.kill()
        return str((self.process.stderr.read() if self.process.stderr else b"").decode())

    def _write(self, parts: tuple[str, ...]) -> None:
        head = (
            f'log "{self._log}" all;\nrouter id {self._router_id};\nprotocol device {{}}\n'
            'protocol direct { ipv4; ipv6; interface "-*"; }\n'
        )
        self._conf.write_text(head + "\n".join(parts))

    def restart(self, *parts: str) -> None:
        """kill -9, and a new life, with another configuration if one is given."""
        self.process.kill()
        self.process.wait()
        if parts:
            self._write(parts)
        self.start()

    def configure(self, *parts: str) -> None:
        """Replace everything but the head and reload."""
        self._write(parts)
        answer = self.ask("configure")
        assert "Reconfigured" in answer or "Reconfiguration in progress" in answer, answer

    def ask(self, *words: str) -> str:
        done = subprocess.run(
            ["birdc", "-s", str(self._control), *words], capture_output=True, text=True, check=False
        )
        return done.stdout

    def state(self, protocol: str) -> str:
        """`Established`, `Active`, ... of a BGP protocol."""
        found = re.search(r"BGP state:\s+(\S+)", self.ask("show", "protocols", "all", protocol))
        return found.group(1) if found else "?"

    def since(self, protocol: str) -> str:
        """When the protocol's state last changed, as BIRD writes it: equal texts mean no change.

        BIRD derives the time of day anew each time and may round it to the next millisecond.
        """
        text = self._since_now(protocol)
        known = self._since.get(protocol)
        if known is None or abs(_seconds(text) - _seconds(known)) > 0.01:
            self._since[protocol] = text
        return self._since[protocol]

    def _since_now(self, protocol: str) -> str:
        found = re.search(
            rf"^{protocol}\s+BGP\s+\S+\s+\S+\s+(\S+)", self.ask("show", "protocols"), re.MULTILINE
        )
        return found.group(1) if found else "?"

    def routes(self, protocol: str) -> set[str]:
        """Prefixes learned from a protocol."""
        answer = self.ask("show", "route", "protocol", protocol)
        return set(re.findall(r"^([0-9a-f.:]+/\d+)", answer, re.MULTILINE))

    def count(self, protocol: str) -> int:
        found = re.search(
            r"^(\d+) of", self.ask("show", "route", "protocol", protocol, "count"), re.MULTILINE
        )
        return int(found.group(1)) if found else 0

    def route(self, prefix: str) -> str:
        return self.ask("show", "route", prefix, "all")

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def wait_established(self, *protocols: str, seconds: float = 20) -> None:
        for protocol in protocols:
            _wait(
                lambda one=protocol: self.state(one) == "Established",  # type: ignore[misc]
                seconds,
                lambda one=protocol: f"{one}: {self.ask('show', 'protocols', 'all', one)}",  # type: ignore[misc]
            )

    def wait_routes(self, protocol: str, wanted: Iterable[str], seconds: float = 20) -> None:
        expected = set(wanted)
        _wait(
            lambda: self.routes(protocol) == expected,
            seconds,
            lambda: f"{protocol} has {sorted(self.routes(protocol))[:20]}, not {sorted(expected)[:20]}",
        )


def _seconds(text: str) -> float:
    """Of a time of day, `06:56:24.503`; below zero for what is none."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return -1.0


def _wait(condition, seconds: float, complaint) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(complaint if isinstance(complaint, str) else complaint())
        time.sleep(0.05)
