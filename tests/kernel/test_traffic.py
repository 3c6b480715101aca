"""The traffic that counts lost packets: what is lost is counted, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.lab.icmp import Source
from agent.lab.traffic import Tally, Traffic
from felix_like.model.address import Address
from tests.support.netns import Fabric, fabric
from tests.support.system import until, v4, v6

pytestmark = pytest.mark.kernel


@pytest.fixture
def hosts() -> Iterator[tuple[Fabric, list[Source], dict[str, list[Address]]]]:
    with fabric() as made:
        sources = [Source(name, made.node(number).name) for number, name in ((1, "one"), (2, "two"))]
        targets = {
            name: [Address.parse(v4(number)), Address.parse(v6(number))]
            for number, name in ((1, "one"), (2, "two"))
        }
        yield made, sources, targets


def more(traffic: Traffic, rounds: int = 60) -> None:
    wanted = traffic.rounds + rounds
    until(lambda: traffic.rounds >= wanted, "the traffic goes on", 60)


def pairs(tally: Tally) -> set[tuple[str, str, str]]:
    return {(pair.source, pair.target, str(pair.address)) for pair in tally.pairs}


def test_all_answered(hosts) -> None:  # type: ignore[no-untyped-def]
    _, sources, targets = hosts
    traffic = Traffic(sources, targets)
    traffic.start()
    more(traffic)
    tally = traffic.stop()
    assert tally.losses() == []
    assert tally.lost == 0
    assert tally.least >= 60
    assert tally.sent == sum(pair.sent for pair in tally.pairs)
    assert pairs(tally) == {
        ("one", "two", v4(2)), ("one", "two", v6(2)), ("two", "one", v4(1)), ("two", "one", v6(1)),
    }  # fmt: skip


def test_a_cut_is_counted_as_long_as_it_lasts(hosts) -> None:  # type: ignore[no-untyped-def]
    fabric, sources, targets = hosts
    traffic = Traffic(sources, targets)
    traffic.start()
    more(traffic)
    fabric.unplug(2)
    more(traffic)
    fabric.plug(2)
    more(traffic)
    tally = traffic.stop()
    for pair in tally.pairs:
        assert 50 <= len(pair.waiting) < pair.sent - 60, pair
        lost = sorted(pair.waiting)
        assert lost[0] > 1
        assert lost[-1] < pair.sent
    assert len(tally.losses()) == 4
    assert tally.losses()[0].startswith(f"one to two ({v4(2)}): ")


def test_what_the_own_kernel_refuses_is_lost(hosts) -> None:  # type: ignore[no-untyped-def]
    _, sources, targets = hosts
    traffic = Traffic(sources[:1], {**targets, "nowhere": [Address.parse("203.0.113.1")]})
    traffic.start()
    more(traffic, 5)
    tally = traffic.stop()
    [lost] = [pair for pair in tally.pairs if pair.waiting]
    assert (lost.target, len(lost.waiting)) == ("nowhere", lost.sent)
