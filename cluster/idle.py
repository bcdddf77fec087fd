"""Wait until a Ray node of this machine has had no work for some minutes, or its cluster is gone: for
cluster/deploy/node.sh.

    python -m cluster.idle --address HOST:PORT --minutes 10

Where Ray's autoscaler does not run (Slurm), nobody else tells a node to go.
"""

from __future__ import annotations

import math
import sys
import time

from ray.autoscaler.v2.sdk import get_cluster_status
from ray.util import get_node_ip_address

from jbot.cli import Parser, docstring, program

POLL_S = 10.0
"""Between questions (assumed)."""
PATIENCE_S = 120.0
"""A cluster that does not answer for so long is gone (assumed)."""


def idle_seconds(address: str, here: str) -> float:
    """Seconds for which the busiest node at an IP address has been idle; 0 where there is none yet."""
    status = get_cluster_status(address)
    nodes = [node for node in (*status.active_nodes, *status.idle_nodes) if node.ip_address == here]
    return min((node.resource_usage.idle_time_ms / 1000 for node in nodes if node.resource_usage), default=0.0)


def wait(address: str, minutes: float) -> str:
    """Return when the time has come, with the reason."""
    here, seen = get_node_ip_address(address), time.monotonic()
    while True:
        try:
            idle = idle_seconds(address, here)
            seen = time.monotonic()
        except Exception as error:  # whatever gRPC raises: the head may be busy, or gone
            idle = 0.0
            if time.monotonic() - seen > PATIENCE_S:
                return f"no answer from {address} for {PATIENCE_S:g} s ({type(error).__name__})"
        if idle > 60 * minutes:
            return f"idle for {minutes:g} minutes"
        time.sleep(POLL_S)


@program
def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="cluster.idle", description=docstring(__file__).splitlines()[0])
    parser.add_argument("--address", required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < math.inf:
        parser.error(f"--minutes must be positive and finite, got {options.minutes:g}")
    print(f"this node goes: {wait(options.address, options.minutes)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
