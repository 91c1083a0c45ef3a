"""A server's limits, and what it does when its desk or its disk fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from atoll.core.errors import Gone, ProtocolError, Refused, StateError
from atoll.core.session import Packet
from atoll.transport.conformance import Desk, each, enter, message
from atoll.transport.link import DOWN, KEPT, UP, letter, pack, read, unpack
from atoll.transport.memory import MemoryLink
from atoll.transport.service import Limits, Service
from atoll.wire.codec import FRAME
from tests.wire.world import claim, run

FRAMES, BUFFER, _ = message(3 * FRAME)


@asynccontextmanager
async def world(
    folder: Path, desk: Desk | None = None, **limits: Any
) -> AsyncIterator[tuple[Service, Any, Callable[[str], MemoryLink]]]:
    desk = desk or Desk(folder)
    service = Service(desk, Limits(**limits))
    await service.start()
    yield service, desk, lambda name: MemoryLink(service, claim(name))
    await service.close()


async def last(channel: Any) -> Any:
    """How a connection ended."""
    told = None
    while (data := await channel.recv()) is not None:
        packet = unpack(data)
        if packet.body is not None and not packet.number:
            told = read(packet.body, DOWN).head
    return told


def test_a_member_that_reads_no_letters_loses_its_seat(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, queue=5) as (service, desk, link):
            channel, _ = await enter(link("ann"))
            assert [service.send("ann", "x", {}) for _ in range(6)] == [True] * 5 + [False]
            assert "too many letters" in (await last(channel))["reason"]
            await desk.until(lambda told: told[-1][0] == "absent")
            _, welcome = await enter(link("ann"))
            assert welcome.head["resumed"] is False

    run(story())


def test_all_seats_may_be_taken(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, sessions=2) as (_, _, link):
            for name in ("ann", "bob"):
                await enter(link(name))
            _, answer = await enter(link("cat"))
            assert answer.kind == "bye" and answer.head["error"] == "gone"
            assert "seats" in answer.head["reason"]
            _, again = await enter(link("ann"))
            assert again.kind == "welcome", "who sits may come again"

    run(story())


def test_too_many_hellos_and_transfers_wait(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, transfers=1) as (_, desk, link):
            kinds = [(await enter(link("ann"), f"{k:032x}"))[1].kind for k in range(12)]
            assert kinds[:10] == ["welcome"] * 10 and kinds[-1] == "bye"
            mine = link("bob")
            await enter(mine)
            desk.expects["up"] = len(BUFFER)

            async def stuck() -> AsyncIterator[bytes]:
                yield FRAMES[0]
                await asyncio.Event().wait()

            first = asyncio.ensure_future(mine.upload("up", stuck(), 0))
            await asyncio.sleep(0)
            with pytest.raises(Gone, match="transfers are under way"):
                await mine.offset("up")
            first.cancel()

    run(story())


def test_a_second_connection_takes_over_an_upload_that_stands_still(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, takeover=0.05) as (_, desk, link):
            mine = link("ann")
            await enter(mine)
            desk.expects["up"] = len(BUFFER)

            async def stuck() -> AsyncIterator[bytes]:
                for frame in FRAMES[:2]:
                    yield frame
                await asyncio.Event().wait()

            first = asyncio.ensure_future(mine.upload("up", stuck(), 0))
            while await mine.offset("up") < 2:  # noqa: ASYNC110  until it has its turn
                await asyncio.sleep(0)
            receipt = await mine.upload("up", each(FRAMES), 0)
            assert desk.kept["up"] == BUFFER
            with pytest.raises(Gone, match="another connection"):
                await first
            assert await mine.upload("up", each([]), 4) == receipt

    run(story())


def test_an_upload_that_stands_still_is_given_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, window=0.05) as (_, desk, link):
            mine = link("ann")
            await enter(mine)
            desk.expects["up"] = len(BUFFER)

            async def stuck() -> AsyncIterator[bytes]:
                yield FRAMES[0]
                await asyncio.Event().wait()

            with pytest.raises(Gone, match="no frame came"):
                await mine.upload("up", stuck(), 0)
            assert await mine.offset("up") == 1

    run(story())


class Failing(Desk):
    """Fails as told, then does what it should."""

    def __init__(self, folder: Path, *errors: Exception) -> None:
        super().__init__(folder)
        self.errors = list(errors)

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    async def uploaded(self, name: str, upload: str, head: bytes, path: Path) -> dict[str, Any]:
        self._fail()
        return await super().uploaded(name, upload, head, path)

    async def letter(self, name: str, kind: str, head: Any) -> None:
        self._fail()
        await super().letter(name, kind, head)


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (StateError("the disk is full: make room"), "disk is full"),
        (OSError(28, "No space left on device"), "No space left"),
        (RuntimeError("a secret value"), "see its log"),
    ],
)
def test_what_fails_at_the_desk_is_tried_again_with_the_frames_kept(
    error: Exception, seen: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with world(tmp_path, Failing(tmp_path, error)) as (_, desk, link):
            mine = link("ann")
            await enter(mine)
            desk.expects["up"] = len(BUFFER)
            with pytest.raises(Gone, match=seen) as told:
                await mine.upload("up", each(FRAMES), 0)
            assert "secret" not in str(told.value)
            assert await mine.offset("up") == len(FRAMES)
            await mine.upload("up", each([]), len(FRAMES))
            assert desk.kept["up"] == BUFFER
            assert await mine.offset("up") == KEPT

    run(story())


@pytest.mark.parametrize("error", [ProtocolError("NaN in w"), Refused("too late")])
def test_what_the_desk_refuses_is_removed_and_named(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with world(tmp_path, Failing(tmp_path, error)) as (_, desk, link):
            mine = link("ann")
            await enter(mine)
            desk.expects["up"] = len(BUFFER)
            with pytest.raises(type(error), match=str(error)):
                await mine.upload("up", each(FRAMES), 0)
            assert not list(tmp_path.iterdir()), "its spool is removed"  # noqa: ASYNC240

    with caplog.at_level(logging.WARNING, "atoll.transport"):
        run(story())
    assert f"client ann: {'refused' if isinstance(error, Refused) else 'protocol'}: {error}" in caplog.text


def test_letters_wait_for_a_disk_that_is_full_and_survive_a_failing_desk(tmp_path: Path) -> None:
    async def story() -> None:
        errors = (StateError("the disk is full"), RuntimeError("once"))
        async with world(tmp_path, Failing(tmp_path, *errors)) as (_, desk, link):
            channel, _ = await enter(link("ann"))
            for k in (1, 2, 3):
                await channel.send(pack(Packet(k, 0, letter("up", {"k": k}, UP))))
            await desk.until(lambda told: ("letter", "ann", "up", {"k": 3}) in told)
            ups = [w[3]["k"] for w in desk.told if w[0] == "letter"]
            assert ups == [2, 3], "the first one was stored late and failed, the others followed in order"

    run(story())


def test_a_letter_that_breaks_the_rules_ends_the_seat(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, Failing(tmp_path, ProtocolError("no such ask"))) as (_, desk, link):
            channel, _ = await enter(link("ann"))
            await channel.send(pack(Packet(1, 0, letter("up", {}, UP))))
            bye = await last(channel)
            assert bye["error"] == "protocol" and bye["reason"] == "no such ask"
            await desk.until(lambda told: ("absent", "ann", "no such ask") in told)

    run(story())


def test_a_flood_of_letters_is_read_slowly_and_whole(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, rate=2000.0, burst=100) as (_, desk, link):
            channel, _ = await enter(link("ann"))
            for k in range(1, 501):
                await channel.send(pack(Packet(k, 0, letter("up", {"k": k}, UP))))
            await desk.until(lambda told: ("letter", "ann", "up", {"k": 500}) in told)
            assert [w[3]["k"] for w in desk.told if w[0] == "letter"] == list(range(1, 501))

    run(story())


def test_heartbeats_come_in_groups_over_the_whole_interval(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, heartbeat=120.0) as (service, _, link):
            firsts = []
            for k in range(120):
                _, welcome = await enter(link(f"m{k}"))
                firsts.append(welcome.head["first"])
            assert all(0 <= first <= 120 for first in firsts)
            groups = {round((first + service._clock()) % 120 / 8) % 15 for first in firsts}
            assert len(groups) == 15, "each group gets its members"

    run(story())


@pytest.mark.parametrize(("heartbeat", "answered"), [(25.0, 1), (120.0, 2)])
def test_a_quiet_server_answers_heartbeats_in_time(tmp_path: Path, heartbeat: float, answered: int) -> None:
    async def story() -> None:
        now = 0.0
        service = Service(Desk(tmp_path), Limits(heartbeat=heartbeat), clock=lambda: now)
        channel, _ = await enter(MemoryLink(service, claim("ann")))
        heard, last, now = [], 0.0, heartbeat * 0.4
        for _ in range(9):
            await channel.send(pack(Packet(0, 0)))
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    assert unpack(await channel.recv()) == Packet(0, 0)
                    heard.append(now - last)
                    last = now
            now += heartbeat
        assert max(heard) <= 2.5 * heartbeat, "a member waits for three"
        assert heard[1:] == pytest.approx([answered * heartbeat] * len(heard[1:]))
        assert len(heard) >= 8 // answered
        await service.close()

    run(story())
