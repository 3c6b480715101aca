"""The last good snapshot: whole, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felix_like.datastore import cache
from felix_like.datastore.client import Header
from felix_like.datastore.errors import KeyValue
from felix_like.datastore.watch import Known

KEYS = {"/a": KeyValue("/a", b"\x00{}", 7, 3), "/\udcff": KeyValue("/\udcff", b"", 8, 8)}
KNOWN = Known(Header(2**64 - 1, 9, 4), KEYS)


def test_what_is_written_is_read_back_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    cache.write(path, b"older")
    cache.write(path, cache.encode(KNOWN, 123.5))
    assert cache.load(path) == cache.Loaded(KNOWN, 123.5)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["snapshot"]


def test_no_file_is_no_reason_to_complain(tmp_path: Path) -> None:
    assert cache.load(tmp_path / "snapshot") == cache.Loaded(None)


def test_a_directory_in_its_place_is_a_reason(tmp_path: Path) -> None:
    assert "cannot be read" in cache.load(tmp_path).reason


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    path.mkdir()
    with pytest.raises(OSError):  # noqa: PT011
        cache.write(path, b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["snapshot"]


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_flipped_octet_is_noticed(position: int, flip: int) -> None:
    octets = bytearray(cache.encode(KNOWN, 1.0))
    octets[position % len(octets)] ^= flip
    with pytest.raises(ValueError, match=r"snapshot|version|checksum"):
        cache.decode(bytes(octets))


@given(st.binary(max_size=200), st.booleans())
def test_foreign_files_are_refused(tail: bytes, ours: bool) -> None:
    whole = cache.encode(KNOWN, 1.0)
    with pytest.raises(ValueError):  # noqa: PT011
        cache.decode(whole[: len(tail)] if ours else tail)
