"""`python -m bench simulate [--json FILE] [--only W1] [--cores 1 2] [--rounds N]`.

Options of their own: `comms`, `distil`, `edge`, `faults`, `node`, `plan`, `private`, `robust`,
`secagg`, `sense`, `suites`, `wire`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from . import (
    comms,
    distil,
    drift,
    edge,
    faults,
    machines,
    node,
    plan,
    private,
    replay,
    robust,
    secagg,
    sense,
    simulate,
    suites,
    wire,
)
from .rows import Disagreement, Row, table

# A suite answers rows; other files add theirs here.
SUITES: dict[str, tuple[Callable[..., list[Row]], ...]] = {"simulate": (simulate.rows,)}


def main(words: list[str] | None = None) -> int:
    """Print the table, write the file; 1 where two sides disagree."""
    words = sys.argv[1:] if words is None else words
    own = {
        "comms": comms.main,
        "distil": distil.main,
        "edge": edge.main,
        "drift": drift.main,
        "faults": faults.main,
        "machines": machines.main,
        "node": node.main,
        "plan": plan.main,
        "private": private.main,
        "replay": replay.main,
        "robust": robust.main,
        "secagg": secagg.main,
        "sense": sense.main,
        "suites": suites.main,
        "wire": wire.main,
    }
    if words and words[0] in own:
        return own[words[0]](words[1:])
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2], help="how many to time with")
    parser.add_argument("--rounds", type=int, help="instead of each workload's own number")
    asked = parser.parse_args(words)
    try:
        found = [
            row
            for suite in SUITES[asked.suite]
            for row in suite(asked.cores, asked.only, rounds=asked.rounds)
        ]
    except Disagreement as why:
        print(f"the sides disagree, so no time counts: {why}", file=sys.stderr)
        return 1
    print(table(found))
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
