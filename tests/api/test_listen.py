"""The API's socket: TLS 1.3 or loopback, and the SDK's end of it, which trusts by fingerprint alone."""

import socket
import ssl
import threading

import pytest

from atoll.control.desk.listen import Listening
from atoll.control.remote.rest import Rest
from atoll.core.errors import ConfigError, Gone, PrivacyError, Refused, StateError
from atoll.privacy.token import Token
from tests.api.roots import server_pem
from tests.api.serving import context_of, served


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.0.2.1", "hub.example"])  # noqa: S104
def test_no_public_address_without_tls(host: str) -> None:
    with pytest.raises(ConfigError, match="without TLS"):
        Listening(None, host, 0, None)


def test_every_address_is_reached_as_this_machine() -> None:
    listening = Listening(None, "0.0.0.0", 0, context_of(server_pem("reef", "localhost")))  # noqa: S104
    assert listening.url == f"https://localhost:{listening.port}"
    listening._socket.close()


def test_a_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StateError, match=f"cannot listen on 127.0.0.1:{port}"):
            Listening(None, "127.0.0.1", port, None)


def test_over_tls_by_the_fingerprint_alone(hall) -> None:
    with served(hall) as url:
        assert url.startswith("https://")
        rest = Rest(url, Token.parse(hall.token("viewer", "vera")))
        about = rest.get("/v1/federation")
        assert (about["name"], about["caller"], about["role"]) == ("reef", "vera", "viewer")
        assert rest._open.sock.version() == "TLSv1.3"
        rest.close()


def test_nothing_older_than_tls_13_and_nothing_in_the_clear(hall) -> None:
    with served(hall) as url:
        port = int(url.rpartition(":")[2])
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises((ssl.SSLError, OSError)):
            old.wrap_socket(plain)
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"alive" not in plain.recv(1000)


def test_the_bearer_never_reaches_a_server_of_another_federation(hall, halls) -> None:
    other = halls("other")
    heard = []

    async def listening(scope, receive, send):
        heard.append((scope["path"], dict(scope["headers"])))
        await other.guard(scope, receive, send)

    with served(other, app=listening) as url:
        rest = Rest(url, Token.parse(hall.token("admin")))
        with pytest.raises(PrivacyError, match="another fingerprint"):
            rest.get("/v1/runs")
    assert [path for path, _ in heard] == ["/v1/root"]
    assert not any(b"authorization" in head for _, head in heard)


def test_a_server_that_shows_our_root_but_cannot_prove_it(hall, halls) -> None:
    """The root is public: an impostor may send it, and still has no certificate under it."""
    heard = []

    async def impostor(scope, receive, send):
        heard.append(dict(scope["headers"]))
        await hall.guard(scope, receive, send)

    with served(hall, app=impostor, pem=server_pem("impostor", "127.0.0.1")) as url:
        rest = Rest(url, Token.parse(hall.token("admin")))
        with pytest.raises(PrivacyError, match="did not prove"):
            rest.get("/v1/runs")
    assert not any(b"authorization" in head for head in heard)


def test_a_certificate_for_another_host_is_refused(hall) -> None:
    token = Token.parse(hall.token("admin"))
    elsewhere = server_pem("reef", "elsewhere.example")
    with served(hall, pem=elsewhere) as url, pytest.raises(PrivacyError, match="did not prove"):
        Rest(url, token).get("/v1/runs")


def test_http_is_for_loopback_only() -> None:
    token = Token("0" * 64, bytes(32))
    with pytest.raises(ConfigError, match="in the clear"):
        Rest("http://hub.example:8445", token)
    for wrong in ("hub.example", "ftp://hub", "https://", "https://hub/path"):
        with pytest.raises(ConfigError, match="expected a URL"):
            Rest(wrong, token)


def test_who_is_not_there_is_said_after_some_tries(hall) -> None:
    waits = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    token = Token.parse(hall.token("viewer"))
    rest = Rest(f"https://127.0.0.1:{port}", token, sleep=waits.append, jitter=lambda: 0.5)
    with pytest.raises(Gone, match=r"cannot be reached.*atoll doctor"):
        rest.get("/v1/runs")
    assert waits == [0.2, 0.6, 1.8]


def test_a_busy_server_is_asked_again_and_a_change_is_not(hall) -> None:
    times = {"GET": 0, "POST": 0}

    async def busy(scope, receive, send):
        times[scope["method"]] += scope["path"] != "/v1/root"
        if scope["path"] != "/v1/root" and times[scope["method"]] < 3:
            head = [(b"retry-after", b"1"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 503, "headers": head})
            await send({"type": "http.response.body", "body": b""})
        else:
            await hall.guard(scope, receive, send)

    waits = []
    with served(hall, app=busy) as url:
        token = Token.parse(hall.token("admin"))
        rest = Rest(url, token, sleep=waits.append, jitter=lambda: 0.5)
        assert rest.get("/v1/runs") == {"runs": []}
        assert waits == [1.0, 1.0]
        with pytest.raises(Exception, match="503"):
            rest.post("/v1/runs", {"job": {}})
        assert times["POST"] == 1
        rest.close()


def test_an_idle_connection_that_died_is_replaced(hall) -> None:
    with served(hall) as url:
        rest = Rest(url, Token.parse(hall.token("admin")), sleep=lambda _: None)
        rest.get("/v1/runs")
        rest._open.sock.shutdown(socket.SHUT_RDWR)
        assert rest.get("/v1/runs") == {"runs": []}
        rest.post("/v1/prune", {"keep_days": 1})
        rest.close()


def test_errors_come_back_as_their_own_kind(hall) -> None:
    with served(hall) as url:
        rest = Rest(url, Token.parse(hall.token("viewer")))
        with pytest.raises(Refused, match="needs the role operator, and you are viewer"):
            rest.post("/v1/runs", {"job": {}})
        with pytest.raises(ConfigError, match=r"^\$\.rounds"):
            Rest(url, Token.parse(hall.token("operator"))).post(
                "/v1/runs", {"job": {"rounds": 0, "learner": "linear", "data": "x"}}
            )
        rest.close()


def test_a_silent_connection_is_closed(hall, monkeypatch) -> None:
    monkeypatch.setattr("atoll.control.desk.listen.FIRST", 0.05)
    with (
        served(hall, pem=None) as url,
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as s,
    ):
        s.settimeout(20)
        s.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        assert s.recv(100) == b""


def test_many_threads_share_one_client(hall) -> None:
    with served(hall) as url:
        rest = Rest(url, Token.parse(hall.token("viewer")))
        found: list = []
        threads = [threading.Thread(target=lambda: found.append(rest.get("/v1/runs"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [{"runs": []}] * 8
        rest.close()


def test_who_waits_for_news_goes_when_the_server_ends(hall) -> None:
    answers: list = []
    asked, ask = threading.Event(), hall.office.ask

    async def heard(verb, *args, **values):
        found = await ask(verb, *args, **values)
        if verb.__name__ == "events":
            asked.set()
        return found

    hall.office.ask = heard
    with served(hall) as url:
        rest = Rest(url, Token.parse(hall.token("viewer")))
        waiting = threading.Thread(target=lambda: answers.append(rest.get("/v1/events", after=1000, wait=25)))
        waiting.start()
        assert asked.wait(20)
    waiting.join(15)
    assert answers == [{"events": [], "next": 1000}]
    rest.close()


def test_a_certificate_renewed_while_it_serves(hall) -> None:
    pem = server_pem("reef", "127.0.0.1")
    with served(hall, pem=pem) as url:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        before = _serial(url, context)
        served.load(server_pem("reef", "127.0.0.1"))
        assert _serial(url, context) != before


def _serial(url: str, context: ssl.SSLContext) -> bytes:
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    with socket.create_connection(address) as plain, context.wrap_socket(plain) as secure:
        return secure.getpeercert(binary_form=True) or b""
