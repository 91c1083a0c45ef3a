"""The laws of a transport, as calls to make on one: `atoll.testing.check_link` runs them all.

Each law gets a server and members of its own from `make(desk)`, an async context manager that gives
(service, connect): a Service of that desk, served by the transport, and connect(name) -> a new Link
for the client of that name. Laws look at bytes and calls only, so every transport must behave alike.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..core.errors import AtollError, Gone, ProtocolError, Refused
from ..core.session import Packet
from ..wire.codec import FRAME, HEADER, Bytes, Message, encode
from .link import ALONG, DOWN, KEPT, PROTOCOL, UP, Channel, Link, letter, pack, read, split, unpack
from .service import Offer, Service

if TYPE_CHECKING:
    from ..privacy.keys import Member

Make: TypeAlias = Callable[["Desk"], AbstractAsyncContextManager[tuple[Service, Callable[[str], Link]]]]

LONG = 30.0  # seconds after which something that should have happened has not


class Desk:
    """A desk that remembers what it was told. `expects`: uploads it wants; `blobs`: what may be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[tuple[Any, ...]] = []
        self.expects: dict[str, int] = {}
        self.receipts: dict[str, dict[str, Any]] = {}
        self.kept: dict[str, bytes] = {}
        self.blobs: dict[str, Path] = {}
        self.closed: set[str] = set()
        self._heard = asyncio.Condition()

    async def _note(self, *what: Any) -> None:
        async with self._heard:
            self.told.append(what)
            self._heard.notify_all()

    async def until(self, found: Callable[[list[tuple[Any, ...]]], Any]) -> None:
        """Wait until what was told satisfies `found`."""
        async with asyncio.timeout(LONG), self._heard:
            await self._heard.wait_for(lambda: found(self.told))

    async def admit(self, member: Member, hello: Mapping[str, Any]) -> dict[str, Any]:
        """See service.Desk, here and below."""
        if member.name in self.closed:
            raise Refused("this member was revoked")
        await self._note("admit", member.name)
        return {"greeting": f"hello {member.name}"}

    async def present(self, name: str) -> None:
        """Noted."""
        await self._note("present", name)

    async def absent(self, name: str, reason: str) -> None:
        """Noted."""
        await self._note("absent", name, reason)

    async def letter(self, name: str, kind: str, head: Mapping[str, Any]) -> None:
        """Noted."""
        await self._note("letter", name, kind, dict(head))

    async def offered(self, name: str, upload: str) -> Offer:
        """Where it goes, if it is expected."""
        if upload not in self.expects:
            raise Refused("this upload is not expected")
        return Offer(self.folder / f"{name}-{upload}", self.expects[upload])

    async def uploaded(self, name: str, upload: str, head: bytes, path: Path) -> dict[str, Any]:
        """Kept in memory."""
        data = path.read_bytes()  # noqa: ASYNC240  small, and nobody else waits
        await self._note("uploaded", name, upload)
        self.kept[upload] = data
        receipt = {"upload": upload, "sha256": sha256(data).hexdigest(), "count": len(self.receipts)}
        self.receipts[upload] = receipt
        path.unlink()  # noqa: ASYNC240
        return receipt

    async def receipt(self, name: str, upload: str) -> dict[str, Any] | None:
        """As given before."""
        return self.receipts.get(upload)

    def blob(self, name: str, blob: str) -> Path | None:
        """For everybody."""
        return self.blobs.get(blob)

    def base(self, name: str, old: str, blob: str, *, slow: bool) -> Path | None:
        """Any."""
        return self.blobs.get(old)

    def sends(self, name: str, size: int) -> None:
        """Not counted."""


def check(make: Make, laws: Iterable[Callable[[Make, Desk], Any]] = ()) -> None:
    """Run all laws. Raises AssertionError with the law that broke."""

    async def run() -> None:
        for law in laws or LAWS:
            # Where a law breaks, an upload may still be under way into the folder as it is taken away.
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                try:
                    async with asyncio.timeout(4 * LONG):
                        await law(make, Desk(Path(folder)))
                except (AtollError, TimeoutError, OSError, EOFError) as error:
                    raise AssertionError(f"{law.__doc__} ({type(error).__name__}: {error})") from error

    asyncio.run(run())


def _law(holds: Any, law: str) -> None:
    if not holds:
        raise AssertionError(law)


NAME = "0123456789abcdef" * 2


def hello(name: str = NAME, seen: int = 0, **more: Any) -> bytes:
    """A first packet."""
    said = {"protocol": list(PROTOCOL), "session": name, "capabilities": [], **more}
    return pack(Packet(0, seen, letter("hello", said, UP)))


async def _recv(channel: Channel) -> Packet:
    async with asyncio.timeout(LONG):
        data = await channel.recv()
    if data is None:
        raise EOFError("the connection ended")
    return unpack(data)


async def enter(link: Link, name: str = NAME, **more: Any) -> tuple[Channel, Message]:
    """Open a session; its channel and the answer to the hello."""
    async with asyncio.timeout(LONG):
        channel = await link.session(name, hello(name, **more))
    return channel, read((await _recv(channel)).body, DOWN)


async def _end(channel: Channel) -> Message | None:
    """What a connection says last."""
    last = None
    async with asyncio.timeout(LONG):
        try:
            while (data := await channel.recv()) is not None:
                packet = unpack(data)
                if packet.body is not None and packet.number == 0:
                    last = read(packet.body, DOWN)
        except (Gone, Refused, ProtocolError):
            pass
    return last


def message(size: int, seed: int = 0) -> tuple[list[bytes], bytes, str]:
    """Frames of a message, its bare buffer and its blob name."""
    data = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    frames = list(encode(Message("params", {"seed": seed}, {"x": data})))
    buffer = b"".join(frame[HEADER:] for frame in frames[1:])
    return frames, buffer, sha256(frames[0][HEADER:]).hexdigest()


async def each(frames: Sequence[bytes]) -> AsyncIterator[bytes]:
    """One after the other."""
    for frame in frames:
        yield frame


async def _stuck(frames: Sequence[bytes]) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame
    await asyncio.Event().wait()


async def _grown(file: Path, size: int) -> None:
    """Until a file has so many bytes: only the disk says so."""
    async with asyncio.timeout(LONG):
        while not file.exists() or file.stat().st_size < size:  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)


async def _refused(call: Any, kinds: Any, law: str) -> AtollError:
    try:
        async with asyncio.timeout(LONG):
            await call
    except kinds as error:
        made: AtollError = error
        return made
    except AtollError as error:
        raise AssertionError(f"{law}; it was {type(error).__name__}: {error}") from error
    raise AssertionError(f"{law}; it was accepted")


async def _welcome(make: Make, desk: Desk) -> None:
    """A hello is answered by a welcome, and the desk knows the member before any letter."""
    async with make(desk) as (service, connect):
        link = connect("ann")
        await link.probe()
        channel, welcome = await enter(link)
        _law(welcome.kind == "welcome", f"expected a welcome, got {welcome.kind}: {dict(welcome.head)}")
        head = welcome.head
        _law(head["greeting"] == "hello ann", "the welcome must hold what the desk said")
        _law(head["protocol"] == list(PROTOCOL), "the welcome must name the protocol spoken")
        _law(head["resumed"] is False and head["epoch"] == service.epoch, "a new session is not resumed")
        await desk.until(lambda told: told == [("admit", "ann"), ("present", "ann")])
        _law([row["name"] for row in service.sessions()] == ["ann"], "sessions() must show the member")
        await channel.close()
        await link.close()


async def _letters(make: Make, desk: Desk) -> None:
    """Letters arrive once and in order, both ways, although connections break."""
    async with make(desk) as (service, connect):
        link = connect("ann")
        channel, welcome = await enter(link)
        epoch = welcome.head["epoch"]
        await desk.until(lambda told: ("present", "ann") in told)
        for k in range(3):
            _law(service.send("ann", "down", {"k": k}), "a present member can be sent letters")
        got = [await _recv(channel) for _ in range(3)]
        await channel.send(pack(Packet(1, 1, letter("up", {"k": 1}, UP))))
        await desk.until(lambda told: ("letter", "ann", "up", {"k": 1}) in told)
        await channel.close()
        service.send("ann", "down", {"k": 3})  # while nobody listens, or nobody knows yet
        other = connect("ann")
        channel = await other.session(NAME, hello(seen=1, epoch=epoch))
        first = await _recv(channel)
        _law(read(first.body).head["resumed"] is True, "the same session of the same epoch is resumed")
        _law(first.seen == 1, "the welcome says which letters arrived")
        again = [await _recv(channel) for _ in range(3)]
        _law([p.number for p in again] == [2, 3, 4], "what was not acknowledged is sent again, in order")
        _law(got[1].body == again[0].body, "a letter sent again is the same letter")
        for k in (1, 2, 2, 3):
            await channel.send(pack(Packet(k, 4, letter("up", {"k": k}, UP))))
        await desk.until(lambda told: ("letter", "ann", "up", {"k": 3}) in told)
        ups = [what[3]["k"] for what in desk.told if what[0] == "letter"]
        _law(ups == [1, 2, 3], f"each letter reaches the desk once and in order, got {ups}")
        _law([w[0] for w in desk.told].count("present") == 1, "a resumed session is not present anew")
        await channel.close()
        await other.close()
        await link.close()


async def _versions(make: Make, desk: Desk) -> None:
    """An older minor joins; a future major is refused with what to upgrade."""
    async with make(desk) as (_, connect):
        link = connect("ann")
        channel, welcome = await enter(link, protocol=[PROTOCOL[0], PROTOCOL[1] - 1])
        _law(welcome.kind == "welcome", "the previous minor must be welcome")
        _law(welcome.head["protocol"] == [PROTOCOL[0], PROTOCOL[1] - 1], "it must be spoken")
        await channel.close()
        channel, answer = await enter(link, "ab" * 16, protocol=[PROTOCOL[0] + 1, 0])
        _law(answer.kind == "bye" and answer.head["error"] == "protocol", "a future major must be refused")
        _law("upgrade" in answer.head["reason"].lower(), "it must say what to upgrade")
        await channel.close()
        await link.close()


async def _upload(make: Make, desk: Desk) -> None:
    """An upload arrives whole and gives one receipt, however often and at once it is sent."""
    frames, buffer, _ = message(3 * FRAME + 100)
    desk.expects["up.1"] = len(buffer)
    async with make(desk) as (_, connect):
        link = connect("ann")
        channel, _ = await enter(link)
        _law(await link.offset("up.1") == 0, "an upload not begun has offset 0")
        sent = (link.upload("up.1", each(frames), 0) for _ in range(5))
        receipts = await asyncio.gather(*sent)
        _law(desk.kept["up.1"] == buffer, "the desk must find the bare buffer")
        _law(all(r == receipts[0] for r in receipts), "the same upload must give the same receipt")
        _law(await link.offset("up.1") == KEPT, "an upload with a receipt has offset KEPT")
        last = await link.upload("up.1", each([]), len(frames))
        _law(last == receipts[0], "a lost receipt must be given again")
        _law([w[0] for w in desk.told].count("uploaded") == 1, "the desk must get an upload once")
        empty, nothing, _ = message(0)
        desk.expects["up.2"] = 0
        await link.upload("up.2", each(empty), 0)
        _law(desk.kept["up.2"] == nothing, "a message without arrays can be uploaded")
        await channel.close()
        await link.close()


async def _resume(make: Make, desk: Desk) -> None:
    """An upload that broke goes on where it was; frames that came are not asked for again."""
    frames, buffer, _ = message(5 * FRAME)
    desk.expects["up"] = len(buffer)
    async with make(desk) as (_, connect):
        link = connect("ann")
        channel, _ = await enter(link)
        for have in (2, 4):
            call = asyncio.ensure_future(link.upload("up", _stuck(frames[: have + 1]), max(0, have - 2)))
            spool = desk.folder / "ann-up"
            await _grown(spool, have * FRAME)
            call.cancel()
            await asyncio.wait([call])
            offset = await link.offset("up")
            _law(offset == have + 1, f"expected an offset of {have + 1} frames, got {offset}")
        await _refused(link.upload("up", each(frames[6:]), 6), Gone, "a gap must be refused as passing")
        await link.upload("up", each(frames[5:]), 5)
        _law(desk.kept["up"] == buffer, "the parts must add up to the whole")
        await channel.close()
        await link.close()


async def _wrong(make: Make, desk: Desk) -> None:
    """Uploads that are wrong, too long, unexpected or from nobody are refused; the desk sees none."""
    frames, buffer, _ = message(2 * FRAME)
    flipped = bytearray(frames[1])
    flipped[HEADER + 5] ^= 1
    other, _, _ = message(2 * FRAME, seed=1)
    cases = {
        "a frame whose crc32 is wrong": [frames[0], bytes(flipped), frames[2]],
        "a buffer whose SHA-256 is wrong": [frames[0], *other[1:]],
        "frames out of order": [frames[0], frames[2], frames[1]],
        "bytes that are no frames": [b"nonsense" * 9],
    }
    async with make(desk) as (_, connect):
        link = connect("ann")
        channel, _ = await enter(link)
        for k, (what, sent) in enumerate(cases.items()):
            desk.expects[f"up.{k}"] = len(buffer)
            call = link.upload(f"up.{k}", each(sent), 0)
            await _refused(call, (ProtocolError, Refused), f"{what} must be refused for good")
        desk.expects["long"] = len(buffer) - 1
        await _refused(link.upload("long", each(frames), 0), ProtocolError, "an upload longer than offered")
        await _refused(link.upload("else", each(frames), 0), Refused, "an upload nobody expects")
        await _refused(link.offset("../x"), ProtocolError, "an upload called as none can be")
        stranger = connect("bob")
        await _refused(stranger.offset("up.0"), Gone, "an upload before a hello must wait for one")
        _law(not desk.kept, "no wrong upload may reach the desk")
        await stranger.close()
        await channel.close()
        await link.close()


async def _download(make: Make, desk: Desk) -> None:
    """A blob arrives as its file is, from any frame on; one the desk does not give is refused."""
    frames, _, blob = message(9 * FRAME + 5)
    desk.blobs[blob] = desk.folder / "blob"
    desk.blobs[blob].write_bytes(b"".join(frames))
    async with make(desk) as (_, connect):
        link = connect("ann")
        channel, _ = await enter(link)
        for start in (0, 1, 6, len(frames)):
            got = [bytes(frame) async for frame in link.download(blob, start, [])]
            _law(got == frames[start:], f"expected frames {start} to the end, got {len(got)}")

        async def wanted(name: str, start: int) -> list[Bytes]:
            return [frame async for frame in link.download(name, start, [])]

        await _refused(wanted("0" * 64, 0), Refused, "a blob that is not there must be refused")
        await _refused(wanted("../../etc/passwd", 0), (Refused, ProtocolError), "no path is a blob")
        await _refused(wanted(blob, 99), ProtocolError, "there is no frame 99")
        await channel.close()
        await link.close()


async def _along(make: Make, desk: Desk) -> None:
    """A small blob goes along with a letter that names it, once; so does an answer, and gives its receipt."""
    blob, _, name = message(300 << 10)
    long, _, longer = message(ALONG)
    for key, frames in ((name, blob), (longer, long)):
        desk.blobs[key] = desk.folder / key
        desk.blobs[key].write_bytes(b"".join(frames))
    answer, buffer, _ = message(200 << 10, seed=1)
    wrong = [answer[0], *message(200 << 10, seed=2)[0][1:]]
    desk.expects |= {"up.1": len(buffer), "up.2": len(buffer)}

    def brought(number: int, upload: str, frames: Sequence[bytes]) -> bytes:
        return pack(Packet(number, 0, letter("upload", {"upload": upload}, UP)), b"".join(frames))

    async with make(desk) as (service, connect):
        link, old = connect("ann"), connect("bob")
        channel, welcome = await enter(link, capabilities=["along"])
        older, _ = await enter(old, "cd" * 16)
        _law("along" in welcome.head["capabilities"], "the welcome must say that frames may go along")
        await desk.until(lambda told: ("present", "ann") in told and ("present", "bob") in told)
        for named in (name, name, longer):
            service.send("ann", "down", {"blob": named}, named)
        got = [split((await _recv(channel)).body) for _ in range(3)]
        _law([read(first).head["blob"] for first, _ in got] == [name, name, longer], "letters stay letters")
        _law(b"".join(got[0][1]) == b"".join(blob), "all of a small blob's frames must go along")
        _law(not got[1][1] and not got[2][1], "a blob that went before, or a long one, must not")
        service.send("bob", "down", {}, name)
        _law(not split((await _recv(older)).body)[1], "nothing may go to a member that does not know it")
        cases = [("up.1", answer, ""), ("up.1", answer, ""), ("up.2", wrong, "protocol")]
        cases += [("up.3", answer, "refused"), ("up.2", [], "gone")]
        for number, (upload, frames, error) in enumerate(cases, 1):
            await channel.send(brought(number, upload, frames))
            said = await _recv(channel)
            while not said.number:
                said = await _recv(channel)
            receipt = read(said.body)
            _law(receipt.kind == "receipt" and receipt.head["upload"] == upload, "each must be answered")
            _law(receipt.head.get("error", "") == error, f"expected {error or 'none'}: {dict(receipt.head)}")
        _law(desk.kept == {"up.1": buffer}, "the desk must find what came along, and nothing wrong")
        _law([w[0] for w in desk.told].count("uploaded") == 1, "the desk must get an answer once")
        for open_channel in (channel, older):
            await open_channel.close()
        await link.close()
        await old.close()


async def _cut(make: Make, desk: Desk) -> None:
    """After `cut` nothing more is served: session, transfers, hellos."""
    frames, buffer, _ = message(3 * FRAME)
    desk.expects["up"] = len(buffer)
    async with make(desk) as (service, connect):
        link, other = connect("ann"), connect("bob")
        channel, _ = await enter(link)
        quiet, _ = await enter(other)
        call = asyncio.ensure_future(link.upload("up", _stuck(frames[:2]), 0))
        await _grown(desk.folder / "ann-up", 1)
        desk.closed.add("ann")
        await service.cut("ann", "this member was revoked")
        bye = await _end(channel)
        _law(bye and bye.head["error"] == "refused", "the session must end with a refusal")
        _law(bye and "revoked" in bye.head["reason"], "the refusal must say why")
        await _refused(call, Refused, "an upload under way must end with a refusal")
        await desk.until(lambda told: ("absent", "ann", "this member was revoked") in told)
        _law(not service.send("ann", "down", {}), "a member that was cut off cannot be sent letters")
        await _refused(link.offset("up"), (Gone, Refused), "its uploads are over")
        again, answer = await enter(link, "cd" * 16)
        _law(answer.kind == "bye" and answer.head["error"] == "refused", "its hello must be refused")
        service.send("bob", "down", {})
        _law((await _recv(quiet)).number == 1, "others are not touched")
        for open_channel in (channel, again, quiet):
            await open_channel.close()
        await link.close()
        await other.close()


async def _second(make: Make, desk: Desk) -> None:
    """One live session per identity: a second takes over, the first is told, the desk is alarmed."""
    async with make(desk) as (service, connect):
        link, twin = connect("ann"), connect("ann")
        first, _ = await enter(link)
        await desk.until(lambda told: ("present", "ann") in told)
        second, welcome = await enter(twin, "cd" * 16)
        _law(welcome.head.get("resumed") is False, "another session is a new one")
        bye = await _end(first)
        _law(bye and bye.head["replaced"] is True, "the first session must be told that it was replaced")
        _law(bye and bye.head["error"] == "gone" and bye.head["back"][0] >= 60, "it may ask, much later")
        await desk.until(lambda told: [w[0] for w in told].count("present") == 2)
        kinds = [what[0] if what[0] != "letter" else what[2] for what in desk.told]
        _law(
            kinds == ["admit", "present", "admit", "alert", "absent", "present"],
            f"the desk must hear of the alarm, the end of the first and the second, got {kinds}",
        )
        again, answer = await enter(link, yields=True)
        _law(answer.kind == "bye" and answer.head["replaced"] is True, "who yields must replace nobody")
        await again.close()
        _law(len(service.sessions()) == 1, "there is one session")
        await _refused(link.offset("up"), Gone, "the first session's transfers are over")
        for channel in (first, second):
            await channel.close()
        await link.close()
        await twin.close()


async def _garbage(make: Make, desk: Desk) -> None:
    """Packets that are none end their connection with the reason, and nothing else."""
    async with make(desk) as (service, connect):
        other = connect("bob")
        quiet, _ = await enter(other)
        for k, sent in enumerate(
            [b"\xff\xff", pack(Packet(1, 0, b"nonsense")), pack(Packet(9_999, 0, letter("up", {})))]
        ):
            link = connect("ann")
            channel, _ = await enter(link, f"{k:032x}")
            await channel.send(sent)
            bye = await _end(channel)
            _law(bye and bye.head["error"] == "protocol", "a wrong packet must end the connection as such")
            await channel.close()
            await link.close()
        link = connect("cat")
        channel = await link.session(NAME, pack(Packet(0, 0, letter("up", {}))))
        bye = await _end(channel)
        _law(bye and bye.head["error"] == "protocol", "what comes before a hello must be refused")
        await channel.close()
        await link.close()
        _law(not [w for w in desk.told if w[0] == "letter"], "nothing wrong may reach the desk")
        service.send("bob", "down", {})
        _law((await _recv(quiet)).number == 1, "others are not touched")
        await quiet.close()
        await other.close()


async def _goodbye(make: Make, desk: Desk) -> None:
    """Who says goodbye is absent at once, who closes waits no more; a server says when to come back."""
    async with make(desk) as (service, connect):
        link, other = connect("ann"), connect("bob")
        away = connect("cid")
        closed, _ = await enter(away)
        waiting = asyncio.ensure_future(closed.recv())
        await asyncio.sleep(0)
        await closed.close()
        done, _pending = await asyncio.wait([waiting], timeout=LONG)
        _law(done, "who waits for a packet must hear that its connection was closed")
        await asyncio.gather(waiting, return_exceptions=True)
        await away.close()
        channel, _ = await enter(link)
        quiet, _ = await enter(other)
        await channel.send(pack(Packet(0, 0, letter("bye", {"reason": "done"}, UP))))
        await desk.until(lambda told: any(w[:2] == ("absent", "ann") for w in told))
        await service.close()
        bye = await _end(quiet)
        _law(bye and bye.head["error"] == "gone", "a server that closes must say that it may be back")
        _law(bye and len(bye.head["back"]) == 2, "and in which window to come back")
        for open_channel in (channel, quiet):
            await open_channel.close()
        await link.close()
        await other.close()


LAWS = (
    *(_welcome, _letters, _versions, _upload, _resume, _wrong),
    *(_download, _along, _cut, _second, _garbage, _goodbye),
)
