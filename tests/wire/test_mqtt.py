"""By a broker: who lies there, what is lost there, how much is taken, and who gets in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

import pytest

from atoll.control import settings
from atoll.control.engine.gateway import made
from atoll.control.settings import make
from atoll.core.errors import ConfigError, Gone
from atoll.core.session import Packet
from atoll.transport.calls import Answer
from atoll.transport.conformance import NAME, each, enter, message
from atoll.transport.gateway import Gateway, Limits
from atoll.transport.https_link import HttpCarrier
from atoll.transport.link import KEPT, UP, letter, pack, read, unpack
from atoll.transport.mqtt import (
    BROKEN,
    LAST,
    LONGEST,
    MORE,
    PIECE,
    WINDOW,
    Broker,
    Line,
    Piece,
    Talk,
    broker_at,
)
from atoll.transport.mqtt_link import mqtt_link
from atoll.transport.open import open_link
from atoll.transport.pieces import packed, packets
from atoll.transport.sealed import Seal
from atoll.transport.tls import client_context
from atoll.wire.codec import FRAME
from tests.wire.mosquitto import Mosquitto, missing
from tests.wire.pki import member as certified
from tests.wire.world import LIMITS, Desk, Service, authority, blob_file, dialled, hub, identity, run, serving

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
FRAMES, BUFFER, BLOB = message(3 * FRAME + 9)
USUAL = Limits()
SLOW = replace(LIMITS, heartbeat=30.0)  # nobody says anything unasked
Change = Callable[[str, str, Answer], Answer]


class Liar:
    """A carrier that a gateway trusts, and that answers as `change` likes: the gateway itself lies."""

    def __init__(self, inner: HttpCarrier) -> None:
        self.inner = inner
        self.change: Change | None = None
        self.asked: list[tuple[str, str]] = []

    @asynccontextmanager
    async def call(
        self, method: str, path: str, headers: Mapping[str, str], data: Any
    ) -> AsyncIterator[Answer]:
        self.asked.append((method, path))
        async with self.inner.call(method, path, headers, data) as answer:
            yield self.change(method, path, answer) if self.change else answer

    async def close(self) -> None:
        pass  # another gateway may use it


class World:
    """A server, a broker and a gateway between them, which lies where it is told to."""

    service: Service
    desk: Desk
    broker: Mosquitto
    gateway: Gateway
    liar: Liar

    def __init__(self, limits: Limits, login: tuple[str, str], tls: bool, ca: Path | None) -> None:
        self.limits, self.login, self.tls, self.ca = limits, login, tls, ca

    @property
    def url(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}+sealed://127.0.0.1:{self.broker.port}/plant"

    def at(self, user: str = "", password: str = "") -> Broker:
        return Broker("127.0.0.1", self.broker.port, self.tls, user, password, self.ca)

    @asynccontextmanager
    async def gatewayed(self) -> AsyncIterator[None]:
        made = self.gateway = Gateway(self.at(*self.login), "plant", self.liar, self.limits)
        serving = asyncio.ensure_future(made.serve())
        try:
            await made.there.wait()
            yield
        finally:
            await made.close()
            await serving


@asynccontextmanager
async def world(
    folder: Path,
    limits: Limits = USUAL,
    login: tuple[str, str] = ("", ""),
    ca: Path | None = None,
    **more: Any,
) -> AsyncIterator[World]:
    made = World(limits, login, bool(more.get("tls")), ca)
    async with serving("https", folder, SLOW) as (made.service, made.desk, port):
        made.liar = Liar(HttpCarrier(f"https://127.0.0.1:{port}", client_context(hub().roots)))
        try:
            with Mosquitto(folder / "broker", **more) as made.broker:
                async with made.gatewayed():
                    yield made
        finally:
            await made.liar.inner.close()


@asynccontextmanager
async def listening(at: Broker, topic: str) -> AsyncIterator[tuple[Line, asyncio.Queue[tuple[str, bytes]]]]:
    """Somebody at the broker who hears a topic and may say anything."""
    heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    line = Line(at, "eve", {topic: True}, ("eve", b"", False), lambda t, m, _: heard.put_nowait((t, m)))
    await line.open()
    try:
        yield line, heard
    finally:
        await line.close()


async def soon(ready: Callable[[], Any]) -> None:
    """Until it is so: nothing tells us."""
    async with asyncio.timeout(30):
        while not ready():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def of(*data: bytes) -> AsyncIterator[bytes]:
    return each(data)


def unsigned(answer: Answer, **headers: str) -> Answer:
    kept = {k: v for k, v in answer.headers.items() if k.lower() not in {"atoll-seal", "content-length"}}
    return answer._replace(headers={**kept, **headers})


FORGED: dict[str, Change] = {
    "an offset": lambda m, p, a: unsigned(a, **{"atoll-frames": str(KEPT)}),
    "an offset, with another's signature": lambda m, p, a: a._replace(
        headers={**a.headers, "atoll-frames": "7", "atoll-seal": "AAAA"}
    ),
    "a refusal": lambda m, p, a: Answer(403, {"atoll-error": "refused", "atoll-reason": "go"}, of()),
    "an end for good": lambda m, p, a: Answer(400, {"atoll-error": "protocol", "atoll-reason": "no"}, of()),
}


@pytest.mark.parametrize("what", FORGED)
def test_an_answer_that_the_server_did_not_sign_is_nobodys(what: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as w:
            w.desk.expects["up"] = len(BUFFER)
            link = open_link(w.url, identity())
            channel, _ = await enter(link)
            w.liar.change = FORGED[what]
            with pytest.raises(Gone, match="not signed"):
                await link.offset("up")
            w.liar.change = None
            assert await link.offset("up") == 0, "the next one is heard"
            await channel.close()
            await link.close()

    run(story())


def test_control_without_the_check_a_forged_offset_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.transport.calls.heard", lambda seal, what, status, told: told)

    async def story() -> None:
        async with world(tmp_path) as w:
            w.desk.expects["up"] = len(BUFFER)
            link = open_link(w.url, identity())
            channel, _ = await enter(link)
            w.liar.change = lambda m, p, a: unsigned(a, **{"atoll-frames": "3", "atoll-seal": str(KEPT)})
            assert await link.offset("up") == KEPT
            w.liar.change = None
            await channel.close()
            await link.close()

    run(story())


def forging(method: str, path: str, answer: Answer) -> Answer:
    """Says "forged" in letters that say "honest", with a check sum that fits and the old signature."""

    async def forged() -> AsyncIterator[bytes]:
        async for record in packets(answer.body):
            start = 9 + record[8]
            packet = unpack(record[start:])
            body = packet.body
            if body is not None and read(body).head.get("text") == "honest":
                body = letter("down", {"text": "forged"})
            yield packed([record[:start] + pack(Packet(packet.number, packet.seen, body))])

    return answer if path != "/v1/session" else answer._replace(body=forged())


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "control"])
def test_a_letter_that_the_gateway_changes_is_not_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    if not checked:
        monkeypatch.setattr(Seal, "open", lambda self, context, record: memoryview(record)[9 + record[8] :])

    async def story() -> None:
        async with world(tmp_path) as w:
            w.liar.change = forging
            async with dialled([w.url]) as (_, side):
                await side.until(lambda heard: heard)
                w.service.send("ann", "down", {"text": "honest"})
                if checked:
                    await side.until(lambda heard: ("lost",) in heard)
                    w.liar.change = None
                await side.until(lambda heard: any(h[0] == "down" for h in heard))
                (told,) = [h for h in side.heard if h[0] == "down"]
                assert told == ("down", {"text": "honest" if checked else "forged"})

    run(story())


def test_a_receipt_and_a_blob_that_the_gateway_changes_are_asked_for_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as w:
            w.desk.expects["up"] = len(BUFFER)
            w.desk.blobs[BLOB] = blob_file(tmp_path, FRAMES)
            lies = {("PUT", "/v1/uploads/up"), ("GET", f"/v1/blobs/{BLOB}?from=0&have=")}

            def once(method: str, path: str, answer: Answer) -> Answer:
                if (method, path) not in lies:
                    return answer
                lies.discard((method, path))
                return unsigned(answer)._replace(body=of(b"ATL\x01" + b"x" * 99))

            w.liar.change = once
            async with dialled([w.url]) as (dial, side):
                await side.until(lambda heard: heard)
                receipt = await dial.upload("up", w.desk.blobs[BLOB])
                assert receipt == w.desk.receipts["up"]
                await dial.download(BLOB, tmp_path / "got")
            assert (tmp_path / "got").read_bytes() == b"".join(FRAMES)
            assert not lies and [t[0] for t in w.desk.told].count("uploaded") == 1

    run(story())


def test_another_federations_server_is_not_believed(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as w:
            other = certified(authority("elsewhere"), "client", "ann")
            assert other.folder is not None
            link = open_link(w.url, other)
            with pytest.raises(Gone, match="not signed by the server"):
                await enter(link)
            await link.close()

    run(story())


def test_who_speaks_on_anothers_topic_or_says_again_what_it_heard_is_not_that_member(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as w, listening(w.at(), "atoll/plant/up/#") as (eve, heard):
            link = open_link(w.url, identity())
            channel, _ = await enter(link)
            await channel.send(pack(Packet(1, 0, letter("up", {"k": 1}, UP))))
            await w.desk.until(lambda told: ("letter", "ann", "up", {"k": 1}) in told)
            before, calls = len(w.desk.told), len(w.liar.asked)
            said = [heard.get_nowait() for _ in range(heard.qsize())]
            for topic, text in said:  # as it was, where it is one call; under a name of its own, another
                eve.put(topic, text)
                piece = Piece.FromString(text)
                piece.call = bytes(16)
                eve.put(topic, piece.SerializeToString())
            bob = mqtt_link(w.url, identity("bob"))
            bob._carrier._member = "ann"  # at ann's topics, with bob's own signature
            other, _ = await enter(bob, "ab" * 16)
            assert {row["name"] for row in w.service.sessions()} == {"ann", "bob"}
            assert len(w.liar.asked) > calls, "the control: the calls of both were made"
            told = [t for t in w.desk.told[before:] if t[0] == "letter" or t[1] == "ann"]
            assert not told, "nobody said a word as ann"
            for open_channel in (channel, other):
                await open_channel.close()
            await link.close()
            await bob.close()

    run(story())


def test_junk_is_dropped_retained_or_not_and_long_messages_stay_at_the_broker(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as w, listening(w.at(), "nothing") as (eve, _):
            up, down = f"atoll/plant/up/ann/{NAME}", f"atoll/plant/down/ann/{NAME}"
            call = Piece(call=bytes(16), number=1, end=LAST, method="GET", path="/v1/")
            for topic in (up, down, "atoll/plant/up/ann", "atoll/plant/up/Ä/x", "atoll/plant/up/../x"):
                eve.put(topic, b"\xff" * 99)
                eve.put(topic, b"\xff" * 99, retain=True)
            eve.put(up.replace("ann", "bob"), call.SerializeToString(), retain=True)
            eve.put(up, call.SerializeToString() + b"\x0a" * LONGEST)
            await soon(lambda: w.liar.asked == [("GET", "/v1/")])
            link = open_link(w.url, identity())
            await link.probe()
            made = [("GET", "/v1/"), ("POST", "/v1/seal"), ("GET", "/v1/")]
            assert w.liar.asked == made, "the control: what was retained was a call while it was new"
            await w.gateway.close()
            async with w.gatewayed():
                await link.probe()
                assert w.liar.asked == [*made, ("GET", "/v1/")], "what was retained is none"
            await link.close()

    run(story())


def test_a_gateway_makes_no_other_calls(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as w:
            link: Any = mqtt_link(w.url, identity())
            for method, path in (
                *(("GET", "/v1/ways"), ("POST", "/v1/enrol/../nodes"), ("DELETE", "/v1/uploads/up")),
                *(
                    ("GET", "/v1/blobs/../../nodes"),
                    ("GET", "http://elsewhere/"),
                    ("HEAD", "/v1/uploads/a/b"),
                ),
            ):
                with pytest.raises(Gone, match="makes no such call"):
                    async with link.call(method, path):
                        pass
            assert w.liar.asked == [("POST", "/v1/seal")]
            await link.close()

    run(story())


def test_a_member_that_floods_is_refused_with_the_reason_and_others_are_served(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, Limits(member=2)) as w:
            w.desk.expects |= dict.fromkeys("abc", len(BUFFER))
            link, other = open_link(w.url, identity()), open_link(w.url, identity("bob"))
            channel, _ = await enter(link)
            waiting = [
                asyncio.ensure_future(channel.recv()),
                asyncio.ensure_future(link.upload("a", never(), 0)),
            ]
            await soon(lambda: w.gateway._busy["ann"] == 2)
            with pytest.raises(Gone, match="2 calls under way at the gateway: wait"):
                await link.offset("b")
            assert w.gateway.refused
            await other.probe()
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            await link.close()
            await other.close()

    run(story())


async def never() -> AsyncIterator[bytes]:
    yield FRAMES[0]
    await asyncio.Event().wait()


def test_calls_that_nothing_is_heard_of_are_given_up_at_both_ends(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, Limits(silent=0.3, alive=99)) as w:
            link = mqtt_link(w.url, identity(), silent=0.3)
            channel, _ = await enter(link)  # from here on it is a poll, and nobody says anything
            with pytest.raises(Gone, match="nothing was heard"):
                await channel.recv()
            await channel.close()
            await link.close()
            slow = mqtt_link(w.url, identity(), silent=99)
            channel, _ = await enter(slow)
            w.desk.expects["up"] = len(BUFFER)
            with pytest.raises(Gone):
                await slow.upload("up", never(), 0)
            await slow.close()

    run(story())


def test_a_long_call_in_which_nothing_happens_is_kept_by_signs_of_life(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, Limits(alive=0.05)) as w:
            link = mqtt_link(w.url, identity(), silent=0.5)
            channel, _ = await enter(link)
            waiting = asyncio.ensure_future(channel.recv())
            await asyncio.wait([waiting], timeout=1.0)
            assert not waiting.done()
            w.service.send("ann", "down", {"k": 1})
            assert await waiting
            await channel.close()
            await link.close()

    run(story())


@pytest.mark.parametrize("what", ["gateway", "broker"])
def test_a_restart_loses_no_letter_and_no_frame(what: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as w:
            w.desk.expects["up"] = len(BUFFER)
            file = blob_file(tmp_path, FRAMES)
            async with dialled([w.url]) as (dial, side):
                await side.until(lambda heard: heard)
                dial.send("up", {"k": 1})
                w.service.send("ann", "down", {"k": 1})
                if what == "broker":
                    w.broker.kill()
                    w.broker.start()
                else:
                    for call in w.gateway._calls.values():
                        call.task.cancel()
                    w.gateway._line._client._sock.shutdown(SHUT_RDWR)  # type: ignore[union-attr]  # without a word
                dial.send("up", {"k": 2})
                w.service.send("ann", "down", {"k": 2})
                await dial.upload("up", file)
                await w.desk.until(lambda told: ("letter", "ann", "up", {"k": 2}) in told)
                await side.until(lambda heard: ("down", {"k": 2}) in heard)
                assert [t[3]["k"] for t in w.desk.told if t[0] == "letter"] == [1, 2]
                assert [h[1]["k"] for h in side.heard if h[0] == "down"] == [1, 2]
            assert w.desk.kept["up"] == BUFFER

    run(story())


def test_where_there_is_no_gateway_or_broker_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.transport.mqtt_link.STATE", 0.1)

    async def story() -> None:
        with Mosquitto(tmp_path) as broker:
            url = f"mqtt+sealed://127.0.0.1:{broker.port}/plant"
            link = open_link(url, identity())
            with pytest.raises(Gone, match="no gateway called plant"):
                await link.probe()
        with pytest.raises(Gone, match=r"cannot be reached.*refused"):
            await link.probe()
        await link.close()

    run(story())


def test_a_broker_that_stands_still_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.transport.mqtt.STUCK", 0.2)
    monkeypatch.setattr("atoll.transport.mqtt.CLOSE", 0.1)

    async def story() -> None:
        with Mosquitto(tmp_path) as broker:
            at = Broker("127.0.0.1", broker.port, tls=False)
            async with listening(at, "told") as (line, heard):
                line.put("told", b"1")
                assert await heard.get() == ("told", b"1")
                broker.stand(still=True)
                line.put("told", b"2")
                await soon(lambda: line.why)
                assert "confirmed nothing" in line.why
            broker.stand(still=False)

    run(story())


ACL = """
user plant
topic readwrite atoll/plant/state
topic read atoll/plant/up/#
topic write atoll/plant/down/#
pattern read atoll/plant/state
pattern write atoll/plant/up/%u/+
pattern read atoll/plant/down/%u/+
"""


def test_users_and_access_list(tmp_path: Path) -> None:
    users = {"plant": "p", "ann": "a", "bob": "b"}

    async def story() -> None:
        async with world(tmp_path, login=("plant", "p"), users=users, acl=ACL) as w:
            link = open_link(w.url, identity(), user=("ann", "a"))
            await link.probe()
            await link.close()
            for user in (None, ("ann", "wrong")):
                link = open_link(w.url, identity(), user=user)
                with pytest.raises(Gone, match="does not let us in"):
                    await link.probe()
                await link.close()
            async with listening(w.at("bob", "b"), "atoll/plant/up/#") as (bob, heard):
                bob.put(f"atoll/plant/up/ann/{NAME}", b"x")
                await soon(lambda: bob.why)
                assert "see its access list" in bob.why
                assert heard.empty()

    run(story())


def test_the_broker_proves_itself_by_its_authority(tmp_path: Path) -> None:
    mine = certified(authority("elsewhere"), "coordinator", "proxy", hosts=["127.0.0.1"])
    assert mine.folder is not None
    pair = mine.folder / "cert.pem", mine.folder / "key.pem"

    async def story() -> None:
        async with world(tmp_path, ca=mine.folder / "root.pem", tls=pair) as w:
            link = open_link(w.url, identity(), ca=mine.folder / "root.pem")
            await link.probe()
            await link.close()
            link = open_link(w.url, identity(), ca=hub().folder / "root.pem")
            with pytest.raises(Gone, match=r"(?i)certificate verify failed"):
                await link.probe()
            await link.close()

    run(story())


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mqtt+sealed://broker.example/plant", "without TLS"),
        ("mqtts+sealed://ann:secret@broker/plant", "shown in logs"),
        ("mqtts+sealed://broker/Plant one", "gateway's name"),
        ("mqtts+sealed://broker", "gateway's name"),
        ("mqtts://broker/plant", "each call is signed"),
        ("amqp+sealed://broker/plant", "expected a URL"),
        ("mqtts+sealed://:99/plant", "broker's URL"),
    ],
)
def test_urls_that_cannot_be(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as found:
        open_link(url, identity())
    assert "secret" not in str(found.value)
    assert broker_at("mqtts://[::1]")[0].port == 8883


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"to": "http://hub:8443"}, "dials https"),
        ({"to": "hub:8443"}, "dials https"),
        ({"broker": ""}, "broker's URL"),
        ({"broker": "mqtts+sealed://broker/plant"}, "members add"),
        ({"name": "Plant 1"}, "gateway's name"),
        ({"root": "nothing.pem"}, "cannot be read"),
    ],
)
def test_settings_of_a_gateway_that_cannot_be(change: dict[str, str], why: str) -> None:
    right = {"broker": "mqtts://broker", "to": "https://hub:8443"}
    assert made(make(settings.Gateway, right)).name == "gateway"
    with pytest.raises(ConfigError, match=why):
        made(make(settings.Gateway, {**right, **change}))


def talks(silent: float = 5.0) -> tuple[Talk, Talk, list[Piece]]:
    """Two sides of a call; what the first says is kept in the list, and brought over by the test."""
    said: list[Piece] = []
    return Talk(bytes(16), said.append, silent), Talk(bytes(16), lambda piece: None, silent), said


def test_pieces_that_come_twice_are_one_and_a_gap_ends_the_call() -> None:
    async def story() -> None:
        a, b, said = talks()
        text = bytes(range(256)) * (PIECE // 100)
        await a.say(text, method="POST")
        assert len(said) == 3 and [p.method for p in said] == ["POST", "", ""]
        for piece in (said[0], said[0], said[1], said[0], said[2], said[2]):
            b.arrived(piece)
        assert b"".join([data async for data in b.body(await b.hear())]) == text
        c = Talk(bytes(16), lambda piece: None)
        c.arrived(said[0])
        c.arrived(said[2])
        with pytest.raises(Gone, match="lost"):
            await c.hear()

    run(story())


def test_nobody_gets_further_ahead_than_the_window() -> None:
    async def story() -> None:
        a, b, said = talks(silent=0.2)
        saying = asyncio.ensure_future(a.say(bytes(PIECE * 3 * WINDOW)))
        await asyncio.sleep(0.05)
        assert len(said) == WINDOW, "it waits until some were used up"
        for piece in said:
            b.arrived(piece)
        await b.hear()
        a.arrived(Piece(call=bytes(16), taken=1))
        a.arrived(Piece(call=bytes(16), taken=9_999))  # more than were said
        await asyncio.sleep(0.05)
        assert len(said) == 2 * WINDOW
        with pytest.raises(Gone, match="nothing was heard"):
            await saying
        for piece in said[WINDOW:]:
            b.arrived(piece)
        b.arrived(Piece(call=bytes(16), number=2 * WINDOW + 1, end=MORE))
        with pytest.raises(Gone, match="more pieces came"):
            await b.hear()
        a.arrived(Piece(call=bytes(16), end=BROKEN, body=b"because"))
        with pytest.raises(Gone, match="because"):
            await a.hear()

    run(story())
