"""What a federation of machines costs: `python -m bench wire [--only PART ...] [--json FILE]`.

Real processes on loopback, mutual TLS 1.3, gRPC, no edges, SQLite synced at every commit, the real gate.
Clients answer at once (instant.py), so a round costs what the platform costs. Parts:

    latency   a round of 0.1 M numbers with 2 and with 20 clients
    bulk      a round of 10 M x 10 and 60 M x 2, beside the same bytes over bare TLS; its CPU beside its parts
    memory    the coordinator's peak at 60 M numbers, with 2 and with 10 clients
    idle      5,000 members that wait in one server process
    agent     a client's own memory; a client that was installed without extras

What is compared is measured in one run, in turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from atoll.learn.kernel import cores

from . import agent, idle, parts
from .carry import Carried
from .federation import Federation, status

MIB = 1 << 20


@dataclass(frozen=True)
class Figure:
    """`value` in `unit`; `target`: the most it may be, None for none. `of`: what it is measured against."""

    name: str
    value: float
    unit: str
    target: float | None = None
    of: str = ""

    def __str__(self) -> str:
        goal = "" if self.target is None else f"{self.target:g}"
        late = "" if self.target is None or self.value <= self.target else "  above"
        return f"{self.name:52}{self.value:11.4g} {self.unit:8}{goal:>7}{late}  {self.of}"


def told(figures: Iterable[Figure], file: Path | None) -> int:
    """Print each as it is found, write them to the file; 1 where a goal is missed."""
    found = []
    for figure in figures:
        found.append(figure)
        print(figure, flush=True)
    if file:
        file.write_text(json.dumps([asdict(figure) for figure in found], indent=1) + "\n", "utf-8")
    return int(any(f.target is not None and f.value > f.target for f in found))


def latency(folder: Path) -> Iterator[Figure]:
    """Median milliseconds of a round with an instant client; the best one tells what a busy machine hides."""
    for clients, most, seen in ((2, 50.0, "Flower 7400, FLARE 2500"), (20, 150.0, "Flower 42000")):
        with Federation(folder / f"latency{clients}", clients) as fed:
            fed.train(100_000, 3)
            cpu, seconds = fed.cpu(), fed.train(100_000, 40)
            used = (fed.cpu() - cpu) / len(seconds)
            bare = small(fed.identities, clients)
        name = f"round, 0.1 M x {clients} clients"
        yield Figure(name, median(seconds) * 1e3, "ms", most, seen)
        yield Figure(f"{name}, fastest", min(seconds) * 1e3, "ms", None, f"the bytes bare: {bare}")
        yield Figure(f"{name}, CPU of the server", used * 1e3, "ms")


def small(ids: tuple[Path, Path], clients: int) -> str:
    """What such a round's bytes take bare."""
    found = []
    for kind in ("tls", "grpc"):
        with Carried(kind, ids, clients, 400_000, 400_000) as bare:
            bare.once()
            found.append(f"{kind} {median(bare.once()[0] for _ in range(20)) * 1e3:.0f} ms")
    return ", ".join(found)


def bulk(folder: Path, turns: int = 4) -> Iterator[Figure]:
    """A round of many bytes beside the same bytes with nothing around them.

    The parts begin a round's time after memory was last freed, as a round's own do: a virtual machine may
    have taken it back by then, and gives it anew page by page.
    """
    for size, clients in ((10_000_000, 10), (60_000_000, 2)):
        name = f"{size // 10**6} M x {clients}"
        with Federation(folder / f"bulk{clients}", clients) as fed:
            ids = fed.identities
            fed.train(size, 2)
            work = parts.Bare(folder, size, clients)
            wall: dict[str, list[float]] = {"ours": [], "tls": [], "grpc": [], "parts": []}
            cpu: dict[str, list[float]] = {"ours": [], "parts": []}
            with (
                Carried("tls", ids, clients, 4 * size, 4 * size) as bare,
                Carried("grpc", ids, clients, 4 * size, 4 * size) as calls,
            ):
                for _ in range(turns):
                    before = fed.cpu()
                    seconds = fed.train(size, 3)
                    cpu["ours"].append((fed.cpu() - before) / (len(seconds) + 0.5))  # and a model registered
                    wall["ours"].append(median(seconds))
                    wall["tls"].append(bare.once()[0])
                    seconds_, carried, theirs = calls.once()
                    wall["grpc"].append(seconds_)
                    cpu["parts"].append(carried + work.once())
                    all_parts = cpu["parts"][-1] + theirs + sum(work.member() for _ in range(clients))
                    work.clear()
                    wall["parts"].append(all_parts / cores())
        of = f"bare TLS {median(wall['tls']):.2f} s, bare gRPC {median(wall['grpc']):.2f} s"
        ratio = median(a / b for a, b in zip(wall["ours"], wall["tls"], strict=True))
        yield Figure(f"round, {name}", median(wall["ours"]), "s")
        yield Figure(f"round, {name}, against bare TLS", ratio, "times", 1.5, of)
        ratio = median(a / b for a, b in zip(wall["ours"], wall["parts"], strict=True))
        of = f"all of them spread over the cores: {median(wall['parts']):.2f} s"
        yield Figure(f"round, {name}, against its parts done bare", ratio, "times", 1.5, of)
        least, most = median(cpu["parts"]), median(cpu["ours"])
        yield Figure(
            f"server CPU, {name}, against its parts",
            most / least,
            "times",
            1.3,
            f"{most:.2f} s of {least:.2f} s",
        )


def memory(folder: Path, size: int = 60_000_000) -> Iterator[Figure]:
    """Peak memory of the coordinator's process, and of its gate's."""
    for clients in (2, 10):
        with Federation(folder / f"memory{clients}", clients) as fed:
            fed.train(size, 3)
            peak, gate = status(fed.processes["coordinator"], "VmHWM"), fed.gate()
            beside = status(gate, "VmHWM") if gate else 0
        name = f"coordinator's peak, {size // 10**6} M x {clients}"
        yield Figure(
            name, peak / (4 * size), "models", 5.0, f"{peak / 1e6:.0f} MB; its gate {beside / 1e6:.0f} MB"
        )


def waiting(folder: Path) -> Iterator[Figure]:
    """5,000 members that wait."""
    folder.mkdir()
    found = idle.measure(folder, 5_000, 60.0)
    name = f"{found['members']:g} idle members"
    yield Figure(f"{name}, memory of each", found["kib"], "KiB", 128.0)
    yield Figure(f"{name}, CPU with heartbeats each 120 s", found["cpu"], "%", 1.0)
    yield Figure(f"{name}, until a letter has reached all", found["reached"], "s")


def client(folder: Path) -> Iterator[Figure]:
    """A client's memory, installed without extras."""
    base = agent.installed(folder / "base", "grpc")
    for transport, most in (("grpc", 60.0), ("https", 50.0)):
        found = agent.measure(folder / transport, base, transport)
        shared = f"{found['rss']:.0f} MB with what it shares with others"
        yield Figure(f"idle client, {transport}", found["pss"], "MB", most, shared)
        yield Figure(f"client's peak, 10 M numbers, {transport}", found["peak"], "MB", 300.0)
    yield Figure(
        "base installation: rounds of a numpy client", agent.trained(folder / "numpy", base), "rounds"
    )


PARTS: dict[str, Callable[[Path], Iterator[Figure]]] = {
    "latency": latency,
    "bulk": bulk,
    "memory": memory,
    "idle": waiting,
    "agent": client,
}


def main(words: list[str]) -> int:
    """Print each figure as it is found, write the file."""
    parser = argparse.ArgumentParser(prog="python -m bench wire", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts")
    asked = parser.parse_args(words)
    told(_figures(asked.only), asked.json)
    return 0


def _figures(parts: Iterable[str]) -> Iterator[Figure]:
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="atoll-bench-") as folder:
            yield from PARTS[part](Path(folder) / part)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
