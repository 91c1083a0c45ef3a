"""TLS 1.3 only, both ways, over gRPC and Python's own: who gets in, who does not, renewal while running."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from cryptography import x509

from atoll.core.errors import MisuseError, ProtocolError, StateError
from atoll.privacy import authority
from atoll.privacy.keys import Authority, Current, Identity, member_of
from atoll.transport import tls
from tests.wire.pki import DAY, NOW, member, renew

HOSTS = ("localhost", "127.0.0.1")
OURS = Authority.new("lagoon", now=NOW - 30 * DAY)
OTHER = Authority.new("lagoon", now=NOW - 30 * DAY)
HUB = member(OURS, "coordinator", "hub", hosts=HOSTS)
BANK = member(OURS, "client", "bank")
PREFACE = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"  # and empty settings: an HTTP/2 server answers
)
SECONDS = 20
BARE = {k: v for k, v in os.environ.items() if k != "GRPC_SSL_CIPHER_SUITES"}


# Two servers that answer whoever gets in ------------------------------------------------------


class Echo(grpc.GenericRpcHandler):
    """Sends back what comes, one by one, and keeps who it was."""

    def __init__(self) -> None:
        self.auth: list[dict[str, list[bytes]]] = []

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        def each(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            self.auth.append(dict(context.auth_context()))
            yield from requests

        return grpc.stream_stream_rpc_method_handler(each)


@contextmanager
def grpc_server(source: tls.Source, echo: Echo | None = None) -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((echo or Echo(),))
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_server_credentials(source))
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


@contextmanager
def python_server(source: tls.Source, clients: tls.Clients = "required") -> Iterator[int]:
    context = tls.server_context(source, clients)
    with serving(lambda raw: context.wrap_socket(raw, server_side=True)) as port:
        yield port


@contextmanager
def serving(wrap: Callable[[socket.socket], socket.socket]) -> Iterator[int]:
    """Echo on every connection that `wrap` lets through, each in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def one(raw: socket.socket) -> None:
        raw.settimeout(SECONDS)
        with raw:
            try:
                with wrap(raw) as connection:
                    while data := connection.recv(1000):
                        connection.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=one, args=(raw,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in [accepting, *threads]:
            thread.join()


SERVERS = pytest.mark.parametrize("server", [grpc_server, python_server])


def raw_context(
    identity: Identity | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    """A stranger's client: any certificate, any version, no scruples about the server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    if identity is not None:
        assert identity.folder is not None
        context.load_cert_chain(identity.folder / "cert.pem", identity.folder / "key.pem")
    return context


@contextmanager
def dialled(
    port: int, context: ssl.SSLContext, host: str = "localhost", **more: Any
) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", port), SECONDS) as raw,
        context.wrap_socket(raw, server_hostname=host, **more) as connection,
    ):
        yield connection


def gets_in(port: int, context: ssl.SSLContext, **more: Any) -> bool:
    """Whether the server answers: with TLS 1.3 a client learns only then that it was refused."""
    try:
        with dialled(port, context, **more) as connection:
            connection.sendall(PREFACE)
            return bool(connection.recv(1))
    except (ssl.SSLError, ConnectionError):
        return False


def presented(port: int) -> int:
    """The serial number of the certificate the server shows now."""
    with dialled(port, raw_context(BANK)) as connection:
        return member_of(connection.getpeercert(binary_form=True) or b"").serial


# Who gets into a server -----------------------------------------------------------------------


@SERVERS
def test_a_member_gets_in(server) -> None:
    with server(HUB) as port:
        assert gets_in(port, tls.client_context(OURS.root, BANK, ["h2"]))
        assert gets_in(port, raw_context(BANK))  # control: what a stranger would send is well-formed


@SERVERS
@pytest.mark.parametrize(
    "who",
    [
        None,
        member(OTHER, "client", "bank"),
        member(OURS, "client", "bank", now=NOW - 2 * DAY),
        member(OURS, "client", "bank", now=NOW + 2 * DAY),
    ],
    ids=["no certificate", "another authority", "expired", "of tomorrow"],
)
def test_strangers_do_not(server, who: Identity | None) -> None:
    with server(HUB) as port:
        assert not gets_in(port, raw_context(who))


@SERVERS
def test_tls_1_2_is_refused(server) -> None:
    with server(HUB) as port:
        assert not gets_in(port, raw_context(BANK, ssl.TLSVersion.TLSv1_2))


def test_control_a_server_of_another_make_speaks_tls_1_2() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(HUB.folder / "cert.pem", HUB.folder / "key.pem")
    with serving(lambda raw: context.wrap_socket(raw, server_side=True)) as port:
        assert gets_in(port, raw_context(BANK, ssl.TLSVersion.TLSv1_2))


def test_control_grpc_alone_speaks_tls_1_2() -> None:
    """The defence is the suites: the same server in a process of its own, without them."""
    code = """
import sys, grpc
from concurrent import futures
key, chain, root = (open(p, "rb").read() for p in sys.argv[1:4])
server = grpc.server(futures.ThreadPoolExecutor(1))
made = grpc.ssl_server_credentials([(key, chain)], root, True)
print(server.add_secure_port("127.0.0.1:0", made), flush=True)
server.start()
sys.stdin.read()
"""
    files = [str(HUB.folder / name) for name in ("key.pem", "cert.pem", "root.pem")]
    child = subprocess.Popen(
        [sys.executable, "-c", code, *files],
        env=BARE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with child:
        port = int(child.stdout.readline())
        assert gets_in(port, raw_context(BANK, ssl.TLSVersion.TLSv1_2))
        child.stdin.close()


def test_grpc_that_came_first_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import grpc\nfrom atoll.transport import tls\nprint(tls._GRPC_WAS_FIRST)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=BARE)
    assert done.stdout.strip() == "True"
    monkeypatch.setattr(tls, "_GRPC_WAS_FIRST", True)
    with pytest.raises(StateError, match="imported before atoll"):
        tls.grpc_server_credentials(HUB)
    with pytest.raises(StateError, match="imported before atoll"):
        tls.grpc_channel_credentials(BANK)


@SERVERS
def test_plain_text_is_refused(server) -> None:
    with server(HUB) as port, socket.create_connection(("127.0.0.1", port), SECONDS) as plain:
        plain.sendall(PREFACE)
        try:
            answer = plain.recv(1000)
        except ConnectionError:
            answer = b""
        assert b"PRI" not in answer and not answer.startswith(b"\0\0")  # at most a TLS alert


def test_clients_that_may_come_without_a_certificate() -> None:
    with python_server(HUB, "optional") as port:
        assert gets_in(port, raw_context(None))
        assert gets_in(port, raw_context(BANK))
        assert not gets_in(port, raw_context(member(OTHER, "client", "bank")))


# Which server a client accepts ----------------------------------------------------------------

IMPOSTORS = {
    "another authority": lambda: member(OTHER, "coordinator", "hub", hosts=HOSTS, roots=OURS.root),
    "expired": lambda: member(OURS, "coordinator", "hub", hosts=HOSTS, now=NOW - 2 * DAY),
    "another host": lambda: member(OURS, "coordinator", "hub", hosts=["hub.example", "10.0.0.1"]),
    "no host": lambda: member(OURS, "edge", "line"),
}
KINDS = pytest.mark.parametrize("impostor", IMPOSTORS)


def says_hello(port: int, host: str, identity: Identity = BANK) -> bool:
    with grpc.secure_channel(f"{host}:{port}", tls.grpc_channel_credentials(identity)) as channel:
        try:
            return list(channel.stream_stream("/e/e")(iter([b"hi"]), timeout=SECONDS)) == [b"hi"]
        except grpc.RpcError:
            return False


@SERVERS
@pytest.mark.parametrize("host", HOSTS)
def test_a_client_accepts_the_server_it_dialled(server, host: str) -> None:
    with server(HUB) as port:
        assert gets_in(port, tls.client_context(OURS.root, BANK, ["h2"]), host=host)
        if server is grpc_server:
            assert says_hello(port, host)


@KINDS
@SERVERS
def test_a_client_refuses_impostors(server, impostor: str) -> None:
    with server(IMPOSTORS[impostor]()) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            dialled(port, tls.client_context(OURS.root, BANK, ["h2"])).__enter__()
        if server is grpc_server:
            assert not says_hello(port, "localhost")


def test_a_clients_certificate_cannot_serve() -> None:
    """Stolen, and even with the right host in it, as our authority never signs: its use says client."""
    with pytest.MonkeyPatch.context() as patch:
        names = [x509.UniformResourceIdentifier("spiffe://lagoon/client/bank"), x509.DNSName("localhost")]
        patch.setattr(authority, "alternative_names", lambda *_: x509.SubjectAlternativeName(names))
        stolen = member(OURS, "client", "bank")
    with grpc_server(stolen) as port:
        with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
            dialled(port, tls.client_context(OURS.root, BANK, ["h2"])).__enter__()
        assert not says_hello(port, "localhost")


def test_a_client_refuses_a_server_that_speaks_tls_1_2_only() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(HUB.folder / "cert.pem", HUB.folder / "key.pem")
    seen: list[str | None] = []

    def wrap(raw: socket.socket) -> ssl.SSLSocket:
        connection = context.wrap_socket(raw, server_side=True)
        seen.append(connection.version())
        return connection

    with serving(wrap) as port:
        with pytest.raises(ssl.SSLError, match=r"(?i)version"):
            dialled(port, tls.client_context(OURS.root, BANK, ["h2"])).__enter__()
        assert not says_hello(port, "localhost")
        assert seen == []
        assert gets_in(port, raw_context(BANK, ssl.TLSVersion.TLSv1_2)) and seen == ["TLSv1.2"]  # control


def test_a_client_sends_nothing_over_plain_text() -> None:
    got: list[bytes] = []

    def plain(raw: socket.socket) -> socket.socket:
        got.append(raw.recv(1000))
        raw.close()
        raise OSError

    with serving(plain) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            dialled(port, tls.client_context(OURS.root, BANK)).__enter__()
        assert not says_hello(port, "localhost")
    assert got and all(data[:1] == b"\x16" for data in got)  # a TLS greeting and no more


# Whom a call comes from -----------------------------------------------------------------------


def test_a_call_names_its_member() -> None:
    echo = Echo()
    with grpc_server(HUB, echo) as port:
        assert says_hello(port, "localhost")
    assert tls.grpc_member(echo.auth[0], federation="lagoon", now=NOW) == BANK.member
    with pytest.raises(ProtocolError, match="of federation lagoon, and this is reef"):
        tls.grpc_member(echo.auth[0], federation="reef", now=NOW)
    with pytest.raises(ProtocolError, match="has ended"):
        tls.grpc_member(echo.auth[0], federation="lagoon", now=NOW + 2 * DAY)


@pytest.mark.parametrize("auth", [{}, {"transport_security_type": [b"ssl"]}, {"x509_pem_cert": [b"x"]}])
def test_a_call_without_a_certificate_names_nobody(auth: dict[str, list[bytes]]) -> None:
    with pytest.raises(ProtocolError, match="no certificate"):
        tls.grpc_member(auth, federation="lagoon", now=NOW)


def test_an_https_connection_names_its_member() -> None:
    context = tls.server_context(HUB, "optional")
    seen: list[Any] = []

    def wrap(raw: socket.socket) -> ssl.SSLSocket:
        connection = context.wrap_socket(raw, server_side=True)
        seen.append(tls.https_member(connection, federation="lagoon", now=NOW))
        return connection

    with serving(wrap) as port:
        assert gets_in(port, raw_context(BANK))
        assert gets_in(port, raw_context(None))
    assert seen == [BANK.member, None]
    assert tls.https_member(None, federation="lagoon", now=NOW) is None


def test_a_resumed_session_does_not_outlive_its_certificate() -> None:
    """gRPC lets a TLS session be resumed for two days without a look at the certificate: each call looks."""
    echo = Echo()
    with grpc_server(HUB, echo) as port:
        context = raw_context(BANK)
        with dialled(port, context) as connection:
            connection.sendall(PREFACE)
            assert connection.recv(1000)
            session = connection.session
        with dialled(port, context, session=session) as connection:
            assert connection.session_reused  # control: the handshake lets it pass
        assert says_hello(port, "localhost")
    with pytest.raises(ProtocolError, match="has ended"):
        tls.grpc_member(echo.auth[0], federation="lagoon", now=BANK.member.until + 1)


def test_our_https_server_resumes_no_session() -> None:
    with python_server(HUB) as port:
        context = raw_context(BANK)
        with dialled(port, context) as connection:
            connection.sendall(b"hi")
            assert connection.recv(2) == b"hi"
            assert not connection.session.has_ticket


# Renewal while running ------------------------------------------------------------------------


def test_grpc_takes_a_renewed_certificate_and_keeps_its_streams() -> None:
    hub = member(OURS, "coordinator", "hub", hosts=HOSTS, now=NOW - 3600)
    with ExitStack() as stack:
        port = stack.enter_context(grpc_server(Current(hub.folder)))
        channel = stack.enter_context(
            grpc.secure_channel(f"localhost:{port}", tls.grpc_channel_credentials(BANK))
        )
        said, letters = threading.Event(), iter([b"one"])

        def requests() -> Iterator[bytes]:
            yield from letters
            assert said.wait(SECONDS)
            yield b"two"

        stream = channel.stream_stream("/e/e")(requests(), timeout=3 * SECONDS)
        assert next(stream) == b"one"
        assert presented(port) == hub.member.serial
        fresh = renew(OURS, hub, now=NOW, hosts=HOSTS)
        assert presented(port) == fresh.member.serial != hub.member.serial
        assert says_hello(port, "localhost")
        said.set()
        assert next(stream) == b"two"


def test_https_takes_a_renewed_certificate_and_keeps_its_connections() -> None:
    hub = member(OURS, "coordinator", "hub", hosts=HOSTS, now=NOW - 3600)
    with python_server(Current(hub.folder)) as port, dialled(port, raw_context(BANK)) as connection:
        assert presented(port) == hub.member.serial
        fresh = renew(OURS, hub, now=NOW, hosts=HOSTS)
        assert presented(port) == fresh.member.serial != hub.member.serial
        assert gets_in(port, tls.client_context(OURS.root, BANK))
        assert not gets_in(port, raw_context(None))  # the new context asks as the old one did
        assert not gets_in(port, raw_context(BANK, ssl.TLSVersion.TLSv1_2))
        connection.sendall(b"still here")
        assert connection.recv(100) == b"still here"


def test_an_identity_that_was_not_saved_is_told() -> None:
    loose = Identity(BANK.key, BANK.chain, BANK.roots)
    with pytest.raises(MisuseError, match="save the identity first"):
        tls.client_context(OURS.root, loose)
    with pytest.raises(StateError, match="cannot be used for TLS"):
        tls.client_context(b"no root")
