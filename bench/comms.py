"""`python -m bench comms [--json FILE] [--only TEXT] [--seeds N]`: how few bytes learning takes.

MNIST to 97 %, split and network of McMahan et al. 2017, table 2: 100 clients, a tenth of them a round, one
epoch in batches of 10, 784-200-200-10. Every update becomes the message that a client sends, frames,
checksums and all; its bytes are counted, read back, and what was read is what the server sums. Downloads are
files of the transport, deltas where a member holds a model: the one before (`down`), or the one of the round
that it was last drawn in (`drawn`), as far back as the coordinator keeps them. First it holds none, or under
`thin` the one that the run starts from.

Medians over the seeds. `float32` sends plain numbers both ways. The last rows are encoders on one core: how
many bytes of float32 one takes a second, error feedback and packing included.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import atoll as at
from atoll.control.engine.asking import LATE, stay
from atoll.core.aggregate import Reply
from atoll.core.edge import Answer
from atoll.core.rng import Rng
from atoll.core.transform import Context, State, Transform, transform
from atoll.core.update import Update
from atoll.learn.thin import thins
from atoll.transport import delta
from atoll.transport.frames import FrameFile
from atoll.wire.body import answer_message, params_message, read_answer
from atoll.wire.codec import decode, encode

SEEDS = (3, 4, 5)  # parts were chosen on seeds 1 and 2
TARGET = 0.97
ROUNDS = 60
LAST = 10  # rounds whose mean accuracy is compared
SIZE = 1 << 22  # numbers an encoder is timed with


@dataclass(frozen=True)
class Side:
    """A way to send updates. Goals against float32: `saved` share of uplink bytes at `most` times its rounds,
    `points` of accuracy lost at most, `down` share of downlink bytes saved.
    """

    name: str
    parts: Callable[[], tuple[Transform, ...]]
    saved: float | None = None
    most: float = 1.5
    points: float | None = None
    down: float | None = None
    packs: bool = True


SIDES = (
    Side("float32", lambda: (at.mean(),), packs=False),
    Side("float32, packed", lambda: (at.mean(),)),
    Side("int8", lambda: (at.mean(), at.int8()), saved=0.74, points=0.003),
    Side("int4", lambda: (at.mean(), at.int4())),
    Side("int2", lambda: (at.mean(), at.int2()), saved=0.97, most=1.3),
    Side("rotate, int2", lambda: (at.mean(), at.rotate(), at.int2())),
    Side("sign", lambda: (at.mean(), at.sign())),
    Side("topk 10 %, 1 bit", lambda: (at.mean(), at.topk(0.1, bits=1))),
    Side("thin 5 %, int2", lambda: (at.thin(0.05), at.mean(), at.int2()), saved=0.95, down=0.9),
)
ENCODERS = (
    at.int8(),
    at.int4(),
    at.int2(),
    at.sign(),
    at.topk(0.01),
    at.topk(0.01, bits=8),
    at.topk(0.1, bits=4),
)
GOALS = {"int8()": 1.0, "topk(0.01)": 1.0, "topk(0.01, bits=8)": 1.0}


@dataclass
class Count:
    """Bytes that went up and down in one run until now, and the accuracy now."""

    up: int = 0
    down: int = 0
    drawn: int = 0
    updates: int = 0
    accuracy: float = 0.0


@dataclass
class Row:
    """One way: rounds to the target, bytes up and down until then, also in shares of float32's.

    `each`: an update's bytes, in shares of float32's. `lost`: of float32's accuracy after all rounds.
    """

    name: str
    rounds: float
    times: float
    each: float
    up: float
    up_share: float
    down_share: float
    drawn_share: float
    accuracy: float
    lost: float
    missed: list[str]

    def line(self) -> str:
        """As one line of the table."""
        return (
            f"{self.name:20}{self.rounds:8g}{self.times:8.2f}x{self.up / 1e6:10.2f} MB{self.each:9.2%}"
            f"{self.up_share:9.2%}{self.down_share:9.2%}{self.drawn_share:9.2%}{self.accuracy:10.4f}"
            f"{self.lost * 100:8.2f}  {', '.join(self.missed)}"
        )


def wired(count: Count, *, packs: bool) -> Transform:
    """The rightmost part of a chain: what goes out goes through the bytes of a client's answer."""

    def out(update: Update, state: State, ctx: Context) -> tuple[Update, State]:
        answer = Answer((0,), replies=((0, Reply(update, ctx.weight)),))
        sent = b"".join(encode(answer_message(answer, run="r000001", request=ctx.round, packs=packs)))
        count.up += len(sent)
        count.updates += 1
        came = read_answer(decode(sent)).replies[0][1].update
        if came.buffer.tobytes() != update.buffer.tobytes():
            raise AssertionError("the receiver reads other numbers than the sender meant")
        return came, state

    return transform("wired()", out)


class Downloads:
    """What members download: files as the transport keeps them. `deltas`: from a model that they hold;
    `thin`: where it moves in few numbers.

    `follow`: bytes for the members of each cohort, if all of them hold the model before. `drawn`: if each
    holds the model of the round it was last drawn in.
    """

    def __init__(self, folder: Path, *, deltas: bool, thin: bool) -> None:
        self.folder = folder
        self.deltas = deltas
        self.thin = thin
        self.held: dict[int, int] = {}
        self.sizes: dict[tuple[int, int], int] = {}
        self.follow = self.drawn = 0

    def see(self, params: Update, number: int, clients: Sequence[int]) -> None:
        """These clients train on round `number`'s model."""
        path = self.folder / str(number)
        if not path.exists():
            path.write_bytes(b"".join(encode(params_message(params))))
        for client in clients:
            self.follow += self.size(number - 1, number)
            held = self.held.get(client, 0 if self.thin else -1)
            kept = number - held <= (stay(params) if self.thin else LATE) or (self.thin and not held)
            self.drawn += self.size(held if kept else -1, number)
            self.held[client] = number

    def size(self, old: int, new: int) -> int:
        """Bytes that lead from one model to another; from none where `old` is -1."""
        if old == new:
            return 0
        if (old, new) not in self.sizes:
            path, small = self.folder / str(new), self.folder / "delta"
            pays = old >= 0 and self.deltas
            pays = pays and delta.make(FrameFile.of(self.folder / str(old)), FrameFile.of(path), small)
            self.sizes[old, new] = (small if pays else path).stat().st_size
        return self.sizes[old, new]


class Watched:
    """A learner that shows each round's model, and to whom, before it trains."""

    def __init__(self, learner: Any, see: Callable[[Update, int, Sequence[int]], None]) -> None:
        self.learner = learner
        self.see = see

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def fit_many(self, params: Update, data: Any, ctxs: Any) -> Any:
        self.see(params, ctxs[0].round, [ctx.client for ctx in ctxs])
        return self.learner.fit_many(params, data, ctxs)


def once(side: Side, seed: int) -> list[Count]:
    """The counts after each round."""
    sites = at.partition(at.load_data("mnist"), clients=100, seed=seed, holdout=0)
    count, after = Count(), []
    with TemporaryDirectory() as folder:
        thin = thins(at.chain(*side.parts()))
        downloads = Downloads(Path(folder), deltas=side.packs, thin=thin)

        def watch(record: dict[str, Any]) -> None:
            accuracy = record["metrics"]["accuracy"]
            after.append(replace(count, down=downloads.follow, drawn=downloads.drawn, accuracy=accuracy))

        learner = at.mlp(hidden=(200, 200), lr=0.2, epochs=1, batch_size=10)
        chain = at.chain(*side.parts(), wired(count, packs=side.packs))
        algorithm = at.Algorithm(side.name, chain, wrap=lambda inner: Watched(inner, downloads.see))
        job = at.Job(learner, algorithm, cohort=at.sample(0.1), rounds=ROUNDS, sites=False)
        at.simulate(job, sites, seed=seed, watch=watch)
    return after


def reached(counts: Sequence[Count]) -> int | None:
    """The first round that reached the target."""
    return next((r for r, c in enumerate(counts) if c.accuracy >= TARGET), None)


def row(side: Side, counts: Sequence[Sequence[Count]], base: Sequence[Sequence[Count]]) -> Row:
    """Medians over the seeds, against float32's."""

    def found(runs: Sequence[Sequence[Count]]) -> tuple[float, float, float, float, float]:
        ends = [reached(run) for run in runs]
        at_end = [run[-1 if end is None else end] for run, end in zip(runs, ends, strict=True)]
        rounds = median(math.inf if end is None else end for end in ends)
        accuracy = median(sum(c.accuracy for c in run[-LAST:]) / LAST for run in runs)
        up, down, drawn = (median(getattr(c, name) for c in at_end) for name in ("up", "down", "drawn"))
        return rounds, up, down, drawn, accuracy

    rounds, up, down, drawn, accuracy = found(counts)
    plain, plain_up, plain_down, plain_drawn, whole = found(base)
    each = median(run[-1].up / base_run[-1].up for run, base_run in zip(counts, base, strict=True))
    missed = []
    if side.points is not None:  # alone: bytes an update, and accuracy
        missed += ["bytes"] * (each > 1 - (side.saved or 0)) + ["accuracy"] * (whole - accuracy > side.points)
    elif side.saved is not None:
        missed += ["bytes"] * (up / plain_up > 1 - side.saved) + ["rounds"] * (rounds / plain > side.most)
    if side.down is not None:
        missed += ["download"] * (max(down / plain_down, drawn / plain_drawn) > 1 - side.down)
    return Row(
        side.name,
        rounds,
        rounds / plain,
        each,
        up,
        up / plain_up,
        down / plain_down,
        drawn / plain_drawn,
        accuracy,
        whole - accuracy,
        missed,
    )


def speeds() -> dict[str, tuple[float, float]]:
    """Each encoder: GB of float32 a second on one core, and how many times smaller its messages are."""
    rng = np.random.default_rng(0)
    v = (rng.standard_normal(SIZE) * 1e-3).astype(np.float32)
    v[rng.random(SIZE) < 0.2] = 0  # as dead units leave it
    update = Update.of({"w": v})
    found = {}
    for part in ENCODERS:
        state, times = part.start(update, "out"), []
        for k in range(9):
            began = time.process_time()
            sent, _ = part.out(update, state, Context(Rng.of(k)))
            answer = Answer((0,), replies=((0, Reply(sent)),))
            message = answer_message(answer, run="r000001", request=0)
            times.append(time.process_time() - began)
        size = sum(map(len, encode(message)))
        found[str(part)] = (v.nbytes / median(times) / 1e9, v.nbytes / size)
    return found


def main(words: list[str] | None = None) -> int:
    """Print the table, write the file; 1 where a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench comms", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--only", default="", help="ways whose name contains this, besides float32")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many, up to 3")
    asked = parser.parse_args(words)
    seeds = SEEDS[: asked.seeds]
    print(
        f"{'':20}{'rounds':>8}{'times':>9}{'uplink':>13}{'each':>9}{'share':>9}{'down':>9}{'drawn':>9}{'accuracy':>10}{'lost':>8}"
    )
    base, rows = [once(SIDES[0], seed) for seed in seeds], []
    for side in SIDES:
        if side is SIDES[0] or asked.only in side.name:
            counts = base if side is SIDES[0] else [once(side, seed) for seed in seeds]
            rows.append(row(side, counts, base))
            print(rows[-1].line(), flush=True)
    found = speeds()
    for name, (speed, smaller) in found.items():
        print(f"{name:24}{speed:6.2f} GB/s, {smaller:.1f} times smaller")
    slow = [name for name, goal in GOALS.items() if found[name][0] < goal]
    if asked.json:
        encoders = {name: {"GB/s": speed, "smaller": smaller} for name, (speed, smaller) in found.items()}
        written = {"seeds": seeds, "ways": [asdict(r) for r in rows], "encoders": encoders, "slow": slow}
        asked.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return int(bool(slow or any(r.missed for r in rows)))
