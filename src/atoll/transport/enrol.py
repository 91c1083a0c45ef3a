"""How a member joins and stays: enrolment by a one-time token, renewal before its certificate ends.

    GET  /v1/root                     the pinned root, PEM; over TLS that proves nothing yet
    POST /v1/enrol {secret, csr}      over TLS that leads to that root ──► {chain, urls}
                                      through others' hands, the secret under seal: letterbox.py
    POST /v1/renew {csr, chain}       the same key asks again          ──► {chain, urls}

The token's secret (hexadecimal) leaves only after the server has proved itself by the root whose
fingerprint the token holds. The private key never leaves. It is written before it is used, so a try
whose answer was lost is repeated with the same key, which the server answers again. entry.py serves this.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import aiohttp

from ..core.errors import ConfigError, Gone, PrivacyError, ProtocolError, Refused, StateError
from ..privacy.keys import (
    Identity,
    PrivateKey,
    chain_member,
    fingerprint,
    hosts_of,
    key_pem,
    load_key,
    new_key,
    request,
)
from ..privacy.private import write_private
from ..privacy.token import Token
from .address import find_proxy
from .letterbox import sealed
from .tls import client_context

LONGEST = 256 * 1024  # bytes of an answer
SECONDS = 60.0  # for one request
_PENDING = "enrol.key.pem"  # the key of an enrolment whose answer has not come


async def enrol(
    url: str,
    token: Token,
    *,
    folder: Path,
    role: str = "",
    name: str = "",
    hosts: Sequence[str] = (),
    proxy: str | None = None,
    ca: Path | None = None,
    user: tuple[str, str] | None = None,
    now: float,
) -> Identity:
    """Join by a token; the identity, saved in `folder`. Its role and name are those the token was made for.

    `role`, `name`: what is expected, "" for anything. `hosts`: where others will dial an edge.
    `proxy`: http://user:password@host:port; None for the environment's, "" for none. Behind a proxy that
    ends TLS or a broker (…+sealed:// URLs) `ca` vouches for it and `user` is who we are there. Raises
    PrivacyError for a server that is not the token's federation (nothing was sent), Refused with
    its reason, Gone where it cannot be reached, ProtocolError for nonsense; all but Gone for good.
    """
    through = url.partition("://")[0].endswith("+sealed")
    async with _caller(url, user[0] if user and user[0] else name or "new", proxy, ca, user) as caller:
        root = await caller.get("/v1/root", _between(ca) if through else _unverified())
        try:
            same = fingerprint(root) == token.fingerprint
        except ProtocolError:
            same = False
        if not same:
            raise PrivacyError(
                f"{caller.url} is not the federation this token was made for: its root is another one. "
                "Nothing was sent. Check the URL, or ask for a token of this federation"
            )
        key = _pending(folder)
        csr = request(key, "any", role or "client", name or "any", hosts)  # the names are the token's
        context = _between(ca) if through else client_context(root)
        body = {"secret": token.secret.hex(), "csr": csr.decode()}
        if through:
            body = await _under_seal(caller, body, root, context, now)
        answer = await caller.post("/v1/enrol", body, context)
    chain, urls = certified(answer)
    try:
        made = Identity(key, chain, root, urls or (caller.url,))
        member = chain_member(chain, root, now=now)
    except StateError as error:
        raise ProtocolError(f"{caller.url} answered with a certificate that does not fit: {error}") from None
    if (role or member.role, name or member.name) != (member.role, member.name):
        raise Refused(
            f"this token is for {member.role} {member.name}, and here is {role} {name}: use that one's own"
            " token, or leave the name out of the settings"
        )
    saved = made.save(folder)
    (folder / _PENDING).unlink(missing_ok=True)
    return saved


async def renew(
    url: str,
    identity: Identity,
    *,
    proxy: str | None = None,
    ca: Path | None = None,
    user: tuple[str, str] | None = None,
    now: float,
) -> Identity:
    """The same identity with a new certificate, saved where it was; `url`, `proxy` and errors as in `enrol`.

    The new certificate is for the same key, so an answer that is lost costs nothing. Behind a proxy that
    ends TLS or a broker (…+sealed:// URLs) `ca` vouches for it and `user` is who we are there, as for the
    link; what we send is signed by our key and not secret, and the answer must chain to our root.
    """
    me = identity.member
    csr = request(identity.key, me.federation, me.role, me.name, hosts_of(identity.chain))
    through = url.partition("://")[0].endswith("+sealed")
    context = _between(ca) if through else client_context(identity.roots)
    async with _caller(url, me.name, proxy, ca, user) as caller:
        body = {"csr": csr.decode(), "chain": identity.chain.decode()}
        answer = await caller.post("/v1/renew", body, context)
    chain, _ = certified(answer)
    chain_member(chain, identity.roots, now=now, federation=me.federation)
    try:
        return identity.renewed(chain)
    except StateError as error:
        raise ProtocolError(f"{caller.url} answered with a certificate that does not fit: {error}") from None


async def passed(
    url: str,
    path: str,
    body: Mapping[str, str],
    identity: Identity,
    *,
    proxy: str | None = None,
    ca: Path | None = None,
    user: tuple[str, str] | None = None,
    now: float,
) -> bytes:
    """The chain that `url` answers to what a child of `identity` asks there; the rest is as in `renew`."""
    through = url.partition("://")[0].endswith("+sealed")
    context = _between(ca) if through else client_context(identity.roots)
    async with _caller(url, identity.member.name, proxy, ca, user) as caller:
        if through and "secret" in body:
            body = await _under_seal(caller, body, identity.roots, context, now)
        return certified(await caller.post(path, body, context))[0]


async def _under_seal(
    caller: Calls, body: Mapping[str, str], root: bytes, context: ssl.SSLContext, now: float
) -> dict[str, str]:
    """The body of an enrolment, its secret for nobody on the way."""
    try:
        secret = bytes.fromhex(body["secret"])
    except ValueError:
        raise ProtocolError("the secret is 64 hexadecimal digits") from None
    nonce = secrets.token_hex(16)
    shown = await caller.post("/v1/enrol/key", {"nonce": nonce}, context)
    return sealed(shown, nonce, root, secret, body["csr"].encode(), now=now)


def _caller(
    url: str, name: str, proxy: str | None, ca: Path | None, user: tuple[str, str] | None
) -> AbstractAsyncContextManager[Calls]:
    """What brings requests to `url`; `name`: whose topics are used at a broker."""
    if url.startswith("mqtt"):
        from .mqtt_link import Asker

        return Asker(url, name, user, ca)
    scheme, _, rest = url.partition("://")
    return Caller(f"https://{rest}" if scheme.endswith("+sealed") else url, proxy)


def _between(ca: Path | None) -> ssl.SSLContext:
    """To a proxy that ends TLS: whom it answers for is proved by other means."""
    return ssl.create_default_context(cafile=ca)


def _pending(folder: Path) -> PrivateKey:
    """The key of this enrolment, on disk: of an earlier try, or a new one."""
    path = folder / _PENDING
    try:
        return load_key(path.read_bytes())
    except (OSError, StateError):
        key = new_key()
        write_private(path, key_pem(key))
        return key


def certified(answer: Mapping[str, Any]) -> tuple[bytes, tuple[str, ...]]:
    """(chain, urls) of an answer. Raises ProtocolError."""
    chain, urls = answer.get("chain"), answer.get("urls", [])
    if not isinstance(chain, str) or not isinstance(urls, list) or not all(isinstance(u, str) for u in urls):
        raise ProtocolError("expected {chain, urls} from the server: is it another service's address?")
    return chain.encode(), tuple(urls)


def _unverified() -> ssl.SSLContext:
    """For the root alone, which the token's fingerprint then verifies."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Calls(Protocol):
    """Requests to one server; `url`: it, for people. Raises what `enrol` does."""

    url: str

    async def get(self, path: str, context: ssl.SSLContext) -> bytes:
        """The body of an answer 200."""

    async def post(self, path: str, body: Mapping[str, str], context: ssl.SSLContext) -> dict[str, Any]:
        """The JSON object of an answer 200."""


class Caller:
    """Requests to one server, each over a connection of its own; errors in our words, without passwords.

    As a context; `url`: what is called, without a path. Raises what `enrol` does.
    """

    def __init__(self, url: str, proxy: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ConfigError(
                f"enrolment goes over HTTPS: write https://host:port, not {parts.scheme or url!r}"
            )
        self.url = f"https://{parts.hostname if ':' not in parts.hostname else f'[{parts.hostname}]'}"
        self.url += f":{parts.port}" if parts.port else ""
        self._proxy, self._shown = find_proxy(parts.hostname, proxy)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=SECONDS),
            connector=aiohttp.TCPConnector(force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str, context: ssl.SSLContext) -> bytes:
        """The body of an answer 200."""
        return await self._call("GET", path, context, None)

    async def post(self, path: str, body: Mapping[str, str], context: ssl.SSLContext) -> dict[str, Any]:
        """The JSON object of an answer 200."""
        answer = _plain(await self._call("POST", path, context, body))
        if answer is None:
            raise ProtocolError(f"{self.url} did not answer with JSON: is it another service's address?")
        return answer

    async def _call(
        self, method: str, path: str, context: ssl.SSLContext, body: Mapping[str, str] | None
    ) -> bytes:
        try:
            async with self._session.request(
                method,
                self.url + path,
                json=body,
                ssl=context,
                proxy=self._proxy,
                proxy_headers=self._shown,
                allow_redirects=False,
            ) as answer:
                data = await _short(answer, self.url)
                status = answer.status
        except (ssl.SSLCertVerificationError, aiohttp.ClientConnectorCertificateError) as error:
            raise PrivacyError(
                f"{self.url} did not prove that it is the federation's: {_why(error)}. Nothing was sent. Its "
                "certificate must name this host (`names` in its settings) and this clock must be right"
            ) from None
        except aiohttp.ClientHttpProxyError as error:
            hint = ": write http://user:password@host:port" if error.status == 407 else ""
            raise Gone(f"the proxy {self._proxy} answered {error.status}{hint}") from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            through = f" through the proxy {self._proxy}" if self._proxy else ""
            raise Gone(f"{self.url} cannot be reached{through}: {_why(error)}") from None
        if status == 200:
            return data
        if status == 404:
            raise ProtocolError(f"{self.url} is no parent of members: is it another service's address?")
        reason = str((_plain(data) or {}).get("error", f"status {status}"))[:1000]
        if status >= 500 or status == 429:
            raise Gone(f"{self.url}: {reason}")
        raise (Refused if status == 403 else ProtocolError)(f"{self.url} refused: {reason}")


def _why(error: BaseException) -> str:
    """The library's error without its objects."""
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(inner, ssl.SSLError):
        return str(getattr(inner, "verify_message", "") or inner.reason or inner)
    if isinstance(inner, OSError) and not isinstance(inner, socket.gaierror) and inner.errno:
        return os.strerror(inner.errno)
    return str(inner) or type(inner).__name__


async def _short(answer: aiohttp.ClientResponse, url: str) -> bytes:
    data = bytearray()
    async for piece in answer.content.iter_chunked(1 << 16):
        data += piece
        if len(data) > LONGEST:
            raise ProtocolError(f"{url} answered with more than {LONGEST} bytes: is it another service?")
    return bytes(data)


def _plain(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
