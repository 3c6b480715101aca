"""The lab as a table: nodes, addresses, blocks, sessions, kernel routes, and what is wrong."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from agent.cli import agentsocket
from agent.cli.errors import Failed
from agent.cli.tables import columns, duration
from agent.lab import expect, fib
from agent.lab.control import UnitReport
from agent.lab.plan import Lab, LabError
from agent.lab.state import LabNode, State
from felix_like.model.address import Address, Prefix

HEADER = ("NODE", "ADDRESSES", "BLOCKS", "PEERS", "ROUTES", "PODS", "RUNNING")
SHORT_HEADER = ("NODE", "IPV4", "BLOCKS", "PEERS", "ROUTES", "RUNNING")
MANY = 8
"""With more nodes each gets one line."""
WIDTH = 80
ASK = 2.0
LOG_LINES = 5


def table(lab: Lab, state: State, holders: expect.Holders | None, processes: Mapping[str, UnitReport]) -> str:
    """A small lab in full, a large one with a line for each node; below it what has died or does not run.

    `holders` None: etcd does not say.
    """
    expected = expect.routes(lab, state.nodes, holders or {})
    rows: list[Sequence[str]] = []
    for node in state.nodes:
        blocks = sorted(
            (p for p, holder in (holders or {}).items() if holder == node.name), key=lambda p: (p.version, p)
        )
        routes = "-" if holders is None else _installed(lab, node, expected[lab.namespace(node.name)])
        seen = [sessions(lab, node), routes]
        states = [_process(processes, f"{node.name}/{role}") for role in ("agent", "speaker")]
        if len(state.nodes) > MANY:
            count = "-" if holders is None else str(len(blocks))
            rows.append([node.name, node.ipv4, count, *seen, ", ".join(states)])
        else:
            texts = [str(block) for block in blocks] if holders is not None else ["-"]
            rows += _rows(node, texts, [*seen, str(len(node.pods))], states)
    lines = [columns(SHORT_HEADER if len(state.nodes) > MANY else HEADER, rows)]
    if notes := _notes(processes.values()):
        lines += ["", *notes]
    return "\n".join(lines)


def _rows(node: LabNode, blocks: list[str], seen: list[str], states: list[str]) -> list[Sequence[str]]:
    """A line for each address, block and process, side by side; the counts on the first."""
    height = max(2, len(blocks))
    return [
        [name, address, block, *counts, process]
        for name, address, block, counts, process in zip(
            [node.name, *[""] * (height - 1)],
            [node.ipv4, node.ipv6, *[""] * (height - 2)],
            [*blocks, *[""] * (height - len(blocks))],
            [seen, *[[""] * len(seen)] * (height - 1)],
            [*states, *[""] * (height - len(states))],
            strict=True,
        )
    ]


def _process(processes: Mapping[str, UnitReport], name: str) -> str:
    """`agent 2m5s`, `speaker stopped`: short; the notes say why."""
    role = name.rpartition("/")[2]
    unit = processes.get(name)
    if unit is None:
        return f"{role} unknown"
    return f"{role} {duration(time.time() - unit.since) if unit.state == 'running' else unit.state}"


def _notes(units: Iterable[UnitReport]) -> list[str]:
    """A sentence for each process that has died or does not run."""
    lines = []
    for unit in units:
        said = []
        if unit.state != "running":
            said.append({"waiting": "waits for its next start"}.get(unit.state, f"is {unit.state}"))
        if unit.deaths:
            said.append(f"died {unit.deaths} time{'s' if unit.deaths > 1 else ''}, last: {unit.last_end}")
        if said:
            text = f"{unit.name} {'; '.join(said)}"
            lines += textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def sessions(lab: Lab, node: LabNode) -> str:
    """`4/4`: established sessions of all that the agent wants; `-` when it does not answer."""
    try:
        answer = agentsocket.ask(lab.node_folder(node.name) / agentsocket.SOCKET, {"ask": "status"}, ASK)
    except Failed:
        return "-"
    peers = answer.get("peers", [])
    return f"{sum(peer.get('state') == 'Established' for peer in peers)}/{len(peers)}"


def _installed(lab: Lab, node: LabNode, wanted: Mapping[Prefix, Address]) -> str:
    namespace = lab.namespace(node.name)
    try:
        wrong = fib.missing({namespace: wanted})
    except LabError:
        return "-"
    return f"{len(wanted) - len(wrong.get(namespace, []))}/{len(wanted)}"


def lacking(lab: Lab, state: State, missing: Mapping[str, Iterable[str]]) -> list[str]:
    """Which kernel lacks what, and the last words of the processes that should have seen to it."""
    names = {lab.namespace(node.name): node.name for node in state.nodes}
    lines = []
    for namespace, phrases in missing.items():
        name = names.get(namespace, namespace)
        wrong = list(phrases)
        lines.append(f"{name} lacks {len(wrong)} route{'s' if len(wrong) != 1 else ''}:")
        lines += [f"    {phrase}" for phrase in wrong[:4]]
        if len(wrong) > 4:
            lines.append(f"    and {len(wrong) - 4} more")
    for namespace in list(missing)[:1]:
        name = names.get(namespace, namespace)
        for role in ("agent", "speaker"):
            log = lab.node_folder(name) / f"{role}.log"
            lines.append(f"The last lines of {log}:")
            lines += [f"    {line}" for line in tail(log)]
    return lines


def tail(log: Path, lines: int = LOG_LINES) -> list[str]:
    """The end of a log; at most 64 KiB of it are read."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - (64 << 10)))
            found = stream.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return ["(there is no log)"]
    return found or ["(it is empty)"]


def command() -> str:
    """How to call tortiectl from this shell, as short as it works."""
    ours = Path(sys.argv[0]).absolute()
    on_path = shutil.which("tortiectl")
    if on_path and Path(on_path).resolve() == ours.resolve():
        return "tortiectl"
    try:
        return str(ours.relative_to(Path.cwd()))
    except ValueError:
        return str(ours)


def try_next(state: State) -> str:
    """Commands that work when pasted, in an order that tells the story."""
    names = [node.name for node in state.nodes]
    first, last = names[0], names[-1]
    pods = [pod.name for _, pod in state.pods]
    lines = [
        (f'eval "$({command()} lab env)"', "this shell: which etcd, which agents"),
        ("tortiectl get nodes -o wide", ""),
        (f"tortiectl node status --node {first}", "its BGP sessions"),
        (f"tortiectl routes --node {first}", "and what it makes of them"),
        ("tortiectl top", "all nodes, live"),
        (f"tortiectl lab exec {first} ip route", "what the kernel has"),
        (f"tortiectl lab claim {last}", "one more block: the others follow"),
        (f"tortiectl lab kill {first}/agent", "traffic goes on; it comes back"),
    ]
    if len(pods) > 1:
        lines.append((f"tortiectl lab ping {pods[0]} {pods[-1]}", ""))
    lines += [("tortiectl lab status", ""), ("tortiectl lab down", "leaves nothing behind")]
    width = max(len(line) for line, why in lines if why)
    return "Try next:\n" + "\n".join(
        f"  {line.ljust(width)}  # {why}" if why else f"  {line}" for line, why in lines
    )


def environment(lab: Lab, default: bool) -> list[str]:
    """Shell lines that point tortiectl (and etcdctl) at the lab. `default`: the lab has the default name."""
    import shlex

    lines = [
        f"export ETCD_ENDPOINTS={shlex.quote(lab.etcd_endpoint)}",
        f"export ETCDCTL_ENDPOINTS={shlex.quote(lab.etcd_endpoint)}",
        f"export TORTIE_RUN_DIR={shlex.quote(str(lab.folder))}",
    ]
    if lab.broker_folder.exists():
        lines.append(f"export TORTIE_MQTT_URL={shlex.quote(f'unix://{lab.broker_socket}')}")
    if not default:
        lines.append(f"export TORTIE_LAB_NAME={lab.name} TORTIE_LAB_DIR={shlex.quote(str(lab.folder))}")
    ours = Path(sys.argv[0]).absolute()
    if ours.name == "tortiectl" and str(ours.parent) not in os.environ.get("PATH", "").split(":"):
        lines.append(f'export PATH={shlex.quote(str(ours.parent))}:"$PATH"')
    return lines
