"""Regenerate `etcd_pb2.py` and `etcd_pb2.pyi` from `etcd.proto`.

    python felix_like/datastore/proto/generate.py

Needs grpcio-tools (dependency group `dev`). The generated code must not be newer than the protobuf
runtime, and at most one major older: generate with the oldest protobuf major that pyproject.toml allows
when raising its bounds.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROTO = "felix_like/datastore/proto/etcd.proto"


def main() -> int:
    from grpc_tools import protoc

    return int(
        protoc.main(["protoc", f"--proto_path={ROOT}", f"--python_out={ROOT}", f"--pyi_out={ROOT}", PROTO])
    )


if __name__ == "__main__":
    sys.exit(main())
