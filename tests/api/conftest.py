"""A federation's store with an office over it, and its API in this process: no socket, no engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from atoll.control.desk.admin import new_token
from atoll.control.desk.api import guarded
from atoll.control.desk.guard import Guard, Limits
from atoll.control.desk.office import Office
from atoll.control.store import Store
from tests.api.roots import root_of
from tests.store.fresh import opened

JOB = {
    "name": "heart",
    "rounds": 3,
    "data": "heart",
    "learner": {"name": "logistic", "lr": 0.5},
    "algorithm": {"name": "fedprox", "mu": 0.01},
}


class Client:
    """Requests as one caller, from a thread of their own to the application's event loop."""

    def __init__(self, hall: Hall, bearer: str) -> None:
        head = {"authorization": f"Bearer {bearer}"} if bearer else {}
        way = httpx.ASGITransport(hall.guard, raise_app_exceptions=False)
        self._loop = hall.loop
        self._client = httpx.AsyncClient(transport=way, base_url="http://localhost", headers=head)

    def begin(self, method: str, path: str, **values: Any) -> Any:
        """A request under way; `result()` is its answer."""
        return asyncio.run_coroutine_threadsafe(self._client.request(method, path, **values), self._loop)

    def request(self, method: str, path: str, **values: Any) -> httpx.Response:
        return self.begin(method, path, **values).result(30)

    def get(self, path: str, **values: Any) -> httpx.Response:
        return self.request("GET", path, **values)

    def post(self, path: str, **values: Any) -> httpx.Response:
        return self.request("POST", path, **values)

    def delete(self, path: str) -> httpx.Response:
        return self.request("DELETE", path)


@dataclass
class Hall:
    """The API of one federation: `as_("viewer")` is a client with such a token, `as_("")` has none."""

    store: Store
    office: Office
    guard: Guard
    cuts: list[tuple[str, str]] = field(default_factory=list)
    live: dict[str, dict[str, Any]] = field(default_factory=dict)
    now: float = 1000.0
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _tokens: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def token(self, role: str, name: str = "") -> str:
        made = new_token(self.store, self.office, role, name or f"the-{role}", 24.0, "test")
        return str(made["token"])

    def as_(self, role: str = "", token: str = "") -> Client:
        if role and role not in self._tokens:
            self._tokens[role] = self.token(role)
        return Client(self, token or self._tokens.get(role, ""))

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(_settled(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self.store.close()


async def _settled() -> None:
    """Let transports that are closing close."""
    for _ in range(20):
        await asyncio.sleep(0)


def hall_at(folder: Path, limits: Limits | None = None, name: str = "reef") -> Hall:
    store = opened(folder)
    root, _ = root_of(name)
    office = Office(store, name, root, folder)
    hall = Hall(store, office, guarded(office, limits or Limits(), clock=lambda: hall.now))
    office.cut = lambda who, why: hall.cuts.append((who, why))
    office.live = lambda: hall.live
    return hall


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    made = hall_at(tmp_path / "reef")
    yield made
    made.close()


@pytest.fixture
def halls(tmp_path: Path) -> Iterator[Callable[..., Hall]]:
    made: list[Hall] = []

    def another(name: str = "lagoon", limits: Limits | None = None) -> Hall:
        made.append(hall_at(tmp_path / name, limits, name))
        return made[-1]

    yield another
    for one in made:
        one.close()


def finished(
    store: Store, rounds: int = 3, state: str = "done", reason: str = "", job: dict[str, Any] = JOB
) -> str:
    """A run that has been through its rounds."""
    run = store.submit(job, 7, "ann", name="heart")
    store.move(run, "running", frm=("queued",))
    journal = store.journal(run)
    for number in range(rounds + 1):
        journal.note(number, record(number))
    store.move(run, state, frm=("running",), reason=reason)
    return run


def record(number: int) -> dict[str, Any]:
    sites = {
        str(k): {"accuracy": 0.5 + 0.1 * number - 0.01 * k, "loss": 0.7 - 0.1 * number} for k in range(3)
    }
    found = {"round": number, "metrics": {"accuracy": 0.5 + 0.1 * number, "loss": 0.7}, "sites": sites}
    if not number:
        return found
    more = {"seconds": 0.2, "cohort": 3, "clients": 2, "up": 200, "down": 300, "failed": {"1": "Gone: left"}}
    return {**found, **more}
