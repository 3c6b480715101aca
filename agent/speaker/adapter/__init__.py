"""The only package that imports ExaBGP; its internals carry no promise, so the version is exact.

`configuration` reads exabgp.conf, `sockets` sets keys and TTLs, `engine` drives a neighbor's state
machine, `codec` reads and writes UPDATEs. Contract tests: `tests/interop/test_exabgp_contract.py`.
"""

from bird_config.no_lookup import without_name_lookup

with without_name_lookup():
    from agent.speaker.adapter.configuration import parse
    from agent.speaker.adapter.engine import EXABGP_VERSION, PINNED, Session, prepare
    from agent.speaker.adapter.sockets import open_socket, set_key, set_ttl

__all__ = ["EXABGP_VERSION", "PINNED", "Session", "open_socket", "parse", "prepare", "set_key", "set_ttl"]
