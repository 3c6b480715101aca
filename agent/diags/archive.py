"""The archive: one tar.gz, readable by its owner only, with a MANIFEST of what is in it and what is not."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from agent.diags.gather import Gathered, Item
from agent.diags.redact import Redactor

LARGEST = 32 << 20
"""Octets of all items together; those at the end go without."""


def manifest(items: list[Item], gathered: Gathered, head: list[str]) -> str:
    """What a reader looks at first."""
    what = {item.name: item.what for item in items}
    width = max([len(name) for name in what], default=0)
    lines = [*head, "", "In here:"]
    for name, got in gathered.got.items():
        note = f"  ({got.note})" if got.note else ""
        lines.append(f"  {name:<{width}}  {len(got.octets):>9}  {what[name]}{note}")
    lines += ["", "Not to be had:"] if gathered.missing else ["", "Nothing was missing."]
    lines += [f"  {name:<{width}}  {reason}" for name, reason in gathered.missing.items()]
    return "\n".join([*lines, ""])


def clean(gathered: Gathered, redactor: Redactor) -> Gathered:
    """Every text through the second net, reasons and notes as well, and the whole bounded."""
    done, left = Gathered(), LARGEST
    for name, got in gathered.got.items():
        octets = redactor.text(got.octets.decode(errors="backslashreplace")).encode(errors="backslashreplace")
        if len(octets) > left:
            done.missing[name] = f"left out: the archive would hold more than {LARGEST >> 20} MiB"
            continue
        left -= len(octets)
        done.got[name] = type(got)(octets, redactor.text(got.note))
    done.missing |= {name: redactor.text(" ".join(why.split())) for name, why in gathered.missing.items()}
    return done


def pack(out: BinaryIO, folder: str, texts: dict[str, bytes], when: float) -> None:
    """Write the tar.gz."""
    with (
        gzip.GzipFile(fileobj=out, mode="wb", filename="", mtime=int(when)) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, octets in texts.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(octets), int(when), 0o600
            archive.addfile(entry, io.BytesIO(octets))


def write(path: Path, folder: str, texts: dict[str, bytes], when: float) -> None:
    """A new file, all of it or none. Raises OSError; FileExistsError rather than replace one."""
    descriptor, staged = tempfile.mkstemp(dir=path.parent, prefix=".tortie-diags-")
    try:
        with os.fdopen(descriptor, "wb") as out:
            pack(out, folder, texts, when)
        os.link(staged, path)
    finally:
        Path(staged).unlink()


def stamp(when: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(when))
