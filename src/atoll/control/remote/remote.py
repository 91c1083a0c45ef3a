"""A run at a federation: looked at, waited for, and brought home as the `Run` that `simulate` gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ...core import errors
from ...core.errors import AtollError, PeerError
from ...run import Run
from .fetched import run_of
from .rest import pages, path

if TYPE_CHECKING:
    from .sdk import Federation

ENDED = ("done", "failed", "stopped")
WAIT = 20.0  # seconds a request waits for news at the server

Row = dict[str, Any]
Watch = Callable[[Row], None]


class RemoteRun:
    """A run at a federation; it goes on whatever happens to this process. `id`: its name there."""

    def __init__(self, fed: Federation, id: str) -> None:
        self._fed, self.id = fed, id

    def __repr__(self) -> str:
        return f"RemoteRun({self.id})"

    @property
    def record(self) -> Row:
        """Where it stands: state, round, of, metric, value, up, down, reason, table and more; `waiting` while
        it waits for clients: since when, of how many how many hold back, by which rules.
        """
        return dict(self._fed._rest.get(path("runs", self.id))["run"])

    @property
    def state(self) -> str:
        """queued, running, paused, stopping, done, failed or stopped."""
        return str(self.record["state"])

    @property
    def history(self) -> list[Row]:
        """One record a round, as `Run.history`."""
        return self.since(-1)

    @property
    def names(self) -> dict[int, str]:
        """The sites' names by client number, the keys of `Run.sites`."""
        return {int(k): str(v) for k, v in self.record.get("names", {}).items()}

    def since(self, round: int) -> list[Row]:
        """The records after a round."""
        found = pages(self._fed._rest.get, path("runs", self.id, "history"), "rounds", first=round)
        return [restored(record) for record in found]

    def logs(self) -> list[Row]:
        """What sites reported: node, level, text, at; for a failure its cause and a fix."""
        return list(self._fed._rest.get(path("runs", self.id, "logs"))["logs"])

    def report(self) -> Row:
        """What it promised, what it spent and who could see what, as its coordinator signed it. Raises
        MisuseError before the run has ended and where nobody was asked, ProtocolError for another signature.
        """
        from ...privacy.report import open_report

        after = 0
        while True:
            events, after = self._fed.events(after, run=self.id)
            for event in events:
                if event["kind"] == "run.report":
                    return dict(open_report(event["body"]["signed"], self._fed._rest.root()))
            if not events:
                raise errors.MisuseError(f"{self.id} has no report: a run that has begun gets it at its end")

    def stop(self) -> Row:
        """End it after what is under way; what it has learnt is kept."""
        return dict(self._fed._rest.post(path("runs", self.id, "stop"))["run"])

    def watch(self, timeout: float | None = None) -> Iterator[Row]:
        """Its record whenever something changed, the last one when it has ended.

        `timeout`: seconds in all; the iterator then just ends. The run goes on when one stops looking.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        seen = self._fed.events(after=-1, run=self.id)[1]
        while True:
            record = self.record
            yield record
            left = WAIT if ends is None else min(WAIT, ends - time.monotonic())
            if record["state"] in ENDED or left <= 0:
                return
            _, seen = self._fed.events(seen, run=self.id, wait=left)

    def wait(self, timeout: float | None = None, watch: Watch | None = None) -> Run:
        """The finished run: model, history, metrics, sites, traffic, `export`.

        `watch` sees each round's record. A run that was stopped comes as far as it got; `stopped` says
        by whom. Raises what ended a run that failed, Gone after `timeout` seconds, ConfigError for a
        job with parts that are not installed here.
        """
        done, last = -1, self.record
        for record in self.watch(timeout):
            last = record
            for round in self.since(done) if watch else ():
                done = round["round"]
                if watch is not None:
                    watch(round)
        if last["state"] not in ENDED:
            raise errors.Gone(f"{self.id} is still {last['state']} after {timeout:g} seconds; it goes on")
        if last["state"] == "failed":
            raise failure(self.id, str(last["reason"]))
        return self.result()

    def result(self) -> Run:
        """The run as it stands, which may be unfinished: its history, and the model if there is one."""
        record = self.record
        found = self._fed.models(run=self.id)
        params = self._fed._params(found[0]) if found else None
        return run_of(record, self.history, params)


def restored(record: Row) -> Row:
    """A round's record with client numbers as numbers, and null as the number that is none."""
    from ...simulate.folder import BY_CLIENT

    def number(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: number(v) for k, v in value.items()}
        return float("nan") if value is None else value

    whole = {name: number(value) for name, value in record.items()}
    return {k: {int(c): v for c, v in x.items()} if k in BY_CLIENT else x for k, x in whole.items()}


def failure(id: str, reason: str) -> AtollError:
    """The error that ended a run, of the kind its reason begins with ("QuorumError: ...")."""
    kind, _, text = reason.partition(": ")
    made = getattr(errors, kind, None)
    if isinstance(made, type) and issubclass(made, AtollError) and text:
        return made(f"{id} failed: {text}")
    return PeerError(f"{id} failed: {reason or 'no reason was recorded'}; atoll logs {id} says more")
