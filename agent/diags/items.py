"""What goes into the archive. Each item stands for itself; none of them changes anything."""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from agent.check.examine import examine
from agent.check.finding import total
from agent.check.proc import Proc
from agent.check.programs import OTHER_SPEAKERS, RIGHTS
from agent.cli import agentsocket
from agent.cli.errors import Failed
from agent.diags import datastore, redact, sources
from agent.diags.gather import LARGEST, Got, Item, Missing, command, file, search_path, text
from agent.diags.network import dump
from agent.diags.sources import Sources

MOST_EXPLAINED = 50
LOG = 1 << 20
"""Octets of a log's end."""
LINES = "4000"
PACKAGES = ("tortie", "exabgp", "grpcio", "protobuf", "pyroute2", "aiomqtt", "msgspec", "jinja2", "click")
SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/fib_multipath_*",
    "net/ipv4/ip_unprivileged_port_start",
    "net/ipv4/tcp_mtu_probing",
    "net/ipv4/conf/*/forwarding",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv4/conf/*/proxy_arp",
    "net/ipv4/conf/*/arp_ignore",
    "net/ipv4/neigh/default/gc_*",
    "net/ipv4/neigh/*/proxy_delay",
    "net/ipv6/conf/*/forwarding",
    "net/ipv6/conf/*/disable_ipv6",
    "net/ipv6/conf/*/accept_ra",
    "net/ipv6/conf/*/proxy_ndp",
    "net/ipv6/neigh/default/gc_*",
    "net/ipv6/route/max_size",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "net/bridge/bridge-nf-call-*",
    "net/core/rmem_max",
    "fs/inotify/max_user_*",
)
COMMANDS = (
    ("kernel/links.txt", "interfaces with counters", ("ip", "-d", "-s", "link")),
    ("kernel/addresses.txt", "addresses", ("ip", "address")),
    ("kernel/rules.txt", "policy rules, IPv4", ("ip", "rule")),
    ("kernel/rules6.txt", "policy rules, IPv6", ("ip", "-6", "rule")),
    ("kernel/routes.txt", "routes of all tables, IPv4", ("ip", "-d", "route", "show", "table", "all")),
    ("kernel/routes6.txt", "routes of all tables, IPv6", ("ip", "-6", "-d", "route", "show", "table", "all")),
    ("kernel/neighbours.txt", "ARP and neighbour discovery", ("ip", "neighbour")),
    ("kernel/nexthops.txt", "next hop objects", ("ip", "nexthop")),
    ("kernel/nft.txt", "nftables rules", ("nft", "list", "ruleset")),
    # Never -i: it shows TCP MD5 keys, and iproute2 6.1 prints them before everything else, without a mark.
    ("kernel/sockets.txt", "TCP sockets with their timers", ("ss", "-tanpo")),
    ("kernel/socket-totals.txt", "sockets in numbers", ("ss", "-s")),
)
SYSTEMD = Path("/run/systemd/system")
UNITS = ("tortie-agent", "tortie-speaker")


@dataclass(frozen=True, slots=True)
class Here:
    """What the items work on."""

    environ: Mapping[str, str]
    calicoctl_file: str | None
    run_dir: Path
    state_dir: Path
    node: str
    sources: Sources
    proc: Proc

    @property
    def agent_socket(self) -> Path:
        return self.run_dir / agentsocket.SOCKET


def items(here: Here) -> list[Item]:
    """In the archive's order."""
    found = [
        Item("checksystem.txt", "tortiectl node checksystem", lambda: _checksystem(here), 60),
        Item("settings.txt", "settings and where each comes from", lambda: _settings(here)),
        Item("versions.txt", "versions", _versions),
        Item("processes.txt", "our processes, and other BGP speakers", lambda: _processes(here)),
        Item(
            "run-directory.txt", "sockets and files of the run and state directories", lambda: _folders(here)
        ),
        Item("agent/status.json", "tortiectl node status", lambda: _asked(here, {"ask": "status"})),
        Item("agent/routes.jsonl", "tortiectl routes", lambda: _routes(here), 30),
        Item(
            "agent/explain.txt", "tortiectl explain, of what is not installed", lambda: _explained(here), 60
        ),
        Item("agent/metrics.txt", "/metrics", lambda: _http(here, "/metrics")),
        Item("agent/readyz.txt", "/readyz", lambda: _http(here, "/readyz")),
        Item("speaker/exabgp.conf", "the speaker's peers, without passwords", lambda: _conf(here)),
        Item(
            "speaker/state.json",
            "the speaker and its sessions, as the agent sees them",
            lambda: _speaker(here),
        ),
        Item("datastore.txt", "what concerns this node in etcd", lambda: datastore.view(here), 40),
        Item("kernel/sysctl.txt", "settings of the kernel", lambda: _sysctls(here.proc)),
    ]
    if shutil.which("ip", path=search_path()) is None:
        found.append(Item("kernel/netlink.txt", "links, addresses, rules, routes by netlink", dump, 30))
    found += [Item(name, what, _of(words)) for name, what, words in COMMANDS]
    for unit in UNITS:
        show = (
            "systemctl",
            "show",
            unit,
            "--property",
            "ActiveState,SubState,Result,NRestarts,MemoryCurrent",
        )
        journal = (
            "journalctl",
            "--unit",
            unit,
            "--lines",
            LINES,
            "--no-pager",
            "--output",
            "short-iso-precise",
        )
        found += [
            Item(f"logs/{unit}.unit.txt", f"{unit}'s unit", _of(show, SYSTEMD)),
            Item(f"logs/{unit}.journal.txt", f"{unit}'s journal", _of(journal, SYSTEMD)),
        ]
    for role in ("agent", "speaker"):  # as the lab writes them
        path = here.run_dir / f"{role}.log"
        if path.exists():
            found.append(Item(f"logs/{role}.log", f"the end of {path}", partial(file, path, LOG, end=True)))
    return found


def _of(words: tuple[str, ...], needs: Path | None = None) -> Callable[[], Got]:
    def get() -> Got:
        if needs is not None and not needs.exists():
            raise Missing("systemd does not run here; containers: look at their logs")
        return command(*words)

    return get


def _checksystem(here: Here) -> Got:
    found = asyncio.run(examine(here.environ, here.calicoctl_file, here.proc))
    return text("\n".join([*(one.line() for one in found), total(found), ""]))


def _settings(here: Here) -> Got:
    return text("\n".join([*sources.listing(here.sources), ""]))


def _versions() -> Got:
    system = platform.uname()
    lines = [
        f"python {sys.version.split()[0]} ({sys.executable})",
        f"kernel {system.release} {system.machine}",
    ]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} is not installed")
    for path in (Path("/etc/os-release"), Path("/usr/lib/os-release")):
        if path.exists():
            lines += ["", path.read_text(errors="replace")]
            break
    return text("\n".join([*lines, ""]))


def _processes(here: Here) -> Got:
    """No arguments: those of others may hold anything."""
    lines = ["PID UID STATE THREADS RSS-KIB OPEN-FILES-LIMIT CAPABILITIES SAME-NETWORK PROGRAM"]
    lines += [
        f"{one.pid} {one.uid} {one.state[:1]} {one.threads} {one.resident >> 10} {one.open_files} "
        f"{one.capabilities:#x} {one.here} {one.program}"
        for one in here.proc.processes()
        if one.program in RIGHTS or one.name in OTHER_SPEAKERS or one.name.startswith("calico")
    ]
    return text("\n".join([*lines, ""]))


def _folders(here: Here) -> Got:
    lines = []
    for folder in dict.fromkeys((here.run_dir, here.state_dir)):
        lines.append(f"{folder}:")
        try:
            for entry in sorted(folder.iterdir()):
                seen = entry.lstat()
                changed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seen.st_mtime))
                lines.append(
                    f"  {seen.st_mode:o} {seen.st_uid}:{seen.st_gid} {seen.st_size:>9} {changed} {entry.name}"
                )
        except OSError as error:
            lines.append(f"  {error.strerror}")
    return text("\n".join([*lines, ""]))


def _ask(here: Here, question: dict[str, str]) -> dict[str, Any]:
    try:
        return agentsocket.ask(here.agent_socket, question, 5.0)
    except Failed as error:
        raise Missing(error.format_message()) from None


def _asked(here: Here, question: dict[str, str]) -> Got:
    return text(json.dumps(redact.resource(_ask(here, question)), indent=1) + "\n")


def _routes(here: Here) -> Got:
    """A line each, so that a list that is cut can be read."""
    listed = _ask(here, {"ask": "routes"}).get("routes", [])
    return text("".join(f"{json.dumps(entry)}\n" for entry in listed), 2 * LARGEST)


def _explained(here: Here) -> Got:
    """Prefixes with a refused path, or not as wanted in the kernel; the agent's own words."""
    listed = _ask(here, {"ask": "routes"}).get("routes", [])
    odd = [
        str(entry.get("prefix"))
        for entry in listed
        if entry.get("kernel") != "installed"
        or any(path.get("rejection") or path.get("validity") == "invalid" for path in entry.get("paths", []))
    ]
    if not odd:
        return text("Nothing is refused, and everything is installed.\n")
    lines = [f"Refused or not installed: {len(odd)}; the first {min(len(odd), MOST_EXPLAINED)}:"]
    for prefix in odd[:MOST_EXPLAINED]:
        lines += ["", *_ask(here, {"ask": "explain", "prefix": prefix}).get("lines", [])]
    return text("\n".join([*map(str, lines), ""]))


def _speaker(here: Here) -> Got:
    status = _ask(here, {"ask": "status"})
    return text(json.dumps({name: status.get(name) for name in ("speaker", "peers")}, indent=1) + "\n")


def _conf(here: Here) -> Got:
    got = file(here.run_dir / "exabgp.conf")
    return Got(redact.Redactor().text(got.octets.decode(errors="replace")).encode(), got.note)


def _http(here: Here, path: str) -> Got:
    place = here.sources.value("TORTIE_HEALTH_ADDRESS")
    if place.lower() == "none":
        raise Missing("TORTIE_HEALTH_ADDRESS is none")
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(f"http://{place}{path}", timeout=5.0) as answer:
            return text(answer.read(LARGEST).decode(errors="replace"))
    except HTTPError as error:
        return text(error.read(LARGEST).decode(errors="replace"))
    except (URLError, OSError, ValueError) as error:
        raise Missing(f"http://{place}{path}: {getattr(error, 'reason', error)}") from None


def _sysctls(proc: Proc) -> Got:
    def lines() -> Iterator[str]:
        for pattern in SYSCTLS:
            for path in sorted((proc.root / "sys").glob(pattern)):
                name = path.relative_to(proc.root / "sys")
                yield f"{name} = {proc.text('sys', str(name))}"

    return text("\n".join([f"host {socket.gethostname()}", *lines(), ""]))
