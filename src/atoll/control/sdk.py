"""A federation of machines from Python: the verbs of the command line, and runs that come back whole.

fed = at.connect("https://hub.example:8445", token="atoll1.…")
run = fed.submit("job.toml").wait()     # a Run, as at.simulate gives
run.metrics["accuracy"], run.export("model.onnx")
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from ..core import errors
from ..core.errors import AtollError, ConfigError, MisuseError, PeerError
from ..core.registry import nearest
from ..job import Job
from ..privacy.token import Token
from ..run import Run
from . import config, restate
from .fetched import graph_file, model_file, params_of, run_of
from .rest import Rest, pages, path
from .where import where

ENDED = ("done", "failed", "stopped")
WAIT = 20.0  # seconds a request waits for news at the server

Row = dict[str, Any]
Watch = Callable[[Row], None]


def connect(url: str | None = None, token: str | Token | None = None, *, timeout: float = 30.0) -> Federation:
    """The federation whose coordinator's API is at `url`, as the operator `token` was made for.

    Without them: $ATOLL_URL and $ATOLL_TOKEN, else the file that `atoll up` and a coordinator's first
    start write. `timeout`: seconds for each step on the network. Nothing is sent before the server has
    proved itself by the root that the token names.

    Raises ConfigError where no token or URL is found, PrivacyError for a server of another federation,
    Gone where it cannot be reached, Refused for a token it does not know.
    """
    found = where(url, None if token is None else str(token))
    federation = Federation(Rest(found.url, Token.parse(found.token), timeout=timeout))
    federation.about()
    return federation


class Federation:
    """The verbs of an operator; made by `connect`. Rows are dicts as the REST API gives them.

    Each raises Refused where the token's role may not, MisuseError for an id that is not there.
    """

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    def __repr__(self) -> str:
        return f"Federation({self._rest.url})"

    def about(self) -> Row:
        """Its name, version and root's fingerprint, and who you are to it: caller and role."""
        return self._row(self._rest.get("/v1/federation"))

    def submit(
        self,
        job: Job | str | os.PathLike[str] | Mapping[str, Any],
        *,
        seed: int | None = None,
        data: str | Mapping[str, Any] | None = None,
    ) -> RemoteRun:
        """Queue a job: a job file's path, its values, or a Job whose parts have names.

        `data`: what the sites call the data, for a Job; it overrides a file's. `seed`: instead of the
        file's. Raises ConfigError with the path of what is wrong.
        """
        if isinstance(job, Job):
            values: dict[str, Any] = restate.table(job)
        elif isinstance(job, Mapping):
            values = dict(job)
        else:
            values = dict(config.read(Path(job)).table)
        if data is not None:
            values["data"] = data
        row = self._rest.post("/v1/runs", {"job": values, "seed": seed})["run"]
        return RemoteRun(self, row["id"])

    def runs(self, state: str | None = None, limit: int = 100) -> list[Row]:
        """The newest runs; queued ones with their `place` in the queue."""
        return list(self._rest.get("/v1/runs", state=state, limit=limit)["runs"])

    def run(self, id: str) -> RemoteRun:
        """A run by its id. Raises MisuseError where there is none."""
        found = RemoteRun(self, id)
        _ = found.record
        return found

    def nodes(self) -> list[Row]:
        """Every member: role, parent, state (online, away, revoked), what it does, when it was seen."""
        return list(self._rest.get("/v1/nodes")["nodes"])

    def drain(self, name: str, on: bool = True) -> Row:  # noqa: FBT001, FBT002
        """Give a member no new work; `on=False` gives it work again."""
        return self._row(self._rest.post(path("nodes", name, "drain"), {"on": on}))

    def revoke(self, name: str) -> Row:
        """Shut a member out: its streams end, its certificates are worth nothing."""
        return self._row(self._rest.post(path("nodes", name, "revoke")))

    def readmit(self, name: str) -> Row:
        """Let a revoked name enrol again, with a new token."""
        return self._row(self._rest.post(path("nodes", name, "readmit")))

    def tokens(self) -> list[Row]:
        """Tokens that were made: id, role, name, until, whether used. Their secrets are nowhere kept."""
        return list(self._rest.get("/v1/tokens")["tokens"])

    def token(self, role: str, name: str, hours: float = 24.0) -> str:
        """A new token: one enrolment of a client or an edge, or an operator's key until it ends."""
        asked = {"role": role, "name": name, "hours": hours}
        return str(self._rest.post("/v1/tokens", asked)["token"])

    def forget(self, token: str) -> Row:
        """Make a token worthless, by its id."""
        return self._row(self._rest.delete(path("tokens", token)))

    def models(self, name: str | None = None, run: str | None = None) -> list[Row]:
        """Registered models, newest version first: name, version, run, metrics, manifest."""
        return list(self._rest.get("/v1/models", name=name, run=run)["models"])

    def model(self, name: str, version: int | str = "latest") -> Row:
        """One version of a model, with the signed manifest."""
        return self._row(self._rest.get(path("models", name, version)))

    def export(
        self, name: str, to: str | os.PathLike[str], version: int | str = "latest", example: Any = None
    ) -> Path:
        """Write a model to a *.safetensors or *.onnx file.

        The ONNX graph is the one in the registry, its signature verified, where there is one; else its
        learner here writes one. `example`: rows to follow through it then. Raises ConfigError for
        another ending or a learner that cannot, ProtocolError for a signature that is not a coordinator's.
        """
        file, found = Path(to), self.model(name, version)
        if file.suffix == ".onnx" and example is None and "onnx" in found["forms"]:
            return graph_file(file, self._file(found, "onnx"), found["manifest"], self._rest.root())
        return model_file(file, self._params(found), lambda: self.run(found["run"]), example)

    def events(self, after: int = 0, *, run: str | None = None, wait: float = 0.0) -> tuple[list[Row], int]:
        """State changes after event `after`, and the number to ask after next; waits for some."""
        answer = self._rest.get("/v1/events", timeout=wait + 30.0, after=after, run=run, wait=wait)
        return list(answer["events"]), int(answer["next"])

    def overview(self, run: str | None = None) -> Row:
        """What the live page shows, in one answer: of `run`, or of the one at work."""
        return self._row(self._rest.get("/v1/overview", run=run))

    def health(self) -> Row:
        """The coordinator's store, disk, schema, certificate and versions."""
        return self._row(self._rest.get("/v1/health"))

    def audit(self, seen: str = "") -> Row:
        """Verify the chained log of events: ok, how many, and the first row that was altered.

        `seen`: an end noted earlier, "number:hash", which the log must still hold.
        """
        return self._row(self._rest.get("/v1/audit", timeout=600.0, seen=seen or None))

    def backup(self) -> Row:
        """Have the coordinator write a backup into its own folder; its path there, size and SHA-256."""
        return self._row(self._rest.post("/v1/backups"))

    def prune(self, keep_days: float, keep_runs: int = 0) -> Row:
        """Forget ended runs older than `keep_days`, but the newest `keep_runs`, and blobs nobody needs."""
        return self._row(self._rest.post("/v1/prune", {"keep_days": keep_days, "keep_runs": keep_runs}))

    def close(self) -> None:
        """Close the connection; the next verb opens another."""
        self._rest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _params(self, found: Row) -> Any:
        return params_of(self._file(found, "safetensors"))

    def _file(self, found: Row, form: str) -> bytes:
        where = path("models", found["name"], found["version"], "file")
        return self._rest.download(f"{where}?form={form}")

    @staticmethod
    def _row(answer: Any) -> Row:
        return dict(answer)


class RemoteRun:
    """A run at a federation; it goes on whatever happens to this process. `id`: its name there."""

    def __init__(self, fed: Federation, id: str) -> None:
        self._fed, self.id = fed, id

    def __repr__(self) -> str:
        return f"RemoteRun({self.id})"

    @property
    def record(self) -> Row:
        """Where it stands: state, round, of, metric, value, up, down, reason, table and more."""
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
    from ..simulate.folder import BY_CLIENT

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


def known(name: str, names: list[str], what: str) -> None:
    """Raise MisuseError, with the nearest one, unless `name` is among `names`."""
    if name not in names:
        raise MisuseError(f"there is no {what} {name!r}: {nearest(name, names) if names else 'none at all'}")


__all__ = ["ConfigError", "Federation", "RemoteRun", "connect"]
