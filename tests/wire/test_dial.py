"""A member that stays connected: letters, uploads and downloads over every kind of cut."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.core.errors import Gone, MisuseError, ProtocolError, Refused
from atoll.core.session import Packet
from atoll.privacy.keys import Member
from atoll.transport.conformance import Desk, enter, message
from atoll.transport.dial import Dial, Patience
from atoll.transport.link import letter, pack, read, unpack
from atoll.transport.memory import MemoryLink
from atoll.transport.service import Limits, Service
from atoll.wire.codec import FRAME, HEADER, Message, encode

FAST = Patience(first=0.01, longest=0.05, welcome=5, home=0.05)
ANN = Member("lab", "client", "ann", 1, 1e12)


class Net:
    """Servers by URL, which may be down, and the links made to them."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.links: list[MemoryLink] = []
        self.down: set[str] = set()

    def make(self, url: str) -> MemoryLink:
        net = self

        class Watched(MemoryLink):
            async def session(self, name: str, hello: bytes) -> Any:
                if url in net.down:
                    raise Gone(f"{url} cannot be reached")
                return await super().session(name, hello)

            async def probe(self) -> None:
                if url in net.down:
                    raise Gone(f"{url} cannot be reached")

        link = Watched(self.services[url], ANN, url)
        self.links.append(link)
        return link

    def cut(self) -> None:
        for link in self.links:
            link.cut()


class Side:
    """What a member hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self._news = asyncio.Condition()

    async def letter(self, kind: str, head: Mapping[str, Any]) -> None:
        await self.note((kind, dict(head)))

    async def open(self, welcome: Mapping[str, Any], fresh: bool) -> None:
        await self.note(("open", welcome["url"], fresh))

    async def lost(self, reason: str) -> None:
        await self.note(("lost",))

    async def note(self, what: Any) -> None:
        async with self._news:
            self.heard.append(what)
            self._news.notify_all()

    async def until(self, found: Callable[[list[Any]], Any]) -> None:
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: found(self.heard))


@asynccontextmanager
async def dialled(net: Net, *urls: str, **more: Any) -> AsyncIterator[tuple[Dial, Side]]:
    side = Side()
    dial = Dial(
        urls, net.make, lambda: {"version": "test"}, on_letter=side.letter, on_open=side.open,
        on_lost=side.lost, patience=FAST, draw=random.Random(0), **more,
    )  # fmt: skip
    running = asyncio.ensure_future(dial.run())
    try:
        yield dial, side
    finally:
        await dial.close()
        await asyncio.wait([running])
        if not running.cancelled() and (error := running.exception()) is not None:
            side.heard.append(("ended", error))


async def serving(net: Net, url: str, folder: Path, limits: Limits | None = None) -> tuple[Service, Desk]:
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240
    desk = Desk(folder)
    service = Service(desk, limits or Limits(takeover=0.1))
    await service.start()
    net.services[url] = service
    return service, desk


def run(coroutine: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await coroutine

    asyncio.run(limited())


def test_letters_arrive_once_and_in_order_over_many_cuts(tmp_path: Path) -> None:
    async def story() -> None:
        net, rng, cuts = Net(), random.Random(7), 0
        service, desk = await serving(net, "a", tmp_path)
        async with dialled(net, "a") as (dial, side):
            await side.until(lambda heard: ("open", "a", True) in heard)
            for k in range(300):
                service.send("ann", "down", {"k": k})
                dial.send("up", {"k": k})
                if rng.random() < 0.05:
                    net.cut()
                    cuts += 1
                    await side.until(lambda heard, n=cuts: sum(h[0] == "open" for h in heard) > n)
            await side.until(lambda heard: ("down", {"k": 299}) in heard)
            await desk.until(lambda told: ("letter", "ann", "up", {"k": 299}) in told)
            assert [h[1]["k"] for h in side.heard if h[0] == "down"] == list(range(300))
            assert [w[3]["k"] for w in desk.told if w[0] == "letter"] == list(range(300))
            assert [h for h in side.heard if h[0] == "open"].count(("open", "a", True)) == 1
            assert cuts > 9, "it was cut and resumed"
        await service.close()

    run(story())


def test_a_server_that_restarts_is_told_again_what_it_may_not_have(tmp_path: Path) -> None:
    async def story() -> None:
        net = Net()
        first, _ = await serving(net, "a", tmp_path)
        async with dialled(net, "a") as (dial, side):
            await side.until(lambda heard: ("open", "a", True) in heard)
            net.down.add("a")
            net.cut()
            await side.until(lambda heard: ("lost",) in heard)
            dial.send("up", {"k": 1})  # while nobody is there
            await first.close()
            second, desk = await serving(net, "a", tmp_path / "second")
            net.down.clear()
            await desk.until(lambda told: ("letter", "ann", "up", {"k": 1}) in told)
            assert [h for h in side.heard if h[0] == "open"] == [("open", "a", True)] * 2
        await second.close()

    run(story())


def test_another_parent_takes_over_and_the_way_home_is_found(tmp_path: Path) -> None:
    async def story() -> None:
        net = Net()
        home, at_home = await serving(net, "home", tmp_path / "h")
        away, away_desk = await serving(net, "away", tmp_path / "a")
        busy = True
        async with dialled(net, "home", "away", idle=lambda: not busy) as (dial, side):
            await side.until(lambda heard: ("open", "home", True) in heard)
            net.down.add("home")
            net.cut()
            dial.send("up", {"for": "home"})
            await side.until(lambda heard: ("open", "away", True) in heard)
            net.down.clear()
            assert dial.url == "away"
            busy = False
            await side.until(lambda heard: heard.count(("open", "home", True)) == 2 or
                             ("open", "home", False) in heard)  # fmt: skip
            assert dial.url == "home"
            assert away.sessions() == [], "it said goodbye"
            await at_home.until(lambda told: told.count(("present", "ann")) == 2)
            assert not [w for w in away_desk.told if w[0] == "letter"], "letters for one parent stay there"
        await home.close()
        await away.close()

    run(story())


def test_why_it_is_not_connected_is_logged_once_for_each_outage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        net = Net()
        service, _ = await serving(net, "home", tmp_path)
        async with dialled(net, "home") as (_, side):
            for times in (1, 2):
                await side.until(lambda heard, times=times: len(heard) >= 2 * times - 1)
                net.down.add("home")
                net.cut()
                made = len(net.links)
                while len(net.links) < made + 5:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                net.down.clear()
            await side.until(lambda heard: len(heard) == 5)
        await service.close()

    with caplog.at_level("INFO", "atoll.transport"):
        run(story())
    told = [record.getMessage() for record in caplog.records if record.name == "atoll.transport"]
    assert told.count("not connected to home: home cannot be reached") == 2, told
    assert told.count("connected to home") == 3


def test_it_ends_when_every_parent_said_no(tmp_path: Path) -> None:
    async def story() -> None:
        net = Net()
        services = [await serving(net, url, tmp_path / url) for url in ("a", "b")]
        for _, desk in services:
            desk.closed.add("ann")
        side = Side()
        dial = Dial(["a", "b"], net.make, dict, on_letter=side.letter, patience=FAST)
        with pytest.raises(Refused, match="revoked"):
            await dial.run()
        with pytest.raises(Refused, match="not connected any more"):
            await dial.upload("up", blob_file(tmp_path, message(10)[0]))
        for service, _ in services:
            await service.close()

    run(story())


def test_revoked_in_the_middle_of_a_session(tmp_path: Path) -> None:
    async def story() -> None:
        net = Net()
        service, desk = await serving(net, "a", tmp_path)
        side = Side()
        dial = Dial(["a"], net.make, dict, on_letter=side.letter, on_open=side.open, patience=FAST)
        running = asyncio.ensure_future(dial.run())
        await side.until(lambda heard: ("open", "a", True) in heard)
        desk.closed.add("ann")
        await service.cut("ann", "this member was revoked")
        with pytest.raises(Refused, match="revoked"):
            await running
        await service.close()

    run(story())


def blob_file(folder: Path, frames: list[bytes], name: str = "blob") -> Path:
    path = folder / name
    path.write_bytes(b"".join(frames))
    return path


def test_an_upload_goes_on_over_cuts_without_sending_a_frame_twice(tmp_path: Path) -> None:
    async def story() -> None:
        net = Net()
        service, desk = await serving(net, "a", tmp_path / "a")
        frames, buffer, _ = message(20 * FRAME + 5)
        desk.expects["up"] = len(buffer)
        path = blob_file(tmp_path, frames)
        async with dialled(net, "a") as (dial, _):
            sending = asyncio.ensure_future(dial.upload("up", path))
            spool = tmp_path / "a" / "ann-up"
            for k in (2, 10, 19):
                while not ((spool.exists() and spool.stat().st_size >= k * FRAME) or sending.done()):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                net.cut()
            receipt = await sending
            assert desk.kept["up"] == buffer
            assert await dial.upload("up", path) == receipt
        await service.close()

    run(story())


def test_an_upload_nobody_wants_is_refused_and_a_damaged_file_is_not_sent(tmp_path: Path) -> None:
    async def story() -> None:
        net = Net()
        service, desk = await serving(net, "a", tmp_path / "a")
        frames, buffer, _ = message(2 * FRAME)
        async with dialled(net, "a") as (dial, _):
            with pytest.raises(Refused, match="not expected"):
                await dial.upload("up", blob_file(tmp_path, frames))
            desk.expects["up"] = len(buffer)
            frames[1] = frames[1][:99] + b"!" + frames[1][100:]
            with pytest.raises(ProtocolError, match="crc32"):
                await dial.upload("up", blob_file(tmp_path, frames))
        await service.close()

    run(story())


def model(
    seed: int, size: int = 1 << 20, near: np.ndarray | None = None
) -> tuple[list[bytes], np.ndarray, str]:

    rng = np.random.default_rng(seed)
    w = rng.normal(size=size).astype("<f4")
    if near is not None:
        w = (near + 1e-6 * near * w).astype("<f4")
    frames = list(encode(Message("model", {}, {"w": w})))
    return frames, w, sha256(frames[0][HEADER:]).hexdigest()


def test_a_download_goes_on_where_it_was_also_after_the_member_was_killed(tmp_path: Path) -> None:
    async def story() -> None:
        net = Net()
        service, desk = await serving(net, "a", tmp_path / "a")
        frames, _, blob = model(1, 5 << 20)
        desk.blobs[blob] = blob_file(tmp_path, frames)
        got = tmp_path / "got"
        (tmp_path / "got.part").write_bytes(b"".join(frames[:7]) + frames[7][:1000])  # killed here
        async with dialled(net, "a") as (dial, _):
            fetching = asyncio.ensure_future(dial.download(blob, got))
            for _ in range(3):
                await asyncio.sleep(0)
                net.cut()
            await fetching
            assert got.read_bytes() == b"".join(frames)
            assert not (tmp_path / "got.part").exists()
        await service.close()

    run(story())


@pytest.mark.parametrize(("seconds", "slow"), [(0.1, False), (1.0, True)])
def test_a_link_is_slow_after_a_long_transfer_that_was(tmp_path: Path, seconds: float, slow: bool) -> None:
    """Eight MiB, in a tenth of a second or in one; what is shorter tells nothing."""

    class Asked(Desk):
        def base(self, name: str, old: str, blob: str, *, slow: bool) -> Path | None:
            told.append(slow)
            return None

        def sends(self, name: str, size: int) -> None:
            now.append(seconds)

    async def story() -> None:
        net = Net()
        (tmp_path / "a").mkdir()
        desk = Asked(tmp_path / "a")
        service = Service(desk, Limits(), deltas=tmp_path / "deltas", clock=lambda: sum(now))
        await service.start()
        net.services["a"] = service
        async with dialled(net, "a") as (dial, _):
            for seed, size in enumerate((1 << 18, 2 << 20, 1 << 18, 1 << 18)):
                frames, _, blob = model(seed, size)
                desk.blobs[blob] = blob_file(tmp_path, frames, blob)
                await dial.download(blob, tmp_path / blob[:9], have={"0" * 64: tmp_path / "held"})
        await service.close()

    told: list[bool] = []
    now = [0.0]
    run(story())
    assert told == [False, False, slow, slow]


def test_a_delta_comes_where_it_pays_and_gives_the_same_bytes(tmp_path: Path) -> None:
    async def story() -> None:
        net = Net()
        desk = Desk(tmp_path / "a")
        (tmp_path / "a").mkdir()
        (tmp_path / "deltas").mkdir()
        service = Service(desk, Limits(takeover=0.1), deltas=tmp_path / "deltas")
        await service.start()
        net.services["a"] = service
        old, w, before = model(1)
        new, _, after = model(2, near=w)
        far, _, other = message(4 << 20)
        for name, frames in ((before, old), (after, new), (other, far)):
            desk.blobs[name] = blob_file(tmp_path, frames, name)
        async with dialled(net, "a") as (dial, _):
            held = tmp_path / "held"
            await dial.download(before, held)
            await dial.download(after, tmp_path / "next", have={before: held})
            assert (tmp_path / "next").read_bytes() == b"".join(new)
            (delta,) = (tmp_path / "deltas").iterdir()
            assert delta.stat().st_size < 0.8 * sum(map(len, new))
            await dial.download(other, tmp_path / "far", have={before: held})
            assert (tmp_path / "far").read_bytes() == b"".join(far)
            assert len(list((tmp_path / "deltas").iterdir())) == 1, "one that does not pay is not made"
            held.write_bytes(held.read_bytes()[:-9])  # what we hold is damaged: fetched whole
            await dial.download(after, tmp_path / "again", have={before: held})
            assert (tmp_path / "again").read_bytes() == b"".join(new)
        await service.close()

    run(story())


def test_a_silent_member_is_dropped_and_its_seat_waits_for_it_only_so_long(tmp_path: Path) -> None:
    async def story() -> None:
        net = Net()
        service, desk = await serving(net, "a", tmp_path, Limits(heartbeat=0.05, grace=0.1))
        channel, _ = await enter(net.make("a"))
        packet = unpack(await channel.recv() or b"")
        bye = read(packet.body).head
        assert bye["error"] == "gone" and "nothing was heard" in bye["reason"]
        await desk.until(lambda told: told[-1][0] == "absent")
        assert "away" in desk.told[-1][2]
        await service.close()

    run(story())


def test_a_silent_server_is_left_and_heartbeats_keep_a_quiet_one(tmp_path: Path) -> None:
    class Silent:
        def __init__(self, packets: int) -> None:
            self.sent = 0
            self.packets = packets
            self.down: asyncio.Queue[bytes] = asyncio.Queue()
            welcome = {"protocol": [1, 1], "epoch": "e", "resumed": False, "heartbeat": 0.05}
            self.down.put_nowait(pack(Packet(0, 0, letter("welcome", welcome))))

        async def session(self, name: str, hello: bytes) -> Any:
            return self

        async def send(self, packet: bytes) -> None:
            self.sent += 1
            if self.sent <= self.packets:
                self.down.put_nowait(pack(Packet(0, 0)))

        async def recv(self) -> bytes:
            return await self.down.get()

        async def close(self) -> None: ...

    async def story() -> None:
        made: list[Silent] = []

        def make(url: str) -> Any:
            made.append(Silent(packets=5))
            return made[-1]

        side = Side()
        more = {"on_letter": side.letter, "on_open": side.open, "on_lost": side.lost}
        dial = Dial(["x"], make, dict, patience=FAST, **more)
        running = asyncio.ensure_future(dial.run())
        await side.until(lambda heard: heard.count(("lost",)) == 2)
        assert all(silent.sent >= 6 for silent in made[:2]), "it waited as long as answers came"
        assert "nothing was heard" in dial.reason
        await dial.close()
        await running

    run(story())


def test_a_member_without_parents_is_a_mistake() -> None:
    with pytest.raises(MisuseError, match="URL"):
        Dial([], lambda url: None, dict, on_letter=None)
