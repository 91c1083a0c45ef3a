"""Every call of every transport × everybody who is no member: refused, logged, and the desk hears nothing."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest

from atoll.core.errors import AtollError
from atoll.privacy.keys import Identity
from atoll.transport.conformance import each, enter, hello, message
from atoll.transport.grpc import GrpcLink, _Handlers, _Methods
from atoll.transport.https import _Calls
from atoll.transport.https_link import HttpsLink
from atoll.transport.open import listen, open_link
from atoll.transport.service import Service
from tests.wire.pki import DAY, NOW
from tests.wire.pki import member as certified
from tests.wire.world import LIMITS, Desk, authority, hub, identity, run, serving

FRAMES, BUFFER, BLOB = message(1000)


def pinned(who: Identity) -> Identity:
    """Somebody else's certificate, but our root pinned: it does not mind whom it dials."""
    assert who.folder is not None
    return Identity(who.key, who.chain, hub().roots).save(who.folder)


@cache
def strangers() -> dict[str, Identity | None]:
    """By name: who comes, None for somebody without a certificate."""
    return {
        "nobody": None,
        "other federation": pinned(certified(authority("elsewhere"), "client", "ann")),
        "expired": certified(authority(), "client", "ann", now=NOW - 3 * DAY),
        "operator": identity("ann", "operator"),
        "coordinator": identity("ann", "coordinator"),
    }


class Anybody(HttpsLink):
    """A link that shows this certificate, or none, to a server it trusts."""

    def __init__(self, url: str, who: Identity | None) -> None:
        super().__init__(url, who or identity())
        if who is None:
            self.carrier.tls = ssl.create_default_context(cadata=hub().roots.decode())


GRPC_CALLS = sorted(name.rpartition("/")[2] for name in _Handlers(_Methods(None, None))._handlers)  # type: ignore[arg-type]
HTTP_CALLS = sorted((r.method, r.path) for r in _Calls(None, None, None).routes())  # type: ignore[arg-type]


async def call(link: Any, what: str) -> None:
    """One call of a link, by the name of its gRPC method."""
    match what:
        case "Session":
            channel = await link.session("ab" * 16, hello("ab" * 16))
            await channel.recv()
        case "Offset":
            await link.offset("up")
        case "Upload":
            await link.upload("up", each(FRAMES), 0)
        case "Download":
            async for _ in link.download(BLOB, 0, []):
                raise AssertionError("it was given a blob")
        case _:
            raise AssertionError(f"{what} is new: say here how strangers would call it")


@asynccontextmanager
async def world(scheme: str, folder: Path) -> AsyncIterator[tuple[Service, Desk, str]]:
    """A member's session is open meanwhile: its name is the stranger's."""
    async with serving(scheme, folder) as (service, desk, port):
        desk.expects["up"] = len(BUFFER)
        desk.blobs[BLOB] = folder / "blob"
        desk.blobs[BLOB].write_bytes(b"".join(FRAMES))
        url = f"{scheme}://127.0.0.1:{port}"
        honest = open_link(url, identity())
        channel, _ = await enter(honest, "ab" * 16)
        await desk.until(lambda told: len(told) == 2)
        yield service, desk, url
        await channel.close()
        await honest.close()
        assert desk.told[:2] == [("admit", "ann"), ("present", "ann")]
        assert not [w for w in desk.told[2:] if w[0] != "absent"], "the desk hears nothing of strangers"
        assert not desk.kept


@pytest.mark.parametrize("who", list(strangers()))
@pytest.mark.parametrize("what", GRPC_CALLS)
def test_no_grpc_method_serves_a_stranger(what: str, who: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with world("grpcs", tmp_path) as (_, _, url):
            link: Any = GrpcLink(url, strangers()[who] or identity())
            if strangers()[who] is None:
                await link.close()
                bare = grpc.ssl_channel_credentials(hub().roots)
                link._channel = grpc.aio.secure_channel(url.partition("//")[2], bare)
                link._session = link._channel.stream_stream("/atoll.v1.Link/Session")
                link._offset = link._channel.unary_unary("/atoll.v1.Link/Offset")
                link._upload = link._channel.stream_unary("/atoll.v1.Link/Upload")
                link._download = link._channel.unary_stream("/atoll.v1.Link/Download")
            link._metadata = (("atoll-session", "ab" * 16),)
            with pytest.raises(AtollError):
                await _whole(link, what)
            await link.close()

    run(story())


async def _whole(link: Any, what: str) -> None:
    """Session answers a stranger of the right root with a bye: that is a refusal as well."""
    if what != "Session":
        await call(link, what)
        return
    channel, answer = await enter(link, "cd" * 16)
    await channel.close()
    if answer.kind == "bye" and answer.head["error"] != "gone":
        raise AtollError(answer.head["reason"])
    raise AssertionError(f"a stranger was answered {answer.kind}")


def test_a_method_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with world("grpcs", tmp_path) as (_, _, url):
            link: Any = GrpcLink(url, identity())
            link._offset = link._channel.unary_unary("/atoll.v1.Link/Everything")
            with pytest.raises(AtollError):
                await link.offset("up")
            await link.close()

    run(story())


@pytest.mark.parametrize("who", list(strangers()))
@pytest.mark.parametrize(("method", "path"), HTTP_CALLS)
def test_no_route_serves_a_stranger(method: str, path: str, who: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with world("https", tmp_path) as (_, _, url):
            link = Anybody(url, strangers()[who])
            link._headers["atoll-session"] = "ab" * 16
            where = path.format(upload="up", blob=BLOB)
            more = {"atoll-mode": "stream", "atoll-connection": "ab" * 16, "atoll-start": "0"}
            status = 0
            try:
                async with link.call(method, where, more, data=b"".join(FRAMES) if method == "PUT" else None):
                    status = 200
            except AtollError:
                pass
            ours = who in {"operator", "coordinator"}  # a good certificate, of the wrong role
            if (method, path) == ("GET", "/v1/") and (ours or who == "nobody"):
                assert status == 200, "the control: this one is open"
            elif not (ours and path == "/v1/session"):  # there the refusal is a packet, see below
                assert status == 0, f"{method} {path} served {who}"
            await link.close()

    run(story())


@pytest.mark.parametrize("scheme", ["https", "https+poll", "wss"])
@pytest.mark.parametrize("who", ["operator", "coordinator"])
def test_a_certificate_of_another_role_opens_no_session(scheme: str, who: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with world("https", tmp_path) as (_, _, url):
            link = open_link(url.replace("https", scheme), strangers()[who])
            with pytest.raises(AtollError, match="expected a client or an edge"):
                await _whole(link, "Session")
            await link.close()

    run(story())


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_one_member_is_not_served_in_the_session_of_another(scheme: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with world(scheme, tmp_path) as (_, _, url):
            link: Any = open_link(url, identity("bob"))
            if scheme == "grpcs":
                link._metadata = (("atoll-session", "ab" * 16),)
            else:
                link._headers["atoll-session"] = "ab" * 16
            for what in ("Offset", "Upload", "Download"):
                with pytest.raises(AtollError, match="say hello first"):
                    await call(link, what)
            await link.close()

    run(story())


@pytest.mark.parametrize(("scheme", "plain"), [("grpcs", "grpc"), ("https", "http"), ("https", "ws")])
def test_plain_text_gets_no_answer(scheme: str, plain: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with world(scheme, tmp_path) as (_, _, url):
            link = open_link(url.replace(scheme, plain), None, claim=identity().member)
            with pytest.raises(AtollError):
                await _whole(link, "Session")
            await link.close()

    run(story())


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_who_is_refused_stands_in_the_log(
    scheme: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with world(scheme, tmp_path) as (_, _, url):
            link = open_link(url, strangers()["operator"])
            with pytest.raises(AtollError):
                await _whole(link, "Session")
            await link.close()

    with caplog.at_level(logging.WARNING, "atoll.transport"):
        run(story())
    assert "operator ann: refused: expected a client or an edge" in caplog.text


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "example.org:8443"])
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_no_plain_text_on_an_address_that_others_reach(scheme: str, address: str, tmp_path: Path) -> None:
    async def story() -> None:
        service = Service(Desk(tmp_path), LIMITS)
        with pytest.raises(AtollError, match="without TLS"):
            await listen(service, f"{scheme}://{address}", None, federation="lab")
        with pytest.raises(AtollError, match="without TLS"):
            open_link(f"{scheme}://{address.replace(':0', ':1')}", None)
        await service.close()

    run(story())


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_a_session_ends_with_its_certificate(scheme: str, tmp_path: Path) -> None:
    async def story() -> None:
        now = [NOW]
        limits = LIMITS
        async with serving(scheme, tmp_path, limits, wall=lambda: now[0]) as (_, desk, port):
            link = open_link(f"{scheme}://127.0.0.1:{port}", identity())
            channel, _ = await enter(link)
            now[0] = NOW + 2 * DAY
            told = []
            while (data := await channel.recv()) is not None:
                told.append(data)
            assert b"expired" in told[-1]
            await desk.until(lambda told: told[-1][0] == "absent")
            assert desk.told[-1] == ("absent", "ann", "its certificate expired")
            await channel.close()
            await link.close()

    run(story())
