"""`python -m bench faults [--quick] [--json FILE] [--only TEXT]`: what breaks, and what then holds.

Each row plays one kind of fault against whole federations and looks at every invariant after each case
(tests/federation/invariants.py). The table in docs/reference/faults.md is what this prints.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any


@dataclass
class Row:
    """One kind of fault: how many cases, which broke an invariant and how, seconds to recover."""

    fault: str
    cases: int = 0
    broken: list[str] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)
    seconds: float = 0.0
    note: str = ""

    def line(self) -> str:
        """As one line of the table."""
        back = f"{median(self.recovery):.2f} | {max(self.recovery):.2f}" if self.recovery else " | "
        return f"| {self.fault} | {self.cases} | {len(self.broken)} | {back} | {self.note} |"


@dataclass(frozen=True)
class Size:
    """How much of each: `seeds` of every kill, `cores` cases at once."""

    quick: bool
    cores: int
    seeds: tuple[int, ...]
    worlds: int


Suite = Callable[[Size], Iterator[Row]]


def kills(size: Size) -> Iterator[Row]:
    """kill -9 at every failpoint of each role, three-tier federation, real processes."""
    from tests.federation.kills import VICTIMS, Case, Outcome, Sweep

    with Sweep() as sweep:
        cases = list(sweep.cases(size.seeds))
        if size.quick:
            cases = cases[::12]

        def play(case: Case) -> Outcome:
            found = sweep.kill(case)
            say = "ok" if not found.broken else "BROKEN " + found.broken[0][:300]
            what = f"{case.role} {case.point}:{case.hit} seed {case.seed}"
            print(f"  {what}: {say} ({found.seconds:.1f} s)", file=sys.stderr)
            return found

        with ThreadPoolExecutor(size.cores) as pool:
            outcomes = list(pool.map(play, cases))
    for role in VICTIMS:
        mine = [o for o in outcomes if o.case.role == role]
        points = len({o.case.point for o in mine})
        row = Row(f"kill -9 of the {role}, {points} places x {len(size.seeds)} seeds", len(mine))
        row.broken = [f"{o.case}: {o.broken[0]}" for o in mine if o.broken]
        row.recovery = [o.back for o in mine if o.back is not None]
        row.seconds = sum(o.seconds for o in mine)
        yield row


def _tried(row: Row, what: str, case: Callable[[], tuple[list[str], float]]) -> float | None:
    """Play a case into a row; its figure, None where it broke."""
    began = time.monotonic()
    try:
        wrong, figure = case()
    except (AssertionError, OSError) as error:
        wrong, figure = [f"{type(error).__name__}: {error}"], 0.0
    row.cases += 1
    row.seconds += time.monotonic() - began
    row.broken += [f"{what}: {text}" for text in wrong]
    print(f"  {row.fault}, {what}: {wrong[0][:300] if wrong else 'ok'}", file=sys.stderr)
    return None if wrong else figure


def _only(case: Callable[..., list[str]], *args: Any) -> tuple[list[str], float]:
    """A case without a figure."""
    return case(*args), 0.0


def networks(size: Size) -> Iterator[Row]:
    """Every way between real processes leads over a relay that misbehaves."""
    from tests.federation import troubles
    from tests.federation.kills import Sweep

    with Sweep(troubles.JOB) as sweep:
        for name, trouble in troubles.NETWORKS.items():
            row = Row(name, note="recovery: from healing to the end of the run")
            for seed in size.seeds:
                took = _tried(row, f"seed {seed}", partial(troubles.run, sweep, name[:8], seed, trouble))
                if took is not None and not name.startswith(("10", "200", "2,0", "64")):
                    row.recovery.append(took)
            yield row


def uploads(size: Size) -> Iterator[Row]:
    """A client is killed in the midst of an upload of ten frames."""
    from tests.federation import troubles
    from tests.federation.kills import Sweep

    with Sweep(troubles.WIDE, edges=0) as sweep:
        for part in (0.1, 0.5, 0.99):
            row = Row(f"client killed at {part:.0%} of an upload of some MB")
            again = [
                _tried(row, f"seed {seed}", partial(troubles.upload, sweep, part, seed))
                for seed in size.seeds
            ]
            most = max((a for a in again if a is not None), default=0)
            row.note = f"at most {most / 1e6:.2f} MB more than the update itself"
            yield row


def repeats(size: Size) -> Iterator[Row]:
    """The same answer more than once: ten times at once, and through two edges."""
    from tests.federation import troubles
    from tests.federation.kills import Sweep

    for what, job, edges, case in (
        (
            f"the same upload {troubles.TIMES} times at once, and after a lost receipt",
            troubles.WIDE,
            0,
            troubles.tenfold,
        ),
        ("the same answer through two edges, the first stood still", troubles.LONG, 2, troubles.zombie),
    ):
        with Sweep(job, edges=edges) as sweep:
            row = Row(what)
            for seed in size.seeds:
                _tried(row, f"seed {seed}", partial(_only, case, sweep, seed))
            yield row


def strangers(size: Size) -> Iterator[Row]:
    """Connections that say nothing or hardly anything, beside an honest federation."""
    from tests.federation import troubles
    from tests.federation.kills import Sweep

    with Sweep(troubles.JOB) as sweep:
        row = Row("1,000 half-open connections and 200 slow ones")
        ratios = [_tried(row, f"seed {seed}", partial(troubles.crowded, sweep, seed)) for seed in size.seeds]
        worst = max((r for r in ratios if r is not None), default=0.0)
        row.note = f"an honest round takes {worst:.2f} times as long at most"
        yield row


def clocks(size: Size) -> Iterator[Row]:
    """Wall clocks jump by a day in mid-run."""
    from tests.federation import troubles
    from tests.federation.kills import Sweep

    if troubles.FAKETIME is None:
        yield Row("wall clock jumps by a day", note="not played: libfaketime is not installed")
        return
    with Sweep(troubles.JOB, hours=24.0 * 30) as sweep:
        for victim in ("coordinator", "edge-a", "client-1"):
            row = Row(f"wall clock of {victim} jumps by a day, both ways")
            for days in (1.0, -1.0):
                for seed in size.seeds:
                    _tried(
                        row,
                        f"{days:+g} d, seed {seed}",
                        partial(_only, troubles.clock, sweep, days, victim, seed),
                    )
            yield row


def disks(size: Size) -> Iterator[Row]:
    """The disk is full, or fails, before each commit and around each sync of a server."""
    from tests.federation import troubles
    from tests.federation.kills import Sweep

    with Sweep() as sweep:
        for action, what in (("full", "disk full (ENOSPC)"), ("raise", "disk fails (EIO)")):
            row = Row(f"{what} at a commit or sync of coordinator or edge")
            cases = list(troubles.disk_cases(sweep))[:: 6 if size.quick else 1]
            for case in cases:
                _tried(
                    row,
                    f"{case.role} {case.point}:{case.hit}",
                    partial(_only, troubles.disk, sweep, case, action),
                )
            yield row


def power(size: Size) -> Iterator[Row]:
    """Power cuts: what was not synced is lost or torn (tests/store/test_power.py)."""
    seeds = 100 if size.quick else 1000
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/store/test_power.py"],
        cwd=root,
        env={**os.environ, "ATOLL_SEEDS": str(seeds), "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        check=False,
    )
    row = Row("power cut: un-synced writes lost or torn", seeds)
    row.broken = [] if done.returncode == 0 else [done.stdout[-2000:]]
    yield row


def worlds(size: Size) -> Iterator[Row]:
    """The deterministic world: deaths, partitions, losses and repetitions by one number."""
    yield _played(size, "faults", "seeds of the deterministic world")


def weather(size: Size) -> Iterator[Row]:
    """The same with batteries, temperatures and links that change: who holds back is not asked."""
    yield _played(size, "weather", "seeds of worlds with weather")


def _played(size: Size, kind: str, name: str) -> Row:
    from tests.federation.nightly import play

    each = 50
    blocks = [range(a, min(a + each, size.worlds)) for a in range(0, size.worlds, each)]
    row = Row(name, size.worlds)
    with ProcessPoolExecutor(size.cores, mp_context=get_context("spawn")) as pool:
        for found in pool.map(
            play, [b.start for b in blocks], [b.stop for b in blocks], [kind] * len(blocks)
        ):
            for seed, wrong in found:
                print(f"  world {seed}: {wrong}", file=sys.stderr)
                row.broken.append(f"world {seed}: {wrong}")
    return row


SUITES: dict[str, Suite] = {
    "kills": kills,
    "networks": networks,
    "uploads": uploads,
    "repeats": repeats,
    "strangers": strangers,
    "clocks": clocks,
    "disks": disks,
    "power": power,
    "worlds": worlds,
    "worlds with weather": weather,
}


def main(words: list[str] | None = None) -> int:
    """Print the table, write the file; 1 where an invariant broke."""
    parser = argparse.ArgumentParser(prog="python -m bench faults", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--only", default="", help="suites whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a sample of each, a few minutes in all")
    parser.add_argument("--cores", type=int, default=2, help="cases at once")
    parser.add_argument("--worlds", type=int, default=200, help="seeds of the deterministic world")
    asked = parser.parse_args(words)
    size = Size(asked.quick, asked.cores, (1,) if asked.quick else (1, 2, 3), asked.worlds)
    print("| fault | cases | broken | recovery, median s | longest s | |\n|---|---:|---:|---:|---:|---|")
    rows: list[Row] = []
    for name, suite in SUITES.items():
        if asked.only in name:
            began = time.monotonic()
            for row in suite(size):
                rows.append(row)
                print(row.line(), flush=True)
            print(f"  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
            if asked.json:
                asked.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    for row in rows:
        for text in row.broken:
            print(f"{row.fault}: {text}", file=sys.stderr)
    return 1 if any(row.broken for row in rows) else 0
