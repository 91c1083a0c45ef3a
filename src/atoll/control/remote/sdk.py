"""A federation of machines from Python: the verbs of the command line, and runs that come back whole.

fed = at.connect("https://hub.example:8445", token="atoll1.…")
run = fed.submit("job.toml").wait()     # a Run, as at.simulate gives
run.metrics["accuracy"], run.export("model.onnx")
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ...job import Job
from ...privacy.token import Token
from .. import config
from . import restate
from .carried import file_of, named, plan_of, row_of
from .fetched import graph_file, model_file, params_of
from .remote import ENDED, RemoteRun
from .rest import Rest, path
from .where import where

Row = dict[str, Any]


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


def restore(file: str | os.PathLike[str], folder: str | os.PathLike[str] = ".", store: str = "") -> Path:
    """Fill an empty coordinator's folder from a backup, and its database, SQLite in the folder by default.

    Returns the folder. Raises StateError where there is a store already, or the backup is damaged or newer.
    """
    from ..store import Store

    Store.restore(Path(file), store, Path(folder)).close()
    return Path(folder)


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
        row: tuple[int, ...] | None = None,
    ) -> RemoteRun:
        """Queue a job: a job file's path, its values, or a Job whose parts have names.

        A learner that is a `torch_learner` is exported here and travels as a plan; so does a plan's file.
        `row`: the shape of one row for that, None to ask a site that is there.

        `data`: what the sites call the data, for a Job; it overrides a file's. `seed`: instead of the
        file's. Raises ConfigError with the path of what is wrong.
        """
        if isinstance(job, Job):
            plan = plan_of(job.learner, lambda: row or row_of(self.nodes(), data), seed or 0)
            job = job if plan is None else job.replace(learner=named(job.learner, plan))
            values: dict[str, Any] = restate.table(job)
        elif isinstance(job, Mapping):
            values = dict(job)
        else:
            values = dict(config.read(Path(job)).table)
        if data is not None:
            values["data"] = data
        if not isinstance(job, Job):
            plan = file_of(values)
        if plan is not None:
            sent = self._rest.upload("/v1/plans", plan.dump())
            values["learner"] = {**values["learner"], "sha256": sent["sha256"], "blob": sent["blob"]}
        made = self._rest.post("/v1/runs", {"job": values, "seed": seed})["run"]
        return RemoteRun(self, made["id"])

    def runs(self, state: str | None = None, limit: int = 100) -> list[Row]:
        """The newest runs; queued ones with their `place` in the queue."""
        return list(self._rest.get("/v1/runs", state=state, limit=limit)["runs"])

    def run(self, id: str) -> RemoteRun:
        """A run by its id. Raises MisuseError where there is none."""
        found = RemoteRun(self, id)
        _ = found.record
        return found

    def nodes(self) -> list[Row]:
        """Every member: role, parent, state (online, away, revoked), what it does, when it was seen; `score`,
        how surely it lied as of the last run that saw what it sent, and whether it is `quarantined`.
        """
        return list(self._rest.get("/v1/nodes")["nodes"])

    def logs(self) -> list[Row]:
        """What was said of members and belongs to no run, as `RemoteRun.logs` gives a run's."""
        return list(self._rest.get("/v1/logs")["logs"])

    def drain(self, name: str, on: bool = True) -> Row:  # noqa: FBT001, FBT002
        """Give a member no new work; `on=False` gives it work again."""
        return self._row(self._rest.post(path("nodes", name, "drain"), {"on": on}))

    def revoke(self, name: str) -> Row:
        """Shut a member out: its streams end, its certificates are worth nothing."""
        return self._row(self._rest.post(path("nodes", name, "revoke")))

    def readmit(self, name: str) -> Row:
        """Let a revoked name enrol again, with a new token."""
        return self._row(self._rest.post(path("nodes", name, "readmit")))

    def reinstate(self, name: str) -> Row:
        """Hold nothing against a member any more: it takes part again, and its record begins anew."""
        return self._row(self._rest.post(path("nodes", name, "reinstate")))

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

    def rollout(self, name: str, version: int | None = None, *, reason: str = "", **plan: Any) -> Row:
        """Roll a version of a model out, the newest without: some members first, then all.

        `plan`: nodes: whose turn is first, or first: which part of them; at each shadow: requests it is
        compared on before it answers any, canary: the share it answers then, stay: seconds in each stage,
        hold: wait for `promote`, gates: limits on error, disagreement, latency, drift, and least, labels,
        alpha; back: once this part of members has taken it back, all do. Returns as `stages`.
        """
        asked = {"version": version, "plan": plan, "reason": reason}
        return self._row(self._rest.post(path("rollouts", name), asked))

    def promote(self, name: str, *, reason: str = "") -> Row:
        """Have all members serve the version that is being rolled out."""
        return self._row(self._rest.post(path("rollouts", name, "promote"), {"reason": reason}))

    def rollback(self, name: str, to: int | None = None, *, reason: str) -> Row:
        """Have all members serve an earlier version: what they served before, or `to`."""
        return self._row(self._rest.post(path("rollouts", name, "rollback"), {"to": to, "reason": reason}))

    def stages(self, name: str) -> Row:
        """A model in the fleet: the version all members are to serve, the one on trial (0 for none), orders,
        the newest first, and of each member version, trial, stage, reason and figures.
        """
        return self._row(self._rest.get(path("rollouts", name)))

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

    def predict(
        self,
        rows: Any,
        *,
        at: str | None = None,
        model: str | os.PathLike[str] | None = None,
        leave: Sequence[str] = (),
    ) -> Row:
        """{predictions, model}: what a client's service at the URL `at` says of rows, or here an ONNX file;
        and `classes`, names, where predictions are numbers of classes that the model names.

        `rows`: rows of numbers, or a CSV file with a header, without its columns in `leave`. Raises DataError
        for what is no finite number, Gone where no service answers, Refused where it refuses the rows.
        """
        from .predicting import predict

        return predict(rows, at, None if model is None else Path(model), leave)

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


__all__ = ["ENDED", "Federation", "RemoteRun", "connect", "restore"]
