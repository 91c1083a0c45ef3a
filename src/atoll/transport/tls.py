"""TLS between members: version 1.3 only, both sides certified by the federation's pinned root.

Renewal reaches a running server at the next handshake: give it `keys.Current`, not an Identity. Open
streams go on. A client makes its context or credentials anew for each connection, from what it has then.

TLS proves that a certificate leads to the root. Whom it names, whether that is a member of *this*
federation and whether it is still good are asked of each call by `grpc_member` and `https_member`: a
session that is resumed, or older than its certificate, has passed the handshake and must not pass here.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..core.errors import MisuseError, ProtocolError, StateError
from ..privacy.keys import Identity, Member, key_pem, member_of
from . import _GRPC_WAS_FIRST
from .knock import Handshake

if TYPE_CHECKING:
    import grpc

Source: TypeAlias = Identity | Callable[[], Identity]
Clients: TypeAlias = Literal["required", "optional", "none"]
_MODES = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


def server_context(source: Source, clients: Clients = "required", alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """What a server listens with. `clients`: whether they show certificates; one that is shown is checked.

    `alpn`: protocols, preferred first. Raises StateError where the identity's files cannot be loaded.
    """
    current = _function(source)
    loaded = current()
    context = inner = _server(loaded, clients, alpn)

    def renewed(connection: ssl.SSLObject | ssl.SSLSocket, name: str, _: ssl.SSLContext) -> None:
        nonlocal loaded, inner
        if (now := current()) is not loaded:
            try:
                loaded, inner = now, _server(now, clients, alpn)
            except StateError:  # the old certificate is good for half of its life yet
                return
        connection.context = inner

    # OpenSSL calls it in every handshake, whether the client named a host or not.
    context.sni_callback = renewed
    context.sslobject_class = Handshake
    return context


def client_context(
    roots: bytes, identity: Identity | None = None, alpn: Sequence[str] = ()
) -> ssl.SSLContext:
    """What a client dials with: the server must name the host dialled and lead to one of `roots` (PEM)."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, roots, identity, alpn)


def grpc_server_credentials(source: Source) -> grpc.ServerCredentials:
    """Mutual TLS for a gRPC server; renewed certificates are used from the next handshake on."""
    _only_13()
    import grpc

    current = _function(source)
    loaded = current()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal loaded
        if (now := current()) is loaded:
            return None  # as before
        loaded = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(loaded), renewed, require_client_authentication=True
    )


def grpc_channel_credentials(identity: Identity) -> grpc.ChannelCredentials:
    """Mutual TLS for a gRPC channel. A channel keeps them: after a renewal, dial with a new channel."""
    _only_13()
    import grpc

    return grpc.ssl_channel_credentials(identity.roots, key_pem(identity.key), identity.chain)


def grpc_member(auth: Mapping[str, Sequence[bytes]], *, federation: str, now: float) -> Member:
    """Who makes a call, from `context.auth_context()`. Raises ProtocolError."""
    certificates = auth.get("x509_pem_cert", ())
    if auth.get("transport_security_type") != [b"ssl"] or len(certificates) != 1:
        raise ProtocolError("the caller showed no certificate: enrol with a token first")
    return _good(certificates[0], federation, now)


def https_member(
    connection: ssl.SSLObject | ssl.SSLSocket | None, *, federation: str, now: float
) -> Member | None:
    """Who is at the other end, None where it showed no certificate. Raises ProtocolError.

    `connection`: in aiohttp `request.transport.get_extra_info("ssl_object")`; None: there is no TLS.
    """
    certificate = connection.getpeercert(binary_form=True) if connection is not None else None
    return _good(certificate, federation, now) if certificate else None


_known = lru_cache(1024)(member_of)  # each call of a member shows the same certificate


def _good(certificate: bytes, federation: str, now: float) -> Member:
    member = _known(certificate, federation)
    if now > member.until:
        raise ProtocolError(f"the certificate of {member.uri} has ended: renew it or enrol again")
    return member


def _only_13() -> None:
    if _GRPC_WAS_FIRST:
        raise StateError(
            "grpc was imported before atoll could forbid TLS 1.2: import atoll.transport first, or set "
            "GRPC_SSL_CIPHER_SUITES=ECDHE-PSK-AES128-CBC-SHA before Python starts"
        )


def _function(source: Source) -> Callable[[], Identity]:
    return (lambda: source) if isinstance(source, Identity) else source


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    import grpc

    pair = (key_pem(identity.key), identity.chain)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=identity.roots)


def _server(identity: Identity, clients: Clients, alpn: Sequence[str]) -> ssl.SSLContext:
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity.roots, identity, alpn)
    context.verify_mode = _MODES[clients]
    context.num_tickets = 0  # a resumed session would not show its certificate again
    return context


def _context(kind: Any, roots: bytes, identity: Identity | None, alpn: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if alpn:
        context.set_alpn_protocols(list(alpn))
    try:
        context.load_verify_locations(cadata=roots.decode("ascii"))
        if identity is not None:
            if identity.folder is None:
                raise MisuseError("TLS reads the key from a file: save the identity first")
            context.load_cert_chain(identity.folder / "cert.pem", identity.folder / "key.pem", password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise StateError(f"the identity cannot be used for TLS: {error}") from None
    return context
