"""The command as a whole: help, examples, completion, closed pipes, and how fast it is there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from agent.cli.main import COMMANDS, tortiectl

HEAVY = ("grpc", "yaml", "asyncio", "pyroute2", "felix_like.datastore", "agent.lab.cluster", "exabgp")


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


def test_the_short_help_is_the_commands_own() -> None:
    for name, (_, text) in COMMANDS.items():
        command = tortiectl.get_command(click.Context(tortiectl), name)
        assert command is not None
        assert command.help is not None
        assert command.help.strip() == text


@pytest.mark.parametrize(
    ("path", "command"), list(leaves(tortiectl)), ids=lambda x: " ".join(x) if isinstance(x, tuple) else ""
)
def test_every_command_has_help_with_an_example(path: tuple[str, ...], command: click.Command) -> None:
    result = CliRunner().invoke(tortiectl, [*path, "--help"])
    assert result.exit_code == 0
    assert command.help
    assert f"tortiectl {' '.join(path)}" in (command.epilog or ""), "an example to copy"


@pytest.mark.parametrize("path", [["node"], ["ipam"], ["lab"], ["lab", "node"]], ids=" ".join)
def test_a_groups_help_cuts_no_sentence(path: list[str]) -> None:
    listed = CliRunner().invoke(tortiectl, [*path, "--help"], env={"COLUMNS": "80"}).output
    commands = listed.partition("Commands:")[2].partition("Examples:")[0]
    assert commands
    assert "..." not in commands


@pytest.mark.parametrize(
    "arguments", [["--help"], ["get", "--help"], ["lab", "--help"], ["node", "status", "--help"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom agent.cli.main import tortiectl\n"
        f"tortiectl({arguments!r}, standalone_mode=False)\n"
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\nassert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_us_back(shell: str) -> None:
    result = CliRunner().invoke(tortiectl, ["completion", shell])
    assert result.exit_code == 0
    assert "_TORTIECTL_COMPLETE" in result.stdout


def test_completion_knows_kinds() -> None:
    env = os.environ | {
        "_TORTIECTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "tortiectl get no",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli.main"], env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["plain,nodes"]


def test_a_closed_pipe_ends_it_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "agent.cli.main", "completion", "bash"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.stderr == ""


def test_an_unknown_kind_names_the_known_ones() -> None:
    result = CliRunner().invoke(tortiectl, ["get", "pods"])
    assert result.exit_code == 1
    assert "use nodes, ippools, bgppeers, bgpconfigurations" in result.stderr


def test_version_is_also_an_option() -> None:
    result = CliRunner().invoke(tortiectl, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.split()[0] == "tortiectl"
    assert (
        CliRunner().invoke(tortiectl, ["version", "--client"]).stdout.split()[-1] == result.stdout.split()[-1]
    )
