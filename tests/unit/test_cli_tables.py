"""The table writers: nothing is cut, nothing from outside reaches the terminal raw."""

from __future__ import annotations

import pytest

from agent.cli.errors import printable
from agent.cli.tables import box, columns, duration


def test_columns_are_as_wide_as_their_widest_cell_and_two_apart() -> None:
    text = columns(("NAME", "CIDR"), [("a", "10.0.0.0/8"), ("a-long-name", "-")])
    assert text == "NAME         CIDR\na            10.0.0.0/8\na-long-name  -"


def test_no_line_ends_in_blanks() -> None:
    text = columns(("A", "B"), [("x", ""), ("yyyy", "z")])
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_cell_is_never_cut_however_long() -> None:
    long = "fd00:" * 60
    assert long in columns(("A", "B"), [(long, "tail")])
    assert long in box(("A", "B"), [(long, "tail")])


def test_numbers_may_be_right_aligned() -> None:
    assert columns(("N", "X"), [("5", "a"), ("100", "b")], right=frozenset({0})) == "  N  X\n  5  a\n100  b"


def test_the_box_is_calicoctls() -> None:
    assert box(("PEER", "STATE"), [("10.0.0.2", "up")]).splitlines() == [
        "+----------+-------+",
        "| PEER     | STATE |",
        "+----------+-------+",
        "| 10.0.0.2 | up    |",
        "+----------+-------+",
    ]


@pytest.mark.parametrize("hostile", ["a\nb", "a\x1b[31mb", "a\rb", "a\u202eb", "a\x00b", "tab\there"])
def test_control_characters_are_shown_not_sent(hostile: str) -> None:
    shown = columns(("NAME",), [(hostile,)])
    assert shown.count("\n") == 1
    assert printable(shown.replace("\n", " ")) == shown.replace("\n", " ")
    assert shown.splitlines()[1].isprintable()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0s"),
        (0, "0s"),
        (119, "119s"),
        (310, "5m10s"),
        (3 * 3600 + 125, "3h2m"),
        (12 * 86400 + 4 * 3600, "12d4h"),
    ],
)
def test_ages_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
