"""What a coordinator keeps of its members' watches, and when it starts the run that some of them ask for."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from atoll.control.engine import watched
from atoll.control.engine.coordinator import Coordinator
from atoll.control.engine.errands import Errands
from atoll.control.settings import Rerun, Server
from atoll.control.store.store import Store
from tests.store.fresh import opened

JOB = """
name = "line"
data = "line"
rounds = 3
learner = { name = "linear", lr = 0.05 }
algorithm = "fedavg"
cohort = "everyone"
"""


def event(number: int, kind: str = "raised", **more: Any) -> dict[str, Any]:
    return {"number": number, "kind": kind, "what": "error", "score": 0.3, "figures": {"rows": 80.0}, **more}


def letter(asked: int = 0, *events: dict[str, Any], **more: Any) -> dict[str, Any]:
    model = {"name": "line", "version": 1, "own": 0}
    said = {"source": "press", "model": model, "raised": ["error"], "score": 0.3, "asked": asked}
    return {**said, "events": list(events), **more}


@pytest.mark.parametrize(
    "broken",
    [
        {"model": 3},
        {"model": {"name": "line", "version": -1, "own": 0}},
        {"asked": "soon"},
        {"score": float("nan")},
        {"events": {}},
    ],
)
def test_what_is_no_letter_of_a_watch_is_none(broken: dict[str, Any]) -> None:
    assert watched.read(letter()) is not None
    assert watched.read({**letter(), **broken}) is None


def test_only_known_events_and_figures_are_kept() -> None:
    odd = [event(0), event(2, "exploded"), event(3, figures={"a": "text", "b": float("inf"), "c": 2}), "x"]
    found = watched.read(letter(0, *odd))
    assert found is not None
    assert found["events"] == [
        (3, "raised", {"what": "error", "why": "", "score": 0.3, "figures": {"c": 2.0}})
    ]


class Hub:
    """A coordinator without its sockets: what it keeps and submits is real."""

    def __init__(self, folder: Path, rule: Rerun | None) -> None:
        self.store = opened(folder)
        made = Coordinator(Server(folder=str(folder), renew={} if rule is None else {"line": rule}))
        made.store, made.host = self.store, Errands(self.store)  # type: ignore[assignment]
        self.tell = made._watch
        self.made = made


def test_events_are_in_the_chained_log_once(tmp_path: Path) -> None:
    hub = Hub(tmp_path, None)

    async def story() -> None:
        await hub.tell("a", letter(0, event(1), event(2, "cleared")))
        await hub.tell("a", letter(0, event(1), event(2, "cleared"), event(3)))
        again = Hub(tmp_path, None)  # it forgets which it had
        await again.tell("a", letter(0, event(2, "cleared"), event(3), event(4)))

    asyncio.run(story())
    found = [e for e in hub.store.events(0, 100) if e["kind"].startswith("watch.")]
    assert [(e["kind"], e["node"]) for e in found] == [
        ("watch.raised", "a"),
        ("watch.cleared", "a"),
        ("watch.raised", "a"),
        ("watch.raised", "a"),
    ]


def model(store: Store, run: str) -> int:
    """A version of the model, as a finished run registers it."""
    blob = store.blobs.put(b"model")
    return store.model_add(run, "line", blob, lambda version: json.dumps({"v": version}).encode(), {})


def test_enough_members_that_ask_start_one_run(tmp_path: Path) -> None:
    (tmp_path / "line.toml").write_text(JOB)
    hub = Hub(tmp_path, Rerun("line.toml", nodes=2, pause=0.0))
    first = hub.store.submit({}, 1, "me", name="other")
    version = model(hub.store, first)

    async def story() -> None:
        await hub.tell("a", letter(version))
        await hub.tell("a", letter(version))
        assert len(hub.store.runs()) == 1, "one member is not two"
        await hub.tell("b", letter(version + 1))
        assert len(hub.store.runs()) == 1, "nobody can ask about a version that is not there"
        await hub.tell("b", letter(version))
        await hub.tell("c", letter(version))
        await hub.tell("a", letter(version))

    asyncio.run(story())
    runs = [r for r in hub.store.runs() if r["name"] == "line"]
    assert len(runs) == 1, "while that one is open, nobody starts another"
    assert runs[0]["table"]["learner"]["name"] == "linear"
    hub.store.move(runs[0]["id"], "stopped", frm=("queued",))
    model(hub.store, runs[0]["id"])
    asyncio.run(hub.tell("a", letter(version)))
    assert len(hub.store.runs()) == 2, "they ask about what has been replaced"


def test_a_job_that_is_not_there_is_said_and_no_more(tmp_path: Path) -> None:
    hub = Hub(tmp_path, Rerun("absent.toml"))
    version = model(hub.store, hub.store.submit({}, 1, "me", name="other"))
    asyncio.run(hub.tell("a", letter(version)))
    (said,) = hub.store.logs()
    assert said["level"] == "error"
    assert "absent.toml" in said["text"]
