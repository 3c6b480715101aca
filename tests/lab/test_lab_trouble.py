"""What a lab says and does when it cannot work, and that `down` removes every half of one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.reallab import RealLab, machine, until

pytestmark = pytest.mark.lab


@pytest.fixture
def broken() -> Iterator[RealLab]:
    """A lab whose agents end at once with a last word."""
    made = RealLab(
        "b",
        TORTIE_LAB_AGENT="sh -c 'echo IP: 10.0.0.300 is not an address >&2; exit 3'",
        TORTIE_LAB_SPEAKER="sleep 1000",
    )
    yield made
    made.lab("down")
    assert made.leftovers() == []


def test_without_routes_it_says_who_lacks_what_and_where_to_look(broken: RealLab) -> None:
    before = machine()
    said = broken.lab("up", "--nodes", "2", "--pods", "1", "--timeout", "2", code=1)
    assert "Error: not every kernel has every route:" in said
    assert "node-1 lacks 2 routes:" in said
    assert said.count("0 of 4") == 1, "it says once how far it came"
    assert "via 198.18.0.12" in said
    assert "IP: 10.0.0.300 is not an address" in said, "the agent's last words"
    status = broken.lab("status")
    assert "was not finished" in status
    assert "exit status 3" in status
    broken.lab("down")
    assert broken.leftovers() == []
    until(lambda: machine() == before, "the machine is as it was", 20)


def test_down_removes_what_an_unfinished_up_left(broken: RealLab) -> None:
    subprocess.run(["ip", "netns", "add", f"{broken.name}-node-1"], check=True)
    assert "there is a lab" in broken.lab("up", code=1)
    broken.lab("down")
    assert broken.leftovers() == []


def test_down_ends_orphans_of_a_killed_supervisor(broken: RealLab) -> None:
    broken.lab("up", "--nodes", "2", "--pods", "0", "--timeout", "1", code=1)
    supervisor = int((broken.folder / "supervisor.pid").read_text())
    subprocess.run(["kill", "-9", str(supervisor)], check=True)
    until(lambda: not Path(f"/proc/{supervisor}").exists(), "the supervisor is gone", 10)
    assert "does not answer" in broken.lab("status")
    assert any("process" in left for left in broken.leftovers()), "etcd and the speakers live on"
    broken.lab("down")
    assert broken.leftovers() == []


def test_a_damaged_state_file_does_not_keep_a_lab_alive(broken: RealLab) -> None:
    broken.lab("up", "--nodes", "1", "--pods", "1", "--timeout", "1")
    (broken.folder / "lab.json").write_text("{")
    assert "does not read as a lab's state" in broken.lab("status", code=1)
    broken.lab("down")
    assert broken.leftovers() == []


def test_a_folder_that_is_no_labs_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    careless = RealLab("c", TORTIE_LAB_DIR=str(tmp_path))
    assert "it stays" in careless.lab("down", code=1)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert "is not a lab's folder" in careless.lab("up", code=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


MOMENTS = (
    "",  # before anything is said
    "in network namespaces",
    "etcd:",
    "pools, blocks and pod addresses",
    "mosquitto:",
    "routes in 4 kernels",
)
"""What the command has said when Ctrl-C comes."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_leaves_nothing_after_down(moment: str) -> None:
    if moment == "mosquitto:" and shutil.which("mosquitto") is None:
        pytest.skip("mosquitto is not installed, so the lab has no such step")
    made = RealLab("k")
    before = machine()
    try:
        code, said = made.interrupted("up", "--nodes", "4", "--pods", "2", after=moment)
        # Too late for a lab that was whole already, or too early for one that was begun: both are well.
        assert code != 0 or "Try next" in said, said
        if (made.folder / "lab.json").exists() and code:
            assert "stopped halfway: 'tortiectl lab down'" in said
            assert "Traceback" not in said
    finally:
        made.lab("down")
    assert made.leftovers() == []
    until(lambda: machine() == before, "the machine is as it was", 30)


def test_settings_that_agents_would_refuse_build_nothing() -> None:
    made = RealLab("w")
    said = made.lab("up", "--set", "TORTIE_HOLD_TIME=5", code=1)
    assert "the agents would not start: TORTIE_HOLD_TIME: 5 is not allowed; use 0" in said
    assert made.leftovers() == []


def test_a_command_without_a_lab_says_how_to_get_one() -> None:
    made = RealLab("n")
    for command in (["status"], ["kill", "etcd"], ["stop", "node-1"], ["shell", "node-1"]):
        assert "start one with 'tortiectl lab up'" in made.lab(*command, code=1), command
