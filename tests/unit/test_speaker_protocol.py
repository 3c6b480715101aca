"""The lines between agent and speaker: what goes in comes out, and nothing hostile gets further."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.speaker import protocol
from agent.speaker.nlri import Nlri, pack, split, unpack
from agent.speaker.protocol import (
    Ack,
    Advertise,
    ConfigApplied,
    EndOfRib,
    FullSync,
    GracefulFamily,
    Hello,
    Learned,
    LimitExceeded,
    Limits,
    Lines,
    Malformed,
    Nack,
    PeerDown,
    PeerGone,
    PeerState,
    PeerUp,
    ProtocolError,
    Reload,
    ReplayBegin,
    ReplayEnd,
    SyncBegin,
    SyncEnd,
    Withdraw,
    Withdrawn,
    decode_command,
    decode_event,
    encode,
)
from felix_like.model.address import Address, Asn, Prefix
from felix_like.model.path import Attributes, OriginCode

addresses = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)).map(Address)
asns = st.integers(0, 2**32 - 1).map(Asn)
texts = st.text(max_size=40)
versions = st.sampled_from([4, 6])
seqs = st.integers(0, 2**53)


@st.composite
def prefixes(draw: st.DrawFn, version: int) -> Prefix:
    octets = 4 if version == 4 else 16
    address = Address(draw(st.binary(min_size=octets, max_size=octets)))
    return Prefix.within(address, draw(st.integers(0, octets * 8)))


@st.composite
def nlris(draw: st.DrawFn) -> Nlri:
    version = draw(versions)
    return Nlri.of(version, draw(st.lists(prefixes(version), max_size=6)))


communities = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(lambda c: f"{c[0]}:{c[1]}")
attributes = st.builds(
    Attributes,
    next_hop=addresses,
    origin=st.sampled_from(OriginCode),
    as_path=st.lists(
        st.tuples(st.sampled_from(["sequence", "set"]), st.lists(asns, max_size=4).map(tuple)), max_size=3
    ).map(tuple),
    med=st.none() | st.integers(0, 2**32 - 1),
    local_pref=st.none() | st.integers(0, 2**32 - 1),
    atomic_aggregate=st.booleans(),
    communities=st.lists(communities, max_size=3).map(tuple),
    originator_id=st.none() | st.just("10.0.0.1"),
    cluster_list=st.lists(st.just("10.0.0.2"), max_size=2).map(tuple),
)
times = st.floats(0, 2e9)
events = st.one_of(
    st.builds(Hello, st.integers(0, 9), st.integers(0, 99999), texts, texts),
    st.just(ReplayBegin()),
    st.just(ReplayEnd()),
    st.builds(PeerState, addresses, st.sampled_from(["Idle", "Active", "Established"]), times, texts),
    st.builds(PeerGone, addresses),
    st.builds(
        PeerUp,
        addresses,
        st.just("10.0.0.1"),
        asns,
        st.integers(0, 65535),
        st.lists(versions, max_size=2).map(tuple),
        st.none() | st.integers(0, 4095),
        st.booleans(),
        st.lists(st.builds(GracefulFamily, versions, st.booleans()), max_size=2).map(tuple),
    ),
    st.builds(PeerDown, addresses, texts, st.booleans()),
    st.builds(Learned, addresses, attributes, nlris()),
    st.builds(Withdrawn, addresses, nlris()),
    st.builds(EndOfRib, addresses, versions),
    st.builds(LimitExceeded, addresses, st.integers(0, 10**9), st.integers(0, 10**9), times),
    st.builds(Malformed, addresses, st.integers(0, 10**9), texts),
    st.builds(ConfigApplied, texts, st.lists(addresses, max_size=3).map(tuple), error=st.none() | texts),
    st.builds(Ack, seqs),
    st.builds(Nack, seqs, texts),
)
peers = st.lists(addresses, max_size=4).map(tuple)
commands = st.one_of(
    st.builds(Reload, seqs, texts),
    st.builds(Advertise, seqs, peers, attributes, nlris()),
    st.builds(Withdraw, seqs, peers, nlris()),
    st.builds(SyncBegin, seqs),
    st.builds(SyncEnd, seqs),
    st.builds(FullSync, seqs),
    st.builds(Limits, seqs, st.dictionaries(addresses, st.integers(0, 10**6), max_size=3), st.none() | seqs),
)


@given(events)
def test_an_event_survives_the_wire(event: protocol.Event) -> None:
    line = encode(event)
    assert line.count(b"\n") == 1
    assert decode_event(line[:-1]) == event


@given(commands)
def test_a_command_survives_the_wire(command: protocol.Command) -> None:
    assert decode_command(encode(command)[:-1]) == command


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error(line: bytes) -> None:
    for decode in (decode_event, decode_command):
        with pytest.raises(ProtocolError, match="not of this protocol"):
            decode(line)


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"peer-gone","peer":"not an address"}',
        b'{"type":"peer-gone","peer":7}',
        b'{"type":"peer-gone"}',
        b'{"type":"withdrawn","peer":"10.0.0.1","nlri":"5:"}',
        b'{"type":"withdrawn","peer":"10.0.0.1","nlri":"4:####"}',
        b'{"type":"withdrawn","peer":"10.0.0.1","nlri":"4:IQ=="}',  # /33
        b'{"type":"withdrawn","peer":"10.0.0.1","nlri":"4:GAo="}',  # /24 with one octet
        b'{"type":"withdrawn","peer":"10.0.0.1","nlri":"4:\xc3\xa9"}',
        b'{"type":"ack","seq":"1"}',
        b'{"type":"unheard-of"}',
        b"[" * 100_000,
    ],
)
def test_a_line_that_means_nothing_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_event(line)


@given(st.lists(st.binary(max_size=30).filter(lambda b: b"\n" not in b and b), max_size=6), st.data())
def test_lines_come_out_whole_however_they_are_cut(lines: list[bytes], cuts: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    cutter, got = Lines(), []
    while stream:
        size = cuts.draw(st.integers(1, len(stream)))
        got += cutter.feed(stream[:size])
        stream = stream[size:]
    assert got == lines


def test_an_endless_line_is_refused() -> None:
    lines = Lines(limit=100)
    lines.feed(b"x" * 100)
    with pytest.raises(ProtocolError, match="more than 100"):
        lines.feed(b"x")


@given(versions.flatmap(lambda v: st.tuples(st.just(v), st.lists(prefixes(v), max_size=8))))
def test_nlri_keep_their_prefixes(case: tuple[int, list[Prefix]]) -> None:
    version, wanted = case
    nlri = Nlri.of(version, wanted)  # type: ignore[arg-type]
    assert list(nlri.prefixes) == wanted
    assert [unpack(version, one) for one in nlri.packed] == wanted  # type: ignore[arg-type]
    assert Nlri.parse(str(nlri)) == nlri


@given(versions, st.binary(max_size=60))
def test_any_nlri_field_is_read_or_refused(version: int, field: bytes) -> None:
    try:
        found = split(version, field)  # type: ignore[arg-type]
    except ValueError:
        return
    for one in found:
        assert pack(unpack(version, one)) == one, "host bits are cleared"  # type: ignore[arg-type]


def test_stray_host_bits_are_cleared() -> None:
    """RFC 4271 section 4.3: trailing bits are irrelevant; two spellings must not be two routes."""
    assert split(4, bytes.fromhex("190a0100ff")) == split(4, bytes.fromhex("190a010080"))
    assert split(4, bytes.fromhex("190a01007f")) == [pack(Prefix.parse("10.1.0.0/25"))]
