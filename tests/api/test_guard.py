"""What the guard turns away: strange hosts and origins, floods, large and slow bodies; and what it adds."""

import asyncio
import json

import pytest

from atoll.control.desk.guard import Guard, Limits
from atoll.core.errors import StateError
from atoll.transport.rate import Rate
from tests.api.conftest import JOB


@pytest.mark.parametrize("host", ["evil.example", "", "localhost.evil.example", "127.0.0.2", "[::2]:8443"])
def test_another_hosts_name_is_turned_away(hall, host: str) -> None:
    answer = hall.as_("viewer").get("/v1/runs", headers={"host": host})
    assert answer.status_code == 421
    assert answer.json()["error"]["kind"] == "Refused"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8443", "127.0.0.1:1", "[::1]:8443"])
def test_its_own_names_are_answered(hall, host: str) -> None:
    assert hall.as_("viewer").get("/v1/runs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://localhost.evil.example"])
def test_a_page_of_another_origin_changes_nothing(hall, origin: str) -> None:
    answer = hall.as_("operator").post("/v1/runs", json={"job": JOB}, headers={"origin": origin})
    assert answer.status_code == 403
    assert hall.store.runs() == []
    assert (
        hall.as_("operator")
        .post("/v1/runs", json={"job": JOB}, headers={"origin": "https://localhost"})
        .is_success
    )


def test_every_answer_carries_the_headers(hall) -> None:
    for path in ("/", "/page.js", "/v1/runs", "/nowhere", "/healthz"):
        head = hall.as_("viewer").get(path).headers
        assert "default-src 'none'" in head["content-security-policy"]
        assert "unsafe" not in head["content-security-policy"]
        assert head["x-content-type-options"] == "nosniff"
        assert head["referrer-policy"] == "no-referrer"
        assert head["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in head
        assert "server" not in head


def test_unknown_paths_and_methods(hall) -> None:
    viewer = hall.as_("viewer")
    assert viewer.get("/v1/nothing").status_code == 404
    assert viewer.get("/v1/runs/").status_code == 404
    answer = viewer.request("PUT", "/v1/runs")
    assert answer.status_code == 405
    assert "GET, POST" in answer.json()["error"]["message"]


def test_bodies_are_limited_while_they_come(halls) -> None:
    hall = halls("small", Limits(body=1000))
    operator = hall.as_("operator")
    assert operator.post("/v1/runs", content=b"x" * 1001).status_code == 413
    assert operator.post("/v1/runs", content=b"{}", headers={"content-length": "-1"}).status_code == 413

    async def chunks():
        while True:  # without an end and without a declared length
            yield b"x" * 100

    answer = operator.post("/v1/runs", content=chunks())
    assert answer.status_code == 413
    assert "1000 bytes" in answer.json()["error"]["message"]


def test_a_body_that_never_comes_is_given_up(halls) -> None:
    hall = halls("slow", Limits(seconds=0.01))

    async def never():
        yield b"{"
        await asyncio.Event().wait()

    assert hall.as_("operator").post("/v1/runs", content=never()).status_code == 408


def test_a_caller_who_asks_too_often_waits(halls) -> None:
    hall = halls("often", Limits(calls=lambda: Rate(1.0, 5.0)))
    viewer = hall.as_("viewer")
    codes = [viewer.get("/v1/federation").status_code for _ in range(7)]
    assert codes == [200] * 5 + [429] * 2
    assert viewer.get("/v1/federation").headers["retry-after"] == "2"
    assert hall.as_("admin").get("/v1/federation").status_code == 200  # another caller is another matter
    hall.now += 10
    assert viewer.get("/v1/federation").status_code == 200


def test_guessing_tokens_gets_slow(halls) -> None:
    hall = halls("guess", Limits(failures=lambda: Rate(0.1, 3.0)))
    wrong = hall.as_(token="atoll1.wrong")  # noqa: S106
    assert [wrong.get("/v1/runs").status_code for _ in range(5)] == [401] * 3 + [429] * 2
    assert hall.as_("viewer").get("/v1/runs").status_code == 429  # that address is slow for everybody on it
    hall.now += 60
    assert hall.as_("viewer").get("/v1/runs").status_code == 200


def test_a_flood_of_keys_takes_no_memory() -> None:
    rate = Rate(1.0, 2.0, keys=100)
    for key in range(10_000):
        assert rate.wait(key, 0.0) == 0
    assert len(rate._left) == 100


def test_rates_refill_and_never_beyond_the_burst() -> None:
    rate = Rate(2.0, 4.0)
    assert [rate.wait("k", 0.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert rate.wait("k", 0.5) == 0
    assert [rate.wait("k", 1000.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert rate.wait("k", 0.0) > 0  # a clock that steps back gives nothing away


def test_sockets_that_are_no_requests_are_closed(hall) -> None:
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "websocket.connect"}

    asyncio.run(hall.guard({"type": "websocket"}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_broken_route_tells_nothing_of_itself(hall) -> None:
    path = "/somewhere/inside"

    def broken() -> None:
        raise OSError(path)

    hall.guard.app.get("/v1/broken")(broken)
    guard = Guard(
        hall.guard.app,
        hall.guard.routes,
        hall.guard.who,
        hall.guard.hosts,
        hall.guard.clock,
        {("GET", "/v1/broken"): "viewer"},
    )
    hall.guard = guard
    answer = hall.as_("viewer").get("/v1/broken")
    assert answer.status_code == 500
    assert path not in answer.text
    assert json.loads(answer.text)["error"]["kind"] == "AtollError"


def test_a_store_out_of_reach_is_503_before_anybody_is_known(hall, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = hall.as_("viewer")

    def away(*_args: object) -> None:
        raise StateError("the store's database cannot be reached (gone); it goes on by itself")

    monkeypatch.setattr(hall.store, "rows", away)
    answer = viewer.get("/v1/runs")
    assert answer.status_code == 503
    assert answer.json()["error"]["kind"] == "StateError"
    assert "cannot be reached" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1
