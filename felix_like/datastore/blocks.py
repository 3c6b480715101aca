"""An IPAM block's own arithmetic, on its raw JSON: no I/O, unknown fields survive.

Source: libcalico-go/lib/ipam/ipam_block.go, lib/backend/model/block.go. `allocations[i]` is an index into
`attributes` or null; `unallocated` is a queue: taken at the head, given back at the tail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from felix_like.datastore.errors import Refused
from felix_like.model.address import Address, Prefix

Json = dict[str, Any]


def new_block(cidr: Prefix, node: str, sequence: int, claimed_at: str) -> Json:
    """An empty block that is affine to a node. `sequence`: Unix time in nanoseconds."""
    size = 1 << (cidr.bits - cidr.length)
    return {
        "cidr": str(cidr),
        "affinity": f"host:{node}",
        "affinity_claim_time": claimed_at,
        "allocations": [None] * size,
        "unallocated": list(range(size)),
        "attributes": [],
        "sequenceNumber": sequence,
        "sequenceNumberForAllocation": {},
        "deleted": False,
    }


def problems(block: Json, cidr: Prefix) -> list[str]:
    """What `calicoctl ipam check` would complain about; empty when the block is consistent."""
    size = 1 << (cidr.bits - cidr.length)
    allocations, attributes = block.get("allocations"), block.get("attributes") or []
    free = block.get("unallocated")
    free = [] if free is None else free
    if not isinstance(allocations, list) or not isinstance(attributes, list) or not isinstance(free, list):
        return ["allocations, attributes and unallocated must be lists"]
    found = list(_misshapen(block, attributes))
    if len(allocations) != size:
        found.append(f"allocations has {len(allocations)} entries instead of {size}")
    used = {ordinal for ordinal, index in enumerate(allocations) if index is not None}
    if any(not isinstance(allocations[o], int) or not 0 <= allocations[o] < len(attributes) for o in used):
        found.append("an allocation points outside the attributes")
    elif {allocations[o] for o in used} != set(range(len(attributes))):
        found.append("an attribute is used by no allocation")
    if not all(_is_number(ordinal) and ordinal < size for ordinal in free) or len(set(free)) != len(free):
        found.append("unallocated has doubles or no numbers")
    elif used & set(free):
        found.append("an ordinal is both allocated and unallocated")
    elif len(used) + len(free) != size:
        found.append("allocated and unallocated do not add up to the block's size")
    return found


def _misshapen(block: Json, attributes: list[Any]) -> Iterator[str]:
    """What is of another type than Calico writes: whoever counts or compares it would stumble."""
    for name in ("affinity", "hostAffinity"):
        if not isinstance(block.get(name), str | None):
            yield f"{name} is no text"
    if not all(isinstance(one, dict) and isinstance(one.get("handle_id"), str | None) for one in attributes):
        yield "an attribute is no object with a handle"
    sequence, numbers = block.get("sequenceNumber"), block.get("sequenceNumberForAllocation")
    if sequence is not None and not _is_number(sequence):
        yield "sequenceNumber is no number"
    if numbers is not None and not (isinstance(numbers, dict) and all(map(_is_number, numbers.values()))):
        yield "sequenceNumberForAllocation is no object of numbers"


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check(block: Json, cidr: Prefix) -> None:
    """Raises Refused for a block that is not consistent: writing to it would make things worse."""
    found = problems(block, cidr)
    if found:
        raise Refused(f"IPAM block {cidr} is damaged: {'; '.join(found)}. Repair it before using it")


def owner(block: Json) -> str | None:
    """Node the block is affine to; None when it was given up or is virtual."""
    affinity = block.get("affinity")
    if affinity:
        return str(affinity).removeprefix("host:") if str(affinity).startswith("host:") else None
    return block.get("hostAffinity") or None


def is_empty(block: Json) -> bool:
    return all(index is None for index in block.get("allocations") or ())


def address_at(cidr: Prefix, ordinal: int) -> Address:
    number = int.from_bytes(cidr.network, "big") + ordinal
    return Address(number.to_bytes(len(cidr.network), "big"))


def ordinal_of(cidr: Prefix, address: Address) -> int:
    return int.from_bytes(address, "big") - int.from_bytes(cidr.network, "big")


def bump(block: Json) -> None:
    """Count one more change of the block. After `assign`: an allocation carries the number before."""
    block["sequenceNumber"] = int(block.get("sequenceNumber") or 0) + 1


def claimed_before(block: Json, moment: str) -> bool:
    """True when the claim time (RFC 3339, UTC) is known and earlier; such texts sort by time."""
    claimed = block.get("affinity_claim_time")
    return isinstance(claimed, str) and claimed.endswith("Z") and claimed[:19] < moment[:19]


def assign(
    block: Json,
    cidr: Prefix,
    count: int,
    handle: str,
    attributes: Mapping[str, str],
    reserved: Sequence[Prefix] = (),
) -> list[Address]:
    """Take up to `count` addresses from the head of the queue, skipping reserved ones."""
    taken: list[int] = []
    for ordinal in block.get("unallocated") or ():
        if len(taken) == count:
            break
        if not any(prefix.contains(address_at(cidr, ordinal)) for prefix in reserved):
            taken.append(ordinal)
    if taken:
        _allocate(block, taken, handle, attributes)
    return [address_at(cidr, ordinal) for ordinal in taken]


def assign_one(
    block: Json, cidr: Prefix, address: Address, handle: str, attributes: Mapping[str, str]
) -> bool:
    """Take exactly this address; False when it is taken."""
    ordinal = ordinal_of(cidr, address)
    if block["allocations"][ordinal] is not None:
        return False
    _allocate(block, [ordinal], handle, attributes)
    return True


def _allocate(block: Json, ordinals: Collection[int], handle: str, attributes: Mapping[str, str]) -> None:
    entry = {"handle_id": handle, "secondary": dict(attributes)}
    known: list[Json] = list(block.get("attributes") or ())
    block["attributes"] = known
    if entry not in known:
        known.append(entry)
    index = known.index(entry)
    block["unallocated"] = [ordinal for ordinal in block["unallocated"] if ordinal not in ordinals]
    sequence = int(block.get("sequenceNumber") or 0)
    numbers = dict(block.get("sequenceNumberForAllocation") or {})
    block["sequenceNumberForAllocation"] = numbers
    for ordinal in ordinals:
        block["allocations"][ordinal] = index
        numbers[str(ordinal)] = sequence


def release(block: Json, ordinals: Iterable[int]) -> Counter[str]:
    """Give allocated ordinals back; returns how many each handle loses. Free ones are skipped."""
    attributes = block.get("attributes") or []
    lost: Counter[str] = Counter()
    numbers = block.get("sequenceNumberForAllocation")
    block["unallocated"] = block.get("unallocated") or []
    for ordinal in ordinals:
        index = block["allocations"][ordinal]
        if index is None:
            continue
        lost[str(attributes[index].get("handle_id") or "")] += 1
        block["allocations"][ordinal] = None
        block["unallocated"].append(ordinal)
        if isinstance(numbers, dict):
            numbers.pop(str(ordinal), None)
    _prune(block)
    return lost


def held_by(block: Json, handle: str) -> list[int]:
    """Ordinals allocated under a handle."""
    attributes = block.get("attributes") or []
    return [
        ordinal
        for ordinal, index in enumerate(block["allocations"])
        if index is not None and attributes[index].get("handle_id") == handle
    ]


def _prune(block: Json) -> None:
    """Drop attributes nobody uses and renumber the rest."""
    attributes = block.get("attributes") or []
    used = sorted({index for index in block["allocations"] if index is not None})
    renumbered = {old: new for new, old in enumerate(used)}
    block["attributes"] = [attributes[index] for index in used]
    block["allocations"] = [None if i is None else renumbered[i] for i in block["allocations"]]
