"""A client's rows and what learns from them: trains what its policy allows, says no to the rest and why.

What an algorithm keeps at the client (error feedback, control variates, a personal head) is on disk
before the answer is, and is committed only once the next task says that the answer was used. So is an
update that waits for a sum, until its client has vouched for one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...adapt.plan_table import planned
from ...core.errors import AtollError, PrivacyError, Refused, StateError
from ...data.examples import gaps
from ...learn.auto import auto, chosen, linked
from ...learn.local import Held as State
from ...learn.local import Local
from ...learn.waiting import Waiting
from ...learn.wrapped import Kept
from ...privacy import dp
from ...privacy.claim import Claim
from ...privacy.hazmat.suite import usable
from ...privacy.vault import Vault
from ...wire import checkpoint
from ...wire.body import params_message
from ...wire.failpoint import declare, hit
from ...wire.files import whole
from ...wire.heap import give_back
from ..settings import Client
from .datasets import Held, hold, pick, sensed
from .orders import Asked, Orders, write
from .parcels import made_frames
from .plans import taken as plan_of
from .policy import Asked as Question
from .policy import refusal
from .readings import refusal as refusal_of
from .safe import opened
from .seats import coins, link, once, taken
from .spent import spend
from .work import Work, belongs

log = logging.getLogger("atoll.client")
RECORDS = (State, Kept, Waiting)
_TRAINED = declare("learning.trained")
_KEPT = declare("learning.kept.before"), declare("learning.kept.after")


class Learning:
    """One client's data sets, those of the settings and `held`, and the run it works for. What it keeps is
    sealed by `vault`, its folder's.

    Raises ConfigError or DataError for data that cannot be used. Methods block; call one at a time.
    """

    def __init__(
        self, settings: Client, held: Mapping[str, Held] | None = None, vault: Vault | None = None
    ) -> None:
        self._settings = settings
        self._folder = Path(settings.folder)
        self._vault = vault or opened(settings)
        self._held: dict[str, Held] = dict(held or {})
        self._held |= {name: self._loaded(name) for name in settings.data}
        self._locals: dict[str, Local] = {}
        self._orders: Orders | None = None
        self._true = ""  # the run whose promise was looked at
        self._told = ""  # the run whose choice of a code was said
        self._begun = ""  # the run whose rows were

    def about(self) -> dict[str, Any]:
        """What the federation may know of this site: figures and names."""
        allowed = self._settings.policy.crypto
        return {
            "data": {name: held.about() for name, held in self._held.items()},
            "crypto": [name for name in usable() if name in allowed],
        }

    def answer(
        self,
        head: Mapping[str, Any],
        model: Path,
        to: Path,
        *,
        sound: bool,
        roots: bytes,
        federation: str,
        rate: float = 0.0,
    ) -> None:
        """Write the answer to an ask. `rate`: bytes a second of the link, 0 where that is unknown.

        Raises Refused with the reason, and as Orders.read.
        """
        asked = self._read(roots, federation).read(head, model, sound=sound, now=time.time())
        (client,) = asked.task.clients or (-1,)
        belongs(asked.task, client)
        self._allowed(asked)
        local = self._local(asked, client, roots, model.parent, rate)
        if dp.local(local.algorithm.chain) and local.trains(asked.task):
            once(self._folder, asked.work.name, self._vault, asked.task, local.seat.coins)
        waited = set(local.waiting)
        answer = local.answer(asked.task)
        give_back()  # what training took: the answer's bytes come beside it
        hit(_TRAINED)
        self._tell_choice(asked.work, local, client)
        if local.trains(asked.task) or waited != set(local.waiting):
            self._keep(asked.work, local)
        failed = answer.failed.get(client)
        if failed is not None:
            raise Refused(failed)
        write(asked, answer, to, most=asked.work.job.max_weight, vault=self._vault)

    def begin(self, head: Mapping[str, Any], to: Path, *, roots: bytes, federation: str) -> None:
        """Write the model that an ask's run starts from, if it is the blob that `to` is named after: what
        other versions of a library draw may be another.

        Raises Refused where this site's policy says no, ProtocolError unless the job is a coordinator's.
        """
        asked = self._read(roots, federation).without(head, now=time.time())
        self._allowed(asked)
        if made_frames(to, params_message(asked.work.first())):
            os.utime(to, (0, 0))  # any model that is trained on is newer
        give_back()

    def _read(self, roots: bytes, federation: str) -> Orders:
        if self._orders is None:
            self._orders = Orders(roots, federation)
        return self._orders

    def _tell_choice(self, work: Work, local: Local, client: int) -> None:
        """Say once a run how updates travel, where that was chosen here."""
        held = local.staged.get(client)
        how = auto(local.algorithm.chain)
        if how is None or held is None or work.run == self._told:
            return
        bits = chosen(local.algorithm.chain, held[1].chain)
        if bits is not None:
            self._told = work.run
            form = f"int{bits}" if bits else "they are"
            log.info(
                "%s: updates travel as %s: %.3g MB/s up, %.3g MB/s encoded",
                work.name,
                form,
                how.how.uplink / 1e6,
                how.how.speed / 1e6,
            )

    def _loaded(self, name: str) -> Held:
        table = self._settings.data[name]
        if "source" in table:
            return sensed(name, table, self._settings, self._vault)
        return hold(name, table, self._folder)

    def _rows(self, work: Work) -> Held:
        """The rows that a run learns from: those that were stored when it began, where readings come in.

        Raises Refused where they are none of the job's contract, or there are none yet.
        """
        name, fresh = work.data, work.run != self._begun
        if fresh and "source" in self._settings.data.get(name, {}):
            self._held[name] = self._loaded(name)
        held = pick(self._held, name)
        if fresh:
            contract = work.file.contract
            if contract is not None and (reason := refusal_of(held, contract)):
                raise Refused(f"the data here do not keep the job's contract {contract.name!r}: {reason}")
            if not len(held.train):
                raise Refused(f"there are no rows of {name!r} here yet")
            parts = filter(None, (held.train, held.test))
            if not work.fits and work.pipeline is None and any(gaps(part) for part in parts):
                raise Refused(f"rows of {name!r} have missing cells, and the job has no pipeline")
            self._begun = work.run
        return held

    def lighten(self, graph: Path, to: Path, data: str) -> None:
        """Write an ONNX model in 8-bit integers, sealed: calibrated on the training rows of a data set and
        judged on its test rows, or every fifth. Where the site has not all of the model's classes, its own
        numbers of them may be others: then it is judged by what the model says itself.

        Raises ConfigError where it loses too much or cannot be made, DataError for rows that do not fit.
        """
        from ...serve.variants import agreed, classes, int8

        held = pick(self._held, data)
        rows, apart = held.train, held.test
        if apart is None or not len(apart):
            fifth = np.arange(len(rows)) % 5 == 4
            rows, apart = rows[~fifth], rows[fifth]
        plain = graph.read_bytes()
        known = not held.classes or classes(plain, apart.x[:1]) == len(held.classes)
        self._vault.write(to, int8(plain, rows.x, apart if known else agreed(plain, apart.x)))

    def tune(
        self, base: Path, rows: Path, to: Path, values: Mapping[str, Any], *, roots: bytes, federation: str
    ) -> dict[str, Any]:
        """See tuning.tune."""
        from .tuning import tune

        policy = self._settings.policy
        return tune(
            base, rows, to, values, vault=self._vault, roots=roots, federation=federation, policy=policy
        )

    def _allowed(self, asked: Asked) -> None:
        """Raise Refused where this site's policy says no."""
        work, task = asked.work, asked.task
        held = self._rows(work)
        table, clock = work.values["table"], time.localtime()
        question = Question(
            job=work.job.name,
            learner=_name(table.get("learner")),
            algorithm=_name(table.get("algorithm", "fedavg")),
            cohort=len(task.cohort),
            rows=len(held.train),
            round=task.round,
            minute=clock.tm_hour * 60 + clock.tm_min,
            evaluate=task.want == "evaluate",
            epsilon=self._epsilon(work),
            summed=work.job.exchange.blind,
            crypto=work.job.crypto,
        )
        reason = refusal(self._settings.policy, question)
        if reason:
            raise Refused(reason)
        if work.job.trained.private:
            if task.want == "evaluate":
                raise Refused("the job promises privacy: how a model does on these rows stays here")
            if not 0 <= task.round < work.job.rounds:
                raise Refused(
                    f"the job's promise of privacy is for {work.job.rounds} rounds, and they are over"
                )
        if held.budget and work.job.privacy is None:
            raise Refused("these rows have a privacy budget, and the job promises no privacy")
        if held.budget and task.want == "fit":
            self._spend(asked, held.budget)

    def _epsilon(self, work: Work) -> float | None:
        """What the job promises, once it is found to keep it; who sets no limit takes its word."""
        claim = work.job.privacy
        if claim is not None and self._settings.policy.max_epsilon is not None:
            self._look(work, claim)
        return None if claim is None else claim.epsilon

    def _look(self, work: Work, claim: Claim) -> None:
        """Raise Refused where the job's promise is not true; each run is looked at once."""
        if work.run != self._true:
            try:
                claim.check(work.job.cohort, work.job.rounds)
            except AtollError as error:
                raise Refused(f"this site cannot find the job's promise of privacy true: {error}") from None
            self._true = work.run

    def _spend(self, asked: Asked, budget: str) -> None:
        """The run's promise is spent, on disk, before it is trained for; Refused where that cannot be."""
        work, claim = asked.work, asked.work.job.privacy
        assert claim is not None  # noqa: S101  found to be there
        self._look(work, claim)
        try:
            whose = f"{work.values['federation']}/{work.run}"
            spend(
                self._folder,
                self._vault,
                budget,
                whose,
                (claim.epsilon, claim.delta),
                asked.receipts,
                now=time.time(),
                release=claim.release(work.job.cohort, work.job.rounds),
                of=claim.neighbours(work.job.cohort),
            )
        except PrivacyError as error:
            raise Refused(str(error)) from None

    def _local(self, asked: Asked, client: int, roots: bytes, fetched: Path, rate: float) -> Local:
        """This run's learner over our rows, with what it kept from earlier rounds."""
        work = asked.work
        local = self._locals.get(work.name)
        if local is None:
            learner = planned(work.values["table"])
            if learner is not None and not work.fits:
                policy = self._settings.policy
                plan = plan_of(fetched / Path(asked.plan).name, str(learner["sha256"]), policy)
                work = replace(work, plan=plan, seconds=policy.plan_seconds)
            local = work.local(pick(self._held, work.data), client)
            if work.job.exchange.shows == "sum":
                least = self._settings.policy.min_cohort
                local.seat = taken(
                    self._folder, work.name, roots, work.values["federation"], least, self._vault
                )
            if dp.by_rows(work.job.trained.chain) or dp.local(work.job.trained.chain):
                local.seat.coins = coins(self._folder, work.name, self._vault)
            if auto(local.algorithm.chain) is not None:
                facts = link(self._folder, work.name, self._vault, rate)
                chain = linked(local.algorithm.chain, *facts)
                local.algorithm = replace(local.algorithm, chain=chain)
            path = self._state(work)
            if path.exists():
                try:
                    kept = checkpoint.load(self._vault.read(path), RECORDS)
                    local.committed, local.staged = dict(kept["committed"]), dict(kept["staged"])
                    local.waiting = dict(kept.get("waiting", {}))
                except StateError as error:
                    log.warning("%s: what this client kept for the run is lost: %s", work.name, error)
            self._locals = {work.name: local}
        return local

    def _keep(self, work: Work, local: Local) -> None:
        path = self._state(work)
        state = {name: dict(getattr(local, name)) for name in ("committed", "staged", "waiting")}
        if not any(state.values()) and not path.exists():
            return
        hit(_KEPT[0])
        with whole(path) as file, self._vault.sealing(file, path) as sink:
            sink.write(checkpoint.dump(state, RECORDS))
        hit(_KEPT[1])

    def _state(self, work: Work) -> Path:
        return self._folder / "runs" / f"{work.name}.state"


def _name(part: Any) -> str:
    return str(part.get("name", "")) if isinstance(part, Mapping) else str(part)
