"""Networks, clocks, disks and strangers that misbehave under a federation of real processes.

Each function plays one case in a federation laid out by `kills.Sweep` and answers what broke, and the
seconds from the end of the trouble to the end of the run where that says something.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from atoll.control.engine.safe import opened
from atoll.control.settings import Client
from atoll.core.errors import Gone
from atoll.privacy.keys import Identity
from atoll.transport.conformance import each, enter
from atoll.transport.frames import FrameFile
from atoll.transport.link import Link, read, unpack
from atoll.transport.open import open_link
from tests.federation.kills import Case, Placed, Sweep
from tests.federation.relays import Relays, Rough

ROUNDS = 8
_MORE = 40  # rounds of a run in whose midst somebody stands still
JOB: dict[str, Any] = {
    "name": "wine",
    "seed": 5,
    "rounds": ROUNDS,
    "data": {"name": "wine", "clients": 3, "holdout": 0.25},
    "learner": {"name": "softmax", "lr": 0.1},
    "algorithm": {"name": "scaffold"},
}
LONG: dict[str, Any] = {**JOB, "rounds": _MORE}
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


def wait(seconds: float) -> None:
    """Let a trouble last."""
    threading.Event().wait(seconds)


@contextmanager
def relayed(fed: Placed, seed: int, beat: float) -> Iterator[Relays]:
    """Every way between members leads over a relay; `beat`: seconds between heartbeats."""
    servers = ["coordinator", *fed.edges]
    with Relays([fed.address(name)[1] for name in servers], seed) as relays:
        stands = {fed.address(name)[1]: port for name, port in zip(servers, relays.ports, strict=True)}
        for name in fed.names:
            if "join" in (settings := fed.read(name)):
                own = [url.rpartition(":") for url in settings["join"]]
                fed.set(name, join=[f"{left}:{stands[int(number)]}" for left, _, number in own])
            if name in servers:
                fed.set(name, heartbeat=beat)
        yield relays


def run(
    sweep: Sweep, name: str, seed: int, trouble: Callable[[Placed, Relays], None]
) -> tuple[list[str], float]:
    """A run with trouble in its midst: what broke, and seconds from the trouble's end to the run's."""
    with ExitStack() as stack:
        fed = stack.enter_context(sweep.federation(sweep.known, f"{name}-{seed}"))
        relays = stack.enter_context(relayed(fed, seed, getattr(trouble, "beat", 1.0)))
        number = fed.submit(seed)
        fed.begin_all()
        fed.until(lambda: fed.rounds(number) >= 2, what="two rounds")
        trouble(fed, relays)
        healed = time.monotonic()
        fed.finished(number, 240.0)
        took = time.monotonic() - healed
        for member in fed.names:
            if member in fed.lives:
                fed.kill(member)
        wrong = fed.broken(number, sweep.expected(seed))
        folder = fed.folder
    if not wrong:
        shutil.rmtree(folder)
    return wrong, took


# -- networks ---------------------------------------------------------------------------------


def partition(_fed: Placed, relays: Relays) -> None:
    """Nobody reaches anybody for 4 seconds."""
    relays.do(lambda r: (setattr(r, "closed", True), r.reset()))
    wait(4.0)
    relays.do(lambda r: setattr(r, "closed", False))


def half_open(_fed: Placed, relays: Relays) -> None:
    """Connections stand and nothing passes for 6 seconds."""
    relays.do(lambda r: r.hold())
    wait(6.0)
    relays.do(lambda r: (r.hold(held=False), r.reset()))


def flapping(_fed: Placed, relays: Relays) -> None:
    """Every half second all connections break, twelve times."""
    for _ in range(12):
        relays.do(Rough.reset)
        wait(0.5)


def corrupt(_fed: Placed, relays: Relays) -> None:
    """Bits flip on the way; TLS sees it and the connection is over."""
    relays.do(lambda r: setattr(r, "corrupt", 5))
    wait(3.0)
    relays.do(lambda r: setattr(r, "corrupt", 0))


def setting(**values: float) -> Callable[[Placed, Relays], None]:
    """A network as bad as this until a whole round has passed in it."""

    def bad(fed: Placed, relays: Relays) -> None:
        relays.do(lambda r: [setattr(r, key, value) for key, value in values.items()])
        now = max(n for (n,) in fed.sql("select rounds from runs"))
        goal = min(now + 2, ROUNDS + 1)
        fed.until(lambda: max(n for (n,) in fed.sql("select rounds from runs")) >= goal, 240.0, "a round")
        relays.do(lambda r: [setattr(r, key, 0.0) for key in values])

    bad.beat = 25.0  # type: ignore[attr-defined]  a slow net is no dead one
    return bad


NETWORKS: dict[str, Callable[[Placed, Relays], None]] = {
    "partition of all for 4 s": partition,
    "half-open for 6 s": half_open,
    "flapping each 0.5 s": flapping,
    "bits flipped": corrupt,
    "10 % loss": setting(loss=0.1),
    "200 ms latency": setting(latency=0.1, jitter=0.2),
    "2,000 ms latency": setting(latency=1.8, jitter=0.4),
    "64 kbit/s": setting(rate=8000.0),
}


# -- an upload that dies on its way ------------------------------------------------------------

WIDE: dict[str, Any] = {
    **JOB,
    "rounds": 1,
    "data": {"name": "wine", "clients": 2, "holdout": 0.25},
    "learner": {"name": "mlp", "hidden": [150_000], "lr": 0.001},
    "algorithm": {"name": "fedavg"},
}
FRAME = 1 << 20
MANY = 3  # frames of an answer, at least: packed without loss it has half of its ten


def upload(sweep: Sweep, part: float, seed: int) -> tuple[list[str], int]:
    """A client is killed at this part of its upload: what broke, and the bytes sent twice."""
    with sweep.federation(sweep.known, f"upload-{part}-{seed}") as fed:
        client, port = fed.clients[0], fed.address("coordinator")[1]
        with Relays([port], seed) as relays:
            (relay,) = relays.servers
            fed.set(client, join=[f"https://127.0.0.1:{relay.port}"])
            number = fed.submit(seed)
            fed.begin_all()
            fed.until(lambda: fed.rounds(number) >= 1, what="the first evaluation")
            before = relay.bytes["up"]
            relays.do(lambda r: setattr(r, "rate", 8e6))
            size = fed.until(lambda: _kept(fed, client), what="its answer on its disk")
            fed.until(lambda: relay.bytes["up"] - before >= part * size or fed.state(number) != "running")
            fed.kill(client)
            relays.do(Rough.reset)
            fed.start(client)
            fed.finished(number)
            sent = relay.bytes["up"] - before
        for member in list(fed.lives):
            fed.kill(member)
        wrong = fed.broken(number, sweep.expected(seed))
    again = sent - size
    if again > FRAME + (FRAME >> 2):  # a frame, and what TLS, HTTP, hellos and the evaluation take
        wrong.append(f"{again} bytes were sent again, more than a frame")
    return wrong, again


def _kept(fed: Placed, client: str) -> int:
    """Bytes of the answer on this client's disk; 0 before there is one of many frames."""
    found = (p for p in (fed.place(client) / "answers").glob("*") if p.suffix != ".part")
    with suppress(FileNotFoundError):
        return max((p.stat().st_size for p in found if p.stat().st_size > MANY * FRAME), default=0)
    return 0


# -- the same upload more than once ------------------------------------------------------------

TIMES = 10


def tenfold(sweep: Sweep, seed: int) -> list[str]:
    """A client dies with its answer on its disk. Somebody with its key sends that ten times at once, and
    again over a new connection as if no receipt had come; then the client is back.
    """
    with sweep.federation(sweep.known, f"tenfold-{seed}") as fed:
        client = fed.clients[0]
        number = fed.submit(seed)
        fed.begin_all({client: "uplink.kept.after:2:kill"})
        fed.until(lambda: fed.dead(client), what=f"{client} to die")
        receipts = asyncio.run(_sent(fed, client))
        fed.start(client)
        fed.finished(number)
        for member in list(fed.lives):
            fed.kill(member)
        wrong = fed.broken(number, sweep.expected(seed))
        kept = fed.sql("select count(*) from answers where peer = ? and blob is not null", client)
    if receipts != [receipts[0]] * (TIMES + 1) or not receipts[0]["counted"]:
        wrong.append(f"other receipts for the same upload: {receipts}")
    if kept[0][0] > 2:  # what it evaluated and what it trained
        wrong.append(f"{kept[0][0]} answers of a client that gave two")
    return wrong


async def _sent(fed: Placed, client: str) -> list[dict[str, Any]]:
    """The receipts of the answer on this client's disk, brought over and over."""
    identity, url = Identity.open(fed.place(client) / "identity"), fed.read(client)["join"][0]
    link = open_link(url, identity)
    channel, _ = await enter(link)
    head: Mapping[str, Any] = {}
    while "ask" not in head:
        packet = unpack(await channel.recv() or b"")
        head = read(packet.body).head if packet.body else {}
    file = FrameFile.of(
        fed.place(client) / "answers" / sha256(head["ask"].encode()).hexdigest(),
        opened(Client(folder=str(fed.place(client)))).opened,
    )
    assert file.size > MANY * FRAME, "this is not the answer that was meant"
    upload, frames = f"{head['ask']}.{client}", file.read(0, file.told.frames)
    receipts = await asyncio.gather(*(_brought(link, upload, frames) for _ in range(TIMES)))
    await channel.close()
    await link.close()
    link = open_link(url, identity)
    channel, _ = await enter(link)
    receipts.append(await _brought(link, upload, frames))
    await channel.close()
    await link.close()
    return receipts


async def _brought(link: Link, upload: str, frames: list[bytes]) -> dict[str, Any]:
    while True:
        with contextlib.suppress(Gone):  # more at once than one member may: later
            return await link.upload(upload, each(frames), 0)
        await asyncio.sleep(0.05)


def zombie(sweep: Sweep, seed: int) -> list[str]:
    """An edge stands still with a client's answer in it; the client answers the same question through the
    other edge, and then the first one wakes up and says what it holds.
    """
    with sweep.federation(sweep.known, f"zombie-{seed}") as fed:
        first, second = fed.edges
        mine = [
            name for name in fed.clients if fed.read(name)["join"][0] == fed.read(fed.clients[0])["join"][0]
        ]
        other = next(fed.read(name)["join"][0] for name in fed.clients if name not in mine)
        for name in mine:
            fed.set(name, join=[fed.read(name)["join"][0], other])
        for name in ("coordinator", *fed.edges):
            fed.set(name, heartbeat=1.0)
        number = fed.submit(seed)
        fed.begin_all()
        fed.until(lambda: fed.rounds(number) >= 2, what="two rounds")
        held = "select 1 from answers natural join asks where asks.closed = 0"
        end = time.monotonic() + 60
        while not fed.sql(held, name=first):
            assert time.monotonic() < end, f"{first} never had an answer while it waited for more"
        fed.lives[first].signal(signal.SIGSTOP)
        now = fed.rounds(number)
        try:
            fed.until(lambda: fed.rounds(number) > now + 1, what=f"rounds without {first}")
        finally:
            fed.lives[first].signal(signal.SIGCONT)
        moved = {name for (name,) in fed.sql("select name from nodes", name=second)}.intersection(mine)
        fed.finished(number)
        for member in list(fed.lives):
            fed.kill(member)
        wrong = fed.broken(number, sweep.expected(seed))
    return wrong if moved else [*wrong, f"no client went from {first} to {second}"]


# -- strangers ---------------------------------------------------------------------------------


@contextmanager
def strangers(port: int, silent: int, slow: int) -> Iterator[list[socket.socket]]:
    """Connections that say nothing, and ones that say a TLS hello and then a letter now and then."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    held: list[socket.socket] = []
    over = threading.Event()

    def drip() -> None:
        text = b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"a" * 4000
        for letter in text:
            for one in held[silent:]:
                with contextlib.suppress(OSError):
                    one.send(bytes([letter]))
            if over.wait(1.0):
                return

    for i in range(silent + slow):
        with contextlib.suppress(OSError):
            one = socket.create_connection(("127.0.0.1", port), timeout=10)
            held.append(one if i < silent else context.wrap_socket(one))
    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        over.set()
        thread.join()
        for one in held:
            one.close()


def crowded(sweep: Sweep, seed: int, silent: int = 1000, slow: int = 200) -> tuple[list[str], float]:
    """Honest rounds beside strangers: what broke, and how many times longer a round takes."""
    seconds = []
    wrong: list[str] = []
    for name, many in (("alone", (0, 0)), ("crowded", (silent, slow)), ("again", (0, 0))):
        with sweep.federation(sweep.known, f"{name}-{seed}") as fed:
            fed.begin_all()
            fed.until(lambda fed=fed: len(fed.sql("select 1 from nodes")) >= len(fed.names) - 1)
            with strangers(fed.address("coordinator")[1], *many):
                number = fed.submit(seed)
                fed.finished(number)
            for member in list(fed.lives):
                fed.kill(member)
            wrong += fed.broken(number, sweep.expected(seed))
            with fed.store() as store:
                notes = [e["at"] for e in store.events(0, 10**6) if e["kind"] == "note"]
            gaps = sorted(b - a for a, b in pairwise(notes))
            seconds.append(gaps[len(gaps) // 2])
    ratio = seconds[1] / max(seconds[0], seconds[2])
    return wrong, ratio


# -- clocks and disks --------------------------------------------------------------------------


def clock(sweep: Sweep, days: float, victim: str, seed: int) -> list[str]:
    """A member's wall clock jumps in mid-run; certificates are good for a month."""
    with sweep.federation(sweep.known, f"clock-{days}-{victim}-{seed}") as fed:
        stamp = fed.folder / "clock"
        stamp.write_text("+0d")
        fake = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(stamp),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        number = fed.submit(seed)
        for name in fed.names:
            fed.start(name, forked=name != victim, **(fake if name == victim else {}))
            if fed.role(name) != "client":
                fed.until(lambda name=name: fed.listens(name), what=f"{name} to listen")
        fed.until(lambda: fed.rounds(number) >= 2, what="two rounds")
        stamp.write_text(f"{days:+g}d")
        fed.finished(number)
        for member in list(fed.lives):
            fed.kill(member)
        return fed.broken(number, sweep.expected(seed))


def disk(sweep: Sweep, case: Case, action: str) -> list[str]:
    """The disk is full, or fails, at one of a server's failpoints; the server lives on and goes on."""
    victim = {"coordinator": "coordinator", "edge": "edge-a"}[case.role]
    with sweep.federation(sweep.known, f"disk-{action}-{case.role}-{case.point}-{case.seed}") as fed:
        number = fed.submit(case.seed)
        fed.begin_all({victim.replace("-", "_"): f"{case.point}:{case.hit}:{action}"})
        fed.finished(number)
        for member in list(fed.lives):
            fed.kill(member)
        return fed.broken(number, sweep.expected(case.seed))


def disk_cases(sweep: Sweep) -> Iterator[Case]:
    """Before each commit and around each sync of a server."""
    for case in sweep.cases((1,), ("coordinator", "edge")):
        if not case.first and (case.point.endswith("before_commit") or case.point.startswith("files.")):
            yield case


__all__ = [
    "FAKETIME",
    "JOB",
    "NETWORKS",
    "WIDE",
    "clock",
    "crowded",
    "disk",
    "disk_cases",
    "run",
    "tenfold",
    "upload",
    "zombie",
]
