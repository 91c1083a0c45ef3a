"""Who takes part in a run, and how its members stand when it is over.

    store's records ─► Roster, fixed when the run begins ─► Progress.records ─► keep: the store's again

Where a job sets suspects aside, whoever is one at its end is quarantined: it stays connected, is told why,
and no run asks it for anything until an administrator reinstates it. Jobs whose rounds do not show single
updates neither read records nor change them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...core.update import Update
from ...job import Job
from ...learn.aside import aside
from ...learn.detect import Record, why
from ...run import RECORDS
from ...wire import checkpoint
from .. import config
from ..store.records import Standing
from ..store.store import Store

_NO_MODEL = Update.of({})


@dataclass(frozen=True)
class Roster:
    """Who takes part in a run, fixed when it begins: clients' ids by name, and what their data share.

    `known`: of those with a record in the store, its values and how often they had been reinstated by then.
    """

    clients: Mapping[str, int]
    shared: Mapping[str, Any]
    known: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def dump(self) -> bytes:
        """As bytes."""
        return json.dumps(
            {"clients": dict(self.clients), "shared": dict(self.shared), "known": dict(self.known)},
            sort_keys=True,
        ).encode()

    @classmethod
    def load(cls, data: bytes) -> Roster:
        """From `dump`."""
        return cls(**json.loads(data))

    @property
    def names(self) -> dict[int, str]:
        """Of the clients, by id."""
        return {client: name for name, client in self.clients.items()}

    @property
    def sizes(self) -> list[int] | None:
        """Rows of each client, by id; None where any of them withholds how many it has."""
        rows = [self.shared["rows"][name] for name in sorted(self.clients, key=self.clients.__getitem__)]
        return None if None in rows else [int(n) for n in rows]

    @property
    def records(self) -> dict[int, Record]:
        """What earlier runs have shown of these clients, by id."""
        kept = {name: known["record"] for name, known in self.known.items()}
        return {self.clients[name]: Record(**record) for name, record in kept.items() if record}


def known(store: Store, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What a roster has to know of these members."""
    found = store.records()
    return {
        name: {"record": found[name]["record"], "cleared": found[name]["cleared"]}
        for name in names
        if name in found
    }


def keep(store: Store, run: str, table: Mapping[str, Any]) -> None:
    """Write down what a run has shown of its members, however far it came, and quarantine whom it set aside.

    Whoever is quarantined by it is told so in the run's log. The same again changes nothing.
    """
    job: Job = config.parse(table).job
    algorithm = job.trained
    if not algorithm.watched:
        return
    text, state = store.journal(run, "roster").resume().state, store.journal(run).resume().state
    if text is None or state is None:
        return
    roster = Roster.load(text)
    progress = checkpoint.load(state, RECORDS, elsewhere=lambda blob: _NO_MODEL)
    records: Mapping[int, Record] = progress.records
    names = {client: name for name, client in roster.clients.items()}
    found = {names[c]: _standing(record, roster.known.get(names[c], {})) for c, record in records.items()}
    out = aside(algorithm.aside, records, range(len(names)), job.cohort)
    with store.batch():
        for name in store.judged(run, found, [names[c] for c in out]):
            store.log_add(run, name, "warning", reason(name, run, records[roster.clients[name]]))


def _standing(record: Record, before: Mapping[str, Any]) -> Standing:
    return Standing(asdict(record), record.score, int(before.get("cleared", 0)))


def reason(name: str, run: str, record: Record) -> str:
    """Why a member is quarantined, and what helps: its own conduct, and nobody else's figures."""
    return (
        f"{name} is quarantined since run {run}: over {record.rounds} rounds {why(record)}. It stays"
        " connected and is asked for nothing until an administrator has looked at it and reinstates it:"
        f" atoll node reinstate {name}"
    )


def quarantined(store: Store) -> dict[str, str]:
    """Who is, and why."""
    return {
        name: reason(name, kept["run"], Record(**kept["record"]))
        for name, kept in store.records(quarantined=True).items()
    }
