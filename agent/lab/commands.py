"""`tortiectl lab`: build a cluster in network namespaces, play with it, remove it without a trace."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import click
from click.shell_completion import CompletionItem

from agent.cli.errors import Failed
from agent.cli.group import Group
from agent.lab.plan import DEFAULT_NAME, MAX_NODES, MAX_PODS, Lab, LabError

P = ParamSpec("P")
R = TypeVar("R")


def plainly(function: Callable[P, R]) -> Callable[P, R]:
    """Errors of the lab and of the datastore end as one sentence and exit status 1."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except LabError as error:
            # Several lines on purpose: our own words, not somebody's value.
            raise LabFailed(str(error)) from None

    return run


class LabFailed(Failed):
    def format_message(self) -> str:
        return self.message


def complete_nodes(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return _complete(incomplete, lambda made: [node.name for node in made.nodes])


def complete_places(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return _complete(
        incomplete,
        lambda made: [*(node.name for node in made.nodes), *(pod.name for _, pod in made.pods), "fabric"],
    )


def complete_processes(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return _complete(
        incomplete,
        lambda made: [
            "etcd",
            *(["mosquitto"] if Lab.from_environment().broker_folder.exists() else []),
            *(f"{node.name}{role}" for node in made.nodes for role in ("", "/agent", "/speaker")),
        ],
    )


def _complete(incomplete: str, words: Callable[[Any], list[str]]) -> list[CompletionItem]:
    from agent.lab import state

    try:
        made = state.load(Lab.from_environment())
    except LabError:
        return []
    return [CompletionItem(word) for word in (words(made) if made else []) if word.startswith(incomplete)]


EPILOG = """\b
Examples:
  tortiectl lab up --nodes 10 --pods 3
  eval "$(tortiectl lab env)"
  tortiectl lab claim node-3
  tortiectl lab kill node-1/agent
  tortiectl lab exec node-1-pod-1 ip route
  tortiectl lab down

\b
TORTIE_LAB_NAME and TORTIE_LAB_DIR keep several labs apart. Needs root, except for env.
"""

wait = click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=60.0,
    show_default=True,
    help="Seconds to wait for routes.",
)


@click.group(cls=Group, epilog=EPILOG)
def lab() -> None:
    """Build and play with a cluster in network namespaces."""


@lab.command(
    "up", epilog="\b\nExamples:\n  tortiectl lab up\n  tortiectl lab up --nodes 50 --pods 1 --timeout 120"
)
@click.option("--nodes", type=click.IntRange(1, MAX_NODES), default=3, show_default=True)
@click.option(
    "--pods", type=click.IntRange(0, MAX_PODS), default=2, show_default=True, help="Pods on each node."
)
@click.option(
    "--set", "settings", metavar="NAME=VALUE", multiple=True, help="A setting for every agent; repeatable."
)
@click.option("--replace", is_flag=True, help="End the lab that runs first.")
@wait
@plainly
def up_(nodes: int, pods: int, settings: tuple[str, ...], replace: bool, timeout: float) -> None:
    """Build a lab, wait until every kernel has every route, prove it by ping."""
    from agent.lab.down import down
    from agent.lab.up import need_root, up

    here = Lab.from_environment()
    extra = _settings(settings)
    need_root()
    if replace:
        down(here)
    up(here, nodes, pods, timeout, extra)


@lab.command("down", epilog="\b\nExample:\n  tortiectl lab down")
@plainly
def down_() -> None:
    """Remove the lab: no namespace, process, sysctl or file is left."""
    from agent.lab.down import down
    from agent.lab.progress import step
    from agent.lab.up import need_root

    here = Lab.from_environment()
    need_root()
    with step(f"lab {here.name!r} removed") as current:
        if not down(here, lambda text: current.news(text)):
            current.result = "there was none"


@lab.command("status", epilog="\b\nExample:\n  watch tortiectl lab status")
@plainly
def status_() -> None:
    """Show nodes, blocks, sessions, kernel routes and processes."""
    from agent.lab.members import status
    from agent.lab.up import need_root

    need_root()
    click.echo(status(Lab.from_environment()))


@lab.command("env", epilog='\b\nExample:\n  eval "$(tortiectl lab env)"')
@plainly
def env_() -> None:
    """Print shell lines that point tortiectl and etcdctl at the lab."""
    from agent.lab import report, state

    here = Lab.from_environment()
    state.require(here)
    click.echo("\n".join(report.environment(here, default=here == Lab.from_environment({"_": DEFAULT_NAME}))))


@lab.command(
    "ping", epilog="\b\nExamples:\n  tortiectl lab ping\n  tortiectl lab ping node-1-pod-1 node-3-pod-2"
)
@click.argument("source", required=False, shell_complete=complete_places)
@click.argument("target", required=False, shell_complete=complete_places)
@click.option("-6", "six", is_flag=True, help="IPv6 instead of IPv4.")
@plainly
def ping_(source: str | None, target: str | None, six: bool) -> None:
    """Ping from every pod to every pod; or run ping from one pod to another until Ctrl-C."""
    from agent.lab import inhabit, state
    from agent.lab.progress import step
    from agent.lab.up import need_root, ping_all

    here = Lab.from_environment()
    need_root()
    made = state.require(here)
    if source is None:
        with step("ping from every pod to every pod, IPv4 and IPv6") as current:
            current.result = ping_all(here, made)
        return
    if target is None:
        raise LabError("ping needs two pods, or none for all of them")
    inhabit.execute(here, made, source, ["ping", inhabit.address(made, target, six)])


@lab.command(
    "exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="\b\nExamples:\n  tortiectl lab exec node-1 ip route\n  tortiectl lab exec node-2 ip -6 route",
)
@click.argument("place", shell_complete=complete_places)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@plainly
def exec_(place: str, command: tuple[str, ...]) -> None:
    """Run a command on a node, in a pod or in the fabric."""
    from agent.lab import inhabit, state
    from agent.lab.up import need_root

    here = Lab.from_environment()
    need_root()
    inhabit.execute(here, state.require(here), place, list(command))


@lab.command("shell", epilog="\b\nExample:\n  tortiectl lab shell node-1")
@click.argument("place", shell_complete=complete_places)
@plainly
def shell_(place: str) -> None:
    """Open a shell on a node, in a pod or in the fabric."""
    import os

    from agent.lab import inhabit, state
    from agent.lab.up import need_root

    here = Lab.from_environment()
    need_root()
    inhabit.execute(here, state.require(here), place, [os.environ.get("SHELL") or "/bin/sh"])


@lab.command(
    "claim", epilog="\b\nExamples:\n  tortiectl lab claim node-2\n  tortiectl lab claim node-2 10.65.200.0/26"
)
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.argument("cidr", required=False)
@click.option("-6", "six", is_flag=True, help="An IPv6 block, where no CIDR is given.")
@wait
@plainly
def claim_(name: str, cidr: str | None, six: bool, timeout: float) -> None:
    """Claim one more block for a node, and wait until the others route to it."""
    from agent.lab.members import claim

    claim(Lab.from_environment(), name, _prefix(cidr) if cidr else None, 6 if six else 4, timeout)


@lab.command("release", epilog="\b\nExample:\n  tortiectl lab release node-2 10.65.200.0/26")
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.argument("cidr")
@click.option("--force", is_flag=True, help="Although pods have addresses in it.")
@wait
@plainly
def release_(name: str, cidr: str, force: bool, timeout: float) -> None:
    """Give a block up, and wait until nobody routes to it."""
    from agent.lab.members import release

    release(Lab.from_environment(), name, _prefix(cidr), force, timeout)


@lab.group(
    "node", cls=Group, epilog="\b\nExamples:\n  tortiectl lab node add\n  tortiectl lab node remove node-4"
)
def node_() -> None:
    """Add or remove nodes."""


@node_.command(
    "add", epilog="\b\nExamples:\n  tortiectl lab node add\n  tortiectl lab node add edge --pods 1"
)
@click.argument("name", required=False)
@click.option("--pods", type=click.IntRange(0, MAX_PODS), default=2, show_default=True)
@wait
@plainly
def add_(name: str | None, pods: int, timeout: float) -> None:
    """Add a node, and wait until it and the others have all routes."""
    from agent.lab.members import add_node

    add_node(Lab.from_environment(), name, pods, timeout)


@node_.command("remove", epilog="\b\nExample:\n  tortiectl lab node remove node-4")
@click.argument("name", shell_complete=complete_nodes)
@wait
@plainly
def remove_(name: str, timeout: float) -> None:
    """Remove a node for good, and wait until the others have forgotten its routes."""
    from agent.lab.members import remove_node

    remove_node(Lab.from_environment(), name, timeout)


@lab.command(
    "kill",
    epilog="\b\nExamples:\n  tortiectl lab kill node-1/speaker\n  tortiectl lab kill etcd --signal STOP",
)
@click.argument("who", shell_complete=complete_processes)
@click.option(
    "--signal",
    "name",
    default="KILL",
    show_default=True,
    help="KILL, TERM, STOP (freeze), CONT (go on), HUP, …",
)
@plainly
def kill_(who: str, name: str) -> None:
    """Signal etcd, a node's agent or speaker, or both; the dead are started again after a second."""
    from agent.lab import control, members
    from agent.lab.up import need_root

    try:
        number = signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
    except KeyError:
        raise LabError(f"unknown signal {name!r}: use KILL, TERM, STOP, CONT, HUP, USR1 …") from None
    here = Lab.from_environment()
    need_root()
    chosen = members.names(here, who)
    known = control.units(here)
    control.send_signal(here, chosen, number)
    for process in chosen:
        click.echo(f"{process} (pid {known[process].pid}) got {number.name}")


@lab.command("stop", epilog="\b\nExample:\n  tortiectl lab stop node-1/agent")
@click.argument("who", shell_complete=complete_processes)
@plainly
def stop_(who: str) -> None:
    """End processes and keep them down, until 'start'."""
    from agent.lab import control, members
    from agent.lab.up import need_root

    here = Lab.from_environment()
    need_root()
    chosen = members.names(here, who)
    control.stop(here, chosen)
    click.echo(f"{' and '.join(chosen)} stopped, until 'tortiectl lab start {who}'")


@lab.command("start", epilog="\b\nExample:\n  tortiectl lab start node-1/agent")
@click.argument("who", shell_complete=complete_processes)
@plainly
def start_(who: str) -> None:
    """Start what was stopped, or what waits for its next start."""
    from agent.lab import control, members
    from agent.lab.up import need_root

    here = Lab.from_environment()
    need_root()
    chosen = members.names(here, who)
    known = control.units(here)
    down = [process for process in chosen if known[process].state != "running"]
    control.start(here, chosen)
    if down:
        click.echo(f"{' and '.join(down)} started")
    for process in chosen:
        if process not in down:
            click.echo(f"{process} (pid {known[process].pid}) runs already")


@lab.command(
    "roll",
    epilog="\b\nExamples:\n  tortiectl lab roll\n  tortiectl lab roll speakers --at-once\n"
    "  tortiectl lab stop etcd && tortiectl lab roll; tortiectl lab start etcd",
)
@click.argument("what", type=click.Choice(["nodes", "agents", "speakers"]), default="nodes")
@click.option("--at-once", is_flag=True, help="All at the same time, not one node after the other.")
@wait
@plainly
def roll_(what: str, at_once: bool, timeout: float) -> None:
    """Restart agents and speakers as an update would, under traffic, and count the packets lost."""
    from agent.lab.roll import roll

    roll(Lab.from_environment(), what, at_once, timeout)


@lab.command("logs", epilog="\b\nExamples:\n  tortiectl lab logs node-1/agent\n  tortiectl lab logs etcd -f")
@click.argument("who", shell_complete=complete_processes)
@click.option("-f", "--follow", is_flag=True)
@plainly
def logs_(who: str, follow: bool) -> None:
    """Show the log of a process."""
    import os

    from agent.lab import control, members
    from agent.lab.up import need_root

    here = Lab.from_environment()
    need_root()
    known = control.units(here)
    files = [known[name].log for name in members.names(here, who) if name in known]
    if not files:
        raise LabError(f"there is no process {who!r}; there are {', '.join(known)}")
    os.execvp("tail", ["tail", "-n", "100", *(["-F"] if follow else []), *files])


def _prefix(text: str) -> Any:
    from felix_like.model.address import Prefix

    try:
        return Prefix.parse(text)
    except ValueError as error:
        raise LabError(f"{error}; write it like 10.65.200.0/26") from None


def _settings(texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.replace("_", "").isalnum():
            raise LabError(f"--set {text!r}: write NAME=VALUE, for example FELIX_LOGSEVERITYSCREEN=Debug")
        found[name] = value
    return found
