"""Network namespaces: make, enter, list, delete. Needs root (CAP_SYS_ADMIN)."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from agent.lab.plan import LabError

RUN = Path("/run/netns")
"""Where iproute2 keeps named namespaces."""
CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def names() -> list[str]:
    """Named network namespaces of this machine."""
    try:
        return sorted(entry.name for entry in RUN.iterdir())
    except FileNotFoundError:
        return []


def ip_batch(lines: Iterable[str], namespace: str | None = None) -> None:
    """Run `ip` commands in one process, inside `namespace`. Raises LabError with what `ip` said."""
    script = "".join(f"{line}\n" for line in lines)
    if not script:
        return
    where = ["-n", namespace] if namespace else []
    done = subprocess.run(
        ["ip", *where, "-batch", "-"], input=script, capture_output=True, text=True, check=False
    )
    if done.returncode:
        place = f"namespace {namespace}" if namespace else "this machine"
        raise LabError(f"'ip -batch' in {place} failed: {_explain(done.stderr, script)}")


def ip_batches(batches: Mapping[str, list[str]]) -> None:
    """One batch per namespace, a few at a time."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        for _ in pool.map(lambda item: ip_batch(item[1], item[0]), batches.items()):
            pass


def inside(namespace: str, work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own that has entered the namespace; its result or its exception.

    A thread, as setns(2) changes only the calling one: what it opens (sockets, /proc/sys/net) belongs to
    the namespace, and the rest of the process stays where it is.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            enter(namespace)
            result.append(work())
        except BaseException as error:  # handed to the caller, whatever it is
            failure.append(error)

    thread = threading.Thread(target=run, name=f"in {namespace}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def enter(namespace: str) -> None:
    """Move the calling thread into the namespace for good."""
    try:
        descriptor = os.open(RUN / namespace, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LabError(
            f"network namespace {namespace} is gone: 'tortiectl lab down', then up again"
        ) from None
    try:
        # os.setns came with Python 3.12.
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"setns to {namespace}: {os.strerror(number)}")
    finally:
        os.close(descriptor)


def write_sysctls(namespace: str, settings: Iterable[tuple[str, str]]) -> None:
    """Write `net.` settings, given as paths below /proc/sys/net, inside the namespace."""

    def write() -> None:
        for path, value in settings:
            try:
                Path("/proc/sys/net", path).write_text(value)
            except OSError as error:
                raise LabError(
                    f"{namespace}: /proc/sys/net/{path} could not be set to {value}: {error.strerror}"
                ) from None

    inside(namespace, write)


def pids(namespaces: Iterable[str]) -> dict[int, str]:
    """Processes whose network namespace is one of these -> the namespace's name."""
    inodes: dict[int, str] = {}
    for name in namespaces:
        try:
            inodes[(RUN / name).stat().st_ino] = name
        except OSError:
            continue
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            inode = (entry / "ns/net").stat().st_ino
        except OSError:
            continue  # ended meanwhile
        if inode in inodes:
            found[int(entry.name)] = inodes[inode]
    return found


def delete(namespaces: Iterable[str]) -> None:
    """Delete namespaces that exist; one that cannot be deleted does not keep the others."""
    present = set(names())
    lines = [f"netns del {name}" for name in namespaces if name in present]
    if not lines:
        return
    script = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(
        ["ip", "-force", "-batch", "-"], input=script, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LabError(f"not every namespace could be deleted: {_explain(done.stderr, script)}")


def _explain(stderr: str, script: str) -> str:
    """What `ip -batch` said, with the line it said it about."""
    said = [line for line in stderr.strip().splitlines() if line]
    for line in said:
        if line.startswith("Command failed -:"):
            number = line.removeprefix("Command failed -:")
            if number.isdigit() and int(number) <= script.count("\n"):
                return f"{' '.join(said)} ({script.splitlines()[int(number) - 1]!r})"
    return " ".join(said) or "no reason given"
