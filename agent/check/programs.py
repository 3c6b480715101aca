"""Who runs here: our two programs with their rights and limits, port 179, and who else speaks BGP."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from agent.check.finding import Finding, fail, ok, unseen, warn
from agent.check.proc import Proc, Running

PORT = 179
NEEDED_FILES = 1024
RIGHTS = {"tortie-agent": (12, "CAP_NET_ADMIN"), "tortie-speaker": (10, "CAP_NET_BIND_SERVICE")}
"""Program -> the capability's number (linux/capability.h) and name."""
OTHER_SPEAKERS = frozenset(
    {"bird", "bird6", "bgpd", "gobgpd", "exabgp", "frr", "openbgpd", "metallb-speaker"}
)
FROM_HERE = "its process is not visible from here (another user's or another container's): ask as root"


def check(proc: Proc, told: Mapping[str, int] | None) -> Iterator[Finding]:
    """`told`: program -> process, as the agent says (0: in another container); None: it does not answer."""
    processes = proc.processes()
    yield from port(proc, processes, bool(told and "tortie-speaker" in told))
    yield from others(processes)
    for program in RIGHTS:
        running = ours(processes, program, told)
        if len(running) > 1:
            yield unseen(program, f"{len(running)} run; only root may see which of them is this node's")
        else:
            yield from rights(proc, program, running, told)


def ours(processes: Sequence[Running], program: str, told: Mapping[str, int] | None) -> list[Running]:
    """Of those that run a program the ones in this network namespace; unseen, the one the agent names."""
    mine = [p for p in processes if p.program == program and p.here is not False]
    return [p for p in mine if p.here or p.pid == (told or {}).get(program)] or mine


def port(proc: Proc, processes: Sequence[Running], speaker_connected: bool) -> Iterator[Finding]:
    listening = proc.listeners(PORT)
    if not listening:
        free = "free; the speaker opens it when there are peers"
        yield ok("port 179", free)
        return
    owners = proc.owners(set(listening), list(processes))
    by_program = {process.program: process for process in owners.values()}
    for program, process in by_program.items():
        if program == "tortie-speaker":
            yield ok("port 179", f"held by tortie-speaker (process {process.pid})")
        else:
            yield fail(
                "port 179",
                f"held by {program} (process {process.pid}): tortie-speaker cannot have it",
                "stop that one"
                + (" (calico-node: CALICO_NETWORKING_BACKEND=none)" if program.startswith("bird") else ""),
            )
    if len(owners) < len(listening) and not by_program:
        if speaker_connected:
            yield ok("port 179", f"somebody listens, and the agent's speaker runs; {FROM_HERE}")
        else:
            yield unseen("port 179", f"somebody listens; {FROM_HERE}")


def others(processes: Sequence[Running]) -> Iterator[Finding]:
    """Other BGP speakers in this network namespace, whatever they do now."""
    for process in processes:
        if process.name in OTHER_SPEAKERS and process.here is not False:
            where = "" if process.here else " (perhaps in another network namespace: ask as root)"
            yield warn(
                "other speakers",
                f"{process.name} runs (process {process.pid}){where}",
                "two of them must not hold port 179 or write the same routes: see that it does neither",
            )


def rights(
    proc: Proc, program: str, running: Sequence[Running], told: Mapping[str, int] | None
) -> Iterator[Finding]:
    number, name = RIGHTS[program]
    if not running and told and program in told:
        yield unseen(program, "it runs, as the agent says, but in a container that is not visible from here")
        return
    if not running:
        yield warn(program, "not seen running in this network namespace", "start it, or ask where it runs")
        return
    for process in running:
        who = f"process {process.pid}, user {_user(process.uid)}"
        if process.capabilities >> number & 1:
            yield ok(program, f"runs ({who}) with {name}")
        elif program == "tortie-speaker" and _low_ports_are_free(proc):
            yield ok(program, f"runs ({who}); port 179 needs no right here (ip_unprivileged_port_start)")
        else:
            yield fail(
                program,
                f"runs ({who}) without {name}",
                "give it the capability (deploy/systemd, deploy/kubernetes show how; no-new-privileges takes "
                "away that of the program's file)",
            )
        if process.open_files is None:
            yield unseen(f"{program}'s open files", "only root or its own user may see its limit")
        elif process.open_files < NEEDED_FILES:
            yield warn(
                f"{program}'s open files",
                f"at most {process.open_files}",
                f"raise it to {NEEDED_FILES} or more (LimitNOFILE, --ulimit nofile): a socket per peer",
            )
        else:
            yield ok(f"{program}'s open files", f"at most {process.open_files}")


def _low_ports_are_free(proc: Proc) -> bool:
    first = proc.sysctl("net/ipv4/ip_unprivileged_port_start")
    return first is not None and first <= PORT


def directories(run: Path, state: Path, secrets: Path, agents: Sequence[Running]) -> Iterator[Finding]:
    """The run and state directories are there, and theirs who writes in them."""
    uid = agents[0].uid if agents else os.geteuid()
    places = [("run directory", run, "TORTIE_RUN_DIR")]
    if state != run:
        places.append(("state directory", state, "TORTIE_STATE_DIR"))
    for check, path, setting in places:
        yield _directory(check, path, setting, uid, bool(agents))
    if secrets.exists():
        readable = stat.S_IMODE(secrets.stat().st_mode) & stat.S_IROTH and any(
            entry.is_file() and entry.stat().st_mode & stat.S_IROTH for entry in _files(secrets)
        )
        if readable:
            yield warn("passwords", f"every user may read files in {secrets}", f"chmod -R o-rwx {secrets}")


def _files(secrets: Path) -> Iterator[Path]:
    try:
        for folder in secrets.iterdir():
            if folder.is_dir():
                yield from folder.iterdir()
    except OSError:
        return


def _directory(check: str, path: Path, setting: str, uid: int, runs: bool) -> Finding:
    try:
        seen = path.stat()
    except FileNotFoundError:
        if runs:
            return fail(
                check, f"{path} is not there though the agent runs", f"see {setting}; restart the agent"
            )
        return ok(check, f"{path} is not there yet: the agent's start (or its unit) makes it")
    except OSError as error:
        return unseen(check, f"{path}: {error.strerror}")
    mode, owner = stat.S_IMODE(seen.st_mode), f"{_user(seen.st_uid)}, mode {stat.S_IMODE(seen.st_mode):04o}"
    if not stat.S_ISDIR(seen.st_mode):
        return fail(check, f"{path} is not a directory", f"remove it, or set {setting} to another")
    if mode & stat.S_IWOTH:
        return fail(check, f"{path} may be written by everyone ({owner})", f"chmod o-w {path}")
    if uid not in (0, seen.st_uid) and not mode & stat.S_IWGRP:
        if not runs:
            return unseen(
                check, f"{path} ({owner}): whether the agent may write there; its user is not known"
            )
        return fail(
            check,
            f"{path} belongs to {owner}; the agent's user {_user(uid)} cannot write there",
            f"chown {uid} {path}",
        )
    return ok(check, f"{path} ({owner})")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
