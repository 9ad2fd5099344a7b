"""The process that does a smoke, detached from its caller: it inherits the smoke lock and outlives
the connection.
"""

from __future__ import annotations

import json
import signal
import sys

from sgl_admin.base import detached, rights
from sgl_admin.records import run, scenario
from sgl_admin.smoke.runner import Smoke


def order(scenario_text: str, server_timeout_s: float) -> str:
    """What this process reads from its standard input."""
    return json.dumps({"scenario": scenario_text, "server_timeout_s": server_timeout_s})


def main() -> int:
    """argv: the smoke's id; standard input: the order. Standard output and error go to the run's
    log.
    """
    rights.begin()
    given = json.load(sys.stdin)
    try:
        smoke = Smoke(
            run.live(), scenario.parse(given["scenario"]), sys.argv[1], given["server_timeout_s"]
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: smoke.interrupt())
        return smoke.execute()
    except Exception as error:
        detached.complain(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
