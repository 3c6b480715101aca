"""Runs the stock command `exabgp validate` again and again without importing ExaBGP each time.

Started by `validator.WarmValidator` as `python -m bird_config.validator_worker`. Reads one JSON string (a
path) per line, answers with one JSON line `{"status": …, "output": …}`. Each check runs in a fork of its
own, so none inherits what another one left behind in the parser. Nothing of ExaBGP is named here but its
command: the entry point is looked up as a shell would.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points

from bird_config.no_lookup import without_name_lookup


def main() -> None:
    """Until stdin ends."""
    (command,) = entry_points(group="console_scripts", name="exabgp")
    with without_name_lookup():
        run = command.load()
    gc.freeze()  # the forks need not walk what never goes
    for line in sys.stdin:
        status, output = check(run, json.loads(line))
        print(json.dumps({"status": status, "output": output}), flush=True)


def check(run: Callable[[], object], path: str) -> tuple[int, str]:
    """The command's exit status (as waitpid's exit code) and what it said."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            _run(run, path, said.fileno())
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read().decode(errors="replace")


def _run(run: Callable[[], object], path: str, output: int) -> None:
    status = 1
    try:
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        sys.argv = ["exabgp", "validate", "-n", path]
        result = run()
        status = result if isinstance(result, int) else 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
