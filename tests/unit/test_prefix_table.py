"""Longest match against the obvious slow way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from felix_like.model.address import Address, Prefix
from felix_like.rib.prefix_table import PrefixTable, subnets

# A small world, so that prefixes often contain each other.
addresses = st.integers(0, 255).map(lambda n: Address(bytes((10, 0, 0, n))))
prefixes = st.builds(Prefix.within, addresses, st.sampled_from([0, 8, 24, 26, 27, 28, 31, 32]))


@given(st.lists(prefixes), st.lists(prefixes), prefixes)
def test_it_finds_what_a_search_through_all_finds(
    puts: list[Prefix], drops: list[Prefix], asked: Prefix
) -> None:
    table: PrefixTable[str] = PrefixTable()
    for prefix in puts:
        table.put(prefix, str(prefix))
    for prefix in drops:
        table.drop(prefix)
    left = set(puts) - set(drops)
    covering = sorted((p for p in left if p.covers(asked)), key=lambda p: -p.length)
    assert set(table) == left
    assert table.longest(asked) == (covering[0] if covering else None)
    assert table.all_matches(asked) == [str(p) for p in covering]
    inside = [p for p in left if asked.covers(p) and p != asked]
    assert (table.covered_by(asked) is None) == (not inside)


def test_a_prefix_without_a_value_is_dropped_like_any_other() -> None:
    table: PrefixTable[None] = PrefixTable()
    table.put(Prefix.parse("10.0.0.0/8"), None)
    table.drop(Prefix.parse("10.0.0.0/8"))
    assert table.longest(Prefix.parse("10.1.0.0/16")) is None
    assert len(table) == 0


def test_the_families_do_not_mix() -> None:
    table: PrefixTable[int] = PrefixTable()
    table.put(Prefix.parse("0.0.0.0/0"), 4)
    assert table.longest(Prefix.parse("::/0")) is None
    table.put(Prefix.parse("::/0"), 6)
    assert table.match(Prefix.parse("fd00::/64")) == 6
    assert table.match(Prefix.parse("10.0.0.0/8")) == 4


def test_the_subnets_of_a_prefix_are_all_and_only_those() -> None:
    block = Prefix.parse("10.0.0.4/30")
    assert [str(p) for p in subnets(block)] == [
        "10.0.0.4/30",
        "10.0.0.4/31",
        "10.0.0.6/31",
        "10.0.0.4/32",
        "10.0.0.5/32",
        "10.0.0.6/32",
        "10.0.0.7/32",
    ]
