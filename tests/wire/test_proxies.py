"""Through proxies: those that ask for a password, and those that end TLS and could change everything."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from atoll.core.errors import Gone, IntegrityError, ProtocolError, Refused
from atoll.core.session import Packet
from atoll.transport.conformance import enter, message
from atoll.transport.https import serve as serve_https
from atoll.transport.https_link import HttpsLink
from atoll.transport.link import UP, letter, pack
from atoll.transport.open import open_link
from atoll.transport.sealed import Seal, Sealer, context, header, opened
from atoll.wire.codec import FRAME
from tests.wire.pki import NOW
from tests.wire.pki import member as certified
from tests.wire.proxy import ConnectProxy, TlsProxy
from tests.wire.world import (
    LIMITS,
    SCHEMES,
    Desk,
    Service,
    authority,
    blob_file,
    dialled,
    hub,
    identity,
    run,
    serving,
)  # fmt: skip

FRAMES, BUFFER, BLOB = message(3 * FRAME + 9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_through_a_proxy_with_user_and_password(scheme: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(scheme, tmp_path) as (service, desk, port), ConnectProxy("eve", "s3cret") as proxy:
            desk.expects["up"] = len(BUFFER)
            url = [f"{scheme}://127.0.0.1:{port}"]
            way = f"http://eve:s3cret@127.0.0.1:{proxy.port}"
            async with dialled(url, proxy=way) as (dial, side):
                await side.until(lambda heard: heard)
                await dial.upload("up", blob_file(tmp_path, FRAMES))
                service.send("ann", "down", {"k": 1})
                await side.until(lambda heard: ("down", {"k": 1}) in heard)
            assert desk.kept["up"] == BUFFER
            assert set(proxy.asked) == {f"127.0.0.1:{port}"}
            assert not service.sessions() or not service.sessions()[0]["sealed"], "TLS was passed through"

    run(story())


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_environments_proxy_is_one_for_all_ways(
    scheme: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with serving(scheme, tmp_path) as (_, _, port), ConnectProxy("eve", "s@cret:") as proxy:
            for other in ("no_proxy", "NO_PROXY", "https_proxy", "HTTPS_PROXY"):
                monkeypatch.delenv(other, raising=False)
            monkeypatch.setenv(name, f"http://eve:s%40cret%3A@127.0.0.1:{proxy.port}")
            url = f"{scheme}://127.0.0.1:{port}"
            async with dialled([url]) as (_, side):
                await side.until(lambda heard: heard)
            assert set(proxy.asked) == {f"127.0.0.1:{port}"} and not proxy.refused
            proxy.asked.clear()
            for left_out, given in (("127.0.0.1", None), ("", "")):
                monkeypatch.setenv("NO_PROXY", left_out)
                async with dialled([url], proxy=given) as (_, side):
                    await side.until(lambda heard: heard)
            assert proxy.asked == [], "no_proxy, or a proxy that is said to be none"

    run(story())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_wrong_password_gets_nobody_through_and_says_why(scheme: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(scheme, tmp_path) as (_, desk, port), ConnectProxy("eve", "s3cret") as proxy:
            way = f"http://eve:wrong@127.0.0.1:{proxy.port}"
            link = open_link(f"{scheme}://127.0.0.1:{port}", identity(), proxy=way)
            with pytest.raises(Gone):
                await enter(link)
            await link.close()
            assert proxy.refused and not desk.told

    run(story())


def proxy_tls() -> tuple[ssl.SSLContext, Path]:
    """A proxy's own certificate, of an authority that has nothing to do with ours; its root."""
    mine = certified(authority("elsewhere"), "coordinator", "proxy", hosts=["127.0.0.1"])
    assert mine.folder is not None
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(mine.folder / "cert.pem", mine.folder / "key.pem")
    return tls, mine.folder / "root.pem"


def blind() -> ssl.SSLContext:
    """What the proxy dials the server with: no certificate of a member."""
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    return tls


SEALED = ("https+sealed", "https+poll+sealed", "wss+sealed")


@pytest.mark.parametrize("scheme", SEALED)
def test_behind_a_proxy_that_ends_tls_signatures_carry_the_trust(scheme: str, tmp_path: Path) -> None:
    async def story() -> None:
        tls, ca = proxy_tls()
        async with serving("https", tmp_path) as (service, desk, port), TlsProxy(port, tls, blind()) as proxy:
            desk.expects["up"] = len(BUFFER)
            desk.blobs[BLOB] = blob_file(tmp_path, FRAMES)
            async with dialled([f"{scheme}://127.0.0.1:{proxy.port}"], ca=ca) as (dial, side):
                await side.until(lambda heard: heard)
                dial.send("up", {"k": 1})
                await desk.until(lambda told: ("letter", "ann", "up", {"k": 1}) in told)
                service.send("ann", "down", {"k": 1})
                await side.until(lambda heard: ("down", {"k": 1}) in heard)
                await dial.upload("up", desk.blobs[BLOB])
                await dial.download(BLOB, tmp_path / "got")
                assert (tmp_path / "got").read_bytes() == b"".join(FRAMES)
                (row,) = service.sessions()
                assert row["sealed"], "the status says that a proxy ends TLS"
            assert desk.kept["up"] == BUFFER

    run(story())


@pytest.mark.parametrize("scheme", ["https", "wss", "https+poll"])
def test_control_without_a_seal_a_proxy_that_ends_tls_is_in_the_way(scheme: str, tmp_path: Path) -> None:
    async def story() -> None:
        tls, ca = proxy_tls()
        async with serving("https", tmp_path) as (_, desk, port), TlsProxy(port, tls, blind()) as proxy:
            plain = open_link(f"{scheme}://127.0.0.1:{proxy.port}", identity())
            with pytest.raises(Gone, match=r"(?i)certificate"):
                await enter(plain)
            await plain.close()
            fooled: Any = HttpsLink(f"{scheme}://127.0.0.1:{proxy.port}", identity())
            fooled.carrier.tls = ssl.create_default_context(cafile=ca)  # somebody who trusts the proxy anyway
            with pytest.raises(Refused, match="certificate"):
                await enter(fooled)
            await fooled.close()
            assert not desk.told

    run(story())


@pytest.mark.parametrize("scheme", SEALED)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_proxy_that_changes_what_is_said_is_noticed(scheme: str, direction: str, tmp_path: Path) -> None:
    async def story() -> None:
        tls, ca = proxy_tls()
        async with serving("https", tmp_path) as (service, desk, port), TlsProxy(port, tls, blind()) as proxy:
            link = open_link(f"{scheme}://127.0.0.1:{proxy.port}", identity(), ca=ca)
            channel, _ = await enter(link)
            desk.expects["up"] = len(BUFFER)

            def change(way: str, data: bytes) -> bytes:
                return data.replace(b"honest", b"forged") if way == direction else data

            proxy.change = change
            service.send("ann", "down", {"text": "honest"})

            async def talk() -> None:
                await channel.send(pack(Packet(1, 0, letter("up", {"text": "honest"}, UP))))
                while (data := await channel.recv()) is not None:
                    assert b"forged" not in data
                raise Gone("the connection ended")

            with pytest.raises((ProtocolError, Gone)):
                await talk()
            assert not [w for w in desk.told if w[0] == "letter" and w[3] == {"text": "forged"}]
            await channel.close()
            await link.close()

    run(story())


def test_a_proxy_that_answers_in_the_servers_place_refuses_nobody_for_good(tmp_path: Path) -> None:
    async def story() -> None:
        tls, ca = proxy_tls()
        async with serving("https", tmp_path) as (_, desk, port), TlsProxy(port, tls, blind()) as proxy:
            link = open_link(f"https+sealed://127.0.0.1:{proxy.port}", identity(), ca=ca)
            channel, _ = await enter(link)
            desk.expects["up"] = len(BUFFER)
            forged = b"HTTP/1.1 403 Forbidden\r\natoll-error: refused\r\ncontent-length: 0\r\n"

            def change(way: str, data: bytes) -> bytes:
                return data.replace(b"HTTP/1.1 200 OK\r\n", forged) if way == "down" else data

            proxy.change = change
            with pytest.raises(Gone, match="not signed"):
                await link.offset("up")
            await channel.close()
            await link.close()

    run(story())


def pair(**who: Any) -> tuple[Sealer, Any, Seal]:
    sealer = Sealer(hub, "lab", wall=lambda: NOW)
    asked = {"chain": identity(**who).chain.decode(), "nonce": "ab" * 16}
    answer = sealer.answer(asked)
    return sealer, answer, opened(identity(**who), asked["nonce"], answer, now=NOW)


def test_a_record_is_taken_once_and_only_where_it_was_meant() -> None:
    sealer, _, seal = pair()
    told = {"atoll-session": "s", "atoll-seal": ""}
    told["atoll-seal"] = header(seal, "GET", "/v1/blobs/x", told)
    member, theirs = sealer.request("GET", "/v1/blobs/x", told)
    assert member.name == "ann"
    with pytest.raises(Gone, match="twice"):
        sealer.request("GET", "/v1/blobs/x", told)
    told["atoll-seal"] = header(seal, "GET", "/v1/blobs/x", told)
    for method, path, session in (
        ("PUT", "/v1/blobs/x", "s"),
        ("GET", "/v1/blobs/y", "s"),
        ("GET", "/v1/blobs/x", "t"),
    ):
        with pytest.raises(IntegrityError):
            sealer.request(method, path, {**told, "atoll-session": session})
    record = seal.close("packet", b"payload")
    for k in range(0, len(record), 7):
        with pytest.raises((IntegrityError, ProtocolError)):
            theirs.open("packet", record[:k] + bytes([record[k] ^ 1]) + record[k + 1 :])
    with pytest.raises(IntegrityError):
        seal.open("packet", record)  # reflected to its sender
    with pytest.raises(IntegrityError):
        theirs.open("frame x", record)
    assert bytes(theirs.open("packet", record)) == b"payload"
    assert context("GET", "/", {}) != context("GET", "/", {"atoll-start": "1"})


def test_numbers_may_come_out_of_order_but_not_from_long_ago() -> None:
    _, _, seal = pair()
    other = Seal(hub().key, identity().key.public_key(), seal.nonce, "down")
    records = [seal.close("packet", b"%d" % k) for k in range(5000)]
    assert bytes(other.open("packet", records[10])) == b"10"
    assert bytes(other.open("packet", records[3])) == b"3"
    other.open("packet", records[4999])
    with pytest.raises(Gone, match="twice"):
        other.open("packet", records[4])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"nonce": "cd" * 16}, IntegrityError),
        ({"signature": "AAAA"}, IntegrityError),
        ({"signature": "?"}, ProtocolError),
        ({"chain": "nothing"}, ProtocolError),
        ({"nonce": 5}, ProtocolError),
    ],
)
def test_a_forged_answer_to_the_handshake_is_refused(change: Any, error: Any) -> None:
    _, answer, _ = pair()
    with pytest.raises(error):
        opened(identity(), "ab" * 16, {**answer, **change}, now=NOW)


def test_nobody_but_a_server_of_the_federation_can_answer() -> None:
    for who in (identity("bob"), certified(authority("elsewhere"), "coordinator", "hub")):
        sealer = Sealer(lambda who=who: who, who.member.federation, wall=lambda: NOW)
        own = who.member.federation == "lab"
        theirs = identity() if own else certified(authority("elsewhere"), "client", "x")
        answer = sealer.answer({"chain": theirs.chain.decode(), "nonce": "ab" * 16})
        with pytest.raises(ProtocolError):
            opened(identity(), "ab" * 16, answer, now=NOW)


def test_strangers_and_old_certificates_get_no_seal() -> None:
    sealer = Sealer(hub, "lab", wall=lambda: NOW)
    late = Sealer(hub, "lab", wall=lambda: NOW + 1e6)
    for who, sealed_by in ((certified(authority("elsewhere"), "client", "ann"), sealer), (identity(), late)):
        with pytest.raises(ProtocolError):
            sealed_by.answer({"chain": who.chain.decode(), "nonce": "ab" * 16})
    for asked in (None, {}, {"chain": 1, "nonce": "ab" * 16}, {"chain": "x" * 99_999, "nonce": "ab" * 16}):
        with pytest.raises(ProtocolError):
            sealer.answer(asked)


def test_a_server_without_identity_signs_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        service = Service(Desk(tmp_path), LIMITS)
        server = await serve_https(service, "127.0.0.1:0", None, federation="lab")
        link = open_link(f"http+sealed://127.0.0.1:{server.port}", identity())
        with pytest.raises(Gone, match=r"not signed by the server.*no identity"):
            await enter(link)
        await link.close()
        await service.close()
        await server.close()

    run(story())
