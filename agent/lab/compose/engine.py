"""Calls of `docker` and `docker compose`: any engine that has both will do."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from agent.lab.plan import LabError

SECONDS = 120.0
BUILD_SECONDS = 900.0
PULL_SECONDS = 900.0
OBSERVE = "observe"
"""The profile of docker-compose.yml with Prometheus and Grafana."""
INSIDE = ("python", "-m", "agent.lab.compose.inside")
IMAGES = {"tortie": "tortie:dev", "lab": "tortie-lab:dev"}
"""Target of deploy/Dockerfile -> name of the image, as docker-compose.yml has them."""


class Engine:
    """One engine and the lab's project in it. Raises LabError with the engine's own words."""

    def __init__(self, top: Path, environ: Mapping[str, str]) -> None:
        self._top = top
        self._environ = {**environ, "DOCKER_BUILDKIT": "1"}
        self._docker = environ.get("TORTIE_DOCKER") or "docker"
        self._ids: dict[str, str] = {}

    @classmethod
    def here(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """For the checkout that this file is in."""
        top = Path(__file__).resolve().parents[3]
        if not (top / "docker-compose.yml").exists():
            raise LabError(f"{top} has no docker-compose.yml: run it from a checkout ('make compose-lab')")
        return cls(top, environ)

    def build(self) -> None:
        """Both images. TORTIE_CA_FILE: a bundle for networks that sign TLS anew."""
        authority = self._environ.get("TORTIE_CA_FILE")
        extra = [*(["--secret", f"id=ca,src={authority}"] if authority else [])]
        extra += self._environ.get("TORTIE_BUILD_ARGS", "").split()
        for target, image in IMAGES.items():
            self._run(
                "build", "-q", "-f", "deploy/Dockerfile", "--target", target, "-t", image, *extra, ".",
                seconds=BUILD_SECONDS,
            )  # fmt: skip

    def compose(self, *arguments: str, seconds: float = SECONDS) -> str:
        return self._run("compose", *arguments, seconds=seconds)

    def up(self, *, observe: bool = False) -> None:
        """`observe`: with Prometheus and Grafana, whose images the engine may have to pull."""
        self._ids.clear()
        profile = ("--profile", OBSERVE) if observe else ()
        words = ("up", "--detach", "--no-build", "--remove-orphans")
        self.compose(*profile, *words, seconds=PULL_SECONDS if observe else SECONDS)

    def down(self) -> None:
        """Containers, networks and volumes of the lab; the images stay."""
        words = ("down", "--volumes", "--remove-orphans", "--timeout", "2")
        self.compose("--profile", OBSERVE, *words)

    def published(self, service: str, port: int) -> str:
        """Address and port on the engine's machine that lead to a service's port."""
        return self.compose("--profile", OBSERVE, "port", service, str(port)).strip()

    def container(self, service: str) -> str:
        """The id of a service's container."""
        if service not in self._ids:
            found = self.compose("--profile", OBSERVE, "ps", "--all", "--quiet", service).split()
            if not found:
                raise LabError(f"there is no container of {service}: 'make compose-lab' starts the lab")
            self._ids[service] = found[0]
        return self._ids[service]

    def act(self, verb: str, *services: str) -> None:
        """pause, unpause, kill, start, stop or restart containers."""
        self._run(verb, *(self.container(service) for service in services))

    def crash(self, service: str) -> None:
        """SIGKILL the program from inside: unlike `docker kill`, the engine then starts it again."""
        self.execute(service, "sh", "-c", 'kill -9 "$(cat /proc/1/task/1/children)"')

    def unplug(self, node: str) -> None:
        self._run("network", "disconnect", "tortie_fabric", self.container(node))

    def plug_in(self, node: str, ipv4: str, ipv6: str) -> None:
        where = ("tortie_fabric", self.container(node))
        self._run("network", "connect", "--ip", ipv4, "--ip6", ipv6, *where)

    def execute(self, service: str, *command: str) -> str:
        return self._run("exec", self.container(service), *command)

    def inside(self, node: str, *words: str) -> dict[str, Any]:
        """Ask `agent.lab.compose.inside` in a node."""
        answer: dict[str, Any] = json.loads(self.execute(node, *INSIDE, *words))
        return answer

    def start_inside(self, node: str, *words: str) -> subprocess.Popen[str]:
        """The same for a word that works until its standard input ends."""
        return subprocess.Popen(
            [self._docker, "exec", "-i", self.container(node), *INSIDE, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environ,
            text=True,
        )

    def _run(self, *arguments: str, seconds: float = SECONDS) -> str:
        shown = f"'{self._docker} {' '.join(arguments[:3])} …'"
        try:
            done = subprocess.run(
                [self._docker, *arguments],
                cwd=self._top,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except FileNotFoundError:
            raise LabError(
                f"there is no {self._docker}: install Docker Engine 20.10 or newer with its compose plugin"
            ) from None
        except subprocess.TimeoutExpired:
            raise LabError(f"{shown} did not end within {seconds:g} s") from None
        if done.returncode:
            raise LabError(f"{shown} failed: {_last(done.stderr or done.stdout)}")
        return done.stdout


def _last(text: str, lines: int = 12) -> str:
    """The end of what a command said, where its reason is."""
    said: Sequence[str] = text.strip().splitlines()[-lines:]
    return "\n    ".join(said) or "no reason given"
