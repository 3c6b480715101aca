"""What is said of a datastore that is away: each reason once, until all was well again."""

from __future__ import annotations

from felix_like.datastore.outage import MOST_REASONS, Outage


def test_reasons_that_take_turns_are_said_once_each() -> None:
    outage = Outage()
    assert [outage.is_news(reason) for reason in ("refused", "frozen") * 5] == [True, True, *[False] * 8]
    outage.over()
    assert outage.is_news("refused"), "the next outage is another one"


def test_reasons_that_are_never_the_same_are_bounded() -> None:
    outage = Outage()
    assert sum(outage.is_news(f"port {number}") for number in range(1000)) == MOST_REASONS
