"""Joining over real sockets: who may hear the secret, lost answers, proxies, renewal."""

from __future__ import annotations

import asyncio
import base64
import secrets
import ssl
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from atoll.control.engine.pki import Registrar
from atoll.core.errors import ConfigError, Gone, PrivacyError, ProtocolError, Refused
from atoll.privacy.keys import Authority, Identity, chain_member, member_of, new_key, request
from atoll.privacy.token import Token
from atoll.transport.enrol import enrol, renew
from atoll.transport.entry import passed_on, routes
from atoll.transport.tls import client_context, server_context
from tests.wire.pki import DAY, NOW, Ledger, member

HOSTS = ("localhost", "127.0.0.1")
OURS = Authority.new("lagoon", now=NOW - 30 * DAY)
OTHER = Authority.new("lagoon", now=NOW - 30 * DAY)
HUB = member(OURS, "coordinator", "hub", hosts=HOSTS)
IMPOSTOR = member(OTHER, "coordinator", "hub", hosts=HOSTS)
Heard = list[tuple[str, bytes]]


class Hub:
    """A coordinator's doors on loopback; `heard`: every path and body that came."""

    def __init__(self, authority: Authority = OURS, clock: Callable[[], float] = lambda: NOW) -> None:
        self.ledger = Ledger()
        self.registrar = Registrar(authority, self.ledger)
        self.clock = clock
        self.heard: Heard = []
        self.cut = 0  # so many answers are lost on their way
        self.url = ""

    def token(self, role: str = "client", name: str = "bank-a") -> Token:
        return self.registrar.token(role, name, now=NOW, random=secrets.token_bytes)

    @asynccontextmanager
    async def open(self, identity: Identity = HUB, *extra: web.RouteDef):
        @web.middleware
        async def hear(asked: web.Request, handler: Any) -> web.StreamResponse:
            self.heard.append((asked.path, await asked.read()))
            done = await handler(asked)
            if self.cut and asked.method == "POST":
                self.cut -= 1
                asked.transport.abort()
            return done

        app = web.Application(middlewares=[hear])
        mine = routes(self.registrar, urls=["https://hub.example:8443"], clock=self.clock)
        app.add_routes(extra or mine)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(identity, "optional"))
        await site.start()
        self.url = f"https://localhost:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


def join(hub: Hub, token: Token, folder: Path, **more: Any) -> Awaitable[Identity]:
    return enrol(hub.url, token, folder=folder, proxy="", now=NOW, **more)


def test_a_url_and_a_token_are_enough(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hub().open() as hub:
            made = await join(hub, hub.token(), tmp_path)
            assert made.member.uri == "spiffe://lagoon/client/bank-a"
            assert made.urls == ("https://hub.example:8443",)
            assert Identity.open(tmp_path).chain == made.chain
            assert not (tmp_path / "enrol.key.pem").exists()
            key = (tmp_path / "key.pem").read_bytes().splitlines()[1]
            assert all(key not in body for _, body in hub.heard)

    asyncio.run(main())


def test_an_edge_joins_with_its_hosts_and_can_serve(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hub().open() as hub:
            token = hub.token("edge", "line")
            edge = await join(hub, token, tmp_path, role="edge", name="line", hosts=["localhost"])
        async with (
            Hub().open(edge, web.get("/", _hi)) as serving,
            aiohttp.ClientSession() as session,
            session.get(serving.url, ssl=client_context(OURS.root)) as answer,
        ):
            assert await answer.text() == "hi"

    asyncio.run(main())


async def _hi(_: web.Request) -> web.Response:
    return web.Response(text="hi")


# Who hears the secret -------------------------------------------------------------------------


async def _naive(url: str, token: Token) -> None:
    """A client that trusts whoever answers: what the attack works on."""
    body = {"secret": token.secret.hex(), "csr": request(new_key(), "any", "client", "any").decode()}
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/enrol", json=body, ssl=False):
        pass


def test_another_federations_root_hears_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        token = Hub().token()
        async with Hub(OTHER).open(IMPOSTOR) as thief:
            with pytest.raises(PrivacyError, match="Nothing was sent"):
                await join(thief, token, tmp_path)
            assert [path for path, _ in thief.heard] == ["/v1/root"]
            await _naive(thief.url, token)  # control
            assert token.secret.hex().encode() in thief.heard[-1][1]

    asyncio.run(main())


def test_a_copied_root_is_not_enough(tmp_path: Path) -> None:
    async def main() -> None:
        token = Hub().token()
        async with Hub(OURS).open(IMPOSTOR) as thief:  # shows the genuine root, and has not its key
            with pytest.raises(PrivacyError, match="did not prove"):
                await join(thief, token, tmp_path)
            assert [path for path, _ in thief.heard] == ["/v1/root"]
            await _naive(thief.url, token)  # control
            assert token.secret.hex().encode() in thief.heard[-1][1]

    asyncio.run(main())


@pytest.mark.parametrize(
    "who",
    [
        member(OURS, "coordinator", "hub", hosts=["hub.example"]),
        member(OURS, "edge", "line"),
        member(OURS, "coordinator", "hub", hosts=HOSTS, now=NOW - 2 * DAY),
    ],
    ids=["another host", "no host", "expired"],
)
def test_a_member_that_is_not_this_server_hears_nothing(tmp_path: Path, who: Identity) -> None:
    async def main() -> None:
        async with Hub().open(who) as hub:
            with pytest.raises(PrivacyError, match="did not prove"):
                await join(hub, hub.token(), tmp_path)
            assert [path for path, _ in hub.heard] == ["/v1/root"]

    asyncio.run(main())


def test_nonsense_for_a_root_hears_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        for body in (b"", b"<html>", OURS.root[:100], b"x" * 300_000):

            async def root(_: web.Request, body: bytes = body) -> web.Response:
                return web.Response(body=body)

            hub = Hub()
            async with hub.open(HUB, web.get("/v1/root", root)):
                with pytest.raises((PrivacyError, ProtocolError)):
                    await join(hub, hub.token(), tmp_path)
                assert [path for path, _ in hub.heard] == ["/v1/root"]

    asyncio.run(main())


def test_the_secret_is_not_sent_on_where_a_server_redirects(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hub(OTHER).open(IMPOSTOR) as thief:

            async def root(_: web.Request) -> web.Response:
                return web.Response(body=OURS.root)

            async def away(_: web.Request) -> web.Response:
                raise web.HTTPTemporaryRedirect(thief.url + "/v1/enrol")

            hub = Hub()
            async with hub.open(HUB, web.get("/v1/root", root), web.post("/v1/enrol", away)):
                with pytest.raises(ProtocolError, match="307"):
                    await join(hub, hub.token(), tmp_path)
            assert thief.heard == []

    asyncio.run(main())


@pytest.mark.parametrize("url", ["http://hub:8443", "grpcs://hub:8443", "hub:8443", "https://"])
def test_enrolment_goes_over_https_only(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="https://host:port"):
        asyncio.run(enrol(url, Hub().token(), folder=tmp_path, now=NOW))


# Tokens that are used, lost, refused ----------------------------------------------------------


def test_a_lost_answer_is_asked_for_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hub().open() as hub:
            hub.cut, token = 1, hub.token()
            with pytest.raises(Gone):
                await join(hub, token, tmp_path)
            assert list(hub.ledger.used) == [token.digest] and not (tmp_path / "cert.pem").exists()
            assert (await join(hub, token, tmp_path)).member.name == "bank-a"
            with pytest.raises(Refused, match="used by another key"):
                await join(hub, token, tmp_path / "thief")

    asyncio.run(main())


def test_a_used_token_is_refused_to_another_machine(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hub().open() as hub:
            token = hub.token()
            await join(hub, token, tmp_path / "a")
            with pytest.raises(Refused, match="used by another key"):
                await join(hub, token, tmp_path / "b")
            assert not (tmp_path / "b" / "cert.pem").exists()

    asyncio.run(main())


def test_a_token_for_another_name_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hub().open() as hub:
            with pytest.raises(Refused, match="for client bank-a, and here is"):
                await join(hub, hub.token(), tmp_path, role="client", name="bank-b")
            assert not (tmp_path / "cert.pem").exists()

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"chain": 1}', b'{"chain": "x"}', b"[" * 100_000, b"x" * 300_000]
)
def test_a_nonsense_answer_is_told(tmp_path: Path, answer: bytes) -> None:
    async def root(_: web.Request) -> web.Response:
        return web.Response(body=OURS.root)

    async def nonsense(_: web.Request) -> web.Response:
        return web.Response(body=answer)

    async def main() -> None:
        hub = Hub()
        async with hub.open(HUB, web.get("/v1/root", root), web.post("/v1/enrol", nonsense)):
            with pytest.raises(ProtocolError):
                await join(hub, hub.token(), tmp_path)

    asyncio.run(main())


def test_a_chain_of_another_authority_is_not_accepted(tmp_path: Path) -> None:
    async def root(_: web.Request) -> web.Response:
        return web.Response(body=OURS.root)

    async def forged(asked: web.Request) -> web.Response:
        body = await asked.json()
        chain = OTHER.sign(body["csr"].encode(), role="client", name="bank-a", now=NOW)
        return web.json_response({"chain": chain.decode()})

    async def main() -> None:
        hub = Hub()
        async with hub.open(HUB, web.get("/v1/root", root), web.post("/v1/enrol", forged)):
            with pytest.raises(ProtocolError, match="pinned root"):
                await join(hub, hub.token(), tmp_path)
        assert not (tmp_path / "cert.pem").exists()

    asyncio.run(main())


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"[]", b"{" * 50_000, b" " * 70_000, b"\xff\xfe", b'{"secret": "00"}'),
        *(b'{"secret": 1, "csr": 2}', b'{"secret": "zz", "csr": ""}', b'{"secret": "00", "csr": ""}'),
        b'{"csr": "", "chain": ""}',
    ],
)
def test_a_nonsense_request_is_answered_in_our_words(body: bytes) -> None:
    async def main() -> None:
        async with Hub().open() as hub, aiohttp.ClientSession() as session:
            for path in ("/v1/enrol", "/v1/renew"):
                async with session.post(hub.url + path, data=body, ssl=client_context(OURS.root)) as answer:
                    assert answer.status == 400 and (await answer.json())["error"]

    asyncio.run(main())


def test_a_server_that_is_away_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hub().open() as hub:
            token = hub.token()
        with pytest.raises(Gone, match=r"cannot be reached: .*refused"):
            await join(hub, token, tmp_path)

    asyncio.run(main())


# Proxies --------------------------------------------------------------------------------------


@asynccontextmanager
async def proxy(credentials: str):
    """An HTTP proxy that opens tunnels for whoever gives these credentials, and counts them."""
    tunnels: list[str] = []
    wanted = b"Proxy-Authorization: Basic " + base64.b64encode(credentials.encode())

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.decode().split(" ", 2)
        if wanted not in head or method != "CONNECT":
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        tunnels.append(target)
        host, _, port = target.rpartition(":")
        there = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], tunnels


def test_through_a_proxy_with_a_password(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hub().open() as hub, proxy("ann:p@ss word") as (port, tunnels):
            where = f"http://ann:p%40ss%20word@127.0.0.1:{port}"
            made = await enrol(hub.url, hub.token(), folder=tmp_path, proxy=where, now=NOW)
            assert (await renew(hub.url, made, proxy=where, now=NOW)).member.name == "bank-a"
            assert len(tunnels) == 3 and tunnels[0] == hub.url.removeprefix("https://")

    asyncio.run(main())


@pytest.mark.parametrize("credentials", ["", "ann:wrong@"])
def test_a_proxy_that_refuses_is_told_without_the_password(tmp_path: Path, credentials: str) -> None:
    async def main() -> None:
        async with Hub().open() as hub, proxy("ann:right") as (port, tunnels):
            where = f"http://{credentials}127.0.0.1:{port}"
            with pytest.raises(Gone, match="407") as told:
                await enrol(hub.url, hub.token(), folder=tmp_path, proxy=where, now=NOW)
            assert "wrong" not in str(told.value) and tunnels == [] and hub.heard == []

    asyncio.run(main())


def test_the_environments_proxy_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Hub().open() as hub, proxy("ann:x") as (port, tunnels):
            for name in ("no_proxy", "NO_PROXY", "https_proxy", "HTTPS_PROXY"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv("https_proxy", f"http://ann:x@127.0.0.1:{port}")
            await enrol(hub.url, hub.token(), folder=tmp_path / "a", now=NOW)
            assert len(tunnels) == 2
            monkeypatch.setenv("no_proxy", "localhost")
            await enrol(hub.url, hub.token(), folder=tmp_path / "b", now=NOW)
            assert len(tunnels) == 2

    asyncio.run(main())


@pytest.mark.parametrize("where", ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "http://"])
def test_a_proxy_has_one_form(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError, match="a proxy is written"):
        asyncio.run(enrol("https://hub", Hub().token(), folder=tmp_path, proxy=where, now=NOW))


# Renewal --------------------------------------------------------------------------------------


def test_renewal_keeps_the_key_and_moves_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        hub = Hub()
        async with hub.open():
            made = await join(hub, hub.token("edge", "line"), tmp_path, role="edge", hosts=["localhost"])
            hub.clock = lambda: NOW + 1800
        async with hub.open():
            again = await renew(hub.url, made, proxy="", now=NOW)
        assert again.member.until == made.member.until + 1800
        assert Identity.open(tmp_path).member == again.member
        assert chain_member(again.chain, OURS.root, now=NOW).uri == made.member.uri

    asyncio.run(main())


def test_a_lost_answer_to_a_renewal_costs_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hub().open() as hub:
            made = await join(hub, hub.token(), tmp_path)
            hub.cut = 1
            with pytest.raises(Gone):
                await renew(hub.url, made, proxy="", now=NOW)
            assert Identity.open(tmp_path).chain == made.chain
            assert (await renew(hub.url, made, proxy="", now=NOW)).member.serial != made.member.serial

    asyncio.run(main())


async def _post(hub: Hub, body: dict[str, str], context: ssl.SSLContext) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{hub.url}/v1/renew", json=body, ssl=context) as answer,
    ):
        return answer.status, await answer.json()


def test_somebody_elses_certificate_is_not_renewed_for_my_key(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hub().open() as hub:
            victim = await join(hub, hub.token(), tmp_path / "a")
            thief = await join(hub, hub.token(name="bank-b"), tmp_path / "b")
            chain = victim.chain.decode()  # chains are public: every peer sees them
            mine = request(thief.key, "lagoon", "client", "bank-a").decode()
            for context in (client_context(OURS.root), client_context(OURS.root, thief)):
                status, told = await _post(hub, {"csr": mine, "chain": chain}, context)
                assert status == 400 and "not signed by the key of" in told["error"]
            theirs = request(victim.key, "lagoon", "client", "bank-a").decode()
            body = {"csr": theirs, "chain": chain}
            status, told = await _post(hub, body, client_context(OURS.root, thief))
            assert status == 400 and "bank-b cannot renew" in told["error"]
            status, told = await _post(hub, body, client_context(OURS.root))  # control
            assert status == 200 and member_of(told["chain"].encode()).name == "bank-a"

    asyncio.run(main())


def test_a_revoked_member_is_not_renewed(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hub().open() as hub:
            made = await join(hub, hub.token(), tmp_path)
            hub.registrar.revoke("bank-a")
            with pytest.raises(Refused, match="revoked"):
                await renew(hub.url, made, proxy="", now=NOW)

    asyncio.run(main())


def test_a_certificate_that_has_ended_is_renewed_within_its_grace(tmp_path: Path) -> None:
    async def main() -> None:
        hub = Hub(clock=lambda: NOW - 3 * DAY)
        token = hub.registrar.token("client", "bank-a", now=NOW - 3 * DAY, random=secrets.token_bytes)
        async with hub.open():
            made = await enrol(hub.url, token, folder=tmp_path, proxy="", now=NOW - 3 * DAY)
        hub.clock = lambda: NOW
        async with hub.open():
            with pytest.raises(ProtocolError, match="ended on"):
                chain_member(made.chain, OURS.root, now=NOW)  # control
            assert (await renew(hub.url, made, proxy="", now=NOW)).member.until > NOW
        hub.clock = lambda: NOW + 6 * DAY
        async with hub.open():
            with pytest.raises(ProtocolError, match="ended on"):
                await renew(hub.url, made, proxy="", now=NOW + 6 * DAY)

    asyncio.run(main())


# Through an edge ------------------------------------------------------------------------------


def edge_doors(line: Identity, parents: Callable[[], list[str]], **more: Any) -> list[web.RouteDef]:
    return passed_on(parents, lambda: line, **{"urls": [], "clock": lambda: NOW, "proxy": "", **more})


DEAD = "https://127.0.0.1:1"
OTHERS = {
    "away": [DEAD],
    "another service": ["https+sealed://127.0.0.1:1", DEAD],
    "not over HTTPS": ["grpcs://127.0.0.1:1"],
}


@pytest.mark.parametrize("scheme", ["https", "https+sealed"])
@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
def test_an_edge_asks_its_parents_in_turn(tmp_path: Path, others: list[str], scheme: str) -> None:
    async def main() -> None:
        line = member(OURS, "edge", "line", hosts=HOSTS)
        (tmp_path / "ca.pem").write_bytes(OURS.root)
        hub = Hub()
        opened = routes(hub.registrar, urls=[], clock=lambda: NOW, identity=lambda: HUB)
        async with hub.open(HUB, *opened):
            parents = [*others, hub.url.replace("https", scheme)]
            edge, token = Hub(), hub.token()
            async with edge.open(line, *edge_doors(line, lambda: parents, ca=tmp_path / "ca.pem")):
                made = await enrol(edge.url, token, folder=tmp_path / "a", proxy="", now=NOW)
                assert (await renew(edge.url, made, proxy="", now=NOW)).member.serial != made.member.serial
                heard = b"".join(body for _, body in hub.heard)
                assert (token.secret.hex().encode() in heard) == (scheme == "https")
                parents.pop()
                with pytest.raises(Gone, match="no parent of this edge certifies now"):
                    await renew(edge.url, made, proxy="", now=NOW)
                parents.clear()
                with pytest.raises(Gone, match="set `join`"):
                    await renew(edge.url, made, proxy="", now=NOW)

    asyncio.run(main())


def test_a_client_that_reaches_only_an_edge_joins_and_renews_through_it(tmp_path: Path) -> None:
    async def main() -> None:
        line = member(OURS, "edge", "line", hosts=HOSTS)
        async with Hub().open() as hub:
            doors = edge_doors(line, lambda: [hub.url], urls=["https://line.plant:8443"])
            edge = Hub()
            async with edge.open(line, *doors):
                made = await enrol(edge.url, hub.token(), folder=tmp_path, proxy="", now=NOW)
                assert made.member.uri == "spiffe://lagoon/client/bank-a"
                assert made.urls == ("https://line.plant:8443",)
                assert (await renew(edge.url, made, proxy="", now=NOW)).member.serial != made.member.serial
                with pytest.raises(Refused, match="unknown"):
                    await enrol(
                        edge.url, Token(OURS.fingerprint, b"x" * 32), folder=tmp_path, proxy="", now=NOW
                    )
                hub.registrar.revoke("bank-a")
                with pytest.raises(Refused, match="revoked"):
                    await renew(edge.url, made, proxy="", now=NOW)
        async with edge.open(line, *doors):
            with pytest.raises(Gone, match="cannot be reached"):  # the coordinator is away: it may pass
                await renew(edge.url, made, proxy="", now=NOW)

    asyncio.run(main())


def test_an_edge_gives_a_token_to_nobody_but_its_federation(tmp_path: Path) -> None:
    async def main() -> None:
        line = member(OURS, "edge", "line", hosts=HOSTS)
        async with Hub(OURS).open(IMPOSTOR) as thief:
            edge = Hub()
            doors = edge_doors(line, lambda: [thief.url])
            async with edge.open(line, *doors):
                with pytest.raises(Gone, match="did not prove"):
                    await enrol(edge.url, Hub().token(), folder=tmp_path, proxy="", now=NOW)
            assert thief.heard == []

    asyncio.run(main())
